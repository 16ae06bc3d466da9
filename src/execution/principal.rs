//! One run of a chain, the agents in it, and what each of them holds.
//!
//! Invariant: pins are taken when the execution starts and never change while it runs, so all its
//! agents see one set of versions.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::catalog::definition::OnFinding;
use crate::clock::Timestamp;
use crate::identity::attestor::PrincipalNumber;
use crate::redact::Level;

use super::id::ExecutionId;
use super::process::ProcessRef;

/// Superseded files that a principal keeps for handles that are open.
const MAX_EARLIER: usize = 64;

/// One run of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// Its id.
    pub id: ExecutionId,
    /// Its chain's name.
    pub chain: String,
    /// Its environment, if it has one.
    pub environment: Option<String>,
    /// Who started it.
    pub user: String,
    /// Uid of who started it.
    pub uid: u32,
    /// Where its agents run.
    pub workspace: String,
    /// Free labels of whoever started it.
    pub labels: BTreeMap<String, String>,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ends by itself.
    pub deadline: Option<Timestamp>,
    /// Whose death ends it.
    pub owner: Option<ProcessRef>,
    /// Started by `run` for one agent, and ended with it.
    pub implicit: bool,
    /// Digest of the definition that its agents run by.
    pub definition_digest: String,
    /// Versions that its agents hold, by secret id.
    pub pins: BTreeMap<String, Pin>,
    /// How it ended, if it has.
    pub ended: Option<Ended>,
}

/// The version of a secret that an execution holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Version number.
    pub version: u32,
    /// The vault's record of the value, in hex.
    pub value: String,
    /// Exact size of the value.
    pub size_bytes: u64,
    /// When the version was made.
    pub created_at: Timestamp,
    /// The generation of its group; 0 where there is none.
    #[serde(default)]
    pub generation: u32,
}

/// Why and when an execution ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// `ended`, `main process ended`, `owner died`, `deadline`, or `revoked:NAME`.
    pub reason: String,
    /// Processes of it may still live, and its end may not be on record.
    #[serde(default)]
    pub unsettled: bool,
}

/// How a principal's processes are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Membership {
    /// By their control group.
    Cgroup {
        /// Inode number of its directory.
        id: u64,
        /// The directory.
        path: PathBuf,
        /// Its path as `/proc/PID/cgroup` shows it: below the hierarchy's root.
        below: PathBuf,
    },
    /// By descent from a process: a guard rail.
    Tree {
        /// The launcher, which adopts orphans.
        root: ProcessRef,
    },
}

/// What an agent leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// Below `base`.
    pub paths: Vec<PathBuf>,
    /// What becomes of secrets in it.
    pub on_finding: OnFinding,
    /// The launcher's working directory.
    pub base: PathBuf,
}

/// One agent of one execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Its number.
    pub number: PrincipalNumber,
    /// Its execution.
    pub execution: ExecutionId,
    /// The chain, for records.
    pub chain: String,
    /// The agent's name.
    pub agent: String,
    /// The execution's environment.
    pub environment: Option<String>,
    /// Who launched it.
    pub user: String,
    /// The login uid of its launcher, which its processes inherit: not asked of each of them, since
    /// one that has none could give itself any (`audit_set_loginuid_perm` in kernel/audit.c).
    #[serde(default)]
    pub login_uid: Option<u32>,
    /// Where it runs.
    pub workspace: String,
    /// The uid that its processes have, who also owns its files.
    pub uid: u32,
    /// The group of its files.
    pub gid: u32,
    /// Further uids that may read.
    pub uids: Vec<u32>,
    /// 128 random bits in hex: the name of its directory below `.agents`.
    pub token: String,
    /// Inode of that directory.
    pub directory: u64,
    /// Inode of its `.identity`.
    pub identity: u64,
    /// How its processes are told.
    pub membership: Membership,
    /// Its files, by name.
    pub files: BTreeMap<String, File>,
    /// What files were before they followed a floating secret, or another version after a revoke:
    /// handles on them that are open stay what they were. Newest last.
    #[serde(default)]
    pub earlier: Vec<(String, File)>,
    /// When it was launched.
    pub started_at: Timestamp,
    /// Names the launch to whoever made it: 128 random bits in hex.
    pub launch: String,
    /// The process whose death ends the agent: its launcher, or the process that was attached.
    pub lifeline: Option<ProcessRef>,
    /// Processes may outlive the main one; the agent ends when none is left.
    pub keep_background: bool,
    /// Its events folder below the store.
    #[serde(default)]
    pub events_folder: String,
    /// What it leaves, to be searched when it has ended.
    #[serde(default)]
    pub outputs: Option<Outputs>,
    /// How far it is isolated: `full`, or `partial` and what is missing; none: not at all.
    #[serde(default)]
    pub isolation: Option<String>,
    /// What is looked for in what it writes there.
    #[serde(default)]
    pub redact: Level,
    /// Nobody is this agent any more, and its processes are being ended.
    #[serde(default)]
    pub ending: bool,
}

impl Principal {
    /// The file behind an inode number.
    pub fn file_by_inode(&self, inode: u64) -> Option<(&String, &File)> {
        let earlier = self.earlier.iter().map(|(name, file)| (name, file));
        self.files.iter().chain(earlier).find(|(_, file)| file.inode == inode)
    }

    /// Puts `file` in the place of the one of that name, which handles that are open keep.
    pub fn supersede(&mut self, name: &str, file: File) {
        if let Some(old) = self.files.insert(name.to_owned(), file) {
            self.earlier.push((name.to_owned(), old));
            if self.earlier.len() > MAX_EARLIER {
                self.earlier.remove(0);
            }
        }
    }

    /// Whether processes of `uid` may read.
    pub fn admits_uid(&self, uid: u32) -> bool {
        self.uid == uid || self.uids.contains(&uid)
    }
}

/// One file of a principal: a pinned version of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Inode number.
    pub inode: u64,
    /// The secret's id, in hex.
    pub secret: String,
    /// Its name with the environment, for records.
    pub key: String,
    /// Its scope, for records.
    pub scope: String,
    /// Its environment, for records.
    pub environment: Option<String>,
    /// The version.
    pub version: u32,
    /// The vault's record of the value, in hex.
    pub value: String,
    /// Exact size.
    pub size_bytes: u64,
    /// When the version was made.
    pub created_at: Timestamp,
    /// When the secret itself ends.
    pub expires_at: Option<Timestamp>,
    /// Whether each read is recorded.
    pub access_log_enabled: bool,
    /// Follows the secret's current version at each open.
    #[serde(default)]
    pub floating: bool,
}
