//! `/dev/fuse` beyond what fuser offers: the first INIT, and the takeover of a live connection.
//!
//! Invariant: the keeper alone owns the device; a worker holds a duplicate, so its death aborts
//! nothing. Danger: `FUSE_DEV_IOC_CLONE` descriptors of a worker die with it and fail what they had
//! taken. See fuse(4), `include/uapi/linux/fuse.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};

/// `FUSE_NOTIFY_RESEND`, protocol 7.40 (Linux 6.9).
const FUSE_NOTIFY_RESEND: i32 = 7;
/// `FUSE_UNIQUE_RESEND`: set in `unique` of a request that is sent again.
pub const UNIQUE_RESEND: u64 = 1 << 63;
/// The kernel refuses to hand a request to a smaller buffer (`FUSE_MIN_READ_BUFFER`).
const MIN_READ_BYTES: usize = 8192;

/// Waits for the connection's INIT request and returns its bytes.
///
/// # Errors
/// `TimedOut` when the kernel sends none within `limit`; `ENODEV` when the mount is gone.
pub fn read_init(device: BorrowedFd<'_>, limit: std::time::Duration) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; MIN_READ_BYTES];
    let millis = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
    let mut fds = [PollFd::new(device, PollFlags::POLLIN)];
    if nix::poll::poll(&mut fds, millis)? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel sent no INIT"));
    }
    let len = nix::unistd::read(device, &mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Whether the connection lives: neither aborted nor without its mount.
pub fn is_connected(device: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(device, PollFlags::POLLIN)];
    // An ended connection tells of an error at once, fs/fuse/dev.c.
    nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).is_ok()
        && !fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR))
}

/// A socket pair that stands in for the device during fuser's handshake.
#[derive(Debug)]
pub struct Handshake {
    ours: OwnedFd,
}

impl Handshake {
    /// Makes the pair and queues `init` in it; the second value goes to `fuser::Session::from_fd`.
    ///
    /// # Errors
    /// What socketpair(2) or write(2) report.
    pub fn begin(init: &[u8]) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = nix::sys::socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        nix::unistd::write(&ours, init)?;
        Ok((Self { ours }, theirs))
    }

    /// The reply that fuser gave to the INIT.
    ///
    /// # Errors
    /// What read(2) reports.
    pub fn reply(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0_u8; 4096];
        let len = nix::unistd::read(&self.ours, &mut buffer)?;
        buffer.truncate(len);
        Ok(buffer)
    }
}

/// Puts the real device in the place of the descriptor that a session holds.
///
/// # Errors
/// What dup3(2) reports.
pub fn substitute(session: BorrowedFd<'_>, device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open; the session keeps owning the number, which now means the device.
    let rc = unsafe { libc::dup3(device.as_raw_fd(), session.as_raw_fd(), libc::O_CLOEXEC) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Answers the kernel's INIT with `reply`, as fuser formed it.
///
/// # Errors
/// What write(2) reports; `ENOENT` when the INIT was answered before, which is fine.
pub fn answer_init(device: BorrowedFd<'_>, reply: &[u8]) -> io::Result<()> {
    match nix::unistd::write(device, reply) {
        Ok(_) | Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Asks the kernel to send again what an earlier server had taken and not answered.
///
/// # Errors
/// `EINVAL` before Linux 6.9.
pub fn resend(device: BorrowedFd<'_>) -> io::Result<()> {
    // struct fuse_out_header: len, error (the notification's code), unique 0.
    let mut header = [0_u8; 16];
    header[..4].copy_from_slice(&16_u32.to_ne_bytes());
    header[4..8].copy_from_slice(&FUSE_NOTIFY_RESEND.to_ne_bytes());
    nix::unistd::write(device, &header)?;
    Ok(())
}

/// A descriptor number that the process inherited, taken over.
///
/// # Errors
/// `EBADF` when nothing is open there.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    if number < 3 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: only asks for flags; a closed number gives EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, inherited over execve for us, and taken over once, at start.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // What we start ourselves must not get it.
    nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}
