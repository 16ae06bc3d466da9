//! Why a process cannot see a name: every fact that a request is judged by, in the order in which it
//! is judged, and one next step.
//!
//! Invariant: it tells what the broker would decide and decides nothing itself; whoever asks has a
//! role for the chain and environment of the process. Danger: an explanation that names secrets to
//! somebody who may not know of them.
#![forbid(unsafe_code)]

use crate::catalog::definition::{Deliver, Reference};
use crate::catalog::name::{AgentName, ChainName, EnvName, SecretKey, SecretName};
use crate::catalog::resolve::Asker;
use crate::catalog::secret::Stage;
use crate::config::Permission;
use crate::control::Caller;
use crate::execution::id::ExecutionId;
use crate::execution::principal::{Execution, File, Principal};
use crate::fs::tree::EVENTS_NAME;
use crate::proto::{self, Code, Finding, Problem};
use crate::sys::{mount, proc};

use super::Daemon;

/// What was found so far.
#[derive(Default)]
struct Findings {
    all: Vec<Finding>,
    remedy: Option<String>,
}

impl Findings {
    fn good(&mut self, what: &str, found: impl Into<String>) {
        self.all.push(Finding { what: what.to_owned(), found: found.into(), ok: true });
    }

    /// Something that stands in the way; the first of these says what to do.
    fn bad(&mut self, what: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.all.push(Finding { what: what.to_owned(), found: found.into(), ok: false });
        self.remedy.get_or_insert_with(|| remedy.into());
    }

    fn is_good(&self) -> bool {
        self.all.iter().all(|finding| finding.ok)
    }
}

impl Daemon {
    pub(super) fn explain_process(
        &self,
        who: &Caller,
        req: &proto::Explain,
    ) -> Result<proto::Explained, Problem> {
        let gone = || {
            Problem::new(Code::NotFound, format!("there is no process {}", req.pid))
                .with_hint("give the id of a process that runs now")
        };
        let pid = u32::try_from(req.pid).map_err(|_| gone())?;
        let ids = proc::status_ids(pid).map_err(|_| gone())?;
        let group = proc::cgroup_path(pid).ok();
        let principal =
            self.principal_of_process(pid).and_then(|number| self.registry.principal(number));
        // A process of an execution that has ended lives until its grace is over.
        let former = group.iter().flat_map(|path| path.iter()).find_map(|part| {
            let id: ExecutionId = part.to_str()?.parse().ok()?;
            self.registry.execution(&id).filter(|execution| execution.ended.is_some())
        });
        let place = match (&principal, &former) {
            (Some(principal), _) => Some((&principal.chain, principal.environment.as_deref())),
            (None, Some(execution)) => Some((&execution.chain, execution.environment.as_deref())),
            (None, None) => None,
        };
        if let Some((chain, environment)) = place
            && ![Permission::Audit, Permission::Operate]
                .into_iter()
                .any(|permission| who.may_in(permission, Some(chain), environment))
        {
            return Err(Problem::new(Code::NoRole, "no role lets you ask about this process")
                .with_hint("ask whoever configures [[role]] in strongroom.toml"));
        }
        let mut found = Findings::default();
        let leader = if ids.tgid == pid { "its main thread" } else { "a thread" };
        found.good("thread", format!("{pid} is {leader} of process {}", ids.tgid));
        let group = group.map_or("unknown".to_owned(), |path| path.display().to_string());
        match &principal {
            None => {
                found.good("cgroup", group);
                no_agent(&mut found, former.as_deref());
            }
            Some(principal) => {
                found.good("cgroup", group);
                self.agent(&mut found, principal, req.name.as_deref(), (ids.euid, ids.tgid));
            }
        }
        let refusals = principal
            .as_ref()
            .map(|p| self.tree.broker().last_refusals(p.number))
            .unwrap_or_default();
        let names_something =
            req.name.is_some() || principal.as_ref().is_some_and(|p| !p.files.is_empty());
        Ok(proto::Explained {
            pid: req.pid,
            name: req.name.clone(),
            execution: principal.as_ref().map(|p| p.execution.to_string()),
            chain: principal.as_ref().map(|p| p.chain.clone()),
            agent: principal.as_ref().map(|p| p.agent.clone()),
            visible: found.is_good() && names_something,
            findings: found.all,
            refusals,
            remedy: found.remedy,
        })
    }

    fn agent(
        &self,
        found: &mut Findings,
        principal: &Principal,
        name: Option<&str>,
        (euid, tgid): (u32, u32),
    ) {
        let environment = principal.environment.as_deref().unwrap_or("(none)");
        found.good(
            "execution",
            format!(
                "{} of chain {}, agent {}, environment {environment}",
                principal.execution, principal.chain, principal.agent
            ),
        );
        let uid = format!("{euid} (registered {})", principal.uid);
        if principal.admits_uid(euid) {
            found.good("uid", uid);
        } else {
            let remedy =
                format!("add {euid} to the agent's \"uids\", or run it as uid {}", principal.uid);
            found.bad("uid", uid, remedy);
        }
        if let Some(name) = name {
            match principal.files.get(name) {
                Some(file) => self.file(found, file),
                None if name == EVENTS_NAME => found.good("reference", "the agent's own folder"),
                None => self.missing(found, principal, name),
            }
        }
        let bound = mount::table_of(tgid).is_ok_and(|table| {
            table.iter().any(|m| {
                m.fs_type == mount::FS_TYPE
                    && (m.mount_point == self.paths.mount || m.root.starts_with("/.agents"))
            })
        });
        if bound {
            found.good("mount", "in its namespace");
        } else {
            let remedy = "its mount namespace is older than the mount: start it anew";
            found.bad("mount", "not in its namespace", remedy);
        }
        if self.core.vault().is_none() {
            found.bad("vault", "locked: opens fail with ENOKEY", "strongroom unlock");
        }
        if let Some(fault) = self.core.log.fault() {
            let remedy = "make the audit directory writable; reads go on by themselves then";
            found.bad("record", format!("no record can be written: {fault}"), remedy);
        }
    }

    /// A name that the agent has: its pin, and when that ends.
    fn file(&self, found: &mut Findings, file: &File) {
        found.good("reference", format!("{} with scope {}", file.key, file.scope));
        if self.core.is_denied(&file.value) {
            let catalog = self.core.catalog();
            let replaced =
                catalog.secret(&file.secret).is_some_and(|s| s.at_stage(Stage::Current).is_some());
            found.bad(
                "pin",
                format!("version {} is revoked: opens fail with EKEYREVOKED", file.version),
                match replaced {
                    true => "start the agent anew: there is a new version".to_owned(),
                    false => format!(
                        "strongroom secret set {} --scope {} --replace, then start the agent anew",
                        file.key, file.scope
                    ),
                },
            );
        } else {
            found.good("pin", format!("version {}", file.version));
        }
        let now = self.core.clock.now();
        match file.expires_at {
            Some(at) if at <= now => found.bad(
                "expiry",
                format!("{at}, over: opens fail with EKEYEXPIRED"),
                format!("strongroom secret edit {} --expires-at never", file.key),
            ),
            Some(at) => found.good("expiry", at.to_string()),
            None => found.good("expiry", "never"),
        }
    }

    /// A name that the agent does not have: what its definition says, and what the catalog would.
    fn missing(&self, found: &mut Findings, principal: &Principal, name: &str) {
        let parsed = (
            principal.chain.parse::<ChainName>(),
            principal.agent.parse::<AgentName>(),
            principal.environment.as_deref().map(str::parse::<EnvName>).transpose(),
        );
        let (Ok(chain), Ok(agent), Ok(environment)) = parsed else { return };
        let catalog = self.core.catalog();
        let stored = catalog.chain(&chain);
        let references = stored.into_iter().flat_map(|stored| {
            let own = stored.definition.agents.iter().filter(|a| a.name == agent);
            own.flat_map(|a| a.secrets.iter()).chain(&stored.definition.secrets)
        });
        let referenced = references.into_iter().any(|reference| {
            reference.name.name.as_str() == name
                || reference.as_name.as_ref().is_some_and(|n| n.as_str() == name)
        });
        let asker = Asker { chain: &chain, agent: &agent, environment: environment.as_ref() };
        let resolves = stored.is_some_and(|stored| {
            let resolution = catalog.resolve_in(&stored.definition, asker);
            let Ok(name) = name.parse::<SecretName>() else { return false };
            resolution.is_ok_and(|r| r.granted.contains_key(&name))
        });
        if resolves {
            return found.bad(
                "reference",
                "in the definition, but not when this agent started",
                "start the agent anew: an execution keeps what it started with",
            );
        }
        let apply =
            format!("add {name} to the secrets of agent {agent} and run `strongroom chain apply`");
        if referenced {
            found.good("reference", "in the agent's definition");
        } else {
            found.bad("reference", "the agent's definition does not name it", apply.clone());
        }
        let Ok(key) = name.parse::<SecretKey>() else { return };
        let named = key.name.clone();
        let reference =
            Reference { name: key, group: false, deliver: None, as_name: None, path_env: None };
        let resolution =
            catalog.resolve_references([&reference].into_iter(), Deliver::Files, asker);
        let Ok(resolution) = resolution else { return };
        if let Some(grant) = resolution.granted.values().next() {
            let text = format!("{} with scope {} admits it", grant.secret.key, grant.secret.scope);
            found.good("scope", text);
        }
        for unresolved in &resolution.unresolved {
            let fix = unresolved.why.fix.clone().unwrap_or(apply.clone());
            for candidate in &unresolved.why.candidates {
                let text =
                    format!("{} with scope {}: {}", candidate.key, candidate.scope, candidate.why);
                let wall =
                    candidate.key.environment.is_some() && candidate.key.environment != environment;
                found.bad(if wall { "environment" } else { "scope" }, text, fix.clone());
            }
            if unresolved.why.candidates.is_empty() {
                found.bad("scope", format!("there is no secret {named}"), fix);
            }
        }
    }
}

fn no_agent(found: &mut Findings, former: Option<&Execution>) {
    match former.and_then(|execution| Some((execution, execution.ended.as_ref()?))) {
        Some((execution, ended)) => found.bad(
            "execution",
            format!("{} of chain {} has ended: {}", execution.id, execution.chain, ended.reason),
            "start a new execution; what is left of this one is being ended",
        ),
        None => found.bad(
            "execution",
            "it belongs to none",
            "start it with `strongroom run --chain C --agent A -- CMD`",
        ),
    }
}
