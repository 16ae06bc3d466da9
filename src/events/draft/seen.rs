//! What writers see of a draft: the store, hidden ranges, what is held and what is collected over it.
//!
//! Invariant: whatever is secret in it reads as `*`, also what is only held back or collected, since
//! other agents may read it; and what is held back cannot be told by how long a read takes.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::redact::{Redactor, Sink, View};

use super::super::ranges::Part;
use super::{Draft, Nothing, Store, TAIL_BYTES, read_exactly, within};

/// What a hidden byte looks like to writers.
pub(super) const HIDDEN: u8 = b'*';
/// No secret goes on so: what a redactor holds back is decided by it.
const NO_SECRET: &[u8] = b"\n\x01\n\x01";

impl Draft {
    /// Whether what was written contains anything that `view` looks for, or ends in the beginning of
    /// it, which is stored already.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(in crate::events) fn contains(
        &self,
        store: &dyn Store,
        view: &Arc<View>,
    ) -> io::Result<bool> {
        let mut search = Redactor::new(view.clone(), self.level);
        self.each_chunk(store, &mut |chunk| {
            search.push(chunk, &mut Nothing);
            Ok(())
        })?;
        let is_begun = search.held() as u64 > self.given_back();
        Ok(is_begun || search.in_range() || search.counts().next().is_some())
    }

    /// What the store, the segments and the redactor have of the base from `at` on; hidden bytes as
    /// they were written if `raw`, else as writers see them.
    pub(super) fn read_base(
        &self,
        store: &dyn Store,
        at: u64,
        buffer: &mut [u8],
        raw: bool,
    ) -> io::Result<()> {
        let end = (at + buffer.len() as u64).min(self.cut.unwrap_or(u64::MAX)).min(self.streamed);
        let held_from = self.streamed - self.given_back();
        let held = self.redactor.held_bytes();
        let held = &held[within(self.lead.left, 0).min(held.len())..];
        let mut position = at;
        let Part { mut before, ranges } = self.ranges.between(store, at, end)?;
        let (mut index, mut has_read) = (0, false);
        while position < end {
            let segment = ranges.get(index).or(self.open.as_ref());
            let into = within(position, at);
            match segment.filter(|s| s.at <= position && position < s.at + s.len) {
                Some(segment) => {
                    let to = (segment.at + segment.len).min(end);
                    let target = &mut buffer[into..within(to, at)];
                    match &segment.raw {
                        Some(bytes) if raw => {
                            let from = within(position, segment.at);
                            let target_len = target.len();
                            target.copy_from_slice(&bytes[from..from + target_len]);
                        }
                        _ => target.fill(if raw { 0 } else { HIDDEN }),
                    }
                    position = to;
                    before = Some((segment.at + segment.len, segment.stored + segment.stored_len));
                    index += 1;
                }
                None if position >= held_from => {
                    let from = within(position, held_from);
                    let target = &mut buffer[into..within(end, at)];
                    let target_len = target.len();
                    target.copy_from_slice(&held[from..from + target_len]);
                    position = end;
                }
                None => {
                    let next = segment.map(|s| s.at).filter(|next| *next > position);
                    let to = next.unwrap_or(u64::MAX).min(end).min(held_from);
                    let from = before.map_or(position, |(at, stored)| stored + (position - at));
                    read_exactly(store, from, &mut buffer[into..within(to, at)])?;
                    (position, has_read) = (to, true);
                }
            }
        }
        if !has_read && at < end {
            // It takes as long when everything is held.
            store.pretend_read(within(end, at));
        }
        Ok(())
    }

    /// What writers see from `at` on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(in crate::events) fn read(
        &self,
        store: &dyn Store,
        at: u64,
        size: usize,
    ) -> io::Result<Vec<u8>> {
        let size = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(size);
        let mut buffer = vec![0; size];
        self.read_base(store, at, &mut buffer, false)?;
        self.overlay.read(at, &mut buffer);
        // What is held may be a whole secret already, which a longer one could still begin with. That
        // something is held must not show, so all that could be is looked at.
        let could_be_held = self.given_back().max(self.redactor.view().longest() as u64);
        let is_near_end = at + buffer.len() as u64 > self.streamed.saturating_sub(could_be_held);
        if (self.is_dirty() || is_near_end) && !buffer.is_empty() {
            self.mask(store, at, &mut buffer)?;
        }
        Ok(buffer)
    }

    /// Hides what is secret in collected and held bytes: other agents may read them, too.
    fn mask(&self, store: &dyn Store, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        struct Mask<'a> {
            position: u64,
            at: u64,
            buffer: &'a mut [u8],
        }
        impl Sink for Mask<'_> {
            fn clear(&mut self, bytes: &[u8]) {
                self.position += bytes.len() as u64;
            }
            fn hidden(&mut self, raw: &[u8]) {
                let len = self.buffer.len();
                let from = within(self.position, self.at).min(len);
                self.position += raw.len() as u64;
                let to = within(self.position, self.at).min(len);
                self.buffer[from..to].fill(HIDDEN);
            }
            fn marker(&mut self, _: &str, _: u64) {}
        }
        let around = self.redactor.view().longest() as u64 + TAIL_BYTES / 16;
        let from = at.saturating_sub(around);
        let to = (at + buffer.len() as u64 + around).min(self.len);
        let len = within(to, from);
        let mut raw = Zeroizing::new(vec![0; len + NO_SECRET.len()]);
        raw[len..].copy_from_slice(NO_SECRET);
        self.read_base(store, from, &mut raw[..len], true)?;
        self.overlay.read(from, &mut raw[..len]);
        let mut redactor = Redactor::new(self.redactor.view().clone(), self.level);
        let mut mask = Mask { position: from, at, buffer };
        // At once: what is held back for its end is looked at twice otherwise, which takes its time.
        redactor.push(&raw, &mut mask);
        Ok(())
    }
}
