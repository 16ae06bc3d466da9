//! What is being revoked, as later workers find it in the runtime state.
//!
//! Invariant: an intent is noted before anything is done by it. It holds no value in clear: the
//! replacement is sealed under a key of the vault.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::catalog::Unit;
use crate::catalog::secret::{Secret, Stage};
use crate::clock::Timestamp;
use crate::execution::exposure::Channel;
use crate::execution::journal::Kind;
use crate::execution::process::ProcessRef;
use crate::proto::{Code, Problem};
use crate::secret::SecretBytes;
use crate::vault::crypto;

use super::core::new_id;
use super::rotate::{fresh_unit, next_generation};
use super::{Daemon, user_of};

/// What is being revoked, as later workers find it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Intent {
    /// Names the intent: random, in hex.
    pub(super) id: String,
    /// As it was asked for, with the environment.
    pub(super) name: String,
    /// Secret or group, by its record.
    pub(super) unit: String,
    pub(super) reason: String,
    pub(super) by: String,
    pub(super) uid: u32,
    pub(super) at: Timestamp,
    pub(super) targets: Vec<Target>,
    /// Executions that were ended for it so far, with their processes.
    pub(super) ended: BTreeMap<String, Ended>,
    /// Whether their ends are on record.
    #[serde(default)]
    pub(super) recorded: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Target {
    pub(super) secret: String,
    pub(super) numbers: Vec<u32>,
    pub(super) values: Vec<String>,
    pub(super) replacement: Option<Replacement>,
}

/// A value to come, sealed: the runtime state holds no value in clear.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Replacement {
    pub(super) record: String,
    pub(super) sealed: String,
    pub(super) generation: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Ended {
    pub(super) chain: String,
    pub(super) agents: BTreeSet<String>,
    pub(super) processes: u64,
    /// Roots of process trees, where there is no cgroup.
    pub(super) roots: Vec<ProcessRef>,
    /// Who launched its agents, and waits for them.
    pub(super) launchers: Vec<ProcessRef>,
    /// An agent may leave its group, and take every mark off.
    pub(super) may_hide: bool,
    /// The execution was over already, and processes of it lived on.
    pub(super) is_left: bool,
    /// How it obtained the value.
    pub(super) via: BTreeSet<Channel>,
    /// Since when.
    pub(super) since: Option<Timestamp>,
}

/// Which versions are meant.
pub(super) fn numbers(secret: &Secret, which: Option<&str>) -> Result<Vec<u32>, Problem> {
    let live = |v: &&crate::catalog::secret::Version| v.stage != Stage::Revoked;
    let stage = |stage| {
        secret.at_stage(stage).map(|v| vec![v.number]).ok_or_else(|| {
            Problem::new(Code::NotFound, format!("{} has no {} version", secret.key, stage.word()))
                .with_hint(format!("strongroom secret show {}", secret.key))
        })
    };
    match which {
        None | Some("all") => Ok(secret.versions.iter().filter(live).map(|v| v.number).collect()),
        Some("pending") => stage(Stage::Pending),
        Some("current") => stage(Stage::Current),
        Some("previous") => stage(Stage::Previous),
        Some(text) => {
            let number: u32 = text.parse().map_err(|_| {
                Problem::new(Code::Invalid, format!("there is no version {text}"))
                    .with_hint("a number, pending, current, previous or all")
            })?;
            match secret.version(number) {
                Some(version) if version.stage == Stage::Revoked => {
                    let what = format!("version {number} of {} is revoked already", secret.key);
                    Err(Problem::new(Code::Conflict, what)
                        .with_hint(format!("strongroom secret exposures {}", secret.key)))
                }
                Some(_) => Ok(vec![number]),
                None => {
                    let what = format!("{} has no version {number}", secret.key);
                    Err(Problem::new(Code::NotFound, what)
                        .with_hint(format!("strongroom secret show {}", secret.key)))
                }
            }
        }
    }
}

impl Daemon {
    pub(super) fn intent(
        &self,
        uid: u32,
        unit: &Unit,
        reason: &str,
        which: Option<&str>,
        values: Option<&BTreeMap<String, SecretBytes>>,
    ) -> Result<Intent, Problem> {
        let mut bytes = [0_u8; 16];
        crypto::random(&mut bytes).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        let id = crypto::hex(&bytes);
        let key = self.core.unlocked()?.derive_key("revoke");
        let unit_now = fresh_unit(&self.core.catalog(), unit)?;
        let generation = next_generation(&unit_now);
        let mut targets = Vec::new();
        for secret in &unit_now.members {
            let numbers = numbers(secret, which)?;
            let values_of = |n: &u32| secret.version(*n).and_then(|v| v.value.clone());
            let replacement = match values.and_then(|v| v.get(secret.key.name.as_str())) {
                None => None,
                Some(value) => {
                    let record = new_id()?.to_string();
                    let sealed = key
                        .derive(record.as_bytes(), &[])
                        .seal(record.as_bytes(), value.expose())
                        .map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
                    Some(Replacement { record, sealed: crypto::hex(&sealed), generation })
                }
            };
            targets.push(Target {
                secret: secret.id.clone(),
                values: numbers.iter().filter_map(values_of).collect(),
                numbers,
                replacement,
            });
        }
        Ok(Intent {
            id,
            name: unit.name(),
            unit: unit.id().to_owned(),
            reason: reason.to_owned(),
            by: user_of(uid),
            uid,
            at: self.core.clock.now(),
            targets,
            ended: BTreeMap::new(),
            recorded: false,
        })
    }

    pub(super) fn note_intent(&self, intent: &Intent) -> Result<(), Problem> {
        let text = serde_json::to_vec(intent)
            .map_err(|_| Problem::new(Code::Internal, "the revoke cannot be noted"))?;
        self.registry
            .journal()
            .put(Kind::Revoke, intent.id.as_bytes(), &text)
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))
    }

    pub(super) fn intents(&self) -> Vec<Intent> {
        let noted = self.registry.journal().all(Kind::Revoke);
        noted.iter().filter_map(|(_, text)| serde_json::from_slice(text).ok()).collect()
    }
}
