//! The one place where identity, catalog, vault and audit meet: it decides what a caller gets.
//!
//! [`Broker`] is what the mount asks; it has a local implementation and, for ssh workspaces, a
//! remote one. Order on every read: attest, decide, record, open, reply, wipe. If any step fails the
//! answer is a [`Refusal`], never a default.
#![forbid(unsafe_code)]

pub mod backend;
pub mod local;
pub mod memory;
mod open;
pub mod refusals;

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::identity::Caller;
use crate::identity::attestor::PrincipalNumber;
use crate::redact::Level;

/// Who a caller is to the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// A process of a registered agent.
    Agent(PrincipalNumber),
    /// A process of no execution: it sees empty directories.
    Stranger,
}

/// Why a request is refused. `fs::errno` alone turns it into a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No record could be written, so nothing is revealed.
    #[error("the audit record cannot be written")]
    AuditUnavailable,
    /// A descriptor in the hands of a process that may not use it.
    #[error("this descriptor belongs to another principal")]
    ForeignHandle,
    /// The secret's own end has passed.
    #[error("the secret has expired")]
    Expired,
    /// A fault of ours.
    #[error("the vault cannot serve this value")]
    Fault,
    /// The vault is locked.
    #[error("the vault is locked")]
    Locked,
    /// There is no such thing for this caller.
    #[error("no such name for this caller")]
    Missing,
    /// Longer than any name can be.
    #[error("the name is too long")]
    NameTooLong,
    /// What the system said to a change of an event file, as an error number.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
    /// A change outside `events`.
    #[error("secrets are read-only")]
    ReadOnly,
    /// The version was revoked.
    #[error("the version was revoked")]
    Revoked,
    /// Too many open files.
    #[error("too many files are open")]
    TooManyOpen,
    /// A fill of the page cache, which would serve others without asking.
    #[error("the page cache may not hold this file")]
    Uncacheable,
    /// The caller cannot be told.
    #[error("the caller cannot be attributed to a process")]
    Unattributable,
    /// An operation that the mount does not have.
    #[error("the mount does not have this operation")]
    Unsupported,
}

/// One file of a principal's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFact {
    /// Its name in the directory.
    pub name: String,
    /// Its inode number.
    pub inode: u64,
    /// Exact size in bytes.
    pub size_bytes: u64,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// When the version was made.
    pub modified: Timestamp,
}

/// What an inode number stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A principal's own directory.
    Directory(PrincipalNumber),
    /// A principal's `.identity`.
    Identity(PrincipalNumber),
    /// A version of a secret, as a file of one owner.
    Secret(FileFact),
}

/// Whose events folder it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Below the event store.
    pub folder: String,
    /// The chain.
    pub chain: String,
    /// Its environment.
    pub environment: Option<String>,
    /// The execution.
    pub execution: String,
}

/// A principal as a user of its events directory.
#[derive(Debug, Clone)]
pub struct Writer {
    /// The principal's number.
    pub principal: u64,
    /// Whose folder it uses.
    pub place: Arc<Place>,
    /// The name of its own directory in the mount.
    pub token: String,
    /// Owner of what it sees.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// What is looked for.
    pub level: Level,
}

/// What the mount asks of the vault.
pub trait Broker: Send + Sync + 'static {
    /// Who the caller is, judged anew.
    ///
    /// # Errors
    /// [`Refusal::Unattributable`].
    fn standing(&self, caller: Caller) -> Result<Standing, Refusal>;

    /// The inode of the directory with this token, whoever asks.
    fn directory(&self, token: &str) -> Option<u64>;

    /// The inodes of a principal's directory and `.identity`, while its execution runs.
    fn inodes(&self, principal: PrincipalNumber) -> Option<(u64, u64)>;

    /// Files that a principal sees, by name; empty once its execution has ended.
    fn files(&self, principal: PrincipalNumber) -> Vec<FileFact>;

    /// One of them. A refusal of a name that exists for others is recorded, but looks the same.
    fn file(&self, principal: PrincipalNumber, name: &str, caller: Caller) -> Option<FileFact>;

    /// What an inode stands for.
    fn node(&self, inode: u64) -> Option<Node>;

    /// A principal as a user of its events directory, where there is one.
    fn writer(&self, principal: PrincipalNumber) -> Option<Arc<Writer>>;

    /// Owner of a principal's files.
    fn owner(&self, principal: PrincipalNumber) -> Option<(u32, u32)>;

    /// Opens a secret's inode and returns a handle. `request` is the FUSE request's id, with
    /// `resent` when the kernel says that it sent it before.
    ///
    /// # Errors
    /// See [`Refusal`].
    fn open(
        &self,
        principal: PrincipalNumber,
        inode: u64,
        caller: Caller,
        request: Request,
    ) -> Result<u64, Refusal>;

    /// Passes the bytes at `offset`, at most `size`, to `reply`, after the record is written.
    ///
    /// # Errors
    /// See [`Refusal`]; `reply` was not called then.
    fn read(
        &self,
        handle: u64,
        caller: Caller,
        range: Range,
        request: Request,
        reply: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Refusal>;

    /// Forgets a handle; a second time changes nothing.
    fn release(&self, handle: u64);

    /// The text of a principal's `.identity`.
    fn identity(&self, principal: PrincipalNumber) -> Vec<u8>;

    /// A refusal that the mount itself decided, for the record.
    fn refused(&self, principal: Option<PrincipalNumber>, inode: u64, caller: Caller, why: Refusal);
}

/// A FUSE request's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Without the mark of a repeated one.
    pub id: u64,
    /// Whether the kernel sends it again after a worker's death.
    pub resent: bool,
}

/// Which bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// From the start.
    pub offset: u64,
    /// At most.
    pub size: u32,
}

impl Range {
    /// The part of `bytes` that the range covers; empty past the end, also for hostile offsets.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        let start = usize::try_from(self.offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(self.size as usize).min(bytes.len());
        &bytes[start..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_offset_gives_nothing() {
        let of = |offset, size| Range { offset, size }.of(b"abc").to_vec();
        assert_eq!(of(0, 3), b"abc");
        assert_eq!(of(1, 1), b"b");
        assert_eq!(of(2, u32::MAX), b"c");
        assert_eq!(of(3, 1), b"");
        assert_eq!(of(u64::MAX, u32::MAX), b"");
    }
}
