//! A process as another worker can find it again.
//!
//! Danger: a process id alone names whoever has it now. Its start time and, where the kernel gives
//! one, the inode of its pidfd tell whether that is still the same process. See pidfd_open(2).
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::sys::pidfd::PidFd;
use crate::sys::proc;

/// A process as later workers can find it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Its id, meaningless without the rest.
    pub pid: u32,
    /// Inode of its pidfd, unique until the next boot; 0 where the kernel gives none.
    pub unique_id: u64,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessRef {
    /// What later workers need to find a process again.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pidfd: &PidFd) -> std::io::Result<Self> {
        let pid = pidfd.pid()?;
        let stat = proc::Stat::read(pid)?;
        // Asked again after the reading: the id was this process's all along.
        pidfd.pid()?;
        Ok(Self { pid, unique_id: pidfd.unique_id()?, start_ticks: stat.start_ticks })
    }

    /// The process itself, if it still lives.
    pub fn find(&self) -> Option<PidFd> {
        let pidfd = PidFd::open(self.pid).ok()?;
        let stat = proc::Stat::read(self.pid).ok()?;
        let same_start = stat.start_ticks == self.start_ticks;
        let same_id = self.unique_id == 0 || pidfd.unique_id().is_ok_and(|id| id == self.unique_id);
        (same_start && same_id && pidfd.is_alive()).then_some(pidfd)
    }
}
