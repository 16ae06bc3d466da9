//! The event store on the wire: which folders there are, and removing old ones.
#![forbid(unsafe_code)]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject};
use crate::config::Period;

/// `events list`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsList {
    /// Only of this chain.
    #[serde(default)]
    pub chain: Option<String>,
    /// Only in this environment; `-` is none.
    #[serde(default)]
    pub environment: Option<String>,
}

impl Request for EventsList {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// One folder of the event store.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EventsFolder {
    /// The chain.
    pub chain: String,
    /// The environment.
    pub environment: Option<String>,
    /// The execution; none: all of the chain and environment share it.
    pub execution: Option<String>,
    /// Its directory, absolute.
    pub path: String,
    /// Whether it is there already: it is made by the start of an execution, or its first agent.
    pub exists: bool,
    /// `live` or `ended`.
    pub state: String,
    /// How many files it holds.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When something in it changed last.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub changed_at: Option<Timestamp>,
}

/// The answer to `events list`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EventsListed {
    /// The event store's directory.
    pub dir: String,
    /// By chain and environment, the newest first.
    pub folders: Vec<EventsFolder>,
}

/// `events path`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsPath {
    /// The execution.
    pub execution: String,
    /// Its chain, where several had executions of that id.
    #[serde(default)]
    pub chain: Option<String>,
    /// Its environment, where it had that id in several; `-` is none.
    #[serde(default)]
    pub environment: Option<String>,
}

impl Request for EventsPath {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// `events prune`: of those that ended; with both limits a folder goes that meets both.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsPrune {
    /// Folders go in which nothing has changed for so long.
    #[serde(default)]
    pub older_than: Option<Period>,
    /// Of those that have ended, so many of each chain and environment stay: the newest.
    #[serde(default)]
    pub keep: Option<u64>,
    /// Only of this chain.
    #[serde(default)]
    pub chain: Option<String>,
    /// Only in this environment; `-` is none.
    #[serde(default)]
    pub environment: Option<String>,
    /// Says what would go, and removes nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl Request for EventsPrune {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// What `events prune` removed, or would remove.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EventsPruned {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// What went; of a shared folder its old files.
    pub folders: Vec<EventsFolder>,
    /// Files that went.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What could not be removed, and why.
    #[serde(default)]
    pub left: Vec<String>,
}
