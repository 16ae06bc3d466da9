//! Who may launch which agent, and as whom.
//!
//! Invariant: a peer that is an agent launches what its definition lists, in its own execution and as
//! its own user; everybody else needs a role for chain and environment, or a ticket.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::catalog::name::{AgentName, ChainName};
use crate::catalog::resolve::Asker;
use crate::config::Permission;
use crate::control::Caller;
use crate::execution::principal::{Execution, Principal};
use crate::proto::{self, Code, Hold, Problem};

use super::Daemon;

/// Why a peer may launch at all.
pub(super) enum Right {
    /// It is this agent, whose definition lists others under `may_launch`.
    Agent(Arc<Principal>),
    /// A role, judged for the chain and environment of the launch.
    Role,
    /// A ticket, which whoever made it had the role for.
    Ticket,
}

impl Daemon {
    pub(super) fn right_of(&self, who: &Caller) -> Result<Right, Problem> {
        if !who.is_agent {
            return Ok(Right::Role);
        }
        u32::try_from(who.peer.pid)
            .ok()
            .and_then(|pid| self.principal_of_process(pid))
            .and_then(|number| self.registry.principal(number))
            .map(Right::Agent)
            .ok_or_else(|| {
                Problem::new(Code::AgentRefused, "the peer cannot be told, so it launches nobody")
                    .with_hint("ask from a process that the daemon's pid namespace sees")
            })
    }

    /// Judges the launch of this agent, in this place, by what the peer may.
    pub(super) fn admit_launch(
        &self,
        who: &Caller,
        right: &Right,
        execution: Option<&Execution>,
        asker: Asker<'_>,
    ) -> Result<(), Problem> {
        match right {
            Right::Ticket => Ok(()),
            Right::Role => {
                let environment = asker.environment.map(ToString::to_string);
                let chain = Some(asker.chain.as_str());
                if who.may_in(Permission::Launch, chain, environment.as_deref()) {
                    return Ok(());
                }
                let place = environment.as_deref().unwrap_or("no environment");
                Err(Problem::new(
                    Code::NoRole,
                    format!("no role lets you launch chain {} in {place}", asker.chain),
                )
                .with_hint("ask whoever configures [[role]] in strongroom.toml"))
            }
            Right::Agent(launcher) => {
                let listed = self.core.catalog().chain(asker.chain).is_some_and(|stored| {
                    stored.definition.agents.iter().any(|agent| {
                        agent.name.as_str() == launcher.agent
                            && agent.may_launch.contains(asker.agent)
                    })
                });
                // Its own execution only: another one's pins and events are none of its business.
                let own = execution.is_some_and(|e| e.id == launcher.execution)
                    && asker.chain.as_str() == launcher.chain;
                if listed && own {
                    return Ok(());
                }
                let what = format!(
                    "agent {} may not launch {}/{}",
                    launcher.agent, asker.chain, asker.agent
                );
                Err(Problem::new(Code::AgentRefused, what).with_hint(format!(
                    "list {} under \"may_launch\" of {} in the chain's definition; it runs in the \
                     same execution",
                    asker.agent, launcher.agent
                )))
            }
        }
    }

    /// What the definition wants isolated is not launched otherwise. Workspaces beside the host isolate
    /// by themselves.
    pub(super) fn require_isolation(
        &self,
        chain: &ChainName,
        agent: &AgentName,
        workspace: &str,
        isolation: Option<&proto::Isolation>,
    ) -> Result<(), Problem> {
        let is_isolated = isolation.is_some_and(|isolation| isolation.holds != Hold::None);
        let is_wanted = workspace == "host"
            && self
                .core
                .catalog()
                .chain(chain)
                .and_then(|stored| stored.definition.agent(agent).map(|agent| agent.isolate))
                .unwrap_or(false);
        if !is_wanted || is_isolated {
            return Ok(());
        }
        Err(Problem::new(Code::NotIsolated, format!("agent {agent} runs isolated, or not at all"))
            .with_hint("its definition says \"isolate\": true; run it with --isolate"))
    }

    pub(super) fn launch_user(
        &self,
        who: &Caller,
        as_user: Option<&str>,
    ) -> Result<(u32, u32), Problem> {
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
}
