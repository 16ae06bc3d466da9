//! Chain definitions on the wire.
#![forbid(unsafe_code)]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject, Value};

/// `chain apply`: a definition is a grant.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChainApply {
    /// The definition's text, so that errors can name line and column. Handled like a value, since
    /// somebody may have written one into it.
    pub definition: Value,
    /// What it came from, for messages.
    #[serde(default)]
    pub source: Option<String>,
    /// Refuse every unknown key, not only near misses.
    #[serde(default)]
    pub strict: bool,
    /// Apply also where access widens.
    #[serde(default)]
    pub yes: bool,
}

impl Request for ChainApply {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// `chain check`: what `apply` would say, without applying.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChainCheck {
    /// The definition's text.
    pub definition: Value,
    /// What it came from, for messages.
    #[serde(default)]
    pub source: Option<String>,
    /// Refuse every unknown key, not only near misses.
    #[serde(default)]
    pub strict: bool,
    /// Resolve in this environment only; none: in each of the definition's.
    #[serde(default)]
    pub environment: Option<String>,
}

impl Request for ChainCheck {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// Access that comes or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GrantChange {
    /// The chain.
    pub chain: String,
    /// The agent.
    pub agent: String,
    /// The environment.
    pub environment: Option<String>,
    /// The secret: name with environment.
    pub secret: String,
    /// `added` or `removed`.
    pub change: String,
    /// Scope or delivery, where that is what changed.
    #[serde(default)]
    pub detail: Option<String>,
}

/// A reference that resolves to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unresolved {
    /// The agent.
    pub agent: String,
    /// The reference as written.
    pub reference: String,
    /// The environment.
    pub environment: Option<String>,
    /// What was searched, and why each candidate did not fit.
    pub searched: Vec<String>,
    /// The command that would fix it.
    pub remedy: String,
}

/// What `chain apply` did.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChainApplied {
    /// The chain.
    pub chain: String,
    /// Digest of the definition.
    pub digest: String,
    /// Whether there was none before.
    pub created: bool,
    /// Access that came or went.
    pub changes: Vec<GrantChange>,
    /// Whether access widened.
    pub widens: bool,
    /// References that resolve to nothing now.
    #[serde(default)]
    pub unresolved: Vec<Unresolved>,
    /// What the person should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What `chain check` found.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChainChecked {
    /// The chain.
    pub chain: String,
    /// Digest of the definition.
    pub digest: String,
    /// Whether everything resolves.
    pub ok: bool,
    /// Access that would come or go.
    pub changes: Vec<GrantChange>,
    /// Whether access would widen.
    pub widens: bool,
    /// References that resolve to nothing.
    pub unresolved: Vec<Unresolved>,
    /// What the person should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// `chain list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChainList {}

impl Request for ChainList {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// A line of `chain list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChainSummary {
    /// The chain.
    pub chain: String,
    /// Names of its agents.
    pub agents: Vec<String>,
    /// When it was applied last.
    #[schemars(with = "String")]
    pub applied_at: Timestamp,
    /// By whom.
    pub applied_by: String,
    /// Executions that run.
    pub active: u64,
}

/// The answer to `chain list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChainListed {
    /// In order of name.
    pub chains: Vec<ChainSummary>,
}

/// One chain, by name.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChainName {
    /// Its name.
    pub chain: String,
    /// `rm`: also while executions run.
    #[serde(default)]
    pub force: bool,
}

impl Request for ChainName {
    fn subject(&self) -> Subject<'_> {
        Subject::Place { chain: Some(&self.chain), environment: None }
    }
}

/// A chain with its definition.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChainShown {
    /// The chain.
    pub chain: String,
    /// Digest of the definition.
    pub digest: String,
    /// When it was applied last.
    #[schemars(with = "String")]
    pub applied_at: Timestamp,
    /// By whom.
    pub applied_by: String,
    /// What was read of the definition.
    pub definition: serde_json::Value,
    /// Executions that run.
    pub active: u64,
}
