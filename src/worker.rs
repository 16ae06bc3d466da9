//! The worker: puts the daemon together, takes over the mount, serves, and stops in order.
//!
//! It inherits from its keeper the device, the listening socket, the runtime state and the box of
//! the root key. Order: map the state, open the audit log, then the vault, take over the mount, and
//! only then answer. Danger: a successor that starts while this one still serves; the keeper waits
//! for this process's certain death.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::audit::log::{Log, Options};
use crate::audit::record::Event;
use crate::broker::local::Local;
use crate::catalog::name::EnvName;
use crate::clock::SystemClock;
use crate::config::{Config, Paths};
use crate::control::{Limits, Roles, Server};
use crate::daemon::around::Around;
use crate::daemon::core::Core;
use crate::daemon::{Daemon, Parts};
use crate::events::{self, Events};
use crate::execution::handles::Handles;
use crate::execution::journal::Journal;
use crate::execution::registry::Registry;
use crate::execution::state::State;
use crate::fs::tree::Tree;
use crate::fuse::adapter::{Adapter, Alarms};
use crate::fuse::gate::Gate;
use crate::fuse::session::{self, Takeover};
use crate::identity::attestor::{CgroupAttestor, TreeAttestor};
use crate::identity::resolver::Resolver;
use crate::keeper::{ground, worker_lock, worker_status};
use crate::redact::allow;
use crate::redact::detect::{BadRules, Detector};
use crate::sys::mount::{self, OwnMount};
use crate::sys::pidfd::PidFd;
use crate::sys::process::{self, Achieved};
use crate::sys::shm::Region;
use crate::sys::{cgroup, device, scope};

/// How long a read may wait for its record.
const RECORD_PATIENCE: Duration = Duration::from_millis(250);
/// How long a worker of another keeper may take to be gone.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(5);
/// How long requests of the control socket may take after the stop.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How long a service manager may take to make a scope.
const SCOPE_LIMIT: Duration = Duration::from_secs(5);
/// Set to switch off what older kernels lack, for tests: `pidfd-info`, `resend`.
const DISABLE_VARIABLE: &str = "STRONGROOM_DISABLE";

/// What the worker inherits: descriptor numbers.
#[derive(Debug, Clone, Copy)]
pub struct Inherited {
    /// `/dev/fuse`.
    pub device: i32,
    /// The control socket.
    pub listener: i32,
    /// The runtime state.
    pub state: i32,
    /// The box of the root key.
    pub key_box: i32,
    /// Where the keeper reads how things are.
    pub news: Option<i32>,
    /// A service manager keeps all that for the next keeper.
    pub stored: bool,
}

/// Why the worker gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part could not be made.
    #[error("{what}")]
    Part {
        /// Which.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration's rules for known formats are none.
    #[error(transparent)]
    Rules(#[from] BadRules),
    /// The runtime state is not one.
    #[error(transparent)]
    State(#[from] crate::execution::state::Error),
}

fn part(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Part { what, source }
}

/// Serves until told to stop; the status tells the keeper what to do then.
///
/// # Errors
/// See [`Error`]; a successor would fail as well.
pub fn run(paths: Paths, config: Config, inherited: Inherited) -> Result<i32, Error> {
    let device = take(inherited.device)?;
    let listener = UnixListener::from(take(inherited.listener)?);
    let state_memory =
        Region::map(take(inherited.state)?).map_err(part("the runtime state cannot be mapped"))?;
    let state = State::adopt(state_memory)?;
    let key_box =
        Region::map(take(inherited.key_box)?).map_err(part("the key box cannot be mapped"))?;
    let mut signals = block_signals().map_err(part("signals cannot be blocked"))?;
    let keeper = PidFd::open(nix::unistd::getppid().as_raw().cast_unsigned())
        .map_err(part("the keeper is gone"))?;
    // Held to the certain end of this process, whoever is its keeper.
    let _alone = worker_lock(&paths.runtime_dir, PREDECESSOR_LIMIT)
        .map_err(part("another worker still runs"))?;
    let news = inherited.news.map(take).transpose()?.map(fs::File::from);
    let keeper = Keeper {
        process: keeper,
        line: news
            .as_ref()
            .map(fs::File::try_clone)
            .transpose()
            .map_err(part("the line to the keeper cannot be watched"))?,
    };
    let hardening = harden(&key_box);
    let disabled = std::env::var(DISABLE_VARIABLE).unwrap_or_default();
    let enabled = |feature: &str| !disabled.split(',').any(|d| d == feature);

    let generation = state.next_generation();
    let clock = Arc::new(SystemClock);
    let options = Options { sync: config.audit.sync, patience: RECORD_PATIENCE };
    let log =
        Log::open(&paths.audit_dir, state.region().clone(), state.ring(), options, clock.clone())
            .map_err(part("the audit log cannot be opened"))?;
    let environments: Vec<EnvName> =
        config.environments.iter().filter_map(|e| e.parse().ok()).collect();
    let core = Arc::new(Core::new(log.clone(), clock.clone(), environments));
    core.needles.set_detector(Arc::new(Detector::of_config(&config.redaction)?));
    let entries = allow::entries(&config.redaction.allow);
    core.needles.set_entries(entries.map_err(|number| BadRules::Allowed { number })?);
    let registry = Arc::new(Registry::open(Journal::open(&state)));
    let handles = Arc::new(Handles::open(&state));
    let around = Arc::new(Around::new(core.clone(), registry.clone()));
    let events = Arc::new(open_events(&paths, &config, &registry, &handles, &around)?);
    let broker = Local::new(
        Resolver::new(enabled("pidfd-info")),
        vec![Box::new(CgroupAttestor), Box::new(TreeAttestor)],
        registry.clone(),
        handles,
        core.clone(),
        core.clone(),
        clock,
    );
    let tree = Arc::new(Tree::new(broker).with_events(events.clone()));
    let alarms = Arc::new(Alarms::default());
    let gate = Gate::start(config.mount.threads, config.events.patience.0)
        .map_err(part("no threads for the event store"))?;
    let (session, takeover) = session::take_over(
        Adapter::new(tree.clone(), alarms.clone()).with_gate(gate),
        &state,
        device.as_fd(),
        config.mount.threads,
        enabled("resend"),
    )
    .map_err(part("the mount cannot be taken over"))?;
    let resend = match takeover {
        Takeover::First { can_resend } => can_resend,
        Takeover::Resent => true,
        Takeover::Lost => {
            log.stop(STOP_GRACE);
            return Ok(worker_status::REMOUNT);
        }
    };
    let groups = groups(&paths, inherited.stored).filter(|_| enabled("cgroup"));
    let roles = Roles::new(&config.roles, paths.mode, nix::unistd::geteuid().as_raw());
    let daemon = Arc::new(Daemon::new(Parts {
        cgroup_root: groups.as_ref().map(|groups| groups.root.clone()),
        paths: paths.clone(),
        config,
        state: state.clone(),
        key_box,
        registry,
        core: core.clone(),
        tree,
        alarms,
        events: events.clone(),
        around,
        resend,
        hardening,
        news,
    }));
    let event = if generation == 1 { Event::DaemonStarted } else { Event::WorkerRestarted };
    if core.record(&core.new_record(event)).is_err() {
        tracing::error!("the start could not be recorded");
    }

    let (ended, mount_ended) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| part("no pipe")(e.into()))?;
    std::thread::Builder::new()
        .name("mount".into())
        .spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(%error, "the mount's session ended");
            }
            // Closed: the main thread wakes.
            drop(mount_ended);
        })
        .map_err(part("no thread for the mount"))?;
    let server = Server::start(listener, daemon.clone(), roles, Limits::default())
        .map_err(part("the control socket cannot be served"))?;
    std::thread::Builder::new()
        .name("measure".into())
        .spawn(move || events.measure())
        .map_err(part("no thread to measure the event store"))?;
    // Not waited for at the stop: the store may hang.
    let files = daemon.clone();
    std::thread::Builder::new()
        .name("files".into())
        .spawn(move || files.keep_files())
        .map_err(part("no thread for event files"))?;
    let search = daemon.clone();
    std::thread::Builder::new()
        .name("search".into())
        .spawn(move || search.keep_searched())
        .map_err(part("no thread to search event files"))?;
    let endings = daemon.clone();
    std::thread::Builder::new()
        .name("endings".into())
        .spawn(move || endings.keep_ended())
        .map_err(part("no thread for what is to be ended"))?;
    let house = daemon.clone();
    let housekeeper = std::thread::Builder::new()
        .name("house".into())
        .spawn(move || house.keep_house())
        .map_err(part("no thread for housekeeping"))?;

    let status = wait(&mut signals, &keeper, &ended, &paths, inherited.stored);
    daemon.stop();
    server.stop(STOP_GRACE);
    if housekeeper.join().is_err() {
        tracing::error!("housekeeping panicked");
    }
    daemon.record_counts();
    if status == worker_status::DOWN && core.record(&core.new_record(Event::DaemonStopped)).is_err()
    {
        tracing::error!("the stop could not be recorded");
    }
    if status == worker_status::DOWN
        && let Err(error) = daemon.checkpoint()
    {
        tracing::error!(%error, "the log could not be sealed");
    }
    log.stop(STOP_GRACE);
    if status == worker_status::DOWN
        && let Some(groups) = groups
    {
        // Busy while agents of an execution still run; they stay where they are.
        let _removed = cgroup::remove_tree(&groups.root);
        if groups.in_scope {
            scope::release(&groups.root);
        }
    }
    Ok(status)
}

fn open_events(
    paths: &Paths,
    config: &Config,
    registry: &Registry,
    handles: &Arc<Handles>,
    around: &Arc<Around>,
) -> Result<Events, Error> {
    let settings = &config.events;
    let unknown = |what| part(what)(io::Error::from(io::ErrorKind::NotFound));
    let owner = match &settings.owner {
        None => None,
        Some(name) => Some(
            nix::unistd::User::from_name(name)
                .map_err(|e| part("[events] owner cannot be looked up")(e.into()))?
                .ok_or_else(|| unknown("[events] owner is no user of this machine"))?
                .uid
                .as_raw(),
        ),
    };
    let group = match &settings.group {
        None => None,
        Some(name) => Some(
            nix::unistd::Group::from_name(name)
                .map_err(|e| part("[events] group cannot be looked up")(e.into()))?
                .ok_or_else(|| unknown("[events] group is no group of this machine"))?
                .gid
                .as_raw(),
        ),
    };
    // Checked when the configuration was read.
    let mode = u32::from_str_radix(&settings.mode, 8).unwrap_or(0o600);
    let limits = events::Limits {
        max_file: settings.max_file,
        max_total: settings.max_total,
        max_held: settings.max_held,
    };
    let look = events::Look { uid: owner, gid: group, mode };
    let journal = registry.journal().clone();
    Events::open(&paths.events_dir, look, limits, journal, handles.clone(), around.clone())
        .map_err(part("the event store cannot be opened"))
}

fn take(number: i32) -> Result<OwnedFd, Error> {
    device::inherited(number).map_err(part("a descriptor was not inherited"))
}

fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Tells of the keeper's death.
struct Keeper {
    /// Our parent: another process, where the keeper died before it was asked for.
    process: PidFd,
    /// Our end of a pipe that the keeper alone reads, however early it dies; keepers from before it
    /// had one do not give it.
    line: Option<fs::File>,
}

/// Waits for a reason to stop; the status for the keeper.
fn wait(
    signals: &mut SignalFd,
    keeper: &Keeper,
    mount: &OwnedFd,
    paths: &Paths,
    stored: bool,
) -> i32 {
    loop {
        let mut fds = vec![
            nix::poll::PollFd::new(signals.as_fd(), nix::poll::PollFlags::POLLIN),
            nix::poll::PollFd::new(keeper.process.as_fd(), nix::poll::PollFlags::POLLIN),
            nix::poll::PollFd::new(mount.as_fd(), nix::poll::PollFlags::POLLIN),
        ];
        if let Some(line) = &keeper.line {
            // Without a reader it is in error, pipe(7), which is always told.
            fds.push(nix::poll::PollFd::new(line.as_fd(), nix::poll::PollFlags::empty()));
        }
        match nix::poll::poll(&mut fds, nix::poll::PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "waiting failed");
                return worker_status::FATAL;
            }
        }
        let is_ready = |index: usize| {
            fds.get(index).and_then(|fd| fd.revents()).is_some_and(|r| !r.is_empty())
        };
        let (signal, unmounted) = (is_ready(0), is_ready(2));
        let orphaned = is_ready(1) || is_ready(3);
        if orphaned && stored {
            tracing::error!("the keeper died; the service manager keeps the mount for another");
            return worker_status::RELOAD;
        }
        if orphaned {
            tracing::error!("the keeper died; unmounting");
            unmount_for_keeper(paths);
            return worker_status::DOWN;
        }
        if signal && let Ok(Some(info)) = signals.read_signal() {
            let hangup = i32::try_from(info.ssi_signo) == Ok(Signal::SIGHUP as i32);
            return if hangup { worker_status::RELOAD } else { worker_status::DOWN };
        }
        if unmounted {
            tracing::error!("the mount was taken away; asking for a new one");
            return worker_status::REMOUNT;
        }
    }
}

/// A keeper that was killed cannot unmount: its worker does, if the mount is still theirs.
fn unmount_for_keeper(paths: &Paths) {
    let own = fs::read(ground::note(paths))
        .ok()
        .and_then(|text| serde_json::from_slice::<OwnMount>(&text).ok());
    match own.map(|own| mount::unmount(&own)) {
        Some(Ok(true)) => {}
        Some(Ok(false)) | None => tracing::warn!("the mount was not ours any more"),
        Some(Err(error)) => tracing::error!(%error, "the mount could not be undone"),
    }
}

fn harden(key_box: &Region) -> Vec<(&'static str, Achieved)> {
    let achieved = |outcome: io::Result<()>| match outcome {
        Ok(()) => Achieved::Full,
        Err(error) => Achieved::None(error.to_string()),
    };
    let partly = |outcome: io::Result<()>| match outcome {
        Ok(()) => Achieved::Full,
        Err(error) => Achieved::Partial(error.to_string()),
    };
    let steps = vec![
        ("no_core_dumps", achieved(process::forbid_dumps())),
        ("key_locked_in_memory", achieved(key_box.lock())),
        // Without the right to it: the pages of the key and of the request buffers alone.
        ("memory_locked", partly(process::lock_all_memory())),
        ("descriptor_limit", achieved(process::raise_descriptor_limit().map(|_| ()))),
    ];
    for (step, outcome) in &steps {
        if let Achieved::None(why) | Achieved::Partial(why) = outcome {
            tracing::warn!(step, why, "a hardening step was not carried out");
        }
    }
    steps
}

/// Where cgroups of this home's executions go.
#[derive(Debug, Clone)]
struct Groups {
    root: PathBuf,
    /// In a scope of the service manager, which holds a process of ours.
    in_scope: bool,
}

/// A delegated scope where a service manager runs us; else a group at the top of the hierarchy, where
/// we may make one.
fn groups(paths: &Paths, managed: bool) -> Option<Groups> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    use std::os::unix::ffi::OsStrExt;
    let digest = crate::vault::crypto::digest(&[paths.state_dir.as_os_str().as_bytes()]);
    let digest = crate::vault::crypto::hex(&digest[..8]);
    if managed {
        let unit = match &paths.home {
            None => "strongroom-agents.scope".to_owned(),
            Some(_) => format!("strongroom-agents-{digest}.scope"),
        };
        match scope::obtain(&unit, SCOPE_LIMIT) {
            Ok(root) => return Some(Groups { root, in_scope: true }),
            Err(error) => tracing::warn!(%error, "no scope of the service manager for agents"),
        }
    }
    let root = cgroup::hierarchy_root().ok()?.join("strongroom");
    cgroup::Cgroup::create(&root).ok()?;
    let own = root.join(digest);
    cgroup::Cgroup::create(&own).ok()?;
    Some(Groups { root: own, in_scope: false })
}
