//! What time and the ends of executions do to versions.
//!
//! Invariant: no step takes a version from an execution that holds it, unless it was revoked;
//! [`plan::due`] decides, this carries out.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::audit::record::Event;
use crate::catalog::Unit;
use crate::catalog::secret::{Binding, Secret, Stage};
use crate::execution::id::ExecutionId;
use crate::execution::principal::Pin;
use crate::proto::Problem;
use crate::rotation::plan::{self, Rules, Step};

use super::Daemon;

/// Versions and policies are looked at this often even when nothing seems to have changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Daemon {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            drain: self.config.rotation.drain.0,
            keep_previous: self.config.rotation.keep_previous.0,
            keep_retired: self.config.redaction.keep_retired.0,
        }
    }

    /// Has versions looked at in the next moment.
    pub(super) fn settle_soon(&self) {
        self.unsettled.store(true, Ordering::Release);
    }

    /// One look at what time and the ends of executions have done to versions.
    pub(super) fn keep_versions(self: &std::sync::Arc<Self>) {
        self.alert_bursts();
        if self.core.vault().is_none() {
            return;
        }
        {
            let mut looked_at =
                self.looked_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let soon = self.unsettled.swap(false, Ordering::AcqRel);
            if !soon && looked_at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return;
            }
            *looked_at = Some(Instant::now());
        }
        self.resume_revokes();
        self.settle();
        self.keep_schedule();
        if let Err(problem) = self.store_exposures() {
            tracing::error!(%problem, "exposures could not be stored; they stay in memory");
        }
    }

    /// Tells of agents that were refused many times within a minute.
    fn alert_bursts(&self) {
        for burst in self.tree.broker().take_bursts() {
            self.alert(super::alert::Alert {
                event: "denied_burst",
                secret: None,
                message: format!(
                    "agent {}/{} of execution {} was refused {} times within a minute",
                    burst.chain, burst.agent, burst.execution, burst.count
                ),
                reason: None,
                at: self.core.clock.now(),
            });
        }
    }

    /// Makes the steps that are due, unit by unit; one that fails does not keep the others.
    fn settle(&self) {
        let units = self.core.catalog().unsettled();
        for unit in units {
            if let Err(problem) = self.settle_unit(&unit) {
                tracing::error!(unit = unit.name(), %problem, "a version could not be settled");
            }
        }
    }

    fn settle_unit(&self, unit: &Unit) -> Result<(), Problem> {
        let members: Vec<&Secret> = unit.members.iter().map(|s| &**s).collect();
        let is_held = |value: &str| self.registry.is_held(value);
        let uid = nix::unistd::geteuid().as_raw();
        for step in plan::due(&members, &is_held, self.rules(), self.core.clock.now()) {
            match step {
                Step::Promote => {
                    self.promote(unit, uid, Some("nobody holds the old version, or it drained"))?;
                    // The other steps are judged anew after this one.
                    return Ok(());
                }
                Step::Retire { member, number } => {
                    let now = self.core.clock.now();
                    let secret = &unit.members[member];
                    let alone = Unit { group: None, members: vec![secret.clone()] };
                    let reason = format!("version {number}");
                    self.change_unit(&alone, uid, (Event::SecretRetired, Some(&reason)), |s| {
                        s.retire(number, now);
                        Ok(())
                    })?;
                }
                Step::Destroy { member, number } => {
                    self.destroy(&unit.members[member], number, uid)?;
                }
            }
        }
        Ok(())
    }

    /// Whether an agent of an execution has a floating file of a secret.
    pub(super) fn follows(&self, id: &ExecutionId, secret: &str) -> bool {
        let principals = self.registry.principals_of(id);
        principals.iter().any(|p| p.files.values().any(|f| f.floating && f.secret == secret))
    }

    /// Gives agents with a floating file of these secrets the current version, from the next open on.
    pub(super) fn follow_floating(&self, secrets: &[Secret]) {
        let floating: Vec<_> = secrets.iter().filter(|s| s.binding == Binding::Floating).collect();
        if floating.is_empty() {
            return;
        }
        // No launch is in between its choice of a version and its registration.
        let _launching = self.launching.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for secret in floating {
            let Some(version) = secret.at_stage(Stage::Current) else { continue };
            let Some(value) = version.value.clone() else { continue };
            let pin = Pin {
                version: version.number,
                value,
                size_bytes: version.size_bytes,
                created_at: version.created_at,
                generation: version.generation,
            };
            for principal in self.registry.principals() {
                let followed = |f: &&crate::execution::principal::File| {
                    f.floating && f.secret == secret.id && f.value != pin.value
                };
                if !principal.files.values().any(|f| followed(&f)) {
                    continue;
                }
                let changed =
                    self.file_of(secret, &pin, principal.uid, principal.gid).and_then(|file| {
                        self.registry
                            .update_principal(principal.number, |p| {
                                let names: Vec<_> = p
                                    .files
                                    .iter()
                                    .filter(|(_, f)| followed(f))
                                    .map(|(name, _)| name.clone())
                                    .collect();
                                for name in names {
                                    p.supersede(&name, file.clone());
                                }
                            })
                            .map_err(|e| super::executions::registry_problem(&e))
                    });
                if let Err(problem) = changed {
                    tracing::error!(%problem, "a floating file could not follow");
                }
            }
        }
    }
}
