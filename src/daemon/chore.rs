//! Chores: steps of a rotation chain that are run once a condition holds, over restarts.
//!
//! Invariant: a chore stays in the vault until its step has succeeded; a failure is told and tried
//! again, ever later.
#![forbid(unsafe_code)]

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::record::Event;
use crate::catalog::name::{ChainName, EnvName};
use crate::catalog::secret::{Secret, Stage, Version};
use crate::catalog::{Catalog, Chain, Unit};
use crate::clock::Timestamp;
use crate::proto::{Code, Problem};
use crate::rotation::schedule;
use crate::vault::crypto;
use crate::vault::record::{Batch, RecordId, RecordKind};

use super::Daemon;
use super::alert::Alert;
use super::core::{new_id, put, vault_problem};
use super::rotate::store_all;
use super::rotation::Run;
use super::secrets::parse;
use super::step::step_of;

/// Something to be run once a condition holds, over restarts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Chore {
    id: String,
    step: String,
    unit: String,
    name: String,
    chain: ChainName,
    environment: Option<EnvName>,
    token: String,
    /// Values that nobody may hold any more.
    waits_for: Vec<String>,
    failed_at: Option<Timestamp>,
    failures: u32,
}

impl Daemon {
    pub(super) fn new_chore(
        step: &str,
        unit: &Unit,
        chain: &Chain,
        token: &str,
        waits_for: Vec<String>,
    ) -> Result<Chore, Problem> {
        Ok(Chore {
            id: new_id()?.to_string(),
            step: step.to_owned(),
            unit: unit.id().to_owned(),
            name: unit.name(),
            chain: chain.definition.chain.clone(),
            environment: unit.environment().cloned(),
            token: token.to_owned(),
            waits_for,
            failed_at: None,
            failures: 0,
        })
    }

    /// Stores a chore with a change that it belongs to; [`Self::chores_changed`] when that is done.
    pub(super) fn add_chore(batch: &mut Batch, chore: &Chore) -> Result<(), Problem> {
        put(batch, RecordKind::Setting, &chore.id, chore)
    }

    fn put_chore(&self, chore: &Chore) -> Result<(), Problem> {
        let mut batch = Batch::new();
        put(&mut batch, RecordKind::Setting, &chore.id, chore)?;
        self.core.unlocked()?.commit(&batch).map_err(|e| vault_problem(&e))?;
        self.chores_changed();
        Ok(())
    }

    pub(super) fn chores_changed(&self) {
        *self.chores.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// In an emergency the chain's `revoke` step removes the old key at its provider.
    pub(super) fn revoke_at_provider(&self, unit: &str) {
        let chain = {
            let catalog = self.core.catalog();
            catalog.policy(unit).and_then(|p| {
                let chain = catalog.chain(p.terms.rotation_chain.as_ref()?)?;
                step_of(chain, "revoke")?;
                Some((catalog.unit(unit)?, chain.clone()))
            })
        };
        let Some((unit, chain)) = chain else { return };
        let mut bytes = [0_u8; 16];
        let added = crypto::random(&mut bytes)
            .map_err(|e| Problem::new(Code::Internal, e.to_string()))
            .and_then(|()| {
                let token = crypto::hex(&bytes);
                self.put_chore(&Self::new_chore("revoke", &unit, &chain, &token, Vec::new())?)
            });
        if let Err(problem) = added {
            tracing::error!(%problem, "the provider's side of a revoke could not be noted");
        }
    }

    fn all_chores(&self) -> Vec<Chore> {
        let mut chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        if chores.is_none() {
            let Some(vault) = self.core.vault() else { return Vec::new() };
            let records = vault.all(RecordKind::Setting).unwrap_or_default();
            let parsed =
                records.iter().filter_map(|(_, b)| serde_json::from_slice(b.expose()).ok());
            *chores = Some(parsed.collect());
        }
        chores.clone().unwrap_or_default()
    }

    pub(super) fn run_chores(self: &Arc<Self>, now: Timestamp) {
        for chore in self.all_chores() {
            let held = chore.waits_for.iter().any(|value| self.registry.is_held(value));
            let rests = chore.failed_at.filter(|at| *at <= now).is_some_and(|at| {
                at.checked_add(schedule::retry_after(chore.failures)).is_ok_and(|end| end > now)
            });
            // The old value is current until the promotion, whoever holds it.
            let is_current = {
                let catalog = self.core.catalog();
                let unit = catalog.unit(&chore.unit);
                unit.is_some_and(|u| {
                    u.members.iter().any(|s| {
                        let current = s.at_stage(Stage::Current).and_then(|v| v.value.as_ref());
                        current.is_some_and(|value| chore.waits_for.contains(value))
                    })
                })
            };
            if held || rests || is_current || !self.begin_running(&chore.id) {
                continue;
            }
            let daemon = self.clone();
            let started = std::thread::Builder::new().name("chore".into()).spawn(move || {
                daemon.run_chore(chore.clone());
                daemon.end_running(&chore.id);
            });
            if let Err(error) = started {
                tracing::error!(%error, "no thread for a chore");
            }
        }
    }

    fn run_chore(&self, mut chore: Chore) {
        let outcome = match self.withdraw(&chore) {
            Ok(true) => self.try_chore(&chore),
            // Brought back in this moment: its key stays at the provider.
            Ok(false) => return,
            Err(problem) => Err(problem),
        };
        let stored = match outcome {
            Ok(()) => parse::<RecordId>(&chore.id).and_then(|id| {
                let mut batch = Batch::new();
                batch.delete(RecordKind::Setting, id);
                self.core.unlocked()?.commit(&batch).map_err(|e| vault_problem(&e))?;
                self.chores_changed();
                Ok(())
            }),
            Err(problem) => {
                let at = self.core.clock.now();
                chore.failed_at = Some(at);
                chore.failures += 1;
                self.alert(Alert {
                    event: Event::RotationFailed.name(),
                    secret: Some(chore.name.clone()),
                    message: format!(
                        "the step {} of {} failed; it is tried again",
                        chore.step, chore.name
                    ),
                    reason: Some(problem.detail.clone()),
                    at,
                });
                self.put_chore(&chore)
            }
        };
        if let Err(problem) = stored {
            tracing::error!(%problem, "a chore could not be noted");
        }
    }

    /// Before `finish` removes the old key: nobody is offered it again from now on, whatever comes of
    /// the step. False where it is current.
    fn withdraw(&self, chore: &Chore) -> Result<bool, Problem> {
        if chore.step != "finish" {
            return Ok(true);
        }
        let now = self.core.clock.now();
        let (free, _) = self.core.change(|catalog, batch| {
            let members = catalog.unit(&chore.unit).map(|u| u.members).unwrap_or_default();
            let is_old =
                |v: &Version| v.value.as_ref().is_some_and(|id| chore.waits_for.contains(id));
            let is_current = |s: &Arc<Secret>| s.at_stage(Stage::Current).is_some_and(is_old);
            if members.iter().any(is_current) {
                return Ok((false, Box::new(|_: &mut Catalog| ()) as _));
            }
            let mut changed = Vec::new();
            for member in &members {
                if member.versions.iter().any(|v| is_old(v) && !v.is_withdrawn()) {
                    let mut secret = Secret::clone(member);
                    secret.withdraw(&chore.waits_for, now);
                    put(batch, RecordKind::Secret, &secret.id, &secret)?;
                    changed.push(secret);
                }
            }
            Ok((true, store_all(changed)))
        })?;
        Ok(free)
    }

    fn try_chore(&self, chore: &Chore) -> Result<(), Problem> {
        let stored = self.core.catalog().chain(&chore.chain).cloned();
        let (Some(stored), Some(_)) = (stored, self.core.catalog().unit(&chore.unit)) else {
            // Removed meanwhile: there is nothing left to be done by it.
            return Ok(());
        };
        let attempt = format!("{}{}", &chore.id[..12], chore.failures);
        let execution = self.start_run(
            &crypto::hex(&crypto::digest(&[attempt.as_bytes(), chore.token.as_bytes()])),
            &stored,
            chore.environment.as_ref(),
        )?;
        let run = Run {
            token: chore.token.clone(),
            unit: chore.unit.clone(),
            name: chore.name.clone(),
            chain: chore.chain.clone(),
            execution: execution.id.clone(),
            step: chore.step.clone(),
            generation: self.state.generation(),
            made: Vec::new(),
        };
        let outcome = self.run_step(&run, &stored, &execution, &mut |_| ());
        self.end_one(&execution.id, "rotation over", Duration::ZERO)?;
        outcome.map(|_| ())
    }
}
