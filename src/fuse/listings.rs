//! Directories that are being read.
//!
//! Invariant: a listing is for one caller and judged anew at each request. One of a directory whose
//! names may change is taken once for each reading: names that are removed meanwhile must not shift
//! those that are still to come.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::broker::{Broker, Refusal};
use crate::fs::tree::{Listed, Tree};
use crate::identity::Caller;

/// Directories that are being read, as they were when the reading began.
#[derive(Debug, Default)]
pub(super) struct Listings {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
}

impl Listings {
    /// The number of one more.
    pub(super) fn open(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn release(&self, number: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }

    /// The listing of an open directory. A worker that did not open it takes it anew.
    pub(super) fn listing<B: Broker>(
        &self,
        tree: &Tree<B>,
        caller: Caller,
        (inode, number): (u64, u64),
        offset: u64,
    ) -> Result<Arc<Vec<Listed>>, Refusal> {
        // Judged anew each time, whatever was listed before.
        let now = tree.list(caller, inode)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get(&number) {
            Some(known) if offset > 0 && tree.is_changeable(inode) => Ok(known.clone()),
            _ => {
                let now = Arc::new(now);
                if tree.is_changeable(inode) {
                    open.insert(number, now.clone());
                }
                Ok(now)
            }
        }
    }
}
