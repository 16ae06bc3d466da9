//! Hidden ranges of a file that is written, in the order of their place.
//!
//! The newest are in memory and in the runtime state; when they are many they are packed and put
//! into a file beside the store, sealed, so that a log with a secret in each of its lines costs no memory.
//! Invariant: ranges are in order and do not overlap; a pack is in its file before the head counts it.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use super::draft::Store;
use super::emit::Segment;

/// Ranges in memory, and bytes of their text, before they are packed.
pub(super) const PACK_RANGES: usize = 512;
const PACK_BYTES: usize = 128 << 10;

/// What is known of a pack without reading it.
#[derive(Clone, Copy)]
struct Pack {
    /// Where its first range begins, for writers.
    at: u64,
    /// Where its last one ends, for writers and in the store.
    end: (u64, u64),
}

/// See the module.
#[derive(Default)]
pub(super) struct Ranges {
    packs: Vec<Pack>,
    /// How many ranges are in packs.
    packed: u64,
    recent: Vec<Segment>,
    /// Bytes of text in `recent`, about.
    recent_bytes: usize,
    /// Of `recent`, what the runtime state has.
    saved: usize,
    /// The pack that was read last.
    last: Mutex<Option<(usize, Arc<Vec<Segment>>)>>,
}

/// What lies in a part of a file.
pub(super) struct Part {
    /// Where the range before it ends, for writers and in the store.
    pub before: Option<(u64, u64)>,
    pub ranges: Vec<Segment>,
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "hidden ranges of an event file do not parse")
}

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.packed == 0 && self.recent.is_empty()
    }

    pub(super) fn push(&mut self, segment: Segment) {
        self.recent_bytes += segment.raw.as_ref().map_or(0, |raw| raw.len());
        self.recent.push(segment);
    }

    /// How many there are, and how many of them are packed.
    pub(super) fn count(&self) -> (u64, u64) {
        (self.packed + self.recent.len() as u64, self.packed)
    }

    pub(super) fn packs(&self) -> u64 {
        self.packs.len() as u64
    }

    /// Those that the runtime state does not have yet, with their numbers.
    pub(super) fn unsaved(&mut self) -> impl Iterator<Item = (u64, &Segment)> {
        let from = std::mem::replace(&mut self.saved, self.recent.len());
        (self.packed + from as u64..).zip(&self.recent[from..])
    }

    /// One that the runtime state had.
    pub(super) fn add_saved(&mut self, segment: Segment) {
        self.push(segment);
        self.saved = self.recent.len();
    }

    /// Takes up the first packs of a store.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) fn load(&mut self, store: &dyn Store, packs: u64) -> io::Result<()> {
        store.keep_packs(packs)?;
        for number in 0..packs {
            let ranges = decode(&store.pack(number)?).ok_or_else(broken)?;
            self.note_pack(&ranges);
        }
        Ok(())
    }

    fn note_pack(&mut self, ranges: &[Segment]) {
        if let (Some(first), Some(last)) = (ranges.first(), ranges.last()) {
            let end = (last.at + last.len, last.stored + last.stored_len);
            self.packs.push(Pack { at: first.at, end });
            self.packed += ranges.len() as u64;
        }
    }

    /// Whether it is time to pack.
    pub(super) fn are_many(&self) -> bool {
        self.recent.len() >= PACK_RANGES || self.recent_bytes >= PACK_BYTES
    }

    /// Packs those in memory; the numbers in the runtime state that are of no use then.
    ///
    /// # Errors
    /// When the pack cannot be stored; nothing has changed then.
    pub(super) fn pack(&mut self, store: &dyn Store) -> io::Result<std::ops::Range<u64>> {
        if self.recent.is_empty() {
            return Ok(self.packed..self.packed);
        }
        store.put_pack(self.packs(), &encode(&self.recent))?;
        let from = self.packed;
        let recent = std::mem::take(&mut self.recent);
        self.note_pack(&recent);
        (self.recent_bytes, self.saved) = (0, 0);
        Ok(from..self.packed)
    }

    fn pack_at(&self, store: &dyn Store, index: usize) -> io::Result<Arc<Vec<Segment>>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, ranges)) = &*last
            && *known == index
        {
            return Ok(ranges.clone());
        }
        let ranges = Arc::new(decode(&store.pack(index as u64)?).ok_or_else(broken)?);
        *last = Some((index, ranges.clone()));
        Ok(ranges)
    }

    /// Those that have bytes from `from` on and before `to`, as writers count.
    ///
    /// # Errors
    /// When a pack cannot be read.
    pub(super) fn between(&self, store: &dyn Store, from: u64, to: u64) -> io::Result<Part> {
        let mut part = Part { before: None, ranges: Vec::new() };
        let first = self.packs.partition_point(|pack| pack.end.0 <= from);
        part.before = first.checked_sub(1).map(|index| self.packs[index].end);
        let meeting = self.packs.iter().enumerate().skip(first);
        for (index, _) in meeting.take_while(|(_, pack)| pack.at < to) {
            take(&self.pack_at(store, index)?, from, to, &mut part);
        }
        take(&self.recent, from, to, &mut part);
        Ok(part)
    }

    /// Shows all of them, one after the other.
    ///
    /// # Errors
    /// When a pack cannot be read.
    pub(super) fn each(&self, store: &dyn Store, mut each: impl FnMut(&Segment)) -> io::Result<()> {
        for number in 0..self.packs() {
            decode(&store.pack(number)?).ok_or_else(broken)?.iter().for_each(&mut each);
        }
        self.recent.iter().for_each(each);
        Ok(())
    }

    /// Puts those behind, none of which is packed.
    pub(super) fn append(&mut self, more: Self) {
        more.recent.into_iter().for_each(|segment| self.push(segment));
    }

    /// Forgets the text of those in memory; what is packed is never shown.
    pub(super) fn forget_text(&mut self) {
        for segment in &mut self.recent {
            segment.raw = None;
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn take(ranges: &[Segment], from: u64, to: u64, part: &mut Part) {
    let first = ranges.partition_point(|s| s.at + s.len <= from);
    if let Some(before) = first.checked_sub(1).map(|index| &ranges[index]) {
        part.before = Some((before.at + before.len, before.stored + before.stored_len));
    }
    part.ranges.extend(ranges[first..].iter().take_while(|s| s.at < to).cloned());
}

/// LEB128: small numbers take a byte.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn get(from: &mut &[u8]) -> Option<u64> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

const HAS_TEXT: u64 = 1;
const REMNANT: u64 = 2;
const MARKER: u64 = 4;

/// Places as distances; a text that was there before by its number.
fn encode(ranges: &[Segment]) -> Zeroizing<Vec<u8>> {
    let bytes = ranges.iter().map(|s| s.raw.as_ref().map_or(0, |raw| raw.len()) + 40).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(bytes));
    let mut texts: Vec<&[u8]> = Vec::new();
    put(&mut out, ranges.len() as u64);
    let mut end = (0, 0);
    for segment in ranges {
        put(&mut out, segment.at - end.0);
        put(&mut out, segment.len);
        put(&mut out, segment.stored - end.1);
        put(&mut out, segment.stored_len);
        end = (segment.at + segment.len, segment.stored + segment.stored_len);
        let flag = |is: bool, flag| if is { flag } else { 0 };
        let flags = flag(segment.raw.is_some(), HAS_TEXT)
            | flag(segment.is_remnant, REMNANT)
            | flag(segment.is_marker, MARKER);
        put(&mut out, flags);
        let Some(raw) = &segment.raw else { continue };
        // The same few values come again and again.
        match texts.iter().rev().take(16).position(|text| *text == raw.as_slice()) {
            Some(back) => put(&mut out, back as u64 + 1),
            None => {
                put(&mut out, 0);
                put(&mut out, raw.len() as u64);
                out.extend_from_slice(raw);
                texts.push(raw);
            }
        }
    }
    out
}

fn decode(mut from: &[u8]) -> Option<Vec<Segment>> {
    let count = get(&mut from)?;
    let mut ranges: Vec<Segment> = Vec::new();
    let mut texts: Vec<Zeroizing<Vec<u8>>> = Vec::new();
    let mut end = (0_u64, 0_u64);
    for _ in 0..count {
        let at = end.0.checked_add(get(&mut from)?)?;
        let len = get(&mut from)?;
        let stored = end.1.checked_add(get(&mut from)?)?;
        let stored_len = get(&mut from)?;
        end = (at.checked_add(len)?, stored.checked_add(stored_len)?);
        let flags = get(&mut from)?;
        let raw = match flags & HAS_TEXT {
            0 => None,
            _ => Some(match get(&mut from)? {
                0 => {
                    let len = usize::try_from(get(&mut from)?).ok()?;
                    let (text, rest) = from.split_at_checked(len)?;
                    from = rest;
                    texts.push(Zeroizing::new(text.to_vec()));
                    texts.last()?.clone()
                }
                back => {
                    let back = usize::try_from(back).ok()?;
                    texts.get(texts.len().checked_sub(back)?)?.clone()
                }
            }),
        };
        let (is_remnant, is_marker) = (flags & REMNANT != 0, flags & MARKER != 0);
        ranges.push(Segment { at, len, stored, stored_len, raw, is_remnant, is_marker });
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_pack_comes_apart_as_it_was_put_together_and_a_cut_one_does_not(
            parts in proptest::collection::vec(
                (0_u64..300, 1_u64..300, 0_u64..99_999, 0_u64..70, 0_usize..30, 0_u8..8), 1..80,
            )
        ) {
            let (mut at, mut stored) = (0, 0);
            let mut ranges = Vec::new();
            for (gap, len, stored_gap, stored_len, text, flags) in parts {
                at += gap;
                stored += stored_gap;
                let raw = (flags & 1 != 0).then(|| Zeroizing::new(vec![text as u8; text]));
                let (is_remnant, is_marker) = (flags & 2 != 0, flags & 4 != 0);
                ranges.push(Segment { at, len, stored, stored_len, raw, is_remnant, is_marker });
                at += len;
                stored += stored_len;
            }
            let packed = encode(&ranges);
            let fields = |s: &Segment| (
                (s.at, s.len, s.stored, s.stored_len),
                s.raw.as_ref().map(|raw| raw.to_vec()),
                (s.is_remnant, s.is_marker),
            );
            let back = decode(&packed).unwrap();
            prop_assert_eq!(
                back.iter().map(fields).collect::<Vec<_>>(),
                ranges.iter().map(fields).collect::<Vec<_>>()
            );
            prop_assert!(decode(&packed[..packed.len() - 1]).is_none());
        }
    }
}
