//! One line of the log: a JSON object whose first fields never change their order.
//!
//! Danger: text that others choose (names, paths of programs) must not break the line; it is escaped
//! and bounded.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::clock::Timestamp;

/// The longest text of one field, in bytes; longer ones are cut and marked.
const MAX_FIELD_BYTES: usize = 512;

/// Makes the events and their names of one list.
macro_rules! events {
    ($($(#[$doc:meta])* $event:ident = $name:literal,)*) => {
        /// What happened. The names are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Event {
            $($(#[$doc])* $event,)*
        }

        impl Event {
            /// All of them, for tables and filters.
            pub const ALL: &[Self] = &[$(Self::$event),*];

            /// Its name in records.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$event => $name,)*
                }
            }
        }
    };
}

events! {
    /// An agent was launched.
    AgentStarted = "agent_started",
    /// An alert could not be delivered.
    AlertFailed = "alert_failed",
    /// An alert was delivered.
    AlertSent = "alert_sent",
    /// An entry of an allow list was made: a token may be shown.
    AllowMade = "allow_made",
    /// Files of the log were removed.
    AuditPruned = "audit_pruned",
    /// A backup was written.
    BackupCreated = "backup_created",
    /// A chain's definition was applied.
    ChainApplied = "chain_applied",
    /// A chain's definition was removed.
    ChainRemoved = "chain_removed",
    /// A signature that seals the log up to a record.
    Checkpoint = "checkpoint",
    /// The daemon began to serve.
    DaemonStarted = "daemon_started",
    /// The daemon stopped.
    DaemonStopped = "daemon_stopped",
    /// A name with a secret in it was refused in an events directory.
    EventNameRefused = "event_name_refused",
    /// Secrets were kept out of an event file.
    EventRedacted = "event_redacted",
    /// An event file is complete that is compressed or encrypted: what is in it was not looked into.
    EventUnchecked = "event_unchecked",
    /// Event files of an execution that had ended were removed.
    EventsPruned = "events_pruned",
    /// An execution ended.
    ExecutionEnded = "execution_ended",
    /// An execution started.
    ExecutionStarted = "execution_started",
    /// A group was set.
    GroupSet = "group_set",
    /// A key slot was added.
    KeyAdded = "key_added",
    /// A key slot got a new master key.
    KeyRekeyed = "key_rekeyed",
    /// A key slot was removed.
    KeyRemoved = "key_removed",
    /// An operator showed the passphrase again.
    OperatorConfirmed = "operator_confirmed",
    /// A secret was found in what an agent left, or it could not be searched.
    OutputFound = "output_found",
    /// Secrets were kept out of an agent's output, or out of a text that somebody gave.
    OutputRedacted = "output_redacted",
    /// A rotation policy was applied, or removed.
    PolicyApplied = "policy_applied",
    /// A project was set.
    ProjectSet = "project_set",
    /// A backup was restored.
    Restored = "restored",
    /// A value was shown to a person.
    Revealed = "revealed",
    /// A verb was refused for want of a role.
    RoleDenied = "role_denied",
    /// A rotation is due, or overdue.
    RotationDue = "rotation_due",
    /// A rotation chain failed; the current version stays.
    RotationFailed = "rotation_failed",
    /// A rotation chain began.
    RotationStarted = "rotation_started",
    /// A value was read.
    SecretAccessed = "secret_accessed",
    /// A read was refused.
    SecretDenied = "secret_denied",
    /// The bytes of a version were destroyed.
    SecretDestroyed = "secret_destroyed",
    /// A secret's metadata changed.
    SecretEdited = "secret_edited",
    /// A secret's end has come.
    SecretExpired = "secret_expired",
    /// A value left by another way than a file.
    SecretExposed = "secret_exposed",
    /// The pending version became current.
    SecretPromoted = "secret_promoted",
    /// A secret was removed.
    SecretRemoved = "secret_removed",
    /// A version became unreadable.
    SecretRetired = "secret_retired",
    /// Versions were revoked.
    SecretRevoked = "secret_revoked",
    /// The previous version came back, or a pending one was discarded.
    SecretRolledBack = "secret_rolled_back",
    /// A version was staged.
    SecretRotated = "secret_rotated",
    /// A value was stored.
    SecretSet = "secret_set",
    /// An attempt to unlock failed.
    UnlockFailed = "unlock_failed",
    /// The vault was locked.
    VaultLocked = "vault_locked",
    /// The vault was unlocked.
    VaultUnlocked = "vault_unlocked",
    /// A worker took over from one that died.
    WorkerRestarted = "worker_restarted",
}

impl Event {
    /// All names, in alphabetical order.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        Self::ALL.iter().map(|event| event.name())
    }

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
