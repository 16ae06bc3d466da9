//! The audit log and the stream of events on the wire.
#![forbid(unsafe_code)]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject};

/// `audit query` and `audit tail`: all filters must match. Records come as NDJSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Event name.
    #[serde(default)]
    pub event: Option<String>,
    /// Secret's name, with or without environment.
    #[serde(default)]
    pub secret: Option<String>,
    /// Chain.
    #[serde(default)]
    pub chain: Option<String>,
    /// Agent.
    #[serde(default)]
    pub agent: Option<String>,
    /// User.
    #[serde(default)]
    pub user: Option<String>,
    /// Execution.
    #[serde(default)]
    pub execution: Option<String>,
    /// Environment; `-` is none.
    #[serde(default)]
    pub environment: Option<String>,
    /// Decision.
    #[serde(default)]
    pub decision: Option<String>,
    /// Process.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Uid.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Not before.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub since: Option<Timestamp>,
    /// Before.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub until: Option<Timestamp>,
    /// Only records with a higher sequence number.
    #[serde(default)]
    pub after_seq: Option<u64>,
    /// At most so many.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Newest first.
    #[serde(default)]
    pub newest: bool,
    /// Go on with new records as they are written (`audit tail -f`).
    #[serde(default)]
    pub follow: bool,
}

impl Request for AuditQuery {
    fn subject(&self) -> Subject<'_> {
        match (&self.chain, &self.environment) {
            (Some(chain), environment) => {
                Subject::Place { chain: Some(chain), environment: environment.as_deref() }
            }
            (None, _) => Subject::Host,
        }
    }
}

/// `audit verify`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditVerify {
    /// The first public key, in hex, as it was noted elsewhere; none: the vault's own note.
    #[serde(default)]
    pub public_key: Option<String>,
    /// A record's number, as `audit head` told it; with `head_link`.
    #[serde(default)]
    pub head_seq: Option<u64>,
    /// That record's link.
    #[serde(default)]
    pub head_link: Option<String>,
}

impl Request for AuditVerify {}

/// `audit prune`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditPrune {
    /// Files of days before this one are removed, as `2026-11-23`; at most today.
    #[serde(default)]
    pub before: Option<String>,
    /// In place of `before`: so many days stay, today among them.
    #[serde(default)]
    pub keep_days: Option<u16>,
}

impl Request for AuditPrune {}

/// What `audit prune` removed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AuditPruned {
    /// The files.
    pub files: Vec<String>,
    /// How many records were in them.
    pub records: u64,
    /// The last record that was removed; the signed anchor tells it and its link.
    pub anchor_seq: Option<u64>,
}

/// The first line that is not as it was written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct FirstBad {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// `altered`, `missing`, `cut`, `truncated` or `forged_checkpoint`.
    pub kind: String,
    /// One sentence.
    pub detail: String,
}

/// What `audit verify` found.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AuditVerified {
    /// Whether nothing was altered, reordered, dropped or truncated.
    pub ok: bool,
    /// How many records were read.
    pub records: u64,
    /// How many files were read.
    pub files: u64,
    /// How many checkpoints were verified.
    pub checkpoints: u64,
    /// Records after the last checkpoint.
    pub unsealed: u64,
    /// The last record's number.
    pub last_seq: Option<u64>,
    /// The last link.
    pub link: Option<String>,
    /// What is wrong first.
    pub first_bad: Option<FirstBad>,
}

/// `audit head`: what to store elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AuditHead {
    /// The last record's number.
    pub seq: u64,
    /// The last link.
    pub link: String,
    /// The last record's time.
    #[schemars(with = "String")]
    pub timestamp: Timestamp,
    /// The first public key, which verifies everything.
    pub first_public_key: Option<String>,
    /// The vault's epoch.
    pub epoch: Option<u64>,
}

/// `GET /v1/watch`: what happens, as NDJSON of [`WatchEvent`].
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Only later ones; none: from now on.
    #[serde(default)]
    pub after_seq: Option<u64>,
    /// Only of this execution.
    #[serde(default)]
    pub execution: Option<String>,
    /// Only of this chain.
    #[serde(default)]
    pub chain: Option<String>,
}

impl Request for Watch {
    fn subject(&self) -> Subject<'_> {
        match &self.chain {
            Some(chain) => Subject::Place { chain: Some(chain), environment: None },
            None => Subject::Inside,
        }
    }
}

/// One line of a watch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WatchEvent {
    /// Its number; a client goes on after the last one it saw.
    pub seq: u64,
    /// When.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// `execution_started`, `agent_ended`, `secret_rotated`, `alert`, ...
    pub event: String,
    /// The chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    /// The agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<String>,
    /// The secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Why, or how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
