//! The service manager's side: sd_notify(3) messages, its descriptor store, what it hands back.
//!
//! Invariant: without `NOTIFY_SOCKET` nothing is sent and nothing is expected to be kept. Danger: a
//! descriptor that is taken from a wrong process's environment; `LISTEN_PID` must be ours.
//! See sd_notify(3), sd_listen_fds(3), systemd.service(5) `FileDescriptorStoreMax=`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::{descriptor, device};

/// First descriptor that a manager passes, `SD_LISTEN_FDS_START`.
const LISTEN_FDS_START: i32 = 3;
/// Variables of the protocol, which are not for those that we start.
pub const VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
];

/// Where a service manager listens.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The one that `NOTIFY_SOCKET` names; none without it.
    ///
    /// # Errors
    /// Where it names something that cannot be reached.
    pub fn of_environment() -> io::Result<Option<Self>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let name = name.as_encoded_bytes();
        let address = match name.split_first() {
            Some((b'@', rest)) => SocketAddr::from_abstract_name(rest)?,
            _ => {
                use std::os::unix::ffi::OsStrExt;
                SocketAddr::from_pathname(std::path::Path::new(std::ffi::OsStr::from_bytes(name)))?
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(Some(Self { socket }))
    }

    /// Tells it something, as `READY=1`.
    ///
    /// # Errors
    /// What sendmsg(2) reports.
    pub fn tell(&self, text: &str) -> io::Result<()> {
        descriptor::send(self.socket.as_fd(), text.as_bytes(), &[])
    }

    /// Has it keep a descriptor beyond our end.
    ///
    /// # Errors
    /// What sendmsg(2) reports; a manager that keeps none does not say so.
    pub fn store(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        descriptor::send(self.socket.as_fd(), format!("FDSTORE=1\nFDNAME={name}").as_bytes(), &[fd])
    }

    /// Has it let go of descriptors of a name.
    ///
    /// # Errors
    /// What sendmsg(2) reports.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"))
    }
}

/// How often a manager wants to hear of us, where it does.
pub fn watchdog() -> Option<Duration> {
    let of_us = std::env::var("WATCHDOG_PID").ok().and_then(|pid| pid.parse::<u32>().ok());
    if of_us.is_some_and(|pid| pid != std::process::id()) {
        return None;
    }
    let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (micros > 0).then_some(Duration::from_micros(micros))
}

/// Descriptors that the manager hands to this process, with their names.
///
/// # Errors
/// `EBADF` where one that is told of is not open.
pub fn handed() -> io::Result<Vec<(String, OwnedFd)>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, 64);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    (LISTEN_FDS_START..LISTEN_FDS_START + count)
        .map(|fd| Ok((names.next().unwrap_or_default(), device::inherited(fd)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_arrives_with_its_name_and_a_word_without_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(dir.path().join("notify")).unwrap();
        let client = Manager { socket };
        client.store("device", io::stdin().as_fd()).unwrap();
        client.tell("READY=1").unwrap();
        let mut bytes = [0; 128];
        let (count, fds) = descriptor::receive(manager.as_fd(), &mut bytes).unwrap();
        assert_eq!((&bytes[..count], fds.len()), (&b"FDSTORE=1\nFDNAME=device"[..], 1));
        let (count, fds) = descriptor::receive(manager.as_fd(), &mut bytes).unwrap();
        assert_eq!((&bytes[..count], fds.len()), (&b"READY=1"[..], 0));
    }

    #[test]
    fn descriptors_for_another_process_are_left_alone() {
        // Tests run without a manager: nothing is handed to them.
        assert!(handed().unwrap().is_empty());
    }
}
