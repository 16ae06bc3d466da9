//! The types of the control interface: what clients send and what the daemon answers, as JSON.
//!
//! Invariant: names are plain text here and parsed by whoever decides; value bytes are [`Value`],
//! which neither prints nor serialises outside [`wire`]. Unknown keys of a request are errors.
//! Danger: a value that reaches a log because a request derived `Debug`.
#![forbid(unsafe_code)]

mod access;
mod agent;
mod allow;
mod audit;
mod chain;
mod daemon;
mod events;
mod execution;
mod group;
mod import;
mod keys;
mod problem;
mod project;
mod rotation;
mod secret;
pub mod stream;
mod value;
pub mod wire;

pub use access::{
    Access, AccessRow, AccessShown, Candidate, Explain, Explained, Explanation, Finding, Self_,
    SelfShown,
};
pub use agent::{
    AgentAttach, AgentAttached, AgentEnd, AgentEnded, AgentLaunch, AgentLaunched, Hold, How,
    Isolation, OutputFinding, TicketCreate, TicketCreated, TicketRedeem,
};
pub use allow::{Allow, AllowMade};
pub use audit::{
    AuditHead, AuditPrune, AuditPruned, AuditQuery, AuditVerified, AuditVerify, FirstBad, Watch,
    WatchEvent,
};
pub use chain::{
    ChainApplied, ChainApply, ChainCheck, ChainChecked, ChainList, ChainListed, ChainName,
    ChainShown, ChainSummary, GrantChange, Unresolved,
};
pub use daemon::{
    Check, Confirm, Doctor, Done, Empty, EventsSearch, Health, Lock, Promise, State, Status,
    Unlock, Unlocked, VaultStatus, Waiting,
};
pub use events::{EventsFolder, EventsList, EventsListed, EventsPath, EventsPrune, EventsPruned};
pub use execution::{
    AgentShown, EndedExecution, ExecutionEnd, ExecutionExtend, ExecutionList, ExecutionListed,
    ExecutionName, ExecutionShown, ExecutionStart, PinShown,
};
pub use group::{GroupList, GroupListed, GroupMember, GroupName, GroupSet, GroupShown};
pub use import::{Import, ImportFormat, Imported, ImportedItem, OnConflict};
pub use keys::{
    BackupCreate, BackupCreated, BackupRestore, BackupRestored, BackupVerified, BackupVerify, Blob,
    KeyAdd, KeyAdded, KeyList, KeyListed, KeyMethod, KeyRekey, KeyRm, Slot,
};
pub use problem::{Code, Problem};
pub use project::{
    ProjectChains, ProjectList, ProjectListed, ProjectName, ProjectSet, ProjectShown,
};
pub use rotation::{
    AlertDelivery, AlertTested, GroupRotate, PolicyShown, Rotated, RotationApply, RotationList,
    RotationListed, RotationRm, RotationRun, RotationStep, SecretPromote, SecretRollback,
};
pub use secret::{
    Exposure, ExposureList, Generate, Revoked, SecretDestroy, SecretEdit, SecretGet, SecretList,
    SecretListed, SecretName, SecretRevealed, SecretRevoke, SecretRm, SecretRotate, SecretSet,
    SecretShown, SecretSummary, VersionShown,
};
pub use stream::Redact;
pub use value::Value;

/// What a request is about, as far as the request itself says so: what a role that is limited to
/// chains or environments is judged by before the verb runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The request is about one place.
    Place {
        /// The chain, where the request names one.
        chain: Option<&'a str>,
        /// The environment, where the request names one; `Some("-")` is none.
        environment: Option<&'a str>,
    },
    /// About the whole daemon: a limited role does not suffice.
    Host,
    /// The request names an id, or lists: the verb itself must ask [`crate::control::Caller::may`]
    /// for every item.
    Inside,
}

/// A request: what it is about.
pub trait Request {
    /// What a limited role is judged by; [`Subject::Host`] unless the request knows better.
    fn subject(&self) -> Subject<'_> {
        Subject::Host
    }
}

/// The place of a secret by its full name and scope.
pub(crate) fn place_of_secret<'a>(name: &'a str, scope: Option<&'a str>) -> Subject<'a> {
    let environment = name.split_once('/').map_or("-", |(environment, _)| environment);
    let chain = scope.and_then(|s| {
        s.strip_prefix("chain:")
            .or_else(|| s.strip_prefix("agent:").and_then(|a| a.rsplit_once('/')).map(|(c, _)| c))
    });
    Subject::Place { chain, environment: Some(environment) }
}
