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

use crate::audit::record::Event;
use crate::catalog::secret::{NewVersion, Secret, Stage};
use crate::control::Caller;
use crate::execution::exposure::Exposure;
use crate::execution::id::ExecutionId;
use crate::execution::journal::Kind;
use crate::execution::principal::{Membership, Pin, Principal};
use crate::proto::{self, Code, Problem};
use crate::secret::SecretBytes;
use crate::sys::cgroup::Cgroup;
use crate::vault::crypto;
use crate::vault::record::{RecordId, RecordKind};

use super::Daemon;
use super::core::put;
use super::ending::KILL_LIMIT;
use super::executions::registry_problem;
use super::intent::{Ended, Intent};
use super::rotate::{Fresh, member_values, members_of, store_all};
use super::secrets::{alone, parse};

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
                survivors.extend(super::ending::end_tree(root, Duration::ZERO));
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
