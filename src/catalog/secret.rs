//! A secret's metadata and the stages of its versions.
//!
//! Invariant: at most one version is `current` and at most one `pending`; numbers only grow; a
//! version that is revoked or destroyed never comes back. Several may be `previous`: each is read by
//! whoever is still pinned to it.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::config::Period;

use super::name::{GroupName, SecretKey};
use super::scope::Scope;

/// Where a version stands. In order of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Staged; new executions get it from its `valid_from` on.
    Pending,
    /// What new executions get.
    Current,
    /// Replaced; read by those that are pinned to it.
    Previous,
    /// Unreadable; kept to be found by redaction.
    Retired,
    /// Denied to everybody, for good.
    Revoked,
}

impl Stage {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Pending => "pending",
            Self::Previous => "previous",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }

    /// Whether executions that are pinned to it may read it.
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Current | Self::Pending | Self::Previous)
    }
}

/// Whether an execution keeps the version that it started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Binding {
    /// Follows `current` at each open.
    Floating,
    /// Keeps it to its end.
    Pinned,
}

/// One immutable value, by its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// From 1.
    pub number: u32,
    /// Where it stands.
    pub stage: Stage,
    /// The vault's record of the value, in hex; `None` once it is destroyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Exact size of the value.
    pub size_bytes: u64,
    /// From when new executions get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_from: Option<Timestamp>,
    /// Until when new executions get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Since when it stands where it stands; none: since it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_since: Option<Timestamp>,
    /// Was pending and never became current: `rollback` does not bring it back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discarded: bool,
    /// Pending and not tested yet: nobody gets it but the rotation chain that made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untested: bool,
    /// Members of a group that came together have the same number; 0 where there is no group.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u32,
    /// Promoted after this time even while the old one is held; none: as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Period>,
    /// Of a revoked version: what its value is known again by, after it is destroyed as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Since when its provider takes it no more, or may not: a rotation chain's `finish` was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn_at: Option<Timestamp>,
    /// That `valid_until` has left new executions without a version was told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub end_told: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Version {
    /// Since when it stands where it stands.
    pub fn since(&self) -> Timestamp {
        self.stage_since.unwrap_or(self.created_at)
    }

    /// Whether its provider takes it no more, or may not.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn_at.is_some()
    }

    fn move_to(&mut self, stage: Stage, at: Timestamp) {
        self.stage = stage;
        self.stage_since = Some(at);
    }
}

/// A secret without its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The vault's record of this, in hex.
    pub id: String,
    /// Name and environment.
    pub key: SecretKey,
    /// Who may be admitted.
    pub scope: Scope,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The group that it changes with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
    /// Whether it is delivered but no secret.
    pub plain: bool,
    /// Pinned or floating.
    pub binding: Binding,
    /// Whether each read is recorded.
    pub access_log_enabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When its current version came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<Timestamp>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The end that was told when it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_told: Option<Timestamp>,
    /// By number.
    pub versions: Vec<Version>,
}

/// What has come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The secret: nobody reads it any more.
    Secret,
    /// This version's `valid_until`, and there is no other: new executions get none.
    Version(u32),
}

/// A revoked value whose secret was removed: what it is known again by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buried {
    /// The secret that it was a value of.
    pub key: SecretKey,
    /// Its scope.
    pub scope: Scope,
    /// The version's number.
    pub number: u32,
    /// What it is known again by.
    pub fingerprint: String,
}

/// Why a version cannot change its stage, or none can be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The secret's end has passed.
    #[error("{key} expired at {at}")]
    Expired {
        /// Which.
        key: SecretKey,
        /// When.
        at: Timestamp,
    },
    /// Nothing is there to be had.
    #[error("{key} has no {wanted} version")]
    NoVersion {
        /// Which.
        key: SecretKey,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A version is pending already.
    #[error("{key} has version {number} pending already")]
    Pending {
        /// Which.
        key: SecretKey,
        /// The pending one.
        number: u32,
    },
    /// What would be brought back is dead at its provider.
    #[error("version {number} of {key} was removed at its provider, {at}")]
    Withdrawn {
        /// Which.
        key: SecretKey,
        /// The version.
        number: u32,
        /// When.
        at: Timestamp,
    },
}

/// A value that is in the vault, or about to be.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// Its record's id, in hex.
    pub value: String,
    /// Its size.
    pub size_bytes: u64,
    /// Now.
    pub at: Timestamp,
    /// Who made it.
    pub by: String,
    /// From when new executions get it.
    pub valid_from: Option<Timestamp>,
    /// Until when new executions get it.
    pub valid_until: Option<Timestamp>,
    /// The group's generation; 0 where there is no group.
    pub generation: u32,
    /// Promoted after this time even while the old one is held.
    pub drain: Option<Period>,
    /// Nobody gets it until a rotation chain has tested it.
    pub untested: bool,
}

impl Secret {
    /// One without a version: pinned, its reads recorded.
    pub fn fresh(id: String, key: SecretKey, scope: Scope, at: Timestamp, by: &str) -> Self {
        Self {
            id,
            key,
            scope,
            description: None,
            group: None,
            plain: false,
            binding: Binding::Pinned,
            access_log_enabled: true,
            created_at: at,
            created_by: by.to_owned(),
            rotated_at: None,
            expires_at: None,
            end_told: None,
            versions: Vec::new(),
        }
    }

    /// The newest version of a stage.
    pub fn at_stage(&self, stage: Stage) -> Option<&Version> {
        self.versions.iter().rev().find(|v| v.stage == stage)
    }

    /// A version by its number.
    pub fn version(&self, number: u32) -> Option<&Version> {
        self.versions.iter().find(|v| v.number == number)
    }

    /// What `rollback` would bring back.
    pub fn rollback_target(&self) -> Option<&Version> {
        let of = |v: &&Version| v.stage == Stage::Previous && !v.discarded && v.value.is_some();
        self.versions.iter().filter(of).max_by_key(|v| (v.since(), v.number))
    }

    /// The highest generation of any version.
    pub fn generation(&self) -> u32 {
        self.versions.iter().map(|v| v.generation).max().unwrap_or(0)
    }

    fn add(&mut self, new: NewVersion, stage: Stage) -> u32 {
        let number = self.versions.iter().map(|v| v.number).max().unwrap_or(0) + 1;
        self.versions.push(Version {
            number,
            stage,
            value: Some(new.value),
            size_bytes: new.size_bytes,
            valid_from: new.valid_from,
            valid_until: new.valid_until,
            created_at: new.at,
            created_by: new.by,
            stage_since: None,
            discarded: false,
            untested: new.untested,
            generation: new.generation,
            drain: new.drain,
            fingerprint: None,
            withdrawn_at: None,
            end_told: false,
        });
        number
    }

    /// Makes a version current at once; the old one becomes previous, a pending one is discarded.
    pub fn replace(&mut self, new: NewVersion) -> u32 {
        let at = new.at;
        self.discard(at);
        self.shift(Stage::Current, Stage::Previous, at);
        self.rotated_at = Some(at);
        self.add(new, Stage::Current)
    }

    /// Stages a version.
    ///
    /// # Errors
    /// [`Error::Pending`] while another one is.
    pub fn stage(&mut self, new: NewVersion) -> Result<u32, Error> {
        if let Some(pending) = self.at_stage(Stage::Pending) {
            return Err(Error::Pending { key: self.key.clone(), number: pending.number });
        }
        Ok(self.add(new, Stage::Pending))
    }

    /// The pending version has passed its test: new executions get it from `at` on.
    pub fn release(&mut self, at: Timestamp) {
        if let Some(pending) = self.versions.iter_mut().find(|v| v.stage == Stage::Pending) {
            pending.untested = false;
            pending.valid_from = Some(at);
        }
    }

    /// Makes the pending version current; the old one becomes previous.
    ///
    /// # Errors
    /// [`Error::NoVersion`].
    pub fn promote(&mut self, at: Timestamp) -> Result<u32, Error> {
        let number = self.number_at(Stage::Pending, "pending")?;
        self.shift(Stage::Current, Stage::Previous, at);
        self.shift(Stage::Pending, Stage::Current, at);
        if let Some(current) = self.versions.iter_mut().find(|v| v.number == number) {
            current.untested = false;
        }
        self.rotated_at = Some(at);
        Ok(number)
    }

    /// Gives up the pending version: whoever is pinned to it goes on reading it, as `previous`.
    pub fn discard(&mut self, at: Timestamp) -> Option<u32> {
        let pending = self.versions.iter_mut().find(|v| v.stage == Stage::Pending)?;
        pending.move_to(Stage::Previous, at);
        pending.discarded = true;
        Some(pending.number)
    }

    /// Brings the previous version back; the current one becomes previous, a pending one goes. One
    /// that is dead at its provider comes back by `force` alone.
    ///
    /// # Errors
    /// [`Error::NoVersion`], [`Error::Withdrawn`].
    pub fn rollback(&mut self, at: Timestamp, force: bool) -> Result<u32, Error> {
        let target = self
            .rollback_target()
            .ok_or_else(|| Error::NoVersion { key: self.key.clone(), wanted: "previous" })?;
        let back = target.number;
        if let Some(at) = target.withdrawn_at.filter(|_| !force) {
            return Err(Error::Withdrawn { key: self.key.clone(), number: back, at });
        }
        self.discard(at);
        self.shift(Stage::Current, Stage::Previous, at);
        if let Some(version) = self.versions.iter_mut().find(|v| v.number == back) {
            version.move_to(Stage::Current, at);
        }
        self.rotated_at = Some(at);
        Ok(back)
    }

    /// Makes a version that nobody holds unreadable.
    pub fn retire(&mut self, number: u32, at: Timestamp) {
        let of = |v: &&mut Version| v.number == number && v.stage == Stage::Previous;
        if let Some(version) = self.versions.iter_mut().find(of) {
            version.move_to(Stage::Retired, at);
        }
    }

    /// Forgets the value of a version; the vault's record of it goes with it. Returns its id.
    pub fn destroy(&mut self, number: u32) -> Option<String> {
        self.versions.iter_mut().find(|v| v.number == number)?.value.take()
    }

    /// Denies versions for good; returns those that were not denied before.
    pub fn revoke(&mut self, numbers: &[u32], at: Timestamp) -> Vec<u32> {
        let mut revoked = Vec::new();
        for version in self.versions.iter_mut().filter(|v| numbers.contains(&v.number)) {
            if version.stage != Stage::Revoked {
                version.move_to(Stage::Revoked, at);
                revoked.push(version.number);
            }
        }
        revoked
    }

    /// Notes that the provider of these values takes them no more, or soon will not.
    pub fn withdraw(&mut self, values: &[String], at: Timestamp) {
        let is_one = |v: &&mut Version| v.value.as_ref().is_some_and(|id| values.contains(id));
        for version in self.versions.iter_mut().filter(is_one) {
            version.withdrawn_at.get_or_insert(at);
        }
    }

    /// The end that has come by `now` and was not told yet.
    pub fn untold_end(&self, now: Timestamp) -> Option<End> {
        if let Some(end) = self.expires_at.filter(|end| *end <= now) {
            return (self.end_told != Some(end)).then_some(End::Secret);
        }
        let current = self.at_stage(Stage::Current).filter(|v| v.value.is_some())?;
        let over = current.valid_until.is_some_and(|until| until <= now) && !current.end_told;
        (over && self.version_to_pin(now).is_err()).then_some(End::Version(current.number))
    }

    /// Notes that an end was told.
    pub fn tell(&mut self, end: End) {
        match end {
            End::Secret => self.end_told = self.expires_at,
            End::Version(number) => {
                if let Some(version) = self.versions.iter_mut().find(|v| v.number == number) {
                    version.end_told = true;
                }
            }
        }
    }

    /// Notes what the value of a version is known again by.
    pub fn set_fingerprint(&mut self, number: u32, fingerprint: String) {
        if let Some(version) = self.versions.iter_mut().find(|v| v.number == number) {
            version.fingerprint = Some(fingerprint);
        }
    }

    fn number_at(&self, stage: Stage, wanted: &'static str) -> Result<u32, Error> {
        self.at_stage(stage)
            .map(|v| v.number)
            .ok_or_else(|| Error::NoVersion { key: self.key.clone(), wanted })
    }

    fn shift(&mut self, from: Stage, to: Stage, at: Timestamp) {
        for version in self.versions.iter_mut().filter(|v| v.stage == from) {
            version.move_to(to, at);
        }
    }

    /// What stays of its revoked values when it is removed.
    pub fn buried(&self) -> Vec<Buried> {
        let of = |v: &Version| {
            Some(Buried {
                key: self.key.clone(),
                scope: self.scope.clone(),
                number: v.number,
                fingerprint: v.fingerprint.clone()?,
            })
        };
        self.versions.iter().filter_map(of).collect()
    }

    /// The version that a floating secret is at each open: the current one.
    ///
    /// # Errors
    /// [`Error::Expired`], [`Error::NoVersion`].
    pub fn version_to_follow(&self, now: Timestamp) -> Result<&Version, Error> {
        if let Some(at) = self.expires_at.filter(|end| *end <= now) {
            return Err(Error::Expired { key: self.key.clone(), at });
        }
        self.at_stage(Stage::Current)
            .filter(|v| v.value.is_some())
            .ok_or_else(|| Error::NoVersion { key: self.key.clone(), wanted: "current" })
    }

    /// The version that an execution starting `now` is pinned to.
    ///
    /// # Errors
    /// [`Error::Expired`], [`Error::NoVersion`].
    pub fn version_to_pin(&self, now: Timestamp) -> Result<&Version, Error> {
        if let Some(at) = self.expires_at.filter(|end| *end <= now) {
            return Err(Error::Expired { key: self.key.clone(), at });
        }
        let is_open =
            |v: &&Version| v.value.is_some() && v.valid_until.is_none_or(|until| until > now);
        // A current version has begun, also for a clock that was set back since.
        let has_begun = |v: &&Version| !v.untested && v.valid_from.is_none_or(|from| from <= now);
        self.at_stage(Stage::Pending)
            .filter(is_open)
            .filter(has_begun)
            .or_else(|| self.at_stage(Stage::Current).filter(is_open))
            .ok_or_else(|| Error::NoVersion { key: self.key.clone(), wanted: "current" })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    pub(crate) fn new(second: i64) -> NewVersion {
        NewVersion {
            value: format!("v{second}"),
            size_bytes: 3,
            at: at(second),
            by: "me".into(),
            valid_from: None,
            valid_until: None,
            generation: 0,
            drain: None,
            untested: false,
        }
    }

    pub(crate) fn secret() -> Secret {
        let mut secret = Secret {
            id: "00".into(),
            key: "prod/KEY".parse().unwrap(),
            scope: Scope::Org,
            description: None,
            group: None,
            plain: false,
            binding: Binding::Pinned,
            access_log_enabled: true,
            created_at: at(0),
            created_by: "me".into(),
            rotated_at: None,
            expires_at: None,
            end_told: None,
            versions: Vec::new(),
        };
        secret.replace(new(1));
        secret
    }

    fn stages(secret: &Secret) -> Vec<(u32, Stage)> {
        secret.versions.iter().map(|v| (v.number, v.stage)).collect()
    }

    #[test]
    fn a_rotation_goes_through_its_stages() {
        let mut secret = secret();
        assert_eq!(secret.stage(new(2)).unwrap(), 2);
        assert!(matches!(secret.stage(new(3)), Err(Error::Pending { number: 2, .. })));
        assert_eq!(secret.version_to_pin(at(9)).unwrap().number, 2);
        secret.promote(at(4)).unwrap();
        assert_eq!(stages(&secret), [(1, Stage::Previous), (2, Stage::Current)]);
        assert!(matches!(secret.promote(at(5)), Err(Error::NoVersion { .. })));
        secret.rollback(at(6), false).unwrap();
        assert_eq!(stages(&secret), [(1, Stage::Current), (2, Stage::Previous)]);
    }

    #[test]
    fn what_its_provider_removed_comes_back_by_force_alone() {
        let mut secret = secret();
        secret.stage(new(2)).unwrap();
        secret.promote(at(4)).unwrap();
        secret.withdraw(&[new(1).value], at(5));
        secret.withdraw(&[new(1).value], at(6));
        let refused = secret.rollback(at(7), false).unwrap_err();
        assert!(matches!(refused, Error::Withdrawn { number: 1, at: when, .. } if when == at(5)));
        assert_eq!(stages(&secret), [(1, Stage::Previous), (2, Stage::Current)]);
        assert_eq!(secret.rollback(at(8), true).unwrap(), 1);
    }

    #[test]
    fn an_end_is_told_once_and_again_only_when_it_was_moved() {
        let mut secret = secret();
        assert_eq!(secret.untold_end(at(99)), None);
        secret.expires_at = Some(at(50));
        assert_eq!(secret.untold_end(at(49)), None);
        assert_eq!(secret.untold_end(at(50)), Some(End::Secret));
        secret.tell(End::Secret);
        assert_eq!(secret.untold_end(at(99)), None);
        secret.expires_at = Some(at(60));
        assert_eq!(secret.untold_end(at(59)), None);
        assert_eq!(secret.untold_end(at(60)), Some(End::Secret));
        secret.expires_at = None;

        secret.versions[0].valid_until = Some(at(70));
        assert_eq!(secret.untold_end(at(69)), None);
        assert_eq!(secret.untold_end(at(70)), Some(End::Version(1)));
        // A pending version takes its place: nobody is left without one.
        secret.stage(NewVersion { valid_from: Some(at(80)), ..new(2) }).unwrap();
        assert_eq!(secret.untold_end(at(79)), Some(End::Version(1)));
        assert_eq!(secret.untold_end(at(80)), None);
        secret.tell(End::Version(1));
        assert_eq!(secret.untold_end(at(79)), None);
    }

    #[test]
    fn a_pending_version_counts_from_its_time_and_an_expired_secret_not_at_all() {
        let mut secret = secret();
        secret.stage(NewVersion { valid_from: Some(at(100)), ..new(2) }).unwrap();
        assert_eq!(secret.version_to_pin(at(99)).unwrap().number, 1);
        assert_eq!(secret.version_to_pin(at(100)).unwrap().number, 2);
        secret.expires_at = Some(at(50));
        assert_eq!(secret.version_to_pin(at(49)).unwrap().number, 1);
        assert!(matches!(secret.version_to_pin(at(50)), Err(Error::Expired { .. })));
    }
}
