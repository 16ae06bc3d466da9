//! Executions on the wire.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chain::Unresolved;
use super::{Request, Subject};
use crate::config::Period;

/// `execution start`; the same id again answers with the same execution.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionStart {
    /// The chain.
    pub chain: String,
    /// The client's own id; none: the daemon makes one.
    #[serde(default)]
    pub id: Option<String>,
    /// The environment.
    #[serde(default)]
    pub environment: Option<String>,
    /// Ends with this process.
    #[serde(default)]
    pub owner_pid: Option<i32>,
    /// Ends after this time.
    #[serde(default)]
    pub deadline: Option<Period>,
    /// For people and filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where its agents run: `host`, `docker:NAME`, `ssh:HOST`.
    #[serde(default)]
    pub workspace: Option<String>,
}

impl Request for ExecutionStart {
    fn subject(&self) -> Subject<'_> {
        Subject::Place {
            chain: Some(&self.chain),
            environment: Some(self.environment.as_deref().unwrap_or("-")),
        }
    }
}

/// `execution list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionList {
    /// Only of this chain.
    #[serde(default)]
    pub chain: Option<String>,
    /// Only in this environment; `-` is none.
    #[serde(default)]
    pub environment: Option<String>,
    /// Ended ones too.
    #[serde(default)]
    pub all: bool,
}

impl Request for ExecutionList {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// One execution, by id.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionName {
    /// Its id.
    pub id: String,
}

impl Request for ExecutionName {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// `execution extend`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionExtend {
    /// Its id.
    pub id: String,
    /// The new deadline, counted from now.
    pub deadline: Period,
}

impl Request for ExecutionExtend {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// `execution end`; ending an ended one answers with it again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionEnd {
    /// Its id.
    pub id: String,
    /// Goes into the record.
    #[serde(default)]
    pub reason: Option<String>,
    /// How long its processes get between TERM and KILL; none: 5 s.
    #[serde(default)]
    pub grace: Option<Period>,
}

impl Request for ExecutionEnd {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// An execution.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionShown {
    /// Its id.
    pub id: String,
    /// The chain.
    pub chain: String,
    /// The environment.
    pub environment: Option<String>,
    /// Who started it.
    pub user: String,
    /// Where its agents run.
    pub workspace: String,
    /// `active` or `ended`.
    pub state: String,
    /// When it started.
    #[schemars(with = "String")]
    pub started_at: Timestamp,
    /// When it ends by itself.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub deadline: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub ended_at: Option<Timestamp>,
    /// Why: `ended`, `owner_died`, `deadline`, `revoked:NAME`, `main_process_ended`.
    #[serde(default)]
    pub ended_reason: Option<String>,
    /// Whether this request made it.
    #[serde(default)]
    pub created: bool,
    /// For people and filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Agents that were launched in it.
    #[serde(default)]
    pub agents: Vec<AgentShown>,
    /// Its pins.
    #[serde(default)]
    pub pins: Vec<PinShown>,
    /// References of all agents that resolve to nothing.
    #[serde(default)]
    pub unresolved: Vec<Unresolved>,
    /// Processes that could not be ended.
    #[serde(default)]
    pub survivors: Vec<String>,
}

/// An agent of an execution.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AgentShown {
    /// Its name.
    pub agent: String,
    /// How many processes it has.
    pub processes: u64,
    /// Its uid.
    pub uid: u32,
    /// How its processes are known: `cgroup`, `tree`, `container`, `remote`.
    pub attestor: String,
    /// Its cgroup.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// How far it is isolated: `full`, or `partial` and what is missing; none: not at all.
    #[serde(default)]
    pub isolation: Option<String>,
}

/// A version that an execution holds.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PinShown {
    /// The secret: name with environment.
    pub secret: String,
    /// Its scope.
    pub scope: String,
    /// The version's number.
    pub version: u64,
    /// Its stage now.
    pub stage: String,
}

/// The answer to `execution list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ExecutionListed {
    /// Newest first.
    pub executions: Vec<ExecutionShown>,
}

/// An execution that a revoke ended, or would end.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EndedExecution {
    /// Its id.
    pub execution: String,
    /// The chain.
    pub chain: String,
    /// Agents that had obtained the value.
    pub agents: Vec<String>,
    /// How many processes were ended.
    pub processes: u64,
    /// By which channels it had obtained the value.
    #[serde(default)]
    pub via: Vec<String>,
    /// Since when.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub since: Option<Timestamp>,
}
