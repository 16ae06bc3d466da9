//! The `events` directories: what agents write there is stripped of secrets on its way to the disk.
//!
//! A file that is written has a draft (`draft::Draft`): the store gets what the redactor has
//! decided, the keeper's memory the rest, sealed. Order of a write: redact, store, note in the runtime
//! state, answer; each step can be repeated, so that a worker that dies in between loses and doubles
//! nothing. When the last writer has closed a file, its end is decided and it is complete.
//!
//! Invariant: no unredacted byte reaches the store. Lock order: a draft, then `names`, then `nodes`,
//! `openers`.
#![forbid(unsafe_code)]

#[cfg(test)]
mod asked;
mod codec;
mod decoy;
mod desk;
mod draft;
mod emit;
mod file;
mod folder;
mod lengths;
mod moves;
mod names;
mod node;
mod overlay;
mod packs;
mod ranges;
mod search;
mod stock;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::broker::{Place, Refusal, Writer};
use crate::execution::handles::Handles;
use crate::execution::journal::{Journal, Kind};
use crate::redact::View;
use crate::vault::crypto::Key;

pub use folder::Look;
pub use search::{Progress, Wanted};
pub use stock::{Kept as KeptFolder, folder_of};

use codec::Decoder;
use decoy::Decoy;
use desk::{Desk, HEAD, key_of};
use draft::Draft;
pub use draft::Telling;
use folder::{Entry, Folder, STAGING, Sort};
use lengths::Lengths;
use moves::Moves;
use node::{Node, Nodes, What};
use packs::Filed;

/// `NAME_MAX` of limits.h.
const MAX_NAME_BYTES: usize = 255;
/// How long a folder's numbers are kept when nobody is in it.
const IDLE: Duration = Duration::from_secs(10);
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

    /// Markers were written to a file: recorded once for its `once`, by whichever worker. Whether they
    /// are on record.
    fn redacted(&self, place: &Place, file: &str, telling: &Telling) -> bool;

    /// A file is complete that cannot be looked into, for what it is; recorded in the same way.
    fn unchecked(&self, place: &Place, file: &str, kind: &str, once: &[u8]);

    /// What is on record will not be told again.
    fn noted(&self, once: &[u8]);

    /// A name with a secret in it was refused.
    fn name_refused(&self, place: &Place);

    /// So often a writer may have tried whether it wrote the beginning of a value of others.
    fn guessed(&self, place: &Place, count: u64);

    /// Whether a place's writers have tried that too often.
    fn is_guesser(&self, place: &Place) -> bool;
}

/// How fast requests of a file or directory are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// When they are done.
    Free,
    /// One after the other, each at the next of even times: how long it took tells nothing.
    Even,
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
    /// Seconds and nanoseconds since 1970: of the last write, whatever is stored of it.
    pub modified: (i64, i64),
    /// The same, of the last reading; the orchestrator's are among them.
    pub accessed: (i64, i64),
    /// The same, of any change.
    pub changed: (i64, i64),
    /// As stat(2) counts names.
    pub links: u32,
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// From the start; the kernel's idea of the end for a write that appends.
    pub offset: u64,
    /// Whether the descriptor appends, which `RWF_NOAPPEND` overrides with an offset of its own.
    pub append: bool,
}

/// A change of attributes; what is none stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// Size in bytes.
    pub size: Option<u64>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Seconds and nanoseconds since 1970, of the last reading.
    pub accessed: Option<(i64, i64)>,
    /// The same, of the last write.
    pub modified: Option<(i64, i64)>,
}

#[derive(Default)]
struct Openers {
    readers: HashSet<u64>,
    writers: HashSet<u64>,
}

type Shared = Arc<Mutex<Option<Desk>>>;

/// See the module.
pub struct Events {
    folder: Arc<Folder>,
    decoy: Arc<Decoy>,
    limits: Limits,
    journal: Arc<Journal>,
    handles: Arc<Handles>,
    outside: Arc<dyn Outside>,
    /// Held for reading while what a name stands for is used, for writing while names change: what the
    /// store has and what `nodes` says are one thing then.
    names: RwLock<()>,
    moves: Moves,
    nodes: Mutex<Nodes>,
    openers: Mutex<HashMap<u64, Openers>>,
    /// Drafts in memory; none in it: to be read from the runtime state.
    desks: Mutex<HashMap<u64, Shared>>,
    /// Complete files for those who had them open before.
    frozen: Mutex<HashMap<u64, Arc<(Draft, Filed)>>>,
    /// Since when nobody is in a folder.
    idle: Mutex<HashMap<String, Instant>>,
    /// What earlier workers were killed over, by the file that they made anew.
    leftovers: Mutex<HashMap<u64, Vec<PathBuf>>>,
    /// Bytes in the store.
    total: AtomicU64,
    /// Innermost, both.
    lengths: Mutex<Lengths>,
    sweep: Mutex<search::Sweep>,
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

const UNLINKED: &str = ".unlinked";

/// Where a file lies that has lost its name.
fn unlinked(inode: u64) -> PathBuf {
    Path::new(STAGING).join(format!("{inode:016x}{UNLINKED}"))
}

/// The file that a name of [`unlinked`] is for.
fn inode_of_unlinked(name: &OsStr) -> Option<u64> {
    u64::from_str_radix(name.to_str()?.strip_suffix(UNLINKED)?, 16).ok()
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
        let folder = Arc::new(Folder::open(path, look)?);
        let mut nodes = Nodes::open(journal.clone());
        let mut leftovers: HashMap<u64, Vec<PathBuf>> = HashMap::new();
        for (name, ..) in folder.list(Path::new(STAGING))? {
            let path = Path::new(STAGING).join(&name);
            if let Some(inode) = inode_of_unlinked(&name) {
                // Killed between the move of the file and the note of it.
                nodes.move_file(inode, &path).map_err(io::Error::other)?;
                continue;
            }
            match desk::inode_of_staged(&name) {
                Some(inode) if nodes.get(inode).is_some() => {
                    leftovers.entry(inode).or_default().push(path);
                }
                Some(_) => folder.unlink(&path)?,
                None => {}
            }
        }
        let mut openers: HashMap<u64, Openers> = HashMap::new();
        for (fh, handle) in handles.all() {
            if nodes.get(handle.inode).is_some() {
                let openers = openers.entry(handle.inode).or_default();
                if handle.writing { &mut openers.writers } else { &mut openers.readers }.insert(fh);
            }
        }
        let moves = Moves::open(journal.clone(), &folder, &mut nodes).map_err(io::Error::other)?;
        for (one, other) in nodes.twins() {
            // The earlier number is the one that still has a draft.
            let has_draft =
                |inode: u64| journal.get(Kind::EventDraft, &key_of(inode, HEAD, 0, 0)).is_some();
            let (earlier, later) = if has_draft(other) { (other, one) } else { (one, other) };
            if openers.contains_key(&earlier) {
                nodes.make_old(earlier).map_err(io::Error::other)?;
            } else {
                nodes.remove(earlier).map_err(io::Error::other)?;
            }
            if let Some(node) = nodes.get(later).cloned() {
                nodes.put(later, node).map_err(io::Error::other)?;
            }
        }
        let decoy = Arc::new(Decoy::new(&folder));
        Ok(Self {
            folder,
            decoy,
            limits,
            journal,
            handles,
            outside,
            names: RwLock::default(),
            moves,
            nodes: Mutex::new(nodes),
            openers: Mutex::new(openers),
            desks: Mutex::default(),
            frozen: Mutex::default(),
            idle: Mutex::default(),
            leftovers: Mutex::new(leftovers),
            total: AtomicU64::new(0),
            lengths: Mutex::default(),
            sweep: Mutex::default(),
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

    /// The same: how fast its requests are answered.
    pub fn pace(&self, inode: u64) -> Option<Pace> {
        let nodes = lock(&self.nodes);
        let is_guesser = self.outside.is_guesser(&nodes.get(inode)?.place);
        Some(if is_guesser { Pace::Even } else { Pace::Free })
    }

    /// A use of a file that tells whether its end may be a value of others, to whoever takes the time.
    fn note_use(&self, place: &Place, draft: &mut Draft) {
        draft.count_use();
        self.tell_guesses(place, draft);
    }

    fn tell_guesses(&self, place: &Place, draft: &mut Draft) {
        let guesses = draft.take_guesses();
        if guesses > 0 {
            self.outside.guessed(place, guesses);
        }
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

    /// No name changes while the guard is held. Not to be asked for twice by one thread, nor before a
    /// draft's lock.
    fn stay(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names change, by this thread alone.
    fn change_names(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a number stands for now.
    fn now(&self, inode: u64) -> Result<Node, Refusal> {
        lock(&self.nodes).get(inode).cloned().ok_or_else(stale)
    }

    fn node(&self, writer: &Writer, inode: u64) -> Result<Node, Refusal> {
        let node = self.now(inode)?;
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

    fn shown(&self, inode: u64, mut entry: Entry) -> Result<Attributes, Refusal> {
        let is_directory = entry.sort == Sort::Directory;
        let (mut size, mut written) = (Some(0), None);
        if !is_directory {
            (size, written) =
                self.seen(inode).map_or((None, None), |(size, time)| (Some(size), time));
            // It may have become complete since the entry was read, and longer: who appends next
            // would do so where the kernel believes that it ends.
            if size.is_none() {
                let _stay = self.stay();
                if let Ok(node) = self.now(inode)
                    && let Ok(now) = self.folder.entry(&node.path)
                    && matches!(node.what, What::File { store_inode, .. } if store_inode == now.inode)
                {
                    entry = now;
                }
            }
        }
        let size = size.unwrap_or(entry.len);
        if !is_directory {
            lock(&self.lengths).tell(inode, size);
        }
        let is_unlinked = lock(&self.nodes).get(inode).is_some_and(Node::is_unlinked);
        Ok(Attributes {
            inode,
            is_directory,
            mode: entry.mode,
            size_bytes: size,
            modified: written.unwrap_or(entry.modified),
            accessed: entry.accessed,
            changed: written.map_or(entry.changed, |written| written.max(entry.changed)),
            links: if is_unlinked { 0 } else { entry.links },
        })
    }

    /// The size of a file as those see it who have it open.
    fn size(&self, inode: u64) -> Option<u64> {
        self.seen(inode).map(|(size, _)| size)
    }

    /// The same, and when it was written last if the store does not tell that yet.
    fn seen(&self, inode: u64) -> Option<(u64, Option<(i64, i64)>)> {
        if let Some(frozen) = lock(&self.frozen).get(&inode) {
            return Some((frozen.0.len(), None));
        }
        let shared = lock(&self.desks).get(&inode).cloned();
        if let Some(shared) = shared
            && let Some(desk) = &mut *lock(&shared)
        {
            desk.kernel_may_lag = false;
            return Some((desk.draft.len(), desk.modified));
        }
        // What a locked vault seals tells its length all the same.
        let head = self.journal.get(Kind::EventDraft, &key_of(inode, HEAD, 0, 0))?;
        desk::outside(&mut Decoder(&head))
    }

    /// Whether somebody has the file open for writing.
    fn is_written(&self, inode: u64) -> bool {
        lock(&self.openers).get(&inode).is_some_and(|o| !o.writers.is_empty())
    }

    /// Whether somebody has the file open.
    fn is_open(&self, inode: u64) -> bool {
        lock(&self.openers)
            .get(&inode)
            .is_some_and(|o| !o.readers.is_empty() || !o.writers.is_empty())
    }

    fn shrink(&self, bytes: u64) {
        // The first count may not be in yet.
        let _total = self
            .total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |t| Some(t.saturating_sub(bytes)));
    }

    fn count(&self, before: u64, after: u64) {
        if after >= before {
            self.total.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.shrink(before - after);
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
                if self.is_open(inode) || self.size(inode).is_some() {
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

#[cfg(test)]
mod deaths;
#[cfg(test)]
mod tests;
