//! Who asks: from the thread id of a FUSE request to the principal that launched it.
//!
//! Invariant: facts come from the kernel while the request is unanswered, so the thread can neither
//! exit nor exec meanwhile. Danger: ids are reused, names are forgeable; neither grants anything.
#![forbid(unsafe_code)]

pub mod attestor;
pub mod resolver;

/// What the kernel says of a request. Untrusted until attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Thread id in our pid namespace; 0 when the caller is not visible there.
    pub tid: u32,
    /// Filesystem uid, in our user namespace.
    pub uid: u32,
    /// Filesystem gid.
    pub gid: u32,
}

/// What is known of a caller's process while its request is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Process id, for the record alone.
    pub tgid: u32,
    /// Id of its cgroup in the v2 hierarchy; `None` where there is no hierarchy.
    pub cgroup_id: Option<u64>,
}

/// Why a request cannot be laid at a process's door. All of them deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unattributable {
    /// The thread is gone or outside our pid namespace.
    #[error("the calling thread is not visible here")]
    Invisible,
    /// A thread of the kernel: a loop device, nfsd, write-back.
    #[error("the caller is a thread of the kernel")]
    Kernel,
    /// An io_uring poller: the request shows who made the ring, not who uses it.
    #[error("the caller is an io_uring polling thread")]
    RingPoller,
}
