//! The client's side of a redacted stream: bytes in, pieces out, whichever worker is at work.
//!
//! Invariant: what a worker has not answered is kept, and sent again to the next one with the state
//! that came with the last answer, so that nothing is lost or doubled; a piece is passed on only
//! from a complete answer. Danger: bytes that pass because nobody could be asked; there is no way
//! out of here but by an answer.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zeroize::Zeroizing;

use super::client::{Client, with_query};
use crate::proto::stream::{self, Kind, Out, Piece, Redact, Scope};
use crate::proto::{Code, Problem};

/// How long another worker may take to come.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// Input that may wait for its answer, in bytes.
const WINDOW_BYTES: usize = 1 << 20;
/// The longest head and the longest problem of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_PROBLEM_BYTES: usize = 256 << 10;

/// Takes pieces as they are decided.
pub type Each<'a> = &'a mut dyn FnMut(Piece<'_>);

struct Frame {
    bytes: Zeroizing<Vec<u8>>,
    /// Bytes of the text in it.
    input: usize,
    end: bool,
}

/// Texts that are redacted, one after the other.
pub struct Redacting {
    client: Client,
    request: Redact,
    scope: Scope,
    socket: UnixStream,
    session: Vec<u8>,
    state: Vec<u8>,
    /// Not answered yet; the first `sent` of them are sent, and of the next one `offset` bytes.
    frames: VecDeque<Frame>,
    sent: usize,
    offset: usize,
    waiting_bytes: usize,
    /// Bytes of this text that were answered.
    answered: u64,
    incoming: Zeroizing<Vec<u8>>,
    buffer: Zeroizing<Vec<u8>>,
    /// Why nothing passes any more.
    failed: Option<Problem>,
}

/// How an attempt to reach a worker failed.
enum Miss {
    /// Another one may do better.
    Again(io::Error),
    Told(Problem),
}

impl From<io::Error> for Miss {
    fn from(error: io::Error) -> Self {
        Self::Again(error)
    }
}

impl Redacting {
    /// Opens a stream.
    ///
    /// # Errors
    /// The daemon's problem, or that it cannot be reached.
    pub fn open(client: &Client, request: Redact) -> Result<Self, Problem> {
        let (socket, scope) = connect(client, &request)?;
        let mut redacting = Self {
            client: client.clone(),
            request,
            scope,
            socket,
            session: Vec::new(),
            state: Vec::new(),
            frames: VecDeque::new(),
            sent: 0,
            offset: 0,
            waiting_bytes: 0,
            answered: 0,
            incoming: Zeroizing::default(),
            buffer: Zeroizing::new(vec![0; 256 << 10]),
            failed: None,
        };
        // Nothing is sent before a session is there: from then on any worker can take it up.
        let deadline = Instant::now() + PATIENCE;
        while redacting.session.is_empty() {
            if Instant::now() > deadline {
                return Err(unreachable(&ErrorKind::TimedOut.into()));
            }
            redacting.wait(PAUSE)?;
            redacting.pump(&mut |_| {})?;
        }
        Ok(redacting)
    }

    /// What is looked for beside known formats.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Bytes of input that are not answered.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether it can take more input without waiting for answers.
    pub fn has_room(&self) -> bool {
        self.waiting_bytes < WINDOW_BYTES
    }

    /// Whether something was not answered yet.
    pub fn is_waiting(&self) -> bool {
        !self.frames.is_empty()
    }

    /// What to poll for: always to read, and to write where this says so.
    pub fn wants_write(&self) -> bool {
        self.sent < self.frames.len()
    }

    /// Takes input and gives what is decided by now, waiting for answers only where too much waits
    /// for them.
    ///
    /// # Errors
    /// The problem why nothing passes any more.
    pub fn push(&mut self, input: &[u8], each: Each<'_>) -> Result<(), Problem> {
        for part in input.chunks(stream::MAX_DATA_BYTES) {
            self.enqueue(Kind::Data, part)?;
            self.pump(each)?;
            while !self.has_room() {
                self.wait(PATIENCE)?;
                self.pump(each)?;
            }
        }
        Ok(())
    }

    /// Waits until all input is answered.
    ///
    /// # Errors
    /// As [`Redacting::push`].
    pub fn flush(&mut self, each: Each<'_>) -> Result<(), Problem> {
        self.pump(each)?;
        while self.is_waiting() {
            self.wait(PATIENCE)?;
            self.pump(each)?;
        }
        Ok(())
    }

    /// The text has ended; gives the rest of it. Another text may follow.
    ///
    /// # Errors
    /// As [`Redacting::push`].
    pub fn finish(&mut self, each: Each<'_>) -> Result<(), Problem> {
        self.enqueue(Kind::End, &[])?;
        self.flush(each)
    }

    fn enqueue(&mut self, kind: Kind, input: &[u8]) -> Result<(), Problem> {
        let head = stream::head(kind, input.len()).map_err(|_| broken())?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(head.len() + input.len()));
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(input);
        self.waiting_bytes += input.len();
        self.frames.push_back(Frame { bytes, input: input.len(), end: kind == Kind::End });
        Ok(())
    }

    /// Waits until the connection can be read, or written where there is something to send.
    fn wait(&self, most: Duration) -> Result<(), Problem> {
        let mut flags = PollFlags::POLLIN;
        if self.wants_write() {
            flags |= PollFlags::POLLOUT;
        }
        let most = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), flags)], most) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(unreachable(&errno.into())),
        }
    }

    /// Sends and receives what is possible at once.
    ///
    /// # Errors
    /// As [`Redacting::push`].
    pub fn pump(&mut self, each: Each<'_>) -> Result<(), Problem> {
        if let Some(problem) = &self.failed {
            return Err(problem.clone());
        }
        let done = self.try_pump(each);
        if let Err(problem) = &done {
            self.failed = Some(problem.clone());
        }
        done
    }

    fn try_pump(&mut self, each: Each<'_>) -> Result<(), Problem> {
        // What was answered is taken before the connection's end is noticed.
        let received = self.receive();
        self.take_answers(each)?;
        if received.and_then(|()| self.send()).is_err() {
            self.reconnect()?;
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        while let Some(frame) = self.frames.get(self.sent) {
            match self.socket.write(&frame.bytes[self.offset..]) {
                Ok(count) => self.offset += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            if self.offset == frame.bytes.len() {
                (self.sent, self.offset) = (self.sent + 1, 0);
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        loop {
            match self.socket.read(&mut self.buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    let needed = self.incoming.len() + count;
                    if self.incoming.capacity() < needed {
                        // A vector that grows by itself leaves its old bytes behind.
                        let mut grown = Zeroizing::new(Vec::with_capacity(needed * 2));
                        grown.extend_from_slice(&self.incoming);
                        self.incoming = grown;
                    }
                    self.incoming.extend_from_slice(&self.buffer[..count]);
                    if count < self.buffer.len() {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn take_answers(&mut self, each: Each<'_>) -> Result<(), Problem> {
        let incoming = std::mem::take(&mut self.incoming);
        let mut used = 0;
        while let Some((kind, payload, len)) =
            stream::first(&incoming[used..]).map_err(|_| broken())?
        {
            used += len;
            match kind {
                Kind::Session => self.session = payload.to_vec(),
                Kind::Out => {
                    let out = Out::parse(payload).map_err(|_| broken())?;
                    self.take_out(&out, each)?;
                }
                Kind::Fail => {
                    return Err(serde_json::from_slice(payload).unwrap_or_else(|_| broken()));
                }
                Kind::Data | Kind::End | Kind::Resume => return Err(broken()),
            }
        }
        let rest = incoming.len() - used;
        self.incoming = incoming;
        self.incoming.copy_within(used.., 0);
        self.incoming.truncate(rest);
        Ok(())
    }

    fn take_out(&mut self, out: &Out<'_>, each: Each<'_>) -> Result<(), Problem> {
        let Some(frame) = self.frames.front().filter(|_| self.sent > 0) else {
            return Err(broken());
        };
        let answered = self.answered + frame.input as u64;
        if out.consumed != answered || out.ended != frame.end {
            return Err(broken());
        }
        self.answered = if frame.end { 0 } else { answered };
        self.waiting_bytes -= frame.input;
        self.frames.pop_front();
        self.sent -= 1;
        self.state.clear();
        self.state.extend_from_slice(out.state);
        out.each(each).map_err(|_| broken())
    }

    /// Goes on with another worker.
    fn reconnect(&mut self) -> Result<(), Problem> {
        self.incoming.clear();
        if self.session.is_empty() {
            // It ended between its answer and its session, and was sent nothing.
            (self.socket, self.scope) = connect(&self.client, &self.request)?;
            return Ok(());
        }
        let request = Redact { resume: true, level: self.request.level, ..Redact::default() };
        (self.socket, _) = connect(&self.client, &request)?;
        let payload = stream::resume(&self.session, &self.state);
        let head = stream::head(Kind::Resume, payload.len()).map_err(|_| broken())?;
        let bytes = Zeroizing::new([&head[..], &payload].concat());
        (self.sent, self.offset) = (0, 0);
        let deadline = Instant::now() + PATIENCE;
        let mut left = &bytes[..];
        while !left.is_empty() {
            match self.socket.write(left) {
                Ok(count) => left = &left[count..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    let fd = PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT);
                    // The next turn tells what came of it.
                    let _ready = poll(&mut [fd], PollTimeout::from(100_u8));
                }
                // The next turn of the pump notices and tries again.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

impl AsFd for Redacting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for Redacting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redacting").field("scope", &self.scope).finish_non_exhaustive()
    }
}

fn broken() -> Problem {
    Problem::new(Code::Internal, "the daemon's answer is no redacted stream")
        .with_hint("is it of the same version? strongroom status")
}

fn unreachable(error: &io::Error) -> Problem {
    Problem::new(
        Code::Unavailable,
        format!("no daemon redacts any more, and nothing passes without: {error}"),
    )
    .with_hint("strongroom status tells whether it is well")
}

/// An upgraded connection to a worker, tried for as long as one may take to come.
fn connect(client: &Client, request: &Redact) -> Result<(UnixStream, Scope), Problem> {
    let path = with_query("/v1/redact", request)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match try_connect(client, &path, left.max(PAUSE)) {
            Ok(done) => return Ok(done),
            Err(Miss::Told(problem))
                if !matches!(problem.code, Code::Busy | Code::Unavailable) || left.is_zero() =>
            {
                return Err(problem);
            }
            Err(Miss::Again(error)) if left.is_zero() => return Err(unreachable(&error)),
            Err(_) => std::thread::park_timeout(PAUSE),
        }
    }
}

fn try_connect(client: &Client, path: &str, wait: Duration) -> Result<(UnixStream, Scope), Miss> {
    let mut socket = UnixStream::connect(client.socket())?;
    socket.set_read_timeout(Some(wait))?;
    socket.set_write_timeout(Some(wait))?;
    socket.write_all(
        format!(
            "POST {path} HTTP/1.1\r\nhost: strongroom\r\nconnection: upgrade\r\nupgrade: {}\r\n\
             content-length: 0\r\n\r\n",
            stream::UPGRADE
        )
        .as_bytes(),
    )?;
    // A byte at a time: what follows the head are frames.
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > MAX_HEAD_BYTES {
            return Err(Miss::Told(broken()));
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(n, _)| *n == name).map(|(_, value)| value.trim()).next()
    };
    if head.split(' ').nth(1) != Some("101") {
        let len = field("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        let mut body = vec![0; usize::min(len, MAX_PROBLEM_BYTES)];
        socket.read_exact(&mut body)?;
        return Err(Miss::Told(serde_json::from_slice(&body).unwrap_or_else(|_| broken())));
    }
    let scope = field(stream::SCOPE_HEADER).and_then(Scope::from_word);
    let scope = scope.ok_or_else(|| Miss::Told(broken()))?;
    socket.set_nonblocking(true)?;
    Ok((socket, scope))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers one request for a stream as a worker does, and ends after `frames`.
    fn serve_once(listener: &UnixListener, frames: &[u8]) -> UnixStream {
        let (mut peer, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            peer.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let scope = Scope::All.word();
        write!(
            peer,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{}: {scope}\r\n\r\n",
            stream::SCOPE_HEADER
        )
        .unwrap();
        peer.write_all(frames).unwrap();
        peer
    }

    #[test]
    fn a_worker_that_dies_before_it_gave_a_session_is_followed_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut session = stream::head(Kind::Session, 3).unwrap().to_vec();
        session.extend_from_slice(b"abc");
        let half = session[..session.len() - 1].to_vec();
        let workers = std::thread::spawn(move || {
            drop(serve_once(&listener, b""));
            drop(serve_once(&listener, &half));
            serve_once(&listener, &session)
        });
        let stream = Redacting::open(&Client::new(&path), Redact::default()).unwrap();
        assert_eq!(stream.session, b"abc");
        assert!(workers.join().is_ok());
    }
}
