//! The `events` directories: what agents write there is stripped of secrets on its way to the disk.
//!
//! A file that is written has a draft ([`draft::Draft`]): the store gets what the redactor has
//! decided, the keeper's memory the rest, sealed. Order of a write: redact, store, note in the runtime
//! state, answer; each step can be repeated, so that a worker that dies in between loses and doubles
//! nothing. When the last writer has closed a file, its end is decided and it is complete.
//!
//! Invariant: no unredacted byte reaches the store. Lock order: a draft, then `nodes`, `openers`.
#![forbid(unsafe_code)]

mod codec;
mod draft;
mod folder;
mod node;
mod overlay;
mod stock;

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::broker::{Place, Refusal, Request, Writer};
use crate::execution::handles::{Handle, Handles};
use crate::execution::journal::{Journal, Kind};
use crate::redact::{self, Level, View};
use crate::vault::crypto::Key;

pub use folder::Look;
pub use stock::{Kept as KeptFolder, folder_of};

use codec::{Decoder, Encoder};
use draft::{Draft, Kept, Operation, Store};
use folder::{Entry, Folder, STAGING, Sort, Stored};
use node::{Node, Nodes, What};

/// `NAME_MAX` of limits.h.
const MAX_NAME_BYTES: usize = 255;
/// How long a folder's numbers are kept when nobody is in it.
const IDLE: Duration = Duration::from_secs(10);
/// Keys of a draft's entries in the runtime state, after its inode number.
const HEAD: u8 = 0;
const SEGMENT: u8 = 1;
const OPERATION: u8 = 2;

/// What the directories need of vault, catalog and audit.
pub trait Outside: Send + Sync + 'static {
    /// What to look for in a place.
    ///
    /// # Errors
    /// [`Refusal::Locked`].
    fn view(&self, place: &Place) -> Result<Arc<View>, Refusal>;

    /// The key that seals what is held back.
    ///
    /// # Errors
    /// [`Refusal::Locked`].
    fn key(&self) -> Result<Arc<Key>, Refusal>;

    /// So many markers of this name were written to a file.
    fn redacted(&self, place: &Place, file: &str, name: &str, count: u64);

    /// A name with a secret in it was refused.
    fn name_refused(&self, place: &Place);
}

/// How much is allowed, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest file.
    pub max_file: u64,
    /// All files of the store.
    pub max_total: u64,
    /// What is collected of one file before it is applied.
    pub max_held: u64,
}

/// What an entry is to its writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub inode: u64,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Permission bits.
    pub mode: u32,
    /// Size in bytes, as writers see it.
    pub size_bytes: u64,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
}

/// A change of attributes; what is none stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// Size in bytes.
    pub size: Option<u64>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Seconds and nanoseconds since 1970.
    pub modified: Option<(i64, i64)>,
}

/// A file that is written, with its place in the store.
struct Desk {
    draft: Draft,
    store: Stored,
    level: Level,
    /// Set by a writer, and to be so when the file is complete.
    modified: Option<(i64, i64)>,
}

#[derive(Default)]
struct Openers {
    readers: HashSet<u64>,
    writers: HashSet<u64>,
}

type Shared = Arc<Mutex<Option<Desk>>>;

/// See the module.
pub struct Events {
    folder: Folder,
    limits: Limits,
    journal: Arc<Journal>,
    handles: Arc<Handles>,
    outside: Arc<dyn Outside>,
    nodes: Mutex<Nodes>,
    openers: Mutex<HashMap<u64, Openers>>,
    /// Drafts in memory; none in it: to be read from the runtime state.
    desks: Mutex<HashMap<u64, Shared>>,
    /// Complete files for those who had them open before.
    frozen: Mutex<HashMap<u64, Arc<(Draft, Stored)>>>,
    /// Since when nobody is in a folder.
    idle: Mutex<HashMap<String, Instant>>,
    /// Bytes in the store.
    total: AtomicU64,
}

fn os(error: &io::Error) -> Refusal {
    Refusal::Os(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

fn refusal(errno: Errno) -> Refusal {
    Refusal::Os(errno as i32)
}

/// The number has gone; the kernel looks the name up again.
fn stale() -> Refusal {
    refusal(Errno::ESTALE)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn full(_: crate::execution::journal::Error) -> Refusal {
    refusal(Errno::ENOSPC)
}

fn key_of(inode: u64, kind: u8, generation: u64, number: u64) -> Vec<u8> {
    let mut key = inode.to_be_bytes().to_vec();
    key.push(kind);
    if kind != HEAD {
        key.extend_from_slice(&generation.to_be_bytes());
        key.extend_from_slice(&number.to_be_bytes());
    }
    key
}

fn staged(inode: u64, generation: u64) -> PathBuf {
    Path::new(STAGING).join(format!("{inode:016x}.{generation}"))
}

fn unlinked(inode: u64) -> PathBuf {
    Path::new(STAGING).join(format!("{inode:016x}.unlinked"))
}

impl Events {
    /// Opens the store, and takes up what earlier workers left.
    ///
    /// # Errors
    /// When the store's directory cannot be made or used.
    pub fn open(
        path: &Path,
        look: Look,
        limits: Limits,
        journal: Arc<Journal>,
        handles: Arc<Handles>,
        outside: Arc<dyn Outside>,
    ) -> io::Result<Self> {
        let folder = Folder::open(path, look)?;
        let nodes = Nodes::open(journal.clone());
        let mut openers: HashMap<u64, Openers> = HashMap::new();
        for (fh, handle) in handles.all() {
            if nodes.get(handle.inode).is_some() {
                let openers = openers.entry(handle.inode).or_default();
                if handle.writing { &mut openers.writers } else { &mut openers.readers }.insert(fh);
            }
        }
        Ok(Self {
            folder,
            limits,
            journal,
            handles,
            outside,
            nodes: Mutex::new(nodes),
            openers: Mutex::new(openers),
            desks: Mutex::default(),
            frozen: Mutex::default(),
            idle: Mutex::default(),
            total: AtomicU64::new(0),
        })
    }

    /// Counts the store's bytes, which may take a while where there are many files.
    pub fn measure(&self) {
        if let Err(error) = self.sweep() {
            tracing::warn!(%error, "event files that were pruned are still there");
        }
        let total = self.folder.total();
        self.total.fetch_add(total, Ordering::Relaxed);
    }

    /// Where the store lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Whether an inode number is one of these directories' or files'.
    pub fn owns(&self, inode: u64) -> bool {
        lock(&self.nodes).get(inode).is_some()
    }

    fn new_inode(&self) -> Result<u64, Refusal> {
        loop {
            let mut bytes = [0; 8];
            crate::vault::crypto::random(&mut bytes).map_err(|_| Refusal::Fault)?;
            // 63 bits, above the fixed ones.
            let inode = u64::from_le_bytes(bytes) >> 1;
            if inode > 1 << 32 && !self.owns(inode) {
                return Ok(inode);
            }
        }
    }

    fn node(&self, writer: &Writer, inode: u64) -> Result<Node, Refusal> {
        let node = lock(&self.nodes).get(inode).cloned().ok_or_else(stale)?;
        if node.place.folder != writer.place.folder {
            return Err(Refusal::ForeignHandle);
        }
        Ok(node)
    }

    fn directory_node(&self, writer: &Writer, inode: u64) -> Result<Node, Refusal> {
        let node = self.node(writer, inode)?;
        match node.what {
            What::Directory { principal } if principal == writer.principal => Ok(node),
            What::Directory { .. } => Err(Refusal::ForeignHandle),
            What::File { .. } => Err(refusal(Errno::ENOTDIR)),
        }
    }

    /// A name that is to be made: none of our own, and without a secret in it.
    fn check_name(&self, writer: &Writer, name: &OsStr) -> Result<(), Refusal> {
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
    fn directory_inode(&self, writer: &Writer, path: &Path) -> Result<u64, Refusal> {
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

    /// The number of a file; a file that was replaced from outside gets a new one.
    fn file_inode(&self, writer: &Writer, path: &Path, entry: Entry) -> Result<u64, Refusal> {
        let known = |nodes: &Nodes| {
            let inode = nodes.file(path)?;
            let is_same = matches!(nodes.get(inode)?.what,
                What::File { store_inode, .. } if store_inode == entry.inode);
            // While it is written its place in the store may just be changing.
            (is_same || lock(&self.desks).contains_key(&inode)).then_some(inode)
        };
        if let Some(inode) = known(&lock(&self.nodes)) {
            return Ok(inode);
        }
        let inode = self.new_inode()?;
        let node = Node {
            place: writer.place.clone(),
            path: path.to_owned(),
            what: What::File { store_inode: entry.inode, kept: None, is_old: false },
        };
        let mut nodes = lock(&self.nodes);
        match known(&nodes) {
            Some(inode) => Ok(inode),
            None => nodes.put(inode, node).map(|()| inode).map_err(full),
        }
    }

    fn shown(&self, inode: u64, entry: Entry) -> Result<Attributes, Refusal> {
        let is_directory = entry.sort == Sort::Directory;
        let size = if is_directory { None } else { self.size(inode)? };
        Ok(Attributes {
            inode,
            is_directory,
            mode: entry.mode,
            size_bytes: size.unwrap_or(if is_directory { 0 } else { entry.len }),
            modified: entry.modified,
        })
    }

    /// The size of a file as those see it who have it open.
    fn size(&self, inode: u64) -> Result<Option<u64>, Refusal> {
        if let Some(frozen) = lock(&self.frozen).get(&inode) {
            return Ok(Some(frozen.0.len()));
        }
        let shared = lock(&self.desks).get(&inode).cloned();
        if let Some(shared) = shared
            && let Some(desk) = &*lock(&shared)
        {
            return Ok(Some(desk.draft.len()));
        }
        // What a locked vault seals tells its length all the same.
        let head = self.journal.get(Kind::EventDraft, &key_of(inode, HEAD, 0, 0));
        Ok(head.and_then(|head| Decoder(&head).number()))
    }

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
        let parent = self.directory_node(writer, parent)?;
        let path = parent.path.join(name);
        let entry = self.folder.entry(&path).map_err(|e| os(&e))?;
        self.found(writer, &path, entry)
    }

    fn found(&self, writer: &Writer, path: &Path, entry: Entry) -> Result<Attributes, Refusal> {
        let inode = match entry.sort {
            Sort::Directory => self.directory_inode(writer, path)?,
            Sort::File => self.file_inode(writer, path, entry)?,
        };
        self.shown(inode, entry)
    }

    /// Attributes of a number that the writer has.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn attributes(&self, writer: &Writer, inode: u64) -> Result<Attributes, Refusal> {
        let node = self.node(writer, inode)?;
        let entry = self.folder.entry(&node.path).map_err(|e| os(&e))?;
        self.shown(inode, entry)
    }

    /// Lists a directory: name, number, whether it is a directory.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn list(&self, writer: &Writer, inode: u64) -> Result<Vec<(OsString, u64, bool)>, Refusal> {
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
        let path = self.directory_node(writer, parent)?.path.join(name);
        match self.folder.make_directory(&path) {
            Err(e) if request.resent && e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(|e| os(&e))?,
        }
        let entry = self.folder.entry(&path).map_err(|e| os(&e))?;
        self.found(writer, &path, entry)
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

    /// Whether somebody has the file open.
    fn is_open(&self, inode: u64) -> bool {
        lock(&self.openers)
            .get(&inode)
            .is_some_and(|o| !o.readers.is_empty() || !o.writers.is_empty())
    }

    /// Takes the file at `path` out of its directory: away, or where those find it who have it open.
    fn detach(&self, path: &Path) -> io::Result<()> {
        let known = lock(&self.nodes).file(path);
        let old: Vec<u64> = {
            let nodes = lock(&self.nodes);
            let all = nodes.get(known.unwrap_or(0)).map(|n| nodes.of_folder(&n.place.folder));
            let at = |inode: &u64| nodes.get(*inode).is_some_and(|n| n.path == path);
            all.unwrap_or_default().into_iter().filter(at).collect()
        };
        let len = self.folder.entry(path)?.len;
        match known.filter(|inode| self.is_open(*inode)) {
            Some(inode) => {
                self.folder.rename(path, &unlinked(inode), false)?;
                let mut nodes = lock(&self.nodes);
                for inode_there in old {
                    if let Some(mut node) = nodes.get(inode_there).cloned() {
                        node.path = unlinked(inode);
                        nodes.put(inode_there, node).map_err(io::Error::other)?;
                    }
                }
            }
            None => {
                self.folder.unlink(path)?;
                self.shrink(len);
                for inode in old {
                    self.forget_draft(inode).map_err(io::Error::other)?;
                    if !self.is_open(inode) {
                        lock(&self.nodes).remove(inode).map_err(io::Error::other)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn shrink(&self, bytes: u64) {
        // The first count may not be in yet.
        let _total = self
            .total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |t| Some(t.saturating_sub(bytes)));
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
        let path = self.directory_node(writer, parent)?.path.join(name);
        match self.folder.entry(&path) {
            Ok(Entry { sort: Sort::Directory, .. }) => return Err(refusal(Errno::EISDIR)),
            Err(e) if request.resent && e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|e| os(&e))?,
        };
        self.detach(&path).map_err(|e| os(&e))
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
        let inode = lock(&self.nodes).file(&from).filter(|_| moved.sort == Sort::File);
        if let Some(inode) = inode {
            self.settle_for_rename(writer, inode)?;
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
        self.folder.rename(&from, &to, exclusive).map_err(|e| os(&e))?;
        lock(&self.nodes).rename(&from, &to).map_err(full)
    }

    /// A file that its writer has closed is made complete before it gets its final name: who watches
    /// the folder reads it at once.
    fn settle_for_rename(&self, writer: &Writer, inode: u64) -> Result<(), Refusal> {
        let Some(shared) = self.desk(inode, None)? else { return Ok(()) };
        let mut guard = lock(&shared);
        let Some(desk) = guard.as_mut().filter(|desk| desk.draft.is_flushed) else {
            return Ok(());
        };
        let outcome = self.settle(inode, &writer.place, desk);
        self.keep(&mut guard, outcome)
    }

    fn settle(&self, inode: u64, place: &Place, desk: &mut Desk) -> Result<(), Refusal> {
        if desk.draft.is_dirty() {
            self.rebuild(inode, place, desk)?;
        }
        let before = desk.draft.stored_len();
        desk.draft.settle(&desk.store).map_err(|e| os(&e))?;
        self.count(before, desk.draft.stored_len());
        self.save(inode, &mut desk.draft)
    }

    fn count(&self, before: u64, after: u64) {
        if after >= before {
            self.total.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.shrink(before - after);
        }
    }

    /// After a failure the draft is read from the runtime state again: memory may be ahead of it.
    fn keep<T>(
        &self,
        guard: &mut MutexGuard<'_, Option<Desk>>,
        outcome: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        if outcome.is_err() {
            **guard = None;
        }
        outcome
    }

    // --- drafts in the runtime state ---

    /// The draft of a file that is written. With `fresh` one is made where there is none.
    fn desk(&self, inode: u64, fresh: Option<&Writer>) -> Result<Option<Shared>, Refusal> {
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
            if let (None, Some(writer)) = (&*guard, fresh) {
                *guard = Some(self.reopen(inode, writer)?);
            }
            if guard.is_some() {
                drop(guard);
                return Ok(Some(shared));
            }
            lock(&self.desks).remove(&inode);
            return Ok(None);
        }
    }

    fn seal(&self, key: &Key, at: &[u8], plain: &[u8]) -> Result<Vec<u8>, Refusal> {
        key.seal(at, plain).map_err(|_| Refusal::Fault)
    }

    fn unseal(&self, key: &Key, at: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let plain = key.open(at, sealed).map_err(|_| Refusal::Fault)?;
        Ok(Zeroizing::new(plain.expose().to_vec()))
    }

    /// Takes up a draft that an earlier worker left.
    fn load(&self, inode: u64) -> Result<Option<Desk>, Refusal> {
        let at = key_of(inode, HEAD, 0, 0);
        let Some(entry) = self.journal.get(Kind::EventDraft, &at) else { return Ok(None) };
        let node = lock(&self.nodes).get(inode).cloned().ok_or(Refusal::Fault)?;
        let (key, view) = (self.outside.key()?, self.outside.view(&node.place)?);
        let mut fields = Decoder(&entry);
        let fault = || Refusal::Fault;
        let _len = fields.number().ok_or_else(fault)?;
        let modified = (fields.number().ok_or_else(fault)? != 0, fields.number(), fields.number());
        let head = self.unseal(&key, &at, fields.0)?;
        let (mut draft, counts) = Draft::load(&head, view).ok_or_else(fault)?;
        for number in 0..counts.segments {
            let at = key_of(inode, SEGMENT, draft.generation, number);
            let sealed = self.journal.get(Kind::EventDraft, &at).ok_or_else(fault)?;
            draft.add_segment(&self.unseal(&key, &at, &sealed)?).ok_or_else(fault)?;
        }
        for number in 0..counts.operations {
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
        draft.complete(&counts);
        // Killed between the new head and the new file's name.
        let staging = staged(inode, draft.generation);
        if self.folder.entry(&staging).is_ok() {
            self.folder.rename(&staging, &node.path, false).map_err(|e| os(&e))?;
        }
        let store = self.folder.file(&node.path).map_err(|e| os(&e))?;
        self.note_store(inode, &store)?;
        // Killed between the store and the note of it: what is behind was not acknowledged.
        if store.len().map_err(|e| os(&e))? > draft.stored_len() {
            store.set_len(draft.stored_len()).map_err(|e| os(&e))?;
        }
        let modified = match modified {
            (true, Some(seconds), Some(nanos)) => {
                Some((seconds.cast_signed(), nanos.cast_signed()))
            }
            _ => None,
        };
        let level = draft.level();
        Ok(Some(Desk { draft, store, level, modified }))
    }

    /// A draft of a file as it is stored.
    fn reopen(&self, inode: u64, writer: &Writer) -> Result<Desk, Refusal> {
        let node = lock(&self.nodes).get(inode).cloned().ok_or_else(stale)?;
        let view = self.outside.view(&writer.place)?;
        let store = self.folder.file(&node.path).map_err(|e| os(&e))?;
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
        let level = writer.level;
        let mut draft = Draft::reopen(view, level, &store, kept).map_err(|e| os(&e))?;
        self.save(inode, &mut draft)?;
        Ok(Desk { draft, store, level, modified: None })
    }

    /// Notes a draft in the runtime state: new hidden ranges, then the head that counts them.
    fn save(&self, inode: u64, draft: &mut Draft) -> Result<(), Refusal> {
        self.save_with(inode, draft, None)
    }

    fn save_with(
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
    fn forget_generation(
        &self,
        inode: u64,
        generation: u64,
        (segments, operations): (u64, u64),
    ) -> Result<(), crate::execution::journal::Error> {
        for (kind, count) in [(SEGMENT, segments), (OPERATION, operations)] {
            for number in 0..count {
                let at = key_of(inode, kind, generation, number);
                self.journal.remove(Kind::EventDraft, &at)?;
            }
        }
        Ok(())
    }

    /// Removes a draft from memory and the runtime state.
    fn forget_draft(&self, inode: u64) -> Result<(), crate::execution::journal::Error> {
        lock(&self.desks).remove(&inode);
        let head = key_of(inode, HEAD, 0, 0);
        self.journal.remove(Kind::EventDraft, &head)?;
        // A head that cannot be read any more leaves parts of unknown number.
        for (key, _) in self.journal.below(Kind::EventDraft, &inode.to_be_bytes()) {
            self.journal.remove(Kind::EventDraft, &key)?;
        }
        Ok(())
    }

    fn note_store(&self, inode: u64, store: &Stored) -> Result<(), Refusal> {
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
    fn rebuild(&self, inode: u64, place: &Place, desk: &mut Desk) -> Result<(), Refusal> {
        let path = lock(&self.nodes).get(inode).map(|n| n.path.clone()).ok_or_else(stale)?;
        let view = self.outside.view(place)?;
        let staging = staged(inode, desk.draft.generation + 1);
        // Of an earlier try that failed.
        let _removed = self.folder.unlink(&staging);
        let target = self.folder.create(&staging).map_err(|e| os(&e))?;
        let outcome = (|| {
            let mut new = desk.draft.rebuild(&desk.store, &target, view).map_err(|e| os(&e))?;
            let mode = self.folder.entry(&path).map_err(|e| os(&e))?.mode;
            self.folder.set_mode(&staging, mode).map_err(|e| os(&e))?;
            target.sync().map_err(|e| os(&e))?;
            self.save_with(inode, &mut new, desk.modified)?;
            Ok(new)
        })();
        let new = match outcome {
            Ok(new) => new,
            Err(refusal) => {
                let _removed = self.folder.unlink(&staging);
                return Err(refusal);
            }
        };
        self.folder.rename(&staging, &path, false).map_err(|e| os(&e))?;
        let old = std::mem::replace(&mut desk.draft, new);
        desk.store = target;
        self.note_store(inode, &desk.store)?;
        self.count(old.stored_len(), desk.draft.stored_len());
        self.forget_generation(inode, old.generation, (old.segments(), old.operations))
            .map_err(full)
    }

    // --- files ---

    fn enter(
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
        let made = self.make_file(writer, parent, name, exclusive, request)?;
        let fh = self.open_file(writer, made.inode, writing, request)?;
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
        self.check_name(writer, name)?;
        let path = self.directory_node(writer, parent)?.path.join(name);
        match self.folder.create(&path) {
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists && (!exclusive || request.resent) => {}
            other => drop(other.map_err(|e| os(&e))?),
        }
        let entry = self.folder.entry(&path).map_err(|e| os(&e))?;
        if entry.sort == Sort::Directory {
            return Err(refusal(Errno::EISDIR));
        }
        self.found(writer, &path, entry)
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
        if matches!(self.node(writer, inode)?.what, What::Directory { .. }) {
            return Err(refusal(Errno::EISDIR));
        }
        self.outside.view(&writer.place)?;
        // Entered first: from now on nobody takes the file for complete.
        let fh = self.enter(writer, inode, writing, request)?;
        let opened = match self.node(writer, inode).map(|node| node.what) {
            // The name has another number by now, which the kernel looks up.
            Ok(What::File { is_old: true, .. }) => Err(refusal(Errno::ESTALE)),
            Ok(_) if writing => self.desk(inode, Some(writer)).map(drop),
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

    /// The last writer's leaving, and the last of all.
    fn leave(&self, inode: u64, fh: u64) -> (bool, bool) {
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
    fn handle(&self, writer: &Writer, fh: u64, writing: bool) -> Result<u64, Refusal> {
        let handle = self.handles.get(fh).ok_or(Refusal::ForeignHandle)?;
        if writing && !handle.writing {
            return Err(refusal(Errno::EBADF));
        }
        self.node(writer, handle.inode)?;
        Ok(handle.inode)
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
            let guard = lock(&shared);
            if let Some(desk) = &*guard {
                return desk.draft.read(&desk.store, at, size).map_err(|e| os(&e));
            }
        }
        let node = self.node(writer, inode)?;
        if matches!(node.what, What::File { is_old: true, .. }) {
            return Err(refusal(Errno::ESTALE));
        }
        let store = self.folder.file(&node.path).map_err(|e| os(&e))?;
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

    /// Writes; everything or nothing. `append` puts it at the end, wherever that is.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn write(
        &self,
        writer: &Writer,
        fh: u64,
        at: Option<u64>,
        bytes: &[u8],
        request: Request,
    ) -> Result<(), Refusal> {
        let inode = self.handle(writer, fh, true)?;
        let view = self.outside.view(&writer.place)?;
        let shared = self.desk(inode, Some(writer))?.ok_or(Refusal::Fault)?;
        let mut guard = lock(&shared);
        let desk = guard.as_mut().ok_or(Refusal::Fault)?;
        if request.resent && desk.draft.has_done(request.id) {
            return Ok(());
        }
        let outcome = self.write_to(inode, &writer.place, desk, (at, bytes), &view, request);
        self.keep(&mut guard, outcome)
    }

    fn write_to(
        &self,
        inode: u64,
        place: &Place,
        desk: &mut Desk,
        (at, bytes): (Option<u64>, &[u8]),
        view: &Arc<View>,
        request: Request,
    ) -> Result<(), Refusal> {
        let at = at.unwrap_or(desk.draft.len());
        let end = at.checked_add(bytes.len() as u64).ok_or_else(|| refusal(Errno::EFBIG))?;
        let grows = end.saturating_sub(desk.draft.len());
        if end > self.limits.max_file
            || self.total.load(Ordering::Relaxed).saturating_add(grows) > self.limits.max_total
        {
            return Err(refusal(Errno::EDQUOT));
        }
        if !Arc::ptr_eq(desk.draft.view(), view) {
            desk.draft.set_view(view.clone());
        }
        desk.modified = None;
        desk.draft.is_flushed = false;
        if desk.draft.is_next(at) {
            let before = desk.draft.stored_len();
            desk.draft.stream(&desk.store, bytes).map_err(|e| os(&e))?;
            self.count(before, desk.draft.stored_len());
        } else {
            self.collect(inode, place, desk, &Operation::Write(at, bytes))?;
        }
        desk.draft.note(request.id);
        self.save(inode, &mut desk.draft)
    }

    fn collect(
        &self,
        inode: u64,
        place: &Place,
        desk: &mut Desk,
        operation: &Operation<'_>,
    ) -> Result<(), Refusal> {
        if desk.draft.held_bytes > self.limits.max_held {
            self.rebuild(inode, place, desk)?;
        }
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
        Ok(())
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
            self.folder.set_mode(&node.path, mode).map_err(|e| os(&e))?;
        }
        if let Some(size) = change.size {
            if !is_file {
                return Err(refusal(Errno::EINVAL));
            }
            self.truncate(writer, inode, size)?;
        }
        if let Some(modified) = change.modified
            && is_file
        {
            let shared = self.desk(inode, None)?;
            let mut guard = shared.as_ref().map(|s| lock(s));
            if let Some(desk) = guard.as_mut().and_then(|g| g.as_mut()) {
                desk.modified = Some(modified);
                desk.store.set_modified(modified).map_err(|e| os(&e))?;
                self.save_with(inode, &mut desk.draft, Some(modified))?;
            } else {
                let store = self.folder.file(&node.path).map_err(|e| os(&e))?;
                store.set_modified(modified).map_err(|e| os(&e))?;
            }
        }
        self.attributes(writer, inode)
    }

    fn truncate(&self, writer: &Writer, inode: u64, size: u64) -> Result<(), Refusal> {
        if size > self.limits.max_file {
            return Err(refusal(Errno::EDQUOT));
        }
        let shared = self.desk(inode, Some(writer))?.ok_or(Refusal::Fault)?;
        let mut guard = lock(&shared);
        let desk = guard.as_mut().ok_or(Refusal::Fault)?;
        let outcome = self.truncate_to(inode, writer, desk, size);
        self.keep(&mut guard, outcome)?;
        drop(guard);
        // By its name, while nobody writes: complete at once.
        if lock(&self.openers).get(&inode).is_none_or(|o| o.writers.is_empty()) {
            self.finish(inode)?;
        }
        Ok(())
    }

    fn truncate_to(
        &self,
        inode: u64,
        writer: &Writer,
        desk: &mut Desk,
        size: u64,
    ) -> Result<(), Refusal> {
        if size == desk.draft.len() {
            return Ok(());
        }
        desk.modified = None;
        if size > 0 {
            self.collect(inode, &writer.place, desk, &Operation::Truncate(size))?;
            return self.save(inode, &mut desk.draft);
        }
        let view = self.outside.view(&writer.place)?;
        let mut new = Draft::new(view, desk.level);
        new.generation = desk.draft.generation + 1;
        new.requests = desk.draft.requests;
        // The head first: a worker that finds the file longer than it says cuts it.
        self.save(inode, &mut new)?;
        let old = std::mem::replace(&mut desk.draft, new);
        desk.store.set_len(0).map_err(|e| os(&e))?;
        self.count(old.stored_len(), 0);
        self.forget_generation(inode, old.generation, (old.segments(), old.operations))
            .map_err(full)
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
            self.report(inode, &writer.place, &mut desk.draft);
        }
        Ok(())
    }

    fn report(&self, inode: u64, place: &Place, draft: &mut Draft) {
        let counts = draft.take_counts();
        if counts.is_empty() {
            return;
        }
        let file = lock(&self.nodes).get(inode).map_or_else(String::new, Node::shown);
        for (name, count) in counts {
            self.outside.redacted(place, &file, &name, count);
        }
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
        self.keep(&mut guard, outcome)
    }

    /// Whether a handle is of an events file.
    pub fn holds(&self, fh: u64) -> bool {
        self.handles.get(fh).is_some_and(|handle| self.owns(handle.inode))
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

    fn drop_unused(&self, inode: u64) {
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
    fn finish(&self, inode: u64) -> Result<(), Refusal> {
        let Some(shared) = self.desk(inode, None)? else { return Ok(()) };
        let mut guard = lock(&shared);
        let node = lock(&self.nodes).get(inode).cloned().ok_or_else(stale)?;
        // Somebody may have opened it again meanwhile.
        if lock(&self.openers).get(&inode).is_some_and(|o| !o.writers.is_empty()) {
            return Ok(());
        }
        let Some(desk) = guard.as_mut() else { return Ok(()) };
        let outcome = self.settle(inode, &node.place, desk);
        self.keep(&mut guard, outcome)?;
        let Some(mut desk) = guard.take() else { return Ok(()) };
        self.report(inode, &node.place, &mut desk.draft);
        if let Some(modified) = desk.modified {
            desk.store.set_modified(modified).map_err(|e| os(&e))?;
        }
        let kept = desk.draft.kept();
        let sealed = self.seal(&*self.outside.key()?, b"event tail", &kept.state)?;
        let kept = Some((kept.stored, kept.tail, sealed));
        let store_inode = desk.store.inode().map_err(|e| os(&e))?;
        let frozen = desk.draft.freeze();
        let complete =
            Node { what: What::File { store_inode, kept, is_old: false }, ..node.clone() };
        if frozen.has_hidden() && !node.is_unlinked() {
            // What is stored is not what writers saw: a new number.
            let new = self.new_inode()?;
            let mut nodes = lock(&self.nodes);
            if self.is_open(inode) {
                let what = What::File { store_inode, kept: None, is_old: true };
                nodes.put(inode, Node { what, ..node }).map_err(full)?;
                lock(&self.frozen).insert(inode, Arc::new((frozen, desk.store)));
            } else {
                nodes.remove(inode).map_err(full)?;
            }
            nodes.put(new, complete).map_err(full)?;
        } else {
            lock(&self.nodes).put(inode, complete).map_err(full)?;
        }
        self.forget_draft(inode).map_err(full)
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

    /// Whether any of these principals has a file open for writing.
    pub fn is_written_by(&self, principals: &[u64]) -> bool {
        self.handles
            .all()
            .iter()
            .any(|(_, h)| h.writing && h.principal.is_some_and(|p| principals.contains(&p)))
    }

    /// Forgets numbers of folders where nobody has been for a while; their files stay. `used` are the
    /// folders of those who live.
    pub fn forget_places(&self, used: &HashSet<&str>) {
        let places = lock(&self.nodes).places();
        let mut idle = lock(&self.idle);
        idle.retain(|folder, _| !used.contains(folder.as_str()));
        for place in places.into_iter().filter(|place| !used.contains(place.folder.as_str())) {
            let since = idle.entry(place.folder.clone()).or_insert_with(Instant::now);
            if since.elapsed() < IDLE {
                continue;
            }
            let inodes = lock(&self.nodes).of_folder(&place.folder);
            for inode in inodes {
                if self.is_open(inode) || self.size(inode).is_ok_and(|s| s.is_some()) {
                    continue;
                }
                if let Err(error) = lock(&self.nodes).remove(inode) {
                    tracing::error!(%error, "a number of an event file could not be forgotten");
                }
            }
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("path", &self.folder.path()).finish_non_exhaustive()
    }
}
