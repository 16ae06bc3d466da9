//! Isolation: an agent that sees and reaches its own processes alone, and nothing of the vault.
//!
//! It gets pid and mount namespaces of its own, where the launcher is not root a user namespace as
//! well, its own `/proc`, and Landlock's scopes for signals and abstract sockets. The vault's
//! directories, the control socket and the shared part of the mount are covered, and control groups
//! read-only. Whatever it executes gains no rights.
//!
//! Invariant: what could not be had is told before the agent runs, and what was told is what holds, or
//! it does not run. Danger: a way around a cover: a working directory below it, a user's service
//! manager that starts processes elsewhere. See pid_namespaces(7), user_namespaces(7), landlock(7).
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use landlock::{Access, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::config::{Config, Paths, UnlockMethod};
use crate::proto::{Hold, Isolation};
use crate::sys::isolate as system;
use crate::sys::mount;
use crate::sys::process::{self, Namespaces};

use super::host::Bind;

/// What isolated agents do not see, and in which namespaces they are born.
#[derive(Debug, Clone)]
pub struct Isolate {
    namespaces: Namespaces,
    /// Uid and gid of the launcher, as they are outside.
    own: (u32, u32),
    /// Directories and files; none lies beneath another, all links followed.
    hidden: Vec<PathBuf>,
    /// What the launch has on record: what the agent has to find.
    achieved: Isolation,
    /// Processes may outlive the command.
    pub keep_background: bool,
}

/// A step that failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// Which.
    pub(super) step: &'static str,
    /// What the system said.
    pub(super) source: io::Error,
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> Failed {
    move |source| Failed { step, source }
}

/// Paths of ours, and of what would start processes outside for whoever asks.
fn to_be_hidden(paths: &Paths, config: &Config, uid: u32) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = [
        &paths.state_dir,
        &paths.runtime_dir,
        &paths.config_file,
        &paths.audit_dir,
        &paths.events_dir,
        &paths.mount,
    ]
    .into_iter()
    .cloned()
    .collect();
    if config.unlock.method == Some(UnlockMethod::KeyFile) {
        all.extend(config.unlock.path.as_deref().map(|path| paths.beside_config(path)));
    }
    let runtime = PathBuf::from(format!("/run/user/{uid}"));
    all.extend(["bus", "systemd"].map(|name| runtime.join(name)));
    // A cover belongs over what a path leads to; what is not there needs none.
    let mut found: Vec<PathBuf> = all.iter().filter_map(|path| path.canonicalize().ok()).collect();
    found.sort();
    found.dedup();
    let every = found.clone();
    found.retain(|path| !every.iter().any(|other| other != path && path.starts_with(other)));
    found
}

impl Isolate {
    /// Tries it out in a child that ends at once, for an agent of `uid`: what this host gives.
    ///
    /// # Errors
    /// Where it gives no namespaces, or a cover cannot be put.
    pub fn try_out(paths: &Paths, config: &Config, uid: u32) -> io::Result<Self> {
        let own = nix::unistd::geteuid();
        let namespaces =
            if own.is_root() { Namespaces::PidAndMount } else { Namespaces::UserPidAndMount };
        let hidden = to_be_hidden(paths, config, uid);
        let nothing = Isolation { holds: Hold::None, why: None };
        let mut isolate = Self {
            namespaces,
            own: (own.as_raw(), nix::unistd::getegid().as_raw()),
            hidden,
            achieved: nothing,
            keep_background: false,
        };
        let (reading, writing) = io::pipe()?;
        let child = process::spawn(None, namespaces, || {
            let told = isolate
                .enter(None)
                .and_then(|missing| isolate.close(uid, missing))
                .map_err(|error| io::Error::other(format!("{}: {}", error.step, error.source)));
            let text = match told {
                Ok(achieved) => serde_json::to_vec(&achieved).unwrap_or_default(),
                Err(error) => format!("!{error}").into_bytes(),
            };
            let _told = (&writing).write_all(&text);
            process::leave(0)
        })?;
        drop(writing);
        let mut text = Vec::new();
        let read = reading.take(4096).read_to_end(&mut text);
        waitpid(Pid::from_raw(child.pid.cast_signed()), None)?;
        read?;
        if let Some(why) = text.strip_prefix(b"!") {
            return Err(io::Error::other(String::from_utf8_lossy(why).into_owned()));
        }
        isolate.achieved = serde_json::from_slice(&text).map_err(io::Error::other)?;
        Ok(isolate)
    }

    /// What it achieves here.
    pub fn achieved(&self) -> &Isolation {
        &self.achieved
    }

    /// Whether a path lies where the agent sees an empty directory of its own.
    pub(super) fn hides(&self, path: &Path) -> bool {
        self.hidden.iter().any(|hidden| path != hidden && path.starts_with(hidden))
    }

    /// Whether what was achieved is what is on record.
    pub(super) fn is_as_told(&self, found: &Isolation) -> bool {
        *found == self.achieved
    }

    pub(super) fn namespaces(&self) -> Namespaces {
        self.namespaces
    }

    /// In the child, as whoever launched it: its mounts. What is missing.
    pub(super) fn enter(&self, bind: Option<Bind<'_>>) -> Result<Vec<&'static str>, Failed> {
        let mut missing = Vec::new();
        if self.namespaces == Namespaces::UserPidAndMount {
            let (uid, gid) = self.own;
            system::map_own_user(uid, gid).map_err(failed("the map of users"))?;
        }
        let directory = std::env::current_dir();
        system::keep_mounts_here().map_err(failed("mounts of its own"))?;
        let tree = bind.map(|bind| system::take_tree(bind.from)).transpose();
        let tree = tree.map_err(failed("the agent's secrets"))?;
        let target = bind.map(|bind| bind.to);
        let covered = self.cover(target).map_err(failed("a cover over the vault"))?;
        if let Some(target) = target {
            fs::create_dir_all(target).map_err(failed("the place of the agent's secrets"))?;
        }
        for path in covered {
            system::make_read_only(path).map_err(failed("a cover over the vault"))?;
        }
        if let (Some(tree), Some(target)) = (tree, target) {
            tree.attach(target).map_err(failed("the agent's secrets"))?;
        }
        if system::mount_own_proc().is_err() {
            missing.push("the host's /proc shows through");
        }
        let groups = mount::table().unwrap_or_default();
        let groups = groups.iter().filter(|m| matches!(m.fs_type.as_str(), "cgroup" | "cgroup2"));
        if groups.map(|m| system::make_read_only(&m.mount_point)).any(|done| done.is_err()) {
            missing.push("control groups stay writable for their owner");
        }
        // The one that was inherited may lie beneath a cover.
        let home = directory.and_then(std::env::set_current_dir);
        home.or_else(|_| std::env::set_current_dir("/")).map_err(failed("a working directory"))?;
        Ok(missing)
    }

    /// Covers everything but the place of the agent's own secrets; the directories that are covered.
    fn cover(&self, target: Option<&Path>) -> io::Result<Vec<&PathBuf>> {
        let (dirs, files): (Vec<_>, Vec<_>) = self
            .hidden
            .iter()
            .filter(|path| Some(path.as_path()) != target)
            .partition(|path| path.is_dir());
        for dir in &dirs {
            system::cover(dir)?;
        }
        let Some(first) = dirs.first().filter(|_| !files.is_empty()) else { return Ok(dirs) };
        let empty = first.join("empty");
        File::create(&empty)?;
        for file in files {
            system::cover_file(&empty, file)?;
        }
        fs::remove_file(empty)?;
        Ok(dirs)
    }

    /// In the child, as the agent's user: the doors that are closed for good. What was achieved.
    pub(super) fn close(
        &self,
        uid: u32,
        mut missing: Vec<&'static str>,
    ) -> Result<Isolation, Failed> {
        system::gain_no_rights().map_err(failed("no new rights"))?;
        let landlock = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .scope(Scope::from_all(landlock::ABI::V6))
            .and_then(Ruleset::create)
            .and_then(landlock::RulesetCreated::restrict_self);
        match landlock.map(|status| status.ruleset) {
            Ok(RulesetStatus::FullyEnforced) => {}
            _ => missing.push("no Landlock scopes in this kernel (Linux 6.12)"),
        }
        if uid == 0 {
            missing.push("the agent is root");
            system::drop_roots_capabilities().map_err(failed("root's capabilities"))?;
        } else {
            system::drop_capabilities().map_err(failed("capabilities"))?;
        }
        Ok(match missing.is_empty() {
            true => Isolation { holds: Hold::Full, why: None },
            false => Isolation { holds: Hold::Partial, why: Some(missing.join("; ")) },
        })
    }

    /// The launcher's own death ends the agent, unless its processes may outlive it.
    pub(super) fn end_with_launcher(&self) -> io::Result<()> {
        if self.keep_background {
            return Ok(());
        }
        process::signal_on_parent_death(Signal::SIGKILL)
    }
}
