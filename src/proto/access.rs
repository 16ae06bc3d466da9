//! Who gets what and why, and why not, on the wire.
#![forbid(unsafe_code)]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject};

/// `access`: agents by secrets.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Only of this chain.
    #[serde(default)]
    pub chain: Option<String>,
    /// Only this agent.
    #[serde(default)]
    pub agent: Option<String>,
    /// Only in this environment; `-` is none. None: in each that the definition names.
    #[serde(default)]
    pub environment: Option<String>,
    /// Who gets this secret.
    #[serde(default)]
    pub secret: Option<String>,
    /// Why this name resolves as it does, or not.
    #[serde(default)]
    pub explain: Option<String>,
}

impl Request for Access {
    fn subject(&self) -> Subject<'_> {
        match &self.chain {
            Some(chain) => {
                Subject::Place { chain: Some(chain), environment: self.environment.as_deref() }
            }
            None => Subject::Inside,
        }
    }
}

/// One cell: what a name of one agent resolves to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AccessRow {
    /// The chain.
    pub chain: String,
    /// The agent.
    pub agent: String,
    /// The environment it was resolved in.
    pub environment: Option<String>,
    /// The reference as written.
    pub reference: String,
    /// The file's name in the mount.
    pub file_name: String,
    /// The secret, name with environment; none: resolves to nothing.
    pub secret: Option<String>,
    /// Its scope.
    pub scope: Option<String>,
    /// The version that a new execution gets.
    pub version: Option<u64>,
    /// `files`, `env` or `file-env`.
    pub deliver: String,
    /// Why that one.
    pub why: String,
}

/// A candidate of a resolution.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// The secret, name with environment.
    pub secret: String,
    /// Its scope.
    pub scope: String,
    /// Whether it was taken.
    pub taken: bool,
    /// Why, or why not.
    pub why: String,
}

/// How one name was resolved.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The agent.
    pub agent: String,
    /// The reference.
    pub reference: String,
    /// The environment.
    pub environment: Option<String>,
    /// Every candidate, in the order of the search.
    pub candidates: Vec<Candidate>,
    /// The command that would fix it, where it resolves to nothing.
    pub remedy: Option<String>,
}

/// The answer to `access`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AccessShown {
    /// In order of chain, agent, environment, name.
    pub rows: Vec<AccessRow>,
    /// For `explain`.
    #[serde(default)]
    pub explanations: Vec<Explanation>,
}

/// `explain`: why a process cannot see a name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// The process, in the daemon's pid namespace.
    pub pid: i32,
    /// The name; none: who the process is.
    #[serde(default)]
    pub name: Option<String>,
}

impl Request for Explain {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// One step of an explanation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// What was looked at: `thread`, `cgroup`, `execution`, `reference`, `scope`, ...
    pub what: String,
    /// What was found.
    pub found: String,
    /// Whether it stands in the way.
    pub ok: bool,
}

/// Why a process cannot see a name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// The process.
    pub pid: i32,
    /// The name.
    pub name: Option<String>,
    /// The execution it belongs to.
    pub execution: Option<String>,
    /// The chain.
    pub chain: Option<String>,
    /// The agent.
    pub agent: Option<String>,
    /// Whether it sees the name (or is anybody, without a name).
    pub visible: bool,
    /// In the order in which a request is judged.
    pub findings: Vec<Finding>,
    /// Its last refusals.
    #[serde(default)]
    pub refusals: Vec<String>,
    /// One next step.
    pub remedy: Option<String>,
}

/// `GET /v1/self`: who the peer is to the daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Self_ {
    /// Explain this name to the agent itself.
    #[serde(default)]
    pub name: Option<String>,
}

impl Request for Self_ {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// Who the peer is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SelfShown {
    /// Its uid.
    pub uid: u32,
    /// Names of its roles.
    pub roles: Vec<String>,
    /// What they allow.
    pub may: Vec<String>,
    /// Its execution, if it is an agent.
    pub execution: Option<String>,
    /// Its chain.
    pub chain: Option<String>,
    /// Its agent.
    pub agent: Option<String>,
    /// Its environment.
    pub environment: Option<String>,
    /// What it may launch.
    #[serde(default)]
    pub may_launch: Vec<String>,
    /// For `name`.
    #[serde(default)]
    pub explained: Option<Explained>,
}
