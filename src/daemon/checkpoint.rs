//! Checkpoints of the audit log: when they are made, where their keys live, and what may go before
//! them.
//!
//! Order of one checkpoint: the next key is stored, the record is written and flushed, the key that
//! signed is forgotten. Invariant: at a kill between any two of these the next worker goes on with
//! the key that the log announces. Danger: keys of a restored copy of the vault; then the log is
//! ahead of them, and `audit verify` says so.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::audit::checkpoint::{Checkpoint, Keys};
use crate::audit::files::files;
use crate::audit::record::Event;
use crate::audit::verify::{self, ANCHOR_FILE, FIRST_KEY_FILE};
use crate::control::Caller;
use crate::proto::{self, Code, Problem};
use crate::secret::SecretBytes;
use crate::sys::durable;
use crate::vault::Vault;
use crate::vault::record::{Batch, RecordId, RecordKind};

use super::core::{new_id, vault_problem};
use super::{Daemon, user_of};

/// How long a checkpoint may wait for the log.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a checkpoint that failed.
const RETRY: Duration = Duration::from_secs(30);

/// What is known of checkpoints between two of them.
#[derive(Default)]
pub(super) struct Seal {
    /// The keys, with the id of their record; none while the vault is locked.
    keys: Option<(RecordId, Keys)>,
    /// The last checkpoint's own record, where this worker made it.
    own_seq: u64,
    /// Since when records wait to be sealed.
    waiting_since: Option<Instant>,
    /// Not before.
    retry_at: Option<Instant>,
}

fn io_problem(what: &str, error: &io::Error) -> Problem {
    Problem::new(Code::AuditUnavailable, format!("{what}: {error}"))
        .with_hint("check the directory of the audit log: free space, and who may write")
}

fn store(vault: &Vault, id: RecordId, keys: &Keys) -> Result<u64, Problem> {
    let bytes = serde_json::to_vec(keys)
        .map_err(|_| Problem::new(Code::Internal, "the signing keys cannot be stored"))?;
    let mut batch = Batch::new();
    batch.put(RecordKind::Signing, id, SecretBytes::from_vec(bytes));
    vault.commit(&batch).map_err(|e| vault_problem(&e))
}

/// The last checkpoint in the files.
fn last_checkpoint(dir: &Path) -> io::Result<Option<Checkpoint>> {
    for file in files(dir)?.into_iter().rev() {
        let mut found = None;
        verify::each_line(&file, |line, _| {
            // A record that merely mentions the word does not parse as a checkpoint.
            if line.starts_with("{\"event\":\"checkpoint\"")
                && let Ok(checkpoint) = serde_json::from_str(line)
            {
                found = Some(checkpoint);
            }
            true
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

impl Daemon {
    /// Reads the keys from the vault, or makes the first ones.
    fn load_signing(&self, vault: &Vault) -> Result<(RecordId, Keys), Problem> {
        let dir = self.core.log.dir();
        let stored = vault.all(RecordKind::Signing).map_err(|e| vault_problem(&e))?;
        let Some((id, bytes)) = stored.into_iter().next() else {
            let no_random = |_| Problem::new(Code::Internal, "the system gives no randomness");
            let (id, keys) = (new_id()?, Keys::new().map_err(no_random)?);
            store(vault, id, &keys)?;
            self.publish_first(&keys)?;
            return Ok((id, keys));
        };
        let mut keys: Keys = serde_json::from_slice(bytes.expose())
            .map_err(|_| Problem::new(Code::Internal, "the signing keys do not parse"))?;
        let last = last_checkpoint(dir).map_err(|e| io_problem("the log cannot be read", &e))?;
        if let Some(last) = last
            && last.number == keys.number + 1
            && keys.advance(&last)
        {
            store(vault, id, &keys)?;
        }
        self.publish_first(&keys)?;
        Ok((id, keys))
    }

    /// The first public key beside the log: for convenience, not for trust.
    fn publish_first(&self, keys: &Keys) -> Result<(), Problem> {
        let path = self.core.log.dir().join(FIRST_KEY_FILE);
        if std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == keys.first) {
            return Ok(());
        }
        durable::write(&path, format!("{}\n", keys.first).as_bytes(), 0o600)
            .map_err(|e| io_problem("the first public key cannot be stored", &e))
    }

    /// Seals everything that is written so far; does nothing while the vault is locked or when there
    /// is nothing new.
    ///
    /// # Errors
    /// When vault or log cannot be written; the next try goes on.
    pub fn checkpoint(&self) -> Result<(), Problem> {
        let mut seal = self.seal.lock().unwrap_or_else(PoisonError::into_inner);
        self.checkpoint_with(&mut seal)
    }

    fn checkpoint_with(&self, seal: &mut Seal) -> Result<(), Problem> {
        let Some(vault) = self.core.vault() else { return Ok(()) };
        let (id, mut keys) = match seal.keys.take() {
            Some(known) => known,
            None => self.load_signing(&vault)?,
        };
        let late = |_| {
            Problem::new(Code::AuditUnavailable, "the log does not keep up")
                .with_hint("free space where the audit directory lies")
        };
        self.core.log.flush(PATIENCE).map_err(late)?;
        let head = self.core.log.head();
        if head.seq <= seal.own_seq.max(keys.sealed_seq) {
            seal.keys = Some((id, keys));
            return Ok(());
        }
        keys.prepare().map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        let revision = store(&vault, id, &keys)?;
        let fault = || Problem::new(Code::Internal, "there is no next key");
        let checkpoint = keys.sign(&head).ok_or_else(fault)?;
        let mut record = self.core.new_record(Event::Checkpoint);
        record.checkpoint = Some(&checkpoint);
        record.revision = Some(revision);
        let own = self.core.record(&record)?;
        self.core.log.flush(PATIENCE).map_err(late)?;
        keys.advance(&checkpoint);
        store(&vault, id, &keys)?;
        seal.own_seq = own;
        seal.keys = Some((id, keys));
        seal.waiting_since = None;
        Ok(())
    }

    /// Makes a checkpoint when one is due.
    pub(super) fn keep_sealed(&self) {
        // Somebody makes one now.
        let Ok(mut seal) = self.seal.try_lock() else { return };
        let now = Instant::now();
        if self.core.vault().is_none() || seal.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let sealed = seal.keys.as_ref().map_or(0, |(_, keys)| keys.sealed_seq).max(seal.own_seq);
        let behind = self.core.log.head().seq.saturating_sub(sealed);
        if behind == 0 {
            seal.waiting_since = None;
            return;
        }
        let since = *seal.waiting_since.get_or_insert(now);
        // The first look loads the keys, so that the first public key is there from the start.
        let due = seal.keys.is_none()
            || behind >= self.config.audit.checkpoint_records
            || now.duration_since(since) >= self.config.audit.checkpoint.0;
        if !due {
            return;
        }
        seal.retry_at = None;
        if let Err(error) = self.checkpoint_with(&mut seal) {
            tracing::error!(%error, "no checkpoint could be made");
            seal.retry_at = Some(now + RETRY);
        }
    }

    /// Forgets the keys, as the vault is locked. A checkpoint comes first, where it can be made.
    pub(super) fn seal_and_forget(&self) {
        let mut seal = self.seal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.checkpoint_with(&mut seal) {
            tracing::error!(%error, "no checkpoint could be made before the vault is locked");
        }
        seal.keys = None;
    }

    /// The first public key and how many checkpoints were made; none while it is not known.
    pub(super) fn signing(&self) -> Option<(String, u64)> {
        let mut seal = self.seal.lock().unwrap_or_else(PoisonError::into_inner);
        if seal.keys.is_none() {
            let vault = self.core.vault()?;
            seal.keys = self
                .load_signing(&vault)
                .inspect_err(|error| tracing::error!(%error, "the signing keys cannot be read"))
                .ok();
        }
        seal.keys.as_ref().map(|(_, keys)| (keys.first.clone(), keys.number))
    }

    /// Removes the files of days before `req.before`, and leaves a signed anchor in their place.
    pub(super) fn prune_log(
        &self,
        who: &Caller,
        req: &proto::AuditPrune,
    ) -> Result<proto::AuditPruned, Problem> {
        let vault = self.core.unlocked()?;
        let dir = self.core.log.dir();
        let io = |e: io::Error| io_problem("the audit log cannot be pruned", &e);
        let today = jiff::tz::Offset::UTC.to_datetime(self.core.clock.now()).date();
        let unclear = |what: &str| {
            Problem::new(Code::Invalid, what)
                .with_hint("give \"before\" as 2026-11-23, or \"keep_days\" from 1 on")
        };
        let before = match (&req.before, req.keep_days) {
            (Some(day), None) => {
                day.parse::<jiff::civil::Date>().map_err(|_| unclear("the day does not parse"))?
            }
            (None, Some(days @ 1..)) => {
                today.saturating_sub(jiff::Span::new().days(i64::from(days) - 1))
            }
            _ => return Err(unclear("it is not told which days are to go")),
        };
        if before > today {
            return Err(Problem::new(Code::Invalid, "the day has not come yet")
                .with_hint("today's records always stay: give today or an earlier day"));
        }
        let day = |path: &Path| path.file_stem()?.to_str()?.parse::<jiff::civil::Date>().ok();
        // The newest file stays whatever its day: the log goes on from it.
        let mut all = files(dir).map_err(io)?;
        all.pop();
        let leaving: Vec<_> =
            all.into_iter().filter(|path| day(path).is_some_and(|day| day < before)).collect();
        if leaving.is_empty() {
            return Ok(proto::AuditPruned { files: Vec::new(), records: 0, anchor_seq: None });
        }
        // Only what is as it was written may go: the anchor would hide the rest.
        let (public_key, _) = self.signing().ok_or_else(|| {
            Problem::new(Code::Locked, "the signing keys cannot be read")
                .with_hint("strongroom unlock")
        })?;
        let verified = super::inspect::verified(
            dir,
            &verify::Known { public_key: Some(public_key), head: None },
        )?;
        if let Some(bad) = verified.first_bad {
            let what = format!("the log is not as it was written: {} line {}", bad.file, bad.line);
            return Err(Problem::new(Code::Conflict, what)
                .with_hint("look into it with `strongroom audit verify`; nothing was removed"));
        }
        let names: Vec<String> = leaving
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        let files_text = names.join(" ");
        let user = user_of(who.peer.uid);
        let mut record = self.core.new_record(Event::AuditPruned);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.reason = Some(&files_text);
        self.core.record(&record)?;
        let mut seal = self.seal.lock().unwrap_or_else(PoisonError::into_inner);
        self.checkpoint_with(&mut seal)?;
        let (mut seq, mut link, mut removed, mut last) = (0, String::new(), 0, None);
        if let Some(old) = verify::anchor(dir).map_err(io)? {
            last = old.expects.map(|key| (key, old.checkpoints));
        }
        for file in &leaving {
            verify::each_line(file, |line, value| {
                seq = value["seq"].as_u64().unwrap_or(seq);
                value["link"].as_str().unwrap_or_default().clone_into(&mut link);
                removed += 1;
                if let Ok(checkpoint) = serde_json::from_str::<Checkpoint>(line)
                    && value["event"] == "checkpoint"
                {
                    last = Some((checkpoint.next_key, checkpoint.number));
                }
                true
            })
            .map_err(io)?;
        }
        let (expects, checkpoints) = last.map_or((None, 0), |(key, n)| (Some(key), n));
        let Some((_, keys)) = &seal.keys else {
            return Err(Problem::new(Code::Internal, "the signing keys are gone"));
        };
        let anchor = keys.anchor(seq, &link, expects, checkpoints);
        let text = serde_json::to_vec(&anchor)
            .map_err(|_| Problem::new(Code::Internal, "the anchor cannot be written"))?;
        // Before the files go: killed here, `verify` passes over what the anchor stands for.
        durable::write(&dir.join(ANCHOR_FILE), &text, 0o600).map_err(io)?;
        for file in &leaving {
            std::fs::remove_file(file).map_err(io)?;
        }
        durable::sync_directory(dir).map_err(io)?;
        drop(vault);
        Ok(proto::AuditPruned { files: names, records: removed, anchor_seq: Some(seq) })
    }
}
