//! The process that becomes an agent: the peer, or a stopped child of it, moved by its pidfd.
//!
//! Invariant: the process that is in the group afterwards is the one that was asked for; a number
//! alone moves nobody. Danger: a pid that is used anew between question and answer.
//! See pidfd_open(2), PIDFD_GET_INFO.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::config::Permission;
use crate::control::Caller;
use crate::execution::principal::{Membership, Principal};
use crate::execution::process::ProcessRef;
use crate::proto::{self, Code, Problem};
use crate::sys::cgroup::Cgroup;
use crate::sys::pidfd::PidFd;
use crate::sys::proc;

use super::Daemon;
use super::executions::registry_problem;

impl Daemon {
    pub(super) fn peer_process(&self, who: &Caller) -> Result<PidFd, Problem> {
        let fd = match &who.peer.pidfd {
            Some(fd) => fd.try_clone().map(PidFd::from_owned),
            None => PidFd::open(who.peer.pid.cast_unsigned()),
        };
        fd.map_err(gone)
    }

    /// Moves the peer, or a stopped child of it, into the group and checks that it was the one.
    pub(super) fn move_in(
        &self,
        who: &Caller,
        child: Option<i32>,
        group: &Cgroup,
    ) -> Result<(), Problem> {
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
    pub(super) fn attach(
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
        let reference = ProcessRef::of(&process).map_err(gone)?;
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
    pub(super) fn by_launch(&self, who: &Caller, launch: &str) -> Result<Arc<Principal>, Problem> {
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
}

pub(super) fn gone(error: std::io::Error) -> Problem {
    Problem::new(Code::Gone, format!("the process is gone: {error}"))
}

fn proc_threads(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("Threads:"))?.trim().parse().ok()
}
