//! Mounting and unmounting, ours alone.
//!
//! Invariant: nothing is unmounted whose mount id, type and source are not those of our own mount.
//! Danger: fuser 0.18's own teardown can unmount a stranger that was mounted at the same path.
//! See mount(2), umount2(2), fuse(4), fusermount3(1), proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};

/// The type that our mounts show in `/proc/self/mountinfo`.
pub const FS_TYPE: &str = "fuse.strongroom";

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Unique while mounted.
    pub mount_id: u64,
    /// Device minor: for FUSE the connection's number.
    pub minor: u64,
    /// The part of the filesystem that is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Type, with subtype.
    pub fs_type: String,
    /// Source, for FUSE `fsname`.
    pub source: String,
}

/// All mounts of this mount namespace, in mount order.
///
/// # Errors
/// What reading `/proc/self/mountinfo` reports.
pub fn table() -> io::Result<Vec<MountEntry>> {
    Ok(parse_table(&fs::read("/proc/self/mountinfo")?))
}

/// The mounts as process `pid` has them.
///
/// # Errors
/// `NotFound` when it is gone, `PermissionDenied` when it is another user's.
pub fn table_of(pid: u32) -> io::Result<Vec<MountEntry>> {
    Ok(parse_table(&fs::read(format!("/proc/{pid}/mountinfo"))?))
}

/// The lines of `/proc/PID/mountinfo` that are as proc(5) says.
pub fn parse_table(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let text = String::from_utf8_lossy(line);
    let mut fields = text.split(' ');
    let mount_id = fields.next()?.parse().ok()?;
    let _parent = fields.next()?;
    let minor = fields.next()?.split_once(':')?.1.parse().ok()?;
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    // Optional fields end with a single dash.
    let mut fields = fields.skip_while(|f| *f != "-").skip(1);
    let fs_type = fields.next()?.to_owned();
    let source = unescape(fields.next()?).to_string_lossy().into_owned();
    Some(MountEntry { mount_id, minor, root, mount_point, fs_type, source })
}

/// Octal escapes of mountinfo: `\040` for a space.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = (bytes[i] == b'\\')
            .then(|| bytes.get(i + 1..i + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            out.push(byte);
            i += 4;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// A mount that we made: what is needed to know it again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnMount {
    /// Where.
    pub path: PathBuf,
    /// Its source, which names our home.
    pub source: String,
    /// Its id in our namespace.
    pub mount_id: u64,
    /// The FUSE connection's number.
    pub connection: u64,
    /// Whether `fusermount3` made it and has to undo it.
    pub by_helper: bool,
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The device is missing.
    #[error("/dev/fuse cannot be opened")]
    Device {
        /// What open(2) said.
        source: io::Error,
    },
    /// The helper is missing.
    #[error("fusermount3 cannot be started")]
    HelperMissing {
        /// What execve(2) said.
        source: io::Error,
    },
    /// The helper refused.
    #[error("fusermount3 refused: {message}")]
    HelperRefused {
        /// Its last line.
        message: String,
    },
    /// The kernel refused.
    #[error("mounting at {} failed", path.display())]
    Kernel {
        /// Where.
        path: PathBuf,
        /// What mount(2) said.
        source: io::Error,
    },
    /// The mount is not in our table.
    #[error("the mount at {} did not appear", path.display())]
    Vanished {
        /// Where.
        path: PathBuf,
    },
}

/// Mounts a FUSE filesystem at `path`, as root by mount(2), else by `fusermount3`, and returns the
/// device descriptor. `source` may hold neither comma nor backslash.
///
/// # Errors
/// See [`MountError`].
pub fn mount_fuse(path: &Path, source: &str) -> Result<(OwnedFd, OwnMount), MountError> {
    let (device, by_helper) = if nix::unistd::geteuid().is_root() {
        (mount_as_root(path, source)?, false)
    } else {
        (mount_by_helper(path, source)?, true)
    };
    let entry = table()
        .ok()
        .and_then(|table| {
            table
                .into_iter()
                .rev()
                .find(|m| m.mount_point == path && m.fs_type == FS_TYPE && m.source == source)
        })
        .ok_or_else(|| MountError::Vanished { path: path.to_owned() })?;
    let own = OwnMount {
        path: path.to_owned(),
        source: source.to_owned(),
        mount_id: entry.mount_id,
        connection: entry.minor,
        by_helper,
    };
    Ok((device, own))
}

fn mount_as_root(path: &Path, source: &str) -> Result<OwnedFd, MountError> {
    let device = open_device()?;
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    nix::mount::mount(
        Some(source),
        path,
        Some(FS_TYPE),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME,
        Some(options.as_str()),
    )
    .map_err(|errno| MountError::Kernel { path: path.to_owned(), source: errno.into() })?;
    Ok(device.into())
}

/// Opens the device. Something else by that name, as some sandboxes have it, counts as none.
fn open_device() -> Result<fs::File, MountError> {
    let missing = |source| MountError::Device { source };
    let device =
        fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(missing)?;
    let facts = device.metadata().map_err(missing)?;
    // 10:229, Documentation/admin-guide/devices.txt of Linux.
    if !facts.file_type().is_char_device() || facts.rdev() != nix::sys::stat::makedev(10, 229) {
        let text = "it is there, but it is not the FUSE device";
        return Err(missing(io::Error::new(io::ErrorKind::NotFound, text)));
    }
    Ok(device)
}

fn mount_by_helper(path: &Path, source: &str) -> Result<OwnedFd, MountError> {
    // The helper's own message about the device is hard to read; ask first.
    open_device()?;
    let kernel = |source: io::Error| MountError::Kernel { path: path.to_owned(), source };
    let (ours, theirs) = nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|e| kernel(e.into()))?;
    inheritable(theirs.as_fd()).map_err(kernel)?;
    let output = Command::new("fusermount3")
        .arg("-o")
        .arg(format!("fsname={source},subtype=strongroom,nosuid,nodev,noexec,noatime"))
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|source| MountError::HelperMissing { source })?;
    drop(theirs);
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let message = text.lines().last().unwrap_or("no message").to_owned();
        return Err(MountError::HelperRefused { message });
    }
    receive_fd(ours.as_fd()).map_err(kernel)
}

/// Lets a descriptor pass an execve(2).
///
/// # Errors
/// What fcntl(2) reports.
pub fn inheritable(fd: BorrowedFd<'_>) -> io::Result<()> {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    Ok(())
}

fn receive_fd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (_, fds) = super::descriptor::receive(socket, &mut [0])?;
    fds.into_iter().next().ok_or_else(|| {
        io::Error::new(io::ErrorKind::UnexpectedEof, "fusermount3 sent no descriptor")
    })
}

/// Whether the topmost mount at its path is still the one that we made.
pub fn is_ours(own: &OwnMount) -> bool {
    topmost(&own.path).is_some_and(|m| {
        m.mount_id == own.mount_id && m.fs_type == FS_TYPE && m.source == own.source
    })
}

/// The mount that a path lookup would reach at `path`, if `path` is a mount point.
pub fn topmost(path: &Path) -> Option<MountEntry> {
    table().ok()?.into_iter().rev().find(|m| m.mount_point == path)
}

/// Unmounts lazily what we made, if it is still what is there; whether it was.
///
/// # Errors
/// What umount2(2) or the helper reports.
pub fn unmount(own: &OwnMount) -> io::Result<bool> {
    if !is_ours(own) {
        return Ok(false);
    }
    detach(&own.path, own.by_helper && !nix::unistd::geteuid().is_root())?;
    Ok(true)
}

fn detach(path: &Path, by_helper: bool) -> io::Result<()> {
    if by_helper {
        let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(path).output()?;
        if !output.status.success() {
            return Err(io::Error::other("fusermount3 -u failed"));
        }
        return Ok(());
    }
    // UMOUNT_NOFOLLOW: a symlink planted at the path leads nowhere.
    nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    Ok(())
}

/// What stands at a mount point before we mount there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ground {
    /// No mount, or none of ours.
    Free,
    /// A mount of ours whose server is gone.
    Dead,
    /// A mount of ours that answers: another daemon serves it.
    Live,
    /// Somebody else's mount.
    Foreign {
        /// Its type.
        fs_type: String,
    },
}

/// Looks at `path` without waiting for any FUSE server but our own dead one.
pub fn ground(path: &Path, source: &str) -> Ground {
    match topmost(path) {
        None => Ground::Free,
        Some(m) if m.fs_type == FS_TYPE && m.source == source => {
            // A dead connection answers ENOTCONN at once; statfs on a live one is answered by it.
            match nix::sys::statfs::statfs(path) {
                Err(nix::errno::Errno::ENOTCONN | nix::errno::Errno::ECONNABORTED) => Ground::Dead,
                _ => Ground::Live,
            }
        }
        Some(m) => Ground::Foreign { fs_type: m.fs_type },
    }
}

/// Clears a dead mount of ours at `path`.
///
/// # Errors
/// What the unmount reports.
pub fn clear_dead(path: &Path, source: &str) -> io::Result<()> {
    while ground(path, source) == Ground::Dead {
        detach(path, !nix::unistd::geteuid().is_root())?;
    }
    Ok(())
}

/// Unmounts what is mounted at `path` from `source`, without asking whoever should serve it: nobody
/// might, and who asks waits.
///
/// # Errors
/// What the unmount reports.
pub fn clear_unserved(path: &Path, source: &str) -> io::Result<()> {
    while topmost(path).is_some_and(|m| m.fs_type == FS_TYPE && m.source == source) {
        detach(path, !nix::unistd::geteuid().is_root())?;
    }
    Ok(())
}

/// Gives the calling process its own mount namespace whose mounts do not travel back, and binds
/// `from` at `to` in it.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; else what unshare(2) and mount(2) report.
pub fn bind_privately(from: &Path, to: &Path) -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    super::isolate::keep_mounts_here()?;
    nix::mount::mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_escapes_parses() {
        let line =
            b"36 35 98:5 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - fuse.strongroom a@b rw";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.mount_id, 36);
        assert_eq!(entry.minor, 5);
        assert_eq!(entry.mount_point, Path::new("/mnt 2"));
        assert_eq!((entry.fs_type.as_str(), entry.source.as_str()), (FS_TYPE, "a@b"));
    }

    #[test]
    fn a_cut_line_is_passed_over() {
        assert_eq!(parse_line(b"36 35 98:5 /mnt1"), None);
        assert_eq!(parse_line(b""), None);
    }

    #[test]
    fn a_foreign_mount_is_not_ours() {
        assert!(matches!(ground(Path::new("/proc"), "x"), Ground::Foreign { .. }));
        assert_eq!(ground(Path::new("/nowhere"), "x"), Ground::Free);
        let stranger = OwnMount {
            path: "/proc".into(),
            source: "x".into(),
            mount_id: 1,
            connection: 1,
            by_helper: false,
        };
        assert!(!unmount(&stranger).unwrap());
    }
}
