//! An agent on this host: born in its cgroup, its secrets bound where it expects them, its end told
//! exactly.
//!
//! The launcher stays as the parent: it passes signals on, adopts orphans, and leaves with the
//! command's own status. Invariant: the command is executed only after every step before it has
//! succeeded. Danger: a shell that sees 0 where the agent failed, a signal that reaches half of the
//! process group, a bind that shadows what others put there.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, User};

use crate::sys::pidfd::PidFd;
use crate::sys::process::{self, Namespaces};
use crate::sys::{mount, terminal};

use super::isolate::Isolate;
use super::leader::{self, Change, Leader, Left};
use super::output::Wiring;
use super::terminal::{Session, follow_size};

/// What the launcher does for the child between its birth and the command.
pub struct Plan<'a> {
    /// The cgroup to be born in, where the launcher may try.
    pub cgroup_dir: Option<&'a Path>,
    /// Asks the daemon to move the calling, single-threaded process into the cgroup: for launchers
    /// that may not enter it themselves.
    pub attach: &'a dyn Fn() -> Result<(), String>,
    /// What to bind where, in a mount namespace of the child's own.
    pub bind: Option<Bind<'a>>,
    /// Isolation, where it is asked for.
    pub isolate: Option<&'a Isolate>,
    /// What its output becomes; none: the launcher's own.
    pub output: Option<&'a Wiring>,
    /// The user to become.
    pub user: Option<&'a User>,
    /// Program and arguments.
    pub command: &'a [OsString],
    /// The whole environment.
    pub env: &'a [(OsString, OsString)],
}

/// A directory bound over another.
#[derive(Debug, Clone, Copy)]
pub struct Bind<'a> {
    /// The principal's directory in the mount.
    pub from: &'a Path,
    /// Where the agent sees it.
    pub to: &'a Path,
}

/// Why the command did not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon refused to take the process in.
    #[error("the agent could not be registered: {message}")]
    Attach {
        /// What it said.
        message: String,
    },
    /// The secrets could not be put where they belong.
    #[error("the secrets could not be bound at {}", path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The command cannot be executed.
    #[error("{command}: {source}")]
    Exec {
        /// Its name.
        command: String,
        /// What execve(2) said.
        source: io::Error,
    },
    /// It could not be isolated.
    #[error("the agent could not be isolated: {step}")]
    Isolate {
        /// What could not be had.
        step: String,
        /// What the system said.
        source: io::Error,
    },
    /// Its output could not be connected.
    #[error("the agent's output could not be connected")]
    Output {
        /// What the system said.
        source: io::Error,
    },
    /// The agent could not be started.
    #[error("the agent could not be started")]
    Start(#[from] io::Error),
    /// The user's identity could not be taken.
    #[error("the agent cannot run as that user")]
    User {
        /// What the system said.
        source: io::Error,
    },
}

/// Steps of the child, as it reports a failed one.
const STEP_ATTACH: u8 = 1;
const STEP_BIND: u8 = 2;
const STEP_USER: u8 = 3;
const STEP_EXEC: u8 = 4;
const STEP_OUTPUT: u8 = 5;
const STEP_ISOLATE: u8 = 6;

/// Whether something other than an empty directory stands at `path`.
///
/// # Errors
/// A sentence that says what is there.
pub fn check_bind_target(path: &Path) -> Result<(), String> {
    if let Some(entry) = mount::topmost(path) {
        return if entry.fs_type == mount::FS_TYPE {
            Ok(())
        } else {
            Err(format!("a mount of type {} is there", entry.fs_type))
        };
    }
    match std::fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err("it is not empty".into()),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

/// A started command.
pub struct Running {
    child: process::Child,
    signals: SignalFd,
    /// Who stands between, where somebody does.
    leader: Option<Leader>,
    /// Its terminal, where that is one of its own.
    session: Option<Session>,
    /// Terminals for output alone, and what they are like.
    followers: Vec<(OwnedFd, OwnedFd)>,
}

/// Replaces the calling process, which must have one thread, by the command.
///
/// # Errors
/// See [`Error`]; it returns only with one.
pub fn become_command(plan: &Plan<'_>) -> Error {
    if let Some(bind) = &plan.bind
        && let Err(source) = std::fs::create_dir_all(bind.to)
    {
        return Error::Bind { path: bind.to.to_owned(), source };
    }
    let Err((step, text)) = become_agent(plan, true).and_then(|()| exec(plan));
    error_of(plan, step, text)
}

/// Starts the command. The calling process must have one thread.
///
/// # Errors
/// See [`Error`]; the child is gone then.
pub fn start(plan: &Plan<'_>) -> Result<Running, Error> {
    let before = SigSet::thread_get_mask().map_err(io::Error::from)?;
    let own_terminal = plan.output.and_then(Wiring::session_end).is_some();
    let signals = take_signals(own_terminal)?;
    if let Some(bind) = &plan.bind
        && !plan.isolate.is_some_and(|isolate| isolate.hides(bind.to))
    {
        std::fs::create_dir_all(bind.to)
            .map_err(|source| Error::Bind { path: bind.to.to_owned(), source })?;
    }
    // Closed by a successful exec; else it carries the step and the reason.
    let (report, failed) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| Error::Start(errno.into()))?;
    let (launcher, leader) = UnixStream::pair()?;
    let cgroup = plan.cgroup_dir.and_then(|dir| File::open(dir).ok());
    let spawn = |group: Option<BorrowedFd<'_>>, attach: bool| -> io::Result<process::Child> {
        let ends = Ends { failed: failed.try_clone()?, leader: leader.try_clone()? };
        let namespaces = plan.isolate.map_or(Namespaces::Ours, Isolate::namespaces);
        process::spawn(group, namespaces, || run_child(plan, attach, &before, ends))
    };
    let child = match &cgroup {
        None => spawn(None, true)?,
        Some(dir) => match spawn(Some(dir.as_fd()), false) {
            Ok(child) => child,
            // The kernel wants the common ancestor to be ours; the daemon moves us instead.
            Err(_) => spawn(None, true)?,
        },
    };
    drop((failed, leader));
    let mut message = Vec::new();
    File::from(report).take(4096).read_to_end(&mut message)?;
    if let Some(error) = failure(plan, &message) {
        reap(&child)?;
        return Err(error);
    }
    let master = plan.output.map(Wiring::master).transpose()?.flatten();
    let is_led = master.is_some() || plan.isolate.is_some();
    let leader = is_led.then(|| Leader::begin(launcher)).transpose()?;
    let session = master.map(Session::begin).transpose()?;
    let followers = plan.output.map(Wiring::followers).transpose()?.unwrap_or_default();
    Ok(Running { child, signals, leader, session, followers })
}

/// What a child tells of itself.
struct Ends {
    /// Where it reports why the command does not run; closed by a successful exec.
    failed: OwnedFd,
    /// Where the leader of a session tells of its command.
    leader: UnixStream,
}

/// A step of the child that failed, and the reason as the launcher reads it.
type Failed = (u8, String);

fn run_child(plan: &Plan<'_>, attach: bool, mask: &SigSet, ends: Ends) -> Infallible {
    let Ends { failed, leader } = ends;
    let report = |(step, text): Failed| -> Infallible {
        if let Ok(fd) = failed.try_clone() {
            let _told = File::from(fd).write_all(&[&[step], text.as_bytes()].concat());
        }
        std::process::exit(125)
    };
    let io_step = |step: u8| move |error: io::Error| (step, errno_text(&error));
    let slave = plan.output.and_then(Wiring::session_end);
    let ready = become_agent(plan, attach)
        .and_then(|()| slave.map_or(Ok(()), terminal::take_session).map_err(io_step(STEP_OUTPUT)));
    if let Err(error) = ready {
        return report(error);
    }
    let run = || -> Infallible {
        let connected = plan.output.map_or(Ok(()), |output| {
            if let Some(slave) = slave {
                // Who comes to the front from behind is stopped otherwise.
                let mut stop = SigSet::empty();
                stop.add(Signal::SIGTTOU);
                stop.thread_block()?;
                let own = nix::unistd::getpid();
                nix::unistd::setpgid(own, own)?;
                nix::unistd::tcsetpgrp(slave, own)?;
            }
            output.connect()
        });
        let Err(error) = connected.map_err(io_step(STEP_OUTPUT)).and_then(|()| {
            // What the launcher blocks for itself, the command must not inherit: a shell that never
            // sees SIGCHLD waits for ever.
            mask.thread_set_mask().map_err(|errno| (STEP_EXEC, (errno as i32).to_string()))?;
            exec(plan)
        });
        report(error)
    };
    if slave.is_none() && plan.isolate.is_none() {
        return run();
    }
    let left = plan
        .isolate
        .map_or(Left::Nothing, |isolate| Left::Namespace { keep: isolate.keep_background });
    match process::spawn_in_cgroup(None, run) {
        Err(error) => report((STEP_OUTPUT, errno_text(&error))),
        Ok(command) => {
            // It holds no end of the agent's pipes, and a copy of the launcher's memory.
            process::close_all_but(&[leader.as_fd(), command.pidfd.as_fd()]);
            leader::lead(leader, &command, left);
            process::leave(0)
        }
    }
}

/// Registered, in its namespaces, as its user.
fn become_agent(plan: &Plan<'_>, attach: bool) -> Result<(), Failed> {
    if attach {
        (plan.attach)().map_err(|message| (STEP_ATTACH, message))?;
    }
    let mut missing = Vec::new();
    match (plan.isolate, &plan.bind) {
        (Some(isolate), bind) => {
            missing = isolate.enter(*bind).map_err(isolate_step)?;
        }
        (None, Some(bind)) => {
            mount::bind_privately(bind.from, bind.to).map_err(|e| (STEP_BIND, errno_text(&e)))?;
        }
        (None, None) => {}
    }
    if let Some(user) = plan.user {
        // A terminal is its user's, who may have to open it again by its name.
        for slave in plan.output.into_iter().flat_map(Wiring::terminals) {
            nix::unistd::fchown(slave, Some(user.uid), None)
                .map_err(|errno| (STEP_USER, (errno as i32).to_string()))?;
        }
        process::become_user(user).map_err(|e| (STEP_USER, errno_text(&e)))?;
    }
    if let Some(isolate) = plan.isolate {
        let uid = nix::unistd::geteuid().as_raw();
        let found = isolate.close(uid, missing).map_err(isolate_step)?;
        if !isolate.is_as_told(&found) {
            let what = format!("{} it is {found}, which is not what is on record", libc_eio());
            return Err((STEP_ISOLATE, what));
        }
    }
    let is_led = plan.isolate.is_some() || plan.output.and_then(Wiring::session_end).is_some();
    if is_led {
        // Its memory is a copy of the launcher's; the command's is its own from its exec on.
        let _hidden = nix::sys::prctl::set_dumpable(false);
    }
    if let Some(isolate) = plan.isolate {
        isolate
            .end_with_launcher()
            .map_err(|e| (STEP_ISOLATE, format!("{} its end", errno_text(&e))))?;
    }
    Ok(())
}

fn isolate_step(failed: super::isolate::Failed) -> Failed {
    (STEP_ISOLATE, format!("{} {}", errno_text(&failed.source), failed.step))
}

fn exec(plan: &Plan<'_>) -> Result<Infallible, Failed> {
    let [program, args @ ..] = plan.command else { return Err((STEP_EXEC, "22".to_owned())) };
    Err((STEP_EXEC, errno_text(&process::exec(program, args, plan.env))))
}

fn errno_text(error: &io::Error) -> String {
    error.raw_os_error().unwrap_or(libc_eio()).to_string()
}

fn libc_eio() -> i32 {
    nix::errno::Errno::EIO as i32
}

fn failure(plan: &Plan<'_>, message: &[u8]) -> Option<Error> {
    let (step, text) = message.split_first()?;
    Some(error_of(plan, *step, String::from_utf8_lossy(text).into_owned()))
}

fn error_of(plan: &Plan<'_>, step: u8, text: String) -> Error {
    let (number, rest) = text.split_once(' ').unwrap_or((&text, ""));
    let source = io::Error::from_raw_os_error(number.parse().unwrap_or(libc_eio()));
    match step {
        STEP_ISOLATE => Error::Isolate { step: rest.to_owned(), source },
        STEP_ATTACH => Error::Attach { message: text },
        STEP_BIND => {
            let path = plan.bind.map(|b| b.to.to_owned()).unwrap_or_default();
            Error::Bind { path, source }
        }
        STEP_OUTPUT => Error::Output { source },
        STEP_USER => Error::User { source },
        _ => {
            let command =
                plan.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
            Error::Exec { command, source }
        }
    }
}

fn reap(child: &process::Child) -> io::Result<()> {
    waitpid(pid_of(child), None)?;
    Ok(())
}

fn pid_of(child: &process::Child) -> Pid {
    Pid::from_raw(child.pid.cast_signed())
}

/// Blocks what we pass on, so that it waits in the descriptor.
fn take_signals(own_terminal: bool) -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGWINCH,
        Signal::SIGCHLD,
    ] {
        set.add(signal);
    }
    if own_terminal {
        // The caller's terminal is given back before we stop, and taken again after.
        set.add(Signal::SIGTSTP);
        set.add(Signal::SIGCONT);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?)
}

/// `SI_KERNEL`, sigaction(2): sent by the terminal to the whole process group.
const SI_KERNEL: i32 = 0x80;

impl Running {
    /// The command's process id.
    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// Names the command's process.
    pub fn pidfd(&self) -> &PidFd {
        self.leader.as_ref().map_or(&self.child.pidfd, Leader::command)
    }

    /// Waits for the command, passing signals and keys on and reaping orphans; its status as a shell
    /// tells it: its own, or 128 and the signal's number.
    ///
    /// # Errors
    /// What waitpid(2), poll(2) or read(2) report.
    pub fn wait(&mut self) -> io::Result<i32> {
        loop {
            if let Some(status) = self.reap_all()? {
                return Ok(self.ended(status));
            }
            if let Some(leader) = &self.leader {
                let own = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
                let leader = PollFd::new(leader.as_fd(), PollFlags::POLLIN);
                let mut fds = vec![own, leader];
                if let (Some(session), Some(leader)) = (&self.session, &self.leader) {
                    fds.extend(session.waits(leader.as_fd()));
                }
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
                let told = |number: usize| {
                    let told = fds.get(number).and_then(PollFd::revents);
                    told.is_some_and(|told| !told.is_empty())
                };
                let [signal, leader, keys, room] = [0, 1, 2, 3].map(told);
                drop(fds);
                if let Some(session) = &mut self.session {
                    session.pass_keys(keys, room);
                }
                // Nothing more comes from one that has ended: the next turn reaps it.
                if leader && let Some(status) = self.follow()? {
                    return Ok(status);
                }
                if !signal {
                    continue;
                }
            }
            let Some(info) = self.signals.read_signal()? else { continue };
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
            if let Some(signal) = signal {
                self.take_signal(signal, info.ssi_code == SI_KERNEL)?;
            }
        }
    }

    fn take_signal(&mut self, signal: Signal, of_terminal: bool) -> io::Result<()> {
        match (signal, &mut self.session) {
            (Signal::SIGCHLD, _) => {}
            (Signal::SIGWINCH, Some(session)) => session.resize(),
            (Signal::SIGCONT, Some(session)) => session.go_on()?,
            (Signal::SIGWINCH, None) => {
                for (ours, like) in &self.followers {
                    follow_size(ours.as_fd(), like.as_fd());
                }
                // Whatever the terminal has told it: the size it asks for has changed only now.
                let _gone = self.pidfd().signal(signal);
            }
            // The terminal has told the command already: it is in our process group.
            (_, None) if of_terminal => {}
            // It may be gone in this moment; the next turn reaps it.
            _ => drop(self.pidfd().signal(signal)),
        }
        Ok(())
    }

    /// What the leader says; the command's status where it has ended.
    fn follow(&mut self) -> io::Result<Option<i32>> {
        while let Some(change) = self.leader.as_mut().and_then(Leader::change) {
            match (change, &mut self.session) {
                (Change::Ended(status), _) => return Ok(Some(status)),
                (Change::Stopped, Some(session)) => session.stop()?,
                // The terminal stops the launcher as well; it is in the same process group.
                (Change::Stopped, None) => {}
            }
        }
        // Its end is told by the next turn.
        Ok(None)
    }

    /// The status of the command, where the process that ended may be its leader.
    fn ended(&mut self, status: i32) -> i32 {
        match self.leader.as_mut().and_then(Leader::change) {
            Some(Change::Ended(told)) => told,
            _ => status,
        }
    }

    /// The signal that asks the launcher itself to end, if one has come.
    pub fn asked_to_end(&self) -> Option<i32> {
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            let signal = self.signals.read_signal().ok()??.ssi_signo;
            let signal = i32::try_from(signal).ok().and_then(|n| Signal::try_from(n).ok())?;
            if matches!(signal, Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM)
            {
                return Some(128 + signal as i32);
            }
        }
        None
    }

    /// Reaps every child that has ended; the status of the command if it was among them.
    fn reap_all(&self) -> io::Result<Option<i32>> {
        let mut status = None;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == pid_of(&self.child) => {
                    status = Some(code);
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == pid_of(&self.child) => {
                    status = Some(128 + signal as i32);
                }
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(status),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
