//! A program that keeps the master key: any KMS, HSM or agent.
//!
//! It gets one JSON object on stdin, `{"op": "wrap", "key": HEX}` or `{"op": "unwrap", "blob": TEXT}`,
//! and answers with `{"blob": TEXT}` or `{"key": HEX}` on stdout, within ten seconds. Its stderr goes
//! to ours. The key passes through pipes only.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::SecretBytes;
use crate::sys::pidfd::PidFd;
use crate::sys::process;

use super::super::crypto::{Key, hex, unhex};
use super::Error;

/// How long the program may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The most that it may answer.
const MOST_BYTES: usize = 32 << 10;

#[derive(Serialize)]
struct Question<'a> {
    op: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blob: Option<&'a str>,
}

#[derive(Deserialize)]
struct Answer {
    key: Option<String>,
    blob: Option<String>,
}

/// Has the program wrap a new master key.
///
/// # Errors
/// [`Error::Command`].
pub fn wrap(argv: &[String], master: &Key) -> Result<String, Error> {
    let key = Zeroizing::new(hex(master.expose()));
    let answer = ask(argv, &Question { op: "wrap", key: Some(&key), blob: None })?;
    let blob = answer
        .blob
        .filter(|blob| !blob.is_empty())
        .ok_or_else(|| Error::Command { what: "its answer has no \"blob\"".into() })?;
    // A program that merely echoes would put the key into the vault's file.
    if blob.contains(key.as_str()) {
        return Err(Error::Command { what: "its \"blob\" holds the key in clear".into() });
    }
    Ok(blob)
}

/// Has the program unwrap the master key.
///
/// # Errors
/// [`Error::Command`].
pub fn unwrap(argv: &[String], blob: &str) -> Result<Key, Error> {
    let answer = ask(argv, &Question { op: "unwrap", key: None, blob: Some(blob) })?;
    let mut text =
        answer.key.ok_or_else(|| Error::Command { what: "its answer has no \"key\"".into() })?;
    let bytes = unhex(text.trim()).map(Zeroizing::new);
    text.zeroize();
    bytes
        .and_then(|bytes| Key::from_bytes(&bytes))
        .ok_or_else(|| Error::Command { what: "its \"key\" is not 64 hex digits".into() })
}

fn ask(argv: &[String], question: &Question<'_>) -> Result<Answer, Error> {
    let failed = |what: String| Error::Command { what };
    let [program, args @ ..] = argv else {
        return Err(failed("none is configured".into()));
    };
    let text = Zeroizing::new(
        serde_json::to_vec(question).map_err(|_| failed("the question is no JSON".into()))?,
    );
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = process::begin_afresh(&mut command, true)
        .spawn()
        .map_err(|e| failed(format!("{program}: {e}")))?;
    let pidfd = PidFd::open(child.id()).map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its question is told by its answer.
        let _read = stdin.write_all(&text);
    }
    // Read aside: a grandchild that keeps the pipe open must not hold us past the limit.
    let (told, answer) = mpsc::sync_channel(1);
    let stdout = child.stdout.take().ok_or_else(|| failed("no output".into()))?;
    std::thread::Builder::new()
        .name("unlock".into())
        .spawn(move || {
            // Nobody listens any more once the limit has passed.
            let _late = told.send(SecretBytes::read_from(stdout, MOST_BYTES));
        })
        .map_err(|e| failed(e.to_string()))?;
    let deadline = Instant::now() + LIMIT;
    let answer = answer.recv_timeout(LIMIT);
    let left = deadline.saturating_duration_since(Instant::now());
    if answer.is_err() || !pidfd.exited_within(left) {
        let _killed = child.kill();
        let _reaped = child.wait();
        return Err(failed(format!("no answer within {} s", LIMIT.as_secs())));
    }
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        return Err(failed(format!("{program} ended with {status}")));
    }
    let answer = answer.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    // The parser's own words would quote the answer.
    serde_json::from_slice(answer.expose()).map_err(|_| failed("its answer is no JSON".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        vec!["sh".into(), "-c".into(), script.into()]
    }

    #[test]
    fn a_program_that_keeps_the_key_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kept");
        let script = format!(
            "read q; case \"$q\" in *unwrap*) printf '{{\"key\":\"%s\"}}' \"$(cat {0})\";; \
             *) printf %s \"$q\" | sed 's/.*\"key\":\"\\([0-9a-f]*\\)\".*/\\1/' > {0}; \
             echo '{{\"blob\":\"kept\"}}';; esac",
            file.display()
        );
        let key = Key::random().unwrap();
        let blob = wrap(&sh(&script), &key).unwrap();
        assert_eq!(unwrap(&sh(&script), &blob).unwrap().expose(), key.expose());
    }

    #[test]
    fn a_program_that_echoes_fails_or_is_missing_is_refused() {
        let key = Key::random().unwrap();
        let echo = sh(
            "read q; printf '{\"blob\":%s}' \"$(printf %s \"$q\" | sed 's/.*key\"://; s/}//')\"",
        );
        assert!(matches!(wrap(&echo, &key), Err(Error::Command { .. })));
        assert!(matches!(wrap(&sh("exit 3"), &key), Err(Error::Command { .. })));
        assert!(matches!(wrap(&sh("echo nonsense"), &key), Err(Error::Command { .. })));
        assert!(matches!(wrap(&["/nonexistent".into()], &key), Err(Error::Command { .. })));
        assert!(matches!(wrap(&[], &key), Err(Error::Command { .. })));
    }
}
