//! `chain run`: the agents of a chain that have a command, one after the other, for trials.
//!
//! Each is a `strongroom run` of its own; what it prints is shown, and lands in the execution's events
//! as `AGENT.log`. Between `run` and the command stands a process of the agent's own (`tee`), so the
//! log is written through the mount, with all that holds there. Invariant: the
//! first failure ends it, with that agent's status; nothing of the execution is left behind.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use clap::Args;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;

use crate::config::Period;
use crate::proto;
use crate::sys::pidfd::PidFd;

use super::output::{note, show};
use super::{Context, Failure, Outcome, exit};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  strongroom chain run deploy-pipeline --env dev\n\n\
    The status is 0, or that of the first agent that failed; 125 when strongroom failed.")]
pub(super) struct ChainRunArgs {
    /// The chain.
    chain: String,
    /// The environment.
    #[arg(long)]
    env: Option<String>,
    /// Your own id for the execution.
    #[arg(long)]
    id: Option<String>,
    /// Ends after this time, as 90m.
    #[arg(long)]
    deadline: Option<Period>,
    /// Runs the agents as this user (root only).
    #[arg(long = "as", value_name = "USER")]
    as_user: Option<String>,
    /// Where the agents see their secrets, instead of /run/secrets.
    #[arg(long, value_name = "DIR")]
    secrets_path: Option<PathBuf>,
    /// Isolates each agent; those whose definition says "isolate" are in any case.
    #[arg(long)]
    isolate: bool,
    /// What is kept out of what is shown: values, formats, all or off. The logs have all of it out.
    #[arg(long, value_name = "HOW MUCH", default_value = "formats",
        value_parser = ["values", "formats", "all", "off"])]
    redact: String,
}

#[derive(Debug, Serialize)]
struct Ran {
    agent: String,
    status: i32,
    /// Its output, without secrets.
    log: String,
}

#[derive(Debug, Serialize)]
struct Trial {
    execution: String,
    chain: String,
    environment: Option<String>,
    agents: Vec<Ran>,
    /// Of the first agent that failed, else 0.
    status: i32,
}

/// Agents with a command, in order.
fn commands(definition: &serde_json::Value) -> Vec<(String, Vec<String>)> {
    let agents = definition["agents"].as_array().into_iter().flatten();
    let command = |agent: &serde_json::Value| -> Vec<String> {
        let words = agent["command"].as_array().into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    agents
        .filter_map(|agent| Some((agent["name"].as_str()?.to_owned(), command(agent))))
        .filter(|(_, command)| !command.is_empty())
        .collect()
}

pub(super) fn main(context: &Context, args: &ChainRunArgs) -> Outcome {
    let client = context.client();
    let name = proto::ChainName { chain: args.chain.clone(), force: false };
    let chain: proto::ChainShown = client.get("/v1/chains/show", &name)?;
    let agents = commands(&chain.definition);
    if agents.is_empty() {
        return Err(Failure::new(format!("no agent of chain {} has a command", args.chain)).hint(
            "add \"command\": [\"./agent.sh\"] to its agents, then: strongroom chain apply",
        ));
    }
    let program = std::env::current_exe().map_err(anyhow::Error::from)?;
    let request = proto::ExecutionStart {
        chain: args.chain.clone(),
        id: args.id.clone(),
        environment: args.env.clone(),
        owner_pid: i32::try_from(std::process::id()).ok(),
        deadline: args.deadline,
        labels: [("started-by".to_owned(), "chain run".to_owned())].into(),
        workspace: None,
    };
    let execution: proto::ExecutionShown = client.post("/v1/executions", &request)?;
    if !execution.created {
        return Err(Failure::new(format!("execution {} runs already", execution.id))
            .hint("leave out --id, or end it first: strongroom execution end ID")
            .status(exit::CONFLICT));
    }
    let mut trial = Trial {
        execution: execution.id.clone(),
        chain: args.chain.clone(),
        environment: args.env.clone(),
        agents: Vec::new(),
        status: 0,
    };
    let outcome = run_all(context, args, &program, &agents, &mut trial);
    let reason = match trial.agents.last() {
        Some(ran) if ran.status != 0 => format!("{} left with status {}", ran.agent, ran.status),
        _ => "ended".to_owned(),
    };
    let end = proto::ExecutionEnd { id: execution.id, reason: Some(reason), grace: None };
    let ended: proto::ExecutionShown = client.post_again("/v1/executions/end", &end)?;
    for left in &ended.survivors {
        note(&format!("warning: {left} could not be ended"));
    }
    outcome?;
    if context.json {
        show(true, &trial, String::new)?;
    } else if let Some(ran) = trial.agents.iter().find(|ran| ran.status != 0) {
        note(&format!("error: {} left with status {}", ran.agent, ran.status));
        note(&format!("hint: {}", ran.log));
    }
    Ok(u8::try_from(trial.status).unwrap_or(exit::RUN_FAILED))
}

fn run_all(
    context: &Context,
    args: &ChainRunArgs,
    program: &Path,
    agents: &[(String, Vec<String>)],
    trial: &mut Trial,
) -> Result<(), Failure> {
    let request = proto::EventsPath {
        execution: trial.execution.clone(),
        chain: Some(trial.chain.clone()),
        environment: Some(trial.environment.clone().unwrap_or_else(|| "-".to_owned())),
    };
    let folder: proto::EventsFolder = context.client().get("/v1/events/path", &request)?;
    for (number, (agent, words)) in agents.iter().enumerate() {
        note(&format!("agent {agent} ({} of {})", number + 1, agents.len()));
        let log = format!("{agent}.log");
        let mut command = Command::new(program);
        command.args(context.home_args()).arg("run");
        command.args(["--execution", &trial.execution, "--agent", agent]);
        command.args(["--redact", &args.redact]);
        if let Some(path) = &args.secrets_path {
            command.arg("--secrets-path").arg(path);
        }
        if let Some(user) = &args.as_user {
            command.args(["--as", user]);
        }
        if args.isolate {
            command.arg("--isolate");
        }
        command.arg("--").arg(program).args(["tee", "--log", &log, "--"]).args(words);
        if context.json {
            // What is printed there is the result alone.
            let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(anyhow::Error::from)?;
            command.stdout(stderr);
        }
        let status = command.status().map_err(anyhow::Error::from)?;
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        let log = Path::new(&folder.path).join(log).display().to_string();
        trial.agents.push(Ran { agent: agent.clone(), status, log });
        if status != 0 {
            trial.status = status;
            return Ok(());
        }
    }
    Ok(())
}

/// What stands between an agent's command and its output.
#[derive(Debug, Args)]
pub(super) struct TeeArgs {
    /// The name of the log in the agent's events directory.
    #[arg(long)]
    log: OsString,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// What a pipe holds at most, pipe(7), unless root makes it larger.
const MAX_PIPE_BYTES: usize = 1 << 20;
/// `SI_KERNEL`, sigaction(2): sent by the terminal to the whole process group.
const SI_KERNEL: i32 = 0x80;

/// Runs the command; what it prints goes to where it would, and to the log. This process ends after
/// the command, when all that was printed is in both: afterwards it is no agent's any more.
pub(super) fn tee(args: &TeeArgs) -> Outcome {
    let [program, words @ ..] = &args.command[..] else {
        return Err(Failure::new("there is no command to run").hint("tee --log NAME -- CMD"));
    };
    let mut tee = Tee { log: open_log(&args.log), ways: Vec::new() };
    let stdout = tee.way(io::stdout().as_fd()).map_err(anyhow::Error::from)?;
    // What leads to one place goes through one pipe, so that its order stays.
    let stderr = if is_one_place().map_err(anyhow::Error::from)? {
        stdout.try_clone()
    } else {
        tee.way(io::stderr().as_fd())
    };
    let stderr = stderr.map_err(anyhow::Error::from)?;
    // Before signals are held back, which the command must not inherit.
    let child = Command::new(program).args(words).stdout(stdout).stderr(stderr).spawn();
    let mut child = child.map_err(|error| {
        let missing = error.kind() == io::ErrorKind::NotFound;
        Failure::new(format!("{}: {error}", program.to_string_lossy()))
            .hint("the command of this agent stands in the chain's definition")
            .status(if missing { exit::RUN_MISSING } else { exit::RUN_CANNOT })
    })?;
    tee.follow(&child).map_err(anyhow::Error::from)?;
    let status = child.wait().map_err(anyhow::Error::from)?;
    let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(status).unwrap_or(exit::RUN_FAILED))
}

fn open_log(name: &OsString) -> Option<File> {
    let events = std::env::var_os("STRONGROOM_EVENTS_DIR").unwrap_or_default();
    match File::options().append(true).create(true).open(Path::new(&events).join(name)) {
        Ok(file) => Some(file),
        Err(error) => {
            note(&format!("warning: the log cannot be written: {error}"));
            None
        }
    }
}

/// Whether stdout and stderr are the same terminal, pipe or file.
fn is_one_place() -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let place = |fd: BorrowedFd<'_>| {
        let found = File::from(fd.try_clone_to_owned()?).metadata()?;
        Ok::<_, io::Error>((found.dev(), found.ino()))
    };
    Ok(place(io::stdout().as_fd())? == place(io::stderr().as_fd())?)
}

/// A pipe of the command's, and where what comes out of it is shown.
struct Way {
    source: Option<io::PipeReader>,
    shown: Option<File>,
}

struct Tee {
    log: Option<File>,
    ways: Vec<Way>,
}

impl Tee {
    fn way(&mut self, to: BorrowedFd<'_>) -> io::Result<io::PipeWriter> {
        let (source, writing) = io::pipe()?;
        let shown = Some(File::from(to.try_clone_to_owned()?));
        fcntl(&source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.ways.push(Way { source: Some(source), shown });
        Ok(writing)
    }

    /// Copies until the command has ended and its pipes are empty; signals are passed on to it.
    fn follow(&mut self, child: &Child) -> io::Result<()> {
        let command = PidFd::open(child.id())?;
        let mut passed = SigSet::empty();
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            passed.add(signal);
        }
        passed.thread_block()?;
        let signals =
            SignalFd::with_flags(&passed, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        loop {
            let open = self.ways.iter().filter_map(|way| way.source.as_ref());
            let mut fds: Vec<_> = [command.as_fd(), signals.as_fd()]
                .into_iter()
                .chain(open.map(AsFd::as_fd))
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // Asked before the pipes are emptied: nothing comes after the end.
            let ended = !command.is_alive();
            while let Some(info) = signals.read_signal()? {
                let signal = i32::try_from(info.ssi_signo).ok();
                let signal = signal.and_then(|number| Signal::try_from(number).ok());
                // The terminal has told the command already: it is in our process group.
                if let Some(signal) = signal.filter(|_| info.ssi_code != SI_KERNEL) {
                    // It may be gone in this moment.
                    let _gone = command.signal(signal);
                }
            }
            for number in 0..self.ways.len() {
                self.empty(number)?;
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// Copies what is in a pipe now: not more than one can hold, since who writes without end must
    /// not keep signals and the end waiting.
    fn empty(&mut self, number: usize) -> io::Result<()> {
        let way = &mut self.ways[number];
        let mut buffer = zeroize::Zeroizing::new(vec![0; 64 << 10]);
        for _ in 0..MAX_PIPE_BYTES / buffer.len() {
            let Some(source) = &mut way.source else { return Ok(()) };
            let count = match source.read(&mut buffer) {
                Ok(0) => {
                    way.source = None;
                    return Ok(());
                }
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if let Some(log) = &mut self.log
                && let Err(error) = log.write_all(&buffer[..count])
            {
                note(&format!("warning: the log ends here: {error}"));
                self.log = None;
            }
            if let Some(shown) = &mut way.shown
                && shown.write_all(&buffer[..count]).is_err()
            {
                // Who watched has gone: the command is told as by its own closed pipe.
                way.shown = None;
                way.source = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_without_a_command_are_passed_over() {
        let definition = serde_json::json!({"agents": [
            {"name": "A", "command": ["./a", "--x"]}, {"name": "B"}, {"name": "C", "command": []},
            {"name": "D", "command": ["d"]},
        ]});
        let names: Vec<_> = commands(&definition).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["A", "D"]);
    }
}
