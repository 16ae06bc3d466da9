//! Verbs on secrets.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::PoisonError;

use crate::audit::record::Event;
use crate::catalog::name::SecretKey;
use crate::catalog::scope::Scope;
use crate::catalog::secret::{Binding, NewVersion, Secret, Stage, Version};
use crate::catalog::{self, Catalog};
use crate::config::Permission;
use crate::control::Caller;
use crate::execution::exposure::{Channel, Exposure};
use crate::proto::{self, Code, Problem, Value};
use crate::redact;
use crate::secret::{MAX_VALUE_BYTES, SecretBytes};
use crate::vault::record::{RecordId, RecordKind};

use super::core::{new_id, put, vault_problem};
use super::revoked::delete_secret;
use super::rotate::gone;
use super::{Daemon, user_of};

/// The problem behind a catalog's error.
pub(super) fn catalog_problem(error: &catalog::Error) -> Problem {
    match error {
        catalog::Error::Ambiguous { candidates, .. } => {
            Problem::new(Code::Ambiguous, error.to_string())
                .with_hint(format!("add --scope, one of: {}", candidates.join(", ")))
                .with_candidates(candidates.clone())
        }
        catalog::Error::Exists { .. } => Problem::new(Code::Exists, error.to_string())
            .with_hint("use --replace to give it a new value at once"),
        catalog::Error::Missing { .. } => Problem::new(Code::NotFound, error.to_string())
            .with_hint("`strongroom secret list` and `strongroom group list` show what there is"),
        catalog::Error::NameClash { .. } => {
            Problem::new(Code::Conflict, error.to_string()).with_hint("choose another name")
        }
        catalog::Error::UnknownEnvironment { known, .. } => {
            Problem::new(Code::Invalid, error.to_string()).with_hint(format!(
                "known are {}; set `environments` in strongroom.toml for others",
                known.join(", ")
            ))
        }
    }
}

/// Parses a name, scope or other word of a request.
pub(super) fn parse<T: std::str::FromStr>(text: &str) -> Result<T, Problem>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| {
        Problem::new(Code::Invalid, error.to_string())
            .with_hint("as in prod/DATABASE_URL, a scope as in chain:deploy or agent:deploy/Tester")
    })
}

pub(super) fn parse_scope(text: Option<&str>) -> Result<Option<Scope>, Problem> {
    text.map(parse).transpose()
}

pub(super) fn check_value(value: &SecretBytes) -> Result<(), Problem> {
    if value.is_empty() {
        return Err(Problem::new(Code::Invalid, "the value is empty")
            .with_hint("pipe it in: printf %s \"$VALUE\" | strongroom secret set NAME"));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(Problem::new(
            Code::TooLarge,
            format!("the value is longer than {MAX_VALUE_BYTES} bytes"),
        )
        .with_hint("store a file of that size elsewhere and its key here"));
    }
    Ok(())
}

/// What a person should know of a value that redaction cannot find.
pub(super) fn notes_on(value: &SecretBytes, plain: bool) -> Vec<String> {
    let weakness = redact::weakness(value.expose()).filter(|_| !plain);
    weakness.map(|weakness| weakness.note().to_owned()).into_iter().collect()
}

pub(super) fn shown(secret: &Secret, notes: Vec<String>) -> proto::SecretShown {
    let version = |v: &Version| proto::VersionShown {
        version: u64::from(v.number),
        stage: v.stage.word().to_owned(),
        valid_from: v.valid_from,
        valid_until: v.valid_until,
        created_at: v.created_at,
        created_by: v.created_by.clone(),
        destroyed: v.value.is_none(),
        withdrawn_at: v.withdrawn_at,
        held_by: Vec::new(),
    };
    let by_stage = [
        secret.at_stage(Stage::Pending),
        secret.at_stage(Stage::Current),
        secret.rollback_target(),
    ];
    let versions: BTreeMap<_, _> =
        by_stage.into_iter().flatten().map(|v| (v.stage.word().to_owned(), version(v))).collect();
    let named = |v: &Version| by_stage.iter().flatten().any(|n| n.number == v.number);
    let old = secret.versions.iter().rev().filter(|v| !named(v));
    proto::SecretShown {
        key: secret.key.to_string(),
        scope: secret.scope.to_string(),
        created_at: secret.created_at,
        rotated_at: secret.rotated_at,
        expires_at: secret.expires_at,
        created_by: secret.created_by.clone(),
        access_log_enabled: secret.access_log_enabled,
        versions,
        old_versions: old.map(version).collect(),
        environment: secret.key.environment.as_ref().map(ToString::to_string),
        group: secret.group.as_ref().map(ToString::to_string),
        description: secret.description.clone(),
        binding: match secret.binding {
            Binding::Floating => "floating",
            Binding::Pinned => "pinned",
        }
        .to_owned(),
        plain: secret.plain,
        notes,
    }
}

fn binding(text: Option<&str>) -> Result<Binding, Problem> {
    match text {
        None | Some("pinned") => Ok(Binding::Pinned),
        Some("floating") => Ok(Binding::Floating),
        Some(_) => Err(Problem::new(Code::Invalid, "a binding is pinned or floating")),
    }
}

impl Daemon {
    /// A version of a value that may come in: one that was revoked does not come back.
    pub(super) fn new_version(
        &self,
        catalog: &Catalog,
        value: &SecretBytes,
        id: RecordId,
        by: &str,
    ) -> Result<NewVersion, Problem> {
        self.refuse_revoked(catalog, value)?;
        Ok(self.admitted_version(value, id, by))
    }

    pub(super) fn admitted_version(
        &self,
        value: &SecretBytes,
        id: RecordId,
        by: &str,
    ) -> NewVersion {
        NewVersion {
            value: id.to_string(),
            size_bytes: value.len() as u64,
            at: self.core.clock.now(),
            by: by.to_owned(),
            valid_from: None,
            valid_until: None,
            generation: 0,
            drain: None,
            untested: false,
        }
    }

    pub(super) fn set_secret(
        &self,
        who: &Caller,
        req: proto::SecretSet,
    ) -> Result<proto::SecretShown, Problem> {
        let key: SecretKey = parse(&req.name)?;
        let scope = parse_scope(req.scope.as_deref())?.unwrap_or(Scope::Org);
        let binding = binding(req.binding.as_deref())?;
        let value = req.value.into_secret();
        check_value(&value)?;
        let by = user_of(who.peer.uid);
        let notes = notes_on(&value, req.plain);
        let now = self.core.clock.now();
        let (secret, revision) = self.core.change(|catalog, batch| {
            let existing = match catalog.find(&key, Some(&scope)) {
                Ok(found) => Some(found),
                Err(catalog::Error::Missing { .. }) => None,
                Err(error) => return Err(catalog_problem(&error)),
            };
            let mut secret = match existing {
                Some(_) if !req.replace => {
                    let what = format!("{key} with scope {scope} exists already");
                    return Err(Problem::new(Code::Exists, what)
                        .with_hint("`strongroom secret rotate` gives it a new value, --replace does so at once"));
                }
                Some(existing) => {
                    alone(&existing)?;
                    Secret::clone(&existing)
                }
                None => Secret {
                    description: req.description.clone(),
                    plain: req.plain,
                    binding,
                    access_log_enabled: req.access_log_enabled.unwrap_or(true),
                    expires_at: req.expires_at,
                    ..Secret::fresh(
                        new_id()?.to_string(),
                        key.clone(),
                        scope.clone(),
                        now,
                        &by,
                    )
                },
            };
            catalog.check_secret(&secret).map_err(|e| catalog_problem(&e))?;
            let id = new_id()?;
            secret.replace(self.new_version(catalog, &value, id, &by)?);
            if let Some(current) = secret.versions.last_mut() {
                current.valid_until = req.valid_until;
            }
            batch.put(RecordKind::Value, id, SecretBytes::copy_of(value.expose()));
            put(batch, RecordKind::Secret, &secret.id, &secret)?;
            let stored = secret.clone();
            Ok((secret, Box::new(move |c: &mut Catalog| c.put_secret(stored)) as _))
        })?;
        self.record_secret(Event::SecretSet, who, &secret, Some(revision))?;
        self.follow_floating(std::slice::from_ref(&secret));
        Ok(shown(&secret, notes))
    }

    pub(super) fn record_secret(
        &self,
        event: Event,
        who: &Caller,
        secret: &Secret,
        revision: Option<u64>,
    ) -> Result<(), Problem> {
        let (key, scope, user) =
            (secret.key.to_string(), secret.scope.to_string(), user_of(who.peer.uid));
        let mut record = self.core.new_record(event);
        record.secret_key = Some(&key);
        record.scope = Some(&scope);
        record.environment = secret.key.environment.as_ref().map(|e| e.as_str());
        record.version = secret.at_stage(Stage::Current).map(|v| v.number);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.revision = revision;
        self.core.record(&record)?;
        Ok(())
    }

    pub(super) fn find_secret(
        &self,
        name: &str,
        scope: Option<&str>,
    ) -> Result<std::sync::Arc<Secret>, Problem> {
        self.core.unlocked()?;
        let scope = parse_scope(scope)?;
        self.core.catalog().find(&parse(name)?, scope.as_ref()).map_err(|e| catalog_problem(&e))
    }

    pub(super) fn show_secret(
        &self,
        req: &proto::SecretName,
    ) -> Result<proto::SecretShown, Problem> {
        let secret = self.find_secret(&req.name, req.scope.as_deref())?;
        let mut answer = shown(&secret, Vec::new());
        // Who holds which version now.
        for version in answer.versions.values_mut().chain(&mut answer.old_versions) {
            let number = u32::try_from(version.version).unwrap_or(0);
            let value = secret.version(number).and_then(|v| v.value.as_deref());
            version.held_by = value
                .map(|value| self.registry.holders(value))
                .unwrap_or_default()
                .iter()
                .map(ToString::to_string)
                .collect();
        }
        let unit = self.core.catalog().unit_of(&secret);
        if let Some(waiting) = self.waiting_for(&unit) {
            answer.notes.push(format!(
                "version {} waits since {} for {}",
                waiting.pending,
                waiting.since,
                waiting.waits_for.join(", ")
            ));
        }
        Ok(answer)
    }

    pub(super) fn edit_secret(
        &self,
        who: &Caller,
        req: proto::SecretEdit,
    ) -> Result<proto::SecretShown, Problem> {
        let found = self.find_secret(&req.name, req.scope.as_deref())?;
        let new_scope = parse_scope(req.new_scope.as_deref())?;
        let (secret, revision) = self.core.change(|catalog, batch| {
            let present = catalog.secret(&found.id).ok_or_else(|| gone(&found))?;
            let mut secret = Secret::clone(present);
            if let Some(text) = &req.description {
                secret.description = (!text.is_empty()).then(|| text.clone());
            }
            if let Some(text) = &req.expires_at {
                secret.expires_at = match text.as_str() {
                    "" | "never" => None,
                    text => Some(parse(text)?),
                };
                secret.end_told = None;
            }
            if req.binding.is_some() {
                secret.binding = binding(req.binding.as_deref())?;
            }
            secret.access_log_enabled = req.access_log_enabled.unwrap_or(secret.access_log_enabled);
            secret.plain = req.plain.unwrap_or(secret.plain);
            if let Some(scope) = &new_scope {
                secret.scope = scope.clone();
            }
            catalog.check_secret(&secret).map_err(|e| catalog_problem(&e))?;
            put(batch, RecordKind::Secret, &secret.id, &secret)?;
            let stored = secret.clone();
            Ok((secret, Box::new(move |c: &mut Catalog| c.put_secret(stored)) as _))
        })?;
        if secret.plain != found.plain {
            // What is looked for is read anew.
            self.core.needles.forget();
            let vault = self.core.unlocked()?;
            let values = secret.versions.iter().filter_map(|v| v.value.clone()).collect();
            let noted = self.core.searches.add_values(&vault, values);
            noted.map_err(|e| super::core::vault_problem(&e))?;
        }
        self.record_secret(Event::SecretEdited, who, &secret, Some(revision))?;
        self.update_facts(&secret)?;
        Ok(shown(&secret, Vec::new()))
    }

    /// Tells running agents' files of what is not pinned: the secret's end, and whether reads of it
    /// are recorded.
    fn update_facts(&self, secret: &Secret) -> Result<(), Problem> {
        let differs = |f: &crate::execution::principal::File| {
            f.secret == secret.id
                && (f.expires_at != secret.expires_at
                    || f.access_log_enabled != secret.access_log_enabled)
        };
        for principal in self.registry.principals() {
            if !principal.files.values().any(differs) {
                continue;
            }
            self.registry
                .update_principal(principal.number, |p| {
                    for file in p.files.values_mut().filter(|f| differs(f)) {
                        file.expires_at = secret.expires_at;
                        file.access_log_enabled = secret.access_log_enabled;
                    }
                })
                .map_err(|e| super::executions::registry_problem(&e))?;
        }
        Ok(())
    }

    pub(super) fn reveal_secret(
        &self,
        who: &Caller,
        req: &proto::SecretGet,
    ) -> Result<proto::SecretRevealed, Problem> {
        let secret = self.find_secret(&req.name, req.scope.as_deref())?;
        let version = match req.version.as_deref() {
            None | Some("current") => secret.at_stage(Stage::Current),
            Some("pending") => secret.at_stage(Stage::Pending),
            Some("previous") => secret.at_stage(Stage::Previous),
            Some(number) => {
                let number: u32 = parse(number)?;
                secret.versions.iter().find(|v| v.number == number && v.stage.is_readable())
            }
        }
        .ok_or_else(|| {
            Problem::new(Code::NotFound, format!("{} has no such version", secret.key))
                .with_hint(format!("strongroom secret show {}", secret.key))
        })?;
        let id: RecordId = parse(version.value.as_deref().unwrap_or_default())?;
        let value = self
            .core
            .unlocked()?
            .get(RecordKind::Value, id)
            .map_err(|e| vault_problem(&e))?
            .ok_or_else(|| Problem::new(Code::Gone, "that version was destroyed"))?;
        // Recorded before it leaves.
        let (key, scope, user) =
            (secret.key.to_string(), secret.scope.to_string(), user_of(who.peer.uid));
        let mut record = self.core.new_record(Event::Revealed);
        record.secret_key = Some(&key);
        record.scope = Some(&scope);
        record.version = Some(version.number);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.via = Some("reveal");
        record.decision = Some("granted");
        record.reason = req.reason.as_deref();
        self.core.record(&record)?;
        self.registry
            .ledger()
            .note(Exposure {
                value: id.to_string(),
                via: Channel::Reveal,
                execution: None,
                chain: None,
                agent: None,
                user,
                at: self.core.clock.now(),
            })
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        // No person is left out of the ledger: also one whose answer outlived the daemon.
        self.store_exposures()?;
        Ok(proto::SecretRevealed {
            key,
            scope,
            environment: secret.key.environment.as_ref().map(ToString::to_string),
            version: u64::from(version.number),
            value: Value::new(value),
        })
    }

    pub(super) fn list_secrets(
        &self,
        who: &Caller,
        req: &proto::SecretList,
    ) -> Result<proto::SecretListed, Problem> {
        self.core.unlocked()?;
        let limit = usize::try_from(req.limit.unwrap_or(10_000)).unwrap_or(usize::MAX);
        let matches = |s: &Secret| {
            let environment = s.key.environment.as_ref().map_or("-", |e| e.as_str());
            req.scope.as_ref().is_none_or(|scope| s.scope.to_string() == *scope)
                && req.environment.as_ref().is_none_or(|e| e == environment)
                && req.name.as_ref().is_none_or(|n| s.key.name.as_str().contains(n.as_str()))
                && req
                    .group
                    .as_ref()
                    .is_none_or(|g| s.group.as_ref().is_some_and(|own| own.as_str() == g))
                && {
                    let chain = s.scope.chain().map(|c| c.as_str());
                    let environment = s.key.environment.as_ref().map(|e| e.as_str());
                    who.may_in(Permission::Operate, chain, environment)
                        || who.may_in(Permission::Audit, chain, environment)
                }
        };
        let all = self.core.catalog().secrets();
        let mut found: Vec<_> = all.iter().filter(|s| matches(s)).collect();
        let cut = found.len() > limit;
        found.truncate(limit);
        let number = |s: &Secret, stage| s.at_stage(stage).map(|v| u64::from(v.number));
        let secrets = found
            .into_iter()
            .map(|s| proto::SecretSummary {
                key: s.key.to_string(),
                scope: s.scope.to_string(),
                environment: s.key.environment.as_ref().map(ToString::to_string),
                group: s.group.as_ref().map(ToString::to_string),
                current: number(s, Stage::Current),
                pending: number(s, Stage::Pending),
                rotated_at: s.rotated_at,
                expires_at: s.expires_at,
                plain: s.plain,
            })
            .collect();
        Ok(proto::SecretListed { secrets, cut })
    }

    pub(super) fn remove_secret(
        &self,
        who: &Caller,
        req: &proto::SecretRm,
    ) -> Result<proto::Done, Problem> {
        let secret = self.find_secret(&req.name, req.scope.as_deref())?;
        let holders: Vec<_> = self
            .registry
            .executions()
            .iter()
            .filter(|e| {
                e.ended.is_none()
                    && (e.pins.contains_key(&secret.id) || self.follows(&e.id, &secret.id))
            })
            .map(|e| e.id.to_string())
            .collect();
        if !holders.is_empty() && !req.force {
            let what = format!("{} is held by {}", secret.key, holders.join(", "));
            return Err(Problem::new(Code::Conflict, what)
                .with_hint("end these executions first, or add --force: their reads fail then"));
        }
        if secret.group.is_some() && !req.force {
            let what = format!("{} is a member of a group", secret.key);
            return Err(Problem::new(Code::Conflict, what).with_hint(
                "change the group with `strongroom group set --replace`, or add --force",
            ));
        }
        // A revoke that is in work must have left what its values are known by.
        let _no_revoke = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
        let ((), revision) = self.core.change(|catalog, batch| {
            let secret = catalog.secret(&secret.id).ok_or_else(|| gone(&secret))?;
            let buried = delete_secret(batch, secret)?;
            let id = secret.id.clone();
            if let Some(policy) = catalog.policy(&id) {
                batch.delete(RecordKind::Policy, parse(&policy.id)?);
            }
            let apply = move |c: &mut Catalog| {
                c.remove_secret(&id);
                c.remove_policy(&id);
                buried.into_iter().for_each(|b| c.bury(b));
            };
            Ok(((), Box::new(apply) as _))
        })?;
        self.record_secret(Event::SecretRemoved, who, &secret, Some(revision))?;
        Ok(proto::Done::default())
    }
}

/// Refuses a member of a group: members change together.
pub(super) fn alone(secret: &Secret) -> Result<(), Problem> {
    match &secret.group {
        None => Ok(()),
        Some(group) => {
            let environment = secret.key.environment.as_ref();
            let group = environment.map_or(group.to_string(), |e| format!("{e}/{group}"));
            let what = format!("{} is a member of group {group}", secret.key);
            Err(Problem::new(Code::Conflict, what).with_hint(format!(
                "members change together: strongroom group rotate {group} < members.json"
            )))
        }
    }
}
