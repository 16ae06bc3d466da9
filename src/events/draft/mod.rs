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

mod pass;
mod saved;
mod seen;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::redact::{Level, Redactor, Sink, View};

use super::codec::Encoder;
use super::emit::{Emit, Lead, Segment};
use super::overlay::Overlay;
use super::ranges::Ranges;

/// Of one pass over a file.
const CHUNK_BYTES: usize = 256 << 10;
/// What is read of a stored file's end to find what could be the beginning of a secret.
const TAIL_BYTES: u64 = 64 << 10;
/// The longest write that is pretended for what may have been held back, and that is looked at twice.
const PRETENDED_BYTES: usize = 4 << 10;
const AGAIN_BYTES: usize = 1 << 10;
/// So many bytes may have been held back when more are written.
const HELD_BYTES: usize = 256;
/// The shortest line of wrapped base64, as the redactor has it.
const RUN_BYTES: usize = 16;
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
    /// The last line of what was written has no end yet, as far as this worker knows: of such a one a
    /// part may be held back.
    is_in_line: bool,
    /// Bytes of that line that were stored since the file was opened.
    line: u64,
    /// It ends in so much of a value of others that it may be a guess, and how often that was asked
    /// for, or given up.
    is_guess: bool,
    guesses: u64,
    /// Markers by name, and how many of them are on record.
    counted: Counts,
    told: Counts,
    /// Those of the tail.
    ending: Counts,
    /// What `told` counts and may not be on record yet.
    pub telling: Vec<Telling>,
}

/// Markers that are to be recorded, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telling {
    /// The secret's name, or a rule's id; empty for values of others.
    pub name: String,
    /// How many.
    pub count: u64,
    /// Of what was there before it was looked for, or noted by an earlier worker.
    pub later: bool,
    /// No other record has the same.
    pub once: Vec<u8>,
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
            is_in_line: false,
            line: 0,
            is_guess: false,
            guesses: 0,
            counted: Counts::new(),
            told: Counts::new(),
            ending: Counts::new(),
            telling: Vec::new(),
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
        (draft.len, draft.streamed, draft.is_in_line) = (len, len, len > 0);
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
            draft.is_guess = draft.redactor.is_held_for_others();
            return Ok(draft);
        }
        let (redactor, held) = Self::scanned(draft.redactor_view(), level, store, len)?;
        draft.redactor = redactor;
        draft.stored = len - held;
        draft.tail = held;
        draft.is_guess = draft.redactor.is_held_for_others();
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

    /// Has the markers since the last time told, of the file of this number. To be saved before they
    /// are: what is counted from then on comes on top.
    pub(super) fn take_counts(&mut self, inode: u64, later: bool) {
        let mut all = self.counted.clone();
        for (name, n) in &self.ending {
            *all.entry(name.clone()).or_default() += n;
        }
        for (name, n) in &all {
            let told = self.told.get(name).copied().unwrap_or(0);
            if *n > told {
                let (name, count) = (name.clone(), n - told);
                let mut once = self.identity(inode);
                once.number(told).number(*n).bytes(name.as_bytes());
                self.telling.push(Telling { name, count, later, once: once.0.to_vec() });
            }
        }
        self.told = all;
    }

    /// What the file of this number is now, for records about it.
    pub(super) fn identity(&self, inode: u64) -> Encoder {
        let mut identity = Encoder::with_capacity(128);
        identity.number(inode).number(self.generation).number(self.len);
        for (request, _) in self.requests {
            identity.number(request);
        }
        identity
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
        let (held, again) = (self.redactor.held() as u64, self.again());
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
        if self.is_in_line && bytes.len() <= AGAIN_BYTES {
            self.redactor.look_again(again + bytes.len());
        }
        let foreign = self.foreign();
        self.count();
        let is_whole = self.foreign() > foreign || self.redactor.in_range();
        let was_guess = self.is_guess;
        self.is_guess = self.redactor.is_held_for_others();
        self.guesses += u64::from(was_guess && !self.is_guess && !is_whole);
        self.forced.retain(|(_, end)| *end > reached);
        self.streamed += bytes.len() as u64;
        self.len = self.streamed;
        self.pretend(store, held, bytes.len(), out.is_empty());
        if !out.is_empty() {
            store.write_at(self.stored, &out)?;
            self.stored += out.len() as u64;
            if self.tail > out.len() as u64 {
                store.set_len(self.stored)?;
            }
            self.tail = 0;
            self.ending.clear();
            self.line = match out.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => (out.len() - end - 1) as u64,
                None => self.line + out.len() as u64,
            };
        }
        self.is_in_line = is_in_line(self.redactor.kept_bytes());
        Ok(!out.is_empty())
    }

    /// Does what would be done beside it if the end of what is stored had been held back, or had not:
    /// of a line that has no end yet, what is written now would have been written before, or what was
    /// written before would be now. `held` bytes were held before, and of `len` new ones something is
    /// stored unless `is_all_held`.
    fn pretend(&self, store: &dyn Store, held: u64, len: usize, is_all_held: bool) {
        let short = len.min(PRETENDED_BYTES);
        let before = self.stored - self.line.min(self.stored);
        if is_all_held {
            store.pretend_write(self.stored + held, len);
        }
        if self.is_in_line {
            // It would begin where the line does, or it would go on with it.
            let at = if is_all_held || held == 0 { before } else { self.stored + held };
            store.pretend_write(at, short);
        }
    }

    /// Bytes before the end that were decided before: what is held back is looked at again when more
    /// comes, and the rest must be as well if that is to take as long.
    fn again(&self) -> usize {
        let taken = usize::try_from(self.redactor.taken()).unwrap_or(usize::MAX);
        taken.min(HELD_BYTES).saturating_sub(self.redactor.held())
    }

    /// Bytes of the base that the redactor holds, as far as writers see them as such.
    fn given_back(&self) -> u64 {
        self.redactor.held() as u64 - self.lead.left
    }

    /// Markers of values of others.
    fn foreign(&self) -> u64 {
        self.counted.get("").copied().unwrap_or(0)
    }

    /// It is read, made durable, changed elsewhere than at its end, opened or closed, which takes its time.
    pub(super) fn count_use(&mut self) {
        self.guesses += u64::from(self.is_guess);
    }

    /// How often it may have been tried whether its end is a value's beginning, since the last call.
    pub(super) fn take_guesses(&mut self) -> u64 {
        std::mem::take(&mut self.guesses)
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

    /// Decides about what is held, and stores it behind the rest; more may follow all the same. The end
    /// of what was written since the file was opened is stored once more where nothing was held.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub(super) fn settle(&mut self, store: &dyn Store, is_written: bool) -> io::Result<()> {
        let (out, _, counts) = self.ending();
        self.ending = counts;
        let len = store.len()?;
        let from = if self.tail > 0 { self.stored } else { self.stored.saturating_sub(1) };
        let mut now = Zeroizing::new(vec![0; within(self.stored_len(), from)]);
        let is_whole = len == self.stored_len();
        match is_whole && !now.is_empty() {
            true => read_exactly(store, from, &mut now)?,
            false => store.pretend_read(1),
        }
        let is_same = is_whole && if self.tail > 0 { *now == out } else { out.is_empty() };
        if is_same && !is_written {
            // Not touched: its times stay.
            store.pretend_write(1, 1);
            return Ok(());
        }
        match is_same {
            true if now.is_empty() => store.pretend_write(1, 1),
            true => store.write_at(from, &now)?,
            false => store.write_at(self.stored, &out)?,
        }
        self.tail = out.len() as u64;
        if len > self.stored_len() {
            store.set_len(self.stored_len())?;
        }
        if self.is_in_line {
            let is_held = !is_same && !out.is_empty();
            let before = self.stored - self.line.min(self.stored);
            // The last byte would be there, or the line would be written now.
            store.pretend_write(if is_held { self.stored_len() - 1 } else { before }, 1);
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
            copy.look_again(self.again());
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
}

/// Whether more may belong to the last line of `text`: it has no end yet, or the end could be one of
/// wrapped text.
fn is_in_line(text: &[u8]) -> bool {
    let Some(line) = text.strip_suffix(b"\n") else { return true };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let is_wrapped = |b: &&u8| b.is_ascii_alphanumeric() || b"+/-_".contains(b);
    line.ends_with(b"=")
        || line.iter().rev().take(RUN_BYTES).filter(is_wrapped).count() == RUN_BYTES
}

/// Takes nothing: what is looked for is counted.
pub(super) struct Nothing;

impl Sink for Nothing {
    fn clear(&mut self, _: &[u8]) {}
    fn hidden(&mut self, _: &[u8]) {}
    fn marker(&mut self, _: &str, _: u64) {}
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
