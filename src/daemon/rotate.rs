//! Versions: rotate, promote, rollback, destroy, and what time does to them.
//!
//! Invariant: a group changes in one commit; no step takes a version from an execution that holds it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::audit::record::Event;
use crate::catalog::secret::{Binding, NewVersion, Secret, Stage};
use crate::catalog::{Catalog, Unit};
use crate::clock::Timestamp;
use crate::control::Caller;
use crate::execution::exposure::Exposure;
use crate::execution::id::ExecutionId;
use crate::execution::principal::Pin;
use crate::proto::{self, Code, Problem, Value};
use crate::rotation::plan::{self, Rules, Step};
use crate::secret::SecretBytes;
use crate::vault::crypto;
use crate::vault::record::{Batch, RecordId, RecordKind};

use super::core::{new_id, put, vault_problem};
use super::secrets::{alone, catalog_problem, check_value, notes_on, parse, parse_scope, shown};
use super::{Daemon, user_of};

/// Versions and policies are looked at this often even when nothing seems to have changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Exposures that go to the vault in one commit.
const EXPOSURES_AT_ONCE: usize = 10_000;
/// Records of exposures beyond which they are put together into one.
const MAX_EXPOSURE_RECORDS: usize = 64;

/// Where a value of a rotation comes from.
pub(super) enum Fresh {
    /// One value for each member, by full name.
    Given(BTreeMap<String, SecretBytes>),
    /// One secret's value.
    One(SecretBytes),
}

/// A random value as `--generate` makes it.
fn generate(wanted: &proto::Generate) -> Result<SecretBytes, Problem> {
    const ALPHANUMERIC: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const HEX: &[u8] = b"0123456789abcdef";
    if !(16..=4096).contains(&wanted.length) {
        return Err(Problem::new(Code::Invalid, "a generated value has 16 to 4096 characters")
            .with_hint("as in --generate alphanumeric:32"));
    }
    let alphabet = match wanted.alphabet.as_deref().unwrap_or("alphanumeric") {
        "alphanumeric" => ALPHANUMERIC,
        "base64" => BASE64,
        "hex" => HEX,
        other => {
            return Err(Problem::new(Code::Invalid, format!("there is no kind of value {other}"))
                .with_hint("kinds are alphanumeric, hex and base64"));
        }
    };
    let len = wanted.length as usize;
    let mut value = Vec::with_capacity(len);
    // Bytes beyond the last whole multiple are thrown away, so that each character is as likely.
    let fair = 256 / alphabet.len() * alphabet.len();
    while value.len() < len {
        let mut bytes = [0_u8; 64];
        crypto::random(&mut bytes).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        let usable = bytes.iter().map(|b| usize::from(*b)).filter(|b| *b < fair);
        value.extend(usable.map(|b| alphabet[b % alphabet.len()]).take(len - value.len()));
    }
    Ok(SecretBytes::from_vec(value))
}

/// A group's members out of a request.
pub(super) fn members_of(members: BTreeMap<String, Value>) -> BTreeMap<String, SecretBytes> {
    members.into_iter().map(|(name, value)| (name, value.into_secret())).collect()
}

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

    pub(super) fn unit(&self, name: &str, scope: Option<&str>) -> Result<Unit, Problem> {
        self.core.unlocked()?;
        let scope = parse_scope(scope)?;
        self.core.catalog().find_unit(name, scope.as_ref()).map_err(|e| catalog_problem(&e))
    }

    pub(super) fn rotate_secret(
        &self,
        who: &Caller,
        req: proto::SecretRotate,
    ) -> Result<proto::Rotated, Problem> {
        let unit = self.unit(&req.name, req.scope.as_deref())?;
        if unit.group.is_some() {
            let what = format!("{} is a group", req.name);
            return Err(Problem::new(Code::Conflict, what)
                .with_hint(format!("strongroom group rotate {} < members.json", req.name)));
        }
        alone(&unit.members[0])?;
        let value = match (req.value, &req.generate) {
            (Some(value), None) => value.into_secret(),
            (None, Some(kind)) => generate(kind)?,
            _ => {
                return Err(Problem::new(Code::Invalid, "give a value, or have one generated")
                    .with_hint("pipe the new value in, or add --generate alphanumeric:32"));
            }
        };
        let times = Times {
            from: req.valid_from,
            until: req.valid_until,
            drain: req.drain,
            untested: false,
        };
        self.stage(who.peer.uid, &unit, &Fresh::One(value), times)
    }

    pub(super) fn rotate_group(
        &self,
        who: &Caller,
        req: proto::GroupRotate,
    ) -> Result<proto::Rotated, Problem> {
        let unit = self.unit(&req.name, req.scope.as_deref())?;
        if unit.group.is_none() {
            let what = format!("{} is a secret, not a group", req.name);
            return Err(Problem::new(Code::Conflict, what)
                .with_hint(format!("strongroom secret rotate {}", req.name)));
        }
        let times = Times {
            from: req.valid_from,
            until: req.valid_until,
            drain: req.drain,
            untested: false,
        };
        self.stage(who.peer.uid, &unit, &Fresh::Given(members_of(req.members)), times)
    }

    /// Stages a version of each member, in one commit.
    pub(super) fn stage(
        &self,
        uid: u32,
        unit: &Unit,
        fresh: &Fresh,
        times: Times,
    ) -> Result<proto::Rotated, Problem> {
        let by = user_of(uid);
        let now = self.core.clock.now();
        if times.until.is_some_and(|until| until <= times.from.unwrap_or(now).max(now)) {
            return Err(Problem::new(Code::Invalid, "the version would end before it begins")
                .with_hint("give a --valid-until that lies after --valid-from and now"));
        }
        let values = member_values(unit, fresh)?;
        let (secrets, revision) = self.core.change(|catalog, batch| {
            let unit = fresh_unit(catalog, unit)?;
            if let Some((key, pending)) = unit
                .members
                .iter()
                .find_map(|s| Some((s.key.clone(), s.at_stage(Stage::Pending)?.clone())))
            {
                let name = unit.name();
                let what = format!(
                    "version {} of {key} is pending already, since {}",
                    pending.number,
                    pending.since()
                );
                return Err(Problem::new(Code::Conflict, what).with_hint(format!(
                    "strongroom secret promote {name}, or secret rollback {name} to give it up"
                )));
            }
            if let Some(secret) = unit.members.iter().find(|s| s.at_stage(Stage::Current).is_none())
            {
                let what = format!("{} has no current version: it was revoked", secret.key);
                return Err(Problem::new(Code::Conflict, what).with_hint(format!(
                    "give it a new value: strongroom {} --replace",
                    match &unit.group {
                        Some(group) => format!("group set {}", group.key),
                        None => format!("secret set {}", secret.key),
                    }
                )));
            }
            let generation = next_generation(&unit);
            let mut secrets = Vec::new();
            for member in &unit.members {
                let mut secret = Secret::clone(member);
                let value = &values[&secret.key.name.to_string()];
                let id = new_id()?;
                let new = NewVersion {
                    valid_from: times.from,
                    valid_until: times.until,
                    generation,
                    drain: times.drain,
                    untested: times.untested,
                    ..self.new_version(value, id, &by)
                };
                secret.stage(new).map_err(|e| Problem::new(Code::Conflict, e.to_string()))?;
                batch.put(RecordKind::Value, id, SecretBytes::copy_of(value.expose()));
                put(batch, RecordKind::Secret, &secret.id, &secret)?;
                secrets.push(secret);
            }
            let stored = secrets.clone();
            Ok((secrets, store_all(stored)))
        })?;
        let mut notes = Vec::new();
        for secret in &secrets {
            let value = &values[&secret.key.name.to_string()];
            notes.extend(notes_on(value, secret.plain));
            self.record_version(Event::SecretRotated, uid, secret, Stage::Pending, revision, None)?;
        }
        self.settle_soon();
        let unit = Unit {
            group: unit.group.clone(),
            members: secrets.into_iter().map(std::sync::Arc::new).collect(),
        };
        Ok(self.rotated(&unit, now, notes))
    }

    fn rotated(&self, unit: &Unit, now: Timestamp, notes: Vec<String>) -> proto::Rotated {
        let number = |stage| {
            unit.members
                .iter()
                .filter_map(|s| Some((s.key.to_string(), u64::from(s.at_stage(stage)?.number))))
                .collect()
        };
        let waiting = self.waiting_for(unit);
        proto::Rotated {
            name: unit.name(),
            pending: number(Stage::Pending),
            current: number(Stage::Current),
            valid_from: unit
                .members
                .iter()
                .find_map(|s| s.at_stage(Stage::Pending)?.valid_from)
                .filter(|from| *from > now),
            waits_for: waiting.as_ref().map(|w| w.waits_for.clone()).unwrap_or_default(),
            drain_at: waiting.and_then(|w| w.drain_at),
            notes,
        }
    }

    /// Who is waited for until the pending version becomes current.
    pub(super) fn waiting_for(&self, unit: &Unit) -> Option<proto::Waiting> {
        let pending = unit.members.iter().find_map(|s| s.at_stage(Stage::Pending))?;
        let mut holders: Vec<ExecutionId> = unit
            .members
            .iter()
            .filter_map(|s| s.at_stage(Stage::Current)?.value.as_deref())
            .flat_map(|value| self.registry.holders(value))
            .collect();
        holders.sort();
        holders.dedup();
        Some(proto::Waiting {
            secret: unit.name(),
            pending: u64::from(pending.number),
            waits_for: holders.iter().map(ToString::to_string).collect(),
            since: pending.created_at,
            drain_at: plan::drain_ends(pending, self.rules()),
        })
    }

    /// Rotations that wait, for `status`.
    pub(super) fn all_waiting(&self) -> Vec<proto::Waiting> {
        let units = self.core.catalog().unsettled();
        units.iter().filter_map(|unit| self.waiting_for(unit)).collect()
    }

    pub(super) fn promote_secret(
        &self,
        who: &Caller,
        req: &proto::SecretPromote,
    ) -> Result<proto::Rotated, Problem> {
        let unit = self.unit(&req.name, req.scope.as_deref())?;
        if let Some(secret) = unit.members.first()
            && unit.group.is_none()
        {
            alone(secret)?;
        }
        let waiting = self.waiting_for(&unit).ok_or_else(|| {
            Problem::new(Code::Conflict, format!("{} has no pending version", unit.name()))
                .with_hint(format!("stage one: strongroom secret rotate {}", unit.name()))
        })?;
        if !waiting.waits_for.is_empty() && !req.force {
            let what = format!(
                "{} executions hold the current version of {}: {}",
                waiting.waits_for.len(),
                unit.name(),
                waiting.waits_for.join(", ")
            );
            return Err(Problem::new(Code::Conflict, what).with_hint(
                "wait for their end, or add --force: they keep their version and go on reading it",
            ));
        }
        let unit = self.promote(&unit, who.peer.uid, None)?;
        Ok(self.rotated(&unit, self.core.clock.now(), Vec::new()))
    }

    /// Makes the pending version current, in every member.
    pub(super) fn promote(
        &self,
        unit: &Unit,
        uid: u32,
        reason: Option<&str>,
    ) -> Result<Unit, Problem> {
        let now = self.core.clock.now();
        self.change_unit(unit, uid, (Event::SecretPromoted, reason), |secret| {
            secret.promote(now).map(|_| ()).map_err(|e| Problem::new(Code::Conflict, e.to_string()))
        })
    }

    /// Applies one change to each member in one commit, records it, and lets floating files follow.
    pub(super) fn change_unit(
        &self,
        unit: &Unit,
        uid: u32,
        (event, reason): (Event, Option<&str>),
        mut change: impl FnMut(&mut Secret) -> Result<(), Problem>,
    ) -> Result<Unit, Problem> {
        let (secrets, revision) = self.core.change(|catalog, batch| {
            let unit = fresh_unit(catalog, unit)?;
            let mut secrets = Vec::new();
            for member in &unit.members {
                let mut secret = Secret::clone(member);
                change(&mut secret)?;
                put(batch, RecordKind::Secret, &secret.id, &secret)?;
                secrets.push(secret);
            }
            let stored = secrets.clone();
            Ok((secrets, store_all(stored)))
        })?;
        for secret in &secrets {
            self.record_version(event, uid, secret, Stage::Current, revision, reason)?;
        }
        self.follow_floating(&secrets);
        self.settle_soon();
        Ok(Unit {
            group: unit.group.clone(),
            members: secrets.into_iter().map(std::sync::Arc::new).collect(),
        })
    }

    pub(super) fn rollback_secret(
        &self,
        who: &Caller,
        req: &proto::SecretName,
    ) -> Result<proto::Rotated, Problem> {
        let unit = self.unit(&req.name, req.scope.as_deref())?;
        if let Some(secret) = unit.members.first()
            && unit.group.is_none()
        {
            alone(secret)?;
        }
        let now = self.core.clock.now();
        let pending = unit.members.iter().any(|s| s.at_stage(Stage::Pending).is_some());
        let mut notes = Vec::new();
        let unit = if pending {
            notes.push("the pending version is given up; the current one stays".to_owned());
            let what = (Event::SecretRolledBack, Some("the pending version was discarded"));
            self.change_unit(&unit, who.peer.uid, what, |secret| {
                secret.discard(now);
                Ok(())
            })?
        } else {
            let what = (Event::SecretRolledBack, None);
            self.change_unit(&unit, who.peer.uid, what, |secret| {
                secret.rollback(now).map(|_| ()).map_err(|e| {
                    Problem::new(Code::Conflict, e.to_string()).with_hint(format!(
                        "strongroom secret show {} lists what there is",
                        secret.key
                    ))
                })
            })?
        };
        Ok(self.rotated(&unit, now, notes))
    }

    /// Discards the pending version, as a failed rotation does.
    pub(super) fn discard_pending(&self, unit: &Unit, reason: &str) -> Result<(), Problem> {
        let now = self.core.clock.now();
        let uid = nix::unistd::geteuid().as_raw();
        self.change_unit(unit, uid, (Event::SecretRolledBack, Some(reason)), |secret| {
            secret.discard(now);
            Ok(())
        })
        .map(|_| ())
    }

    pub(super) fn destroy_version(
        &self,
        who: &Caller,
        req: &proto::SecretDestroy,
    ) -> Result<proto::SecretShown, Problem> {
        let found = self.find_secret(&req.name, req.scope.as_deref())?;
        let number = u32::try_from(req.version).unwrap_or(0);
        let version = found.version(number).ok_or_else(|| {
            Problem::new(Code::NotFound, format!("{} has no version {number}", found.key))
                .with_hint(format!("strongroom secret show {}", found.key))
        })?;
        if matches!(version.stage, Stage::Current | Stage::Pending) {
            let what = format!("version {number} of {} is {}", found.key, version.stage.word());
            return Err(Problem::new(Code::Conflict, what)
                .with_hint("rotate and promote first, or revoke it"));
        }
        let holders = version.value.as_deref().map(|v| self.registry.holders(v));
        let holders = holders.unwrap_or_default();
        if !holders.is_empty() && version.stage != Stage::Revoked {
            let names: Vec<_> = holders.iter().map(ToString::to_string).collect();
            let what = format!("version {number} of {} is held by {}", found.key, names.join(", "));
            return Err(Problem::new(Code::Conflict, what)
                .with_hint("wait for their end, or revoke the version"));
        }
        let secret = self.destroy(&found, number, who.peer.uid)?;
        Ok(shown(&secret, Vec::new()))
    }

    fn destroy(&self, found: &Secret, number: u32, uid: u32) -> Result<Secret, Problem> {
        let (secret, revision) = self.core.change(|catalog, batch| {
            let now = catalog.secret(&found.id).ok_or_else(|| gone(found))?;
            let mut secret = Secret::clone(now);
            let value = secret.destroy(number);
            if let Some(value) = &value {
                batch.delete(RecordKind::Value, parse(value)?);
            }
            put(batch, RecordKind::Secret, &secret.id, &secret)?;
            Ok((secret.clone(), store_all(vec![secret])))
        })?;
        if let Some(value) = found.version(number).and_then(|v| v.value.as_deref()) {
            self.registry.ledger().forget(value);
        }
        let (key, scope, user) = (secret.key.to_string(), secret.scope.to_string(), user_of(uid));
        let mut record = self.core.new_record(Event::SecretDestroyed);
        record.secret_key = Some(&key);
        record.scope = Some(&scope);
        record.environment = secret.key.environment.as_ref().map(|e| e.as_str());
        record.version = Some(number);
        record.user = Some(&user);
        record.uid = Some(uid);
        record.revision = Some(revision);
        self.core.record(&record)?;
        Ok(secret)
    }

    /// A record about the version at `stage` of a secret.
    fn record_version(
        &self,
        event: Event,
        uid: u32,
        secret: &Secret,
        stage: Stage,
        revision: u64,
        reason: Option<&str>,
    ) -> Result<(), Problem> {
        let (key, scope, user) = (secret.key.to_string(), secret.scope.to_string(), user_of(uid));
        let mut record = self.core.new_record(event);
        record.secret_key = Some(&key);
        record.scope = Some(&scope);
        record.environment = secret.key.environment.as_ref().map(|e| e.as_str());
        record.version = secret.at_stage(stage).map(|v| v.number);
        record.user = Some(&user);
        record.uid = Some(uid);
        record.reason = reason;
        record.revision = Some(revision);
        self.core.record(&record)?;
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
                            .map_err(|e| super::launch::registry_problem(&e))
                    });
                if let Err(problem) = changed {
                    tracing::error!(%problem, "a floating file could not follow");
                }
            }
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

    /// Moves exposures from the runtime state into the vault.
    pub(super) fn store_exposures(&self) -> Result<(), Problem> {
        let unstored = self.registry.ledger().unstored(EXPOSURES_AT_ONCE);
        if unstored.is_empty() {
            return Ok(());
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
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))
    }
}

/// From when to when a version counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    pub(super) from: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    pub(super) drain: Option<crate::config::Period>,
    /// Kept from everybody until a rotation chain has tested it.
    pub(super) untested: bool,
}

/// The unit as it is now: another change may have come between.
pub(super) fn fresh_unit(catalog: &Catalog, unit: &Unit) -> Result<Unit, Problem> {
    catalog.unit(unit.id()).ok_or_else(|| {
        Problem::new(Code::NotFound, format!("{} was removed meanwhile", unit.name()))
    })
}

fn gone(secret: &Secret) -> Problem {
    Problem::new(Code::NotFound, format!("{} was removed meanwhile", secret.key))
}

pub(super) fn next_generation(unit: &Unit) -> u32 {
    match &unit.group {
        Some(_) => unit.members.iter().map(|s| s.generation()).max().unwrap_or(0) + 1,
        None => 0,
    }
}

pub(super) fn store_all(secrets: Vec<Secret>) -> super::core::Apply {
    Box::new(move |c: &mut Catalog| {
        for secret in secrets {
            c.put_secret(secret);
        }
    })
}

/// One checked value for each member, by its bare name.
pub(super) fn member_values(
    unit: &Unit,
    fresh: &Fresh,
) -> Result<BTreeMap<String, SecretBytes>, Problem> {
    let mut values = BTreeMap::new();
    match fresh {
        Fresh::One(value) => {
            check_value(value)?;
            if let [secret] = &unit.members[..] {
                values.insert(secret.key.name.to_string(), SecretBytes::copy_of(value.expose()));
            }
        }
        Fresh::Given(given) => {
            for (name, value) in given {
                check_value(value)?;
                if !unit.members.iter().any(|s| s.key.name.as_str() == name) {
                    let what = format!("{name} is no member of {}", unit.name());
                    return Err(Problem::new(Code::Invalid, what)
                        .with_hint(format!("its members are {}", member_names(unit))));
                }
                values.insert(name.clone(), SecretBytes::copy_of(value.expose()));
            }
        }
    }
    if let Some(missing) = unit.members.iter().find(|s| !values.contains_key(s.key.name.as_str())) {
        let what = format!("there is no value for {}", missing.key);
        return Err(Problem::new(Code::Invalid, what)
            .with_hint(format!("give all members at once: {}", member_names(unit))));
    }
    Ok(values)
}

fn member_names(unit: &Unit) -> String {
    let names: Vec<_> = unit.members.iter().map(|s| s.key.name.as_str()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_value_has_its_length_and_alphabet_and_comes_but_once() {
        let kind = |length, alphabet: &str| proto::Generate {
            length,
            alphabet: Some(alphabet.to_owned()),
        };
        for (alphabet, is_in) in [
            ("alphanumeric", (|b| b.is_ascii_alphanumeric()) as fn(&u8) -> bool),
            ("hex", u8::is_ascii_hexdigit),
            ("base64", |b| b.is_ascii_alphanumeric() || b"-_".contains(b)),
        ] {
            let one = generate(&kind(64, alphabet)).unwrap();
            assert_eq!(one.len(), 64);
            assert!(one.expose().iter().all(is_in));
            let two = generate(&kind(64, alphabet)).unwrap();
            assert!(one.expose() != two.expose());
        }
        assert!(generate(&kind(15, "hex")).is_err());
        assert!(generate(&kind(4097, "hex")).is_err());
        assert!(generate(&kind(32, "emoji")).is_err());
    }
}
