//! Control groups of the v2 hierarchy: the boundary that says whose process a process is.
//!
//! Invariant: a [`Cgroup`] names its directory by a held descriptor and by its id, the directory's
//! inode number, which the kernel reports for each task. Danger: in a hybrid host the v2 hierarchy
//! is mounted elsewhere. See cgroups(7), `Documentation/admin-guide/cgroup-v2.rst`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the v2 hierarchy is mounted, from `/proc/self/mountinfo`.
///
/// # Errors
/// `NotFound` where the host has none.
pub fn hierarchy_root() -> io::Result<PathBuf> {
    super::mount::table()?
        .into_iter()
        .find(|m| m.fs_type == "cgroup2" && m.root == Path::new("/"))
        .map(|m| m.mount_point)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup v2 hierarchy is mounted"))
}

/// One control group that is ours.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    dir: File,
    id: u64,
}

impl Cgroup {
    /// Makes the group (its parent must exist) or opens it where it is there already.
    ///
    /// # Errors
    /// What mkdir(2) and open(2) report.
    pub fn create(path: &Path) -> io::Result<Self> {
        match fs::create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Self::open(path),
        }
    }

    /// Opens an existing group.
    ///
    /// # Errors
    /// What open(2) and fstat(2) report.
    pub fn open(path: &Path) -> io::Result<Self> {
        let dir = File::open(path)?;
        let id = dir.metadata()?.ino();
        Ok(Self { path: path.to_owned(), dir, id })
    }

    /// The id that the kernel reports for its members.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves process `pid` in. The caller checks afterwards, by pidfd, that it was the one meant.
    ///
    /// # Errors
    /// `ESRCH` for no such process, `EACCES` where the common ancestor is not ours.
    pub fn enter(&self, pid: u32) -> io::Result<()> {
        fs::OpenOptions::new()
            .write(true)
            .open(self.path.join("cgroup.procs"))?
            .write_all(pid.to_string().as_bytes())
    }

    /// Kills every member, also those that are forking just now (Linux 5.14).
    ///
    /// # Errors
    /// `NotFound` on older kernels or when the group is gone.
    pub fn kill(&self) -> io::Result<()> {
        fs::OpenOptions::new().write(true).open(self.path.join("cgroup.kill"))?.write_all(b"1")
    }

    /// Sends `signal` to each member, once; racing forks may be missed (use [`Cgroup::kill`] to be
    /// sure).
    ///
    /// # Errors
    /// What reading the member list reports.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        for pid in self.members()? {
            // Opened by number and checked to be a member still: the number alone may be reused.
            let Ok(process) = super::pidfd::PidFd::open(pid) else { continue };
            if process.info().is_ok_and(|info| info.cgroup_id == self.id) {
                // A process that has just ended needs no signal.
                let _gone = process.signal(signal);
            }
        }
        Ok(())
    }

    /// Process ids of the members.
    ///
    /// # Errors
    /// What reading `cgroup.procs` reports.
    pub fn members(&self) -> io::Result<Vec<u32>> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Waits until no process is in the group or below it, at most `limit`; whether it is empty.
    pub fn empty_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let Ok(mut events) = File::open(self.path.join("cgroup.events")) else {
            // Gone, hence empty: a populated group cannot be removed.
            return !self.path.exists();
        };
        loop {
            let mut text = String::new();
            if events.rewind().and_then(|()| events.read_to_string(&mut text)).is_err() {
                return !self.path.exists();
            }
            if text.lines().any(|line| line == "populated 0") {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // The kernel signals a change by POLLPRI; a short bound covers what it does not.
            let millis = u16::try_from(left.as_millis().clamp(1, 100)).unwrap_or(100);
            let mut fds = [nix::poll::PollFd::new(events.as_fd(), nix::poll::PollFlags::POLLPRI)];
            let _woken = nix::poll::poll(&mut fds, millis);
        }
    }

    /// Removes the group and the empty groups below it.
    ///
    /// # Errors
    /// `EBUSY` while a process is in one of them.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.path)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Removes the group at `path` with all groups below it; one that is gone already is fine.
///
/// # Errors
/// `EBUSY` while a process is in one of them.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            assert_ne!(std::env::var("REQUIRE_ALL_TESTS").as_deref(), Ok("1"), "needs root");
            eprintln!("NOT RUN: making a cgroup needs root");
        }
        root
    }

    #[test]
    fn a_member_is_seen_killed_and_the_group_removed() {
        if !as_root() {
            return;
        }
        let path = hierarchy_root().unwrap().join(format!("sr-unit-{}", std::process::id()));
        let group = Cgroup::create(&path).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let fd = super::super::pidfd::PidFd::open(child.id()).unwrap();
        group.enter(child.id()).unwrap();
        assert_eq!(fd.info().unwrap().cgroup_id, group.id());
        assert_eq!(group.members().unwrap(), vec![child.id()]);
        assert!(!group.empty_within(Duration::ZERO));
        assert!(group.remove().is_err());
        group.kill().unwrap();
        child.wait().unwrap();
        assert!(group.empty_within(Duration::from_secs(60)));
        group.remove().unwrap();
        assert!(!path.exists());
    }
}
