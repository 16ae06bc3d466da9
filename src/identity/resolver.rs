//! Resolves a caller to facts of a process that is still the same process afterwards.
//!
//! On kernels that have them: a thread pidfd and `PIDFD_GET_INFO`, cached by thread id with the
//! pidfd held, and asked again at every request (0.2 us): a reused id fails there, since the held
//! descriptor names the old thread. On older kernels `/proc/TID/{stat,status,cgroup}` is read twice
//! and compared.
//!
//! Invariant: a cached entry is used only after its own pidfd has answered. Danger: FUSE reports a
//! thread id, 0 for an invisible caller. Tested in `tests/mount`.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::sys::pidfd::{PidFd, TaskInfo};
use crate::sys::{cgroup, proc};

use super::{Caller, Facts, Unattributable};

/// How facts are gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `PIDFD_THREAD` (6.9) and `PIDFD_GET_INFO` (6.13).
    PidfdInfo,
    /// `/proc`, read twice.
    Proc,
}

/// Held pidfds at most, over all shards: each is one descriptor of the worker.
const MAX_CACHED: usize = 4096;
const SHARDS: usize = 16;

struct Entry {
    pidfd: PidFd,
}

/// See the module.
pub struct Resolver {
    method: Method,
    shards: [Mutex<HashMap<u32, Entry>>; SHARDS],
    hierarchy: Option<PathBuf>,
}

impl Resolver {
    /// Takes the best method of this kernel, unless `newer_features` is false.
    pub fn new(newer_features: bool) -> Self {
        let info_works = || {
            PidFd::open_thread(nix::unistd::gettid().as_raw().cast_unsigned())
                .and_then(|fd| fd.info())
                .is_ok()
        };
        let method = if newer_features && info_works() { Method::PidfdInfo } else { Method::Proc };
        Self {
            method,
            shards: std::array::from_fn(|_| Mutex::new(HashMap::new())),
            hierarchy: cgroup::hierarchy_root().ok(),
        }
    }

    /// The method in use.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The facts of `caller`, whose request must be unanswered until they have been used.
    ///
    /// # Errors
    /// See [`Unattributable`].
    pub fn resolve(&self, caller: Caller) -> Result<Facts, Unattributable> {
        if caller.tid == 0 {
            return Err(Unattributable::Invisible);
        }
        match self.method {
            Method::PidfdInfo => self.by_pidfd(caller.tid),
            Method::Proc => self.by_proc(caller.tid),
        }
    }

    fn by_pidfd(&self, tid: u32) -> Result<Facts, Unattributable> {
        let mut shard =
            self.shards[tid as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = shard.get(&tid) {
            if let Ok(info) = entry.pidfd.info()
                && info.tid == tid
            {
                return Ok(Facts { tgid: info.tgid, cgroup_id: Some(info.cgroup_id) });
            }
            // The thread that had this id is gone: what was known of it says nothing.
            shard.remove(&tid);
        }
        let pidfd = PidFd::open_thread(tid).map_err(|_| Unattributable::Invisible)?;
        let mut info = pidfd.info().map_err(|_| Unattributable::Invisible)?;
        if may_be_of_the_kernel(&info) {
            // Read once per thread: a thread never turns into one of the kernel's.
            let stat = proc::Stat::read(tid).map_err(|_| Unattributable::Invisible)?;
            refuse_kernel_threads(&stat)?;
            // Asked again: what was read was said of this thread, not of a later one of its id.
            info = pidfd.info().map_err(|_| Unattributable::Invisible)?;
        }
        if info.tid != tid {
            return Err(Unattributable::Invisible);
        }
        if shard.len() >= MAX_CACHED / SHARDS {
            make_room(&mut shard);
        }
        shard.insert(tid, Entry { pidfd });
        Ok(Facts { tgid: info.tgid, cgroup_id: Some(info.cgroup_id) })
    }

    fn by_proc(&self, tid: u32) -> Result<Facts, Unattributable> {
        let first = self.read_proc(tid)?;
        let second = self.read_proc(tid)?;
        if first == second { Ok(first.1) } else { Err(Unattributable::Invisible) }
    }

    /// Start time and facts: equal twice means one and the same thread in between.
    fn read_proc(&self, tid: u32) -> Result<(u64, Facts), Unattributable> {
        let gone = |_| Unattributable::Invisible;
        let stat = proc::Stat::read(tid).map_err(gone)?;
        refuse_kernel_threads(&stat)?;
        let ids = proc::status_ids(tid).map_err(gone)?;
        let cgroup_id = match &self.hierarchy {
            None => None,
            Some(root) => {
                let path = proc::cgroup_path(tid).map_err(gone)?;
                let below = path.strip_prefix("/").unwrap_or(&path);
                Some(std::fs::metadata(root.join(below)).map_err(gone)?.ino())
            }
        };
        Ok((stat.start_ticks, Facts { tgid: ids.tgid, cgroup_id }))
    }

    /// Pidfds held now.
    pub fn cached(&self) -> usize {
        self.shards.iter().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

/// Makes room for an entry, by dropping some that ended, or else any: a few are looked at, so that no
/// request pays for all.
fn make_room(shard: &mut HashMap<u32, Entry>) {
    const LOOKED_AT: usize = 16;
    let ended = |(tid, entry): (&u32, &Entry)| entry.pidfd.info().is_err().then_some(*tid);
    let mut out: Vec<u32> = shard.iter().take(LOOKED_AT).filter_map(ended).collect();
    if out.is_empty() {
        out.extend(shard.keys().next());
    }
    for tid in out {
        shard.remove(&tid);
    }
}

/// Whether a thread has to be looked at closer: reading its `stat` costs a third of a first request.
/// Threads of the kernel are children of kthreadd (process 2; its own parent is 0) where they are
/// visible at all, and what the kernel adds to a user's process, as pollers, is never its leader.
fn may_be_of_the_kernel(info: &TaskInfo) -> bool {
    info.tid != info.tgid || info.ppid <= 2
}

fn refuse_kernel_threads(stat: &proc::Stat) -> Result<(), Unattributable> {
    if stat.is_kernel_thread() {
        return Err(Unattributable::Kernel);
    }
    if stat.is_ring_poller() {
        return Err(Unattributable::RingPoller);
    }
    Ok(())
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("method", &self.method).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Caller {
        Caller { tid: nix::unistd::gettid().as_raw().cast_unsigned(), uid: 0, gid: 0 }
    }

    #[test]
    fn both_methods_agree_on_us() {
        let new = Resolver::new(true).resolve(me()).unwrap();
        let old = Resolver::new(false).resolve(me()).unwrap();
        assert_eq!(new, old);
        assert_eq!(new.tgid, std::process::id());
    }

    #[test]
    fn an_invisible_caller_is_nobody() {
        let caller = Caller { tid: 0, uid: 0, gid: 0 };
        for resolver in [Resolver::new(true), Resolver::new(false)] {
            assert_eq!(resolver.resolve(caller), Err(Unattributable::Invisible));
        }
    }

    #[test]
    fn a_thread_of_the_kernel_is_refused() {
        // kthreadd is process 2 wherever we are in the initial pid namespace.
        let kthreadd = proc::Stat::read(2).ok().filter(proc::Stat::is_kernel_thread);
        let Some(_) = kthreadd else {
            assert_ne!(std::env::var("REQUIRE_ALL_TESTS").as_deref(), Ok("1"));
            eprintln!("NOT RUN: process 2 is no kernel thread in this pid namespace");
            return;
        };
        let caller = Caller { tid: 2, uid: 0, gid: 0 };
        for resolver in [Resolver::new(true), Resolver::new(false)] {
            assert_eq!(resolver.resolve(caller), Err(Unattributable::Kernel));
        }
    }

    #[test]
    fn every_thread_of_the_kernel_that_is_visible_is_looked_at_closer() {
        let mut seen = 0;
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            let Ok(fd) = PidFd::open_thread(pid) else { continue };
            let (Ok(stat), Ok(info)) = (proc::Stat::read(pid), fd.info()) else { continue };
            if stat.is_kernel_thread() {
                assert!(may_be_of_the_kernel(&info), "{info:?}");
                seen += 1;
            }
        }
        eprintln!("{seen} threads of the kernel were visible");
        let own = PidFd::open(std::process::id()).unwrap().info().unwrap();
        let thread = TaskInfo { tid: own.tgid + 1, ..own };
        assert!(may_be_of_the_kernel(&thread));
        assert!(may_be_of_the_kernel(&TaskInfo { ppid: 2, ..own }));
        assert!(!may_be_of_the_kernel(&TaskInfo { ppid: 1000, ..own }));
    }

    #[test]
    fn a_full_cache_makes_room_and_goes_on_answering() {
        let resolver = Resolver::new(true);
        let mut shard = resolver.shards[0].lock().unwrap();
        for tid in 0..3 {
            let own = PidFd::open(std::process::id()).unwrap();
            shard.insert(tid, Entry { pidfd: own });
        }
        make_room(&mut shard);
        assert_eq!(shard.len(), 2);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = PidFd::open(child.id()).unwrap();
        child.wait().unwrap();
        shard.insert(9, Entry { pidfd: ended });
        make_room(&mut shard);
        assert_eq!(shard.len(), 2);
        assert!(!shard.contains_key(&9));
    }

    #[test]
    fn a_cached_thread_that_has_ended_is_not_believed() {
        let resolver = Resolver::new(true);
        let tid = std::thread::scope(|scope| {
            scope.spawn(|| resolver.resolve(me()).map(|_| me().tid).unwrap()).join().unwrap()
        });
        let caller = Caller { tid, uid: 0, gid: 0 };
        // Its slot may have gone to a new thread of ours; it must not be the old answer by cache.
        if !std::path::Path::new(&format!("/proc/{tid}")).exists() {
            assert_eq!(resolver.resolve(caller), Err(Unattributable::Invisible));
        }
    }
}
