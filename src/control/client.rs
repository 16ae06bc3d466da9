//! The command line's side of the control socket: blocking, one request a connection.
//!
//! Invariant: what is asked while the worker is being replaced is asked again where that does nothing
//! twice: the verb says so, or takes an `Idempotency-Key`. Any other is sent once. Bodies of requests
//! and answers are wiped. Danger: a daemon that is gone must be told from one that is busy.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::once::UNANSWERED;
use super::route::Method;
use super::verbs;
use crate::proto::{Code, Confirm, Done, Problem, Value, wire};
use crate::secret::SecretBytes;

/// How long a worker may take to be replaced.
const PATIENCE: Duration = Duration::from_secs(5);
/// A worker that died over a request after so long was there to serve: the next one is waited for anew.
const SERVED: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// How long an answer may take: ending an execution waits for its processes.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// The longest answer, in bytes: a backup.
const MAX_ANSWER_BYTES: usize = 512 << 20;

/// A daemon, by its socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    /// Asks a person for the passphrase, where the daemon wants it again.
    passphrase: Option<fn() -> Option<SecretBytes>>,
}

enum Failure {
    /// The connection broke before an answer.
    Broken(io::Error),
    /// It broke when the request was in work, and what came of it cannot be told.
    Lost(io::Error),
    /// Nobody listens.
    Nobody(io::Error),
    /// The daemon's own answer.
    Told(Box<Problem>),
}

impl Client {
    /// The daemon that listens at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), passphrase: None }
    }

    /// The same, with somebody to ask for the passphrase where the daemon wants it again.
    #[must_use]
    pub fn asking(mut self, passphrase: fn() -> Option<SecretBytes>) -> Self {
        self.passphrase = Some(passphrase);
        self
    }

    fn confirm(&self) -> Option<Result<Done, Failure>> {
        let passphrase = self.passphrase?()?;
        let body = wire::to_bytes(&Confirm { passphrase: Value::new(passphrase) }).ok()?;
        Some(self.once("POST", "/v1/confirm", &body))
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks with `GET`; parameters go into the query.
    ///
    /// # Errors
    /// The daemon's problem, or that it cannot be reached.
    pub fn get<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        query: &Q,
    ) -> Result<A, Problem> {
        let path = with_query(path, query)?;
        self.repeat(true, |client| client.once("GET", &path, &[]))
    }

    /// Asks with `POST`.
    ///
    /// # Errors
    /// The daemon's problem, or that it cannot be reached.
    pub fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, Problem> {
        let body = encoded(body)?;
        let route = verbs::table().iter().find(|r| r.method == Method::Post && r.path == path);
        match route {
            Some(route) if route.idempotent => {
                self.repeat(true, |client| client.once("POST", path, &body))
            }
            Some(route) if route.kept => self.post_under_a_key(path, &body),
            _ => self.repeat(false, |client| client.once("POST", path, &body)),
        }
    }

    /// Asks for what `ask` makes of a random id of 32 hex digits. Where no answer came, what may have
    /// been done under that id is undone, and asked for under another.
    ///
    /// # Errors
    /// The daemon's problem, or that it cannot be reached.
    pub fn post_or_undo<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        ask: impl Fn(String) -> Q,
        undo: impl Fn(String) -> Result<(), Problem>,
    ) -> Result<A, Problem> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let id = random_id()?;
            let body = encoded(&ask(id.clone()))?;
            let broken = Cell::new(false);
            let answer = self.repeat(false, |client| {
                let asked = client.once("POST", path, &body);
                broken.set(matches!(asked, Err(Failure::Broken(_))));
                asked
            });
            match answer {
                Err(_) if broken.get() && Instant::now() < deadline => undo(id)?,
                other => return other,
            }
        }
    }

    /// Asks under a key, so that it is done once however often it is asked.
    fn post_under_a_key<A: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<A, Problem> {
        let key = random_id()?;
        let broken = Cell::new(None);
        self.repeat(true, |client| {
            let asked = client.ask("POST", path, body, Some(ANSWER_WAIT), Some(&key));
            match asked {
                // A locked vault knows no keys. Nothing was done, unless an earlier worker had begun.
                Err(Failure::Told(problem)) if problem.code == Code::Locked => {
                    match broken.take() {
                        Some(error) => Err(Failure::Lost(error)),
                        None => client.once("POST", path, body),
                    }
                }
                Err(Failure::Told(problem)) if problem.code == Code::Conflict => {
                    // Begun by a worker that died: whether it took effect nobody knows.
                    let unknown = problem.detail.contains(UNANSWERED);
                    match broken.take().filter(|_| unknown) {
                        Some(error) => Err(Failure::Lost(error)),
                        None => Err(Failure::Told(problem)),
                    }
                }
                Err(Failure::Broken(error)) => {
                    broken.set(Some(io::Error::from(error.kind())));
                    Err(Failure::Broken(error))
                }
                other => other,
            }
        })
    }

    /// Asks with `POST`, again where the worker is being replaced: for what may be done twice.
    ///
    /// # Errors
    /// The daemon's problem, or that it cannot be reached.
    pub fn post_again<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, Problem> {
        let body = encoded(body)?;
        self.repeat(true, |client| client.once("POST", path, &body))
    }

    /// The same for what may take its time.
    ///
    /// # Errors
    /// The daemon's problem, or that it cannot be reached.
    pub fn post_patiently<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, Problem> {
        let body = encoded(body)?;
        self.repeat(true, |client| client.ask("POST", path, &body, None, None))
    }

    /// Follows a stream of lines until it ends or `each` returns false.
    ///
    /// # Errors
    /// The daemon's problem, or that it cannot be reached.
    pub fn stream<Q: Serialize>(
        &self,
        path: &str,
        query: &Q,
        each: impl FnMut(&str) -> bool,
    ) -> Result<(), Problem> {
        let path = with_query(path, query)?;
        let (_, body) = self.send("GET", &path, &[], None, None).map_err(|f| self.problem(f))?;
        self.lines(body, each)
    }

    /// The same for a verb that changes something.
    ///
    /// # Errors
    /// The daemon's problem, or that it cannot be reached.
    pub fn stream_post<Q: Serialize>(
        &self,
        path: &str,
        request: &Q,
        each: impl FnMut(&str) -> bool,
    ) -> Result<(), Problem> {
        let body = encoded(request)?;
        let (_, body) = self.send("POST", path, &body, None, None).map_err(|f| self.problem(f))?;
        self.lines(body, each)
    }

    fn lines(&self, mut body: Body, mut each: impl FnMut(&str) -> bool) -> Result<(), Problem> {
        let mut line = String::new();
        loop {
            line.clear();
            match body.read_line(&mut line) {
                Ok(0) => return Ok(()),
                Ok(_) if !each(line.trim_end_matches('\n')) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(self.problem(Failure::Broken(error))),
            }
        }
    }

    fn repeat<A>(
        &self,
        idempotent: bool,
        ask: impl Fn(&Self) -> Result<A, Failure>,
    ) -> Result<A, Problem> {
        let mut deadline = Instant::now() + PATIENCE;
        let mut asked = false;
        loop {
            let begun = Instant::now();
            let answer = ask(self);
            if let Err(Failure::Broken(error)) = &answer
                && error.kind() != io::ErrorKind::WouldBlock
                && begun.elapsed() >= SERVED
            {
                deadline = Instant::now() + PATIENCE;
            }
            match answer {
                Ok(answer) => return Ok(answer),
                // Refused before anything was done.
                Err(Failure::Told(problem)) if problem.code == Code::ConfirmNeeded && !asked => {
                    asked = true;
                    match self.confirm() {
                        Some(Ok(_)) => {}
                        Some(Err(failure)) => return Err(self.problem(failure)),
                        None => return Err(*problem),
                    }
                }
                Err(Failure::Broken(_)) if idempotent && Instant::now() < deadline => {
                    std::thread::park_timeout(PAUSE);
                }
                Err(failure) => return Err(self.problem(failure)),
            }
        }
    }

    fn problem(&self, failure: Failure) -> Problem {
        match failure {
            Failure::Told(problem) => *problem,
            Failure::Nobody(error) => Problem::new(
                Code::Unavailable,
                match error.kind() {
                    // All that these say is that nobody is there.
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                        format!("no daemon listens at {}", self.socket.display())
                    }
                    _ => format!("no daemon listens at {}: {error}", self.socket.display()),
                },
            )
            .with_hint("strongroom up"),
            Failure::Broken(error) => Problem::new(
                Code::Unavailable,
                format!("the daemon at {} gave no answer: {error}", self.socket.display()),
            )
            .with_hint("strongroom status tells whether it is well; then try again"),
            Failure::Lost(error) => Problem::new(
                Code::Unavailable,
                format!("the daemon's worker died while it did this: {error}"),
            )
            .with_hint("look whether it took effect before you try again"),
        }
    }

    fn once<A: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<A, Failure> {
        self.ask(method, path, body, Some(ANSWER_WAIT), None)
    }

    fn ask<A: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        wait: Option<Duration>,
        key: Option<&str>,
    ) -> Result<A, Failure> {
        let (_, mut reader) = self.send(method, path, body, wait, key)?;
        let answer = read_all(&mut reader).map_err(Failure::Broken)?;
        wire::from_bytes(&answer).map_err(|problem| Failure::Told(Box::new(problem)))
    }

    /// Sends a request; the status and a reader of the body, chunked or not.
    fn send(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        wait: Option<Duration>,
        key: Option<&str>,
    ) -> Result<(u16, Body), Failure> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => Failure::Broken(e),
            _ => Failure::Nobody(e),
        })?;
        stream.set_read_timeout(wait).map_err(Failure::Broken)?;
        let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: strongroom\r\nconnection: close\r\n{key}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        // A refusal may come before the body was taken: the answer says more than the broken pipe.
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        let mut reader = BufReader::new(stream);
        let parsed = read_head(&mut reader);
        let (status, chunked, length) = match (parsed, sent) {
            (Ok(head), _) => head,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(Failure::Broken(error)),
        };
        let mut body = Body {
            reader,
            chunked,
            left: length.unwrap_or(0),
            until_end: !chunked && length.is_none(),
            first: true,
        };
        if (200..300).contains(&status) {
            return Ok((status, body));
        }
        let answer = read_all(&mut body).map_err(Failure::Broken)?;
        let problem = serde_json::from_slice(&answer).unwrap_or_else(|_| {
            Problem::new(Code::Internal, format!("the daemon answered with status {status}"))
        });
        Err(Failure::Told(Box::new(problem)))
    }
}

fn random_id() -> Result<String, Problem> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|_| Problem::new(Code::Internal, "the kernel gives no random bytes"))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn encoded<Q: Serialize>(body: &Q) -> Result<zeroize::Zeroizing<Vec<u8>>, Problem> {
    wire::to_bytes(body).map_err(|_| Problem::new(Code::Internal, "the request cannot be encoded"))
}

pub(super) fn with_query<Q: Serialize>(path: &str, query: &Q) -> Result<String, Problem> {
    let value = serde_json::to_value(query)
        .map_err(|_| Problem::new(Code::Internal, "the request cannot be encoded"))?;
    let mut text = String::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let value = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Bool(false) => continue,
            other => other.to_string(),
        };
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    Ok(format!("{path}{text}"))
}

/// Status, whether the body comes in chunks, and its length.
fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, bool, Option<usize>)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP");
    let mut line = String::new();
    if reader.take(8192).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    let (mut chunked, mut length) = (false, None);
    loop {
        line.clear();
        reader.take(8192).read_line(&mut line)?;
        let header = line.trim_end();
        if header.is_empty() {
            return Ok((status, chunked, length));
        }
        let (name, value) = header.split_once(':').ok_or_else(bad)?;
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            "content-length" => length = Some(value.trim().parse().map_err(|_| bad())?),
            _ => {}
        }
    }
}

fn read_all(body: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut all = Zeroizing::new(Vec::new());
    let mut buffer = Zeroizing::new(vec![0; 64 << 10]);
    loop {
        match body.read(&mut buffer)? {
            0 => return Ok(all),
            n if all.len() + n > MAX_ANSWER_BYTES => {
                return Err(io::Error::other("the answer is too long"));
            }
            n => {
                if all.capacity() < all.len() + n {
                    // Grown by copy, so that the outgrown buffer is wiped.
                    let mut larger = Zeroizing::new(Vec::with_capacity((all.len() + n) * 2));
                    larger.extend_from_slice(&all);
                    all = larger;
                }
                all.extend_from_slice(&buffer[..n]);
            }
        }
    }
}

/// A body, without its chunks' frames.
struct Body {
    reader: BufReader<UnixStream>,
    chunked: bool,
    left: usize,
    until_end: bool,
    first: bool,
}

impl Body {
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut line = String::new();
        if !self.first {
            (&mut self.reader).take(8).read_line(&mut line)?;
            line.clear();
        }
        self.first = false;
        if (&mut self.reader).take(1024).read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let size = line.trim().split(';').next().unwrap_or("");
        self.left = usize::from_str_radix(size, 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a chunk has no size"))?;
        if self.left == 0 {
            self.chunked = false;
        }
        Ok(())
    }
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.until_end {
            return self.reader.read(into);
        }
        if self.left == 0 && self.chunked {
            self.next_chunk()?;
        }
        let most = into.len().min(self.left);
        if most == 0 {
            return Ok(0);
        }
        let n = self.reader.read(&mut into[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n;
        Ok(n)
    }
}

impl Body {
    fn read_line(&mut self, line: &mut String) -> io::Result<usize> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while self.read(&mut byte)? == 1 {
            bytes.push(byte[0]);
            if byte[0] == b'\n' {
                break;
            }
        }
        line.push_str(&String::from_utf8_lossy(&bytes));
        Ok(bytes.len())
    }
}
