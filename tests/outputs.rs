//! What agents leave in their definition's `outputs` is searched at their end.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

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
        wait_until("all are on record", LIMIT, || {
            let found = home.records("output_found");
            let mut files: Vec<_> =
                found.iter().filter_map(|r| r["reason"].as_str()).map(str::to_owned).collect();
            files.sort();
            files.dedup();
            // Each round has its own; a file that was on record before may be so twice.
            files.len() == 40 && found.len() >= 40 * (round + 1)
        });
    }
}
