//! Names in the events directories: looked up, listed, made, moved and removed.
//!
//! Invariant: no name with a secret in it is made, and a file that loses its name stays for those
//! who have it open.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use crate::broker::{Place, Refusal, Request, Writer};
use crate::execution::journal::Kind;
use crate::redact;

use super::desk::{HEAD, key_of};
use super::folder::{Entry, Sort};
use super::moves::Move;
use super::node::{Node, Nodes, What};
use super::{Attributes, Events, MAX_NAME_BYTES, full, lock, os, refusal, unlinked};

impl Events {
    /// The writer's own events directory.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn root(&self, writer: &Writer) -> Result<Attributes, Refusal> {
        let path = PathBuf::from(&writer.place.folder);
        let entry = match self.folder.entry(&path) {
            Ok(entry) => entry,
            Err(_) => {
                self.folder.make_all(&path).map_err(|e| os(&e))?;
                self.folder.entry(&path).map_err(|e| os(&e))?
            }
        };
        self.shown(self.directory_inode(writer, &path)?, entry)
    }

    /// The number of the writer's own events directory, whether it is made yet or not.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn root_number(&self, writer: &Writer) -> Result<u64, Refusal> {
        self.directory_inode(writer, Path::new(&writer.place.folder))
    }

    /// Finds `name` in a directory.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn lookup(
        &self,
        writer: &Writer,
        parent: u64,
        name: &OsStr,
    ) -> Result<Attributes, Refusal> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Refusal::NameTooLong);
        }
        let (inode, entry) = {
            let _stay = self.stay();
            let path = self.directory_node(writer, parent)?.path.join(name);
            self.found(writer, &path)?
        };
        self.shown(inode, entry)
    }

    /// What is at a path, and its number. Only while names stay.
    pub(super) fn found(&self, writer: &Writer, path: &Path) -> Result<(u64, Entry), Refusal> {
        let entry = self.folder.entry(path).map_err(|e| os(&e))?;
        let inode = match entry.sort {
            Sort::Directory => self.directory_inode(writer, path)?,
            Sort::File => self.file_inode(&writer.place, path, entry)?,
        };
        Ok((inode, entry))
    }

    /// Attributes of a number that the writer has.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn attributes(&self, writer: &Writer, inode: u64) -> Result<Attributes, Refusal> {
        let entry = {
            let _stay = self.stay();
            let node = self.node(writer, inode)?;
            self.folder.entry(&node.path).map_err(|e| os(&e))?
        };
        self.shown(inode, entry)
    }

    /// Lists a directory: name, number, whether it is a directory.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn list(&self, writer: &Writer, inode: u64) -> Result<Vec<(OsString, u64, bool)>, Refusal> {
        let _stay = self.stay();
        let node = self.directory_node(writer, inode)?;
        let names = self.folder.list(&node.path).map_err(|e| os(&e))?;
        let nodes = lock(&self.nodes);
        let number = |name: &OsStr, sort, inode| {
            let path = node.path.join(name);
            let known = match sort {
                Sort::Directory => nodes.directory(writer.principal, &path),
                Sort::File => nodes.file(&path),
            };
            known.unwrap_or(inode)
        };
        Ok(names
            .into_iter()
            .map(|(name, sort, inode)| {
                let number = number(&name, sort, inode);
                (name, number, sort == Sort::Directory)
            })
            .collect())
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn make_directory(
        &self,
        writer: &Writer,
        parent: u64,
        name: &OsStr,
        request: Request,
    ) -> Result<Attributes, Refusal> {
        self.check_name(writer, name)?;
        let (inode, entry) = {
            let _stay = self.stay();
            let path = self.directory_node(writer, parent)?.path.join(name);
            match self.folder.make_directory(&path) {
                Err(e) if request.resent && e.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(|e| os(&e))?,
            }
            self.found(writer, &path)?
        };
        self.shown(inode, entry)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn remove_directory(
        &self,
        writer: &Writer,
        parent: u64,
        name: &OsStr,
        request: Request,
    ) -> Result<(), Refusal> {
        let _changes = self.change_names();
        let path = self.directory_node(writer, parent)?.path.join(name);
        match self.folder.remove_directory(&path) {
            Err(e) if request.resent && e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|e| os(&e))?,
        }
        let mut nodes = lock(&self.nodes);
        let gone: Vec<u64> = nodes
            .of_folder(&writer.place.folder)
            .into_iter()
            .filter(|inode| nodes.get(*inode).is_some_and(|n| n.path == path))
            .collect();
        gone.into_iter().try_for_each(|inode| nodes.remove(inode)).map_err(full)
    }

    /// Removes a file's name.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn unlink(
        &self,
        writer: &Writer,
        parent: u64,
        name: &OsStr,
        request: Request,
    ) -> Result<(), Refusal> {
        let _changes = self.change_names();
        if request.resent && self.moves.has_done(request.id) {
            return Ok(());
        }
        let path = self.directory_node(writer, parent)?.path.join(name);
        let entry = match self.folder.entry(&path) {
            Ok(Entry { sort: Sort::Directory, .. }) => return Err(refusal(Errno::EISDIR)),
            Err(e) if request.resent && e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| os(&e))?,
        };
        let change = Move { from: path, to: None, store_inode: entry.inode };
        self.carry_out(request, &change, || self.detach(&change.from))
    }

    /// Changes a name in the store and in the numbers, which is noted before and after.
    fn carry_out(
        &self,
        request: Request,
        change: &Move,
        both: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Refusal> {
        self.moves.begin(request.id, change).map_err(full)?;
        if let Err(error) = both() {
            // Where the store has it already the next worker follows.
            if !change.is_stored(&self.folder) {
                self.moves.give_up(request.id).map_err(full)?;
            }
            return Err(os(&error));
        }
        self.moves.end(request.id, change).map_err(full)
    }

    /// Renames; replaces what is at the new name, unless `exclusive`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn rename(
        &self,
        writer: &Writer,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        exclusive: bool,
        request: Request,
    ) -> Result<(), Refusal> {
        self.check_name(writer, new_name)?;
        let path = self.directory_node(writer, parent)?.path.join(name);
        let inode = lock(&self.nodes).file(&path);
        if let Some(inode) = inode {
            self.settle_for_rename(writer, inode)?;
        }
        let _changes = self.change_names();
        if request.resent && self.moves.has_done(request.id) {
            return Ok(());
        }
        let from = self.directory_node(writer, parent)?.path.join(name);
        let to = self.directory_node(writer, new_parent)?.path.join(new_name);
        let moved = match self.folder.entry(&from) {
            Err(e)
                if request.resent
                    && e.kind() == io::ErrorKind::NotFound
                    && self.folder.entry(&to).is_ok() =>
            {
                // Done by an earlier worker, but for the numbers perhaps.
                return lock(&self.nodes).rename(&from, &to).map_err(full);
            }
            other => other.map_err(|e| os(&e))?,
        };
        if from == to {
            return Ok(());
        }
        if to.starts_with(&from) {
            return Err(refusal(Errno::EINVAL));
        }
        match (self.folder.entry(&to), moved.sort) {
            (Ok(_), _) if exclusive => return Err(refusal(Errno::EEXIST)),
            (Ok(Entry { sort: Sort::File, .. }), Sort::File) => {
                let replaced = lock(&self.nodes).file(&to);
                if replaced.is_some_and(|inode| self.is_open(inode)) {
                    self.detach(&to).map_err(|e| os(&e))?;
                } else if let Some(replaced) = replaced {
                    self.forget_draft(replaced).map_err(full)?;
                    lock(&self.nodes).remove(replaced).map_err(full)?;
                }
            }
            (Ok(Entry { sort: Sort::File, .. }), Sort::Directory) => {
                return Err(refusal(Errno::ENOTDIR));
            }
            (Ok(Entry { sort: Sort::Directory, .. }), Sort::File) => {
                return Err(refusal(Errno::EISDIR));
            }
            _ => {}
        }
        self.begin_move();
        let store_inode = moved.inode;
        let change = Move { from: from.clone(), to: Some(to.clone()), store_inode };
        let renamed = self.carry_out(request, &change, || {
            self.folder.rename(&from, &to, exclusive)?;
            lock(&self.nodes).rename(&from, &to).map_err(io::Error::other)
        });
        self.end_move(&to);
        renamed
    }

    /// Takes the file at `path` out of its directory: away, or where those find it who have it open. Only
    /// while names change.
    pub(super) fn detach(&self, path: &Path) -> io::Result<()> {
        let known = lock(&self.nodes).file(path);
        let len = self.folder.entry(path)?.len;
        match known.filter(|inode| self.is_open(*inode)) {
            Some(inode) => {
                self.begin_move();
                let moved = self.folder.rename(path, &unlinked(inode), false).and_then(|()| {
                    let moved = lock(&self.nodes).move_file(inode, &unlinked(inode));
                    moved.map_err(io::Error::other)
                });
                self.end_move(&unlinked(inode));
                moved?;
            }
            None => {
                self.folder.unlink(path)?;
                self.shrink(len);
                let old = known.map(|inode| lock(&self.nodes).numbers_of(inode));
                for inode in old.unwrap_or_default() {
                    self.forget_draft(inode).map_err(io::Error::other)?;
                    if !self.is_open(inode) {
                        lock(&self.nodes).remove(inode).map_err(io::Error::other)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A name that is to be made: none of our own, and without a secret in it.
    pub(super) fn check_name(&self, writer: &Writer, name: &OsStr) -> Result<(), Refusal> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Refusal::NameTooLong);
        }
        let view = self.outside.view(&writer.place)?;
        if redact::contains(&view, name.as_encoded_bytes()) {
            self.outside.name_refused(&writer.place);
            return Err(refusal(Errno::EPERM));
        }
        Ok(())
    }

    /// The number of a directory for one principal.
    pub(super) fn directory_inode(&self, writer: &Writer, path: &Path) -> Result<u64, Refusal> {
        if let Some(inode) = lock(&self.nodes).directory(writer.principal, path) {
            return Ok(inode);
        }
        let inode = self.new_inode()?;
        let node = Node {
            place: writer.place.clone(),
            path: path.to_owned(),
            what: What::Directory { principal: writer.principal },
        };
        let mut nodes = lock(&self.nodes);
        // Another thread may have been faster.
        match nodes.directory(writer.principal, path) {
            Some(inode) => Ok(inode),
            None => nodes.put(inode, node).map(|()| inode).map_err(full),
        }
    }

    /// The number of a file; a file that was replaced from outside gets a new one. Only while names stay.
    pub(super) fn file_inode(
        &self,
        place: &Arc<Place>,
        path: &Path,
        mut entry: Entry,
    ) -> Result<u64, Refusal> {
        let known = |nodes: &Nodes, entry: Entry| {
            let inode = nodes.file(path)?;
            let is_same = matches!(nodes.get(inode)?.what,
                What::File { store_inode, .. } if store_inode == entry.inode);
            // While it is written its place in the store may just be changing, or have been when a
            // worker died.
            let is_written = || {
                lock(&self.desks).contains_key(&inode)
                    || self.journal.get(Kind::EventDraft, &key_of(inode, HEAD, 0, 0)).is_some()
            };
            (is_same || is_written()).then_some(inode)
        };
        if let Some(inode) = known(&lock(&self.nodes), entry) {
            return Ok(inode);
        }
        // It may have been made anew, and be complete, since the entry was read.
        entry = self.folder.entry(path).map_err(|e| os(&e))?;
        let inode = self.new_inode()?;
        let node = Node {
            place: place.clone(),
            path: path.to_owned(),
            what: What::File { store_inode: entry.inode, kept: None, is_old: false },
        };
        let mut nodes = lock(&self.nodes);
        match known(&nodes, entry) {
            Some(inode) => Ok(inode),
            None => nodes.put(inode, node).map(|()| inode).map_err(full),
        }
    }
}
