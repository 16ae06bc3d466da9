//! The keeper: owns what must outlive a worker, and starts workers.
//!
//! It holds the device descriptor of the mount, the listening control socket, the runtime state and
//! the box of the unlocked root key, and parses nothing that an agent sends. A worker that dies is
//! replaced, after its death is certain; one that keeps dying at once is replaced ever more slowly.
//!
//! Under a service manager it also puts device, socket and runtime state into the manager's store of
//! descriptors, and tells it when the vault can be read. A keeper that is started with what an earlier
//! one stored goes on with that mount and all that runs on it; the root key is not stored.
//!
//! Invariant: at most one worker serves at a time, and the mount is undone by whoever made it, once.
//! Danger: a worker that still runs while the next one starts would answer requests twice.
#![forbid(unsafe_code)]

pub mod ground;
mod service;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::config::{Mode, Paths};
use crate::execution::state::{self, State};
use crate::sys::mount::{self, MountError, OwnMount};
use crate::sys::notify;
use crate::sys::pidfd::PidFd;
use crate::sys::{device, process, shm::Region};

use ground::Mounted;
use service::{Service, stored};

/// Statuses by which a worker tells its keeper what to do.
pub mod worker_status {
    /// It was asked to stop: stop everything.
    pub const DOWN: i32 = 0;
    /// It made way for a successor.
    pub const RELOAD: i32 = 70;
    /// It cannot serve and a successor could not either: stop everything.
    pub const FATAL: i32 = 71;
    /// The kernel cannot repeat the requests that were in flight: mount anew.
    pub const REMOUNT: i32 = 72;
}

/// Bytes of the box that holds the root key: one page.
pub const KEY_BOX_BYTES: usize = 4096;
/// How long a worker may take to stop before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a keeper that was killed may hold on to what it had.
const DYING_LIMIT: Duration = Duration::from_millis(500);
/// A worker that lived shorter than this died at its start.
const SHORT_LIFE: Duration = Duration::from_millis(200);
/// The longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Early deaths in a row without a pause: an operator's `kill -9` in a loop is no crash loop.
const PATIENCE: u32 = 2_000;

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon has this home.
    #[error("a daemon already serves {}", runtime_dir.display())]
    AlreadyServing {
        /// Its runtime directory.
        runtime_dir: PathBuf,
    },
    /// A file of ours would lie beneath the mount.
    #[error("{} lies beneath the mount {}", path.display(), mount.display())]
    Beneath {
        /// Which.
        path: PathBuf,
        /// The mount.
        mount: PathBuf,
    },
    /// A directory or file of ours cannot be made.
    #[error("{} cannot be prepared", path.display())]
    Prepare {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else's mount, or files, stand at the mount point.
    #[error("the mount point {} is taken: {by}", path.display())]
    MountPointTaken {
        /// Which.
        path: PathBuf,
        /// What is there.
        by: String,
    },
    /// Mounting failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel's FUSE did not speak.
    #[error("the kernel did not greet the mount")]
    NoInit {
        /// What reading it said.
        source: io::Error,
    },
    /// The runtime state cannot be made.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The worker of an earlier keeper still runs.
    #[error("the worker of an earlier daemon of this home does not end")]
    OldWorker,
    /// A worker cannot be started.
    #[error("the worker cannot be started")]
    Worker {
        /// What the system said.
        source: io::Error,
    },
    /// A worker gave up.
    #[error("the worker gave up; its log says why")]
    WorkerGaveUp,
}

impl Error {
    /// The next step for the person who reads it.
    pub fn hint(&self) -> String {
        match self {
            Self::AlreadyServing { .. } => {
                "`strongroom status` shows it, `strongroom down` ends it".into()
            }
            Self::Beneath { .. } => {
                "the daemon would wait for itself; move one of them in strongroom.toml".into()
            }
            Self::Prepare { .. } => {
                "it must be a directory of yours: move away what is there, or check its owner"
                    .into()
            }
            Self::MountPointTaken { .. } => {
                "empty or unmount it, or set another with [mount] path in strongroom.toml".into()
            }
            Self::Mount(MountError::Device { source }) => match source.kind() {
                io::ErrorKind::NotFound => {
                    "load the FUSE module (`modprobe fuse`), or in a container pass --device \
                     /dev/fuse"
                        .into()
                }
                _ => "give yourself access to /dev/fuse: `sudo chmod 666 /dev/fuse`, the mode \
                      that most distributions set"
                    .into(),
            },
            Self::Mount(MountError::HelperMissing { .. }) => {
                "install the package `fuse3`, which brings fusermount3".into()
            }
            Self::Mount(MountError::HelperRefused { .. }) => {
                "`fusermount3 --version` must work and be setuid root; see fusermount3(1)".into()
            }
            Self::Mount(MountError::Kernel { .. } | MountError::Vanished { .. })
            | Self::NoInit { .. } => "`strongroom doctor` says what this host lacks".into(),
            Self::State(_) => "free some memory and try again".into(),
            Self::OldWorker => {
                "end it (its command line ends in `worker`), then start again".into()
            }
            Self::Worker { .. } | Self::WorkerGaveUp => {
                "run `strongroom serve` in a terminal to read its messages".into()
            }
        }
    }
}

/// What a keeper is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where things are.
    pub paths: Paths,
    /// The program that workers run; looked up anew at each start, so a new binary takes effect.
    pub program: PathBuf,
    /// Arguments for the worker's command line that name the home.
    pub worker_args: Vec<std::ffi::OsString>,
}

/// What all workers of one keeper share.
struct Shared {
    state: State,
    key_box: Region,
    listener: UnixListener,
    service: Service,
    news: (io::PipeReader, io::PipeWriter),
}

/// Serves until it is told to stop.
///
/// # Errors
/// See [`Error`]; nothing is left mounted.
pub fn run(options: &Options) -> Result<(), Error> {
    // Before anything is opened: numbers that the manager passes are ours from now on.
    let handed = notify::handed().unwrap_or_else(|error| {
        tracing::warn!(%error, "what the service manager kept cannot be taken");
        Vec::new()
    });
    let service = Service::of_environment();
    let paths = &options.paths;
    make_dir(&paths.state_dir, 0o700)?;
    // In system mode agents of other users reach the socket, where their credentials decide.
    make_dir(&paths.runtime_dir, if paths.mode == Mode::System { 0o755 } else { 0o700 })?;
    let _lock = lock(&paths.runtime_dir)?;
    let pid_file = paths.runtime_dir.join("keeper.pid");
    fs::write(&pid_file, std::process::id().to_string())
        .map_err(|source| Error::Prepare { path: pid_file, source })?;
    // Blocked before the first worker exists, so that no death is missed.
    let mut signals = block_signals().map_err(|source| Error::Worker { source })?;
    if let Err(error) = process::forbid_dumps() {
        tracing::warn!(%error, "the keeper stays dumpable");
    }
    await_worker_of_another(&paths.runtime_dir)?;
    let source = ground::source(paths);
    let (state, listener, mut mounted) = match adopt(paths, &source, handed, &service)? {
        Some(earlier) => {
            tracing::info!("going on with the mount of an earlier keeper");
            earlier
        }
        None => {
            let state = State::create()?;
            let listener = listen(&paths.socket)?;
            let mounted = ground::anew(paths, &source, &state)?;
            service.store(stored::DEVICE, mounted.device.as_fd());
            service.store(stored::SOCKET, listener.as_fd());
            service.store(stored::STATE, state.region().as_fd());
            (state, listener, mounted)
        }
    };
    let news = news_pipe().map_err(|source| Error::Worker { source })?;
    let shared = Shared {
        state,
        key_box: key_box().map_err(|source| Error::Prepare { path: "key box".into(), source })?,
        listener,
        service,
        news,
    };
    let outcome = supervise(options, &shared, &mut mounted, &source, &mut signals);
    if matches!(outcome, Ok(End::HandedOver)) {
        tracing::info!("leaving the mount to the next keeper");
        return Ok(());
    }
    shared.service.tell("STOPPING=1");
    mounted.undo();
    shared.service.forget(&stored::ALL);
    let _gone = fs::remove_file(&paths.socket);
    let _gone = fs::remove_file(ground::note(paths));
    outcome.map(|_| ())
}

/// How a keeper's life ends, where nothing fails.
enum End {
    /// Nothing is left.
    Down,
    /// The service manager keeps all for the next one.
    HandedOver,
}

/// Takes what an earlier keeper has left to the service manager, if all of it is there and alive.
/// Anything less is cleared: a mount that nobody serves keeps whoever looks at it waiting.
fn adopt(
    paths: &Paths,
    source: &str,
    handed: Vec<(String, OwnedFd)>,
    service: &Service,
) -> Result<Option<(State, UnixListener, Mounted)>, Error> {
    if handed.is_empty() {
        return Ok(None);
    }
    // The newest of a name, should the manager have kept several.
    let mut of: std::collections::BTreeMap<String, OwnedFd> = handed.into_iter().collect();
    let parts = [stored::DEVICE, stored::SOCKET, stored::STATE].map(|name| of.remove(name));
    let noted = fs::read(ground::note(paths))
        .ok()
        .and_then(|text| serde_json::from_slice::<OwnMount>(&text).ok())
        .filter(|own| own.source == source && mount::is_ours(own));
    let has_socket = fs::symlink_metadata(&paths.socket).is_ok_and(|m| m.file_type().is_socket());
    if let ([Some(device), Some(socket), Some(memory)], Some(own)) = (parts, noted)
        && device::is_connected(device.as_fd())
        && let Ok(state) = Region::map(memory).map_err(state::Error::from).and_then(State::adopt)
    {
        let listener = if has_socket {
            // Its credentials are those of who listens: this keeper from now on.
            nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::MAXCONN)
                .map_err(|e| Error::Prepare { path: paths.socket.clone(), source: e.into() })?;
            UnixListener::from(socket)
        } else {
            service.forget(&[stored::SOCKET]);
            let listener = listen(&paths.socket)?;
            service.store(stored::SOCKET, listener.as_fd());
            listener
        };
        return Ok(Some((state, listener, Mounted { device, own })));
    }
    tracing::warn!("what the service manager kept is of no use; beginning anew");
    service.forget(&stored::ALL);
    mount::clear_unserved(&paths.mount, source)
        .map_err(|error| Error::Prepare { path: paths.mount.clone(), source: error })?;
    Ok(None)
}

fn news_pipe() -> io::Result<(io::PipeReader, io::PipeWriter)> {
    let (reading, writing) = io::pipe()?;
    for end in [reading.as_fd(), writing.as_fd()] {
        nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    }
    Ok((reading, writing))
}

/// What each worker holds locked from its start to its certain end.
pub fn worker_lock(runtime_dir: &Path, limit: Duration) -> io::Result<Flock<File>> {
    lock_within(&runtime_dir.join("worker.lock"), limit)
}

/// A worker outlives its killed keeper by a moment; two must never serve.
fn await_worker_of_another(runtime_dir: &Path) -> Result<(), Error> {
    match worker_lock(runtime_dir, STOP_LIMIT) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::OldWorker),
        Err(source) => Err(Error::Prepare { path: runtime_dir.join("worker.lock"), source }),
    }
}

/// Starts workers until one says that it was the last.
fn supervise(
    options: &Options,
    shared: &Shared,
    mounted: &mut Mounted,
    source: &str,
    signals: &mut SignalFd,
) -> Result<End, Error> {
    let mut early_deaths = 0_u32;
    loop {
        let born = Instant::now();
        let child =
            start_worker(options, shared, mounted).map_err(|source| Error::Worker { source })?;
        let (status, told) =
            watch(child, signals, shared).map_err(|source| Error::Worker { source })?;
        match (status.code(), told) {
            (_, Some(Told::HandOver)) => return Ok(End::HandedOver),
            (_, Some(Told::Stop)) | (Some(worker_status::DOWN), _) => return Ok(End::Down),
            (Some(worker_status::FATAL), _) => return Err(Error::WorkerGaveUp),
            (Some(worker_status::RELOAD), _) => early_deaths = 0,
            (Some(worker_status::REMOUNT), _) => remount(options, shared, mounted, source)?,
            _ => {
                tracing::warn!(%status, "the worker died; starting another");
                early_deaths =
                    if born.elapsed() < SHORT_LIFE { early_deaths.saturating_add(1) } else { 0 };
            }
        }
        if early_deaths > PATIENCE {
            let steps = (early_deaths - PATIENCE).min(16);
            let pause = Duration::from_millis(10) * (1 << steps);
            // A signal ends the pause, and the next worker is told at once.
            std::thread::park_timeout(pause.min(LONGEST_PAUSE));
        }
    }
}

/// Aborts the connection and mounts anew: for kernels that cannot repeat requests.
fn remount(
    options: &Options,
    shared: &Shared,
    mounted: &mut Mounted,
    source: &str,
) -> Result<(), Error> {
    tracing::warn!("mounting anew; requests in flight fail");
    mounted.undo();
    shared.service.forget(&[stored::DEVICE]);
    *mounted = ground::anew(&options.paths, source, &shared.state)?;
    shared.service.store(stored::DEVICE, mounted.device.as_fd());
    Ok(())
}

/// What a keeper was told while a worker ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// To end, and leave everything to the next keeper.
    HandOver,
    /// To end.
    Stop,
}

/// Waits for the worker's certain death; passes on what we are told to do, and what it says.
fn watch(
    mut child: Child,
    signals: &mut SignalFd,
    shared: &Shared,
) -> io::Result<(ExitStatus, Option<Told>)> {
    let pidfd = PidFd::open(child.id())?;
    let mut told: Option<(Told, Instant)> = None;
    let mut is_leaving = false;
    loop {
        let timeout = match told {
            None => nix::poll::PollTimeout::NONE,
            Some((_, at)) => {
                let left = at.saturating_duration_since(Instant::now()).as_millis();
                u16::try_from(left).unwrap_or(u16::MAX).into()
            }
        };
        let readable = nix::poll::PollFlags::POLLIN;
        let mut fds = [
            nix::poll::PollFd::new(pidfd.as_fd(), readable),
            nix::poll::PollFd::new(signals.as_fd(), readable),
            nix::poll::PollFd::new(shared.news.0.as_fd(), readable),
        ];
        match nix::poll::poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let has_ended = fds[0].revents().is_some_and(|r| !r.is_empty());
        let mut said = [0; 64];
        // Of several words the last one holds; nothing is there most of the time.
        let count = nix::unistd::read(shared.news.0.as_fd(), &mut said).unwrap_or(0);
        if let Some(word) = said[..count].last() {
            shared.service.pass_on(*word, is_leaving || has_ended);
        }
        if has_ended {
            return Ok((child.wait()?, told.map(|(what, _)| what)));
        }
        if let Some((what, at)) = told
            && Instant::now() >= at
        {
            tracing::error!("the worker did not stop in time and is killed");
            child.kill()?;
            return Ok((child.wait()?, Some(what)));
        }
        while let Some(info) = signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
            // The worker may have died in this very moment: then its successor is told.
            match signal {
                Some(Signal::SIGHUP) => {
                    is_leaving = true;
                    shared.service.reloads();
                    let _dead = pidfd.signal(Signal::SIGHUP);
                }
                Some(Signal::SIGUSR1) if shared.service.is_there() => {
                    is_leaving = true;
                    told.get_or_insert((Told::HandOver, Instant::now() + STOP_LIMIT));
                    let _dead = pidfd.signal(Signal::SIGHUP);
                }
                Some(Signal::SIGUSR1) => {
                    tracing::warn!("nobody would keep the mount for another keeper; going on");
                }
                Some(Signal::SIGTERM | Signal::SIGINT) => {
                    is_leaving = true;
                    told.get_or_insert((Told::Stop, Instant::now() + STOP_LIMIT));
                    let _dead = pidfd.signal(Signal::SIGTERM);
                }
                _ => {}
            }
        }
    }
}

fn start_worker(options: &Options, shared: &Shared, mounted: &Mounted) -> io::Result<Child> {
    // Duplicates that pass the exec, closed here once the child has them.
    let pass = |fd: std::os::fd::BorrowedFd<'_>| -> io::Result<OwnedFd> {
        let fd = fd.try_clone_to_owned()?;
        mount::inheritable(fd.as_fd())?;
        Ok(fd)
    };
    let fds = [
        pass(mounted.device.as_fd())?,
        pass(shared.listener.as_fd())?,
        pass(shared.state.region().as_fd())?,
        pass(shared.key_box.as_fd())?,
        pass(shared.news.1.as_fd())?,
    ];
    let numbers: Vec<String> = fds.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
    let mut command = Command::new(&options.program);
    command.args(&options.worker_args).arg("worker").arg("--descriptors").arg(numbers.join(","));
    if shared.service.is_there() {
        command.arg("--stored");
    }
    for name in notify::VARIABLES {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).spawn()
}

fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn key_box() -> io::Result<Region> {
    let region = Region::create(c"strongroom-key", KEY_BOX_BYTES)?;
    if let Err(error) = region.lock() {
        tracing::warn!(%error, "the root key's page cannot be locked in memory");
    }
    Ok(region)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    let prepare = |source| Error::Prepare { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(prepare)
}

/// One daemon a home. The lock goes with the keeper's death, however it dies; the kernel may take a
/// moment over one that was killed, and whoever asks whether this home is served holds it for as long.
fn lock(runtime_dir: &Path) -> Result<Flock<File>, Error> {
    let path = runtime_dir.join("keeper.lock");
    lock_within(&path, DYING_LIMIT).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => Error::AlreadyServing { runtime_dir: runtime_dir.to_owned() },
        _ => Error::Prepare { path, source },
    })
}

fn lock_within(path: &Path, limit: Duration) -> io::Result<Flock<File>> {
    let deadline = Instant::now() + limit;
    loop {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, errno)) if Instant::now() >= deadline => return Err(errno.into()),
            Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
        }
    }
}

/// Whether a keeper holds the lock of this home.
pub fn is_served(runtime_dir: &Path) -> bool {
    let Ok(file) = File::open(runtime_dir.join("keeper.lock")) else { return false };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

/// The same, of a keeper that is not about to be gone.
pub fn stays_served(runtime_dir: &Path) -> bool {
    let deadline = Instant::now() + DYING_LIMIT;
    while is_served(runtime_dir) {
        if Instant::now() >= deadline {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    false
}

fn listen(socket: &Path) -> Result<UnixListener, Error> {
    let prepare = |source| Error::Prepare { path: socket.to_owned(), source };
    // We hold the lock, so a socket that is there belongs to a dead keeper.
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(prepare(e)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(prepare)?;
    // Agents of other uids reach it too; the peer's credentials decide, not the mode.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).map_err(prepare)?;
    Ok(listener)
}
