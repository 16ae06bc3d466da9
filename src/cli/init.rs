//! `init`: makes the vault and the configuration that says how it is unlocked.
//!
//! Invariant: the vault is there whole or not at all, and a configuration that was there stays.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::clock::{Clock, SystemClock};
use crate::config::{Mode, Paths, UnlockMethod};
use crate::daemon::keys::{Init, create_vault};
use crate::secret::SecretBytes;
use crate::vault::unlock::{Credential, key_file};

use super::output::{note, show};
use super::{Context, Failure, Outcome, exit, value};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  strongroom init\n  \
    head -c 32 /dev/urandom > key && chmod 600 key && strongroom init --unlock key-file:$PWD/key\n  \
    strongroom init --unlock command:/usr/local/bin/kms-wrap --recovery")]
pub(super) struct InitArgs {
    /// How the vault is unlocked: passphrase, key-file:PATH, or command:PROGRAM.
    #[arg(long, default_value = "passphrase", value_name = "METHOD")]
    unlock: String,
    /// Also makes a recovery key, printed once.
    #[arg(long)]
    recovery: bool,
}

/// How a vault that is to be made will be unlocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unlocking {
    /// By a program and its arguments.
    Command(Vec<String>),
    /// By a key file.
    KeyFile(PathBuf),
    /// By a person.
    Passphrase,
}

impl Unlocking {
    /// Reads `passphrase`, `key-file:PATH` or `command:PROGRAM`.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        match text.split_once(':') {
            None if text == "passphrase" => Ok(Self::Passphrase),
            Some(("key-file", path)) if !path.is_empty() => {
                Ok(Self::KeyFile(std::path::absolute(path).map_err(anyhow::Error::from)?))
            }
            Some(("command", program)) if !program.trim().is_empty() => {
                Ok(Self::Command(program.split_whitespace().map(ToOwned::to_owned).collect()))
            }
            _ => Err(Failure::new(format!("there is no unlock method {text}"))
                .hint("use passphrase, key-file:PATH or command:PROGRAM")),
        }
    }

    /// As the configuration has it.
    pub(super) fn method(&self) -> UnlockMethod {
        match self {
            Self::Command(_) => UnlockMethod::Command,
            Self::KeyFile(_) => UnlockMethod::KeyFile,
            Self::Passphrase => UnlockMethod::Passphrase,
        }
    }

    /// The lines of the configuration below `[unlock]`.
    pub(super) fn setting(&self) -> String {
        match self {
            Self::Command(argv) => {
                let list: Vec<_> = argv.iter().map(|a| quoted(a)).collect();
                format!("method = \"command\"\ncommand = [{}]\n", list.join(", "))
            }
            Self::KeyFile(path) => {
                format!("method = \"key-file\"\npath = {}\n", quoted(&path.to_string_lossy()))
            }
            Self::Passphrase => "method = \"passphrase\"\n".to_owned(),
        }
    }

    /// What unlocks it: the file is read, the person asked.
    pub(super) fn credential(&self, paths: &Paths) -> Result<Credential, Failure> {
        match self {
            Self::Command(argv) => Ok(Credential::Command(argv.clone())),
            Self::KeyFile(path) => {
                let forbidden = (paths.mode == Mode::System).then_some(paths.state_dir.as_path());
                let content = key_file::read(path, forbidden)
                    .map_err(|e| Failure::new(e.to_string()).hint(e.hint()))?;
                Ok(Credential::KeyFile(content))
            }
            Self::Passphrase => Ok(Credential::Passphrase(new_passphrase()?)),
        }
    }
}

/// A passphrase from stdin; at a terminal it is asked for twice.
fn new_passphrase() -> Result<SecretBytes, Failure> {
    let typed = value::read(None, false, "new passphrase")?;
    if io::stdin().is_terminal() && !value::prompt("the same again")?.ct_eq(&typed) {
        return Err(Failure::new("the two passphrases differ").hint("type the same one twice"));
    }
    Ok(typed)
}

pub(super) fn prepare_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display())).hint("check that its parent is yours")
}

/// Makes the vault; the recovery key, if one was asked for.
pub(super) fn make_vault(
    paths: &Paths,
    unlocking: &Unlocking,
    recovery: bool,
) -> Result<Option<SecretBytes>, Failure> {
    let credential = unlocking.credential(paths)?;
    for dir in [&paths.state_dir, &paths.audit_dir] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| prepare_failure(dir, &e))?;
    }
    let init = Init { method: unlocking.method(), credential, recovery };
    create_vault(&paths.vault_file, init, SystemClock.now()).map_err(|e| {
        let failure = Failure::new(format!("{}: {e}", paths.vault_file.display()));
        match e.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

/// Writes the configuration, whole or not at all, if there is none; whether it did.
pub(super) fn make_config(paths: &Paths, unlocking: &Unlocking) -> Result<bool, Failure> {
    let file = &paths.config_file;
    let text = format!(
        "# strongroom config show prints every setting.\n[unlock]\n{}",
        unlocking.setting()
    );
    make_file(file, text.as_bytes()).map_err(|e| prepare_failure(file, &e))
}

/// Makes a file of mode 0600 with its directory, if there is none; whether it did.
pub(super) fn make_file(file: &Path, content: &[u8]) -> io::Result<bool> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    if file.exists() {
        return Ok(false);
    }
    fs::create_dir_all(dir)?;
    let draft = file.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut open| {
            open.write_all(content)?;
            open.sync_all()
        })
        // link(2) refuses to replace, unlike rename(2).
        .and_then(|()| match fs::hard_link(&draft, file) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            linked => linked.map(|()| true),
        });
    let _removed = fs::remove_file(&draft);
    fs::File::open(dir)?.sync_all()?;
    written
}

/// Shows a recovery key, the one time that it is shown, to the person who asked for it.
pub(super) fn show_recovery(key: Option<&SecretBytes>) {
    if let Some(key) = key {
        eprintln!("recovery key (write it down, it is not shown again):");
        eprintln!("  {}", String::from_utf8_lossy(key.expose()));
    }
}

pub(super) fn init(context: &Context, args: &InitArgs) -> Outcome {
    let paths = &context.paths;
    let unlocking = Unlocking::parse(&args.unlock)?;
    let recovery = make_vault(paths, &unlocking, args.recovery)?;
    if !make_config(paths, &unlocking)? {
        note(&format!(
            "note: {} was there and stays; its [unlock] must say: {}",
            paths.config_file.display(),
            unlocking.setting().trim_end().replace('\n', ", ")
        ));
    }
    show_recovery(recovery.as_ref());
    let made = serde_json::json!({
        "vault": paths.vault_file,
        "config": paths.config_file,
        "method": unlocking.method().to_string(),
    });
    show(context.json, &made, || {
        format!("made {}\nnext: strongroom up", paths.vault_file.display())
    })?;
    Ok(exit::OK)
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            control if control.is_control() => {
                out.push_str(&format!("\\u{:04X}", u32::from(control)));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_reads_and_its_setting_is_what_the_configuration_takes() {
        for text in ["passphrase", "key-file:/k/\"odd\"\\\nname", "command:/bin/kms wrap --x"] {
            let unlocking = Unlocking::parse(text).unwrap();
            let file = format!("[unlock]\n{}", unlocking.setting());
            let table: toml::Table = file.parse().unwrap();
            let unlock = &table["unlock"];
            assert_eq!(unlock["method"].as_str(), Some(&*unlocking.method().to_string()));
            if let Unlocking::KeyFile(path) = &unlocking {
                assert_eq!(unlock["path"].as_str(), path.to_str());
            }
        }
        for text in ["", "pigeon", "key-file", "key-file:", "command:", "command: ", "passphrase:x"]
        {
            assert!(Unlocking::parse(text).is_err(), "{text}");
        }
    }
}
