//! Values that are written over several lines: wrapped base64, and values of several lines that are
//! indented, quoted or escaped.
//!
//! A break is a newline, as it is or escaped as in JSON, with the white space around it and quote
//! marks behind it. Through the one lens all breaks are a single newline, in the text as in needles
//! of several lines. Through the other there is no break between two pieces of base64, the first
//! of which is at least 16 characters.
//!
//! Invariant: what a lens shows of a byte depends on at most [`REACH_BYTES`] bytes on either side,
//! so that cuts leave no trace. Danger: a line that ends as a needle begins must not wait for its
//! next line for ever: fewer than four characters before a break are not waited for, and stay.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::masks::{Masks, bits};
use super::needle::reserve;
use super::part::{Hit, Text};
use crate::sys::simd::{BLOCK_BYTES, RUN_BYTES, Set};

/// A longer one separates.
const BREAK_BYTES_MAX: usize = 64;
/// Fewer characters in a line are no wrapped text.
const RUN_BYTES_MIN: usize = RUN_BYTES;
/// So many of a needle's characters before its first break belong to it.
const LEAD_BYTES_MIN: usize = 4;
/// Backslashes of one escaped newline: JSON in JSON in JSON.
pub(super) const BACKSLASHES_MAX: usize = 4;
/// How far from a byte the bytes are that decide what a lens makes of it.
pub(super) const REACH_BYTES: usize = 2 * BREAK_BYTES_MAX + RUN_BYTES_MIN;

/// Between two lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Break {
    pub start: usize,
    pub end: usize,
    /// There is a newline in it.
    pub is_line: bool,
    /// What follows cannot become part of it.
    pub closed: bool,
}

/// The longest range that a needle of `len` bytes can take with breaks in it.
pub(super) fn span(len: usize) -> usize {
    len + (len / RUN_BYTES_MIN + 1) * BREAK_BYTES_MAX
}

pub(super) const fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// Bytes of the newline at `at`.
fn newline(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at)? {
        b'\n' => Some(1),
        b'\\' => {
            let run = text[at..].iter().take_while(|b| **b == b'\\').count();
            let is_newline =
                run <= BACKSLASHES_MAX && matches!(text.get(at + run), Some(b'n' | b'r'));
            is_newline.then_some(run + 1)
        }
        _ => None,
    }
}

/// Bytes of white space before `at` that belong to a break there: of wrapped text, a CR.
fn spaces_before(text: &[u8], at: usize, all: bool) -> usize {
    let is_part = |b: &&u8| is_space(**b) && (all || **b == b'\r');
    let most = if all { BREAK_BYTES_MAX + 1 } else { 1 };
    text[..at].iter().rev().take(most).take_while(is_part).count()
}

pub(super) fn break_at(text: &[u8], start: usize, at: usize, end_of_stream: bool) -> Option<Break> {
    let mut end = at + newline(text, at)?;
    loop {
        match text.get(end) {
            Some(b'>') => end += 1,
            Some(b'#' | b'+' | b'|') if text.get(end + 1) == Some(&b' ') => end += 2,
            Some(byte) if is_space(*byte) => end += 1,
            _ => match newline(text, end) {
                Some(len) => end += len,
                None => break,
            },
        }
        if end - start > BREAK_BYTES_MAX {
            return None;
        }
    }
    let more = &text[end..];
    let could_go_on = matches!(more, [] | [b'#' | b'+' | b'|'])
        || (more.len() <= BACKSLASHES_MAX && more.iter().all(|b| *b == b'\\'));
    (end - start <= BREAK_BYTES_MAX).then_some(Break {
        start,
        end,
        is_line: true,
        closed: end_of_stream || !could_go_on,
    })
}

/// Whether a line of wrapped text may end before `at`.
#[inline]
fn ends_run(text: &[u8], at: usize) -> bool {
    let run = at.checked_sub(RUN_BYTES_MIN).and_then(|from| text.get(from..at));
    run.is_some_and(|run| run.iter().all(|b| is_base64(*b)))
}

/// What a break behind wrapped text begins with, and base64.
const SETS: [Set; 2] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_base64(byte as u8) as u8;
        byte += 1;
    }
    [Set::of(b"\n\\\r"), Set::of_table(&table, 1)]
};

/// The number of base64 in those.
pub(super) const WRAPPED: usize = 1;

/// Calls `each` with every place from `from` on where wrapped text and a newline may meet.
pub(super) fn each_end(
    bytes: &[u8],
    from: usize,
    masks: &mut Masks<2>,
    mut each: impl FnMut(usize),
) {
    // Of a run that ends at `from` all is seen.
    masks.fill(bytes, from.saturating_sub(BLOCK_BYTES), &SETS);
    for (at, found) in masks.after_runs() {
        for bit in bits(found) {
            let newline = at + bit + usize::from(bytes[at + bit] == b'\r');
            if newline >= from && newline < bytes.len() {
                each(newline);
            }
        }
    }
}

/// All breaks of `text`, or those behind wrapped text.
fn breaks(text: Text<'_>, all: bool, masks: &mut Masks<2>, found: &mut Vec<Break>) {
    let bytes = text.bytes;
    found.clear();
    let mut after = text.from.saturating_sub(REACH_BYTES);
    let from = after;
    let mut newline = |at: usize| {
        if at < after {
            return;
        }
        let start = (at - spaces_before(bytes, at, all)).max(after);
        if !all && start == after && !ends_run(bytes, start) {
            return;
        }
        if let Some(found_break) = break_at(bytes, start, at, text.end) {
            after = found_break.end;
            found.push(found_break);
        }
    };
    if all {
        memchr::memchr2_iter(b'\n', b'\\', &bytes[from..]).for_each(|at| newline(from + at));
    } else {
        each_end(bytes, from, masks, newline);
    }
    if !text.end && found.last().is_none_or(|last| last.closed) {
        // What may become one.
        let tail = &bytes[after..];
        let slashes = tail.iter().rev().take_while(|b| **b == b'\\').count();
        let slashes = if slashes > BACKSLASHES_MAX { 0 } else { slashes };
        let rest = tail.len() - slashes;
        let spaces = spaces_before(tail, rest, all);
        let start = after + rest - if spaces > BREAK_BYTES_MAX { 0 } else { spaces };
        if start < bytes.len() && (all || ends_run(bytes, start)) {
            found.push(Break { start, end: bytes.len(), is_line: false, closed: false });
        }
    }
}

/// A text as a lens shows it.
#[derive(Default)]
pub(super) struct Lens {
    masks: Masks<2>,
    breaks: Vec<Break>,
    shown: Zeroizing<Vec<u8>>,
    /// Pieces: where each begins as shown and in the text.
    pieces: Vec<(usize, usize)>,
}

/// What is looked for in what a lens shows.
pub(super) trait Search {
    /// Every occurrence; one that ends behind the text may become one.
    fn find(&self, text: Text<'_>, each: &mut dyn FnMut(Hit));
    /// The first byte, from `from` on, that the text could become one from, where `find` does not
    /// tell.
    fn open_from(&self, text: &[u8], from: usize) -> usize;
    /// What the text's end is part of.
    fn cut_off(&self, text: &[u8], from: usize) -> Vec<Hit>;
}

impl Lens {
    fn clear(&mut self, room: usize) {
        self.shown.clear();
        self.pieces.clear();
        reserve(&mut self.shown, room);
    }

    /// Wipes what was shown.
    pub(super) fn forget(&mut self) {
        super::wipe(&mut self.shown);
        self.shown.clear();
    }

    fn show(&mut self, text: &[u8], from: usize, to: usize) {
        if from < to {
            self.pieces.push((self.shown.len(), from));
            self.shown.extend_from_slice(&text[from..to]);
        }
    }

    /// Where byte `at` of what is shown is in the text.
    fn place(&self, at: usize) -> usize {
        let next = self.pieces.partition_point(|(shown, _)| *shown <= at);
        let (shown, place) = next.checked_sub(1).map_or((0, 0), |piece| self.pieces[piece]);
        place + (at - shown)
    }

    /// Where the first piece begins that is shown behind `at`.
    fn next_piece(&self, at: usize) -> Option<(usize, usize)> {
        let next = self.pieces.partition_point(|(shown, _)| *shown <= at);
        self.pieces.get(next).copied()
    }

    /// Looks for needles of several lines; where undecided ones begin.
    pub(super) fn lines(
        &mut self,
        text: Text<'_>,
        search: &dyn Search,
        each: &mut dyn FnMut(Hit),
    ) -> usize {
        let mut found = std::mem::take(&mut self.breaks);
        breaks(text, true, &mut self.masks, &mut found);
        self.clear(text.bytes.len());
        let mut at = text.from;
        for line in &found {
            if line.start >= at {
                self.show(text.bytes, at, line.start);
                if line.is_line {
                    self.shown.push(b'\n');
                }
            }
            at = at.max(line.end);
            if !line.closed {
                at = text.bytes.len();
            }
        }
        self.breaks = found;
        self.show(text.bytes, at, text.bytes.len());
        let (shown, mut limit) = (self.shown.as_slice(), text.bytes.len());
        let mut report = |hit: Hit| {
            let start = self.place(hit.start);
            if hit.end > shown.len() {
                limit = limit.min(start);
            } else {
                each(Hit { start, end: self.place(hit.end - 1) + 1, literal: false, ..hit });
            }
        };
        search.find(Text { bytes: shown, from: 0, at: 0, end: text.end }, &mut report);
        if text.end {
            search.cut_off(shown, 0).into_iter().for_each(report);
        } else {
            let open = search.open_from(shown, 0);
            if open < shown.len() {
                limit = limit.min(self.place(open));
            }
        }
        limit
    }

    /// Looks for needles in base64, or any text of its alphabet, that is wrapped; where undecided
    /// ones begin.
    pub(super) fn wrapped(
        &mut self,
        text: Text<'_>,
        search: &dyn Search,
        each: &mut dyn FnMut(Hit),
    ) -> usize {
        let mut found = std::mem::take(&mut self.breaks);
        breaks(text, false, &mut self.masks, &mut found);
        let (bytes, mut limit) = (text.bytes, text.bytes.len());
        // What follows an open break may become part of it.
        let masks = std::mem::take(&mut self.masks);
        let run_end = |b: &Break| if b.closed { masks.run_end(WRAPPED, b.end) } else { b.end };
        let mut next = 0;
        while next < found.len() {
            let first = found[next];
            next += 1;
            if first.end < text.from {
                continue;
            }
            self.clear(bytes.len() - first.start + self.shown.len());
            let near = first.start - (LEAD_BYTES_MIN - 1);
            let least = near.min(text.from);
            self.show(bytes, masks.run_start(WRAPPED, first.start).max(least), first.start);
            let (mut last, mut end) = (first, run_end(&first));
            self.show(bytes, first.end, end);
            while let Some(more) = found.get(next).filter(|b| b.start == end && end > last.end) {
                last = *more;
                next += 1;
                end = run_end(&last);
                self.show(bytes, last.end, end);
            }
            // A run that touches the text's end goes on, and one before an open break.
            let is_open = end == bytes.len() || !last.closed;
            if is_open || self.pieces.len() > 1 {
                limit = limit.min(self.chain(text, is_open, search, each));
            }
        }
        (self.breaks, self.masks) = (found, masks);
        limit
    }

    fn chain(
        &self,
        text: Text<'_>,
        is_open: bool,
        search: &dyn Search,
        each: &mut dyn FnMut(Hit),
    ) -> usize {
        let (shown, mut limit) = (self.shown.as_slice(), text.bytes.len());
        // Where a range that begins at `start` as shown begins in the text.
        let begin = |start: usize, end: usize| match self.next_piece(start) {
            Some((next, place)) if next < end && next - start < LEAD_BYTES_MIN => place,
            Some(_) => self.place(start),
            None if shown.len() - start < LEAD_BYTES_MIN => text.bytes.len(),
            None => self.place(start),
        };
        let mut report = |hit: Hit| {
            if hit.end > shown.len() {
                if is_open && !text.end && !hit.weak {
                    limit = limit.min(begin(hit.start, hit.end).max(text.from));
                }
                return;
            }
            let has_break = self.next_piece(hit.start).is_some_and(|(next, _)| next < hit.end);
            if has_break && !hit.weak {
                let start = begin(hit.start, hit.end);
                let end = self.place(hit.end - 1) + 1;
                if start >= text.from && start < end {
                    each(Hit { start, end, literal: false, ..hit });
                }
            }
        };
        search.find(Text { bytes: shown, from: 0, at: 0, end: false }, &mut report);
        if text.end {
            search.cut_off(shown, 0).into_iter().for_each(report);
        } else if is_open {
            let open = search.open_from(shown, 0);
            if open < shown.len() {
                limit = limit.min(begin(open, shown.len()).max(text.from));
            }
        }
        limit
    }
}

/// A value of several lines as the lens shows it, onto `out`; nothing for one of a single line.
pub(super) fn fold(value: &[u8], out: &mut Zeroizing<Vec<u8>>) {
    let mut lens = Lens::default();
    let mut found = Vec::new();
    let text = Text { bytes: value, from: 0, at: 0, end: true };
    breaks(text, true, &mut lens.masks, &mut found);
    if found.is_empty() {
        return;
    }
    lens.clear(value.len());
    let mut at = 0;
    for line in found {
        lens.show(value, at, line.start);
        lens.shown.push(b'\n');
        at = line.end;
    }
    lens.show(value, at, value.len());
    // One that begins or ends with a break is found without it.
    let shown = lens.shown.trim_ascii();
    if !shown.contains(&b'\n') {
        return;
    }
    reserve(out, shown.len());
    out.extend_from_slice(shown);
}
