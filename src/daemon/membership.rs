//! Where an agent's processes are: the cgroup that is made for it, and how far that tells them.
//!
//! Danger: a group that an earlier daemon left, with processes in it that would become this agent.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::catalog::name::AgentName;
use crate::execution::id::ExecutionId;
use crate::execution::principal::{Membership, Principal};
use crate::identity::attestor::PrincipalNumber;
use crate::proto::Hold;
use crate::sys::cgroup::{self, Cgroup};

use super::Daemon;
use super::ending::KILL_LIMIT;

/// Of a group that ends of agents remove meanwhile; each try can lose to one end.
const MAX_TRIES: u32 = 1000;

impl Daemon {
    /// How far the principal's identity holds, and why not further.
    pub(super) fn identity_of(&self, principal: &Principal) -> (Hold, Option<String>) {
        match principal.membership {
            Membership::Tree { .. } => (
                Hold::Partial,
                Some(
                    "identity by process tree: a guard rail, not a boundary between processes of \
                     one user"
                        .to_owned(),
                ),
            ),
            Membership::Cgroup { .. } if principal.uid == 0 && principal.isolation.is_some() => (
                Hold::Partial,
                Some(
                    "identity partial: the agent is root, and what it writes on the host may act \
                     for it; use --as USER"
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
    pub(super) fn make_cgroup(
        &self,
        execution: &ExecutionId,
        agent: &AgentName,
        number: PrincipalNumber,
    ) -> Option<Cgroup> {
        let root = self.cgroup_root.as_ref()?;
        let leaf = format!("{agent}.{}", number.0);
        match make(root, execution.as_str(), &leaf) {
            Ok(group) => Some(group),
            Err(error) => {
                tracing::warn!(%error, "no cgroup can be made; identity is by process tree");
                None
            }
        }
    }
}

/// Makes a leaf in the group of its execution. The end of the execution's agent before removes that
/// group once it is empty, at any moment between its making and the leaf's.
fn make(root: &Path, execution: &str, leaf: &str) -> io::Result<Cgroup> {
    let parent = root.join(execution);
    let leaf = parent.join(leaf);
    let mut tries = 0;
    loop {
        let made = Cgroup::create(root)
            .and_then(|_| Cgroup::create(&parent))
            .and_then(|_| Cgroup::create(&leaf))
            .and_then(|group| vacated(group, &leaf));
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MAX_TRIES => {
                tries += 1;
            }
            made => return made,
        }
    }
}

/// Numbers begin anew with each keeper: who is left in a group of an earlier one must not become
/// this agent, and is ended, as its execution was.
fn vacated(group: Cgroup, path: &Path) -> io::Result<Cgroup> {
    if group.empty_within(Duration::ZERO) {
        return Ok(group);
    }
    group.kill()?;
    if !group.empty_within(KILL_LIMIT) {
        return Err(io::Error::other("a process of an earlier daemon holds the group"));
    }
    // Another id: what was cached of the old one is of nobody.
    group.remove()?;
    Cgroup::create(path)
}

/// The path as `/proc/PID/cgroup` shows it.
pub(super) fn below_hierarchy(path: &Path) -> PathBuf {
    cgroup::hierarchy_root()
        .ok()
        .and_then(|root| path.strip_prefix(root).ok().map(|p| Path::new("/").join(p)))
        .unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_group_is_made_while_the_end_of_another_agent_removes_the_executions() {
        let root = cgroup::hierarchy_root().ok();
        let root = root.map(|root| root.join(format!("strongroom-make-{}", std::process::id())));
        let Some(root) = root.filter(|root| Cgroup::create(root).is_ok()) else {
            assert_ne!(std::env::var("REQUIRE_ALL_TESTS").as_deref(), Ok("1"));
            eprintln!("NOT RUN: no cgroup can be made here");
            return;
        };
        let over = AtomicBool::new(false);
        let failed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _removed = std::fs::remove_dir(root.join("e"));
                }
            });
            let failed: Vec<_> = (0..2000)
                .filter_map(|_| make(&root, "e", "A.1").and_then(|group| group.remove()).err())
                .collect();
            over.store(true, Ordering::Relaxed);
            failed
        });
        let _removed = std::fs::remove_dir(root.join("e"));
        std::fs::remove_dir(&root).unwrap();
        assert!(failed.is_empty(), "{failed:?}");
    }
}
