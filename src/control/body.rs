//! Bodies of requests: taken in within a length and a time, or taken in and forgotten.
//!
//! Invariant: a body is in one buffer, wiped when it goes, also where it had to move. Dangers: a client
//! that sends a byte a minute; one that is refused while it still sends, and would read no answer.
#![forbid(unsafe_code)]

use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::proto::{Code, Problem};

/// What is still taken in of a refused request, and for how long.
const DISCARD_BYTES: usize = 4 << 20;
const DISCARD_WAIT: Duration = Duration::from_secs(2);

/// Takes in what a refused client is still sending: one that finds its connection closed while it
/// writes does not read the answer (RFC 9112, 9.6).
pub(super) async fn discard(body: &mut Body) {
    let deadline = Instant::now() + DISCARD_WAIT;
    let mut left = DISCARD_BYTES;
    while let Ok(Some(Ok(frame))) = tokio::time::timeout_at(deadline, body.frame()).await {
        let len = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(len) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

pub(super) fn content_length(headers: &header::HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body into one buffer that is wiped, also when it had to move.
pub(super) async fn collect(
    body: &mut Body,
    length: Option<usize>,
    max_bytes: usize,
    wait: Duration,
) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let too_large = || {
        Problem::new(Code::TooLarge, format!("the body is longer than {max_bytes} bytes"))
            .with_hint("a value is at most 1 MiB; split the request")
    };
    if length.is_some_and(|l| l > max_bytes) {
        return Err(too_large());
    }
    let deadline = Instant::now() + wait;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.unwrap_or(16 << 10)));
    loop {
        let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(_))) => {
                return Err(Problem::new(Code::BadRequest, "the body ended early"));
            }
            Err(_) => {
                return Err(Problem::new(
                    Code::Timeout,
                    format!("the body did not arrive within {} s", wait.as_secs()),
                ));
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        let needed = bytes.len() + data.len();
        if needed > max_bytes {
            return Err(too_large());
        }
        if needed > bytes.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(bytes.len() * 2)));
            larger.extend_from_slice(&bytes);
            bytes = larger;
        }
        bytes.extend_from_slice(&data);
    }
}
