//! `setup`: from nothing to a daemon that answers, for who has ten minutes.
//!
//! Invariant: everything is decided before anything is done; what is there stays as it is, so that a
//! second run finishes what a first one could not. Danger: a key file beside the vault, or one that
//! does not open the vault that is there.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use crate::config::{HOME_VARIABLE, Mode, Paths, UnlockMethod};
use crate::keeper;
use crate::vault::crypto;

use super::init::{self, Unlocking};
use super::output::{note, show};
use super::{Context, Failure, Outcome, exit, serve};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  strongroom setup\n  strongroom setup --dry-run\n  \
    sudo strongroom setup --unlock key-file --systemd --yes\n  \
    strongroom --home ~/vault setup --unlock passphrase --recovery\n\n\
    At a terminal it asks for what no option says. It may be run again: what is there stays.")]
pub(super) struct SetupArgs {
    /// How the vault is unlocked: passphrase, key-file, key-file:PATH (made where there is
    /// none), or command:PROGRAM.
    #[arg(long, value_name = "METHOD")]
    unlock: Option<String>,
    /// Also makes a recovery key, printed once.
    #[arg(long)]
    recovery: bool,
    /// Installs and starts the systemd unit (root only); else the daemon is started here.
    #[arg(long, conflicts_with = "no_up")]
    systemd: bool,
    /// Makes everything, and starts nothing.
    #[arg(long)]
    no_up: bool,
    /// Asks nothing.
    #[arg(long)]
    yes: bool,
    /// Only says what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// The unit, as it lies in contrib.
const UNIT: &str = include_str!("../../contrib/systemd/strongroom.service");
/// The program's path in it.
const UNIT_PROGRAM: &str = "/usr/local/bin/strongroom";
const UNIT_FILE: &str = "/etc/systemd/system/strongroom.service";
/// Where packages put it: it is used as it is there.
const PACKAGED_UNIT: &str = "/usr/lib/systemd/system/strongroom.service";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Here,
    Not,
    Systemd,
}

/// One thing to do, and whether it is done already.
struct Step {
    what: String,
    there: bool,
}

/// All that is decided.
struct Plan {
    unlocking: Unlocking,
    recovery: bool,
    start: Start,
    unit: Option<String>,
    steps: Vec<Step>,
}

/// Asks a person; an empty answer is the first choice.
fn ask(question: &str, choices: &[(&str, &str)]) -> Result<usize, Failure> {
    let mut input = io::stdin().lock();
    loop {
        eprintln!("{question}");
        for (at, (word, meaning)) in choices.iter().enumerate() {
            eprintln!("  {}  {word:<12} {meaning}", at + 1);
        }
        eprint!("which? [1] ");
        let line = read_line(&mut input)?;
        let typed = line.trim();
        if typed.is_empty() {
            return Ok(0);
        }
        let number = typed.parse().ok().and_then(|n: usize| n.checked_sub(1));
        let word = choices.iter().position(|(word, _)| *word == typed);
        match number.filter(|n| *n < choices.len()).or(word) {
            Some(chosen) => return Ok(chosen),
            None => eprintln!("there is no such choice"),
        }
    }
}

fn ask_yes(question: &str, default: bool) -> Result<bool, Failure> {
    loop {
        eprint!("{question} [{}] ", if default { "Y/n" } else { "y/N" });
        match read_line(&mut io::stdin().lock())?.trim() {
            "" => return Ok(default),
            "y" | "Y" | "yes" => return Ok(true),
            "n" | "N" | "no" => return Ok(false),
            _ => eprintln!("y or n"),
        }
    }
}

fn read_line(input: &mut impl BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    if input.read_line(&mut line).map_err(anyhow::Error::from)? == 0 {
        return Err(Failure::new("nothing was answered, and nothing was done")
            .hint("give the options, and --yes: strongroom setup --help"));
    }
    Ok(line)
}

/// Whether a file that may not be there yet would lie below `dir`.
fn lies_in(file: &Path, dir: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(file.parent().unwrap_or(file)).starts_with(real(dir))
}

/// Where a key file lies unless another place is named: apart from the vault.
fn key_place(paths: &Paths) -> PathBuf {
    match &paths.home {
        // A home holds the vault, so beside it.
        Some(home) => {
            let mut name = home.file_name().unwrap_or_default().to_owned();
            name.push(".key");
            home.with_file_name(name)
        }
        None => paths.beside_config(Path::new("vault.key")),
    }
}

/// The home: as the caller says, else as a person answers.
fn choose_home(given: Option<PathBuf>, asks: bool) -> Result<Option<PathBuf>, Failure> {
    let variable = std::env::var_os(HOME_VARIABLE).is_some_and(|v| !v.is_empty());
    if given.is_some() || variable || !asks {
        return Ok(given);
    }
    let places = Paths::of_this_process(None);
    let usual = match &places {
        Ok(paths) => format!("{}, mounted at {}", paths.state_dir.display(), paths.mount.display()),
        Err(_) => "not here: XDG_RUNTIME_DIR is not set".to_owned(),
    };
    let (usual_word, other) = match places.as_ref().map(|p| p.mode) {
        Ok(Mode::System) => ("system", "everything under one directory: for trials"),
        _ => ("user", "everything under one directory: for trials"),
    };
    if ask("Where is the vault to be?", &[(usual_word, &usual), ("directory", other)])? == 0 {
        return Ok(None);
    }
    eprint!("directory: ");
    let line = read_line(&mut io::stdin().lock())?;
    if line.trim().is_empty() {
        return Err(Failure::new("no directory was named").hint("strongroom --home DIR setup"));
    }
    Ok(Some(std::path::absolute(line.trim()).map_err(anyhow::Error::from)?))
}

fn choose_unlocking(context: &Context, args: &SetupArgs, asks: bool) -> Result<Unlocking, Failure> {
    let usual_key = key_place(&context.paths);
    let configured = configured(context);
    let wanted = match args.unlock.as_deref() {
        Some("key-file") => Some(match &configured {
            Some(configured @ Unlocking::KeyFile(_)) => configured.clone(),
            _ => Unlocking::KeyFile(usual_key.clone()),
        }),
        Some(text) => Some(Unlocking::parse(text)?),
        None => None,
    };
    if let (Some(wanted), Some(configured)) = (&wanted, &configured)
        && wanted != configured
    {
        return Err(Failure::new(format!(
            "{} unlocks by {}, and --unlock says {}",
            context.paths.config_file.display(),
            configured.method(),
            wanted.method()
        ))
        .hint("leave --unlock out, or change [unlock] in that file")
        .status(exit::CONFLICT));
    }
    if let Some(known) = wanted.or(configured) {
        return Ok(known);
    }
    let key = format!("by itself at each start, with a key in {}", usual_key.display());
    let choices =
        [("key-file", key.as_str()), ("passphrase", "a person types it after each start")];
    if asks && ask("How is it unlocked?", &choices)? == 1 {
        return Ok(Unlocking::Passphrase);
    }
    Ok(Unlocking::KeyFile(usual_key))
}

/// What the configuration that is there says.
fn configured(context: &Context) -> Option<Unlocking> {
    let unlock = &context.config.unlock;
    match unlock.method? {
        UnlockMethod::Command => Some(Unlocking::Command(unlock.command.clone())),
        UnlockMethod::KeyFile => {
            let path = unlock.path.as_ref()?;
            Some(Unlocking::KeyFile(context.paths.beside_config(path)))
        }
        UnlockMethod::Passphrase => Some(Unlocking::Passphrase),
        UnlockMethod::SystemdCredential => None,
    }
}

fn choose_start(context: &Context, args: &SetupArgs, asks: bool) -> Result<Start, Failure> {
    let may = context.paths.mode == Mode::System
        && context.paths.home.is_none()
        && Path::new("/run/systemd/system").is_dir();
    match args {
        SetupArgs { no_up: true, .. } => Ok(Start::Not),
        SetupArgs { systemd: true, .. } if may => Ok(Start::Systemd),
        SetupArgs { systemd: true, .. } => Err(Failure::new(
            "the systemd unit is for root, without --home, on a host with systemd",
        )
        .hint("leave --systemd out: the daemon is started here")),
        _ if may && asks => {
            let question = "Install the systemd unit, so that it starts with the host?";
            Ok(if ask_yes(question, true)? { Start::Systemd } else { Start::Here })
        }
        _ => Ok(Start::Here),
    }
}

/// What is missing on the host; found before anything is made.
fn check_host(paths: &Paths) -> Result<(), Failure> {
    if !Path::new("/dev/fuse").exists() {
        return Err(Failure::new("there is no /dev/fuse, so nothing can be mounted")
            .hint("modprobe fuse, or in a container: --device /dev/fuse; --no-up goes without"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let helper = std::env::split_paths(&path).any(|dir| dir.join("fusermount3").exists());
    if paths.mode == Mode::User && !helper {
        return Err(Failure::new("fusermount3 is not installed, and mounts are its to make")
            .hint("install the package fuse3; --no-up goes without"));
    }
    Ok(())
}

fn plan(context: &Context, args: &SetupArgs, asks: bool) -> Result<Plan, Failure> {
    let paths = &context.paths;
    let unlocking = choose_unlocking(context, args, asks)?;
    let there = paths.vault_file.exists();
    let recovery = !there
        && (args.recovery || asks && ask_yes("Make a recovery key as well (shown once)?", true)?);
    let start = choose_start(context, args, asks)?;
    let mut steps = Vec::new();
    if let Unlocking::KeyFile(key) = &unlocking {
        if there && !key.exists() {
            return Err(Failure::new(format!(
                "there is a vault already at {}, and no key file at {}",
                paths.vault_file.display(),
                key.display()
            ))
            .hint("name the one that opens it: strongroom setup --unlock key-file:PATH")
            .status(exit::CONFLICT));
        }
        if paths.mode == Mode::System && lies_in(key, &paths.state_dir) {
            return Err(Failure::new(format!(
                "the key file {} would lie in the vault's own directory",
                key.display()
            ))
            .hint("name another place: --unlock key-file:PATH"));
        }
        steps.push(Step {
            what: format!("key file {} (mode 0600)", key.display()),
            there: key.exists(),
        });
    }
    steps.push(Step { what: format!("vault {}", paths.vault_file.display()), there });
    steps.push(Step {
        what: format!("configuration {}", paths.config_file.display()),
        there: paths.config_file.exists(),
    });
    let packaged = Path::new(PACKAGED_UNIT).exists();
    let unit = match start {
        Start::Systemd if packaged => {
            steps.push(Step { what: format!("unit {PACKAGED_UNIT}"), there: true });
            None
        }
        Start::Systemd => Some(unit()?),
        _ => None,
    };
    if let Some(unit) = &unit {
        let there = fs::read_to_string(UNIT_FILE).ok();
        if there.as_ref().is_some_and(|there| there != unit) {
            return Err(Failure::new(format!("{UNIT_FILE} is there, and is another"))
                .hint("keep it, with --no-up and systemctl start strongroom; or move it away")
                .status(exit::CONFLICT));
        }
        if there.is_none() && keeper::is_served(&paths.runtime_dir) {
            return Err(Failure::new("a daemon serves already, started by hand")
                .hint("strongroom down, then the same again")
                .status(exit::CONFLICT));
        }
        steps.push(Step { what: format!("unit {UNIT_FILE}"), there: there.is_some() });
    }
    if start != Start::Not {
        let served = keeper::is_served(&paths.runtime_dir);
        if !served {
            check_host(paths)?;
        }
        let by = if start == Start::Systemd { ", by systemd" } else { "" };
        let what = format!("daemon, mounted at {}{by}", paths.mount.display());
        steps.push(Step { what, there: served });
    }
    Ok(Plan { unlocking, recovery, start, unit, steps })
}

/// The unit for the program that this is.
fn unit() -> Result<String, Failure> {
    let program = std::env::current_exe().map_err(anyhow::Error::from)?;
    let text = program.to_str().filter(|p| !p.contains([' ', '\\', '"', '\'', '%', '$']));
    let text = text.ok_or_else(|| {
        Failure::new(format!("{} is no path for a unit", program.display()))
            .hint(format!("install the program to {UNIT_PROGRAM}"))
    })?;
    Ok(UNIT.replace(UNIT_PROGRAM, text))
}

fn carry_out(context: &Context, plan: &Plan) -> Result<(), Failure> {
    let paths = &context.paths;
    let mut made_key = None;
    if let Unlocking::KeyFile(key) = &plan.unlocking
        && !key.exists()
    {
        let mut random = zeroize::Zeroizing::new([0; 32]);
        crypto::random(&mut *random).map_err(anyhow::Error::from)?;
        init::make_file(key, &*random).map_err(|e| init::prepare_failure(key, &e))?;
        made_key = Some(key);
    }
    if !paths.vault_file.exists() {
        match init::make_vault(paths, &plan.unlocking, plan.recovery) {
            Ok(recovery) => init::show_recovery(recovery.as_ref()),
            Err(failure) => {
                // Nothing half done: a key that opens nothing.
                if let Some(key) = made_key {
                    let _removed = fs::remove_file(key);
                }
                return Err(failure);
            }
        }
    }
    init::make_config(paths, &plan.unlocking)?;
    if let Some(unit) = &plan.unit {
        let file = Path::new(UNIT_FILE);
        let public = fs::Permissions::from_mode(0o644);
        init::make_file(file, unit.as_bytes())
            .and_then(|_| fs::set_permissions(file, public))
            .map_err(|e| init::prepare_failure(file, &e))?;
    }
    if plan.start == Start::Systemd {
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", "strongroom.service"])?;
    }
    Ok(())
}

fn systemctl(args: &[&str]) -> Result<(), Failure> {
    let hint = "systemctl status strongroom; a second `strongroom setup` goes on from here";
    let output = Command::new("systemctl")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failure::new(format!("systemctl cannot be run: {e}")).hint(hint))?;
    if output.status.success() {
        return Ok(());
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let line = told.lines().next().unwrap_or_default().to_owned();
    Err(Failure::new(format!("systemctl {} failed: {line}", args.join(" "))).hint(hint))
}

/// The next three commands, word for word.
fn next(context: &Context, plan: &Plan) -> Vec<String> {
    let mut next = Vec::new();
    if let Some(home) = &context.home
        && std::env::var_os(HOME_VARIABLE).is_none_or(|set| set != home.as_os_str())
    {
        let path = home.display().to_string().replace('\'', "'\\''");
        next.push(format!("export {HOME_VARIABLE}='{path}'"));
    }
    if plan.start == Start::Not {
        next.push("strongroom up".to_owned());
    }
    if plan.unlocking == Unlocking::Passphrase {
        next.push("strongroom unlock".to_owned());
    }
    next.extend(
        [
            "printf %s \"$OPENAI_API_KEY\" | strongroom secret set OPENAI_API_KEY",
            "strongroom run -s OPENAI_API_KEY -- sh -c 'cat \"$CREDENTIALS_DIRECTORY\"/OPENAI_API_KEY'",
            "strongroom audit query --secret OPENAI_API_KEY",
        ]
        .map(ToOwned::to_owned),
    );
    next
}

pub(super) fn main(home: Option<PathBuf>, args: &SetupArgs, json: bool) -> Outcome {
    let asks = io::stdin().is_terminal() && !args.yes && !json;
    let home = choose_home(home, asks)?;
    let context = Context::load(home, json, false)?;
    let plan = plan(&context, args, asks)?;
    if !json {
        for step in &plan.steps {
            let verb = match (step.there, args.dry_run) {
                (true, _) => "is there:  ",
                (false, true) => "would make:",
                (false, false) => "to make:   ",
            };
            note(&format!("{verb} {}", step.what));
        }
    }
    let all_there = plan.steps.iter().all(|step| step.there);
    if !args.dry_run {
        if asks && !all_there && !ask_yes("Go ahead?", true)? {
            return Err(Failure::new("nothing was done").hint("strongroom setup --help"));
        }
        carry_out(&context, &plan)?;
        // What was just written says how it is unlocked.
        let context = Context::load(context.home.clone(), json, false)?;
        let served = keeper::is_served(&context.paths.runtime_dir);
        match plan.start {
            Start::Here if !served => serve::start(&context).map(drop)?,
            Start::Here | Start::Systemd => serve::await_answer(&context, None).map(drop)?,
            Start::Not => {}
        }
    }
    let next = next(&context, &plan);
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|s| serde_json::json!({"what": s.what, "was_there": s.there}))
        .collect();
    let result = serde_json::json!({
        "vault": context.paths.vault_file,
        "config": context.paths.config_file,
        "key_file": match &plan.unlocking {
            Unlocking::KeyFile(key) => Some(key),
            _ => None,
        },
        "method": plan.unlocking.method().to_string(),
        "mount": context.paths.mount,
        "dry_run": args.dry_run,
        "steps": steps,
        "next": next,
    });
    show(json, &result, || {
        if args.dry_run {
            return "nothing was done".to_owned();
        }
        format!("done\nnext:\n  {}", next.join("\n  "))
    })?;
    Ok(exit::OK)
}
