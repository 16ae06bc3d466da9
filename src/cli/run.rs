//! `run`: a command as an agent.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::proto;
use crate::redact::Level;
use crate::sys::process;
use crate::workspace::host::{self, Bind, Plan};
use crate::workspace::isolate::Isolate;
use crate::workspace::output::Wiring;

use super::output::note;
use super::{Context, Failure, Outcome, exit};

/// Between two looks at signals while output is still on its way.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    strongroom run --chain deploy --agent Deployer --env prod -- ./deploy.sh\n  \
    strongroom run -s OPENAI_API_KEY -- python3 agent.py\n  \
    strongroom run --chain deploy --agent Tester --as ci -- sh -c 'cat \
    \"$CREDENTIALS_DIRECTORY\"/DATABASE_URL'\n  strongroom run --isolate --chain deploy \
    --agent Tester -- ./tester.sh\n\nThe status is the command's own; 128+N for signal \
    N; 125 when strongroom failed; 126 and 127 as shells have them.")]
pub(super) struct RunArgs {
    /// The chain.
    #[arg(long)]
    chain: Option<String>,
    /// The agent.
    #[arg(long)]
    agent: Option<String>,
    /// The environment.
    #[arg(long)]
    env: Option<String>,
    /// An execution that `execution start` made; else one that ends with the command.
    #[arg(long)]
    execution: Option<String>,
    /// Runs the command as this user (root only).
    #[arg(long = "as", value_name = "USER")]
    as_user: Option<String>,
    /// How secrets come: files, env or file-env; else as the definition says.
    #[arg(long)]
    deliver: Option<String>,
    /// Where the agent sees its secrets, instead of /run/secrets.
    #[arg(long, value_name = "DIR")]
    secrets_path: Option<PathBuf>,
    /// Processes that the command leaves behind go on.
    #[arg(long)]
    keep_background: bool,
    /// Sees and reaches its own processes alone, and nothing of the vault but its secrets.
    #[arg(long)]
    isolate: bool,
    /// What is kept out of the output: values, formats (and values), all (and what looks random), or
    /// off.
    #[arg(long, value_name = "HOW MUCH", default_value = "formats", value_parser = level)]
    redact: Level,
    /// The same as --redact off: the output is the command's own, and so is the process.
    #[arg(long, conflicts_with = "redact")]
    no_redact: bool,
    /// Redeems the one-time ticket in this file, without a role.
    #[arg(long, value_name = "FILE")]
    ticket_file: Option<PathBuf>,
    /// A secret, without a definition; may be repeated.
    #[arg(short = 's', value_name = "NAME")]
    secrets: Vec<String>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn level(word: &str) -> Result<Level, String> {
    [Level::Values, Level::Formats, Level::All, Level::Off]
        .into_iter()
        .find(|level| level.word() == word)
        .ok_or_else(|| "values, formats, all or off".to_owned())
}

pub(super) fn main(context: &Context, args: &RunArgs) -> Outcome {
    let exe = args.command.first().map(|c| c.to_string_lossy().into_owned());
    let secrets_path = match &args.secrets_path {
        Some(path) => Some(std::path::absolute(path).map_err(anyhow::Error::from)?),
        None => None,
    };
    let root = nix::unistd::geteuid().is_root();
    let target = secrets_path.clone().unwrap_or_else(|| "/run/secrets".into());
    if root {
        // Looked at before anything is registered: what others put there is never shadowed.
        host::check_bind_target(&target).map_err(|why| {
            Failure::new(format!("{} cannot take the secrets: {why}", target.display()))
                .hint("name another directory with --secrets-path DIR")
        })?;
    }
    let secrets_path = secrets_path.map(|p| p.to_string_lossy().into_owned());
    let mut isolate = args.isolate.then(|| try_isolation(context, args)).transpose()?;
    let ask = |isolation: Option<&Isolate>| {
        launch(context, args, secrets_path.clone(), exe.clone(), isolation)
    };
    let launched = match ask(isolate.as_ref())? {
        Err(problem) if problem.code == proto::Code::NotIsolated && isolate.is_none() => {
            isolate = Some(try_isolation(context, args)?);
            ask(isolate.as_ref())??
        }
        other => other?,
    };
    if launched.attestor == "tree" {
        for warning in &launched.warnings {
            note(&format!("note: {warning}"));
        }
    }
    let level = if args.no_redact { Level::Off } else { args.redact };
    let user = match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(launched.uid)) {
        Ok(Some(user)) if launched.uid != nix::unistd::geteuid().as_raw() => Some(user),
        _ => None,
    };
    let env = environment(&launched, user.as_ref());
    let (from, to) = (Path::new(&launched.principal_dir), Path::new(&launched.secrets_path));
    let client = context.client();
    let attach = || {
        let request = proto::AgentAttach { launch: launched.launch.clone(), pid: None };
        client
            .post::<_, proto::AgentAttached>("/v1/agents/attach", &request)
            .map(|_| ())
            .map_err(|problem| problem.to_string())
    };
    let mut plan = Plan {
        cgroup_dir: launched.cgroup_dir.as_deref().map(Path::new),
        attach: &attach,
        // A plain user's agent finds its secrets where they are, when all around them is covered.
        bind: (launched.bind || isolate.is_some()).then_some(Bind { from, to }),
        isolate: isolate.as_ref(),
        output: None,
        user: user.as_ref(),
        command: &args.command,
        env: &env,
    };
    let replaces = level == Level::Off
        && launched.attestor != "tree"
        && !args.keep_background
        && !launched.outputs
        && isolate.is_none();
    if replaces {
        // Its end is noticed as that of this process.
        let failure = failure_of(&host::become_command(&plan));
        end(context, args, &launched, None);
        return Err(failure);
    }
    // Orphans of the agent become ours, so that a process tree stays one.
    process::become_subreaper().map_err(anyhow::Error::from)?;
    let wiring = match level {
        Level::Off => None,
        _ => Some(Wiring::like_ours().map_err(anyhow::Error::from)?),
    };
    plan.output = wiring.as_ref();
    let mut running = match host::start(&plan) {
        Ok(running) => running,
        Err(error) => {
            end(context, args, &launched, None);
            return Err(failure_of(&error));
        }
    };
    let outputs = wiring.map(|wiring| wiring.start(&client, level, &launched.launch)).transpose();
    let outputs = outputs.map_err(anyhow::Error::from)?;
    let status = running.wait().map_err(anyhow::Error::from)?;
    if let Some(outputs) = &outputs {
        outputs.left();
    }
    let clean = end(context, args, &launched, Some(status));
    if let Some(outputs) = outputs {
        if !args.keep_background {
            outputs.over();
        }
        while !outputs.is_done_within(PATIENCE) {
            // Who reads the output may not want any more of it.
            if let Some(asked) = running.asked_to_end() {
                return Ok(u8::try_from(asked).unwrap_or(exit::RUN_FAILED));
            }
        }
        if outputs.problem().is_some() {
            return Ok(exit::RUN_FAILED);
        }
    }
    if !clean && status == 0 {
        return Ok(exit::RUN_FAILED);
    }
    Ok(u8::try_from(status).unwrap_or(exit::RUN_FAILED))
}

/// What this host gives for the isolation of the agent to be.
fn try_isolation(context: &Context, args: &RunArgs) -> Result<Isolate, Failure> {
    let user = args.as_user.as_deref().and_then(|name| match name.parse::<u32>() {
        Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten(),
        Err(_) => nix::unistd::User::from_name(name).ok().flatten(),
    });
    let uid = user.map_or_else(nix::unistd::geteuid, |user| user.uid).as_raw();
    let mut isolate = Isolate::try_out(&context.paths, &context.config, uid).map_err(|error| {
        Failure::new(format!("no agent can be isolated here: {error}")).hint(
            "user namespaces may be switched off (sysctl kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns); root needs CAP_SYS_ADMIN",
        )
    })?;
    isolate.keep_background = args.keep_background;
    Ok(isolate)
}

/// Asks for the launch; the inner result is what the daemon says.
fn launch(
    context: &Context,
    args: &RunArgs,
    secrets_path: Option<String>,
    exe: Option<String>,
    isolate: Option<&Isolate>,
) -> Result<Result<proto::AgentLaunched, proto::Problem>, Failure> {
    let isolation = isolate.map(|isolate| isolate.achieved().clone());
    Ok(match &args.ticket_file {
        Some(file) => {
            let text = super::value::read(Some(file), false, "ticket")?;
            let request = proto::TicketRedeem {
                ticket: proto::Value::new(text),
                how: proto::How::Cgroup,
                pid: None,
                secrets_path,
                exe,
                keep_background: args.keep_background,
                isolation,
            };
            context.client().post("/v1/tickets/redeem", &request)
        }
        None => {
            let request = |launch| proto::AgentLaunch {
                chain: args.chain.clone(),
                agent: args.agent.clone(),
                environment: args.env.clone(),
                execution: args.execution.clone(),
                secrets: args.secrets.clone(),
                deliver: args.deliver.clone(),
                workspace: None,
                secrets_path: secrets_path.clone(),
                how: proto::How::Cgroup,
                as_user: args.as_user.clone(),
                exe: exe.clone(),
                keep_background: args.keep_background,
                isolation: isolation.clone(),
                pid: None,
                deadline: None,
                labels: BTreeMap::new(),
                launch: Some(launch),
            };
            let client = context.client();
            let undo = |launch| {
                let end = proto::AgentEnd { launch, status: None, keep_background: false };
                match client.post_again::<_, proto::AgentEnded>("/v1/agents/end", &end) {
                    Err(problem) if problem.code != proto::Code::NotFound => Err(problem),
                    // It came to nothing, or is undone.
                    _ => Ok(()),
                }
            };
            client.post_or_undo("/v1/agents", request, undo)
        }
    })
}

/// Tells the daemon that the main process has ended, or was never there; whether what it left is as
/// its definition wants it.
fn end(
    context: &Context,
    args: &RunArgs,
    launched: &proto::AgentLaunched,
    status: Option<i32>,
) -> bool {
    let request = proto::AgentEnd {
        launch: launched.launch.clone(),
        status,
        keep_background: args.keep_background,
    };
    let client = context.client();
    let ended: Result<proto::AgentEnded, _> = if launched.outputs {
        client.post_patiently("/v1/agents/end", &request)
    } else {
        client.post_again("/v1/agents/end", &request)
    };
    match ended {
        Ok(done) => {
            for left in done.notes {
                note(&format!("warning: {left} could not be ended"));
            }
            for found in &done.findings {
                let name = found.name.as_deref().unwrap_or("a secret of others");
                note(&format!("warning: {} held {name}, {} times", found.path, found.count));
            }
            for missed in &done.unsearched {
                note(&format!("warning: not searched for secrets: {missed}"));
            }
            if done.failed {
                note(&format!("error: agent {} left secrets in its outputs", launched.agent));
                note("hint: take them out; its definition says \"on_finding\": \"fail\"");
            }
            return !done.failed;
        }
        // Its execution was ended from elsewhere, or the daemon noticed the end by itself.
        Err(problem) if problem.code == proto::Code::NotFound => {
            if launched.outputs {
                note("note: it was ended from elsewhere; the audit log tells of its outputs");
            }
        }
        Err(problem) => note(&format!("note: {problem}")),
    }
    if launched.outputs_must_be_clean {
        let agent = &launched.agent;
        note(&format!("error: whether agent {agent} left secrets in its outputs is not known"));
        note(
            "hint: strongroom audit query --event output_found tells of them, or scan them yourself",
        );
    }
    !launched.outputs_must_be_clean
}

fn failure_of(error: &host::Error) -> Failure {
    let failure = Failure::new(error.to_string());
    match error {
        host::Error::Exec { source, .. } => {
            let missing = source.kind() == std::io::ErrorKind::NotFound;
            let status = if missing { exit::RUN_MISSING } else { exit::RUN_CANNOT };
            failure.hint("check the command's name and mode").status(status)
        }
        host::Error::Isolate { .. } => failure.hint("run it without --isolate, or see doctor"),
        host::Error::Bind { .. } => failure.hint("name another directory with --secrets-path DIR"),
        _ => failure.hint("strongroom doctor says what this host lacks"),
    }
}

/// The caller's environment, less ours, then the agent's: what it is to have wins.
fn environment(
    launched: &proto::AgentLaunched,
    user: Option<&nix::unistd::User>,
) -> Vec<(OsString, OsString)> {
    let mut env: BTreeMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| !name.to_string_lossy().starts_with("STRONGROOM_"))
        .collect();
    if let Some(user) = user {
        env.insert("HOME".into(), user.dir.clone().into());
        env.insert("USER".into(), user.name.clone().into());
        env.insert("LOGNAME".into(), user.name.clone().into());
    }
    for (name, value) in &launched.env {
        env.insert(name.into(), value.into());
    }
    for (name, value) in &launched.secret_env {
        use std::os::unix::ffi::OsStringExt;
        env.insert(name.into(), OsString::from_vec(value.secret().expose().to_vec()));
    }
    env.into_iter().collect()
}
