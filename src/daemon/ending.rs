//! The end of agents and executions: the view is empty first, then the processes end.
//!
//! Invariant: what could not be ended is named; what one worker began to end, the next one ends and
//! records. Danger: a process that ignores TERM, or forks faster than it is counted, and goes on with an
//! agent's descriptors.
#![forbid(unsafe_code)]

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::audit::record::Event;
use crate::config::Permission;
use crate::control::Caller;
use crate::execution::id::ExecutionId;
use crate::execution::principal::{Ended, Execution, Membership, Principal};
use crate::execution::process::ProcessRef;
use crate::execution::registry::Unfinished;
use crate::identity::Facts;
use crate::identity::attestor::{Attestor, PrincipalNumber, TreeAttestor};
use crate::proto::{self, Problem};
use crate::sys::cgroup::{self, Cgroup};
use crate::sys::pidfd::PidFd;

use super::Daemon;
use super::core::record_tag;
use super::executions::registry_problem;
use super::outputs::{Search, Searched};
use super::strays;

/// How long processes get between TERM and KILL.
const GRACE: Duration = Duration::from_secs(5);
/// Between two tries to finish an end.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a killed group may take to be empty.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(5);

impl Daemon {
    pub(super) fn end_agent(
        &self,
        who: &Caller,
        req: &proto::AgentEnd,
    ) -> Result<proto::AgentEnded, Problem> {
        let principal = match self.by_launch(who, &req.launch) {
            Ok(principal) => principal,
            Err(problem) => {
                // An earlier worker may have begun it, or died over the search of what was left.
                self.finish_endings();
                return self.searched_of(who, &req.launch).ok_or(problem);
            }
        };
        if req.keep_background || principal.keep_background {
            self.registry
                .update_principal(principal.number, |p| {
                    p.keep_background = true;
                    p.lifeline = None;
                })
                .map_err(|e| registry_problem(&e))?;
            return Ok(Searched::default().ended(Vec::new()));
        }
        let search = self.output_search(&principal, Some(&who.peer));
        let notes = self.end_principal(&principal, GRACE)?;
        self.end_if_implicit(&principal.execution, "main process ended")?;
        Ok(search.map(Search::run).unwrap_or_default().ended(notes))
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
    pub(super) fn end_principal(
        &self,
        principal: &Principal,
        grace: Duration,
    ) -> Result<Vec<String>, Problem> {
        self.registry.unregister(principal.number).map_err(|e| registry_problem(&e))?;
        let survivors = self.end_processes(principal, grace);
        self.settle_events(&[principal.number.0]);
        self.registry.forget(principal.number).map_err(|e| registry_problem(&e))?;
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
            Membership::Tree { root } => {
                let mut left = end_tree(root, grace);
                if !principal.keep_background && root.find().is_none() {
                    left.extend(self.end_orphans(principal));
                }
                left
            }
        }
    }

    /// Ends what a launcher that was killed has left: nobody's descendants any more, but with the
    /// environment of their launch.
    fn end_orphans(&self, principal: &Principal) -> Vec<String> {
        let found: Vec<_> = strays::orphans(principal)
            .into_iter()
            // Another launch of the same agent may be alive.
            .filter(|(pid, _)| self.principal_of_process(*pid).is_none())
            .collect();
        for (_, process) in &found {
            // It may have ended in this moment.
            let _gone = process.signal(Signal::SIGKILL);
        }
        let deadline = std::time::Instant::now() + KILL_LIMIT;
        let lives = |(_, process): &&(u32, PidFd)| {
            !process.exited_within(deadline.saturating_duration_since(std::time::Instant::now()))
        };
        found.iter().filter(lives).map(|(pid, _)| format!("process {pid}")).collect()
    }

    pub(super) fn end_execution(
        &self,
        who: &Caller,
        req: &proto::ExecutionEnd,
    ) -> Result<proto::ExecutionShown, Problem> {
        let execution = self.visible_execution(who, &req.id, Permission::Launch)?;
        if execution.ended.as_ref().is_some_and(|ended| ended.unsettled) {
            self.finish_endings();
        }
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
        let present = self.registry.principals_of(id);
        let searches: Vec<_> = present.iter().filter_map(|p| self.output_search(p, None)).collect();
        let ended = Ended { at: self.core.clock.now(), reason: reason.to_owned(), unsettled: true };
        let (execution, members) =
            self.registry.end(id, ended).map_err(|e| registry_problem(&e))?;
        let survivors = members.iter().flat_map(|p| self.end_processes(p, grace)).collect();
        self.settle_events(&members.iter().map(|p| p.number.0).collect::<Vec<_>>());
        for member in &members {
            self.registry.forget(member.number).map_err(|e| registry_problem(&e))?;
        }
        searches.into_iter().for_each(Search::run_later);
        self.settle_soon();
        if running && let Err(problem) = self.settle_end(&execution) {
            self.unfinished().ended.push(execution.id.clone());
            return Err(problem);
        }
        Ok(survivors)
    }

    /// The last of an execution's end: its groups go, and it is on record.
    fn settle_end(&self, execution: &Execution) -> Result<(), Problem> {
        let Some(ended) = &execution.ended else { return Ok(()) };
        if let Some(root) = &self.cgroup_root {
            // Busy only while a survivor is in it.
            let _removed = cgroup::remove_tree(&root.join(execution.id.as_str()));
        }
        // An id may be used again when the execution is long forgotten.
        let since = execution.started_at.to_string();
        let id = execution.id.as_str().as_bytes();
        let tag = record_tag(&[b"execution ended", id, since.as_bytes()]);
        let (event, uid) = (Event::ExecutionEnded, execution.uid);
        self.record_execution_once(event, execution, uid, Some(&ended.reason), tag)?;
        self.registry.settle(&execution.id).map_err(|e| registry_problem(&e))?;
        self.core.forget_tag(tag);
        Ok(())
    }

    fn unfinished(&self) -> MutexGuard<'_, Unfinished> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes what an earlier worker began to end, and tries records again that could not be
    /// written, until the daemon stops.
    pub fn keep_ended(&self) {
        while !self.is_stopping() {
            let turn = std::panic::catch_unwind(AssertUnwindSafe(|| self.finish_endings()));
            if turn.is_err() {
                tracing::error!("a turn of ending what was left panicked");
            }
            std::thread::park_timeout(AGAIN);
        }
    }

    /// Returns when everything that an earlier worker had begun to end has ended, whoever does it.
    fn finish_endings(&self) {
        let mut unfinished = self.unfinished();
        for principal in std::mem::take(&mut unfinished.principals) {
            for left in self.end_processes(&principal, GRACE) {
                tracing::error!(left, "what an earlier worker was to end could not be ended");
            }
            self.settle_events(&[principal.number.0]);
            if let Err(error) = self.registry.forget(principal.number) {
                tracing::error!(%error, "an agent that has ended cannot be forgotten");
            }
        }
        let mut ended = std::mem::take(&mut unfinished.ended);
        for id in std::mem::take(&mut unfinished.deserted) {
            if !self.registry.principals_of(&id).is_empty() {
                continue;
            }
            let at = self.core.clock.now();
            let why = Ended { at, reason: "main process ended".into(), unsettled: true };
            match self.registry.end(&id, why) {
                Ok(_) => ended.push(id),
                Err(error) => tracing::error!(%error, "an execution could not be ended"),
            }
        }
        for id in ended {
            let Some(execution) = self.registry.execution(&id) else { continue };
            if let Err(problem) = self.settle_end(&execution) {
                tracing::error!(%problem, "the end of an execution could not be recorded");
                unfinished.ended.push(id);
            }
        }
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
                let search = self.output_search(principal, None);
                let outcome = self
                    .end_principal(principal, Duration::ZERO)
                    .and_then(|_| self.end_if_implicit(&principal.execution, "main process ended"));
                if let Err(error) = outcome {
                    tracing::error!(%error, "an agent could not be ended");
                }
                if let Some(search) = search {
                    search.run_later();
                }
            }
        }
    }

    fn is_empty(&self, principal: &Principal) -> bool {
        match &principal.membership {
            Membership::Cgroup { path, .. } => {
                Cgroup::open(path).map_or(true, |group| group.empty_within(Duration::ZERO))
            }
            Membership::Tree { root } => root.find().is_none(),
        }
    }
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
    if root.find().is_none() {
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
