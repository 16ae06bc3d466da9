//! Launching agents, attaching processes and tickets on the wire.
//!
//! Invariant: no process is named by a bare number unless it is a stopped child of the peer; else
//! it is the peer itself, by its pidfd.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject, Value};
use crate::config::Period;

/// How the first process of an agent comes to be registered before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// A later `POST /v1/agents/attach` names a stopped child, or the peer itself.
    Attach,
    /// The starter clones straight into the cgroup that the answer names.
    Cgroup,
    /// The daemon moves the waiting, single-threaded peer of this connection.
    MovePeer,
}

/// `POST /v1/agents`: registers an agent of a (new or existing) execution.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentLaunch {
    /// The chain; none with `secrets`: the implicit chain `adhoc`.
    #[serde(default)]
    pub chain: Option<String>,
    /// The agent; none with `secrets`.
    #[serde(default)]
    pub agent: Option<String>,
    /// The environment; none: the execution's.
    #[serde(default)]
    pub environment: Option<String>,
    /// An existing execution; none: one that ends with the agent's main process.
    #[serde(default)]
    pub execution: Option<String>,
    /// References for one person without a definition.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// `files`, `env` or `file-env`; none: as defined, and `files` and `env` for `secrets`.
    #[serde(default)]
    pub deliver: Option<String>,
    /// Where it runs: `host` (default), `docker:NAME`, `ssh:HOST`.
    #[serde(default)]
    pub workspace: Option<String>,
    /// Where the agent wants to see its secrets; none: `/run/secrets`.
    #[serde(default)]
    pub secrets_path: Option<String>,
    /// How its first process is registered.
    pub how: How,
    /// The user it runs as, by name or number; none: the peer's.
    #[serde(default)]
    pub as_user: Option<String>,
    /// The executable, for the record; never arguments.
    #[serde(default)]
    pub exe: Option<String>,
    /// Processes may outlive the main process.
    #[serde(default)]
    pub keep_background: bool,
    /// What the starter isolates the agent by; none: nothing.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// The main process is this child of the peer (`attach` in one step).
    #[serde(default)]
    pub pid: Option<i32>,
    /// A deadline for an implicit execution.
    #[serde(default)]
    pub deadline: Option<Period>,
    /// Labels for an implicit execution.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The launch's id, 128 random bits as 32 hex digits; none: the daemon chooses. Who chooses it can
    /// end a launch whose answer did not come, and launch anew.
    #[serde(default)]
    pub launch: Option<String>,
}

impl Request for AgentLaunch {
    fn subject(&self) -> Subject<'_> {
        if self.execution.is_some() && self.chain.is_none() {
            return Subject::Inside;
        }
        Subject::Place {
            chain: Some(self.chain.as_deref().unwrap_or("adhoc")),
            environment: match (&self.environment, &self.execution) {
                (Some(environment), _) => Some(environment),
                (None, Some(_)) => None,
                (None, None) => Some("-"),
            },
        }
    }
}

/// How far something holds on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Completely.
    Full,
    /// With exceptions that are said.
    Partial,
    /// Not at all.
    None,
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::None => "none",
        })
    }
}

/// How far an agent is isolated from others of its user, as its starter found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Isolation {
    /// `full`: namespaces, its own `/proc`, Landlock, the vault out of sight. `partial`: but for `why`.
    pub holds: Hold,
    /// What is missing.
    #[serde(default)]
    pub why: Option<String>,
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.why {
            None => self.holds.fmt(f),
            Some(why) => write!(f, "{}: {why}", self.holds),
        }
    }
}

/// What a starter needs to start the agent.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct AgentLaunched {
    /// The execution.
    pub execution: String,
    /// The chain.
    pub chain: String,
    /// The agent.
    pub agent: String,
    /// The environment.
    pub environment: Option<String>,
    /// Names this launch in `attach` and `end`.
    pub launch: String,
    /// The daemon's mount.
    pub mount: String,
    /// The principal's directory inside the mount, absolute.
    pub principal_dir: String,
    /// Where the agent is to see it.
    pub secrets_path: String,
    /// Whether the starter should bind `principal_dir` there in a mount namespace of its own.
    pub bind: bool,
    /// The uid it runs as.
    pub uid: u32,
    /// Where the starter may clone into.
    #[serde(default)]
    pub cgroup_dir: Option<String>,
    /// How its processes are known: `cgroup` or `tree`.
    pub attestor: String,
    /// Variables without values of secrets.
    pub env: BTreeMap<String, String>,
    /// Variables with values of secrets.
    #[serde(default)]
    pub secret_env: BTreeMap<String, Value>,
    /// Whether what it leaves is searched at its end: the starter should wait for that.
    #[serde(default)]
    pub outputs: bool,
    /// Whether it has failed where it is not known that there is no secret in it.
    #[serde(default)]
    pub outputs_must_be_clean: bool,
    /// Names of the files it sees.
    #[serde(default)]
    pub files: Vec<String>,
    /// How far its identity holds.
    pub identity: Hold,
    /// When the execution ends by itself.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub deadline: Option<Timestamp>,
    /// What the person should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// `POST /v1/agents/attach`: the peer of this connection, or a stopped child of it, becomes the
/// agent's process.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentAttach {
    /// The launch.
    pub launch: String,
    /// A stopped child of the peer; none: the peer itself.
    #[serde(default)]
    pub pid: Option<i32>,
}

impl Request for AgentAttach {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// What was attached.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AgentAttached {
    /// The execution.
    pub execution: String,
    /// The agent.
    pub agent: String,
    /// The process.
    pub pid: i32,
    /// How its processes are known.
    pub attestor: String,
    /// What the person should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// `POST /v1/agents/end`: the agent's main process has ended; what is left of it is ended too.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentEnd {
    /// The launch.
    pub launch: String,
    /// Exit status of the main process, 128+N for a signal.
    #[serde(default)]
    pub status: Option<i32>,
    /// Leave other processes of the agent alone.
    #[serde(default)]
    pub keep_background: bool,
}

impl Request for AgentEnd {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// What is left of an ended agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct AgentEnded {
    /// Processes that could not be ended.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Secrets in what it left.
    #[serde(default)]
    pub findings: Vec<OutputFinding>,
    /// What it left and could not be searched, and why.
    #[serde(default)]
    pub unsearched: Vec<String>,
    /// Whether its definition makes that a failure.
    #[serde(default)]
    pub failed: bool,
}

/// A secret in what an agent left.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct OutputFinding {
    /// The file, as the definition names it.
    pub path: String,
    /// The secret's name, or a rule's id; none for a value of others.
    pub name: Option<String>,
    /// How often.
    pub count: u64,
}

/// `POST /v1/tickets`: a launch that a process of another uid redeems once, without a role.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketCreate {
    /// The chain.
    pub chain: String,
    /// The agent.
    pub agent: String,
    /// The environment; none: the execution's.
    #[serde(default)]
    pub environment: Option<String>,
    /// An existing execution; none: one that ends with the agent.
    #[serde(default)]
    pub execution: Option<String>,
    /// `files`, `env` or `file-env`.
    #[serde(default)]
    pub deliver: Option<String>,
    /// Who may redeem it: user by name or number; none: the peer's.
    #[serde(default)]
    pub as_user: Option<String>,
    /// How long it is good; none: 5 minutes.
    #[serde(default)]
    pub ttl: Option<Period>,
    /// How often it can be redeemed; none: once.
    #[serde(default)]
    pub uses: Option<u32>,
}

impl Request for TicketCreate {
    fn subject(&self) -> Subject<'_> {
        Subject::Place {
            chain: Some(&self.chain),
            environment: match (&self.environment, &self.execution) {
                (Some(environment), _) => Some(environment),
                (None, Some(_)) => None,
                (None, None) => Some("-"),
            },
        }
    }
}

/// A ticket; whoever holds it and has the uid may redeem it.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct TicketCreated {
    /// The ticket's text, to be handled like a value.
    pub ticket: Value,
    /// When it stops being good.
    #[schemars(with = "String")]
    pub expires_at: Timestamp,
    /// The execution, where there is one already.
    #[serde(default)]
    pub execution: Option<String>,
}

/// `POST /v1/tickets/redeem`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketRedeem {
    /// The ticket's text.
    pub ticket: Value,
    /// How the first process is registered.
    pub how: How,
    /// A stopped child of the peer, with `attach`.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Where the agent wants to see its secrets.
    #[serde(default)]
    pub secrets_path: Option<String>,
    /// The executable, for the record.
    #[serde(default)]
    pub exe: Option<String>,
    /// Processes may outlive the main process.
    #[serde(default)]
    pub keep_background: bool,
    /// What the starter isolates the agent by; none: nothing.
    #[serde(default)]
    pub isolation: Option<Isolation>,
}

impl Request for TicketRedeem {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}
