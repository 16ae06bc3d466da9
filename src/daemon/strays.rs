//! Processes of an execution that have left its group.
//!
//! Invariant: a process counts as an execution's own if it descends from its launcher or from a
//! member of its group, or bears the environment that a launch gave; such a process is killed by a
//! held pidfd, and told of when it does not die. Danger: an agent that is root moves itself to another
//! group; `cgroup.kill` passes it over, and an empty group says nothing about it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;
use zeroize::Zeroizing;

use crate::execution::principal::Principal;
use crate::sys::cgroup::Cgroup;
use crate::sys::pidfd::PidFd;
use crate::sys::proc::{self, Stat};

use super::intent::Ended;

/// What is looked at of a process's environment; few are longer.
const MAX_ENVIRON_BYTES: usize = 256 * 1024;

/// A process outside the group of its execution.
pub(super) struct Stray {
    pub(super) execution: String,
    pid: u32,
    process: PidFd,
}

/// Whose descendants they are: each process that has one of `roots` above it, with what stands there.
fn descendants<'a>(
    parents: &HashMap<u32, u32>,
    roots: &HashMap<u32, &'a str>,
) -> BTreeMap<u32, &'a str> {
    let mut found = BTreeMap::new();
    for pid in parents.keys().filter(|pid| !roots.contains_key(pid)) {
        let mut above = *pid;
        // A snapshot of a changing table may have rings in it.
        for _ in 0..parents.len() {
            let Some(parent) = parents.get(&above) else { break };
            if let Some(execution) = roots.get(parent) {
                found.insert(*pid, *execution);
                break;
            }
            above = *parent;
        }
    }
    found
}

/// Whether an environment is the one that a launch of the execution gives.
fn bears_mark(environ: &[u8], execution: &str, chain: &str) -> bool {
    let has = |name: &str, value: &str| {
        environ
            .split(|b| *b == 0)
            .any(|entry| entry.strip_prefix(name.as_bytes()).is_some_and(|v| v == value.as_bytes()))
    };
    // All of them: a variable alone may have been set by whoever works with the execution.
    has("STRONGROOM_EXECUTION=", execution)
        && has("STRONGROOM_CHAIN=", chain)
        && environ.split(|b| *b == 0).any(|entry| entry.starts_with(b"STRONGROOM_EVENTS_DIR="))
}

/// Processes that descend from the executions and are in no group of ours: to be asked before the
/// groups are killed, since the dead have no children.
pub(super) fn descended(
    ended: &BTreeMap<String, Ended>,
    root: Option<&Path>,
    below: Option<&Path>,
) -> Vec<Stray> {
    let mut roots: HashMap<u32, &str> = HashMap::new();
    for (id, ended) in ended {
        let launchers = ended.launchers.iter().filter(|p| p.find().is_some());
        roots.extend(launchers.map(|p| (p.pid, id.as_str())));
        let Some(groups) = root.and_then(|root| std::fs::read_dir(root.join(id)).ok()) else {
            continue;
        };
        for group in groups.flatten().filter_map(|e| Cgroup::open(&e.path()).ok()) {
            roots.extend(group.members().unwrap_or_default().iter().map(|pid| (*pid, id.as_str())));
        }
    }
    if roots.is_empty() {
        return Vec::new();
    }
    let stats: HashMap<u32, Stat> =
        proc::pids().into_iter().filter_map(|pid| Some((pid, Stat::read(pid).ok()?))).collect();
    let parents = stats.iter().map(|(pid, stat)| (*pid, stat.ppid)).collect();
    descendants(&parents, &roots)
        .into_iter()
        .filter(|(pid, _)| is_outside(*pid, below))
        .filter_map(|(pid, execution)| {
            let process = PidFd::open(pid).ok()?;
            // The same process as in the table: its number was not given away since.
            let same = Stat::read(pid).ok()?.start_ticks == stats.get(&pid)?.start_ticks;
            same.then(|| Stray { execution: execution.to_owned(), pid, process })
        })
        .collect()
}

/// Processes that bear the environment of one of the executions and are in no group of ours: to be
/// asked when the groups are empty.
pub(super) fn marked(ended: &BTreeMap<String, Ended>, below: Option<&Path>) -> Vec<Stray> {
    let mut found = Vec::new();
    let own = std::process::id();
    // It will hold values: wiped after the last look.
    let mut buffer = Zeroizing::new(vec![0; MAX_ENVIRON_BYTES]);
    for pid in proc::pids().into_iter().filter(|pid| *pid != own) {
        let Ok(process) = PidFd::open(pid) else { continue };
        let Ok(len) = proc::environ(pid, &mut buffer) else { continue };
        let environ = &buffer[..len];
        let whose = ended.iter().find(|(id, e)| bears_mark(environ, id, &e.chain));
        if let Some((id, _)) = whose
            && process.is_alive()
            && is_outside(pid, below)
        {
            found.push(Stray { execution: id.clone(), pid, process });
        }
    }
    found
}

/// Processes that bear the environment of a launch of this agent.
pub(super) fn orphans(principal: &Principal) -> Vec<(u32, PidFd)> {
    let mut found = Vec::new();
    let own = std::process::id();
    let agent = format!("STRONGROOM_AGENT={}", principal.agent);
    let mut buffer = Zeroizing::new(vec![0; MAX_ENVIRON_BYTES]);
    for pid in proc::pids().into_iter().filter(|pid| *pid != own) {
        let Ok(process) = PidFd::open(pid) else { continue };
        let Ok(len) = proc::environ(pid, &mut buffer) else { continue };
        let environ = &buffer[..len];
        if bears_mark(environ, principal.execution.as_str(), &principal.chain)
            && environ.split(|b| *b == 0).any(|entry| entry == agent.as_bytes())
            && process.is_alive()
        {
            found.push((pid, process));
        }
    }
    found
}

/// Whether a process is in none of the groups that we have made.
fn is_outside(pid: u32, below: Option<&Path>) -> bool {
    let Some(below) = below else { return true };
    proc::cgroup_path(pid).is_ok_and(|path| !path.starts_with(below))
}

/// Kills strays.
pub(super) fn kill(strays: &[Stray]) {
    for stray in strays {
        // It may have ended in this moment; one that we may not signal is found alive below.
        let _gone = stray.process.signal(Signal::SIGKILL);
    }
}

/// Those that live on at the deadline, in words.
pub(super) fn survivors(strays: &[Stray], deadline: Instant) -> BTreeSet<String> {
    let lives =
        |s: &&Stray| !s.process.exited_within(deadline.saturating_duration_since(Instant::now()));
    strays
        .iter()
        .filter(lives)
        .map(|s| format!("process {} of execution {}, outside its group", s.pid, s.execution))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_at_any_depth_and_rings_end() {
        let parents = HashMap::from([(10, 1), (11, 10), (12, 11), (20, 1), (30, 31), (31, 30)]);
        let roots = HashMap::from([(10, "run")]);
        let found = descendants(&parents, &roots);
        assert_eq!(found, BTreeMap::from([(11, "run"), (12, "run")]));
    }

    #[test]
    fn one_variable_of_an_execution_is_no_mark_of_it() {
        let mark = b"PATH=/bin\0STRONGROOM_EXECUTION=run-1\0STRONGROOM_CHAIN=c\0\
            STRONGROOM_EVENTS_DIR=/x\0";
        assert!(bears_mark(mark, "run-1", "c"));
        assert!(!bears_mark(mark, "run-2", "c"));
        assert!(!bears_mark(mark, "run-1", "d"));
        assert!(!bears_mark(b"STRONGROOM_EXECUTION=run-1\0", "run-1", "c"));
        assert!(!bears_mark(b"", "run-1", "c"));
    }
}
