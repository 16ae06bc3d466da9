//! Redacted streams on upgraded connections: frames in, frames out.
//!
//! A stream that waits for its client costs no thread; one with work takes a turn in a bounded pool
//! and gives it back when its client is slow. Invariant: an answer is complete or it was never
//! given, and nothing passes once redaction has failed. Danger: clients that do not read, which must
//! not keep others from their turns.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{Semaphore, watch};
use zeroize::Zeroizing;

use super::api::Texts;
use super::patient::Patient;
use crate::proto::stream::{self, Broken, Kind, Out, Piece};
use crate::proto::{Code, Problem, wire};

/// How long a turn waits for more work before it ends.
const LINGER_MS: u8 = 5;
/// How long a turn may last while others may wait.
const TURN: Duration = Duration::from_millis(200);
/// Room for input: several frames at once.
const ROOM_BYTES: usize = 4 * (stream::MAX_DATA_BYTES + stream::HEAD_BYTES);

/// Redacts a whole text.
pub(super) fn whole(texts: &mut dyn Texts, bytes: &[u8]) -> Result<Bytes, Problem> {
    let broken = |_| Problem::new(Code::Internal, "the text could not be redacted");
    let mut answer = Zeroizing::new(Vec::new());
    texts.take(bytes, true, &mut answer)?;
    texts.gone();
    let out = Out::parse(&answer).map_err(broken)?;
    let mut redacted = Zeroizing::new(Vec::with_capacity(bytes.len()));
    let mut put = |piece: Piece<'_>| match piece {
        Piece::Clear(bytes) => redacted.extend_from_slice(bytes),
        Piece::Marker { text, .. } => redacted.extend_from_slice(text.as_bytes()),
    };
    out.each(&mut put).map_err(broken)?;
    Ok(Bytes::from_owner(redacted))
}

/// Serves a connection once it is upgraded, until its client goes or the server stops.
pub(super) async fn serve(
    upgrade: hyper::upgrade::OnUpgrade,
    texts: Box<dyn Texts>,
    turns: Arc<Semaphore>,
    mut stopped: watch::Receiver<Option<Duration>>,
    seat: impl Send,
) {
    // Given back however this ends.
    let _seat = seat;
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(parts) = upgraded.downcast::<TokioIo<Patient>>() else { return };
    let mut stream = parts.io.into_inner().into_stream();
    let mut work = Box::new(Work {
        texts,
        input: Zeroizing::new(parts.read_buf.to_vec()),
        output: Zeroizing::default(),
        sent: 0,
        greeted: false,
        began: false,
        ended: false,
    });
    let mut wait = Wait::Turn;
    loop {
        let ready = async {
            match wait {
                Wait::Input => stream.readable().await,
                Wait::Room => stream.writable().await,
                Wait::Turn => Ok(()),
            }
        };
        tokio::select! {
            // The client shows its state to the next worker.
            _ = stopped.changed() => return,
            ready = ready => if ready.is_err() { break },
        }
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let Ok(plain) = stream.into_std() else { return };
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut plain = plain;
            let next = work.turn(&mut plain);
            (work, plain, next)
        });
        let next;
        let plain;
        match done.await {
            Ok(done) => (work, plain, next) = done,
            Err(_) => {
                tracing::error!("a redacted stream panicked");
                return;
            }
        }
        match next {
            Ok(next) => wait = next,
            Err(_) => break,
        }
        let Ok(again) = tokio::net::UnixStream::from_std(plain) else { return };
        stream = again;
    }
    work.texts.gone();
}

/// What a stream waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// More from the client.
    Input,
    /// The client, to take what is there.
    Room,
    /// Its turn: others had to wait for it.
    Turn,
}

struct Work {
    texts: Box<dyn Texts>,
    /// Frames that are not answered yet.
    input: Zeroizing<Vec<u8>>,
    /// Answers, sent up to `sent`.
    output: Zeroizing<Vec<u8>>,
    sent: usize,
    /// The client has its session.
    greeted: bool,
    /// A frame was seen.
    began: bool,
    /// Nothing is answered after what is in `output`.
    ended: bool,
}

fn is_ready(stream: &UnixStream, flags: PollFlags, wait_ms: u8) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), flags)];
    poll(&mut fds, PollTimeout::from(wait_ms)).is_ok_and(|n| n > 0)
}

impl Work {
    /// Works while there is something to do.
    fn turn(&mut self, stream: &mut UnixStream) -> io::Result<Wait> {
        let began = Instant::now();
        if !self.greeted {
            self.greeted = true;
            if let Err(problem) = self.tell_session() {
                self.fail(&problem)?;
            }
        }
        loop {
            if !self.send(stream)? {
                return Ok(Wait::Room);
            }
            if self.ended {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if self.answer()? {
                continue;
            }
            if began.elapsed() > TURN {
                return Ok(Wait::Turn);
            }
            if !self.receive(stream)? {
                if self.input.is_empty() {
                    // An idle stream keeps no room.
                    (self.input, self.output) = Default::default();
                }
                return Ok(Wait::Input);
            }
        }
    }

    /// Sends what there is; whether all of it is gone.
    fn send(&mut self, stream: &mut UnixStream) -> io::Result<bool> {
        while self.sent < self.output.len() {
            match stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !is_ready(stream, PollFlags::POLLOUT, LINGER_MS) {
                        return Ok(false);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Takes in what has come; false where nothing has.
    fn receive(&mut self, stream: &mut UnixStream) -> io::Result<bool> {
        let len = self.input.len();
        // A first frame may be longer than what is usual.
        let room = ROOM_BYTES.max(len + stream::MAX_DATA_BYTES);
        if self.input.capacity() < room {
            // A vector that grows by itself leaves its old bytes behind.
            let mut grown = Zeroizing::new(Vec::with_capacity(room));
            grown.extend_from_slice(&self.input);
            self.input = grown;
        }
        loop {
            self.input.resize(room, 0);
            let read = stream.read(&mut self.input[len..]);
            self.input.truncate(len + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !is_ready(stream, PollFlags::POLLIN, LINGER_MS) {
                        return Ok(false);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Answers the first frame that is complete; false where none is.
    fn answer(&mut self) -> io::Result<bool> {
        let broken = |_: Broken| io::Error::from(ErrorKind::InvalidData);
        let input = std::mem::take(&mut self.input);
        let Some((kind, payload, len)) = stream::first(&input).map_err(broken)? else {
            self.input = input;
            return Ok(false);
        };
        let answered = self.answer_one(kind, payload);
        let rest = input.len() - len;
        self.input = input;
        self.input.copy_within(len.., 0);
        zeroize::Zeroize::zeroize(&mut self.input[rest..]);
        self.input.truncate(rest);
        if let Err(problem) = answered {
            self.fail(&problem)?;
        }
        Ok(true)
    }

    /// Nothing that was decided before is lost; nothing passes after.
    fn fail(&mut self, problem: &Problem) -> io::Result<()> {
        let text = wire::to_bytes(problem)?;
        put(&mut self.output, Kind::Fail, &text).map_err(|_| ErrorKind::InvalidData)?;
        self.ended = true;
        Ok(())
    }

    fn answer_one(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Problem> {
        let broken = |_| Problem::new(Code::BadRequest, "the redaction stream is broken");
        let first = !std::mem::replace(&mut self.began, true);
        let (input, end) = match kind {
            Kind::Data => (payload, false),
            Kind::End => (&[][..], true),
            Kind::Resume if first => {
                let (session, state) = stream::parse_resume(payload).map_err(broken)?;
                self.texts.resume(session, state)?;
                return self.tell_session();
            }
            _ => return Err(broken(Broken)),
        };
        let mut answer = Zeroizing::new(Vec::with_capacity(payload.len() + (1 << 10)));
        self.texts.take(input, end, &mut answer)?;
        self.tell_session()?;
        put(&mut self.output, Kind::Out, &answer).map_err(broken)
    }

    fn tell_session(&mut self) -> Result<(), Problem> {
        let broken = |_| Problem::new(Code::Internal, "a session is too long");
        match self.texts.session()? {
            Some(session) => put(&mut self.output, Kind::Session, &session).map_err(broken),
            None => Ok(()),
        }
    }
}

fn put(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) -> Result<(), Broken> {
    out.extend_from_slice(&stream::head(kind, payload.len())?);
    out.extend_from_slice(payload);
    Ok(())
}
