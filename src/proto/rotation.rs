//! Rotation, alerts and drills on the wire.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject, Value, place_of_secret};
use crate::config::Period;

/// `group rotate`: stages a pending version of every member, in one commit.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupRotate {
    /// `GROUP` or `ENV/GROUP`.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// All members and their new values.
    pub members: BTreeMap<String, Value>,
    /// From then on new executions get them; none: now.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub valid_from: Option<Timestamp>,
    /// From then on new executions do not get them.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub valid_until: Option<Timestamp>,
    /// Promote after this time whoever still holds the old ones; none: as configured.
    #[serde(default)]
    pub drain: Option<Period>,
}

impl Request for GroupRotate {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// `secret promote`: makes the pending version current.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretPromote {
    /// `NAME`, `ENV/NAME`, or a group.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// Also while executions hold the current version.
    #[serde(default)]
    pub force: bool,
}

impl Request for SecretPromote {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// `secret rollback`: gives up the pending version, or brings the previous one back.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRollback {
    /// `NAME`, `ENV/NAME`, or a group.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// Also a version that was removed at its provider.
    #[serde(default)]
    pub force: bool,
}

impl Request for SecretRollback {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// Where a secret or group stands after a rotation, promotion or rollback.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Rotated {
    /// The secret or group.
    pub name: String,
    /// Pending version by name.
    pub pending: BTreeMap<String, u64>,
    /// Current version by name.
    pub current: BTreeMap<String, u64>,
    /// From when on new executions get the pending one, where that is to come.
    #[schemars(with = "Option<String>")]
    pub valid_from: Option<Timestamp>,
    /// Executions that hold the current version.
    #[serde(default)]
    pub waits_for: Vec<String>,
    /// When the pending version is promoted anyway.
    #[schemars(with = "Option<String>")]
    pub drain_at: Option<Timestamp>,
    /// What the person should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// `rotation apply`: policies, all or none of them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationApply {
    /// The text: `{"rotation_policy": {"NAME": {...}}}`.
    pub text: String,
    /// Only say what would be.
    #[serde(default)]
    pub dry_run: bool,
}

impl Request for RotationApply {}

/// `rotation rm`: takes a policy away.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationRm {
    /// `NAME`, `ENV/NAME`, or a group.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
}

impl Request for RotationRm {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// `rotation list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationList {}

impl Request for RotationList {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// A policy with what comes of it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PolicyShown {
    /// The secret or group.
    pub name: String,
    /// Its scope.
    pub scope: String,
    /// From one rotation to the next.
    pub rotate_every: Period,
    /// How long before it is due the notice comes.
    pub notify_before: Period,
    /// Whether the daemon rotates by itself.
    pub auto_rotate: bool,
    /// By which chain.
    pub rotation_chain: Option<String>,
    /// When the value last changed.
    #[schemars(with = "String")]
    pub rotated_at: Timestamp,
    /// When it is due.
    #[schemars(with = "String")]
    pub due_at: Timestamp,
    /// `ok`, `soon`, `due`, `pending`, `failed`.
    pub state: String,
    /// Failures since the last success.
    pub failures: u32,
}

/// The answer to `rotation apply` and `rotation list`, the next due first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RotationListed {
    /// All policies that the caller may see.
    pub policies: Vec<PolicyShown>,
}

/// `rotation run`: runs the rotation chain now.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotationRun {
    /// `NAME`, `ENV/NAME`, or a group.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// The chain, where no policy names one.
    #[serde(default)]
    pub chain: Option<String>,
}

impl Request for RotationRun {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// A line of `rotation run`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RotationStep {
    /// `create`, `set`, `test`, or `done` at the end.
    pub step: String,
    /// `started`, `ok` or `failed`; `said`: its stderr is in `detail`, the redacted end of it.
    pub state: String,
    /// The token of this run.
    pub token: String,
    /// What went wrong, or what the person should know.
    #[serde(default)]
    pub detail: Option<String>,
}

/// The answer to `alert test`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AlertTested {
    /// One for each place.
    pub deliveries: Vec<AlertDelivery>,
}

/// Whether one place got the alert.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AlertDelivery {
    /// The place's name.
    pub name: String,
    /// Whether it got it.
    pub delivered: bool,
    /// Why not.
    #[serde(default)]
    pub failed: Option<String>,
}
