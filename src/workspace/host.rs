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
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, User};

use crate::sys::pidfd::PidFd;
use crate::sys::{mount, process};

/// What the launcher does for the child between its birth and the command.
pub struct Plan<'a> {
    /// The cgroup to be born in, where the launcher may try.
    pub cgroup_dir: Option<&'a Path>,
    /// Asks the daemon to move the calling, single-threaded process into the cgroup: for launchers
    /// that may not enter it themselves.
    pub attach: &'a dyn Fn() -> Result<(), String>,
    /// What to bind where, in a mount namespace of the child's own.
    pub bind: Option<Bind<'a>>,
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
}

/// Starts the command. The calling process must have one thread.
///
/// # Errors
/// See [`Error`]; the child is gone then.
pub fn start(plan: &Plan<'_>) -> Result<Running, Error> {
    let before = SigSet::thread_get_mask().map_err(io::Error::from)?;
    let signals = take_signals()?;
    if let Some(bind) = &plan.bind {
        std::fs::create_dir_all(bind.to)
            .map_err(|source| Error::Bind { path: bind.to.to_owned(), source })?;
    }
    // Closed by a successful exec; else it carries the step and the reason.
    let (report, failed) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| Error::Start(errno.into()))?;
    let cgroup = plan.cgroup_dir.and_then(|dir| File::open(dir).ok());
    let child = match &cgroup {
        None => process::spawn_in_cgroup(None, || run_child(plan, true, &before, &failed))?,
        Some(dir) => {
            match process::spawn_in_cgroup(Some(dir.as_fd()), || {
                run_child(plan, false, &before, &failed)
            }) {
                Ok(child) => child,
                // The kernel wants the common ancestor to be ours; the daemon moves us instead.
                Err(_) => {
                    process::spawn_in_cgroup(None, || run_child(plan, true, &before, &failed))?
                }
            }
        }
    };
    drop(failed);
    let mut message = Vec::new();
    File::from(report).take(4096).read_to_end(&mut message)?;
    if let Some(error) = failure(plan, &message) {
        reap(&child)?;
        return Err(error);
    }
    Ok(Running { child, signals })
}

fn run_child(plan: &Plan<'_>, attach: bool, mask: &SigSet, failed: &OwnedFd) -> Infallible {
    let report = |step: u8, text: &str| -> Infallible {
        if let Ok(fd) = failed.try_clone() {
            let _told = File::from(fd).write_all(&[&[step], text.as_bytes()].concat());
        }
        std::process::exit(125)
    };
    if attach && let Err(message) = (plan.attach)() {
        return report(STEP_ATTACH, &message);
    }
    if let Some(bind) = &plan.bind
        && let Err(error) = mount::bind_privately(bind.from, bind.to)
    {
        return report(STEP_BIND, &errno_text(&error));
    }
    if let Some(user) = plan.user
        && let Err(error) = process::become_user(user)
    {
        return report(STEP_USER, &errno_text(&error));
    }
    // What the launcher blocks for itself, the command must not inherit: a shell that never sees
    // SIGCHLD waits for ever.
    if let Err(errno) = mask.thread_set_mask() {
        return report(STEP_EXEC, &(errno as i32).to_string());
    }
    let [program, args @ ..] = plan.command else { return report(STEP_EXEC, "22") };
    let error = process::exec(program, args, plan.env);
    report(STEP_EXEC, &errno_text(&error))
}

fn errno_text(error: &io::Error) -> String {
    error.raw_os_error().unwrap_or(libc_eio()).to_string()
}

fn libc_eio() -> i32 {
    nix::errno::Errno::EIO as i32
}

fn failure(plan: &Plan<'_>, message: &[u8]) -> Option<Error> {
    let (step, text) = message.split_first()?;
    let text = String::from_utf8_lossy(text).into_owned();
    let source = io::Error::from_raw_os_error(text.parse().unwrap_or(libc_eio()));
    Some(match *step {
        STEP_ATTACH => Error::Attach { message: text },
        STEP_BIND => {
            let path = plan.bind.map(|b| b.to.to_owned()).unwrap_or_default();
            Error::Bind { path, source }
        }
        STEP_USER => Error::User { source },
        _ => {
            let command =
                plan.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
            Error::Exec { command, source }
        }
    })
}

fn reap(child: &process::Child) -> io::Result<()> {
    waitpid(pid_of(child), None)?;
    Ok(())
}

fn pid_of(child: &process::Child) -> Pid {
    Pid::from_raw(child.pid.cast_signed())
}

/// Blocks what we pass on, so that it waits in the descriptor.
fn take_signals() -> io::Result<SignalFd> {
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
        &self.child.pidfd
    }

    /// Waits for the command, passing signals on and reaping orphans; its status as a shell tells
    /// it: its own, or 128 and the signal's number.
    ///
    /// # Errors
    /// What waitpid(2) or read(2) report.
    pub fn wait(&mut self) -> io::Result<i32> {
        loop {
            if let Some(status) = self.reap_all()? {
                return Ok(status);
            }
            let Some(info) = self.signals.read_signal()? else { continue };
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
            match signal {
                None | Some(Signal::SIGCHLD) => {}
                // The terminal has told the child already: it is in our process group.
                Some(_) if info.ssi_code == SI_KERNEL => {}
                Some(signal) => {
                    // It may be gone in this moment; the next turn reaps it.
                    let _gone = self.child.pidfd.signal(signal);
                }
            }
        }
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
