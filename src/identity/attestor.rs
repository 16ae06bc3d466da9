//! Turns facts into a principal: by cgroup, or by the process tree where no cgroup can be made.
//!
//! Invariant: attestors only add; where none speaks for a caller it is nobody. Danger: a process
//! tree is a guard rail, not a boundary: `doctor` says so.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::sys::proc;

use super::Facts;

/// A principal's number, unique for the life of the runtime state.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct PrincipalNumber(pub u64);

/// What is registered, as attestors need it.
pub trait Members {
    /// The principal whose cgroup has this id.
    fn by_cgroup(&self, cgroup_id: u64) -> Option<PrincipalNumber>;
    /// The principal in whose cgroup, by path below the hierarchy's root, this one lies.
    fn by_cgroup_path(&self, path: &std::path::Path) -> Option<PrincipalNumber>;
    /// The principal whose tree has this process at its root, if that process still lives.
    fn by_root(&self, pid: u32) -> Option<PrincipalNumber>;
    /// Whether any tree is registered: walking one costs a read of `/proc` per generation.
    fn has_trees(&self) -> bool;
}

/// One way of telling whose process a process is.
pub trait Attestor: Send + Sync {
    /// Its name in records and in `doctor`.
    fn name(&self) -> &'static str;
    /// The principal, if this attestor can tell.
    fn attest(&self, tid: u32, facts: &Facts, members: &dyn Members) -> Option<PrincipalNumber>;
}

/// By the cgroup of the process, or the one above it that is registered.
#[derive(Debug, Clone, Copy)]
pub struct CgroupAttestor;

impl Attestor for CgroupAttestor {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    fn attest(&self, tid: u32, facts: &Facts, members: &dyn Members) -> Option<PrincipalNumber> {
        let id = facts.cgroup_id?;
        members.by_cgroup(id).or_else(|| {
            // A group that the agent, or a container engine below it, made inside its own.
            let path: PathBuf = proc::cgroup_path(tid).ok()?;
            members.by_cgroup_path(&path)
        })
    }
}

/// By descent from a registered process. The tree's root is the launcher, which adopts orphans.
#[derive(Debug, Clone, Copy)]
pub struct TreeAttestor;

/// Deeper trees are not walked: nobody's processes nest so far by design.
const MAX_GENERATIONS: usize = 128;

impl Attestor for TreeAttestor {
    fn name(&self) -> &'static str {
        "tree"
    }

    fn attest(&self, _tid: u32, facts: &Facts, members: &dyn Members) -> Option<PrincipalNumber> {
        if !members.has_trees() {
            return None;
        }
        // Twice: an ancestor that died in between moves its children, and its id may be reused.
        let first = walk(facts.tgid, members)?;
        let second = walk(facts.tgid, members)?;
        (first == second).then_some(first.1)
    }
}

/// Ancestors up to a registered root, with their start times, and whose root it is.
fn walk(tgid: u32, members: &dyn Members) -> Option<(Vec<(u32, u64)>, PrincipalNumber)> {
    let mut chain = Vec::new();
    let mut pid = tgid;
    for _ in 0..MAX_GENERATIONS {
        let stat = proc::Stat::read(pid).ok()?;
        // A parent started before its child; else the id was reused while we looked.
        if chain.last().is_some_and(|(_, child_start)| stat.start_ticks > *child_start) {
            return None;
        }
        chain.push((pid, stat.start_ticks));
        if let Some(number) = members.by_root(pid) {
            return Some((chain, number));
        }
        pid = stat.ppid;
        if pid <= 1 {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    struct One {
        cgroup: u64,
        path: &'static str,
        root: u32,
    }

    impl Members for One {
        fn by_cgroup(&self, cgroup_id: u64) -> Option<PrincipalNumber> {
            (cgroup_id == self.cgroup).then_some(PrincipalNumber(1))
        }
        fn by_cgroup_path(&self, path: &Path) -> Option<PrincipalNumber> {
            path.starts_with(self.path).then_some(PrincipalNumber(2))
        }
        fn by_root(&self, pid: u32) -> Option<PrincipalNumber> {
            (pid == self.root).then_some(PrincipalNumber(3))
        }
        fn has_trees(&self) -> bool {
            self.root != 0
        }
    }

    fn facts(tgid: u32, cgroup_id: u64) -> Facts {
        Facts { tgid, cgroup_id: Some(cgroup_id) }
    }

    #[test]
    fn a_registered_group_is_told_by_its_id_and_another_is_not() {
        let members = One { cgroup: 7, path: "/nowhere", root: 0 };
        let me = std::process::id();
        assert_eq!(CgroupAttestor.attest(me, &facts(me, 7), &members), Some(PrincipalNumber(1)));
        assert_eq!(CgroupAttestor.attest(me, &facts(me, 8), &members), None);
    }

    #[test]
    fn a_descendant_of_the_root_belongs_to_it_and_a_stranger_does_not() {
        let me = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let members = One { cgroup: 0, path: "/nowhere", root: me };
        let of_child = TreeAttestor.attest(child.id(), &facts(child.id(), 1), &members);
        let stranger = TreeAttestor.attest(1, &facts(1, 1), &members);
        let elsewhere = One { cgroup: 0, path: "/nowhere", root: child.id() };
        let of_me = TreeAttestor.attest(me, &facts(me, 1), &elsewhere);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of_child, Some(PrincipalNumber(3)));
        assert_eq!(stranger, None);
        assert_eq!(of_me, None);
    }
}
