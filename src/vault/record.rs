//! What the vault stores: records of a kind, under random ids, without names in clear.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use crate::secret::SecretBytes;

use super::crypto::{self, NoRandomness};

/// What a record is. The number is in the file; it is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A secret's metadata.
    Secret = 1,
    /// A version's value.
    Value = 2,
    /// A group.
    Group = 3,
    /// A project.
    Project = 4,
    /// A chain's definition.
    Chain = 5,
    /// A rotation policy.
    Policy = 6,
    /// An exposure to a person.
    Exposure = 7,
    /// The audit log's signing key.
    Signing = 8,
    /// A setting of the vault itself.
    Setting = 9,
    /// What a revoked value is known again by whose secret was removed.
    Buried = 10,
    /// The key of a vault's fingerprints of revoked values; its id is the vault's own.
    FingerprintKey = 11,
}

impl RecordKind {
    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Secret,
            2 => Self::Value,
            3 => Self::Group,
            4 => Self::Project,
            5 => Self::Chain,
            6 => Self::Policy,
            7 => Self::Exposure,
            8 => Self::Signing,
            9 => Self::Setting,
            10 => Self::Buried,
            11 => Self::FingerprintKey,
            _ => return None,
        })
    }

    /// The first format whose programs know it: one that does not must say that the vault is newer
    /// than itself, and not that it was altered.
    pub fn since(self) -> u32 {
        match self {
            Self::Secret
            | Self::Value
            | Self::Group
            | Self::Project
            | Self::Chain
            | Self::Policy
            | Self::Exposure
            | Self::Signing
            | Self::Setting => 1,
            Self::Buried | Self::FingerprintKey => 2,
        }
    }
}

/// A record's id: 128 random bits, shown as hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub [u8; 16]);

impl RecordId {
    /// A new one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 16];
        crypto::random(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crypto::hex(&self.0))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no record id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a record id is 32 hex digits")]
pub struct BadRecordId;

impl FromStr for RecordId {
    type Err = BadRecordId;

    fn from_str(text: &str) -> Result<Self, BadRecordId> {
        let bytes = crypto::unhex(text).ok_or(BadRecordId)?;
        Ok(Self(bytes.try_into().map_err(|_| BadRecordId)?))
    }
}

/// Kind and id: what a record is found by.
pub type RecordKey = (RecordKind, RecordId);

/// Changes that are made together or not at all. The last change of a record counts.
#[derive(Default)]
pub struct Batch {
    pub(super) changes: std::collections::BTreeMap<RecordKey, Option<SecretBytes>>,
}

impl Batch {
    /// Without changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores `bytes` as the record, in place of what was there.
    pub fn put(&mut self, kind: RecordKind, id: RecordId, bytes: SecretBytes) {
        self.changes.insert((kind, id), Some(bytes));
    }

    /// Removes the record, if it is there.
    pub fn delete(&mut self, kind: RecordKind, id: RecordId) {
        self.changes.insert((kind, id), None);
    }

    /// Values that it stores, and those that it removes.
    pub fn values(&self) -> impl Iterator<Item = (RecordId, Option<&SecretBytes>)> {
        let values = self.changes.iter().filter(|((kind, _), _)| *kind == RecordKind::Value);
        values.map(|((_, id), bytes)| (*id, bytes.as_ref()))
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}
