//! Alerts: what someone must know of now, by a command or a webhook of the configuration.
//!
//! Invariant: raising an alert waits for nobody; each delivery is bounded, tried again, and recorded;
//! one that a worker did not get to is delivered by the next. An alert holds names and reasons, never
//! values. Danger: a hanging command that keeps a read, or another place, waiting: each place has a
//! bounded queue and a thread of its own.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Serialize;

use crate::audit::record::Event;
use crate::clock::Timestamp;
use crate::config;
use crate::control::Caller;
use crate::execution::journal::{Journal, Kind};
use crate::proto::{self, Code, Problem};
use crate::sys::process;

use super::Daemon;
use super::core::Core;

/// Alerts that wait for one place; more are dropped, and that is recorded.
const QUEUE: usize = 256;
/// Tries of one delivery.
const TRIES: u32 = 3;
/// Before the second try; doubled for the third.
const PAUSE: Duration = Duration::from_millis(500);
/// The event of `alert test`.
pub const TEST_EVENT: &str = "test";

/// Events that alerts can be of, for the configuration's `on`.
pub const EVENTS: &[&str] = &[
    "denied_burst",
    "redaction_probe",
    "rotation_due",
    "rotation_failed",
    "secret_expired",
    "secret_revoked",
    TEST_EVENT,
    "unlock_failed",
    "verify_failed",
];

/// One alert, as it is delivered.
#[derive(Debug, Clone, Serialize)]
pub struct Alert {
    /// What happened: one of [`EVENTS`].
    pub event: &'static str,
    /// The secret or group, where it is about one.
    pub secret: Option<String>,
    /// For people.
    pub message: String,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

impl Alert {
    /// As an earlier worker noted it.
    fn parse(text: &[u8]) -> Option<Self> {
        let noted: serde_json::Value = serde_json::from_slice(text).ok()?;
        let words = |name: &str| noted[name].as_str().map(ToOwned::to_owned);
        Some(Self {
            event: EVENTS.iter().find(|event| noted["event"] == **event)?,
            secret: words("secret"),
            message: words("message")?,
            reason: words("reason"),
            at: noted["at"].as_str()?.parse().ok()?,
        })
    }
}

/// Takes alerts.
#[derive(Debug)]
pub struct Alerts {
    places: Vec<Place>,
    journal: Arc<Journal>,
    /// Numbers the alerts of this worker.
    next: AtomicU64,
}

#[derive(Debug)]
struct Place {
    configured: config::Alert,
    queue: SyncSender<Waiting>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Waiting {
    /// What the runtime state has it under.
    key: Vec<u8>,
    alert: Alert,
}

impl Alerts {
    /// Starts a thread for each place, and hands on what an earlier worker did not get to.
    pub fn start(configured: Vec<config::Alert>, core: &Arc<Core>, journal: Arc<Journal>) -> Self {
        let mut left = journal.all(Kind::Alert);
        let places = configured.into_iter().filter_map(|configured| {
            let (queue, waiting) = sync_channel(QUEUE);
            let dropped = Arc::new(AtomicU64::new(0));
            let (mine, others) = left.drain(..).partition(|(key, _)| is_for(key, &configured.name));
            left = others;
            let mine: Vec<(Vec<u8>, Vec<u8>)> = mine;
            for (key, text) in mine {
                if let Some(alert) = Alert::parse(&text) {
                    let _full = queue.try_send(Waiting { key, alert });
                }
            }
            let (place, core, journal) = (configured.clone(), core.clone(), journal.clone());
            let lost = dropped.clone();
            let started = std::thread::Builder::new()
                .name("alerts".into())
                .spawn(move || deliver_all(&waiting, &place, &lost, &core, &journal));
            if let Err(error) = &started {
                tracing::error!(%error, "no thread for alerts");
            }
            started.is_ok().then_some(Place { configured, queue, dropped })
        });
        let places = places.collect();
        // Of places that are configured no more.
        for (key, _) in left {
            let _forgotten = journal.remove(Kind::Alert, &key);
        }
        Self { places, journal, next: AtomicU64::new(0) }
    }

    /// Hands an alert on, without waiting.
    pub fn raise(&self, alert: &Alert) {
        tracing::warn!(event = alert.event, reason = alert.reason, "alert");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        for place in self.places.iter().filter(|p| wants(&p.configured, alert.event)) {
            let key = key(&place.configured.name, alert.at, number);
            // Without room in the runtime state it is delivered all the same, by this worker.
            if let Ok(text) = serde_json::to_vec(alert) {
                let _noted = self.journal.put(Kind::Alert, &key, &text);
            }
            let waiting = Waiting { key, alert: alert.clone() };
            if let Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) =
                place.queue.try_send(waiting)
            {
                place.dropped.fetch_add(1, Ordering::Relaxed);
                let _forgotten = self.journal.remove(Kind::Alert, &lost.key);
                tracing::error!(place = place.configured.name, "an alert was dropped");
            }
        }
    }
}

fn key(place: &str, at: Timestamp, number: u64) -> Vec<u8> {
    let own = [&at.as_nanosecond().to_be_bytes()[..], &number.to_be_bytes()].concat();
    [place.as_bytes(), b"\0", &own].concat()
}

fn is_for(key: &[u8], place: &str) -> bool {
    key.strip_prefix(place.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

fn wants(place: &config::Alert, event: &str) -> bool {
    place.on.is_empty() || event == TEST_EVENT || place.on.iter().any(|on| on == event)
}

fn deliver_all(
    waiting: &Receiver<Waiting>,
    place: &config::Alert,
    dropped: &AtomicU64,
    core: &Core,
    journal: &Journal,
) {
    while let Ok(Waiting { key, alert }) = waiting.recv() {
        let delivered = deliver(place, &alert);
        note(core, place, &alert, delivered.as_ref().err().map(String::as_str));
        if journal.remove(Kind::Alert, &key).is_err() {
            tracing::error!("an alert that was delivered cannot be forgotten");
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let why = format!("{lost} alerts were dropped: too many waited");
            note(core, place, &alert, Some(&why));
        }
    }
}

fn note(core: &Core, place: &config::Alert, alert: &Alert, failed: Option<&str>) {
    let event = if failed.is_some() { Event::AlertFailed } else { Event::AlertSent };
    let reason = match failed {
        Some(why) => format!("{} to {}: {why}", alert.event, place.name),
        None => format!("{} to {}", alert.event, place.name),
    };
    let mut record = core.new_record(event);
    record.secret_key = alert.secret.as_deref();
    record.reason = Some(&reason);
    if core.record(&record).is_err() {
        tracing::error!("an alert could not be recorded");
    }
}

/// Delivers, with further tries; says why not in the end.
fn deliver(place: &config::Alert, alert: &Alert) -> Result<(), String> {
    let text = serde_json::to_vec(alert).map_err(|e| e.to_string())?;
    let mut pause = PAUSE;
    let mut tries = 1;
    loop {
        let tried = match &place.webhook {
            Some(address) => post(address, &text, place.timeout.0),
            None => run(&place.command, &text, place.timeout.0),
        };
        match tried {
            Ok(()) => return Ok(()),
            Err(why) if tries >= TRIES => return Err(why),
            Err(_) => {
                std::thread::park_timeout(pause);
                pause *= 2;
                tries += 1;
            }
        }
    }
}

fn post(address: &str, text: &[u8], limit: Duration) -> Result<(), String> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(limit)).build().into();
    agent
        .post(address)
        .header("content-type", "application/json")
        .send(text)
        .map(|_| ())
        // The address may carry a token: only the kind of failure is told.
        .map_err(|error| match error {
            ureq::Error::StatusCode(status) => format!("the webhook answered {status}"),
            ureq::Error::Timeout(_) => "the webhook did not answer in time".to_owned(),
            _ => "the webhook could not be reached".to_owned(),
        })
}

fn run(command: &[String], text: &[u8], limit: Duration) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("no command is configured")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    // What a dead worker began, the next begins anew.
    let mut child = process::begin_afresh(&mut command, true)
        .spawn()
        .map_err(|e| format!("the command cannot be started: {}", e.kind()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // An alert is shorter than a pipe holds: a command that does not read cannot block this.
        let _unread = stdin.write_all(text);
    }
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("the command failed: {status}")),
            Ok(None) if Instant::now() >= deadline => {
                // Its group is its own: what it started ends with it.
                let _gone = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                let _reaped = child.wait();
                return Err("the command did not end in time".to_owned());
            }
            Ok(None) => std::thread::park_timeout(Duration::from_millis(20)),
            Err(error) => return Err(error.to_string()),
        }
    }
}

impl Daemon {
    #[allow(clippy::needless_pass_by_value)] // made for this alone
    pub(super) fn alert(&self, alert: Alert) {
        self.alerts.raise(&alert);
    }

    /// Delivers a test to every place, and waits for it.
    pub(super) fn test_alerts(&self, who: &Caller) -> Result<proto::AlertTested, Problem> {
        if self.alerts.places.is_empty() {
            return Err(Problem::new(Code::NotFound, "no alert is configured")
                .with_hint("add an [[alert]] with a name and a command or webhook, then reload"));
        }
        let alert = Alert {
            event: TEST_EVENT,
            secret: None,
            message: format!("a test by {}", super::user_of(who.peer.uid)),
            reason: None,
            at: self.core.clock.now(),
        };
        let deliveries = self
            .alerts
            .places
            .iter()
            .map(|Place { configured: place, .. }| {
                let failed = deliver(place, &alert).err();
                note(&self.core, place, &alert, failed.as_deref());
                proto::AlertDelivery {
                    name: place.name.clone(),
                    delivered: failed.is_none(),
                    failed,
                }
            })
            .collect();
        Ok(proto::AlertTested { deliveries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Period;
    use std::io::{BufRead, BufReader, Read};
    use std::net::TcpListener;

    fn alert() -> Alert {
        Alert {
            event: "secret_revoked",
            secret: Some("prod/KEY".into()),
            message: "prod/KEY was revoked".into(),
            reason: Some("found on a forum".into()),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn place(command: &[&str], webhook: Option<String>) -> config::Alert {
        config::Alert {
            name: "here".into(),
            on: vec!["secret_revoked".into()],
            command: command.iter().map(ToString::to_string).collect(),
            webhook,
            timeout: Period::secs(60),
        }
    }

    #[test]
    fn a_command_gets_the_alert_on_its_stdin() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("got");
        let script = format!("cat > {}", file.display());
        deliver(&place(&["sh", "-c", &script], None), &alert()).unwrap();
        let got: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(got["event"], "secret_revoked");
        assert_eq!(got["secret"], "prod/KEY");
    }

    #[test]
    fn a_command_that_hangs_or_fails_is_bounded_and_told() {
        let begun = Instant::now();
        let why =
            run(&["sh".into(), "-c".into(), "sleep 600".into()], b"{}", Duration::from_millis(100));
        assert!(why.unwrap_err().contains("in time"));
        assert!(begun.elapsed() < Duration::from_secs(300));
        assert!(
            run(&["false".into()], b"{}", Duration::from_secs(60)).unwrap_err().contains("failed")
        );
        assert!(run(&["/nowhere/at/all".into()], b"{}", Duration::from_secs(60)).is_err());
    }

    #[test]
    fn a_webhook_gets_the_alert_and_a_refusal_is_told_without_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut bodies = Vec::new();
            for status in ["200 OK", "500 No"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut len = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(rest) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        len = rest.trim().parse().unwrap();
                    }
                    if line == "\r\n" {
                        break;
                    }
                }
                let mut body = vec![0; len];
                reader.read_exact(&mut body).unwrap();
                bodies.push(body);
                write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
                .unwrap();
            }
            bodies
        });
        let hook = format!("http://{address}/token-in-path");
        let text = serde_json::to_vec(&alert()).unwrap();
        post(&hook, &text, Duration::from_secs(60)).unwrap();
        let why = post(&hook, &text, Duration::from_secs(60)).unwrap_err();
        assert_eq!(why, "the webhook answered 500");
        assert_eq!(server.join().unwrap(), [text.clone(), text]);
    }

    #[test]
    fn a_place_gets_the_events_that_it_asked_for() {
        let mut one = place(&["true"], None);
        assert!(wants(&one, "secret_revoked"));
        assert!(wants(&one, TEST_EVENT));
        assert!(!wants(&one, "rotation_due"));
        one.on.clear();
        assert!(wants(&one, "rotation_due"));
    }
}
