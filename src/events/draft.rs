//! A file that is being written: what its writers see, and what is stored of it.
//!
//! ```text
//! writers see   |........base: given to the redactor........|..held..|      + collected writes over it
//! stored        |..clear..[REDACTED:A]..clear..| tail |
//! ```
//!
//! The base is what was written in order; its output is stored as soon as the redactor decides. What
//! is written elsewhere, or cut off, is collected, and applied by [`Draft::rebuild`] in one pass to a
//! new store. The tail is what a completion had to decide for the held bytes; a later append replaces
//! it. Invariant: the store holds what a redactor makes of the base, never a byte more.
//! Writers see hidden bytes as `*`, so that their offsets stay their own.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::redact::{Level, Redactor, Sink, View};

use super::codec::{Decoder, Encoder};
use super::emit::{Emit, Lead, Segment, decode_segment, encode_segment};
use super::overlay::Overlay;
use super::ranges::{Part, Ranges};

/// What a hidden byte looks like to writers.
const HIDDEN: u8 = b'*';
/// Of one pass over a file.
const CHUNK_BYTES: usize = 256 << 10;
/// What is read of a stored file's end to find what could be the beginning of a secret.
const TAIL_BYTES: u64 = 64 << 10;
/// No secret goes on so: what a redactor holds back is decided by it.
const NO_SECRET: &[u8] = b"\n\x01\n\x01";
/// Requests of a file that may come again.
const REQUESTS: usize = 4;

/// A stored file.
pub(super) trait Store {
    /// Fills `buffer` from byte `at` on; fewer bytes at the end.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes` at byte `at`.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Takes as long as a read of so many bytes.
    fn pretend_read(&self, len: usize);
    /// Takes as long as a write of so many bytes to a store that ends at `at`.
    fn pretend_write(&self, at: u64, len: usize);
    /// Makes it so long.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// How long it is.
    fn len(&self) -> io::Result<u64>;
    /// Keeps a pack of hidden ranges beside it, sealed; those after it are forgotten.
    fn put_pack(&self, number: u64, plain: &[u8]) -> io::Result<()>;
    /// A pack that was put.
    fn pack(&self, number: u64) -> io::Result<Zeroizing<Vec<u8>>>;
    /// Finds the first packs that an earlier worker put, and forgets those after them.
    fn keep_packs(&self, count: u64) -> io::Result<()>;
}

/// The redactor's state at a file's end, for the next writer.
pub(super) struct Kept {
    /// Bytes of the store that are decided.
    pub stored: u64,
    /// Bytes behind them that were decided for the end of the file.
    pub tail: u64,
    /// The redactor, before that.
    pub state: Zeroizing<Vec<u8>>,
}

/// See the module.
pub(super) struct Draft {
    redactor: Redactor,
    level: Level,
    len: u64,
    /// Of the base, as writers count.
    streamed: u64,
    stored: u64,
    tail: u64,
    ranges: Ranges,
    open: Option<Segment>,
    lead: Lead,
    overlay: Overlay,
    /// The base counts up to here only.
    cut: Option<u64>,
    /// What of the base stays hidden whatever it contains now, as far as it is still held.
    forced: Vec<(u64, u64)>,
    /// Collected operations since the last rebuild, and their bytes.
    pub operations: u64,
    pub held_bytes: u64,
    /// Grows with each rebuild.
    pub generation: u64,
    /// The last requests, each with the length that it met.
    pub requests: [(u64, u64); REQUESTS],
    /// A close followed the last write.
    pub is_flushed: bool,
    /// Markers by name, and how many of them are on record.
    counted: Counts,
    told: Counts,
    /// Those of the tail.
    ending: Counts,
}

type Counts = BTreeMap<String, u64>;

/// A collected operation.
pub(super) enum Operation<'a> {
    Write(u64, &'a [u8]),
    Truncate(u64),
}

fn within(position: u64, base: u64) -> usize {
    usize::try_from(position.saturating_sub(base)).unwrap_or(usize::MAX)
}

impl Draft {
    /// Of a new, empty file.
    pub(super) fn new(view: Arc<View>, level: Level) -> Self {
        Self {
            redactor: Redactor::new(view, level),
            level,
            len: 0,
            streamed: 0,
            stored: 0,
            tail: 0,
            ranges: Ranges::default(),
            open: None,
            lead: Lead::default(),
            overlay: Overlay::default(),
            cut: None,
            forced: Vec::new(),
            operations: 0,
            held_bytes: 0,
            generation: 0,
            requests: [(0, 0); REQUESTS],
            is_flushed: true,
            counted: Counts::new(),
            told: Counts::new(),
            ending: Counts::new(),
        }
    }

    /// Of a stored file, going on where its last writer was, if that is known.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn reopen(
        view: Arc<View>,
        level: Level,
        store: &dyn Store,
        kept: Option<Kept>,
    ) -> io::Result<Self> {
        let len = store.len()?;
        let mut draft = Self::new(view.clone(), level);
        (draft.len, draft.streamed) = (len, len);
        let known = kept.filter(|kept| kept.stored + kept.tail == len).and_then(|kept| {
            let redactor = Redactor::resume(view, level, &kept.state).ok()?;
            Some((kept, redactor))
        });
        if let Some((kept, redactor)) = known {
            draft.redactor = redactor;
            draft.stored = kept.stored;
            draft.tail = kept.tail;
            let mut text = Zeroizing::new(vec![0; within(kept.tail, 0)]);
            match text.is_empty() {
                // It takes as long as an end that was decided.
                true => store.pretend_read(1),
                false => read_exactly(store, kept.stored, &mut text)?,
            }
            let held = draft.redactor.held_bytes();
            match text.strip_suffix(held) {
                Some([]) if !draft.redactor.in_range() => {}
                // A range whose marker is there: more of it may come.
                Some(marker @ [.., b']']) if draft.redactor.in_range() => {
                    draft.open = Some(Segment {
                        at: kept.stored,
                        len: marker.len() as u64,
                        stored: kept.stored,
                        stored_len: 0,
                        raw: Some(Zeroizing::new(marker.to_vec())),
                        is_remnant: false,
                        is_marker: true,
                    });
                }
                _ => draft.lead = Lead { left: held.len() as u64, text, mixed: false },
            }
            return Ok(draft);
        }
        let (redactor, held) = Self::scanned(draft.redactor_view(), level, store, len)?;
        draft.redactor = redactor;
        draft.stored = len - held;
        draft.tail = held;
        Ok(draft)
    }

    fn redactor_view(&self) -> Arc<View> {
        self.redactor.view().clone()
    }

    /// A redactor that has seen the end of what is stored, and how much of it it holds back.
    fn scanned(
        view: Arc<View>,
        level: Level,
        store: &dyn Store,
        len: u64,
    ) -> io::Result<(Redactor, u64)> {
        let from = len.saturating_sub(TAIL_BYTES);
        let mut end = Zeroizing::new(vec![0; within(len, from)]);
        read_exactly(store, from, &mut end)?;
        let mut redactor = Redactor::new(view.clone(), level);
        redactor.push(&end, &mut Nothing);
        if redactor.in_range() {
            return Ok((Redactor::new(view, level), 0));
        }
        redactor.clear_counts();
        let held = redactor.held() as u64;
        Ok((redactor, held))
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// Whether writers see something else than what is stored.
    pub(super) fn has_hidden(&self) -> bool {
        !self.ranges.is_empty() || self.open.is_some() || self.len != self.stored_len()
    }

    /// As writers see it.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of the store.
    pub(super) fn stored_len(&self) -> u64 {
        self.stored + self.tail
    }

    /// The same, once what is held is in it. What is held for whom is nobody's to learn from a quota.
    pub(super) fn weight(&self) -> u64 {
        self.stored + self.tail.max(self.redactor.held() as u64)
    }

    /// Whether something is collected that the store does not show.
    pub(super) fn is_dirty(&self) -> bool {
        !self.overlay.is_empty() || self.cut.is_some() || self.len != self.streamed
    }

    /// The view that it is redacted by, and a newer one from now on.
    pub(super) fn view(&mut self) -> &Arc<View> {
        self.redactor.view()
    }

    pub(super) fn set_view(&mut self, view: Arc<View>) {
        self.redactor.set_view(view);
    }

    /// Takes the counts of markers since the last time.
    pub(super) fn take_counts(&mut self) -> Vec<(String, u64)> {
        let mut all = self.counted.clone();
        for (name, n) in &self.ending {
            *all.entry(name.clone()).or_default() += n;
        }
        let told = |name: &String| self.told.get(name).copied().unwrap_or(0);
        let new = all.iter().map(|(name, n)| (name.clone(), n.saturating_sub(told(name))));
        let new = new.filter(|(_, n)| *n > 0).collect();
        self.told = all;
        new
    }

    /// Counts what the redactor has marked since the last time.
    fn count(&mut self) {
        for (name, n) in self.redactor.counts() {
            match self.counted.get_mut(name) {
                Some(counted) => *counted += n,
                None => drop(self.counted.insert(name.to_owned(), n)),
            }
        }
        self.redactor.clear_counts();
    }

    /// Whether what was written contains anything that `view` looks for, or ends in the beginning of
    /// it, which is stored already.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn contains(&self, store: &dyn Store, view: &Arc<View>) -> io::Result<bool> {
        let mut search = Redactor::new(view.clone(), self.level);
        let mut buffer = Zeroizing::new(vec![0; CHUNK_BYTES]);
        let mut at = 0;
        while at < self.len {
            let size = within(self.len, at).min(CHUNK_BYTES);
            let chunk = &mut buffer[..size];
            chunk.fill(0);
            self.read_base(store, at, chunk, true)?;
            self.overlay.read(at, chunk);
            search.push(chunk, &mut Nothing);
            at += size as u64;
        }
        let is_begun = search.held() as u64 > self.given_back();
        Ok(is_begun || search.in_range() || search.counts().next().is_some())
    }

    /// Whether a write at `at` only adds to the base.
    pub(super) fn is_next(&self, at: u64) -> bool {
        at == self.len
            && self.len == self.streamed
            && self.cut.is_none()
            && self.overlay.end() <= self.streamed
    }

    /// Adds to the base; what is decided is stored. Whether anything was.
    ///
    /// # Errors
    /// When the store cannot be written; the draft must be read from the runtime state again then.
    pub(super) fn stream(&mut self, store: &dyn Store, bytes: &[u8]) -> io::Result<bool> {
        let at = self.streamed - self.given_back();
        let mut emit = Emit {
            out: Vec::with_capacity(bytes.len() + 64),
            stored: self.stored,
            at,
            ranges: &mut self.ranges,
            open: &mut self.open,
            lead: &mut self.lead,
            forced: &self.forced,
        };
        self.redactor.push(bytes, &mut emit);
        let (out, reached) = (emit.out, emit.at);
        self.count();
        self.forced.retain(|(_, end)| *end > reached);
        self.streamed += bytes.len() as u64;
        self.len = self.streamed;
        if out.is_empty() {
            store.pretend_write(self.stored, bytes.len());
        } else {
            store.write_at(self.stored, &out)?;
            self.stored += out.len() as u64;
            if self.tail > out.len() as u64 {
                store.set_len(self.stored)?;
            }
            self.tail = 0;
            self.ending.clear();
        }
        Ok(!out.is_empty())
    }

    /// Bytes of the base that the redactor holds, as far as writers see them as such.
    fn given_back(&self) -> u64 {
        self.redactor.held() as u64 - self.lead.left
    }

    /// Collects an operation.
    pub(super) fn collect(&mut self, operation: &Operation<'_>) {
        match *operation {
            Operation::Write(at, bytes) => {
                self.overlay.write(at, bytes);
                self.len = self.len.max(at + bytes.len() as u64);
                self.held_bytes += bytes.len() as u64;
            }
            Operation::Truncate(len) => {
                self.overlay.truncate(len);
                if len < self.streamed {
                    self.cut = Some(self.cut.map_or(len, |cut| cut.min(len)));
                }
                self.len = len;
            }
        }
        self.operations += 1;
    }

    /// What the store, the segments and the redactor have of the base from `at` on; hidden bytes as
    /// they were written if `raw`, else as writers see them.
    fn read_base(
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
    pub(super) fn read(&self, store: &dyn Store, at: u64, size: usize) -> io::Result<Vec<u8>> {
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
        let mut raw = Zeroizing::new(vec![0; within(to, from)]);
        self.read_base(store, from, &mut raw, true)?;
        self.overlay.read(from, &mut raw);
        let mut redactor = Redactor::new(self.redactor.view().clone(), self.level);
        let mut mask = Mask { position: from, at, buffer };
        redactor.push(&raw, &mut mask);
        redactor.push(NO_SECRET, &mut mask);
        Ok(())
    }

    /// Ranges that are hidden and were changed or are not known any more: what is left of them stays
    /// hidden.
    fn forced(&self, store: &dyn Store) -> io::Result<Vec<(u64, u64)>> {
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
    pub(super) fn rebuild(
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
        let mut buffer = Zeroizing::new(vec![0; CHUNK_BYTES]);
        let mut at = 0;
        while at < self.len {
            let size = within(self.len, at).min(CHUNK_BYTES);
            let chunk = &mut buffer[..size];
            chunk.fill(0);
            self.read_base(source, at, chunk, true)?;
            self.overlay.read(at, chunk);
            let mut emit = Emit {
                out: Vec::with_capacity(size + 64),
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
                target.pretend_write(new.stored, size);
            }
            target.write_at(new.stored, &out)?;
            new.stored += out.len() as u64;
            at += size as u64;
            new.streamed = at;
            if new.ranges.are_many() {
                new.ranges.pack(target)?;
            }
        }
        new.len = new.streamed;
        let reached = new.streamed - new.redactor.held() as u64;
        new.forced = forced;
        new.forced.retain(|(_, end)| *end > reached);
        new.count();
        // Those of an earlier pass are on record, as far as they are still there.
        for (name, told) in &self.told {
            let there = new.counted.get(name).copied().unwrap_or(0);
            new.told.insert(name.clone(), there.min(*told));
        }
        Ok(new)
    }

    /// Decides about what is held, and stores it behind the rest; more may follow all the same.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub(super) fn settle(&mut self, store: &dyn Store) -> io::Result<()> {
        let (out, _, counts) = self.ending();
        self.ending = counts;
        let mut now = vec![0; within(self.tail, 0)];
        if self.stored_len() == store.len()? {
            read_exactly(store, self.stored, &mut now)?;
            if now == out {
                // Not touched: its times stay.
                store.pretend_write(1, 1);
                return Ok(());
            }
        }
        store.write_at(self.stored, &out)?;
        let before = std::mem::replace(&mut self.tail, out.len() as u64);
        if before > self.tail || store.len()? > self.stored_len() {
            store.set_len(self.stored_len())?;
        }
        Ok(())
    }

    /// What stands for the held bytes at the end, and the ranges in it.
    fn ending(&self) -> (Vec<u8>, Ranges, Counts) {
        let state = self.redactor.save();
        let mut lead =
            Lead { left: self.lead.left, text: self.lead.text.clone(), mixed: self.lead.mixed };
        let (mut ranges, mut open) = (Ranges::default(), self.open.clone());
        let mut emit = Emit {
            out: Vec::new(),
            stored: self.stored,
            at: self.streamed - self.given_back(),
            ranges: &mut ranges,
            open: &mut open,
            lead: &mut lead,
            forced: &self.forced,
        };
        let view = self.redactor.view().clone();
        let mut counts = Counts::new();
        if let Ok(mut copy) = Redactor::resume(view, self.level, &state) {
            copy.finish(&mut emit);
            counts.extend(copy.counts().map(|(name, n)| (name.to_owned(), n)));
        }
        emit.close("[REDACTED]");
        (emit.out, ranges, counts)
    }

    /// What the next writer needs, after [`Draft::settle`].
    pub(super) fn kept(&self) -> Kept {
        Kept { stored: self.stored, tail: self.tail, state: self.redactor.save() }
    }

    /// As those who still read it see it, after [`Draft::settle`]: the end decided, nothing raw kept.
    pub(super) fn freeze(mut self) -> Self {
        let (_, ranges, _) = self.ending();
        self.ranges.append(ranges);
        self.open = None;
        self.ranges.forget_text();
        self.stored += self.tail;
        self.tail = 0;
        self.lead = Lead::default();
        let view = self.redactor.view().clone();
        self.redactor = Redactor::new(view, self.level);
        self
    }

    /// Whether this request was carried out before.
    pub(super) fn has_done(&self, request: u64) -> bool {
        self.requests.iter().any(|(id, _)| *id == request)
    }

    /// Notes a request that was carried out, and how long the file was before.
    pub(super) fn note(&mut self, request: u64, before: u64) {
        self.requests.rotate_right(1);
        self.requests[0] = (request, before);
    }

    /// Whether the file was so long when one of the last requests came.
    pub(super) fn was_so_long(&self, len: u64) -> bool {
        self.requests.iter().any(|(_, before)| *before == len)
    }

    /// Hidden ranges that the runtime state does not have yet, with their numbers.
    pub(super) fn unsaved(&mut self) -> impl Iterator<Item = (u64, Zeroizing<Vec<u8>>)> {
        self.ranges.unsaved().map(|(number, segment)| (number, encode_segment(segment).0))
    }

    /// Numbers of the hidden ranges that the runtime state has.
    pub(super) fn segments(&self) -> std::ops::Range<u64> {
        let (all, packed) = self.ranges.count();
        packed..all
    }

    /// Whether there are so many hidden ranges that [`Draft::pack`] is due.
    pub(super) fn has_many(&self) -> bool {
        self.ranges.are_many()
    }

    /// Puts hidden ranges beside the store; the numbers in the runtime state that may go when the
    /// head is saved.
    ///
    /// # Errors
    /// When they cannot be stored; nothing has changed then.
    pub(super) fn pack(&mut self, store: &dyn Store) -> io::Result<std::ops::Range<u64>> {
        self.ranges.pack(store)
    }

    /// Everything but segments and collected operations.
    pub(super) fn head(&self) -> Zeroizing<Vec<u8>> {
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
        head.number(self.counted.len() as u64);
        for (name, count) in &self.counted {
            let told = self.told.get(name).copied().unwrap_or(0);
            head.bytes(name.as_bytes()).number(*count).number(told);
        }
        head.0
    }

    /// Takes up again what [`Draft::head`] saved; segments and operations come after.
    pub(super) fn load(head: &[u8], view: Arc<View>) -> Option<(Self, Parts)> {
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
        draft.len = draft.streamed;
        Some((draft, parts))
    }

    /// All segments and operations are back.
    pub(super) fn complete(&mut self, parts: &Parts) {
        // The base has grown since some of them: where it is cut is not theirs to say.
        (self.len, self.cut) = (parts.len, parts.cut);
    }

    /// A segment that was saved.
    pub(super) fn add_segment(&mut self, bytes: &[u8]) -> Option<()> {
        self.ranges.add_saved(decode_segment(bytes)?);
        Some(())
    }

    /// Takes up what is packed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn add_packs(&mut self, store: &dyn Store, parts: &Parts) -> io::Result<()> {
        self.ranges.load(store, parts.packs)
    }
}

/// Takes nothing: what is looked for is counted.
pub(super) struct Nothing;

impl Sink for Nothing {
    fn clear(&mut self, _: &[u8]) {}
    fn hidden(&mut self, _: &[u8]) {}
    fn marker(&mut self, _: &str, _: u64) {}
}

/// What belongs to a saved head.
pub(super) struct Parts {
    pub segments: std::ops::Range<u64>,
    packs: u64,
    pub operations: u64,
    len: u64,
    cut: Option<u64>,
}

fn read_exactly(store: &dyn Store, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match store.read_at(at + done as u64, &mut buffer[done..])? {
            0 => {
                let what = "a stored event file is shorter than it was";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            n => done += n,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::{Index, Others, Value, redact};
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Memory(RefCell<Vec<u8>>, RefCell<Vec<Vec<u8>>>);

    impl Store for Memory {
        fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
            let bytes = self.0.borrow();
            let from = (at as usize).min(bytes.len());
            let n = buffer.len().min(bytes.len() - from);
            buffer[..n].copy_from_slice(&bytes[from..from + n]);
            Ok(n)
        }
        fn write_at(&self, at: u64, new: &[u8]) -> io::Result<()> {
            let mut bytes = self.0.borrow_mut();
            let end = at as usize + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at as usize..end].copy_from_slice(new);
            Ok(())
        }
        fn pretend_read(&self, _: usize) {}
        fn pretend_write(&self, _: u64, _: usize) {}
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.borrow_mut().resize(len as usize, 0);
            Ok(())
        }
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.borrow().len() as u64)
        }
        fn put_pack(&self, number: u64, plain: &[u8]) -> io::Result<()> {
            let mut packs = self.1.borrow_mut();
            packs.truncate(number as usize);
            packs.push(plain.to_vec());
            Ok(())
        }
        fn pack(&self, number: u64) -> io::Result<Zeroizing<Vec<u8>>> {
            Ok(Zeroizing::new(self.1.borrow()[number as usize].clone()))
        }
        fn keep_packs(&self, count: u64) -> io::Result<()> {
            self.1.borrow_mut().truncate(count as usize);
            Ok(())
        }
    }

    const VALUES: [&str; 3] = ["Zk8Wq2LmN5rT7yU0", "abcdabcd-abcdabcd", "N5rT7yU0-more-of-it"];

    fn view() -> Arc<View> {
        let index =
            Index::build(VALUES.iter().zip(0..).map(|(v, id)| Value { id, bytes: v.as_bytes() }));
        let names = (0..).zip(VALUES).map(|(id, _)| (id, format!("N{id}").into())).collect();
        Arc::new(View::new(&Arc::new(index), names, Others::Unseen))
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(Vec<u8>),
        Write(u64, Vec<u8>),
        Truncate(u64),
        Rebuild,
        /// Another worker takes over.
        Crash,
        Settle,
        /// Hidden ranges are put beside the store.
        Pack,
        Read(u64, usize),
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            "[ -~\n]{0,12}".prop_map(String::into_bytes),
            (0..VALUES.len(), 0..20_usize, 0..20_usize).prop_map(|(n, a, b)| {
                let value = VALUES[n].as_bytes();
                let (a, b) = (a.min(value.len()), b.min(value.len()));
                value[a.min(b)..a.max(b)].to_vec()
            }),
            (0..VALUES.len()).prop_map(|n| VALUES[n].as_bytes().to_vec()),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => piece().prop_map(Step::Append),
            2 => (0_u64..120, piece()).prop_map(|(at, bytes)| Step::Write(at, bytes)),
            1 => (0_u64..120).prop_map(Step::Truncate),
            1 => Just(Step::Rebuild),
            2 => Just(Step::Crash),
            1 => Just(Step::Settle),
            2 => Just(Step::Pack),
            1 => (0_u64..120, 0_usize..60).prop_map(|(at, n)| Step::Read(at, n)),
        ]
    }

    /// A draft with all that the runtime state has of it.
    struct Desk {
        draft: Draft,
        store: Memory,
        head: Zeroizing<Vec<u8>>,
        segments: BTreeMap<u64, Zeroizing<Vec<u8>>>,
        operations: Vec<Step>,
    }

    impl Desk {
        fn new() -> Self {
            let draft = Draft::new(view(), Level::Values);
            let head = draft.head();
            let (store, segments) = (Memory::default(), BTreeMap::new());
            Self { draft, store, head, segments, operations: Vec::new() }
        }

        fn save(&mut self) {
            self.segments.extend(self.draft.unsaved());
            self.head = self.draft.head();
        }

        fn rebuild(&mut self) {
            let target = Memory::default();
            self.draft = self.draft.rebuild(&self.store, &target, view()).unwrap();
            self.store = target;
            self.segments.clear();
            self.operations.clear();
            self.save();
        }

        fn pack(&mut self) {
            let packed = self.draft.pack(&self.store).unwrap();
            self.save();
            packed.for_each(|number| drop(self.segments.remove(&number)));
        }

        fn crash(&mut self) {
            let (mut draft, parts) = Draft::load(&self.head, view()).unwrap();
            for number in parts.segments.clone() {
                draft.add_segment(&self.segments[&number]).unwrap();
            }
            draft.add_packs(&self.store, &parts).unwrap();
            assert_eq!(parts.operations, self.operations.len() as u64);
            for operation in &self.operations {
                match operation {
                    Step::Write(at, bytes) => draft.collect(&Operation::Write(*at, bytes)),
                    Step::Truncate(len) => draft.collect(&Operation::Truncate(*len)),
                    _ => unreachable!(),
                }
            }
            draft.complete(&parts);
            self.draft = draft;
        }

        fn write(&mut self, at: u64, bytes: &[u8]) {
            if bytes.is_empty() {
                return;
            }
            if self.draft.is_next(at) {
                self.draft.stream(&self.store, bytes).unwrap();
            } else {
                self.draft.collect(&Operation::Write(at, bytes));
                self.operations.push(Step::Write(at, bytes.to_vec()));
            }
            self.save();
        }

        fn finish(&mut self) {
            if self.draft.is_dirty() {
                self.rebuild();
            }
            self.draft.settle(&self.store).unwrap();
        }
    }

    #[test]
    fn what_is_left_of_a_secret_that_was_written_over_stays_hidden() {
        for value in VALUES {
            for (at, new) in [(0, "x"), (3, "y"), (value.len() as u64 - 1, "z")] {
                let mut desk = Desk::new();
                desk.write(0, format!("{value}{}", &value[..4]).as_bytes());
                desk.write(at, new.as_bytes());
                for _ in 0..3 {
                    desk.rebuild();
                    desk.crash();
                }
                desk.write(desk.draft.len(), b" and more");
                desk.finish();
                let stored = text(&desk.store.0.borrow());
                for part in value.as_bytes().windows(5) {
                    assert!(!stored.contains(&text(part)), "{stored}");
                }
                assert!(stored.contains(new) && stored.ends_with(" and more"), "{stored}");
                // Cut off, it does not come back either.
                desk.draft.collect(&Operation::Truncate(5));
                desk.operations.push(Step::Truncate(5));
                desk.save();
                desk.rebuild();
                desk.finish();
                let stored = text(&desk.store.0.borrow());
                assert!(!stored.contains(&value[..4]), "{stored}");
            }
        }
    }

    /// A log with a secret in each line.
    #[test]
    fn a_million_redactions_of_one_file_take_no_memory() {
        let lines: u64 = 1_000_000;
        let mut desk = Desk::new();
        let mut most = 0;
        let chunk: String = (0..1000).map(|n| format!("{n} {} x\n", VALUES[0])).collect();
        for _ in 0..lines / 1000 {
            desk.draft.stream(&desk.store, chunk.as_bytes()).unwrap();
            let held = desk.draft.segments();
            most = most.max(held.end - held.start);
            if desk.draft.has_many() {
                desk.draft.pack(&desk.store).unwrap();
            }
        }
        desk.save();
        assert!(most <= 2000, "{most} ranges in memory");
        let kept: usize = desk.store.1.borrow().iter().map(Vec::len).sum();
        assert!(kept as u64 <= 16 * lines, "{kept} bytes beside the store");
        desk.crash();
        // Writers' places are their own, wherever they look.
        let len = chunk.len() as u64;
        let hidden = chunk.replace(VALUES[0], &"*".repeat(VALUES[0].len()));
        for turn in [0, 1, 500, 998, 999] {
            let seen = desk.draft.read(&desk.store, turn * len, chunk.len()).unwrap();
            assert!(seen == hidden.as_bytes(), "{turn}");
        }
        // A pass over all of it, with something changed.
        desk.draft.collect(&Operation::Write(len, b"7"));
        desk.operations.push(Step::Write(len, b"7".to_vec()));
        let again = desk.draft.rebuild(&desk.store, &Memory::default(), view()).unwrap();
        let held = again.segments();
        assert_eq!(held.end, lines);
        assert!(held.end - held.start <= 20_000, "{held:?}");
        assert_eq!(again.len(), desk.draft.len());
        let marked = chunk.replace(VALUES[0], "[REDACTED:N0]");
        assert_eq!(desk.store.0.borrow().len() as u64, 1000 * marked.len() as u64);
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(
            std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000)
        ))]

        /// The oracle of the design, for one session of writing.
        #[test]
        fn what_is_stored_is_what_redaction_makes_of_a_plain_file(
            steps in proptest::collection::vec(step(), 1..25)
        ) {
            let mut desk = Desk::new();
            let mut plain: Vec<u8> = Vec::new();
            // Once a hidden range was changed, what is left of it stays hidden.
            let mut cut = false;
            for step in steps {
                match step {
                    Step::Append(bytes) => {
                        desk.write(plain.len() as u64, &bytes);
                        plain.extend_from_slice(&bytes);
                    }
                    Step::Write(at, bytes) => {
                        desk.write(at, &bytes);
                        if !bytes.is_empty() {
                            let end = at as usize + bytes.len();
                            if plain.len() < end {
                                plain.resize(end, 0);
                            }
                            plain[at as usize..end].copy_from_slice(&bytes);
                        }
                    }
                    Step::Truncate(len) => {
                        if len != desk.draft.len() {
                            desk.draft.collect(&Operation::Truncate(len));
                            desk.operations.push(Step::Truncate(len));
                            desk.save();
                            plain.resize(len as usize, 0);
                        }
                    }
                    Step::Rebuild => {
                        cut |= !desk.draft.forced(&desk.store).unwrap().is_empty();
                        desk.rebuild();
                    }
                    Step::Crash => desk.crash(),
                    Step::Pack => desk.pack(),
                    Step::Settle => {
                        if !desk.draft.is_dirty() {
                            desk.draft.settle(&desk.store).unwrap();
                            desk.save();
                        }
                    }
                    Step::Read(at, n) => {
                        let seen = desk.draft.read(&desk.store, at, n).unwrap();
                        let from = (at as usize).min(plain.len());
                        let real = &plain[from..(from + n).min(plain.len())];
                        prop_assert_eq!(seen.len(), real.len());
                        for value in VALUES {
                            prop_assert!(!text(&seen).contains(value));
                        }
                        for (s, r) in seen.iter().zip(real) {
                            prop_assert!(s == r || *s == HIDDEN, "{} {}", text(&seen), text(real));
                        }
                    }
                }
                prop_assert_eq!(desk.draft.len(), plain.len() as u64);
                for value in VALUES {
                    prop_assert!(!text(&desk.store.0.borrow()).contains(value));
                }
            }
            cut |= !desk.draft.forced(&desk.store).unwrap().is_empty();
            desk.finish();
            let stored = text(&desk.store.0.borrow());
            prop_assert_eq!(stored.len() as u64, desk.draft.stored_len());
            for value in VALUES {
                prop_assert!(!stored.contains(value));
            }
            if !cut {
                prop_assert_eq!(&stored, &text(&redact(&view(), Level::Values, &plain)));
            }
            // Whoever still reads it sees the same length.
            let frozen = desk.draft.freeze();
            let seen = frozen.read(&desk.store, 0, plain.len() + 9).unwrap();
            prop_assert_eq!(seen.len(), plain.len());
        }

        /// A file that is closed and opened again between appends.
        #[test]
        fn a_secret_completed_by_a_later_append_is_caught(
            parts in proptest::collection::vec(piece(), 1..8), known in any::<bool>()
        ) {
            let store = Memory::default();
            let mut plain = Vec::new();
            let mut kept: Option<Kept> = None;
            // An end that was taken for a secret's and then was none stays as it was stored.
            let mut taken_back = false;
            for part in parts {
                let mut draft = Draft::reopen(
                    view(), Level::Values, &store, kept.take().filter(|_| known),
                ).unwrap();
                let size = store.len().unwrap();
                prop_assert_eq!(draft.len(), size);
                prop_assert_eq!(draft.read(&store, 0, 1000).unwrap().len() as u64, size);
                prop_assert!(draft.is_next(size));
                draft.stream(&store, &part).unwrap();
                plain.extend_from_slice(&part);
                prop_assert_eq!(draft.len(), size + part.len() as u64);
                let seen = draft.read(&store, 0, 1000).unwrap();
                prop_assert_eq!(seen.len() as u64, draft.len());
                draft.settle(&store).unwrap();
                kept = Some(draft.kept());
                let frozen = draft.freeze();
                prop_assert_eq!(frozen.read(&store, 0, 1000).unwrap().len(), seen.len());
                let now = text(&store.0.borrow());
                let expected = text(&redact(&view(), Level::Values, &plain));
                taken_back |= now != expected;
                for value in VALUES {
                    prop_assert!(!now.contains(value) , "{}", now);
                }
                if taken_back && known {
                    // Only ever more is hidden, never less.
                    prop_assert!(
                        now.matches("[REDACTED").count() >= expected.matches("[REDACTED").count(),
                        "{} {}", now, expected
                    );
                }
            }
        }
    }
}
