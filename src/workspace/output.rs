//! What an agent's output is, and how it gets to where the launcher's goes: through the worker.
//!
//! A terminal stays one, a pipe stays one, and what was one open file stays one, so that its order
//! stays. Invariant: what comes from the agent reaches the caller only as a piece that the worker
//! gave; where there is no worker the output stops and the agent is told as by a closed pipe.
//! Danger: a launcher that still writes when it should not, so there is one place that writes.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{SFlag, fstat, major, minor};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::control::client::Client;
use crate::control::redacting::Redacting;
use crate::proto::Problem;
use crate::proto::stream::{Channel, MAX_DATA_BYTES, Piece, Redact};
use crate::redact::Level;
use crate::sys::terminal::{self, Pty};

/// How long the output may stay silent, once all of the agent is ended, before it counts as over:
/// somebody else holds it open.
const SILENCE: Duration = Duration::from_secs(1);

/// A way out of the agent.
struct Way {
    /// Numbers of the agent's descriptors that lead there.
    targets: Vec<i32>,
    agent_end: OwnedFd,
    our_end: OwnedFd,
    sink: OwnedFd,
    channel: Channel,
}

/// The agent's descriptors, before it runs.
pub struct Wiring {
    ways: Vec<Way>,
    /// Number of the way that is the agent's own terminal, for its input as well.
    session: Option<usize>,
}

fn descriptor(number: i32) -> io::Result<OwnedFd> {
    if number == 1 {
        io::stdout().as_fd().try_clone_to_owned()
    } else {
        io::stderr().as_fd().try_clone_to_owned()
    }
}

/// Whether what is written there is lost anyway: `/dev/null`.
fn is_null(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|stat| {
        SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFCHR
            && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3)
    })
}

impl Wiring {
    /// By what this process itself has.
    ///
    /// # Errors
    /// Where no pipe or terminal can be made.
    pub fn like_ours() -> io::Result<Self> {
        let mut wiring = Self { ways: Vec::new(), session: None };
        let stdin = io::stdin();
        for number in [1, 2] {
            let sink = descriptor(number)?;
            if is_null(&sink) {
                continue;
            }
            let one =
                wiring.ways.iter_mut().find(|w| terminal::are_one(w.sink.as_fd(), sink.as_fd()));
            if let Some(way) = one {
                way.targets.push(number);
                if way.channel != Channel::Terminal {
                    way.channel = Channel::Output;
                }
                continue;
            }
            let is_terminal = sink.is_terminal();
            let (our_end, agent_end, channel) = if is_terminal {
                let Pty { master, slave } = terminal::open_like(sink.as_fd())?;
                if number == 1
                    && stdin.is_terminal()
                    && terminal::are_one(stdin.as_fd(), sink.as_fd())
                {
                    wiring.session = Some(wiring.ways.len());
                } else {
                    // The real terminal does it.
                    let mut settings = tcgetattr(&slave)?;
                    settings.output_flags.remove(OutputFlags::OPOST);
                    tcsetattr(&slave, SetArg::TCSANOW, &settings)?;
                }
                (master, slave, Channel::Terminal)
            } else {
                let (reading, writing) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                let channel = if number == 1 { Channel::Stdout } else { Channel::Stderr };
                (reading, writing, channel)
            };
            // What is written there must not wait for what is read.
            fcntl(&our_end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            wiring.ways.push(Way { targets: vec![number], agent_end, our_end, sink, channel });
        }
        Ok(wiring)
    }

    /// In the agent's process: its descriptors become what they are to be.
    pub(super) fn connect(&self) -> io::Result<()> {
        if let Some(slave) = self.session_end() {
            nix::unistd::dup2_stdin(slave)?;
        }
        for way in &self.ways {
            for target in &way.targets {
                if *target == 1 {
                    nix::unistd::dup2_stdout(&way.agent_end)?;
                } else {
                    nix::unistd::dup2_stderr(&way.agent_end)?;
                }
            }
        }
        Ok(())
    }

    /// The agent's own terminal.
    pub(super) fn session_end(&self) -> Option<BorrowedFd<'_>> {
        self.session.map(|index| self.ways[index].agent_end.as_fd())
    }

    /// Terminals of the agent's, as it sees them.
    pub(super) fn terminals(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let terminals = self.ways.iter().filter(|way| way.channel == Channel::Terminal);
        terminals.map(|way| way.agent_end.as_fd())
    }

    /// Our end of the agent's own terminal.
    pub(super) fn master(&self) -> io::Result<Option<OwnedFd>> {
        self.session.map(|index| self.ways[index].our_end.try_clone()).transpose()
    }

    /// Terminals that are for output alone: ours, and the one that it is to be like.
    pub(super) fn followers(&self) -> io::Result<Vec<(OwnedFd, OwnedFd)>> {
        let ways = self.ways.iter().enumerate();
        ways.filter(|(index, way)| way.channel == Channel::Terminal && Some(*index) != self.session)
            .map(|(_, way)| Ok((way.our_end.try_clone()?, way.sink.try_clone()?)))
            .collect()
    }

    /// After the agent was started: begins to pass its output on.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(self, client: &Client, level: Level, launch: &str) -> io::Result<Outputs> {
        let shared = Arc::new(Shared {
            turn: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
            states: Mutex::new(vec![State::default(); self.ways.len()]),
            changed: Condvar::new(),
        });
        let mut threads = Vec::new();
        for (index, way) in self.ways.into_iter().enumerate() {
            // The agent's copies are the only ones from now on.
            drop(way.agent_end);
            let request = Redact {
                level,
                launch: Some(launch.to_owned()),
                channel: Some(way.channel),
                resume: false,
            };
            let pump = Pump {
                client: client.clone(),
                request,
                source: way.our_end,
                sink: Sink { file: File::from(way.sink), broken: None },
                shared: shared.clone(),
                index,
            };
            let name = format!("output {}", index + 1);
            threads.push(std::thread::Builder::new().name(name).spawn(move || pump.run())?);
        }
        Ok(Outputs { shared, threads })
    }
}

impl std::fmt::Debug for Wiring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wiring").field("ways", &self.ways.len()).finish_non_exhaustive()
    }
}

/// How far an agent's end has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Stage {
    /// Its main process runs.
    #[default]
    Running,
    /// Its main process has ended.
    Left,
    /// All of it has ended.
    Over,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// The worker knows the stream, or there will be none.
    known: bool,
    done: bool,
    stage: Stage,
    problem: Option<String>,
}

struct Shared {
    /// Readable while a pump has not seen the last change of stage.
    turn: EventFd,
    states: Mutex<Vec<State>>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The output while the agent runs.
pub struct Outputs {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Outputs {
    /// The main process has ended: waits until the worker knows every stream that may still carry
    /// something, because it knows the launch no longer afterwards.
    pub fn left(&self) {
        self.advance(Stage::Left);
        let mut states = self.shared.lock();
        while !states.iter().all(|state| state.known || state.done) {
            states = self.shared.changed.wait(states).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing of the agent is left: what is on its way is the last.
    pub fn over(&self) {
        self.advance(Stage::Over);
    }

    fn advance(&self, stage: Stage) {
        for state in self.shared.lock().iter_mut() {
            state.stage = stage;
        }
        // Counts the pumps that have to look; a full counter is as readable.
        let _told = self.shared.turn.write(1);
    }

    /// Waits for a while; whether all output is passed on.
    pub fn is_done_within(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut states = self.shared.lock();
        while !states.iter().all(|state| state.done) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(states, left);
            states = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Why output was lost, if it was. To be called when all is done.
    pub fn problem(self) -> Option<String> {
        for thread in self.threads {
            if thread.join().is_err() {
                return Some("the output could not be passed on".to_owned());
            }
        }
        self.shared.lock().iter_mut().find_map(|state| state.problem.take())
    }
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outputs").finish_non_exhaustive()
    }
}

/// Where pieces go.
struct Sink {
    file: File,
    broken: Option<io::Error>,
}

impl Sink {
    /// Writes all of it, also where somebody made the file non-blocking.
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.broken.is_none() {
            match self.file.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
                    // The next write tells what is wrong, if something is.
                    let _ready = poll(&mut fds, PollTimeout::NONE);
                }
                Err(e) => self.broken = Some(e),
            }
        }
    }
}

/// Why a pump ends early.
enum Stop {
    /// The reader of the output has gone.
    Closed,
    Io(io::Error),
    Told(Problem),
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Told(problem)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Passes one way's output on.
struct Pump {
    client: Client,
    request: Redact,
    source: OwnedFd,
    sink: Sink,
    shared: Arc<Shared>,
    index: usize,
}

impl Pump {
    fn run(mut self) {
        let stopped = self.pass();
        // Before anything else: the agent meets a closed pipe, or a terminal that hung up.
        let Self { source, shared, index, .. } = self;
        drop(source);
        let problem = match stopped {
            Ok(()) | Err(Stop::Closed) => None,
            Err(Stop::Io(error)) => Some(format!("its output cannot be passed on: {error}")),
            Err(Stop::Told(problem)) => Some(problem.to_string()),
        };
        if let Some(problem) = &problem {
            eprintln!("error: the agent's output stops here: {problem}");
        }
        let mut states = shared.lock();
        states[index].done = true;
        states[index].problem = problem;
        drop(states);
        shared.changed.notify_all();
    }

    fn stage(&self) -> Stage {
        self.shared.lock()[self.index].stage
    }

    /// The worker learns of the stream, at the first byte: most commands that say nothing need none.
    fn open(&mut self) -> Result<Redacting, Stop> {
        let stream = Redacting::open(&self.client, self.request.clone())?;
        self.know();
        Ok(stream)
    }

    fn know(&self) {
        self.shared.lock()[self.index].known = true;
        self.shared.changed.notify_all();
    }

    fn pass(&mut self) -> Result<(), Stop> {
        let mut stream: Option<Redacting> = None;
        let mut buffer = Zeroizing::new(vec![0; MAX_DATA_BYTES]);
        let mut seen = Stage::Running;
        let mut silent_since = Instant::now();
        loop {
            let has_room = stream.as_ref().is_none_or(Redacting::has_room);
            let mut fds = Vec::with_capacity(3);
            let (mut source_at, mut stream_at, mut turn_at) = (None, None, None);
            if has_room {
                fds.push(PollFd::new(self.source.as_fd(), PollFlags::POLLIN));
                source_at = Some(fds.len() - 1);
            }
            if let Some(stream) = stream.as_ref().filter(|stream| stream.is_waiting()) {
                let mut flags = PollFlags::POLLIN;
                flags.set(PollFlags::POLLOUT, stream.wants_write());
                fds.push(PollFd::new(stream.as_fd(), flags));
                stream_at = Some(fds.len() - 1);
            }
            if seen == Stage::Running {
                fds.push(PollFd::new(self.shared.turn.as_fd(), PollFlags::POLLIN));
                turn_at = Some(fds.len() - 1);
            }
            let patience = match seen {
                Stage::Running => PollTimeout::NONE,
                // The counter stays readable once it was; later stages are looked for.
                Stage::Left | Stage::Over => PollTimeout::from(50_u8),
            };
            match poll(&mut fds, patience) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let is_ready = |at: Option<usize>| at.and_then(|at| fds[at].any()).unwrap_or(false);
            let (source_ready, stream_ready) = (is_ready(source_at), is_ready(stream_at));
            let turned = is_ready(turn_at);
            if stream_ready && let Some(stream) = &mut stream {
                self.sink.pass(|each| stream.pump(each))?;
            }
            if source_ready {
                silent_since = Instant::now();
                let count = match nix::unistd::read(&self.source, &mut buffer) {
                    Ok(count) => count,
                    // A terminal that nobody has open any more.
                    Err(Errno::EIO) => 0,
                    Err(Errno::EINTR | Errno::EAGAIN) => continue,
                    Err(errno) => return Err(errno.into()),
                };
                if count == 0 {
                    break;
                }
                if stream.is_none() {
                    stream = Some(self.open()?);
                }
                if let Some(stream) = &mut stream {
                    self.sink.pass(|each| stream.push(&buffer[..count], each))?;
                }
                continue;
            }
            if turned || seen != Stage::Running {
                let stage = self.stage();
                if stage > Stage::Running && seen == Stage::Running && stream.is_none() {
                    // Somebody of the agent still has it open.
                    stream = Some(self.open()?);
                }
                seen = stage;
            }
            let is_waiting = stream.as_ref().is_some_and(Redacting::is_waiting);
            if seen == Stage::Over && !is_waiting && silent_since.elapsed() > SILENCE {
                break;
            }
        }
        if let Some(stream) = &mut stream {
            self.sink.pass(|each| stream.finish(each))?;
        }
        Ok(())
    }
}

impl Sink {
    /// Writes the pieces that `from` gives, in one go.
    fn pass(
        &mut self,
        from: impl FnOnce(&mut dyn FnMut(Piece<'_>)) -> Result<(), Problem>,
    ) -> Result<(), Stop> {
        let mut text = Vec::new();
        let given = from(&mut |piece| match piece {
            Piece::Clear(bytes) => text.extend_from_slice(bytes),
            Piece::Marker { text: marker, .. } => text.extend_from_slice(marker.as_bytes()),
        });
        // What was given was decided, whatever happened after it.
        self.write(&text);
        given?;
        match self.broken.take() {
            None => Ok(()),
            Some(error) if error.kind() == ErrorKind::BrokenPipe => Err(Stop::Closed),
            Some(error) => Err(Stop::Io(error)),
        }
    }
}
