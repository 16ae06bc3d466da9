//! `events list`, `path` and `prune`, and the end of what `[events] keep` says.
//!
//! Invariant: a folder goes only while no execution that uses it runs and no file in it is open; its
//! record is written first. Danger: a launch between the look and the removal; launches wait
//! meanwhile.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::record::Event;
use crate::broker::Refusal;
use crate::catalog::name::ChainName;
use crate::clock::Timestamp;
use crate::config::{EventsLevel, Permission};
use crate::control::Caller;
use crate::events::{KeptFolder, folder_of};
use crate::execution::id::ExecutionId;
use crate::execution::principal::Execution;
use crate::proto::{self, Code, Problem};
use crate::redact::Level;

use super::secrets::parse;
use super::{Daemon, user_of};

/// Between two looks for folders whose time is over, at most.
const MAX_INTERVAL: Duration = Duration::from_secs(600);
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// So many files of a shared folder go while launches wait.
const AT_ONCE: usize = 64;

/// Who lets folders go.
struct Pruner<'a> {
    user: Option<&'a str>,
    uid: Option<u32>,
    reason: String,
}

/// What of the engine the configuration asks for.
pub(super) fn level_of(level: EventsLevel) -> Level {
    match level {
        EventsLevel::All => Level::All,
        EventsLevel::Formats => Level::Formats,
        EventsLevel::Values => Level::Values,
    }
}

fn store_problem(refusal: Refusal) -> Problem {
    Problem::new(Code::Internal, format!("the event store cannot be read: {refusal}"))
        .with_hint("strongroom config show tells where it is; check its owner and mode")
}

fn matches(filter: Option<&str>, value: Option<&str>) -> bool {
    filter.is_none_or(|wanted| wanted == value.unwrap_or("-"))
}

impl Daemon {
    /// Where an execution's events go, below the store.
    pub(super) fn events_folder(&self, execution: &Execution) -> Result<String, Problem> {
        let name: ChainName = parse(&execution.chain)?;
        let shared = self.core.catalog().chain(&name).is_some_and(|c| c.definition.shared_events);
        let id = (!shared).then(|| execution.id.as_str());
        Ok(folder_of(&execution.chain, execution.environment.as_deref(), id))
    }

    /// Folders that those that run use, or may come to use: of a locked vault, the definition that
    /// says which is not known.
    fn used_folders(&self) -> HashSet<String> {
        let mut used = HashSet::new();
        for execution in self.registry.executions().iter().filter(|e| e.ended.is_none()) {
            for id in [Some(execution.id.as_str()), None] {
                used.insert(folder_of(&execution.chain, execution.environment.as_deref(), id));
            }
        }
        used.extend(self.registry.principals().iter().map(|p| p.events_folder.clone()));
        used
    }

    fn folder_shown(&self, kept: &KeptFolder, used: &HashSet<String>) -> proto::EventsFolder {
        let live = used.contains(&kept.folder) || self.events.is_busy(&kept.folder);
        proto::EventsFolder {
            chain: kept.chain.clone(),
            environment: kept.environment.clone(),
            execution: kept.execution.clone(),
            path: self.events.directory_of(&kept.folder).display().to_string(),
            exists: true,
            state: if live { "live" } else { "ended" }.to_owned(),
            files: kept.files,
            bytes: kept.bytes,
            changed_at: Some(kept.changed),
        }
    }

    fn sees_events(who: &Caller, chain: &str, environment: Option<&str>) -> bool {
        [Permission::Launch, Permission::Operate, Permission::Audit]
            .into_iter()
            .any(|permission| who.may_in(permission, Some(chain), environment))
    }

    pub(super) fn list_events(
        &self,
        who: &Caller,
        req: &proto::EventsList,
    ) -> Result<proto::EventsListed, Problem> {
        let mut kept = self.events.kept().map_err(store_problem)?;
        kept.retain(|k| {
            matches(req.chain.as_deref(), Some(&k.chain))
                && matches(req.environment.as_deref(), k.environment.as_deref())
                && Self::sees_events(who, &k.chain, k.environment.as_deref())
        });
        sort(&mut kept);
        let used = self.used_folders();
        Ok(proto::EventsListed {
            dir: self.events.path().display().to_string(),
            folders: kept.iter().map(|k| self.folder_shown(k, &used)).collect(),
        })
    }

    pub(super) fn path_of_events(
        &self,
        who: &Caller,
        req: &proto::EventsPath,
    ) -> Result<proto::EventsFolder, Problem> {
        let id: ExecutionId = parse(&req.execution).map_err(|problem: Problem| {
            problem.with_hint("strongroom events list and execution list show ids")
        })?;
        let fits = |chain: &str, environment: Option<&str>| {
            matches(req.chain.as_deref(), Some(chain))
                && matches(req.environment.as_deref(), environment)
                && Self::sees_events(who, chain, environment)
        };
        let mut folders: BTreeMap<String, proto::EventsFolder> = BTreeMap::new();
        let used = self.used_folders();
        let known = self.registry.execution(&id);
        if let Some(execution) = known.filter(|e| fits(&e.chain, e.environment.as_deref())) {
            // Where its agents are, should the definition say otherwise now.
            let folder = match self.registry.principals_of(&id).first() {
                Some(principal) => principal.events_folder.clone(),
                None => self.events_folder(&execution)?,
            };
            let shown = match self.events.kept_in(&folder) {
                Ok(kept) => self.folder_shown(&kept, &used),
                Err(_) => proto::EventsFolder {
                    chain: execution.chain.clone(),
                    environment: execution.environment.clone(),
                    execution: Some(id.to_string()),
                    path: self.events.directory_of(&folder).display().to_string(),
                    exists: false,
                    state: if execution.ended.is_none() { "live" } else { "ended" }.to_owned(),
                    files: 0,
                    bytes: 0,
                    changed_at: None,
                },
            };
            return Ok(shown);
        }
        // Of an earlier daemon's: the store alone remembers it.
        for kept in self.events.kept().map_err(store_problem)? {
            if kept.execution.as_deref() == Some(id.as_str())
                && fits(&kept.chain, kept.environment.as_deref())
            {
                folders.insert(kept.folder.clone(), self.folder_shown(&kept, &used));
            }
        }
        if folders.len() > 1 {
            let places: Vec<_> = folders.into_keys().collect();
            let what = format!("several executions had the id {id}: {}", places.join(", "));
            return Err(Problem::new(Code::Ambiguous, what)
                .with_hint("say which with --chain and --env (- for none)"));
        }
        folders.into_values().next().ok_or_else(|| {
            Problem::new(Code::NotFound, format!("there is no execution {id}, and no folder of it"))
                .with_hint("strongroom events list shows what is there")
        })
    }

    pub(super) fn prune_events(
        &self,
        who: &Caller,
        req: &proto::EventsPrune,
    ) -> Result<proto::EventsPruned, Problem> {
        let reason = match (&req.older_than, req.keep) {
            (None, None) => {
                return Err(Problem::new(Code::Invalid, "nothing says what is to go")
                    .with_hint("give --older-than 30d, --keep 20, or both"));
            }
            (Some(age), None) => format!("older than {age}"),
            (None, Some(keep)) => format!("all but the newest {keep}"),
            (Some(age), Some(keep)) => format!("older than {age}, all but the newest {keep}"),
        };
        let may = |kept: &KeptFolder| {
            matches(req.chain.as_deref(), Some(&kept.chain))
                && matches(req.environment.as_deref(), kept.environment.as_deref())
                && who.may_in(Permission::Operate, Some(&kept.chain), kept.environment.as_deref())
        };
        let user = user_of(who.peer.uid);
        let pruner = Pruner { user: Some(&user), uid: Some(who.peer.uid), reason };
        self.prune(&pruner, (req.older_than.map(|p| p.0), req.keep), req.dry_run, may)
    }

    fn prune(
        &self,
        pruner: &Pruner<'_>,
        (older_than, keep): (Option<Duration>, Option<u64>),
        dry_run: bool,
        may: impl Fn(&KeptFolder) -> bool,
    ) -> Result<proto::EventsPruned, Problem> {
        let now = self.core.clock.now();
        let before = match older_than {
            None => None,
            Some(age) => Some(now.checked_sub(age).map_err(|_| {
                Problem::new(Code::Invalid, "nothing can be that old").with_hint("--older-than 30d")
            })?),
        };
        let mut kept = self.events.kept().map_err(store_problem)?;
        kept.retain(|k| may(k));
        sort(&mut kept);
        let used = self.used_folders();
        let mut outcome = proto::EventsPruned {
            dry_run,
            folders: Vec::new(),
            files: 0,
            bytes: 0,
            left: Vec::new(),
        };
        let mut newer: BTreeMap<(&str, Option<&str>), u64> = BTreeMap::new();
        for folder in &kept {
            let shown = self.folder_shown(folder, &used);
            let gone = match &folder.execution {
                Some(_) => {
                    let newer =
                        newer.entry((&folder.chain, folder.environment.as_deref())).or_default();
                    if shown.state != "ended" {
                        continue;
                    }
                    *newer += 1;
                    let is_over = before.is_none_or(|before| folder.changed < before)
                        && keep.is_none_or(|keep| *newer > keep);
                    if !is_over {
                        continue;
                    }
                    if dry_run { Ok(shown) } else { self.prune_folder(pruner, folder, shown) }
                }
                None => {
                    let Some(before) = before.filter(|_| shown.state == "ended") else { continue };
                    self.prune_files(pruner, folder, shown, before, dry_run)
                }
            };
            match gone {
                Ok(gone) if folder.execution.is_none() && gone.files == 0 => {}
                Ok(gone) => {
                    outcome.files += gone.files;
                    outcome.bytes += gone.bytes;
                    outcome.folders.push(gone);
                }
                Err(problem) => {
                    let path = self.events.directory_of(&folder.folder);
                    outcome.left.push(format!("{}: {}", path.display(), problem.detail));
                }
            }
        }
        if !dry_run && let Err(error) = self.events.sweep() {
            outcome.left.push(format!("some pruned files are still being removed: {error}"));
        }
        Ok(outcome)
    }

    fn record_pruned(
        &self,
        pruner: &Pruner<'_>,
        folder: &KeptFolder,
        files: u64,
    ) -> Result<(), Problem> {
        let mut record = self.core.new_record(Event::EventsPruned);
        record.chain = Some(&folder.chain);
        record.environment = folder.environment.as_deref();
        record.execution = folder.execution.as_deref();
        record.user = pruner.user;
        record.uid = pruner.uid;
        record.reason = Some(&pruner.reason);
        record.count = Some(files);
        self.core.record(&record).map(drop)
    }

    /// Nobody may start while this runs.
    fn check_unused(&self, folder: &str) -> Result<(), Problem> {
        if self.used_folders().contains(folder) || self.events.is_busy(folder) {
            return Err(Problem::new(Code::Busy, "an execution has begun to use it"));
        }
        Ok(())
    }

    fn prune_folder(
        &self,
        pruner: &Pruner<'_>,
        folder: &KeptFolder,
        shown: proto::EventsFolder,
    ) -> Result<proto::EventsFolder, Problem> {
        let _launching = self.launching.write().unwrap_or_else(PoisonError::into_inner);
        self.check_unused(&folder.folder)?;
        self.record_pruned(pruner, folder, folder.files)?;
        self.events
            .take_out(folder)
            .map_err(|refusal| Problem::new(Code::Internal, refusal.to_string()))?;
        Ok(shown)
    }

    /// Old files of a folder that many executions share.
    fn prune_files(
        &self,
        pruner: &Pruner<'_>,
        folder: &KeptFolder,
        mut shown: proto::EventsFolder,
        before: Timestamp,
        dry_run: bool,
    ) -> Result<proto::EventsFolder, Problem> {
        let failed = |refusal: Refusal| Problem::new(Code::Internal, refusal.to_string());
        let old = self.events.older(&folder.folder, before).map_err(failed)?;
        (shown.files, shown.bytes) = (old.len() as u64, old.iter().map(|(_, bytes)| bytes).sum());
        if dry_run || old.is_empty() {
            return Ok(shown);
        }
        self.record_pruned(pruner, folder, old.len() as u64)?;
        (shown.files, shown.bytes) = (0, 0);
        for files in old.chunks(AT_ONCE) {
            let _launching = self.launching.write().unwrap_or_else(PoisonError::into_inner);
            self.check_unused(&folder.folder)?;
            for (file, _) in files {
                let bytes = self.events.remove_file(&folder.folder, file).map_err(failed)?;
                shown.files += u64::from(bytes.is_some());
                shown.bytes += bytes.unwrap_or(0);
            }
        }
        Ok(shown)
    }

    /// Lets go what `[events] keep` says, when it is time to look.
    pub(super) fn keep_stored(self: &Arc<Self>) {
        let Some(keep) = self.config.events.keep else { return };
        let interval = (keep.0 / 10).clamp(MIN_INTERVAL, MAX_INTERVAL);
        {
            let mut due = self.pruned_at.lock().unwrap_or_else(PoisonError::into_inner);
            if due.is_some_and(|at| at.elapsed() < interval) {
                return;
            }
            *due = Some(Instant::now());
        }
        let daemon = self.clone();
        // Many files take their time: not in the way of deadlines.
        let started = std::thread::Builder::new().name("prune".into()).spawn(move || {
            let reason = format!("[events] keep = {keep}");
            let pruner = Pruner { user: None, uid: None, reason };
            match daemon.prune(&pruner, (Some(keep.0), None), false, |_| true) {
                Ok(pruned) => {
                    for left in pruned.left {
                        tracing::warn!(left, "an events folder could not be pruned");
                    }
                }
                Err(error) => tracing::warn!(%error, "the event store could not be pruned"),
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to prune the event store");
        }
    }
}

/// By chain and environment, the newest first.
fn sort(kept: &mut [KeptFolder]) {
    kept.sort_by(|a, b| {
        (&a.chain, &a.environment, b.changed).cmp(&(&b.chain, &b.environment, a.changed))
    });
}
