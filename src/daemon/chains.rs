//! Verbs on chains, and who gets what: the matrix of access.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use crate::audit::record::Event;
use crate::catalog::definition::{Definition, Deliver};
use crate::catalog::name::{ChainName, EnvName};
use crate::catalog::resolve::{Asker, Explanation, Grant};
use crate::catalog::{Catalog, Chain};
use crate::config::Permission;
use crate::control::Caller;
use crate::proto::{self, Code, Problem, Value};
use crate::vault::crypto;
use crate::vault::record::RecordKind;

use super::core::{new_id, put};
use super::resolution::{resolve_problem, unresolved_shown};
use super::secrets::parse;
use super::{Daemon, user_of};

fn definition_of(value: &Value, source: Option<&str>, strict: bool) -> Result<Definition, Problem> {
    let text = std::str::from_utf8(value.secret().expose()).map_err(|_| {
        Problem::new(Code::Invalid, "the definition is not UTF-8").with_hint("it is a JSON file")
    })?;
    Definition::parse(text, strict).map_err(|error| {
        let place = source.map_or(String::new(), |s| format!("{s}: "));
        let problem = Problem::new(Code::Invalid, format!("{place}{error}"));
        match &error.hint {
            Some(hint) => problem.with_hint(hint.clone()),
            None => problem,
        }
    })
}

/// What each agent gets in each environment: (agent, environment, file) to the secret.
type Grants = BTreeMap<(String, Option<String>, String), String>;

fn grants(catalog: &Catalog, definition: &Definition, environments: &[Option<EnvName>]) -> Grants {
    let mut grants = Grants::new();
    for agent in &definition.agents {
        for environment in environments {
            let asker = Asker {
                chain: &definition.chain,
                agent: &agent.name,
                environment: environment.as_ref(),
            };
            let Ok(resolution) = catalog.resolve_in(definition, asker) else { continue };
            for (file, grant) in resolution.granted {
                let secret = format!("{} ({})", grant.secret.key, grant.secret.scope);
                let environment = environment.as_ref().map(ToString::to_string);
                grants.insert((agent.name.to_string(), environment, file.to_string()), secret);
            }
        }
    }
    grants
}

fn changes(chain: &ChainName, old: &Grants, new: &Grants) -> Vec<proto::GrantChange> {
    let change = |(agent, environment, file): &(String, Option<String>, String),
                  secret: &str,
                  change: &str| proto::GrantChange {
        chain: chain.to_string(),
        agent: agent.clone(),
        environment: environment.clone(),
        secret: secret.to_owned(),
        change: change.to_owned(),
        detail: Some(format!("as {file}")),
    };
    let added = new
        .iter()
        .filter(|(key, secret)| old.get(*key) != Some(*secret))
        .map(|(key, secret)| change(key, secret, "added"));
    let removed = old
        .iter()
        .filter(|(key, secret)| new.get(*key) != Some(*secret))
        .map(|(key, secret)| change(key, secret, "removed"));
    added.chain(removed).collect()
}

/// Launches that agents may make themselves: who may launch another obtains what that one may read.
fn launches(
    chain: &ChainName,
    old: Option<&Definition>,
    new: &Definition,
) -> Vec<proto::GrantChange> {
    let pairs = |definition: &Definition| -> BTreeSet<(String, String)> {
        let agents = definition.agents.iter();
        agents
            .flat_map(|agent| agent.may_launch.iter().map(|other| (&agent.name, other)))
            .map(|(agent, other)| (agent.to_string(), other.to_string()))
            .collect()
    };
    let (old, new) = (old.map(pairs).unwrap_or_default(), pairs(new));
    let change = |(agent, other): &(String, String), change: &str| proto::GrantChange {
        chain: chain.to_string(),
        agent: agent.clone(),
        environment: None,
        secret: format!("the launch of {other}"),
        change: change.to_owned(),
        detail: Some("may_launch".to_owned()),
    };
    let added = new.difference(&old).map(|pair| change(pair, "added"));
    added.chain(old.difference(&new).map(|pair| change(pair, "removed"))).collect()
}

/// Whether some role reaches every place that a definition is about; one without environments is
/// about all of them.
fn may_define(who: &Caller, definition: &Definition) -> bool {
    let chain = Some(definition.chain.as_str());
    let place = |environment| proto::Subject::Place { chain, environment };
    if definition.environments.is_empty() {
        return who.may(Permission::Operate, place(None));
    }
    let mut environments = definition.environments.iter();
    environments.all(|e| who.may(Permission::Operate, place(Some(e.as_str()))))
}

struct Difference {
    changes: Vec<proto::GrantChange>,
    widens: bool,
    unresolved: Vec<proto::Unresolved>,
}

impl Daemon {
    fn all_environments(&self) -> Vec<Option<EnvName>> {
        let known = self.config.environments.iter().filter_map(|e| e.parse().ok()).map(Some);
        std::iter::once(None).chain(known).collect()
    }

    fn difference(
        &self,
        catalog: &Catalog,
        definition: &Definition,
        environment: Option<&EnvName>,
    ) -> Result<Difference, Problem> {
        let environments = match definition.environments.is_empty() {
            true => self.all_environments(),
            false => definition.environments.iter().cloned().map(Some).collect(),
        };
        for environment in definition.environments.iter().map(Some) {
            catalog
                .check_environment(environment)
                .map_err(|e| super::secrets::catalog_problem(&e))?;
        }
        let old = catalog
            .chain(&definition.chain)
            .map(|chain| grants(catalog, &chain.definition, &self.all_environments()));
        let new = grants(catalog, definition, &environments);
        let mut changes = changes(&definition.chain, old.as_ref().unwrap_or(&Grants::new()), &new);
        let stored = catalog.chain(&definition.chain);
        changes.extend(launches(&definition.chain, stored.map(|c| &c.definition), definition));
        let widens = old.is_some() && changes.iter().any(|c| c.change == "added");
        // What resolves nowhere at all is worth a word; the launch refuses it in any case.
        let mut unresolved = Vec::new();
        for agent in &definition.agents {
            let asker = Asker { chain: &definition.chain, agent: &agent.name, environment };
            let Ok(resolution) = catalog.resolve_in(definition, asker) else { continue };
            for reference in &resolution.unresolved {
                let found_elsewhere = environment.is_none()
                    && new.keys().any(|(a, _, file)| {
                        *a == agent.name.to_string()
                            && *file == reference.reference.name.to_string()
                    });
                if !found_elsewhere {
                    unresolved.push(unresolved_shown(agent.name.as_str(), environment, reference));
                }
            }
        }
        Ok(Difference { changes, widens, unresolved })
    }

    pub(super) fn check_chain(
        &self,
        req: &proto::ChainCheck,
    ) -> Result<proto::ChainChecked, Problem> {
        self.core.unlocked()?;
        let definition = definition_of(&req.definition, req.source.as_deref(), req.strict)?;
        let environment = req.environment.as_deref().map(parse).transpose()?;
        let difference =
            self.difference(&self.core.catalog(), &definition, environment.as_ref())?;
        Ok(proto::ChainChecked {
            chain: definition.chain.to_string(),
            digest: digest(&definition)?,
            ok: difference.unresolved.is_empty(),
            changes: difference.changes,
            widens: difference.widens,
            unresolved: difference.unresolved,
            notes: Vec::new(),
        })
    }

    pub(super) fn apply_chain(
        &self,
        who: &Caller,
        req: &proto::ChainApply,
    ) -> Result<proto::ChainApplied, Problem> {
        let definition = definition_of(&req.definition, req.source.as_deref(), req.strict)?;
        let chain = definition.chain.clone();
        // Also for the places that the definition so far is about: they lose what it gave.
        let stored = self.core.catalog().chain(&chain).map(|stored| stored.definition.clone());
        if ![Some(&definition), stored.as_ref()].into_iter().flatten().all(|d| may_define(who, d)) {
            return Err(Problem::new(
                Code::NoRole,
                format!("no role lets you apply chain {chain} in all its environments"),
            )
            .with_hint("ask whoever configures [[role]] in strongroom.toml"));
        }
        let digest = digest(&definition)?;
        let by = user_of(who.peer.uid);
        let now = self.core.clock.now();
        let ((created, difference), revision) = self.core.change(|catalog, batch| {
            let difference = self.difference(catalog, &definition, None)?;
            let existing = catalog.chain(&chain);
            if difference.widens && !req.yes {
                let what = format!("chain {chain} exists, and this widens its access");
                return Err(Problem::new(Code::Widens, what)
                    .with_hint("look at the changes, then add --yes")
                    .with_changes(difference.changes));
            }
            let id = match existing {
                Some(chain) => chain.id.clone(),
                None => new_id()?.to_string(),
            };
            let created = existing.is_none();
            let stored = Chain {
                id,
                definition: definition.clone(),
                digest: digest.clone(),
                applied_at: now,
                applied_by: by.clone(),
            };
            put(batch, RecordKind::Chain, &stored.id, &stored)?;
            Ok(((created, difference), Box::new(move |c: &mut Catalog| c.put_chain(stored)) as _))
        })?;
        let mut record = self.core.new_record(Event::ChainApplied);
        record.chain = Some(chain.as_str());
        record.user = Some(&by);
        record.uid = Some(who.peer.uid);
        record.reason = Some(&digest);
        record.revision = Some(revision);
        self.core.record(&record)?;
        Ok(proto::ChainApplied {
            chain: chain.to_string(),
            digest,
            created,
            changes: difference.changes,
            widens: difference.widens,
            unresolved: difference.unresolved,
            notes: Vec::new(),
        })
    }

    fn active(&self, chain: &str) -> u64 {
        let active = self
            .registry
            .executions()
            .iter()
            .filter(|e| e.ended.is_none() && e.chain == chain)
            .count();
        active as u64
    }

    pub(super) fn list_chains(&self, who: &Caller) -> Result<proto::ChainListed, Problem> {
        self.core.unlocked()?;
        let chains = self
            .core
            .catalog()
            .chains()
            .iter()
            .filter(|c| {
                let name = Some(c.definition.chain.as_str());
                [Permission::Operate, Permission::Launch, Permission::Audit]
                    .into_iter()
                    .any(|p| who.may_in(p, name, None) || who.may_somewhere(p))
            })
            .map(|c| proto::ChainSummary {
                chain: c.definition.chain.to_string(),
                agents: c.definition.agents.iter().map(|a| a.name.to_string()).collect(),
                applied_at: c.applied_at,
                applied_by: c.applied_by.clone(),
                active: self.active(c.definition.chain.as_str()),
            })
            .collect();
        Ok(proto::ChainListed { chains })
    }

    fn find_chain(&self, name: &str) -> Result<std::sync::Arc<Chain>, Problem> {
        self.core.unlocked()?;
        self.core.catalog().chain(&parse(name)?).cloned().ok_or_else(|| {
            Problem::new(Code::NotFound, format!("there is no chain {name}"))
                .with_hint("strongroom chain list")
        })
    }

    pub(super) fn show_chain(&self, req: &proto::ChainName) -> Result<proto::ChainShown, Problem> {
        let chain = self.find_chain(&req.chain)?;
        Ok(proto::ChainShown {
            chain: req.chain.clone(),
            digest: chain.digest.clone(),
            applied_at: chain.applied_at,
            applied_by: chain.applied_by.clone(),
            definition: serde_json::to_value(&chain.definition)
                .map_err(|_| Problem::new(Code::Internal, "the definition cannot be shown"))?,
            active: self.active(&req.chain),
        })
    }

    pub(super) fn remove_chain(
        &self,
        who: &Caller,
        req: &proto::ChainName,
    ) -> Result<proto::Done, Problem> {
        let chain = self.find_chain(&req.chain)?;
        if self.active(&req.chain) > 0 && !req.force {
            return Err(Problem::new(
                Code::Conflict,
                format!("chain {} has executions that run", req.chain),
            )
            .with_hint("end them first, or add --force: they run on with what they have"));
        }
        let ((), revision) = self.core.change(|_, batch| {
            batch.delete(RecordKind::Chain, parse(&chain.id)?);
            let name = chain.definition.chain.clone();
            Ok(((), Box::new(move |c: &mut Catalog| c.remove_chain(&name)) as _))
        })?;
        let user = user_of(who.peer.uid);
        let mut record = self.core.new_record(Event::ChainRemoved);
        record.chain = Some(&req.chain);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.revision = Some(revision);
        self.core.record(&record)?;
        Ok(proto::Done::default())
    }

    /// Agents by secrets: what each resolves to, and why.
    pub(super) fn access_matrix(
        &self,
        who: &Caller,
        req: &proto::Access,
    ) -> Result<proto::AccessShown, Problem> {
        self.core.unlocked()?;
        let catalog = self.core.catalog();
        let chosen = match &req.chain {
            Some(name) => {
                let chain: ChainName = parse(name)?;
                let chain = catalog.chain(&chain).ok_or_else(|| {
                    resolve_problem(&crate::catalog::resolve::Error::NoChain { chain })
                })?;
                vec![chain.clone()]
            }
            None => catalog.chains(),
        };
        let environments = match req.environment.as_deref() {
            Some("-") => vec![None],
            Some(text) => {
                let environment: EnvName = parse(text)?;
                catalog
                    .check_environment(Some(&environment))
                    .map_err(|e| super::secrets::catalog_problem(&e))?;
                vec![Some(environment)]
            }
            None => self.all_environments(),
        };
        let mut rows = Vec::new();
        let mut explanations = Vec::new();
        for chain in &chosen {
            let name = &chain.definition.chain;
            for environment in &environments {
                let asked = [Permission::Operate, Permission::Launch, Permission::Audit];
                let text = environment.as_ref().map(|e| e.as_str());
                if !asked.into_iter().any(|p| who.may_in(p, Some(name.as_str()), text)) {
                    continue;
                }
                for agent in &chain.definition.agents {
                    if req.agent.as_deref().is_some_and(|a| a != agent.name.as_str()) {
                        continue;
                    }
                    let asker = Asker {
                        chain: name,
                        agent: &agent.name,
                        environment: environment.as_ref(),
                    };
                    let Ok(resolution) = catalog.resolve(asker) else { continue };
                    for grant in resolution.granted.values() {
                        rows.push(self.row(asker, grant));
                        explain(
                            &mut explanations,
                            req,
                            asker,
                            &grant.reference.to_string(),
                            &grant.why,
                        );
                    }
                    for unresolved in &resolution.unresolved {
                        rows.push(proto::AccessRow {
                            chain: name.to_string(),
                            agent: agent.name.to_string(),
                            environment: text.map(ToOwned::to_owned),
                            reference: unresolved.reference.to_string(),
                            file_name: unresolved.reference.name.to_string(),
                            secret: None,
                            scope: None,
                            version: None,
                            deliver: String::new(),
                            why: "resolves to nothing".to_owned(),
                        });
                        let reference = unresolved.reference.to_string();
                        explain(&mut explanations, req, asker, &reference, &unresolved.why);
                    }
                }
            }
        }
        if let Some(secret) = &req.secret {
            rows.retain(|row| row.secret.as_deref() == Some(secret) || row.reference == *secret);
        }
        if req.environment.is_none() {
            // Without a word on the environment, rows say something where something is found.
            let found: std::collections::BTreeSet<_> = rows
                .iter()
                .filter(|r| r.secret.is_some())
                .map(|r| (r.chain.clone(), r.agent.clone(), r.reference.clone()))
                .collect();
            rows.retain(|r| {
                r.secret.is_some()
                    || (r.environment.is_none()
                        && !found.contains(&(
                            r.chain.clone(),
                            r.agent.clone(),
                            r.reference.clone(),
                        )))
            });
        }
        Ok(proto::AccessShown { rows, explanations })
    }

    fn row(&self, asker: Asker<'_>, grant: &Grant) -> proto::AccessRow {
        let version = grant.secret.version_to_pin(self.core.clock.now()).ok();
        proto::AccessRow {
            chain: asker.chain.to_string(),
            agent: asker.agent.to_string(),
            environment: asker.environment.map(ToString::to_string),
            reference: grant.reference.to_string(),
            file_name: grant.file_name.to_string(),
            secret: Some(grant.secret.key.to_string()),
            scope: Some(grant.secret.scope.to_string()),
            version: version.map(|v| u64::from(v.number)),
            deliver: match grant.deliver {
                Deliver::Env => "env",
                Deliver::FileEnv => "file-env",
                Deliver::Files => "files",
            }
            .to_owned(),
            why: grant.why.candidates.iter().find(|c| c.taken).map_or("", |c| c.why).to_owned(),
        }
    }
}

fn explain(
    into: &mut Vec<proto::Explanation>,
    req: &proto::Access,
    asker: Asker<'_>,
    reference: &str,
    why: &Explanation,
) {
    if req.explain.as_deref() != Some(reference) {
        return;
    }
    into.push(proto::Explanation {
        agent: asker.agent.to_string(),
        reference: reference.to_owned(),
        environment: asker.environment.map(ToString::to_string),
        candidates: why
            .candidates
            .iter()
            .map(|c| proto::Candidate {
                secret: c.key.to_string(),
                scope: c.scope.to_string(),
                taken: c.taken,
                why: c.why.to_owned(),
            })
            .collect(),
        remedy: why.fix.clone(),
    });
}

fn digest(definition: &Definition) -> Result<String, Problem> {
    let text = serde_json::to_vec(definition)
        .map_err(|_| Problem::new(Code::Internal, "the definition cannot be stored"))?;
    Ok(crypto::hex(&crypto::digest(&[&text])))
}
