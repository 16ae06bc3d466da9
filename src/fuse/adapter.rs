//! Hands what fuser brings to [`crate::fs::tree::Tree`]; decides nothing.
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
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};

use zeroize::Zeroizing;

use crate::broker::{Broker, Range, Refusal};
use crate::events::{Change, Pace};
use crate::fs::events::Write;
use crate::fs::tree::{EVENTS_NAME, Kind, OpenFile, Tree};

use super::gate::{Answer, Gate, Refuse, Task};
use super::listings::Listings;
use super::requests::{Operation, Requests};
use super::translate::{
    ENTRY_TIMEOUT, caller, empty, entry, file_attr, file_type, is_writing, number, open_flags,
    request, seconds,
};

/// The largest WRITE that the kernel may send, in bytes; the request buffers are populated for it.
pub const MAX_WRITE_BYTES: u32 = 256 << 10;

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
    inner: Arc<Inner<B>>,
    /// Before the events directories.
    gate: Option<Gate>,
}

/// What handlers need, on whatever thread they run.
#[derive(Debug)]
struct Inner<B> {
    tree: Arc<Tree<B>>,
    alarms: Arc<Alarms>,
    listings: Listings,
}

impl<B: Broker> Adapter<B> {
    /// Serves `tree`.
    pub fn new(tree: Arc<Tree<B>>, alarms: Arc<Alarms>) -> Self {
        let inner = Arc::new(Inner { tree, alarms, listings: Listings::default() });
        Self { inner, gate: None }
    }

    /// With a gate before the events directories.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    fn count(&self, operation: Operation) {
        self.inner.alarms.requests.count(operation);
    }

    /// See [`Tree::pace`].
    fn pace(&self, inode: INodeNo) -> Option<Pace> {
        self.inner.tree.pace(inode.0)
    }

    /// Carries a request out: at once, or where it cannot keep others waiting.
    fn serve<R: Refuse>(
        &self,
        pace: Option<Pace>,
        reply: R,
        work: impl FnOnce(&Inner<B>, Answer<R>) + Send + 'static,
    ) {
        self.serve_as(pace.map(|pace| Task { pace, bytes: 0, is_due: false }), reply, work);
    }

    fn serve_as<R: Refuse>(
        &self,
        task: Option<Task>,
        reply: R,
        work: impl FnOnce(&Inner<B>, Answer<R>) + Send + 'static,
    ) {
        let Some((gate, task)) = self.gate.as_ref().zip(task) else {
            return work(&self.inner, Answer::direct(reply));
        };
        let answer = gate.watch(reply);
        match gate.pass(task.pace) {
            Some(_pass) => work(&self.inner, answer),
            None => {
                let inner = self.inner.clone();
                gate.leave(answer, task, move |answer| work(&inner, answer));
            }
        }
    }
}

impl<B: Broker> Inner<B> {
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

impl<B: Broker> Adapter<B> {
    fn remove(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        kind: Kind,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Other);
        let (caller, request, name) = (caller(req), request(req), name.to_owned());
        self.serve(self.pace(parent), reply, move |to, answer| {
            empty(to.guard(|| to.tree.remove(caller, parent.0, &name, kind, request)), answer);
        });
    }
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
        // An agent's events directory is made in the store when it is first looked up.
        let is_root = name == EVENTS_NAME;
        let pace = self.pace(parent).or(is_root.then_some(Pace::Free));
        let (caller, name) = (caller(req), name.to_owned());
        self.serve(pace, reply, move |to, answer| {
            entry(to.guard(|| to.tree.lookup(caller, parent.0, name.as_bytes())), answer);
        });
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
        let caller = caller(req);
        self.serve(self.pace(ino), reply, move |to, answer| {
            let found = to.guard(|| to.tree.attributes(caller, ino.0));
            answer.give(found, |reply, found| reply.attr(&found.timeout, &file_attr(&found)));
        });
    }

    fn setattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
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
        let change =
            Change { size, mode, accessed: atime.map(seconds), modified: mtime.map(seconds) };
        let caller = caller(req);
        self.serve(self.pace(ino), reply, move |to, answer| {
            let found = to.guard(|| to.tree.change(caller, ino.0, change));
            let has_new_size = size.is_some() && found.is_ok();
            answer.give(found, |reply, found| reply.attr(&found.timeout, &file_attr(&found)));
            if has_new_size {
                // Answered already; what goes wrong is told by the log.
                let _done = to.guard(|| {
                    to.tree.changed(ino.0);
                    Ok(())
                });
            }
        });
    }

    fn readlink(&self, req: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        self.count(Operation::Other);
        match self.inner.guard(|| self.inner.tree.link_target(caller(req), ino.0)) {
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
        let (caller, request, name) = (caller(req), request(req), name.to_owned());
        self.serve(self.pace(parent), reply, move |to, answer| {
            let made = to.guard(|| match mode & libc::S_IFMT {
                libc::S_IFREG | 0 => to.tree.make_file(caller, parent.0, &name, request),
                _ => to.tree.make_other(caller, parent.0).and(Err(Refusal::Unsupported)),
            });
            entry(made, answer);
        });
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
        let (caller, request, name) = (caller(req), request(req), name.to_owned());
        self.serve(self.pace(parent), reply, move |to, answer| {
            entry(to.guard(|| to.tree.make_directory(caller, parent.0, &name, request)), answer);
        });
    }

    fn unlink(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(req, parent, name, Kind::File, reply);
    }

    fn rmdir(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(req, parent, name, Kind::Directory, reply);
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
        let refused = self.inner.guard(|| self.inner.tree.make_other(caller(req), parent.0));
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
        let (caller, request) = (caller(req), request(req));
        let (old, new) = (name.to_owned(), newname.to_owned());
        let pace = self.pace(parent).max(self.pace(newparent));
        self.serve(pace, reply, move |inner, answer| {
            let (from, to) = ((parent.0, &*old), (newparent.0, &*new));
            let done = inner.guard(|| inner.tree.rename(caller, from, to, exclusive, request));
            empty(done, answer);
        });
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
        let refused = self.inner.guard(|| self.inner.tree.make_other(caller(req), newparent.0));
        reply.error(refused.err().unwrap_or(Errno::EPERM));
    }

    fn open(&self, req: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Open);
        let (caller, request) = (caller(req), request(req));
        self.serve(self.pace(ino), reply, move |to, answer| {
            let opened = to.guard(|| to.tree.open(caller, ino.0, is_writing(flags), request));
            answer.give(opened, |reply, opened| {
                reply.opened(FileHandle(opened.handle), open_flags(opened));
            });
        });
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
        let (caller, request) = (caller(req), request(req));
        let file = OpenFile { inode: ino.0, handle: fh.0, owned: lock_owner.is_some() };
        self.serve(self.pace(ino), reply, move |to, mut answer| {
            let mut send = |bytes: &[u8]| {
                if let Some(reply) = answer.take() {
                    reply.data(bytes);
                }
            };
            let range = Range { offset, size };
            let read = to.guard(|| to.tree.read(caller, file, range, request, &mut send));
            // Sent already, where it went well.
            answer.give(read, |reply, ()| reply.data(&[]));
        });
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
        let (caller, request) = (caller(req), request(req));
        let append = flags.0 & libc::O_APPEND != 0;
        let owned = !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let work = move |to: &Inner<B>, data: &[u8], answer: Answer<ReplyWrite>| {
            let write = Write { inode: ino.0, handle: fh.0, offset, append, owned, bytes: data };
            let written = to.guard(|| to.tree.write(caller, write, request));
            // Never more than max_write.
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            answer.give(written, |reply, ()| reply.written(len));
        };
        let Some((gate, pace)) = self.gate.as_ref().zip(self.pace(ino)) else {
            return work(&self.inner, data, Answer::direct(reply));
        };
        let answer = gate.watch(reply);
        match gate.pass(pace) {
            Some(_pass) => work(&self.inner, data, answer),
            None => {
                // The request's buffer is this thread's own.
                let (inner, data) = (self.inner.clone(), Zeroizing::new(data.to_vec()));
                let task = Task { pace, bytes: data.len(), is_due: false };
                gate.leave(answer, task, move |answer| work(&inner, &data, answer));
            }
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
        let caller = caller(req);
        self.serve(self.pace(ino), reply, move |to, answer| {
            empty(to.guard(|| to.tree.flush(caller, ino.0, fh.0)), answer);
        });
    }

    fn release(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Operation::Release);
        // Nobody waits for it, and it comes once: a file would never be complete without it.
        let task = Task { pace: Pace::Free, bytes: 0, is_due: true };
        self.serve_as(self.pace(ino).map(|_| task), reply, move |to, answer| {
            let released = to.guard(|| {
                to.tree.release(fh.0);
                Ok(())
            });
            empty(released, answer);
        });
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
        let caller = caller(req);
        self.serve(self.pace(ino), reply, move |to, answer| {
            empty(to.guard(|| to.tree.sync(caller, ino.0, fh.0)), answer);
        });
    }

    // A listing is for one caller, and never cached.
    fn opendir(&self, req: &fuser::Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Operation::Opendir);
        let caller = caller(req);
        self.serve(self.pace(ino), reply, move |to, answer| {
            let listed = to.guard(|| to.tree.list(caller, ino.0));
            answer.give(listed, |reply, _| {
                reply.opened(FileHandle(to.listings.open()), FopenFlags::empty());
            });
        });
    }

    fn readdir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.count(Operation::Readdir);
        let caller = caller(req);
        self.serve(self.pace(ino), reply, move |to, answer| {
            let listed = to.guard(|| to.listings.listing(&to.tree, caller, (ino.0, fh.0), offset));
            answer.give(listed, |mut reply, listed| {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                for (index, entry) in listed.iter().enumerate().skip(from) {
                    let next = index as u64 + 1;
                    if reply.add(INodeNo(entry.inode), next, file_type(entry.kind), &entry.name) {
                        break;
                    }
                }
                reply.ok();
            });
        });
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
        self.inner.listings.release(fh.0);
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
        let refused = self.inner.guard(|| self.inner.tree.change_other(caller(req), ino.0));
        empty(refused, Answer::direct(reply));
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
        let refused = self.inner.guard(|| self.inner.tree.change_other(caller(req), ino.0));
        empty(refused, Answer::direct(reply));
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
        let (caller, request, name) = (caller(req), request(req), name.to_owned());
        self.serve(self.pace(parent), reply, move |to, answer| {
            let made = to.guard(|| to.tree.create(caller, parent.0, &name, how, request));
            answer.give(made, |reply, (made, opened)| {
                reply.created(
                    &ENTRY_TIMEOUT,
                    &file_attr(&made),
                    Generation(0),
                    FileHandle(opened.handle),
                    open_flags(opened),
                );
            });
        });
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
        let (caller, end) = (caller(req), offset.saturating_add(length));
        self.serve(self.pace(ino), reply, move |to, answer| {
            empty(to.guard(|| to.tree.allocate(caller, ino.0, end, mode)), answer);
        });
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
        let caller = caller(req);
        self.serve(self.pace(ino), reply, move |to, answer| {
            let found = to.guard(|| {
                let offset = u64::try_from(offset).map_err(|_| Refusal::Os(libc::ENXIO))?;
                to.tree.seek(caller, ino.0, offset, whence)
            });
            answer.give(found, |reply, at| reply.offset(at.cast_signed()));
        });
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
