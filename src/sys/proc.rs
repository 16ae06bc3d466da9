//! What `/proc` says of a task: parsed strictly, for facts the pidfd does not tell.
//!
//! Invariant: a line that does not parse is an error, never a default. Danger: `comm` may hold any
//! byte, also `)` and newlines, so `stat` is cut at its last parenthesis. See proc(5).

use std::io::{self, Read};
use std::path::PathBuf;

/// `PF_KTHREAD`, `include/linux/sched.h`: a thread of the kernel itself.
const PF_KTHREAD: u64 = 0x0020_0000;
/// `PF_USER_WORKER`: made by the kernel in a user process, as io_uring's threads are.
const PF_USER_WORKER: u64 = 0x0000_4000;
/// `PF_IO_WORKER`: an io_uring thread.
const PF_IO_WORKER: u64 = 0x0000_0010;

/// Fields of `/proc/TID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The name, for telling io_uring's threads apart.
    pub comm: Vec<u8>,
    /// Parent process id.
    pub ppid: u32,
    /// `PF_*` flags.
    pub flags: u64,
    /// Start, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Stat {
    /// Reads the facts of thread or process `tid`.
    ///
    /// # Errors
    /// `NotFound` when it is gone; `InvalidData` when the text is not as proc(5) says.
    pub fn read(tid: u32) -> io::Result<Self> {
        let mut buffer = [0; 1024];
        Self::parse(read_small(&format!("/proc/{tid}/stat"), &mut buffer)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat does not parse"))
    }

    /// Reads the line of `/proc/TID/stat`, in which the name may hold anything.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|b| *b == b'(')?;
        let close = text.iter().rposition(|b| *b == b')')?;
        let comm = text.get(open + 1..close)?.to_vec();
        let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        // Field numbers of proc(5): 3 state, 4 ppid, ..., 9 flags, ..., 22 starttime.
        let ppid = fields.nth(1)?.parse().ok()?;
        let flags = fields.nth(4)?.parse().ok()?;
        let start_ticks = fields.nth(12)?.parse().ok()?;
        Some(Self { comm, ppid, flags, start_ticks })
    }

    /// A thread that the kernel made for itself: a loop device, nfsd, write-back.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// A thread of an io_uring ring that polls for the ring's owner: its requests show who made the
    /// ring, not who uses it. Workers (`iou-wrk-*`) act for the thread that submitted.
    pub fn is_ring_poller(&self) -> bool {
        self.flags & (PF_IO_WORKER | PF_USER_WORKER) != 0 && !self.comm.starts_with(b"iou-wrk-")
    }
}

/// A file of `/proc` that the kernel writes in one piece, by one read(2): asking for its size and for
/// its end costs two more calls in the path of a request.
fn read_small<'b>(path: &str, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut file = std::fs::File::open(path)?;
    let read = file.read(buffer)?;
    if read == buffer.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a file of /proc is too long"));
    }
    Ok(&buffer[..read])
}

/// The v2 cgroup path of a task, below the hierarchy's root as we see it: the line `0::/...`.
///
/// # Errors
/// `NotFound` when the task is gone or the line is missing.
pub fn cgroup_path(tid: u32) -> io::Result<PathBuf> {
    unified_cgroup(&std::fs::read_to_string(format!("/proc/{tid}/cgroup"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no v2 cgroup line"))
}

/// The path of the v2 line of `/proc/TID/cgroup`.
pub fn unified_cgroup(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

/// The real, effective, saved and filesystem uid of a task, and its process id.
///
/// # Errors
/// `NotFound` when the task is gone, `InvalidData` when a line is missing.
pub fn status_ids(tid: u32) -> io::Result<StatusIds> {
    StatusIds::parse(&std::fs::read_to_string(format!("/proc/{tid}/status"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "status does not parse"))
}

/// Ids of `/proc/TID/status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusIds {
    /// Process id.
    pub tgid: u32,
    /// Parent process id.
    pub ppid: u32,
    /// Real uid.
    pub ruid: u32,
    /// Effective uid.
    pub euid: u32,
}

impl StatusIds {
    /// Reads the text of `/proc/TID/status`.
    pub fn parse(text: &str) -> Option<Self> {
        let line = |key: &str| text.lines().find_map(|l| l.strip_prefix(key));
        let tgid = line("Tgid:")?.trim().parse().ok()?;
        let mut uids = line("Uid:")?.split_ascii_whitespace().map(str::parse);
        let ruid = uids.next()?.ok()?;
        let euid = uids.next()?.ok()?;
        let ppid = line("PPid:")?.trim().parse().ok()?;
        Some(Self { tgid, ppid, ruid, euid })
    }
}

/// Who traces a task, if anyone does.
pub fn tracer(pid: u32) -> Option<u32> {
    tracer_of(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// The tracer in the text of `/proc/TID/status`.
pub fn tracer_of(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|l| l.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Processes that there are now.
pub fn pids() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Reads as much of a process's first environment as fits; how many bytes.
///
/// # Errors
/// `NotFound` when it is gone, `PermissionDenied` when we may not look.
pub fn environ(pid: u32, buffer: &mut [u8]) -> io::Result<usize> {
    let mut file = std::fs::File::open(format!("/proc/{pid}/environ"))?;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Where the `exe` link points, for the record alone: a path is forgeable and grants nothing.
pub fn exe(tid: u32) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{tid}/exe")).ok()?;
    Some(path.to_string_lossy().into_owned())
}

/// The login uid that the audit subsystem keeps; `None` where it is unset or not there.
pub fn login_uid(tid: u32) -> Option<u32> {
    let mut buffer = [0; 32];
    let text = read_small(&format!("/proc/{tid}/loginuid"), &mut buffer).ok()?;
    std::str::from_utf8(text).ok()?.trim().parse().ok().filter(|uid| *uid != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_parenthesis_and_spaces_parses() {
        let text = b"42 (a) R 9 (b) S 7 1 1 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 77665 1 1";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.comm, b"a) R 9 (b");
        assert_eq!((stat.ppid, stat.flags, stat.start_ticks), (7, 4_194_560, 77665));
    }

    #[test]
    fn a_cut_line_is_an_error() {
        assert_eq!(Stat::parse(b"42 (a) S 7 1"), None);
        assert_eq!(Stat::parse(b""), None);
        assert_eq!(Stat::parse(b")("), None);
    }

    #[test]
    fn we_are_neither_a_kernel_thread_nor_a_poller() {
        let stat = Stat::read(std::process::id()).unwrap();
        assert!(!stat.is_kernel_thread());
        assert!(!stat.is_ring_poller());
        let ids = status_ids(std::process::id()).unwrap();
        assert_eq!(ids.tgid, std::process::id());
        assert_eq!(ids.ppid, stat.ppid);
        assert!(cgroup_path(std::process::id()).is_ok());
    }

    #[test]
    fn a_poller_is_told_from_a_worker_by_flag_and_name() {
        let poller = Stat {
            comm: b"iou-sqp-12".to_vec(),
            ppid: 1,
            flags: PF_IO_WORKER | PF_USER_WORKER,
            start_ticks: 1,
        };
        assert!(poller.is_ring_poller());
        let worker = Stat { comm: b"iou-wrk-12".to_vec(), ..poller.clone() };
        assert!(!worker.is_ring_poller());
        // A process may call itself so; it is still itself.
        let pretender = Stat { flags: 0, ..poller };
        assert!(!pretender.is_ring_poller());
    }
}
