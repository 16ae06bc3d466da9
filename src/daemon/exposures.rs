//! The stored part of the exposure ledger, and its list for operators.
//!
//! Invariant: an exposure is in the runtime state until the vault has it; one to a person, by
//! environment or to a rotation chain is in the vault before the value leaves, since nothing but the
//! ledger names its holder after the keeper's death.
#![forbid(unsafe_code)]

use std::sync::PoisonError;

use crate::catalog::secret::Secret;
use crate::control::Caller;
use crate::execution::exposure::Exposure;
use crate::execution::principal::Principal;
use crate::proto::{self, Code, Problem};
use crate::secret::SecretBytes;
use crate::vault::record::{Batch, RecordId, RecordKind};

use super::Daemon;
use super::core::{new_id, vault_problem};

/// Exposures that go to the vault in one commit.
const EXPOSURES_AT_ONCE: usize = 10_000;

/// Commits of one call.
const MAX_ROUNDS: usize = 100;

/// Records of exposures beyond which they are put together into one.
const MAX_EXPOSURE_RECORDS: usize = 64;

impl Daemon {
    /// Reads the stored part of the exposure ledger.
    pub(super) fn load_exposures(&self) -> Result<(), Problem> {
        let vault = self.core.unlocked()?;
        let records = vault.all(RecordKind::Exposure).map_err(|e| vault_problem(&e))?;
        for (_, bytes) in &records {
            let stored: Vec<Exposure> = serde_json::from_slice(bytes.expose()).map_err(|_| {
                Problem::new(Code::Internal, "a record of exposures does not parse")
            })?;
            self.registry.ledger().load(stored);
        }
        Ok(())
    }

    /// Moves exposures from the runtime state into the vault: all that were noted before the call.
    pub(super) fn store_exposures(&self) -> Result<(), Problem> {
        let _turn = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        // So many rounds hold whatever the runtime state can.
        for _ in 0..MAX_ROUNDS {
            if self.store_some_exposures()? < EXPOSURES_AT_ONCE {
                break;
            }
        }
        Ok(())
    }

    /// How many were stored.
    fn store_some_exposures(&self) -> Result<usize, Problem> {
        let unstored = self.registry.ledger().unstored(EXPOSURES_AT_ONCE);
        if unstored.is_empty() {
            return Ok(0);
        }
        let vault = self.core.unlocked()?;
        let mut batch = Batch::new();
        let mut all = unstored.clone();
        let records = vault.all(RecordKind::Exposure).map_err(|e| vault_problem(&e))?;
        if records.len() >= MAX_EXPOSURE_RECORDS {
            // What is known of values that are destroyed goes with them.
            for (id, bytes) in records {
                let stored: Vec<Exposure> =
                    serde_json::from_slice(bytes.expose()).unwrap_or_default();
                let known = |e: &Exposure| {
                    e.value.parse().is_ok_and(|id: RecordId| vault.contains(RecordKind::Value, id))
                };
                all.extend(stored.into_iter().filter(known));
                batch.delete(RecordKind::Exposure, id);
            }
        }
        for chunk in all.chunks(EXPOSURES_AT_ONCE) {
            let bytes = serde_json::to_vec(chunk)
                .map_err(|_| Problem::new(Code::Internal, "exposures cannot be stored"))?;
            batch.put(RecordKind::Exposure, new_id()?, SecretBytes::from_vec(bytes));
        }
        vault.commit(&batch).map_err(|e| vault_problem(&e))?;
        self.registry
            .ledger()
            .stored(&unstored)
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        Ok(unstored.len())
    }

    pub(super) fn list_exposures(
        &self,
        req: &proto::SecretName,
    ) -> Result<proto::ExposureList, Problem> {
        let unit = self.unit(&req.name, req.scope.as_deref())?;
        let mut exposures: Vec<_> =
            unit.members.iter().flat_map(|s| self.shown_exposures(s)).collect();
        exposures.sort_by_key(|e| std::cmp::Reverse(e.at));
        Ok(proto::ExposureList { exposures })
    }

    pub(super) fn shown_exposures(&self, secret: &Secret) -> Vec<proto::Exposure> {
        let mut shown = Vec::new();
        for version in &secret.versions {
            let Some(value) = version.value.as_deref() else { continue };
            for exposure in self.registry.ledger().of(value) {
                let active = exposure.execution.as_ref().is_some_and(|id| {
                    self.registry.execution(id).is_some_and(|e| e.ended.is_none())
                });
                shown.push(proto::Exposure {
                    key: secret.key.to_string(),
                    scope: secret.scope.to_string(),
                    version: u64::from(version.number),
                    via: exposure.via.word().to_owned(),
                    execution: exposure.execution.as_ref().map(ToString::to_string),
                    agent: exposure.agent.clone(),
                    user: exposure.user.clone(),
                    at: exposure.at,
                    active,
                });
            }
        }
        shown
    }

    /// What an agent had obtained before it redeemed a ticket, the new execution has obtained as well:
    /// memory, variables and descriptors go with the process.
    pub(super) fn hand_down(&self, who: &Caller, child: &Principal) -> Result<(), Problem> {
        let own = u32::try_from(who.peer.pid).ok();
        let own = own.and_then(|pid| self.registry.principal(self.principal_of_process(pid)?));
        let Some(own) = own.filter(|own| own.execution != child.execution) else { return Ok(()) };
        let ledger = self.registry.ledger();
        for exposure in ledger.of_execution(&own.execution) {
            let inherited = Exposure {
                execution: Some(child.execution.clone()),
                chain: Some(child.chain.clone()),
                agent: Some(child.agent.clone()),
                user: child.user.clone(),
                at: self.core.clock.now(),
                ..Exposure::clone(&exposure)
            };
            ledger.note(inherited).map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        }
        Ok(())
    }
}
