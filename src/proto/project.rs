//! Projects on the wire: which chains a project's secrets admit.
#![forbid(unsafe_code)]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject};

/// `project set`: makes a project, or replaces its list of chains.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectSet {
    /// Its name.
    pub name: String,
    /// The chains that its secrets admit.
    pub chains_allowed: Vec<String>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
}

impl Request for ProjectSet {}

/// `project add` and `project remove`: chains that a project's list gains or loses.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectChains {
    /// The project's name.
    pub name: String,
    /// The chains.
    pub chains: Vec<String>,
}

impl Request for ProjectChains {}

/// One project, by name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectName {
    /// Its name.
    pub name: String,
    /// `rm`: also while secrets have its scope.
    #[serde(default)]
    pub force: bool,
}

impl Request for ProjectName {}

/// `project list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectList {}

impl Request for ProjectList {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// A project.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ProjectShown {
    /// Its name.
    pub project: String,
    /// The chains that its secrets admit.
    pub chains_allowed: Vec<String>,
    /// How many secrets have its scope.
    pub secrets: u64,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// Access that came or went.
    #[serde(default)]
    pub changes: Vec<super::GrantChange>,
}

/// The answer to `project list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ProjectListed {
    /// In order of name.
    pub projects: Vec<ProjectShown>,
}
