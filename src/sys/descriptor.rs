//! Passing descriptors over unix sockets: SCM_RIGHTS of unix(7).
//!
//! Invariant: what is received is owned at once and closed on exec. Danger: a descriptor that the
//! other end sent besides what was expected stays open unseen; all are taken, and dropped.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Descriptors that one message may carry here.
const MAX_FDS: usize = 8;

/// Sends `bytes` with `fds` on a connected socket.
///
/// # Errors
/// What sendmsg(2) reports.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives at most `into.len()` bytes and the descriptors that came with them.
///
/// # Errors
/// What recvmsg(2) reports.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut iov = [IoSliceMut::new(into)];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just installed them for us alone.
            fds.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_with_its_bytes() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut reading, writing) = io::pipe().unwrap();
        send(one.as_fd(), b"word", &[writing.as_fd()]).unwrap();
        drop(writing);
        let mut bytes = [0; 16];
        let (count, fds) = receive(other.as_fd(), &mut bytes).unwrap();
        assert_eq!((&bytes[..count], fds.len()), (&b"word"[..], 1));
        let fd = fds.into_iter().next().unwrap();
        std::fs::File::from(fd).write_all(b"through").unwrap();
        let mut text = String::new();
        reading.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }
}
