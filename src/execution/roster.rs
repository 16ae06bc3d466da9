//! Executions, principals and inodes in memory, each by everything that it is asked for by.
//!
//! Invariant: a principal can be found by its processes exactly while its execution runs and its own
//! end has not begun; its inodes stay, so that what is still open is refused and not mistaken.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::identity::attestor::PrincipalNumber;
use crate::sys::pidfd::PidFd;

use super::id::ExecutionId;
use super::principal::{Execution, Membership, Principal};

/// What an inode of the journal stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretInode {
    /// The vault's record of the value, in hex.
    pub value: String,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Exact size.
    pub size_bytes: u64,
    /// When the version was made.
    pub created_at: Timestamp,
}

/// What an inode number is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inode {
    /// A principal's directory.
    Directory(PrincipalNumber),
    /// A principal's `.identity`.
    Identity(PrincipalNumber),
    /// A version as a file of one owner.
    Secret(Arc<SecretInode>),
}

/// See the module.
#[derive(Default)]
pub(super) struct Roster {
    pub(super) executions: BTreeMap<ExecutionId, Arc<Execution>>,
    pub(super) principals: HashMap<PrincipalNumber, Arc<Principal>>,
    pub(super) by_cgroup: HashMap<u64, PrincipalNumber>,
    pub(super) by_path: BTreeMap<PathBuf, PrincipalNumber>,
    pub(super) by_root: HashMap<u32, (PrincipalNumber, Arc<PidFd>)>,
    pub(super) by_token: HashMap<String, u64>,
    pub(super) inodes: HashMap<u64, Inode>,
    pub(super) secret_inodes: HashMap<(String, u32), u64>,
    /// Running executions that are pinned to a value.
    pub(super) held: HashMap<String, BTreeSet<ExecutionId>>,
    pub(super) next_number: u64,
}

impl Roster {
    pub(super) fn insert_execution(&mut self, execution: Execution) -> Arc<Execution> {
        if let Some(old) = self.executions.get(&execution.id).cloned() {
            for pin in old.pins.values() {
                if let Some(holders) = self.held.get_mut(&pin.value) {
                    holders.remove(&old.id);
                    if holders.is_empty() {
                        self.held.remove(&pin.value);
                    }
                }
            }
        }
        if execution.ended.is_none() {
            for pin in execution.pins.values() {
                self.held.entry(pin.value.clone()).or_default().insert(execution.id.clone());
            }
        }
        let execution = Arc::new(execution);
        self.executions.insert(execution.id.clone(), execution.clone());
        execution
    }

    pub(super) fn insert_secret_inode(&mut self, number: u64, secret: SecretInode) {
        self.secret_inodes.insert((secret.value.clone(), secret.uid), number);
        self.inodes.insert(number, Inode::Secret(Arc::new(secret)));
    }

    pub(super) fn insert_principal(&mut self, principal: Principal) -> Arc<Principal> {
        let number = principal.number;
        let principal = Arc::new(principal);
        self.inodes.insert(principal.directory, Inode::Directory(number));
        self.inodes.insert(principal.identity, Inode::Identity(number));
        self.by_token.insert(principal.token.clone(), principal.directory);
        let ended = self.executions.get(&principal.execution).is_none_or(|e| e.ended.is_some());
        if ended || principal.ending {
            return principal;
        }
        match &principal.membership {
            Membership::Cgroup { id, below, .. } => {
                self.by_cgroup.insert(*id, number);
                self.by_path.insert(below.clone(), number);
            }
            Membership::Tree { root } => {
                // A root that is gone, or another process under its id, roots nothing.
                if let Some(pidfd) = root.find() {
                    self.by_root.insert(root.pid, (number, Arc::new(pidfd)));
                }
            }
        }
        self.principals.insert(number, principal.clone());
        principal
    }

    pub(super) fn remove_principal(&mut self, number: PrincipalNumber) -> Option<Arc<Principal>> {
        let principal = self.principals.remove(&number)?;
        match &principal.membership {
            Membership::Cgroup { id, below, .. } => {
                self.by_cgroup.remove(id);
                self.by_path.remove(below);
            }
            Membership::Tree { root } => {
                self.by_root.remove(&root.pid);
            }
        }
        Some(principal)
    }
}
