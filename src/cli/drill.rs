//! `drill revoke`: an emergency revoke on a canary, from beginning to end, with its times.
//!
//! Everything is done by the verbs that an emergency would use; what was made for it is removed.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde::Serialize;

use crate::proto::{self, Value};
use crate::secret::SecretBytes;
use crate::vault::crypto;

use super::output::{note, show, table};
use super::{Context, Failure, Outcome, exit};

/// How long the canary's agent may take to read it, and to be gone.
const LIMIT: Duration = Duration::from_secs(20);
/// Reads the canary, says so, and ignores every polite request to end.
const AGENT: &str = "trap '' TERM INT HUP; cat \"$CREDENTIALS_DIRECTORY/$0\" >/dev/null || exit 1; \
    echo read; while :; do sleep 1; done";

#[derive(Debug, Subcommand)]
pub(super) enum DrillCommand {
    /// Revokes a canary that an agent holds, and says how long each part took.
    #[command(after_help = "Example:\n  strongroom drill revoke")]
    Revoke,
}

#[derive(Serialize)]
struct Drilled {
    canary: String,
    ended: usize,
    complete: bool,
    first_denial_us: u64,
    all_ended_ms: u64,
    agent_gone_ms: u64,
}

/// The canary and its agent, gone whatever happens.
struct Canary<'a> {
    context: &'a Context,
    name: String,
    agent: Option<Child>,
}

impl Drop for Canary<'_> {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _gone = agent.kill();
            let _reaped = agent.wait();
        }
        let request = proto::SecretRm { name: self.name.clone(), scope: None, force: true };
        let removed: Result<proto::Done, _> =
            self.context.client().post("/v1/secrets/rm", &request);
        if let Err(problem) = removed {
            note(&format!("note: the canary {} is left: {problem}", self.name));
        }
    }
}

fn random() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    crypto::random(&mut bytes).map_err(|e| Failure::new(e.to_string()))?;
    Ok(crypto::hex(&bytes))
}

fn value() -> Result<Value, Failure> {
    Ok(Value::new(SecretBytes::from_vec(random()?.into_bytes())))
}

pub(super) fn main(context: &Context, command: &DrillCommand) -> Outcome {
    let DrillCommand::Revoke = command;
    let client = context.client();
    let name = format!("STRONGROOM_DRILL_{}", &random()?[..8]);
    let _stored: proto::SecretShown = client.post(
        "/v1/secrets",
        &proto::SecretSet {
            name: name.clone(),
            scope: None,
            value: value()?,
            description: Some("a canary of strongroom drill".to_owned()),
            expires_at: None,
            valid_until: None,
            binding: None,
            plain: false,
            access_log_enabled: None,
            replace: false,
        },
    )?;
    let mut canary = Canary { context, name: name.clone(), agent: None };
    let exe = std::env::current_exe().map_err(anyhow::Error::from)?;
    let view = std::env::temp_dir().join(format!("{name}.view"));
    let mut agent = Command::new(exe)
        .args(context.home_args())
        .args(["run", "-s", &name, "--deliver", "files", "--secrets-path"])
        .arg(&view)
        .args(["--", "sh", "-c", AGENT, &name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(anyhow::Error::from)?;
    let stdout = agent.stdout.take();
    canary.agent = Some(agent);
    let mut line = String::new();
    if let Some(stdout) = stdout {
        BufReader::new(stdout).read_line(&mut line).map_err(anyhow::Error::from)?;
    }
    if line.trim() != "read" {
        return Err(Failure::new("the canary's agent could not read it")
            .hint("strongroom doctor says what this host lacks"));
    }
    let begun = Instant::now();
    let revoked: proto::Revoked = client.post(
        "/v1/secrets/revoke",
        &proto::SecretRevoke {
            name: name.clone(),
            scope: None,
            reason: "drill".to_owned(),
            version: None,
            replacement: Some(value()?),
            replacement_members: std::collections::BTreeMap::new(),
            no_replacement: false,
            dry_run: false,
        },
    )?;
    let gone = loop {
        let ended = canary.agent.as_mut().is_none_or(|a| !matches!(a.try_wait(), Ok(None)));
        if ended || begun.elapsed() > LIMIT {
            break ended;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    };
    let agent_gone_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    drop(canary);
    // Made for the bind, where there was one.
    let _removed = std::fs::remove_dir(&view);
    let drilled = Drilled {
        canary: name,
        ended: revoked.ended.len(),
        complete: revoked.complete && gone && revoked.ended.len() == 1,
        first_denial_us: revoked.first_denial_us,
        all_ended_ms: revoked.took_ms,
        agent_gone_ms,
    };
    show(context.json, &drilled, || {
        let rows = [
            vec!["executions ended".to_owned(), drilled.ended.to_string()],
            vec!["first denial".to_owned(), format!("{} us", drilled.first_denial_us)],
            vec!["all ended, on record".to_owned(), format!("{} ms", drilled.all_ended_ms)],
            vec!["agent seen gone".to_owned(), format!("{} ms", drilled.agent_gone_ms)],
            vec!["complete".to_owned(), drilled.complete.to_string()],
        ];
        table(&["", ""], &rows).trim_start().to_owned()
    })?;
    Ok(if drilled.complete { exit::OK } else { exit::INCOMPLETE })
}
