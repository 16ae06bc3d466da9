//! Windows of needles: which places of a text have one of them, and whose it is.
//!
//! Invariant: each place, in strides, that has an entered window is reported, wherever the text begins
//! in its stream. The tables are in the order of the hashes, as the filter's words are, so that what
//! is near in one is near in the others. See `sys::bloom`.
#![forbid(unsafe_code)]

use crate::sys::bloom::{Filter, Seed, fetch, share};

/// From so many windows on tables are larger than the processor's caches.
const PARTED_WINDOWS: usize = 1 << 18;

/// So many places are looked into together.
const TOGETHER: usize = 16;

/// A window's hash, and whose it is.
pub(super) type Owned = (u32, u32);

/// A place of a text, and the hash of its window or whose that is.
type Place = (usize, u32);

/// Windows that are probed at one stride.
#[derive(Default)]
pub(super) struct Windows {
    stride: usize,
    filter: Filter,
    /// Where the entries of each bucket begin; one more at the end.
    buckets: Vec<u32>,
    entries: Vec<Owned>,
}

/// Windows in the order of their hashes' first bits, so that their buckets are near each other.
fn parted(windows: &[Owned]) -> Vec<Owned> {
    const PARTS: usize = 256;
    let part = |hash: u32| (hash >> 24) as usize;
    let mut next = [0; PARTS + 1];
    for (hash, _) in windows {
        next[part(*hash) + 1] += 1;
    }
    for at in 0..PARTS {
        next[at + 1] += next[at];
    }
    let mut ordered = vec![(0, 0); windows.len()];
    for window in windows {
        let place = &mut next[part(window.0)];
        ordered[*place] = *window;
        *place += 1;
    }
    ordered
}

impl Windows {
    pub(super) fn build(seed: Seed, stride: usize, mut windows: Vec<Owned>) -> Self {
        if windows.len() > PARTED_WINDOWS {
            windows = parted(&windows);
        }
        let mut filter = Filter::with_capacity(seed, windows.len());
        let count = (windows.len() / 2).max(8);
        let mut buckets = vec![0_u32; count + 1];
        for (hash, _) in &windows {
            filter.insert(*hash);
            buckets[share(*hash, count) + 1] += 1;
        }
        for at in 0..count {
            buckets[at + 1] += buckets[at];
        }
        let mut entries = vec![(0, 0); windows.len()];
        for window in windows {
            // Where its bucket begins moves on with each, to where the next begins.
            let place = &mut buckets[share(window.0, count)];
            entries[*place as usize] = window;
            *place += 1;
        }
        buckets.copy_within(..count, 1);
        buckets[0] = 0;
        Self { stride, filter, buckets, entries }
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        self.filter.size() + self.buckets.len() * 4 + self.entries.len() * size_of::<Owned>()
    }

    /// Calls `each` with the places in `text`, from `from` on, that have an entered window, and whose
    /// it is, some together and in order. `at` is the stream's own count of the text's first byte:
    /// places are probed where that is a multiple of the stride, so that cuts do not matter.
    pub(super) fn find(&self, text: &[u8], from: usize, at: u64, each: &mut dyn FnMut(&[Place])) {
        let phase = ((at + from as u64) % self.stride as u64) as usize;
        let first = from + (self.stride - phase) % self.stride;
        let (mut waiting, mut count) = ([(0, 0); TOGETHER], 0);
        let mut passed = |at: usize, hash: u32| {
            waiting[count] = (at, hash);
            count += 1;
            if count == TOGETHER {
                self.resolve(&waiting, each);
                count = 0;
            }
        };
        match self.stride {
            8 => self.filter.probe::<8>(text, first, &mut passed),
            4 => self.filter.probe::<4>(text, first, &mut passed),
            _ => self.filter.probe::<1>(text, first, &mut passed),
        }
        if count > 0 {
            self.resolve(&waiting[..count], each);
        }
    }

    /// Whose these windows are. Tables are larger than the nearest cache: what is needed of them is asked
    /// for before any of it is looked at.
    fn resolve(&self, passed: &[Place], each: &mut dyn FnMut(&[Place])) {
        let mut ranges = [(0, 0); TOGETHER];
        for (range, (_, hash)) in ranges.iter_mut().zip(passed) {
            let bucket = share(*hash, self.buckets.len() - 1);
            *range = (self.buckets[bucket] as usize, self.buckets[bucket + 1] as usize);
            fetch(&self.entries, range.0);
        }
        let (mut found, mut count) = ([(0, 0); TOGETHER], 0);
        for ((at, hash), (from, to)) in passed.iter().zip(ranges) {
            for (_, owner) in self.entries[from..to].iter().filter(|(has, _)| has == hash) {
                found[count] = (*at, *owner);
                count += 1;
                if count == TOGETHER {
                    each(&found);
                    count = 0;
                }
            }
        }
        if count > 0 {
            each(&found[..count]);
        }
    }
}
