//! A small process of ours between launcher and command: leads its session, or its pid namespace.
//!
//! It tells the launcher of the command's stops and end, and as the first process of a namespace it
//! reaps whoever is left to it. Invariant: the launcher holds the command by a pidfd that came with the
//! word of its start, since numbers of another namespace mean nothing here.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys::descriptor;
use crate::sys::pidfd::PidFd;
use crate::sys::process::Child;

/// What has become of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It has ended, with a status as a shell tells it.
    Ended(i32),
    /// It was stopped.
    Stopped,
}

/// What is left to the leader when the command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing: others reap what is left.
    Nothing,
    /// It is the first process of its namespace, which ends with it: it stays for all that is left.
    Namespace {
        /// Also without a launcher.
        keep: bool,
    },
}

/// Kinds of messages: four bytes of number follow.
const STARTED: u8 = 1;
const ENDED: u8 = 2;
const STOPPED: u8 = 3;
const MESSAGE_BYTES: usize = 5;

fn message(kind: u8, number: i32) -> [u8; MESSAGE_BYTES] {
    let mut message = [kind, 0, 0, 0, 0];
    message[1..].copy_from_slice(&number.to_le_bytes());
    message
}

/// The life of a leader, until nothing is left to it.
pub(super) fn lead(mut launcher: UnixStream, command: &Child, left: Left) {
    let started = message(STARTED, 0);
    if descriptor::send(launcher.as_fd(), &started, &[command.pidfd.as_fd()]).is_err() {
        return;
    }
    let pid = Pid::from_raw(command.pid.cast_signed());
    let whom = if left == Left::Nothing { Some(pid) } else { None };
    let mut has_ended = false;
    loop {
        let told = match waitpid(whom, Some(WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(of, code)) if of == pid => message(ENDED, code),
            Ok(WaitStatus::Signaled(of, signal, _)) if of == pid => {
                message(ENDED, 128 + signal as i32)
            }
            Ok(WaitStatus::Stopped(of, signal)) if of == pid => message(STOPPED, signal as i32),
            Ok(_) | Err(Errno::EINTR) => continue,
            // Nobody is left.
            Err(_) => return,
        };
        has_ended |= told[0] == ENDED;
        let is_told = launcher.write_all(&told).is_ok();
        match left {
            Left::Nothing if has_ended || !is_told => return,
            // Without a launcher nobody is left to be told.
            Left::Namespace { keep: false } if !is_told => return,
            _ => {}
        }
    }
}

/// The launcher's side.
#[derive(Debug)]
pub(super) struct Leader {
    stream: UnixStream,
    command: PidFd,
}

impl Leader {
    /// Waits for the leader's word of the command.
    pub(super) fn begin(mut stream: UnixStream) -> io::Result<Self> {
        let mut told = [0; MESSAGE_BYTES];
        let (count, fds) = descriptor::receive(stream.as_fd(), &mut told)?;
        stream.read_exact(&mut told[count..])?;
        let command = fds.into_iter().next().filter(|_| told[0] == STARTED);
        let command = command.ok_or(ErrorKind::InvalidData)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, command: PidFd::from_owned(command) })
    }

    /// The command's process.
    pub(super) fn command(&self) -> &PidFd {
        &self.command
    }

    /// What it says; none while it says nothing.
    pub(super) fn change(&mut self) -> Option<Change> {
        let mut told = [0; MESSAGE_BYTES];
        // Five bytes are written at once and come at once.
        self.stream.read_exact(&mut told).ok()?;
        let [kind, number @ ..] = told;
        match kind {
            ENDED => Some(Change::Ended(i32::from_le_bytes(number))),
            STOPPED => Some(Change::Stopped),
            _ => None,
        }
    }
}

impl AsFd for Leader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
