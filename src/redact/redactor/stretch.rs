//! The text that is looked at: what is kept and what is new, as one.
//!
//! Invariant: an answer depends on the bytes of the stream and not on where the stretch begins; what
//! is needed of the bytes before is in [`Stretch::odd`]. See RFC 8259 for JSON.
#![forbid(unsafe_code)]

use super::super::part::Text;

/// Deeper values of JSON are not looked at; within what is always at hand.
const MAX_INDENT: usize = 40;

/// See the module.
#[derive(Clone, Copy)]
pub(super) struct Stretch<'a> {
    pub bytes: &'a [u8],
    /// What stands before this byte is decided.
    pub lead: usize,
    /// The stream's count of the first byte.
    pub at: u64,
    /// The run of backslashes that ends before the first byte is odd.
    pub odd: bool,
}

impl Stretch<'_> {
    /// What there is to find from byte `from` on.
    pub(super) fn text(&self, from: usize, end: bool) -> Text<'_> {
        Text { bytes: self.bytes, from, at: self.at, end }
    }

    /// Where byte `position` of the stream is.
    pub(super) fn place(&self, position: u64) -> usize {
        let offset = usize::try_from(position.saturating_sub(self.at)).unwrap_or(usize::MAX);
        offset.clamp(self.lead, self.bytes.len())
    }

    /// The stream's count of a byte.
    pub(super) fn position(&self, place: usize) -> u64 {
        self.at + place as u64
    }

    /// The bytes between two places of the stream.
    pub(super) fn piece(&self, from: u64, to: u64) -> &[u8] {
        &self.bytes[self.place(from)..self.place(to)]
    }

    /// Whether a number at `at` may be a whole value of JSON, by what stands before it.
    pub(super) fn is_scalar_place(&self, at: usize) -> bool {
        let mut indent = 0;
        for byte in self.bytes[..at].iter().rev() {
            match byte {
                b' ' if indent < MAX_INDENT => indent += 1,
                b':' | b',' | b'[' => return true,
                // An element of a list on a line of its own.
                b'\n' => return indent > 0,
                _ => return false,
            }
        }
        false
    }

    /// Whether a number at `at` is the first of all, so that it may be a document of JSON by itself.
    pub(super) fn is_document_place(&self, at: usize) -> bool {
        self.at == 0 && self.bytes[..at].iter().all(|b| *b == b' ')
    }

    /// Whether the byte at `at` is escaped: an odd run of backslashes ends before it.
    pub(super) fn is_escaped(&self, at: usize) -> bool {
        let run = self.bytes[..at].iter().rev().take_while(|b| **b == b'\\').count();
        (run % 2 == 1) != (run == at && self.odd)
    }

    /// Whether the text at `to` is inside a string of JSON, known at `from`.
    pub(super) fn is_quoted(&self, from: (usize, bool), to: usize) -> bool {
        let mut state = (from.1, self.is_escaped(from.0));
        for byte in &self.bytes[from.0..to] {
            state = follow(state, *byte);
        }
        state.0
    }
}

/// One byte further in a line of JSON: whether in a string, and whether the next byte is escaped.
fn follow((quoted, escaped): (bool, bool), byte: u8) -> (bool, bool) {
    match byte {
        b'\n' => (false, false),
        b'\\' => (quoted, !escaped),
        b'"' if !escaped => (!quoted, false),
        _ => (quoted, false),
    }
}
