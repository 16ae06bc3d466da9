//! The directory tree that callers see, each their own.
//!
//! ```text
//! /                 answers by caller: an agent's files, or `.identity` alone
//! /.agents/TOKEN/   a principal's own directory; found by whoever knows the token, listed by nobody
//! .../events/       the events of the principal's execution, see [`crate::events`]
//! ```
//!
//! Invariant: whether a *directory* exists never depends on who asks, files always do. Danger: a
//! stranger's `ENOENT` on a directory drops it from the shared dentry cache, under the feet of those
//! who work in it (`pitfalls` in the manual). Inode numbers 1 to 4 are fixed, all others random.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Broker, FileFact, Node, Range, Refusal, Request, Standing};
use crate::clock::Timestamp;
use crate::events::Events;
use crate::identity::Caller;
use crate::identity::attestor::PrincipalNumber;

use super::events::{event_entry, events_link};

/// The root directory (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;
/// `/.agents`.
pub const AGENTS: u64 = 2;
/// The `.identity` that strangers see.
pub const STRANGER_IDENTITY: u64 = 3;
/// The symbolic link `events` of the root, whose target depends on who asks.
pub const EVENTS_LINK: u64 = 4;
/// Inode numbers below this are fixed.
pub const FIRST_RANDOM: u64 = 1 << 10;

/// Name of the directory that holds the principals' directories.
pub const AGENTS_NAME: &str = ".agents";
/// Name of the file that says who the caller is.
pub const IDENTITY_NAME: &str = ".identity";

/// Name of the directory that agents write to.
pub const EVENTS_NAME: &str = "events";

/// Attributes of a secret are the same for all who see its inode, so the kernel may keep them.
const SECRET_ATTR_TIMEOUT: Duration = Duration::from_secs(1);

/// `NAME_MAX` of limits.h, which statfs(2) tells too. The kernel's own bound is higher.
const MAX_NAME_BYTES: usize = 255;

/// What a stranger reads in `.identity`: the same for all, since they share the inode.
const STRANGER_TEXT: &[u8] = b"{\n  \"principal\": null,\n  \
    \"reason\": \"this process belongs to no execution\",\n  \
    \"hint\": \"start it with `strongroom run`; `strongroom explain --pid PID` tells more\"\n}\n";

/// The two kinds of thing in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

/// Attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub inode: u64,
    /// File or directory.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Exact size in bytes.
    pub size_bytes: u64,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Modification time.
    pub modified: Timestamp,
    /// When it was read, if that is another time.
    pub accessed: Option<Timestamp>,
    /// When anything of it changed, if that is another time.
    pub changed: Option<Timestamp>,
    /// As stat(2) counts names.
    pub links: u32,
    /// How long the kernel may keep them.
    pub timeout: Duration,
}

/// One line of a directory listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Name.
    pub name: OsString,
    /// Inode number.
    pub inode: u64,
    /// File or directory.
    pub kind: Kind,
}

/// What an open file is, as the adapter must treat it. All are direct I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle to give to the kernel.
    pub handle: u64,
    /// Whether the kernel is to tell when a descriptor is closed.
    pub tells_close: bool,
}

/// The open file that a READ names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFile {
    /// Its inode.
    pub inode: u64,
    /// The handle that its open gave.
    pub handle: u64,
    /// Whether the request carries a lock owner, which every read(2) does and no fill of the page
    /// cache.
    pub owned: bool,
}

/// The handle of every file that holds no secret.
const PLAIN_HANDLE: u64 = 0;
const PLAIN: Opened = Opened { handle: PLAIN_HANDLE, tells_close: false };

/// The tree over a broker.
#[derive(Debug)]
pub struct Tree<B> {
    broker: B,
    events: Option<Arc<Events>>,
}

impl<B: Broker> Tree<B> {
    /// A tree that asks `broker`.
    pub fn new(broker: B) -> Self {
        Self { broker, events: None }
    }

    /// With directories that agents may write to.
    #[must_use]
    pub fn with_events(mut self, events: Arc<Events>) -> Self {
        self.events = Some(events);
        self
    }

    /// The events directories, where there are any.
    pub fn events(&self) -> Option<&Arc<Events>> {
        self.events.as_ref()
    }

    /// The broker behind it.
    pub fn broker(&self) -> &B {
        &self.broker
    }

    /// Finds `name` in directory `parent`.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn lookup(&self, caller: Caller, parent: u64, name: &[u8]) -> Result<Attributes, Refusal> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Refusal::NameTooLong);
        }
        if let Some(events) = self.events_of(parent) {
            let writer = self.writer(caller)?;
            let found = events.lookup(&writer, parent, OsStr::from_bytes(name))?;
            return Ok(event_entry(&writer, found));
        }
        // A name that is not UTF-8 can be no name of ours.
        let name = std::str::from_utf8(name).map_err(|_| Refusal::Missing)?;
        match parent {
            ROOT if name == AGENTS_NAME => Ok(directory(AGENTS, 0o711)),
            ROOT => match self.broker.standing(caller)? {
                // A directory would be another for each caller, which the kernel cannot have.
                Standing::Agent(_) if name == EVENTS_NAME && self.events.is_some() => {
                    Ok(events_link())
                }
                Standing::Agent(principal) => self.lookup_file(caller, principal, name),
                Standing::Stranger => stranger_file(name),
            },
            AGENTS => {
                self.broker.directory(name).map(|i| directory(i, 0o555)).ok_or(Refusal::Missing)
            }
            _ => match self.broker.node(parent) {
                Some(Node::Directory(owner)) => match self.broker.standing(caller)? {
                    Standing::Agent(principal) if principal == owner => {
                        self.lookup_file(caller, principal, name)
                    }
                    Standing::Agent(_) | Standing::Stranger => stranger_file(name),
                },
                Some(Node::Identity(_) | Node::Secret(_)) | None => Err(Refusal::Missing),
            },
        }
    }

    fn lookup_file(
        &self,
        caller: Caller,
        principal: PrincipalNumber,
        name: &str,
    ) -> Result<Attributes, Refusal> {
        if name == IDENTITY_NAME {
            return self.identity_attributes(principal);
        }
        if name == EVENTS_NAME && self.events.is_some() {
            return self.events_root(principal);
        }
        self.broker.file(principal, name, caller).map(|f| secret(&f)).ok_or(Refusal::Missing)
    }

    fn identity_attributes(&self, principal: PrincipalNumber) -> Result<Attributes, Refusal> {
        let (_, inode) = self.broker.inodes(principal).ok_or(Refusal::Missing)?;
        let (uid, gid) = self.broker.owner(principal).ok_or(Refusal::Missing)?;
        Ok(Attributes {
            inode,
            kind: Kind::File,
            mode: 0o400,
            size_bytes: self.broker.identity(principal).len() as u64,
            uid,
            gid,
            modified: Timestamp::UNIX_EPOCH,
            accessed: None,
            changed: None,
            links: 1,
            // Its text changes with the last refusal.
            timeout: Duration::ZERO,
        })
    }

    /// Attributes of an inode that the caller already holds.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn attributes(&self, caller: Caller, inode: u64) -> Result<Attributes, Refusal> {
        if let Some(events) = self.events_of(inode) {
            let writer = self.writer(caller)?;
            return Ok(event_entry(&writer, events.attributes(&writer, inode)?));
        }
        match inode {
            ROOT => Ok(directory(ROOT, 0o555)),
            AGENTS => Ok(directory(AGENTS, 0o711)),
            STRANGER_IDENTITY => Ok(stranger_attributes()),
            EVENTS_LINK => Ok(events_link()),
            _ => match self.broker.node(inode) {
                None if self.events.is_some() => Err(Refusal::Os(libc::ESTALE)),
                None => Err(Refusal::Missing),
                Some(Node::Directory(_)) => Ok(directory(inode, 0o555)),
                Some(Node::Identity(owner)) => {
                    self.require(caller, owner)?;
                    self.identity_attributes(owner)
                }
                Some(Node::Secret(file)) => match self.broker.standing(caller)? {
                    Standing::Agent(principal) if self.sees(principal, inode) => Ok(secret(&file)),
                    Standing::Agent(_) | Standing::Stranger => Err(Refusal::ForeignHandle),
                },
            },
        }
    }

    fn sees(&self, principal: PrincipalNumber, inode: u64) -> bool {
        self.broker.files(principal).iter().any(|f| f.inode == inode)
    }

    fn require(&self, caller: Caller, owner: PrincipalNumber) -> Result<(), Refusal> {
        match self.broker.standing(caller)? {
            Standing::Agent(principal) if principal == owner => Ok(()),
            Standing::Agent(_) | Standing::Stranger => Err(Refusal::ForeignHandle),
        }
    }

    /// Lists directory `inode` as `caller` sees it, `.` and `..` first.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn list(&self, caller: Caller, inode: u64) -> Result<Vec<Listed>, Refusal> {
        if let Some(events) = self.events_of(inode) {
            return Self::list_events(events, &*self.writer(caller)?, inode);
        }
        let dir = |name: &str, inode| Listed { name: name.into(), inode, kind: Kind::Directory };
        let file = |name: &str, inode| Listed { name: name.into(), inode, kind: Kind::File };
        let viewer = match inode {
            // The tokens are not listed anywhere.
            AGENTS => return Ok(vec![dir(".", AGENTS), dir("..", ROOT)]),
            ROOT => match self.broker.standing(caller)? {
                Standing::Agent(principal) => Some(principal),
                Standing::Stranger => None,
            },
            _ => match self.broker.node(inode) {
                Some(Node::Directory(owner)) => match self.broker.standing(caller)? {
                    Standing::Agent(principal) if principal == owner => Some(principal),
                    Standing::Agent(_) | Standing::Stranger => None,
                },
                Some(Node::Identity(_) | Node::Secret(_)) | None => return Err(Refusal::Missing),
            },
        };
        let mut listed = vec![dir(".", inode), dir("..", ROOT)];
        match viewer.and_then(|p| self.broker.inodes(p).map(|(_, identity)| (p, identity))) {
            Some((principal, identity)) => {
                listed.push(file(IDENTITY_NAME, identity));
                if self.events.is_some() {
                    let events = match inode {
                        ROOT => Some((EVENTS_LINK, Kind::Link)),
                        // Whatever the store does, the secrets are listed.
                        _ => self.events_number(principal).map(|n| (n, Kind::Directory)),
                    };
                    listed.extend(events.map(|(inode, kind)| Listed {
                        name: EVENTS_NAME.into(),
                        inode,
                        kind,
                    }));
                }
                let files = self.broker.files(principal);
                listed.extend(files.iter().map(|f| file(&f.name, f.inode)));
            }
            None => listed.push(file(IDENTITY_NAME, STRANGER_IDENTITY)),
        }
        Ok(listed)
    }

    /// Opens file `inode`; `writing` for any open that could change it.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn open(
        &self,
        caller: Caller,
        inode: u64,
        writing: bool,
        request: Request,
    ) -> Result<Opened, Refusal> {
        if let Some(events) = self.events_of(inode) {
            let writer = self.writer(caller)?;
            let handle = events.open_file(&writer, inode, writing, request)?;
            return Ok(Opened { handle, tells_close: true });
        }
        if writing {
            return Err(self.unchangeable(inode));
        }
        if inode == STRANGER_IDENTITY {
            return Ok(PLAIN);
        }
        match self.broker.node(inode) {
            Some(Node::Identity(owner)) => {
                self.require(caller, owner)?;
                Ok(PLAIN)
            }
            Some(Node::Secret(_)) => match self.broker.standing(caller)? {
                Standing::Agent(principal) => self
                    .broker
                    .open(principal, inode, caller, request)
                    .map(|handle| Opened { handle, tells_close: false }),
                Standing::Stranger => {
                    // Reached without a lookup of its own: through a descriptor that was passed.
                    self.broker.refused(None, inode, caller, Refusal::ForeignHandle);
                    Err(Refusal::ForeignHandle)
                }
            },
            None if self.events.is_some() => Err(Refusal::Os(libc::ESTALE)),
            Some(Node::Directory(_)) | None => Err(Refusal::Missing),
        }
    }

    /// Reads from an open file.
    ///
    /// # Errors
    /// See [`Refusal`]; `reply` was not called then.
    pub fn read(
        &self,
        caller: Caller,
        file: OpenFile,
        range: Range,
        request: Request,
        reply: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        let OpenFile { inode, handle, owned } = file;
        if !owned {
            self.broker.refused(None, inode, caller, Refusal::Uncacheable);
            return Err(Refusal::Uncacheable);
        }
        if let Some(events) = self.events_of(inode) {
            let writer = self.writer(caller)?;
            reply(&events.read(&writer, handle, range.offset, range.size as usize)?);
            return Ok(());
        }
        if inode == STRANGER_IDENTITY {
            reply(range.of(STRANGER_TEXT));
            return Ok(());
        }
        match self.broker.node(inode) {
            Some(Node::Identity(owner)) => {
                self.require(caller, owner)?;
                reply(range.of(&self.broker.identity(owner)));
                Ok(())
            }
            Some(Node::Secret(_)) => self.broker.read(handle, caller, range, request, reply),
            Some(Node::Directory(_)) | None => Err(Refusal::Missing),
        }
    }

    /// Ends an open file's life.
    pub fn release(&self, handle: u64) {
        match &self.events {
            Some(events) if events.holds(handle) => events.release(handle),
            _ if handle != PLAIN_HANDLE => self.broker.release(handle),
            _ => {}
        }
    }
}

fn stranger_file(name: &str) -> Result<Attributes, Refusal> {
    if name == IDENTITY_NAME { Ok(stranger_attributes()) } else { Err(Refusal::Missing) }
}

fn stranger_attributes() -> Attributes {
    Attributes {
        inode: STRANGER_IDENTITY,
        kind: Kind::File,
        mode: 0o444,
        size_bytes: STRANGER_TEXT.len() as u64,
        uid: 0,
        gid: 0,
        modified: Timestamp::UNIX_EPOCH,
        accessed: None,
        changed: None,
        links: 1,
        timeout: SECRET_ATTR_TIMEOUT,
    }
}

fn directory(inode: u64, mode: u16) -> Attributes {
    Attributes {
        inode,
        kind: Kind::Directory,
        mode,
        size_bytes: 0,
        uid: 0,
        gid: 0,
        modified: Timestamp::UNIX_EPOCH,
        accessed: None,
        changed: None,
        links: 2,
        timeout: SECRET_ATTR_TIMEOUT,
    }
}

fn secret(file: &FileFact) -> Attributes {
    Attributes {
        inode: file.inode,
        kind: Kind::File,
        mode: 0o400,
        size_bytes: file.size_bytes,
        uid: file.uid,
        gid: file.gid,
        modified: file.modified,
        accessed: None,
        changed: None,
        links: 1,
        timeout: SECRET_ATTR_TIMEOUT,
    }
}
