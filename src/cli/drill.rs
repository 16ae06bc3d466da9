//! `drill revoke`: an emergency revoke on a canary, from beginning to end, with its times.
//!
//! Everything is done by the verbs that an emergency would use; what was made for it is removed, also
//! when it fails or is told to stop. What a killed drill leaves, the next one removes.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Subcommand;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;

use crate::proto::{self, Code, Value};
use crate::secret::SecretBytes;
use crate::sys::pidfd::PidFd;
use crate::vault::crypto;

use super::output::{note, show, table};
use super::{Context, Failure, Outcome, exit};

/// How long the canary's agent may take to read it, and to be gone.
const LIMIT: Duration = Duration::from_secs(20);
/// Reads the canary, says so, and ignores every polite request to end; its stdin ends with the drill.
const AGENT: &str = "trap '' TERM INT HUP; cat \"$CREDENTIALS_DIRECTORY/$0\" >/dev/null || exit 1; \
    echo read; exec cat";

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

/// What the names of canaries begin with.
const PREFIX: &str = "STRONGROOM_DRILL_";

/// Where a canary is seen, locked while its drill lives.
struct View {
    path: PathBuf,
    _lock: Flock<File>,
}

impl View {
    /// Only who may write there has one; whoever may not binds nothing either.
    fn make(context: &Context, name: &str) -> Option<Self> {
        let path = context.paths.runtime_dir.join(format!("{name}.view"));
        std::fs::DirBuilder::new().mode(0o755).create(&path).ok()?;
        let lock = lock(&path)?;
        Some(Self { path, _lock: lock })
    }
}

fn lock(path: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(path).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

/// The canary and its agent, gone whatever happens.
struct Canary<'a> {
    context: &'a Context,
    name: String,
    view: Option<View>,
    is_stored: bool,
    agent: Option<Child>,
}

impl Drop for Canary<'_> {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _gone = agent.kill();
            let _reaped = agent.wait();
        }
        if self.is_stored {
            remove(self.context, &self.name);
        }
        if let Some(view) = &self.view {
            let _removed = std::fs::remove_dir(&view.path);
        }
    }
}

fn remove(context: &Context, name: &str) {
    let request = proto::SecretRm { name: name.to_owned(), scope: None, force: true };
    let removed: Result<proto::Done, _> = context.client().post("/v1/secrets/rm", &request);
    match removed {
        Err(problem) if problem.code != Code::NotFound => {
            note(&format!("note: the canary {name} is left: {problem}"));
        }
        _ => {}
    }
}

/// Removes what drills that were killed have left: theirs are the views that nobody has locked.
fn sweep(context: &Context) {
    let Ok(entries) = std::fs::read_dir(&context.paths.runtime_dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".view"));
        let Some(name) = name.filter(|n| n.starts_with(PREFIX)) else { continue };
        let Some(_lock) = lock(&path) else { continue };
        remove(context, name);
        let _removed = std::fs::remove_dir(&path);
    }
}

/// Who asks a drill to stop ends its agent: the drill fails then, and tidies up.
#[derive(Default)]
struct Stop {
    asked: AtomicBool,
    agent: Mutex<Option<PidFd>>,
}

impl Stop {
    /// In a thread of its own. The agent inherits that these signals are blocked; it ignores them.
    fn listen() -> Arc<Self> {
        let stop = Arc::new(Self::default());
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        let heard = stop.clone();
        if signals.thread_block().is_ok() {
            std::thread::spawn(move || {
                while signals.wait().is_ok() {
                    heard.asked.store(true, Ordering::Release);
                    heard.end_agent();
                }
            });
        }
        stop
    }

    fn end_agent(&self) {
        if let Some(agent) = &*self.agent.lock().unwrap_or_else(PoisonError::into_inner) {
            // It may have ended by itself.
            let _gone = agent.signal(Signal::SIGKILL);
        }
    }

    fn watch(&self, agent: &Child) {
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = PidFd::open(agent.id()).ok();
        if self.asked.load(Ordering::Acquire) {
            self.end_agent();
        }
    }

    fn check(&self) -> Result<(), Failure> {
        if self.asked.load(Ordering::Acquire) {
            return Err(Failure::new("the drill was stopped")
                .hint("what it had made is removed; run it again"));
        }
        Ok(())
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
    let stop = Stop::listen();
    sweep(context);
    let name = format!("{PREFIX}{}", &random()?[..8]);
    let view = View::make(context, &name);
    // Made first, so that whatever follows is undone.
    let mut canary = Canary { context, name: name.clone(), view, is_stored: false, agent: None };
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
    canary.is_stored = true;
    stop.check()?;
    let exe = std::env::current_exe().map_err(anyhow::Error::from)?;
    let mut command = Command::new(exe);
    command.args(context.home_args()).args(["run", "-s", &name, "--deliver", "files"]);
    if let Some(view) = &canary.view {
        command.arg("--secrets-path").arg(&view.path);
    }
    let mut agent = command
        .args(["--", "sh", "-c", AGENT, &name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(anyhow::Error::from)?;
    let stdout = agent.stdout.take();
    stop.watch(&agent);
    canary.agent = Some(agent);
    let mut line = String::new();
    if let Some(stdout) = stdout {
        BufReader::new(stdout).read_line(&mut line).map_err(anyhow::Error::from)?;
    }
    stop.check()?;
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
    stop.check()?;
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
