//! `import`: many values at once, all or none.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};

use crate::audit::record::Event;
use crate::catalog::group::{Group, GroupKey};
use crate::catalog::import::{Action, Entry, Nature, OnConflict, Plan, plan};
use crate::catalog::import::{from_dotenv, from_files, from_json};
use crate::catalog::name::{EnvName, GroupName, SecretKey};
use crate::catalog::policy::{self, Policy, State, Terms};
use crate::catalog::scope::Scope;
use crate::catalog::secret::Secret;
use crate::catalog::{Catalog, Unit};
use crate::clock::Timestamp;
use crate::control::Caller;
use crate::proto::{self, Code, ImportFormat, Problem};
use crate::secret::SecretBytes;
use crate::vault::record::RecordKind;

use super::core::{new_id, put};
use super::rotate::{Fresh, Times, member_values};
use super::rotation::check_chain;
use super::secrets::{catalog_problem, parse, parse_scope};
use super::{Daemon, user_of};

fn read(req: &mut proto::Import) -> Result<Vec<Entry>, Problem> {
    let source = req.source.clone().unwrap_or_else(|| "the input".to_owned());
    let bad = |what: String| {
        Problem::new(Code::Invalid, format!("{source}: {what}"))
            .with_hint("strongroom import --help shows the forms that are read")
    };
    if req.format == ImportFormat::Directory {
        let files = std::mem::take(&mut req.entries);
        return Ok(from_files(files.into_iter().map(|(k, v)| (k, v.into_secret())).collect()));
    }
    let content = req.content.as_ref().ok_or_else(|| bad("there is no content".into()))?;
    let bytes = content.secret().expose();
    let is_json = match req.format {
        ImportFormat::Auto => bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{'),
        format => format == ImportFormat::Json,
    };
    if is_json {
        from_json(bytes).map_err(|e| bad(e.to_string()))
    } else {
        from_dotenv(bytes).map_err(|e| bad(e.to_string()))
    }
}

fn shown(plan: &Plan, environment: Option<&EnvName>) -> Vec<proto::ImportedItem> {
    plan.items
        .iter()
        .map(|item| {
            let (plain, why) = match item.nature {
                Nature::Plain(why) => (true, why),
                Nature::Secret(why) => (false, why),
            };
            proto::ImportedItem {
                key: item.name.to_string(),
                environment: environment.map(ToString::to_string),
                group: item.group.as_ref().map(ToString::to_string),
                plain,
                why: why.to_owned(),
                action: match item.action {
                    Action::Conflict => "conflict",
                    Action::Create => "create",
                    Action::Rotate => "rotate",
                    Action::Skip => "skip",
                }
                .to_owned(),
                line: item.line.map(|l| l as u64),
            }
        })
        .collect()
}

/// Numbers that grow, for people: `1-3, 7, 8`.
fn ranges(numbers: impl Iterator<Item = u64>) -> String {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match found.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => found.push((number, number)),
        }
    }
    let shown = found.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Refuses a plan that cannot be carried out as a whole.
fn check(plan: &Plan) -> Result<(), Problem> {
    if let Some((at, line, why)) = plan.refused.first() {
        let place = line.map_or(format!("entry {}", at + 1), |line| format!("line {line}"));
        return Err(Problem::new(Code::Invalid, format!("{place}: {why}"))
            .with_hint("mend or remove it; nothing was stored"));
    }
    match plan.items.iter().find(|i| i.action == Action::Conflict) {
        Some(item) => Err(Problem::new(Code::Exists, format!("{} exists already", item.name))
            .with_hint(
                "add --on-conflict skip to leave what is there, or rotate to stage the new value; \
                 nothing was stored",
            )),
        None => Ok(()),
    }
}

/// The policies of a JSON source, by secret or group.
fn policies(req: &proto::Import) -> Result<BTreeMap<String, Terms>, Problem> {
    // Of the rest nothing is kept, values least of all.
    #[derive(serde::Deserialize)]
    struct Source {
        rotation_policy: Option<serde_json::Value>,
    }
    let content = req.content.as_ref().map_or(&[][..], |content| content.secret().expose());
    let Ok(Source { rotation_policy: Some(policy) }) = serde_json::from_slice(content) else {
        return Ok(BTreeMap::new());
    };
    if policy.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(BTreeMap::new());
    }
    let text = serde_json::json!({ "rotation_policy": policy }).to_string();
    policy::parse(&text).map(|all| all.into_iter().collect()).map_err(|error| {
        let what = match error {
            policy::Error::Syntax { what, .. } => what,
            other => other.to_string(),
        };
        Problem::new(Code::Invalid, format!("in rotation_policy: {what}"))
            .with_hint("as in {\"rotation_policy\": {\"NAME\": {\"rotate_every_days\": 30}}}")
    })
}

/// What rotates as one, with a value for each member by its bare name.
type Rotation = (Unit, BTreeMap<String, SecretBytes>);

/// What is to be rotated: a secret alone, or a group with the values of all its members.
fn rotated(
    catalog: &Catalog,
    plan: &Plan,
    environment: Option<&EnvName>,
    scope: &Scope,
) -> Result<Vec<Rotation>, Problem> {
    let mut units: BTreeMap<String, Rotation> = BTreeMap::new();
    for item in plan.items.iter().filter(|i| i.action == Action::Rotate) {
        let key = SecretKey { environment: environment.cloned(), name: item.name.clone() };
        let secret = catalog.find(&key, Some(scope)).map_err(|e| catalog_problem(&e))?;
        let unit = catalog.unit_of(&secret);
        let (_, values) =
            units.entry(unit.id().to_owned()).or_insert_with(|| (unit, BTreeMap::new()));
        values.insert(item.name.to_string(), SecretBytes::copy_of(item.value.expose()));
    }
    Ok(units.into_values().collect())
}

/// The newest version of each, for the record.
fn versions(secrets: &[Secret]) -> BTreeMap<String, u32> {
    let newest = |s: &Secret| s.versions.iter().map(|v| v.number).max().unwrap_or(1);
    secrets.iter().map(|s| (s.key.name.to_string(), newest(s))).collect()
}

fn policy_in(
    catalog: &Catalog,
    created: Option<String>,
    (name, scope): (&str, &Scope),
    terms: Terms,
    (now, by): (Timestamp, &str),
) -> Result<Policy, Problem> {
    let target = match created {
        Some(target) => target,
        None => {
            let found = catalog.find_unit(name, Some(scope)).map_err(|e| catalog_problem(&e))?;
            match (&found.group, found.members.first()) {
                (None, Some(secret)) => catalog.unit_of(secret).id().to_owned(),
                _ => found.id().to_owned(),
            }
        }
    };
    if let Some(chain) = &terms.rotation_chain {
        let stored = catalog.chain(chain).ok_or_else(|| {
            Problem::new(Code::NotFound, format!("there is no chain {chain}"))
                .with_hint("store its definition: strongroom chain apply FILE.json")
        })?;
        check_chain(stored)?;
    }
    let old = catalog.policy(&target).map(|old| old.id.clone());
    let id = match old {
        Some(id) => id,
        None => new_id()?.to_string(),
    };
    Ok(Policy {
        id,
        target,
        terms,
        state: State::default(),
        applied_at: now,
        applied_by: by.to_owned(),
    })
}

impl Daemon {
    pub(super) fn import_secrets(
        &self,
        who: &Caller,
        mut req: proto::Import,
    ) -> Result<proto::Imported, Problem> {
        self.core.unlocked()?;
        let scope = parse_scope(req.scope.as_deref())?.unwrap_or(Scope::Org);
        let environment: Option<EnvName> =
            req.environment.as_deref().filter(|e| *e != "-").map(parse).transpose()?;
        self.core
            .catalog()
            .check_environment(environment.as_ref())
            .map_err(|e| catalog_problem(&e))?;
        let mut entries = read(&mut req)?;
        let policies = policies(&req)?;
        let plain: HashSet<&str> = req.plain.iter().map(String::as_str).collect();
        let secret: HashSet<&str> = req.secret.iter().map(String::as_str).collect();
        for entry in &mut entries {
            entry.plain |= plain.contains(entry.key.as_str());
        }
        let on_conflict = match req.on_conflict {
            proto::OnConflict::Fail => OnConflict::Fail,
            proto::OnConflict::Rotate => OnConflict::Rotate,
            proto::OnConflict::Skip => OnConflict::Skip,
        };
        let make = |catalog: &Catalog, entries| {
            let mut plan = plan(catalog, entries, environment.as_ref(), &scope, on_conflict);
            for item in &mut plan.items {
                if secret.contains(item.name.as_str()) {
                    item.nature = Nature::Secret("you said so");
                }
            }
            plan
        };
        if req.dry_run {
            let plan = make(&self.core.catalog(), entries);
            let notes = plan
                .refused
                .iter()
                .map(|(at, line, why)| {
                    let place =
                        line.map_or(format!("entry {}", at + 1), |line| format!("line {line}"));
                    format!("{place}: {why}")
                })
                .collect();
            let items = shown(&plan, environment.as_ref());
            return Ok(proto::Imported { items, dry_run: true, notes });
        }
        let by = user_of(who.peer.uid);
        let now = self.core.clock.now();
        let ((items, staged), revision) = self.core.change(|catalog, batch| {
            let plan = make(catalog, entries);
            check(&plan)?;
            let mut secrets = Vec::new();
            let mut groups: BTreeMap<GroupName, Group> = BTreeMap::new();
            for item in plan.items.iter().filter(|i| i.action == Action::Create) {
                if let Some(name) = &item.group
                    && !groups.contains_key(name)
                {
                    let key = GroupKey { environment: environment.clone(), name: name.clone() };
                    let group = match catalog.find_group(&key, Some(&scope)) {
                        Ok(group) => Group::clone(&group),
                        Err(_) => Group {
                            id: new_id()?.to_string(),
                            key,
                            scope: scope.clone(),
                            description: None,
                            created_at: now,
                            created_by: by.clone(),
                        },
                    };
                    catalog.check_group(&group).map_err(|e| catalog_problem(&e))?;
                    put(batch, RecordKind::Group, &group.id, &group)?;
                    groups.insert(name.clone(), group);
                }
                let key = SecretKey { environment: environment.clone(), name: item.name.clone() };
                let id = new_id()?.to_string();
                let mut secret = Secret {
                    group: item.group.clone(),
                    plain: matches!(item.nature, Nature::Plain(_)),
                    ..Secret::fresh(id, key, scope.clone(), now, &by)
                };
                catalog.check_secret(&secret).map_err(|e| catalog_problem(&e))?;
                let id = new_id()?;
                secret.replace(self.new_version(catalog, &item.value, id, &by)?);
                batch.put(RecordKind::Value, id, SecretBytes::copy_of(item.value.expose()));
                put(batch, RecordKind::Secret, &secret.id, &secret)?;
                secrets.push(secret);
            }
            let created: Vec<_> = secrets
                .iter()
                .map(|secret: &Secret| {
                    let group = secret.group.as_ref().and_then(|name| groups.get(name));
                    let target = group.map_or(&secret.id, |group| &group.id);
                    (secret.key.name.to_string(), target.clone())
                })
                .chain(groups.iter().map(|(name, group)| (name.to_string(), group.id.clone())))
                .collect();
            let mut stored = Vec::new();
            for (name, terms) in policies {
                let bare = match &environment {
                    Some(environment) => {
                        name.strip_prefix(&format!("{environment}/")).unwrap_or(&name)
                    }
                    None => &name,
                };
                let target = created.iter().find(|(made, _)| made == bare);
                let target = target.map(|(_, id)| id.clone());
                let full = match &environment {
                    Some(environment) if !name.contains('/') => format!("{environment}/{name}"),
                    _ => name.clone(),
                };
                let policy = policy_in(catalog, target, (&full, &scope), terms, (now, &by))?;
                put(batch, RecordKind::Policy, &policy.id, &policy)?;
                stored.push(policy);
            }
            for (unit, values) in rotated(catalog, &plan, environment.as_ref(), &scope)? {
                let values = member_values(&unit, &Fresh::Given(values))?;
                secrets.extend(self.stage_unit(
                    catalog,
                    batch,
                    &unit,
                    &values,
                    Times::default(),
                    &by,
                )?);
            }
            let items = shown(&plan, environment.as_ref());
            let staged = versions(&secrets);
            let apply = move |c: &mut Catalog| {
                groups.into_values().for_each(|group| c.put_group(group));
                secrets.into_iter().for_each(|secret| c.put_secret(secret));
                stored.into_iter().for_each(|policy| c.put_policy(policy));
            };
            Ok(((items, staged), Box::new(apply) as _))
        })?;
        self.settle_soon();
        let scope = scope.to_string();
        for item in items.iter().filter(|i| i.action == "create" || i.action == "rotate") {
            let key = match &item.environment {
                Some(environment) => format!("{environment}/{}", item.key),
                None => item.key.clone(),
            };
            let event =
                if item.action == "rotate" { Event::SecretRotated } else { Event::SecretSet };
            let mut record = self.core.new_record(event);
            record.secret_key = Some(&key);
            record.scope = Some(&scope);
            record.environment = item.environment.as_deref();
            record.version = staged.get(&item.key).copied();
            record.user = Some(&by);
            record.uid = Some(who.peer.uid);
            record.via = Some("import");
            record.revision = Some(revision);
            self.core.record(&record)?;
        }
        let lines = ranges(items.iter().filter_map(|i| i.line));
        let mut notes = Vec::new();
        if let (Some(source), false) = (&req.source, lines.is_empty()) {
            notes.push(format!("lines {lines} of {source} can go now"));
        }
        Ok(proto::Imported { items, dry_run: false, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_in_a_row_are_shown_as_one_range() {
        assert_eq!(ranges([1, 2, 3, 7, 9, 10].into_iter()), "1-3, 7, 9, 10");
        assert_eq!(ranges(std::iter::empty()), "");
    }
}
