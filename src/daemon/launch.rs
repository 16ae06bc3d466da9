//! Executions and the launch of agents: everything is registered before anything runs.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::audit::record::Event;
use crate::catalog::definition::{Definition, Deliver, Reference};
use crate::catalog::name::{AgentName, ChainName, EnvName};
use crate::catalog::resolve::{Asker, Error as ResolveError, Resolution, Unresolved};
use crate::catalog::secret::{Binding, Secret, Stage, Version};
use crate::clock::Timestamp;
use crate::config::Permission;
use crate::control::Caller;
use crate::execution::exposure::{Channel, Exposure};
use crate::execution::id::ExecutionId;
use crate::execution::journal::Kind;
use crate::execution::principal::{Execution, File, Membership, Pin, Principal, ProcessRef};
use crate::execution::registry::{self, SecretInode, find_process, process_ref};
use crate::fs::tree::{AGENTS_NAME, EVENTS_NAME, FIRST_RANDOM};
use crate::identity::Facts;
use crate::identity::attestor::{Attestor, PrincipalNumber, TreeAttestor};
use crate::proto::{self, Code, Hold, How, Problem, Value};
use crate::redact::Level;
use crate::secret::SecretBytes;
use crate::sys::cgroup::Cgroup;
use crate::sys::pidfd::PidFd;
use crate::sys::{cgroup, proc};
use crate::vault::crypto;
use crate::vault::record::RecordKind;

use super::core::vault_problem;
use super::secrets::parse;
use super::{Daemon, user_of};

/// The implicit chain and agent of `run -s`.
const ADHOC: &str = "adhoc";
/// How long processes get between TERM and KILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long a killed group may take to be empty.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long a ticket is good unless said otherwise.
const TICKET_TTL: Duration = Duration::from_secs(300);

/// What a launch is of, however it was asked for.
struct Wanted<'a> {
    chain: Option<&'a str>,
    agent: Option<&'a str>,
    environment: Option<&'a str>,
    execution: Option<&'a str>,
    secrets: &'a [String],
    deliver: Option<&'a str>,
    workspace: &'a str,
    secrets_path: Option<&'a str>,
    how: How,
    uid: u32,
    gid: u32,
    pid: Option<i32>,
    keep_background: bool,
    deadline: Option<Duration>,
    labels: BTreeMap<String, String>,
}

/// A stored ticket.
#[derive(serde::Serialize, serde::Deserialize)]
struct Ticket {
    chain: String,
    agent: String,
    environment: Option<String>,
    execution: Option<String>,
    deliver: Option<String>,
    uid: u32,
    gid: u32,
    expires_at: crate::clock::Timestamp,
    uses: u32,
    user: String,
}

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

fn random<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    crypto::random(&mut bytes).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
    Ok(bytes)
}

impl Daemon {
    /// An inode number that was never used: random, so that nothing is told by its order.
    fn fresh_inode(&self) -> Result<u64, Problem> {
        loop {
            let number = u64::from_ne_bytes(random()?) >> 1;
            if number >= FIRST_RANDOM && !self.registry.has_inode(number) {
                return Ok(number);
            }
        }
    }

    fn environment(&self, text: Option<&str>) -> Result<Option<EnvName>, Problem> {
        let environment = text.filter(|t| *t != "-").map(parse).transpose()?;
        self.core
            .catalog()
            .check_environment(environment.as_ref())
            .map_err(|e| super::secrets::catalog_problem(&e))?;
        Ok(environment)
    }

    /// Everything that an agent of an execution gets; a reference without an answer stops it.
    fn resolution(
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

    /// The version that an execution gets: one moment for all of them, or a group's members could be
    /// of two generations.
    fn pin_of(&self, secret: &Secret, now: Timestamp) -> Result<Pin, Problem> {
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
        }
        let mut shown = self.execution_shown(&execution);
        shown.created = created;
        shown.unresolved = unresolved;
        Ok(shown)
    }

    fn execution_id(&self, text: Option<&str>) -> Result<ExecutionId, Problem> {
        match text {
            Some(text) => parse(text),
            None => Ok(ExecutionId::from_random(random()?)),
        }
    }

    /// The process that is to own an execution: the caller may signal it, so it is theirs.
    fn owner(&self, who: &Caller, pid: i32) -> Result<ProcessRef, Problem> {
        let missing = || {
            Problem::new(Code::NotFound, format!("there is no process {pid} of yours"))
                .with_hint("--owner-pid takes a running process of your own user")
        };
        let pid = u32::try_from(pid).map_err(|_| missing())?;
        let pidfd = PidFd::open(pid).map_err(|_| missing())?;
        let process = process_ref(&pidfd).map_err(|_| missing())?;
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

    pub(super) fn launch_agent(
        &self,
        who: &Caller,
        req: proto::AgentLaunch,
    ) -> Result<proto::AgentLaunched, Problem> {
        let (uid, gid) = self.launch_user(who, req.as_user.as_deref())?;
        self.launch(
            who,
            &Wanted {
                chain: req.chain.as_deref(),
                agent: req.agent.as_deref(),
                environment: req.environment.as_deref(),
                execution: req.execution.as_deref(),
                secrets: &req.secrets,
                deliver: req.deliver.as_deref(),
                workspace: req.workspace.as_deref().unwrap_or("host"),
                secrets_path: req.secrets_path.as_deref(),
                how: req.how,
                uid,
                gid,
                pid: req.pid,
                keep_background: req.keep_background,
                deadline: req.deadline.map(|p| p.0),
                labels: req.labels.clone(),
            },
            user_of(who.peer.uid),
        )
    }

    fn launch_user(&self, who: &Caller, as_user: Option<&str>) -> Result<(u32, u32), Problem> {
        let Some(name) = as_user else { return Ok((who.peer.uid, who.peer.gid)) };
        let unknown = || {
            Problem::new(Code::NotFound, format!("there is no user {name}"))
                .with_hint("--as takes a user of this host, by name or number")
        };
        let user = match name.parse::<u32>() {
            Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
            Err(_) => nix::unistd::User::from_name(name),
        };
        let user = user.ok().flatten().ok_or_else(unknown)?;
        if who.peer.uid != 0 && user.uid.as_raw() != who.peer.uid {
            return Err(Problem::new(Code::NoRole, "only root may launch agents as other users")
                .with_hint("use a ticket: the other user redeems it"));
        }
        Ok((user.uid.as_raw(), user.gid.as_raw()))
    }

    fn launch(
        &self,
        who: &Caller,
        wanted: &Wanted<'_>,
        user: String,
    ) -> Result<proto::AgentLaunched, Problem> {
        let _launching = self.launching.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.core.unlocked()?;
        let existing = match wanted.execution {
            None => None,
            Some(id) => {
                let id: ExecutionId = parse(id)?;
                let found = self.registry.execution(&id).ok_or_else(|| {
                    registry_problem(&registry::Error::Unknown { id: id.to_string() })
                })?;
                if let Some(ended) = &found.ended {
                    return Err(registry_problem(&registry::Error::Ended {
                        id,
                        reason: ended.reason.clone(),
                    }));
                }
                Some(found)
            }
        };
        let adhoc = !wanted.secrets.is_empty();
        if adhoc && (wanted.chain.is_some() || wanted.agent.is_some() || existing.is_some()) {
            return Err(Problem::new(Code::Invalid, "-s stands for itself, without a chain")
                .with_hint("use either -s NAME, or --chain and --agent"));
        }
        let missing = |what: &str| {
            Problem::new(Code::Invalid, format!("the launch names no {what}"))
                .with_hint("give --chain and --agent, or -s NAME for secrets without a definition")
        };
        let chain_text = match (wanted.chain, &existing) {
            (Some(chain), _) => chain.to_owned(),
            (None, Some(execution)) => execution.chain.clone(),
            (None, None) if adhoc => ADHOC.to_owned(),
            (None, None) => return Err(missing("chain")),
        };
        let chain: ChainName = parse(&chain_text)?;
        let agent: AgentName = match wanted.agent {
            Some(agent) => parse(agent)?,
            None if adhoc => parse(ADHOC)?,
            None => return Err(missing("agent")),
        };
        let environment = match (&existing, wanted.environment) {
            (Some(execution), None) => self.environment(execution.environment.as_deref())?,
            (_, text) => self.environment(text)?,
        };
        if let Some(execution) = &existing
            && (execution.chain != chain_text
                || execution.environment != environment.as_ref().map(ToString::to_string))
        {
            return Err(registry_problem(&registry::Error::Conflict {
                id: execution.id.clone(),
                what: format!(
                    "chain {} and environment {}",
                    execution.chain,
                    execution.environment.as_deref().unwrap_or("(none)")
                ),
            }));
        }
        let asker = Asker { chain: &chain, agent: &agent, environment: environment.as_ref() };
        let definition = self.core.catalog().chain(&chain).map(|c| c.definition.clone());
        if definition.is_none() && !adhoc {
            return Err(resolve_problem(&ResolveError::NoChain { chain }));
        }
        let references = adhoc_references(wanted.secrets)?;
        let deliver: Option<Deliver> = wanted
            .deliver
            .map(|text| text.parse().map_err(|e: String| Problem::new(Code::Invalid, e)))
            .transpose()?;
        let definition = definition.filter(|_| !adhoc);
        let resolution = self.resolution(definition.as_ref(), &references, asker, deliver)?;
        let is_new = existing.is_none();
        let execution = match existing {
            Some(execution) => execution,
            None => self.implicit_execution(who, &chain, &resolution, asker, wanted)?,
        };
        let execution = self.pin_missing(&execution, &resolution)?;
        if is_new {
            self.record_execution(Event::ExecutionStarted, &execution, who.peer.uid, None)?;
        }
        let outcome = self.register(who, wanted, &execution, &agent, &resolution, user);
        if outcome.is_err() && is_new {
            // Nothing is started half-equipped, and nothing is left of the attempt.
            self.end_one(&execution.id, "launch failed", Duration::ZERO)?;
        }
        outcome
    }

    /// The files `NAME@current` and `NAME@pending` of an agent whose definition says that it rotates
    /// NAME.
    fn add_rotated(
        &self,
        files: &mut BTreeMap<String, File>,
        execution: &Execution,
        agent: &AgentName,
        wanted: &Wanted<'_>,
    ) -> Result<(), Problem> {
        let catalog = self.core.catalog();
        let chain: ChainName = parse(&execution.chain)?;
        let environment: Option<EnvName> =
            execution.environment.as_deref().map(parse).transpose()?;
        let Some(stored) = catalog.chain(&chain) else { return Ok(()) };
        let Some(definition) = stored.definition.agent(agent) else { return Ok(()) };
        let asker = Asker { chain: &chain, agent, environment: environment.as_ref() };
        let references = definition.rotates.iter().map(|name| Reference {
            name: name.clone(),
            group: false,
            deliver: None,
            as_name: None,
            path_env: None,
        });
        let references: Vec<_> = references.collect();
        let resolution = catalog
            .resolve_references(references.iter(), Deliver::Files, asker)
            .map_err(|e| resolve_problem(&e))?;
        for (name, grant) in &resolution.granted {
            for stage in [Stage::Current, Stage::Pending] {
                let Some(version) = grant.secret.at_stage(stage) else { continue };
                let pin = pin(version)?;
                if !self.core.is_denied(&pin.value) {
                    let file = self.file_of(&grant.secret, &pin, wanted.uid, wanted.gid)?;
                    let file = File { floating: false, ..file };
                    files.insert(format!("{name}@{}", stage.word()), file);
                }
            }
        }
        Ok(())
    }

    /// Where an execution's events go, below the store.
    fn events_folder(&self, execution: &Execution) -> Result<String, Problem> {
        // A chain's name may have slashes, and folders of one chain must not lie in another's.
        let chain = execution.chain.replace('%', "%25").replace('/', "%2F");
        let environment = execution.environment.as_deref().unwrap_or("-");
        let name: ChainName = parse(&execution.chain)?;
        let shared = self.core.catalog().chain(&name).is_some_and(|c| c.definition.shared_events);
        Ok(match shared {
            true => format!("{chain}/{environment}"),
            false => format!("{chain}/{environment}/{}", execution.id),
        })
    }

    fn implicit_execution(
        &self,
        who: &Caller,
        chain: &ChainName,
        resolution: &Resolution,
        asker: Asker<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<Arc<Execution>, Problem> {
        let id = self.execution_id(None)?;
        let execution = if chain.as_str() == ADHOC {
            let mut pins = BTreeMap::new();
            let now = self.core.clock.now();
            let granted = resolution.granted.values();
            for grant in granted.filter(|g| g.secret.binding == Binding::Pinned) {
                pins.insert(grant.secret.id.clone(), self.pin_of(&grant.secret, now)?);
            }
            Execution {
                id,
                chain: chain.to_string(),
                environment: asker.environment.map(ToString::to_string),
                user: user_of(who.peer.uid),
                uid: who.peer.uid,
                workspace: wanted.workspace.to_owned(),
                labels: wanted.labels.clone(),
                started_at: self.core.clock.now(),
                deadline: None,
                owner: None,
                implicit: true,
                definition_digest: String::new(),
                pins,
                ended: None,
            }
        } else {
            self.new_execution(
                who.peer.uid,
                id,
                chain,
                asker.environment,
                wanted.workspace,
                None,
                wanted.deadline,
                wanted.labels.clone(),
                true,
            )?
            .0
        };
        Ok(self.registry.start(execution).map_err(|e| registry_problem(&e))?.0)
    }

    /// Pins what the definition got since the execution started.
    fn pin_missing(
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
    fn generation_of(&self, execution: &Execution, secret: &Arc<Secret>) -> Option<u32> {
        secret.group.as_ref()?;
        let unit = self.core.catalog().unit_of(secret);
        unit.members.iter().find_map(|m| Some(execution.pins.get(&m.id)?.generation))
    }

    pub(super) fn file_of(
        &self,
        secret: &Secret,
        pin: &Pin,
        uid: u32,
        gid: u32,
    ) -> Result<File, Problem> {
        let inode = self
            .registry
            .secret_inode(
                SecretInode {
                    value: pin.value.clone(),
                    uid,
                    gid,
                    size_bytes: pin.size_bytes,
                    created_at: pin.created_at,
                },
                self.fresh_inode()?,
            )
            .map_err(|e| registry_problem(&e))?;
        Ok(File {
            inode,
            secret: secret.id.clone(),
            key: secret.key.to_string(),
            scope: secret.scope.to_string(),
            environment: secret.key.environment.as_ref().map(ToString::to_string),
            version: pin.version,
            value: pin.value.clone(),
            size_bytes: pin.size_bytes,
            created_at: pin.created_at,
            expires_at: secret.expires_at,
            access_log_enabled: secret.access_log_enabled,
            floating: secret.binding == Binding::Floating,
        })
    }

    fn register(
        &self,
        who: &Caller,
        wanted: &Wanted<'_>,
        execution: &Execution,
        agent: &AgentName,
        resolution: &Resolution,
        user: String,
    ) -> Result<proto::AgentLaunched, Problem> {
        let number = self.registry.next_principal().map_err(|e| registry_problem(&e))?;
        let peer = self.peer_process(who)?;
        let mut files = BTreeMap::new();
        for grant in resolution.granted.values() {
            let pin = match grant.secret.binding {
                Binding::Floating => self.pin_of(&grant.secret, self.core.clock.now())?,
                Binding::Pinned => {
                    execution.pins.get(&grant.secret.id).cloned().ok_or_else(|| {
                        Problem::new(Code::Internal, "a secret of the agent has no pin")
                    })?
                }
            };
            if self.core.is_denied(&pin.value) {
                let what = format!("version {} of {} is revoked", pin.version, grant.secret.key);
                return Err(Problem::new(Code::Unresolved, what)
                    .with_hint(format!("strongroom secret show {}", grant.secret.key)));
            }
            let file = self.file_of(&grant.secret, &pin, wanted.uid, wanted.gid)?;
            files.insert(grant.file_name.to_string(), file);
        }
        self.add_rotated(&mut files, execution, agent, wanted)?;
        let (membership, group) = match self.make_cgroup(&execution.id, agent, number) {
            Some(group) => {
                let membership = Membership::Cgroup {
                    id: group.id(),
                    path: group.path().to_owned(),
                    below: below_hierarchy(group.path()),
                };
                (membership, Some(group))
            }
            None => (Membership::Tree { root: process_ref(&peer).map_err(gone)? }, None),
        };
        let launch = crypto::hex(&random::<16>()?);
        let lifeline = match wanted.how {
            How::Cgroup | How::MovePeer => Some(process_ref(&peer).map_err(gone)?),
            How::Attach => None,
        };
        let definition_uids = self
            .core
            .catalog()
            .chain(&parse(&execution.chain)?)
            .and_then(|c| c.definition.agent(agent).map(|a| a.uids.clone()))
            .unwrap_or_default();
        let principal = Principal {
            number,
            execution: execution.id.clone(),
            chain: execution.chain.clone(),
            agent: agent.to_string(),
            environment: execution.environment.clone(),
            user,
            workspace: wanted.workspace.to_owned(),
            uid: wanted.uid,
            gid: wanted.gid,
            uids: definition_uids,
            token: crypto::hex(&random::<16>()?),
            directory: self.fresh_inode()?,
            identity: self.fresh_inode()?,
            membership,
            files,
            earlier: Vec::new(),
            started_at: self.core.clock.now(),
            launch: launch.clone(),
            lifeline,
            keep_background: wanted.keep_background,
            events_folder: self.events_folder(execution)?,
            redact: Level::All,
        };
        let principal = self.registry.register(principal).map_err(|e| registry_problem(&e))?;
        // What its chain may see is looked for from now on.
        self.core.needles.changed();
        let finished = self.finish_launch(who, wanted, &principal, group.as_ref(), resolution);
        if finished.is_err() {
            self.end_principal(&principal, Duration::ZERO)?;
        }
        finished
    }

    /// The last steps of a launch: the record, then the values that go by environment, then the move.
    fn finish_launch(
        &self,
        who: &Caller,
        wanted: &Wanted<'_>,
        principal: &Arc<Principal>,
        group: Option<&Cgroup>,
        resolution: &Resolution,
    ) -> Result<proto::AgentLaunched, Problem> {
        let identity = self.identity_of(principal);
        self.record_agent(who, principal, &identity)?;
        let principal_dir =
            self.paths.mount.join(AGENTS_NAME).join(&principal.token).display().to_string();
        let bind = who.peer.uid == 0 && wanted.how != How::Attach;
        let secrets_path = match (bind, wanted.secrets_path) {
            (true, Some(path)) => path.to_owned(),
            (true, None) => "/run/secrets".to_owned(),
            (false, _) => principal_dir.clone(),
        };
        let mut env = BTreeMap::from([
            ("STRONGROOM_EXECUTION".to_owned(), principal.execution.to_string()),
            ("STRONGROOM_CHAIN".to_owned(), principal.chain.clone()),
            ("STRONGROOM_AGENT".to_owned(), principal.agent.clone()),
            ("STRONGROOM_EVENTS_DIR".to_owned(), format!("{secrets_path}/{EVENTS_NAME}")),
            ("CREDENTIALS_DIRECTORY".to_owned(), secrets_path.clone()),
        ]);
        let mut secret_env = BTreeMap::new();
        let vault = self.core.unlocked()?;
        for grant in resolution.granted.values() {
            let name = grant.file_name.to_string();
            for variable in grant.path_variables() {
                env.insert(variable, format!("{secrets_path}/{name}"));
            }
            if let Some(variable) = grant.value_variable()
                && let Some(file) = principal.files.get(&name)
            {
                let value = vault
                    .get(RecordKind::Value, parse(&file.value)?)
                    .map_err(|e| vault_problem(&e))?
                    .ok_or_else(|| Problem::new(Code::Gone, "the version was destroyed"))?;
                check_variable(variable, &value)?;
                self.record_exposed(principal, file)?;
                secret_env.insert(variable.to_owned(), Value::new(value));
            }
        }
        match (wanted.how, wanted.pid, group) {
            (How::MovePeer, _, Some(group)) => self.move_in(who, None, group)?,
            (How::Attach, Some(pid), _) => {
                self.attach(who, principal, Some(pid), group)?;
            }
            _ => {}
        }
        let mut warnings = Vec::new();
        if let (Hold::None | Hold::Partial, Some(why)) = (&identity.0, &identity.1) {
            warnings.push(why.clone());
        }
        let deadline = self.registry.execution(&principal.execution).and_then(|e| e.deadline);
        for file in principal.files.values() {
            if let (Some(end), Some(deadline)) = (file.expires_at, deadline)
                && end < deadline
            {
                warnings.push(format!("{} expires at {end}, before the deadline", file.key));
            }
        }
        Ok(proto::AgentLaunched {
            execution: principal.execution.to_string(),
            chain: principal.chain.clone(),
            agent: principal.agent.clone(),
            environment: principal.environment.clone(),
            launch: principal.launch.clone(),
            mount: self.paths.mount.display().to_string(),
            principal_dir,
            secrets_path,
            bind,
            uid: principal.uid,
            cgroup_dir: group.map(|g| g.path().display().to_string()),
            attestor: match principal.membership {
                Membership::Cgroup { .. } => "cgroup",
                Membership::Tree { .. } => "tree",
            }
            .to_owned(),
            env,
            secret_env,
            files: principal.files.keys().cloned().collect(),
            identity: identity.0,
            deadline,
            warnings,
        })
    }

    /// How far the principal's identity holds, and why not further.
    fn identity_of(&self, principal: &Principal) -> (Hold, Option<String>) {
        match principal.membership {
            Membership::Tree { .. } => (
                Hold::Partial,
                Some(
                    "identity by process tree: a guard rail, not a boundary between processes of \
                     one user"
                        .to_owned(),
                ),
            ),
            Membership::Cgroup { .. } if principal.uid == 0 => (
                Hold::None,
                Some(
                    "identity none: the agent is root and can leave any cgroup; use --as USER"
                        .to_owned(),
                ),
            ),
            Membership::Cgroup { .. } => (Hold::Full, None),
        }
    }

    /// The cgroup of a new principal, where the host has a hierarchy that we may write.
    fn make_cgroup(
        &self,
        execution: &ExecutionId,
        agent: &AgentName,
        number: PrincipalNumber,
    ) -> Option<Cgroup> {
        let root = self.cgroup_root.as_ref()?;
        let parent = root.join(execution.as_str());
        let made = Cgroup::create(root)
            .and_then(|_| Cgroup::create(&parent))
            .and_then(|_| Cgroup::create(&parent.join(format!("{agent}.{}", number.0))));
        match made {
            Ok(group) => Some(group),
            Err(error) => {
                tracing::warn!(%error, "no cgroup can be made; identity is by process tree");
                None
            }
        }
    }

    fn peer_process(&self, who: &Caller) -> Result<PidFd, Problem> {
        let fd = match &who.peer.pidfd {
            Some(fd) => fd.try_clone().map(PidFd::from_owned),
            None => PidFd::open(who.peer.pid.cast_unsigned()),
        };
        fd.map_err(gone)
    }

    /// Moves the peer, or a stopped child of it, into the group and checks that it was the one.
    fn move_in(&self, who: &Caller, child: Option<i32>, group: &Cgroup) -> Result<(), Problem> {
        let peer = self.peer_process(who)?;
        let process = match child {
            None => peer,
            Some(pid) => self.stopped_child(&peer, pid)?,
        };
        let pid = process.pid().map_err(gone)?;
        if proc_threads(pid) != Some(1) {
            return Err(Problem::new(Code::Invalid, "the process has several threads")
                .with_hint("attach it before it starts threads"));
        }
        group.enter(pid).map_err(|error| {
            Problem::new(Code::Unsupported, format!("the process cannot be moved: {error}"))
        })?;
        match process.info() {
            Ok(info) if info.cgroup_id == group.id() => Ok(()),
            // Before Linux 6.13: the number was the held process's all along, if it still lives.
            Err(_) if process.is_alive() && group.members().is_ok_and(|m| m.contains(&pid)) => {
                Ok(())
            }
            _ => Err(Problem::new(Code::Gone, "the process ended while it was moved")),
        }
    }

    fn stopped_child(&self, peer: &PidFd, pid: i32) -> Result<PidFd, Problem> {
        let refuse = || {
            Problem::new(Code::Invalid, format!("process {pid} is no stopped child of yours"))
                .with_hint("fork, stop the child (SIGSTOP), attach it, then let it continue")
        };
        let number = u32::try_from(pid).map_err(|_| refuse())?;
        let child = PidFd::open(number).map_err(|_| refuse())?;
        let parent = peer.pid().map_err(gone)?;
        let ids = proc::status_ids(number).map_err(|_| refuse())?;
        let stopped = std::fs::read_to_string(format!("/proc/{number}/status")).is_ok_and(|text| {
            text.lines().any(|l| l.starts_with("State:\tT") || l.starts_with("State:\tt"))
        });
        // Asked last: the number was this child's during all of the above.
        if ids.ppid != parent || !stopped || child.pid().ok() != Some(number) {
            return Err(refuse());
        }
        Ok(child)
    }

    pub(super) fn attach_agent(
        &self,
        who: &Caller,
        req: &proto::AgentAttach,
    ) -> Result<proto::AgentAttached, Problem> {
        let principal = self.by_launch(who, &req.launch)?;
        let group = match &principal.membership {
            Membership::Cgroup { path, .. } => Some(Cgroup::open(path).map_err(gone)?),
            Membership::Tree { .. } => None,
        };
        let pid = self.attach(who, &principal, req.pid, group.as_ref())?;
        Ok(proto::AgentAttached {
            execution: principal.execution.to_string(),
            agent: principal.agent.clone(),
            pid,
            attestor: if group.is_some() { "cgroup" } else { "tree" }.to_owned(),
            warnings: self.identity_of(&principal).1.into_iter().collect(),
        })
    }

    /// Attaches the peer or its child; returns the process's id.
    fn attach(
        &self,
        who: &Caller,
        principal: &Principal,
        child: Option<i32>,
        group: Option<&Cgroup>,
    ) -> Result<i32, Problem> {
        if let Some(group) = group {
            self.move_in(who, child, group)?;
        }
        let peer = self.peer_process(who)?;
        let process = match child {
            None => peer,
            Some(pid) => self.stopped_child(&peer, pid)?,
        };
        let reference = process_ref(&process).map_err(gone)?;
        let pid = reference.pid;
        // A launcher that waits for its child is its lifeline already.
        if principal.lifeline.is_none() {
            self.registry
                .update_principal(principal.number, |p| p.lifeline = Some(reference))
                .map_err(|e| registry_problem(&e))?;
        }
        Ok(pid.cast_signed())
    }

    /// The principal of a launch. Its id is 128 random bits that only its maker was told.
    fn by_launch(&self, who: &Caller, launch: &str) -> Result<Arc<Principal>, Problem> {
        self.registry
            .principals()
            .into_iter()
            .find(|p| {
                subtle::ConstantTimeEq::ct_eq(p.launch.as_bytes(), launch.as_bytes()).into()
                    && (who.peer.uid == 0
                        || who.peer.uid == p.uid
                        || who.may_in(Permission::Launch, Some(&p.chain), p.environment.as_deref()))
            })
            .ok_or_else(|| {
                Problem::new(Code::NotFound, "there is no such launch")
                    .with_hint("its agent may have ended: strongroom execution list")
            })
    }

    pub(super) fn end_agent(
        &self,
        who: &Caller,
        req: &proto::AgentEnd,
    ) -> Result<proto::Done, Problem> {
        let principal = self.by_launch(who, &req.launch)?;
        if req.keep_background || principal.keep_background {
            self.registry
                .update_principal(principal.number, |p| {
                    p.keep_background = true;
                    p.lifeline = None;
                })
                .map_err(|e| registry_problem(&e))?;
            return Ok(proto::Done::default());
        }
        let notes = self.end_principal(&principal, GRACE)?;
        self.end_if_implicit(&principal.execution, "main process ended")?;
        Ok(proto::Done { notes })
    }

    fn end_if_implicit(&self, id: &ExecutionId, reason: &str) -> Result<(), Problem> {
        let implicit = self.registry.execution(id).is_some_and(|e| e.implicit);
        if implicit && self.registry.principals_of(id).is_empty() {
            self.end_one(id, reason, GRACE)?;
        }
        Ok(())
    }

    /// Takes a principal off the register and ends its processes: TERM, a grace, KILL. Tells who
    /// could not be ended.
    fn end_principal(
        &self,
        principal: &Principal,
        grace: Duration,
    ) -> Result<Vec<String>, Problem> {
        self.registry.unregister(principal.number).map_err(|e| registry_problem(&e))?;
        let survivors = self.end_processes(principal, grace);
        self.settle_events(&[principal.number.0]);
        Ok(survivors)
    }

    pub(super) fn end_processes(&self, principal: &Principal, grace: Duration) -> Vec<String> {
        match &principal.membership {
            Membership::Cgroup { path, .. } => {
                let Ok(group) = Cgroup::open(path) else { return Vec::new() };
                if !group.empty_within(Duration::ZERO) && !grace.is_zero() {
                    let _signalled = group.signal(Signal::SIGTERM);
                    group.empty_within(grace);
                }
                if !group.empty_within(Duration::ZERO) {
                    let _killed = group.kill();
                }
                if !group.empty_within(KILL_LIMIT) {
                    let left = group.members().unwrap_or_default();
                    return left.iter().map(|pid| format!("process {pid}")).collect();
                }
                let _removed = group.remove();
                if let Some(parent) = path.parent() {
                    // Another agent of the execution may still be there.
                    let _removed = std::fs::remove_dir(parent);
                }
                Vec::new()
            }
            Membership::Tree { root } => end_tree(root, grace),
        }
    }

    pub(super) fn end_execution(
        &self,
        who: &Caller,
        req: &proto::ExecutionEnd,
    ) -> Result<proto::ExecutionShown, Problem> {
        let execution = self.visible_execution(who, &req.id, Permission::Launch)?;
        let reason = req.reason.as_deref().unwrap_or("ended");
        let survivors = self.end_one(&execution.id, reason, req.grace.map_or(GRACE, |p| p.0))?;
        let execution = self.registry.execution(&execution.id).unwrap_or(execution);
        let mut shown = self.execution_shown(&execution);
        shown.survivors = survivors;
        Ok(shown)
    }

    /// Ends an execution: its view is empty first, then its processes end.
    pub(super) fn end_one(
        &self,
        id: &ExecutionId,
        reason: &str,
        grace: Duration,
    ) -> Result<Vec<String>, Problem> {
        let running = self.registry.execution(id).is_some_and(|e| e.ended.is_none());
        let (execution, members) = self
            .registry
            .end(id, self.core.clock.now(), reason)
            .map_err(|e| registry_problem(&e))?;
        let survivors = members.iter().flat_map(|p| self.end_processes(p, grace)).collect();
        self.settle_events(&members.iter().map(|p| p.number.0).collect::<Vec<_>>());
        if let Some(root) = &self.cgroup_root {
            // Busy only while a survivor is in it.
            let _removed = cgroup::remove_tree(&root.join(id.as_str()));
        }
        self.settle_soon();
        if running {
            self.record_execution(Event::ExecutionEnded, &execution, execution.uid, Some(reason))?;
        }
        Ok(survivors)
    }

    fn visible_execution(
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
        let mut record = self.core.new_record(event);
        record.chain = Some(&execution.chain);
        record.user = Some(&execution.user);
        record.workspace = Some(&execution.workspace);
        record.environment = execution.environment.as_deref();
        record.execution = Some(execution.id.as_str());
        record.uid = Some(uid);
        record.reason = reason;
        self.core.record(&record)?;
        Ok(())
    }

    fn record_agent(
        &self,
        who: &Caller,
        principal: &Principal,
        identity: &(Hold, Option<String>),
    ) -> Result<(), Problem> {
        let mut record = self.core.new_record(Event::AgentStarted);
        record.chain = Some(&principal.chain);
        record.agent = Some(&principal.agent);
        record.user = Some(&principal.user);
        record.workspace = Some(&principal.workspace);
        record.environment = principal.environment.as_deref();
        record.execution = Some(principal.execution.as_str());
        record.uid = Some(principal.uid);
        record.pid = u32::try_from(who.peer.pid).ok();
        record.reason = identity.1.as_deref();
        self.core.record(&record)?;
        Ok(())
    }

    fn record_exposed(&self, principal: &Principal, file: &File) -> Result<(), Problem> {
        let mut record = self.core.new_record(Event::SecretExposed);
        record.secret_key = Some(&file.key);
        record.scope = Some(&file.scope);
        record.version = Some(file.version);
        record.chain = Some(&principal.chain);
        record.agent = Some(&principal.agent);
        record.user = Some(&principal.user);
        record.workspace = Some(&principal.workspace);
        record.environment = principal.environment.as_deref();
        record.execution = Some(principal.execution.as_str());
        record.uid = Some(principal.uid);
        record.via = Some("env");
        record.decision = Some("granted");
        self.core.record(&record)?;
        self.registry
            .ledger()
            .note(Exposure {
                value: file.value.clone(),
                via: Channel::Env,
                execution: Some(principal.execution.clone()),
                chain: Some(principal.chain.clone()),
                agent: Some(principal.agent.clone()),
                user: principal.user.clone(),
                at: self.core.clock.now(),
            })
            .map_err(|e| registry_problem(&registry::Error::State(e)))
    }

    pub(super) fn create_ticket(
        &self,
        who: &Caller,
        req: &proto::TicketCreate,
    ) -> Result<proto::TicketCreated, Problem> {
        self.core.unlocked()?;
        let chain: ChainName = parse(&req.chain)?;
        let agent: AgentName = parse(&req.agent)?;
        let environment = self.environment(req.environment.as_deref())?;
        // A ticket that could never be redeemed is an error now.
        let asker = Asker { chain: &chain, agent: &agent, environment: environment.as_ref() };
        self.core.catalog().resolve(asker).map_err(|e| resolve_problem(&e))?;
        let user = match req.as_user.as_deref() {
            None => (who.peer.uid, who.peer.gid),
            Some(name) => {
                let found = match name.parse::<u32>() {
                    Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
                    Err(_) => nix::unistd::User::from_name(name),
                };
                let user = found.ok().flatten().ok_or_else(|| {
                    Problem::new(Code::NotFound, format!("there is no user {name}"))
                })?;
                (user.uid.as_raw(), user.gid.as_raw())
            }
        };
        let ttl = req.ttl.map_or(TICKET_TTL, |p| p.0);
        let ticket = Ticket {
            chain: req.chain.clone(),
            agent: req.agent.clone(),
            environment: req.environment.clone(),
            execution: req.execution.clone(),
            deliver: req.deliver.clone(),
            uid: user.0,
            gid: user.1,
            expires_at: self.core.clock.now(),
            uses: req.uses.unwrap_or(1).max(1),
            user: user_of(who.peer.uid),
        };
        let (text, expires_at) = self.issue(ticket, ttl)?;
        Ok(proto::TicketCreated {
            ticket: Value::new(text),
            expires_at,
            execution: req.execution.clone(),
        })
    }

    /// A ticket of the daemon's own, for a step of a rotation chain.
    pub(super) fn issue_own(
        &self,
        execution: &Execution,
        agent: &AgentName,
        (uid, gid): (u32, u32),
        ttl: Duration,
    ) -> Result<SecretBytes, Problem> {
        let ticket = Ticket {
            chain: execution.chain.clone(),
            agent: agent.to_string(),
            environment: execution.environment.clone(),
            execution: Some(execution.id.to_string()),
            deliver: None,
            uid,
            gid,
            expires_at: self.core.clock.now(),
            uses: 1,
            user: execution.user.clone(),
        };
        Ok(self.issue(ticket, ttl)?.0)
    }

    fn issue(&self, ticket: Ticket, ttl: Duration) -> Result<(SecretBytes, Timestamp), Problem> {
        let text = SecretBytes::from_vec(crypto::hex(&random::<32>()?).into_bytes());
        let expires_at = self
            .core
            .clock
            .now()
            .checked_add(ttl)
            .map_err(|_| Problem::new(Code::Invalid, "the ticket's time is too long"))?;
        let stored = serde_json::to_vec(&Ticket { expires_at, ..ticket })
            .map_err(|_| Problem::new(Code::Internal, "the ticket cannot be stored"))?;
        self.registry
            .journal()
            .put(Kind::Ticket, &crypto::digest(&[text.expose()]), &stored)
            .map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        Ok((text, expires_at))
    }

    pub(super) fn redeem_ticket(
        &self,
        who: &Caller,
        req: &proto::TicketRedeem,
    ) -> Result<proto::AgentLaunched, Problem> {
        let refuse = || {
            Problem::new(Code::Gone, "this ticket is not good: used, expired, or another user's")
                .with_hint("have a new one made for your user")
        };
        let key = crypto::digest(&[req.ticket.secret().expose()]);
        let _one_at_a_time =
            self.redeeming.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let journal = self.registry.journal();
        let stored = journal.get(Kind::Ticket, &key).ok_or_else(refuse)?;
        let mut ticket: Ticket = serde_json::from_slice(&stored).map_err(|_| refuse())?;
        if ticket.uid != who.peer.uid || ticket.expires_at <= self.core.clock.now() {
            return Err(refuse());
        }
        ticket.uses -= 1;
        // Used up before anything is given for it.
        let noted = if ticket.uses == 0 {
            journal.remove(Kind::Ticket, &key)
        } else {
            serde_json::to_vec(&ticket)
                .map_err(|_| crate::execution::journal::Error::TooLong)
                .and_then(|bytes| journal.put(Kind::Ticket, &key, &bytes))
        };
        noted.map_err(|e| Problem::new(Code::Busy, e.to_string()))?;
        self.launch(
            who,
            &Wanted {
                chain: Some(&ticket.chain),
                agent: Some(&ticket.agent),
                environment: ticket.environment.as_deref(),
                execution: ticket.execution.as_deref(),
                secrets: &[],
                deliver: ticket.deliver.as_deref(),
                workspace: "host",
                secrets_path: req.secrets_path.as_deref(),
                how: req.how,
                uid: ticket.uid,
                gid: ticket.gid,
                pid: req.pid,
                keep_background: req.keep_background,
                deadline: None,
                labels: BTreeMap::new(),
            },
            ticket.user.clone(),
        )
    }

    /// What time and death bring about: deadlines, owners, lifelines, emptied groups.
    pub(super) fn housekeeping(&self) {
        let now = self.core.clock.now();
        let (executions, principals) = (self.registry.executions(), self.registry.principals());
        let running = executions.iter().filter(|e| e.ended.is_none());
        let owners = running.clone().filter_map(|e| e.owner.as_ref());
        let lifelines = principals.iter().filter_map(|p| p.lifeline.as_ref());
        let ended = self.registry.ended_of(owners.chain(lifelines));
        for execution in running {
            let reason = if execution.deadline.is_some_and(|at| at <= now) {
                Some("deadline")
            } else if execution.owner.as_ref().is_some_and(|o| ended.contains(o)) {
                Some("owner died")
            } else {
                None
            };
            if let Some(reason) = reason
                && let Err(error) = self.end_one(&execution.id, reason, GRACE)
            {
                tracing::error!(%error, "an execution could not be ended");
            }
        }
        for principal in &principals {
            let over = match &principal.lifeline {
                Some(process) => ended.contains(process),
                None => principal.keep_background && self.is_empty(principal),
            };
            if over {
                let outcome = self
                    .end_principal(principal, Duration::ZERO)
                    .and_then(|_| self.end_if_implicit(&principal.execution, "main process ended"));
                if let Err(error) = outcome {
                    tracing::error!(%error, "an agent could not be ended");
                }
            }
        }
    }

    fn is_empty(&self, principal: &Principal) -> bool {
        match &principal.membership {
            Membership::Cgroup { path, .. } => {
                Cgroup::open(path).map_or(true, |group| group.empty_within(Duration::ZERO))
            }
            Membership::Tree { root } => find_process(root).is_none(),
        }
    }
}

fn pin(version: &Version) -> Result<Pin, Problem> {
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

fn gone(error: std::io::Error) -> Problem {
    Problem::new(Code::Gone, format!("the process is gone: {error}"))
}

/// The path as `/proc/PID/cgroup` shows it.
fn below_hierarchy(path: &Path) -> PathBuf {
    cgroup::hierarchy_root()
        .ok()
        .and_then(|root| path.strip_prefix(root).ok().map(|p| Path::new("/").join(p)))
        .unwrap_or_else(|| path.to_owned())
}

fn adhoc_references(names: &[String]) -> Result<Vec<Reference>, Problem> {
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

/// Refuses what execve(2) cannot carry.
fn check_variable(name: &str, value: &SecretBytes) -> Result<(), Problem> {
    if value.expose().contains(&0) {
        return Err(Problem::new(Code::Invalid, format!("{name} holds a NUL byte"))
            .with_hint("deliver it as a file: --deliver files"));
    }
    // MAX_ARG_STRLEN, execve(2): 128 KiB with the name and the terminating NUL.
    if name.len() + value.len() + 2 > 128 << 10 {
        return Err(Problem::new(Code::Invalid, format!("{name} is too long for a variable"))
            .with_hint("deliver it as a file: --deliver files"));
    }
    Ok(())
}

fn proc_threads(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("Threads:"))?.trim().parse().ok()
}

/// Ends the descendants of a launcher, never the launcher: it is about to end by itself.
pub(super) fn end_tree(root: &ProcessRef, grace: Duration) -> Vec<String> {
    struct Root(u32);
    impl crate::identity::attestor::Members for Root {
        fn by_cgroup(&self, _: u64) -> Option<PrincipalNumber> {
            None
        }
        fn by_cgroup_path(&self, _: &Path) -> Option<PrincipalNumber> {
            None
        }
        fn by_root(&self, pid: u32) -> Option<PrincipalNumber> {
            (pid == self.0).then_some(PrincipalNumber(0))
        }
        fn has_trees(&self) -> bool {
            true
        }
    }
    let members = Root(root.pid);
    let descendants = || -> Vec<PidFd> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != root.pid)
            .filter_map(|pid| {
                let process = PidFd::open(pid).ok()?;
                let facts = Facts { tgid: pid, cgroup_id: None };
                TreeAttestor.attest(pid, &facts, &members).map(|_| process)
            })
            .filter(PidFd::is_alive)
            .collect()
    };
    if find_process(root).is_none() {
        return Vec::new();
    }
    for (signal, limit) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, KILL_LIMIT)] {
        let found = descendants();
        for process in &found {
            // It may have ended in this moment.
            let _gone = process.signal(signal);
        }
        let deadline = std::time::Instant::now() + limit;
        for process in &found {
            process.exited_within(deadline.saturating_duration_since(std::time::Instant::now()));
        }
    }
    descendants().iter().filter_map(|p| p.pid().ok().map(|pid| format!("process {pid}"))).collect()
}
