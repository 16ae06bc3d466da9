//! Counts the kernel's requests by kind, so that a round trip too many is seen.
//!
//! Invariant: every request that wants an answer is counted once, when it arrives. Names of
//! operations are those of `enum fuse_opcode`, `include/uapi/linux/fuse.h`, in lower case.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `FUSE_ACCESS`.
    Access,
    /// `FUSE_FLUSH`.
    Flush,
    /// `FUSE_GETATTR`.
    Getattr,
    /// `FUSE_GETXATTR` and `FUSE_LISTXATTR`.
    Getxattr,
    /// `FUSE_LOOKUP`.
    Lookup,
    /// `FUSE_OPEN`.
    Open,
    /// `FUSE_OPENDIR`.
    Opendir,
    /// Any that is refused or says nothing about secrets.
    Other,
    /// `FUSE_READ`.
    Read,
    /// `FUSE_READDIR`.
    Readdir,
    /// `FUSE_RELEASE`.
    Release,
    /// `FUSE_RELEASEDIR`.
    Releasedir,
    /// `FUSE_WRITE`.
    Write,
}

impl Operation {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::Access,
        Self::Flush,
        Self::Getattr,
        Self::Getxattr,
        Self::Lookup,
        Self::Open,
        Self::Opendir,
        Self::Other,
        Self::Read,
        Self::Readdir,
        Self::Release,
        Self::Releasedir,
        Self::Write,
    ];

    /// Its name in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Flush => "flush",
            Self::Getattr => "getattr",
            Self::Getxattr => "getxattr",
            Self::Lookup => "lookup",
            Self::Open => "open",
            Self::Opendir => "opendir",
            Self::Other => "other",
            Self::Read => "read",
            Self::Readdir => "readdir",
            Self::Release => "release",
            Self::Releasedir => "releasedir",
            Self::Write => "write",
        }
    }
}

/// The counters of one worker.
#[derive(Debug, Default)]
pub struct Requests {
    counts: [AtomicU64; Operation::ALL.len()],
}

impl Requests {
    /// Counts one request.
    pub fn count(&self, operation: Operation) {
        self.counts[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many of this kind arrived.
    pub fn of(&self, operation: Operation) -> u64 {
        self.counts[operation as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_a_counter_and_a_name_of_its_own() {
        let requests = Requests::default();
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
            for _ in 0..=index {
                requests.count(operation);
            }
        }
        let mut words = std::collections::BTreeSet::new();
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(requests.of(operation), index as u64 + 1);
            assert!(words.insert(operation.word()));
        }
    }
}
