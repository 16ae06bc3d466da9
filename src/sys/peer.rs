//! Who is at the other end of a unix socket, as the kernel knew it at connect.
//!
//! Invariant: credentials and pidfd are those of the process that connected, whoever holds the
//! socket now; [`Peer::is_alive`] says whether that process is still there. Danger: a pid alone may
//! be another process by the time it is looked at. See unix(7), SO_PEERCRED, SO_PEERPIDFD (Linux
//! 6.5), SO_PEERGROUPS.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

use super::proc::Stat;

/// The process that connected.
#[derive(Debug)]
pub struct Peer {
    /// Its effective uid then.
    pub uid: u32,
    /// Its effective gid then.
    pub gid: u32,
    /// Its supplementary groups then; empty where the kernel does not tell.
    pub groups: Vec<u32>,
    /// Its pid in our namespace, for records; 0 where it is not visible here.
    pub pid: i32,
    /// The process itself; none before Linux 6.5, or where it was gone already.
    pub pidfd: Option<OwnedFd>,
}

impl Peer {
    /// Asks the kernel about a connected socket.
    ///
    /// # Errors
    /// What getsockopt(2) reports for the credentials; the rest is left out where it fails.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            groups: groups(socket).unwrap_or_default(),
            pid: credentials.pid(),
            pidfd: getsockopt(&socket, sockopt::PeerPidfd).ok(),
        })
    }

    /// Whether the process that connected is still there; true where the kernel gave no pidfd.
    pub fn is_alive(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return true };
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        // A pidfd becomes readable when its process has ended (pidfd_open(2)).
        !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
    }
}

/// A login or terminal session, by the process that leads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session {
    /// The leader's pid, which names the session.
    leader: u32,
    /// When the leader was started: a number that came back is another session.
    start_ticks: u64,
}

impl Session {
    /// The session of a peer; none where its leader has ended, or the peer cannot be told for sure.
    pub fn of(peer: &Peer) -> Option<Self> {
        peer.pidfd.as_ref()?;
        let leader = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(peer.pid))).ok()?;
        let leader = u32::try_from(leader.as_raw()).ok().filter(|pid| *pid > 0)?;
        let start_ticks = Stat::read(leader).ok()?.start_ticks;
        // The number was the peer's all the time.
        peer.is_alive().then_some(Self { leader, start_ticks })
    }
}

/// The supplementary groups of the peer.
fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // NGROUPS_MAX is 65536; a peer with more than 4096 is told apart by uid only.
    let mut groups = vec![0_u32; 4096];
    let mut len = libc::socklen_t::try_from(std::mem::size_of_val(groups.as_slice()))
        .map_err(io::Error::other)?;
    // SAFETY: the buffer is `len` bytes long and outlives the call, which writes at most that.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(len as usize / size_of::<u32>());
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_peer_is_this_process_and_alive() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let _client = UnixStream::connect(dir.path().join("s")).unwrap();
        let (server, _) = listener.accept().unwrap();
        let peer = Peer::of(server.as_fd()).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert!(peer.is_alive());
    }

    #[test]
    fn a_peer_that_handed_its_socket_on_and_ended_is_not_alive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        // The shell connects, and a child of it keeps the socket open after the shell has ended.
        let script = "import os,socket,sys,time\n\
            s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n\
            os.fork() or time.sleep(30)\n";
        let Ok(mut child) =
            std::process::Command::new("python3").arg("-c").arg(script).arg(&path).spawn()
        else {
            assert!(std::env::var_os("REQUIRE_ALL_TESTS").is_none(), "python3 is missing");
            eprintln!("SKIPPED: python3 is missing");
            return;
        };
        let (server, _) = listener.accept().unwrap();
        child.wait().unwrap();
        let peer = Peer::of(server.as_fd()).unwrap();
        if peer.pidfd.is_some() {
            assert!(!peer.is_alive());
        }
    }
}
