//! `explain --pid`: each reason for which a process may not see a name, with one next step.

mod common;

use std::process::{Child, Stdio};
use std::time::Duration;

use common::{Home, may_mount, text, wait_until};

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
        wait_until("the agent waits", Duration::from_secs(20), || read().is_some());
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
    for what in ["thread", "cgroup", "execution", "uid", "reference", "pin", "expiry", "mount"] {
        assert!(whats.contains(&what), "{what}: {told}");
    }
    assert_eq!(explain(&home, agent.pid, "events")["visible"], true);
    let stranger = i32::try_from(std::process::id()).unwrap();
    let (what, found, remedy) = reason(&home, stranger, "DATABASE_URL");
    assert_eq!((what.as_str(), found.as_str()), ("execution", "it belongs to none"));
    assert!(remedy.contains("strongroom run"), "{remedy}");
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
    let (what, found, remedy) = reason(&home, agent.pid, "NOT_NAMED");
    assert_eq!((what.as_str(), found.contains("does not name it")), ("reference", true), "{found}");
    assert!(remedy.contains("chain apply"), "{remedy}");
    assert!(findings("NOT_NAMED", "scope").contains("admits it"));
    // Another agent's secret: named nowhere for this one, and out of its scope.
    let scope = findings("SSH_DEPLOY_KEY", "scope");
    assert!(scope.contains("agent:deploy-pipeline/Deployer"), "{scope}");
    let wall = findings("DEV_ONLY", "environment");
    assert!(wall.contains("dev/DEV_ONLY"), "{wall}");
    assert!(findings("NO_SUCH", "scope").contains("there is no secret NO_SUCH"));
    // In the definition by now, but not when the agent started.
    let file = home.dir.path().join("wider.json");
    std::fs::write(
        &file,
        common::DEFINITION.replacen("\"DATABASE_URL\"", "\"DATABASE_URL\", \"NOT_NAMED\"", 1),
    )
    .unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap(), "--yes"]);
    let (what, found, remedy) = reason(&home, agent.pid, "NOT_NAMED");
    assert_eq!(what, "reference");
    assert!(found.contains("not when this agent started"), "{found}");
    assert!(remedy.contains("start the agent anew"), "{remedy}");
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
    wait_until("another uid", Duration::from_secs(10), || {
        std::fs::read_to_string(&file).is_ok_and(|t| t.ends_with('\n'))
    });
    let other: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    wait_until("its uid", Duration::from_secs(10), || {
        std::fs::read_to_string(format!("/proc/{other}/status"))
            .is_ok_and(|t| t.contains("Uid:\t4242"))
    });
    let (what, found, remedy) = reason(&home, other, "DATABASE_URL");
    assert_eq!((what.as_str(), found.as_str()), ("uid", "4242 (registered 0)"));
    assert!(remedy.contains("\"uids\""), "{remedy}");
    home.ok(&["secret", "edit", "OPENAI_API_KEY", "--expires-at", "2020-01-01T00:00:00Z"]);
    let (what, found, remedy) = reason(&home, agent.pid, "OPENAI_API_KEY");
    assert_eq!(what, "expiry", "{found}");
    assert!(remedy.contains("--expires-at never"), "{remedy}");
    home.ok(&["secret", "edit", "OPENAI_API_KEY", "--expires-at", "never"]);
    // A thread is asked about by its own number.
    let threads = home.dir.path().join("threads");
    let threaded = format!(
        "python3 -c 'import threading, time; t = threading.Thread(target=time.sleep, args=(300,), \
         daemon=True); t.start(); open(\"{}\", \"w\").write(str(t.native_id)); time.sleep(300)' & ",
        threads.display()
    );
    let second = Waiting::start(&home, "CodeAnalyzer", &[], &threaded);
    wait_until("a thread", Duration::from_secs(10), || {
        std::fs::read_to_string(&threads).is_ok_and(|t| !t.is_empty())
    });
    let tid: i32 = std::fs::read_to_string(&threads).unwrap().parse().unwrap();
    let told = explain(&home, tid, "OPENAI_API_KEY");
    assert!(told["findings"][0]["found"].as_str().unwrap().contains("is a thread of"), "{told}");
    assert_eq!(told["agent"], "CodeAnalyzer");
    drop(second);
    home.ok(&["lock"]);
    let (what, _, remedy) = reason(&home, agent.pid, "DATABASE_URL");
    assert_eq!((what.as_str(), remedy.as_str()), ("vault", "strongroom unlock"));
    home.ok(&["unlock"]);
    // A namespace in which everything of ours was unmounted.
    let elsewhere = home.dir.path().join("elsewhere");
    let unmounted = format!(
        "unshare -m sh -c 'grep strongroom- /proc/self/mountinfo | cut -d\" \" -f5 | tac | xargs -r \
         -n1 umount -l; echo $$ > {}; exec sleep 300' & ",
        elsewhere.display()
    );
    let third = Waiting::start(&home, "Deployer", &[], &unmounted);
    wait_until("no mount", Duration::from_secs(10), || {
        std::fs::read_to_string(&elsewhere).is_ok_and(|t| t.ends_with('\n'))
    });
    let pid: i32 = std::fs::read_to_string(&elsewhere).unwrap().trim().parse().unwrap();
    let (what, _, remedy) = reason(&home, pid, "id_deploy");
    assert_eq!(what, "mount");
    assert!(remedy.contains("start it anew"), "{remedy}");
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
    let refused = "cat $CREDENTIALS_DIRECTORY/id_deploy 2>/dev/null; ";
    let agent = Waiting::start(&home, "TestRunner", &["--execution", "run-1"], refused);
    let told = explain(&home, agent.pid, "id_deploy");
    let refusals = told["refusals"].as_array().unwrap();
    assert!(refusals.is_empty() || refusals[0].as_str().unwrap().contains("id_deploy"), "{told}");
    // It never obtained the value, so it lives; the name it was pinned to is denied or newer.
    let revoked = home.run(&[
        "secret",
        "revoke",
        "prod/DATABASE_URL",
        "--reason",
        "leaked",
        "--no-replacement",
    ]);
    assert!(revoked.status.success(), "{}", text(&revoked));
    let (what, found, remedy) = reason(&home, agent.pid, "DATABASE_URL");
    assert!(what == "pin" || what == "reference" || what == "scope", "{what}: {found}");
    assert!(remedy.contains("strongroom"), "{remedy}");
    drop(agent);
    let stubborn = Waiting::start(
        &home,
        "CodeAnalyzer",
        &["--execution", "run-1"],
        "trap '' TERM; sh -c 'trap \"\" TERM; while :; do sleep 1; done' & ",
    );
    let ending = home.command(&["execution", "end", "run-1"]).spawn().unwrap();
    let mut ending = ending;
    wait_until("it has ended", Duration::from_secs(5), || {
        home.json(&["execution", "show", "run-1"])["state"] == "ended"
    });
    let (what, found, _) = reason(&home, stubborn.pid, "OPENAI_API_KEY");
    assert_eq!(what, "execution");
    assert!(found.contains("run-1 of chain deploy-pipeline has ended"), "{found}");
    assert!(ending.wait().unwrap().success());
}
