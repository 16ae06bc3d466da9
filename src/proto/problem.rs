//! What went wrong and what to do, as problem details (RFC 9457).
//!
//! Invariant: `code` is stable and decides status, title and exit status; `detail` and `hint` are
//! for people and hold names, ids, paths and lengths, never values.
#![forbid(unsafe_code)]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chain::{GrantChange, Unresolved};

/// The kinds of problem: a stable word, an HTTP status and a title each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// A process of an execution asked for something that agents may not do.
    AgentRefused,
    /// Several things have that name.
    Ambiguous,
    /// A record could not be written, so nothing was done.
    AuditUnavailable,
    /// Not a request that is understood.
    BadRequest,
    /// Too much at once; try again.
    Busy,
    /// The operator must show the passphrase again first.
    ConfirmNeeded,
    /// The state of things does not admit it.
    Conflict,
    /// The disk is full.
    DiskFull,
    /// It is there already.
    Exists,
    /// It has ended or expired.
    Gone,
    /// A fault of the daemon.
    Internal,
    /// A value or name is not acceptable.
    Invalid,
    /// The vault is locked.
    Locked,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// No role of the peer allows it.
    NoRole,
    /// There is no such thing.
    NotFound,
    /// The agent's definition wants it isolated.
    NotIsolated,
    /// The vault file is older than the audit log knows.
    RollbackRefused,
    /// The request did not arrive in time.
    Timeout,
    /// The body is too long.
    TooLarge,
    /// The daemon is starting, stopping or degraded.
    Unavailable,
    /// Wrong passphrase, wrong key, or an altered slot: deliberately not told apart.
    UnlockFailed,
    /// A reference resolves to nothing.
    Unresolved,
    /// This host cannot do it.
    Unsupported,
    /// It would widen access and was not confirmed.
    Widens,
}

impl Code {
    /// All codes, for tables.
    pub const ALL: [Self; 25] = [
        Self::AgentRefused,
        Self::Ambiguous,
        Self::AuditUnavailable,
        Self::BadRequest,
        Self::Busy,
        Self::ConfirmNeeded,
        Self::Conflict,
        Self::DiskFull,
        Self::Exists,
        Self::Gone,
        Self::Internal,
        Self::Invalid,
        Self::Locked,
        Self::MethodNotAllowed,
        Self::NoRole,
        Self::NotFound,
        Self::NotIsolated,
        Self::RollbackRefused,
        Self::Timeout,
        Self::TooLarge,
        Self::Unavailable,
        Self::UnlockFailed,
        Self::Unresolved,
        Self::Unsupported,
        Self::Widens,
    ];

    /// The HTTP status (RFC 9110; 423 and 507 of RFC 4918, 429 of RFC 6585).
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// The stable word.
    pub fn word(self) -> &'static str {
        self.row().1
    }

    /// The title that goes with it.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::AgentRefused => (403, "agent_refused", "agents have no role"),
            Self::Ambiguous => (409, "ambiguous", "several things have that name"),
            Self::AuditUnavailable => (503, "audit_unavailable", "no record can be written"),
            Self::BadRequest => (400, "bad_request", "request not understood"),
            Self::Busy => (503, "busy", "too much at once"),
            Self::ConfirmNeeded => (403, "confirm_needed", "passphrase needed again"),
            Self::Conflict => (409, "conflict", "not possible in this state"),
            Self::DiskFull => (507, "disk_full", "disk full"),
            Self::Exists => (409, "exists", "exists already"),
            Self::Gone => (410, "gone", "ended or expired"),
            Self::Internal => (500, "internal", "fault of the daemon"),
            Self::Invalid => (422, "invalid", "not acceptable"),
            Self::Locked => (423, "locked", "vault locked"),
            Self::MethodNotAllowed => (405, "method_not_allowed", "method not allowed"),
            Self::NoRole => (403, "no_role", "no role allows this"),
            Self::NotFound => (404, "not_found", "not found"),
            Self::NotIsolated => (409, "not_isolated", "isolation wanted"),
            Self::RollbackRefused => (409, "rollback_refused", "older vault file refused"),
            Self::Timeout => (408, "timeout", "not in time"),
            Self::TooLarge => (413, "too_large", "too long"),
            Self::Unavailable => (503, "unavailable", "daemon not available"),
            Self::UnlockFailed => (403, "unlock_failed", "vault could not be unlocked"),
            Self::Unresolved => (422, "unresolved", "references resolve to nothing"),
            Self::Unsupported => (501, "unsupported", "not possible on this host"),
            Self::Widens => (409, "widens", "access would widen"),
        }
    }
}

/// Problem details: what happened, and the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// `urn:strongroom:problem:` and the code.
    #[serde(rename = "type")]
    pub type_: String,
    /// The title that goes with the code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, in one sentence.
    pub detail: String,
    /// The next step, in one sentence or command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The stable word to match on.
    pub code: Code,
    /// What an ambiguous name could mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
    /// References that resolve to nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unresolved: Vec<Unresolved>,
    /// What access would change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<GrantChange>,
}

impl Problem {
    /// A problem of that kind; `detail` says what happened.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            type_: format!("urn:strongroom:problem:{}", code.word()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            hint: None,
            code,
            candidates: Vec::new(),
            unresolved: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// The same with the next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with what an ambiguous name could mean.
    #[must_use]
    pub fn with_candidates(mut self, candidates: Vec<String>) -> Self {
        self.candidates = candidates;
        self
    }

    /// The same with references that resolve to nothing.
    #[must_use]
    pub fn with_unresolved(mut self, unresolved: Vec<Unresolved>) -> Self {
        self.unresolved = unresolved;
        self
    }

    /// The same with what access would change.
    #[must_use]
    pub fn with_changes(mut self, changes: Vec<GrantChange>) -> Self {
        self.changes = changes;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_code_is_what_it_serialises_to_and_unique() {
        let mut words = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.word());
            assert!(words.insert(code.word()));
            assert!((400..600).contains(&code.status()));
        }
    }
}
