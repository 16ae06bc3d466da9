//! One line of the log: a JSON object whose first fields never change their order.
//!
//! Danger: text that others choose (names, paths of programs) must not break the line; it is escaped
//! and bounded.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::clock::Timestamp;

/// The longest text of one field, in bytes; longer ones are cut and marked.
const MAX_FIELD_BYTES: usize = 512;

/// What happened. The names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// An agent was launched.
    AgentStarted,
    /// An alert could not be delivered.
    AlertFailed,
    /// An alert was delivered.
    AlertSent,
    /// Files of the log were removed.
    AuditPruned,
    /// A backup was written.
    BackupCreated,
    /// A chain's definition was applied.
    ChainApplied,
    /// A chain's definition was removed.
    ChainRemoved,
    /// A signature that seals the log up to a record.
    Checkpoint,
    /// The daemon began to serve.
    DaemonStarted,
    /// The daemon stopped.
    DaemonStopped,
    /// A name with a secret in it was refused in an events directory.
    EventNameRefused,
    /// Secrets were kept out of an event file.
    EventRedacted,
    /// Event files of an execution that had ended were removed.
    EventsPruned,
    /// An execution ended.
    ExecutionEnded,
    /// An execution started.
    ExecutionStarted,
    /// A group was set.
    GroupSet,
    /// A key slot was added.
    KeyAdded,
    /// A key slot got a new master key.
    KeyRekeyed,
    /// A key slot was removed.
    KeyRemoved,
    /// Secrets were kept out of an agent's output, or out of a text that somebody gave.
    OutputRedacted,
    /// A secret was found in what an agent left, or it could not be searched.
    OutputFound,
    /// A rotation policy was applied, or removed.
    PolicyApplied,
    /// A project was set.
    ProjectSet,
    /// A backup was restored.
    Restored,
    /// A value was shown to a person.
    Revealed,
    /// A verb was refused for want of a role.
    RoleDenied,
    /// A rotation is due, or overdue.
    RotationDue,
    /// A rotation chain failed; the current version stays.
    RotationFailed,
    /// A rotation chain began.
    RotationStarted,
    /// A value was read.
    SecretAccessed,
    /// A read was refused.
    SecretDenied,
    /// The bytes of a version were destroyed.
    SecretDestroyed,
    /// A secret's metadata changed.
    SecretEdited,
    /// A secret's end has come.
    SecretExpired,
    /// A value left by another way than a file.
    SecretExposed,
    /// The pending version became current.
    SecretPromoted,
    /// An operator showed the passphrase again.
    OperatorConfirmed,
    /// A secret was removed.
    SecretRemoved,
    /// A version became unreadable.
    SecretRetired,
    /// Versions were revoked.
    SecretRevoked,
    /// The previous version came back, or a pending one was discarded.
    SecretRolledBack,
    /// A version was staged.
    SecretRotated,
    /// A value was stored.
    SecretSet,
    /// An attempt to unlock failed.
    UnlockFailed,
    /// The vault was locked.
    VaultLocked,
    /// The vault was unlocked.
    VaultUnlocked,
    /// A worker took over from one that died.
    WorkerRestarted,
}

impl Event {
    /// Whether its record may use the reserve of a full disk: what ends the reading of secrets, and
    /// what calls for help.
    pub fn is_vital(self) -> bool {
        matches!(
            self,
            Self::AlertFailed
                | Self::AlertSent
                | Self::DaemonStopped
                | Self::ExecutionEnded
                | Self::SecretRevoked
                | Self::VaultLocked
        )
    }

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::AgentStarted => "agent_started",
            Self::AlertFailed => "alert_failed",
            Self::AlertSent => "alert_sent",
            Self::AuditPruned => "audit_pruned",
            Self::BackupCreated => "backup_created",
            Self::ChainApplied => "chain_applied",
            Self::ChainRemoved => "chain_removed",
            Self::Checkpoint => "checkpoint",
            Self::DaemonStarted => "daemon_started",
            Self::DaemonStopped => "daemon_stopped",
            Self::EventNameRefused => "event_name_refused",
            Self::EventRedacted => "event_redacted",
            Self::EventsPruned => "events_pruned",
            Self::OutputFound => "output_found",
            Self::ExecutionEnded => "execution_ended",
            Self::ExecutionStarted => "execution_started",
            Self::GroupSet => "group_set",
            Self::KeyAdded => "key_added",
            Self::KeyRekeyed => "key_rekeyed",
            Self::KeyRemoved => "key_removed",
            Self::OutputRedacted => "output_redacted",
            Self::PolicyApplied => "policy_applied",
            Self::ProjectSet => "project_set",
            Self::Restored => "restored",
            Self::Revealed => "revealed",
            Self::RoleDenied => "role_denied",
            Self::RotationDue => "rotation_due",
            Self::RotationFailed => "rotation_failed",
            Self::RotationStarted => "rotation_started",
            Self::SecretAccessed => "secret_accessed",
            Self::SecretDenied => "secret_denied",
            Self::SecretDestroyed => "secret_destroyed",
            Self::SecretEdited => "secret_edited",
            Self::SecretExpired => "secret_expired",
            Self::SecretExposed => "secret_exposed",
            Self::SecretPromoted => "secret_promoted",
            Self::SecretRemoved => "secret_removed",
            Self::SecretRetired => "secret_retired",
            Self::SecretRevoked => "secret_revoked",
            Self::SecretRolledBack => "secret_rolled_back",
            Self::SecretRotated => "secret_rotated",
            Self::SecretSet => "secret_set",
            Self::UnlockFailed => "unlock_failed",
            Self::OperatorConfirmed => "operator_confirmed",
            Self::VaultLocked => "vault_locked",
            Self::VaultUnlocked => "vault_unlocked",
            Self::WorkerRestarted => "worker_restarted",
        }
    }
}

/// A record to be. Fields that are `None` are left out, but for the first seven.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// What happened.
    pub event: Event,
    /// The secret's name with its environment.
    pub secret_key: Option<&'a str>,
    /// The chain.
    pub chain: Option<&'a str>,
    /// The agent.
    pub agent: Option<&'a str>,
    /// Who launched it, or who asked.
    pub user: Option<&'a str>,
    /// When.
    pub timestamp: Timestamp,
    /// Where the agent runs.
    pub workspace: Option<&'a str>,
    /// The secret's scope.
    pub scope: Option<&'a str>,
    /// The environment.
    pub environment: Option<&'a str>,
    /// The version.
    pub version: Option<u32>,
    /// The execution.
    pub execution: Option<&'a str>,
    /// The caller's uid.
    pub uid: Option<u32>,
    /// The uid that the caller logged in with.
    pub login_uid: Option<u32>,
    /// The caller's process.
    pub pid: Option<u32>,
    /// Its program, for people: a path proves nothing.
    pub exe: Option<&'a str>,
    /// By which channel: `file`, `env`, `reveal`.
    pub via: Option<&'a str>,
    /// `granted` or `denied`.
    pub decision: Option<&'a str>,
    /// Why.
    pub reason: Option<&'a str>,
    /// How often, where repeated ones were counted.
    pub count: Option<u64>,
    /// The vault's revision after a change: an older file is refused by it.
    pub revision: Option<u64>,
    /// How long it took, in microseconds.
    pub took_us: Option<u64>,
    /// What a checkpoint seals.
    pub checkpoint: Option<&'a super::checkpoint::Checkpoint>,
}

impl<'a> Record<'a> {
    /// A record of `event` with nothing else said.
    pub fn new(event: Event, timestamp: Timestamp) -> Self {
        Self {
            event,
            secret_key: None,
            chain: None,
            agent: None,
            user: None,
            timestamp,
            workspace: None,
            scope: None,
            environment: None,
            version: None,
            execution: None,
            uid: None,
            login_uid: None,
            pid: None,
            exe: None,
            via: None,
            decision: None,
            reason: None,
            count: None,
            revision: None,
            took_us: None,
            checkpoint: None,
        }
    }

    /// The first seven fields, without the closing brace: `seq` follows them.
    pub fn encode_head(&self, out: &mut String) {
        out.push_str("{\"event\":\"");
        out.push_str(self.event.name());
        out.push('"');
        for (key, value) in [
            ("secret_key", self.secret_key),
            ("chain", self.chain),
            ("agent", self.agent),
            ("user", self.user),
        ] {
            field(out, key);
            match value {
                Some(text) => string(out, text),
                None => out.push_str("null"),
            }
        }
        // Writing to a string cannot fail.
        let _written = write!(out, ",\"timestamp\":\"{:.6}\"", self.timestamp);
        field(out, "workspace");
        match self.workspace {
            Some(text) => string(out, text),
            None => out.push_str("null"),
        }
    }

    /// The other fields.
    pub fn encode_tail(&self, out: &mut String) {
        let texts = [("scope", self.scope), ("environment", self.environment)];
        for (key, value) in texts {
            optional(out, key, value);
        }
        number(out, "version", self.version.map(u64::from));
        optional(out, "execution", self.execution);
        number(out, "uid", self.uid.map(u64::from));
        number(out, "login_uid", self.login_uid.map(u64::from));
        number(out, "pid", self.pid.map(u64::from));
        for (key, value) in [
            ("exe", self.exe),
            ("via", self.via),
            ("decision", self.decision),
            ("reason", self.reason),
        ] {
            optional(out, key, value);
        }
        number(out, "count", self.count);
        number(out, "revision", self.revision);
        number(out, "took_us", self.took_us);
        if let Some(checkpoint) = self.checkpoint {
            number(out, "number", Some(checkpoint.number));
            number(out, "sealed_seq", Some(checkpoint.sealed_seq));
            for (key, value) in [
                ("sealed_link", &checkpoint.sealed_link),
                ("public_key", &checkpoint.public_key),
                ("next_key", &checkpoint.next_key),
                ("signature", &checkpoint.signature),
            ] {
                optional(out, key, Some(value));
            }
        }
    }
}

fn field(out: &mut String, key: &str) {
    out.push_str(",\"");
    out.push_str(key);
    out.push_str("\":");
}

fn optional(out: &mut String, key: &str, value: Option<&str>) {
    if let Some(text) = value {
        field(out, key);
        string(out, text);
    }
}

fn number(out: &mut String, key: &str, value: Option<u64>) {
    if let Some(value) = value {
        field(out, key);
        let _written = write!(out, "{value}");
    }
}

/// A JSON string; control characters and non-ASCII are escaped, so that a terminal that shows the
/// log obeys nobody.
fn string(out: &mut String, text: &str) {
    out.push('"');
    let mut cut = text.len().min(MAX_FIELD_BYTES);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    for c in text[..cut].chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _written = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    if cut < text.len() {
        out.push_str("...");
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(record: &Record<'_>) -> String {
        let mut text = String::new();
        record.encode_head(&mut text);
        record.encode_tail(&mut text);
        text + "}"
    }

    #[test]
    fn the_first_fields_stand_in_their_order() {
        let mut record = Record::new(Event::SecretAccessed, Timestamp::UNIX_EPOCH);
        record.secret_key = Some("prod/KEY");
        record.version = Some(3);
        assert_eq!(
            encoded(&record),
            "{\"event\":\"secret_accessed\",\"secret_key\":\"prod/KEY\",\"chain\":null,\
             \"agent\":null,\"user\":null,\"timestamp\":\"1970-01-01T00:00:00.000000Z\",\
             \"workspace\":null,\"version\":3}"
        );
    }

    proptest! {
        #[test]
        fn whatever_others_put_in_stays_one_line_that_parses(text in "\\PC*|[\\x00-\\x1f\"\\\\]*") {
            let mut record = Record::new(Event::SecretDenied, Timestamp::UNIX_EPOCH);
            record.exe = Some(&text);
            let line = encoded(&record);
            prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)));
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            if text.len() <= MAX_FIELD_BYTES {
                prop_assert_eq!(parsed["exe"].as_str().unwrap(), text);
            }
        }
    }
}
