//! Translates between fuser and [`crate::fs::tree::Tree`]; decides nothing.
//!
//! Invariant: every operation is answered, none with `ENOSYS` but those that a test lists (access and
//! extended attributes, whose absence the kernel may remember), and a panic is an `EIO` and an alarm,
//! never a lost thread. Danger: fuser's default methods answer `ENOSYS`, and a panic that leaves a
//! handler ends fuser's thread for good.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType,
    Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};

use crate::broker::{Broker, Range, Refusal, Request};
use crate::fs::errno;
use crate::fs::tree::{Attributes, Kind, OpenFile, Tree};
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
}

impl<B: Broker> Adapter<B> {
    /// Serves `tree`.
    pub fn new(tree: Arc<Tree<B>>, alarms: Arc<Alarms>) -> Self {
        Self { tree, alarms }
    }

    fn count(&self, operation: Operation) {
        self.alarms.requests.count(operation);
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
            Kind::File => 1,
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
        match self.guard(|| self.tree.lookup(caller(req), parent.0, name.as_bytes())) {
            Ok(found) => reply.entry_with_ttls(
                &found.timeout,
                &ENTRY_TIMEOUT,
                &file_attr(&found),
                Generation(0),
            ),
            Err(errno) => reply.error(errno),
        }
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
        _req: &fuser::Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn readlink(&self, _req: &fuser::Request, _ino: INodeNo, reply: ReplyData) {
        self.count(Operation::Other);
        reply.error(Errno::EINVAL);
    }

    fn mknod(
        &self,
        _req: &fuser::Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn mkdir(
        &self,
        _req: &fuser::Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn unlink(&self, _req: &fuser::Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn rmdir(&self, _req: &fuser::Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn symlink(
        &self,
        _req: &fuser::Request,
        _parent: INodeNo,
        _link_name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn rename(
        &self,
        _req: &fuser::Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn link(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn open(&self, req: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Open);
        let opened =
            self.guard(|| self.tree.open(caller(req), ino.0, is_writing(flags), request(req)));
        match opened {
            Ok(opened) => reply.opened(
                FileHandle(opened.handle),
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
            ),
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
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn flush(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Flush);
        reply.ok();
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
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        reply.ok();
    }

    // Directories are never cached: a listing is for one caller.
    fn opendir(&self, req: &fuser::Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Opendir);
        match self.guard(|| self.tree.list(caller(req), ino.0)) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(Operation::Readdir);
        match self.guard(|| self.tree.list(caller(req), ino.0)) {
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
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Releasedir);
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
        _req: &fuser::Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
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

    fn removexattr(&self, _req: &fuser::Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    // ENOSYS on purpose: the kernel then stops asking, and every open is judged all the same.
    fn access(&self, _req: &fuser::Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.count(Operation::Access);
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        _req: &fuser::Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
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
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        reply.error(number(Refusal::ReadOnly));
    }

    fn lseek(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Operation::Other);
        // SEEK_DATA and SEEK_HOLE alone arrive here.
        reply.error(Errno::EINVAL);
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
