//! What a verb is: its place in the table, what a peer needs for it, how it is asked and answered.
//!
//! Invariant: parameters are decoded and the peer judged for what they name before a verb runs; the
//! constructors here are the one way to make a [`Route`].
#![forbid(unsafe_code)]

use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::api::{Api, Lines, Texts};
use super::role::Caller;
use crate::config::Permission;
use crate::proto::{self, Code, Problem, Request, wire};

/// The longest body of most requests, in bytes: one value of 1 MiB in base64 and its frame.
pub const MAX_BODY_BYTES: usize = 2 << 20;
/// The longest body of an import, in bytes.
pub const MAX_IMPORT_BYTES: usize = 8 << 20;
/// The longest body that carries a backup, in bytes.
pub const MAX_BACKUP_BYTES: usize = 256 << 20;

/// The longest text that is redacted without an upgrade of the connection, in bytes.
pub const MAX_TEXT_BYTES: usize = 32 << 20;

/// Which method a verb has: `GET` changes nothing, `POST` may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Reads; parameters in the query.
    Get,
    /// May change; parameters in the body.
    Post,
}

impl Method {
    /// As HTTP writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// What a peer needs for a verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Every one of these permissions.
    AllOf(&'static [Permission]),
    /// Some role, whatever it allows.
    AnyRole,
    /// Nothing: agents too.
    Anyone,
    /// `launch`; or being an agent, whose `may_launch` the verb then judges.
    LaunchOrAgent,
    /// One of these permissions.
    OneOf(&'static [Permission]),
}

impl Needs {
    /// Whether `caller` has it somewhere: judged before the body is read.
    pub fn might_admit(self, caller: &Caller) -> bool {
        self.judge(caller, |p| caller.may_somewhere(p))
    }

    /// Whether `caller` has it for this request.
    pub fn admits(self, caller: &Caller, subject: proto::Subject<'_>) -> bool {
        self.judge(caller, |p| caller.may(p, subject))
    }

    fn judge(self, caller: &Caller, may: impl Fn(Permission) -> bool) -> bool {
        match self {
            Self::AllOf(all) => all.iter().all(|p| may(*p)),
            Self::AnyRole => !caller.roles.is_empty(),
            Self::Anyone => true,
            Self::LaunchOrAgent => caller.is_agent || may(Permission::Launch),
            Self::OneOf(some) => some.iter().any(|p| may(*p)),
        }
    }

    /// Whether a role with exactly this permission has the verb: the cells of the manual's table.
    pub fn cell(self, permission: Permission) -> bool {
        match self {
            Self::AllOf(all) => all == [permission],
            Self::AnyRole | Self::Anyone => true,
            Self::LaunchOrAgent => permission == Permission::Launch,
            Self::OneOf(some) => some.contains(&permission),
        }
    }

    /// In words.
    pub fn text(self) -> String {
        let words = |all: &[Permission], between: &str| {
            all.iter().map(|p| p.word()).collect::<Vec<_>>().join(between)
        };
        match self {
            Self::AllOf(all) => words(all, " and "),
            Self::AnyRole => "any role".to_owned(),
            Self::Anyone => "nothing".to_owned(),
            Self::LaunchOrAgent => "launch, or may_launch of the agent".to_owned(),
            Self::OneOf(some) => words(some, " or "),
        }
    }
}

/// Parameters as they came.
pub enum Input {
    /// A body; empty counts as `{}`.
    Body(Zeroizing<Vec<u8>>),
    /// The query part of the path.
    Query(String),
}

impl Input {
    fn decode<Q: DeserializeOwned>(&self) -> Result<Q, Problem> {
        match self {
            Self::Body(body) if body.is_empty() => wire::from_bytes(b"{}"),
            Self::Body(body) => wire::from_bytes(body),
            Self::Query(query) => wire::from_query(query),
        }
    }
}

/// An answer that is complete at once.
pub struct Reply {
    /// Its media type.
    pub content_type: &'static str,
    /// Its bytes, wiped when they were sent.
    pub body: Bytes,
}

/// JSON, as the interface speaks it.
pub const JSON: &str = "application/json";
/// The text format of metrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Any bytes.
pub const OCTETS: &str = "application/octet-stream";
/// One JSON value a line.
pub const NDJSON: &str = "application/x-ndjson";

impl Reply {
    /// One that was given before.
    pub fn again(body: Vec<u8>) -> Self {
        Self { content_type: JSON, body: Bytes::from(body) }
    }

    /// Encodes an answer.
    ///
    /// # Errors
    /// [`Code::Internal`] where a type cannot be JSON.
    pub fn json<A: Serialize>(answer: &A) -> Result<Self, Problem> {
        let bytes = wire::to_bytes(answer)
            .map_err(|_| Problem::new(Code::Internal, "the answer could not be encoded"))?;
        Ok(Self { content_type: JSON, body: Bytes::from_owner(bytes) })
    }
}

type Once = Box<dyn Fn(&dyn Api, &Caller, Input) -> Result<Reply, Problem> + Send + Sync>;
type Stream =
    Box<dyn Fn(&dyn Api, &Caller, Input, &mut dyn Lines) -> Result<(), Problem> + Send + Sync>;

type Open = Box<dyn Fn(&dyn Api, &Caller, Input) -> Result<Box<dyn Texts>, Problem> + Send + Sync>;

/// What runs when a verb is asked for.
pub enum Run {
    /// Bytes for bytes: body for body, or frames after an upgrade; parameters in the query.
    Bytes(Open),
    /// One answer.
    Once(Once),
    /// Lines until the client goes or there are no more.
    Stream(Stream),
}

/// One verb.
pub struct Route {
    /// As the command line names it.
    pub verb: &'static str,
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    /// What a peer needs for it.
    pub needs: Needs,
    /// One sentence.
    pub about: &'static str,
    /// Whether asking twice does what asking once does, so that a client may retry.
    pub idempotent: bool,
    /// Whether the passphrase is wanted again for it, where the configuration says so.
    pub confirmed: bool,
    /// Whether its answer may be kept under an `Idempotency-Key`: it holds no value, no key and no
    /// ticket.
    pub kept: bool,
    /// The longest body, in bytes.
    pub max_body_bytes: usize,
    /// Schema of the parameters.
    pub request: fn(&mut SchemaGenerator) -> Schema,
    /// Schema of the answer, or of one line of it.
    pub response: fn(&mut SchemaGenerator) -> Schema,
    /// What runs.
    pub run: Run,
}

impl Route {
    pub(super) fn up_to(mut self, max_body_bytes: usize) -> Self {
        self.max_body_bytes = max_body_bytes;
        self
    }

    pub(super) fn confirmed(mut self) -> Self {
        self.confirmed = true;
        self
    }

    pub(super) fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    pub(super) fn unkept(mut self) -> Self {
        self.kept = false;
        self
    }
}

/// The problem of a peer without the role for a verb.
pub fn refusal(caller: &Caller, verb: &str, needs: Needs) -> Problem {
    if caller.is_agent {
        return Problem::new(
            Code::AgentRefused,
            format!("a process of an execution asked for `{verb}`; agents have no role"),
        )
        .with_hint("ask from outside the agent; an agent may ask GET /v1/self");
    }
    if !caller.peer.is_alive() {
        return Problem::new(Code::NoRole, "the process that opened this connection has ended")
            .with_hint("connect from the process that asks");
    }
    let hint = if caller.roles.is_empty() {
        format!("uid {} has no role; add it to a [[role]] in strongroom.toml", caller.peer.uid)
    } else {
        format!(
            "role {} does not allow it here; needed: {}",
            caller.role_names().join(", "),
            needs.text()
        )
    };
    Problem::new(Code::NoRole, format!("`{verb}` is not allowed")).with_hint(hint)
}

type Call<Q, A> = fn(&dyn Api, &Caller, Q) -> Result<A, Problem>;
type StreamCall<Q> = fn(&dyn Api, &Caller, Q, &mut dyn Lines) -> Result<(), Problem>;

pub(super) fn decode_and_judge<Q: Request + DeserializeOwned>(
    caller: &Caller,
    input: &Input,
    verb: &'static str,
    needs: Needs,
) -> Result<Q, Problem> {
    let request: Q = input.decode()?;
    if needs.admits(caller, request.subject()) {
        Ok(request)
    } else {
        Err(refusal(caller, verb, needs))
    }
}

fn once<Q, A>(
    (verb, method, path): (&'static str, Method, &'static str),
    needs: Needs,
    about: &'static str,
    call: Call<Q, A>,
) -> Route
where
    Q: Request + DeserializeOwned + JsonSchema + 'static,
    A: Serialize + JsonSchema + 'static,
{
    Route {
        verb,
        method,
        path,
        needs,
        about,
        idempotent: method == Method::Get,
        confirmed: false,
        kept: method == Method::Post,
        max_body_bytes: MAX_BODY_BYTES,
        request: SchemaGenerator::subschema_for::<Q>,
        response: SchemaGenerator::subschema_for::<A>,
        run: Run::Once(Box::new(move |api, caller, input| {
            let request: Q = decode_and_judge(caller, &input, verb, needs)?;
            drop(input);
            Reply::json(&call(api, caller, request)?)
        })),
    }
}

pub(super) fn get<Q, A>(
    verb: &'static str,
    path: &'static str,
    needs: Needs,
    about: &'static str,
    call: Call<Q, A>,
) -> Route
where
    Q: Request + DeserializeOwned + JsonSchema + 'static,
    A: Serialize + JsonSchema + 'static,
{
    once((verb, Method::Get, path), needs, about, call)
}

pub(super) fn post<Q, A>(
    verb: &'static str,
    path: &'static str,
    needs: Needs,
    about: &'static str,
    call: Call<Q, A>,
) -> Route
where
    Q: Request + DeserializeOwned + JsonSchema + 'static,
    A: Serialize + JsonSchema + 'static,
{
    once((verb, Method::Post, path), needs, about, call)
}

pub(super) fn stream<Q, A>(
    verb: &'static str,
    path: &'static str,
    needs: Needs,
    about: &'static str,
    call: StreamCall<Q>,
) -> Route
where
    Q: Request + DeserializeOwned + JsonSchema + 'static,
    A: JsonSchema + 'static,
{
    Route {
        verb,
        method: Method::Get,
        path,
        needs,
        about,
        idempotent: true,
        confirmed: false,
        kept: false,
        max_body_bytes: MAX_BODY_BYTES,
        request: SchemaGenerator::subschema_for::<Q>,
        response: SchemaGenerator::subschema_for::<A>,
        run: Run::Stream(Box::new(move |api, caller, input, out| {
            let request: Q = decode_and_judge(caller, &input, verb, needs)?;
            call(api, caller, request, out)
        })),
    }
}

pub(super) fn stream_post<Q, A>(
    verb: &'static str,
    path: &'static str,
    needs: Needs,
    about: &'static str,
    call: StreamCall<Q>,
) -> Route
where
    Q: Request + DeserializeOwned + JsonSchema + 'static,
    A: JsonSchema + 'static,
{
    let route = stream::<Q, A>(verb, path, needs, about, call);
    Route { method: Method::Post, idempotent: false, ..route }
}
