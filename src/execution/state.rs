//! The runtime state: one memory file that the keeper owns and each worker maps in turn.
//!
//! Layout, version 1 (bytes; every word is 8 bytes, native order):
//!
//! | offset | what |
//! | --- | --- |
//! | 0 | magic, layout version |
//! | 64 | words: worker generation, INIT answered, handle generation, handles ever taken |
//! | 4096 | the kernel's INIT request: length, bytes |
//! | 16 KiB | open handles, see [`super::handles`] |
//! | then | two halves of the journal, see [`super::journal`] |
//! | last | the audit ring |
//!
//! Invariant: nothing in it is a lock, and a half-written entry is never seen: each is published by
//! one release store. It lives in memory only, and dies with the keeper.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sys::shm::Region;

/// "STRGROOM" in ASCII.
const MAGIC: u64 = u64::from_be_bytes(*b"STRGROOM");
/// Grows when the layout changes; a newer worker reads the older.
const LAYOUT_VERSION: u64 = 1;

const OFFSET_MAGIC: usize = 0;
const OFFSET_VERSION: usize = 8;
const OFFSET_GENERATION: usize = 64;
const OFFSET_INIT_ANSWERED: usize = 72;
pub(super) const OFFSET_HANDLE_GENERATION: usize = 80;
pub(super) const OFFSET_HANDLES_TAKEN: usize = 88;
const OFFSET_INIT_LEN: usize = 4096;
const OFFSET_INIT: usize = 4104;
const MAX_INIT_BYTES: usize = 8192;

pub(super) const OFFSET_HANDLES: usize = 16 << 10;
/// Open files of all agents together; the next open gets `ENFILE`.
pub const MAX_HANDLES: usize = 1 << 17;
pub(super) const HANDLE_BYTES: usize = 64;
pub(super) const OFFSET_JOURNAL: usize = OFFSET_HANDLES + MAX_HANDLES * HANDLE_BYTES;
/// Bytes of one half: 10,000 executions with 100 pins each take about a third.
pub(super) const JOURNAL_BYTES: usize = 96 << 20;
const OFFSET_RING: usize = OFFSET_JOURNAL + 2 * JOURNAL_BYTES;
/// Room for about 20,000 records that are not yet in the file.
const RING_BYTES: usize = 8 << 20;
const TOTAL_BYTES: usize = OFFSET_RING + RING_BYTES;

/// Why a memory file is not a runtime state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a state file at all.
    #[error("the runtime state has no valid header")]
    Foreign,
    /// The memory file could not be made or mapped.
    #[error("the runtime state cannot be mapped")]
    Map(#[from] io::Error),
    /// Made by a newer program.
    #[error("the runtime state has layout {found}, this program reads up to {LAYOUT_VERSION}")]
    Newer {
        /// The version in the header.
        found: u64,
    },
}

/// The mapped state.
#[derive(Debug, Clone)]
pub struct State {
    region: Arc<Region>,
}

impl State {
    /// Makes an empty state. Its pages cost memory only once they are used.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn create() -> Result<Self, Error> {
        let region = Region::create(c"strongroom-state", TOTAL_BYTES)?;
        region.store(OFFSET_VERSION, LAYOUT_VERSION, Ordering::Relaxed);
        region.store(OFFSET_MAGIC, MAGIC, Ordering::Release);
        Ok(Self { region: Arc::new(region) })
    }

    /// Takes over an existing state.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn adopt(region: Region) -> Result<Self, Error> {
        if region.len() < OFFSET_HANDLES || region.load(OFFSET_MAGIC, Ordering::Acquire) != MAGIC {
            return Err(Error::Foreign);
        }
        let found = region.load(OFFSET_VERSION, Ordering::Relaxed);
        if found > LAYOUT_VERSION {
            return Err(Error::Newer { found });
        }
        if region.len() != TOTAL_BYTES {
            return Err(Error::Foreign);
        }
        Ok(Self { region: Arc::new(region) })
    }

    /// The memory itself, for the parts that live in it.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Offset and length of the audit ring in [`State::region`].
    pub fn ring(&self) -> (usize, usize) {
        (OFFSET_RING, RING_BYTES)
    }

    /// Counts a worker's start and returns its number, from 1.
    pub fn next_generation(&self) -> u64 {
        self.region.fetch_add(OFFSET_GENERATION, 1, Ordering::AcqRel) + 1
    }

    /// Workers started so far.
    pub fn generation(&self) -> u64 {
        self.region.load(OFFSET_GENERATION, Ordering::Acquire)
    }

    /// Keeps the INIT request of a new mount for every worker to come.
    ///
    /// # Errors
    /// `InvalidInput` for one that is longer than any kernel sends.
    pub fn reset_init(&self, request: &[u8]) -> io::Result<()> {
        if request.len() > MAX_INIT_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "INIT is too long"));
        }
        self.region.store(OFFSET_INIT_ANSWERED, 0, Ordering::Release);
        self.region.write(OFFSET_INIT, request);
        self.region.store(OFFSET_INIT_LEN, request.len() as u64, Ordering::Release);
        Ok(())
    }

    /// The kernel's INIT request, if there was one.
    pub fn init(&self) -> Option<Vec<u8>> {
        let len = usize::try_from(self.region.load(OFFSET_INIT_LEN, Ordering::Acquire)).ok()?;
        if len == 0 || len > MAX_INIT_BYTES {
            return None;
        }
        let mut bytes = vec![0; len];
        self.region.read(OFFSET_INIT, &mut bytes);
        Some(bytes)
    }

    /// Whether a worker has answered the INIT.
    pub fn init_answered(&self) -> bool {
        self.region.load(OFFSET_INIT_ANSWERED, Ordering::Acquire) != 0
    }

    /// Notes that the INIT was answered.
    pub fn set_init_answered(&self) {
        self.region.store(OFFSET_INIT_ANSWERED, 1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_second_worker_finds_what_the_first_noted() {
        let first = State::create().unwrap();
        assert_eq!(first.next_generation(), 1);
        first.reset_init(b"init request").unwrap();
        assert!(!first.init_answered());
        first.set_init_answered();
        let fd = first.region().as_fd().try_clone_to_owned().unwrap();
        let second = State::adopt(Region::map(fd).unwrap()).unwrap();
        assert_eq!(second.next_generation(), 2);
        assert_eq!(second.init().unwrap(), b"init request");
        assert!(second.init_answered());
    }

    #[test]
    fn a_foreign_or_newer_memory_file_is_refused() {
        let foreign = Region::create(c"x", 1 << 20).unwrap();
        assert!(matches!(State::adopt(foreign), Err(Error::Foreign)));
        let newer = Region::create(c"x", 1 << 20).unwrap();
        newer.store(OFFSET_VERSION, LAYOUT_VERSION + 1, Ordering::Relaxed);
        newer.store(OFFSET_MAGIC, MAGIC, Ordering::Release);
        assert!(matches!(State::adopt(newer), Err(Error::Newer { found: 2 })));
    }
}
