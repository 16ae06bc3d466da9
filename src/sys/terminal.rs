//! Terminals and open files: ioctl_tty(2), openpty(3), kcmp(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::pty::Winsize;
use nix::sys::termios::{self, SetArg, Termios};

/// Both ends of a new terminal.
#[derive(Debug)]
pub struct Pty {
    /// Where its output is read and its input written.
    pub master: OwnedFd,
    /// What a program has for its terminal.
    pub slave: OwnedFd,
}

/// Makes a terminal that looks as `like` does now.
///
/// # Errors
/// What openpty(3) or tcgetattr(3) report.
pub fn open_like(like: BorrowedFd<'_>) -> io::Result<Pty> {
    let settings = termios::tcgetattr(like)?;
    let pty = nix::pty::openpty(Some(&size(like)?), Some(&settings))?;
    for fd in [&pty.master, &pty.slave] {
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(fd, flags)?;
    }
    Ok(Pty { master: pty.master, slave: pty.slave })
}

/// Rows and columns.
///
/// # Errors
/// What ioctl(2) reports.
pub fn size(of: BorrowedFd<'_>) -> io::Result<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the call fills the structure that it is given.
    if unsafe { libc::ioctl(of.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(size)
}

/// Sets rows and columns; the programs in its foreground are told by the kernel.
///
/// # Errors
/// What ioctl(2) reports.
pub fn set_size(of: BorrowedFd<'_>, size: Winsize) -> io::Result<()> {
    // SAFETY: the call reads the structure that it is given.
    if unsafe { libc::ioctl(of.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Begins a session whose terminal is `slave`.
///
/// # Errors
/// What setsid(2) or ioctl(2) report.
pub fn take_session(slave: BorrowedFd<'_>) -> io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: the call takes a number.
    if unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `KCMP_FILE` of linux/kcmp.h.
const KCMP_FILE: libc::c_int = 0;

/// Whether two descriptors of ours name one open file, so that what goes to both keeps its order.
pub fn are_one(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> bool {
    let pid = libc::pid_t::from(nix::unistd::getpid());
    // SAFETY: the call compares and changes nothing.
    let order = unsafe {
        libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, first.as_raw_fd(), second.as_raw_fd())
    };
    if order >= 0 {
        return order == 0 || is_same_device(first, second);
    }
    is_same_device(first, second)
}

/// Whether both are one terminal, pipe or socket, in which order is kept whoever opened it.
fn is_same_device(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> bool {
    let (Ok(a), Ok(b)) = (nix::sys::stat::fstat(first), nix::sys::stat::fstat(second)) else {
        return false;
    };
    let is_regular = a.st_mode & libc::S_IFMT == libc::S_IFREG;
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) && !is_regular
}

/// A terminal that passes every key on, until this is dropped.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
    is_raw: bool,
}

impl Raw {
    /// Remembers how the terminal is; it stays so until [`Raw::enter`].
    ///
    /// # Errors
    /// What tcgetattr(3) reports.
    pub fn new(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let before = termios::tcgetattr(terminal)?;
        Ok(Self { terminal: terminal.try_clone_to_owned()?, before, is_raw: false })
    }

    /// Whether this process's group may use the terminal now.
    pub fn is_ours(&self) -> bool {
        nix::unistd::tcgetpgrp(&self.terminal).is_ok_and(|group| group == nix::unistd::getpgrp())
    }

    /// Whether keys are passed on now.
    pub fn is_raw(&self) -> bool {
        self.is_raw
    }

    /// Passes keys on; nothing happens while the terminal is another's.
    ///
    /// # Errors
    /// What tcsetattr(3) reports.
    pub fn enter(&mut self) -> io::Result<()> {
        if self.is_raw || !self.is_ours() {
            return Ok(());
        }
        self.before = termios::tcgetattr(&self.terminal)?;
        let mut raw = self.before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&self.terminal, SetArg::TCSADRAIN, &raw)?;
        self.is_raw = true;
        Ok(())
    }

    /// Gives the terminal back as it was.
    ///
    /// # Errors
    /// What tcsetattr(3) reports.
    pub fn leave(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.is_raw) || !self.is_ours() {
            return Ok(());
        }
        termios::tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before)?;
        Ok(())
    }
}

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = self.leave() {
            eprintln!("note: the terminal could not be restored ({error}); run: reset");
        }
    }
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw").field("is_raw", &self.is_raw).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_open_file_is_told_from_one_that_was_opened_twice() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let first = std::fs::File::create(file.path()).unwrap();
        let copy = first.try_clone().unwrap();
        let second = std::fs::File::create(file.path()).unwrap();
        assert!(are_one(first.as_fd(), copy.as_fd()));
        assert!(!are_one(first.as_fd(), second.as_fd()));
        let (reading, writing) = std::io::pipe().unwrap();
        assert!(are_one(reading.as_fd(), writing.as_fd()), "one pipe");
        let (other, _) = std::io::pipe().unwrap();
        assert!(!are_one(other.as_fd(), writing.as_fd()));
    }

    #[test]
    fn a_new_terminal_has_the_size_of_the_old_one() {
        let old = nix::pty::openpty(
            Some(&Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 }),
            None,
        )
        .unwrap();
        let new = open_like(old.slave.as_fd()).unwrap();
        let size = size(new.slave.as_fd()).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (33, 77));
    }
}
