//! Executions: their start with its pins, what is shown of them, their deadline.
//!
//! Invariant: the pins of all agents are taken at one moment; a group's members are of one
//! generation. Danger: two agents of one run that see two sets of versions.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::record::Event;
use crate::catalog::name::{ChainName, EnvName};
use crate::catalog::resolve::{Asker, Error as ResolveError, Resolution};
use crate::catalog::secret::{Binding, Secret, Version};
use crate::clock::Timestamp;
use crate::config::Permission;
use crate::control::Caller;
use crate::execution::id::ExecutionId;
use crate::execution::principal::{Execution, Membership, Pin};
use crate::execution::process::ProcessRef;
use crate::execution::registry;
use crate::proto::{self, Code, Problem};
use crate::sys::cgroup::Cgroup;
use crate::sys::pidfd::PidFd;
use crate::sys::proc;

use super::launch::random;
use super::resolution::{resolve_problem, unresolved_shown};
use super::secrets::parse;
use super::{Daemon, user_of};

pub(super) fn registry_problem(error: &registry::Error) -> Problem {
    match error {
        registry::Error::Conflict { .. } => Problem::new(Code::Conflict, error.to_string())
            .with_hint("choose another id, or give the same chain and environment"),
        registry::Error::Ended { .. } => {
            Problem::new(Code::Gone, error.to_string()).with_hint("start a new execution")
        }
        registry::Error::State(_) => Problem::new(Code::Busy, error.to_string())
            .with_hint("end executions that are over: strongroom execution list"),
        registry::Error::Unknown { .. } => {
            Problem::new(Code::NotFound, error.to_string()).with_hint("strongroom execution list")
        }
    }
}

impl Daemon {
    /// Starts an execution: pins of all its agents are taken here, at once.
    pub(super) fn start_execution(
        &self,
        who: &Caller,
        req: &proto::ExecutionStart,
    ) -> Result<proto::ExecutionShown, Problem> {
        let _launching = self.launching.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.core.unlocked()?;
        let chain: ChainName = parse(&req.chain)?;
        let environment = self.environment(req.environment.as_deref())?;
        let owner = match req.owner_pid {
            None => None,
            Some(pid) => Some(self.owner(who, pid)?),
        };
        let id = self.execution_id(req.id.as_deref())?;
        let (execution, unresolved) = self.new_execution(
            who.peer.uid,
            id,
            &chain,
            environment.as_ref(),
            req.workspace.as_deref().unwrap_or("host"),
            owner,
            req.deadline.map(|p| p.0),
            req.labels.clone(),
            false,
        )?;
        let (execution, created) =
            self.registry.start(execution).map_err(|e| registry_problem(&e))?;
        if created {
            self.record_execution(Event::ExecutionStarted, &execution, who.peer.uid, None)?;
            // Its first agent would make it too; an orchestrator can watch it from now on.
            if let Err(error) = self.events.prepare(&self.events_folder(&execution)?) {
                tracing::warn!(%error, "the events folder of an execution could not be made yet");
            }
        }
        let mut shown = self.execution_shown(&execution);
        shown.created = created;
        shown.unresolved = unresolved;
        Ok(shown)
    }

    pub(super) fn execution_id(&self, text: Option<&str>) -> Result<ExecutionId, Problem> {
        match text {
            Some(text) => parse(text),
            None => Ok(ExecutionId::from_random(random()?)),
        }
    }

    /// The process that is to own an execution: the caller may signal it, so it is theirs.
    pub(super) fn owner(&self, who: &Caller, pid: i32) -> Result<ProcessRef, Problem> {
        let missing = || {
            Problem::new(Code::NotFound, format!("there is no process {pid} of yours"))
                .with_hint("--owner-pid takes a running process of your own user")
        };
        let pid = u32::try_from(pid).map_err(|_| missing())?;
        let pidfd = PidFd::open(pid).map_err(|_| missing())?;
        let process = ProcessRef::of(&pidfd).map_err(|_| missing())?;
        let ids = proc::status_ids(pid).map_err(|_| missing())?;
        if ids.ruid != who.peer.uid && who.peer.uid != 0 {
            return Err(missing());
        }
        Ok(process)
    }

    #[allow(clippy::too_many_arguments)] // one for each field of an execution
    pub(super) fn new_execution(
        &self,
        uid: u32,
        id: ExecutionId,
        chain: &ChainName,
        environment: Option<&EnvName>,
        workspace: &str,
        owner: Option<ProcessRef>,
        deadline: Option<Duration>,
        labels: BTreeMap<String, String>,
        implicit: bool,
    ) -> Result<(Execution, Vec<proto::Unresolved>), Problem> {
        let now = self.core.clock.now();
        let catalog = self.core.catalog();
        let stored = catalog
            .chain(chain)
            .ok_or_else(|| resolve_problem(&ResolveError::NoChain { chain: chain.clone() }))?;
        let mut pins = BTreeMap::new();
        let mut unresolved = Vec::new();
        for agent in &stored.definition.agents {
            let asker = Asker { chain, agent: &agent.name, environment };
            let resolution = catalog.resolve(asker).map_err(|e| resolve_problem(&e))?;
            unresolved.extend(
                resolution
                    .unresolved
                    .iter()
                    .map(|u| unresolved_shown(agent.name.as_str(), environment, u)),
            );
            for grant in resolution.granted.values() {
                if grant.secret.binding == Binding::Floating {
                    continue;
                }
                // What cannot be pinned stops the launch of the agents that want it, not of others.
                if let Ok(pin) = self.pin_of(&grant.secret, now) {
                    pins.insert(grant.secret.id.clone(), pin);
                }
            }
        }
        let deadline = deadline
            .map(|d| now.checked_add(d))
            .transpose()
            .map_err(|_| Problem::new(Code::Invalid, "the deadline is too far away"))?;
        let execution = Execution {
            id,
            chain: chain.to_string(),
            environment: environment.map(ToString::to_string),
            user: user_of(uid),
            uid,
            workspace: workspace.to_owned(),
            labels,
            started_at: now,
            deadline,
            owner,
            implicit,
            definition_digest: stored.digest.clone(),
            pins,
            ended: None,
        };
        Ok((execution, unresolved))
    }

    pub(super) fn visible_execution(
        &self,
        who: &Caller,
        id: &str,
        permission: Permission,
    ) -> Result<Arc<Execution>, Problem> {
        let unknown = || registry_problem(&registry::Error::Unknown { id: id.to_owned() });
        let parsed: ExecutionId = parse(id)?;
        self.registry
            .execution(&parsed)
            .filter(|e| {
                let environment = e.environment.as_deref();
                who.may_in(permission, Some(&e.chain), environment)
                    || who.may_in(Permission::Operate, Some(&e.chain), environment)
            })
            .ok_or_else(unknown)
    }

    pub(super) fn show_execution(
        &self,
        who: &Caller,
        id: &str,
    ) -> Result<proto::ExecutionShown, Problem> {
        Ok(self.execution_shown(&*self.visible_execution(who, id, Permission::Launch)?))
    }

    pub(super) fn extend_execution(
        &self,
        who: &Caller,
        req: &proto::ExecutionExtend,
    ) -> Result<proto::ExecutionShown, Problem> {
        let execution = self.visible_execution(who, &req.id, Permission::Launch)?;
        let deadline = self
            .core
            .clock
            .now()
            .checked_add(req.deadline.0)
            .map_err(|_| Problem::new(Code::Invalid, "the deadline is too far away"))?;
        let changed = self
            .registry
            .update(&execution.id, |e| e.deadline = Some(deadline))
            .map_err(|e| registry_problem(&e))?;
        Ok(self.execution_shown(&changed))
    }

    pub(super) fn list_executions(
        &self,
        who: &Caller,
        req: &proto::ExecutionList,
    ) -> proto::ExecutionListed {
        let mut found: Vec<_> = self
            .registry
            .executions()
            .into_iter()
            .filter(|e| {
                let environment = e.environment.as_deref();
                (req.all || e.ended.is_none())
                    && req.chain.as_ref().is_none_or(|c| e.chain == *c)
                    && req.environment.as_deref().is_none_or(|x| x == environment.unwrap_or("-"))
                    && [Permission::Launch, Permission::Operate, Permission::Audit]
                        .into_iter()
                        .any(|p| who.may_in(p, Some(&e.chain), environment))
            })
            .collect();
        found.sort_by_key(|e| std::cmp::Reverse(e.started_at));
        proto::ExecutionListed {
            executions: found.iter().map(|e| self.execution_shown(e)).collect(),
        }
    }

    pub(super) fn execution_shown(&self, execution: &Execution) -> proto::ExecutionShown {
        let agents = self
            .registry
            .principals_of(&execution.id)
            .iter()
            .map(|p| {
                let (attestor, path) = match &p.membership {
                    Membership::Cgroup { path, .. } => ("cgroup", Some(path.clone())),
                    Membership::Tree { .. } => ("tree", None),
                };
                let processes = path
                    .as_ref()
                    .and_then(|path| Cgroup::open(path).ok()?.members().ok())
                    .map_or(0, |m| m.len());
                proto::AgentShown {
                    agent: p.agent.clone(),
                    processes: processes as u64,
                    uid: p.uid,
                    attestor: attestor.to_owned(),
                    cgroup: path.map(|p: PathBuf| p.display().to_string()),
                    isolation: p.isolation.clone(),
                }
            })
            .collect();
        let catalog = self.core.catalog();
        let pins = execution
            .pins
            .iter()
            .filter_map(|(id, pin)| {
                let secret = catalog.secret(id)?;
                let stage = secret.versions.iter().find(|v| v.number == pin.version)?.stage;
                Some(proto::PinShown {
                    secret: secret.key.to_string(),
                    scope: secret.scope.to_string(),
                    version: u64::from(pin.version),
                    stage: stage.word().to_owned(),
                })
            })
            .collect();
        proto::ExecutionShown {
            id: execution.id.to_string(),
            chain: execution.chain.clone(),
            environment: execution.environment.clone(),
            user: execution.user.clone(),
            workspace: execution.workspace.clone(),
            state: if execution.ended.is_some() { "ended" } else { "active" }.to_owned(),
            started_at: execution.started_at,
            deadline: execution.deadline,
            ended_at: execution.ended.as_ref().map(|e| e.at),
            ended_reason: execution.ended.as_ref().map(|e| e.reason.clone()),
            created: false,
            labels: execution.labels.clone(),
            agents,
            pins,
            unresolved: Vec::new(),
            survivors: Vec::new(),
        }
    }

    pub(super) fn record_execution(
        &self,
        event: Event,
        execution: &Execution,
        uid: u32,
        reason: Option<&str>,
    ) -> Result<(), Problem> {
        self.record_execution_once(event, execution, uid, reason, 0)
    }

    /// The same, unless an earlier worker did it by this tag.
    pub(super) fn record_execution_once(
        &self,
        event: Event,
        execution: &Execution,
        uid: u32,
        reason: Option<&str>,
        tag: u64,
    ) -> Result<(), Problem> {
        let mut record = self.core.new_record(event);
        record.chain = Some(&execution.chain);
        record.user = Some(&execution.user);
        record.workspace = Some(&execution.workspace);
        record.environment = execution.environment.as_deref();
        record.execution = Some(execution.id.as_str());
        record.uid = Some(uid);
        record.reason = reason;
        self.core.record_once(&record, tag)
    }

    /// The version that an execution gets: one moment for all of them, or a group's members could be
    /// of two generations.
    pub(super) fn pin_of(&self, secret: &Secret, now: Timestamp) -> Result<Pin, Problem> {
        let version = match secret.binding {
            Binding::Pinned => secret.version_to_pin(now),
            Binding::Floating => secret.version_to_follow(now),
        };
        let version = version.map_err(|error| {
            Problem::new(Code::Unresolved, error.to_string())
                .with_hint(format!("strongroom secret show {}", secret.key))
        })?;
        pin(version)
    }

    /// Pins what the definition got since the execution started.
    pub(super) fn pin_missing(
        &self,
        execution: &Arc<Execution>,
        resolution: &Resolution,
    ) -> Result<Arc<Execution>, Problem> {
        let mut missing = BTreeMap::new();
        let now = self.core.clock.now();
        for grant in resolution.granted.values() {
            if execution.pins.contains_key(&grant.secret.id)
                || grant.secret.binding == Binding::Floating
            {
                continue;
            }
            let pin = match self.generation_of(execution, &grant.secret) {
                None => self.pin_of(&grant.secret, now)?,
                Some(generation) => {
                    let of = |v: &&Version| v.generation == generation && v.stage.is_readable();
                    let version = grant.secret.versions.iter().find(of).ok_or_else(|| {
                        let what = format!(
                            "{} has no version that came with those that execution {} holds",
                            grant.secret.key, execution.id
                        );
                        Problem::new(Code::Unresolved, what).with_hint("start a new execution")
                    })?;
                    pin(version)?
                }
            };
            missing.insert(grant.secret.id.clone(), pin);
        }
        if missing.is_empty() {
            return Ok(execution.clone());
        }
        self.registry
            .update(&execution.id, |e| e.pins.extend(missing))
            .map_err(|e| registry_problem(&e))
    }

    /// The generation of a secret's group that an execution holds already.
    pub(super) fn generation_of(&self, execution: &Execution, secret: &Arc<Secret>) -> Option<u32> {
        secret.group.as_ref()?;
        let unit = self.core.catalog().unit_of(secret);
        unit.members.iter().find_map(|m| Some(execution.pins.get(&m.id)?.generation))
    }
}

pub(super) fn pin(version: &Version) -> Result<Pin, Problem> {
    let value = version.value.clone().ok_or_else(|| {
        Problem::new(Code::Gone, format!("version {} was destroyed", version.number))
    })?;
    Ok(Pin {
        version: version.number,
        value,
        size_bytes: version.size_bytes,
        created_at: version.created_at,
        generation: version.generation,
    })
}
