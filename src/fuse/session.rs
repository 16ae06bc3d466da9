//! A FUSE session over a device that outlives it.
//!
//! The kernel sent one INIT when the keeper mounted; the keeper kept it. Every worker shows that INIT
//! to fuser over a socket pair, puts the real device in the pair's place, asks the kernel to send
//! again what an earlier worker had taken, and serves. The first worker also passes fuser's answer on
//! to the kernel, so that what fuser believes and what the kernel was told are one.
//!
//! Invariant: this process never mounts or unmounts; closing its descriptor ends nothing.
//! See `Documentation/filesystems/fuse` and [`crate::sys::device`].
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use fuser::{Config, Filesystem, Session, SessionACL};

use crate::execution::state::State;
use crate::sys::device;

/// How a worker took the mount over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takeover {
    /// It is the first; whether the kernel could send requests again to the next.
    First {
        /// Linux 6.9.
        can_resend: bool,
    },
    /// Requests in flight were sent again.
    Resent,
    /// The kernel cannot send requests again (before 6.9).
    Lost,
}

/// Prepares a session on `device`; [`Session::run`] then serves it.
///
/// # Errors
/// `NotConnected` without an INIT in `state`; else what the handshake reports.
pub fn take_over<F: Filesystem>(
    filesystem: F,
    state: &State,
    device: BorrowedFd<'_>,
    threads: usize,
    newer_features: bool,
) -> io::Result<(Session<F>, Takeover)> {
    let init = state.init().ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotConnected, "the runtime state holds no INIT")
    })?;
    let (handshake, stand_in) = device::Handshake::begin(&init)?;
    let mut config = Config::default();
    config.n_threads = Some(threads);
    // Every caller is judged by the broker; fuser's own check skips READ.
    let session = Session::from_fd(filesystem, stand_in, SessionACL::All, config)?;
    let reply = handshake.reply()?;
    device::substitute(session.as_fd(), device.as_fd())?;
    let resend = || newer_features && device::resend(device).is_ok();
    let takeover = if state.init_answered() {
        if resend() { Takeover::Resent } else { Takeover::Lost }
    } else {
        device::answer_init(device, &reply)?;
        state.set_init_answered();
        // Asked only now: a resend before the answer would send the INIT itself again.
        Takeover::First { can_resend: resend() }
    };
    Ok((session, takeover))
}
