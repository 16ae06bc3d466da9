//! Starting and hardening processes: clone3(2), prctl(2), limits.
//!
//! Invariant: a child made by [`spawn_in_cgroup`] is a member of the cgroup before its first
//! instruction. Danger: writing a pid to `cgroup.procs` took 11 ms and names a number.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::pidfd::PidFd;

/// How far a hardening step was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Achieved {
    /// As asked.
    Full,
    /// In part; what is missing.
    Partial(String),
    /// Not at all; why.
    None(String),
}

/// `CLONE_INTO_CGROUP`, Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, clone(2), 88 bytes since Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A child that we have to reap.
#[derive(Debug)]
pub struct Child {
    /// Its process id, ours to use until it is reaped.
    pub pid: u32,
    /// Names it for good.
    pub pidfd: PidFd,
}

/// Forks. `run` is the child's whole life (it ends by execve or `_exit`); with `cgroup` it is born
/// in that group.
///
/// The caller must have one thread: after a fork of a process with several, locks that other threads
/// held stay locked for ever.
///
/// # Errors
/// `EACCES` where the group may not be entered from ours, `ENOSYS` before Linux 5.7 (with a group).
pub fn spawn_in_cgroup(
    cgroup: Option<BorrowedFd<'_>>,
    run: impl FnOnce() -> std::convert::Infallible,
) -> io::Result<Child> {
    spawn(cgroup, Namespaces::Ours, run)
}

/// What a child is born into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// The caller's.
    Ours,
    /// Pid and mount namespaces of its own, for callers with CAP_SYS_ADMIN.
    PidAndMount,
    /// The same and a user namespace of its own, for everybody else.
    UserPidAndMount,
}

impl Namespaces {
    fn flags(self) -> i32 {
        match self {
            Self::Ours => 0,
            Self::PidAndMount => libc::CLONE_NEWPID | libc::CLONE_NEWNS,
            Self::UserPidAndMount => libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS,
        }
    }
}

/// [`spawn_in_cgroup`], with namespaces of the child's own.
///
/// # Errors
/// Besides: `EPERM` where they may not be made.
pub fn spawn(
    cgroup: Option<BorrowedFd<'_>>,
    namespaces: Namespaces,
    run: impl FnOnce() -> std::convert::Infallible,
) -> io::Result<Child> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: u64::try_from(libc::CLONE_PIDFD | namespaces.flags()).map_err(io::Error::other)?,
        pidfd: (&raw mut pidfd).addr() as u64,
        exit_signal: u64::try_from(libc::SIGCHLD).map_err(io::Error::other)?,
        ..CloneArgs::default()
    };
    if let Some(dir) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(dir.as_raw_fd()).map_err(io::Error::other)?;
    }
    // SAFETY: no CLONE_VM and no new stack, so this is a fork: the child runs on a copy of our
    // memory. The pointer in `args` is to a live local.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<CloneArgs>()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // A panic must not unwind into the parent's frames.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        drop(outcome);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(125) }
    }
    // SAFETY: the kernel stored a new descriptor there for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child {
        pid: u32::try_from(pid).map_err(io::Error::other)?,
        pidfd: PidFd::from_owned(pidfd),
    })
}

/// Closes every descriptor beyond the first three, but `kept`; for a child that owns nothing of what
/// its memory is a copy of, and ends by [`leave`].
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.into_iter().map(Some).chain([None]) {
        let end = last.map_or(u32::MAX, |number| number.saturating_sub(1));
        if first <= end {
            // SAFETY: the caller's promise; closing what is not open does nothing.
            unsafe { libc::syscall(libc::SYS_close_range, first, end, 0) };
        }
        first = last.map_or(u32::MAX, |number| number.max(2) + 1);
    }
}

/// Ends the process without running what a parent left to be done at its exit.
pub fn leave(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Keeps the process from being traced or dumped by others of its uid, and out of core files.
///
/// # Errors
/// What prctl(2) reports.
pub fn forbid_dumps() -> io::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

/// capabilities(7): locks memory beyond `RLIMIT_MEMLOCK`.
const CAP_IPC_LOCK: u32 = 14;

/// Whether this process may use a capability now; `CapEff` of proc_pid_status(5).
fn has_capability(number: u32) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    Ok(bits.is_some_and(|bits| bits >> number & 1 == 1))
}

/// Keeps every page that this process touches, now and later, out of swap.
///
/// Needs the right to lock without a limit: with one, a later allocation would fail for it.
///
/// # Errors
/// What setrlimit(2) or mlockall(2) report; nothing is locked then.
pub fn lock_all_memory() -> io::Result<()> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    if !has_capability(CAP_IPC_LOCK)? && getrlimit(Resource::RLIMIT_MEMLOCK)?.0 != RLIM_INFINITY {
        setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    }
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: the call takes flags and changes no content of memory.
    if unsafe { libc::mlockall(flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Raises the soft limit of open descriptors to the hard one.
///
/// # Errors
/// What setrlimit(2) reports.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// Has the kernel send `signal` to this process when its parent thread dies.
///
/// # Errors
/// What prctl(2) reports.
pub fn signal_on_parent_death(signal: nix::sys::signal::Signal) -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(signal)?)
}

/// Has the program of `command` begin as a shell would start it: without the signals that this thread
/// keeps from itself, which are inherited. With `bound`, it is killed when the thread that starts it
/// dies.
pub fn begin_afresh(
    command: &mut std::process::Command,
    bound: bool,
) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt;
    let prepare = move || {
        nix::sys::signal::SigSet::empty().thread_set_mask()?;
        if bound {
            signal_on_parent_death(nix::sys::signal::Signal::SIGKILL)?;
        }
        Ok(())
    };
    // SAFETY: two system calls and no memory, as fork(2) allows in a child of many threads.
    unsafe { command.pre_exec(prepare) }
}

/// Makes this process the parent of descendants whose own parent ends.
///
/// # Errors
/// What prctl(2) reports.
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Gives up the connection to the terminal and the session of whoever started us.
///
/// # Errors
/// `EPERM` when already a session leader, which is fine to ignore.
pub fn new_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    Ok(())
}

/// Replaces the program of this process; returns only on failure.
pub fn exec(
    program: &std::ffi::OsStr,
    args: &[std::ffi::OsString],
    env: &[(std::ffi::OsString, std::ffi::OsString)],
) -> io::Error {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(program);
    command.args(args).env_clear().envs(env.iter().map(|(k, v)| (k, v)));
    command.exec()
}

/// Takes the identity of `user` for good: supplementary groups, gid, uid.
///
/// # Errors
/// `EPERM` unless root.
pub fn become_user(user: &nix::unistd::User) -> io::Result<()> {
    let name = std::ffi::CString::new(user.name.as_str()).map_err(io::Error::other)?;
    nix::unistd::initgroups(&name, user.gid)?;
    nix::unistd::setresgid(user.gid, user.gid, user.gid)?;
    nix::unistd::setresuid(user.uid, user.uid, user.uid)?;
    Ok(())
}

/// Takes a user's rights on files for the calling thread alone, and for good: a thread that ends
/// soon. Root's rights on files go with it.
///
/// # Errors
/// Where the process may not, unless it is that user itself.
pub fn take_file_rights(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    if nix::unistd::geteuid().as_raw() == uid && uid != 0 {
        return Ok(());
    }
    // The system calls themselves: those of the C library change all threads.
    // SAFETY: reads so many words of the slice, which lives.
    let set = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes a number.
    unsafe { libc::syscall(libc::SYS_setfsgid, libc::c_ulong::from(gid)) };
    // SAFETY: takes a number.
    unsafe { libc::syscall(libc::SYS_setfsuid, libc::c_ulong::from(uid)) };
    // An id that is none changes nothing and tells what holds, setfsuid(2).
    // SAFETY: takes a number.
    let now = unsafe { libc::syscall(libc::SYS_setfsuid, -1_i64) };
    if u32::try_from(now) == Ok(uid) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_in_the_cgroup_before_its_first_instruction() {
        if !nix::unistd::geteuid().is_root() {
            assert_ne!(std::env::var("REQUIRE_ALL_TESTS").as_deref(), Ok("1"), "needs root");
            eprintln!("NOT RUN: making a cgroup needs root");
            return;
        }
        use std::os::fd::AsFd;
        let path = super::super::cgroup::hierarchy_root()
            .unwrap()
            .join(format!("sr-spawn-{}", std::process::id()));
        let group = super::super::cgroup::Cgroup::create(&path).unwrap();
        let child = spawn_in_cgroup(Some(group.as_fd()), || {
            loop {
                // SAFETY: waits for the signal that ends it; async-signal-safe.
                unsafe { libc::pause() };
            }
        })
        .unwrap();
        assert_eq!(child.pidfd.info().unwrap().cgroup_id, group.id());
        group.kill().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.pid.cast_signed());
        nix::sys::wait::waitpid(pid, None).unwrap();
        assert!(group.empty_within(std::time::Duration::from_secs(60)));
        group.remove().unwrap();
    }

    #[test]
    fn a_program_that_begins_afresh_has_no_blocked_signals_and_ends_with_its_thread_where_bound() {
        use nix::sys::signal::{SigSet, Signal};
        use std::os::unix::process::ExitStatusExt;
        use std::process::{Command, Stdio};
        let start = |bound| {
            let child = std::thread::spawn(move || {
                SigSet::from(Signal::SIGTERM).thread_block().unwrap();
                let mut command = Command::new("sh");
                command.args(["-c", "grep SigBlk /proc/self/status; read waits"]);
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                let mut child = begin_afresh(&mut command, bound).spawn().unwrap();
                let mut line = String::new();
                let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
                std::io::BufRead::read_line(&mut { stdout }, &mut line).unwrap();
                assert_eq!(line, "SigBlk:\t0000000000000000\n");
                child
            });
            child.join().unwrap()
        };
        // Its input stays open: only the thread's end can have ended it.
        let mut bound = start(true);
        let stdin = bound.stdin.take();
        assert_eq!(bound.wait().unwrap().signal(), Some(libc::SIGKILL));
        drop(stdin);
        // Ended by the end of its input.
        assert_eq!(start(false).wait().unwrap().signal(), None);
    }
}
