//! Key slots and backups on the wire.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use base64ct::{Base64, Encoding};
use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Request, Value};
use crate::config::UnlockMethod;

/// `key list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyList {}

impl Request for KeyList {}

/// A way to open the vault.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Slot {
    /// Its id.
    pub id: String,
    /// Its method; `recovery` for a recovery key.
    pub method: String,
    /// Its label.
    #[serde(default)]
    pub label: Option<String>,
    /// When it was made.
    #[schemars(with = "String")]
    pub created_at: Timestamp,
    /// Whether the daemon used it last.
    #[serde(default)]
    pub in_use: bool,
}

/// `key add`: one more way to open the vault.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyAdd {
    /// How its master key is obtained.
    pub method: KeyMethod,
    /// A label, where several slots have the same method.
    #[serde(default)]
    pub label: Option<String>,
    /// `passphrase`: the words.
    #[serde(default)]
    pub passphrase: Option<Value>,
    /// `key-file`: the file, which the daemon reads. `systemd-credential`: the name.
    #[serde(default)]
    pub path: Option<String>,
    /// `command`: program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
}

impl Request for KeyAdd {}

/// How a slot's master key is obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyMethod {
    /// A program that wraps and unwraps 32 bytes.
    Command,
    /// A file that holds the key.
    KeyFile,
    /// Words that a person knows.
    Passphrase,
    /// A key that is shown once.
    Recovery,
    /// A file in `$CREDENTIALS_DIRECTORY`.
    SystemdCredential,
}

impl From<UnlockMethod> for KeyMethod {
    fn from(method: UnlockMethod) -> Self {
        match method {
            UnlockMethod::Command => Self::Command,
            UnlockMethod::KeyFile => Self::KeyFile,
            UnlockMethod::Passphrase => Self::Passphrase,
            UnlockMethod::SystemdCredential => Self::SystemdCredential,
        }
    }
}

/// A new slot; a recovery key is shown this once.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct KeyAdded {
    /// The slot.
    pub slot: Slot,
    /// The recovery key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_key: Option<Value>,
}

/// `key rm`; the last slot cannot be removed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRm {
    /// Id or label.
    pub slot: String,
}

impl Request for KeyRm {}

/// `key rekey`: a new master key for a slot; the method stays.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRekey {
    /// Id or label.
    pub slot: String,
    /// `passphrase`: the new words.
    #[serde(default)]
    pub passphrase: Option<Value>,
    /// `key-file`: the new file.
    #[serde(default)]
    pub path: Option<String>,
    /// `command`: the new program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
}

impl Request for KeyRekey {}

/// The answer to `key list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct KeyListed {
    /// In order of their making.
    pub slots: Vec<Slot>,
}

/// Bytes that are no secret (an encrypted backup), as base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Base64::encode_string(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Base64::decode_vec(&text)
            .map(Self)
            .map_err(|_| serde::de::Error::custom("expected base64 of the standard alphabet"))
    }
}

impl JsonSchema for Blob {
    fn schema_name() -> Cow<'static, str> {
        "Blob".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "contentEncoding": "base64"})
    }
}

/// `backup create`: the whole vault, encrypted anew under its own passphrase.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupCreate {
    /// The backup's own passphrase.
    pub passphrase: Value,
}

impl Request for BackupCreate {}

/// A backup.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BackupCreated {
    /// The encrypted bytes, which the client stores.
    pub backup: Blob,
    /// How many records it holds.
    pub records: u64,
    /// The vault's epoch then.
    pub epoch: u64,
}

/// `backup verify` through the daemon; the command line does it by itself.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupVerify {
    /// The encrypted bytes.
    pub backup: Blob,
    /// The backup's own passphrase.
    pub passphrase: Value,
}

impl Request for BackupVerify {}

/// What a backup holds.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BackupVerified {
    /// How many records it holds.
    pub records: u64,
    /// The vault's epoch then.
    pub epoch: u64,
    /// Which vault it is of.
    pub vault_id: String,
}

/// `backup restore`: re-applies revocations and destructions that the audit log knows, or stops.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupRestore {
    /// The encrypted bytes.
    pub backup: Blob,
    /// The backup's own passphrase.
    pub passphrase: Value,
    /// Replace what the vault holds now.
    #[serde(default)]
    pub replace: bool,
}

impl Request for BackupRestore {}

/// What a restore did.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BackupRestored {
    /// How many records were restored.
    pub records: u64,
    /// The vault's epoch now.
    pub epoch: u64,
    /// Revocations and destructions that were applied again.
    pub reapplied: Vec<String>,
}
