//! Emergency revoke: one ordered transaction that a later worker finishes.
//!
//! Order: the intent in the runtime state; the denial, from which every read of the versions fails;
//! requests in work answered; launches in work waited for; executions that obtained a version ended,
//! by cgroup, and those of their processes that have left it; the durable commit, replacement current;
//! executions that had merely permission pinned anew; the emptiness of the groups awaited; records and
//! alert. Invariant: when the verb returns, no read returns the old value, and whatever could not be
//! ended is named. Danger: a launch in between, which the launching lock keeps out from the choice of
//! whom to end to the new pins; a vault that cannot be written, which keeps the intent until it can.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::audit::record::Event;
use crate::catalog::secret::{NewVersion, Secret, Stage};
use crate::clock::Timestamp;
use crate::control::Caller;
use crate::execution::exposure::{Channel, Exposure};
use crate::execution::id::ExecutionId;
use crate::execution::journal::Kind;
use crate::execution::principal::{Membership, Pin, Principal};
use crate::execution::registry;
use crate::proto::{self, Code, Problem};
use crate::sys::cgroup::Cgroup;
use crate::sys::proc;
use crate::vault::crypto;
use crate::vault::record::{RecordId, RecordKind};

use super::Daemon;
use super::core::{put, record_tag};
use super::ending::{KILL_LIMIT, end_tree};
use super::executions::registry_problem;
use super::intent::{Ended, Intent, numbers};
use super::membership::below_hierarchy;
use super::rotate::{Fresh, member_values, members_of, store_all};
use super::secrets::{alone, parse};
use super::strays::{self, Stray};

/// How an execution obtained what is revoked.
#[derive(Default)]
pub(super) struct Had {
    agents: BTreeSet<String>,
    via: BTreeSet<Channel>,
    since: Option<Timestamp>,
}

/// Executions that had merely permission.
#[derive(Default)]
struct Repinned {
    goes_on: Vec<String>,
    failed: Vec<String>,
}

fn tag(intent: &Intent, parts: &[&[u8]]) -> u64 {
    record_tag(&[&[intent.id.as_bytes()], parts].concat())
}

impl Daemon {
    pub(super) fn revoke_secret(
        &self,
        who: &Caller,
        req: proto::SecretRevoke,
    ) -> Result<proto::Revoked, Problem> {
        let begun = Instant::now();
        let unit = self.unit(&req.name, req.scope.as_deref())?;
        if let Some(secret) = unit.members.first()
            && unit.group.is_none()
        {
            alone(secret)?;
        }
        if req.reason.trim().is_empty() {
            return Err(Problem::new(Code::Invalid, "a revoke has a reason")
                .with_hint("add --reason \"...\"; it goes into every record"));
        }
        let which = req.version.as_deref();
        let hits_current = unit.members.iter().any(|secret| {
            let current = secret.at_stage(Stage::Current).map(|v| v.number);
            numbers(secret, which).is_ok_and(|n| current.is_some_and(|c| n.contains(&c)))
        });
        let whole = hits_current || matches!(which, None | Some("all" | "current"));
        let fresh = match (req.replacement, req.replacement_members.is_empty()) {
            (Some(value), true) => Some(Fresh::One(value.into_secret())),
            (None, false) => Some(Fresh::Given(members_of(req.replacement_members))),
            (None, true) => None,
            (Some(_), false) => {
                return Err(Problem::new(Code::Invalid, "give one kind of replacement"));
            }
        };
        if whole && fresh.is_none() && !req.no_replacement && !req.dry_run {
            let hint = match which {
                None | Some("all" | "current") => {
                    "pipe the new value in, or add --no-replacement: the name resolves to nothing \
                     then"
                }
                Some(_) => {
                    "this is the current version: say --version current and pipe the new value in, \
                     or add --no-replacement"
                }
            };
            return Err(Problem::new(Code::Invalid, "there is no replacement").with_hint(hint));
        }
        if fresh.is_some() && req.no_replacement {
            return Err(Problem::new(
                Code::Invalid,
                "a replacement, or --no-replacement: not both",
            ));
        }
        if fresh.is_some() && !whole {
            return Err(Problem::new(Code::Invalid, "the current version stays")
                .with_hint("a replacement is for a revoke of the current version"));
        }
        let values = fresh.as_ref().map(|f| member_values(&unit, f)).transpose()?;
        let _one_at_a_time = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
        let intent = self.intent(who.peer.uid, &unit, &req.reason, which, values.as_ref())?;
        if req.dry_run {
            return self.would_revoke(&intent, begun);
        }
        if intent.targets.iter().all(|t| t.numbers.is_empty()) {
            let what = format!("every version of {} is revoked already", unit.name());
            return Err(Problem::new(Code::Conflict, what).with_hint("give it a new value"));
        }
        for value in values.iter().flat_map(BTreeMap::values) {
            self.refuse_revoked(&self.core.catalog(), value)?;
            self.refuse_old(&intent, value)?;
        }
        self.note_intent(&intent)?;
        self.carry_out(intent, begun)
    }

    /// Before anything is served: what an earlier worker began to revoke is denied.
    pub(super) fn deny_again(&self) {
        for intent in self.intents() {
            self.core.deny(intent.targets.iter().flat_map(|t| t.values.clone()));
        }
    }

    /// Finishes what an earlier worker began.
    pub(super) fn resume_revokes(&self) {
        if self.registry.journal().some(Kind::Revoke, 1).is_empty() {
            return;
        }
        let _one_at_a_time = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
        for intent in self.intents() {
            let name = intent.name.clone();
            match self.carry_out(intent, Instant::now()) {
                Ok(revoked) => {
                    tracing::warn!(name, complete = revoked.complete, "a revoke was finished");
                }
                Err(problem) => tracing::error!(name, %problem, "a revoke cannot be finished yet"),
            }
        }
    }

    /// Running executions that obtained one of the values.
    pub(super) fn exposed(&self, intent: &Intent) -> BTreeMap<ExecutionId, Had> {
        let mut found: BTreeMap<_, Had> = BTreeMap::new();
        for exposure in self.exposures(intent) {
            if let Some(id) = &exposure.execution
                && self.registry.execution(id).is_some_and(|e| e.ended.is_none())
            {
                let had = found.entry(id.clone()).or_default();
                had.agents.extend(exposure.agent.clone());
                had.via.insert(exposure.via);
                had.since = Some(had.since.map_or(exposure.at, |at| at.min(exposure.at)));
            }
        }
        found
    }

    /// Executions that are over and had obtained one of the values, of which processes live on: their
    /// keeper was killed, or they could not be ended.
    pub(super) fn left_over(&self, intent: &Intent) -> BTreeMap<String, Ended> {
        let mut over: BTreeMap<String, Ended> = BTreeMap::new();
        for exposure in self.exposures(intent) {
            let Some(id) = &exposure.execution else { continue };
            let running = self.registry.execution(id).is_some_and(|e| e.ended.is_none());
            if running || intent.ended.contains_key(id.as_str()) {
                continue;
            }
            let ended = over.entry(id.to_string()).or_default();
            ended.is_left = true;
            ended.chain = exposure.chain.clone().unwrap_or_default();
            ended.agents.extend(exposure.agent.clone());
            ended.via.insert(exposure.via);
            ended.since = Some(ended.since.map_or(exposure.at, |at| at.min(exposure.at)));
        }
        if over.is_empty() {
            return over;
        }
        let below = self.cgroup_root.as_deref().map(below_hierarchy);
        let strays = strays::marked(&over, below.as_deref());
        over.retain(|id, ended| {
            let outside = strays.iter().filter(|s| s.execution == *id).count();
            ended.processes = (self.members_of(id).len() + outside) as u64;
            // Who could leave its group may have others there.
            ended.may_hide = outside > 0;
            ended.processes > 0
        });
        over
    }

    /// Processes in the groups of an execution.
    fn members_of(&self, id: &str) -> Vec<u32> {
        let Some(root) = &self.cgroup_root else { return Vec::new() };
        let Ok(groups) = std::fs::read_dir(root.join(id)) else { return Vec::new() };
        let groups = groups.flatten().filter_map(|entry| Cgroup::open(&entry.path()).ok());
        groups.flat_map(|group| group.members().unwrap_or_default()).collect()
    }

    fn exposures(&self, intent: &Intent) -> Vec<std::sync::Arc<Exposure>> {
        let values = intent.targets.iter().flat_map(|t| &t.values);
        values.flat_map(|value| self.registry.ledger().of(value)).collect()
    }

    /// The transaction, from any point on: every step is safe to repeat.
    fn carry_out(&self, mut intent: Intent, begun: Instant) -> Result<proto::Revoked, Problem> {
        // First of all, whatever a launch may be waiting for.
        self.core.deny(intent.targets.iter().flat_map(|t| t.values.clone()));
        // Readers that wait for their record are answered now.
        self.core.log.wake();
        let broker = self.tree.broker();
        broker.settle_requests();
        broker.wipe_denied();
        let first_denial = begun.elapsed();
        // A launch that was given its values before has noted that when it lets go.
        let launching = self.launching.write().unwrap_or_else(PoisonError::into_inner);

        // Noted before it is done: a successor must know whom it has to end and to record.
        for (id, had) in self.exposed(&intent) {
            let ended = self.to_end(&id, had);
            intent.ended.insert(id.to_string(), ended);
        }
        let left = self.left_over(&intent);
        intent.ended.extend(left);
        self.note_intent(&intent)?;
        let reason = format!("revoked:{}", intent.name);
        let mut members = Vec::new();
        for id in intent.ended.keys() {
            // The intent stands for its record and for its processes.
            let (at, reason) = (self.core.clock.now(), reason.clone());
            let ended = crate::execution::principal::Ended { at, reason, unsettled: false };
            match self.registry.end(&parse(id)?, ended) {
                Ok((_, left)) => members.extend(left),
                // One of an earlier keeper is on no register.
                Err(registry::Error::Unknown { .. }) => {}
                Err(error) => return Err(registry_problem(&error)),
            }
        }
        let below = self.cgroup_root.as_deref().map(below_hierarchy);
        let strays =
            strays::descended(&intent.ended, self.cgroup_root.as_deref(), below.as_deref());
        for id in intent.ended.keys() {
            self.kill_at_once(id);
        }
        strays::kill(&strays);
        let committed = self.commit_revoke(&intent);
        let repinned = if committed.is_ok() { self.repin(&intent) } else { Repinned::default() };
        drop(launching);

        let mut survivors = self.await_deaths(&intent, strays, below.as_deref());
        survivors.extend(repinned.failed);
        for member in members {
            self.registry.forget(member.number).map_err(|e| registry_problem(&e))?;
        }
        let revision = self.record_revoke(&mut intent, &committed, &survivors, begun)?;
        // Told before the intent goes: whoever finishes it tells of it.
        let mut answer = self.revoked(&intent, begun)?;
        answer.goes_on = repinned.goes_on;
        answer.complete = survivors.is_empty();
        answer.survivors = survivors;
        answer.first_denial_us = u64::try_from(first_denial.as_micros()).unwrap_or(u64::MAX);
        self.alert_revoked(&intent, &answer);
        self.revoke_at_provider(&intent.unit);
        self.registry
            .journal()
            .remove(Kind::Revoke, intent.id.as_bytes())
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        self.settle_soon();
        tracing::info!(name = intent.name, revision, "revoked");
        Ok(answer)
    }

    /// Waits until all of them are dead, at most a while; who is left.
    fn await_deaths(
        &self,
        intent: &Intent,
        mut strays: Vec<Stray>,
        below: Option<&Path>,
    ) -> Vec<String> {
        let deadline = Instant::now() + KILL_LIMIT;
        let mut survivors = BTreeSet::new();
        for (id, ended) in &intent.ended {
            survivors.extend(self.await_death(id, deadline));
            for root in &ended.roots {
                survivors.extend(end_tree(root, Duration::ZERO));
            }
        }
        if !intent.ended.is_empty() {
            // Asked now, when those that were in their groups are gone.
            let marked = strays::marked(&intent.ended, below);
            strays::kill(&marked);
            strays.extend(marked);
        }
        survivors.extend(strays::survivors(&strays, deadline));
        survivors.into_iter().collect()
    }

    /// What is to be ended of an execution.
    pub(super) fn to_end(&self, id: &ExecutionId, had: Had) -> Ended {
        let chain = self.registry.execution(id).map(|e| e.chain.clone()).unwrap_or_default();
        let mut ended =
            Ended { chain, agents: had.agents, via: had.via, since: had.since, ..Ended::default() };
        for member in self.registry.principals_of(id) {
            ended.launchers.extend(member.lifeline.clone());
            match &member.membership {
                Membership::Cgroup { path, .. } => {
                    let members = Cgroup::open(path).and_then(|g| g.members());
                    ended.processes += members.map_or(0, |m| m.len() as u64);
                    ended.may_hide |= member.uid == 0;
                }
                Membership::Tree { root } => {
                    ended.processes += 1;
                    ended.roots.push(root.clone());
                    ended.may_hide = true;
                }
            }
        }
        ended
    }

    /// Kills all processes of an execution; nothing is waited for.
    fn kill_at_once(&self, id: &str) {
        // The execution's own group has all of its agents, also those of a launch cut short.
        if let Some(root) = &self.cgroup_root
            && let Ok(group) = Cgroup::open(&root.join(id))
            && let Err(error) = group.kill()
        {
            tracing::error!(%error, "a group could not be killed");
        }
    }

    /// Waits for an execution's group to be empty; who is left.
    fn await_death(&self, id: &str, deadline: Instant) -> Vec<String> {
        let Some(root) = &self.cgroup_root else { return Vec::new() };
        let path = root.join(id);
        let Ok(group) = Cgroup::open(&path) else { return Vec::new() };
        let _killed = group.kill();
        if group.empty_within(deadline.saturating_duration_since(Instant::now())) {
            let _removed = crate::sys::cgroup::remove_tree(&path);
            return Vec::new();
        }
        let left = self.members_of(id);
        left.iter().map(|pid| format!("process {pid} of execution {id}{}", held_by(*pid))).collect()
    }

    /// Makes the denial durable and the replacement current.
    fn commit_revoke(&self, intent: &Intent) -> Result<u64, Problem> {
        let vault = self.core.unlocked()?;
        let key = vault.derive_key("revoke");
        let mut fingerprints = BTreeMap::new();
        for id in intent.targets.iter().flat_map(|t| &t.values) {
            // Its bytes may be gone; then nothing more is known of it than before.
            if let Ok(Some(value)) = vault.get(RecordKind::Value, parse(id)?) {
                fingerprints.insert(id.clone(), self.fingerprint(&value)?);
            }
        }
        let ((), revision) = self.core.change(|catalog, batch| {
            let mut stored = Vec::new();
            for target in &intent.targets {
                // Removed meanwhile: nobody can resolve to it, and its values are gone.
                let Some(secret) = catalog.secret(&target.secret) else { continue };
                let mut secret = Secret::clone(secret);
                secret.revoke(&target.numbers, intent.at);
                for number in &target.numbers {
                    let value = secret.version(*number).and_then(|v| v.value.as_ref());
                    if let Some(text) = value.and_then(|value| fingerprints.get(value)) {
                        secret.set_fingerprint(*number, text.clone());
                    }
                }
                if let Some(replacement) = &target.replacement
                    && !secret
                        .versions
                        .iter()
                        .any(|v| v.value.as_deref() == Some(replacement.record.as_str()))
                {
                    let sealed = crypto::unhex(&replacement.sealed).unwrap_or_default();
                    let value = key
                        .derive(replacement.record.as_bytes(), &[])
                        .open(replacement.record.as_bytes(), &sealed)
                        .map_err(|_| {
                            Problem::new(Code::Internal, "the replacement cannot be opened")
                        })?;
                    let id: RecordId = parse(&replacement.record)?;
                    secret.replace(NewVersion {
                        generation: replacement.generation,
                        at: intent.at,
                        ..self.admitted_version(&value, id, &intent.by)
                    });
                    batch.put(RecordKind::Value, id, value);
                }
                put(batch, RecordKind::Secret, &secret.id, &secret)?;
                stored.push(secret);
            }
            Ok(((), store_all(stored)))
        })?;
        Ok(revision)
    }

    /// Gives executions that never obtained the value the replacement, or nothing.
    fn repin(&self, intent: &Intent) -> Repinned {
        let mut goes_on = BTreeSet::new();
        let mut failed = Vec::new();
        for target in &intent.targets {
            let secret = self.core.catalog().secret(&target.secret).cloned();
            let pin = secret.as_ref().and_then(|s| {
                let version = s.at_stage(Stage::Current)?;
                Some(Pin {
                    version: version.number,
                    value: version.value.clone()?,
                    size_bytes: version.size_bytes,
                    created_at: version.created_at,
                    generation: version.generation,
                })
            });
            let is_old = |value: &str| target.values.iter().any(|v| v == value);
            for execution in self.registry.executions() {
                let holds = execution.pins.get(&target.secret).is_some_and(|p| is_old(&p.value));
                if execution.ended.is_some() || !holds {
                    continue;
                }
                goes_on.insert(execution.id.to_string());
                let changed = self.registry.update(&execution.id, |e| {
                    match &pin {
                        Some(pin) => e.pins.insert(target.secret.clone(), pin.clone()),
                        None => e.pins.remove(&target.secret),
                    };
                });
                if let Err(error) = changed {
                    failed.push(format!("execution {} keeps its pin: {error}", execution.id));
                }
            }
            for principal in self.registry.principals() {
                let has_old = |p: &Principal| {
                    p.files.values().any(|f| f.secret == target.secret && is_old(&f.value))
                };
                if !has_old(&principal) {
                    continue;
                }
                let file = match (&secret, &pin) {
                    (Some(secret), Some(pin)) => {
                        self.file_of(secret, pin, principal.uid, principal.gid).map(Some)
                    }
                    _ => Ok(None),
                };
                let changed = file.and_then(|file| {
                    self.registry
                        .update_principal(principal.number, |p| {
                            let names: Vec<_> = p
                                .files
                                .iter()
                                .filter(|(_, f)| f.secret == target.secret && is_old(&f.value))
                                .map(|(name, _)| name.clone())
                                .collect();
                            for name in names {
                                // Where nothing is to be had, reads say that it was revoked.
                                if let Some(file) = &file {
                                    p.supersede(&name, file.clone());
                                }
                            }
                        })
                        .map_err(|e| registry_problem(&e))
                });
                if let Err(problem) = changed {
                    failed.push(format!(
                        "execution {} keeps the revoked file: {problem}",
                        principal.execution
                    ));
                }
            }
        }
        Repinned { goes_on: goes_on.into_iter().collect(), failed }
    }

    /// Records who was ended and why, and what is denied; the revision that made it durable.
    ///
    /// # Errors
    /// When it is not durable yet: then the intent stays, and is carried out again.
    fn record_revoke(
        &self,
        intent: &mut Intent,
        committed: &Result<u64, Problem>,
        survivors: &[String],
        begun: Instant,
    ) -> Result<u64, Problem> {
        let reason = format!("revoked:{}", intent.name);
        if !intent.recorded {
            for (id, ended) in &intent.ended {
                let (event, tag) = (Event::ExecutionEnded, tag(intent, &[b"ended", id.as_bytes()]));
                if let Some(execution) = self.registry.execution(&parse(id)?) {
                    let uid = execution.uid;
                    self.record_execution_once(event, &execution, uid, Some(&reason), tag)?;
                    continue;
                }
                let mut record = self.core.new_record(event);
                record.execution = Some(id);
                record.chain = Some(&ended.chain);
                record.reason = Some(&reason);
                self.core.record_once(&record, tag)?;
            }
        }
        if intent.recorded && committed.is_err() {
            return committed.clone().map_err(|why| unfinished(intent, &why));
        }
        for target in &intent.targets {
            let Some(secret) = self.core.catalog().secret(&target.secret).cloned() else {
                continue;
            };
            let (key, scope) = (secret.key.to_string(), secret.scope.to_string());
            for number in &target.numbers {
                let mut record = self.core.new_record(Event::SecretRevoked);
                record.secret_key = Some(&key);
                record.scope = Some(&scope);
                record.environment = secret.key.environment.as_ref().map(|e| e.as_str());
                record.version = Some(*number);
                record.user = Some(&intent.by);
                record.uid = Some(intent.uid);
                record.decision = Some(match committed {
                    Ok(_) if survivors.is_empty() => "complete",
                    _ => "incomplete",
                });
                record.reason = Some(&intent.reason);
                record.count = Some(intent.ended.len() as u64);
                record.revision = committed.as_ref().ok().copied();
                record.took_us = u64::try_from(begun.elapsed().as_micros()).ok();
                let state: &[u8] = if committed.is_ok() { b"stored" } else { b"denied" };
                let tag = tag(intent, &[state, target.secret.as_bytes(), &number.to_le_bytes()]);
                self.core.record_once(&record, tag)?;
            }
        }
        if let Err(why) = committed {
            intent.recorded = true;
            self.note_intent(intent)?;
            return Err(unfinished(intent, why));
        }
        committed.clone()
    }
}

fn unfinished(intent: &Intent, why: &Problem) -> Problem {
    let what = format!(
        "{} is denied and {} executions are ended, but that is not durable yet: {}",
        intent.name,
        intent.ended.len(),
        why.detail
    );
    Problem::new(why.code, what)
        .with_hint("it is finished as soon as the vault can be written: strongroom audit query")
}

/// What keeps a killed process from its end, where that can be told.
fn held_by(pid: u32) -> String {
    match proc::tracer(pid) {
        Some(tracer) => format!(", killed, and held at its end by its tracer, process {tracer}"),
        None => String::new(),
    }
}
