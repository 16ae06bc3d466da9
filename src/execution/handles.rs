//! Open files, in a table that the next worker reads: a handle means the same to each of them.
//!
//! A slot is eight words: commit word, principal, inode, the request that opened it, the time of
//! its last record, flags. The commit word holds the slot's generation when it is in use, zero when
//! free; it is stored last on opening and first on releasing. A file handle is `generation << 20 |
//! slot`, so that a handle of an earlier life of the slot is not mistaken for this one. Slots are
//! taken from the lowest on, and a word of the state says how many were ever taken: the others are
//! neither read at a start nor cost memory.
//!
//! Invariant: a handle is valid exactly if its slot's commit word holds its generation.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::shm::Region;

use super::state::{
    HANDLE_BYTES, MAX_HANDLES, OFFSET_HANDLE_GENERATION, OFFSET_HANDLES, OFFSET_HANDLES_TAKEN,
    State,
};

const SLOT_BITS: u32 = 20;
const SLOTS: u32 = MAX_HANDLES as u32;
const COMMIT: usize = 0;
const PRINCIPAL: usize = 8;
const INODE: usize = 16;
const REQUEST: usize = 24;
const RECORDED_AT: usize = 32;
const FLAGS: usize = 40;
/// The file was opened for writing.
const WRITING: u64 = 1;
/// The principal number that stands for "nobody".
const NOBODY: u64 = 0;

/// One open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// Who opened it; `None` for a file that anybody may read.
    pub principal: Option<u64>,
    /// What.
    pub inode: u64,
    /// Whether it may be written through.
    pub writing: bool,
}

/// The table.
pub struct Handles {
    region: Arc<Region>,
    /// Free slots, ours alone: rebuilt from the table at each start.
    free: Mutex<Free>,
    /// Opens whose request may come again, by request id: kept until a second passes over them.
    resent: Mutex<HashMap<u64, u64>>,
}

struct Free {
    returned: Vec<u32>,
    /// The lowest slot that was never taken.
    untouched: u32,
}

fn slot_offset(slot: u32) -> usize {
    OFFSET_HANDLES + slot as usize * HANDLE_BYTES
}

impl Handles {
    /// Takes over the table.
    pub fn open(state: &State) -> Self {
        let region = state.region().clone();
        let mut returned = Vec::new();
        let mut resent = HashMap::new();
        let taken = region.load(OFFSET_HANDLES_TAKEN, Ordering::Acquire);
        // A worker before this word existed left handles without it: all slots are looked at then.
        let unknown = taken == 0 && region.load(OFFSET_HANDLE_GENERATION, Ordering::Acquire) != 0;
        let untouched = match unknown {
            true => SLOTS,
            false => u32::try_from(taken).unwrap_or(SLOTS).min(SLOTS),
        };
        // From the top, so that low slots are used first.
        for slot in (0..untouched).rev() {
            let generation = region.load(slot_offset(slot) + COMMIT, Ordering::Acquire);
            if generation == 0 {
                returned.push(slot);
            } else {
                let request = region.load(slot_offset(slot) + REQUEST, Ordering::Relaxed);
                resent.insert(request, handle_number(generation, slot));
            }
        }
        let free = Mutex::new(Free { returned, untouched });
        Self { region, free, resent: Mutex::new(resent) }
    }

    /// Opens: a request that an earlier worker carried out and did not answer gets its handle again.
    /// `None` when the table is full.
    pub fn insert(&self, handle: Handle, request: u64, is_resent: bool) -> Option<u64> {
        if is_resent {
            let resent = self.resent.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(fh) = resent.get(&request).copied()
                && self.get(fh) == Some(handle)
            {
                return Some(fh);
            }
        }
        let slot = self.take()?;
        let at = slot_offset(slot);
        let generation = self.region.fetch_add(OFFSET_HANDLE_GENERATION, 1, Ordering::AcqRel) + 1;
        self.region.store(at + PRINCIPAL, handle.principal.unwrap_or(NOBODY), Ordering::Relaxed);
        self.region.store(at + INODE, handle.inode, Ordering::Relaxed);
        self.region.store(at + REQUEST, request, Ordering::Relaxed);
        self.region.store(at + RECORDED_AT, 0, Ordering::Relaxed);
        let flags = if handle.writing { WRITING } else { 0 };
        self.region.store(at + FLAGS, flags, Ordering::Relaxed);
        self.region.store(at + COMMIT, generation, Ordering::Release);
        Some(handle_number(generation, slot))
    }

    fn take(&self) -> Option<u32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = free.returned.pop() {
            return Some(slot);
        }
        let slot = free.untouched;
        if slot >= SLOTS {
            return None;
        }
        free.untouched += 1;
        // Noted before the slot is used: a successor that does not look there would lose it.
        self.region.store(OFFSET_HANDLES_TAKEN, u64::from(free.untouched), Ordering::Release);
        Some(slot)
    }

    /// What `fh` stands for.
    pub fn get(&self, fh: u64) -> Option<Handle> {
        let at = self.valid(fh)?;
        let principal = self.region.load(at + PRINCIPAL, Ordering::Relaxed);
        let inode = self.region.load(at + INODE, Ordering::Relaxed);
        let flags = self.region.load(at + FLAGS, Ordering::Relaxed);
        let handle = Handle {
            principal: (principal != NOBODY).then_some(principal),
            inode,
            writing: flags & WRITING != 0,
        };
        // Still the same after the loads: a release in between makes them meaningless.
        self.valid(fh).map(|_| handle)
    }

    /// Every open file, by its handle.
    pub fn all(&self) -> Vec<(u64, Handle)> {
        let untouched = self.free.lock().unwrap_or_else(PoisonError::into_inner).untouched;
        let number = |slot| {
            let generation = self.region.load(slot_offset(slot) + COMMIT, Ordering::Acquire);
            handle_number(generation, slot)
        };
        (0..untouched).map(number).filter_map(|fh| Some((fh, self.get(fh)?))).collect()
    }

    /// When a read of `fh` was last recorded, in seconds since 1970; 0 for never.
    pub fn recorded_at(&self, fh: u64) -> u64 {
        self.valid(fh).map_or(0, |at| self.region.load(at + RECORDED_AT, Ordering::Relaxed))
    }

    /// Notes that a read of `fh` was recorded at `unix_secs`.
    pub fn set_recorded_at(&self, fh: u64, unix_secs: u64) {
        if let Some(at) = self.valid(fh) {
            self.region.store(at + RECORDED_AT, unix_secs, Ordering::Relaxed);
        }
    }

    /// Releases `fh`; a second release, as a resent request is, changes nothing.
    pub fn remove(&self, fh: u64) {
        let Some(at) = self.valid(fh) else { return };
        let generation = fh >> SLOT_BITS;
        // Whoever clears the word gives the slot back, once.
        if self.region.compare_exchange(at + COMMIT, generation, 0).is_ok() {
            let slot = u32::try_from(fh & ((1 << SLOT_BITS) - 1)).unwrap_or(0);
            self.free.lock().unwrap_or_else(PoisonError::into_inner).returned.push(slot);
        }
    }

    /// Files open now.
    pub fn len(&self) -> usize {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.untouched as usize - free.returned.len()
    }

    /// Whether no file is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn valid(&self, fh: u64) -> Option<usize> {
        let slot = u32::try_from(fh & ((1 << SLOT_BITS) - 1)).ok()?;
        if slot as usize >= MAX_HANDLES {
            return None;
        }
        let generation = fh >> SLOT_BITS;
        let at = slot_offset(slot);
        (generation != 0 && self.region.load(at + COMMIT, Ordering::Acquire) == generation)
            .then_some(at)
    }
}

fn handle_number(generation: u64, slot: u32) -> u64 {
    generation << SLOT_BITS | u64::from(slot)
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").field("open", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Handle = Handle { principal: Some(3), inode: 77, writing: true };

    #[test]
    fn a_handle_means_the_same_to_the_next_worker() {
        let state = State::create().unwrap();
        let fh = Handles::open(&state).insert(SAMPLE, 10, false).unwrap();
        let next = Handles::open(&state);
        assert_eq!(next.get(fh), Some(SAMPLE));
        assert_eq!(next.len(), 1);
        next.remove(fh);
        next.remove(fh);
        assert_eq!(next.get(fh), None);
        assert_eq!(next.len(), 0);
    }

    #[test]
    fn a_resent_open_gets_the_handle_that_it_had() {
        let state = State::create().unwrap();
        let fh = Handles::open(&state).insert(SAMPLE, 10, false).unwrap();
        let next = Handles::open(&state);
        assert_eq!(next.insert(SAMPLE, 10, true), Some(fh));
        assert_eq!(next.len(), 1);
        // Another file under the same number is another open.
        let other = Handle { inode: 78, ..SAMPLE };
        assert_ne!(next.insert(other, 10, true), Some(fh));
    }

    #[test]
    fn a_handle_of_an_earlier_life_of_its_slot_is_invalid() {
        let state = State::create().unwrap();
        let handles = Handles::open(&state);
        let first = handles.insert(SAMPLE, 1, false).unwrap();
        handles.remove(first);
        let second =
            handles.insert(Handle { principal: None, inode: 5, writing: false }, 2, false).unwrap();
        assert_ne!(first, second);
        assert_eq!(handles.get(first), None);
        assert_eq!(handles.get(second), Some(Handle { principal: None, inode: 5, writing: false }));
        handles.set_recorded_at(first, 9);
        assert_eq!(handles.recorded_at(second), 0);
        assert_eq!(handles.get(u64::MAX), None);
    }

    #[test]
    fn handles_of_a_worker_that_did_not_note_how_many_it_took_are_found() {
        let state = State::create().unwrap();
        let handles = Handles::open(&state);
        let fhs: Vec<_> = (0..3).map(|n| handles.insert(SAMPLE, n, false).unwrap()).collect();
        state.region().store(OFFSET_HANDLES_TAKEN, 0, Ordering::Release);
        let next = Handles::open(&state);
        assert_eq!(next.len(), 3);
        assert!(fhs.iter().all(|fh| next.get(*fh) == Some(SAMPLE)));
        let new = next.insert(SAMPLE, 9, false).unwrap();
        assert!(!fhs.contains(&new));
    }

    #[test]
    fn the_table_is_used_to_its_last_slot_and_by_the_next_worker_too() {
        let state = State::create().unwrap();
        let handles = Handles::open(&state);
        let all: Vec<_> =
            (0..MAX_HANDLES).map(|n| handles.insert(SAMPLE, n as u64, false).unwrap()).collect();
        assert_eq!(handles.insert(SAMPLE, 0, false), None);
        handles.remove(all[0]);
        handles.remove(all[MAX_HANDLES - 1]);
        let next = Handles::open(&state);
        assert_eq!(next.len(), MAX_HANDLES - 2);
        assert_eq!(next.get(all[1]), Some(SAMPLE));
        for _ in 0..2 {
            assert!(next.insert(SAMPLE, 0, false).is_some());
        }
        assert_eq!(next.insert(SAMPLE, 0, false), None);
    }
}
