//! The runs of rotation chains.
//!
//! A run: `create` makes the value on its stdout; it is staged where nobody gets it; `set` and `test`
//! see it as `NAME@pending`; then it is released to new executions. Invariant: a failure, a hang or a
//! killed daemon at any step leaves the current version as it was, nothing pending, and nothing in
//! the way of the next try. `finish` and `revoke` are chores: kept in the vault until they are done.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::record::Event;
use crate::catalog::name::{ChainName, EnvName};
use crate::catalog::policy::Policy;
use crate::catalog::secret::Stage;
use crate::catalog::{Chain, Unit};
use crate::control::{Caller, Lines};
use crate::execution::exposure::{Channel, Exposure};
use crate::execution::id::ExecutionId;
use crate::execution::journal::Kind;
use crate::execution::principal::Execution;
use crate::proto::{self, Code, Problem};
use crate::vault::crypto;

use super::Daemon;
use super::alert::Alert;
use super::executions::registry_problem;
use super::rotate::{Times, fresh_unit, has_current};
use super::secrets::parse;
use super::step::{fresh_of, invalid, runner, step_of};

/// Steps that a rotation chain must have, and those that it may have.
const NEEDED: [&str; 2] = ["create", "test"];

/// How long a killed step may take to be gone.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// Rotations that run at one time.
const MAX_RUNNING: usize = 4;

/// A run as later workers find it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) token: String,
    /// Secret or group, by its record.
    pub(super) unit: String,
    pub(super) name: String,
    pub(super) chain: ChainName,
    pub(super) execution: ExecutionId,
    pub(super) step: String,
    /// Whose worker runs it.
    pub(super) generation: u64,
    /// The values that it has staged.
    #[serde(default)]
    pub(super) made: Vec<String>,
}

/// Tells how a run goes on.
type Progress<'a> = &'a mut dyn FnMut(&str, &str, &str, Option<&str>);

/// Checks that a chain can rotate.
pub(super) fn check_chain(chain: &Chain) -> Result<(), Problem> {
    for needed in NEEDED {
        let agent = chain.definition.agents.iter().find(|a| a.name.as_str() == needed);
        let what = match agent {
            None => format!("chain {} has no agent {needed}", chain.definition.chain),
            Some(agent) if agent.command.is_empty() => {
                format!("agent {needed} of chain {} has no command", chain.definition.chain)
            }
            Some(_) => continue,
        };
        return Err(invalid(
            what,
            "a rotation chain has the agents create and test, each with a command; \
             set, finish and revoke may come too",
        ));
    }
    Ok(())
}

impl Daemon {
    pub(super) fn rotate_in_background(self: &Arc<Self>, policy: &Policy, unit: Unit) {
        let Some(chain) = policy.terms.rotation_chain.clone() else { return };
        if !self.begin_running(unit.id()) {
            return;
        }
        let daemon = self.clone();
        let started = std::thread::Builder::new().name("rotation".into()).spawn(move || {
            let uid = nix::unistd::geteuid().as_raw();
            if let Err(problem) = daemon.run_chain(uid, &unit, &chain, &mut |_, _, _, _| {}) {
                tracing::error!(unit = unit.name(), %problem, "a rotation failed");
            }
            daemon.end_running(unit.id());
        });
        if let Err(error) = started {
            tracing::error!(%error, "no thread for a rotation");
        }
    }

    pub(super) fn begin_running(&self, unit: &str) -> bool {
        let mut running = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        running.len() < MAX_RUNNING && running.insert(unit.to_owned())
    }

    pub(super) fn end_running(&self, unit: &str) {
        self.rotating.lock().unwrap_or_else(PoisonError::into_inner).remove(unit);
    }

    pub(super) fn run_rotation(
        &self,
        who: &Caller,
        req: &proto::RotationRun,
        out: &mut dyn Lines,
    ) -> Result<(), Problem> {
        let found = self.unit(&req.name, req.scope.as_deref())?;
        let unit = match (&found.group, found.members.first()) {
            (None, Some(secret)) => self.core.catalog().unit_of(secret),
            _ => found,
        };
        let of_policy =
            self.core.catalog().policy(unit.id()).and_then(|p| p.terms.rotation_chain.clone());
        let chain: ChainName = match (req.chain.as_deref(), of_policy) {
            (Some(name), _) => parse(name)?,
            (None, Some(chain)) => chain,
            (None, None) => {
                let what = format!("{} has no rotation chain", unit.name());
                return Err(invalid(what, "name one with --chain, or apply a policy with one"));
            }
        };
        if !self.begin_running(unit.id()) {
            return Err(Problem::new(
                Code::Busy,
                format!("a rotation of {} runs already, or too many run", unit.name()),
            )
            .with_hint("strongroom status shows what waits"));
        }
        let mut gone = false;
        let outcome =
            self.run_chain(who.peer.uid, &unit, &chain, &mut |step, state, token, detail| {
                let line = proto::RotationStep {
                    step: step.to_owned(),
                    state: state.to_owned(),
                    token: token.to_owned(),
                    detail: detail.map(ToOwned::to_owned),
                };
                if let Ok(line) = serde_json::to_vec(&line) {
                    // The rotation goes on when its watcher leaves.
                    gone |= !gone && out.send(&line).is_err();
                }
            });
        self.end_running(unit.id());
        outcome
    }

    /// The run itself; whatever fails is undone, recorded and alerted here.
    fn run_chain(
        &self,
        uid: u32,
        unit: &Unit,
        chain: &ChainName,
        progress: Progress<'_>,
    ) -> Result<(), Problem> {
        let stored = self.core.catalog().chain(chain).cloned().ok_or_else(|| {
            Problem::new(Code::NotFound, format!("there is no chain {chain}"))
                .with_hint("store its definition: strongroom chain apply FILE.json")
        })?;
        check_chain(&stored)?;
        // Before a key is made for nothing at the provider.
        has_current(&self.unit_now(unit)?)?;
        if let Some(waiting) = self.waiting_for(unit) {
            let what = format!("version {} of {} is pending already", waiting.pending, unit.name());
            return Err(Problem::new(Code::Conflict, what).with_hint(format!(
                "strongroom secret promote {0}, or secret rollback {0} to give it up",
                unit.name()
            )));
        }
        let mut bytes = [0_u8; 16];
        crypto::random(&mut bytes).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        let token = crypto::hex(&bytes);
        let execution = self.start_run(&token, &stored, unit.environment())?;
        let mut run = Run {
            token: token.clone(),
            unit: unit.id().to_owned(),
            name: unit.name(),
            chain: chain.clone(),
            execution: execution.id.clone(),
            step: "create".to_owned(),
            generation: self.state.generation(),
            made: Vec::new(),
        };
        self.record_unit(Event::RotationStarted, uid, unit, Some(chain.as_str()), None)?;
        let outcome = self.run_steps(&mut run, &stored, unit, &execution, progress);
        let ended = self.end_one(&execution.id, "rotation over", Duration::ZERO);
        match outcome {
            Ok(()) => {
                self.forget_run(&run)?;
                self.change_policy(unit.id(), |state| {
                    state.failed_at = None;
                    state.failures = 0;
                })?;
                progress("done", "ok", &token, None);
                ended.map(|_| ())
            }
            Err(problem) => {
                progress(&run.step, "failed", &token, Some(&problem.detail));
                self.fail_run(&run, unit, &problem.detail);
                Err(problem)
            }
        }
    }

    pub(super) fn start_run(
        &self,
        token: &str,
        chain: &Chain,
        environment: Option<&EnvName>,
    ) -> Result<Arc<Execution>, Problem> {
        let (uid, _) = runner(chain)?;
        let id: ExecutionId = parse(&format!("rotation-{}", &token[..16]))?;
        let (execution, _) = self.new_execution(
            uid,
            id,
            &chain.definition.chain,
            environment,
            "host",
            None,
            None,
            BTreeMap::new(),
            false,
        )?;
        let (execution, _) = self.registry.start(execution).map_err(|e| registry_problem(&e))?;
        self.record_execution(Event::ExecutionStarted, &execution, uid, Some("rotation"))?;
        Ok(execution)
    }

    fn note_run(&self, run: &Run) -> Result<(), Problem> {
        let text = serde_json::to_vec(run)
            .map_err(|_| Problem::new(Code::Internal, "the rotation cannot be noted"))?;
        self.registry
            .journal()
            .put(Kind::Rotation, run.token.as_bytes(), &text)
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))
    }

    fn forget_run(&self, run: &Run) -> Result<(), Problem> {
        self.registry
            .journal()
            .remove(Kind::Rotation, run.token.as_bytes())
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))
    }

    fn run_steps(
        &self,
        run: &mut Run,
        chain: &Chain,
        unit: &Unit,
        execution: &Arc<Execution>,
        progress: Progress<'_>,
    ) -> Result<(), Problem> {
        self.note_run(run)?;
        progress("create", "started", &run.token, None);
        let token = run.token.clone();
        let made = self.run_step(run, chain, execution, &mut |s| {
            progress("create", "said", &token, Some(s))
        })?;
        let fresh = fresh_of(unit, made)?;
        let uid = nix::unistd::geteuid().as_raw();
        let times = Times { untested: true, ..Times::default() };
        self.stage(uid, unit, &fresh, times)?;
        run.made = values_at(&self.unit_now(unit)?, Stage::Pending);
        self.note_run(run)?;
        self.expose_to_run(unit, execution)?;
        progress("create", "ok", &run.token, None);
        for step in ["set", "test"] {
            if step_of(chain, step).is_none() {
                continue;
            }
            step.clone_into(&mut run.step);
            self.note_run(run)?;
            still_pending(&self.unit_now(unit)?, &run.made)?;
            progress(step, "started", &run.token, None);
            let token = run.token.clone();
            self.run_step(run, chain, execution, &mut |s| progress(step, "said", &token, Some(s)))?;
            progress(step, "ok", &run.token, None);
        }
        let now = self.core.clock.now();
        let old = values_at(&self.unit_now(unit)?, Stage::Current);
        let chore = match step_of(chain, "finish") {
            Some(_) => Some(Self::new_chore("finish", unit, chain, &run.token, old)?),
            None => None,
        };
        // In one commit: a version that counts without the chore would leave its old key for ever.
        self.change_unit_with(
            unit,
            uid,
            (Event::SecretRotated, Some("tested")),
            |batch| chore.iter().try_for_each(|chore| Self::add_chore(batch, chore)),
            |secret| {
                let pending = secret.at_stage(Stage::Pending).and_then(|v| v.value.as_ref());
                if !pending.is_some_and(|value| run.made.contains(value)) {
                    return Err(given_up());
                }
                secret.release(now);
                Ok(())
            },
        )?;
        self.chores_changed();
        Ok(())
    }

    fn unit_now(&self, unit: &Unit) -> Result<Unit, Problem> {
        fresh_unit(&self.core.catalog(), unit)
    }

    /// The chain's execution has made the new version, and sees it from now on.
    fn expose_to_run(&self, unit: &Unit, execution: &Execution) -> Result<(), Problem> {
        let members = self.core.catalog().unit(unit.id()).map(|u| u.members).unwrap_or_default();
        for secret in members {
            let Some(value) = secret.at_stage(Stage::Pending).and_then(|v| v.value.clone()) else {
                continue;
            };
            self.registry
                .ledger()
                .note(Exposure {
                    value,
                    via: Channel::Rotation,
                    execution: Some(execution.id.clone()),
                    chain: Some(execution.chain.clone()),
                    agent: Some("create".to_owned()),
                    user: execution.user.clone(),
                    at: self.core.clock.now(),
                })
                .map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        }
        self.store_exposures()
    }

    /// A rotation that did not come to its end: undone, recorded, alerted; the next try is free.
    fn fail_run(&self, run: &Run, unit: &Unit, why: &str) {
        let reason = format!("{}: {why}", run.step);
        let noted = self.undo_run(unit, &reason).and_then(|()| self.forget_run(run));
        if let Err(problem) = noted {
            // The run stays noted, and is cleared at the next look.
            tracing::error!(%problem, "a failed rotation could not be cleared yet");
        }
    }

    fn undo_run(&self, unit: &Unit, reason: &str) -> Result<(), Problem> {
        let at = self.core.clock.now();
        self.alert(Alert {
            event: Event::RotationFailed.name(),
            secret: Some(unit.name()),
            message: format!("the rotation of {} failed; its current version stays", unit.name()),
            reason: Some(reason.to_owned()),
            at,
        });
        if let Ok(unit) = self.unit_now(unit)
            && is_untested(&unit)
        {
            self.discard_pending(&unit, reason)?;
        }
        self.change_policy(unit.id(), |state| {
            state.failed_at = Some(at);
            state.failures += 1;
        })?;
        let uid = nix::unistd::geteuid().as_raw();
        self.record_unit(Event::RotationFailed, uid, unit, Some(reason), None)
    }

    /// Runs of workers that are gone.
    pub(super) fn clear_dead_runs(&self) {
        for (_, text) in self.registry.journal().all(Kind::Rotation) {
            let Ok(run) = serde_json::from_slice::<Run>(&text) else { continue };
            let runs =
                self.rotating.lock().unwrap_or_else(PoisonError::into_inner).contains(&run.unit);
            if runs && run.generation == self.state.generation() {
                continue;
            }
            if let Err(problem) = self.end_one(&run.execution, "the daemon was restarted", GRACE) {
                tracing::warn!(%problem, "the execution of a dead rotation");
            }
            let unit = self.core.catalog().unit(&run.unit);
            match unit {
                // Killed after its last step: what it made counts already.
                Some(unit) if counts(&unit, &run.made) => {
                    let cleared = self.forget_run(&run).and_then(|()| {
                        self.change_policy(unit.id(), |state| {
                            state.failed_at = None;
                            state.failures = 0;
                        })
                    });
                    if let Err(problem) = cleared {
                        tracing::error!(%problem, "a rotation could not be cleared yet");
                    }
                }
                Some(unit) => self.fail_run(&run, &unit, "the daemon was restarted"),
                None => {
                    let _gone = self.forget_run(&run);
                }
            }
        }
        self.clear_orphans();
    }

    /// Untested versions that no run knows of: the keeper died, and the runtime state with it.
    fn clear_orphans(&self) {
        let units: Vec<_> =
            self.core.catalog().unsettled().into_iter().filter(is_untested).collect();
        for unit in units {
            // Asked in this order: a run is noted before it stages, and forgotten after it is off
            // the list of those that run.
            let runs =
                self.rotating.lock().unwrap_or_else(PoisonError::into_inner).contains(unit.id());
            let noted = self.registry.journal().all(Kind::Rotation).iter().any(|(_, text)| {
                serde_json::from_slice::<Run>(text).is_ok_and(|run| run.unit == unit.id())
            });
            let still = self.unit_now(&unit).is_ok_and(|unit| is_untested(&unit));
            if runs || noted || !still {
                continue;
            }
            if let Err(problem) = self.undo_run(&unit, "the keeper was restarted") {
                tracing::error!(%problem, "a dead rotation could not be cleared yet");
            }
        }
    }
}

fn given_up() -> Problem {
    Problem::new(Code::Conflict, "the pending version was given up meanwhile")
        .with_hint("run the rotation again: strongroom rotation run")
}

/// The values of a unit's members at a stage.
fn values_at(unit: &Unit, stage: Stage) -> Vec<String> {
    unit.members.iter().filter_map(|s| s.at_stage(stage)?.value.clone()).collect()
}

/// Whether what a run has staged is what is pending still.
fn still_pending(unit: &Unit, made: &[String]) -> Result<(), Problem> {
    if values_at(unit, Stage::Pending) == made { Ok(()) } else { Err(given_up()) }
}

fn is_untested(unit: &Unit) -> bool {
    unit.members.iter().any(|s| s.at_stage(Stage::Pending).is_some_and(|v| v.untested))
}

/// Whether new executions get, or got, what a run has made.
fn counts(unit: &Unit, made: &[String]) -> bool {
    let is = |stage: Stage| matches!(stage, Stage::Current | Stage::Pending);
    !made.is_empty()
        && unit.members.iter().all(|s| {
            s.versions.iter().any(|v| {
                is(v.stage) && !v.untested && v.value.as_ref().is_some_and(|id| made.contains(id))
            })
        })
}
