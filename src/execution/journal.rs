//! A small map in the runtime state that survives its writer: an append-only log in two halves.
//!
//! Each change appends one entry behind the tail and then moves the tail, by one release store of a
//! word that also says which half is live. A full half is copied, live entries only, into the other,
//! and the same word switches over. A worker that dies between any two stores leaves the old tail.
//!
//! Invariant: what [`Journal::open`] reads back is exactly what was put and not removed before the
//! last returned call. One worker writes at a time; its mutex is its own memory.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::shm::Region;

use super::state::{JOURNAL_BYTES, OFFSET_JOURNAL, State};

/// The word before the entries of half 0: live half in the top bit, tail below it.
const WORD_BYTES: usize = 64;
const HALF_BIT: u64 = 1 << 63;
/// Entry header: kind (1), key length (1), flags (2, zero), value length (4).
const HEADER_BYTES: usize = 8;
/// The value length that marks a removal.
const REMOVED: u32 = u32::MAX;

/// What an entry is of. Order is the number in memory; a number is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// An execution, by id.
    Execution = 1,
    /// A principal, by number.
    Principal = 2,
    /// An inode, by number.
    Inode = 3,
    /// An exposure that the ledger has not stored durably yet.
    Exposure = 4,
    /// A single fact about the daemon.
    Fact = 5,
    /// A one-time ticket, by its digest.
    Ticket = 6,
    /// An emergency revoke that has begun, by its id.
    Revoke = 7,
    /// A run of a rotation chain, by its token.
    Rotation = 8,
    /// A number of an events directory or file.
    EventNode = 9,
    /// An event file that is being written: its head, its hidden ranges, what is collected.
    EventDraft = 10,
    /// An alert that is not delivered yet, by its place, time and number.
    Alert = 11,
    /// What was asked under an `Idempotency-Key`, by the digest of uid, verb and key.
    Answer = 12,
    /// An agent whose outputs are still to be searched, or what came of that, by its number.
    Outputs = 13,
    /// What is on record of outputs that are being searched, by the agent's number and its own.
    OutputFound = 14,
    /// A change of a name in an events directory that has begun, or is over, by its request.
    EventMove = 15,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Execution,
            2 => Self::Principal,
            3 => Self::Inode,
            4 => Self::Exposure,
            5 => Self::Fact,
            6 => Self::Ticket,
            7 => Self::Revoke,
            8 => Self::Rotation,
            9 => Self::EventNode,
            10 => Self::EventDraft,
            11 => Self::Alert,
            12 => Self::Answer,
            13 => Self::Outputs,
            14 => Self::OutputFound,
            15 => Self::EventMove,
            _ => return None,
        })
    }
}

/// What drafts of event files may use: agents must not fill what executions and pins need.
const DRAFT_SHARE: usize = CAPACITY / 2;

/// Why a change was not made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Live entries fill a half.
    #[error("the runtime state is full: {live_bytes} bytes are in use")]
    Full {
        /// Bytes of live entries.
        live_bytes: usize,
    },
    /// A key or value that the format cannot hold.
    #[error("a runtime entry is too long")]
    TooLong,
}

type Entries = BTreeMap<(Kind, Vec<u8>), Vec<u8>>;

struct Writer {
    entries: Entries,
    live_bytes: usize,
    /// Of drafts of event files.
    draft_bytes: usize,
    half: usize,
    tail: usize,
}

/// The map.
pub struct Journal {
    region: Arc<Region>,
    /// Innermost lock of the daemon: nothing else is locked while it is held.
    writer: Mutex<Writer>,
}

fn base(half: usize) -> usize {
    OFFSET_JOURNAL + half * JOURNAL_BYTES + WORD_BYTES
}

const CAPACITY: usize = JOURNAL_BYTES - WORD_BYTES;

fn entry_bytes(key: &[u8], value: &[u8]) -> usize {
    (HEADER_BYTES + key.len() + value.len()).next_multiple_of(8)
}

impl Journal {
    /// Reads back what earlier workers left.
    pub fn open(state: &State) -> Self {
        let region = state.region().clone();
        let word = region.load(OFFSET_JOURNAL, Ordering::Acquire);
        let half = usize::from(word & HALF_BIT != 0);
        let tail = usize::try_from(word & !HALF_BIT).unwrap_or(0).min(CAPACITY);
        let mut entries = Entries::new();
        let mut at = 0;
        while at + HEADER_BYTES <= tail {
            let mut header = [0_u8; HEADER_BYTES];
            region.read(base(half) + at, &mut header);
            let key_len = usize::from(header[1]);
            let value_len = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            let stored_len = if value_len == REMOVED { 0 } else { value_len as usize };
            let len = (HEADER_BYTES + key_len + stored_len).next_multiple_of(8);
            if at + len > tail {
                break;
            }
            let mut key = vec![0; key_len];
            region.read(base(half) + at + HEADER_BYTES, &mut key);
            // An entry of a newer worker's kind is kept out of sight, not misread.
            if let Some(kind) = Kind::from_byte(header[0]) {
                if value_len == REMOVED {
                    entries.remove(&(kind, key));
                } else {
                    let mut value = vec![0; stored_len];
                    region.read(base(half) + at + HEADER_BYTES + key_len, &mut value);
                    entries.insert((kind, key), value);
                }
            }
            at += len;
        }
        let live_bytes = entries.iter().map(|((_, key), value)| entry_bytes(key, value)).sum();
        let draft_bytes = entries
            .iter()
            .filter(|((kind, _), _)| *kind == Kind::EventDraft)
            .map(|((_, key), value)| entry_bytes(key, value))
            .sum();
        let writer = Writer { entries, live_bytes, draft_bytes, half, tail };
        Self { region, writer: Mutex::new(writer) }
    }

    /// Sets `key` of `kind` to `value`.
    ///
    /// # Errors
    /// See [`Error`]; nothing has changed then.
    pub fn put(&self, kind: Kind, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let key_len = u8::try_from(key.len()).map_err(|_| Error::TooLong)?;
        let value_len =
            u32::try_from(value.len()).ok().filter(|l| *l != REMOVED).ok_or(Error::TooLong)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let len = entry_bytes(key, value);
        self.make_room(&mut writer, len)?;
        self.append(&mut writer, kind, key_len, value_len, key, value);
        let old = writer.entries.insert((kind, key.to_vec()), value.to_vec());
        let old_len = old.map_or(0, |old| entry_bytes(key, &old));
        writer.live_bytes += len;
        writer.live_bytes -= old_len;
        if kind == Kind::EventDraft {
            writer.draft_bytes += len;
            writer.draft_bytes -= old_len;
        }
        Ok(())
    }

    /// Removes `key` of `kind`; one that is not there is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn remove(&self, kind: Kind, key: &[u8]) -> Result<(), Error> {
        let key_len = u8::try_from(key.len()).map_err(|_| Error::TooLong)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let map_key = (kind, key.to_vec());
        let Some(old) = writer.entries.get(&map_key) else { return Ok(()) };
        let old_len = entry_bytes(key, old);
        self.make_room(&mut writer, entry_bytes(key, &[]))?;
        self.append(&mut writer, kind, key_len, REMOVED, key, &[]);
        writer.entries.remove(&map_key);
        writer.live_bytes -= old_len;
        if kind == Kind::EventDraft {
            writer.draft_bytes -= old_len;
        }
        Ok(())
    }

    /// Whether drafts of event files use their share: what would make more of them is to be refused,
    /// what completes them is not.
    pub fn is_crowded(&self) -> bool {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.draft_bytes > DRAFT_SHARE
    }

    /// The value of `key`.
    pub fn get(&self, kind: Kind, key: &[u8]) -> Option<Vec<u8>> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.entries.get(&(kind, key.to_vec())).cloned()
    }

    /// Entries of `kind` whose key begins so.
    pub fn below(&self, kind: Kind, start: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer
            .entries
            .range((kind, start.to_vec())..)
            .take_while(|((k, key), _)| *k == kind && key.starts_with(start))
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }

    /// The numbers that keys of `kind` begin with, each once.
    pub fn heads(&self, kind: Kind) -> Vec<u64> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut heads: Vec<u64> = writer
            .entries
            .range((kind, Vec::new())..)
            .take_while(|((k, _), _)| *k == kind)
            .filter_map(|((_, key), _)| Some(u64::from_be_bytes(*key.first_chunk()?)))
            .collect();
        heads.dedup();
        heads
    }

    /// All entries of `kind`, by key.
    pub fn all(&self, kind: Kind) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.some(kind, usize::MAX)
    }

    /// The first entries of `kind`, by key, at most `limit`.
    pub fn some(&self, kind: Kind, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer
            .entries
            .range((kind, Vec::new())..)
            .take_while(|((k, _), _)| *k == kind)
            .take(limit)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect()
    }

    fn append(
        &self,
        writer: &mut Writer,
        kind: Kind,
        key_len: u8,
        value_len: u32,
        key: &[u8],
        value: &[u8],
    ) {
        let at = base(writer.half) + writer.tail;
        let mut header = [0_u8; HEADER_BYTES];
        header[0] = kind as u8;
        header[1] = key_len;
        header[4..].copy_from_slice(&value_len.to_ne_bytes());
        self.region.write(at, &header);
        self.region.write(at + HEADER_BYTES, key);
        self.region.write(at + HEADER_BYTES + key.len(), value);
        writer.tail += entry_bytes(key, value);
        self.publish(writer);
    }

    fn publish(&self, writer: &Writer) {
        let half = if writer.half == 1 { HALF_BIT } else { 0 };
        self.region.store(OFFSET_JOURNAL, half | writer.tail as u64, Ordering::Release);
    }

    /// Makes room for `len` bytes behind the tail, by compacting into the other half if need be.
    fn make_room(&self, writer: &mut Writer, len: usize) -> Result<(), Error> {
        if writer.tail + len <= CAPACITY {
            return Ok(());
        }
        // A quarter stays free, else every change would compact.
        if writer.live_bytes + len > CAPACITY / 4 * 3 {
            return Err(Error::Full { live_bytes: writer.live_bytes });
        }
        let half = 1 - writer.half;
        let mut at = 0;
        for ((kind, key), value) in &writer.entries {
            let mut header = [0_u8; HEADER_BYTES];
            header[0] = *kind as u8;
            // Both lengths were checked when the entry was put.
            header[1] = u8::try_from(key.len()).map_err(|_| Error::TooLong)?;
            let value_len = u32::try_from(value.len()).map_err(|_| Error::TooLong)?;
            header[4..].copy_from_slice(&value_len.to_ne_bytes());
            self.region.write(base(half) + at, &header);
            self.region.write(base(half) + at + HEADER_BYTES, key);
            self.region.write(base(half) + at + HEADER_BYTES + key.len(), value);
            at += entry_bytes(key, value);
        }
        writer.half = half;
        writer.tail = at;
        self.publish(writer);
        Ok(())
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_new_worker_reads_what_the_old_one_put() {
        let state = State::create().unwrap();
        let journal = Journal::open(&state);
        journal.put(Kind::Execution, b"a", b"one").unwrap();
        journal.put(Kind::Execution, b"b", b"two").unwrap();
        journal.put(Kind::Execution, b"a", b"three").unwrap();
        journal.put(Kind::Inode, b"a", b"").unwrap();
        journal.remove(Kind::Execution, b"b").unwrap();
        let again = Journal::open(&state);
        assert_eq!(again.all(Kind::Execution), vec![(b"a".to_vec(), b"three".to_vec())]);
        assert_eq!(again.get(Kind::Inode, b"a"), Some(Vec::new()));
        assert_eq!(again.get(Kind::Execution, b"b"), None);
    }

    #[test]
    fn an_entry_whose_tail_was_not_moved_is_not_there() {
        let state = State::create().unwrap();
        let journal = Journal::open(&state);
        journal.put(Kind::Fact, b"k", b"v").unwrap();
        let word = state.region().load(OFFSET_JOURNAL, Ordering::Acquire);
        journal.put(Kind::Fact, b"k", b"w").unwrap();
        // As if the writer had died before the last store.
        state.region().store(OFFSET_JOURNAL, word, Ordering::Release);
        assert_eq!(Journal::open(&state).get(Kind::Fact, b"k").unwrap(), b"v");
    }

    #[test]
    fn a_full_half_is_compacted_and_too_much_is_refused() {
        let state = State::create().unwrap();
        let journal = Journal::open(&state);
        let value = vec![7; 10 << 20];
        for round in 0..40_u8 {
            journal.put(Kind::Fact, &[round % 3], &value).unwrap();
        }
        assert_eq!(Journal::open(&state).all(Kind::Fact).len(), 3);
        let mut refused = None;
        for key in 10..20_u8 {
            if let Err(error) = journal.put(Kind::Fact, &[key], &value) {
                refused = Some(error);
                break;
            }
        }
        assert!(matches!(refused, Some(Error::Full { .. })));
        assert_eq!(Journal::open(&state).get(Kind::Fact, &[0]).unwrap(), value);
    }

    #[test]
    fn drafts_of_event_files_leave_room_for_everything_else() {
        let state = State::create().unwrap();
        let journal = Journal::open(&state);
        let value = vec![7; 1 << 20];
        let put = |journal: &Journal, n: u8| journal.put(Kind::EventDraft, &[n], &value).unwrap();
        let mut count = 0;
        while !journal.is_crowded() {
            put(&journal, count);
            count += 1;
        }
        assert!((40..50).contains(&count), "{count}");
        journal.put(Kind::Execution, b"x", &value).unwrap();
        // The next worker counts as this one; what is removed is free again.
        let next = Journal::open(&state);
        assert!(next.is_crowded());
        next.remove(Kind::EventDraft, &[0]).unwrap();
        assert!(!next.is_crowded());
        // Again and again, without bound.
        for n in 0..300_usize {
            put(&next, 1 + (n % 30) as u8);
            assert!(!next.is_crowded());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_read_back_is_what_a_map_holds(
            steps in proptest::collection::vec((0_u8..8, proptest::option::of(0_usize..300)), 1..60)
        ) {
            let state = State::create().unwrap();
            let journal = Journal::open(&state);
            let mut model = BTreeMap::new();
            for (key, len) in steps {
                match len {
                    Some(len) => {
                        journal.put(Kind::Fact, &[key], &vec![key; len]).unwrap();
                        model.insert(vec![key], vec![key; len]);
                    }
                    None => {
                        journal.remove(Kind::Fact, &[key]).unwrap();
                        model.remove(&vec![key]);
                    }
                }
            }
            let read: BTreeMap<_, _> = Journal::open(&state).all(Kind::Fact).into_iter().collect();
            prop_assert_eq!(read, model);
        }
    }
}
