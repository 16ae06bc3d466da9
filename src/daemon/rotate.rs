//! Versions: rotate, promote, rollback, destroy.
//!
//! Invariant: a group changes in one commit; no step takes a version from an execution that holds it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::audit::record::Event;
use crate::catalog::scope::Scope;
use crate::catalog::secret::{Error, NewVersion, Secret, Stage, Version};
use crate::catalog::{Catalog, Unit};
use crate::clock::Timestamp;
use crate::control::Caller;
use crate::execution::id::ExecutionId;
use crate::proto::{self, Code, Problem, Value};
use crate::rotation::plan;
use crate::secret::SecretBytes;
use crate::vault::record::{Batch, RecordKind};

use super::core::{new_id, put};
use super::generate::generate;
use super::secrets::{alone, catalog_problem, check_value, notes_on, parse, parse_scope, shown};
use super::{Daemon, user_of};

/// Where a value of a rotation comes from.
pub(super) enum Fresh {
    /// One value for each member, by full name.
    Given(BTreeMap<String, SecretBytes>),
    /// One secret's value.
    One(SecretBytes),
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

/// A group's members out of a request.
pub(super) fn members_of(members: BTreeMap<String, Value>) -> BTreeMap<String, SecretBytes> {
    members.into_iter().map(|(name, value)| (name, value.into_secret())).collect()
}

impl Daemon {
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
            let secrets = self.stage_unit(catalog, batch, &unit, &values, times, &by)?;
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

    /// Puts a staged version of each member into `batch`.
    pub(super) fn stage_unit(
        &self,
        catalog: &Catalog,
        batch: &mut Batch,
        unit: &Unit,
        values: &BTreeMap<String, SecretBytes>,
        times: Times,
        by: &str,
    ) -> Result<Vec<Secret>, Problem> {
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
        has_current(unit)?;
        let generation = next_generation(unit);
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
                ..self.new_version(catalog, value, id, by)?
            };
            secret.stage(new).map_err(|e| Problem::new(Code::Conflict, e.to_string()))?;
            batch.put(RecordKind::Value, id, SecretBytes::copy_of(value.expose()));
            put(batch, RecordKind::Secret, &secret.id, &secret)?;
            secrets.push(secret);
        }
        Ok(secrets)
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
        let untested =
            |s: &&std::sync::Arc<Secret>| s.at_stage(Stage::Pending).is_some_and(|v| v.untested);
        if unit.members.iter().any(|s| untested(&s)) && !req.force {
            let what = format!("version {} of {} is not tested yet", waiting.pending, unit.name());
            return Err(Problem::new(Code::Conflict, what).with_hint(format!(
                "let its rotation come to an end, or give it up: strongroom secret rollback {}; \
                 --force takes it untested",
                unit.name()
            )));
        }
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
        what: (Event, Option<&str>),
        change: impl FnMut(&mut Secret) -> Result<(), Problem>,
    ) -> Result<Unit, Problem> {
        self.change_unit_with(unit, uid, what, |_| Ok(()), change)
    }

    /// The same, with something else that is stored in the same commit.
    pub(super) fn change_unit_with(
        &self,
        unit: &Unit,
        uid: u32,
        (event, reason): (Event, Option<&str>),
        also: impl FnOnce(&mut Batch) -> Result<(), Problem>,
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
            also(batch)?;
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
        req: &proto::SecretRollback,
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
            let forced =
                unit.members.iter().any(|s| s.rollback_target().is_some_and(Version::is_withdrawn));
            if forced {
                notes.push("its provider may refuse what is current now".to_owned());
            }
            let name = unit.name();
            let what = (Event::SecretRolledBack, forced.then_some("by force: removed before"));
            self.change_unit(&unit, who.peer.uid, what, |secret| {
                secret.rollback(now, req.force).map(|_| ()).map_err(|e| {
                    let hint = match &e {
                        Error::Withdrawn { .. } => format!(
                            "whoever got it could not use it; have a new one made: strongroom \
                             rotation run {name}; --force brings it back all the same"
                        ),
                        _ => format!("strongroom secret show {} lists what there is", secret.key),
                    };
                    Problem::new(Code::Conflict, e.to_string()).with_hint(hint)
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

    pub(super) fn destroy(&self, found: &Secret, number: u32, uid: u32) -> Result<Secret, Problem> {
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
}

/// Refuses a unit without a current version: there is nothing to be rotated.
pub(super) fn has_current(unit: &Unit) -> Result<(), Problem> {
    if let Some(secret) = unit.members.iter().find(|s| s.at_stage(Stage::Current).is_none()) {
        let what = format!("{} has no current version: it was revoked", secret.key);
        return Err(Problem::new(Code::Conflict, what).with_hint(format!(
            "give it a new value: strongroom {} {}{} --replace",
            if unit.group.is_some() { "group set" } else { "secret set" },
            unit.name(),
            // Without one it would be another secret.
            match unit.scope() {
                None | Some(Scope::Org) => String::new(),
                Some(scope) => format!(" --scope {scope}"),
            },
        )));
    }
    Ok(())
}

/// The unit as it is now: another change may have come between.
pub(super) fn fresh_unit(catalog: &Catalog, unit: &Unit) -> Result<Unit, Problem> {
    catalog.unit(unit.id()).ok_or_else(|| {
        Problem::new(Code::NotFound, format!("{} was removed meanwhile", unit.name()))
    })
}

pub(super) fn gone(secret: &Secret) -> Problem {
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
