//! Requests under an `Idempotency-Key`: done once, whoever asks how often.
//!
//! Invariant: a key that was claimed is settled with its answer, or as refused; one whose verb panicked
//! stays unknown, and is not begun again.
#![forbid(unsafe_code)]

use axum::http::header;

use crate::proto::{Code, Problem};

use super::api::{Api, Claimed, Outcome};

/// The longest `Idempotency-Key`, in bytes.
const MAX_IDEMPOTENCY_KEY_BYTES: usize = 128;

/// What is told of a request that was begun under its key, and not answered.
pub const UNANSWERED: &str = "the request with this Idempotency-Key was begun, and not answered";

/// A request under a key that is in work; one that panics is not begun again.
pub(super) struct Held<'a> {
    pub(super) api: &'a dyn Api,
    pub(super) claimed: Claimed,
    pub(super) is_settled: bool,
}

impl Held<'_> {
    pub(super) fn settle(mut self, answer: Option<&[u8]>) {
        self.is_settled = true;
        self.api.settle(&self.claimed, answer.map_or(Outcome::Refused, Outcome::Answered));
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.api.settle(&self.claimed, Outcome::Unknown);
        }
    }
}

pub(super) fn no_key(verb: &str) -> Problem {
    let what = format!("`{verb}` takes no Idempotency-Key: its answer is not kept");
    Problem::new(Code::BadRequest, what).with_hint("leave the header out")
}

pub(super) fn idempotency_key(headers: &header::HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= MAX_IDEMPOTENCY_KEY_BYTES => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(Problem::new(
            Code::BadRequest,
            format!("Idempotency-Key is not 1 to {MAX_IDEMPOTENCY_KEY_BYTES} visible characters"),
        )
        .with_hint("send a UUID")),
    }
}
