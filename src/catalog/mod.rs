//! What the vault's records mean: secrets, groups, projects and chains, and who may read what.
//!
//! Pure: no file, no clock, no randomness. Invariant: checks that need the whole catalog (two
//! members of one name, a group and a secret of one name) are made here, before anything is stored.
#![forbid(unsafe_code)]

pub mod definition;
pub mod dotenv;
pub mod group;
pub mod import;
pub mod loader;
pub mod name;
pub mod policy;
pub mod resolve;
pub mod scope;
pub mod secret;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use definition::Definition;
use group::{Group, GroupKey, Project};
use name::{ChainName, EnvName, GroupName, ProjectName, SecretKey, SecretName};
use policy::Policy;
use scope::Scope;
use secret::{Buried, End, Secret, Version};

use crate::clock::Timestamp;

/// A chain as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The vault's record of this, in hex.
    pub id: String,
    /// Its definition.
    pub definition: Definition,
    /// Digest of the definition, in hex.
    pub digest: String,
    /// When it was applied.
    pub applied_at: Timestamp,
    /// Who applied it.
    pub applied_by: String,
}

/// Why something cannot be added to the catalog, or a name means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A bare name means several secrets.
    #[error("{name} is ambiguous")]
    Ambiguous {
        /// The name.
        name: String,
        /// What it may mean: scopes.
        candidates: Vec<String>,
    },
    /// It is there already.
    #[error("{what} exists already")]
    Exists {
        /// What.
        what: String,
    },
    /// A group and a secret would have one name.
    #[error("{name} is the name of a {other} already")]
    NameClash {
        /// The name.
        name: String,
        /// "group" or "secret".
        other: &'static str,
    },
    /// Nothing has that name.
    #[error("there is no {what}")]
    Missing {
        /// What was looked for.
        what: String,
    },
    /// The environment is not one of the configured.
    #[error("there is no environment {name}")]
    UnknownEnvironment {
        /// The name.
        name: String,
        /// Which there are.
        known: Vec<String>,
    },
}

/// Everything, indexed.
#[derive(Debug, Default)]
pub struct Catalog {
    environments: Vec<EnvName>,
    secrets: HashMap<String, Arc<Secret>>,
    by_name: HashMap<SecretName, Vec<Arc<Secret>>>,
    /// Secrets that name a group, of all environments and scopes.
    by_group: HashMap<GroupName, BTreeSet<String>>,
    groups: BTreeMap<String, Arc<Group>>,
    groups_by_name: HashMap<GroupName, BTreeSet<String>>,
    projects: BTreeMap<ProjectName, Arc<Project>>,
    chains: BTreeMap<ChainName, Arc<Chain>>,
    /// By the record of their secret or group.
    policies: BTreeMap<String, Arc<Policy>>,
    /// Secrets with more than a current version: those that time or an end may change.
    unsettled: BTreeSet<String>,
    /// Secrets by the fingerprints of their revoked values.
    fingerprints: HashMap<String, String>,
    /// Revoked values whose secrets were removed, by fingerprint.
    buried: HashMap<String, Buried>,
}

/// What is changed together: a secret, or all members of a group.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The group, if it is one.
    pub group: Option<Arc<Group>>,
    /// The secret, or the members by name.
    pub members: Vec<Arc<Secret>>,
}

impl Unit {
    /// The record that a policy for it names.
    pub fn id(&self) -> &str {
        match &self.group {
            Some(group) => &group.id,
            None => self.members.first().map_or("", |s| &s.id),
        }
    }

    /// Its name with the environment.
    pub fn name(&self) -> String {
        match &self.group {
            Some(group) => group.key.to_string(),
            None => self.members.first().map_or_else(String::new, |s| s.key.to_string()),
        }
    }

    /// Its scope.
    pub fn scope(&self) -> Option<&Scope> {
        match &self.group {
            Some(group) => Some(&group.scope),
            None => self.members.first().map(|s| &s.scope),
        }
    }

    /// Its environment.
    pub fn environment(&self) -> Option<&EnvName> {
        match &self.group {
            Some(group) => group.key.environment.as_ref(),
            None => self.members.first().and_then(|s| s.key.environment.as_ref()),
        }
    }
}

impl Catalog {
    /// An empty one with these environments.
    pub fn new(environments: Vec<EnvName>) -> Self {
        Self { environments, ..Self::default() }
    }

    /// Refuses an environment that is not configured.
    ///
    /// # Errors
    /// [`Error::UnknownEnvironment`].
    pub fn check_environment(&self, environment: Option<&EnvName>) -> Result<(), Error> {
        match environment {
            Some(name) if !self.environments.contains(name) => Err(Error::UnknownEnvironment {
                name: name.to_string(),
                known: self.environments.iter().map(ToString::to_string).collect(),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses a secret that cannot stand beside what is there.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn check_secret(&self, secret: &Secret) -> Result<(), Error> {
        self.check_environment(secret.key.environment.as_ref())?;
        if secret
            .key
            .name
            .as_str()
            .parse::<GroupName>()
            .is_ok_and(|name| self.groups_by_name.contains_key(&name))
        {
            return Err(Error::NameClash { name: secret.key.name.to_string(), other: "group" });
        }
        let same = self
            .secrets_named(&secret.key.name)
            .into_iter()
            .any(|s| s.key == secret.key && s.scope == secret.scope && s.id != secret.id);
        if same {
            let what = format!("{} with scope {}", secret.key, secret.scope);
            return Err(Error::Exists { what });
        }
        Ok(())
    }

    /// Refuses a group that cannot stand beside what is there.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn check_group(&self, group: &Group) -> Result<(), Error> {
        self.check_environment(group.key.environment.as_ref())?;
        let as_secret = group.key.name.as_str().parse::<SecretName>();
        if as_secret.is_ok_and(|name| self.by_name.contains_key(&name)) {
            return Err(Error::NameClash { name: group.key.name.to_string(), other: "secret" });
        }
        Ok(())
    }

    /// Adds or replaces a secret, by its id.
    pub fn put_secret(&mut self, mut secret: Secret) {
        // Parsed lists have room for four, and most secrets have one version.
        secret.versions.shrink_to_fit();
        self.remove_secret(&secret.id.clone());
        if secret.versions.iter().filter(|v| v.value.is_some()).count() > 1 {
            self.unsettled.insert(secret.id.clone());
        }
        for fingerprint in secret.versions.iter().filter_map(|v| v.fingerprint.clone()) {
            self.fingerprints.insert(fingerprint, secret.id.clone());
        }
        let secret = Arc::new(secret);
        match self.by_name.entry(secret.key.name.clone()) {
            Entry::Occupied(mut same) => same.get_mut().push(secret.clone()),
            // Room for one: most names mean one secret.
            Entry::Vacant(none) => {
                none.insert(vec![secret.clone()]);
            }
        }
        if let Some(group) = &secret.group {
            self.by_group.entry(group.clone()).or_default().insert(secret.id.clone());
        }
        self.secrets.insert(secret.id.clone(), secret);
    }

    /// Takes a secret out.
    pub fn remove_secret(&mut self, id: &str) {
        self.unsettled.remove(id);
        let Some(old) = self.secrets.remove(id) else { return };
        for fingerprint in old.versions.iter().filter_map(|v| v.fingerprint.as_ref()) {
            if self.fingerprints.get(fingerprint).is_some_and(|owner| owner == id) {
                self.fingerprints.remove(fingerprint);
            }
        }
        if let Some(same) = self.by_name.get_mut(&old.key.name) {
            same.retain(|other| other.id != id);
            if same.is_empty() {
                self.by_name.remove(&old.key.name);
            }
        }
        if let Some(group) = &old.group {
            forget(&mut self.by_group, group, id);
        }
    }

    /// Adds or replaces a group, by its id.
    pub fn put_group(&mut self, group: Group) {
        self.remove_group(&group.id.clone());
        self.groups_by_name.entry(group.key.name.clone()).or_default().insert(group.id.clone());
        self.groups.insert(group.id.clone(), Arc::new(group));
    }

    /// Takes a group out.
    pub fn remove_group(&mut self, id: &str) {
        if let Some(old) = self.groups.remove(id) {
            forget(&mut self.groups_by_name, &old.key.name, id);
        }
    }

    /// Adds or replaces a project.
    pub fn put_project(&mut self, project: Project) {
        self.projects.insert(project.name.clone(), Arc::new(project));
    }

    /// Takes a project out.
    pub fn remove_project(&mut self, name: &ProjectName) {
        self.projects.remove(name);
    }

    /// Adds or replaces a chain.
    pub fn put_chain(&mut self, chain: Chain) {
        self.chains.insert(chain.definition.chain.clone(), Arc::new(chain));
    }

    /// Takes a chain out.
    pub fn remove_chain(&mut self, name: &ChainName) {
        self.chains.remove(name);
    }

    /// A secret by id.
    pub fn secret(&self, id: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }

    /// Secrets with this name, of all environments and scopes.
    pub fn secrets_named(&self, name: &SecretName) -> Vec<Arc<Secret>> {
        self.by_name.get(name).cloned().unwrap_or_default()
    }

    /// Whether any secret has this name.
    pub fn has_name(&self, name: &SecretName) -> bool {
        self.by_name.contains_key(name)
    }

    /// How many secrets there are.
    pub fn secret_count(&self) -> usize {
        self.secrets.len()
    }

    /// All secrets, in no order: for those who would only look through them.
    pub fn each_secret(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    /// All secrets, by name, environment and scope.
    pub fn secrets(&self) -> Vec<Arc<Secret>> {
        let mut all: Vec<_> = self.secrets.values().cloned().collect();
        all.sort_by(|a, b| (&a.key.name, &a.key, &a.scope).cmp(&(&b.key.name, &b.key, &b.scope)));
        all
    }

    /// The one secret that a name and, where it is given, a scope mean.
    ///
    /// # Errors
    /// [`Error::Ambiguous`], [`Error::Missing`].
    pub fn find(&self, key: &SecretKey, scope: Option<&Scope>) -> Result<Arc<Secret>, Error> {
        let found: Vec<_> = self
            .secrets_named(&key.name)
            .into_iter()
            .filter(|s| s.key == *key && scope.is_none_or(|scope| s.scope == *scope))
            .collect();
        match &found[..] {
            [one] => Ok(one.clone()),
            [] => Err(Error::Missing {
                what: match scope {
                    Some(scope) => format!("secret {key} with scope {scope}"),
                    None => format!("secret {key}"),
                },
            }),
            several => Err(Error::Ambiguous {
                name: key.to_string(),
                candidates: several.iter().map(|s| s.scope.to_string()).collect(),
            }),
        }
    }

    /// Groups with this name, of all environments and scopes.
    pub fn groups_named(&self, name: &GroupName) -> Vec<Arc<Group>> {
        let ids = self.groups_by_name.get(name).into_iter().flatten();
        ids.filter_map(|id| self.groups.get(id).cloned()).collect()
    }

    /// All groups.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        let mut all: Vec<_> = self.groups.values().cloned().collect();
        all.sort_by(|a, b| (&a.key, &a.scope).cmp(&(&b.key, &b.scope)));
        all
    }

    /// The one group that a name and, where it is given, a scope mean.
    ///
    /// # Errors
    /// [`Error::Ambiguous`], [`Error::Missing`].
    pub fn find_group(&self, key: &GroupKey, scope: Option<&Scope>) -> Result<Arc<Group>, Error> {
        let found: Vec<_> = self
            .groups_named(&key.name)
            .into_iter()
            .filter(|g| g.key == *key && scope.is_none_or(|scope| g.scope == *scope))
            .collect();
        match &found[..] {
            [one] => Ok(one.clone()),
            [] => Err(Error::Missing { what: format!("group {key}") }),
            several => Err(Error::Ambiguous {
                name: key.to_string(),
                candidates: several.iter().map(|g| g.scope.to_string()).collect(),
            }),
        }
    }

    /// A group's members, by name.
    pub fn members(&self, group: &Group) -> Vec<Arc<Secret>> {
        let ids = self.by_group.get(&group.key.name).into_iter().flatten();
        let mut members: Vec<_> = ids
            .filter_map(|id| self.secrets.get(id))
            .filter(|s| s.key.environment == group.key.environment && s.scope == group.scope)
            .cloned()
            .collect();
        members.sort_by(|a, b| a.key.cmp(&b.key));
        members
    }

    /// The secret or the group that a name and, where it is given, a scope mean; a member of a group
    /// stands for itself.
    ///
    /// # Errors
    /// [`Error::Ambiguous`], [`Error::Missing`].
    pub fn find_unit(&self, name: &str, scope: Option<&Scope>) -> Result<Unit, Error> {
        let secret = match name.parse::<SecretKey>() {
            Ok(key) => self.find(&key, scope),
            Err(_) => Err(Error::Missing { what: format!("secret {name}") }),
        };
        match (secret, name.parse::<GroupKey>()) {
            (Ok(secret), _) => Ok(Unit { group: None, members: vec![secret] }),
            (Err(Error::Missing { .. }), Ok(key)) => match self.find_group(&key, scope) {
                Ok(group) => Ok(Unit { members: self.members(&group), group: Some(group) }),
                Err(Error::Missing { .. }) => {
                    Err(Error::Missing { what: format!("secret or group {name}") })
                }
                Err(error) => Err(error),
            },
            (Err(error), _) => Err(error),
        }
    }

    /// What a secret is changed together with: its group, or itself.
    pub fn unit_of(&self, secret: &Arc<Secret>) -> Unit {
        let group = secret.group.as_ref().and_then(|name| {
            self.groups_named(name)
                .into_iter()
                .find(|g| g.key.environment == secret.key.environment && g.scope == secret.scope)
        });
        match group {
            Some(group) => Unit { members: self.members(&group), group: Some(group) },
            None => Unit { group: None, members: vec![secret.clone()] },
        }
    }

    /// The unit behind a record's id, as policies name it.
    pub fn unit(&self, id: &str) -> Option<Unit> {
        if let Some(secret) = self.secrets.get(id) {
            return Some(Unit { group: None, members: vec![secret.clone()] });
        }
        let group = self.groups.get(id)?.clone();
        Some(Unit { members: self.members(&group), group: Some(group) })
    }

    /// Units that have more than a current version, each once.
    pub fn unsettled(&self) -> Vec<Unit> {
        let mut seen = BTreeSet::new();
        self.unsettled
            .iter()
            .filter_map(|id| self.secrets.get(id))
            .map(|secret| self.unit_of(secret))
            .filter(|unit| seen.insert(unit.id().to_owned()))
            .collect()
    }

    /// Secrets whose end has come by `now`, or their version's, and was not told yet.
    pub fn ended(&self, now: Timestamp) -> Vec<(Arc<Secret>, End)> {
        let over = |s: &Arc<Secret>| Some((s.clone(), s.untold_end(now)?));
        self.secrets.values().filter_map(over).collect()
    }

    /// Whose revoked value has this fingerprint, also of a secret that was removed.
    pub fn revoked(&self, fingerprint: &str) -> Option<(String, u32)> {
        if let Some(buried) = self.buried.get(fingerprint) {
            return Some((buried.key.to_string(), buried.number));
        }
        let secret = self.secrets.get(self.fingerprints.get(fingerprint)?)?;
        let of = |v: &&Version| v.fingerprint.as_deref() == Some(fingerprint);
        Some((secret.key.to_string(), secret.versions.iter().find(of)?.number))
    }

    /// Takes in what is known of a revoked value whose secret was removed.
    pub fn bury(&mut self, buried: Buried) {
        self.buried.insert(buried.fingerprint.clone(), buried);
    }

    /// What is known of revoked values whose secrets were removed.
    pub fn buried(&self) -> impl Iterator<Item = &Buried> {
        self.buried.values()
    }

    /// Adds or replaces a policy.
    pub fn put_policy(&mut self, policy: Policy) {
        self.policies.insert(policy.target.clone(), Arc::new(policy));
    }

    /// Takes the policy of a secret or group out.
    pub fn remove_policy(&mut self, target: &str) {
        self.policies.remove(target);
    }

    /// The policy of a secret or group.
    pub fn policy(&self, target: &str) -> Option<&Arc<Policy>> {
        self.policies.get(target)
    }

    /// All policies.
    pub fn policies(&self) -> Vec<Arc<Policy>> {
        self.policies.values().cloned().collect()
    }

    /// A project.
    pub fn project(&self, name: &ProjectName) -> Option<&Arc<Project>> {
        self.projects.get(name)
    }

    /// All projects.
    pub fn projects(&self) -> Vec<Arc<Project>> {
        self.projects.values().cloned().collect()
    }

    /// A chain.
    pub fn chain(&self, name: &ChainName) -> Option<&Arc<Chain>> {
        self.chains.get(name)
    }

    /// All chains.
    pub fn chains(&self) -> Vec<Arc<Chain>> {
        self.chains.values().cloned().collect()
    }
}

fn forget(index: &mut HashMap<GroupName, BTreeSet<String>>, name: &GroupName, id: &str) {
    if let Some(ids) = index.get_mut(name) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(name);
        }
    }
}

#[cfg(test)]
mod tests;
