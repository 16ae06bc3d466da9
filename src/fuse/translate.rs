//! Between fuser's types and those of the mount: callers, requests, attributes, flags, answers.
//!
//! Invariant: no answer lets the kernel keep an entry or its absence; the next caller is another.
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyWrite,
    TimeOrNow,
};

use crate::broker::{Refusal, Request};
use crate::fs::errno;
use crate::fs::tree::{Attributes, Kind, Opened};
use crate::identity::Caller;
use crate::sys::device::UNIQUE_RESEND;

use super::gate::{Answer, Refuse};

/// Entries are asked for anew each time: the next caller is another.
pub(super) const ENTRY_TIMEOUT: Duration = Duration::ZERO;

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyWrite
);

pub(super) fn number(refusal: Refusal) -> Errno {
    Errno::from_i32(errno::Errno::from(refusal).0)
}

pub(super) fn caller(req: &fuser::Request) -> Caller {
    Caller { tid: req.pid(), uid: req.uid(), gid: req.gid() }
}

pub(super) fn request(req: &fuser::Request) -> Request {
    let unique = req.unique().0;
    Request { id: unique & !UNIQUE_RESEND, resent: unique & UNIQUE_RESEND != 0 }
}

pub(super) fn file_attr(attributes: &Attributes) -> FileAttr {
    let time = |at| SystemTime::try_from(at).unwrap_or(SystemTime::UNIX_EPOCH);
    let modified = time(attributes.modified);
    FileAttr {
        ino: INodeNo(attributes.inode),
        size: attributes.size_bytes,
        blocks: attributes.size_bytes.div_ceil(512),
        atime: attributes.accessed.map_or(modified, time),
        mtime: modified,
        ctime: attributes.changed.map_or(modified, time),
        crtime: modified,
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

/// Answers with an entry; the kernel asks for it anew each time.
pub(super) fn entry(made: Result<Attributes, Errno>, answer: Answer<ReplyEntry>) {
    answer.give(made, |reply, made| {
        reply.entry_with_ttls(&made.timeout, &ENTRY_TIMEOUT, &file_attr(&made), Generation(0));
    });
}

pub(super) fn empty(outcome: Result<(), Errno>, answer: Answer<ReplyEmpty>) {
    answer.give(outcome, |reply, ()| reply.ok());
}

pub(super) fn open_flags(opened: Opened) -> FopenFlags {
    if opened.tells_close {
        FopenFlags::FOPEN_DIRECT_IO
    } else {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH
    }
}

/// Seconds and nanoseconds since 1970.
pub(super) fn seconds(time: TimeOrNow) -> (i64, i64) {
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
pub(super) fn is_writing(flags: OpenFlags) -> bool {
    flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & (libc::O_TRUNC | libc::O_APPEND) != 0
}
