//! Versions on the real mount: rotation fails nobody, a revoke is final.

mod common;

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::{Home, LIMIT, may_mount, text, wait_until};

const CHAIN: &str = r#"{"chain": "c", "agents": [
  {"name": "a", "secrets": ["KEY", "pair"]},
  {"name": "b", "secrets": ["OTHER"]},
  {"name": "f", "secrets": ["TOKEN"]}]}"#;

fn home_with(config: &str) -> Home {
    let home = Home::new();
    home.start();
    home.configure(config);
    home.ok_with(&["secret", "set", "KEY"], "key-value-one");
    home.ok_with(&["secret", "set", "OTHER"], "other-value-one");
    home.ok_with(&["secret", "set", "TOKEN", "--floating"], "token-value-one");
    home.ok_with(
        &["group", "set", "pair"],
        r#"{"LEFT": "left-value-1", "RIGHT": "right-value-1"}"#,
    );
    home.apply(CHAIN);
    home
}

fn home() -> Home {
    home_with("")
}

/// An agent of user `nobody` that runs until it is ended, with its execution's id.
fn agent(home: &Home, execution: &str, agent: &str, script: &str) -> Child {
    let view = home.dir.path().join("view");
    home.command(&[
        "run",
        "--no-redact",
        "--chain",
        "c",
        "--agent",
        agent,
        "--execution",
        execution,
        "--as",
    ])
    .args(["nobody", "--secrets-path", view.to_str().unwrap(), "--", "sh", "-c", script])
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap()
}

fn output(home: &Home, name: &str, script: &str) -> String {
    let view = home.dir.path().join("view");
    let mut command =
        home.command(&["run", "--no-redact", "--chain", "c", "--agent", name, "--as", "nobody"]);
    command.args(["--secrets-path", view.to_str().unwrap(), "--", "sh", "-c", script]);
    text(&command.output().unwrap())
}

fn stages(home: &Home, name: &str) -> Vec<(u64, String)> {
    let shown = home.json(&["secret", "show", name]);
    let mut found: Vec<_> = shown["versions"]
        .as_object()
        .unwrap()
        .values()
        .chain(shown["old_versions"].as_array().unwrap())
        .map(|v| (v["version"].as_u64().unwrap(), v["stage"].as_str().unwrap().to_owned()))
        .collect();
    found.sort();
    found
}

fn stage(number: u64, word: &str) -> (u64, String) {
    (number, word.to_owned())
}

#[test]
fn running_executions_keep_their_version_new_ones_get_the_pending_and_the_end_promotes() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.ok(&["execution", "start", "--chain", "c", "--id", "old"]);
    let read = |id: &str| {
        let mut child = agent(&home, id, "a", "cat $CREDENTIALS_DIRECTORY/KEY");
        child.wait().unwrap();
        text(&child.wait_with_output().unwrap())
    };
    assert_eq!(read("old"), "key-value-one");
    home.ok_with(&["secret", "rotate", "KEY"], "key-value-two");
    home.ok(&["execution", "start", "--chain", "c", "--id", "new"]);
    assert_eq!(read("new"), "key-value-two");
    assert_eq!(read("old"), "key-value-one");
    assert_eq!(stages(&home, "KEY"), [stage(1, "current"), stage(2, "pending")]);
    let waiting = home.json(&["status"])["waiting"].clone();
    assert_eq!(waiting[0]["secret"], "KEY");
    assert_eq!(waiting[0]["waits_for"], serde_json::json!(["old"]));

    let second = home.run_with(&["secret", "rotate", "KEY"], "key-value-3");
    assert!(!second.status.success());
    assert!(text(&second).contains("version 2 of KEY is pending already"), "{}", text(&second));
    let by_hand = home.refused(&["secret", "promote", "KEY"]);
    assert!(by_hand.contains("old") && by_hand.contains("--force"), "{by_hand}");

    home.ok(&["execution", "end", "old"]);
    wait_until("promoted", LIMIT, || {
        stages(&home, "KEY") == [stage(1, "previous"), stage(2, "current")]
    });
    assert_eq!(read("new"), "key-value-two");
    home.ok(&["secret", "rollback", "KEY"]);
    assert_eq!(stages(&home, "KEY"), [stage(1, "current"), stage(2, "previous")]);
    assert_eq!(read("new"), "key-value-two");
    assert_eq!(output(&home, "a", "cat $CREDENTIALS_DIRECTORY/KEY"), "key-value-one");
    wait_until("on record", LIMIT, || home.records("secret_promoted").len() == 1);
    assert_eq!(home.records("secret_rolled_back").len(), 1);
}

#[test]
fn a_rotation_is_given_up_by_rollback_and_comes_at_its_time_with_valid_from() {
    if !may_mount() {
        return;
    }
    let home = home();
    let later = ["secret", "rotate", "KEY", "--valid-from", "2099-01-01T00:00:00Z"];
    home.ok_with(&later, "key-value-two");
    assert_eq!(output(&home, "a", "cat $CREDENTIALS_DIRECTORY/KEY"), "key-value-one");
    assert_eq!(stages(&home, "KEY"), [stage(1, "current"), stage(2, "pending")]);
    home.ok(&["secret", "rollback", "KEY"]);
    assert_eq!(stages(&home, "KEY")[0], stage(1, "current"));
    home.ok(&["secret", "rotate", "KEY", "--generate", "hex:64"]);
    wait_until("promoted", LIMIT, || stages(&home, "KEY").contains(&stage(3, "current")));
    let made = output(&home, "a", "cat $CREDENTIALS_DIRECTORY/KEY");
    assert!(made.len() == 64 && made.bytes().all(|b| b.is_ascii_hexdigit()), "{made}");
    for (args, what) in [
        (&["secret", "rotate", "NO_SUCH"][..], "there is no secret NO_SUCH"),
        (&["secret", "rotate", "LEFT"], "LEFT is a member of group pair"),
        (&["secret", "rotate", "pair"], "pair is a group"),
        (&["group", "rotate", "KEY"], "KEY"),
    ] {
        let refused = home.run_with(args, r#"{"A": "value-of-a"}"#);
        assert!(!refused.status.success(), "{args:?}");
        assert!(text(&refused).contains(what), "{args:?}: {}", text(&refused));
        assert!(text(&refused).contains("hint: "), "{args:?}: {}", text(&refused));
    }
}

#[test]
fn no_read_is_torn_mixed_or_failed_over_promotions_of_a_group() {
    if !may_mount() {
        return;
    }
    let home = home_with("[rotation]\ndrain = \"200ms\"\n");
    // Reads both members without end; a pair of two generations, or a failed read, is a line.
    let stop = home.dir.path().join("stop");
    let script = "while [ ! -e STOP ]; do \
        l=$(cat $CREDENTIALS_DIRECTORY/LEFT) || echo failed; \
        r=$(cat $CREDENTIALS_DIRECTORY/RIGHT) || echo failed; \
        [ \"${l#left}\" = \"${r#right}\" ] || echo \"mixed $l $r\"; done"
        .replace("STOP", stop.to_str().unwrap());
    let mut children = Vec::new();
    for round in 2..14 {
        let id = format!("run-{round}");
        home.ok(&["execution", "start", "--chain", "c", "--id", &id]);
        children.push((id.clone(), agent(&home, &id, "a", &script)));
        let members =
            format!(r#"{{"LEFT": "left-value-{round}", "RIGHT": "right-value-{round}"}}"#);
        home.ok_with(&["group", "rotate", "pair"], &members);
        wait_until("the drain", LIMIT, || {
            let current = home.json(&["group", "show", "pair"])["members"][0]["current"].clone();
            current == serde_json::json!(round)
        });
    }
    std::fs::write(&stop, "").unwrap();
    for (id, child) in children {
        let said = text(&child.wait_with_output().unwrap());
        assert!(!said.contains("mixed") && !said.contains("failed"), "{id}: {said}");
    }
    assert!(home.records("secret_accessed").len() > 24);
    assert_eq!(home.records("secret_denied").len(), 0);
}

#[test]
fn a_floating_secret_follows_the_current_version_at_the_next_open() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.ok(&["execution", "start", "--chain", "c", "--id", "long"]);
    let script = "exec 3<$CREDENTIALS_DIRECTORY/TOKEN; cat <&3; echo; touch \"$DIR/ready\"; \
        while [ ! -e \"$DIR/go\" ]; do sleep 0.01; done; cat $CREDENTIALS_DIRECTORY/TOKEN";
    let dir = home.dir.path().join("signals");
    std::fs::create_dir(&dir).unwrap();
    let anyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&dir, anyone).unwrap();
    let child = agent(&home, "long", "f", &script.replace("$DIR", dir.to_str().unwrap()));
    wait_until("the first read", LIMIT, || dir.join("ready").exists());
    home.ok_with(&["secret", "rotate", "TOKEN"], "token-value-two, longer");
    wait_until("promoted", LIMIT, || stages(&home, "TOKEN").contains(&stage(2, "current")));
    std::fs::write(dir.join("go"), "").unwrap();
    assert_eq!(
        text(&child.wait_with_output().unwrap()),
        "token-value-one\ntoken-value-two, longer"
    );
}

#[test]
fn a_revoke_ends_who_obtained_the_value_whatever_they_do_and_nobody_else() {
    if !may_mount() {
        return;
    }
    let home = home();
    let read = "cat $CREDENTIALS_DIRECTORY/KEY >/dev/null;";
    let hard = [
        ("ignores", format!("trap '' TERM INT HUP; {read} while :; do sleep 1; done")),
        ("forks", format!("{read} while :; do (sleep 100 &) ; sleep 0.01; done")),
        ("stopped", format!("{read} kill -STOP $$")),
        ("daemon", format!("{read} setsid sh -c 'sleep 1000 & sleep 1000' & wait")),
        ("reader", "while :; do cat $CREDENTIALS_DIRECTORY/KEY >/dev/null; done".to_owned()),
    ];
    let mut children = Vec::new();
    for (id, script) in &hard {
        home.ok(&["execution", "start", "--chain", "c", "--id", id]);
        children.push(agent(&home, id, "a", script));
    }
    // May read it and never did: goes on, with the replacement.
    home.ok(&["execution", "start", "--chain", "c", "--id", "innocent"]);
    let waits = "while :; do read x < $CREDENTIALS_DIRECTORY/LEFT; sleep 0.05; done";
    let mut innocent = agent(&home, "innocent", "a", waits);
    wait_until("exposed", LIMIT, || {
        home.json(&["secret", "exposures", "KEY"])["exposures"].as_array().unwrap().len()
            == hard.len()
    });
    home.ok(&["secret", "get", "KEY", "--reveal"]);

    let dry = home.json(&["secret", "revoke", "KEY", "--reason", "leaked", "--dry-run"]);
    assert_eq!(dry["ended"].as_array().unwrap().len(), hard.len());
    assert_eq!(dry["outside"][0]["via"], "reveal");
    assert_eq!(dry["dry_run"], true);
    assert_eq!(stages(&home, "KEY"), [stage(1, "current")]);

    let answer = home
        .ok_with(&["secret", "revoke", "KEY", "--reason", "leaked", "--json"], "key-replacement");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["complete"], true, "{answer}");
    let ended: BTreeSet<_> = answer["ended"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["execution"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ended, hard.iter().map(|(id, _)| (*id).to_owned()).collect());
    assert_eq!(stages(&home, "KEY"), [stage(1, "revoked"), stage(2, "current")]);
    for child in children {
        let status = child.wait_with_output().unwrap().status;
        assert!(!status.success());
    }
    let still = agent(&home, "innocent", "a", "cat $CREDENTIALS_DIRECTORY/KEY");
    assert_eq!(text(&still.wait_with_output().unwrap()), "key-replacement");
    assert!(innocent.try_wait().unwrap().is_none());
    home.ok(&["execution", "end", "innocent"]);
    innocent.wait().unwrap();
    let records = home.records("execution_ended");
    let revoked = records.iter().filter(|r| r["reason"] == "revoked:KEY").count();
    assert_eq!(revoked, hard.len());
    assert_eq!(home.records("secret_revoked")[0]["reason"], "leaked");
    assert!(home.refused(&["secret", "rollback", "KEY"]).contains("no previous version"));
    let again = ["secret", "revoke", "KEY", "--version", "1", "--reason", "x"];
    assert!(home.refused(&again).contains("revoked already"));
}

#[test]
fn without_a_replacement_the_name_is_denied_and_stops_new_launches() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.ok(&["execution", "start", "--chain", "c", "--id", "idle"]);
    assert!(
        home.refused(&["secret", "revoke", "KEY", "--reason", "x", "--file", "/dev/null"])
            .contains("empty")
    );
    home.ok(&["secret", "revoke", "KEY", "--reason", "x", "--no-replacement"]);
    let child = agent(&home, "idle", "a", "cat $CREDENTIALS_DIRECTORY/KEY");
    let said = text(&child.wait_with_output().unwrap());
    assert!(said.contains("KEY"), "{said}");
    assert!(!said.contains("key-value-one"), "{said}");
    let said = output(&home, "a", "true");
    assert!(said.contains("error: ") && said.contains("KEY"), "{said}");
    let rotate = home.run_with(&["secret", "rotate", "KEY"], "key-value-two");
    assert!(text(&rotate).contains("it was revoked"), "{}", text(&rotate));
    home.ok_with(&["secret", "set", "KEY", "--replace"], "key-value-new");
    assert_eq!(output(&home, "a", "cat $CREDENTIALS_DIRECTORY/KEY"), "key-value-new");
}

#[test]
fn a_group_is_revoked_as_a_whole_and_an_ambiguous_name_or_a_member_alone_is_refused() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.ok(&["execution", "start", "--chain", "c", "--id", "left"]);
    let script = "cat $CREDENTIALS_DIRECTORY/LEFT >/dev/null; exec sleep 1000";
    let mut child = agent(&home, "left", "a", script);
    wait_until("exposed", LIMIT, || {
        !home.json(&["secret", "exposures", "pair"])["exposures"].as_array().unwrap().is_empty()
    });
    let alone = ["secret", "revoke", "LEFT", "--reason", "x", "--no-replacement"];
    assert!(home.refused(&alone).contains("LEFT is a member of group pair"));
    let half =
        home.run_with(&["group", "revoke", "pair", "--reason", "x"], r#"{"LEFT": "left-new"}"#);
    assert!(text(&half).contains("there is no value for RIGHT"), "{}", text(&half));
    assert!(child.try_wait().unwrap().is_none());
    let both = r#"{"LEFT": "left-value-2", "RIGHT": "right-value-2"}"#;
    let answer = home.ok_with(&["group", "revoke", "pair", "--reason", "x", "--json"], both);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["versions"], serde_json::json!({"LEFT": [1], "RIGHT": [1]}));
    assert_eq!(answer["replaced_by"], serde_json::json!({"LEFT": 2, "RIGHT": 2}));
    assert_eq!(answer["ended"][0]["execution"], "left");
    child.wait().unwrap();
    let both = output(&home, "a", "cat $CREDENTIALS_DIRECTORY/LEFT $CREDENTIALS_DIRECTORY/RIGHT");
    assert_eq!(both, "left-value-2right-value-2");

    home.ok_with(&["secret", "set", "KEY", "--scope", "chain:c"], "other-key-value");
    let ambiguous = home.refused(&["secret", "revoke", "KEY", "--reason", "x", "--no-replacement"]);
    assert!(ambiguous.contains("ambiguous") && ambiguous.contains("chain:c"), "{ambiguous}");
    let one = ["secret", "revoke", "KEY", "--scope", "org", "--version", "7", "--reason", "x"];
    assert!(home.refused(&one).contains("no version 7"));
    let same = home.run_with(
        &["secret", "revoke", "KEY", "--scope", "chain:c", "--reason", "x", "--json"],
        "key-value-one",
    );
    assert!(same.status.success(), "{}", text(&same));
    let again = ["secret", "revoke", "KEY", "--scope", "org", "--reason", "x", "--dry-run"];
    assert_eq!(home.json(&again)["same_value"], serde_json::json!(["KEY with scope chain:c"]));
}

#[test]
fn an_end_that_has_come_denies_the_pinned_and_a_valid_until_only_new_executions() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.ok(&["execution", "start", "--chain", "c", "--id", "run"]);
    let read = || {
        let child = agent(&home, "run", "a", "cat $CREDENTIALS_DIRECTORY/KEY");
        text(&child.wait_with_output().unwrap())
    };
    let dir = home.dir.path().join("signals");
    std::fs::create_dir(&dir).unwrap();
    let anyone = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&dir, anyone).unwrap();
    let script = "exec 3<$CREDENTIALS_DIRECTORY/KEY; touch @DIR@/ready; \
        while [ ! -e @DIR@/go ]; do sleep 0.01; done; cat <&3; cat $CREDENTIALS_DIRECTORY/KEY";
    let child = agent(&home, "run", "a", &script.replace("@DIR@", dir.to_str().unwrap()));
    wait_until("opened", LIMIT, || dir.join("ready").exists());
    home.ok(&["secret", "edit", "KEY", "--expires-at", "2020-01-01T00:00:00Z"]);
    std::fs::write(dir.join("go"), "").unwrap();
    let said = text(&child.wait_with_output().unwrap());
    assert_eq!(said.matches("Key has expired").count(), 2, "{said}");
    assert!(output(&home, "a", "true").contains("expired"));
    home.ok(&["secret", "edit", "KEY", "--expires-at", "never"]);
    assert_eq!(read(), "key-value-one");

    let late = ["secret", "rotate", "KEY", "--valid-until", "2020-01-01T00:00:00Z"];
    let refused = home.run_with(&late, "key-value-two");
    assert!(text(&refused).contains("would end before it begins"), "{}", text(&refused));
}

#[test]
fn a_worker_killed_while_it_revokes_finishes_when_it_is_back() {
    if !may_mount() {
        return;
    }
    for delay_us in [0_u64, 200, 400, 800, 1600, 3200, 6400] {
        let home = home();
        home.ok(&["execution", "start", "--chain", "c", "--id", "victim"]);
        let script = "cat $CREDENTIALS_DIRECTORY/KEY >/dev/null; exec sleep 1000";
        let mut victim = agent(&home, "victim", "a", script);
        wait_until("exposed", LIMIT, || {
            !home.json(&["secret", "exposures", "KEY"])["exposures"].as_array().unwrap().is_empty()
        });
        let worker = nix::unistd::Pid::from_raw(home.worker_pid());
        let mut revoke = home
            .command(&["secret", "revoke", "KEY", "--reason", "leaked", "--no-replacement"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("sent", LIMIT, || {
            // The command connects a moment after it starts; the kill falls into its work.
            revoke.try_wait().unwrap().is_some()
                || std::fs::read_link(format!("/proc/{}/fd/3", revoke.id())).is_ok()
        });
        std::thread::sleep(Duration::from_micros(delay_us));
        let _gone = nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL);
        let acknowledged = revoke.wait_with_output().unwrap().status.success();
        wait_until("served", LIMIT, || home.run(&["status"]).status.success());
        let begun = |home: &Home| stages(home, "KEY")[0] == stage(1, "revoked");
        if acknowledged {
            assert!(begun(&home));
        }
        // Whatever had begun is finished; whatever had not is not done by halves.
        wait_until("a whole", LIMIT, || {
            let alive = victim.try_wait().unwrap().is_none();
            begun(&home) != alive
        });
        if begun(&home) {
            // The records come after the deaths, and a successor does not answer the verb.
            wait_until("recorded", LIMIT, || !home.records("secret_revoked").is_empty());
            // One revoke at a time: what is asked now comes after what a successor finishes.
            home.ok(&["secret", "revoke", "OTHER", "--reason", "asked", "--dry-run"]);
            assert_eq!(home.records("secret_revoked").len(), 1, "delay {delay_us}");
        } else {
            home.ok(&["execution", "end", "victim"]);
            victim.wait().unwrap();
        }
    }
}

#[test]
fn exposures_survive_the_daemon_and_a_restore_does_not_bring_a_revoked_value_back() {
    if !may_mount() {
        return;
    }
    let home = home();
    output(&home, "a", "cat $CREDENTIALS_DIRECTORY/KEY");
    home.ok(&["secret", "get", "KEY", "--reveal"]);
    let backup = home.dir.path().join("backup");
    let backup = backup.to_str().unwrap();
    home.ok_with(&["backup", "create", backup], "a long enough passphrase");
    wait_until("stored", LIMIT, || {
        home.ok(&["down"]);
        home.ok(&["up"]);
        home.json(&["secret", "exposures", "KEY"])["exposures"].as_array().unwrap().len() == 2
    });
    home.ok_with(&["secret", "revoke", "KEY", "--reason", "leaked"], "key-value-two");
    let restore = ["backup", "restore", backup, "--replace", "--json"];
    let answer: serde_json::Value =
        serde_json::from_str(&home.ok_with(&restore, "a long enough passphrase")).unwrap();
    assert_eq!(answer["reapplied"], serde_json::json!(["KEY version 1: revoked"]));
    assert_eq!(stages(&home, "KEY"), [stage(1, "revoked")]);
    assert!(output(&home, "a", "cat $CREDENTIALS_DIRECTORY/KEY").contains("error: "));
}
