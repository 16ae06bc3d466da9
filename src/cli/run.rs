//! `run`: a command as an agent.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::proto;
use crate::sys::process;
use crate::workspace::host::{self, Bind, Plan};

use super::output::note;
use super::{Context, Failure, Outcome, exit};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    strongroom run --chain deploy --agent Deployer --env prod -- ./deploy.sh\n  \
    strongroom run -s OPENAI_API_KEY -- python3 agent.py\n  \
    strongroom run --chain deploy --agent Tester --as ci -- sh -c 'cat \
    \"$CREDENTIALS_DIRECTORY\"/DATABASE_URL'\n\nThe status is the command's own; 128+N for signal \
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
    // Orphans of the agent become ours, so that a process tree stays one.
    process::become_subreaper().map_err(anyhow::Error::from)?;
    let secrets_path = secrets_path.map(|p| p.to_string_lossy().into_owned());
    let launched: proto::AgentLaunched = match &args.ticket_file {
        Some(file) => {
            let text = super::value::read(Some(file), false, "ticket")?;
            let request = proto::TicketRedeem {
                ticket: proto::Value::new(text),
                how: proto::How::Cgroup,
                pid: None,
                secrets_path,
                exe,
                keep_background: args.keep_background,
            };
            context.client().post("/v1/tickets/redeem", &request)?
        }
        None => {
            let request = proto::AgentLaunch {
                chain: args.chain.clone(),
                agent: args.agent.clone(),
                environment: args.env.clone(),
                execution: args.execution.clone(),
                secrets: args.secrets.clone(),
                deliver: args.deliver.clone(),
                workspace: None,
                secrets_path,
                how: proto::How::Cgroup,
                as_user: args.as_user.clone(),
                exe,
                keep_background: args.keep_background,
                pid: None,
                deadline: None,
                labels: BTreeMap::new(),
            };
            context.client().post("/v1/agents", &request)?
        }
    };
    if launched.attestor == "tree" {
        for warning in &launched.warnings {
            note(&format!("note: {warning}"));
        }
    }
    let outcome = start_and_wait(context, args, &launched);
    let status = outcome.as_ref().ok().copied();
    let end = proto::AgentEnd {
        launch: launched.launch.clone(),
        status,
        keep_background: args.keep_background,
    };
    let ended: Result<proto::Done, _> = context.client().post_again("/v1/agents/end", &end);
    match ended {
        Ok(done) => {
            for left in done.notes {
                note(&format!("warning: {left} could not be ended"));
            }
        }
        // Its execution was ended from elsewhere, or the daemon noticed the end by itself.
        Err(problem) if problem.code == proto::Code::NotFound => {}
        Err(problem) => note(&format!("note: {problem}")),
    }
    Ok(u8::try_from(outcome?).unwrap_or(exit::RUN_FAILED))
}

fn start_and_wait(
    context: &Context,
    args: &RunArgs,
    launched: &proto::AgentLaunched,
) -> Result<i32, Failure> {
    let user = match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(launched.uid)) {
        Ok(Some(user)) if launched.uid != nix::unistd::geteuid().as_raw() => Some(user),
        _ => None,
    };
    let env = environment(launched, user.as_ref());
    let (from, to) = (Path::new(&launched.principal_dir), Path::new(&launched.secrets_path));
    let client = context.client();
    let attach = || {
        let request = proto::AgentAttach { launch: launched.launch.clone(), pid: None };
        client
            .post::<_, proto::AgentAttached>("/v1/agents/attach", &request)
            .map(|_| ())
            .map_err(|problem| problem.to_string())
    };
    let plan = Plan {
        cgroup_dir: launched.cgroup_dir.as_deref().map(Path::new),
        attach: &attach,
        bind: launched.bind.then_some(Bind { from, to }),
        user: user.as_ref(),
        command: &args.command,
        env: &env,
    };
    let mut running = host::start(&plan).map_err(|error| {
        let failure = Failure::new(error.to_string());
        match &error {
            host::Error::Exec { source, .. } => {
                let missing = source.kind() == std::io::ErrorKind::NotFound;
                let status = if missing { exit::RUN_MISSING } else { exit::RUN_CANNOT };
                failure.hint("check the command's name and mode").status(status)
            }
            host::Error::Bind { .. } => {
                failure.hint("name another directory with --secrets-path DIR")
            }
            _ => failure.hint("strongroom doctor says what this host lacks"),
        }
    })?;
    running.wait().map_err(|e| Failure::from(anyhow::Error::from(e)))
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
