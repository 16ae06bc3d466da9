//! Inode numbers of the events directories, and what they stand for.
//!
//! A file has one number for all agents of its execution, so that the kernel knows one size of it; a
//! directory has one for each agent, since it hangs below the agent's own. Invariant: a number that
//! was given to the kernel means the same to the next worker.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::broker::Place;
use crate::execution::journal::{self, Journal, Kind};

use super::codec::{Decoder, Encoder};
use super::folder::STAGING;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// A directory, as one principal sees it.
    Directory { principal: u64 },
    /// A file.
    File {
        /// In the store's file system.
        store_inode: u64,
        /// The redactor's state at its end: decided bytes, tail, sealed state.
        kept: Option<(u64, u64, Vec<u8>)>,
        /// A later number has its name; this one is for those who have it open.
        is_old: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub place: Arc<Place>,
    /// Below the store.
    pub path: PathBuf,
    pub what: What,
}

impl Node {
    /// Whether it has lost its name.
    pub(super) fn is_unlinked(&self) -> bool {
        self.path.starts_with(STAGING)
    }

    /// Its path below the folder, for records.
    pub(super) fn shown(&self) -> String {
        let below = self.path.strip_prefix(&self.place.folder).unwrap_or(&self.path);
        below.display().to_string()
    }

    fn encode(&self) -> Encoder {
        let mut entry = Encoder::default();
        entry
            .bytes(self.place.folder.as_bytes())
            .bytes(self.place.chain.as_bytes())
            .optional(self.place.environment.as_ref().map(String::as_bytes))
            .bytes(self.place.execution.as_bytes())
            .bytes(self.path.as_os_str().as_bytes());
        match &self.what {
            What::Directory { principal } => {
                entry.number(0).number(*principal);
            }
            What::File { store_inode, kept, is_old } => {
                entry.number(1).number(*store_inode).number(u64::from(*is_old));
                let (stored, tail, state) =
                    kept.as_ref().map_or((0, 0, None), |(s, t, state)| (*s, *t, Some(&state[..])));
                entry.number(stored).number(tail).optional(state);
            }
        }
        entry
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Decoder(bytes);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let place = Place {
            folder: text(from.bytes()?)?,
            chain: text(from.bytes()?)?,
            environment: match from.optional()? {
                Some(bytes) => Some(text(bytes)?),
                None => None,
            },
            execution: text(from.bytes()?)?,
        };
        let path = PathBuf::from(OsStr::from_bytes(from.bytes()?));
        let what = match from.number()? {
            0 => What::Directory { principal: from.number()? },
            _ => {
                let (store_inode, is_old) = (from.number()?, from.number()? != 0);
                let (stored, tail) = (from.number()?, from.number()?);
                let kept = from.optional()?.map(|state| (stored, tail, state.to_vec()));
                What::File { store_inode, kept, is_old }
            }
        };
        Some(Self { place: Arc::new(place), path, what })
    }
}

/// All numbers in use.
pub(super) struct Nodes {
    journal: Arc<Journal>,
    by_inode: HashMap<u64, Node>,
    files: HashMap<PathBuf, u64>,
    directories: HashMap<(u64, PathBuf), u64>,
}

impl Nodes {
    /// Reads what earlier workers noted.
    pub(super) fn open(journal: Arc<Journal>) -> Self {
        let all = journal.all(Kind::EventNode);
        let mut nodes = Self {
            journal,
            by_inode: HashMap::new(),
            files: HashMap::new(),
            directories: HashMap::new(),
        };
        for (key, value) in all {
            match (<[u8; 8]>::try_from(key), Node::decode(&value)) {
                (Ok(key), Some(node)) => nodes.index(u64::from_be_bytes(key), node),
                _ => tracing::error!("a number of an event file does not parse"),
            }
        }
        nodes
    }

    fn index(&mut self, inode: u64, node: Node) {
        match &node.what {
            What::Directory { principal } => {
                self.directories.insert((*principal, node.path.clone()), inode);
            }
            What::File { is_old, .. } if !is_old && !node.is_unlinked() => {
                self.files.insert(node.path.clone(), inode);
            }
            What::File { .. } => {}
        }
        self.by_inode.insert(inode, node);
    }

    fn unindex(&mut self, inode: u64) -> Option<Node> {
        let node = self.by_inode.remove(&inode)?;
        match &node.what {
            What::Directory { principal } => {
                self.directories.remove(&(*principal, node.path.clone()));
            }
            What::File { .. } => {
                if self.files.get(&node.path) == Some(&inode) {
                    self.files.remove(&node.path);
                }
            }
        }
        Some(node)
    }

    pub(super) fn get(&self, inode: u64) -> Option<&Node> {
        self.by_inode.get(&inode)
    }

    pub(super) fn file(&self, path: &Path) -> Option<u64> {
        self.files.get(path).copied()
    }

    pub(super) fn directory(&self, principal: u64, path: &Path) -> Option<u64> {
        self.directories.get(&(principal, path.to_owned())).copied()
    }

    /// Notes a number, new or changed.
    pub(super) fn put(&mut self, inode: u64, node: Node) -> Result<(), journal::Error> {
        #[cfg(test)]
        super::asked::step();
        self.journal.put(Kind::EventNode, &inode.to_be_bytes(), &node.encode().0)?;
        self.unindex(inode);
        self.index(inode, node);
        Ok(())
    }

    /// Forgets a number.
    pub(super) fn remove(&mut self, inode: u64) -> Result<(), journal::Error> {
        #[cfg(test)]
        super::asked::step();
        self.journal.remove(Kind::EventNode, &inode.to_be_bytes())?;
        self.unindex(inode);
        Ok(())
    }

    /// Everything at `from` and below it is at `to` now.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), journal::Error> {
        let moved: Vec<_> = self
            .by_inode
            .iter()
            .filter(|(_, node)| node.path.starts_with(from))
            .map(|(inode, node)| (*inode, node.clone()))
            .collect();
        for (inode, mut node) in moved {
            let below = node.path.strip_prefix(from).unwrap_or(Path::new("")).to_owned();
            node.path = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
            self.put(inode, node)?;
        }
        Ok(())
    }

    /// All numbers of a file, also those for who had it open before: they have one path.
    pub(super) fn numbers_of(&self, inode: u64) -> Vec<u64> {
        let Some(file) = self.get(inode) else { return Vec::new() };
        let is_it = |(_, node): &(&u64, &Node)| {
            node.path == file.path && matches!(node.what, What::File { .. })
        };
        self.by_inode.iter().filter(is_it).map(|(inode, _)| *inode).collect()
    }

    /// A file is at `to` now, under all its numbers.
    pub(super) fn move_file(&mut self, inode: u64, to: &Path) -> Result<(), journal::Error> {
        if self.get(inode).is_none_or(|node| node.path == to) {
            return Ok(());
        }
        let mut all = self.numbers_of(inode);
        // The last to be moved is the one by which a worker that dies here is followed by another.
        all.sort_by_key(|number| *number == inode);
        for number in all {
            if let Some(mut node) = self.get(number).cloned() {
                node.path = to.to_owned();
                self.put(number, node)?;
            }
        }
        Ok(())
    }

    /// A later number has the file's name.
    pub(super) fn make_old(&mut self, inode: u64) -> Result<(), journal::Error> {
        let Some(mut node) = self.get(inode).cloned() else { return Ok(()) };
        if let What::File { is_old, kept, .. } = &mut node.what {
            (*is_old, *kept) = (true, None);
        }
        self.put(inode, node)
    }

    /// Files that have two numbers: a worker died when it had given the later one.
    pub(super) fn twins(&self) -> Vec<(u64, u64)> {
        let mut by_path: HashMap<&Path, u64> = HashMap::new();
        let mut twins = Vec::new();
        for (inode, node) in &self.by_inode {
            let is_current = matches!(node.what, What::File { is_old: false, .. });
            if is_current && let Some(other) = by_path.insert(&node.path, *inode) {
                twins.push((other, *inode));
            }
        }
        twins
    }

    /// Numbers of a folder whose agents are gone.
    pub(super) fn of_folder(&self, folder: &str) -> Vec<u64> {
        let of = |(_, node): &(&u64, &Node)| node.place.folder == folder;
        self.by_inode.iter().filter(of).map(|(inode, _)| *inode).collect()
    }

    /// Files that were removed while somebody has them open, and where they are.
    pub(super) fn nameless(&self) -> Vec<(u64, PathBuf)> {
        let is_nameless = |node: &Node| {
            node.is_unlinked() && matches!(node.what, What::File { is_old: false, .. })
        };
        let all = self.by_inode.iter().filter(|(_, node)| is_nameless(node));
        all.map(|(inode, node)| (*inode, node.path.clone())).collect()
    }

    /// All folders that have numbers.
    pub(super) fn places(&self) -> Vec<Arc<Place>> {
        let mut places: Vec<Arc<Place>> = Vec::new();
        for node in self.by_inode.values() {
            if !places.contains(&node.place) {
                places.push(node.place.clone());
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::state::State;

    #[test]
    fn the_next_worker_finds_every_number_where_it_was_moved_to() {
        let state = State::create().unwrap();
        let journal = Arc::new(Journal::open(&state));
        let place = Arc::new(Place {
            folder: "c/-/x".into(),
            chain: "c".into(),
            environment: None,
            execution: "x".into(),
        });
        let node = |path: &str, what: What| Node { place: place.clone(), path: path.into(), what };
        let file = |kept| What::File { store_inode: 9, kept, is_old: false };
        let mut nodes = Nodes::open(journal.clone());
        nodes.put(1, node("c/-/x/d", What::Directory { principal: 5 })).unwrap();
        nodes.put(2, node("c/-/x/d/f", file(Some((3, 4, b"state".to_vec()))))).unwrap();
        nodes.put(3, node("c/-/x/dd", file(None))).unwrap();
        nodes.rename(Path::new("c/-/x/d"), Path::new("c/-/x/e")).unwrap();
        nodes.remove(3).unwrap();
        for nodes in [nodes, Nodes::open(Arc::new(Journal::open(&state)))] {
            assert_eq!(nodes.file(Path::new("c/-/x/e/f")), Some(2));
            assert_eq!(nodes.directory(5, Path::new("c/-/x/e")), Some(1));
            assert_eq!(nodes.file(Path::new("c/-/x/d/f")), None);
            assert_eq!(nodes.file(Path::new("c/-/x/dd")), None);
            assert_eq!(nodes.get(2).unwrap().what, file(Some((3, 4, b"state".to_vec()))));
            assert_eq!(nodes.get(2).unwrap().shown(), "e/f");
            assert_eq!(nodes.of_folder("c/-/x").len(), 2);
        }
    }
}
