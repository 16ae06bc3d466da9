//! The exposure ledger: who obtained which version, by which channel.
//!
//! An exposure is noted in the runtime state before the value leaves, and stored in the vault a
//! little later; until then the runtime state keeps it. Invariant: what was noted is found by
//! [`Ledger::of`] from then on, in this worker and in every later one. A revoke ends whom this names.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::id::ExecutionId;
use super::journal::{self, Journal, Kind};

/// By which channel a value was obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Into a container.
    Container,
    /// As a variable of its environment.
    Env,
    /// Read from the mount.
    File,
    /// Shown to a person.
    Reveal,
    /// Made by a rotation chain, or given to one.
    Rotation,
    /// By a remote workspace.
    Ssh,
}

impl Channel {
    /// Its word in records.
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Env => "env",
            Self::File => "file",
            Self::Reveal => "reveal",
            Self::Rotation => "rotation",
            Self::Ssh => "ssh",
        }
    }
}

/// One exposure: the first time that this execution, or person, obtained this value this way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// The vault's record of the value, in hex.
    pub value: String,
    /// By which channel.
    pub via: Channel,
    /// The execution; none: a person.
    pub execution: Option<ExecutionId>,
    /// Its chain.
    pub chain: Option<String>,
    /// Its agent, the first of the execution that obtained it this way.
    pub agent: Option<String>,
    /// Who launched it, or the person.
    pub user: String,
    /// When first.
    pub at: Timestamp,
}

impl Exposure {
    fn holder(&self) -> Holder {
        Holder {
            execution: self.execution.clone(),
            person: self.execution.is_none().then(|| self.user.clone()),
            via: self.via,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    execution: Option<ExecutionId>,
    person: Option<String>,
    via: Channel,
}

/// See the module.
pub struct Ledger {
    journal: Arc<Journal>,
    /// By value, then holder. Lock order: this, then the journal's own.
    by_value: RwLock<HashMap<String, BTreeMap<Holder, Arc<Exposure>>>>,
}

impl Ledger {
    /// Reads what earlier workers noted and did not store yet.
    pub fn open(journal: Arc<Journal>) -> Self {
        let ledger = Self { journal, by_value: RwLock::default() };
        for (_, value) in ledger.journal.all(Kind::Exposure) {
            match serde_json::from_slice(&value) {
                Ok(exposure) => ledger.insert(exposure),
                Err(_) => tracing::error!("an exposure in the runtime state does not parse"),
            }
        }
        ledger
    }

    fn insert(&self, exposure: Exposure) {
        self.by_value
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(exposure.value.clone())
            .or_default()
            .entry(exposure.holder())
            .or_insert_with(|| Arc::new(exposure));
    }

    /// Adds what the vault has stored.
    pub fn load(&self, stored: impl IntoIterator<Item = Exposure>) {
        for exposure in stored {
            self.insert(exposure);
        }
    }

    /// Whether an execution is known to have obtained a value this way.
    pub fn knows(&self, value: &str, execution: &ExecutionId, via: Channel) -> bool {
        let by_value = self.by_value.read().unwrap_or_else(PoisonError::into_inner);
        by_value.get(value).is_some_and(|holders| {
            holders.keys().any(|h| h.via == via && h.execution.as_ref() == Some(execution))
        })
    }

    /// Notes an exposure, before the value leaves.
    ///
    /// # Errors
    /// [`journal::Error`]: the value must not leave then.
    pub fn note(&self, exposure: Exposure) -> Result<(), journal::Error> {
        let holder = exposure.holder();
        let mut by_value = self.by_value.write().unwrap_or_else(PoisonError::into_inner);
        let holders = by_value.entry(exposure.value.clone()).or_default();
        if holders.contains_key(&holder) {
            return Ok(());
        }
        let text = serde_json::to_vec(&exposure).map_err(|_| journal::Error::TooLong)?;
        self.journal.put(Kind::Exposure, &key(&exposure), &text)?;
        holders.insert(holder, Arc::new(exposure));
        Ok(())
    }

    /// Who obtained a value, oldest first.
    pub fn of(&self, value: &str) -> Vec<Arc<Exposure>> {
        let by_value = self.by_value.read().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> =
            by_value.get(value).into_iter().flat_map(|h| h.values().cloned()).collect();
        found.sort_by_key(|e| e.at);
        found
    }

    /// What an execution obtained.
    pub fn of_execution(&self, id: &ExecutionId) -> Vec<Arc<Exposure>> {
        let by_value = self.by_value.read().unwrap_or_else(PoisonError::into_inner);
        let all = by_value.values().flat_map(BTreeMap::values);
        all.filter(|e| e.execution.as_ref() == Some(id)).cloned().collect()
    }

    /// What the vault has not stored yet, at most `limit`.
    pub fn unstored(&self, limit: usize) -> Vec<Exposure> {
        self.journal
            .some(Kind::Exposure, limit)
            .into_iter()
            .filter_map(|(_, value)| serde_json::from_slice(&value).ok())
            .collect()
    }

    /// The vault has stored these.
    ///
    /// # Errors
    /// [`journal::Error`]; they are stored once more then.
    pub fn stored(&self, exposures: &[Exposure]) -> Result<(), journal::Error> {
        exposures.iter().try_for_each(|e| self.journal.remove(Kind::Exposure, &key(e)))
    }

    /// Forgets a value that is destroyed.
    pub fn forget(&self, value: &str) {
        self.by_value.write().unwrap_or_else(PoisonError::into_inner).remove(value);
    }
}

/// What the journal finds an exposure by.
fn key(exposure: &Exposure) -> Vec<u8> {
    let who = exposure.execution.as_ref().map_or(exposure.user.as_str(), ExecutionId::as_str);
    crate::vault::crypto::digest(&[
        exposure.value.as_bytes(),
        who.as_bytes(),
        exposure.via.word().as_bytes(),
    ])
    .to_vec()
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::state::State;

    fn exposure(value: &str, id: &str, via: Channel) -> Exposure {
        Exposure {
            value: value.into(),
            via,
            execution: Some(id.parse().unwrap()),
            chain: Some("chain".into()),
            agent: Some("agent".into()),
            user: "me".into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn an_exposure_is_noted_once_and_known_to_the_next_worker_until_and_after_it_is_stored() {
        let state = State::create().unwrap();
        let ledger = Ledger::open(Arc::new(Journal::open(&state)));
        for _ in 0..3 {
            ledger.note(exposure("aa", "run-1", Channel::File)).unwrap();
        }
        ledger.note(exposure("aa", "run-1", Channel::Env)).unwrap();
        let person = Exposure { execution: None, ..exposure("aa", "x", Channel::Reveal) };
        ledger.note(person.clone()).unwrap();
        let next = Ledger::open(Arc::new(Journal::open(&state)));
        for ledger in [&ledger, &next] {
            assert_eq!(ledger.of("aa").len(), 3);
            assert!(ledger.knows("aa", &"run-1".parse().unwrap(), Channel::File));
            assert!(!ledger.knows("aa", &"run-2".parse().unwrap(), Channel::File));
            assert!(!ledger.knows("bb", &"run-1".parse().unwrap(), Channel::File));
        }
        let unstored = next.unstored(10);
        assert_eq!(unstored.len(), 3);
        next.stored(&unstored).unwrap();
        assert_eq!(next.unstored(10), []);
        let after = Ledger::open(Arc::new(Journal::open(&state)));
        assert_eq!(after.of("aa").len(), 0);
        after.load(unstored);
        assert_eq!(after.of("aa").len(), 3);
        assert!(after.of("aa").iter().any(|e| **e == person));
        after.forget("aa");
        assert_eq!(after.of("aa").len(), 0);
    }
}
