//! Which files there are to search: what was named, and what lies below it, as git sees it.
//!
//! In a git work tree what git ignores is left out, but for what is tracked all the same: that is in
//! the repository, whatever the ignore files say. Invariant: a link is followed only where a person
//! named it. Danger: git itself, which runs programs that a repository's configuration names; only
//! files are read here.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ignore::WalkBuilder;

use super::index;

/// How a tree is gone through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Also what git ignores, and git's own directory.
    pub no_ignore: bool,
    /// Not what begins with a dot.
    pub skip_hidden: bool,
}

/// One file to search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// As a person would name it.
    pub path: PathBuf,
    /// Named by a person: links are followed, pipes are read.
    pub named: bool,
}

/// What was found below the named paths.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order of the paths, and below each by name.
    pub items: Vec<Item>,
    /// What could not be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Finds the files to search.
pub fn find(paths: &[PathBuf], options: Options) -> Found {
    let mut found = Found::default();
    let mut seen = BTreeSet::new();
    for path in paths {
        match std::fs::metadata(path) {
            Err(error) => found.unreadable.push((path.clone(), error.to_string())),
            Ok(metadata) if metadata.is_dir() => {
                let below = below(path, options, &mut found.unreadable);
                let new = below.into_iter().filter(|path| seen.insert(path.clone()));
                found.items.extend(new.map(|path| Item { path, named: false }));
            }
            Ok(_) if seen.insert(path.clone()) => {
                found.items.push(Item { path: path.clone(), named: true });
            }
            Ok(_) => {}
        }
    }
    found
}

/// Without what leads nowhere: `./a` is `a`.
pub(super) fn neat(path: &Path) -> PathBuf {
    path.strip_prefix(".").map_or_else(|_| path.to_owned(), Path::to_owned)
}

fn below(
    root: &Path,
    options: Options,
    unreadable: &mut Vec<(PathBuf, String)>,
) -> BTreeSet<PathBuf> {
    let follow_git = !options.no_ignore;
    // Directories with a `.git` in them.
    let trees: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
    let mut builder = WalkBuilder::new(root);
    builder
        .standard_filters(false)
        .git_ignore(follow_git)
        .git_exclude(follow_git)
        .git_global(follow_git)
        .parents(follow_git)
        .require_git(true)
        .hidden(options.skip_hidden)
        .follow_links(false);
    if follow_git {
        let trees = trees.clone();
        builder.filter_entry(move |entry| {
            if entry.depth() == 0 || entry.file_name() != OsStr::new(".git") {
                return true;
            }
            let tree = entry.path().parent().unwrap_or(Path::new("")).to_owned();
            trees.lock().unwrap_or_else(PoisonError::into_inner).push(tree);
            false
        });
    }
    let mut files = BTreeSet::new();
    for entry in builder.build() {
        match entry {
            Ok(entry) => {
                if entry.file_type().is_some_and(|kind| kind.is_file()) {
                    files.insert(neat(entry.path()));
                }
            }
            Err(error) => unreadable.push(told(&error, root)),
        }
    }
    if follow_git {
        let mut trees = std::mem::take(&mut *trees.lock().unwrap_or_else(PoisonError::into_inner));
        if trees.is_empty() || !trees.iter().any(|tree| tree == root) {
            trees.extend(tree_around(root));
        }
        for tree in trees {
            if let Err(error) = add_tracked(&tree, root, options, &mut files) {
                unreadable.push((tree.join(".git"), error.to_string()));
            }
        }
    }
    files
}

/// The path of an error, and what the system said.
fn told(error: &ignore::Error, root: &Path) -> (PathBuf, String) {
    match error {
        ignore::Error::WithPath { path, err } => (neat(path), told(err, root).1),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            told(err, root)
        }
        other => {
            let text = match other.io_error() {
                Some(error) => error.to_string(),
                None => "it cannot be read".to_owned(),
            };
            (neat(root), text)
        }
    }
}

/// The work tree that a directory is in.
fn tree_around(root: &Path) -> Option<PathBuf> {
    let root = root.canonicalize().ok()?;
    root.ancestors().find(|dir| dir.join(".git").symlink_metadata().is_ok()).map(Path::to_owned)
}

/// Where a work tree's index is: in `.git`, or where that file says.
fn index_of(tree: &Path) -> io::Result<PathBuf> {
    let git = tree.join(".git");
    if git.is_dir() {
        return Ok(git.join("index"));
    }
    let bytes = index::read_bounded(&git, 8192)?;
    let text = String::from_utf8_lossy(&bytes);
    let dir = text.strip_prefix("gitdir:").map(str::trim).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "it names no directory of git's")
    })?;
    Ok(tree.join(dir).join("index"))
}

/// Adds tracked files that git would ignore if they were not.
fn add_tracked(
    tree: &Path,
    root: &Path,
    options: Options,
    files: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    let tracked = match index::tracked(&index_of(tree)?) {
        // A fresh repository has none.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let (whole_tree, whole_root) = (tree.canonicalize()?, root.canonicalize()?);
    for path in tracked {
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        let hidden =
            |p: &Path| p.components().any(|c| c.as_os_str().as_encoded_bytes().starts_with(b"."));
        let whole = whole_tree.join(&path);
        let Ok(below) = whole.strip_prefix(&whole_root) else { continue };
        if !plain || (options.skip_hidden && hidden(below)) {
            continue;
        }
        let shown = neat(&root.join(below));
        if !files.contains(&shown) && is_plain_file(&whole_root, below) {
            files.insert(shown);
        }
    }
    Ok(())
}

/// Whether a file is there, and no link leads to it.
fn is_plain_file(root: &Path, below: &Path) -> bool {
    let mut at = root.to_owned();
    let mut last = None;
    for component in below.components() {
        at.push(component);
        match at.symlink_metadata() {
            Ok(metadata) if !metadata.is_symlink() => last = Some(metadata.is_file()),
            _ => return false,
        }
    }
    last == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &Path, options: Options) -> Vec<String> {
        let found = find(&[root.to_owned()], options);
        assert!(found.unreadable.is_empty(), "{:?}", found.unreadable);
        let below = |item: &Item| item.path.strip_prefix(root).unwrap().display().to_string();
        found.items.iter().map(below).collect()
    }

    #[test]
    fn hidden_files_are_searched_and_links_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        for file in ["b", "a", ".env", "sub/c"] {
            std::fs::write(root.join(file), "x").unwrap();
        }
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("dirlink")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), root.join("link")).unwrap();
        // Without a repository nothing is ignored.
        std::fs::write(root.join(".gitignore"), "a\n").unwrap();
        assert_eq!(names(&root, Options::default()), [".env", ".gitignore", "a", "b", "sub/c"]);
        let options = Options { skip_hidden: true, ..Options::default() };
        assert_eq!(names(&root, options), ["a", "b", "sub/c"]);
        let named = find(&[root.join("link"), root.join("link")], Options::default());
        assert_eq!(named.items, [Item { path: root.join("link"), named: true }]);
        let missing = find(&[root.join("nothing")], Options::default());
        assert_eq!(missing.unreadable.len(), 1);
    }
}
