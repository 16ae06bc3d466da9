//! Translates between fuser and [`crate::fs::tree::Tree`]; decides nothing.
//!
//! Invariant: every operation is answered, none with `ENOSYS` but those that a test lists (access and
//! extended attributes, whose absence the kernel may remember), and a panic is an `EIO` and an alarm,
//! never a lost thread. Danger: fuser's default methods answer `ENOSYS`, and a panic that leaves a
//! handler ends fuser's thread for good.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};

use crate::broker::{Broker, Range, Refusal, Request};
use crate::events::Change;
use crate::fs::errno;
use crate::fs::events::Write;
use crate::fs::tree::{Attributes, Kind, Listed, OpenFile, Opened, Tree};
use crate::identity::Caller;
use crate::sys::device::UNIQUE_RESEND;

use super::requests::{Operation, Requests};

/// The largest WRITE that the kernel may send, in bytes; the request buffers are populated for it.
pub const MAX_WRITE_BYTES: u32 = 256 << 10;

/// Entries are asked for anew each time: the next caller is another.
const ENTRY_TIMEOUT: Duration = Duration::ZERO;

/// What happened in handlers since the start, for `status` and metrics.
#[derive(Debug, Default)]
pub struct Alarms {
    /// Panics that were turned into `EIO`.
    pub panics: AtomicU64,
    /// Requests that arrived.
    pub requests: Requests,
}

/// The filesystem that fuser drives.
#[derive(Debug)]
pub struct Adapter<B> {
    tree: Arc<Tree<B>>,
    alarms: Arc<Alarms>,
    listings: Listings,
}

/// Directories that are being read, as they were when the reading began.
#[derive(Debug, Default)]
struct Listings {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
}

impl<B: Broker> Adapter<B> {
    /// Serves `tree`.
    pub fn new(tree: Arc<Tree<B>>, alarms: Arc<Alarms>) -> Self {
        Self { tree, alarms, listings: Listings::default() }
    }

    fn count(&self, operation: Operation) {
        self.alarms.requests.count(operation);
    }

    /// The listing of an open directory. A worker that did not open it takes it anew.
    fn listing(
        &self,
        caller: Caller,
        inode: u64,
        number: u64,
        offset: u64,
    ) -> Result<Arc<Vec<Listed>>, Refusal> {
        // Judged anew each time, whatever was listed before.
        let now = self.tree.list(caller, inode)?;
        let mut open = self.listings.open.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get(&number) {
            Some(known) if offset > 0 && self.tree.is_changeable(inode) => Ok(known.clone()),
            _ => {
                let now = Arc::new(now);
                if self.tree.is_changeable(inode) {
                    open.insert(number, now.clone());
                }
                Ok(now)
            }
        }
    }

    /// Runs a handler; a panic in it is a fault of ours and counted.
    fn guard<T>(&self, run: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(refusal)) => Err(number(refusal)),
            Err(_) => {
                self.alarms.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!("a handler of the mount panicked; the request got EIO");
                Err(number(Refusal::Fault))
            }
        }
    }
}

fn number(refusal: Refusal) -> Errno {
    Errno::from_i32(errno::Errno::from(refusal).0)
}

fn caller(req: &fuser::Request) -> Caller {
    Caller { tid: req.pid(), uid: req.uid(), gid: req.gid() }
}

fn request(req: &fuser::Request) -> Request {
    let unique = req.unique().0;
    Request { id: unique & !UNIQUE_RESEND, resent: unique & UNIQUE_RESEND != 0 }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let modified = SystemTime::try_from(attributes.modified).unwrap_or(SystemTime::UNIX_EPOCH);
    FileAttr {
        ino: INodeNo(attributes.inode),
        size: attributes.size_bytes,
        blocks: attributes.size_bytes.div_ceil(512),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        nlink: match attributes.kind {
            Kind::Directory => 2,
            Kind::File | Kind::Link => 1,
        },
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

/// Answers with an entry; the kernel asks for it anew each time.
fn entry(made: Result<Attributes, Errno>, reply: ReplyEntry) {
    match made {
        Ok(made) => {
            reply.entry_with_ttls(&made.timeout, &ENTRY_TIMEOUT, &file_attr(&made), Generation(0))
        }
        Err(errno) => reply.error(errno),
    }
}

fn empty(outcome: Result<(), Errno>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn open_flags(opened: Opened) -> FopenFlags {
    if opened.tells_close {
        FopenFlags::FOPEN_DIRECT_IO
    } else {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH
    }
}

/// Seconds and nanoseconds since 1970.
fn seconds(time: TimeOrNow) -> (i64, i64) {
    let time = match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    };
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => (since.as_secs().cast_signed(), i64::from(since.subsec_nanos())),
        Err(before) => (-before.duration().as_secs().cast_signed(), 0),
    }
}

/// Whether an open could change the file.
fn is_writing(flags: OpenFlags) -> bool {
    flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & (libc::O_TRUNC | libc::O_APPEND) != 0
}

impl<B: Broker> Filesystem for Adapter<B> {
    fn init(&mut self, _req: &fuser::Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Without PARALLEL_DIROPS one slow lookup blocks its whole directory. Nothing else is asked
        // for: asynchronous direct I/O would unpin callers, caches would serve strangers.
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_NO_EXPORT_SUPPORT;
        if let Err(missing) = config.add_capabilities(wanted) {
            tracing::warn!(missing = ?missing, "the kernel lacks capabilities of FUSE");
            let _rest = config.add_capabilities(wanted - missing);
        }
        if let Err(nearest) = config.set_max_write(MAX_WRITE_BYTES) {
            let _set = config.set_max_write(nearest);
        }
        Ok(())
    }

    fn lookup(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Operation::Lookup);
        entry(self.guard(|| self.tree.lookup(caller(req), parent.0, name.as_bytes())), reply);
    }

    // Inodes live as long as their principal or version, so counts are not kept.
    fn forget(&self, _req: &fuser::Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        self.count(Operation::Getattr);
        match self.guard(|| self.tree.attributes(caller(req), ino.0)) {
            Ok(found) => reply.attr(&found.timeout, &file_attr(&found)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Operation::Other);
        // Owners are not the agent's to give away, nor is it told that they stayed: tar and cp -p go on.
        let change = Change { size, mode, modified: mtime.map(seconds) };
        match self.guard(|| self.tree.change(caller(req), ino.0, change)) {
            Ok(found) => reply.attr(&found.timeout, &file_attr(&found)),
            Err(errno) => return reply.error(errno),
        }
        if size.is_some() {
            // Answered already; what goes wrong is told by the log.
            let _done = self.guard(|| {
                self.tree.changed(ino.0);
                Ok(())
            });
        }
    }

    fn readlink(&self, req: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        self.count(Operation::Other);
        match self.guard(|| self.tree.link_target(caller(req), ino.0)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count(Operation::Other);
        let made = self.guard(|| match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => self.tree.make_file(caller(req), parent.0, name, request(req)),
            _ => self.tree.make_other(caller(req), parent.0).and(Err(Refusal::Unsupported)),
        });
        entry(made, reply);
    }

    fn mkdir(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.count(Operation::Other);
        let made =
            self.guard(|| self.tree.make_directory(caller(req), parent.0, name, request(req)));
        entry(made, reply);
    }

    fn unlink(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Other);
        empty(
            self.guard(|| self.tree.remove(caller(req), parent.0, name, Kind::File, request(req))),
            reply,
        );
    }

    fn rmdir(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Other);
        empty(
            self.guard(|| {
                self.tree.remove(caller(req), parent.0, name, Kind::Directory, request(req))
            }),
            reply,
        );
    }

    fn symlink(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        _link_name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        self.count(Operation::Other);
        let refused = self.guard(|| self.tree.make_other(caller(req), parent.0));
        reply.error(refused.err().unwrap_or(Errno::EPERM));
    }

    fn rename(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        let exclusive = match flags.bits() {
            0 => false,
            libc::RENAME_NOREPLACE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        empty(
            self.guard(|| {
                let (from, to) = ((parent.0, name), (newparent.0, newname));
                self.tree.rename(caller(req), from, to, exclusive, request(req))
            }),
            reply,
        );
    }

    fn link(
        &self,
        req: &fuser::Request,
        _ino: INodeNo,
        newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.count(Operation::Other);
        let refused = self.guard(|| self.tree.make_other(caller(req), newparent.0));
        reply.error(refused.err().unwrap_or(Errno::EPERM));
    }

    fn open(&self, req: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Open);
        let opened =
            self.guard(|| self.tree.open(caller(req), ino.0, is_writing(flags), request(req)));
        match opened {
            Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(opened)),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Operation::Read);
        let mut reply = Some(reply);
        let mut send = |bytes: &[u8]| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        };
        let outcome = self.guard(|| {
            self.tree.read(
                caller(req),
                OpenFile { inode: ino.0, handle: fh.0, owned: lock_owner.is_some() },
                Range { offset, size },
                request(req),
                &mut send,
            )
        });
        if let (Err(errno), Some(reply)) = (outcome, reply) {
            reply.error(errno);
        }
    }

    fn write(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Operation::Write);
        let write = Write {
            inode: ino.0,
            handle: fh.0,
            offset,
            append: flags.0 & libc::O_APPEND != 0,
            owned: !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            bytes: data,
        };
        match self.guard(|| self.tree.write(caller(req), write, request(req))) {
            // Never more than max_write.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Flush);
        empty(self.guard(|| self.tree.flush(caller(req), ino.0, fh.0)), reply);
    }

    fn release(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Release);
        let released = self.guard(|| {
            self.tree.release(fh.0);
            Ok(())
        });
        match released {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        empty(self.guard(|| self.tree.sync(caller(req), ino.0, fh.0)), reply);
    }

    // A listing is for one caller, and never cached. It is taken once for each reading: names that are
    // removed meanwhile must not shift those that are still to come.
    fn opendir(&self, req: &fuser::Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Opendir);
        match self.guard(|| self.tree.list(caller(req), ino.0)) {
            Ok(_) => {
                let number = self.listings.next.fetch_add(1, Ordering::Relaxed);
                reply.opened(FileHandle(number), FopenFlags::empty());
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(Operation::Readdir);
        match self.guard(|| self.listing(caller(req), ino.0, fh.0, offset)) {
            Ok(listed) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                for (index, entry) in listed.iter().enumerate().skip(from) {
                    let next = index as u64 + 1;
                    if reply.add(INodeNo(entry.inode), next, file_type(entry.kind), &entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    // Not negotiated, so the kernel does not ask.
    fn readdirplus(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::Unsupported));
    }

    fn releasedir(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Releasedir);
        self.listings.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        reply.ok();
    }

    fn statfs(&self, _req: &fuser::Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.count(Operation::Other);
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn setxattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        empty(self.guard(|| self.tree.change_other(caller(req), ino.0)), reply);
    }

    // ENOSYS on purpose: `ls` would send three of these for each file, for nothing.
    fn getxattr(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        self.count(Operation::Getxattr);
        reply.error(Errno::ENOSYS);
    }

    // ENOSYS on purpose, as for getxattr.
    fn listxattr(&self, _req: &fuser::Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        self.count(Operation::Getxattr);
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, req: &fuser::Request, ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Other);
        empty(self.guard(|| self.tree.change_other(caller(req), ino.0)), reply);
    }

    // ENOSYS on purpose: the kernel then stops asking, and every open is judged all the same.
    fn access(&self, _req: &fuser::Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.count(Operation::Access);
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Operation::Other);
        let how = (flags & libc::O_EXCL != 0, is_writing(OpenFlags(flags)));
        match self.guard(|| self.tree.create(caller(req), parent.0, name, how, request(req))) {
            Ok((made, opened)) => reply.created(
                &ENTRY_TIMEOUT,
                &file_attr(&made),
                Generation(0),
                FileHandle(opened.handle),
                open_flags(opened),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn getlk(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::Unsupported));
    }

    fn setlk(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::Unsupported));
    }

    fn bmap(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _blocksize: u32,
        _idx: u64,
        reply: ReplyBmap,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::Unsupported));
    }

    fn ioctl(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Operation::Other);
        reply.error(Errno::ENOTTY);
    }

    // A secret is always readable at once.
    fn poll(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.count(Operation::Other);
        reply.poll(PollEvents::POLLIN | PollEvents::POLLRDNORM);
    }

    fn fallocate(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        let end = offset.saturating_add(length);
        empty(self.guard(|| self.tree.allocate(caller(req), ino.0, end, mode)), reply);
    }

    fn lseek(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Operation::Other);
        let found = self.guard(|| {
            let offset = u64::try_from(offset).map_err(|_| Refusal::Os(libc::ENXIO))?;
            self.tree.seek(caller(req), ino.0, offset, whence)
        });
        match found {
            Ok(at) => reply.offset(at.cast_signed()),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        _req: &fuser::Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::Unsupported));
    }
}
