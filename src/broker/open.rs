//! The values behind open handles, in clear.
//!
//! Invariant: a value is here from its handle's opening to its release, and wiped when it goes. A worker
//! that did not open a handle decrypts its value anew. Danger: one lock for all would have readers of
//! different files wait for each other.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::secret::SecretBytes;

use super::{Range, Refusal};

/// Shards of the open values: readers of different files do not wait for each other.
const SHARDS: usize = 16;

/// The value behind an open handle.
struct OpenValue {
    value: Arc<SecretBytes>,
    /// The last read through the handle, if it reached the end.
    short: Option<ShortRead>,
}

/// A read that got fewer bytes than it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ShortRead {
    tid: u32,
    range: Range,
    answered: u32,
}

impl ShortRead {
    /// The read that answered `answered` bytes to `tid`, if it wanted more and got any.
    fn of(tid: u32, range: Range, answered: usize) -> Option<Self> {
        let answered = u32::try_from(answered).ok()?;
        (answered > 0 && answered < range.size).then_some(Self { tid, range, answered })
    }

    /// Whether `next` is io_uring asking for the rest of its buffer. It does so after every short
    /// read, and FUSE's direct I/O has not moved its position (`fuse_direct_IO`, seen on Linux
    /// 6.18): the caller would find the value in its buffer again and again.
    fn is_continued_by(self, tid: u32, next: Range) -> bool {
        self.tid == tid
            && self.range.offset == next.offset
            && self.range.size - self.answered == next.size
    }
}

type Shard = HashMap<u64, OpenValue>;

/// See the module.
pub(super) struct OpenValues([Mutex<Shard>; SHARDS]);

impl OpenValues {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(HashMap::new())))
    }

    fn shard(&self, handle: u64) -> MutexGuard<'_, Shard> {
        self.0[handle as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, handle: u64, value: SecretBytes) {
        self.shard(handle).insert(handle, OpenValue { value: Arc::new(value), short: None });
    }

    /// The value behind an open handle; `decrypt` is for a worker that did not open it.
    pub(super) fn value(
        &self,
        handle: u64,
        decrypt: impl FnOnce() -> Result<SecretBytes, Refusal>,
    ) -> Result<Arc<SecretBytes>, Refusal> {
        let mut shard = self.shard(handle);
        if let Some(open) = shard.get(&handle) {
            return Ok(open.value.clone());
        }
        let value = Arc::new(decrypt()?);
        shard.insert(handle, OpenValue { value: value.clone(), short: None });
        Ok(value)
    }

    /// Whether this read only repeats the handle's last one; asked once, then forgotten.
    pub(super) fn is_repeated(&self, handle: u64, tid: u32, range: Range) -> bool {
        let last = self.shard(handle).get_mut(&handle).and_then(|open| open.short.take());
        last.is_some_and(|last| last.is_continued_by(tid, range))
    }

    /// Remembers the read that is answered now, if it is short.
    pub(super) fn note_read(&self, handle: u64, tid: u32, range: Range, answered: usize) {
        let short = ShortRead::of(tid, range, answered);
        if short.is_some()
            && let Some(open) = self.shard(handle).get_mut(&handle)
        {
            open.short = short;
        }
    }

    pub(super) fn remove(&self, handle: u64) {
        self.shard(handle).remove(&handle);
    }

    /// Drops those that `keeps` does not want.
    pub(super) fn retain(&self, keeps: impl Fn(u64) -> bool) {
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|handle, _| keeps(*handle));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_threads_read_for_the_rest_of_its_buffer_is_a_repetition() {
        let range = |offset, size| Range { offset, size };
        let short = ShortRead::of(7, range(0, 4096), 31).unwrap();
        assert!(short.is_continued_by(7, range(0, 4065)));
        assert!(!short.is_continued_by(8, range(0, 4065)));
        assert!(!short.is_continued_by(7, range(0, 4096)));
        assert!(!short.is_continued_by(7, range(31, 4065)));
        // A full answer and the end of the file are followed by nothing.
        assert_eq!(ShortRead::of(7, range(0, 31), 31), None);
        assert_eq!(ShortRead::of(7, range(31, 4065), 0), None);
    }
}
