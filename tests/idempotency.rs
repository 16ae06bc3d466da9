//! `Idempotency-Key` on the control interface: what is asked twice under one key is done once, by this
//! worker and by the next, and no answer that holds a value is kept.

mod common;

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Home, LIMIT, may_mount, text, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn home() -> Home {
    let home = Home::new();
    home.start();
    home.ok_with(&["secret", "set", "KEY"], "key-value-one");
    home
}

fn curl(home: &Home, path: &str, key: Option<&str>, body: &Value) -> Child {
    let mut command = Command::new("curl");
    command.args(["-si", "--max-time", "60", "--unix-socket"]).arg(home.socket());
    command.args(["-H", "content-type: application/json", "-d", &body.to_string()]);
    if let Some(key) = key {
        command.args(["-H", &format!("Idempotency-Key: {key}")]);
    }
    command.arg(format!("http://strongroom{path}")).stdout(Stdio::piped()).spawn().unwrap()
}

/// Status, whether it was given before, and the body.
fn parse(output: &Output) -> (u16, bool, Value) {
    let all = text(output);
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{all:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let again = head.contains("idempotency-replayed: true");
    let body = serde_json::from_str(body.lines().last().unwrap_or("null"));
    (status, again, body.unwrap_or_else(|_| panic!("{all}")))
}

fn post(home: &Home, path: &str, key: Option<&str>, body: &Value) -> (u16, bool, Value) {
    parse(&curl(home, path, key, body).wait_with_output().unwrap())
}

fn versions(home: &Home) -> usize {
    let shown = home.json(&["secret", "show", "KEY"]);
    shown["versions"].as_object().unwrap().len() + shown["old_versions"].as_array().unwrap().len()
}

#[test]
fn the_same_request_under_one_key_is_done_once_also_over_the_death_of_a_worker() {
    if !may_mount() {
        return;
    }
    let home = home();
    // Pending until somebody promotes it.
    let rotate =
        json!({"name": "KEY", "generate": {"length": 32}, "valid_from": "2099-01-01T00:00:00Z"});
    let path = "/v1/secrets/rotate";
    let (status, again, first) = post(&home, path, Some("one"), &rotate);
    assert_eq!((status, again), (200, false), "{first}");
    assert_eq!(first["pending"], json!({"KEY": 2}));
    assert_eq!(post(&home, path, Some("one"), &rotate), (200, true, first.clone()));
    // Without a key, or with another, it is another request.
    for key in [None, Some("two")] {
        let (status, _, problem) = post(&home, path, key, &rotate);
        assert_eq!((status, &problem["code"]), (409, &json!("conflict")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("pending already"), "{problem}");
    }
    // Another body under the key; another verb.
    let other = json!({"name": "KEY", "generate": {"length": 33}});
    let (status, _, problem) = post(&home, path, Some("one"), &other);
    assert_eq!(status, 409, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("used for another request"), "{problem}");
    assert!(problem["hint"].as_str().unwrap().contains("a new key"), "{problem}");
    let edit = json!({"name": "KEY", "description": "by another verb"});
    let (status, again, _) = post(&home, "/v1/secrets/edit", Some("one"), &edit);
    assert_eq!((status, again), (200, false));

    let worker = home.worker_pid();
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    wait_until("served again", LIMIT, || {
        let output = home.run(&["status", "--json"]);
        serde_json::from_slice::<Value>(&output.stdout)
            .is_ok_and(|s| s["state"] == "ready" && s["worker_pid"] != worker)
    });
    assert_eq!(post(&home, path, Some("one"), &rotate), (200, true, first));
    assert_eq!(versions(&home), 2);

    // A refusal is not remembered: mended, the same request goes through.
    let late = json!({"name": "LATE", "generate": {"length": 32}});
    let (status, _, problem) = post(&home, path, Some("late"), &late);
    assert_eq!(status, 404, "{problem}");
    home.ok_with(&["secret", "set", "LATE"], "late-value-one");
    let (status, again, _) = post(&home, path, Some("late"), &late);
    assert_eq!((status, again), (200, false));
    // The keeper's end is the end of what is known.
    home.ok(&["down"]);
    home.ok(&["up"]);
    let (status, _, problem) = post(&home, path, Some("one"), &rotate);
    assert_eq!(status, 409, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("pending already"), "{problem}");
}

#[test]
fn requests_that_come_at_once_under_one_key_have_one_effect() {
    if !may_mount() {
        return;
    }
    let home = home();
    let rotate =
        json!({"name": "KEY", "generate": {"length": 32}, "valid_from": "2099-01-01T00:00:00Z"});
    let all: Vec<_> =
        (0..12).map(|_| curl(&home, "/v1/secrets/rotate", Some("same"), &rotate)).collect();
    let answers: Vec<_> =
        all.into_iter().map(|child| parse(&child.wait_with_output().unwrap())).collect();
    for (status, _, body) in &answers {
        let busy = *status == 503 && body["detail"].as_str().unwrap().contains("in work");
        assert!(*status == 200 || busy, "{body}");
    }
    assert_eq!(answers.iter().filter(|a| a.0 == 200 && !a.1).count(), 1, "{answers:?}");
    assert_eq!(versions(&home), 2);
}

#[test]
fn an_answer_with_a_value_is_never_kept_and_such_a_request_takes_no_key() {
    if !may_mount() {
        return;
    }
    let home = home();
    for (path, body) in [
        ("/v1/secrets/get", json!({"name": "KEY"})),
        ("/v1/agents", json!({"secrets": ["KEY"]})),
        ("/v1/tickets", json!({"chain": "c", "agent": "a"})),
        ("/v1/keys", json!({})),
        ("/v1/rotations/run", json!({"name": "KEY"})),
    ] {
        let (status, _, problem) = post(&home, path, Some("k"), &body);
        assert_eq!(status, 400, "{path}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("takes no Idempotency-Key"), "{path}: {problem}");
        assert_eq!(problem["hint"], "leave the header out");
    }
    assert!(home.records("revealed").is_empty());
    assert_eq!(post(&home, "/v1/secrets/get", None, &json!({"name": "KEY"})).0, 200);
    let long = "k".repeat(129);
    let (status, _, problem) =
        post(&home, "/v1/secrets/edit", Some(&long), &json!({"name": "KEY"}));
    assert_eq!(status, 400, "{problem}");
}

#[test]
fn no_more_keys_are_kept_than_fit() {
    if !may_mount() {
        return;
    }
    let home = home();
    let edit = |key: usize, text: &str| {
        let body = json!({"name": "KEY", "description": text});
        post(&home, "/v1/secrets/edit", Some(&format!("key-{key}")), &body)
    };
    for key in 0..257 {
        assert_eq!(edit(key, "first").0, 200);
    }
    // The newest is known, the oldest has made room.
    assert_eq!(edit(256, "other").0, 409);
    let (status, again, _) = edit(0, "other");
    assert_eq!((status, again), (200, false));
}

/// Again and again, until eight workers were killed, ten a second.
fn while_workers_die(home: &Home, mut each: impl FnMut()) {
    let (killed, enough) = (AtomicUsize::new(0), 8);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while killed.load(Ordering::Acquire) < enough {
                std::thread::park_timeout(Duration::from_millis(100));
                kill(Pid::from_raw(home.worker_pid()), Signal::SIGKILL).unwrap();
                killed.fetch_add(1, Ordering::AcqRel);
            }
        });
        while killed.load(Ordering::Acquire) < enough {
            each();
        }
    });
}

#[test]
fn a_change_by_the_command_line_is_made_once_while_workers_die() {
    if !may_mount() {
        return;
    }
    let home = home();
    let mut number = 0;
    while_workers_die(&home, || {
        let output =
            home.run_with(&["secret", "set", &format!("CHANGED_{number}")], "a-value-of-it");
        let told = String::from_utf8_lossy(&output.stderr);
        // Where a worker died in the middle, nobody can know.
        let unknown = told.contains("look whether it took effect");
        assert!(output.status.success() || unknown, "{told}");
        number += 1;
    });
    assert!(number > 0);
}

#[test]
fn a_launch_whose_worker_dies_is_undone_and_made_again() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    while_workers_die(&home, || {
        let output = home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
        assert!(output.status.success(), "{}", text(&output));
        assert!(!output.stdout.is_empty());
    });
    // Also of what was undone nothing runs on.
    wait_until("all ends", LIMIT, || home.json(&["status"])["executions"] == 0);
    let ids = |event| {
        let records = home.records(event).into_iter();
        let mut ids: Vec<_> =
            records.map(|r| r["execution"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    let has_ended = || {
        let ended = ids("execution_ended");
        ids("execution_started").iter().all(|id| ended.contains(id))
    };
    wait_until("each end is on record", LIMIT, has_ended);
    let ended = ids("execution_ended");
    assert!(ended.windows(2).all(|pair| pair[0] != pair[1]), "twice: {ended:?}");

    for (launch, told) in [("0123", "32 hex digits"), (&"AB".repeat(16), "32 hex digits")] {
        let body = json!({"secrets": ["OPENAI_API_KEY"], "how": "attach", "launch": launch});
        let (status, _, problem) = post(&home, "/v1/agents", None, &body);
        assert_eq!(status, 422, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(told), "{problem}");
    }
}
