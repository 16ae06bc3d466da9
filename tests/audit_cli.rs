//! Records from outside: filters, the end of the log as it grows, and what is exported.
#![forbid(unsafe_code)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::{Home, OPENAI, may_mount, text};
use serde_json::Value;

fn query(home: &Home, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["audit", "query", "--json"];
    all.extend(args);
    home.ok(&all).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Two agents have read, and one was refused.
fn read_by_two() -> Home {
    let home = Home::deployed();
    for agent in ["CodeAnalyzer", "TestRunner"] {
        let read = home.agent(agent, "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
        assert_eq!(text(&read), OPENAI);
    }
    home
}

#[test]
fn each_filter_gives_what_it_names_and_nothing_else() {
    if !may_mount() {
        return;
    }
    let home = read_by_two();
    let all = query(&home, &[]);
    let accessed = query(&home, &["--event", "secret_accessed"]);
    assert_eq!(accessed.len(), 2);
    let execution = accessed[0]["execution"].as_str().unwrap().to_owned();
    for (flag, field, value) in [
        ("--event", "event", "agent_started"),
        ("--secret", "secret_key", "OPENAI_API_KEY"),
        ("--chain", "chain", "deploy-pipeline"),
        ("--agent", "agent", "TestRunner"),
        ("--user", "user", "root"),
        ("--execution", "execution", execution.as_str()),
        ("--decision", "decision", "granted"),
    ] {
        let found = query(&home, &[flag, value]);
        let meant: Vec<_> = all.iter().filter(|r| r[field] == value).collect();
        assert!(!meant.is_empty(), "{flag} {value}");
        // Asking may itself be on record meanwhile.
        assert!(found.len() >= meant.len(), "{flag}: {} of {}", found.len(), meant.len());
        assert!(found.iter().all(|r| r[field] == value), "{flag}: {found:#?}");
    }
    let middle = &all[all.len() / 2];
    let (seq, at) = (middle["seq"].as_u64().unwrap(), middle["timestamp"].as_str().unwrap());
    let after = query(&home, &["--after-seq", &seq.to_string()]);
    assert_eq!(after[0]["seq"].as_u64(), Some(seq + 1));
    let (since, until) = (query(&home, &["--since", at]), query(&home, &["--until", at]));
    assert!(since.iter().all(|r| r["timestamp"].as_str().unwrap() >= at));
    assert!(until.iter().all(|r| r["timestamp"].as_str().unwrap() < at));
    assert!(since.len() + until.len() >= all.len());
    let newest = query(&home, &["--newest", "--limit", "2"]);
    assert_eq!(newest.len(), 2);
    assert!(newest[0]["seq"].as_u64() > newest[1]["seq"].as_u64());
    assert!(query(&home, &["--agent", "Nobody"]).is_empty());
    let misspelt = home.run(&["audit", "query", "--agent", "TestRuner"]);
    assert_eq!(text(&misspelt), "note: no record matches\n");
}

#[test]
fn an_event_that_is_spelt_wrong_is_an_error_and_not_an_empty_answer() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    for verb in ["query", "tail"] {
        let misspelt = home.run(&["audit", verb, "--event", "secret_acessed"]);
        assert_eq!(misspelt.status.code(), Some(2), "{}", text(&misspelt));
        let said = text(&misspelt);
        assert!(said.contains("\nhint: did you mean `secret_accessed`? known here: "), "{said}");
        assert!(said.contains("vault_unlocked"), "all that there are: {said}");
    }
    let never = home.run(&["audit", "query", "--event", "drill"]);
    assert_eq!(never.status.code(), Some(2), "{}", text(&never));
    let known = home.run(&["audit", "query", "--event", "secret_revoked"]);
    assert_eq!(text(&known), "note: no record matches\n");
    // A client in another language is told as well.
    let asked = |event: &str| {
        let url = format!("http://localhost/v1/audit?event={event}");
        let socket = home.socket();
        let curl = ["-s", "--unix-socket", socket.to_str().unwrap(), &url];
        text(&std::process::Command::new("curl").args(curl).output().unwrap())
    };
    let near = asked("secret_acessed");
    assert!(near.contains("there is no such event"), "{near}");
    assert!(near.contains("did you mean `secret_accessed`?"), "{near}");
    assert!(asked("nonsense").contains("known here: agent_started, "));
}

#[test]
fn a_tail_goes_on_behind_a_number_and_shows_a_read_as_it_happens() {
    if !may_mount() {
        return;
    }
    let home = read_by_two();
    let last = query(&home, &["--newest", "--limit", "1"])[0]["seq"].as_u64().unwrap();
    let from = (last - 2).to_string();
    let mut tail = home
        .command(&["audit", "tail", "--follow", "--json", "--after-seq", &from])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["seq"].as_u64(), Some(last - 1));
    assert_eq!(next()["seq"].as_u64(), Some(last));
    home.agent("Deployer", "cat $CREDENTIALS_DIRECTORY/id_deploy > /dev/null");
    let mut expected = last;
    loop {
        let record = next();
        expected += 1;
        assert_eq!(record["seq"].as_u64(), Some(expected), "none is left out: {record}");
        if record["event"] == "secret_accessed" {
            assert_eq!(record["secret_key"], "SSH_DEPLOY_KEY");
            assert_eq!(record["agent"], "Deployer");
            break;
        }
    }
    tail.kill().unwrap();
    tail.wait().unwrap();
    // Without --follow it ends by itself.
    assert_eq!(home.ok(&["audit", "tail", "--limit", "2", "--newest"]).lines().count(), 2);
}

#[test]
fn an_export_is_the_records_as_they_are_stored_and_replaces_a_file_as_a_whole() {
    if !may_mount() {
        return;
    }
    let home = read_by_two();
    let file = home.dir.path().join("records.jsonl");
    std::fs::write(&file, "what was there before").unwrap();
    let told = home.json(&["audit", "export", "records.jsonl", "--event", "secret_accessed"]);
    assert_eq!(told["records"], 2);
    let exported = std::fs::read_to_string(&file).unwrap();
    let stored: String = std::fs::read_dir(home.home().join("audit"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .map(|p| std::fs::read_to_string(p).unwrap())
        .collect();
    assert_eq!(exported.lines().count(), 2);
    for line in exported.lines() {
        assert!(stored.lines().any(|s| s == line), "not as stored: {line}");
    }
    // Refused: what was there stays.
    let before = exported;
    home.ok(&["down"]);
    home.refused(&["audit", "export", "records.jsonl"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    home.ok(&["up"]);
    home.refused(&["audit", "export", "none/records.jsonl"]);
}
