//! Records on their way to the file, in memory that outlives the worker.
//!
//! Layout: words `pushed` (bytes ever pushed) and `tail` (bytes that are done with), then the last
//! 1,024 pairs of sequence number and request id, then the ring. An entry is length, sequence
//! number, request id, and bytes, padded to 8. `pushed` is stored last, with release: an entry is
//! there as a whole or not at all. What is in the file is known from the file alone, so nothing is
//! written twice.
//!
//! Invariant: a pushed entry is overwritten only after it is in the file.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::shm::Region;

const PUSHED: usize = 0;
/// Position of the oldest entry that is not yet known to be in the file.
const TAIL: usize = 8;
/// Number of the last record in the file, and its link: a file removed while no worker runs must not
/// make the count start again. A number of 0 says that nothing is known.
const HEAD_SEQ: usize = 16;
const HEAD_LINK: usize = 24;
/// Requests that are remembered after their records have gone to the file: far more than can be in
/// work at once.
const REQUESTS: u64 = 1024;
const REQUEST_PAIRS: usize = 64;
const ENTRIES: usize = REQUEST_PAIRS + REQUESTS as usize * 16;
const HEADER_BYTES: usize = 24;
/// A length that says: the rest up to the ring's end is empty.
const WRAP: u64 = u64::MAX;

/// No room: the file does not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring of records is full")]
pub struct Full;

/// One record in the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub seq: u64,
    /// The FUSE request behind it, 0 for none.
    pub request: u64,
    /// Its fields, in two parts that `seq` comes between.
    pub bytes: Vec<u8>,
}

/// What stands before an entry's bytes.
struct Header {
    at: usize,
    len: usize,
    seq: u64,
}

struct Position {
    pushed: u64,
    next_seq: u64,
}

/// The ring.
pub struct Ring {
    region: Arc<Region>,
    offset: usize,
    capacity: usize,
    /// This worker's writers, one at a time.
    position: Mutex<Position>,
}

impl Ring {
    /// Takes over the ring at `offset` of `region`. `in_file` is the number of the last record that
    /// the file holds, 0 for none.
    pub fn open(region: Arc<Region>, offset: usize, len: usize, in_file: u64) -> Self {
        let capacity = (len - ENTRIES) / 8 * 8;
        let pushed = region.load(offset + PUSHED, Ordering::Acquire);
        let ring = Self {
            region,
            offset,
            capacity,
            position: Mutex::new(Position { pushed, next_seq: in_file.saturating_add(1) }),
        };
        let last = ring.unflushed().last().map_or(in_file, |entry| entry.seq.max(in_file));
        ring.position.lock().unwrap_or_else(PoisonError::into_inner).next_seq =
            last.saturating_add(1);
        ring
    }

    fn tail(&self) -> u64 {
        self.region.load(self.offset + TAIL, Ordering::Acquire)
    }

    fn at(&self, position: u64) -> usize {
        self.offset + ENTRIES + usize::try_from(position % self.capacity as u64).unwrap_or(0)
    }

    /// Pushes a record; when this returns it survives the worker.
    ///
    /// # Errors
    /// [`Full`].
    pub fn push(&self, bytes: &[u8], request: u64) -> Result<u64, Full> {
        let need = (HEADER_BYTES + bytes.len()).next_multiple_of(8) as u64;
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pushed = position.pushed;
        let to_end = self.capacity as u64 - pushed % self.capacity as u64;
        let skipped = if to_end < need { to_end } else { 0 };
        if pushed + skipped + need - self.tail() > self.capacity as u64 {
            return Err(Full);
        }
        if skipped > 0 {
            self.region.store(self.at(pushed), WRAP, Ordering::Relaxed);
            pushed += skipped;
        }
        let at = self.at(pushed);
        let seq = position.next_seq;
        self.region.store(at, bytes.len() as u64, Ordering::Relaxed);
        self.region.store(at + 8, seq, Ordering::Relaxed);
        self.region.store(at + 16, request, Ordering::Relaxed);
        self.region.write(at + HEADER_BYTES, bytes);
        for (offset, value) in pair_stores(seq, request) {
            // Release keeps them in this order for the worker that comes after a kill.
            self.region.store(self.offset + offset, value, Ordering::Release);
        }
        position.pushed = pushed + need;
        position.next_seq = seq + 1;
        self.region.store(self.offset + PUSHED, position.pushed, Ordering::Release);
        Ok(seq)
    }

    /// The number of the newest record, 0 for none.
    pub fn last_seq(&self) -> u64 {
        self.position.lock().unwrap_or_else(PoisonError::into_inner).next_seq - 1
    }

    /// Each entry between two positions: where it ends, and its header. None where the positions
    /// cannot be ours.
    fn walk(&self, mut from: u64, to: u64, mut each: impl FnMut(u64, Header)) {
        if !from.is_multiple_of(8) || to.saturating_sub(from) > self.capacity as u64 {
            return;
        }
        while from < to {
            let at = self.at(from);
            let len = self.region.load(at, Ordering::Relaxed);
            let to_end = self.capacity as u64 - from % self.capacity as u64;
            if len == WRAP || to_end < HEADER_BYTES as u64 {
                from += to_end;
                continue;
            }
            // An entry never goes over the ring's end.
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len as u64 > to_end - HEADER_BYTES as u64 {
                return;
            }
            from += (HEADER_BYTES + len).next_multiple_of(8) as u64;
            each(from, Header { at, len, seq: self.region.load(at + 8, Ordering::Relaxed) });
        }
    }

    /// Bytes that wait for the file, and what fits.
    pub fn filled(&self) -> (u64, u64) {
        let pushed = self.region.load(self.offset + PUSHED, Ordering::Acquire);
        (pushed.saturating_sub(self.tail()), self.capacity as u64)
    }

    /// Records that are not yet known to be in the file, oldest first.
    pub fn unflushed(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let pushed = self.region.load(self.offset + PUSHED, Ordering::Acquire);
        self.walk(self.tail(), pushed, |_, header| {
            let mut bytes = vec![0; header.len];
            self.region.read(header.at + HEADER_BYTES, &mut bytes);
            let request = self.region.load(header.at + 16, Ordering::Relaxed);
            entries.push(Entry { seq: header.seq, request, bytes });
        });
        entries
    }

    /// Frees the room of records up to number `seq`, which are in the file.
    pub fn flushed(&self, seq: u64) {
        let mut tail = self.tail();
        let pushed = self.region.load(self.offset + PUSHED, Ordering::Acquire);
        self.walk(tail, pushed, |end, header| {
            if header.seq <= seq {
                tail = end;
            }
        });
        self.region.store(self.offset + TAIL, tail, Ordering::Release);
    }

    /// Keeps the number and the link of the last record in the file, for the next worker.
    pub fn remember(&self, seq: u64, link: &[u8; 32]) {
        // A worker killed in between leaves "nothing known", never a number with another's link.
        self.region.store(self.offset + HEAD_SEQ, 0, Ordering::SeqCst);
        for (index, word) in link.chunks_exact(8).enumerate() {
            let word = word.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.region.store(self.offset + HEAD_LINK + index * 8, word, Ordering::Release);
        }
        self.region.store(self.offset + HEAD_SEQ, seq, Ordering::Release);
    }

    /// What an earlier worker kept with [`Ring::remember`] in the ring at `offset` of `region`.
    pub fn remembered(region: &Region, offset: usize) -> Option<(u64, [u8; 32])> {
        let seq = region.load(offset + HEAD_SEQ, Ordering::Acquire);
        let mut link = [0; 32];
        for (index, bytes) in link.chunks_exact_mut(8).enumerate() {
            let word = region.load(offset + HEAD_LINK + index * 8, Ordering::Acquire);
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        (seq != 0).then_some((seq, link))
    }

    /// Requests of the last records, in the file or not. A pair whose record was not published is
    /// of a writer that died before it.
    pub fn requests(&self) -> HashSet<u64> {
        let last = self.last_seq();
        (0..usize::try_from(REQUESTS).unwrap_or(0))
            .filter_map(|index| {
                let pair = self.offset + REQUEST_PAIRS + index * 16;
                let seq = self.region.load(pair, Ordering::Relaxed);
                let request = self.region.load(pair + 8, Ordering::Relaxed);
                (seq != 0 && seq <= last && request != 0).then_some(request)
            })
            .collect()
    }
}

/// The stores, in order, that tie a request to the record with number `seq`. The place held an older
/// record's pair, and a pair half replaced would tell the new request by the old number: a read that
/// is resent would then go unrecorded.
fn pair_stores(seq: u64, request: u64) -> [(usize, u64); 3] {
    let pair = REQUEST_PAIRS + usize::try_from(seq % REQUESTS).unwrap_or(0) * 16;
    [(pair, 0), (pair + 8, request), (pair, seq)]
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("last_seq", &self.last_seq()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = ENTRIES + 4096;

    fn region() -> Arc<Region> {
        Arc::new(Region::create(c"ring", LEN).unwrap())
    }

    #[test]
    fn a_new_worker_finds_what_was_pushed_and_goes_on_counting() {
        let region = region();
        let ring = Ring::open(region.clone(), 0, LEN, 0);
        assert_eq!(ring.push(b"one", 11), Ok(1));
        assert_eq!(ring.push(b"two", 0), Ok(2));
        let next = Ring::open(region.clone(), 0, LEN, 0);
        assert_eq!(next.unflushed().len(), 2);
        assert_eq!(next.requests(), HashSet::from([11]));
        assert_eq!(next.push(b"three", 0), Ok(3));
        next.flushed(2);
        let last = Ring::open(region, 0, LEN, 2);
        assert_eq!(last.unflushed().iter().map(|e| e.seq).collect::<Vec<_>>(), [3]);
        assert_eq!(last.last_seq(), 3);
        // Also of a record that has gone to the file.
        assert_eq!(last.requests(), HashSet::from([11]));
    }

    #[test]
    fn it_goes_round_for_ever_and_is_full_when_nobody_empties_it() {
        let ring = Ring::open(region(), 0, LEN, 0);
        for seq in 1..2_000_u64 {
            let bytes = vec![b'x'; (seq % 97) as usize];
            assert_eq!(ring.push(&bytes, seq), Ok(seq));
            let entries = ring.unflushed();
            assert_eq!(entries.last().unwrap().bytes, bytes);
            if entries.len() > 5 {
                ring.flushed(seq - 3);
            }
        }
        let mut refused = false;
        for _ in 0..200 {
            refused |= ring.push(&[0; 50], 0) == Err(Full);
        }
        assert!(refused);
        ring.flushed(ring.last_seq());
        assert!(ring.push(&[0; 50], 0).is_ok());
    }

    /// Mechanism: the pair of a record 1,024 earlier was replaced request first.
    #[test]
    fn a_push_killed_between_any_two_stores_tells_no_request_as_recorded() {
        for stored in 0..=3 {
            let region = region();
            let ring = Ring::open(region.clone(), 0, LEN, 0);
            for seq in 1..=REQUESTS {
                ring.push(b"x", 10_000 + seq).unwrap();
                ring.flushed(seq);
            }
            for (offset, value) in pair_stores(REQUESTS + 1, 7).into_iter().take(stored) {
                region.store(offset, value, Ordering::Release);
            }
            let next = Ring::open(region, 0, LEN, REQUESTS);
            assert!(!next.requests().contains(&7), "after {stored} stores");
            assert!(next.requests().contains(&10_002));
            next.push(b"x", 7).unwrap();
            assert!(next.requests().contains(&7));
        }
    }

    #[test]
    fn the_head_that_was_kept_is_told_with_its_own_link() {
        let region = region();
        assert_eq!(Ring::remembered(&region, 0), None);
        let link: [u8; 32] = std::array::from_fn(|i| i as u8);
        Ring::open(region.clone(), 0, LEN, 0).remember(9, &link);
        assert_eq!(Ring::remembered(&region, 0), Some((9, link)));
    }
}
