//! A terminal between the caller's and the agent's: keys in, sizes, stops and continues.
//!
//! The agent has a session of its own on a terminal of its own, so that all it writes there passes
//! the worker. A [leader](super::leader) of the session tells the launcher of stops: a command
//! without a parent in its session could not be stopped by a key. Invariant: the caller's terminal
//! passes keys on only while it is ours to use, and is as it was when the launcher stops or leaves.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal, killpg};

use crate::sys::terminal::{self, Raw};

/// The launcher's side.
pub(super) struct Session {
    raw: Raw,
    master: OwnedFd,
    /// Keys that the agent's terminal has no room for yet.
    keys: Vec<u8>,
    /// The caller's terminal gives no more keys.
    is_closed: bool,
}

impl Session {
    /// After the leader has begun.
    pub(super) fn begin(master: OwnedFd) -> io::Result<Self> {
        let mut session = Self {
            raw: Raw::new(io::stdin().as_fd())?,
            master,
            keys: Vec::new(),
            is_closed: false,
        };
        session.raw.enter()?;
        Ok(session)
    }

    fn wants_keys(&self) -> bool {
        self.raw.is_raw() && self.keys.is_empty() && !self.is_closed
    }

    /// What to wait for: keys, then room for keys; `idle` where one of them is not wanted.
    pub(super) fn waits<'a>(&'a self, idle: BorrowedFd<'a>) -> [PollFd<'a>; 2] {
        let mut keys = PollFlags::empty();
        keys.set(PollFlags::POLLIN, self.wants_keys());
        let mut room = PollFlags::empty();
        room.set(PollFlags::POLLOUT, !self.keys.is_empty());
        // A terminal would report its end again and again, also where nothing is waited for.
        let source = if keys.is_empty() { idle } else { self.raw.as_fd() };
        let sink = if room.is_empty() { idle } else { self.master.as_fd() };
        [PollFd::new(source, keys), PollFd::new(sink, room)]
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
