//! The daemon itself on the wire: health, status, doctor, unlock and lock.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::agent::Hold;
use super::{Request, Subject, Value};
use crate::config::Mode;

/// A request without parameters that anybody with its permission may make, limited or not.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

impl Request for Empty {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// It was done.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// What the person should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What the daemon is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Something is wrong that does not stop it; `status` says what.
    Degraded,
    /// Mounted, but the vault is locked.
    Locked,
    /// Mounted and unlocked.
    Ready,
    /// Not yet mounted.
    Starting,
    /// On its way out.
    Stopping,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Degraded => "degraded",
            Self::Locked => "locked",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Stopping => "stopping",
        })
    }
}

/// `GET /v1/health`, for anybody.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// What it is ready for.
    pub state: State,
    /// The program's version.
    pub version: String,
}

/// `unlock`: with the method of a slot; what is given decides which.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unlock {
    /// The words of a `passphrase` slot.
    #[serde(default)]
    pub passphrase: Option<Value>,
    /// The recovery key.
    #[serde(default)]
    pub recovery_key: Option<Value>,
    /// A key file, which the daemon reads.
    #[serde(default)]
    pub key_file: Option<String>,
    /// Only this slot: id or label. None of the above: as configured.
    #[serde(default)]
    pub slot: Option<String>,
    /// Open a vault file that is older than the audit log knows.
    #[serde(default)]
    pub accept_rollback: bool,
}

impl Request for Unlock {}

/// The vault is unlocked.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Unlocked {
    /// The slot that opened it.
    pub slot: String,
    /// The vault's epoch.
    pub epoch: u64,
    /// What the person should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// `lock`: forgets the root key; reads answer `ENOKEY` until it is unlocked.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lock {}

impl Request for Lock {}

/// The passphrase again, where `[operator] confirm` wants it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    /// The words of a `passphrase` slot.
    pub passphrase: Value,
}

impl Request for Confirm {}

/// The vault in `status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct VaultStatus {
    /// Whether its root key is here.
    pub unlocked: bool,
    /// Its id.
    pub id: Option<String>,
    /// Its epoch.
    pub epoch: Option<u64>,
    /// How many secrets.
    pub secrets: Option<u64>,
    /// How many chains.
    pub chains: Option<u64>,
}

/// A rotation that waits for executions.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// The secret: name with environment.
    pub secret: String,
    /// The pending version.
    pub pending: u64,
    /// Executions that hold the current one.
    pub waits_for: Vec<String>,
    /// Since when.
    #[schemars(with = "String")]
    pub since: Timestamp,
    /// When it is promoted anyway.
    #[schemars(with = "Option<String>")]
    pub drain_at: Option<Timestamp>,
}

/// `status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// What it is ready for.
    pub state: State,
    /// The program's version.
    pub version: String,
    /// Whose daemon it is.
    pub mode: Mode,
    /// Process of the keeper.
    pub keeper_pid: i32,
    /// Process of the worker.
    pub worker_pid: i32,
    /// How often the worker was started again.
    pub worker_restarts: u64,
    /// Since when it serves.
    #[schemars(with = "String")]
    pub started_at: Timestamp,
    /// The mount point.
    pub mount: String,
    /// Whether it is mounted.
    pub mounted: bool,
    /// The vault.
    pub vault: VaultStatus,
    /// Executions that run.
    pub executions: u64,
    /// Last record's number.
    pub audit_seq: Option<u64>,
    /// Why records cannot be written now.
    pub audit_problem: Option<String>,
    /// Rotations that wait.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// Hardening steps and what they achieved.
    #[serde(default)]
    pub hardening: BTreeMap<String, Hold>,
    /// The search of event files for values that came after them, while there is one.
    #[serde(default)]
    pub events_search: Option<EventsSearch>,
    /// What the operator should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How far the search of complete event files for new values is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EventsSearch {
    /// Changes of the vault whose values are searched for.
    pub changes: u64,
    /// Files there were when it began.
    pub files: u64,
    /// Files that were looked at.
    pub looked: u64,
    /// Files that held such a value and were made anew.
    pub rewritten: u64,
    /// Files that could not be searched; it is tried again.
    pub failed: u64,
}

/// How far one promise holds here.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Promise {
    /// Its number in `SECURITY.md`.
    pub number: u8,
    /// Its name.
    pub name: String,
    /// How far it holds.
    pub holds: Hold,
    /// Why not further.
    #[serde(default)]
    pub why: Option<String>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(default)]
    pub remedy: Option<String>,
}

/// `doctor`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Doctor {
    /// The promises, in order.
    pub promises: Vec<Promise>,
    /// What was looked at.
    pub checks: Vec<Check>,
}
