//! What outlasts the daemon: who obtained a value, what has expired, what was revoked or is dead at
//! its provider. Keeper and worker are killed, restarted, or the vault is restored elsewhere.

mod common;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Home, LIMIT, lives, may_mount, text, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const CHAIN: &str = r#"{"chain": "c", "agents": [
  {"name": "a", "secrets": ["KEY"]},
  {"name": "env", "secrets": ["KEY"], "deliver": "env"}]}"#;

fn home_with(config: &str) -> Home {
    let home = Home::new();
    home.start();
    let config = config.replace("@DIR@", home.dir.path().to_str().unwrap());
    home.configure(&config);
    home.ok_with(&["secret", "set", "KEY"], "key-value-one");
    home.apply(CHAIN);
    home
}

fn home() -> Home {
    home_with("")
}

/// Keeper and worker, found before what is tested: no moment is lost afterwards.
struct Both {
    keeper: Pid,
    worker: Pid,
}

impl Both {
    fn of(home: &Home) -> Self {
        let keeper = std::fs::read_to_string(home.home().join("run/keeper.pid")).unwrap();
        Self {
            keeper: Pid::from_raw(keeper.trim().parse().unwrap()),
            worker: Pid::from_raw(home.worker_pid()),
        }
    }

    /// At once: the worker does nothing any more for its dead keeper.
    fn kill(self) {
        kill(self.worker, Signal::SIGSTOP).unwrap();
        kill(self.keeper, Signal::SIGKILL).unwrap();
        kill(self.worker, Signal::SIGKILL).unwrap();
        let gone = format!("/proc/{}/exe", self.worker);
        wait_until("both are gone", LIMIT, || !std::path::Path::new(&gone).exists());
    }
}

/// An agent of user `nobody`, of an implicit execution or a named one.
fn agent(home: &Home, agent: &str, more: &[&str], script: &str) -> Child {
    let view = home.dir.path().join("view");
    home.command(&["run", "--redact", "off", "--chain", "c", "--agent", agent, "--as", "nobody"])
        .args(more)
        .args(["--secrets-path", view.to_str().unwrap(), "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn line_of(child: &mut Child) -> String {
    let mut line = String::new();
    let out = child.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    line.trim().to_owned()
}

fn exposures(home: &Home) -> Vec<(String, Value)> {
    let listed = home.json(&["secret", "exposures", "KEY"]);
    let of = |e: &Value| (e["via"].as_str().unwrap().to_owned(), e["execution"].clone());
    listed["exposures"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_reveal_that_was_answered_is_in_the_ledger_whatever_is_killed_right_after() {
    if !may_mount() {
        return;
    }
    let home = home();
    let both = Both::of(&home);
    assert_eq!(home.ok(&["secret", "get", "KEY", "--reveal"]), "key-value-one");
    both.kill();
    home.ok(&["up"]);
    assert_eq!(exposures(&home), [("reveal".to_owned(), Value::Null)]);
    let dry = home.json(&["secret", "revoke", "KEY", "--reason", "x", "--dry-run"]);
    assert_eq!(dry["outside"][0]["via"], "reveal", "{dry}");
}

#[test]
fn who_got_a_value_by_environment_is_named_and_ended_by_a_revoke_of_the_next_daemon() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.ok(&["execution", "start", "--chain", "c", "--id", "holder"]);
    home.ok(&["execution", "start", "--chain", "c", "--id", "gone"]);
    let mut gone = agent(&home, "env", &["--execution", "gone"], "exit 0");
    gone.wait().unwrap();
    let both = Both::of(&home);
    let script = "[ \"$KEY\" = key-value-one ] && echo $$; exec sleep 1000";
    let mut holder = agent(&home, "env", &["--execution", "holder"], script);
    let pid: u32 = line_of(&mut holder).parse().unwrap();
    both.kill();
    home.ok(&["up"]);
    let mut named = exposures(&home);
    named.sort_by_key(|(_, id)| id.to_string());
    let env = |id: &str| ("env".to_owned(), json!(id));
    assert_eq!(named, [env("gone"), env("holder")]);
    assert!(lives(pid), "an agent outlives its daemon");

    let args = ["secret", "revoke", "KEY", "--reason", "leaked", "--dry-run"];
    let dry = home.json(&args);
    assert_eq!(dry["ended"][0]["execution"], "holder", "{dry}");
    assert_eq!(dry["ended"][0]["via"], json!(["env"]), "{dry}");
    assert!(dry["ended"][0]["processes"].as_u64().unwrap() > 0, "{dry}");
    assert_eq!(dry["over"][0]["execution"], "gone", "{dry}");
    let shown = home.ok(&args);
    assert!(shown.contains("obtained before by executions that are over: 1"), "{shown}");
    assert!(lives(pid));

    let answer = home
        .ok_with(&["secret", "revoke", "KEY", "--reason", "leaked", "--json"], "key-replacement");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["complete"], true, "{answer}");
    assert_eq!(answer["ended"].as_array().unwrap().len(), 1, "{answer}");
    let note = answer["notes"][0].as_str().unwrap_or_default();
    assert!(note.contains("holder lived on"), "{answer}");
    assert!(!lives(pid), "{answer}");
    holder.wait().unwrap();
    let ended = home.records("execution_ended");
    let mine: Vec<_> = ended.iter().filter(|r| r["reason"] == "revoked:KEY").collect();
    assert_eq!(mine.len(), 1, "{ended:?}");
    assert_eq!((&mine[0]["execution"], &mine[0]["chain"]), (&json!("holder"), &json!("c")));
}

#[test]
fn a_process_of_an_earlier_daemon_does_not_become_an_agent_of_this_one() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.ok(&["execution", "start", "--chain", "c", "--id", "run"]);
    let both = Both::of(&home);
    let mut old = agent(&home, "a", &["--execution", "run"], "echo $$; exec sleep 1000");
    let pid: u32 = line_of(&mut old).parse().unwrap();
    both.kill();
    home.ok(&["up"]);
    // The same names and numbers as before.
    home.ok(&["execution", "start", "--chain", "c", "--id", "run"]);
    let new = agent(&home, "a", &["--execution", "run"], "cat $CREDENTIALS_DIRECTORY/KEY");
    assert_eq!(text(&new.wait_with_output().unwrap()), "key-value-one");
    assert!(!lives(pid), "what was left in the group is ended");
    old.wait().unwrap();
}

const ALERT: &str = "[[alert]]\nname = \"file\"\non = [\"secret_expired\", \"rotation_due\"]\n\
    command = ['sh', '-c', '''printf \"%s\\n\" \"$(cat)\" >> @DIR@/alerts''']\n";

fn alerts(home: &Home) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(home.dir.path().join("alerts")).unwrap_or_default();
    let parse = |line: &str| {
        let alert: Value = serde_json::from_str(line).unwrap();
        let of = |name: &str| alert[name].as_str().unwrap().to_owned();
        (of("event"), of("message"))
    };
    text.lines().map(parse).collect()
}

fn in_seconds(seconds: u32) -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "-d", &format!("+{seconds} seconds"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A home whose daemon went down before anything of it ended or fell due; all of it has, meanwhile.
/// None where the machine was too busy for so few seconds.
fn ended_without_a_daemon(seconds: u32) -> Option<Home> {
    let home = home_with(ALERT);
    let begun = Instant::now();
    home.ok_with(&["secret", "set", "SHORT"], "short-lived-value");
    home.ok_with(&["secret", "set", "DUE"], "due-value-one");
    home.ok_with(&["secret", "set", "QUIET"], "quiet-value-one");
    home.ok(&["secret", "edit", "QUIET", "--expires-at", "2099-01-01T00:00:00Z"]);
    let policy = format!(
        r#"{{"rotation_policy": {{"DUE": {{"rotate_every": "{}s", "notify_before": "2s"}}}}}}"#,
        seconds + 2
    );
    home.ok_with(&["rotation", "apply", "-"], &policy);
    home.ok(&["secret", "edit", "KEY", "--expires-at", &in_seconds(seconds - 1)]);
    let until = in_seconds(seconds);
    home.ok_with(&["secret", "rotate", "SHORT", "--valid-until", &until], "short-lived-two");
    wait_until("promoted", LIMIT, || {
        home.json(&["secret", "show", "SHORT"])["versions"]["current"]["version"] == 2
    });
    home.ok(&["down"]);
    // Times are of whole seconds.
    if begun.elapsed() >= Duration::from_secs((seconds - 2).into()) {
        return None;
    }
    assert_eq!(alerts(&home), [], "nothing has come to its end yet");
    let down = Instant::now();
    let all = Duration::from_secs((seconds + 2).into());
    wait_until("their ends", LIMIT, || down.elapsed() > all);
    Some(home)
}

#[test]
fn what_ends_or_falls_due_while_no_daemon_runs_is_told_once_after_the_next_start() {
    if !may_mount() {
        return;
    }
    let home = [6, 15, 40].into_iter().find_map(ended_without_a_daemon).expect("in time");
    home.ok(&["up"]);
    wait_until("all are told", LIMIT, || alerts(&home).len() == 3);
    let mut told = alerts(&home);
    told.sort();
    assert_eq!(told[0].0, "rotation_due");
    assert!(told[0].1.contains("the rotation of DUE is due"), "{told:?}");
    assert!(told[1].1.contains("KEY has expired"), "{told:?}");
    assert!(told[2].1.contains("version 2 of SHORT has come to its end"), "{told:?}");
    let records = home.records("secret_expired");
    assert_eq!(records.len(), 2, "{records:?}");
    let said = text(&home.run(&["run", "-s", "SHORT", "--", "true"]));
    assert!(said.contains("error: ") && said.contains("SHORT"), "{said}");
    for _ in 0..2 {
        home.ok(&["down"]);
        home.ok(&["up"]);
        // Three looks of the new daemon.
        let begun = Instant::now();
        wait_until("looks", LIMIT, || begun.elapsed() > Duration::from_secs(3));
    }
    assert_eq!(alerts(&home).len(), 3, "{:?}", alerts(&home));
    assert_eq!(home.records("secret_expired").len(), 2);
    // An end that is moved is a new one.
    home.ok(&["secret", "edit", "KEY", "--expires-at", &in_seconds(1)]);
    wait_until("the moved end", LIMIT, || home.records("secret_expired").len() == 3);
}

const ROTATE: &str = r#"{"chain": "rotate", "agents": [
  {"name": "create", "command": ["sh", "-c", "head -c 18 /dev/urandom | base64"]},
  {"name": "test", "command": ["true"]},
  {"name": "finish", "command": ["sh", "-c", "echo finish >> @DIR@/log"]}]}"#;

#[test]
fn a_version_that_its_provider_removed_is_not_offered_by_rollback() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.apply(&ROTATE.replace("@DIR@", home.dir.path().to_str().unwrap()));
    // By hand nothing was removed anywhere.
    home.ok_with(&["secret", "rotate", "KEY"], "key-value-two");
    let current = |home: &Home| home.json(&["secret", "show", "KEY"])["versions"].clone();
    wait_until("promoted", LIMIT, || current(&home)["current"]["version"] == 2);
    assert_eq!(current(&home)["previous"]["withdrawn_at"], Value::Null);
    home.ok(&["secret", "rollback", "KEY"]);
    home.ok(&["secret", "rollback", "KEY"]);

    home.ok(&["rotation", "run", "KEY", "--chain", "rotate"]);
    let log = home.dir.path().join("log");
    wait_until("finished", LIMIT, || std::fs::read_to_string(&log).is_ok_and(|t| !t.is_empty()));
    for _ in 0..2 {
        let refused = home.refused(&["secret", "rollback", "KEY"]);
        assert!(refused.contains("version 2 of KEY was removed at its provider"), "{refused}");
        assert!(refused.contains("--force"), "{refused}");
        assert_eq!(current(&home)["current"]["version"], 3);
        let shown = current(&home)["previous"].clone();
        assert!(shown["withdrawn_at"].is_string(), "{shown}");
        let shown = home.ok(&["secret", "show", "KEY"]);
        assert!(shown.contains("previous, removed at its provider"), "{shown}");
        home.ok(&["down"]);
        home.ok(&["up"]);
    }
    let forced = home.run(&["secret", "rollback", "KEY", "--force"]);
    let said = text(&forced);
    assert!(forced.status.success(), "{said}");
    assert!(said.contains("its provider may refuse"), "{said}");
    assert_eq!(current(&home)["current"]["version"], 2);
}

fn refused_as_revoked(home: &Home, args: &[&str], value: &str) {
    let output = home.run_with(args, value);
    let said = text(&output);
    assert!(!output.status.success(), "{args:?}: {said}");
    assert!(said.contains("which was revoked") && said.contains("\nhint: "), "{args:?}: {said}");
}

#[test]
fn a_revoked_value_stays_refused_when_its_secret_is_removed_and_after_any_restore() {
    if !may_mount() {
        return;
    }
    let phrase = "a long enough passphrase";
    let home = home();
    let pair = r#"{"LEFT": "left-value-1", "RIGHT": "right-value-1"}"#;
    home.ok_with(&["group", "set", "pair"], pair);
    let file = |name: &str| home.dir.path().join(name).to_str().unwrap().to_owned();
    let (before, after) = (file("before"), file("after"));
    home.ok_with(&["backup", "create", &before], phrase);
    home.ok_with(&["secret", "set", "YOUNG"], "young-value-one");
    for name in ["KEY", "YOUNG"] {
        home.ok(&["secret", "revoke", name, "--reason", "leaked", "--no-replacement"]);
        home.ok(&["secret", "rm", name]);
    }
    home.ok(&["group", "revoke", "pair", "--reason", "leaked", "--no-replacement"]);
    // One member goes with a new list of members, the other with the group.
    home.ok_with(&["group", "set", "pair", "--replace"], r#"{"RIGHT": "right-value-2"}"#);
    home.ok(&["group", "rm", "pair"]);
    let all = ["key-value-one", "young-value-one", "left-value-1", "right-value-1"];
    let check = |home: &Home, values: &[&str]| {
        for value in values {
            refused_as_revoked(home, &["secret", "set", "KEY"], value);
            refused_as_revoked(home, &["secret", "set", "prod/OTHER", "--scope", "chain:c"], value);
        }
        let members = format!(r#"{{"A": "{}", "B": "fresh-value-b"}}"#, values[0]);
        refused_as_revoked(home, &["group", "set", "other"], &members);
    };
    check(&home, &all);
    home.ok(&["down"]);
    home.ok(&["up"]);
    check(&home, &all);
    home.ok_with(&["backup", "create", &after], phrase);
    // A backup in which it was never revoked, and one that knows of it.
    for backup in [&before, &after, &before] {
        home.ok_with(&["backup", "restore", backup, "--replace"], phrase);
        refused_as_revoked(&home, &["secret", "set", "FRESH"], "young-value-one");
        refused_as_revoked(&home, &["secret", "set", "FRESH"], "key-value-one");
        home.ok(&["down"]);
        home.ok(&["up"]);
        refused_as_revoked(&home, &["secret", "set", "FRESH"], "left-value-1");
    }
    // Another vault with another root key: it learns of it by the backup alone.
    let other = Home::new();
    other.start();
    other.ok_with(&["backup", "restore", &after], phrase);
    check(&other, &all);
    other.ok(&["down"]);
    other.ok(&["up"]);
    check(&other, &all);
    let onwards = file("onwards");
    other.ok_with(&["backup", "create", &onwards], phrase);
    let third = Home::new();
    third.start();
    third.ok_with(&["secret", "set", "OWN"], "own-value-one");
    third.ok(&["secret", "revoke", "OWN", "--reason", "x", "--no-replacement"]);
    third.ok_with(&["backup", "restore", &onwards, "--replace"], phrase);
    check(&third, &all);
    refused_as_revoked(&third, &["secret", "set", "FRESH"], "own-value-one");
}

/// What an agent left behind, and that it does not heed TERM: the file `asked` tells of one.
const STUBBORN: &str = r#"setsid sh -c 'trap "touch $0/asked" TERM; touch $0/on; while :; do sleep 0.02; done' "$D" &
    echo $! > "$D/pid"; while [ ! -e "$D/on" ]; do sleep 0.01; done"#;

fn records(home: &Home, event: &str) -> usize {
    let found = home.ok(&["audit", "query", "--event", event, "--json"]);
    found.lines().filter(|line| !line.is_empty()).count()
}

#[test]
fn an_end_that_a_worker_died_over_is_finished_by_the_next_and_recorded_once() {
    if !may_mount() {
        return;
    }
    let home = home();
    let dir = home.dir.path().to_owned();
    let begin = |more: &[&str]| {
        for name in ["asked", "on", "pid"] {
            let _none = std::fs::remove_file(dir.join(name));
        }
        let view = dir.join("view");
        let mut command = home.command(&["run", "--chain", "c", "--agent", "a"]);
        command.args(more).args(["--secrets-path", view.to_str().unwrap(), "--", "sh", "-c"]);
        command.arg(STUBBORN).env("D", &dir).stdin(Stdio::null()).spawn().unwrap()
    };
    let left = || std::fs::read_to_string(dir.join("pid")).unwrap().trim().parse().unwrap();
    let kill_worker_when_asked = || {
        wait_until("it is asked to end", LIMIT, || dir.join("asked").exists());
        kill(Pid::from_raw(home.worker_pid()), Signal::SIGKILL).unwrap();
    };

    // Of an execution of its own: that is over as well.
    let mut child = begin(&[]);
    kill_worker_when_asked();
    assert!(child.wait().unwrap().success());
    assert!(!lives(left()), "who ended it was told so before it was true");
    wait_until("the execution's end", LIMIT, || home.json(&["status"])["executions"] == 0);
    wait_until("its record", LIMIT, || records(&home, "execution_ended") == 1);

    // By `execution end`: what is asked again waits for the same end.
    home.ok(&["execution", "start", "--chain", "c", "--id", "shared"]);
    let mut child = begin(&["--no-redact", "--execution", "shared", "--keep-background"]);
    assert!(child.wait().unwrap().success());
    let mut end =
        home.command(&["execution", "end", "shared"]).stdin(Stdio::null()).spawn().unwrap();
    kill_worker_when_asked();
    let ended = end.wait().unwrap();
    home.ok(&["execution", "end", "shared"]);
    assert!(!lives(left()), "{ended}");
    wait_until("its record", LIMIT, || records(&home, "execution_ended") == 2);

    // By nobody who would ask again.
    home.ok(&["execution", "start", "--chain", "c", "--id", "late"]);
    let mut child = begin(&["--no-redact", "--execution", "late", "--keep-background"]);
    assert!(child.wait().unwrap().success());
    let mut end = home.command(&["execution", "end", "late"]).stdin(Stdio::null()).spawn().unwrap();
    wait_until("it is asked to end", LIMIT, || dir.join("asked").exists());
    kill(Pid::from_raw(end.id().cast_signed()), Signal::SIGKILL).unwrap();
    end.wait().unwrap();
    kill(Pid::from_raw(home.worker_pid()), Signal::SIGKILL).unwrap();
    wait_until("the end of what was left", LIMIT, || !lives(left()));
    wait_until("its record", LIMIT, || records(&home, "execution_ended") == 3);

    kill(Pid::from_raw(home.worker_pid()), Signal::SIGKILL).unwrap();
    wait_until("nothing is ended twice", LIMIT, || {
        records(&home, "execution_ended") == 3 && home.json(&["status"])["executions"] == 0
    });
}
