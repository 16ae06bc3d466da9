//! From an agent's references to versions of secrets, with the reason for each.
//!
//! Environment first, then the narrowest scope that admits the principal. Invariant: nothing crosses
//! the wall between environments; a reference that resolves to nothing stops the launch.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Catalog;
use super::definition::{Definition, Deliver, Reference};
use super::group::GroupKey;
use super::loader;
use super::name::{AgentName, ChainName, EnvName, SecretKey, SecretName};
use super::scope::Scope;
use super::secret::Secret;

/// Who asks, as definitions name it.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The chain.
    pub chain: &'a ChainName,
    /// The agent.
    pub agent: &'a AgentName,
    /// The execution's environment.
    pub environment: Option<&'a EnvName>,
}

/// One secret that was looked at for a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name and environment.
    pub key: SecretKey,
    /// Its scope.
    pub scope: Scope,
    /// Whether it was taken.
    pub taken: bool,
    /// Why or why not.
    pub why: &'static str,
}

/// Why a reference resolves as it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What was searched, in words.
    pub searched: String,
    /// What was looked at, narrowest first.
    pub candidates: Vec<Candidate>,
    /// The command that would make it resolve.
    pub fix: Option<String>,
}

/// A secret that an agent gets.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Its file's name.
    pub file_name: SecretName,
    /// Which.
    pub secret: Arc<Secret>,
    /// How it comes.
    pub deliver: Deliver,
    /// A variable that gets its file's path.
    pub path_env: Option<String>,
    /// As what it was referenced.
    pub reference: SecretKey,
    /// Why it is this one.
    pub why: Explanation,
}

/// A reference that resolves to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// The reference.
    pub reference: SecretKey,
    /// Why.
    pub why: Explanation,
}

/// What an agent gets, and what it wants and does not get.
#[derive(Debug, Default)]
pub struct Resolution {
    /// By file name.
    pub granted: BTreeMap<SecretName, Grant>,
    /// In order of the definition.
    pub unresolved: Vec<Unresolved>,
}

/// Why an agent cannot be resolved at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No such agent.
    #[error("chain {chain} has no agent {agent}")]
    NoAgent {
        /// The chain.
        chain: ChainName,
        /// The name.
        agent: AgentName,
        /// Which it has.
        known: Vec<String>,
    },
    /// No such chain.
    #[error("there is no chain {chain}")]
    NoChain {
        /// The name.
        chain: ChainName,
    },
    /// The chain does not run there.
    #[error("chain {chain} does not run in environment {environment}")]
    NotThere {
        /// The chain.
        chain: ChainName,
        /// The environment, or "(none)".
        environment: String,
    },
    /// Two secrets would be one file.
    #[error("two secrets of agent {agent} would be the file {name}")]
    Twice {
        /// The agent.
        agent: AgentName,
        /// The file.
        name: SecretName,
    },
}

impl Catalog {
    /// Whether a scope admits an agent of a chain.
    pub fn admits(&self, scope: &Scope, chain: &ChainName, agent: &AgentName) -> bool {
        match scope {
            Scope::Org => true,
            Scope::Project(name) => {
                self.project(name).is_some_and(|p| p.chains_allowed.contains(chain))
            }
            Scope::Chain(name) => name == chain,
            Scope::Agent(of, name) => of == chain && name == agent,
        }
    }

    /// What an agent of a chain gets in an environment.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn resolve(&self, asker: Asker<'_>) -> Result<Resolution, Error> {
        let definition =
            self.chain(asker.chain).ok_or_else(|| Error::NoChain { chain: asker.chain.clone() })?;
        self.resolve_in(&definition.definition, asker)
    }

    /// The same by a definition that need not be stored.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn resolve_in(
        &self,
        definition: &Definition,
        asker: Asker<'_>,
    ) -> Result<Resolution, Error> {
        let agent = definition.agent(asker.agent).ok_or_else(|| Error::NoAgent {
            chain: asker.chain.clone(),
            agent: asker.agent.clone(),
            known: definition.agents.iter().map(|a| a.name.to_string()).collect(),
        })?;
        if !definition.environments.is_empty()
            && !asker.environment.is_some_and(|e| definition.environments.contains(e))
        {
            return Err(Error::NotThere {
                chain: asker.chain.clone(),
                environment: asker.environment.map_or("(none)".into(), ToString::to_string),
            });
        }
        let default = agent.deliver.or(definition.deliver).unwrap_or(Deliver::Files);
        let references = definition.secrets.iter().chain(&agent.secrets);
        self.resolve_references(references, default, asker)
    }

    /// What `run -s NAME...` gets without a definition.
    ///
    /// # Errors
    /// [`Error::Twice`].
    pub fn resolve_references<'r>(
        &self,
        references: impl Iterator<Item = &'r Reference>,
        default: Deliver,
        asker: Asker<'_>,
    ) -> Result<Resolution, Error> {
        let mut resolution = Resolution::default();
        for reference in references {
            let deliver = reference.deliver.unwrap_or(default);
            for found in self.resolve_one(reference, asker) {
                let (secret, why) = match found {
                    Ok(found) => found,
                    Err(unresolved) => {
                        resolution.unresolved.push(unresolved);
                        continue;
                    }
                };
                let file_name =
                    reference.as_name.clone().unwrap_or_else(|| secret.key.name.clone());
                // Said twice, once for the chain and once for the agent, it is one.
                if let Some(other) = resolution.granted.get(&file_name)
                    && other.secret.id != secret.id
                {
                    return Err(Error::Twice { agent: asker.agent.clone(), name: file_name });
                }
                let grant = Grant {
                    file_name: file_name.clone(),
                    secret,
                    deliver,
                    path_env: reference.path_env.clone(),
                    reference: reference.name.clone(),
                    why,
                };
                resolution.granted.insert(file_name, grant);
            }
        }
        Ok(resolution)
    }

    fn resolve_one(
        &self,
        reference: &Reference,
        asker: Asker<'_>,
    ) -> Vec<Result<(Arc<Secret>, Explanation), Unresolved>> {
        let as_group = reference.name.to_string().parse::<GroupKey>().ok();
        let groups: Vec<_> = as_group
            .iter()
            .flat_map(|key| self.groups_named(&key.name))
            .filter(|group| self.admits(&group.scope, asker.chain, asker.agent))
            .collect();
        if !reference.group && groups.is_empty() {
            return vec![self.resolve_secret(&reference.name, asker)];
        }
        // The same order as for secrets: the environment, then the narrowest scope.
        let wanted = reference.name.environment.as_ref().or(asker.environment);
        let in_environment = |e: Option<&EnvName>| {
            groups
                .iter()
                .filter(|g| g.key.environment.as_ref() == e)
                .max_by_key(|g| g.scope.narrowness())
        };
        let walled =
            reference.name.environment.as_ref().is_some_and(|e| asker.environment != Some(e));
        let found = if walled {
            None
        } else {
            in_environment(wanted).or_else(|| {
                let elsewhere = groups.iter().any(|g| g.key.environment.is_some());
                (!elsewhere && reference.name.environment.is_none())
                    .then(|| in_environment(None))
                    .flatten()
            })
        };
        let Some(group) = found else {
            let fix = format!(
                "strongroom group set {} --scope chain:{} < group.json",
                full_name(&reference.name.to_string(), asker),
                asker.chain
            );
            return vec![Err(Unresolved {
                reference: reference.name.clone(),
                why: Explanation {
                    searched: format!("groups named {}", reference.name),
                    candidates: Vec::new(),
                    fix: Some(fix),
                },
            })];
        };
        self.members(group)
            .into_iter()
            .map(|secret| {
                let why = Explanation {
                    searched: format!("group {}, scope {}", group.key, group.scope),
                    candidates: vec![Candidate {
                        key: secret.key.clone(),
                        scope: secret.scope.clone(),
                        taken: true,
                        why: "it is a member of the group",
                    }],
                    fix: None,
                };
                Ok((secret, why))
            })
            .collect()
    }

    fn resolve_secret(
        &self,
        reference: &SecretKey,
        asker: Asker<'_>,
    ) -> Result<(Arc<Secret>, Explanation), Unresolved> {
        let mut all = self.secrets_named(&reference.name);
        all.sort_by_key(|s| std::cmp::Reverse(s.scope.narrowness()));
        let admitted = |s: &Secret| self.admits(&s.scope, asker.chain, asker.agent);
        // A reference may name its environment; it must be the execution's own.
        let named = reference.environment.as_ref();
        let wall = named.is_some() && named != asker.environment;
        let here =
            all.iter().find(|s| admitted(s) && s.key.environment.as_ref() == asker.environment);
        let elsewhere = all.iter().any(|s| admitted(s) && s.key.environment.is_some());
        let without = all.iter().find(|s| admitted(s) && s.key.environment.is_none());
        let taken = if wall {
            None
        } else {
            here.or_else(|| without.filter(|_| named.is_none() && !elsewhere))
        };
        let candidates = all
            .iter()
            .map(|s| {
                let is_taken = taken.is_some_and(|t| t.id == s.id);
                let why = if is_taken {
                    "it is the narrowest that admits this agent here"
                } else if !admitted(s) {
                    "its scope does not admit this agent"
                } else if wall {
                    "the reference names another environment than the execution's"
                } else if s.key.environment.as_ref() == asker.environment {
                    "a narrower scope wins"
                } else if s.key.environment.is_some() {
                    "it belongs to another environment"
                } else if taken.is_some() {
                    "one of the execution's environment wins"
                } else {
                    "the name exists in an environment, so the one without is no fallback"
                };
                Candidate { key: s.key.clone(), scope: s.scope.clone(), taken: is_taken, why }
            })
            .collect();
        let searched = format!(
            "secrets named {} for agent {} of chain {} in environment {}",
            reference.name,
            asker.agent,
            asker.chain,
            asker.environment.map_or("(none)", EnvName::as_str),
        );
        match taken {
            Some(secret) => Ok((secret.clone(), Explanation { searched, candidates, fix: None })),
            None => {
                let fix = if wall {
                    format!("run it with --env {}", named.map_or("", EnvName::as_str))
                } else {
                    format!(
                        "strongroom secret set {} --scope chain:{}",
                        full_name(reference.name.as_str(), asker),
                        asker.chain
                    )
                };
                let why = Explanation { searched, candidates, fix: Some(fix) };
                Err(Unresolved { reference: reference.clone(), why })
            }
        }
    }
}

fn full_name(name: &str, asker: Asker<'_>) -> String {
    match asker.environment {
        Some(environment) if !name.contains('/') => format!("{environment}/{name}"),
        _ => name.to_owned(),
    }
}

impl Grant {
    /// The variable that gets the value, where it is to come by environment and may.
    pub fn value_variable(&self) -> Option<&str> {
        let name = self.file_name.as_str();
        (self.deliver == Deliver::Env && loader::may_be_injected(name)).then_some(name)
    }

    /// Variables that get the file's path.
    pub fn path_variables(&self) -> Vec<String> {
        let by_convention = format!("{}_FILE", self.file_name);
        let wanted = self.deliver == Deliver::FileEnv && loader::may_be_injected(&by_convention);
        self.path_env.iter().cloned().chain(wanted.then_some(by_convention)).collect()
    }
}
