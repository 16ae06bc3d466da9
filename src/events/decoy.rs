//! A file of no use that is written where a write of the store has to wait for what follows.
//!
//! What is held back for a value of others would be told by the clock: nothing goes to the disk then,
//! and a later sync has nothing to do. Invariant: a write that is held back costs the store what it
//! would cost if it were not. Danger: a writer that guesses the beginning of a foreign value byte by
//! byte, and takes the time. Tested in `tests.rs` and `tests/events/timing.rs`.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::folder::{Folder, STAGING, Stored};

/// It begins anew when it is so long.
const MAX_BYTES: u64 = 1 << 20;
/// Bytes that are read without asking for memory.
const FEW_BYTES: usize = 256;
/// What a file system makes room for at once.
const PAGE_BYTES: u64 = 4096;

/// See the module.
pub(super) struct Decoy {
    /// None where there was no room for it.
    file: Option<Stored>,
    end: Mutex<u64>,
}

impl Decoy {
    /// A file without a name, in the store's own file system.
    pub(super) fn new(folder: &Folder) -> Self {
        let path = Path::new(STAGING).join("decoy");
        // Of a worker that was killed right here.
        let _removed = folder.unlink(&path);
        let file = folder.create_private(&path).ok();
        let _removed = folder.unlink(&path);
        Self { file, end: Mutex::new(0) }
    }

    /// Takes as long as a write of so many bytes to a file that ends at `at`. That it fails is nobody's
    /// loss.
    pub(super) fn write(&self, at: u64, len: usize) {
        let Some(file) = &self.file else { return };
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let mut from = end.next_multiple_of(PAGE_BYTES);
        if from > MAX_BYTES && file.set_len(0).is_ok() {
            from = 0;
        }
        if !at.is_multiple_of(PAGE_BYTES) {
            // Into a page that is there.
            from = from.saturating_sub(PAGE_BYTES) + at % PAGE_BYTES;
        }
        if file.write_at(from, &vec![b'*'; len]).is_ok() {
            *end = from + len as u64;
        }
    }

    /// Takes as long as a read of so many bytes, which were written last.
    pub(super) fn read(&self, len: usize) {
        let Some(file) = &self.file else { return };
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut few, mut many) = ([0; FEW_BYTES], Vec::new());
        let buffer = match few.get_mut(..len) {
            Some(few) => few,
            None => {
                many.resize(len, 0);
                &mut many
            }
        };
        let _read = file.read_at(end.saturating_sub(len as u64), buffer);
    }

    /// Takes as long as making that durable.
    pub(super) fn sync(&self) {
        if let Some(file) = &self.file {
            let _synced = file.sync();
        }
    }
}
