//! What isolates a process: mounts of a namespace of its own, user mappings, capabilities.
//!
//! All of it changes the calling process alone, which was born in namespaces of its own by
//! [`super::process::spawn`]. Danger: a step that fails in silence leaves a view open; each tells.
//! See namespaces(7), user_namespaces(7), mount_setattr(2), open_tree(2), capabilities(7).

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::MsFlags;

/// Maps the caller's own uid and gid to themselves, in the user namespace that it was born in.
///
/// # Errors
/// What writing the maps reports.
pub fn map_own_user(uid: u32, gid: u32) -> io::Result<()> {
    // Before the groups' map may be written without privilege, user_namespaces(7).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Has mounts of this namespace stay in it; what the host mounts later still arrives.
///
/// # Errors
/// What mount(2) reports.
pub fn keep_mounts_here() -> io::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
}

/// `MOVE_MOUNT_F_EMPTY_PATH` of linux/mount.h.
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// A copy of a directory as a mount of its own, attached nowhere yet.
#[derive(Debug)]
pub struct Tree(OwnedFd);

fn path_text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Takes hold of a directory, to be attached elsewhere when its own path is gone. Linux 5.2.
///
/// # Errors
/// What open_tree(2) reports.
pub fn take_tree(path: &Path) -> io::Result<Tree> {
    let path = path_text(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a live, terminated string.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(Tree(unsafe { OwnedFd::from_raw_fd(fd) }))
}

impl Tree {
    /// Attaches it over `path`.
    ///
    /// # Errors
    /// What move_mount(2) reports.
    pub fn attach(self, path: &Path) -> io::Result<()> {
        let path = path_text(path)?;
        // SAFETY: both paths are live, terminated strings.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                path.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Puts an empty directory over `path`.
///
/// # Errors
/// What mount(2) reports.
pub fn cover(path: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let size = Some("mode=0555,size=64k,nr_inodes=64");
    Ok(nix::mount::mount(Some("hidden"), path, Some("tmpfs"), flags, size)?)
}

/// Puts the file `empty` over the file `path`.
///
/// # Errors
/// What mount(2) reports.
pub fn cover_file(empty: &Path, path: &Path) -> io::Result<()> {
    Ok(nix::mount::mount(Some(empty), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Makes the mount at `path` read-only for this namespace. Linux 5.12.
///
/// # Errors
/// What mount_setattr(2) reports.
pub fn make_read_only(path: &Path) -> io::Result<()> {
    let path = path_text(path)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is terminated and the structure has the size that is named.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Shows at `/proc` the processes of this pid namespace alone.
///
/// # Errors
/// `EPERM` in a user namespace where parts of the outer `/proc` are covered, as in containers.
pub fn mount_own_proc() -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(nix::mount::mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)?)
}

/// The process and what it becomes gains no rights by executing a program.
///
/// # Errors
/// What prctl(2) reports.
pub fn gain_no_rights() -> io::Result<()> {
    Ok(nix::sys::prctl::set_no_new_privs()?)
}

/// capabilities(7) by number: what programs of a root agent are left with. None of them mounts,
/// traces, loads, makes devices or reaches other namespaces.
const LEFT_TO_ROOT: &[u32] = &[
    0,  // CAP_CHOWN
    1,  // CAP_DAC_OVERRIDE
    3,  // CAP_FOWNER
    4,  // CAP_FSETID
    5,  // CAP_KILL
    6,  // CAP_SETGID
    7,  // CAP_SETUID
    8,  // CAP_SETPCAP
    10, // CAP_NET_BIND_SERVICE
    13, // CAP_NET_RAW
    18, // CAP_SYS_CHROOT
];

/// `_LINUX_CAPABILITY_VERSION_3`, capget(2).
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn set_capabilities(bits: u64) -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let half = |bits: u64| {
        let word = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        CapabilityData { effective: word, permitted: word, inheritable: 0 }
    };
    let data = [half(bits), half(bits >> 32)];
    // SAFETY: both structures have the layout of version 3 and live over the call.
    let outcome = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives up every capability.
///
/// # Errors
/// What capset(2) reports.
pub fn drop_capabilities() -> io::Result<()> {
    set_capabilities(0)
}

/// Gives up, for this process and all that it executes, what would lead a root agent out.
///
/// # Errors
/// What prctl(2) or capset(2) report.
pub fn drop_roots_capabilities() -> io::Result<()> {
    let held = held_capabilities()?;
    let mut kept = 0_u64;
    for number in 0..64_u32 {
        if LEFT_TO_ROOT.contains(&number) {
            kept |= 1 << number;
            continue;
        }
        // SAFETY: takes a number.
        let outcome = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
        if outcome != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return Err(io::Error::last_os_error());
        }
    }
    set_capabilities(held & kept)
}

/// `CapPrm` of proc_pid_status(5).
fn held_capabilities() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    permitted
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
