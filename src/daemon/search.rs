//! Event files that are complete are searched when there are more values to look for.
//!
//! What is to be searched for is stored in the vault with the values themselves, and removed when every
//! file was looked at, so that no death of a worker or daemon leaves it undone. Invariant: a value
//! is looked for in all that is written from its commit on; the search is about what was there before.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::broker::{Place, Refusal};
use crate::config::Redaction;
use crate::events::Progress;
use crate::proto::{self, Problem};
use crate::redact::View;
use crate::redact::detect::Detector;
use crate::secret::SecretBytes;
use crate::vault::record::{Batch, RecordId, RecordKind};
use crate::vault::{self, Vault};

use super::Daemon;
use super::core::new_id;
use super::needles;

/// Beyond this many values of one change it is not noted which they are, but that there are some.
const MAX_NOTED: usize = 10_000;
/// After a search that did not get everywhere; doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// Values of one change, by the vault's records of them; none of them: all that there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    search_events_for: Vec<String>,
}

/// A note that is stored with a change.
pub(super) struct Noted(RecordId, Note);

#[derive(Default)]
struct State {
    pending: Vec<(RecordId, Note)>,
    running: bool,
    failures: u32,
    failed_at: Option<Instant>,
}

/// What the store is still to be searched for.
#[derive(Default)]
pub(super) struct Searches {
    state: Mutex<State>,
    progress: Progress,
}

impl Searches {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to a change what has to be searched for because of it.
    ///
    /// # Errors
    /// The problem that it cannot be noted.
    pub(super) fn note(batch: &mut Batch) -> Result<Option<Noted>, Problem> {
        let stored = batch.values().filter(|(_, bytes)| bytes.is_some());
        let mut values: Vec<String> = stored.map(|(id, _)| id.to_string()).collect();
        if values.is_empty() {
            return Ok(None);
        }
        if values.len() > MAX_NOTED {
            values.clear();
        }
        let note = Note { search_events_for: values };
        let id = new_id()?;
        let bytes = serde_json::to_vec(&note).map_err(|_| {
            Problem::new(proto::Code::Internal, "what to search for cannot be stored")
        })?;
        batch.put(RecordKind::Setting, id, SecretBytes::from_vec(bytes));
        Ok(Some(Noted(id, note)))
    }

    /// The change is stored.
    pub(super) fn add(&self, noted: Option<Noted>) {
        if let Some(Noted(id, note)) = noted {
            let mut state = self.lock();
            state.pending.push((id, note));
            state.failed_at = None;
        }
    }

    /// These are to be searched for, or all if none is named: they came by another way than a change
    /// that stores them.
    ///
    /// # Errors
    /// When it cannot be noted in the vault.
    pub(super) fn add_values(
        &self,
        vault: &Vault,
        search_events_for: Vec<String>,
    ) -> Result<(), vault::Error> {
        let id = RecordId::random()?;
        let note = Note { search_events_for };
        let bytes = serde_json::to_vec(&note).unwrap_or_default();
        let mut batch = Batch::new();
        batch.put(RecordKind::Setting, id, SecretBytes::from_vec(bytes));
        vault.commit(&batch)?;
        self.add(Some(Noted(id, note)));
        Ok(())
    }

    /// Takes up what the vault says is to be done.
    pub(super) fn load(&self, vault: &Vault) -> Result<(), vault::Error> {
        let records = vault.all(RecordKind::Setting)?;
        let notes = records.into_iter().filter_map(|(id, bytes)| {
            Some((id, serde_json::from_slice::<Note>(bytes.expose()).ok()?))
        });
        let mut state = self.lock();
        state.pending = notes.collect();
        state.failed_at = None;
        Ok(())
    }

    /// The vault was locked.
    pub(super) fn forget(&self) {
        self.lock().pending.clear();
    }

    /// What is to be done now.
    fn due(&self) -> Vec<(RecordId, Note)> {
        let mut state = self.lock();
        let wait = RETRY_MIN.saturating_mul(1 << state.failures.min(8)).min(RETRY_MAX);
        if state.failed_at.is_some_and(|at| at.elapsed() < wait) {
            return Vec::new();
        }
        state.running = !state.pending.is_empty();
        state.pending.clone()
    }

    fn ended(&self, done: bool, searched: &[(RecordId, Note)]) {
        let mut state = self.lock();
        state.running = false;
        if done {
            state.pending.retain(|(id, _)| !searched.iter().any(|(s, _)| s == id));
            (state.failures, state.failed_at) = (0, None);
        } else {
            state.failures = state.failures.saturating_add(1);
            state.failed_at = Some(Instant::now());
        }
    }

    /// How far it is, while there is something to be searched for.
    pub(super) fn shown(&self) -> Option<proto::EventsSearch> {
        let state = self.lock();
        if state.pending.is_empty() {
            return None;
        }
        let number = |n: &std::sync::atomic::AtomicU64| {
            if state.running || state.failed_at.is_some() { n.load(Ordering::Relaxed) } else { 0 }
        };
        Some(proto::EventsSearch {
            changes: state.pending.len() as u64,
            files: number(&self.progress.files),
            looked: number(&self.progress.looked),
            rewritten: number(&self.progress.rewritten),
            failed: number(&self.progress.failed),
        })
    }
}

impl Daemon {
    /// Searches the event store when values came, until the daemon stops.
    pub fn keep_searched(self: &Arc<Self>) {
        while !self.is_stopping() {
            let turn = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.search_due()));
            if turn.is_err() {
                tracing::error!("a search of event files panicked");
                self.core.searches.ended(false, &[]);
            }
            std::thread::park_timeout(super::HOUSEKEEPING);
        }
    }

    fn search_due(&self) {
        let due = self.core.searches.due();
        if due.is_empty() {
            return;
        }
        let done = match self.search_for(&due) {
            Ok(done) => done,
            Err(Refusal::Locked) => {
                // Goes on when it is unlocked.
                return self.core.searches.ended(true, &[]);
            }
            Err(error) => {
                tracing::error!(%error, "the event store could not be searched");
                false
            }
        };
        if done && let Err(problem) = self.forget_notes(&due) {
            tracing::warn!(%problem, "a search of event files is done, and will be done again");
        }
        self.core.searches.ended(done, &due);
    }

    fn search_for(&self, due: &[(RecordId, Note)]) -> Result<bool, Refusal> {
        let everything = due.iter().any(|(_, note)| note.search_events_for.is_empty());
        let values: HashSet<&str> =
            due.iter().flat_map(|(_, note)| &note.search_events_for).map(String::as_str).collect();
        let wanted = |value: &str| everything || values.contains(value);
        let known = needles::read(&self.core, &wanted)?;
        // Known formats were looked for when the files were written.
        let off = Detector::rules().map(|(id, _)| id.to_owned()).collect();
        let detector = Detector::of_config(&Redaction { off, ..Redaction::default() });
        let detector = Arc::new(detector.map_err(|_| Refusal::Fault)?);
        let view = |place: &Place| -> Result<Arc<View>, Refusal> {
            Ok(known.view_in(place, &self.core, &self.registry, &detector))
        };
        let stop = || self.is_stopping() || self.core.seal().is_none();
        let level = super::events::level_of(self.config.events.redact);
        self.events.search(&view, level, &self.core.searches.progress, &stop)
    }

    fn forget_notes(&self, done: &[(RecordId, Note)]) -> Result<(), Problem> {
        let mut batch = Batch::new();
        for (id, _) in done {
            batch.delete(RecordKind::Setting, *id);
        }
        let vault = self.core.unlocked()?;
        vault.commit(&batch).map(drop).map_err(|e| super::core::vault_problem(&e))
    }
}
