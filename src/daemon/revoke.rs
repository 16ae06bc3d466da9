//! Emergency revoke: one ordered transaction that a later worker finishes.
//!
//! Order: the intent in the runtime state; the denial, from which every read of the versions fails;
//! requests in work answered; executions that obtained a version ended, by cgroup; the durable
//! commit, replacement current; the emptiness of their groups awaited; executions that had merely
//! permission pinned anew; records and alert. Invariant: when the verb returns, no read returns the
//! old value, and whatever could not be ended is named. Danger: a launch in between, which the
//! launching lock keeps out from the denial to the new pins.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::audit::record::Event;
use crate::catalog::secret::{NewVersion, Secret, Stage};
use crate::catalog::{Catalog, Unit};
use crate::clock::Timestamp;
use crate::control::Caller;
use crate::execution::exposure::Exposure;
use crate::execution::id::ExecutionId;
use crate::execution::journal::Kind;
use crate::execution::principal::{Membership, Pin, Principal, ProcessRef};
use crate::proto::{self, Code, Problem};
use crate::secret::SecretBytes;
use crate::sys::cgroup::Cgroup;
use crate::vault::crypto;
use crate::vault::record::{RecordId, RecordKind};

use super::core::{new_id, put};
use super::launch::{KILL_LIMIT, registry_problem};
use super::rotate::{Fresh, fresh_unit, member_values, members_of, next_generation, store_all};
use super::secrets::{alone, parse};
use super::{Daemon, user_of};

/// What is being revoked, as later workers find it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Intent {
    /// Names the intent: random, in hex.
    id: String,
    /// As it was asked for, with the environment.
    name: String,
    /// Secret or group, by its record.
    unit: String,
    reason: String,
    by: String,
    uid: u32,
    at: Timestamp,
    targets: Vec<Target>,
    /// Executions that were ended for it so far, with their processes.
    ended: BTreeMap<String, Ended>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Target {
    secret: String,
    numbers: Vec<u32>,
    values: Vec<String>,
    replacement: Option<Replacement>,
}

/// A value to come, sealed: the runtime state holds no value in clear.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Replacement {
    record: String,
    sealed: String,
    generation: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Ended {
    chain: String,
    agents: BTreeSet<String>,
    processes: u64,
    /// Roots of process trees, where there is no cgroup.
    roots: Vec<ProcessRef>,
}

/// Which versions are meant.
fn numbers(secret: &Secret, which: Option<&str>) -> Result<Vec<u32>, Problem> {
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
            let number: u32 = parse(text)?;
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
        let whole = matches!(req.version.as_deref(), None | Some("all" | "current"));
        let fresh = match (req.replacement, req.replacement_members.is_empty()) {
            (Some(value), true) => Some(Fresh::One(value.into_secret())),
            (None, false) => Some(Fresh::Given(members_of(req.replacement_members))),
            (None, true) => None,
            (Some(_), false) => {
                return Err(Problem::new(Code::Invalid, "give one kind of replacement"));
            }
        };
        if whole && fresh.is_none() && !req.no_replacement && !req.dry_run {
            return Err(Problem::new(Code::Invalid, "there is no replacement").with_hint(
                "pipe the new value in, or add --no-replacement: the name resolves to nothing then",
            ));
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
        let intent =
            self.intent(who.peer.uid, &unit, &req.reason, req.version.as_deref(), values)?;
        if req.dry_run {
            return self.would_revoke(&intent, begun);
        }
        if intent.targets.iter().all(|t| t.numbers.is_empty()) {
            let what = format!("every version of {} is revoked already", unit.name());
            return Err(Problem::new(Code::Conflict, what).with_hint("give it a new value"));
        }
        self.note_intent(&intent)?;
        self.carry_out(intent, begun)
    }

    fn intent(
        &self,
        uid: u32,
        unit: &Unit,
        reason: &str,
        which: Option<&str>,
        values: Option<BTreeMap<String, SecretBytes>>,
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
            let replacement = match values.as_ref().and_then(|v| v.get(secret.key.name.as_str())) {
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
        })
    }

    fn note_intent(&self, intent: &Intent) -> Result<(), Problem> {
        let text = serde_json::to_vec(intent)
            .map_err(|_| Problem::new(Code::Internal, "the revoke cannot be noted"))?;
        self.registry
            .journal()
            .put(Kind::Revoke, intent.id.as_bytes(), &text)
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))
    }

    fn intents(&self) -> Vec<Intent> {
        let noted = self.registry.journal().all(Kind::Revoke);
        noted.iter().filter_map(|(_, text)| serde_json::from_slice(text).ok()).collect()
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

    /// Running executions that obtained one of the values, with the agents that did.
    fn exposed(&self, intent: &Intent) -> BTreeMap<ExecutionId, BTreeSet<String>> {
        let mut found: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for exposure in self.exposures(intent) {
            if let Some(id) = &exposure.execution
                && self.registry.execution(id).is_some_and(|e| e.ended.is_none())
            {
                found.entry(id.clone()).or_default().extend(exposure.agent.clone());
            }
        }
        found
    }

    fn exposures(&self, intent: &Intent) -> Vec<std::sync::Arc<Exposure>> {
        let values = intent.targets.iter().flat_map(|t| &t.values);
        values.flat_map(|value| self.registry.ledger().of(value)).collect()
    }

    /// The transaction, from any point on: every step is safe to repeat.
    fn carry_out(&self, mut intent: Intent, begun: Instant) -> Result<proto::Revoked, Problem> {
        let launching = self.launching.write().unwrap_or_else(PoisonError::into_inner);
        self.core.deny(intent.targets.iter().flat_map(|t| t.values.clone()));
        let broker = self.tree.broker();
        broker.settle_requests();
        broker.wipe_denied();
        let first_denial = begun.elapsed();

        // Noted before it is done: a successor must know whom it has to end and to record.
        for (id, agents) in self.exposed(&intent) {
            let ended = self.to_end(&id, agents);
            intent.ended.insert(id.to_string(), ended);
        }
        self.note_intent(&intent)?;
        let reason = format!("revoked:{}", intent.name);
        for id in intent.ended.keys() {
            self.registry
                .end(&parse(id)?, self.core.clock.now(), &reason)
                .map_err(|e| registry_problem(&e))?;
            self.kill_at_once(id);
        }
        let revision = self.commit_revoke(&intent)?;
        let repinned = self.repin(&intent);
        drop(launching);

        let deadline = Instant::now() + KILL_LIMIT;
        let mut survivors = Vec::new();
        for (id, ended) in &intent.ended {
            survivors.extend(self.await_death(id, deadline));
            for root in &ended.roots {
                survivors.extend(super::launch::end_tree(root, Duration::ZERO));
            }
        }
        for problem in repinned {
            survivors.push(problem);
        }
        self.record_revoke(&intent, revision, &survivors, begun)?;
        self.registry
            .journal()
            .remove(Kind::Revoke, intent.id.as_bytes())
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        self.settle_soon();
        let mut answer = self.revoked(&intent, begun)?;
        answer.complete = survivors.is_empty();
        answer.survivors = survivors;
        answer.first_denial_us = u64::try_from(first_denial.as_micros()).unwrap_or(u64::MAX);
        self.alert_revoked(&intent, &answer);
        self.revoke_at_provider(&intent.unit);
        Ok(answer)
    }

    /// What is to be ended of an execution.
    fn to_end(&self, id: &ExecutionId, agents: BTreeSet<String>) -> Ended {
        let chain = self.registry.execution(id).map(|e| e.chain.clone()).unwrap_or_default();
        let mut ended = Ended { chain, agents, ..Ended::default() };
        for member in self.registry.principals_of(id) {
            match &member.membership {
                Membership::Cgroup { path, .. } => {
                    let members = Cgroup::open(path).and_then(|g| g.members());
                    ended.processes += members.map_or(0, |m| m.len() as u64);
                }
                Membership::Tree { root } => {
                    ended.processes += 1;
                    ended.roots.push(root.clone());
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
        let mut left = Vec::new();
        if let Ok(entries) = std::fs::read_dir(&path) {
            for entry in entries.flatten() {
                if let Ok(group) = Cgroup::open(&entry.path()) {
                    left.extend(group.members().unwrap_or_default());
                }
            }
        }
        left.iter().map(|pid| format!("process {pid} of execution {id}")).collect()
    }

    /// Makes the denial durable and the replacement current.
    fn commit_revoke(&self, intent: &Intent) -> Result<u64, Problem> {
        let key = self.core.unlocked()?.derive_key("revoke");
        let ((), revision) = self.core.change(|catalog, batch| {
            let mut stored = Vec::new();
            for target in &intent.targets {
                // Removed meanwhile: nobody can resolve to it, and its values are gone.
                let Some(secret) = catalog.secret(&target.secret) else { continue };
                let mut secret = Secret::clone(secret);
                secret.revoke(&target.numbers, intent.at);
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
                        ..self.new_version(&value, id, &intent.by)
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

    /// Gives executions that never obtained the value the replacement, or nothing. Says what failed.
    fn repin(&self, intent: &Intent) -> Vec<String> {
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
        failed
    }

    fn record_revoke(
        &self,
        intent: &Intent,
        revision: u64,
        survivors: &[String],
        begun: Instant,
    ) -> Result<(), Problem> {
        let reason = format!("revoked:{}", intent.name);
        for id in intent.ended.keys() {
            if let Some(execution) = self.registry.execution(&parse(id)?) {
                self.record_execution(
                    Event::ExecutionEnded,
                    &execution,
                    execution.uid,
                    Some(&reason),
                )?;
            }
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
                record.decision =
                    Some(if survivors.is_empty() { "complete" } else { "incomplete" });
                record.reason = Some(&intent.reason);
                record.count = Some(intent.ended.len() as u64);
                record.revision = Some(revision);
                record.took_us = u64::try_from(begun.elapsed().as_micros()).ok();
                self.core.record(&record)?;
            }
        }
        Ok(())
    }

    fn would_revoke(&self, intent: &Intent, begun: Instant) -> Result<proto::Revoked, Problem> {
        let mut would = intent.clone();
        for (id, agents) in self.exposed(intent) {
            let ended = self.to_end(&id, agents);
            would.ended.insert(id.to_string(), ended);
        }
        let mut answer = self.revoked(&would, begun)?;
        answer.dry_run = true;
        Ok(answer)
    }

    fn revoked(&self, intent: &Intent, begun: Instant) -> Result<proto::Revoked, Problem> {
        let catalog_secret = |id: &str| self.core.catalog().secret(id).cloned();
        let mut versions = BTreeMap::new();
        let mut replaced_by = BTreeMap::new();
        for target in &intent.targets {
            let Some(secret) = catalog_secret(&target.secret) else { continue };
            let numbers: Vec<_> = target.numbers.iter().map(|n| u64::from(*n)).collect();
            versions.insert(secret.key.to_string(), numbers);
            if let Some(replacement) = &target.replacement
                && let Some(version) = secret
                    .versions
                    .iter()
                    .find(|v| v.value.as_deref() == Some(replacement.record.as_str()))
            {
                replaced_by.insert(secret.key.to_string(), u64::from(version.number));
            }
        }
        let mut outside = Vec::new();
        for target in &intent.targets {
            let Some(secret) = catalog_secret(&target.secret) else { continue };
            for exposure in self.shown_exposures(&secret) {
                let number = u32::try_from(exposure.version).unwrap_or(0);
                if exposure.execution.is_none() && target.numbers.contains(&number) {
                    outside.push(exposure);
                }
            }
        }
        Ok(proto::Revoked {
            versions,
            replaced_by,
            ended: intent
                .ended
                .iter()
                .map(|(id, ended)| proto::EndedExecution {
                    execution: id.clone(),
                    chain: ended.chain.clone(),
                    agents: ended.agents.iter().cloned().collect(),
                    processes: ended.processes,
                })
                .collect(),
            survivors: Vec::new(),
            outside,
            same_value: self.same_value(intent)?,
            complete: false,
            dry_run: false,
            first_denial_us: 0,
            took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Other secrets that have one of these values in a version that can be read.
    fn same_value(&self, intent: &Intent) -> Result<Vec<String>, Problem> {
        let vault = self.core.unlocked()?;
        let mut revoked = Vec::new();
        for value in intent.targets.iter().flat_map(|t| &t.values) {
            let id: RecordId = parse(value)?;
            if let Ok(Some(value)) = vault.get(RecordKind::Value, id) {
                revoked.push(value);
            }
        }
        let sizes: BTreeSet<_> = revoked.iter().map(SecretBytes::len).collect();
        let mut found = BTreeSet::new();
        let secrets = self.core.catalog().secrets();
        for secret in secrets.iter().filter(|s| !intent.targets.iter().any(|t| t.secret == s.id)) {
            for version in secret.versions.iter().filter(|v| v.stage.is_readable()) {
                let size = usize::try_from(version.size_bytes).unwrap_or(0);
                let Some(id) = version.value.as_deref().filter(|_| sizes.contains(&size)) else {
                    continue;
                };
                let id: RecordId = parse(id)?;
                let Ok(Some(value)) = vault.get(RecordKind::Value, id) else { continue };
                let is_same = |r: &SecretBytes| {
                    bool::from(subtle::ConstantTimeEq::ct_eq(r.expose(), value.expose()))
                };
                if revoked.iter().any(is_same) {
                    found.insert(format!("{} with scope {}", secret.key, secret.scope));
                }
            }
        }
        Ok(found.into_iter().collect())
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

    fn shown_exposures(&self, secret: &Secret) -> Vec<proto::Exposure> {
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

    /// After a restore: what the log says was revoked or destroyed stays so.
    pub(super) fn reapply_revocations(&self) -> Result<Vec<String>, Problem> {
        let _flushed = self.core.log.flush(Duration::from_secs(2));
        let mut gone: BTreeMap<(String, String), BTreeSet<(u32, bool)>> = BTreeMap::new();
        crate::audit::verify::read(self.core.log.dir(), 0, |_, value| {
            let destroyed = value["event"] == Event::SecretDestroyed.name();
            if (destroyed || value["event"] == Event::SecretRevoked.name())
                && let (Some(key), Some(scope), Some(number)) = (
                    value["secret_key"].as_str(),
                    value["scope"].as_str(),
                    value["version"].as_u64(),
                )
            {
                let number = u32::try_from(number).unwrap_or(0);
                gone.entry((key.to_owned(), scope.to_owned()))
                    .or_default()
                    .insert((number, destroyed));
            }
            true
        })
        .map_err(|e| Problem::new(Code::Internal, format!("the log cannot be read: {e}")))?;
        let now = self.core.clock.now();
        let mut reapplied = Vec::new();
        let (values, _) = self.core.change(|catalog, batch| {
            let mut stored = Vec::new();
            let mut values = Vec::new();
            for ((key, scope), versions) in &gone {
                let (Ok(key), Ok(scope)) = (key.parse(), scope.parse()) else { continue };
                let Ok(found) = catalog.find(&key, Some(&scope)) else { continue };
                let mut secret = Secret::clone(&found);
                let mut changed = false;
                for (number, destroyed) in versions {
                    let Some(version) = secret.version(*number).cloned() else { continue };
                    if *destroyed {
                        if let Some(value) = secret.destroy(*number) {
                            batch.delete(RecordKind::Value, parse(&value)?);
                            secret.revoke(&[*number], now);
                            reapplied.push(format!("{key} version {number}: destroyed"));
                            changed = true;
                        }
                    } else if version.stage != Stage::Revoked {
                        values.extend(version.value.clone());
                        secret.revoke(&[*number], now);
                        reapplied.push(format!("{key} version {number}: revoked"));
                        changed = true;
                    }
                }
                if changed {
                    put(batch, RecordKind::Secret, &secret.id, &secret)?;
                    stored.push(secret);
                }
            }
            let apply = move |c: &mut Catalog| {
                for secret in stored {
                    c.put_secret(secret);
                }
            };
            Ok((values, Box::new(apply) as _))
        })?;
        self.core.deny(values);
        Ok(reapplied)
    }

    fn alert_revoked(&self, intent: &Intent, answer: &proto::Revoked) {
        self.alert(super::alert::Alert {
            event: Event::SecretRevoked.name(),
            secret: Some(intent.name.clone()),
            message: format!(
                "{} was revoked by {}: {} executions ended{}",
                intent.name,
                intent.by,
                answer.ended.len(),
                if answer.complete { "" } else { ", NOT ALL of their processes" }
            ),
            reason: Some(intent.reason.clone()),
            at: self.core.clock.now(),
        });
    }
}
