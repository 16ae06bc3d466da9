//! `chain run`: a chain's agents in order, their output in the events, the first failure the last.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use common::{DB_PROD, Home, LIMIT, OPENAI, may_mount, text, wait_until};

/// Applies a chain of agents with these scripts; each may read both secrets.
fn apply(home: &Home, agents: &[(&str, Option<&str>)]) {
    let agents: Vec<_> = agents
        .iter()
        .map(|(name, script)| {
            let mut agent = serde_json::json!({
                "name": name, "secrets": ["OPENAI_API_KEY", "DATABASE_URL"],
            });
            if let Some(script) = script {
                agent["command"] = serde_json::json!(["sh", "-c", script]);
            }
            agent
        })
        .collect();
    let definition = serde_json::json!({"chain": "deploy-pipeline", "agents": agents});
    let file = home.dir.path().join("trial.json");
    fs::write(&file, definition.to_string()).unwrap();
    home.ok(&["chain", "apply", "--yes", file.to_str().unwrap()]);
}

fn trial(home: &Home, more: &[&str]) -> Output {
    let view = home.dir.path().join("view");
    let args = ["chain", "run", "deploy-pipeline", "--env", "prod", "--secrets-path"];
    home.command(&args).arg(view).args(more).stdin(Stdio::null()).output().unwrap()
}

fn folder(home: &Home, id: &str) -> PathBuf {
    home.home().join("events/deploy-pipeline/prod").join(id)
}

#[test]
fn agents_run_in_order_and_what_they_print_is_shown_and_kept_without_secrets() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    apply(
        &home,
        &[
            (
                "First",
                Some(
                    "echo out of the first; cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY; echo; \
                echo oops >&2; echo left > $STRONGROOM_EVENTS_DIR/note",
                ),
            ),
            ("Silent", None),
            (
                "Second",
                Some(
                    "cat $STRONGROOM_EVENTS_DIR/note; base64 -w0 \
                $CREDENTIALS_DIRECTORY/DATABASE_URL; echo",
                ),
            ),
        ],
    );
    let output = trial(&home, &["--id", "t1"]);
    assert!(output.status.success(), "{}", text(&output));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let at = |what: &str| stdout.find(what).unwrap_or_else(|| panic!("{what} in {stdout}"));
    assert!(at("out of the first") < at("left\n"));
    assert!(stderr.contains("oops\n") && stderr.contains("agent Second (2 of 2)"), "{stderr}");
    let folder = folder(&home, "t1");
    let first = fs::read_to_string(folder.join("First.log")).unwrap();
    for line in ["out of the first\n", "[REDACTED:OPENAI_API_KEY]", "oops\n"] {
        assert!(first.contains(line), "{first}");
    }
    let second = fs::read_to_string(folder.join("Second.log")).unwrap();
    assert!(second.contains("left\n[REDACTED:DATABASE_URL]"), "{second}");
    assert!(!folder.join("Silent.log").exists());
    for secret in [OPENAI, DB_PROD] {
        assert!(!first.contains(secret) && !second.contains(secret));
    }
    let shown = home.json(&["execution", "show", "t1"]);
    assert_eq!((&shown["state"], &shown["ended_reason"]), (&"ended".into(), &"ended".into()));
}

#[test]
fn the_first_failure_ends_it_with_its_status() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    apply(
        &home,
        &[
            ("Good", Some("true")),
            ("Bad", Some("echo broken; exit 7")),
            ("Never", Some("echo never > $STRONGROOM_EVENTS_DIR/never")),
        ],
    );
    let output = trial(&home, &["--id", "t2"]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    assert!(text(&output).contains("Bad left with status 7"), "{}", text(&output));
    assert!(folder(&home, "t2").join("Bad.log").exists());
    assert!(!folder(&home, "t2").join("never").exists());
    let shown = home.json(&["execution", "show", "t2"]);
    assert_eq!(shown["ended_reason"], "Bad left with status 7");
    let told = trial(&home, &["--json"]);
    let result: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(result["status"], 7);
    assert_eq!(result["agents"].as_array().unwrap().len(), 2);
    assert!(fs::exists(result["agents"][1]["log"].as_str().unwrap()).unwrap());

    apply(&home, &[("Killed", Some("kill -9 $$"))]);
    assert_eq!(trial(&home, &[]).status.code(), Some(137));
    apply(&home, &[("Missing", Some("exec /no/such/program"))]);
    assert_eq!(trial(&home, &[]).status.code(), Some(127));
    apply(&home, &[("Nothing", None)]);
    let nothing = trial(&home, &[]);
    assert_eq!(nothing.status.code(), Some(125));
    assert!(text(&nothing).contains("hint: add \"command\""), "{}", text(&nothing));
}

#[test]
fn a_trial_that_is_killed_leaves_no_agent_behind() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let pid_file = home.dir.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 600", pid_file.display());
    apply(&home, &[("Long", Some(&script))]);
    let view = home.dir.path().join("view");
    let mut child = home
        .command(&["chain", "run", "deploy-pipeline", "--env", "prod", "--id", "t3"])
        .arg("--secrets-path")
        .arg(view)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the agent", LIMIT, || {
        fs::read_to_string(&pid_file).is_ok_and(|t| t.ends_with('\n'))
    });
    let pid = fs::read_to_string(&pid_file).unwrap().trim().to_owned();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    wait_until("the agent's end", LIMIT, || !fs::exists(format!("/proc/{pid}")).unwrap());
    wait_until("the execution's end", LIMIT, || {
        home.json(&["execution", "show", "t3"])["ended_reason"] == "owner died"
    });
}

#[test]
fn a_short_agent_has_all_of_its_output_in_its_log() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let lines = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 3";
    apply(&home, &[("Quick", Some("echo at once; exit 7"))]);
    for number in 0..5 {
        let id = format!("q{number}");
        assert_eq!(trial(&home, &["--id", &id]).status.code(), Some(7));
        let log = fs::read_to_string(folder(&home, &id).join("Quick.log")).unwrap();
        assert_eq!(log, "at once\n");
    }
    apply(&home, &[("Quick", Some(lines))]);
    let output = trial(&home, &["--id", "many"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let log = fs::read_to_string(folder(&home, "many").join("Quick.log")).unwrap();
    assert_eq!(log.lines().count(), 3000);
    assert_eq!(String::from_utf8_lossy(&output.stdout), log);
}
