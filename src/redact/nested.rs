//! Values in base64 that is decoded: base64 of any of their forms, also twice.
//!
//! Runs of at least 16 characters are decoded at each of the four alignments, and what comes out is
//! searched as the text itself is. Invariant: the work is at most a constant for each character (three
//! bytes of the first depth, nine of the second), so nothing passes unseen because it is much. Danger:
//! a run that is cut may go on; what of its end could begin a value waits.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::lens::{Search, is_base64};
use super::masks::{Masks, bits, run_ends};
use super::needle::reserve;
use super::part::{Hit, Text};
use crate::sys::simd::Set;

/// Shorter runs are not decoded.
const RUN_BYTES_MIN: usize = 16;
/// How often.
const DEPTH_MAX: usize = 2;
/// Characters before what is undecided that tell how long the runs in them are, at the second depth
/// too.
const BACK_BYTES: usize = 2 * RUN_BYTES_MIN;
/// Where in a group of four characters the first byte may begin.
const ALIGNMENTS: usize = 4;

/// Characters of one run, or of a part of it.
#[derive(Clone, Copy)]
struct Run<'a> {
    chars: &'a [u8],
    /// More may follow.
    is_open: bool,
    /// It is cut by the text's end.
    is_cut: bool,
}

/// What is found, by characters of a run.
enum Found {
    Hit(Hit),
    /// From here on it may become one.
    Open(usize),
}

/// Room for what is decoded.
#[derive(Default)]
pub(super) struct Nested {
    masks: Masks<1>,
    /// Of runs that something follows, for each depth.
    batches: [Batch; DEPTH_MAX],
    /// Of the run at the text's end, for each depth.
    rooms: [Room; DEPTH_MAX],
}

/// Many decoded runs in one text, which is searched at once; what is between them is no base64.
#[derive(Default)]
struct Batch {
    bytes: Zeroizing<Vec<u8>>,
    segments: Vec<Segment>,
    masks: Masks<1>,
}

/// One run at one alignment.
struct Segment {
    /// Where it is in the batch.
    start: usize,
    end: usize,
    /// Where its first character is in what was decoded.
    from: usize,
}

#[derive(Default)]
struct Room {
    stream: Zeroizing<Vec<u8>>,
    decoded: Zeroizing<Vec<u8>>,
    masks: Masks<1>,
}

/// The first character that has a part in a byte of what is decoded, and the one after the last.
fn first(byte: usize) -> usize {
    byte * 8 / 6
}

fn after(byte: usize) -> usize {
    (byte * 8 + 7) / 6 + 1
}

impl Nested {
    /// Looks for needles in all runs of `text`; where undecided ones begin.
    pub(super) fn find(
        &mut self,
        text: Text<'_>,
        search: &dyn Search,
        each: &mut dyn FnMut(Hit),
    ) -> usize {
        let mut limit = text.bytes.len();
        let mut from_text = |start: usize, end: usize, hit: Hit| {
            if start >= text.from {
                each(Hit { start, end, literal: false, ..hit });
            }
        };
        let [outer, inner] = &mut self.batches;
        runs(text, &mut self.masks, &mut |start, end| {
            let chars = &text.bytes[start..end];
            if end < text.bytes.len() {
                outer.add(chars, start);
                return;
            }
            let run = Run { chars, is_open: !text.end, is_cut: text.end };
            decode(&mut self.rooms, run, search, &mut |found| match found {
                Found::Open(at) => limit = limit.min((start + at).max(text.from)),
                Found::Hit(hit) => from_text(start + hit.start, start + hit.end, hit),
            });
        });
        outer.find(search, &mut |from, hit| {
            from_text(from + first(hit.start), from + after(hit.end - 1), hit);
        });
        let whole = Text { bytes: &outer.bytes, from: 0, at: 0, end: true };
        runs(whole, &mut outer.masks, &mut |start, end| {
            inner.add(&outer.bytes[start..end], start);
        });
        inner.find(search, &mut |from, hit| {
            let (start, end) = (from + first(hit.start), from + after(hit.end - 1));
            if let Some(segment) = outer.segment(start) {
                let (start, end) = (start - segment.start, end - segment.start);
                from_text(segment.from + first(start), segment.from + after(end - 1), hit);
            }
        });
        [outer, inner].into_iter().for_each(Batch::forget);
        self.rooms.iter_mut().for_each(Room::forget);
        limit
    }
}

impl Batch {
    /// Decodes a run, whose first character is `from`, at each alignment.
    fn add(&mut self, chars: &[u8], from: usize) {
        let whole = chars.len() * 6 / 8;
        reserve(&mut self.bytes, ALIGNMENTS * (whole + 3));
        let begin = self.bytes.len();
        bits_of(chars, &mut self.bytes);
        let stream = self.bytes.len();
        self.segments.push(Segment { start: begin, end: begin + whole, from });
        for alignment in 1..ALIGNMENTS {
            let start = self.bytes.len();
            let len = len_of(chars.len() - alignment);
            self.bytes.resize(start + len + 1, 0);
            let (stream, room) = self.bytes.split_at_mut(start);
            shift(&stream[begin..], alignment, &mut room[..len]);
            self.segments.push(Segment { start, end: start + len, from: from + alignment });
        }
        self.bytes[begin + whole..stream].fill(0);
    }

    /// The segment with this byte of the batch.
    fn segment(&self, at: usize) -> Option<&Segment> {
        let next = self.segments.partition_point(|segment| segment.start <= at);
        self.segments.get(next.checked_sub(1)?)
    }

    /// Calls `each` with the place of the first character of a segment, and what is found in that.
    fn find(&self, search: &dyn Search, each: &mut dyn FnMut(usize, Hit)) {
        if self.bytes.is_empty() {
            return;
        }
        let text = Text { bytes: &self.bytes, from: 0, at: 0, end: true };
        search.find(text, &mut |hit| {
            let segment = self.segment(hit.start).filter(|segment| hit.end <= segment.end);
            if let Some(Segment { start, from, .. }) = segment.filter(|_| !hit.weak) {
                each(*from, Hit { start: hit.start - start, end: hit.end - start, ..hit });
            }
        });
    }

    fn forget(&mut self) {
        super::wipe(&mut self.bytes);
        self.bytes.clear();
        self.segments.clear();
    }
}

impl Room {
    fn forget(&mut self) {
        for bytes in [&mut self.stream, &mut self.decoded] {
            super::wipe(bytes);
            bytes.clear();
        }
    }
}

/// Calls `each` with all runs that are long enough, as far as they are undecided or tell of that; the
/// last may be shorter when more may follow.
fn runs(text: Text<'_>, masks: &mut Masks<1>, each: &mut dyn FnMut(usize, usize)) {
    const BASE64: [Set; 1] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = is_base64(byte as u8) as u8;
            byte += 1;
        }
        [Set::of_table(&table, 1)]
    };
    let len = text.bytes.len();
    masks.fill(text.bytes, text.from.saturating_sub(BACK_BYTES), &BASE64);
    let mut done = text.from;
    // The run that is undecided from its middle on.
    let begun = masks.run_start(0, text.from);
    if begun < text.from {
        done = masks.run_end(0, text.from);
        let is_run = done - begun >= RUN_BYTES_MIN || (done == len && !text.end);
        if is_run && done > text.from {
            each(begun, done);
        }
    }
    let (mut before, mut ends_before) = (0, 0);
    for (at, [mask]) in masks.each() {
        let ends = run_ends::<RUN_BYTES_MIN>(before, mask);
        // The sixteenth character of each run.
        for bit in bits(ends & !(ends << 1 | ends_before >> 63)) {
            if at + bit >= done + RUN_BYTES_MIN - 1 {
                let start = at + bit + 1 - RUN_BYTES_MIN;
                done = masks.run_end(0, start);
                each(start, done);
            }
        }
        (before, ends_before) = (mask, ends);
    }
    if !text.end && done < len {
        let start = masks.run_start(0, len).max(done);
        if start < len {
            each(start, len);
        }
    }
}

/// The six bits of a character, for each place in a group of four.
const BITS: [[u32; 256]; 4] = {
    let mut bits = [[0; 256]; 4];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_";
    let mut at = 0;
    while at < alphabet.len() {
        let digit = if at < 64 { at } else { at - 2 } as u32;
        let mut place = 0;
        while place < 4 {
            bits[place][alphabet[at] as usize] = digit << (26 - 6 * place);
            place += 1;
        }
        at += 1;
    }
    bits
};

/// Whole bytes of as many characters.
fn len_of(chars: usize) -> usize {
    chars * 6 / 8
}

/// All bits of `chars` (RFC 4648, both alphabets), and at least one byte of zeros behind them.
fn bits_of(chars: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let (groups, rest) = chars.as_chunks::<4>();
    out.resize(start + 3 * groups.len() + 4, 0);
    let (places, last) = out[start..].as_chunks_mut::<3>();
    let bits = |place: usize, byte: u8| BITS[place][usize::from(byte)];
    for (group, place) in groups.iter().zip(&mut *places) {
        let sum = bits(0, group[0]) | bits(1, group[1]) | bits(2, group[2]) | bits(3, group[3]);
        let [bytes @ .., _] = sum.to_be_bytes();
        *place = bytes;
    }
    let sum = rest.iter().enumerate().fold(0, |sum, (place, byte)| sum | bits(place, *byte));
    let [bytes @ .., _] = sum.to_be_bytes();
    places[groups.len()] = bytes;
    last.fill(0);
}

/// What `stream` is when its first characters are left out.
fn shift(stream: &[u8], chars: usize, out: &mut [u8]) {
    let (skip, bits) = (chars * 6 / 8, chars * 6 % 8);
    if bits == 0 {
        return out.copy_from_slice(&stream[skip..][..out.len()]);
    }
    let pairs = stream[skip..].iter().zip(&stream[skip + 1..]);
    for (to, (high, low)) in out.iter_mut().zip(pairs) {
        *to = high << bits | low >> (8 - bits);
    }
}

fn decode(rooms: &mut [Room], run: Run<'_>, search: &dyn Search, each: &mut dyn FnMut(Found)) {
    let Some((room, deeper)) = rooms.split_first_mut() else { return };
    room.stream.clear();
    reserve(&mut room.stream, run.chars.len() + 4);
    bits_of(run.chars, &mut room.stream);
    for alignment in 0..run.chars.len().min(ALIGNMENTS) {
        let len = len_of(run.chars.len() - alignment);
        room.decoded.clear();
        reserve(&mut room.decoded, len);
        room.decoded.resize(len, 0);
        shift(&room.stream, alignment, &mut room.decoded);
        let decoded = room.decoded.as_slice();
        let first = |byte: usize| alignment + first(byte);
        let after = |byte: usize| alignment + after(byte);
        let mut report = |hit: Hit| {
            if hit.weak {
            } else if hit.end <= decoded.len() {
                let (start, end) = (first(hit.start), after(hit.end - 1));
                each(Found::Hit(Hit { start, end, ..hit }));
            } else if run.is_open {
                each(Found::Open(first(hit.start)));
            }
        };
        search.find(Text { bytes: decoded, from: 0, at: 0, end: false }, &mut report);
        if run.is_cut {
            search.cut_off(decoded, 0).into_iter().for_each(report);
        } else if run.is_open {
            // A byte of which the first bits are there may begin one, too.
            each(Found::Open(first(search.open_from(decoded, 0))));
        }
        if deeper.is_empty() {
            continue;
        }
        let text = Text { bytes: decoded, from: 0, at: 0, end: !run.is_open };
        runs(text, &mut room.masks, &mut |start, end| {
            let is_last = end == decoded.len();
            let inner = Run {
                chars: &decoded[start..end],
                is_open: is_last && run.is_open,
                is_cut: is_last && run.is_cut,
            };
            decode(deeper, inner, search, &mut |found| match found {
                Found::Open(at) => each(Found::Open(first(start + at))),
                Found::Hit(hit) => each(Found::Hit(Hit {
                    start: first(start + hit.start),
                    end: after(start + hit.end - 1),
                    ..hit
                })),
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_base64_also_of_a_part() {
        use base64ct::{Base64UrlUnpadded, Encoding};
        for len in 0..40_u8 {
            let bytes: Vec<u8> = (0..len).map(|n| n.wrapping_mul(91).wrapping_add(200)).collect();
            let chars = Base64UrlUnpadded::encode_string(&bytes);
            let mut stream = Vec::new();
            bits_of(chars.as_bytes(), &mut stream);
            assert_eq!(stream[..bytes.len()], bytes);
            for skipped in 0..chars.len().min(4) {
                let mut out = vec![0; len_of(chars.len() - skipped)];
                shift(&stream, skipped, &mut out);
                let part = &chars.as_bytes()[skipped..];
                let mut expected = Vec::new();
                bits_of(part, &mut expected);
                assert_eq!(out, expected[..out.len()]);
            }
        }
    }
}
