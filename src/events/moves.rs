//! Changes of names, each of which is carried out once.
//!
//! A rename or a removal whose worker died before the answer is asked again, and the name may stand
//! for another file by then. Invariant: what was carried out is known to the next worker, and its
//! numbers say so before anybody is served. Danger: a change that is carried out twice takes a file
//! that somebody made in between.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use zeroize::Zeroizing;

use crate::execution::journal::{Error, Journal, Kind};

use super::codec::{Decoder, Encoder};
use super::folder::Folder;
use super::lock;
use super::node::{Nodes, What};

/// So many are remembered; no more requests than that are in work.
const KEPT: usize = 256;

/// A change of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub from: PathBuf,
    /// None: the name goes.
    pub to: Option<PathBuf>,
    /// In the store's file system.
    pub store_inode: u64,
}

/// See the module.
pub(super) struct Moves {
    journal: Arc<Journal>,
    /// Requests that were carried out.
    done: Mutex<VecDeque<u64>>,
}

impl Move {
    fn encode(&self, is_done: bool) -> Zeroizing<Vec<u8>> {
        let mut entry = Encoder::default();
        entry
            .number(u64::from(is_done))
            .number(self.store_inode)
            .bytes(self.from.as_os_str().as_bytes())
            .optional(self.to.as_ref().map(|to| to.as_os_str().as_bytes()));
        entry.0
    }

    fn decode(bytes: &[u8]) -> Option<(Self, bool)> {
        let mut from = Decoder(bytes);
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let (is_done, store_inode) = (from.number()? != 0, from.number()?);
        let old = path(from.bytes()?);
        let to = from.optional()?.map(path);
        Some((Self { from: old, to, store_inode }, is_done))
    }

    fn is_at(&self, folder: &Folder, path: &Path) -> bool {
        folder.entry(path).is_ok_and(|entry| entry.inode == self.store_inode)
    }

    /// Whether the store has it already.
    pub(super) fn is_stored(&self, folder: &Folder) -> bool {
        match &self.to {
            Some(to) => self.is_at(folder, to),
            None => !self.is_at(folder, &self.from),
        }
    }

    /// Has the numbers say the same.
    fn follow(&self, nodes: &mut Nodes) -> Result<(), Error> {
        if let Some(to) = &self.to {
            return nodes.rename(&self.from, to);
        }
        let is_it = |inode: &u64| {
            let what = nodes.get(*inode).map(|node| &node.what);
            matches!(what, Some(What::File { store_inode, .. }) if *store_inode == self.store_inode)
        };
        let Some(inode) = nodes.file(&self.from).filter(is_it) else { return Ok(()) };
        nodes.numbers_of(inode).into_iter().try_for_each(|inode| nodes.remove(inode))
    }
}

impl Moves {
    /// Takes up what earlier workers began.
    pub(super) fn open(
        journal: Arc<Journal>,
        folder: &Folder,
        nodes: &mut Nodes,
    ) -> Result<Self, Error> {
        let moves = Self { journal, done: Mutex::default() };
        for (key, value) in moves.journal.all(Kind::EventMove) {
            let (Ok(id), Some((change, is_done))) =
                (<[u8; 8]>::try_from(&*key), Move::decode(&value))
            else {
                moves.journal.remove(Kind::EventMove, &key)?;
                continue;
            };
            let id = u64::from_be_bytes(id);
            if !is_done && !change.is_stored(folder) {
                moves.give_up(id)?;
                continue;
            }
            if !is_done {
                change.follow(nodes)?;
            }
            moves.end(id, &change)?;
        }
        Ok(moves)
    }

    /// Before the store changes.
    pub(super) fn begin(&self, request: u64, change: &Move) -> Result<(), Error> {
        self.journal.put(Kind::EventMove, &request.to_be_bytes(), &change.encode(false))
    }

    /// The store could not be changed.
    pub(super) fn give_up(&self, request: u64) -> Result<(), Error> {
        self.journal.remove(Kind::EventMove, &request.to_be_bytes())
    }

    /// The store and the numbers have changed.
    pub(super) fn end(&self, request: u64, change: &Move) -> Result<(), Error> {
        #[cfg(test)]
        super::asked::step();
        self.journal.put(Kind::EventMove, &request.to_be_bytes(), &change.encode(true))?;
        let mut done = lock(&self.done);
        done.push_back(request);
        while done.len() > KEPT
            && let Some(first) = done.pop_front()
        {
            self.journal.remove(Kind::EventMove, &first.to_be_bytes())?;
        }
        Ok(())
    }

    /// Whether a request was carried out.
    pub(super) fn has_done(&self, request: u64) -> bool {
        lock(&self.done).contains(&request)
    }
}
