//! `explain --pid`: each reason for which a process may not see a name, with one next step.

mod common;

use std::process::{Child, Stdio};

use common::{Home, LIMIT, may_mount, text, wait_until};

/// An agent that waits, with its process id.
struct Waiting {
    child: Child,
    pid: i32,
}

impl Waiting {
    fn start(home: &Home, agent: &str, options: &[&str], script: &str) -> Self {
        let file = home.dir.path().join(format!("pid.{agent}"));
        let _old = std::fs::remove_file(&file);
        let view = home.dir.path().join("view");
        let script = format!("{script} echo $$ > {}; exec sleep 300", file.display());
        let mut args = vec!["run", "--secrets-path", view.to_str().unwrap(), "--agent", agent];
        if !options.contains(&"--execution") {
            args.extend(["--chain", "deploy-pipeline", "--env", "prod"]);
        }
        args.extend(options);
        args.extend(["--", "sh", "-c", &script]);
        let child = home.command(&args).stdin(Stdio::null()).spawn().unwrap();
        let read = || std::fs::read_to_string(&file).ok()?.trim().parse().ok();
        wait_until("the agent waits", LIMIT, || read().is_some());
        Self { child, pid: read().unwrap() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Its agent goes with it.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn explain(home: &Home, pid: i32, name: &str) -> serde_json::Value {
    let output = home.run(&["explain", "--pid", &pid.to_string(), name, "--json"]);
    let told: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    let status = if told["visible"] == true { 0 } else { 8 };
    assert_eq!(output.status.code(), Some(status), "{told}");
    told
}

/// The finding that stands in the way, and the remedy.
fn reason(home: &Home, pid: i32, name: &str) -> (String, String, String) {
    let told = explain(home, pid, name);
    assert_eq!(told["visible"], false, "{told}");
    let findings = told["findings"].as_array().unwrap();
    let bad = findings.iter().find(|f| f["ok"] == false).unwrap_or_else(|| panic!("{told}"));
    let of = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    assert!(told["remedy"].is_string(), "{told}");
    (of(&bad["what"]), of(&bad["found"]), of(&told["remedy"]))
}

fn own((what, found, remedy): (&str, &str, &str)) -> (String, String, String) {
    (what.to_owned(), found.to_owned(), remedy.to_owned())
}

/// What was found of one thing.
fn finding(told: &serde_json::Value, what: &str) -> String {
    let all = told["findings"].as_array().unwrap();
    let found = all.iter().find(|f| f["what"] == what).unwrap_or_else(|| panic!("{what}: {told}"));
    found["found"].as_str().unwrap().to_owned()
}

#[test]
fn a_name_that_is_there_and_a_process_of_no_execution_are_told_apart() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let agent = Waiting::start(&home, "TestRunner", &[], "");
    let told = explain(&home, agent.pid, "DATABASE_URL");
    assert_eq!(told["visible"], true, "{told}");
    let whats: Vec<_> =
        told["findings"].as_array().unwrap().iter().map(|f| f["what"].as_str().unwrap()).collect();
    let all = ["thread", "cgroup", "execution", "uid", "reference", "pin", "expiry", "mount"];
    assert_eq!(whats, all, "{told}");
    assert_eq!(told["remedy"], serde_json::Value::Null);
    assert_eq!(told["refusals"], serde_json::json!([]));
    let pid = agent.pid;
    assert_eq!(finding(&told, "thread"), format!("{pid} is its main thread of process {pid}"));
    let execution = told["execution"].as_str().unwrap();
    let group = finding(&told, "cgroup");
    assert!(group.contains(&format!("/{execution}/TestRunner.")), "{group}");
    assert_eq!(
        finding(&told, "execution"),
        format!("{execution} of chain deploy-pipeline, agent TestRunner, environment prod")
    );
    assert_eq!(finding(&told, "uid"), "0 (registered 0)");
    let reference = "prod/DATABASE_URL with scope chain:deploy-pipeline";
    assert_eq!(finding(&told, "reference"), reference);
    assert_eq!(finding(&told, "pin"), "version 1");
    assert_eq!(finding(&told, "expiry"), "never");
    assert_eq!(finding(&told, "mount"), "in its namespace");
    home.ok(&["secret", "edit", "prod/DATABASE_URL", "--expires-at", "2099-01-01T00:00:00Z"]);
    let told = explain(&home, agent.pid, "DATABASE_URL");
    assert_eq!(finding(&told, "expiry"), "2099-01-01T00:00:00Z");
    assert_eq!(explain(&home, agent.pid, "events")["visible"], true);
    let stranger = i32::try_from(std::process::id()).unwrap();
    let remedy = "start it with `strongroom run --chain C --agent A -- CMD`";
    assert_eq!(
        reason(&home, stranger, "DATABASE_URL"),
        own(("execution", "it belongs to none", remedy))
    );
    assert!(home.refused(&["explain", "--pid", "0", "X"]).contains("no process 0"));
}

#[test]
fn reference_scope_and_environment_are_each_named_with_what_mends_them() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    home.ok_with(&["secret", "set", "dev/DEV_ONLY", "--scope", "org"], "canary-dev");
    home.ok_with(&["secret", "set", "NOT_NAMED", "--scope", "org"], "canary-not-named");
    let agent = Waiting::start(&home, "TestRunner", &[], "");
    let findings = |name: &str, what: &str| -> String {
        let told = explain(&home, agent.pid, name);
        let all = told["findings"].as_array().unwrap();
        let found = all.iter().filter(|f| f["what"] == what);
        found.map(|f| f["found"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("; ")
    };
    let apply = "add NOT_NAMED to the secrets of agent TestRunner and run `strongroom chain apply`";
    assert_eq!(
        reason(&home, agent.pid, "NOT_NAMED"),
        own(("reference", "the agent's definition does not name it", apply))
    );
    assert_eq!(findings("NOT_NAMED", "scope"), "NOT_NAMED with scope org admits it");
    // Another agent's secret: named nowhere for this one, and out of its scope.
    let scope = findings("SSH_DEPLOY_KEY", "scope");
    assert!(scope.contains("agent:deploy-pipeline/Deployer"), "{scope}");
    let wall = findings("DEV_ONLY", "environment");
    assert!(wall.contains("dev/DEV_ONLY"), "{wall}");
    assert_eq!(findings("NO_SUCH", "scope"), "there is no secret NO_SUCH");
    // In the definition by now, but not when the agent started.
    let file = home.dir.path().join("wider.json");
    std::fs::write(
        &file,
        common::DEFINITION.replacen("\"DATABASE_URL\"", "\"DATABASE_URL\", \"NOT_NAMED\"", 1),
    )
    .unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap(), "--yes"]);
    assert_eq!(
        reason(&home, agent.pid, "NOT_NAMED"),
        own((
            "reference",
            "in the definition, but not when this agent started",
            "start the agent anew: an execution keeps what it started with",
        ))
    );
}

#[test]
fn uid_mount_vault_and_expiry_are_each_named_with_what_mends_them() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let file = home.dir.path().join("uid");
    let script = format!(
        "setpriv --reuid 4242 --clear-groups sh -c 'echo $$; exec sleep 300' > {} & ",
        file.display()
    );
    let agent = Waiting::start(&home, "TestRunner", &[], &script);
    wait_until("another uid", LIMIT, || {
        std::fs::read_to_string(&file).is_ok_and(|t| t.ends_with('\n'))
    });
    let other: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    wait_until("its uid", LIMIT, || {
        std::fs::read_to_string(format!("/proc/{other}/status"))
            .is_ok_and(|t| t.contains("Uid:\t4242"))
    });
    let remedy = "add 4242 to the agent's \"uids\", or run it as uid 0";
    assert_eq!(reason(&home, other, "DATABASE_URL"), own(("uid", "4242 (registered 0)", remedy)));
    home.ok(&["secret", "edit", "OPENAI_API_KEY", "--expires-at", "2020-01-01T00:00:00Z"]);
    assert_eq!(
        reason(&home, agent.pid, "OPENAI_API_KEY"),
        own((
            "expiry",
            "2020-01-01T00:00:00Z, over: opens fail with EKEYEXPIRED",
            "strongroom secret edit OPENAI_API_KEY --expires-at never",
        ))
    );
    home.ok(&["secret", "edit", "OPENAI_API_KEY", "--expires-at", "never"]);
    // A thread is asked about by its own number.
    let threads = home.dir.path().join("threads");
    let threaded = format!(
        "python3 -c 'import threading, time; t = threading.Thread(target=time.sleep, args=(300,), \
         daemon=True); t.start(); open(\"{}\", \"w\").write(str(t.native_id)); time.sleep(300)' & ",
        threads.display()
    );
    let second = Waiting::start(&home, "CodeAnalyzer", &[], &threaded);
    wait_until("a thread", LIMIT, || {
        std::fs::read_to_string(&threads).is_ok_and(|t| !t.is_empty())
    });
    let tid: i32 = std::fs::read_to_string(&threads).unwrap().parse().unwrap();
    let told = explain(&home, tid, "OPENAI_API_KEY");
    assert!(told["findings"][0]["found"].as_str().unwrap().contains("is a thread of"), "{told}");
    assert_eq!(told["agent"], "CodeAnalyzer");
    drop(second);
    home.ok(&["lock"]);
    assert_eq!(
        reason(&home, agent.pid, "DATABASE_URL"),
        own(("vault", "locked: opens fail with ENOKEY", "strongroom unlock"))
    );
    home.ok(&["unlock"]);
    // A namespace in which everything of ours was unmounted.
    let elsewhere = home.dir.path().join("elsewhere");
    let unmounted = format!(
        "unshare -m sh -c 'grep strongroom- /proc/self/mountinfo | cut -d\" \" -f5 | tac | xargs -r \
         -n1 umount -l; echo $$ > {}; exec sleep 300' & ",
        elsewhere.display()
    );
    let third = Waiting::start(&home, "Deployer", &[], &unmounted);
    wait_until("no mount", LIMIT, || {
        std::fs::read_to_string(&elsewhere).is_ok_and(|t| t.ends_with('\n'))
    });
    let pid: i32 = std::fs::read_to_string(&elsewhere).unwrap().trim().parse().unwrap();
    assert_eq!(
        reason(&home, pid, "id_deploy"),
        own((
            "mount",
            "not in its namespace",
            "its mount namespace is older than the mount: start it anew",
        ))
    );
    drop(third);
}

#[test]
fn an_ended_execution_a_revoked_pin_and_the_last_refusal_are_told() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    home.ok(&[
        "execution",
        "start",
        "--chain",
        "deploy-pipeline",
        "--env",
        "prod",
        "--id",
        "run-1",
    ]);
    // Another agent's secret: it exists, and is refused.
    let refused = "cat $CREDENTIALS_DIRECTORY/SSH_DEPLOY_KEY 2>/dev/null; ";
    let agent = Waiting::start(&home, "TestRunner", &["--execution", "run-1"], refused);
    let told = explain(&home, agent.pid, "SSH_DEPLOY_KEY");
    let refusals = told["refusals"].as_array().unwrap();
    assert_eq!(refusals.len(), 1, "{told}");
    let refusal = refusals[0].as_str().unwrap();
    let (what, at) = refusal.rsplit_once(" (").unwrap();
    assert_eq!(what, "SSH_DEPLOY_KEY: no such name for this caller");
    assert!(at.trim_end_matches(')').parse::<strongroom::clock::Timestamp>().is_ok(), "{refusal}");
    assert!(explain(&home, agent.pid, "DATABASE_URL")["visible"] == true);
    // It never obtained the value, so it lives; the version that it is pinned to is denied.
    let key = "prod/DATABASE_URL";
    let revoke = ["secret", "revoke", key, "--reason", "leaked"];
    home.ok(&[&revoke[..], &["--no-replacement"]].concat());
    assert_eq!(
        reason(&home, agent.pid, "DATABASE_URL"),
        own((
            "pin",
            "version 1 is revoked: opens fail with EKEYREVOKED",
            "strongroom secret set prod/DATABASE_URL --scope chain:deploy-pipeline --replace, then start the agent anew",
        ))
    );
    let set = ["secret", "set", key, "--scope", "chain:deploy-pipeline", "--replace"];
    home.ok_with(&set, "postgres://second");
    assert_eq!(
        reason(&home, agent.pid, "DATABASE_URL"),
        own((
            "pin",
            "version 1 is revoked: opens fail with EKEYREVOKED",
            "start the agent anew: there is a new version",
        ))
    );
    // With a replacement the execution has that at once.
    let second = Waiting::start(&home, "CodeAnalyzer", &["--execution", "run-1"], "");
    home.ok_with(
        &["secret", "revoke", "OPENAI_API_KEY", "--reason", "leaked"],
        "sk-replacement-0123456789",
    );
    let told = explain(&home, second.pid, "OPENAI_API_KEY");
    assert_eq!((&told["visible"], &told["remedy"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!(finding(&told, "pin"), "version 2");
    drop(second);
    drop(agent);
    let stubborn =
        Waiting::start(&home, "CodeAnalyzer", &["--execution", "run-1"], "trap '' TERM;");
    // With time enough to be asked about.
    let mut ending = std::process::Command::new("curl")
        .args(["--silent", "--fail", "--unix-socket"])
        .arg(home.socket())
        .args(["-H", "content-type: application/json"])
        .args(["-d", r#"{"id": "run-1", "grace": "10m"}"#])
        .arg("http://strongroom/v1/executions/end")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it has ended", LIMIT, || {
        home.json(&["execution", "show", "run-1"])["state"] == "ended"
    });
    assert_eq!(
        reason(&home, stubborn.pid, "OPENAI_API_KEY"),
        own((
            "execution",
            "run-1 of chain deploy-pipeline has ended: ended",
            "start a new execution; what is left of this one is being ended",
        ))
    );
    let pid = nix::unistd::Pid::from_raw(stubborn.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(ending.wait().unwrap().success());
}

#[test]
fn a_log_that_takes_no_record_is_told_with_what_is_wrong_with_it() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let agent = Waiting::start(&home, "TestRunner", &[], "");
    assert_eq!(explain(&home, agent.pid, "DATABASE_URL")["visible"], true);
    let (audit, away) = (home.home().join("audit"), home.dir.path().join("away"));
    std::fs::rename(&audit, &away).unwrap();
    wait_until("reads stop", LIMIT, || {
        !home.agent("TestRunner", "cat $CREDENTIALS_DIRECTORY/DATABASE_URL").status.success()
    });
    let (what, found, remedy) = reason(&home, agent.pid, "DATABASE_URL");
    assert_eq!(what, "record");
    assert!(found.starts_with("no record can be written: "), "{found}");
    assert_eq!(remedy, "make the audit directory writable; reads go on by themselves then");
    std::fs::rename(&away, &audit).unwrap();
    wait_until("it heals", LIMIT, || {
        home.agent("TestRunner", "cat $CREDENTIALS_DIRECTORY/DATABASE_URL").status.success()
    });
    assert_eq!(explain(&home, agent.pid, "DATABASE_URL")["visible"], true);
}
