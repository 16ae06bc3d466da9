//! Starting and ending the daemon.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::Signal;

use crate::config::UnlockMethod;
use crate::keeper;
use crate::proto;
use crate::sys::pidfd::PidFd;
use crate::sys::process;
use crate::worker;

use super::output::{note, show};
use super::{Context, Failure, Outcome, exit};

/// How long a daemon may take to answer.
const UP_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to be gone.
const DOWN_LIMIT: Duration = Duration::from_secs(20);

fn keeper_failure(error: &keeper::Error) -> Failure {
    let mut what = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        what.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Failure::new(what).hint(error.hint())
}

fn require_vault(context: &Context) -> Result<(), Failure> {
    if context.paths.vault_file.exists() {
        return Ok(());
    }
    Err(Failure::new(format!("there is no vault at {}", context.paths.vault_file.display()))
        .hint("strongroom init")
        .status(exit::NOT_FOUND))
}

pub(super) fn serve(context: &Context) -> Outcome {
    require_vault(context)?;
    detach_if_asked();
    start_log();
    let program = std::env::current_exe().map_err(anyhow::Error::from)?;
    let options =
        keeper::Options { paths: context.paths.clone(), program, worker_args: context.home_args() };
    keeper::run(&options).map_err(|e| keeper_failure(&e))?;
    Ok(exit::OK)
}

pub(super) fn worker(context: Context, descriptors: &str, stored: bool) -> Outcome {
    start_log();
    let numbers: Vec<i32> = descriptors.split(',').filter_map(|n| n.parse().ok()).collect();
    let [device, listener, state, key_box, ref more @ ..] = numbers[..] else {
        return Err(
            Failure::new("the worker is started by its keeper alone").hint("strongroom serve")
        );
    };
    // An older keeper wants no news.
    let news = more.first().copied();
    let inherited = worker::Inherited { device, listener, state, key_box, news, stored };
    match worker::run(context.paths, context.config, inherited) {
        Ok(status) => Ok(u8::try_from(status).unwrap_or(exit::FAILED)),
        Err(error) => {
            // With its causes: the log is all that tells.
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::error!(error, "the worker gave up");
            Ok(u8::try_from(keeper::worker_status::FATAL).unwrap_or(exit::FAILED))
        }
    }
}

/// The operator's log, on stderr. Names of secrets are at debug level; fuser's own debug lines are
/// never shown, since they print names.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let wanted = std::env::var("STRONGROOM_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(format!("{wanted},fuser=warn,hyper=warn,log=warn"))
        .unwrap_or_else(|_| EnvFilter::new("info,fuser=warn,hyper=warn,log=warn"));
    // A second start in one process keeps the first.
    let _first = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        // It would say so on stderr, and panic where that is a file on a full disk: threads that
        // answer requests and keep house must outlive that.
        .log_internal_errors(false)
        .try_init();
}

fn log_file(context: &Context) -> PathBuf {
    context.paths.state_dir.join("daemon.log")
}

pub(super) fn up(context: &Context) -> Outcome {
    let health = start(context)?;
    show(context.json, &health, || {
        let locked = health.state == proto::State::Locked;
        let next = if locked { "\nnext: strongroom unlock" } else { "" };
        format!("{} at {}{next}", health.state, context.paths.mount.display())
    })?;
    Ok(exit::OK)
}

/// Starts the daemon in the background; how it is when the mount answers.
pub(super) fn start(context: &Context) -> Result<proto::Health, Failure> {
    require_vault(context)?;
    let paths = &context.paths;
    if keeper::stays_served(&paths.runtime_dir) {
        return Err(keeper_failure(&keeper::Error::AlreadyServing {
            runtime_dir: paths.runtime_dir.clone(),
        })
        .status(exit::CONFLICT));
    }
    let program = std::env::current_exe().map_err(anyhow::Error::from)?;
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log_file(context))
        .map_err(anyhow::Error::from)?;
    let start = log.metadata().map_err(anyhow::Error::from)?.len();
    let mut serve = Command::new(program);
    // A manager of whoever ran this is not the daemon's.
    for name in crate::sys::notify::VARIABLES {
        serve.env_remove(name);
    }
    let child = serve
        .args(context.home_args())
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        .env("STRONGROOM_DETACH", "1")
        .spawn()
        .map_err(anyhow::Error::from)?;
    await_answer(context, Some((child, start)))
}

/// Waits until the mount answers. `own` is a daemon that was just started, and where its log begins:
/// it is ended if it does not answer.
pub(super) fn await_answer(
    context: &Context,
    mut own: Option<(Child, u64)>,
) -> Result<proto::Health, Failure> {
    let deadline = Instant::now() + UP_LIMIT;
    loop {
        if let Some((child, start)) = &mut own
            && let Some(status) = child.try_wait().map_err(anyhow::Error::from)?
        {
            return Err(failed_start(context, *start, &format!("the daemon ended with {status}")));
        }
        let health: Result<proto::Health, _> =
            context.client().get("/v1/health", &proto::Empty::default());
        // The mount answers, not only the socket.
        if let Ok(health) = health
            && fs::metadata(&context.paths.mount).is_ok()
        {
            if health.state == proto::State::Locked {
                say_why_locked(context)?;
            }
            return Ok(health);
        }
        if Instant::now() >= deadline {
            let start = own.map(|(mut child, start)| {
                let _ended = child.kill();
                let _reaped = child.wait();
                start
            });
            return Err(failed_start(
                context,
                start.unwrap_or_default(),
                "the daemon does not answer",
            ));
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A vault that should have been unlocked without a person, and was not: asked again, for the
/// reason. The daemon serves all the same.
fn say_why_locked(context: &Context) -> Result<(), Failure> {
    let by_person = matches!(context.config.unlock.method, None | Some(UnlockMethod::Passphrase));
    if by_person {
        return Ok(());
    }
    let again: Result<proto::Unlocked, _> =
        context.client().post("/v1/unlock", &proto::Unlock::default());
    match again {
        Ok(_) => Ok(()),
        Err(problem) => {
            let mut failure = Failure::from(problem);
            failure.what = format!(
                "the daemon serves {}, but the vault is locked: {}",
                context.paths.mount.display(),
                failure.what
            );
            Err(failure.status(exit::LOCKED))
        }
    }
}

/// What the daemon said before it ended.
fn failed_start(context: &Context, from: u64, what: &str) -> Failure {
    let mut text = String::new();
    if let Ok(mut file) = fs::File::open(log_file(context)) {
        let _moved = io::Seek::seek(&mut file, io::SeekFrom::Start(from));
        let _read = file.take(64 << 10).read_to_string(&mut text);
    }
    let line = |start: &str| {
        text.lines().rev().find_map(|l| l.strip_prefix(start)).map(|l| l.trim().to_owned())
    };
    Failure::new(line("error:").unwrap_or_else(|| what.to_owned())).hint(
        line("hint:").unwrap_or_else(|| format!("its log is {}", log_file(context).display())),
    )
}

fn keeper_pid(context: &Context) -> Result<u32, Failure> {
    let gone = || {
        Failure::new(format!("no daemon serves {}", context.paths.runtime_dir.display()))
            .hint("strongroom up")
            .status(exit::NO_DAEMON)
    };
    if !keeper::is_served(&context.paths.runtime_dir) {
        return Err(gone());
    }
    fs::read_to_string(context.paths.runtime_dir.join("keeper.pid"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(gone)
}

fn signal_keeper(context: &Context, signal: Signal) -> Result<PidFd, Failure> {
    let keeper = find_keeper(context)?;
    tell_keeper(&keeper, signal)?;
    Ok(keeper)
}

fn tell_keeper(keeper: &PidFd, signal: Signal) -> Result<(), Failure> {
    keeper.signal(signal).map_err(|e| {
        Failure::new(format!("the daemon cannot be signalled: {e}"))
            .hint("run this as the user who started it")
    })
}

fn find_keeper(context: &Context) -> Result<PidFd, Failure> {
    let pid = keeper_pid(context)?;
    // The number is the keeper's own. Another pid namespace has it for another process, which must
    // not be signalled: the kernel translates whoever listens on the socket to what it is here.
    if let Ok(socket) = std::os::unix::net::UnixStream::connect(&context.paths.socket)
        && let Ok(listener) = crate::sys::peer::Peer::of(socket.as_fd())
        && listener.pid.cast_unsigned() != pid
    {
        return Err(Failure::new("the daemon runs in another pid namespace")
            .hint("give this command where the daemon was started"));
    }
    let keeper = PidFd::open(pid).map_err(anyhow::Error::from)?;
    // Asked again with the process held: it is still the one that has the lock.
    if keeper_pid(context)? != pid {
        return Err(Failure::new("the daemon is just being replaced").hint("try again"));
    }
    Ok(keeper)
}

#[derive(Debug, Args)]
pub(super) struct DownArgs {
    /// Ends running executions first: TERM, 5 seconds, KILL.
    #[arg(long, conflicts_with = "force")]
    end_agents: bool,
    /// Leaves running agents alive, without their secrets and without a daemon to look after them.
    #[arg(long)]
    force: bool,
}

/// How long the daemon may take to say who runs: one that hangs is ended all the same.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// A process that has just ended may still be on the register.
const NOTICE_LIMIT: Duration = Duration::from_secs(1);

/// Executions with agents that run now, one line each.
fn running(context: &Context) -> Result<Vec<(String, String)>, String> {
    let client = context.client();
    let (said, hears) = std::sync::mpsc::channel();
    // Left behind where nobody answers.
    std::thread::spawn(move || {
        let list = proto::ExecutionList { chain: None, environment: None, all: false };
        let _nobody = said.send(client.get::<_, proto::ExecutionListed>("/v1/executions", &list));
    });
    let listed = hears
        .recv_timeout(LIST_LIMIT)
        .map_err(|_| "the daemon does not answer".to_owned())?
        .map_err(|problem| problem.to_string())?;
    let lives = |agent: &&proto::AgentShown| agent.processes > 0 || agent.attestor == "tree";
    let line = |execution: proto::ExecutionShown| {
        let agents: Vec<_> =
            execution.agents.iter().filter(lives).map(|agent| agent.agent.clone()).collect();
        let text = format!("{} of {}: {}", execution.id, execution.chain, agents.join(", "));
        (!agents.is_empty()).then_some((execution.id, text))
    };
    Ok(listed.executions.into_iter().filter_map(line).collect())
}

/// Sees to it that no agent is left without its daemon, unless that is wanted.
fn settle_agents(context: &Context, args: &DownArgs) -> Result<(), Failure> {
    if args.force {
        return Ok(());
    }
    let deadline = Instant::now() + NOTICE_LIMIT;
    let left = loop {
        let left = match running(context) {
            Ok(left) => left,
            Err(why) if args.end_agents => {
                return Err(Failure::new(format!("no agent can be ended: {why}"))
                    .hint("strongroom down --force leaves them alive"));
            }
            Err(why) => {
                note(&format!("note: whether agents run is not known: {why}"));
                return Ok(());
            }
        };
        if left.is_empty() || args.end_agents || Instant::now() >= deadline {
            break left;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    };
    if left.is_empty() {
        return Ok(());
    }
    if !args.end_agents {
        let what = match left.len() {
            1 => "1 execution still runs".to_owned(),
            many => format!("{many} executions still run"),
        };
        let mut failure = Failure::new(what).hint(
            "strongroom down --end-agents ends them first; --force leaves them alive, without their \
             secrets",
        );
        failure.details = left.into_iter().map(|(_, line)| format!("  {line}")).collect();
        return Err(failure.status(exit::CONFLICT));
    }
    for (id, _) in left {
        let reason = Some("the daemon goes down".to_owned());
        let end = proto::ExecutionEnd { id, reason, grace: None };
        let ended: Result<proto::ExecutionShown, _> =
            context.client().post_again("/v1/executions/end", &end);
        match ended {
            Ok(ended) => {
                for survivor in &ended.survivors {
                    note(&format!("warning: {survivor} could not be ended"));
                }
            }
            // It has ended by itself meanwhile.
            Err(problem) if matches!(problem.code, proto::Code::NotFound | proto::Code::Gone) => {}
            Err(problem) => return Err(problem.into()),
        }
    }
    Ok(())
}

pub(super) fn down(context: &Context, args: &DownArgs) -> Outcome {
    let keeper = find_keeper(context)?;
    settle_agents(context, args)?;
    tell_keeper(&keeper, Signal::SIGTERM)?;
    if !keeper.exited_within(DOWN_LIMIT) {
        return Err(Failure::new("the daemon does not end")
            .hint(format!("its log is {}", log_file(context).display())));
    }
    show(context.json, &proto::Done::default(), || "down".to_owned())?;
    Ok(exit::OK)
}

pub(super) fn reload(context: &Context) -> Outcome {
    let before: proto::Status = context.client().get("/v1/status", &proto::Empty::default())?;
    signal_keeper(context, Signal::SIGHUP)?;
    let deadline = Instant::now() + UP_LIMIT;
    loop {
        let now: Result<proto::Status, _> =
            context.client().get("/v1/status", &proto::Empty::default());
        if let Ok(now) = now
            && now.worker_pid != before.worker_pid
        {
            show(context.json, &now, || format!("worker {} serves", now.worker_pid))?;
            return Ok(exit::OK);
        }
        if Instant::now() >= deadline {
            return Err(Failure::new("no new worker answers")
                .hint(format!("its log is {}", log_file(context).display())));
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Leaves the terminal of whoever ran `up`.
fn detach_if_asked() {
    if std::env::var_os("STRONGROOM_DETACH").is_some() {
        // Already a leader, as under a service manager: nothing to leave.
        let _leader = process::new_session();
    }
}
