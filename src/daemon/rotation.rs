//! Rotation policies, their schedule, and the runs of rotation chains.
//!
//! A run: `create` makes the value on its stdout; it is staged where nobody gets it; `set` and `test`
//! see it as `NAME@pending`; then it is released to new executions. Invariant: a failure, a hang or a
//! killed daemon at any step leaves the current version as it was, nothing pending, and nothing in
//! the way of the next try. `finish` and `revoke` are chores: kept in the vault until they are done.
//! Danger: a chain's command runs as the user who applied the chain, never as more.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::audit::record::Event;
use crate::catalog::definition::Agent;
use crate::catalog::name::{ChainName, EnvName};
use crate::catalog::policy::{self, Policy, State, Terms};
use crate::catalog::secret::Stage;
use crate::catalog::{Catalog, Chain, Unit};
use crate::clock::Timestamp;
use crate::config::Permission;
use crate::control::{Caller, Lines};
use crate::execution::exposure::{Channel, Exposure};
use crate::execution::id::ExecutionId;
use crate::execution::journal::Kind;
use crate::execution::principal::Execution;
use crate::proto::{self, Code, Problem};
use crate::rotation::schedule::{self, Facts, Step};
use crate::secret::{MAX_VALUE_BYTES, SecretBytes};
use crate::vault::crypto;
use crate::vault::record::{Batch, RecordId, RecordKind};

use super::alert::Alert;
use super::core::{new_id, put, vault_problem};
use super::launch::registry_problem;
use super::rotate::{Fresh, Times};
use super::secrets::{catalog_problem, parse};
use super::{Daemon, user_of};

/// Steps that a rotation chain must have, and those that it may have.
const NEEDED: [&str; 2] = ["create", "test"];
/// How long a killed step may take to be gone.
const GRACE: Duration = Duration::from_secs(2);
/// Rotations that run at one time.
const MAX_RUNNING: usize = 4;

/// A run as later workers find it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    token: String,
    /// Secret or group, by its record.
    unit: String,
    name: String,
    chain: ChainName,
    execution: ExecutionId,
    step: String,
    /// Whose worker runs it.
    generation: u64,
}

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

/// Tells how a run goes on.
type Progress<'a> = &'a mut dyn FnMut(&str, &str, &str, Option<&str>);

fn invalid(what: impl Into<String>, hint: &str) -> Problem {
    Problem::new(Code::Invalid, what.into()).with_hint(hint)
}

/// Checks that a chain can rotate.
fn check_chain(chain: &Chain) -> Result<(), Problem> {
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

fn step_of<'a>(chain: &'a Chain, step: &str) -> Option<&'a Agent> {
    let is = |a: &&Agent| a.name.as_str() == step && !a.command.is_empty();
    chain.definition.agents.iter().find(is)
}

impl Daemon {
    pub(super) fn apply_policies(
        &self,
        who: &Caller,
        req: &proto::RotationApply,
    ) -> Result<proto::RotationListed, Problem> {
        self.core.unlocked()?;
        let all = policy::parse(&req.text).map_err(|e| {
            invalid(
                e.to_string(),
                "as in {\"rotation_policy\": {\"NAME\": {\"rotate_every_days\": 30}}}",
            )
        })?;
        let targets = all
            .into_iter()
            .map(|(name, terms)| Ok((self.policy_target(&name, &terms)?, terms)))
            .collect::<Result<Vec<_>, Problem>>()?;
        let now = self.core.clock.now();
        let by = user_of(who.peer.uid);
        if req.dry_run {
            let shown = targets.iter().map(|(unit, terms)| {
                policy_shown(&policy_of(unit, terms, "dry-run".into(), now, &by), unit, now)
            });
            return Ok(proto::RotationListed { policies: shown.collect() });
        }
        let (policies, revision) = self.core.change(|catalog, batch| {
            let mut policies = Vec::new();
            for (unit, terms) in &targets {
                let id = match catalog.policy(unit.id()) {
                    Some(old) => old.id.clone(),
                    None => new_id()?.to_string(),
                };
                let policy = policy_of(unit, terms, id, now, &by);
                put(batch, RecordKind::Policy, &policy.id, &policy)?;
                policies.push(policy);
            }
            let stored = policies.clone();
            let apply = move |c: &mut Catalog| stored.into_iter().for_each(|p| c.put_policy(p));
            Ok((policies, Box::new(apply) as _))
        })?;
        for (unit, terms) in &targets {
            let reason = format!("every {}", terms.rotate_every);
            self.record_unit(
                Event::PolicyApplied,
                who.peer.uid,
                unit,
                Some(&reason),
                Some(revision),
            )?;
        }
        self.settle_soon();
        let shown = policies.iter().zip(&targets).map(|(p, (unit, _))| policy_shown(p, unit, now));
        Ok(proto::RotationListed { policies: shown.collect() })
    }

    /// What a policy is for: a member stands for its group.
    fn policy_target(&self, name: &str, terms: &Terms) -> Result<Unit, Problem> {
        let catalog = self.core.catalog();
        let found = catalog.find_unit(name, None).map_err(|e| catalog_problem(&e))?;
        let unit = match (&found.group, found.members.first()) {
            (None, Some(secret)) => catalog.unit_of(secret),
            _ => found,
        };
        if let Some(name) = &terms.rotation_chain {
            let chain = catalog.chain(name).ok_or_else(|| {
                Problem::new(Code::NotFound, format!("there is no chain {name}"))
                    .with_hint("store its definition: strongroom chain apply FILE.json")
            })?;
            check_chain(chain)?;
        }
        Ok(unit)
    }

    pub(super) fn list_policies(&self, who: &Caller) -> Result<proto::RotationListed, Problem> {
        self.core.unlocked()?;
        let now = self.core.clock.now();
        let catalog = self.core.catalog();
        let mut policies: Vec<_> = catalog
            .policies()
            .iter()
            .filter_map(|p| Some((p.clone(), catalog.unit(&p.target)?)))
            .filter(|(_, unit)| {
                let chain = unit.scope().and_then(|s| s.chain()).map(|c| c.as_str());
                let environment = unit.environment().map(|e| e.as_str());
                who.may_in(Permission::Operate, chain, environment)
                    || who.may_in(Permission::Audit, chain, environment)
            })
            .map(|(policy, unit)| policy_shown(&policy, &unit, now))
            .collect();
        policies.sort_by(|a, b| (a.due_at, &a.name).cmp(&(b.due_at, &b.name)));
        Ok(proto::RotationListed { policies })
    }

    pub(super) fn remove_policy(
        &self,
        who: &Caller,
        req: &proto::RotationRm,
    ) -> Result<proto::Done, Problem> {
        let found = self.unit(&req.name, req.scope.as_deref())?;
        let unit = match (&found.group, found.members.first()) {
            (None, Some(secret)) => self.core.catalog().unit_of(secret),
            _ => found,
        };
        let ((), revision) = self.core.change(|catalog, batch| {
            let policy = catalog.policy(unit.id()).ok_or_else(|| {
                Problem::new(Code::NotFound, format!("{} has no policy", unit.name()))
                    .with_hint("strongroom rotation list")
            })?;
            batch.delete(RecordKind::Policy, parse(&policy.id)?);
            let target = policy.target.clone();
            Ok(((), Box::new(move |c: &mut Catalog| c.remove_policy(&target)) as _))
        })?;
        self.record_unit(
            Event::PolicyApplied,
            who.peer.uid,
            &unit,
            Some("removed"),
            Some(revision),
        )?;
        Ok(proto::Done::default())
    }

    fn record_unit(
        &self,
        event: Event,
        uid: u32,
        unit: &Unit,
        reason: Option<&str>,
        revision: Option<u64>,
    ) -> Result<(), Problem> {
        let (name, scope) = (unit.name(), unit.scope().map(ToString::to_string));
        let user = user_of(uid);
        let mut record = self.core.new_record(event);
        record.secret_key = Some(&name);
        record.scope = scope.as_deref();
        record.environment = unit.environment().map(|e| e.as_str());
        record.user = Some(&user);
        record.uid = Some(uid);
        record.reason = reason;
        record.revision = revision;
        self.core.record(&record)?;
        Ok(())
    }

    /// What the schedule asks for now. Runs of chains go on in threads of their own.
    pub(super) fn keep_schedule(self: &Arc<Self>) {
        self.clear_dead_runs();
        let now = self.core.clock.now();
        let due: Vec<_> = {
            let catalog = self.core.catalog();
            let of = |policy: &Arc<Policy>| {
                let unit = catalog.unit(&policy.target)?;
                let steps = schedule::steps(policy, facts(policy, &unit), now);
                (!steps.is_empty()).then(|| (policy.clone(), unit, steps))
            };
            catalog.policies().iter().filter_map(of).collect()
        };
        for (policy, unit, steps) in due {
            for step in steps {
                match step {
                    Step::Notice { due } => self.notice(&policy, &unit, due),
                    Step::Rotate { .. } => self.rotate_in_background(&policy, unit.clone()),
                }
            }
        }
        self.note_expired(now);
        self.run_chores(now);
    }

    fn notice(&self, policy: &Policy, unit: &Unit, due: Timestamp) {
        // Noted first: a daemon that dies here says it once too few times rather than for ever.
        let noted = self.change_policy(&policy.target, |state| state.noticed_for = Some(due));
        if let Err(problem) = noted {
            tracing::error!(%problem, "a notice could not be noted");
            return;
        }
        let reason = format!("due {due}");
        let uid = nix::unistd::geteuid().as_raw();
        if let Err(problem) = self.record_unit(Event::RotationDue, uid, unit, Some(&reason), None) {
            tracing::error!(%problem, "a notice could not be recorded");
        }
        self.alert(Alert {
            event: Event::RotationDue.name(),
            secret: Some(unit.name()),
            message: format!("the rotation of {} is due {due}", unit.name()),
            reason: None,
            at: self.core.clock.now(),
        });
    }

    fn change_policy(&self, target: &str, change: impl FnOnce(&mut State)) -> Result<(), Problem> {
        self.core
            .change(|catalog, batch| {
                let Some(policy) = catalog.policy(target) else {
                    return Ok(((), Box::new(|_: &mut Catalog| ()) as _));
                };
                let mut policy = Policy::clone(policy);
                change(&mut policy.state);
                put(batch, RecordKind::Policy, &policy.id, &policy)?;
                Ok(((), Box::new(move |c: &mut Catalog| c.put_policy(policy)) as _))
            })
            .map(|_| ())
    }

    fn note_expired(&self, now: Timestamp) {
        let expired: Vec<_> = {
            let catalog = self.core.catalog();
            let mut known = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
            let over = catalog.expired(self.started_at, now);
            over.into_iter().filter(|s| known.insert((s.id.clone(), s.expires_at))).collect()
        };
        for secret in expired {
            let unit = Unit { group: None, members: vec![secret] };
            let uid = nix::unistd::geteuid().as_raw();
            if let Err(problem) = self.record_unit(Event::SecretExpired, uid, &unit, None, None) {
                tracing::error!(%problem, "an expiry could not be recorded");
            }
            self.alert(Alert {
                event: Event::SecretExpired.name(),
                secret: Some(unit.name()),
                message: format!("{} has expired: nobody reads it any more", unit.name()),
                reason: None,
                at: now,
            });
        }
    }

    fn rotate_in_background(self: &Arc<Self>, policy: &Policy, unit: Unit) {
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

    fn begin_running(&self, unit: &str) -> bool {
        let mut running = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        running.len() < MAX_RUNNING && running.insert(unit.to_owned())
    }

    fn end_running(&self, unit: &str) {
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

    fn start_run(
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
        let made = self.run_step(run, chain, execution)?;
        let fresh = fresh_of(unit, made)?;
        let uid = nix::unistd::geteuid().as_raw();
        let times = Times { untested: true, ..Times::default() };
        self.stage(uid, unit, &fresh, times)?;
        self.expose_to_run(unit, execution)?;
        progress("create", "ok", &run.token, None);
        for step in ["set", "test"] {
            if step_of(chain, step).is_none() {
                continue;
            }
            step.clone_into(&mut run.step);
            self.note_run(run)?;
            progress(step, "started", &run.token, None);
            self.run_step(run, chain, execution)?;
            progress(step, "ok", &run.token, None);
        }
        "done".clone_into(&mut run.step);
        let old: Vec<_> = {
            let catalog = self.core.catalog();
            let unit = catalog.unit(unit.id());
            let members = unit.map(|u| u.members).unwrap_or_default();
            members.iter().filter_map(|s| s.at_stage(Stage::Current)?.value.clone()).collect()
        };
        if step_of(chain, "finish").is_some() {
            self.add_chore("finish", unit, chain, &run.token, old)?;
        }
        let now = self.core.clock.now();
        self.change_unit(unit, uid, (Event::SecretRotated, Some("tested")), |secret| {
            secret.release(now);
            Ok(())
        })?;
        Ok(())
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
        Ok(())
    }

    /// A rotation that did not come to its end: undone, recorded, alerted; the next try is free.
    fn fail_run(&self, run: &Run, unit: &Unit, why: &str) {
        let reason = format!("{}: {why}", run.step);
        let is_ours = |u: &Unit| {
            u.members.iter().any(|s| s.at_stage(Stage::Pending).is_some_and(|v| v.untested))
        };
        let now = self.core.catalog().unit(unit.id());
        let undone = match &now {
            Some(unit) if is_ours(unit) => self.discard_pending(unit, &reason),
            _ => Ok(()),
        };
        let at = self.core.clock.now();
        let uid = nix::unistd::geteuid().as_raw();
        let noted = undone
            .and_then(|()| {
                self.change_policy(unit.id(), |state| {
                    state.failed_at = Some(at);
                    state.failures += 1;
                })
            })
            .and_then(|()| self.record_unit(Event::RotationFailed, uid, unit, Some(&reason), None))
            .and_then(|()| self.forget_run(run));
        if let Err(problem) = noted {
            // The run stays noted, and is cleared at the next look.
            tracing::error!(%problem, "a failed rotation could not be cleared yet");
        }
        self.alert(Alert {
            event: Event::RotationFailed.name(),
            secret: Some(unit.name()),
            message: format!("the rotation of {} failed; its current version stays", unit.name()),
            reason: Some(reason),
            at,
        });
    }

    /// Runs of workers that are gone.
    fn clear_dead_runs(&self) {
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
                Some(unit) => self.fail_run(&run, &unit, "the daemon was restarted"),
                None => {
                    let _gone = self.forget_run(&run);
                }
            }
        }
    }

    /// Runs one agent of the chain; its stdout.
    fn run_step(
        &self,
        run: &Run,
        chain: &Chain,
        execution: &Arc<Execution>,
    ) -> Result<SecretBytes, Problem> {
        let step = &run.step;
        let agent = step_of(chain, step).ok_or_else(|| {
            invalid(format!("chain {} has no step {step}", run.chain), "add an agent of that name")
        })?;
        let failed = |what: String| {
            Problem::new(Code::Conflict, what).with_hint(
                "the current version stays; mend the chain and try again: strongroom rotation run",
            )
        };
        let (uid, gid) = runner(chain)?;
        let limit = self.config.rotation.step_timeout.0;
        let ticket = self.issue_own(execution, &agent.name, (uid, gid), limit)?;
        let file = self.paths.runtime_dir.join(format!("rotation-{}-{step}", &run.token[..16]));
        let io = |e: std::io::Error| failed(format!("{step} cannot be started: {}", e.kind()));
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut f| {
                std::os::unix::fs::fchown(&f, Some(uid), Some(gid))?;
                f.write_all(ticket.expose())
            })
            .map_err(io)?;
        let outcome = self.spawn_step(run, agent, (uid, gid), &file, limit);
        let _removed = std::fs::remove_file(&file);
        outcome.map_err(failed)
    }

    fn spawn_step(
        &self,
        run: &Run,
        agent: &Agent,
        (uid, gid): (u32, u32),
        ticket: &std::path::Path,
        limit: Duration,
    ) -> Result<SecretBytes, String> {
        let exe = std::env::current_exe().map_err(|e| e.to_string())?;
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
        let mut command = Command::new(exe);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        if let Some(user) = &user {
            command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
            command.current_dir(if user.dir.is_dir() { user.dir.as_path() } else { "/".as_ref() });
        }
        if let Some(home) = &self.paths.home {
            command.arg("--home").arg(home);
        }
        command.arg("run").arg("--ticket-file").arg(ticket).arg("--").arg("env");
        for (name, value) in [("NAME", &run.name), ("TOKEN", &run.token), ("STEP", &run.step)] {
            command.arg(format!("STRONGROOM_ROTATION_{name}={value}"));
        }
        command.args(&agent.command);
        if nix::unistd::geteuid().as_raw() != uid {
            command.uid(uid).gid(gid);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| format!("{} cannot be started: {}", run.step, e.kind()))?;
        let pipe = child.stdout.take().ok_or("no pipe")?;
        // One byte more than fits tells of too much.
        let reader = std::thread::spawn(move || {
            let mut pipe = pipe;
            let value = SecretBytes::read_from(
                (&mut pipe).take(MAX_VALUE_BYTES as u64 + 1),
                MAX_VALUE_BYTES + 1,
            );
            // The rest is taken, so that the step is not ended by a closed pipe.
            let _rest = std::io::copy(&mut pipe, &mut std::io::sink());
            value
        });
        let deadline = Instant::now() + limit;
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if Instant::now() >= deadline || self.is_stopping() => break None,
                Ok(None) => std::thread::park_timeout(Duration::from_millis(10)),
                Err(error) => return Err(error.to_string()),
            }
        };
        let Some(status) = status else {
            // Its agent ends with its execution; the launcher itself is ended here.
            let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
            let _ended = self.end_one(&run.execution, "rotation step hangs", Duration::ZERO);
            let _gone = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _reaped = child.wait();
            let _read = reader.join();
            return Err(format!(
                "{} did not end within {}",
                run.step, self.config.rotation.step_timeout
            ));
        };
        let value = reader.join().map_err(|_| "its output could not be read".to_owned())?;
        if !status.success() {
            return Err(format!("{} failed: {status}", run.step));
        }
        value.map_err(|e| format!("the output of {} could not be read: {}", run.step, e.kind()))
    }

    fn add_chore(
        &self,
        step: &str,
        unit: &Unit,
        chain: &Chain,
        token: &str,
        waits_for: Vec<String>,
    ) -> Result<(), Problem> {
        let id = new_id()?;
        let chore = Chore {
            id: id.to_string(),
            step: step.to_owned(),
            unit: unit.id().to_owned(),
            name: unit.name(),
            chain: chain.definition.chain.clone(),
            environment: unit.environment().cloned(),
            token: token.to_owned(),
            waits_for,
            failed_at: None,
            failures: 0,
        };
        self.put_chore(&chore)
    }

    fn put_chore(&self, chore: &Chore) -> Result<(), Problem> {
        let mut batch = Batch::new();
        put(&mut batch, RecordKind::Setting, &chore.id, chore)?;
        self.core.unlocked()?.commit(&batch).map_err(|e| vault_problem(&e))?;
        self.chores_changed();
        Ok(())
    }

    fn chores_changed(&self) {
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
                self.add_chore("revoke", &unit, &chain, &crypto::hex(&bytes), Vec::new())
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

    fn run_chores(self: &Arc<Self>, now: Timestamp) {
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
        let outcome = self.try_chore(&chore);
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
        };
        let outcome = self.run_step(&run, &stored, &execution);
        self.end_one(&execution.id, "rotation over", Duration::ZERO)?;
        outcome.map(|_| ())
    }
}

/// As whom the chain's commands run: who applied it, never more.
fn runner(chain: &Chain) -> Result<(u32, u32), Problem> {
    let own = nix::unistd::geteuid();
    let found = match chain.applied_by.parse::<u32>() {
        Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
        Err(_) => nix::unistd::User::from_name(&chain.applied_by),
    };
    let user = found.ok().flatten().ok_or_else(|| {
        invalid(
            format!(
                "{}, who applied chain {}, is no user here",
                chain.applied_by, chain.definition.chain
            ),
            "apply it again as a user of this host",
        )
    })?;
    if !own.is_root() && user.uid != own {
        return Err(invalid(
            format!("chain {} was applied by {}", chain.definition.chain, user.name),
            "apply it as the daemon's own user",
        ));
    }
    Ok((user.uid.as_raw(), user.gid.as_raw()))
}

/// What `create` printed, as values of the unit.
fn fresh_of(unit: &Unit, made: SecretBytes) -> Result<Fresh, Problem> {
    let hint = "create prints the value on its stdout, and nothing else";
    if made.is_empty() {
        return Err(invalid("create printed nothing", hint));
    }
    if made.len() > MAX_VALUE_BYTES {
        return Err(invalid(format!("create printed more than {MAX_VALUE_BYTES} bytes"), hint));
    }
    if unit.group.is_none() {
        let bytes = made.expose();
        let single = bytes.iter().filter(|b| **b == b'\n').count() == 1 && bytes.ends_with(b"\n");
        if single && bytes.len() > 1 {
            return Ok(Fresh::One(SecretBytes::copy_of(&bytes[..bytes.len() - 1])));
        }
        return Ok(Fresh::One(made));
    }
    // The parser's own words would quote values.
    let members: BTreeMap<String, proto::Value> =
        serde_json::from_slice(made.expose()).map_err(|e| {
            invalid(
                format!(
                    "create printed no JSON object of names and texts (line {}, column {})",
                    e.line(),
                    e.column()
                ),
                "for a group it prints {\"MEMBER\": \"value\", ...}",
            )
        })?;
    Ok(Fresh::Given(super::rotate::members_of(members)))
}

fn policy_of(unit: &Unit, terms: &Terms, id: String, now: Timestamp, by: &str) -> Policy {
    Policy {
        id,
        target: unit.id().to_owned(),
        terms: terms.clone(),
        state: State::default(),
        applied_at: now,
        applied_by: by.to_owned(),
    }
}

fn facts(policy: &Policy, unit: &Unit) -> Facts {
    let changed = unit.members.iter().map(|s| s.rotated_at.unwrap_or(s.created_at)).max();
    Facts {
        rotated_at: changed.unwrap_or(policy.applied_at),
        is_pending: unit.members.iter().any(|s| s.at_stage(Stage::Pending).is_some()),
    }
}

fn policy_shown(policy: &Policy, unit: &Unit, now: Timestamp) -> proto::PolicyShown {
    let facts = facts(policy, unit);
    let due_at = schedule::due_at(policy, facts.rotated_at);
    let soon = due_at.checked_sub(policy.terms.notify_before.0).is_ok_and(|at| at <= now);
    let state = if facts.is_pending {
        "pending"
    } else if policy.state.failures > 0 {
        "failed"
    } else if due_at <= now {
        "due"
    } else if soon {
        "soon"
    } else {
        "ok"
    };
    proto::PolicyShown {
        name: unit.name(),
        scope: unit.scope().map(ToString::to_string).unwrap_or_default(),
        rotate_every: policy.terms.rotate_every,
        notify_before: policy.terms.notify_before,
        auto_rotate: policy.terms.auto_rotate,
        rotation_chain: policy.terms.rotation_chain.as_ref().map(ToString::to_string),
        rotated_at: facts.rotated_at,
        due_at,
        state: state.to_owned(),
        failures: policy.state.failures,
    }
}
