//! Verbs on groups: members that are referenced and change together.
//!
//! Invariant: a group's members change in one commit, under one generation.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::PoisonError;

use crate::audit::record::Event;
use crate::catalog::Catalog;
use crate::catalog::group::{Group, GroupKey};
use crate::catalog::name::SecretKey;
use crate::catalog::scope::Scope;
use crate::catalog::secret::{NewVersion, Secret, Stage};
use crate::config::Permission;
use crate::control::Caller;
use crate::proto::{self, Code, Problem};
use crate::secret::SecretBytes;
use crate::vault::record::RecordKind;

use super::core::{new_id, put};
use super::revoked::delete_secret;
use super::secrets::{catalog_problem, check_value, notes_on, parse, parse_scope};
use super::{Daemon, user_of};

impl Daemon {
    pub(super) fn set_group(
        &self,
        who: &Caller,
        req: proto::GroupSet,
    ) -> Result<proto::GroupShown, Problem> {
        let key: GroupKey = parse(&req.name)?;
        let scope = parse_scope(req.scope.as_deref())?.unwrap_or(Scope::Org);
        if req.members.is_empty() {
            return Err(Problem::new(Code::Invalid, "a group has at least one member")
                .with_hint("give a JSON object: {\"AWS_ACCESS_KEY_ID\": \"...\"}"));
        }
        let by = user_of(who.peer.uid);
        let now = self.core.clock.now();
        let mut notes = Vec::new();
        let mut members = BTreeMap::new();
        for (name, value) in req.members {
            let member = SecretKey { environment: key.environment.clone(), name: parse(&name)? };
            let value = value.into_secret();
            check_value(&value)?;
            let plain = req.plain.contains(&name);
            notes.extend(notes_on(&value, plain).into_iter().map(|n| format!("{name}: {n}")));
            members.insert(member, (value, plain));
        }
        let ((group, secrets), revision) = self.core.change(|catalog, batch| {
            let existing = catalog.find_group(&key, Some(&scope)).ok();
            if existing.is_some() && !req.replace {
                return Err(Problem::new(Code::Exists, format!("group {key} exists already"))
                    .with_hint("add --replace to give all its members new values at once"));
            }
            let group = match &existing {
                Some(group) => Group::clone(group),
                None => Group {
                    id: new_id()?.to_string(),
                    key: key.clone(),
                    scope: scope.clone(),
                    description: req.description.clone(),
                    created_at: now,
                    created_by: by.clone(),
                },
            };
            catalog.check_group(&group).map_err(|e| catalog_problem(&e))?;
            let old = catalog.members(&group);
            let generation = old.iter().map(|s| s.generation()).max().unwrap_or(0) + 1;
            let mut secrets = Vec::new();
            for (member, (value, plain)) in &members {
                let mut secret = match old.iter().find(|s| s.key == *member) {
                    Some(secret) => Secret::clone(secret),
                    None => Secret {
                        group: Some(key.name.clone()),
                        plain: *plain,
                        ..Secret::fresh(
                            new_id()?.to_string(),
                            member.clone(),
                            scope.clone(),
                            now,
                            &by,
                        )
                    },
                };
                catalog.check_secret(&secret).map_err(|e| catalog_problem(&e))?;
                let id = new_id()?;
                let new = self.new_version(catalog, value, id, &by)?;
                secret.replace(NewVersion { generation, ..new });
                batch.put(RecordKind::Value, id, SecretBytes::copy_of(value.expose()));
                put(batch, RecordKind::Secret, &secret.id, &secret)?;
                secrets.push(secret);
            }
            let mut gone = Vec::new();
            let mut buried = Vec::new();
            for secret in old.iter().filter(|s| !members.contains_key(&s.key)) {
                buried.extend(delete_secret(batch, secret)?);
                gone.push(secret.id.clone());
            }
            put(batch, RecordKind::Group, &group.id, &group)?;
            let stored = (group.clone(), secrets.clone());
            let apply = move |c: &mut Catalog| {
                c.put_group(stored.0);
                for id in gone {
                    c.remove_secret(&id);
                }
                for secret in stored.1 {
                    c.put_secret(secret);
                }
                buried.into_iter().for_each(|b| c.bury(b));
            };
            Ok(((group, secrets), Box::new(apply) as _))
        })?;
        let (name, scope_text) = (group.key.to_string(), group.scope.to_string());
        let mut record = self.core.new_record(Event::GroupSet);
        record.secret_key = Some(&name);
        record.scope = Some(&scope_text);
        record.user = Some(&by);
        record.uid = Some(who.peer.uid);
        record.revision = Some(revision);
        self.core.record(&record)?;
        Ok(group_shown(&group, &secrets, notes))
    }

    pub(super) fn list_groups(
        &self,
        who: &Caller,
        req: &proto::GroupList,
    ) -> Result<proto::GroupListed, Problem> {
        self.core.unlocked()?;
        let catalog = self.core.catalog();
        let groups = catalog
            .groups()
            .iter()
            .filter(|g| {
                let environment = g.key.environment.as_ref().map(|e| e.as_str());
                req.environment.as_deref().is_none_or(|e| e == environment.unwrap_or("-"))
                    && (who.may_in(
                        Permission::Operate,
                        g.scope.chain().map(|c| c.as_str()),
                        environment,
                    ) || who.may_in(
                        Permission::Audit,
                        g.scope.chain().map(|c| c.as_str()),
                        environment,
                    ))
            })
            .map(|g| {
                let members: Vec<_> = catalog.members(g).iter().map(|s| Secret::clone(s)).collect();
                group_shown(g, &members, Vec::new())
            })
            .collect();
        Ok(proto::GroupListed { groups })
    }

    pub(super) fn show_group(&self, req: &proto::GroupName) -> Result<proto::GroupShown, Problem> {
        self.core.unlocked()?;
        let catalog = self.core.catalog();
        let scope = parse_scope(req.scope.as_deref())?;
        let group = catalog
            .find_group(&parse(&req.name)?, scope.as_ref())
            .map_err(|e| catalog_problem(&e))?;
        let members: Vec<_> = catalog.members(&group).iter().map(|s| Secret::clone(s)).collect();
        Ok(group_shown(&group, &members, Vec::new()))
    }

    pub(super) fn remove_group(
        &self,
        who: &Caller,
        req: &proto::GroupName,
    ) -> Result<proto::Done, Problem> {
        let scope = parse_scope(req.scope.as_deref())?;
        let key: GroupKey = parse(&req.name)?;
        let _no_revoke = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
        let ((), revision) = self.core.change(|catalog, batch| {
            let group =
                catalog.find_group(&key, scope.as_ref()).map_err(|e| catalog_problem(&e))?;
            let members = catalog.members(&group);
            let mut buried = Vec::new();
            for secret in &members {
                buried.extend(delete_secret(batch, secret)?);
            }
            batch.delete(RecordKind::Group, parse(&group.id)?);
            if let Some(policy) = catalog.policy(&group.id) {
                batch.delete(RecordKind::Policy, parse(&policy.id)?);
            }
            let ids: Vec<_> = members.iter().map(|s| s.id.clone()).collect();
            let apply = move |c: &mut Catalog| {
                for id in ids {
                    c.remove_secret(&id);
                }
                c.remove_policy(&group.id);
                c.remove_group(&group.id);
                buried.into_iter().for_each(|b| c.bury(b));
            };
            Ok(((), Box::new(apply) as _))
        })?;
        let user = user_of(who.peer.uid);
        let mut record = self.core.new_record(Event::SecretRemoved);
        record.secret_key = Some(&req.name);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.reason = Some("the whole group");
        record.revision = Some(revision);
        self.core.record(&record)?;
        Ok(proto::Done::default())
    }
}

fn group_shown(group: &Group, members: &[Secret], notes: Vec<String>) -> proto::GroupShown {
    proto::GroupShown {
        group: group.key.to_string(),
        scope: group.scope.to_string(),
        environment: group.key.environment.as_ref().map(ToString::to_string),
        members: members
            .iter()
            .map(|s| proto::GroupMember {
                key: s.key.to_string(),
                current: s.at_stage(Stage::Current).map(|v| u64::from(v.number)),
                plain: s.plain,
            })
            .collect(),
        description: group.description.clone(),
        notes,
    }
}
