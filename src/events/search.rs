//! Files that are stored already are searched when there are more values to look for.
//!
//! Invariant: after a search every file that had a name while it ran, or was written without one, was
//! looked at: what agents move or remove meanwhile is looked at where it went, and what they write is judged by the newer view, since a
//! draft takes the view under the lock that the search takes as well. Danger: a file that is moved from
//! a directory that is still to be read to one that was read.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use crate::broker::{Place, Refusal};
use crate::redact::{Level, Redactor, View};

use super::draft::Nothing;
use super::folder::{STAGING, Sort, Stored};
use super::node::What;
use super::stock::place_of;
use super::{Events, full, lock, os, refusal, stale};

/// What is read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// How far a search is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files there were when it began.
    pub files: AtomicU64,
    /// Files that were looked at.
    pub looked: AtomicU64,
    /// Files that were made anew.
    pub rewritten: AtomicU64,
    /// Files that could not be searched.
    pub failed: AtomicU64,
}

impl Progress {
    fn begin(&self, files: u64) {
        self.files.store(files, Ordering::Relaxed);
        for number in [&self.looked, &self.rewritten, &self.failed] {
            number.store(0, Ordering::Relaxed);
        }
    }
}

/// What a search still has to look at.
#[derive(Default)]
pub(super) struct Sweep {
    left: Vec<PathBuf>,
    runs: bool,
    /// Names that are on their way somewhere else.
    moving: usize,
}

/// What to look for in a place.
pub type Wanted<'a> = dyn Fn(&Place) -> Result<Arc<View>, Refusal> + 'a;

impl Events {
    /// Something gets another name; it is told where to when that is done.
    pub(super) fn begin_move(&self) {
        lock(&self.sweep).moving += 1;
    }

    pub(super) fn end_move(&self, to: &Path) {
        let mut sweep = lock(&self.sweep);
        sweep.moving -= 1;
        if sweep.runs {
            sweep.left.push(to.to_owned());
        }
    }

    /// Looks in all files for what `wanted` says for their place, and makes those anew that have
    /// it; stops early when `stop` says so. Whether everything was searched.
    ///
    /// # Errors
    /// [`Refusal::Locked`], and when the store cannot be read at all.
    pub fn search(
        &self,
        wanted: &Wanted<'_>,
        level: Level,
        progress: &Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool, Refusal> {
        progress.begin(self.folder.files());
        {
            let mut sweep = lock(&self.sweep);
            sweep.left = vec![PathBuf::new()];
            sweep.runs = true;
        }
        let nameless = lock(&self.nodes).nameless();
        lock(&self.sweep).left.extend(nameless.into_iter().map(|(_, path)| path));
        let outcome = self.sweep_all(wanted, level, progress, stop);
        let mut sweep = lock(&self.sweep);
        sweep.runs = false;
        sweep.left = Vec::new();
        outcome?;
        Ok(progress.failed.load(Ordering::Relaxed) == 0)
    }

    fn sweep_all(
        &self,
        wanted: &Wanted<'_>,
        level: Level,
        progress: &Progress,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), Refusal> {
        let mut views: HashMap<String, Arc<View>> = HashMap::new();
        loop {
            if stop() {
                return Err(Refusal::Locked);
            }
            let (next, moving) = {
                let mut sweep = lock(&self.sweep);
                (sweep.left.pop(), sweep.moving)
            };
            let Some(path) = next else {
                if moving == 0 {
                    return Ok(());
                }
                std::thread::park_timeout(std::time::Duration::from_millis(1));
                continue;
            };
            match self.sweep_one(&path, wanted, level, &mut views, progress) {
                Ok(()) => {}
                Err(Refusal::Locked) => return Err(Refusal::Locked),
                // Gone, or moved, which is told.
                Err(gone) if gone == refusal(Errno::ENOENT) => {}
                Err(error) => {
                    progress.failed.fetch_add(1, Ordering::Relaxed);
                    let path = path.display();
                    tracing::error!(%path, %error, "an event file could not be searched");
                }
            }
        }
    }

    fn sweep_one(
        &self,
        path: &Path,
        wanted: &Wanted<'_>,
        level: Level,
        views: &mut HashMap<String, Arc<View>>,
        progress: &Progress,
    ) -> Result<(), Refusal> {
        if path.starts_with(STAGING) {
            return self.sweep_nameless(path, wanted, views);
        }
        let entry = self.folder.entry(path).map_err(|e| os(&e))?;
        if entry.sort == Sort::Directory {
            let below = self.folder.list(path).map_err(|e| os(&e))?;
            let below = below.into_iter().map(|(name, ..)| path.join(name));
            lock(&self.sweep).left.extend(below);
            return Ok(());
        }
        // A file above the folders is none of ours.
        let Some(place) = place_of(path) else { return Ok(()) };
        let view = view_of(&place, wanted, views)?;
        let rewritten = loop {
            match self.look_into(path, &place, level, &view) {
                // Completed meanwhile.
                Err(refusal) if refusal == stale() => {}
                outcome => break outcome?,
            }
        };
        progress.looked.fetch_add(1, Ordering::Relaxed);
        progress.rewritten.fetch_add(u64::from(rewritten), Ordering::Relaxed);
        Ok(())
    }

    /// A file that was removed while it is written. One that is only read any more stays as it is: nobody
    /// else finds it, and it goes with its last reader.
    fn sweep_nameless(
        &self,
        path: &Path,
        wanted: &Wanted<'_>,
        views: &mut HashMap<String, Arc<View>>,
    ) -> Result<(), Refusal> {
        let all = lock(&self.nodes).nameless();
        let Some((inode, _)) = all.into_iter().find(|(_, at)| at == path) else { return Ok(()) };
        let Some(node) = lock(&self.nodes).get(inode).cloned() else { return Ok(()) };
        let view = view_of(&node.place, wanted, views)?;
        self.look_into_draft(inode, &view).map(drop)
    }

    /// Whether the file had to be made anew.
    fn look_into(
        &self,
        path: &Path,
        place: &Place,
        level: Level,
        view: &Arc<View>,
    ) -> Result<bool, Refusal> {
        let known = lock(&self.nodes).file(path);
        if let Some(inode) = known
            && let Some(rewritten) = self.look_into_draft(inode, view)?
        {
            return Ok(rewritten);
        }
        let store = self.folder.reader(path).map_err(|e| os(&e))?;
        let ending = match finds(&store, view, level).map_err(|e| os(&e))? {
            Found::Anything => None,
            Found::Beginning => Some(true),
            Found::Nothing => Some(false),
        };
        if let Some(is_begun) = ending {
            if let Some(inode) = known.filter(|_| is_begun) {
                self.forget_ending(inode)?;
            }
            return Ok(false);
        }
        drop(store);
        let place = match known.and_then(|inode| self.now(inode).ok()) {
            Some(node) => node.place,
            None => Arc::new(place.clone()),
        };
        let (inode, entry) = {
            let _stay = self.stay();
            let entry = self.folder.entry(path).map_err(|e| os(&e))?;
            (self.file_inode(&place, path, entry)?, entry)
        };
        let shared = self.desk(inode, Some((&place, level)))?.ok_or_else(stale)?;
        let mut guard = lock(&shared);
        let desk = guard.as_mut().ok_or_else(stale)?;
        if self.is_written(inode) {
            // Opened since: what its writer set is its own.
            drop(guard);
            return self.look_into_draft(inode, view).map(Option::unwrap_or_default);
        }
        desk.modified = Some(entry.modified);
        let outcome = self.rebuild(inode, &place, desk);
        if outcome.is_ok() {
            self.report_later(inode, &place, desk);
        }
        self.keep(&mut guard, outcome)?;
        drop(guard);
        self.finish(inode)?;
        if !self.is_open(inode) {
            self.drop_unused(inode);
        }
        Ok(true)
    }

    /// Its end is judged anew by whoever writes it next.
    fn forget_ending(&self, inode: u64) -> Result<(), Refusal> {
        let mut nodes = lock(&self.nodes);
        let Some(mut node) = nodes.get(inode).cloned() else { return Ok(()) };
        if let What::File { kept, .. } = &mut node.what
            && kept.take().is_some()
        {
            nodes.put(inode, node).map_err(full)?;
        }
        Ok(())
    }

    /// The same for a file that is being written; none if it is not.
    fn look_into_draft(&self, inode: u64, view: &Arc<View>) -> Result<Option<bool>, Refusal> {
        let Some(shared) = self.desk(inode, None)? else { return Ok(None) };
        let mut guard = lock(&shared);
        let node = lock(&self.nodes).get(inode).cloned();
        let (Some(desk), Some(node)) = (guard.as_mut(), node) else { return Ok(None) };
        let found = desk.draft.contains(&desk.store, view).map_err(|e| os(&e))?;
        let outcome = if found {
            self.report(inode, &node.place, desk);
            self.rebuild(inode, &node.place, desk)
        } else {
            self.follow(&node.place, desk)
        };
        if found && outcome.is_ok() {
            self.report_later(inode, &node.place, desk);
        }
        self.keep(&mut guard, outcome)?;
        Ok(Some(found))
    }
}

/// What is looked for in a place, which is found out once.
fn view_of(
    place: &Place,
    wanted: &Wanted<'_>,
    views: &mut HashMap<String, Arc<View>>,
) -> Result<Arc<View>, Refusal> {
    if let Some(view) = views.get(&place.folder) {
        return Ok(view.clone());
    }
    let view = wanted(place)?;
    views.insert(place.folder.clone(), view.clone());
    Ok(view)
}

enum Found {
    Anything,
    /// The end may be the beginning of something.
    Beginning,
    Nothing,
}

fn finds(store: &Stored, view: &Arc<View>, level: Level) -> io::Result<Found> {
    let mut search = Redactor::new(view.clone(), level);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        match store.read_at(at, &mut buffer)? {
            0 => break,
            n => {
                search.push(&buffer[..n], &mut Nothing);
                at += n as u64;
            }
        }
        if search.counts().next().is_some() {
            return Ok(Found::Anything);
        }
    }
    let is_begun = search.held() > 0;
    search.finish(&mut Nothing);
    Ok(match search.counts().next() {
        Some(_) => Found::Anything,
        None if is_begun => Found::Beginning,
        None => Found::Nothing,
    })
}
