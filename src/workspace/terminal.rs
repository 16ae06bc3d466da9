//! A terminal between the caller's and the agent's: keys in, sizes, stops and continues.
//!
//! The agent has a session of its own on a terminal of its own, so that all it writes there passes
//! the worker. A small process of ours leads the session and tells the launcher of stops: a command
//! without a parent in its session could not be stopped by a key. Invariant: the caller's terminal
//! passes keys on only while it is ours to use, and is as it was when the launcher stops or leaves.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys::pidfd::PidFd;
use crate::sys::terminal::{self, Raw};

/// What has become of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It has ended, with a status as a shell tells it.
    Ended(i32),
    /// It was stopped.
    Stopped,
}

/// Kinds of messages of the session's leader: four bytes of number follow.
const STARTED: u8 = 1;
const ENDED: u8 = 2;
const STOPPED: u8 = 3;
const MESSAGE_BYTES: usize = 5;

fn message(kind: u8, number: i32) -> [u8; MESSAGE_BYTES] {
    let mut message = [kind, 0, 0, 0, 0];
    message[1..].copy_from_slice(&number.to_le_bytes());
    message
}

/// The life of the session's leader: tells of the command's start, stops and end.
pub(super) fn lead(mut launcher: UnixStream, command: Pid) {
    if launcher.write_all(&message(STARTED, command.as_raw())).is_err() {
        return;
    }
    // The launcher takes hold of the command before anybody can reap it.
    if launcher.read_exact(&mut [0]).is_err() {
        return;
    }
    loop {
        let told = match waitpid(command, Some(WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(_, code)) => message(ENDED, code),
            Ok(WaitStatus::Signaled(_, signal, _)) => message(ENDED, 128 + signal as i32),
            Ok(WaitStatus::Stopped(_, signal)) => message(STOPPED, signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
        };
        // Without a launcher nobody is left to be told.
        if launcher.write_all(&told).is_err() || told[0] == ENDED {
            return;
        }
    }
}

/// The launcher's side.
pub(super) struct Session {
    raw: Raw,
    master: OwnedFd,
    leader: UnixStream,
    command: PidFd,
    /// Keys that the agent's terminal has no room for yet.
    keys: Vec<u8>,
    /// The caller's terminal gives no more keys.
    is_closed: bool,
}

impl Session {
    /// After the leader has begun; waits for its word of the command.
    pub(super) fn begin(mut leader: UnixStream, master: OwnedFd) -> io::Result<Self> {
        let mut told = [0; MESSAGE_BYTES];
        leader.read_exact(&mut told)?;
        let [kind, number @ ..] = told;
        if kind != STARTED {
            return Err(ErrorKind::InvalidData.into());
        }
        let pid = u32::try_from(i32::from_le_bytes(number)).map_err(io::Error::other)?;
        let command = PidFd::open(pid)?;
        leader.write_all(&[1])?;
        leader.set_nonblocking(true)?;
        let mut session = Self {
            raw: Raw::new(io::stdin().as_fd())?,
            master,
            leader,
            command,
            keys: Vec::new(),
            is_closed: false,
        };
        session.raw.enter()?;
        Ok(session)
    }

    /// The command's process.
    pub(super) fn command(&self) -> &PidFd {
        &self.command
    }

    fn wants_keys(&self) -> bool {
        self.raw.is_raw() && self.keys.is_empty() && !self.is_closed
    }

    /// What to wait for: the leader, then keys, then room for keys.
    pub(super) fn waits(&self) -> [PollFd<'_>; 3] {
        let mut keys = PollFlags::empty();
        keys.set(PollFlags::POLLIN, self.raw.is_raw() && self.keys.is_empty() && !self.is_closed);
        let mut room = PollFlags::empty();
        room.set(PollFlags::POLLOUT, !self.keys.is_empty());
        // A terminal would report its end again and again, also where nothing is waited for.
        let source = if keys.is_empty() { self.leader.as_fd() } else { self.raw.as_fd() };
        let sink = if room.is_empty() { self.leader.as_fd() } else { self.master.as_fd() };
        [
            PollFd::new(self.leader.as_fd(), PollFlags::POLLIN),
            PollFd::new(source, keys),
            PollFd::new(sink, room),
        ]
    }

    /// Passes on keys, where there are some and where there is room for them.
    pub(super) fn pass_keys(&mut self, are_there: bool, has_room: bool) {
        // Where they are not wanted, something else was waited for.
        let mut has_room = has_room && !self.keys.is_empty();
        if are_there && self.wants_keys() {
            has_room = true;
            let mut buffer = [0; 1024];
            match nix::unistd::read(&self.raw, &mut buffer) {
                Ok(0) | Err(nix::errno::Errno::EIO) => self.is_closed = true,
                Ok(count) => self.keys.extend_from_slice(&buffer[..count]),
                Err(_) => {}
            }
        }
        if has_room && !self.keys.is_empty() {
            match nix::unistd::write(&self.master, &self.keys) {
                Ok(count) => drop(self.keys.drain(..count)),
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                // It has hung up.
                Err(_) => self.keys.clear(),
            }
        }
    }

    /// What the leader says; none while it says nothing.
    pub(super) fn change(&mut self) -> Option<Change> {
        let mut told = [0; MESSAGE_BYTES];
        // Five bytes are written at once and come at once.
        self.leader.read_exact(&mut told).ok()?;
        let [kind, number @ ..] = told;
        match kind {
            ENDED => Some(Change::Ended(i32::from_le_bytes(number))),
            STOPPED => Some(Change::Stopped),
            _ => None,
        }
    }

    /// The command was stopped: so is the launcher, with its process group, as the caller's shell
    /// expects; goes on with it.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        self.raw.leave()?;
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTSTP);
        killpg(nix::unistd::getpgrp(), Signal::SIGTSTP)?;
        // Here it stops.
        stop.thread_unblock()?;
        stop.thread_block()?;
        self.go_on()
    }

    /// The launcher was continued.
    pub(super) fn go_on(&mut self) -> io::Result<()> {
        self.raw.enter()?;
        self.resize();
        // In front stands the command or a job of it.
        if let Ok(group) = nix::unistd::tcgetpgrp(&self.master) {
            let _gone = killpg(group, Signal::SIGCONT);
        }
        Ok(())
    }

    /// The caller's terminal has another size.
    pub(super) fn resize(&self) {
        follow_size(self.master.as_fd(), self.raw.as_fd());
    }
}

/// Gives a terminal the size of another; one that has gone has none.
pub(super) fn follow_size(to: BorrowedFd<'_>, from: BorrowedFd<'_>) {
    if let Ok(size) = terminal::size(from) {
        let _gone = terminal::set_size(to, size);
    }
}
