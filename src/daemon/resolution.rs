//! What an agent's references resolve to, for a launch and for those who ask.
//!
//! Invariant: a reference that resolves to nothing stops a launch before anything starts, with what was
//! searched and the remedy.
#![forbid(unsafe_code)]

use crate::catalog::definition::{Definition, Deliver, Reference};
use crate::catalog::name::EnvName;
use crate::catalog::resolve::{Asker, Error as ResolveError, Resolution, Unresolved};
use crate::proto::{self, Code, Problem};

use super::Daemon;
use super::secrets::parse;

pub(super) fn resolve_problem(error: &ResolveError) -> Problem {
    let problem = Problem::new(Code::NotFound, error.to_string());
    match error {
        ResolveError::NoAgent { known, .. } => {
            problem.with_hint(format!("its agents are {}", known.join(", ")))
        }
        ResolveError::NoChain { .. } => {
            problem.with_hint("store its definition: strongroom chain apply FILE.json")
        }
        ResolveError::NotThere { .. } => {
            problem.with_hint("give one of its environments with --env")
        }
        ResolveError::Twice { .. } => {
            problem.with_hint("give one of them another name with \"as\" in the definition")
        }
    }
}

pub(super) fn unresolved_shown(
    agent: &str,
    environment: Option<&EnvName>,
    unresolved: &Unresolved,
) -> proto::Unresolved {
    let candidates = unresolved
        .why
        .candidates
        .iter()
        .map(|c| format!("{} with scope {}: {}", c.key, c.scope, c.why));
    proto::Unresolved {
        agent: agent.to_owned(),
        reference: unresolved.reference.to_string(),
        environment: environment.map(ToString::to_string),
        searched: std::iter::once(unresolved.why.searched.clone()).chain(candidates).collect(),
        remedy: unresolved.why.fix.clone().unwrap_or_default(),
    }
}

impl Daemon {
    /// Everything that an agent of an execution gets; a reference without an answer stops it.
    pub(super) fn resolution(
        &self,
        definition: Option<&Definition>,
        references: &[Reference],
        asker: Asker<'_>,
        deliver: Option<Deliver>,
    ) -> Result<Resolution, Problem> {
        let catalog = self.core.catalog();
        let resolution = match definition {
            Some(definition) => catalog.resolve_in(definition, asker),
            None => catalog.resolve_references(
                references.iter(),
                deliver.unwrap_or(Deliver::Env),
                asker,
            ),
        };
        let mut resolution = resolution.map_err(|e| resolve_problem(&e))?;
        if let Some(first) = resolution.unresolved.first() {
            let all: Vec<_> = resolution
                .unresolved
                .iter()
                .map(|u| unresolved_shown(asker.agent.as_str(), asker.environment, u))
                .collect();
            let what = format!(
                "{} of agent {} resolves to nothing; searched {}",
                first.reference, asker.agent, first.why.searched
            );
            return Err(Problem::new(Code::Unresolved, what)
                .with_hint(all[0].remedy.clone())
                .with_unresolved(all));
        }
        if let Some(deliver) = deliver {
            for grant in resolution.granted.values_mut() {
                grant.deliver = deliver;
            }
        }
        Ok(resolution)
    }
}

/// What `run -s NAME` asks for.
pub(super) fn adhoc_references(names: &[String]) -> Result<Vec<Reference>, Problem> {
    names
        .iter()
        .map(|name| {
            Ok(Reference {
                name: parse(name)?,
                group: false,
                deliver: None,
                as_name: None,
                path_env: None,
            })
        })
        .collect()
}
