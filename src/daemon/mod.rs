//! What the verbs of the control interface do.
//!
//! Invariant: a change is stored before it is acknowledged and recorded before the answer; an agent
//! is registered before it runs. Each file holds the verbs of one noun.
#![forbid(unsafe_code)]

mod account;
pub mod alert;
mod allow;
mod api;
pub mod around;
mod attach;
mod chains;
mod checkpoint;
mod chore;
mod confirm;
pub mod core;
mod ending;
mod events;
mod executions;
mod explain;
mod exposures;
mod generate;
mod groups;
mod import;
pub mod inspect;
mod intent;
pub mod keys;
mod launch;
mod membership;
pub mod needles;
pub mod news;
mod output;
mod outputs;
mod policy;
mod probes;
mod projects;
mod repeat;
mod resolution;
mod revoke;
mod revoked;
mod right;
mod rotate;
mod rotation;
mod said;
mod search;
mod secrets;
mod settle;
mod step;
mod strays;
mod tickets;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use crate::broker::local::Local;
use crate::clock::Timestamp;
use crate::config::{Config, Paths};
use crate::events::Events;
use crate::execution::registry::{Registry, Unfinished};
use crate::execution::state::State;
use crate::fs::tree::Tree;
use crate::fuse::adapter::Alarms;
use crate::proto::Hold;
use crate::sys::process::Achieved;
use crate::sys::shm::Region;

use self::core::Core;
use self::probes::Tried;

/// For `status` and `health`.
pub const NAME_AND_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Between two looks at deadlines and deaths.
const HOUSEKEEPING: Duration = Duration::from_millis(100);

/// How long the end of an agent waits for its files to be complete, at most.
const EVENTS_PATIENCE: Duration = Duration::from_secs(20);

/// The broker of this host.
pub type LocalBroker = Local<Core, Core>;

/// Parts that the composition root puts together.
pub struct Parts {
    /// Where things are.
    pub paths: Paths,
    /// How things are.
    pub config: Config,
    /// The runtime state.
    pub state: State,
    /// The keeper's box for the root key.
    pub key_box: Region,
    /// Executions and principals.
    pub registry: Arc<Registry>,
    /// Vault, catalog, audit.
    pub core: Arc<Core>,
    /// The mount's tree.
    pub tree: Arc<Tree<LocalBroker>>,
    /// Panics of the mount.
    pub alarms: Arc<Alarms>,
    /// What agents may write to.
    pub events: Arc<Events>,
    /// What that needs of the rest.
    pub around: Arc<around::Around>,
    /// Where cgroups of executions are made, where they can be.
    pub cgroup_root: Option<PathBuf>,
    /// Whether the kernel repeats requests to a new worker.
    pub resend: bool,
    /// How far hardening went.
    pub hardening: Vec<(&'static str, Achieved)>,
    /// Where the keeper reads how things are.
    pub news: Option<std::fs::File>,
}

/// The daemon behind its interface.
pub struct Daemon {
    paths: Paths,
    config: Config,
    state: State,
    key_box: Region,
    registry: Arc<Registry>,
    core: Arc<Core>,
    tree: Arc<Tree<LocalBroker>>,
    alarms: Arc<Alarms>,
    events: Arc<Events>,
    around: Arc<around::Around>,
    cgroup_root: Option<PathBuf>,
    resend: bool,
    hardening: BTreeMap<String, Hold>,
    started_at: Timestamp,
    stopping: AtomicBool,
    /// Held over an attempt to unlock.
    unlocking: Mutex<()>,
    /// Who showed the passphrase again.
    confirmed: Mutex<confirm::Confirmed>,
    /// Held over the redemption of a ticket.
    redeeming: Mutex<()>,
    /// Held for reading over a launch, for writing while a revoke decides who had a value. Taken
    /// before the catalog and the registry.
    launching: RwLock<()>,
    /// One revoke at a time.
    revoking: Mutex<()>,
    /// What is still to be ended of what an earlier worker had begun to end, or is to be recorded of
    /// it. Held while that is done.
    unfinished: Mutex<Unfinished>,
    /// Whether versions may have to change their stage, so that nobody waits for the next look.
    unsettled: AtomicBool,
    /// Secrets and groups whose rotation chain runs, and chores that run.
    rotating: Mutex<BTreeSet<String>>,
    /// What is to be run later, as the vault has it; none: not read yet.
    chores: Mutex<Option<Vec<chore::Chore>>>,
    /// Held over a look at what was asked under a key.
    repeating: Mutex<()>,
    /// Held over the storing of exposures: whoever waits for it finds its own stored.
    storing: Mutex<()>,
    /// Agents whose outputs are being searched.
    searching: outputs::Searching,
    /// Where alerts go.
    alerts: alert::Alerts,
    /// Keys and due times of checkpoints.
    seal: Mutex<checkpoint::Seal>,
    /// Where the keeper reads how things are, and what it was told last.
    news: Mutex<news::News>,
    /// When the event store was last looked through for what may go.
    pruned_at: Mutex<Option<std::time::Instant>>,
    /// When versions and policies were last looked at.
    looked_at: Mutex<Option<std::time::Instant>>,
}

impl Daemon {
    /// Puts the parts together; the vault is unlocked where no person is needed for it.
    pub fn new(parts: Parts) -> Self {
        let started_at = parts.core.clock.now();
        let alerts = alert::Alerts::start(
            parts.config.alerts.clone(),
            &parts.core,
            parts.registry.journal().clone(),
        );
        let unfinished = Mutex::new(parts.registry.take_unfinished());
        let daemon = Self {
            paths: parts.paths,
            config: parts.config,
            state: parts.state,
            key_box: parts.key_box,
            registry: parts.registry,
            core: parts.core,
            tree: parts.tree,
            alarms: parts.alarms,
            events: parts.events,
            around: parts.around,
            cgroup_root: parts.cgroup_root,
            resend: parts.resend,
            hardening: inspect::hardening(&parts.hardening),
            started_at,
            stopping: AtomicBool::new(false),
            unlocking: Mutex::new(()),
            confirmed: Mutex::default(),
            redeeming: Mutex::new(()),
            launching: RwLock::new(()),
            revoking: Mutex::new(()),
            unfinished,
            unsettled: AtomicBool::new(true),
            seal: Mutex::default(),
            pruned_at: Mutex::new(None),
            looked_at: Mutex::new(None),
            news: Mutex::new(news::News::new(parts.news)),
            rotating: Mutex::default(),
            chores: Mutex::new(None),
            storing: Mutex::new(()),
            repeating: Mutex::new(()),
            searching: outputs::Searching::default(),
            alerts,
        };
        // Before anything is served: what an earlier worker began to revoke stays denied.
        daemon.deny_again();
        daemon.unlock_at_start();
        daemon
    }

    /// Vault, catalog, audit.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Looks after deadlines and deaths until the daemon stops.
    pub fn keep_house(self: &Arc<Self>) {
        while !self.is_stopping() {
            let turn = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.tell_keeper();
                self.housekeeping();
                self.keep_versions();
                self.keep_sealed();
                self.tell_probes();
                self.tree.broker().record_counts(false);
            }));
            if turn.is_err() {
                tracing::error!("a turn of housekeeping panicked");
            }
            std::thread::park_timeout(HOUSEKEEPING);
        }
    }

    /// Looks after event files until the daemon stops: apart from the rest, since the store may hang.
    pub fn keep_files(self: &Arc<Self>) {
        while !self.is_stopping() {
            let turn = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.keep_events();
                self.keep_stored();
                self.search_what_was_left();
            }));
            if turn.is_err() {
                tracing::error!("a turn of looking after event files panicked");
            }
            std::thread::park_timeout(HOUSEKEEPING);
        }
    }

    /// Records the refusals that were only counted so far, and stores the exposures that only the
    /// runtime state has.
    pub fn record_counts(&self) {
        self.tree.broker().record_counts(true);
        if self.core.vault().is_some()
            && let Err(problem) = self.store_exposures()
        {
            tracing::error!(%problem, "exposures could not be stored");
        }
    }

    /// Lets streams and housekeeping end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends every execution, as `down` does.
    pub fn end_all(&self, reason: &str) {
        for execution in self.registry.executions() {
            if execution.ended.is_none()
                && let Err(error) = self.end_one(&execution.id, reason, Duration::from_secs(1))
            {
                tracing::error!(%error, "an execution could not be ended");
            }
        }
    }
}

impl Daemon {
    /// Tells of those who try to guess.
    fn tell_probes(&self) {
        for probe in self.around.probes().take() {
            let (execution, chain) = (&probe.execution, &probe.chain);
            let message = match probe.tried {
                Tried::Values => format!(
                    "execution {execution} of chain {chain} writes values that are not its own \
                     again and again"
                ),
                Tried::Beginnings => format!(
                    "execution {execution} of chain {chain} writes the beginnings of values that are \
                     not its own again and again, as who guesses them does; the events of the chain \
                     are slow from now on, until strongroom reload"
                ),
            };
            self.alert(alert::Alert {
                event: "redaction_probe",
                secret: None,
                message,
                reason: None,
                at: probe.at,
            });
        }
    }

    /// Completes what nobody writes any more.
    fn keep_events(&self) {
        self.events.tidy();
        let principals = self.registry.principals();
        self.events.forget_places(&principals.iter().map(|p| p.events_folder.as_str()).collect());
    }

    /// Waits until the files that ended agents had open are complete.
    fn settle_events(&self, principals: &[u64]) {
        let patience = self.config.events.patience.0.min(EVENTS_PATIENCE);
        let deadline = std::time::Instant::now() + patience;
        while self.events.is_written_by(principals) && std::time::Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

/// A user's name, or its number.
pub(crate) fn user_of(uid: u32) -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name)
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("paths", &self.paths).finish_non_exhaustive()
    }
}
