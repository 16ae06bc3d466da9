//! Base64 in lines, as tools wrap it: 64 or 76 characters and a newline, as it is or escaped.
//!
//! A joint is a newline directly behind at least [`LINE_BYTES_MIN`] characters, with the white space
//! and quote marks behind it; lines with joints between them are a chain. Invariant: what is a joint,
//! and what of a chain is near a byte, depends on at most [`REACH_BYTES`] bytes before it, so that cuts
//! leave no trace. Danger: what follows base64 on the next line is often the name of the next value;
//! a secret that has no known end must not swallow it.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::lens::{self, Break, is_base64};
use super::masks::Masks;
use super::needle::reserve;
use super::part::Text;
use crate::sys::simd::BLOCK_BYTES;

/// Shorter lines are not joined.
const LINE_BYTES_MIN: usize = 48;
/// Longer breaks do not join.
const JOINT_BYTES_MAX: usize = 32;
/// So many characters before a byte tell what it is part of.
pub(super) const BACK_CHARS: usize = 120;
/// And so many bytes hold those, and tell of joints.
const BACK_BYTES: usize = BACK_CHARS + (BACK_CHARS / LINE_BYTES_MIN + 1) * JOINT_BYTES_MAX;
pub(super) const REACH_BYTES: usize = BACK_BYTES + BLOCK_BYTES;
/// Characters of a line that belong to what begins there and goes on in the next.
const LEAD_BYTES_MIN: usize = 4;

/// Characters of lines that were joined.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    pub chars: &'a [u8],
    /// Pieces: where each begins, here and in the text.
    pieces: &'a [(usize, usize)],
    /// The text's length, if the text ends between two lines.
    open_at: Option<usize>,
    /// More may follow.
    pub is_open: bool,
    /// The text ends with it.
    pub is_last: bool,
}

impl Chain<'_> {
    fn piece(&self, at: usize) -> usize {
        self.pieces.partition_point(|(shown, _)| *shown <= at).saturating_sub(1)
    }

    /// Where a character is in the text.
    pub(super) fn place(&self, at: usize) -> usize {
        let (shown, place) = self.pieces[self.piece(at)];
        place + (at - shown)
    }

    /// The first character that may begin something at `place` of the text or behind it.
    pub(super) fn char_at(&self, place: usize) -> usize {
        let next = self.pieces.partition_point(|(_, at)| *at < place);
        let end = self.pieces.get(next).map_or(self.chars.len(), |(shown, _)| *shown);
        let Some((shown, at)) = next.checked_sub(1).map(|piece| self.pieces[piece]) else {
            return 0;
        };
        match (shown + (place - at)).min(end) {
            // The last ones of a line begin what is on the next.
            char if char == end => end.saturating_sub(LEAD_BYTES_MIN - 1).max(shown),
            char => char,
        }
    }

    /// Where in the text begins what begins at a character: on the next line, if there is little of
    /// it on its own.
    pub(super) fn begin(&self, at: usize) -> usize {
        if at >= self.chars.len() {
            return usize::MAX;
        }
        match (self.pieces.get(self.piece(at) + 1), self.open_at) {
            (Some((next, place)), _) if next - at < LEAD_BYTES_MIN => *place,
            (None, Some(end)) if self.chars.len() - at < LEAD_BYTES_MIN => end,
            _ => self.place(at),
        }
    }
}

/// Room that is used again.
#[derive(Default)]
pub(super) struct Chains {
    masks: Masks<2>,
    joints: Vec<Break>,
    chars: Zeroizing<Vec<u8>>,
    pieces: Vec<(usize, usize)>,
}

/// The joint whose newline is at `at`.
fn joint(bytes: &[u8], at: usize, end: bool) -> Option<Break> {
    let start = if bytes[..at].ends_with(b"\r") { at - 1 } else { at };
    let joint = lens::break_at(bytes, start, at, end)?;
    (joint.end - start <= JOINT_BYTES_MAX).then_some(joint)
}

/// What stands at the end of a text and may become a joint: bytes of it.
fn begun_joint(bytes: &[u8]) -> usize {
    let slashes = bytes.iter().rev().take_while(|b| **b == b'\\').count();
    let slashes = if slashes > lens::BACKSLASHES_MAX { 0 } else { slashes };
    slashes + usize::from(bytes[..bytes.len() - slashes].ends_with(b"\r"))
}

impl Chains {
    /// Calls `each` with all chains of `text` that are not decided.
    pub(super) fn each(&mut self, text: Text<'_>, each: &mut dyn FnMut(Chain<'_>)) {
        let bytes = text.bytes;
        let low = text.from.saturating_sub(BACK_BYTES);
        let (joints, mut newlines) = (&mut self.joints, std::mem::take(&mut self.pieces));
        joints.clear();
        newlines.clear();
        lens::each_end(bytes, low, &mut self.masks, |at| newlines.push((at, 0)));
        let masks = &self.masks;
        let line = |start: usize| start - masks.run_start(lens::WRAPPED, start);
        for (at, _) in &newlines {
            if let Some(joint) = joint(bytes, *at, text.end)
                && joint.start >= low
                && line(joint.start) >= LINE_BYTES_MIN
            {
                joints.push(joint);
            }
        }
        let begun = bytes.len() - begun_joint(bytes);
        if !text.end
            && begun < bytes.len()
            && begun >= low
            && joints.last().is_none_or(|last| last.end <= begun)
            && line(begun) >= LINE_BYTES_MIN
        {
            joints.push(Break { start: begun, end: bytes.len(), is_line: false, closed: false });
        }
        self.pieces = newlines;
        let mut next = 0;
        while let Some(first) = joints.get(next) {
            next += 1;
            self.chars.clear();
            self.pieces.clear();
            let begin = masks.run_start(lens::WRAPPED, first.start).max(low);
            reserve(&mut self.chars, bytes.len() - begin);
            let (chars, pieces) = (&mut self.chars, &mut self.pieces);
            let mut show = |from: usize, to: usize| {
                pieces.push((chars.len(), from));
                chars.extend_from_slice(&bytes[from..to]);
            };
            show(begin, first.start);
            let (mut last, mut end) = (first, first.start);
            while last.closed && bytes.get(last.end).is_some_and(|b| is_base64(*b)) {
                end = masks.run_end(lens::WRAPPED, last.end);
                show(last.end, end);
                match joints.get(next) {
                    Some(more) if more.start == end && end - last.end >= LINE_BYTES_MIN => {
                        (last, next) = (more, next + 1);
                    }
                    _ => break,
                }
            }
            // A joint may still be followed by a line.
            let in_joint = end <= last.start && (!last.closed || last.end == bytes.len());
            let is_last = end == bytes.len() || in_joint;
            if is_last || end > text.from {
                each(Chain {
                    chars: &self.chars,
                    pieces: &self.pieces,
                    open_at: in_joint.then_some(bytes.len()),
                    is_open: is_last && !text.end,
                    is_last,
                });
            }
        }
        super::wipe(&mut self.chars);
        self.chars.clear();
    }
}

/// How far a secret reaches that has no known end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rest {
    pub end: usize,
    /// What follows may belong to it.
    pub goes_on: bool,
}

/// From `at` to the end of its base64, over joints. Of what follows a line, only what is another one
/// or the shorter last one is part of it.
pub(super) fn rest(text: Text<'_>, at: usize) -> Rest {
    let bytes = text.bytes;
    let in_rest = |b: &u8| is_base64(*b) || *b == b'=';
    let mut end = at;
    loop {
        end += bytes[end..].iter().take_while(|b| in_rest(b)).count();
        let done = Rest { end, goes_on: false };
        let maybe = Rest { end, goes_on: !text.end };
        let before = &bytes[end.saturating_sub(LINE_BYTES_MIN)..end];
        if end == bytes.len() {
            return maybe;
        }
        if before.len() < LINE_BYTES_MIN || !before.iter().all(|b| is_base64(*b)) {
            return done;
        }
        if begun_joint(&bytes[end..]) == bytes.len() - end {
            return maybe;
        }
        let newline = if bytes[end] == b'\r' { end + 1 } else { end };
        let Some(joint) = joint(bytes, newline, text.end).filter(|joint| joint.start == end) else {
            return done;
        };
        if !joint.closed {
            return maybe;
        }
        match next_line(&bytes[joint.end..], text.end) {
            Line::Maybe => return maybe,
            Line::None => return done,
            Line::Whole => end = joint.end,
            Line::Last(len) => return Rest { end: joint.end + len, goes_on: false },
        }
    }
}

enum Line {
    Last(usize),
    Maybe,
    None,
    Whole,
}

/// What stands behind a joint.
fn next_line(bytes: &[u8], end: bool) -> Line {
    let len = bytes.iter().take(LINE_BYTES_MIN).take_while(|b| is_base64(**b)).count();
    if len == LINE_BYTES_MIN {
        return Line::Whole;
    }
    let pads = bytes[len..].iter().take(3).take_while(|b| **b == b'=').count();
    match bytes.get(len + pads) {
        None if !end => return Line::Maybe,
        None | Some(b'\n' | b'\r' | b'"' | b'\'' | b'\\') => {}
        Some(_) => return Line::None,
    }
    let has = |is: fn(&u8) -> bool| usize::from(bytes[..len].iter().any(is));
    let kinds = has(u8::is_ascii_lowercase) + has(u8::is_ascii_uppercase) + has(u8::is_ascii_digit);
    // Four characters stand for three bytes; a word is no line.
    let is_line = (len + pads).is_multiple_of(4) && pads < 3 && (pads > 0 || kinds >= 2);
    if len > 0 && is_line { Line::Last(len + pads) } else { Line::None }
}
