//! Verbs on projects: which chains a project's secrets admit.
#![forbid(unsafe_code)]

use crate::audit::record::Event;
use crate::catalog::Catalog;
use crate::catalog::group::Project;
use crate::catalog::scope::Scope;
use crate::control::Caller;
use crate::proto::{self, Code, Problem};
use crate::vault::record::RecordKind;

use super::core::{new_id, put};
use super::secrets::parse;
use super::{Daemon, user_of};

impl Daemon {
    pub(super) fn set_project(
        &self,
        who: &Caller,
        req: &proto::ProjectSet,
    ) -> Result<proto::ProjectShown, Problem> {
        let name: crate::catalog::name::ProjectName = parse(&req.name)?;
        let chains = req.chains_allowed.iter().map(|c| parse(c)).collect::<Result<Vec<_>, _>>()?;
        let by = user_of(who.peer.uid);
        let now = self.core.clock.now();
        self.change_project(who, &name, |known| {
            let mut project = match known {
                Some(project) => Project::clone(project),
                None => Project {
                    id: new_id()?.to_string(),
                    name: name.clone(),
                    chains_allowed: Vec::new(),
                    created_at: now,
                    created_by: by.clone(),
                },
            };
            project.chains_allowed.clone_from(&chains);
            Ok(project)
        })
    }

    /// Adds chains to a project's list.
    pub(super) fn admit_chains(
        &self,
        who: &Caller,
        req: &proto::ProjectChains,
    ) -> Result<proto::ProjectShown, Problem> {
        let name: crate::catalog::name::ProjectName = parse(&req.name)?;
        let chains = req.chains.iter().map(|c| parse(c)).collect::<Result<Vec<_>, _>>()?;
        self.change_project(who, &name, |known| {
            let mut project = known.ok_or_else(|| no_project(&name))?.clone();
            for chain in &chains {
                if !project.chains_allowed.contains(chain) {
                    project.chains_allowed.push(chain.clone());
                }
            }
            Ok(project)
        })
    }

    /// Takes chains off a project's list.
    pub(super) fn exclude_chains(
        &self,
        who: &Caller,
        req: &proto::ProjectChains,
    ) -> Result<proto::ProjectShown, Problem> {
        let name: crate::catalog::name::ProjectName = parse(&req.name)?;
        let chains: Vec<crate::catalog::name::ChainName> =
            req.chains.iter().map(|c| parse(c)).collect::<Result<_, _>>()?;
        self.change_project(who, &name, |known| {
            let mut project = known.ok_or_else(|| no_project(&name))?.clone();
            if let Some(stranger) = chains.iter().find(|c| !project.chains_allowed.contains(c)) {
                return Err(Problem::new(
                    Code::NotFound,
                    format!("chain {stranger} is not on the list of project {name}"),
                )
                .with_hint("strongroom project list"));
            }
            project.chains_allowed.retain(|chain| !chains.contains(chain));
            Ok(project)
        })
    }

    fn change_project(
        &self,
        who: &Caller,
        name: &crate::catalog::name::ProjectName,
        make: impl Fn(Option<&Project>) -> Result<Project, Problem>,
    ) -> Result<proto::ProjectShown, Problem> {
        let (project, revision) = self.core.change(|catalog, batch| {
            let project = make(catalog.project(name).map(AsRef::as_ref))?;
            put(batch, RecordKind::Project, &project.id, &project)?;
            let stored = project.clone();
            Ok((project, Box::new(move |c: &mut Catalog| c.put_project(stored)) as _))
        })?;
        let by = user_of(who.peer.uid);
        let mut record = self.core.new_record(Event::ProjectSet);
        record.user = Some(&by);
        record.uid = Some(who.peer.uid);
        record.reason = Some(name.as_str());
        record.revision = Some(revision);
        self.core.record(&record)?;
        Ok(self.project_shown(&project))
    }

    fn project_shown(&self, project: &Project) -> proto::ProjectShown {
        let scope = Scope::Project(project.name.clone());
        let secrets = self.core.catalog().each_secret().filter(|s| s.scope == scope).count();
        proto::ProjectShown {
            project: project.name.to_string(),
            chains_allowed: project.chains_allowed.iter().map(ToString::to_string).collect(),
            secrets: secrets as u64,
            description: None,
            changes: Vec::new(),
        }
    }

    pub(super) fn list_projects(&self) -> Result<proto::ProjectListed, Problem> {
        self.core.unlocked()?;
        let projects = self.core.catalog().projects();
        Ok(proto::ProjectListed {
            projects: projects.iter().map(|p| self.project_shown(p)).collect(),
        })
    }

    pub(super) fn remove_project(
        &self,
        who: &Caller,
        req: &proto::ProjectName,
    ) -> Result<proto::Done, Problem> {
        let name: crate::catalog::name::ProjectName = parse(&req.name)?;
        let scope = Scope::Project(name.clone());
        let ((), revision) = self.core.change(|catalog, batch| {
            let project = catalog.project(&name).ok_or_else(|| no_project(&name))?;
            if !req.force && catalog.each_secret().any(|s| s.scope == scope) {
                return Err(Problem::new(
                    Code::Conflict,
                    format!("secrets have the scope project:{name}"),
                )
                .with_hint("move or remove them first, or add --force: nobody reads them then"));
            }
            batch.delete(RecordKind::Project, parse(&project.id)?);
            let gone = name.clone();
            Ok(((), Box::new(move |c: &mut Catalog| c.remove_project(&gone)) as _))
        })?;
        let user = user_of(who.peer.uid);
        let mut record = self.core.new_record(Event::ProjectSet);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.reason = Some("removed");
        record.revision = Some(revision);
        self.core.record(&record)?;
        Ok(proto::Done::default())
    }
}

fn no_project(name: &crate::catalog::name::ProjectName) -> Problem {
    Problem::new(Code::NotFound, format!("there is no project {name}"))
        .with_hint("strongroom project list; strongroom project set makes one")
}
