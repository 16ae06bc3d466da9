//! What is hidden in base64 that is decoded: values in any of their forms and tokens of known
//! formats, also in base64 of base64, in one line or several.
//!
//! Runs of at least 16 characters are decoded at each of the four alignments, and what comes out is
//! searched as the text itself is. Invariant: the work is at most a constant for each character (three
//! bytes of the first depth, nine of the second), so nothing passes unseen because it is much. Danger:
//! a run that is cut may go on; what of its end could begin a secret waits.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::chain::{BACK_CHARS, Chain, Chains};
use super::detect::{self, Detector};
use super::lens::{Search, is_base64};
use super::masks::{Masks, bits, run_ends};
use super::needle::reserve;
use super::part::{Hit, Text};
use crate::sys::simd::Set;

/// Shorter runs are not decoded.
const RUN_BYTES_MIN: usize = 16;
/// How often.
const DEPTH_MAX: usize = 2;
/// Characters before what is undecided that tell how long the runs in them are, and what stands before
/// a token, at the second depth too.
const BACK_BYTES: usize = BACK_CHARS;
/// Where in a group of four characters the first byte may begin.
const ALIGNMENTS: usize = 4;
/// Between two decoded runs: neither base64, nor part of a token or an armour, nor the name of what
/// follows.
const SEPARATOR: &[u8] = b"\n\"\0";

/// Characters of one run, or of a part of it.
#[derive(Clone, Copy)]
struct Run<'a> {
    chars: &'a [u8],
    /// What begins before this character is decided.
    from: usize,
    /// More may follow.
    is_open: bool,
    /// It is cut by the text's end.
    is_cut: bool,
}

/// What is looked for.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub search: &'a dyn Search,
    pub detector: &'a Detector,
}

/// What is found.
pub(super) enum Found {
    /// A value.
    Hit(Hit),
    /// A token of a known format.
    Token(detect::Token),
}

/// What is found, by characters of a run.
enum Part {
    Found(Found),
    /// From here on it may become something.
    Open(usize),
}

impl Found {
    /// The same in what it was decoded from.
    fn of(self, first: impl Fn(usize) -> usize, after: impl Fn(usize) -> usize) -> Self {
        match self {
            Self::Hit(hit) => {
                Self::Hit(Hit { start: first(hit.start), end: after(hit.end - 1), ..hit })
            }
            Self::Token(token) => {
                let end = token.end.map(|end| after(end - 1));
                Self::Token(detect::Token { start: first(token.start), end, ..token })
            }
        }
    }

    /// Where it is; what has no known end, to the end of all.
    fn range(&self) -> (usize, usize) {
        match self {
            Self::Hit(hit) => (hit.start, hit.end),
            Self::Token(token) => (token.start, token.end.unwrap_or(usize::MAX)),
        }
    }

    fn starting_at(self, start: usize) -> Self {
        match self {
            Self::Hit(hit) => Self::Hit(Hit { start, ..hit }),
            Self::Token(token) => Self::Token(detect::Token { start, ..token }),
        }
    }
}

/// Room for what is decoded.
#[derive(Default)]
pub(super) struct Nested {
    masks: Masks<1>,
    /// Of runs that something follows, for each depth.
    batches: [Batch; DEPTH_MAX],
    /// Of the run at the text's end, and of lines, for each depth.
    rooms: [Room; DEPTH_MAX],
    chains: Chains,
    detector: detect::Room,
}

/// Many decoded runs in one text, which is searched at once.
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

/// The first byte that begins with a character or behind it.
fn byte_at(char: usize) -> usize {
    (char * 6).div_ceil(8)
}

impl Nested {
    /// Looks into all runs of `text`; where undecided ones begin.
    pub(super) fn find(
        &mut self,
        text: Text<'_>,
        look: Look<'_>,
        each: &mut dyn FnMut(Found),
    ) -> usize {
        let mut limit = text.bytes.len();
        let mut report = |found: Found| {
            let (start, end) = found.range();
            if start >= text.from && start < end {
                each(match found {
                    Found::Hit(hit) => Found::Hit(Hit { literal: false, ..hit }),
                    Found::Token(_) => found,
                });
            }
        };
        let (rooms, room) = (&mut self.rooms, &mut self.detector);
        let [outer, inner] = &mut self.batches;
        runs(text, &mut self.masks, &mut |start, end| {
            let chars = &text.bytes[start..end];
            if end < text.bytes.len() {
                outer.add(chars, start);
                return;
            }
            let from = text.from.saturating_sub(start);
            let run = Run { chars, from, is_open: !text.end, is_cut: text.end };
            decode(rooms, run, look, room, &mut |part| match part {
                Part::Open(at) => limit = limit.min((start + at).max(text.from)),
                Part::Found(found) => report(found.of(|at| start + at, |at| start + at + 1)),
            });
        });
        outer.find(look, room, &mut |found| report(found));
        let whole = Text { bytes: &outer.bytes, from: 0, at: 0, end: true };
        runs(whole, &mut outer.masks, &mut |start, end| {
            inner.add(&outer.bytes[start..end], start);
        });
        inner.find(look, room, &mut |found| {
            if let Some(Segment { start, from, .. }) = outer.segment(found.range().0) {
                report(found.of(|at| from + first(at - start), |at| from + after(at - start)));
            }
        });
        [outer, inner].into_iter().for_each(Batch::forget);
        self.chains.each(text, &mut |chain| {
            let run = Run {
                chars: chain.chars,
                from: chain.char_at(text.from),
                is_open: chain.is_open,
                is_cut: chain.is_last && text.end,
            };
            decode(rooms, run, look, room, &mut |part| match part {
                Part::Open(at) => limit = limit.min(chain.begin(at).max(text.from)),
                // What is in one line alone is found twice.
                Part::Found(found) => report(in_text(found, &chain)),
            });
        });
        self.rooms.iter_mut().for_each(Room::forget);
        limit
    }
}

/// What is found in a chain, in its text.
fn in_text(found: Found, chain: &Chain<'_>) -> Found {
    let begin = chain.begin(found.range().0);
    found.of(|at| chain.place(at), |at| chain.place(at) + 1).starting_at(begin)
}

impl Batch {
    /// Decodes a run, whose first character is `from`, at each alignment.
    fn add(&mut self, chars: &[u8], from: usize) {
        let whole = chars.len() * 6 / 8;
        reserve(&mut self.bytes, ALIGNMENTS * (whole + 2 * SEPARATOR.len()));
        let begin = self.bytes.len();
        bits_of(chars, &mut self.bytes);
        // The bits behind the last whole byte are needed until all is shifted.
        let stream = begin + whole + SEPARATOR.len().max(self.bytes.len() - begin - whole);
        self.bytes.resize(stream, 0);
        self.segments.push(Segment { start: begin, end: begin + whole, from });
        for alignment in 1..ALIGNMENTS {
            let start = self.bytes.len();
            let len = len_of(chars.len() - alignment);
            self.bytes.resize(start + len, 0);
            let (stream, room) = self.bytes.split_at_mut(start);
            shift(&stream[begin..], alignment, &mut room[..len]);
            self.bytes.extend_from_slice(SEPARATOR);
            self.segments.push(Segment { start, end: start + len, from: from + alignment });
        }
        let rest = &mut self.bytes[begin + whole..stream];
        rest.fill(0);
        rest[..SEPARATOR.len()].copy_from_slice(SEPARATOR);
    }

    /// The segment with this byte of the batch.
    fn segment(&self, at: usize) -> Option<&Segment> {
        let next = self.segments.partition_point(|segment| segment.start <= at);
        self.segments.get(next.checked_sub(1)?)
    }

    /// Calls `each` with what is found, by characters of what was decoded.
    fn find(&self, look: Look<'_>, room: &mut detect::Room, each: &mut dyn FnMut(Found)) {
        if self.bytes.is_empty() {
            return;
        }
        let mut report = |found: Found| {
            let (at, end) = found.range();
            let segment = self.segment(at);
            let segment = segment.filter(|segment| end == usize::MAX || end <= segment.end);
            if let Some(Segment { start, from, .. }) = segment {
                each(found.of(|at| from + first(at - start), |at| from + after(at - start)));
            }
        };
        let text = Text { bytes: &self.bytes, from: 0, at: 0, end: true };
        look.search.find(text, &mut |hit| {
            if !hit.weak {
                report(Found::Hit(hit));
            }
        });
        let mut token = |token| report(Found::Token(token));
        look.detector.within(&self.bytes, 0, true, room, &mut token);
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

fn decode(
    rooms: &mut [Room],
    run: Run<'_>,
    look: Look<'_>,
    tokens: &mut detect::Room,
    each: &mut dyn FnMut(Part),
) {
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
                each(Part::Found(Found::Hit(hit).of(first, after)));
            } else if run.is_open {
                each(Part::Open(first(hit.start)));
            }
        };
        let Look { search, detector } = look;
        search.find(Text { bytes: decoded, from: 0, at: 0, end: false }, &mut report);
        if run.is_cut {
            search.cut_off(decoded, 0).into_iter().for_each(report);
        } else if run.is_open {
            // A byte of which the first bits are there may begin one, too.
            each(Part::Open(first(search.open_from(decoded, 0))));
        }
        let from = byte_at(run.from.saturating_sub(alignment));
        let undecided = detector.within(decoded, from, !run.is_open, tokens, &mut |token| {
            each(Part::Found(Found::Token(token).of(first, after)));
        });
        if run.is_open {
            each(Part::Open(first(undecided)));
        }
        if deeper.is_empty() {
            continue;
        }
        let text = Text { bytes: decoded, from: 0, at: 0, end: !run.is_open };
        runs(text, &mut room.masks, &mut |start, end| {
            let is_last = end == decoded.len();
            let inner = Run {
                chars: &decoded[start..end],
                from: from.saturating_sub(start),
                is_open: is_last && run.is_open,
                is_cut: is_last && run.is_cut,
            };
            decode(deeper, inner, look, tokens, &mut |part| match part {
                Part::Open(at) => each(Part::Open(first(start + at))),
                Part::Found(found) => {
                    each(Part::Found(found.of(|at| first(start + at), |at| after(start + at))))
                }
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
