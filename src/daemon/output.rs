//! Redaction of what agents write to their output, and of texts that are sent to be redacted.
//!
//! Who asks decides what is looked for ([`Scope`]). What a client must bring to another worker is
//! sealed with a key of the vault: it sees neither names nor what is held back, and nothing passes
//! while the vault is locked. Invariant: what a stream looked for once it looks for to its end, also
//! when its agent is no longer registered. Danger: a peer that brings the session of another; each
//! is bound to its uid, and a state to its session.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::audit::record::Event;
use crate::broker::{Place, Refusal};
use crate::config::Permission;
use crate::control::{Caller, Texts};
use crate::execution::principal::Principal;
use crate::proto::stream::{self, Channel, Piece, Scope};
use crate::proto::{self, Code, Problem, Subject};
use crate::redact::{Level, Redactor, Sink, View};
use crate::vault::crypto::{self, Key};

use super::around::Around;
use super::core::Core;
use super::needles::Named;
use super::{Daemon, user_of};

/// What of a value on a terminal says too little of it to be waited for: keys that are typed are seen
/// at once.
const FEW_BYTES: usize = 4;
/// How long counts wait for their record while a stream goes on.
const RECORD_AFTER: Duration = Duration::from_secs(10);
/// Names that are counted apart; formats and values together are far fewer.
const MAX_NAMES: usize = 4096;

/// Who a stream is for; a client carries it, sealed, from worker to worker.
#[derive(Clone, Serialize, Deserialize)]
struct Session {
    /// 128 random bits in hex: its states are bound to it.
    id: String,
    scope: Scope,
    level: Level,
    uid: u32,
    channel: Option<Channel>,
    agent: Option<Agent>,
    /// What has a name in this stream.
    named: BTreeMap<String, String>,
}

/// Whose output it is.
#[derive(Clone, Serialize, Deserialize)]
struct Agent {
    chain: String,
    environment: Option<String>,
    execution: String,
    agent: String,
    user: String,
    workspace: String,
}

impl Agent {
    fn place(&self) -> Place {
        Place {
            folder: String::new(),
            chain: self.chain.clone(),
            environment: self.environment.clone(),
            execution: self.execution.clone(),
        }
    }
}

/// One stream.
pub(super) struct Stream {
    core: Arc<Core>,
    around: Arc<Around>,
    who: Caller,
    /// None until a session is brought.
    session: Option<Session>,
    place: Option<Place>,
    named: Arc<Named>,
    /// The session was not told since it changed.
    untold: bool,
    redactor: Redactor,
    /// The generation of the redactor's view.
    generation: Option<u64>,
    counts: BTreeMap<String, u64>,
    counted_since: Instant,
}

fn locked() -> Problem {
    Problem::new(Code::Locked, "the vault is locked: nothing can be redacted")
        .with_hint("strongroom unlock")
}

fn refused(refusal: &Refusal) -> Problem {
    match refusal {
        Refusal::Locked => locked(),
        _ => Problem::new(Code::Internal, "the values to be looked for cannot be read")
            .with_hint("see the daemon's log; then: strongroom doctor"),
    }
}

impl Daemon {
    /// A stream for `who`.
    pub(super) fn redact_texts(
        &self,
        who: &Caller,
        req: &proto::Redact,
    ) -> Result<Stream, Problem> {
        if req.level == Level::Off {
            return Err(Problem::new(Code::Invalid, "level `off` redacts nothing")
                .with_hint("values, formats or all"));
        }
        let mut stream = Stream {
            core: self.core.clone(),
            around: self.around.clone(),
            who: who.clone(),
            session: None,
            place: None,
            named: Arc::default(),
            untold: false,
            redactor: Redactor::new(Arc::new(View::empty()), req.level),
            generation: None,
            counts: BTreeMap::new(),
            counted_since: Instant::now(),
        };
        if req.resume {
            return Ok(stream);
        }
        let principal = match &req.launch {
            Some(launch) => Some(self.by_launch(who, launch)?),
            None => None,
        };
        let scope = match principal {
            Some(_) => Scope::Launch,
            None => scope_of(who),
        };
        if scope == Scope::Formats && req.level == Level::Values {
            // Passing all of it on would look like success.
            return Err(no_values(who));
        }
        let mut id = [0; 16];
        crypto::random(&mut id).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        stream.session = Some(Session {
            id: crypto::hex(&id),
            scope,
            level: req.level,
            uid: who.peer.uid,
            channel: req.channel,
            agent: principal.as_deref().map(agent_of),
            named: BTreeMap::new(),
        });
        stream.place = stream.agent().map(Agent::place);
        stream.untold = true;
        stream.follow()?;
        Ok(stream)
    }
}

fn agent_of(principal: &Principal) -> Agent {
    Agent {
        chain: principal.chain.clone(),
        environment: principal.environment.clone(),
        execution: principal.execution.to_string(),
        agent: principal.agent.clone(),
        user: principal.user.clone(),
        workspace: principal.workspace.clone(),
    }
}

/// What a peer without a launch has its texts searched for. Names and values of all are for those
/// who may see all; an agent could try out guesses.
fn scope_of(who: &Caller) -> Scope {
    let sees = [Permission::Operate, Permission::Audit];
    if sees.iter().any(|p| who.may(*p, Subject::Host)) { Scope::All } else { Scope::Formats }
}

fn no_values(who: &Caller) -> Problem {
    let code = if who.is_agent { Code::AgentRefused } else { Code::NoRole };
    Problem::new(code, "values are looked for on behalf of operators and auditors alone")
        .with_hint("known formats can be looked for by anybody: level formats")
}

fn not_ours() -> Problem {
    Problem::new(Code::Gone, "the stream cannot be taken up again")
        .with_hint("start it anew; it was made under another vault or by another user")
}

fn state_context(session: &Session) -> Vec<u8> {
    [b"state ".as_slice(), session.id.as_bytes()].concat()
}

const SESSION_CONTEXT: &[u8] = b"session";

impl Stream {
    fn agent(&self) -> Option<&Agent> {
        self.session.as_ref()?.agent.as_ref()
    }

    fn key(&self) -> Result<Key, Problem> {
        let seal = self.core.seal().ok_or_else(locked)?;
        Ok(seal.derive(b"", &[b"redacted stream"]))
    }

    /// Looks for what there is now.
    fn follow(&mut self) -> Result<(), Problem> {
        let generation = self.core.needles.generation();
        let Some(session) = &mut self.session else { return Err(not_ours()) };
        // Known formats need no vault, but what is held must be sealed.
        if self.core.seal().is_none() {
            return Err(locked());
        }
        if self.generation == Some(generation) {
            return Ok(());
        }
        match (session.scope, &self.place) {
            (Scope::All, _) => {
                let view = self.around.full().map_err(|r| refused(&r))?;
                self.redactor.set_view(view);
            }
            (Scope::Launch, Some(place)) => {
                let seen = self.around.seen(&self.named, place).map_err(|r| refused(&r))?;
                if seen.named != self.named {
                    session.named =
                        seen.named.iter().map(|(v, n)| (v.clone(), n.to_string())).collect();
                    self.named = seen.named;
                    self.untold = true;
                }
                self.redactor.set_view(seen.view);
                // Who sees what is held back of others' values could find them byte by byte.
                let on_terminal = session.channel == Some(Channel::Terminal);
                let few = if on_terminal { FEW_BYTES } else { 0 };
                self.redactor.set_watched(seen.own, few);
            }
            (Scope::Formats, _) => self.redactor.set_view(self.around.formats()),
            (Scope::Launch, None) => return Err(not_ours()),
        }
        self.generation = Some(generation);
        Ok(())
    }

    /// Counts what was hidden since the last time.
    fn count(&mut self) {
        for (name, count) in self.redactor.counts() {
            if name.is_empty()
                && let Some(place) = &self.place
            {
                self.around.count_foreign(place, count);
            }
            let known = self.counts.len() < MAX_NAMES || self.counts.contains_key(name);
            *self.counts.entry(if known { name } else { "" }.to_owned()).or_default() += count;
        }
        self.redactor.clear_counts();
    }

    /// One record for each name.
    fn record(&mut self) {
        self.counted_since = Instant::now();
        let Some(session) = &self.session else { return };
        let user = user_of(self.who.peer.uid);
        for (name, count) in std::mem::take(&mut self.counts) {
            let mut record = self.core.new_record(Event::OutputRedacted);
            record.secret_key = Some(name.as_str()).filter(|name| !name.is_empty());
            record.user = Some(&user);
            if let Some(agent) = &session.agent {
                record.chain = Some(&agent.chain);
                record.agent = Some(&agent.agent);
                record.user = Some(&agent.user);
                record.workspace = Some(&agent.workspace);
                record.environment = agent.environment.as_deref();
                record.execution = Some(&agent.execution);
            }
            record.uid = Some(self.who.peer.uid);
            record.pid = u32::try_from(self.who.peer.pid).ok();
            record.via = Some(if session.agent.is_some() { "output" } else { "redact" });
            record.reason = session.channel.map(Channel::word);
            record.count = Some(count);
            if self.core.log.append(&record, 0).is_err() {
                tracing::error!("a redaction could not be recorded");
            }
        }
    }

    /// What another worker needs, with the counts that are not recorded yet.
    fn state(&self) -> Zeroizing<Vec<u8>> {
        let saved = self.redactor.save();
        let mut out = Zeroizing::new(Vec::with_capacity(saved.len() + 64 * self.counts.len() + 8));
        out.extend_from_slice(&(self.counts.len() as u64).to_le_bytes());
        for (name, count) in &self.counts {
            out.extend_from_slice(&(name.len() as u64).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
        out.extend_from_slice(&saved);
        out
    }

    fn load(&mut self, state: &[u8]) -> Option<()> {
        fn number(from: &mut &[u8]) -> Option<u64> {
            let (number, rest) = from.split_first_chunk::<8>()?;
            *from = rest;
            Some(u64::from_le_bytes(*number))
        }
        let mut rest = state;
        for _ in 0..number(&mut rest)? {
            let len = usize::try_from(number(&mut rest)?).ok()?;
            let (name, after) = rest.split_at_checked(len)?;
            rest = after;
            let count = number(&mut rest)?;
            self.counts.insert(String::from_utf8(name.to_vec()).ok()?, count);
        }
        let level = self.session.as_ref()?.level;
        self.redactor = Redactor::resume(self.redactor.view().clone(), level, rest).ok()?;
        Some(())
    }
}

struct Put<'a>(&'a mut Vec<u8>);

impl Sink for Put<'_> {
    fn clear(&mut self, bytes: &[u8]) {
        stream::put_piece(self.0, Piece::Clear(bytes));
    }

    fn hidden(&mut self, _raw: &[u8]) {}

    fn marker(&mut self, text: &str, raw_len: u64) {
        stream::put_piece(self.0, Piece::Marker { text, raw_len });
    }
}

impl Texts for Stream {
    fn scope(&self) -> Scope {
        self.session.as_ref().map_or(Scope::Formats, |session| session.scope)
    }

    fn session(&mut self) -> Result<Option<Vec<u8>>, Problem> {
        let fault = |_| Problem::new(Code::Internal, "a session could not be sealed");
        let Some(session) = self.session.as_ref().filter(|_| self.untold) else { return Ok(None) };
        let plain = serde_json::to_vec(session).map_err(|_| fault(()))?;
        let sealed = self.key()?.seal(SESSION_CONTEXT, &plain).map_err(|_| fault(()))?;
        self.untold = false;
        Ok(Some(sealed))
    }

    fn resume(&mut self, session: &[u8], state: &[u8]) -> Result<(), Problem> {
        let key = self.key()?;
        let plain = key.open(SESSION_CONTEXT, session).map_err(|_| not_ours())?;
        let session: Session = serde_json::from_slice(plain.expose()).map_err(|_| not_ours())?;
        let uid = self.who.peer.uid;
        if uid != session.uid && uid != 0 {
            return Err(not_ours());
        }
        if session.scope == Scope::All && scope_of(&self.who) != Scope::All {
            return Err(no_values(&self.who));
        }
        let context = state_context(&session);
        let named = session.named.iter().map(|(v, n)| (v.clone(), n.as_str().into())).collect();
        self.named = Arc::new(named);
        self.redactor = Redactor::new(Arc::new(View::empty()), session.level);
        self.session = Some(session);
        self.place = self.agent().map(Agent::place);
        self.untold = true;
        self.follow()?;
        if !state.is_empty() {
            // The new redactor is told anew what to look for.
            self.generation = None;
            let plain = key.open(&context, state).map_err(|_| not_ours())?;
            self.load(plain.expose()).ok_or_else(not_ours)?;
            self.follow()?;
        }
        Ok(())
    }

    fn take(&mut self, input: &[u8], end: bool, out: &mut Vec<u8>) -> Result<(), Problem> {
        let fault = |_| Problem::new(Code::Internal, "what is held back could not be sealed");
        self.follow()?;
        let mut pieces = Zeroizing::new(Vec::with_capacity(input.len() + 256));
        self.redactor.push(input, &mut Put(&mut pieces));
        if end {
            self.redactor.finish(&mut Put(&mut pieces));
        }
        let consumed = self.redactor.taken();
        self.count();
        if end {
            let session = self.session.as_ref().ok_or_else(not_ours)?;
            self.redactor = Redactor::new(self.redactor.view().clone(), session.level);
            self.generation = None;
        }
        let is_agent = self.place.is_some();
        if self.counted_since.elapsed() > RECORD_AFTER || (end && is_agent) {
            self.record();
        }
        let session = self.session.as_ref().ok_or_else(not_ours)?;
        let sealed = self.key()?.seal(&state_context(session), &self.state());
        let sealed = sealed.map_err(|_| fault(stream::Broken))?;
        stream::put_out(out, consumed, end, &sealed).map_err(fault)?;
        out.extend_from_slice(&pieces);
        Ok(())
    }

    fn gone(&mut self) {
        self.record();
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}
