//! The passphrase again: without it, a process of the operator's own uid neither reveals, stores,
//! grants nor revokes anything.
#![forbid(unsafe_code)]

mod common;

use std::process::{Command, Output};

use common::{Home, OPENAI, may_mount, text};

const PASSPHRASE: &str = "nine blue horses 47";

/// At a terminal where each question for the passphrase is answered; how often that was is told.
fn at_a_terminal(home: &Home, script: &str, typed: &str) -> String {
    let told = common::at_a_terminal(home, script, &[("passphrase: ", typed); 9]);
    let (told, rest) = told.rsplit_once("unanswered ").unwrap();
    let (left, status) = rest.split_once(' ').unwrap();
    format!("{told}asked {} {status}", 9 - left.parse::<usize>().unwrap())
}

/// In a session without a terminal.
fn alone(home: &Home, args: &[&str]) -> Output {
    Command::new("setsid")
        .args(["--wait", env!("CARGO_BIN_EXE_strongroom")])
        .args(args)
        .env("STRONGROOM_HOME", home.home())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn confirming(period: &str) -> Home {
    let home = Home::deployed();
    home.ok_with(&["key", "add", "passphrase"], PASSPHRASE);
    home.configure(&format!("[operator]\nconfirm = \"{period}\""));
    home
}

#[test]
fn what_reveals_stores_grants_or_revokes_wants_the_passphrase_once_a_session() {
    if !may_mount() {
        return;
    }
    let home = confirming("10m");
    let definition = home.dir.path().join("deploy-pipeline.json");
    for args in [
        &["secret", "get", "OPENAI_API_KEY", "--reveal"][..],
        &["secret", "revoke", "OPENAI_API_KEY", "--reason", "x", "--no-replacement"],
        &["chain", "apply", definition.to_str().unwrap()],
        &["key", "rm", "1"],
    ] {
        let refused = alone(&home, args);
        assert!(!refused.status.success(), "{args:?}");
        let told = text(&refused);
        assert!(told.contains("wants the vault's passphrase again"), "{args:?}: {told}");
        assert!(told.contains("hint: "), "{told}");
        assert!(!told.contains(OPENAI));
    }
    // What shows no value and changes nothing asks nobody.
    assert!(alone(&home, &["secret", "list"]).status.success());
    let told = at_a_terminal(
        &home,
        "strongroom secret get OPENAI_API_KEY --reveal; echo; \
         printf %s another-value-Zk8Wq2 | strongroom secret set OTHER; \
         strongroom secret get OTHER --reveal",
        PASSPHRASE,
    );
    assert!(told.contains(OPENAI) && told.contains("another-value-Zk8Wq2"), "{told}");
    assert!(told.contains("asked 1 status 0"), "{told}");
    assert!(!told.contains(PASSPHRASE), "shown: {told}");
    // Another session of the same user is another matter.
    assert!(!alone(&home, &["secret", "get", "OPENAI_API_KEY", "--reveal"]).status.success());
    assert_eq!(home.records("operator_confirmed").len(), 1);
}

#[test]
fn a_wrong_passphrase_opens_nothing_and_is_on_record() {
    if !may_mount() {
        return;
    }
    let home = confirming("10m");
    let told = at_a_terminal(&home, "strongroom secret get OPENAI_API_KEY --reveal", "wrong");
    assert!(!told.contains(OPENAI), "{told}");
    assert!(told.contains("error: ") && told.contains("asked 1"), "{told}");
    let failed = home.records("unlock_failed");
    assert_eq!(failed.last().unwrap()["reason"], "confirm");
    assert!(home.records("operator_confirmed").is_empty());
}

#[test]
fn what_was_shown_ends_with_its_time() {
    if !may_mount() {
        return;
    }
    let home = confirming("4s");
    let get = "strongroom secret get OPENAI_API_KEY --reveal";
    let told = at_a_terminal(&home, &format!("{get}; sleep 4.1; {get}"), PASSPHRASE);
    assert!(told.contains("asked 2 status 0"), "{told}");
    assert_eq!(home.records("operator_confirmed").len(), 2);
}
