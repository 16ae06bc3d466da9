//! What the local broker needs of vault, catalog and audit, as small as it can be.
#![forbid(unsafe_code)]

use crate::execution::principal::{File, Principal};
use crate::identity::Caller;
use crate::secret::SecretBytes;

use super::Refusal;

/// Vault and catalog, as a read needs them.
pub trait Backend: Send + Sync + 'static {
    /// Decrypts the value behind a vault record's id, in hex.
    ///
    /// # Errors
    /// [`Refusal::Locked`], [`Refusal::Revoked`] for a value that is revoked or destroyed,
    /// [`Refusal::Fault`].
    fn value(&self, id: &str) -> Result<SecretBytes, Refusal>;

    /// Whether reads of this value must fail because its version was revoked. Asked at every read.
    fn is_revoked(&self, id: &str) -> bool;

    /// Whether any secret has this name, so that a refusal of it is worth a record.
    fn name_exists(&self, name: &str) -> bool;
}

/// One access or refusal, for the record.
#[derive(Debug, Clone)]
pub struct Access<'a> {
    /// What happened.
    pub outcome: Outcome,
    /// Who asked, where it is known.
    pub principal: Option<&'a Principal>,
    /// The file, where it is one of the principal's.
    pub file: Option<&'a File>,
    /// The name that was asked for, where there is no file.
    pub name: Option<&'a str>,
    /// The calling thread.
    pub caller: Caller,
    /// Its process, where it is known.
    pub tgid: Option<u32>,
    /// How often, for refusals that are counted.
    pub count: u64,
    /// The FUSE request's id, 0 for none: one request is recorded once.
    pub request: u64,
}

/// How an access ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Refused.
    Denied(Refusal),
    /// The bytes leave after this.
    Granted,
}

/// The audit log, as the mount needs it.
pub trait Recorder: Send + Sync + 'static {
    /// Writes a record; when this returns `Ok` it survives this process.
    ///
    /// # Errors
    /// [`Refusal::AuditUnavailable`], within a bounded time.
    fn record(&self, access: &Access<'_>) -> Result<(), Refusal>;

    /// Whether a record for this request was written by an earlier worker.
    fn has_recorded(&self, request: u64) -> bool;
}
