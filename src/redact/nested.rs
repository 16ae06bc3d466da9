//! Values in base64 that is decoded: base64 of any of their forms, also twice.
//!
//! Runs of at least 16 characters are decoded at each of the four alignments, and what comes out is
//! searched as the text itself is. Invariant: the work is at most a constant for each character (three
//! bytes of the first depth, nine of the second), so nothing passes unseen because it is much. Danger:
//! a run that is cut may go on; what of its end could begin a value waits.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::lens::{Search, is_base64};
use super::needle::reserve;
use super::part::{Hit, Text};

/// Shorter runs are not decoded.
const RUN_BYTES_MIN: usize = 16;
/// How often.
const DEPTH_MAX: usize = 2;
/// Characters before what is undecided that tell how long the runs in them are, at the second depth
/// too.
const BACK_BYTES: usize = 2 * RUN_BYTES_MIN;

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
pub(super) struct Nested([Zeroizing<Vec<u8>>; DEPTH_MAX]);

impl Nested {
    /// Looks for needles in all runs of `text`; where undecided ones begin.
    pub(super) fn find(
        &mut self,
        text: Text<'_>,
        search: &dyn Search,
        each: &mut dyn FnMut(Hit),
    ) -> usize {
        let mut limit = text.bytes.len();
        runs(text, &mut |start, end| {
            let is_last = end == text.bytes.len();
            let run = Run {
                chars: &text.bytes[start..end],
                is_open: is_last && !text.end,
                is_cut: is_last && text.end,
            };
            decode(&mut self.0, run, search, &mut |found| match found {
                Found::Open(at) => limit = limit.min((start + at).max(text.from)),
                Found::Hit(hit) if start + hit.start >= text.from => {
                    each(Hit { start: start + hit.start, end: start + hit.end, ..hit });
                }
                Found::Hit(_) => {}
            });
        });
        for room in &mut self.0 {
            super::wipe(room);
            room.clear();
        }
        limit
    }
}

/// Calls `each` with all runs that are long enough, as far as they are undecided or tell of that; the
/// last may be shorter when more may follow.
fn runs(text: Text<'_>, each: &mut dyn FnMut(usize, usize)) {
    let bytes = text.bytes;
    let before = |at: usize| bytes[..at].iter().rev().take_while(|b| is_base64(**b));
    let after = |at: usize| at + bytes[at..].iter().take_while(|b| is_base64(**b)).count();
    // The run that is undecided from its middle on.
    let begun = before(text.from).take(BACK_BYTES).count();
    let mut at = text.from;
    if begun > 0 {
        at = after(text.from);
        let is_run = at - text.from + begun >= RUN_BYTES_MIN || (at == bytes.len() && !text.end);
        if is_run && at > text.from {
            each(text.from - begun, at);
        }
    }
    while let Some(probe) = bytes.get(at + RUN_BYTES_MIN - 1) {
        let probed = at + RUN_BYTES_MIN - 1;
        if !is_base64(*probe) {
            at = probed + 1;
            continue;
        }
        let start = probed - before(probed).take(probed - at).count();
        let end = after(probed);
        if end - start >= RUN_BYTES_MIN || (end == bytes.len() && !text.end) {
            each(start, end);
        }
        at = end;
    }
    if !text.end && at < bytes.len() {
        let start = bytes.len() - before(bytes.len()).take(bytes.len() - at).count();
        if start < bytes.len() {
            each(start, bytes.len());
        }
    }
}

/// The six bits of a character.
const BITS: [u8; 256] = {
    let mut bits = [0; 256];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut at = 0;
    while at < 64 {
        bits[alphabet[at] as usize] = at as u8;
        at += 1;
    }
    bits[b'-' as usize] = 62;
    bits[b'_' as usize] = 63;
    bits
};

/// Whole bytes of `chars` (RFC 4648, both alphabets).
fn bytes_of(chars: &[u8], out: &mut Vec<u8>) {
    let bits = |b: &u8| u32::from(BITS[usize::from(*b)]);
    let groups = chars.chunks_exact(4);
    let rest = groups.remainder();
    for group in groups {
        let [_, bytes @ ..] = group.iter().fold(0, |sum, char| sum << 6 | bits(char)).to_be_bytes();
        out.extend_from_slice(&bytes);
    }
    if rest.len() >= 2 {
        let sum = rest.iter().fold(0, |sum, char| sum << 6 | bits(char)) << (6 * (4 - rest.len()));
        out.extend_from_slice(&sum.to_be_bytes()[1..rest.len()]);
    }
}

fn decode(
    rooms: &mut [Zeroizing<Vec<u8>>],
    run: Run<'_>,
    search: &dyn Search,
    each: &mut dyn FnMut(Found),
) {
    let Some((room, deeper)) = rooms.split_first_mut() else { return };
    for alignment in 0..run.chars.len().min(4) {
        room.clear();
        reserve(room, run.chars.len());
        bytes_of(&run.chars[alignment..], room);
        let decoded = room.as_slice();
        // Characters that have a part in a byte: the first, and the one after the last.
        let first = |byte: usize| alignment + byte * 8 / 6;
        let after = |byte: usize| alignment + (byte * 8 + 7) / 6 + 1;
        let mut report = |hit: Hit| {
            if hit.weak {
            } else if hit.end <= decoded.len() {
                let (start, end) = (first(hit.start), after(hit.end - 1));
                each(Found::Hit(Hit { start, end, literal: false, ..hit }));
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
        let text = Text { bytes: decoded, from: 0, at: 0, end: !run.is_open };
        runs(text, &mut |start, end| {
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
        for len in 0..20_u8 {
            let bytes: Vec<u8> = (0..len).map(|n| n.wrapping_mul(91).wrapping_add(200)).collect();
            let mut out = Vec::new();
            bytes_of(Base64UrlUnpadded::encode_string(&bytes).as_bytes(), &mut out);
            assert_eq!(out, bytes);
        }
    }
}
