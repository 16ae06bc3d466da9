//! What agents leave in their definition's `outputs` is searched at their end.
#![forbid(unsafe_code)]

mod common;
mod tools;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tools::disk::Disk;

use common::{DB_PROD, Home, LIMIT, OPENAI, may_mount, text, wait_until};

fn apply(home: &Home, outputs: &[&str], on_finding: Option<&str>) -> Output {
    let mut agent = serde_json::json!({
        "name": "TestRunner", "secrets": ["OPENAI_API_KEY", "DATABASE_URL"], "outputs": outputs,
    });
    if let Some(word) = on_finding {
        agent["on_finding"] = word.into();
    }
    let definition = serde_json::json!({"chain": "deploy-pipeline", "agents": [agent]});
    let file = home.dir.path().join("outputs.json");
    fs::write(&file, definition.to_string()).unwrap();
    home.run(&["chain", "apply", "--yes", file.to_str().unwrap()])
}

fn agent(home: &Home, dir: &Path, more: &[&str], script: &str) -> Output {
    let view = home.dir.path().join("view");
    let args = ["run", "--chain", "deploy-pipeline", "--agent", "TestRunner", "--env", "prod"];
    home.command(&args)
        .args(more)
        .arg("--secrets-path")
        .arg(view)
        .args(["--", "sh", "-c", script])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

const LEAK: &str = "mkdir -p out/deep && cd out && \
    echo \"key=$(cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY)\" > deep/log && \
    base64 -w0 $CREDENTIALS_DIRECTORY/DATABASE_URL > .hidden && echo fine > clean && chmod 640 deep/log";

#[test]
fn findings_are_told_and_recorded_and_the_files_stay() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["./out", "missing"], None).status.success());
    let dir = home.dir.path().join("work");
    fs::create_dir(&dir).unwrap();
    let output = agent(&home, &dir, &[], LEAK);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let told = text(&output);
    assert!(told.contains("out/deep/log held OPENAI_API_KEY, 1 times"), "{told}");
    assert!(told.contains("out/.hidden held DATABASE_URL"), "{told}");
    assert!(!told.contains("canary") && !told.contains("clean") && !told.contains("not searched"));
    assert!(fs::read_to_string(dir.join("out/deep/log")).unwrap().contains(OPENAI));
    let records = home.records("output_found");
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!(records[0]["reason"], "out/.hidden: report");
    assert_eq!(records[1]["secret_key"], "OPENAI_API_KEY");
}

#[test]
fn redacted_files_take_the_place_of_those_with_secrets() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["./out"], Some("redact")).status.success());
    let dir = home.dir.path().join("work");
    fs::create_dir(&dir).unwrap();
    // What a link leads to is not the agent's output, and stays.
    let outside = home.dir.path().join("outside");
    fs::write(&outside, OPENAI).unwrap();
    let script = format!(
        "{LEAK}; ln -s {0} link; ln -s {1} dir",
        outside.display(),
        home.dir.path().display()
    );
    let output = agent(&home, &dir, &["--no-redact"], &script);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let out = dir.join("out");
    assert_eq!(
        fs::read_to_string(out.join("deep/log")).unwrap(),
        "key=[REDACTED:OPENAI_API_KEY]\n"
    );
    assert_eq!(fs::metadata(out.join("deep/log")).unwrap().mode() & 0o7777, 0o640);
    assert!(
        fs::read_to_string(out.join(".hidden")).unwrap().starts_with("[REDACTED:DATABASE_URL]")
    );
    assert_eq!(fs::read_to_string(&outside).unwrap(), OPENAI);
    assert_eq!(fs::read_dir(out.join("deep")).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn an_agent_fails_by_what_it_leaves_where_its_definition_says_so() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["out"], Some("fail")).status.success());
    let dir = home.dir.path().join("work");
    fs::create_dir(&dir).unwrap();
    let clean = agent(&home, &dir, &[], "mkdir out; echo fine > out/f");
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean));
    let leak = agent(&home, &dir, &[], LEAK);
    assert_eq!(leak.status.code(), Some(125), "{}", text(&leak));
    assert!(text(&leak).contains("left secrets in its outputs"));
    let own = agent(&home, &dir, &[], "exit 4");
    assert_eq!(own.status.code(), Some(4), "its own failure says more");
    for bad in [&["/etc"][..], &["../x"], &["a/../b"], &[""]] {
        let refused = apply(&home, bad, None);
        assert!(text(&refused).contains("beneath the directory"), "{bad:?}: {}", text(&refused));
    }
    let refused = apply(&home, &["out"], Some("mask"));
    assert!(text(&refused).contains("report, redact or fail"), "{}", text(&refused));
}

#[test]
fn the_search_has_the_rights_of_the_agents_user_and_no_more() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["out"], Some("redact")).status.success());
    let dir = home.dir.path().join("work");
    fs::create_dir_all(dir.join("out/roots")).unwrap();
    // Root's own files below the directory that a launcher chose.
    fs::write(dir.join("out/roots/private"), OPENAI).unwrap();
    fs::set_permissions(dir.join("out/roots/private"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(dir.join("out/roots/readable"), DB_PROD).unwrap();
    fs::set_permissions(dir.join("out"), fs::Permissions::from_mode(0o777)).unwrap();
    let output = agent(
        &home,
        &dir,
        &["--as", "nobody"],
        "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY > out/own",
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let told = text(&output);
    assert!(told.contains("not searched for secrets: out/roots/private"), "{told}");
    assert!(
        told.contains("not searched for secrets: out/roots/readable"),
        "cannot be replaced: {told}"
    );
    let read = |name: &str| fs::read_to_string(dir.join("out").join(name)).unwrap();
    assert_eq!(read("own"), "[REDACTED:OPENAI_API_KEY]");
    assert_eq!(read("roots/private"), OPENAI);
    assert_eq!(read("roots/readable"), DB_PROD);
}

#[test]
fn outputs_are_searched_also_when_the_launcher_is_killed() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["out"], Some("redact")).status.success());
    let dir = home.dir.path().join("work");
    fs::create_dir(&dir).unwrap();
    let mut child = home
        .command(&["run", "--chain", "deploy-pipeline", "--agent", "TestRunner", "--env", "prod"])
        .arg("--secrets-path")
        .arg(home.dir.path().join("view"))
        .args(["--", "sh", "-c", &format!("{LEAK}; exec sleep 600")])
        .current_dir(&dir)
        .spawn()
        .unwrap();
    wait_until("the leak", LIMIT, || fs::exists(dir.join("out/clean")).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the files are redacted", LIMIT, || {
        fs::read_to_string(dir.join("out/deep/log")).is_ok_and(|t| t.contains("[REDACTED:"))
    });
    wait_until("on record", LIMIT, || !home.records("output_found").is_empty());
}

/// Much, so that the search takes its time.
const MUCH: &str = "mkdir -p out && cd out && for n in $(seq 40); do \
    yes 'some line of what was built' | head -c 400000 > f$n; \
    echo \"key=$(cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY)\" >> f$n; done";

#[test]
fn a_worker_that_dies_over_the_search_leaves_it_to_the_next() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["out"], Some("fail")).status.success());
    for (round, waits) in [true, false].into_iter().enumerate() {
        let dir = home.dir.path().join(format!("work{round}"));
        fs::create_dir(&dir).unwrap();
        let view = home.dir.path().join("view");
        let mut command = home.command(&[
            "run",
            "--chain",
            "deploy-pipeline",
            "--agent",
            "TestRunner",
            "--env",
            "prod",
        ]);
        command.arg("--secrets-path").arg(view).args(["--", "sh", "-c", MUCH]).current_dir(&dir);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Its end is on record when the search begins.
        wait_until("the agent's end", LIMIT, || {
            fs::read_to_string(dir.join("out/f40")).is_ok_and(|t| t.contains("key="))
        });
        std::thread::park_timeout(Duration::from_millis(400));
        let worker = nix::unistd::Pid::from_raw(home.worker_pid());
        if !waits {
            child.kill().unwrap();
            std::thread::park_timeout(Duration::from_millis(400));
        }
        nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL).unwrap();
        let output = child.wait_with_output().unwrap();
        if waits {
            assert_eq!(output.status.code(), Some(125), "{}", text(&output));
            assert!(text(&output).contains("out/f40 held OPENAI_API_KEY"), "{}", text(&output));
        }
        let on_record = || reasons(&home);
        wait_until("all are on record", LIMIT, || on_record().len() >= 40 * (round + 1));
        // Each round has its own, and each file is there once.
        let mut names = on_record();
        names.dedup();
        assert_eq!(on_record().len(), 40 * (round + 1), "{:?}", on_record());
        assert_eq!(names.len(), 40, "{names:?}");
    }
}

/// What records say of outputs, sorted.
fn reasons(home: &Home) -> Vec<String> {
    let found = home.records("output_found");
    let mut reasons: Vec<_> =
        found.iter().map(|r| r["reason"].as_str().unwrap().to_owned()).collect();
    reasons.sort();
    reasons
}

/// An agent that has written all of this when `done` is there, and ends when `end` is.
fn held(home: &Home, dir: &Path, script: &str) -> Child {
    held_with(home, dir, &[], script)
}

fn held_with(home: &Home, dir: &Path, more: &[&str], script: &str) -> Child {
    let (done, end) = (home.dir.path().join("done"), home.dir.path().join("end"));
    for file in [&done, &end] {
        let _absent = fs::remove_file(file);
    }
    let wait = format!(
        "{script}; sync; : > {}; while ! [ -e {} ]; do sleep 0.02; done",
        done.display(),
        end.display()
    );
    let child = home
        .command(&["run", "--chain", "deploy-pipeline", "--agent", "TestRunner", "--env", "prod"])
        .args(more)
        .arg("--secrets-path")
        .arg(home.dir.path().join("view"))
        .args(["--", "sh", "-c", &wait])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("all is written", LIMIT, || fs::exists(&done).unwrap());
    child
}

#[test]
fn a_launcher_that_cannot_be_told_what_was_left_fails_where_its_agent_must_leave_no_secret() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for (on_finding, status) in [("report", 0), ("fail", 125)] {
        assert!(apply(&home, &["out"], Some(on_finding)).status.success());
        let dir = home.dir.path().join(on_finding);
        fs::create_dir(&dir).unwrap();
        let child = held_with(&home, &dir, &["--no-redact"], "true");
        home.ok(&["down", "--force"]);
        let_end(&home);
        let output = child.wait_with_output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(status), "{told}");
        assert_eq!(
            told.contains("left secrets in its outputs is not known"),
            status == 125,
            "{told}"
        );
        home.ok(&["up"]);
    }
}

fn let_end(home: &Home) {
    fs::write(home.dir.path().join("end"), "").unwrap();
}

/// The worker, found while it still answers.
fn worker(home: &Home) -> Pid {
    Pid::from_raw(home.worker_pid())
}

#[test]
fn what_is_replaced_is_on_record_before_and_once_although_a_worker_dies_between_the_two() {
    if !may_mount() || !tools::has("fsfreeze") || !tools::has("mkfs.ext4") {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["out"], Some("redact")).status.success());
    let disk = Disk::made(&home, home.dir.path().join("disk"));
    let dir = disk.0.clone();
    let child = held(&home, &dir, LEAK);
    let worker = worker(&home);
    // No file can be made there, and none take the place of another.
    disk.freeze();
    let_end(&home);
    wait_until("the first finding", LIMIT, || !home.records("output_found").is_empty());
    // Longer than a launcher waits for a worker that is not there.
    let begun = Instant::now();
    wait_until("a long search", LIMIT, || begun.elapsed() > Duration::from_secs(6));
    kill(worker, Signal::SIGKILL).unwrap();
    disk.thaw();
    let output = child.wait_with_output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("out/deep/log held OPENAI_API_KEY, 1 times"), "{told}");
    assert!(told.contains("out/.hidden held DATABASE_URL, 1 times"), "{told}");
    assert!(!told.contains("not searched"), "{told}");
    let log = fs::read_to_string(dir.join("out/deep/log")).unwrap();
    assert_eq!(log, "key=[REDACTED:OPENAI_API_KEY]\n");
    assert_eq!(reasons(&home), ["out/.hidden: redact", "out/deep/log: redact"]);
    let left =
        fs::read_dir(dir.join("out")).unwrap().chain(fs::read_dir(dir.join("out/deep")).unwrap());
    assert_eq!(left.count(), 4, "what the first worker had begun is gone");
}

#[test]
fn a_finding_whose_file_was_replaced_when_its_worker_died_is_told_and_recorded_once() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["out"], Some("redact")).status.success());
    // The second file takes the search its time.
    let leak = "key=$(cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY); mkdir out; \
        echo $key > out/f1; yes 'some line of what was built' | head -c 16000000 > out/f2; \
        echo $key >> out/f2";
    for round in 1.. {
        let dir = home.dir.path().join(format!("work{round}"));
        fs::create_dir(&dir).unwrap();
        let child = held(&home, &dir, leak);
        let worker = worker(&home);
        let_end(&home);
        let is_redacted =
            |name: &str| fs::read_to_string(dir.join(name)).unwrap().contains("[REDACTED:");
        wait_until("the first file", LIMIT, || is_redacted("out/f1"));
        kill(worker, Signal::SIGSTOP).unwrap();
        let came_in_time = !is_redacted("out/f2");
        kill(worker, Signal::SIGKILL).unwrap();
        let output = child.wait_with_output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(0), "{told}");
        for file in ["out/f1", "out/f2"] {
            assert!(told.contains(&format!("{file} held OPENAI_API_KEY, 1 times")), "{told}");
            assert!(is_redacted(file));
        }
        let all = ["out/f1: redact", "out/f2: redact"].map(|reason| vec![reason; round]).concat();
        assert_eq!(reasons(&home), all);
        if came_in_time {
            break;
        }
        assert!(round < 20, "the second file is always searched before this test can look");
    }
}

fn post(home: &Home, dir: &Path, path: &str, body: &Value) -> Value {
    let output = Command::new("curl")
        .args(["-s", "--max-time", "60", "--retry", "5", "--retry-all-errors", "--unix-socket"])
        .arg(home.socket())
        .args(["-H", "content-type: application/json", "-d", &body.to_string()])
        .arg(format!("http://strongroom{path}"))
        .current_dir(dir)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
}

#[test]
fn a_launcher_whose_answer_was_lost_is_told_the_same_again_also_by_the_next_worker() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert!(apply(&home, &["out"], Some("fail")).status.success());
    let dir = home.dir.path().join("work");
    fs::create_dir_all(dir.join("out")).unwrap();
    fs::write(dir.join("out/log"), OPENAI).unwrap();
    let launch = json!({
        "chain": "deploy-pipeline", "agent": "TestRunner", "environment": "prod", "how": "attach",
    });
    let launched = post(&home, &dir, "/v1/agents", &launch);
    let end = json!({"launch": launched["launch"]});
    let first = post(&home, &dir, "/v1/agents/end", &end);
    assert_eq!(first["failed"], true, "{first}");
    assert_eq!(first["findings"][0]["path"], "out/log", "{first}");
    fs::remove_file(dir.join("out/log")).unwrap();
    assert_eq!(post(&home, &dir, "/v1/agents/end", &end), first);
    let before = home.worker_pid();
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    wait_until("the next worker", LIMIT, || home.worker_pid() != before);
    assert_eq!(post(&home, &dir, "/v1/agents/end", &end), first);
    assert_eq!(reasons(&home), ["out/log: fail"]);
    let other = post(&home, &dir, "/v1/agents/end", &json!({"launch": "0".repeat(32)}));
    assert_eq!(other["code"], "not_found", "{other}");
}
