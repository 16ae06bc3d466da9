//! Drafts of files that are being written, in memory and in the runtime state.
//!
//! The runtime state has of each draft its head, its hidden ranges and what is collected, all sealed.
//! Invariant: what a draft in memory says was acknowledged is in the runtime state; after a failure
//! the draft is read from there again.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use zeroize::Zeroizing;

use crate::broker::{Place, Refusal, Writer};
use crate::execution::journal::Kind;
use crate::redact::Level;
use crate::vault::crypto::Key;

use super::codec::{Decoder, Encoder};
use super::draft::{Draft, Kept, Operation, Store};
use super::folder::{STAGING, Stored};
use super::node::What;
use super::packs::Filed;
use super::{At, Events, Shared, full, lock, os, stale};

/// Keys of a draft's entries in the runtime state, after its inode number.
pub(super) const HEAD: u8 = 0;
const SEGMENT: u8 = 1;
pub(super) const OPERATION: u8 = 2;

/// A file that is written, with its place in the store.
pub(super) struct Desk {
    pub draft: Draft,
    pub store: Filed,
    pub level: Level,
    /// Set by a writer, or the time of a write that is held back; the file has it when it is complete.
    pub modified: Option<(i64, i64)>,
    /// Written since it was opened or taken up.
    pub is_written: bool,
    /// An earlier worker may have carried out a write whose caller was killed before the answer: the
    /// kernel's idea of the end is then of before it, until it is told again.
    pub kernel_may_lag: bool,
}

impl Desk {
    /// Where a write begins. `is_told` says whether the kernel may believe that the file is so long.
    pub(super) fn begin(&mut self, at: At, is_told: impl Fn(u64) -> bool) -> u64 {
        let end = self.draft.len();
        if !at.append {
            return at.offset;
        }
        // The kernel appends under its own lock, with the size that it believes in. Any other offset is
        // the writer's own.
        let could_not_be_told = self.kernel_may_lag && self.draft.was_so_long(at.offset);
        let lags = could_not_be_told || at.offset < end && is_told(at.offset);
        let is_end = at.offset == end || lags;
        self.kernel_may_lag &= at.offset != end;
        if is_end { end } else { at.offset }
    }
}

pub(super) fn key_of(inode: u64, kind: u8, generation: u64, number: u64) -> Vec<u8> {
    let mut key = inode.to_be_bytes().to_vec();
    key.push(kind);
    if kind != HEAD {
        key.extend_from_slice(&generation.to_be_bytes());
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

pub(super) fn staged(inode: u64, generation: u64) -> PathBuf {
    Path::new(STAGING).join(format!("{inode:016x}.{generation}"))
}

/// What a noted head tells without a key: the length, and the time of the last write where the store
/// does not have it.
pub(super) fn outside(head: &mut Decoder<'_>) -> Option<(u64, Option<(i64, i64)>)> {
    let len = head.number()?;
    let is_set = head.number()? != 0;
    let time = (head.number()?.cast_signed(), head.number()?.cast_signed());
    Some((len, is_set.then_some(time)))
}

/// The file that a name of [`staged`], or of packs, is for.
pub(super) fn inode_of_staged(name: &OsStr) -> Option<u64> {
    let (inode, generation) = name.to_str()?.split_once('.')?;
    let generation = generation.strip_suffix(".hidden").unwrap_or(generation);
    generation.parse::<u64>().ok()?;
    u64::from_str_radix(inode, 16).ok()
}

impl Events {
    /// The draft of a file that is written. With `fresh` one is made where there is none.
    pub(super) fn desk(
        &self,
        inode: u64,
        fresh: Option<(&Place, Level)>,
    ) -> Result<Option<Shared>, Refusal> {
        self.desk_of(inode, fresh, None)
    }

    /// The same; `new` is the file's place in the store if it was just made.
    pub(super) fn desk_of(
        &self,
        inode: u64,
        fresh: Option<(&Place, Level)>,
        mut new: Option<Stored>,
    ) -> Result<Option<Shared>, Refusal> {
        loop {
            let shared = lock(&self.desks).entry(inode).or_default().clone();
            let mut guard = lock(&shared);
            // It may have been completed, and taken off the list, while we waited.
            if !lock(&self.desks).get(&inode).is_some_and(|s| Arc::ptr_eq(s, &shared)) {
                continue;
            }
            if guard.is_none() {
                *guard = self.load(inode)?;
            }
            if let (None, Some((place, level))) = (&*guard, fresh) {
                *guard = Some(self.reopen(inode, place, level, new.take())?);
            }
            if guard.is_some() {
                drop(guard);
                return Ok(Some(shared));
            }
            lock(&self.desks).remove(&inode);
            return Ok(None);
        }
    }

    /// A file that its writer has closed is made complete before it gets its final name: who watches
    /// the folder reads it at once.
    pub(super) fn settle_for_rename(&self, writer: &Writer, inode: u64) -> Result<(), Refusal> {
        let Some(shared) = self.desk(inode, None)? else { return Ok(()) };
        let mut guard = lock(&shared);
        let Some(desk) = guard.as_mut().filter(|desk| desk.draft.is_flushed) else {
            return Ok(());
        };
        let outcome = self.settle(inode, &writer.place, desk);
        self.keep(&mut guard, outcome)
    }

    pub(super) fn settle(&self, inode: u64, place: &Place, desk: &mut Desk) -> Result<(), Refusal> {
        // What is held is judged by what is looked for now.
        self.follow(place, desk)?;
        if desk.draft.is_dirty() {
            self.rebuild(inode, place, desk)?;
        }
        let before = desk.draft.weight();
        let settled = desk.store.modified().and_then(|modified| {
            desk.draft.settle(&desk.store, desk.is_written)?;
            // The time stays that of the last write; set also where it is the same, if it took one.
            match desk.is_written {
                true => desk.store.set_modified(desk.modified.unwrap_or(modified)),
                false => Ok(()),
            }
        });
        settled.map_err(|e| os(&e))?;
        self.count(before, desk.draft.weight());
        self.save_with(inode, &mut desk.draft, desk.modified)
    }

    /// Looks for what is to be looked for now, also in what is held. Only under the draft's lock: a
    /// view from before could come after a search of the file for newer values.
    pub(super) fn follow(&self, place: &Place, desk: &mut Desk) -> Result<(), Refusal> {
        let view = self.outside.view(place)?;
        if !Arc::ptr_eq(desk.draft.view(), &view) {
            desk.draft.set_view(view);
        }
        Ok(())
    }

    /// After a failure the draft is read from the runtime state again: memory may be ahead of it.
    pub(super) fn keep<T>(
        &self,
        guard: &mut MutexGuard<'_, Option<Desk>>,
        outcome: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        if outcome.is_err() {
            **guard = None;
        }
        outcome
    }

    pub(super) fn seal(&self, key: &Key, at: &[u8], plain: &[u8]) -> Result<Vec<u8>, Refusal> {
        key.seal(at, plain).map_err(|_| Refusal::Fault)
    }

    pub(super) fn unseal(
        &self,
        key: &Key,
        at: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let plain = key.open(at, sealed).map_err(|_| Refusal::Fault)?;
        Ok(Zeroizing::new(plain.expose().to_vec()))
    }

    /// Takes up a draft that an earlier worker left.
    pub(super) fn load(&self, inode: u64) -> Result<Option<Desk>, Refusal> {
        let at = key_of(inode, HEAD, 0, 0);
        let Some(entry) = self.journal.get(Kind::EventDraft, &at) else { return Ok(None) };
        let node = lock(&self.nodes).get(inode).cloned().ok_or(Refusal::Fault)?;
        if matches!(node.what, What::File { is_old: true, .. }) {
            // It was complete: killed before it was forgotten.
            self.forget_draft(inode).map_err(full)?;
            return Ok(None);
        }
        let (key, view) = (self.outside.key()?, self.outside.view(&node.place)?);
        let mut fields = Decoder(&entry);
        let fault = || Refusal::Fault;
        let (_, modified) = outside(&mut fields).ok_or_else(fault)?;
        let head = self.unseal(&key, &at, fields.0)?;
        let (mut draft, parts) = Draft::load(&head, view).ok_or_else(fault)?;
        for number in parts.segments.clone() {
            let at = key_of(inode, SEGMENT, draft.generation, number);
            let sealed = self.journal.get(Kind::EventDraft, &at).ok_or_else(fault)?;
            draft.add_segment(&self.unseal(&key, &at, &sealed)?).ok_or_else(fault)?;
        }
        for number in 0..parts.operations {
            let at = key_of(inode, OPERATION, draft.generation, number);
            let sealed = self.journal.get(Kind::EventDraft, &at).ok_or_else(fault)?;
            let plain = self.unseal(&key, &at, &sealed)?;
            let mut fields = Decoder(&plain);
            let kind = fields.number().ok_or_else(fault)?;
            let place = fields.number().ok_or_else(fault)?;
            let operation = match kind {
                0 => Operation::Write(place, fields.bytes().ok_or_else(fault)?),
                _ => Operation::Truncate(place),
            };
            draft.collect(&operation);
        }
        draft.complete(&parts);
        let store = {
            let _stay = self.stay();
            let path = self.now(inode)?.path;
            // Killed between the new head and the new file's name.
            let staging = staged(inode, draft.generation);
            if self.folder.entry(&staging).is_ok() {
                self.folder.rename(&staging, &path, false).map_err(|e| os(&e))?;
            }
            let store = self.folder.file(&path).map_err(|e| os(&e))?;
            self.note_store(inode, &store)?;
            self.filed(store, (inode, draft.generation))
        };
        draft.add_packs(&store, &parts).map_err(|e| os(&e))?;
        // Killed between the store and the note of it: what is behind was not acknowledged.
        if store.len().map_err(|e| os(&e))? > draft.stored_len() {
            store.set_len(draft.stored_len()).map_err(|e| os(&e))?;
        }
        let level = draft.level();
        // Whatever the earlier worker did counts as a write.
        Ok(Some(Desk { draft, store, level, modified, is_written: true, kernel_may_lag: true }))
    }

    /// A draft of a file as it is stored.
    pub(super) fn reopen(
        &self,
        inode: u64,
        place: &Place,
        level: Level,
        new: Option<Stored>,
    ) -> Result<Desk, Refusal> {
        let view = self.outside.view(place)?;
        let (node, store) = {
            let _stay = self.stay();
            let node = self.now(inode)?;
            if matches!(node.what, What::File { is_old: true, .. }) {
                // Completed while this waited: the name has another number by now.
                return Err(stale());
            }
            let store = match new {
                Some(new) => new,
                None => self.folder.file(&node.path).map_err(|e| os(&e))?,
            };
            (node, self.filed(store, (inode, 0)))
        };
        let kept = match &node.what {
            What::File { kept: Some((stored, tail, sealed)), .. } => {
                let key = self.outside.key()?;
                // Sealed with another vault's key: the file's end is looked at instead.
                self.unseal(&key, b"event tail", sealed).ok().map(|state| Kept {
                    stored: *stored,
                    tail: *tail,
                    state,
                })
            }
            _ => None,
        };
        let mut draft = Draft::reopen(view, level, &store, kept).map_err(|e| os(&e))?;
        self.save(inode, &mut draft)?;
        self.count(draft.stored_len(), draft.weight());
        let (modified, is_written, kernel_may_lag) = (None, false, false);
        Ok(Desk { draft, store, level, modified, is_written, kernel_may_lag })
    }

    fn filed(&self, store: Stored, whose: (u64, u64)) -> Filed {
        Filed::new(store, self.folder.clone(), self.decoy.clone(), self.outside.clone(), whose)
    }

    /// Packs hidden ranges when they are many. What cannot be packed now stays where it is.
    pub(super) fn pack(&self, inode: u64, desk: &mut Desk) -> Result<(), Refusal> {
        if !desk.draft.has_many() {
            return Ok(());
        }
        let packed = match desk.draft.pack(&desk.store) {
            Ok(packed) => packed,
            Err(error) => {
                tracing::debug!(%error, "hidden ranges could not be packed yet");
                return Ok(());
            }
        };
        self.save_with(inode, &mut desk.draft, desk.modified)?;
        self.forget_generation(inode, desk.draft.generation, (packed, 0)).map_err(full)
    }

    /// Notes a draft in the runtime state: new hidden ranges, then the head that counts them.
    pub(super) fn save(&self, inode: u64, draft: &mut Draft) -> Result<(), Refusal> {
        self.save_with(inode, draft, None)
    }

    pub(super) fn save_with(
        &self,
        inode: u64,
        draft: &mut Draft,
        modified: Option<(i64, i64)>,
    ) -> Result<(), Refusal> {
        let key = self.outside.key()?;
        let generation = draft.generation;
        for (number, segment) in draft.unsaved() {
            let at = key_of(inode, SEGMENT, generation, number);
            let sealed = self.seal(&key, &at, &segment)?;
            self.journal.put(Kind::EventDraft, &at, &sealed).map_err(full)?;
        }
        let at = key_of(inode, HEAD, 0, 0);
        let sealed = self.seal(&key, &at, &draft.head())?;
        let mut entry = Encoder::with_capacity(32 + sealed.len());
        let (seconds, nanos) = modified.unwrap_or_default();
        entry
            .number(draft.len())
            .number(u64::from(modified.is_some()))
            .number(seconds.cast_unsigned())
            .number(nanos.cast_unsigned());
        entry.0.extend_from_slice(&sealed);
        self.journal.put(Kind::EventDraft, &at, &entry.0).map_err(full)
    }

    /// Removes what the runtime state has of an earlier generation.
    pub(super) fn forget_generation(
        &self,
        inode: u64,
        generation: u64,
        (segments, operations): (Range<u64>, u64),
    ) -> Result<(), crate::execution::journal::Error> {
        for (kind, numbers) in [(SEGMENT, segments), (OPERATION, 0..operations)] {
            for number in numbers {
                let at = key_of(inode, kind, generation, number);
                self.journal.remove(Kind::EventDraft, &at)?;
            }
        }
        Ok(())
    }

    /// Removes a draft from memory and the runtime state.
    pub(super) fn forget_draft(&self, inode: u64) -> Result<(), crate::execution::journal::Error> {
        let desk = lock(&self.desks).get(&inode).cloned();
        // Who completes it holds its lock, and removes them.
        let packs = desk.as_ref().and_then(|desk| {
            let desk = desk.try_lock().ok()?;
            desk.as_ref().map(|desk| desk.store.packs())
        });
        for path in lock(&self.leftovers).remove(&inode).unwrap_or_default() {
            // Gone where its name was used again since.
            let _removed = self.folder.unlink(&path);
        }
        let head = key_of(inode, HEAD, 0, 0);
        self.journal.remove(Kind::EventDraft, &head)?;
        if let Some(packs) = packs {
            let _removed = self.folder.unlink(&packs);
        }
        // A head that cannot be read any more leaves parts of unknown number.
        for (key, _) in self.journal.below(Kind::EventDraft, &inode.to_be_bytes()) {
            self.journal.remove(Kind::EventDraft, &key)?;
        }
        // Last: whoever finds none in memory takes up what the runtime state has.
        lock(&self.desks).remove(&inode);
        Ok(())
    }

    pub(super) fn note_store(&self, inode: u64, store: &Stored) -> Result<(), Refusal> {
        let now = store.inode().map_err(|e| os(&e))?;
        let mut nodes = lock(&self.nodes);
        let Some(mut node) = nodes.get(inode).cloned() else { return Err(Refusal::Missing) };
        if let What::File { store_inode, .. } = &mut node.what {
            if *store_inode == now {
                return Ok(());
            }
            *store_inode = now;
        }
        nodes.put(inode, node).map_err(full)
    }

    /// Applies what is collected, in one pass to a new file that takes the place of the old.
    pub(super) fn rebuild(
        &self,
        inode: u64,
        place: &Place,
        desk: &mut Desk,
    ) -> Result<(), Refusal> {
        let view = self.outside.view(place)?;
        let staging = staged(inode, desk.draft.generation + 1);
        // Of an earlier try that failed.
        let _removed = self.folder.unlink(&staging);
        let target = self.folder.create(&staging).map_err(|e| os(&e))?;
        let target = self.filed(target, (inode, desk.draft.generation + 1));
        let outcome = (|| {
            let mut new = desk.draft.rebuild(&desk.store, &target, view).map_err(|e| os(&e))?;
            target.look_like(&desk.store).map_err(|e| os(&e))?;
            target.sync().map_err(|e| os(&e))?;
            self.save_with(inode, &mut new, desk.modified)?;
            Ok(new)
        })();
        let new = match outcome {
            Ok(new) => new,
            Err(refusal) => {
                let _removed = self.folder.unlink(&staging);
                target.unlink_packs();
                return Err(refusal);
            }
        };
        {
            let _stay = self.stay();
            self.folder.rename(&staging, &self.now(inode)?.path, false).map_err(|e| os(&e))?;
            self.note_store(inode, &target)?;
        }
        let old = std::mem::replace(&mut desk.draft, new);
        std::mem::replace(&mut desk.store, target).unlink_packs();
        self.count(old.weight(), desk.draft.weight());
        self.forget_generation(inode, old.generation, (old.segments(), old.operations))
            .map_err(full)
    }
}
