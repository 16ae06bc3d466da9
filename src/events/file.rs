//! Files of the events directories: opened, read, written, closed and completed.
//!
//! Invariant: an answered write is in the store or in the runtime state, and a file that nobody
//! writes any more is complete, or [`Events::tidy`] completes it.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;

use crate::broker::{Place, Refusal, Request, Writer};
use crate::execution::handles::Handle;
use crate::execution::journal::Kind;
use crate::redact::{self, Level};

use super::codec::Encoder;
use super::desk::{Desk, OPERATION, key_of, staged};
use super::draft::{Draft, Operation, Store};
use super::folder::{Entry, Sort, Stored};
use super::node::{Node, What};
use super::{At, Attributes, Change, Events, full, lock, os, refusal, stale};

/// As file systems see it, whose clock is a little behind.
fn now() -> (i64, i64) {
    let clock = nix::time::ClockId::CLOCK_REALTIME_COARSE;
    nix::time::clock_gettime(clock).map_or((0, 0), |time| (time.tv_sec(), time.tv_nsec()))
}

fn of(writer: &Writer) -> (&Place, Level) {
    (&writer.place, writer.level)
}

impl Events {
    /// Makes a file and opens it for writing; one that is there is opened, unless `exclusive`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn create(
        &self,
        writer: &Writer,
        parent: u64,
        name: &OsStr,
        exclusive: bool,
        writing: bool,
        request: Request,
    ) -> Result<(Attributes, u64), Refusal> {
        let (inode, entry, new) = self.make(writer, parent, name, exclusive, request)?;
        let made = self.shown(inode, entry)?;
        let fh = self.open_as(writer, inode, writing, new, request)?;
        Ok((made, fh))
    }

    /// Makes a file.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn make_file(
        &self,
        writer: &Writer,
        parent: u64,
        name: &OsStr,
        exclusive: bool,
        request: Request,
    ) -> Result<Attributes, Refusal> {
        let (inode, entry, _) = self.make(writer, parent, name, exclusive, request)?;
        self.shown(inode, entry)
    }

    fn make(
        &self,
        writer: &Writer,
        parent: u64,
        name: &OsStr,
        exclusive: bool,
        request: Request,
    ) -> Result<(u64, Entry, Option<Stored>), Refusal> {
        self.check_name(writer, name)?;
        let _stay = self.stay();
        let path = self.directory_node(writer, parent)?.path.join(name);
        let new = match self.folder.create(&path) {
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists && (!exclusive || request.resent) =>
            {
                None
            }
            other => Some(other.map_err(|e| os(&e))?),
        };
        let (inode, entry) = self.found(writer, &path)?;
        if entry.sort == Sort::Directory {
            return Err(refusal(Errno::EISDIR));
        }
        Ok((inode, entry, new))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn open_file(
        &self,
        writer: &Writer,
        inode: u64,
        writing: bool,
        request: Request,
    ) -> Result<u64, Refusal> {
        self.open_as(writer, inode, writing, None, request)
    }

    /// Opens a file; `new` is its place in the store if it was just made, which stays open: a close
    /// would tell those who watch the folder that it is complete.
    fn open_as(
        &self,
        writer: &Writer,
        inode: u64,
        writing: bool,
        new: Option<Stored>,
        request: Request,
    ) -> Result<u64, Refusal> {
        if matches!(self.node(writer, inode)?.what, What::Directory { .. }) {
            return Err(refusal(Errno::EISDIR));
        }
        self.outside.view(&writer.place)?;
        // Entered first: from now on nobody takes the file for complete.
        let fh = self.enter(writer, inode, writing, request)?;
        let opened = match self.node(writer, inode).map(|node| node.what) {
            // The name has another number by now, which the kernel looks up.
            Ok(What::File { is_old: true, .. }) => Err(refusal(Errno::ESTALE)),
            Ok(_) if writing => self.desk_of(inode, Some(of(writer)), new).map(|shared| {
                if let Some(shared) = shared
                    && let Some(desk) = &mut *lock(&shared)
                {
                    self.note_use(&writer.place, &mut desk.draft);
                }
            }),
            other => other.map(drop),
        };
        match opened {
            Ok(()) => Ok(fh),
            Err(refusal) => {
                self.leave(inode, fh);
                self.handles.remove(fh);
                Err(refusal)
            }
        }
    }

    /// Reads what writers see.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn read(&self, writer: &Writer, fh: u64, at: u64, size: usize) -> Result<Vec<u8>, Refusal> {
        let inode = self.handle(writer, fh, false)?;
        self.outside.view(&writer.place)?;
        let frozen = lock(&self.frozen).get(&inode).cloned();
        if let Some(frozen) = frozen {
            return frozen.0.read(&frozen.1, at, size).map_err(|e| os(&e));
        }
        if let Some(shared) = self.desk(inode, None)? {
            let mut guard = lock(&shared);
            if let Some(desk) = &mut *guard {
                self.note_use(&writer.place, &mut desk.draft);
                return desk.draft.read(&desk.store, at, size).map_err(|e| os(&e));
            }
        }
        let store = {
            let _stay = self.stay();
            let node = self.node(writer, inode)?;
            if matches!(node.what, What::File { is_old: true, .. }) {
                return Err(refusal(Errno::ESTALE));
            }
            self.folder.reader(&node.path).map_err(|e| os(&e))?
        };
        let mut buffer = vec![0; size];
        let mut done = 0;
        while done < size {
            match store.read_at(at + done as u64, &mut buffer[done..]).map_err(|e| os(&e))? {
                0 => break,
                n => done += n,
            }
        }
        buffer.truncate(done);
        Ok(buffer)
    }

    /// Writes; everything or nothing.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn write(
        &self,
        writer: &Writer,
        fh: u64,
        at: At,
        bytes: &[u8],
        request: Request,
    ) -> Result<(), Refusal> {
        let inode = self.handle(writer, fh, true)?;
        let shared = self.desk(inode, Some(of(writer)))?.ok_or(Refusal::Fault)?;
        let mut guard = lock(&shared);
        let desk = guard.as_mut().ok_or(Refusal::Fault)?;
        if request.resent && desk.draft.has_done(request.id) {
            return Ok(());
        }
        let outcome = self.write_to(inode, &writer.place, desk, (at, bytes), request);
        self.tell_guesses(&writer.place, &mut desk.draft);
        self.keep(&mut guard, outcome)
    }

    /// Changes attributes; a file's size by a descriptor or by its name.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn change(
        &self,
        writer: &Writer,
        inode: u64,
        change: Change,
    ) -> Result<Attributes, Refusal> {
        let node = self.node(writer, inode)?;
        let is_file = matches!(node.what, What::File { is_old: false, .. });
        if let Some(mode) = change.mode
            && is_file
        {
            let _stay = self.stay();
            self.folder.set_mode(&self.now(inode)?.path, mode).map_err(|e| os(&e))?;
        }
        if let Some(size) = change.size {
            if !is_file {
                return Err(refusal(Errno::EINVAL));
            }
            self.truncate(writer, inode, size)?;
        }
        let is_old = matches!(node.what, What::File { is_old: true, .. });
        if (change.accessed.is_some() || change.modified.is_some()) && !is_old {
            let sort = if is_file { Sort::File } else { Sort::Directory };
            let shared = if is_file { self.desk(inode, None)? } else { None };
            let mut guard = shared.as_ref().map(|s| lock(s));
            {
                let _stay = self.stay();
                let path = self.now(inode)?.path;
                let times = self.folder.set_times(&path, sort, change.accessed, change.modified);
                times.map_err(|e| os(&e))?;
            }
            if let Some(desk) = guard.as_mut().and_then(|g| g.as_mut())
                && change.modified.is_some()
            {
                desk.modified = change.modified;
                self.save_with(inode, &mut desk.draft, change.modified)?;
            }
        }
        self.attributes(writer, inode)
    }

    /// A descriptor was closed: nothing is let go, but what was redacted is recorded.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn flush(&self, writer: &Writer, fh: u64) -> Result<(), Refusal> {
        let inode = self.handle(writer, fh, false)?;
        let shared = lock(&self.desks).get(&inode).cloned();
        if let Some(shared) = shared
            && let Some(desk) = &mut *lock(&shared)
        {
            desk.draft.is_flushed = true;
            self.report(inode, &writer.place, desk);
        }
        Ok(())
    }

    /// Applies what is collected and makes the store durable; held bytes stay held.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn sync(&self, writer: &Writer, fh: u64) -> Result<(), Refusal> {
        let inode = self.handle(writer, fh, false)?;
        let Some(shared) = self.desk(inode, None)? else { return Ok(()) };
        let mut guard = lock(&shared);
        let Some(desk) = guard.as_mut() else { return Ok(()) };
        let outcome = (|| {
            if desk.draft.is_dirty() {
                self.rebuild(inode, &writer.place, desk)?;
            }
            desk.store.sync().map_err(|e| os(&e))
        })();
        self.note_use(&writer.place, &mut desk.draft);
        self.keep(&mut guard, outcome)
    }

    /// Ends an open file's life; the last writer's end makes the file complete.
    pub fn release(&self, fh: u64) {
        let Some(handle) = self.handles.get(fh) else { return };
        let (was_last_writer, is_unused) = self.leave(handle.inode, fh);
        if was_last_writer && let Err(error) = self.finish(handle.inode) {
            // Locked, or the disk is full: housekeeping tries again.
            tracing::warn!(%error, "an event file could not be completed yet");
        }
        if is_unused {
            self.drop_unused(handle.inode);
        }
        self.handles.remove(fh);
    }

    /// Whether a handle is of an events file.
    pub fn holds(&self, fh: u64) -> bool {
        self.handles.get(fh).is_some_and(|handle| self.owns(handle.inode))
    }

    /// Completes files whose last writer went while that could not be done.
    pub fn tidy(&self) {
        let written: Vec<u64> = {
            let openers = lock(&self.openers);
            let heads = self.journal.heads(Kind::EventDraft);
            heads
                .into_iter()
                .filter(|inode| openers.get(inode).is_none_or(|o| o.writers.is_empty()))
                .collect()
        };
        for inode in written {
            if !self.owns(inode) {
                // Removed with its execution.
                let _forgotten = self.forget_draft(inode);
            } else if let Err(error) = self.finish(inode) {
                if error != Refusal::Locked {
                    tracing::warn!(%error, "an event file could not be completed yet");
                }
            } else if !self.is_open(inode) {
                self.drop_unused(inode);
            }
        }
    }

    pub(super) fn enter(
        &self,
        writer: &Writer,
        inode: u64,
        writing: bool,
        request: Request,
    ) -> Result<u64, Refusal> {
        let handle = Handle { principal: Some(writer.principal), inode, writing };
        let fh =
            self.handles.insert(handle, request.id, request.resent).ok_or(Refusal::TooManyOpen)?;
        let mut openers = lock(&self.openers);
        let openers = openers.entry(inode).or_default();
        if writing { &mut openers.writers } else { &mut openers.readers }.insert(fh);
        Ok(fh)
    }

    /// The last writer's leaving, and the last of all.
    pub(super) fn leave(&self, inode: u64, fh: u64) -> (bool, bool) {
        let mut openers = lock(&self.openers);
        let Some(mine) = openers.get_mut(&inode) else { return (false, false) };
        let was_writer = mine.writers.remove(&fh);
        mine.readers.remove(&fh);
        let last_writer = was_writer && mine.writers.is_empty();
        let unused = mine.writers.is_empty() && mine.readers.is_empty();
        if unused {
            openers.remove(&inode);
        }
        (last_writer, unused)
    }

    /// Whether the handle may be used by the writer; its file.
    pub(super) fn handle(&self, writer: &Writer, fh: u64, writing: bool) -> Result<u64, Refusal> {
        let handle = self.handles.get(fh).ok_or(Refusal::ForeignHandle)?;
        if writing && !handle.writing {
            return Err(refusal(Errno::EBADF));
        }
        self.node(writer, handle.inode)?;
        Ok(handle.inode)
    }

    pub(super) fn write_to(
        &self,
        inode: u64,
        place: &Place,
        desk: &mut Desk,
        (at, bytes): (At, &[u8]),
        request: Request,
    ) -> Result<(), Refusal> {
        let before = desk.draft.len();
        let believed = at.offset;
        let at = desk.begin(at, |len| lock(&self.lengths).has(inode, len));
        let end = at.checked_add(bytes.len() as u64).ok_or_else(|| refusal(Errno::EFBIG))?;
        if at != believed {
            // What it believes when this is answered.
            lock(&self.lengths).tell(inode, believed.saturating_add(bytes.len() as u64));
        }
        let grows = end.saturating_sub(desk.draft.len());
        if end > self.limits.max_file
            || self.total.load(Ordering::Relaxed).saturating_add(grows) > self.limits.max_total
        {
            return Err(refusal(Errno::EDQUOT));
        }
        self.make_room(inode, place, desk)?;
        self.follow(place, desk)?;
        (desk.modified, desk.is_written) = (None, true);
        desk.draft.is_flushed = false;
        if desk.draft.is_next(at) {
            let before = desk.draft.weight();
            if !desk.draft.stream(&desk.store, bytes).map_err(|e| os(&e))? {
                // Its time tells of the write, not of what was held back.
                desk.modified = Some(now());
            }
            self.count(before, desk.draft.weight());
        } else {
            self.collect(inode, place, desk, &Operation::Write(at, bytes))?;
        }
        desk.draft.note(request.id, before);
        self.save_with(inode, &mut desk.draft, desk.modified)?;
        self.pack(inode, desk)
    }

    /// Gives back what the draft has of the runtime state, when all together have too much of it.
    fn make_room(&self, inode: u64, place: &Place, desk: &mut Desk) -> Result<(), Refusal> {
        if self.journal.is_crowded() && desk.draft.operations > 0 {
            self.rebuild(inode, place, desk)?;
        }
        if self.journal.is_crowded() { Err(refusal(Errno::ENOSPC)) } else { Ok(()) }
    }

    pub(super) fn collect(
        &self,
        inode: u64,
        place: &Place,
        desk: &mut Desk,
        operation: &Operation<'_>,
    ) -> Result<(), Refusal> {
        // Applied early rather than refused: a pass over the file makes room.
        if desk.draft.held_bytes > self.limits.max_held {
            self.rebuild(inode, place, desk)?;
        }
        self.note_use(place, &mut desk.draft);
        let mut plain = Encoder::with_capacity(32);
        match operation {
            Operation::Write(at, bytes) => {
                plain = Encoder::with_capacity(32 + bytes.len());
                plain.number(0).number(*at).bytes(bytes);
            }
            Operation::Truncate(len) => {
                plain.number(1).number(*len);
            }
        }
        let at = key_of(inode, OPERATION, desk.draft.generation, desk.draft.operations);
        let sealed = self.seal(&*self.outside.key()?, &at, &plain.0)?;
        self.journal.put(Kind::EventDraft, &at, &sealed).map_err(full)?;
        desk.draft.collect(operation);
        desk.store.touch().map_err(|e| os(&e))
    }

    pub(super) fn truncate(&self, writer: &Writer, inode: u64, size: u64) -> Result<(), Refusal> {
        if size > self.limits.max_file {
            return Err(refusal(Errno::EDQUOT));
        }
        loop {
            let shared = self.desk(inode, Some(of(writer)))?.ok_or(Refusal::Fault)?;
            let mut guard = lock(&shared);
            // Nobody needs to have it open: a close may have made it complete meanwhile.
            let Some(desk) = guard.as_mut() else { continue };
            self.note_use(&writer.place, &mut desk.draft);
            let outcome = self.truncate_to(inode, writer, desk, size);
            return self.keep(&mut guard, outcome);
        }
    }

    /// Completes a file whose size was changed by its name, while nobody writes it. Called when the
    /// change was answered: the number that it was made under may be gone then.
    pub fn changed(&self, inode: u64) {
        if lock(&self.desks).contains_key(&inode)
            && let Err(error) = self.finish(inode)
        {
            tracing::warn!(%error, "an event file could not be completed yet");
        }
    }

    pub(super) fn truncate_to(
        &self,
        inode: u64,
        writer: &Writer,
        desk: &mut Desk,
        size: u64,
    ) -> Result<(), Refusal> {
        if size == desk.draft.len() {
            return Ok(());
        }
        (desk.modified, desk.is_written) = (None, true);
        if size > 0 {
            self.collect(inode, &writer.place, desk, &Operation::Truncate(size))?;
            return self.save_with(inode, &mut desk.draft, desk.modified);
        }
        self.report(inode, &writer.place, desk);
        let view = self.outside.view(&writer.place)?;
        let mut new = Draft::new(view, desk.level);
        new.generation = desk.draft.generation + 1;
        new.requests = desk.draft.requests;
        new.telling = std::mem::take(&mut desk.draft.telling);
        // Of a pass that failed, or that a worker died over: the next one would take it for the file.
        let _removed = self.folder.unlink(&staged(inode, new.generation));
        // The head first: a worker that finds the file longer than it says cuts it.
        self.save_with(inode, &mut new, desk.modified)?;
        let old = std::mem::replace(&mut desk.draft, new);
        desk.store.renew(desk.draft.generation);
        desk.store.set_len(0).map_err(|e| os(&e))?;
        self.count(old.weight(), 0);
        self.forget_generation(inode, old.generation, (old.segments(), old.operations))
            .map_err(full)
    }

    pub(super) fn report(&self, inode: u64, place: &Place, desk: &mut Desk) {
        desk.draft.take_counts(inode, false);
        self.tell(inode, place, desk);
    }

    /// The same, for what was written before it was looked for.
    pub(super) fn report_later(&self, inode: u64, place: &Place, desk: &mut Desk) {
        desk.draft.take_counts(inode, true);
        self.tell(inode, place, desk);
    }

    fn tell(&self, inode: u64, place: &Place, desk: &mut Desk) {
        if desk.draft.telling.is_empty() {
            return;
        }
        let file = lock(&self.nodes).get(inode).map_or_else(String::new, Node::shown);
        // Before, so that the next worker tells the same, or nothing; after, so that it is not asked.
        let noted = self.save_with(inode, &mut desk.draft, desk.modified);
        let all = std::mem::take(&mut desk.draft.telling);
        let (told, left): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|telling| self.outside.redacted(place, &file, telling));
        desk.draft.telling = left;
        if let Err(error) =
            noted.and_then(|()| self.save_with(inode, &mut desk.draft, desk.modified))
        {
            tracing::warn!(%error, "what was redacted may be on record twice if this worker dies");
            return;
        }
        told.iter().for_each(|telling| self.outside.noted(&telling.once));
    }

    pub(super) fn drop_unused(&self, inode: u64) {
        lock(&self.frozen).remove(&inode);
        let node = lock(&self.nodes).get(inode).cloned();
        let Some(node) = node else { return };
        let is_old = matches!(node.what, What::File { is_old: true, .. });
        if !is_old && !node.is_unlinked() {
            return;
        }
        let forgotten = self.forget_draft(inode).and_then(|()| {
            if node.is_unlinked() && !is_old {
                let len = self.folder.entry(&node.path).map_or(0, |e| e.len);
                if self.folder.unlink(&node.path).is_ok() {
                    self.shrink(len);
                }
            }
            lock(&self.nodes).remove(inode)
        });
        if let Err(error) = forgotten {
            tracing::error!(%error, "an event file could not be forgotten");
        }
    }

    /// Makes a file complete that nobody writes any more.
    pub(super) fn finish(&self, inode: u64) -> Result<(), Refusal> {
        let Some(shared) = self.desk(inode, None)? else { return Ok(()) };
        let mut guard = lock(&shared);
        let node = lock(&self.nodes).get(inode).cloned().ok_or_else(stale)?;
        // Somebody may have opened it again meanwhile.
        if self.is_written(inode) {
            return Ok(());
        }
        let Some(desk) = guard.as_mut() else { return Ok(()) };
        self.note_use(&node.place, &mut desk.draft);
        let outcome = self.settle(inode, &node.place, desk);
        self.keep(&mut guard, outcome)?;
        let Some(mut desk) = guard.take() else { return Ok(()) };
        self.report(inode, &node.place, &mut desk);
        let mut head = [0; redact::HEAD_BYTES];
        let len = desk.store.read_at(0, &mut head).map_err(|e| os(&e))?;
        let once = desk.draft.identity(inode).0;
        let kind = redact::opaque(&head[..len]);
        if let Some(kind) = kind {
            self.outside.unchecked(&node.place, &node.shown(), kind, &once);
        }
        if let Some(modified) = desk.modified.filter(|_| !desk.is_written) {
            desk.store.set_modified(modified).map_err(|e| os(&e))?;
        }
        self.count(desk.draft.weight(), desk.draft.stored_len());
        let _stay = self.stay();
        let Ok(node) = self.now(inode) else {
            // Nobody had it open, and its name was given to another meanwhile, or to none.
            desk.store.unlink_packs();
            return self.forget_draft(inode).map_err(full);
        };
        let kept = desk.draft.kept();
        let sealed = self.seal(&*self.outside.key()?, b"event tail", &kept.state)?;
        let kept = Some((kept.stored, kept.tail, sealed));
        let store_inode = desk.store.inode().map_err(|e| os(&e))?;
        let packs = desk.store.packs();
        let frozen = desk.draft.freeze();
        let complete =
            Node { what: What::File { store_inode, kept, is_old: false }, ..node.clone() };
        if frozen.has_hidden() && !node.is_unlinked() {
            // What is stored is not what writers saw: a new number.
            let new = self.new_inode()?;
            let reader = self.folder.reader(&node.path).map_err(|e| os(&e))?;
            let mut nodes = lock(&self.nodes);
            // First, so that what the next writer needs is known to whoever takes over in between.
            nodes.put(new, complete).map_err(full)?;
            if self.is_open(inode) {
                nodes.make_old(inode).map_err(full)?;
                lock(&self.frozen).insert(inode, Arc::new((frozen, desk.store.with(reader))));
            } else {
                nodes.remove(inode).map_err(full)?;
            }
        } else {
            lock(&self.nodes).put(inode, complete).map_err(full)?;
        }
        self.forget_draft(inode).map_err(full)?;
        // After the draft that counts them: a worker killed in between takes it up again.
        let _removed = self.folder.unlink(&packs);
        if kind.is_some() {
            self.outside.noted(&once);
        }
        Ok(())
    }
}
