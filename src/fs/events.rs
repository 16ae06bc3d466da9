//! The part of the tree that agents may change: everything below `events`.
//!
//! Whatever is not there is read-only. Links, devices and extended attributes are refused.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Broker, Refusal, Request, Standing, Writer};
use crate::clock::Timestamp;
use crate::events::{self, At, Change, Events, Pace};
use crate::identity::Caller;
use crate::identity::attestor::PrincipalNumber;

use super::tree::{
    AGENTS_NAME, Attributes, EVENTS_LINK, EVENTS_NAME, FIRST_RANDOM, Kind, Listed, Opened, Tree,
};

/// What a write asks for.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// The file.
    pub inode: u64,
    /// The handle that its open gave.
    pub handle: u64,
    /// Where; the kernel's idea of the end for an appending one.
    pub offset: u64,
    /// Whether the descriptor appends.
    pub append: bool,
    /// Whether a process writes, and not the page cache.
    pub owned: bool,
    /// What.
    pub bytes: &'a [u8],
}

impl<B: Broker> Tree<B> {
    /// The events directories, if the inode is theirs.
    pub(super) fn events_of(&self, inode: u64) -> Option<&Arc<Events>> {
        self.events().filter(|events| events.owns(inode))
    }

    /// Whether names may come and go in a directory.
    pub fn is_changeable(&self, inode: u64) -> bool {
        self.events_of(inode).is_some()
    }

    /// How fast requests of an inode are answered, if they may wait for the event store.
    pub fn pace(&self, inode: u64) -> Option<Pace> {
        self.events()?.pace(inode)
    }

    /// The caller as a user of its events directory.
    pub(super) fn writer(&self, caller: Caller) -> Result<Arc<Writer>, Refusal> {
        match self.broker().standing(caller)? {
            Standing::Agent(principal) => {
                self.broker().writer(principal).ok_or(Refusal::ForeignHandle)
            }
            Standing::Stranger => Err(Refusal::ForeignHandle),
        }
    }

    pub(super) fn events_root(&self, principal: PrincipalNumber) -> Result<Attributes, Refusal> {
        let events = self.events().ok_or(Refusal::Missing)?;
        let writer = self.broker().writer(principal).ok_or(Refusal::Missing)?;
        Ok(event_entry(&writer, events.root(&writer)?))
    }

    /// The number of an agent's events directory, without a look at the store.
    pub(super) fn events_number(&self, principal: PrincipalNumber) -> Option<u64> {
        let writer = self.broker().writer(principal)?;
        self.events()?.root_number(&writer).ok()
    }

    pub(super) fn list_events(
        events: &Events,
        writer: &Writer,
        inode: u64,
    ) -> Result<Vec<Listed>, Refusal> {
        let directory =
            |name: &str, inode| Listed { name: name.into(), inode, kind: Kind::Directory };
        let mut listed = vec![directory(".", inode), directory("..", inode)];
        listed.extend(events.list(writer, inode)?.into_iter().map(
            |(name, inode, is_directory)| {
                let kind = if is_directory { Kind::Directory } else { Kind::File };
                Listed { name, inode, kind }
            },
        ));
        Ok(listed)
    }

    /// The events and the writer, for a change below `inode`.
    fn writable(&self, caller: Caller, inode: u64) -> Result<(&Events, Arc<Writer>), Refusal> {
        let events = self.events_of(inode).ok_or_else(|| self.unchangeable(inode))?;
        Ok((events, self.writer(caller)?))
    }

    /// Why an inode that is none of the events' cannot be changed: it is read-only, or its number has
    /// gone. The kernel then looks the name up again, as a file that became complete wants.
    pub(super) fn unchangeable(&self, inode: u64) -> Refusal {
        if self.events().is_some() && inode >= FIRST_RANDOM && self.broker().node(inode).is_none() {
            Refusal::Os(libc::ESTALE)
        } else {
            Refusal::ReadOnly
        }
    }

    /// Where the root's link `events` leads for the caller.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn link_target(&self, caller: Caller, inode: u64) -> Result<String, Refusal> {
        if inode != EVENTS_LINK {
            return Err(Refusal::Missing);
        }
        let writer = self.writer(caller)?;
        Ok(format!("{AGENTS_NAME}/{}/{EVENTS_NAME}", writer.token))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn make_directory(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        request: Request,
    ) -> Result<Attributes, Refusal> {
        let (events, writer) = self.writable(caller, parent)?;
        Ok(event_entry(&writer, events.make_directory(&writer, parent, name, request)?))
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn make_file(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        request: Request,
    ) -> Result<Attributes, Refusal> {
        let (events, writer) = self.writable(caller, parent)?;
        Ok(event_entry(&writer, events.make_file(&writer, parent, name, true, request)?))
    }

    /// A link, a device or anything else that events do not have.
    ///
    /// # Errors
    /// Always.
    pub fn make_other(&self, caller: Caller, parent: u64) -> Result<(), Refusal> {
        self.writable(caller, parent)?;
        Err(Refusal::Os(libc::EPERM))
    }

    /// An extended attribute.
    ///
    /// # Errors
    /// Always.
    pub fn change_other(&self, caller: Caller, inode: u64) -> Result<(), Refusal> {
        self.writable(caller, inode)?;
        Err(Refusal::Unsupported)
    }

    /// Makes a file, unless it is there, and opens it.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        (exclusive, writing): (bool, bool),
        request: Request,
    ) -> Result<(Attributes, Opened), Refusal> {
        let (events, writer) = self.writable(caller, parent)?;
        let (made, handle) = events.create(&writer, parent, name, exclusive, writing, request)?;
        Ok((event_entry(&writer, made), Opened { handle, tells_close: true }))
    }

    /// Removes a name.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn remove(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        kind: Kind,
        request: Request,
    ) -> Result<(), Refusal> {
        let (events, writer) = self.writable(caller, parent)?;
        match kind {
            Kind::Directory => events.remove_directory(&writer, parent, name, request),
            Kind::File | Kind::Link => events.unlink(&writer, parent, name, request),
        }
    }

    /// Renames within `events`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn rename(
        &self,
        caller: Caller,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        exclusive: bool,
        request: Request,
    ) -> Result<(), Refusal> {
        let (events, writer) = self.writable(caller, from.0)?;
        self.writable(caller, to.0)?;
        events.rename(&writer, from, to, exclusive, request)
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn change(
        &self,
        caller: Caller,
        inode: u64,
        change: Change,
    ) -> Result<Attributes, Refusal> {
        let (events, writer) = self.writable(caller, inode)?;
        Ok(event_entry(&writer, events.change(&writer, inode, change)?))
    }

    /// What remains to be done when a change of attributes was answered.
    pub fn changed(&self, inode: u64) {
        if let Some(events) = self.events_of(inode) {
            events.changed(inode);
        }
    }

    /// Writes all or nothing.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn write(&self, caller: Caller, write: Write<'_>, request: Request) -> Result<(), Refusal> {
        let (events, writer) = self.writable(caller, write.inode)?;
        if !write.owned {
            return Err(Refusal::Uncacheable);
        }
        let at = At { offset: write.offset, append: write.append };
        events.write(&writer, write.handle, at, write.bytes, request)
    }

    /// A descriptor was closed.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn flush(&self, caller: Caller, inode: u64, handle: u64) -> Result<(), Refusal> {
        match self.events_of(inode) {
            // Whoever closes it: a process that was ended is nobody any more.
            Some(events) => match self.writer(caller) {
                Ok(writer) => events.flush(&writer, handle),
                Err(_) => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Makes a file durable.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn sync(&self, caller: Caller, inode: u64, handle: u64) -> Result<(), Refusal> {
        match self.events_of(inode) {
            Some(events) => events.sync(&*self.writer(caller)?, handle),
            None => Ok(()),
        }
    }

    /// Where data, or a hole, begins at or after `offset`: files have no holes to those who write
    /// them.
    ///
    /// # Errors
    /// `ENXIO` past the end; `EINVAL` for anything but data and holes.
    pub fn seek(
        &self,
        caller: Caller,
        inode: u64,
        offset: u64,
        whence: i32,
    ) -> Result<u64, Refusal> {
        let Some(_) = self.events_of(inode) else { return Err(Refusal::Os(libc::EINVAL)) };
        let size = self.attributes(caller, inode)?.size_bytes;
        match whence {
            _ if offset >= size => Err(Refusal::Os(libc::ENXIO)),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(Refusal::Os(libc::EINVAL)),
        }
    }

    /// Makes a file at least so long.
    ///
    /// # Errors
    /// See [`Refusal`]; holes cannot be punched.
    pub fn allocate(&self, caller: Caller, inode: u64, end: u64, mode: i32) -> Result<(), Refusal> {
        self.writable(caller, inode)?;
        match mode {
            0 if self.attributes(caller, inode)?.size_bytes < end => {
                let change = Change { size: Some(end), ..Change::default() };
                self.change(caller, inode, change).map(drop)
            }
            0 | libc::FALLOC_FL_KEEP_SIZE => Ok(()),
            _ => Err(Refusal::Unsupported),
        }
    }
}

pub(super) fn event_entry(writer: &Writer, entry: events::Attributes) -> Attributes {
    let time = |(seconds, nanos): (i64, i64)| {
        Timestamp::new(seconds, i32::try_from(nanos).unwrap_or(0)).ok()
    };
    Attributes {
        inode: entry.inode,
        kind: if entry.is_directory { Kind::Directory } else { Kind::File },
        // Whoever may use it at all may write; the stored bits are for those outside.
        mode: u16::try_from(entry.mode & 0o777 | 0o600).unwrap_or(0o600)
            | if entry.is_directory { 0o700 } else { 0 },
        size_bytes: entry.size_bytes,
        uid: writer.uid,
        gid: writer.gid,
        modified: time(entry.modified).unwrap_or(Timestamp::UNIX_EPOCH),
        accessed: time(entry.accessed),
        changed: time(entry.changed),
        links: entry.links,
        timeout: Duration::ZERO,
    }
}

pub(super) fn events_link() -> Attributes {
    Attributes {
        inode: EVENTS_LINK,
        kind: Kind::Link,
        mode: 0o777,
        size_bytes: 0,
        uid: 0,
        gid: 0,
        modified: Timestamp::UNIX_EPOCH,
        accessed: None,
        changed: None,
        links: 1,
        timeout: Duration::ZERO,
    }
}
