//! Lengths of files that the kernel was told.
//!
//! The kernel appends where it believes that a file ends, and may believe an earlier answer: one to a
//! creation that found the file made by another process, or of before it forgot the file, counts
//! although others have written since (fuse_create_open, fuse_iget in fs/fuse of Linux 6.18).
//! Invariant: an append at such a length goes to the end. Danger: `RWF_NOAPPEND` at an offset that was
//! the file's length once is taken for an append; no flag of the request tells the two apart.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

/// So many of each file are kept.
const KEPT: usize = 16;
/// Files; with more of them those are forgotten that were told of first.
const MAX_FILES: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Lengths {
    told: HashMap<u64, VecDeque<u64>>,
    order: VecDeque<u64>,
}

impl Lengths {
    /// The kernel believes that a file is so long, or may do so.
    pub(super) fn tell(&mut self, inode: u64, len: u64) {
        if !self.told.contains_key(&inode) {
            if self.order.len() >= MAX_FILES
                && let Some(first) = self.order.pop_front()
            {
                self.told.remove(&first);
            }
            self.order.push_back(inode);
        }
        let told = self.told.entry(inode).or_default();
        if told.back() != Some(&len) {
            told.push_back(len);
            if told.len() > KEPT {
                told.pop_front();
            }
        }
    }

    /// Whether it may.
    pub(super) fn has(&self, inode: u64, len: u64) -> bool {
        self.told.get(&inode).is_some_and(|told| told.contains(&len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lengths_of_the_last_files_are_known() {
        let mut lengths = Lengths::default();
        for len in [0, 0, 5, 5, 9] {
            lengths.tell(1, len);
        }
        assert!([0, 5, 9].iter().all(|len| lengths.has(1, *len)));
        assert!(!lengths.has(1, 7) && !lengths.has(2, 5));
        (0..100).for_each(|len| lengths.tell(1, len));
        assert!(lengths.has(1, 99) && lengths.has(1, 84) && !lengths.has(1, 83));
        (0..3 * MAX_FILES as u64).for_each(|inode| lengths.tell(inode + 10, 1));
        assert!(!lengths.has(1, 99) && lengths.has(3 * MAX_FILES as u64, 1));
        assert!(lengths.told.len() <= MAX_FILES && lengths.order.len() <= MAX_FILES);
    }
}
