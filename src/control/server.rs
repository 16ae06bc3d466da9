//! Serves the control interface on a socket that somebody else made.
//!
//! Invariant: every size and every wait is bounded: connections in all and for each uid, header,
//! body, time to send them, time to take an answer, verbs at once, streams at once. The peer is who
//! connected; its roles are judged anew at each request. Danger: a client that sends a byte a
//! minute, or one uid that takes every connection.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tower_service::Service;
use zeroize::Zeroizing;

use super::api::{Api, Claim};
use super::body::{collect, content_length, discard};
use super::lines::{Channel, LineBody};
use super::once::{Held, idempotency_key, no_key};
use super::openapi;
use super::patient::Patient;
use super::places::{Counts, Place, Seat};
use super::role::{Caller, Roles};
use super::route::{Input, JSON, Method, NDJSON, OCTETS, Reply, Route, Run, refusal};
use super::text;
use super::verbs::table;
use crate::proto::{Code, Problem, stream, wire};
use crate::sys::peer::Peer;

/// The bounds of the interface.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one uid.
    pub connections_per_uid: usize,
    /// Connections that only the daemon's own uid and root may use.
    pub reserved_connections: usize,
    /// Verbs that run at once; more wait for `queue_wait`.
    pub verbs: usize,
    /// Streams at once.
    pub streams: usize,
    /// Redacted streams that are open; idle ones cost no thread.
    pub redacted: usize,
    /// Those of one uid other than the daemon's own.
    pub redacted_per_uid: usize,
    /// Redacted streams that are worked on at once.
    pub redacting: usize,
    /// How long a request may wait for its turn.
    pub queue_wait: Duration,
    /// How long a client may take for a header, or be idle between requests.
    pub header_wait: Duration,
    /// How long a client may take for a body.
    pub body_wait: Duration,
    /// How long a client may take no byte of an answer.
    pub write_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connections_per_uid: 128,
            reserved_connections: 16,
            verbs: 16,
            streams: 32,
            redacted: 4096,
            redacted_per_uid: 1024,
            redacting: 16,
            queue_wait: Duration::from_secs(10),
            header_wait: Duration::from_secs(10),
            body_wait: Duration::from_secs(30),
            write_wait: Duration::from_secs(30),
        }
    }
}

/// The longest header section, in bytes: a query with a few names fits.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// The most header fields.
const MAX_HEADERS: usize = 64;
/// A stream that says nothing is answered with its header after this time.
const STREAM_HEADER_WAIT: Duration = Duration::from_millis(200);
/// A running server; dropping it stops it at once.
pub struct Server {
    stop: watch::Sender<Option<Duration>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Serves `listener` in a thread of its own.
    ///
    /// # Errors
    /// Where the thread or its runtime cannot be made.
    pub fn start(
        listener: UnixListener,
        api: Arc<dyn Api>,
        roles: Roles,
        limits: Limits,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(limits.verbs + limits.streams + limits.redacting)
            .thread_keep_alive(Duration::from_secs(60))
            .build()?;
        let (stop, stopped) = watch::channel(None);
        let shared = Arc::new(Shared {
            api,
            roles,
            limits,
            verbs: Arc::new(Semaphore::new(limits.verbs)),
            streams: Arc::new(Semaphore::new(limits.streams)),
            redacting: Arc::new(Semaphore::new(limits.redacting)),
            counts: Mutex::new(Counts::default()),
            redacted: Mutex::new(Counts::default()),
            own_uid: nix::unistd::geteuid().as_raw(),
            stopped: stopped.clone(),
        });
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            runtime.block_on(accept(listener, shared, stopped));
            // Verbs that still run must not hold the process.
            runtime.shutdown_timeout(Duration::from_millis(500));
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Takes no new connection, lets requests in work finish for at most `grace`, and returns.
    pub fn stop(mut self, grace: Duration) {
        self.halt(grace);
    }

    fn halt(&mut self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("control thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.halt(Duration::ZERO);
    }
}

pub(super) struct Shared {
    api: Arc<dyn Api>,
    roles: Roles,
    pub(super) limits: Limits,
    verbs: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    redacting: Arc<Semaphore>,
    /// A leaf lock: nothing else is locked while it is held.
    pub(super) counts: Mutex<Counts>,
    /// A leaf lock as well.
    pub(super) redacted: Mutex<Counts>,
    pub(super) own_uid: u32,
    stopped: watch::Receiver<Option<Duration>>,
}

async fn accept(
    listener: UnixListener,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "control socket cannot be served");
            return;
        }
    };
    let router = router(&shared);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(
                        stream, shared.clone(), router.clone(), stopped.clone(),
                    ));
                }
                Err(error) => {
                    // Out of descriptors: the next accept would fail as fast.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
    drop(listener);
    let grace = stopped.borrow().unwrap_or_default();
    let all_done = async { while connections.join_next().await.is_some() {} };
    // What is not done by then is cut off with the set.
    let _ = tokio::time::timeout(grace, all_done).await;
}

async fn connection(
    stream: UnixStream,
    shared: Arc<Shared>,
    router: Router,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    let peer = match Peer::of(stream.as_fd()) {
        Ok(peer) => Arc::new(peer),
        Err(error) => {
            tracing::warn!(%error, "peer has no credentials");
            return;
        }
    };
    let _place = match Place::take(&shared, peer.uid) {
        Ok(place) => place,
        Err(problem) => return refuse(&stream, &problem),
    };
    let limits = shared.limits;
    let service = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_wait)
        .max_header_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS)
        .half_close(false);
    let io = TokioIo::new(Patient::new(stream, limits.write_wait));
    let served = http.serve_connection(io, service).with_upgrades();
    tokio::pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        _ = stopped.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended early");
    }
}

/// Answers before any request was read: the client sees why instead of a closed connection.
fn refuse(stream: &UnixStream, problem: &Problem) {
    if let Ok(body) = wire::to_bytes(problem) {
        let mut answer = format!(
            "HTTP/1.1 {} Busy\r\ncontent-type: application/problem+json\r\n\
             retry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            problem.status,
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        // A fresh socket has room for it; a client that is gone needs no answer.
        let _ = stream.try_write(&answer);
    }
}

fn router(shared: &Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in table() {
        let filter = match route.method {
            Method::Get => MethodFilter::GET,
            Method::Post => MethodFilter::POST,
        };
        let shared = shared.clone();
        let handler = move |request: Request| answer(shared.clone(), route, request);
        router = router.route(route.path, on(filter, handler));
    }
    router
        .route(openapi::PATH, on(MethodFilter::GET, document))
        .fallback(async || {
            problem_response(
                &Problem::new(Code::NotFound, "there is no such path")
                    .with_hint("GET /v1/openapi.json lists all"),
            )
        })
        .method_not_allowed_fallback(async || {
            problem_response(
                &Problem::new(Code::MethodNotAllowed, "this path has another method")
                    .with_hint("GET /v1/openapi.json lists all"),
            )
        })
}

async fn document() -> Response {
    static TEXT: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| openapi::document().to_string());
    response(StatusCode::OK, JSON, Body::from(TEXT.as_str()))
}

async fn answer(shared: Arc<Shared>, route: &'static Route, request: Request) -> Response {
    let (head, mut body) = request.into_parts();
    match try_answer(shared, route, head, &mut body).await {
        Ok(response) => response,
        Err(problem) => {
            discard(&mut body).await;
            problem_response(&problem)
        }
    }
}

async fn try_answer(
    shared: Arc<Shared>,
    route: &'static Route,
    mut head: axum::http::request::Parts,
    body: &mut Body,
) -> Result<Response, Problem> {
    let peer = head
        .extensions
        .get::<Arc<Peer>>()
        .cloned()
        .ok_or_else(|| Problem::new(Code::Internal, "the peer is unknown"))?;
    let idempotency_key = idempotency_key(&head.headers)?;
    let pool = match route.run {
        Run::Once(_) | Run::Bytes(_) => &shared.verbs,
        Run::Stream(_) => &shared.streams,
    };
    // The judging needs a turn as well: it may have to look at the peer's cgroup.
    let judge = turn(&shared.verbs, shared.limits.queue_wait).await?;
    let caller = {
        let shared = shared.clone();
        blocking(judge, move || {
            let is_agent = shared.api.is_agent(&peer);
            let roles = shared.roles.of(&peer, is_agent);
            let caller = Caller { peer, is_agent, roles, idempotency_key };
            if route.needs.might_admit(&caller) {
                if route.confirmed && !shared.api.is_confirmed(&caller) {
                    return Err(confirm_needed(route.verb));
                }
                return Ok(caller);
            }
            shared.api.role_denied(&caller, route.verb);
            Err(refusal(&caller, route.verb, route.needs))
        })
        .await??
    };
    if caller.idempotency_key.is_some() && route.method == Method::Post && !route.kept {
        return Err(no_key(route.verb));
    }
    if let Run::Bytes(open) = &route.run {
        let uid = caller.peer.uid;
        let input = Input::Query(head.uri.query().unwrap_or_default().to_owned());
        let upgrade = head.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let upgrade = upgrade.filter(|_| wants_stream(&head.headers));
        let seat = upgrade.as_ref().map(|_| Seat::take(&shared, uid)).transpose()?;
        let bytes = match upgrade {
            Some(_) => Zeroizing::default(),
            None => {
                let length = content_length(&head.headers);
                collect(body, length, route.max_body_bytes, shared.limits.body_wait).await?
            }
        };
        let permit = turn(pool, shared.limits.queue_wait).await?;
        let whole = upgrade.is_none();
        let (texts, scope, redacted) = {
            let shared = shared.clone();
            blocking(permit, move || {
                let opened = open(&*shared.api, &caller, input);
                note_refusal(&*shared.api, &caller, route.verb, opened.as_ref().err());
                let mut texts = opened?;
                let redacted = if whole { text::whole(&mut *texts, &bytes)? } else { Bytes::new() };
                let scope = texts.scope();
                Ok::<_, Problem>((texts, scope, redacted))
            })
            .await??
        };
        let (status, body) = match (upgrade, seat) {
            (Some(upgrade), Some(seat)) => {
                let turns = shared.redacting.clone();
                tokio::spawn(text::serve(upgrade, texts, turns, shared.stopped.clone(), seat));
                (StatusCode::SWITCHING_PROTOCOLS, Body::empty())
            }
            _ => (StatusCode::OK, Body::from(redacted)),
        };
        let mut answer = response(status, OCTETS, body);
        let headers = answer.headers_mut();
        headers.insert(stream::SCOPE_HEADER, HeaderValue::from_static(scope.word()));
        if status == StatusCode::SWITCHING_PROTOCOLS {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static(stream::UPGRADE));
        }
        return Ok(answer);
    }
    let input = match route.method {
        Method::Get => Input::Query(head.uri.query().unwrap_or_default().to_owned()),
        Method::Post => {
            let length = content_length(&head.headers);
            Input::Body(collect(body, length, route.max_body_bytes, shared.limits.body_wait).await?)
        }
    };
    let permit = turn(pool, shared.limits.queue_wait).await?;
    match &route.run {
        // Answered above.
        Run::Bytes(_) => Err(Problem::new(Code::Internal, "bytes are not answered here")),
        Run::Once(run) => {
            let (reply, is_again) = blocking(permit, move || {
                let api = &*shared.api;
                let held = match (&caller.idempotency_key, &input) {
                    (Some(key), Input::Body(body)) => {
                        match api.claim(&caller, route.verb, key, body)? {
                            Claim::Again(body) => return Ok((Reply::again(body), true)),
                            Claim::Mine(claimed) => Some(Held { api, claimed, is_settled: false }),
                        }
                    }
                    _ => None,
                };
                let answer = run(api, &caller, input);
                note_refusal(api, &caller, route.verb, answer.as_ref().err());
                if let Some(held) = held {
                    held.settle(answer.as_ref().map(|reply| &*reply.body).ok());
                }
                answer.map(|reply| (reply, false))
            })
            .await??;
            let mut answer = reply_response(reply);
            if is_again {
                let name = header::HeaderName::from_static("idempotency-replayed");
                answer.headers_mut().insert(name, HeaderValue::from_static("true"));
            }
            Ok(answer)
        }
        Run::Stream(run) => {
            let (lines, received) = mpsc::channel(64);
            let (failed, mut failure) = oneshot::channel();
            let gone = Arc::new(AtomicBool::new(false));
            let began = Arc::new(AtomicBool::new(false));
            let mut out =
                Channel { lines, began: began.clone(), gone: gone.clone(), failed: Some(failed) };
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let ended = run(&*shared.api, &caller, input, &mut out);
                note_refusal(&*shared.api, &caller, route.verb, ended.as_ref().err());
                if let Err(problem) = ended {
                    out.fail(problem);
                }
            });
            // A problem before the first line is an ordinary answer; after it, the last line.
            match tokio::time::timeout(STREAM_HEADER_WAIT, &mut failure).await {
                Ok(Ok(problem)) if !began.load(Ordering::Acquire) => Err(problem),
                outcome => {
                    if let Ok(Ok(problem)) = outcome {
                        let (failed, told) = oneshot::channel();
                        failure = told;
                        // Its receiver is here.
                        let _ = failed.send(problem);
                    }
                    let body = Body::new(LineBody { received, failure, gone });
                    Ok(response(StatusCode::OK, NDJSON, body))
                }
            }
        }
    }
}

/// Whether a request wants the connection for frames.
fn wants_stream(headers: &header::HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes() == stream::UPGRADE.as_bytes())
}

fn confirm_needed(verb: &str) -> Problem {
    let what = format!("`{verb}` wants the vault's passphrase again");
    Problem::new(Code::ConfirmNeeded, what)
        .with_hint("ask from a terminal; or POST /v1/confirm from the same session first")
}

/// A verb that is refused after its request was read is recorded like one refused before.
fn note_refusal(api: &dyn Api, caller: &Caller, verb: &str, problem: Option<&Problem>) {
    if problem.is_some_and(|p| matches!(p.code, Code::NoRole | Code::AgentRefused)) {
        api.role_denied(caller, verb);
    }
}

async fn turn(pool: &Arc<Semaphore>, wait: Duration) -> Result<OwnedSemaphorePermit, Problem> {
    match tokio::time::timeout(wait, pool.clone().acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Problem::new(Code::Busy, "too many requests are in work")
            .with_hint("try again in a moment")),
    }
}

/// Runs in the blocking pool; a panic there is an answer, not a lost connection.
async fn blocking<T: Send + 'static>(
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    })
    .await
    .map_err(|error| {
        if error.is_panic() {
            tracing::error!("a verb panicked");
        }
        Problem::new(Code::Internal, "the verb ended without an answer")
            .with_hint("see the daemon's log; then: strongroom status")
    })
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn reply_response(reply: Reply) -> Response {
    response(StatusCode::OK, reply.content_type, Body::from(reply.body))
}

fn problem_response(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = Reply::json(problem).map_or_else(|_| Body::empty(), |r| Body::from(r.body));
    let mut response = response(status, "application/problem+json", body);
    if problem.code == Code::Busy {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    // The rest of a body that was not read would be taken for the next request.
    if matches!(problem.code, Code::TooLarge | Code::Timeout) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
