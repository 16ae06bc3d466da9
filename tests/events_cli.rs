//! The event store for those outside: `events list|path|prune`, folders that a chain shares, and
//! `prompt`.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{DB_PROD, Home, LIMIT, OPENAI, may_mount, text, wait_until};
use common::{in_execution as agent, printed as good};

fn start(home: &Home, id: &str) -> PathBuf {
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", id]);
    PathBuf::from(home.ok(&["events", "path", id]).trim_end())
}

/// Runs an execution that leaves a file, to its end.
fn past(home: &Home, id: &str) -> PathBuf {
    let folder = start(home, id);
    good(&agent(home, id, "echo some > $STRONGROOM_EVENTS_DIR/f; mkdir $STRONGROOM_EVENTS_DIR/d"));
    home.ok(&["execution", "end", id]);
    // Its last file is released a moment after its agent's end.
    wait_until("nothing of it is open", LIMIT, || {
        let listed = home.json(&["events", "list"]);
        let mut folders = listed["folders"].as_array().unwrap().iter();
        folders.any(|f| f["execution"] == id && f["state"] == "ended")
    });
    folder
}

#[test]
fn list_and_path_tell_where_the_events_of_each_execution_are() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let folder = start(&home, "one");
    assert!(folder.is_dir(), "there before the first agent, for those who watch it");
    assert_eq!(folder, home.home().join("events/deploy-pipeline/prod/one"));
    good(&agent(&home, "one", "printf 12345 > $STRONGROOM_EVENTS_DIR/f"));
    past(&home, "two");
    let listed = home.json(&["events", "list"]);
    let of = |id: &str| {
        let all = listed["folders"].as_array().unwrap();
        all.iter().find(|f| f["execution"] == id).unwrap().clone()
    };
    assert_eq!(of("one")["state"], "live");
    assert_eq!((&of("one")["files"], &of("one")["bytes"]), (&1.into(), &5.into()));
    assert_eq!(of("two")["state"], "ended");
    let table = home.ok(&["events", "list", "--chain", "deploy-pipeline", "--env", "prod"]);
    assert!(table.starts_with("CHAIN"), "{table}");
    assert!(table.contains("live") && table.contains("ended"), "{table}");
    assert_eq!(home.ok(&["events", "list", "--env", "dev"]), "(none)\n");
    let unknown = home.refused(&["events", "path", "never"]);
    assert!(unknown.contains("no execution never"), "{unknown}");
    home.refused(&["events", "path", "../../etc"]);
    // The next daemon has never heard of it; its folder is still found.
    home.ok(&["execution", "end", "one"]);
    home.ok(&["down"]);
    home.ok(&["up"]);
    assert_eq!(home.ok(&["events", "path", "one"]).trim_end(), folder.to_str().unwrap());
    // An id that two chains had is not guessed at.
    fs::create_dir_all(home.home().join("events/other%2Fchain/-/one")).unwrap();
    let both = home.refused(&["events", "path", "one"]);
    assert!(both.contains("--chain"), "{both}");
    let other = home.json(&["events", "path", "one", "--chain", "other/chain", "--env", "-"]);
    assert_eq!(other["chain"], "other/chain");
    assert_eq!(other["environment"], serde_json::Value::Null);
}

#[test]
fn prune_never_touches_what_lives_and_records_what_goes() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let live = start(&home, "live");
    good(&agent(&home, "live", "echo some > $STRONGROOM_EVENTS_DIR/f"));
    let first = past(&home, "first");
    // What was put there from outside is not followed.
    let outside = home.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, first.join("link")).unwrap();
    let second = past(&home, "second");
    let unitless = home.run(&["events", "prune", "--older-than", "5"]);
    assert!(text(&unitless).contains("a number and a unit"), "{}", text(&unitless));
    assert!(!home.run(&["events", "prune"]).status.success(), "of everything, by no word");

    // The newest of those that have ended stays.
    let would = home.json(&["events", "prune", "--keep", "1", "--dry-run"]);
    let names = |pruned: &serde_json::Value| {
        let all = pruned["folders"].as_array().unwrap();
        let mut names: Vec<_> =
            all.iter().map(|f| f["execution"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&would), ["first"]);
    assert!(first.exists(), "a dry run removes nothing");
    assert!(home.records("events_pruned").is_empty());
    let went = home.json(&["events", "prune", "--keep", "1"]);
    assert_eq!((names(&went), &went["files"]), (vec!["first".to_owned()], &2.into()));
    assert!(!first.exists() && second.exists() && live.join("f").exists());
    assert!(outside.join("precious").exists());

    home.ok(&["events", "prune", "--older-than", "1h"]);
    assert!(second.exists(), "too young");
    wait_until("the folder is a second old", LIMIT, || {
        home.ok(&["events", "prune", "--older-than", "1s"]);
        !second.exists()
    });
    home.ok(&["events", "prune", "--keep", "0"]);
    assert!(live.join("f").exists(), "an execution that runs keeps its folder");
    let records = home.records("events_pruned");
    let told: Vec<_> = records.iter().map(|r| r["execution"].as_str().unwrap()).collect();
    assert_eq!(told, ["first", "second"]);
    assert_eq!(records[0]["chain"], "deploy-pipeline");
    assert_eq!(records[0]["user"], "root");
    // An id that is used again begins with an empty folder.
    assert_eq!(fs::read_dir(home.home().join("events/.strongroom")).unwrap().count(), 0);
    home.ok(&["execution", "end", "live"]);
}

#[test]
fn a_file_that_is_still_open_keeps_the_folder_of_an_ended_execution() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let folder = start(&home, "held");
    let mut child = home
        .command(&["run", "--execution", "held", "--agent", "TestRunner", "--secrets-path"])
        .arg(home.dir.path().join("view"))
        .args(["--", "sh", "-c", "exec 3> $STRONGROOM_EVENTS_DIR/f; echo x >&3; read go"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the file", LIMIT, || folder.join("f").exists());
    home.ok(&["events", "prune", "--keep", "0"]);
    assert!(folder.join("f").exists());
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    assert!(child.wait().unwrap().success());
    home.ok(&["execution", "end", "held"]);
    wait_until("it goes when nobody has it open", LIMIT, || {
        home.ok(&["events", "prune", "--keep", "0"]);
        !folder.exists()
    });
}

#[test]
fn what_the_configuration_keeps_no_longer_goes_by_itself() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let (ended, live) = (past(&home, "ended"), start(&home, "live"));
    home.configure("[events]\nkeep = \"1s\"");
    wait_until("the folder goes", LIMIT, || !ended.exists());
    assert!(live.exists());
    let records = home.records("events_pruned");
    assert_eq!(records[0]["reason"], "[events] keep = 1s");
    home.ok(&["execution", "end", "live"]);
}

#[test]
fn a_chain_can_share_one_folder_for_all_its_executions() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let own = start(&home, "before");
    good(&agent(&home, "before", "echo own > $STRONGROOM_EVENTS_DIR/f"));
    home.ok(&["execution", "end", "before"]);
    let file = home.dir.path().join("deploy-pipeline.json");
    let definition = fs::read_to_string(&file).unwrap();
    let shared = definition.replacen('{', "{\"events\": \"chain\", ", 1);
    fs::write(&file, shared).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap()]);
    let a = start(&home, "a");
    let b = start(&home, "b");
    assert_eq!(a, b);
    assert_eq!(a.parent(), own.parent());
    let told = good(&agent(
        &home,
        "a",
        "cd $STRONGROOM_EVENTS_DIR && ls -A && echo \"a: $(cat ../OPENAI_API_KEY)\" >> log",
    ));
    assert_eq!(told, "", "the folders of executions that had their own are out of sight");
    let told = good(&agent(
        &home,
        "b",
        "cd $STRONGROOM_EVENTS_DIR && cat log && echo \"b: $(cat ../DATABASE_URL)\" >> log",
    ));
    assert_eq!(told, "a: [REDACTED:OPENAI_API_KEY]\n");
    let log = fs::read_to_string(a.join("log")).unwrap();
    assert_eq!(log, "a: [REDACTED:OPENAI_API_KEY]\nb: [REDACTED:DATABASE_URL]\n");
    let listed = home.json(&["events", "list"]);
    let all = listed["folders"].as_array().unwrap();
    let of = |f: &&serde_json::Value| f["path"] == a.to_str().unwrap();
    let shown = all.iter().find(of).unwrap();
    assert_eq!((&shown["execution"], &shown["state"]), (&serde_json::Value::Null, &"live".into()));
    // While one of them runs nothing goes; then old files do, the folder stays.
    home.ok(&["execution", "end", "a"]);
    wait_until("the first execution's folder is old", LIMIT, || {
        home.ok(&["events", "prune", "--older-than", "1s"]);
        !own.exists()
    });
    assert!(a.join("log").exists());
    home.ok(&["execution", "end", "b"]);
    home.ok(&["events", "prune", "--keep", "0"]);
    assert!(a.join("log").exists(), "numbers are of executions");
    wait_until("the log is old", LIMIT, || {
        home.ok(&["events", "prune", "--older-than", "1s"]);
        !a.join("log").exists()
    });
    assert!(a.exists());
}

#[test]
fn prompt_names_secrets_and_never_shows_a_value() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let general = home.ok(&["prompt"]);
    assert!(general.contains("CREDENTIALS_DIRECTORY") && general.contains("Never print"));
    let before = home.json(&[
        "prompt",
        "--chain",
        "deploy-pipeline",
        "--agent",
        "TestRunner",
        "--env",
        "prod",
    ]);
    let names = serde_json::json!(["DATABASE_URL", "OPENAI_API_KEY"]);
    assert_eq!(before["secrets"], names);
    start(&home, "p");
    let program = env!("CARGO_BIN_EXE_strongroom");
    let inside = good(&agent(&home, "p", &format!("{program} prompt --json; {program} prompt")));
    let (json, text) = inside.split_at(inside.find("\n}\n").unwrap() + 2);
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!((&json["secrets"], &json["agent"]), (&names, &"TestRunner".into()));
    assert!(text.contains("`DATABASE_URL`, `OPENAI_API_KEY`"), "{text}");
    for value in [OPENAI, DB_PROD] {
        assert!(!inside.contains(value));
    }
    assert!(home.records("secret_accessed").is_empty(), "no value was read for it");
    let unknown = home.refused(&["prompt", "--chain", "deploy-pipeline", "--agent", "Nobody"]);
    assert!(unknown.contains("Nobody"), "{unknown}");
    home.ok(&["execution", "end", "p"]);
}
