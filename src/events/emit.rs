//! Takes the redactor's output apart: what is stored, and where writers see hidden ranges.
//!
//! Invariant: what a redactor calls hidden is kept as a range, never passed on to the store.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use crate::redact::Sink;

use super::codec::{Decoder, Encoder};
use super::ranges::Ranges;

/// Raw text of a hidden range beyond this is not kept: the range then stays hidden for good.
const MAX_RAW_BYTES: usize = 64 << 10;

/// A hidden range.
#[derive(Clone)]
pub(super) struct Segment {
    /// Where writers see it.
    pub at: u64,
    pub len: u64,
    /// Where its marker is stored.
    pub stored: u64,
    pub stored_len: u64,
    /// The bytes that were written, where they are kept.
    pub raw: Option<Zeroizing<Vec<u8>>>,
    /// What is left of a match that was changed: hidden although no redactor would find it again.
    pub is_remnant: bool,
    /// The marker of an earlier completion, which may still grow; `raw` is its text.
    pub is_marker: bool,
}

/// What a tail stands for, until it is known what the bytes behind it were.
#[derive(Default)]
pub(super) struct Lead {
    /// Held bytes of the earlier writer that the redactor has not given away yet.
    pub left: u64,
    /// The tail as it was stored.
    pub text: Zeroizing<Vec<u8>>,
    /// Some of them are not hidden.
    pub mixed: bool,
}

/// Takes the redactor's output.
pub(super) struct Emit<'a> {
    /// For the store, which keeps it in clear: nothing in it is wiped.
    pub out: Vec<u8>,
    /// Where `out` will be stored.
    pub stored: u64,
    /// Where writers see the next byte.
    pub at: u64,
    pub ranges: &'a mut Ranges,
    pub open: &'a mut Option<Segment>,
    pub lead: &'a mut Lead,
    /// Ranges that stay hidden whatever they contain now.
    pub forced: &'a [(u64, u64)],
}

impl Emit<'_> {
    fn position(&self) -> u64 {
        self.stored + self.out.len() as u64
    }

    /// Takes what of `bytes` an earlier writer's end stands for.
    fn lead<'b>(&mut self, bytes: &'b [u8], hidden: bool) -> &'b [u8] {
        if self.lead.left == 0 {
            return bytes;
        }
        let taken = usize::try_from(self.lead.left).unwrap_or(usize::MAX).min(bytes.len());
        self.lead.left -= taken as u64;
        self.lead.mixed |= !hidden;
        if self.lead.left == 0 {
            let text = std::mem::take(&mut self.lead.text);
            if std::mem::take(&mut self.lead.mixed) {
                // It was taken for a secret's beginning and is none; it stays as it was stored.
                self.out.extend_from_slice(&text);
            } else {
                *self.open = Some(Segment {
                    at: self.at - text.len() as u64,
                    len: text.len() as u64,
                    stored: self.position(),
                    stored_len: 0,
                    raw: None,
                    is_remnant: true,
                    is_marker: false,
                });
            }
        }
        &bytes[taken..]
    }

    fn hide(&mut self, raw: &[u8]) {
        let (at, stored) = (self.at, self.position());
        let open = self.open.get_or_insert_with(|| Segment {
            at,
            len: 0,
            stored,
            stored_len: 0,
            raw: Some(Zeroizing::new(Vec::with_capacity(raw.len().max(64)))),
            is_remnant: false,
            is_marker: false,
        });
        // The text of a marker and some bytes of a secret: nothing would find those again.
        open.is_remnant |= std::mem::take(&mut open.is_marker);
        open.len += raw.len() as u64;
        if let Some(kept) = &mut open.raw {
            if kept.len() + raw.len() > MAX_RAW_BYTES {
                open.raw = None;
            } else {
                kept.extend_from_slice(raw);
            }
        }
        self.at += raw.len() as u64;
    }

    pub(super) fn close(&mut self, text: &str) {
        if let Some(mut open) = self.open.take() {
            open.stored = self.position();
            open.stored_len = text.len() as u64;
            self.out.extend_from_slice(text.as_bytes());
            let is_same = open.raw.as_ref().is_some_and(|raw| raw.as_slice() == text.as_bytes());
            if !(open.is_marker && is_same) {
                self.ranges.push(open);
            }
        }
    }
}

impl Sink for Emit<'_> {
    fn clear(&mut self, bytes: &[u8]) {
        let mut bytes = self.lead(bytes, false);
        while !bytes.is_empty() {
            let next = self.forced.iter().find(|(_, end)| *end > self.at);
            let clear = next.map_or(u64::MAX, |(start, _)| start.saturating_sub(self.at));
            let clear = usize::try_from(clear).unwrap_or(usize::MAX).min(bytes.len());
            self.out.extend_from_slice(&bytes[..clear]);
            self.at += clear as u64;
            bytes = &bytes[clear..];
            if let Some((_, end)) = next
                && !bytes.is_empty()
            {
                let hidden = usize::try_from(end - self.at).unwrap_or(usize::MAX).min(bytes.len());
                self.hide(&bytes[..hidden]);
                if let Some(open) = self.open {
                    open.is_remnant = true;
                }
                bytes = &bytes[hidden..];
                if self.at == *end {
                    self.close("[REDACTED]");
                }
            }
        }
        // The rest of a forced range comes with the next bytes, or is hidden by them.
    }

    fn hidden(&mut self, raw: &[u8]) {
        let raw = self.lead(raw, true);
        if !raw.is_empty() {
            self.hide(raw);
        }
    }

    fn marker(&mut self, text: &str, _raw_len: u64) {
        if self.lead.left > 0 {
            self.lead.mixed = true;
        } else {
            self.close(text);
        }
    }
}

pub(super) fn encode_segment(segment: &Segment) -> Encoder {
    let raw = segment.raw.as_ref().map(|raw| raw.as_slice());
    let mut entry = Encoder::with_capacity(64 + raw.map_or(0, <[u8]>::len));
    entry.number(segment.at).number(segment.len).number(segment.stored);
    entry.number(segment.stored_len).optional(raw).number(u64::from(segment.is_remnant));
    entry.number(u64::from(segment.is_marker));
    entry
}

pub(super) fn decode_segment(bytes: &[u8]) -> Option<Segment> {
    let mut from = Decoder(bytes);
    Some(Segment {
        at: from.number()?,
        len: from.number()?,
        stored: from.number()?,
        stored_len: from.number()?,
        raw: from.optional()?.map(|raw| Zeroizing::new(raw.to_vec())),
        is_remnant: from.number()? != 0,
        is_marker: from.number()? != 0,
    })
}
