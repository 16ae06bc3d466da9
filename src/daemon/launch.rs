//! The launch of agents: everything is registered before anything runs.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::record::Event;
use crate::catalog::definition::{Deliver, OnFinding, Reference};
use crate::catalog::name::{AgentName, ChainName, EnvName};
use crate::catalog::resolve::{Asker, Error as ResolveError, Resolution};
use crate::catalog::secret::{Binding, Secret, Stage};
use crate::control::Caller;
use crate::execution::exposure::{Channel, Exposure};
use crate::execution::id::ExecutionId;
use crate::execution::principal::{Execution, File, Membership, Pin, Principal};
use crate::execution::process::ProcessRef;
use crate::execution::registry;
use crate::execution::roster::SecretInode;
use crate::fs::tree::{AGENTS_NAME, EVENTS_NAME, FIRST_RANDOM};
use crate::proto::{self, Code, Hold, How, Problem, Value};
use crate::secret::SecretBytes;
use crate::sys::cgroup::Cgroup;
use crate::sys::proc;
use crate::vault::crypto;
use crate::vault::record::RecordKind;

use super::attach::gone;
use super::core::vault_problem;
use super::executions::{pin, registry_problem};
use super::membership::below_hierarchy;
use super::resolution::{adhoc_references, resolve_problem};
use super::right::Right;
use super::secrets::parse;
use super::{Daemon, user_of};

/// The implicit chain and agent of `run -s`.
const ADHOC: &str = "adhoc";

/// What a launch is of, however it was asked for.
pub(super) struct Wanted<'a> {
    pub(super) chain: Option<&'a str>,
    pub(super) agent: Option<&'a str>,
    pub(super) environment: Option<&'a str>,
    pub(super) execution: Option<&'a str>,
    pub(super) secrets: &'a [String],
    pub(super) deliver: Option<&'a str>,
    pub(super) workspace: &'a str,
    pub(super) secrets_path: Option<&'a str>,
    pub(super) how: How,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: Option<i32>,
    pub(super) keep_background: bool,
    pub(super) isolation: Option<&'a proto::Isolation>,
    pub(super) deadline: Option<Duration>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) launch: Option<&'a str>,
    pub(super) right: Right,
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], Problem> {
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

    pub(super) fn environment(&self, text: Option<&str>) -> Result<Option<EnvName>, Problem> {
        let environment = text.filter(|t| *t != "-").map(parse).transpose()?;
        self.core
            .catalog()
            .check_environment(environment.as_ref())
            .map_err(|e| super::secrets::catalog_problem(&e))?;
        Ok(environment)
    }

    pub(super) fn launch_agent(
        &self,
        who: &Caller,
        req: proto::AgentLaunch,
    ) -> Result<proto::AgentLaunched, Problem> {
        let right = self.right_of(who)?;
        let (uid, gid) = match &right {
            // Whoever an agent launches is of its own user: setuid is not in its definition.
            Right::Agent(agent) => {
                if req.as_user.is_some() || who.peer.uid != agent.uid {
                    return Err(Problem::new(
                        Code::AgentRefused,
                        "an agent launches others as its own user alone",
                    )
                    .with_hint("leave out --as"));
                }
                (agent.uid, agent.gid)
            }
            Right::Role | Right::Ticket => self.launch_user(who, req.as_user.as_deref())?,
        };
        let own = match &right {
            Right::Agent(agent) => Some(agent.execution.to_string()),
            Right::Role | Right::Ticket => None,
        };
        self.launch(
            who,
            &Wanted {
                chain: req.chain.as_deref(),
                agent: req.agent.as_deref(),
                environment: req.environment.as_deref(),
                execution: req.execution.as_deref().or(own.as_deref()),
                secrets: &req.secrets,
                deliver: req.deliver.as_deref(),
                workspace: req.workspace.as_deref().unwrap_or("host"),
                secrets_path: req.secrets_path.as_deref(),
                how: req.how,
                uid,
                gid,
                pid: req.pid,
                keep_background: req.keep_background,
                isolation: req.isolation.as_ref(),
                deadline: req.deadline.map(|p| p.0),
                labels: req.labels.clone(),
                launch: req.launch.as_deref(),
                right,
            },
            user_of(who.peer.uid),
        )
    }

    pub(super) fn launch(
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
        if adhoc && matches!(wanted.right, Right::Agent(_)) {
            return Err(Problem::new(Code::AgentRefused, "an agent names no secrets of its own")
                .with_hint("its definition says what it may read, and whom it may launch"));
        }
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
        self.admit_launch(who, &wanted.right, existing.as_deref(), asker)?;
        let definition = self.core.catalog().chain(&chain).map(|c| c.definition.clone());
        if definition.is_none() && !adhoc {
            return Err(resolve_problem(&ResolveError::NoChain { chain }));
        }
        self.require_isolation(&chain, &agent, wanted.workspace, wanted.isolation)?;
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
        let outcome = self.pin_missing(&execution, &resolution).and_then(|execution| {
            if is_new {
                self.record_execution(Event::ExecutionStarted, &execution, who.peer.uid, None)?;
            }
            self.register(who, wanted, &execution, &agent, &resolution, user)
        });
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
            None => (Membership::Tree { root: ProcessRef::of(&peer).map_err(gone)? }, None),
        };
        let launch = match wanted.launch {
            Some(launch) => self.launch_id(launch)?,
            None => crypto::hex(&random::<16>()?),
        };
        let lifeline = match wanted.how {
            How::Cgroup | How::MovePeer => Some(ProcessRef::of(&peer).map_err(gone)?),
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
            login_uid: peer.pid().ok().and_then(proc::login_uid),
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
            outputs: self.outputs_of(&execution.chain, agent, &who.peer),
            isolation: wanted.isolation.map(ToString::to_string),
            redact: super::events::level_of(self.config.events.redact),
            ending: false,
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

    /// An id that whoever launches has chosen.
    fn launch_id(&self, text: &str) -> Result<String, Problem> {
        let is_hex =
            text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex {
            return Err(Problem::new(
                Code::Invalid,
                "a launch's id is 32 hex digits, in lower case",
            )
            .with_hint("take 128 random bits, or leave it out"));
        }
        if self.registry.has_launch(text) {
            return Err(Problem::new(Code::Conflict, "a launch has this id already")
                .with_hint("take 128 random bits, or leave it out"));
        }
        Ok(text.to_owned())
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
        self.hand_down(who, principal)?;
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
        if !secret_env.is_empty() {
            // Variables outlive the daemon: who holds them must be known to the next one.
            self.store_exposures()?;
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
            outputs: principal.outputs.is_some(),
            outputs_must_be_clean: principal
                .outputs
                .as_ref()
                .is_some_and(|outputs| outputs.on_finding == OnFinding::Fail),
            files: principal.files.keys().cloned().collect(),
            identity: identity.0,
            deadline,
            warnings,
        })
    }

    fn record_agent(
        &self,
        who: &Caller,
        principal: &Principal,
        identity: &(Hold, Option<String>),
    ) -> Result<(), Problem> {
        let mut record = self.core.new_record_of(Event::AgentStarted, principal);
        record.pid = u32::try_from(who.peer.pid).ok();
        let isolation = principal.isolation.as_ref().map(|found| format!("isolation {found}"));
        let reason: Vec<_> =
            [isolation.as_deref(), identity.1.as_deref()].into_iter().flatten().collect();
        let reason = reason.join("; ");
        record.reason = Some(reason.as_str()).filter(|text| !text.is_empty());
        self.core.record(&record)?;
        Ok(())
    }

    fn record_exposed(&self, principal: &Principal, file: &File) -> Result<(), Problem> {
        let mut record = self.core.new_record_of(Event::SecretExposed, principal);
        record.secret_key = Some(&file.key);
        record.scope = Some(&file.scope);
        record.version = Some(file.version);
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
