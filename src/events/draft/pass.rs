//! One pass over a file that applies what was collected.
//!
//! Invariant: what is left of a hidden range that a write has cut or changed stays hidden.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::redact::View;

use super::super::emit::{Emit, Segment};
use super::{CHUNK_BYTES, Draft, Store, is_in_line, within};

impl Draft {
    /// Everything that was written, as it was written, piece by piece.
    ///
    /// # Errors
    /// When the store cannot be read, or what `each` says.
    pub(super) fn each_chunk(
        &self,
        store: &dyn Store,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = Zeroizing::new(vec![0; CHUNK_BYTES]);
        let mut at = 0;
        while at < self.len {
            let size = within(self.len, at).min(CHUNK_BYTES);
            let chunk = &mut buffer[..size];
            chunk.fill(0);
            self.read_base(store, at, chunk, true)?;
            self.overlay.read(at, chunk);
            each(chunk)?;
            at += size as u64;
        }
        Ok(())
    }

    /// Ranges that are hidden and were changed or are not known any more: what is left of them stays
    /// hidden.
    pub(super) fn forced(&self, store: &dyn Store) -> io::Result<Vec<(u64, u64)>> {
        let end = self.cut.unwrap_or(self.streamed).min(self.streamed);
        let mut forced = Vec::new();
        for (from, to) in &self.forced {
            forced.extend(self.overlay.gaps(*from, (*to).min(end)));
        }
        let mut judge = |segment: &Segment| {
            let (from, to) = (segment.at, segment.at + segment.len);
            let is_known = segment.raw.is_some() && !segment.is_remnant;
            let is_whole = is_known && to <= end && !self.overlay.touches(from, to);
            if !is_whole && !segment.is_marker {
                // What a later write put there is judged as what it is.
                forced.extend(self.overlay.gaps(from, to.min(end)));
            }
        };
        self.ranges.each(store, &mut judge)?;
        self.open.iter().for_each(judge);
        forced.sort_unstable();
        Ok(forced)
    }

    /// Redacts what writers see anew, into an empty store.
    ///
    /// # Errors
    /// When a store cannot be read or written; this draft is as it was then.
    pub(in crate::events) fn rebuild(
        &self,
        source: &dyn Store,
        target: &dyn Store,
        view: Arc<View>,
    ) -> io::Result<Self> {
        let forced = self.forced(source)?;
        let mut new = Self::new(view, self.level);
        new.generation = self.generation + 1;
        new.requests = self.requests;
        new.is_flushed = self.is_flushed;
        new.telling = self.telling.clone();
        self.each_chunk(source, &mut |chunk| {
            let mut emit = Emit {
                out: Vec::with_capacity(chunk.len() + 64),
                stored: new.stored,
                at: new.streamed - new.redactor.held() as u64,
                ranges: &mut new.ranges,
                open: &mut new.open,
                lead: &mut new.lead,
                forced: &forced,
            };
            new.redactor.push(chunk, &mut emit);
            let out = emit.out;
            if out.is_empty() {
                target.pretend_write(new.stored, chunk.len());
            }
            target.write_at(new.stored, &out)?;
            new.stored += out.len() as u64;
            new.streamed += chunk.len() as u64;
            if new.ranges.are_many() {
                new.ranges.pack(target)?;
            }
            Ok(())
        })?;
        new.len = new.streamed;
        new.is_in_line = new.len > 0 && is_in_line(new.redactor.kept_bytes());
        let reached = new.streamed - new.redactor.held() as u64;
        new.forced = forced;
        new.forced.retain(|(_, end)| *end > reached);
        new.count();
        new.is_guess = new.redactor.is_held_for_others();
        // Those of an earlier pass are on record, as far as they are still there.
        for (name, told) in &self.told {
            let there = new.counted.get(name).copied().unwrap_or(0);
            new.told.insert(name.clone(), there.min(*told));
        }
        Ok(new)
    }
}
