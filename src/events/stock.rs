//! What is kept of executions in the event store: told, and removed when it is old.
//!
//! Invariant: nothing outside the store is touched, whatever was put into it: every step goes from
//! an open directory to an entry of it, through no link and onto no other file system. Danger: a
//! folder that an agent enters while it is removed; the caller keeps launches out, and it is taken
//! out of its place by one rename before anything in it goes.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::broker::{Place, Refusal};
use crate::clock::Timestamp;

use super::folder::{Folder, STAGING};
use super::{Events, full, lock, os, refusal};

/// The folder that all executions of a chain and environment share; no execution has such an id.
const SHARED: &str = "@chain";
/// What is being removed, below [`STAGING`].
const GOING: &str = "going.";

/// Where the events of an execution lie below the store; of all of its chain's, without an id.
pub fn folder_of(chain: &str, environment: Option<&str>, execution: Option<&str>) -> String {
    // A chain's name may have slashes, and folders of one chain must not lie in another's.
    let chain = chain.replace('%', "%25").replace('/', "%2F");
    format!("{chain}/{}/{}", environment.unwrap_or("-"), execution.unwrap_or(SHARED))
}

/// What lies in one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Below the store.
    pub folder: String,
    /// The chain.
    pub chain: String,
    /// Its environment.
    pub environment: Option<String>,
    /// The execution; none: shared by all of them.
    pub execution: Option<String>,
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When something in it changed last; agents cannot set that time.
    pub changed: Timestamp,
}

fn error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno as i32)
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn changed(stat: &FileStat) -> Timestamp {
    let nanos = i32::try_from(stat.st_ctime_nsec).unwrap_or(0);
    Timestamp::new(stat.st_ctime, nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Opens a directory in another; a mount point in it is none of ours.
fn enter(dir: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let how = OpenHow::new().flags(flags).mode(Mode::empty()).resolve(resolve);
    nix::fcntl::openat2(dir, name, how).map_err(error)
}

fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut listing = nix::dir::Dir::from_fd(enter(dir, OsStr::new("."))?).map_err(error)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry.map_err(error)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Visits everything below a directory, what is in a directory before the directory itself.
fn walk(
    dir: &OwnedFd,
    path: &Path,
    each: &mut dyn FnMut(&OwnedFd, &Path, &OsStr, &FileStat) -> io::Result<()>,
) -> io::Result<()> {
    for name in names(dir)? {
        let stat = match nix::sys::stat::fstatat(dir, &*name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // Gone meanwhile.
            Err(Errno::ENOENT) => continue,
            stat => stat.map_err(error)?,
        };
        if is_directory(&stat) {
            match enter(dir, &name) {
                Ok(inner) => walk(&inner, &path.join(&name), each)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            }
        }
        each(dir, path, &name, &stat)?;
    }
    Ok(())
}

fn remove_all(dir: &OwnedFd) -> io::Result<()> {
    walk(dir, Path::new(""), &mut |dir, _, name, stat| {
        let flags =
            if is_directory(stat) { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        match unlinkat(dir, name, flags) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(error(errno)),
        }
    })
}

/// Chain, environment and execution of a folder's three names.
fn names_of(
    chain: &str,
    environment: &str,
    last: &str,
) -> (String, Option<String>, Option<String>) {
    let chain = chain.replace("%2F", "/").replace("%25", "%");
    let environment = Some(environment.to_owned()).filter(|e| e != "-");
    (chain, environment, Some(last.to_owned()).filter(|l| l != SHARED))
}

/// Whose folder a path below the store lies in.
pub(super) fn place_of(path: &Path) -> Option<Place> {
    let mut parts = path.components().map(|part| part.as_os_str().to_str());
    let (chain, environment, last) = (parts.next()??, parts.next()??, parts.next()??);
    parts.next()?;
    let folder = format!("{chain}/{environment}/{last}");
    let (chain, environment, execution) = names_of(chain, environment, last);
    Some(Place { folder, chain, environment, execution: execution.unwrap_or_default() })
}

fn kept(store: &Folder, folder: &str) -> io::Result<Kept> {
    let mut parts = folder.splitn(3, '/');
    let (Some(chain), Some(environment), Some(last)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let (chain, environment, execution) = names_of(chain, environment, last);
    let dir = store.directory(Path::new(folder))?;
    let stat = nix::sys::stat::fstat(&dir).map_err(error)?;
    let mut found = Kept {
        folder: folder.to_owned(),
        chain,
        environment,
        execution,
        files: 0,
        bytes: 0,
        changed: changed(&stat),
    };
    walk(&dir, Path::new(""), &mut |_, _, _, stat| {
        found.changed = found.changed.max(changed(stat));
        if !is_directory(stat) {
            found.files += 1;
            found.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        }
        Ok(())
    })?;
    Ok(found)
}

impl Events {
    /// The folder's directory, absolute.
    pub fn directory_of(&self, folder: &str) -> PathBuf {
        self.path().join(folder)
    }

    /// Makes a folder, so that it can be watched before the first agent enters it.
    ///
    /// # Errors
    /// What the system says.
    pub fn prepare(&self, folder: &str) -> io::Result<()> {
        self.folder.make_all(Path::new(folder))
    }

    /// Whether somebody has a file of the folder open, or one is not complete yet.
    pub fn is_busy(&self, folder: &str) -> bool {
        let inodes = lock(&self.nodes).of_folder(folder);
        inodes.into_iter().any(|inode| self.is_unfinished(inode))
    }

    fn is_unfinished(&self, inode: u64) -> bool {
        self.is_open(inode) || self.size(inode).is_some()
    }

    /// What lies in a folder.
    ///
    /// # Errors
    /// [`Refusal::Os`] with `ENOENT` where there is none.
    pub fn kept_in(&self, folder: &str) -> Result<Kept, Refusal> {
        kept(&self.folder, folder).map_err(|e| os(&e))
    }

    /// All folders, by chain, environment and execution.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn kept(&self) -> Result<Vec<Kept>, Refusal> {
        let read = |path: &Path| -> Result<Vec<String>, Refusal> {
            let dir = match self.folder.directory(path) {
                // Another's file, a link, or gone meanwhile: no folder.
                Err(_) if !path.as_os_str().is_empty() => return Ok(Vec::new()),
                dir => dir.map_err(|e| os(&e))?,
            };
            let names = names(&dir).map_err(|e| os(&e))?;
            Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
        };
        let mut all = Vec::new();
        for chain in read(Path::new(""))?.into_iter().filter(|name| name != STAGING) {
            for environment in read(Path::new(&chain))? {
                let place = format!("{chain}/{environment}");
                for last in read(Path::new(&place))? {
                    all.extend(kept(&self.folder, &format!("{place}/{last}")).ok());
                }
            }
        }
        Ok(all)
    }

    /// Takes a folder out of its place, if nobody is busy in it; what it held is removed by
    /// [`Events::sweep`]. Its principals must be gone, and no new one may come meanwhile.
    ///
    /// # Errors
    /// `EBUSY`, and what the system says.
    pub fn take_out(&self, kept: &Kept) -> Result<(), Refusal> {
        if self.is_busy(&kept.folder) {
            return Err(refusal(Errno::EBUSY));
        }
        let going = Path::new(STAGING).join(format!("{GOING}{:016x}", self.new_inode()?));
        let _changes = self.change_names();
        self.folder.rename(Path::new(&kept.folder), &going, true).map_err(|e| os(&e))?;
        self.count(kept.bytes, 0);
        let mut nodes = lock(&self.nodes);
        let gone = nodes.of_folder(&kept.folder);
        gone.into_iter().try_for_each(|inode| nodes.remove(inode)).map_err(full)
    }

    /// Removes what was taken out, also by an earlier worker.
    ///
    /// # Errors
    /// What the system says; the rest goes the next time.
    pub fn sweep(&self) -> io::Result<()> {
        let staging = self.folder.directory(Path::new(STAGING))?;
        let is_going = |name: &OsString| name.as_bytes().starts_with(GOING.as_bytes());
        for name in names(&staging)?.into_iter().filter(is_going) {
            match enter(&staging, &name) {
                Ok(dir) => remove_all(&dir)?,
                // Another thread is at it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            }
            match unlinkat(&staging, &*name, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(error(errno)),
            }
        }
        Ok(())
    }

    /// Files of a folder, below it, that have not changed since `before`, and their bytes.
    ///
    /// # Errors
    /// What the system says.
    pub fn older(&self, folder: &str, before: Timestamp) -> Result<Vec<(PathBuf, u64)>, Refusal> {
        let dir = self.folder.directory(Path::new(folder)).map_err(|e| os(&e))?;
        let mut old = Vec::new();
        walk(&dir, Path::new(""), &mut |_, path, name, stat| {
            if !is_directory(stat) && changed(stat) < before {
                old.push((path.join(name), u64::try_from(stat.st_size).unwrap_or(0)));
            }
            Ok(())
        })
        .map_err(|e| os(&e))?;
        Ok(old)
    }

    /// Removes a file of a folder that nobody is in; its bytes, if it was there and complete.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_file(&self, folder: &str, file: &Path) -> Result<Option<u64>, Refusal> {
        let path = Path::new(folder).join(file);
        let inode = lock(&self.nodes).file(&path);
        if inode.is_some_and(|inode| self.is_unfinished(inode)) {
            return Ok(None);
        }
        let _changes = self.change_names();
        // What is no file, as a link from outside, has no bytes of ours.
        let len = self.folder.entry(&path).map_or(0, |entry| entry.len);
        match self.folder.unlink(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| os(&e))?,
        }
        self.count(len, 0);
        if let Some(inode) = inode {
            lock(&self.nodes).remove(inode).map_err(full)?;
        }
        Ok(Some(len))
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Look;
    use super::*;

    #[test]
    fn a_folder_tells_whose_it_is_whatever_the_chain_is_called() {
        for (chain, environment, execution) in [
            ("deploy", Some("prod"), Some("x1")),
            ("billing/invoice", None, Some("y")),
            ("100%2F", None, None),
        ] {
            let folder = folder_of(chain, environment, execution);
            let parts: Vec<_> = folder.split('/').collect();
            assert_eq!(parts.len(), 3, "{folder}");
            let told = names_of(parts[0], parts[1], parts[2]);
            let own = |text: Option<&str>| text.map(ToOwned::to_owned);
            assert_eq!(told, (chain.to_owned(), own(environment), own(execution)));
        }
        assert!(SHARED.parse::<crate::execution::id::ExecutionId>().is_err());
    }

    #[test]
    fn removing_a_folder_follows_no_link_and_takes_whatever_lies_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        let store = dir.path().join("store");
        let folder = Folder::open(&store, Look { uid: None, gid: None, mode: 0o600 }).unwrap();
        folder.make_all(Path::new("c/-/x/deep/er")).unwrap();
        std::fs::write(store.join("c/-/x/deep/er/f"), "abc").unwrap();
        std::os::unix::fs::symlink(&outside, store.join("c/-/x/deep/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("precious"), store.join("c/-/x/file")).unwrap();
        nix::unistd::mkfifo(&store.join("c/-/x/fifo"), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(&outside, store.join("c/-/linked")).unwrap();
        let found = kept(&folder, "c/-/x").unwrap();
        assert_eq!((found.files, found.execution.as_deref()), (4, Some("x")));
        assert!(kept(&folder, "c/-/linked").is_err(), "a link is no folder");
        remove_all(&folder.directory(Path::new("c/-/x")).unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(store.join("c/-/x")).unwrap().count(), 0);
        assert_eq!(std::fs::read(outside.join("precious")).unwrap(), b"x");
    }
}
