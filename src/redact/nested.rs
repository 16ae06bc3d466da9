//! What is hidden in base64 that is decoded: values in any of their forms and tokens of known
//! formats, also in base64 of base64, in one line or several.
//!
//! Runs of at least 16 characters are decoded at each of the four alignments, and what comes out is
//! searched as the text itself is, but for what holds no stretch of bytes that secrets are made of: at
//! most alignments of most runs. Invariant: the work is at most a constant for each character (three
//! bytes of the first depth, nine of the second), so nothing passes unseen because it is much. Danger:
//! a run that is cut may go on; what of its end could begin a secret waits.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::chain::{BACK_CHARS, Chain, Chains};
use super::detect::{self, Detector};
use super::lens::{Search, is_base64};
use super::masks::{Masks, Runs, bits};
use super::needle::reserve;
use super::part::{Hit, Text};
use crate::sys::base64::{self, ALIGNMENTS, Bytes, len_of, shift};
use crate::sys::simd::Set;

/// Shorter runs are not decoded.
const RUN_BYTES_MIN: usize = 16;
/// How often.
const DEPTH_MAX: usize = 2;
/// Characters before what is undecided that tell how long the runs in them are, and what stands before
/// a token, at the second depth too.
const BACK_BYTES: usize = BACK_CHARS;
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
    /// All that is found has a stretch of these, if that is known.
    pub made_of: Option<&'a Bytes>,
}

impl Look<'_> {
    /// At which alignments there may be something in what was decoded of so many characters.
    fn gate(&self, bits: &[u8], chars: usize) -> [bool; ALIGNMENTS] {
        self.made_of.map_or([true; ALIGNMENTS], |set| base64::stretches(bits, chars, set))
    }
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
    bits: Bits,
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
    bits: Bits,
    decoded: Zeroizing<Vec<u8>>,
    masks: Masks<1>,
}

/// The bits of a run; room that is used again.
#[derive(Default)]
struct Bits {
    bytes: Zeroizing<Vec<u8>>,
    /// So many bytes have been written to.
    used: usize,
}

impl Bits {
    fn of(&mut self, chars: &[u8]) -> &[u8] {
        let len = base64::room_of(chars.len());
        if self.bytes.len() < len {
            let more = len - self.bytes.len();
            reserve(&mut self.bytes, more);
            self.bytes.resize(len, 0);
        }
        self.used = self.used.max(len);
        let bits = &mut self.bytes[..len];
        base64::bits_of(chars, bits);
        bits
    }

    fn forget(&mut self) {
        super::wipe(&mut self.bytes[..self.used]);
        self.used = 0;
    }
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
        let (rooms, room, bits) = (&mut self.rooms, &mut self.detector, &mut self.bits);
        let [outer, inner] = &mut self.batches;
        runs(text, &mut self.masks, &mut |start, end| {
            let chars = &text.bytes[start..end];
            if end < text.bytes.len() {
                outer.add(bits.of(chars), chars.len(), start, look);
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
            let chars = &outer.bytes[start..end];
            inner.add(bits.of(chars), chars.len(), start, look);
        });
        inner.find(look, room, &mut |found| {
            if let Some(Segment { start, from, .. }) = outer.segment(found.range().0) {
                report(found.of(|at| from + first(at - start), |at| from + after(at - start)));
            }
        });
        [outer, inner].into_iter().for_each(Batch::forget);
        bits.forget();
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
    /// Adds the decoded bits of a run of so many characters, the first of which is `from`, at each
    /// alignment where there may be something.
    fn add(&mut self, bits: &[u8], chars: usize, from: usize, look: Look<'_>) {
        let gate = look.gate(bits, chars);
        for alignment in (0..ALIGNMENTS.min(chars)).filter(|alignment| gate[*alignment]) {
            let (start, len) = (self.bytes.len(), len_of(chars - alignment));
            reserve(&mut self.bytes, len + SEPARATOR.len());
            self.bytes.resize(start + len, 0);
            shift(bits, alignment, &mut self.bytes[start..]);
            self.bytes.extend_from_slice(SEPARATOR);
            self.segments.push(Segment { start, end: start + len, from: from + alignment });
        }
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
        self.bits.forget();
        super::wipe(&mut self.decoded);
        self.decoded.clear();
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
    let (mut long, mut ends_before) = (Runs::<RUN_BYTES_MIN>::default(), 0);
    for (at, [mask]) in masks.each() {
        let ends = long.ends(mask);
        // The sixteenth character of each run.
        for bit in bits(ends & !(ends << 1 | ends_before >> 63)) {
            if at + bit >= done + RUN_BYTES_MIN - 1 {
                let start = at + bit + 1 - RUN_BYTES_MIN;
                done = masks.run_end(0, start);
                each(start, done);
            }
        }
        ends_before = ends;
    }
    if !text.end && done < len {
        let start = masks.run_start(0, len).max(done);
        if start < len {
            each(start, len);
        }
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
    // Whether it will be long enough is not known yet: what is found must wait for that.
    let is_short = run.chars.len() < RUN_BYTES_MIN;
    let mut each = |part: Part| match part {
        Part::Found(found) if is_short => each(Part::Open(found.range().0)),
        part => each(part),
    };
    let bits = room.bits.of(run.chars);
    let gate = look.gate(bits, run.chars.len());
    for (alignment, may_hold) in gate.into_iter().enumerate().take(run.chars.len()) {
        let len = len_of(run.chars.len() - alignment);
        room.decoded.clear();
        reserve(&mut room.decoded, len);
        room.decoded.resize(len, 0);
        shift(bits, alignment, &mut room.decoded);
        let decoded = room.decoded.as_slice();
        let first = |byte: usize| alignment + first(byte);
        let after = |byte: usize| alignment + after(byte);
        let ends_inside =
            || look.made_of.is_none_or(|set| decoded.last().is_some_and(|b| set.has(*b)));
        if !(may_hold || run.is_open && ends_inside()) {
            if run.is_open {
                each(Part::Open(first(len)));
            }
            continue;
        }
        let mut report = |hit: Hit| {
            if hit.weak {
            } else if hit.end <= decoded.len() {
                each(Part::Found(Found::Hit(hit).of(first, after)));
            } else if run.is_open {
                each(Part::Open(first(hit.start)));
            }
        };
        let Look { search, detector, .. } = look;
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
