//! What is on record of the outputs of an agent whose search is not over, and what came of the last
//! searches, for the next worker.
//!
//! Invariant: a finding is noted when it is on record, and before its file is replaced; the worker
//! that begins a search anew records what is noted no more, and tells of it all the same, although
//! the file may be clean by then. Danger: a launcher that asks again, whose agent would count as one
//! that left nothing.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::execution::journal::{Journal, Kind};
use crate::execution::principal::Principal;
use crate::proto;

/// Of searches that are over, which a launcher may ask for that did not get an answer. The newest is
/// kept whatever its size.
const KEPT_BYTES: usize = 4 << 20;

/// What is on record, by its tag; a finding is also to be told.
#[derive(Serialize, Deserialize)]
struct Note {
    tag: u64,
    finding: Option<proto::OutputFinding>,
}

/// What came of a search, for the launcher.
#[derive(Serialize, Deserialize)]
struct Outcome {
    launch: String,
    uid: u32,
    found: proto::AgentEnded,
}

/// What is on record of one agent.
pub(super) struct Told {
    journal: Arc<Journal>,
    number: u64,
    tags: HashSet<u64>,
    notes: u64,
}

fn key_of(number: u64, note: u64) -> Vec<u8> {
    [number.to_be_bytes(), note.to_be_bytes()].concat()
}

fn forget(journal: &Journal, keys: impl Iterator<Item = Vec<u8>>) {
    for key in keys {
        if let Err(error) = journal.remove(Kind::OutputFound, &key) {
            tracing::warn!(%error, "what outputs held stays in the runtime state");
        }
    }
}

impl Told {
    /// What earlier workers have recorded, and their findings in order.
    pub(super) fn load(journal: &Arc<Journal>, number: u64) -> (Self, Vec<proto::OutputFinding>) {
        let noted = journal.below(Kind::OutputFound, &number.to_be_bytes());
        let notes = noted.len() as u64;
        let (mut tags, mut findings) = (HashSet::new(), Vec::new());
        for (_, text) in &noted {
            if let Ok(note) = serde_json::from_slice::<Note>(text) {
                tags.insert(note.tag);
                findings.extend(note.finding);
            }
        }
        (Self { journal: journal.clone(), number, tags, notes }, findings)
    }

    pub(super) fn has(&self, tag: u64) -> bool {
        self.tags.contains(&tag)
    }

    /// It is on record.
    pub(super) fn note(&mut self, tag: u64, finding: Option<&proto::OutputFinding>) {
        let note = Note { tag, finding: finding.cloned() };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        let key = key_of(self.number, self.notes);
        if let Err(error) = self.journal.put(Kind::OutputFound, &key, &text) {
            tracing::error!(%error, "a worker that dies now has what outputs held recorded twice");
        }
        self.notes += 1;
        self.tags.insert(tag);
    }

    /// The search is over: its outcome takes the place of what was noted.
    pub(super) fn close(&self, principal: &Principal, found: &proto::AgentEnded) {
        let outcome =
            Outcome { launch: principal.launch.clone(), uid: principal.uid, found: found.clone() };
        let text = serde_json::to_vec(&outcome).unwrap_or_default();
        if let Err(error) = self.journal.put(Kind::Outputs, &self.number.to_be_bytes(), &text) {
            tracing::warn!(%error, "outputs will be searched again");
            return;
        }
        forget(&self.journal, (0..self.notes).map(|note| key_of(self.number, note)));
        let mut outcomes = self.journal.all(Kind::Outputs);
        outcomes.retain(|(_, text)| serde_json::from_slice::<Outcome>(text).is_ok());
        // Numbers are given in order.
        outcomes.sort_by(|a, b| b.0.cmp(&a.0));
        let mut bytes = 0;
        for (key, text) in outcomes.iter().skip(1) {
            bytes += text.len();
            if bytes > KEPT_BYTES
                && let Err(error) = self.journal.remove(Kind::Outputs, key)
            {
                tracing::warn!(%error, "an old search of outputs stays in the runtime state");
            }
        }
    }
}

/// What came of the search of this launch, if it is over.
pub(super) fn outcome(journal: &Journal, uid: u32, launch: &str) -> Option<proto::AgentEnded> {
    let outcomes = journal.all(Kind::Outputs).into_iter();
    let mut outcomes =
        outcomes.filter_map(|(_, text)| serde_json::from_slice::<Outcome>(&text).ok());
    let of_launch = outcomes.find(|o| {
        subtle::ConstantTimeEq::ct_eq(o.launch.as_bytes(), launch.as_bytes()).into()
            && (uid == 0 || uid == o.uid)
    });
    of_launch.map(|outcome| outcome.found)
}

/// Forgets notes of searches that are over, whose worker died before it could.
pub(super) fn forget_rest(journal: &Journal) {
    let notes = journal.all(Kind::OutputFound);
    if notes.is_empty() {
        return;
    }
    // After the notes: an agent that has none any more was searched by then.
    let open = journal.all(Kind::Outputs).into_iter();
    let open: HashSet<Vec<u8>> = open
        .filter(|(_, text)| serde_json::from_slice::<Principal>(text).is_ok())
        .map(|(key, _)| key)
        .collect();
    let is_over = |key: &Vec<u8>| key.get(..8).is_none_or(|number| !open.contains(number));
    forget(journal, notes.into_iter().map(|(key, _)| key).filter(is_over));
}
