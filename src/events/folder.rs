//! The event store on the disk: paths that are never followed out of it.
//!
//! Every path is resolved by openat2(2) beneath the store's directory, without links: whoever swaps a
//! component for a link gets an error. Files that are replaced or unlinked while they are written
//! spend that time in `.strongroom`, beside the chains' folders.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};

#[cfg(test)]
use super::asked::note;

/// Where files are while they have no name.
pub(super) const STAGING: &str = ".strongroom";

/// Tells tests what is asked of the file system.
#[cfg(not(test))]
fn note(_: &str) {}

/// How stored files look to the orchestrator.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Owner; none: the daemon's.
    pub uid: Option<u32>,
    /// Group; none: the daemon's.
    pub gid: Option<u32>,
    /// Permission bits of files; directories may be searched by whoever may read.
    pub mode: u32,
}

impl Look {
    fn directory_mode(&self) -> Mode {
        let read = self.mode & 0o444;
        Mode::from_bits_truncate(self.mode | read >> 2 | 0o700)
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Directory,
    File,
}

/// One entry of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub sort: Sort,
    pub inode: u64,
    pub len: u64,
    pub mode: u32,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// The same, of the last reading.
    pub accessed: (i64, i64),
    /// The same, of its attributes.
    pub changed: (i64, i64),
    /// Names that it has; of a directory, also itself and those in it.
    pub links: u32,
}

/// The store's directory.
pub(super) struct Folder {
    root: OwnedFd,
    path: PathBuf,
    look: Look,
}

fn error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno as i32)
}

fn how(flags: OFlag, mode: Mode) -> OpenHow {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).mode(mode).resolve(resolve)
}

fn entry(stat: &FileStat) -> Option<Entry> {
    let sort = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Sort::Directory,
        SFlag::S_IFREG => Sort::File,
        // Whatever else somebody put there from outside is not shown.
        _ => return None,
    };
    Some(Entry {
        sort,
        inode: stat.st_ino,
        len: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o777,
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        accessed: (stat.st_atime, stat.st_atime_nsec),
        changed: (stat.st_ctime, stat.st_ctime_nsec),
        links: u32::try_from(stat.st_nlink).unwrap_or(1),
    })
}

fn set_times(
    file: impl AsFd,
    accessed: Option<(i64, i64)>,
    modified: Option<(i64, i64)>,
) -> io::Result<()> {
    use nix::sys::time::TimeSpec;
    let time = |time: Option<(i64, i64)>| match time {
        Some((seconds, nanos)) => TimeSpec::new(seconds, nanos),
        None => TimeSpec::UTIME_OMIT,
    };
    note("set times");
    nix::sys::stat::futimens(&file, &time(accessed), &time(modified)).map_err(error)
}

impl Folder {
    /// Opens the store, and makes it where it is not there.
    pub(super) fn open(path: &Path, look: Look) -> io::Result<Self> {
        match std::fs::create_dir_all(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(error)?;
        let folder = Self { root, path: path.to_owned(), look };
        folder.own(folder.root.as_fd(), look.directory_mode())?;
        match folder.make_directory(Path::new(STAGING)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        // Nobody but the daemon looks in there.
        let staging = folder.directory(Path::new(STAGING))?;
        nix::sys::stat::fchmod(&staging, Mode::S_IRWXU).map_err(error)?;
        Ok(folder)
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn own(&self, fd: impl AsFd, mode: Mode) -> io::Result<()> {
        note("own");
        if self.look.uid.is_some() || self.look.gid.is_some() {
            let (uid, gid) = (
                self.look.uid.map(nix::unistd::Uid::from_raw),
                self.look.gid.map(nix::unistd::Gid::from_raw),
            );
            nix::unistd::fchown(&fd, uid, gid).map_err(error)?;
        }
        // Whatever the umask says.
        nix::sys::stat::fchmod(&fd, mode).map_err(error)
    }

    /// Opens the directory at `path`.
    pub(super) fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        // A descriptor of its own also of the root: readers of one would share its place in it.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        note("open directory");
        nix::fcntl::openat2(&self.root, path, how(flags, Mode::empty())).map_err(error)
    }

    /// The open parent of `path`, and its last name.
    fn parent<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or_else(|| error(Errno::EINVAL))?;
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name))
    }

    /// What is at `path`.
    pub(super) fn entry(&self, path: &Path) -> io::Result<Entry> {
        if path.as_os_str().is_empty() {
            let stat = nix::sys::stat::fstat(&self.root).map_err(error)?;
            return entry(&stat).ok_or_else(|| error(Errno::ENOENT));
        }
        let (parent, name) = self.parent(path)?;
        note("stat");
        let stat =
            nix::sys::stat::fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(error)?;
        entry(&stat).ok_or_else(|| error(Errno::ENOENT))
    }

    /// Names in the directory at `path`, with what they are.
    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<(OsString, Sort, u64)>> {
        let mut dir = nix::dir::Dir::from_fd(self.directory(path)?).map_err(error)?;
        let mut names = Vec::new();
        for found in dir.iter() {
            let found = found.map_err(error)?;
            let name = OsStr::from_bytes(found.file_name().to_bytes());
            if name == "." || name == ".." || (path.as_os_str().is_empty() && name == STAGING) {
                continue;
            }
            // The type is not told by every file system.
            if let Ok(entry) = self.entry(&path.join(name)) {
                names.push((name.to_owned(), entry.sort, entry.inode));
            }
        }
        names.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        Ok(names)
    }

    /// Makes a directory.
    pub(super) fn make_directory(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        note("mkdir");
        nix::sys::stat::mkdirat(&parent, name, Mode::S_IRWXU).map_err(error)?;
        self.own(self.directory(path)?, self.look.directory_mode())
    }

    /// Makes a directory and those above it.
    pub(super) fn make_all(&self, path: &Path) -> io::Result<()> {
        let mut below = PathBuf::new();
        for part in path.components() {
            below.push(part);
            match self.make_directory(&below) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes a new file.
    pub(super) fn create(&self, path: &Path) -> io::Result<Stored> {
        note("create");
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
        let fd = nix::fcntl::openat2(&self.root, path, how(flags, Mode::S_IRUSR | Mode::S_IWUSR))
            .map_err(error)?;
        self.own(&fd, Mode::from_bits_truncate(self.look.mode))?;
        Ok(Stored(File::from(fd)))
    }

    /// Makes a new file that nobody but the daemon reads.
    pub(super) fn create_private(&self, path: &Path) -> io::Result<Stored> {
        note("create");
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let fd = nix::fcntl::openat2(&self.root, path, how(flags, mode)).map_err(error)?;
        Ok(Stored(File::from(fd)))
    }

    /// Opens a file for writing. Its close is an event to those who watch the folder, who take the
    /// file for complete then.
    pub(super) fn file(&self, path: &Path) -> io::Result<Stored> {
        self.open_file(path, OFlag::O_RDWR)
    }

    /// Opens a file to read it.
    pub(super) fn reader(&self, path: &Path) -> io::Result<Stored> {
        self.open_file(path, OFlag::O_RDONLY)
    }

    fn open_file(&self, path: &Path, access: OFlag) -> io::Result<Stored> {
        note("open");
        let flags = access | OFlag::O_NONBLOCK;
        let fd = nix::fcntl::openat2(&self.root, path, how(flags, Mode::empty())).map_err(error)?;
        let file = File::from(fd);
        let metadata = file.metadata()?;
        // A hard link to a file elsewhere, put there from outside, is not written through.
        if !metadata.is_file() || metadata.nlink() > 1 {
            return Err(error(Errno::EACCES));
        }
        Ok(Stored(file))
    }

    /// Removes a file.
    pub(super) fn unlink(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        note("unlink");
        let flags = nix::unistd::UnlinkatFlags::NoRemoveDir;
        let removed = nix::unistd::unlinkat(&parent, name, flags).map_err(error);
        note("unlinked");
        removed
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        nix::unistd::unlinkat(&parent, name, nix::unistd::UnlinkatFlags::RemoveDir).map_err(error)
    }

    /// Renames; refuses to replace if `exclusive`.
    pub(super) fn rename(&self, from: &Path, to: &Path, exclusive: bool) -> io::Result<()> {
        let ((old_dir, old), (new_dir, new)) = (self.parent(from)?, self.parent(to)?);
        note("rename");
        let flags = if exclusive { RenameFlags::RENAME_NOREPLACE } else { RenameFlags::empty() };
        nix::fcntl::renameat2(&old_dir, old, &new_dir, new, flags).map_err(error)
    }

    /// Sets permission bits; those of the store's own look stay.
    pub(super) fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        let stored = self.reader(path)?;
        let mode = Mode::from_bits_truncate(mode & 0o777 | self.look.mode);
        note("set mode");
        nix::sys::stat::fchmod(&stored.0, mode).map_err(error)
    }

    /// How many files there are, but for those without a name.
    pub(super) fn files(&self) -> u64 {
        let mut left = vec![PathBuf::new()];
        let mut count = 0;
        while let Some(path) = left.pop() {
            for (name, sort, _) in self.list(&path).unwrap_or_default() {
                match sort {
                    Sort::Directory => left.push(path.join(name)),
                    Sort::File => count += 1,
                }
            }
        }
        count
    }

    /// Sets times of the last reading and of the last write.
    pub(super) fn set_times(
        &self,
        path: &Path,
        sort: Sort,
        accessed: Option<(i64, i64)>,
        modified: Option<(i64, i64)>,
    ) -> io::Result<()> {
        match sort {
            Sort::Directory => set_times(self.directory(path)?, accessed, modified),
            Sort::File => set_times(&self.reader(path)?.0, accessed, modified),
        }
    }

    /// Bytes of all files.
    pub(super) fn total(&self) -> u64 {
        fn walk(folder: &Folder, path: &Path, total: &mut u64) {
            for (name, sort, _) in folder.list(path).unwrap_or_default() {
                let below = path.join(name);
                match sort {
                    Sort::Directory => walk(folder, &below, total),
                    Sort::File => *total += folder.entry(&below).map_or(0, |e| e.len),
                }
            }
        }
        let mut total = 0;
        walk(self, Path::new(""), &mut total);
        total
    }
}

/// An open file of the store.
pub(super) struct Stored(File);

impl Stored {
    /// Makes its content durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        note("sync");
        self.0.sync_data()
    }

    /// Its inode number in the store's file system.
    pub(super) fn inode(&self) -> io::Result<u64> {
        note("stat");
        Ok(self.0.metadata()?.ino())
    }

    /// Sets its modification time, in seconds and nanoseconds since 1970; that of its last reading
    /// stays.
    pub(super) fn set_modified(&self, modified: (i64, i64)) -> io::Result<()> {
        set_times(&self.0, None, Some(modified))
    }

    /// Fills `buffer` from byte `at` on; fewer bytes at the end.
    pub(super) fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        note("read");
        FileExt::read_at(&self.0, buffer, at)
    }

    /// Fills `buffer`, or fails.
    pub(super) fn read_exactly(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        note("read");
        self.0.read_exact_at(buffer, at)
    }

    /// Writes all of `bytes` at byte `at`.
    pub(super) fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        note("write");
        self.0.write_all_at(bytes, at)
    }

    /// Makes it so long.
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        note("set length");
        self.0.set_len(len)
    }

    /// How long it is.
    pub(super) fn len(&self) -> io::Result<u64> {
        note("stat");
        Ok(self.0.metadata()?.len())
    }

    /// Sets its modification time to now.
    pub(super) fn touch(&self) -> io::Result<()> {
        note("set times");
        let now = nix::sys::time::TimeSpec::UTIME_NOW;
        let same = nix::sys::time::TimeSpec::UTIME_OMIT;
        nix::sys::stat::futimens(&self.0, &same, &now).map_err(error)
    }

    /// Its modification time, in seconds and nanoseconds since 1970.
    pub(super) fn modified(&self) -> io::Result<(i64, i64)> {
        note("stat");
        let metadata = self.0.metadata()?;
        Ok((metadata.mtime(), metadata.mtime_nsec()))
    }

    /// Gives it owner, group, permission bits and times of the file whose place it takes.
    pub(super) fn look_like(&self, old: &Self) -> io::Result<()> {
        let (was, is) = (old.0.metadata()?, self.0.metadata()?);
        if (was.uid(), was.gid()) != (is.uid(), is.gid()) {
            std::os::unix::fs::fchown(&self.0, Some(was.uid()), Some(was.gid()))?;
        }
        let mode = Mode::from_bits_truncate(was.mode() & 0o777);
        nix::sys::stat::fchmod(&self.0, mode).map_err(error)?;
        let (read, written) = (was.atime_nsec(), was.mtime_nsec());
        set_times(&self.0, Some((was.atime(), read)), Some((was.mtime(), written)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let look = Look { uid: None, gid: None, mode: 0o640 };
        let folder = Folder::open(&dir.path().join("store"), look).unwrap();
        (dir, folder)
    }

    #[test]
    fn nothing_leads_out_of_the_store() {
        let (dir, folder) = folder();
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        folder.make_all(Path::new("a/b")).unwrap();
        let store = dir.path().join("store");
        std::os::unix::fs::symlink(dir.path(), store.join("a/link")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), store.join("a/file")).unwrap();
        std::fs::hard_link(dir.path().join("outside"), store.join("a/hard")).unwrap();
        for path in ["../outside", "a/link/outside", "a/file", "a/hard", "/etc/hostname"] {
            assert!(folder.file(Path::new(path)).is_err(), "{path}");
        }
        assert!(folder.create(Path::new("a/link/new")).is_err());
        assert!(folder.make_directory(Path::new("a/link/new")).is_err());
        assert!(folder.unlink(Path::new("a/link/outside")).is_err());
        assert!(folder.rename(Path::new("a/b"), Path::new("a/link/b"), false).is_err());
        assert!(folder.entry(Path::new("a/link")).is_err(), "links are not shown");
        assert_eq!(folder.list(Path::new("a")).unwrap().len(), 2);
    }

    #[test]
    fn stored_files_look_as_was_asked() {
        let (dir, folder) = folder();
        folder.make_all(Path::new("a")).unwrap();
        folder.create(Path::new("a/f")).unwrap().write_at(0, b"abc").unwrap();
        let mode = |path: &str| {
            std::fs::metadata(dir.path().join("store").join(path)).unwrap().mode() & 0o7777
        };
        assert_eq!((mode("a/f"), mode("a"), mode("")), (0o640, 0o750, 0o750));
        assert_eq!(mode(STAGING), 0o700);
        folder.set_mode(Path::new("a/f"), 0o4711).unwrap();
        assert_eq!(mode("a/f"), 0o751);
        assert_eq!(folder.total(), 3);
        assert_eq!(folder.list(Path::new("")).unwrap().len(), 1, "the staging place is not shown");
    }
}
