//! Groups on the wire.
//!
//! Invariant: the request that carries members' values derives neither `Debug` nor `Clone`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject, Value, place_of_secret};

/// `group set`: makes a group, or replaces its members in one commit.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupSet {
    /// `GROUP` or `ENV/GROUP`.
    pub name: String,
    /// Scope of all members; none: `org`.
    #[serde(default)]
    pub scope: Option<String>,
    /// Member names and their values.
    pub members: BTreeMap<String, Value>,
    /// Members that are delivered but never redacted.
    #[serde(default)]
    pub plain: Vec<String>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// Replace an existing group.
    #[serde(default)]
    pub replace: bool,
}

impl Request for GroupSet {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// One group, by name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupName {
    /// `GROUP` or `ENV/GROUP`.
    pub name: String,
    /// Needed where the name is ambiguous.
    #[serde(default)]
    pub scope: Option<String>,
    /// `rm`: also while executions hold a member or definitions name the group.
    #[serde(default)]
    pub force: bool,
}

impl Request for GroupName {
    fn subject(&self) -> Subject<'_> {
        place_of_secret(&self.name, self.scope.as_deref())
    }
}

/// `group list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupList {
    /// Exactly this environment; `-` is none.
    #[serde(default)]
    pub environment: Option<String>,
}

impl Request for GroupList {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// A member of a group.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GroupMember {
    /// Its name.
    pub key: String,
    /// Number of the current version.
    pub current: Option<u64>,
    /// Delivered but never redacted.
    pub plain: bool,
}

/// A group with its members.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GroupShown {
    /// Its name, without environment.
    pub group: String,
    /// Scope of all members.
    pub scope: String,
    /// Environment of all members.
    pub environment: Option<String>,
    /// In order of name.
    pub members: Vec<GroupMember>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// What the person should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The answer to `group list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GroupListed {
    /// In order of environment and name.
    pub groups: Vec<GroupShown>,
}
