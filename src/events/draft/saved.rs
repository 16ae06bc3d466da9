//! A draft in the runtime state: a head, hidden ranges and collected writes, for the next worker.
//!
//! Invariant: what is loaded goes on as what was saved would have. The caller seals all of it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::redact::{Level, Redactor, View};

use super::super::codec::{Decoder, Encoder};
use super::super::emit::{decode_segment, encode_segment};
use super::{Counts, Draft, Store, Telling};

/// What belongs to a saved head.
pub(in crate::events) struct Parts {
    pub segments: std::ops::Range<u64>,
    packs: u64,
    pub operations: u64,
    len: u64,
    cut: Option<u64>,
}

impl Draft {
    /// Hidden ranges that the runtime state does not have yet, with their numbers.
    pub(in crate::events) fn unsaved(&mut self) -> impl Iterator<Item = (u64, Zeroizing<Vec<u8>>)> {
        self.ranges.unsaved().map(|(number, segment)| (number, encode_segment(segment).0))
    }

    /// Numbers of the hidden ranges that the runtime state has.
    pub(in crate::events) fn segments(&self) -> std::ops::Range<u64> {
        let (all, packed) = self.ranges.count();
        packed..all
    }

    /// Everything but segments and collected operations.
    pub(in crate::events) fn head(&self) -> Zeroizing<Vec<u8>> {
        let state = self.redactor.save();
        let mut head = Encoder::with_capacity(256 + state.len());
        head.number(self.generation)
            .number(self.len)
            .number(self.streamed)
            .number(self.stored)
            .number(self.tail)
            .number(self.ranges.count().0)
            .number(self.ranges.count().1)
            .number(self.ranges.packs())
            .number(self.operations)
            .number(u64::from(self.is_flushed))
            .number(u64::from(self.cut.is_some()))
            .number(self.cut.unwrap_or(0))
            .number(self.lead.left)
            .number(u64::from(self.lead.mixed))
            .bytes(&self.lead.text)
            .bytes(self.level.word().as_bytes())
            .bytes(&state);
        for (request, before) in self.requests {
            head.number(request).number(before);
        }
        head.number(self.forced.len() as u64);
        for (from, to) in &self.forced {
            head.number(*from).number(*to);
        }
        let open = self.open.as_ref().map(encode_segment);
        head.optional(open.as_ref().map(|o| o.0.as_slice()));
        let names: BTreeSet<&String> = self.counted.keys().chain(self.told.keys()).collect();
        head.number(names.len() as u64);
        for name in names {
            let of = |counts: &Counts| counts.get(name).copied().unwrap_or(0);
            head.bytes(name.as_bytes()).number(of(&self.counted)).number(of(&self.told));
        }
        head.number(self.telling.len() as u64);
        for telling in &self.telling {
            head.bytes(telling.name.as_bytes()).number(telling.count).bytes(&telling.once);
        }
        head.0
    }

    /// Takes up again what [`Draft::head`] saved; segments and operations come after.
    pub(in crate::events) fn load(head: &[u8], view: Arc<View>) -> Option<(Self, Parts)> {
        let mut from = Decoder(head);
        let mut draft = Self::new(view.clone(), Level::All);
        draft.generation = from.number()?;
        let len = from.number()?;
        draft.streamed = from.number()?;
        draft.stored = from.number()?;
        draft.tail = from.number()?;
        let (all, packed, packs) = (from.number()?, from.number()?, from.number()?);
        let operations = from.number()?;
        draft.is_flushed = from.number()? != 0;
        let (is_cut, cut) = (from.number()? != 0, from.number()?);
        let segments = packed..all;
        let parts = Parts { segments, packs, operations, len, cut: is_cut.then_some(cut) };
        draft.lead.left = from.number()?;
        draft.lead.mixed = from.number()? != 0;
        draft.lead.text = Zeroizing::new(from.bytes()?.to_vec());
        let word = from.bytes()?;
        draft.level = [Level::All, Level::Formats, Level::Off, Level::Values]
            .into_iter()
            .find(|level| level.word().as_bytes() == word)?;
        draft.redactor = Redactor::resume(view, draft.level, from.bytes()?).ok()?;
        for request in &mut draft.requests {
            *request = (from.number()?, from.number()?);
        }
        for _ in 0..from.number()? {
            draft.forced.push((from.number()?, from.number()?));
        }
        draft.open = match from.optional()? {
            Some(bytes) => Some(decode_segment(bytes)?),
            None => None,
        };
        for _ in 0..from.number()? {
            let name = String::from_utf8(from.bytes()?.to_vec()).ok()?;
            draft.counted.insert(name.clone(), from.number()?);
            draft.told.insert(name, from.number()?);
        }
        // The head of an earlier version ends here.
        for _ in 0..from.number().unwrap_or(0) {
            draft.telling.push(Telling {
                name: String::from_utf8(from.bytes()?.to_vec()).ok()?,
                count: from.number()?,
                later: true,
                once: from.bytes()?.to_vec(),
            });
        }
        (draft.len, draft.is_in_line) = (draft.streamed, draft.streamed > 0);
        draft.is_guess = draft.redactor.is_held_for_others();
        Some((draft, parts))
    }

    /// All segments and operations are back.
    pub(in crate::events) fn complete(&mut self, parts: &Parts) {
        // The base has grown since some of them: where it is cut is not theirs to say.
        (self.len, self.cut) = (parts.len, parts.cut);
    }

    /// A segment that was saved.
    pub(in crate::events) fn add_segment(&mut self, bytes: &[u8]) -> Option<()> {
        self.ranges.add_saved(decode_segment(bytes)?);
        Some(())
    }

    /// Takes up what is packed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(in crate::events) fn add_packs(
        &mut self,
        store: &dyn Store,
        parts: &Parts,
    ) -> io::Result<()> {
        self.ranges.load(store, parts.packs)
    }
}
