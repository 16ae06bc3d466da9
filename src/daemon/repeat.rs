//! Answers that are given again: requests that a client repeats under one `Idempotency-Key`.
//!
//! Invariant: what was begun under a key is not begun again while the key is known, also not by the
//! next worker: the key is noted in the runtime state before the verb runs, and its answer after it.
//! Bounds: [`WINDOW`], [`MAX_KEYS`], [`MAX_ANSWER_BYTES`]. No answer that holds a value comes here, and
//! of a request only a keyed digest is kept.
#![forbid(unsafe_code)]

use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::control::{Caller, Claim, Claimed, Outcome, UNANSWERED};
use crate::execution::journal::Kind;
use crate::proto::{Code, Problem};
use crate::vault::crypto;

use super::Daemon;

/// How long a key is known.
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// Keys that are known at one time; the oldest makes room.
const MAX_KEYS: usize = 256;
/// The longest answer that is kept.
const MAX_ANSWER_BYTES: usize = 16 << 10;

#[derive(Serialize, Deserialize)]
struct Entry {
    /// Keyed digest of the request.
    request: String,
    at: Timestamp,
    /// Whose worker began it.
    generation: u64,
    state: State,
}

#[derive(Serialize, Deserialize)]
enum State {
    Answered(String),
    Begun,
    Lost,
    TooLong,
}

impl Entry {
    fn is_over(&self, now: Timestamp) -> bool {
        // Either way: a clock may be set back.
        now.duration_since(self.at).unsigned_abs() > WINDOW
    }

    /// What is told to whoever repeats the request.
    fn again(self, generation: u64) -> Result<Claim, Problem> {
        let look = "look whether it took effect; then ask with a new key, if need be";
        match self.state {
            State::Answered(text) => Ok(Claim::Again(text.into_bytes())),
            State::Begun if self.generation == generation => {
                Err(Problem::new(Code::Busy, "a request with this Idempotency-Key is in work")
                    .with_hint("try again in a moment: it is answered then"))
            }
            State::Begun | State::Lost => {
                Err(Problem::new(Code::Conflict, UNANSWERED).with_hint(look))
            }
            State::TooLong => Err(Problem::new(
                Code::Conflict,
                "the request with this Idempotency-Key was done; its answer was too long to be kept",
            )
            .with_hint(look)),
        }
    }
}

impl Daemon {
    pub(super) fn claim_answer(
        &self,
        who: &Caller,
        verb: &str,
        key: &str,
        body: &[u8],
    ) -> Result<Claim, Problem> {
        let seal = self.core.seal().ok_or_else(|| {
            Problem::new(Code::Locked, "the vault is locked: no Idempotency-Key is known")
                .with_hint("strongroom unlock; or leave the header out")
        })?;
        let request = crypto::hex(seal.derive(body, &[b"repeated request"]).expose());
        let uid = who.peer.uid.to_be_bytes();
        let name = crypto::digest(&[&uid, verb.as_bytes(), b"\0", key.as_bytes()]);
        let journal = self.registry.journal();
        let _turn = self.repeating.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, generation) = (self.core.clock.now(), self.state.generation());
        if let Some(text) = journal.get(Kind::Answer, &name)
            && let Ok(entry) = serde_json::from_slice::<Entry>(&text)
            && !entry.is_over(now)
        {
            if entry.request != request {
                let what = "this Idempotency-Key was used for another request";
                return Err(Problem::new(Code::Conflict, what)
                    .with_hint("a new key for each request, the same one for its repetitions"));
            }
            return entry.again(generation);
        }
        self.make_room(now, generation)?;
        let entry = Entry { request, at: now, generation, state: State::Begun };
        self.put_answer(&name, &entry)?;
        Ok(Claim::Mine(Claimed(name)))
    }

    /// Forgets what is over, and the oldest of too many.
    fn make_room(&self, now: Timestamp, generation: u64) -> Result<(), Problem> {
        let full = |_| Problem::new(Code::Busy, "the runtime state is full");
        let journal = self.registry.journal();
        let mut others = Vec::new();
        let mut count = 0;
        for (name, text) in journal.all(Kind::Answer) {
            let entry = serde_json::from_slice::<Entry>(&text).ok().filter(|e| !e.is_over(now));
            let Some(entry) = entry else {
                journal.remove(Kind::Answer, &name).map_err(full)?;
                continue;
            };
            count += 1;
            if !(matches!(entry.state, State::Begun) && entry.generation == generation) {
                others.push((entry.at, name));
            }
        }
        if count < MAX_KEYS {
            return Ok(());
        }
        match others.iter().min() {
            Some((_, oldest)) => journal.remove(Kind::Answer, oldest).map_err(full),
            None => Err(Problem::new(Code::Busy, "too many requests with keys are in work")
                .with_hint("try again in a moment")),
        }
    }

    fn put_answer(&self, name: &[u8], entry: &Entry) -> Result<(), Problem> {
        let text = serde_json::to_vec(entry)
            .map_err(|_| Problem::new(Code::Internal, "a key cannot be noted"))?;
        let put = self.registry.journal().put(Kind::Answer, name, &text);
        put.map_err(|e| Problem::new(Code::Busy, e.to_string()))
    }

    pub(super) fn settle_answer(&self, claimed: &Claimed, outcome: Outcome<'_>) {
        let journal = self.registry.journal();
        let _turn = self.repeating.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = journal.get(Kind::Answer, &claimed.0);
        let Some(mut entry) = noted.and_then(|text| serde_json::from_slice::<Entry>(&text).ok())
        else {
            return;
        };
        entry.state = match outcome {
            // Refused, and nothing done: the key is free again.
            Outcome::Refused => {
                if journal.remove(Kind::Answer, &claimed.0).is_err() {
                    tracing::error!("a key that is free cannot be forgotten");
                }
                return;
            }
            Outcome::Unknown => State::Lost,
            Outcome::Answered(answer) if answer.len() > MAX_ANSWER_BYTES => State::TooLong,
            Outcome::Answered(answer) => match std::str::from_utf8(answer) {
                Ok(text) => State::Answered(text.to_owned()),
                Err(_) => State::Lost,
            },
        };
        if let Err(problem) = self.put_answer(&claimed.0, &entry) {
            tracing::error!(%problem, "an answer could not be kept");
        }
    }
}
