//! Secrets, their versions and who obtained them, on the wire.
//!
//! Invariant: requests that carry values neither derive `Debug` nor `Clone`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Period;

use super::execution::EndedExecution;
use super::{Request, Subject, Value, place_of_secret};

/// `secret set`: creates a secret; on an existing one it is refused unless `replace`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretSet {
    /// `NAME` or `ENV/NAME`.
    pub name: String,
    /// `org`, `project:P`, `chain:C`, `agent:C/A`; none: `org`.
    #[serde(default)]
    pub scope: Option<String>,
    /// The bytes, exactly.
    pub value: Value,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// From then on nobody reads it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub expires_at: Option<Timestamp>,
    /// From then on new executions do not get this version.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub valid_until: Option<Timestamp>,
    /// `pinned` (default) or `floating`.
    #[serde(default)]
    pub binding: Option<String>,
    /// Delivered but never redacted.
    #[serde(default)]
    pub plain: bool,
    /// Whether plain reads are recorded; none: yes.
    #[serde(default)]
    pub access_log_enabled: Option<bool>,
    /// Replace the current value of an existing secret at once.
    #[serde(default)]
    pub replace: bool,
}

impl Request for SecretSet {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// `secret edit`: changes metadata; what is absent stays. An empty text removes what was there.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretEdit {
    /// `NAME` or `ENV/NAME`.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// A time, or empty: never.
    #[serde(default)]
    pub expires_at: Option<String>,
    /// `pinned` or `floating`.
    #[serde(default)]
    pub binding: Option<String>,
    /// Whether plain reads are recorded; the change itself always is.
    #[serde(default)]
    pub access_log_enabled: Option<bool>,
    /// Delivered but never redacted.
    #[serde(default)]
    pub plain: Option<bool>,
    /// Another scope; a grant like any other.
    #[serde(default)]
    pub new_scope: Option<String>,
}

impl Request for SecretEdit {
    fn subject(&self) -> Subject<'_> {
        // Moving a secret to another scope touches more than one chain.
        match self.new_scope {
            Some(_) => Subject::Host,
            None => place_of_secret(&self.name, self.scope.as_deref()),
        }
    }
}

/// One secret, by name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretName {
    /// `NAME` or `ENV/NAME`.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
}

impl Request for SecretName {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// `secret get --reveal`: the value in clear, recorded, and an exposure of the person.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretGet {
    /// `NAME` or `ENV/NAME`.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// A version number, or a stage (`current` unless said).
    #[serde(default)]
    pub version: Option<String>,
    /// Why; goes into the record.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Request for SecretGet {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// A value in clear.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct SecretRevealed {
    /// The name.
    pub key: String,
    /// Its scope.
    pub scope: String,
    /// Its environment.
    pub environment: Option<String>,
    /// The version's number.
    pub version: u64,
    /// The bytes.
    pub value: Value,
}

/// `secret list`: all filters must match.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretList {
    /// Exactly this scope.
    #[serde(default)]
    pub scope: Option<String>,
    /// Exactly this environment; `-` is none.
    #[serde(default)]
    pub environment: Option<String>,
    /// Names that match, `*` stands for anything.
    #[serde(default)]
    pub name: Option<String>,
    /// Members of this group.
    #[serde(default)]
    pub group: Option<String>,
    /// At most so many.
    #[serde(default)]
    pub limit: Option<u64>,
}

impl Request for SecretList {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// A line of `secret list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecretSummary {
    /// The name, without environment.
    pub key: String,
    /// Its scope.
    pub scope: String,
    /// Its environment.
    pub environment: Option<String>,
    /// Its group.
    pub group: Option<String>,
    /// Number of the current version.
    pub current: Option<u64>,
    /// Number of the pending version.
    pub pending: Option<u64>,
    /// When the value last changed.
    #[schemars(with = "Option<String>")]
    pub rotated_at: Option<Timestamp>,
    /// From when on nobody reads it.
    #[schemars(with = "Option<String>")]
    pub expires_at: Option<Timestamp>,
    /// Delivered but never redacted.
    pub plain: bool,
}

/// The answer to `secret list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecretListed {
    /// In order of environment, name, scope.
    pub secrets: Vec<SecretSummary>,
    /// Whether `limit` cut the list.
    #[serde(default)]
    pub cut: bool,
}

/// A secret with its versions, never its values.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecretShown {
    /// The name, without environment.
    pub key: String,
    /// Its scope.
    pub scope: String,
    /// When it was made.
    #[schemars(with = "String")]
    pub created_at: Timestamp,
    /// When the value last changed.
    #[schemars(with = "Option<String>")]
    pub rotated_at: Option<Timestamp>,
    /// From when on nobody reads it.
    #[schemars(with = "Option<String>")]
    pub expires_at: Option<Timestamp>,
    /// Who made it.
    pub created_by: String,
    /// Whether plain reads are recorded.
    pub access_log_enabled: bool,
    /// By stage: `current`, `pending`, `previous`.
    pub versions: BTreeMap<String, VersionShown>,
    /// Retired and revoked versions, newest first.
    #[serde(default)]
    pub old_versions: Vec<VersionShown>,
    /// Its environment.
    pub environment: Option<String>,
    /// Its group.
    #[serde(default)]
    pub group: Option<String>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// `pinned` or `floating`.
    pub binding: String,
    /// Delivered but never redacted.
    pub plain: bool,
    /// What the person should know: short value, wide scope, waiting executions.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// One version.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct VersionShown {
    /// Its number, from 1.
    pub version: u64,
    /// `pending`, `current`, `previous`, `retired` or `revoked`.
    pub stage: String,
    /// From when on new executions get it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub valid_from: Option<Timestamp>,
    /// From when on new executions do not get it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub valid_until: Option<Timestamp>,
    /// When it was made.
    #[schemars(with = "String")]
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Whether its bytes are gone.
    #[serde(default)]
    pub destroyed: bool,
    /// Since when its provider takes it no more, or may not: a rotation's `finish` was run.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub withdrawn_at: Option<Timestamp>,
    /// Executions that are pinned to it.
    #[serde(default)]
    pub held_by: Vec<String>,
}

/// `secret rm`: removes a secret with all versions.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRm {
    /// `NAME` or `ENV/NAME`.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// Also while executions hold it or definitions name it.
    #[serde(default)]
    pub force: bool,
}

impl Request for SecretRm {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// A random value, made by the daemon.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Length in characters (16 to 4096).
    pub length: u32,
    /// `alphanumeric` (default), `hex`, `base64`.
    #[serde(default)]
    pub alphabet: Option<String>,
}

/// `secret rotate`: stages a pending version.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRotate {
    /// `NAME` or `ENV/NAME`.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// The new bytes; or `generate`.
    #[serde(default)]
    pub value: Option<Value>,
    /// Let the daemon make a value.
    #[serde(default)]
    pub generate: Option<Generate>,
    /// From then on new executions get it; none: now.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub valid_from: Option<Timestamp>,
    /// From then on new executions do not get it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub valid_until: Option<Timestamp>,
    /// Promote after this time whoever still holds the old one; none: as configured.
    #[serde(default)]
    pub drain: Option<Period>,
}

impl Request for SecretRotate {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// `secret revoke`: from the answer on nobody reads the revoked versions.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRevoke {
    /// `NAME`, `ENV/NAME`, or a group.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// Why; goes into every record.
    pub reason: String,
    /// A number, `pending`, `current` or `all`; none: every version but the replacement.
    #[serde(default)]
    pub version: Option<String>,
    /// The value from now on.
    #[serde(default)]
    pub replacement: Option<Value>,
    /// A group's values from now on: all members.
    #[serde(default)]
    pub replacement_members: BTreeMap<String, Value>,
    /// The name resolves to nothing from now on.
    #[serde(default)]
    pub no_replacement: bool,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

impl Request for SecretRevoke {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// What a revoke did, or would do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Revoked {
    /// What was revoked: name and version numbers.
    pub versions: BTreeMap<String, Vec<u64>>,
    /// The replacement's number, by name.
    pub replaced_by: BTreeMap<String, u64>,
    /// Executions that had obtained it.
    pub ended: Vec<EndedExecution>,
    /// What could not be ended, and why.
    #[serde(default)]
    pub survivors: Vec<String>,
    /// Executions that merely had permission: they go on, with the replacement or without.
    #[serde(default)]
    pub goes_on: Vec<String>,
    /// What nobody can vouch for.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Exposures outside every execution, which only people can undo.
    #[serde(default)]
    pub outside: Vec<Exposure>,
    /// Exposures to executions that are over, and of which no process is found.
    #[serde(default)]
    pub over: Vec<Exposure>,
    /// Other secrets with the same bytes.
    #[serde(default)]
    pub same_value: Vec<String>,
    /// Whether everything that had it is gone.
    pub complete: bool,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// From the request to the moment from which no read got the old value, in microseconds.
    #[serde(default)]
    pub first_denial_us: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// `secret destroy`: removes the bytes of one version that nobody holds.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretDestroy {
    /// `NAME` or `ENV/NAME`.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// The version's number.
    pub version: u64,
}

impl Request for SecretDestroy {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// Who obtained a version, and how.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Exposure {
    /// The secret: name with environment.
    pub key: String,
    /// Its scope.
    pub scope: String,
    /// The version's number.
    pub version: u64,
    /// `file`, `env`, `container`, `ssh`, `rotation` or `reveal`.
    pub via: String,
    /// The execution, unless it was a person.
    pub execution: Option<String>,
    /// The agent, unless it was a person.
    pub agent: Option<String>,
    /// The user.
    pub user: String,
    /// When first.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Whether that execution still runs.
    pub active: bool,
}

/// The answer to `secret exposures`, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ExposureList {
    /// All of them.
    pub exposures: Vec<Exposure>,
}
