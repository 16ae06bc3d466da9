//! The allow list on the real binary: what it shows, what it never shows, and who may add to it.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::process::Command;

use common::{DB_PROD, Home, may_mount, text};

/// As a provider's keys look; of no account.
const TOKEN: &str = "ghp_q7Zk2Wm9Lx4Tb8Rv3Yd6Nc1Jf5Hg0Ps8UaEo";
const OTHER: &str = "ghp_X3vLm4TnB8sRd3WfY7Kq2ZpH9c1Jg5Ua0EoQ";

fn entry(home: &Home, token: &str) -> String {
    let entry = home.ok_with(&["allow"], &format!("{token}\n"));
    assert!(entry.starts_with("allow1:") && !entry.contains(&token[4..12]), "{entry}");
    entry.trim_end().to_owned()
}

fn configure(home: &Home, entries: &[&str]) {
    home.configure(&format!("[redaction]\nallow = {entries:?}"));
}

/// What stands in the file that an agent wrote.
fn written(home: &Home, id: &str, content: &str) -> String {
    let file = home.dir.path().join("content");
    fs::write(&file, content).unwrap();
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", id]);
    let script = format!("cat {} > $STRONGROOM_EVENTS_DIR/f", file.display());
    let output = home.agent_of(id, "CodeAnalyzer", &script);
    assert!(output.status.success(), "{}", text(&output));
    // It is whole when the execution has ended.
    home.ok(&["execution", "end", id]);
    let folder = home.ok(&["events", "path", id]);
    fs::read_to_string(std::path::Path::new(folder.trim_end()).join("f")).unwrap()
}

#[test]
fn a_token_on_the_list_is_shown_and_its_neighbours_and_values_are_not() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    home.configure("[events]\nredact = \"all\"");
    let content = format!("a {TOKEN} b {OTHER} c {DB_PROD}\napi_key = {TOKEN}\n");
    let hidden = "[REDACTED:github-token]";
    let before = home.ok_with(&["redact"], &content);
    assert_eq!(
        before,
        format!("a {hidden} b {hidden} c [REDACTED:DATABASE_URL]\napi_key = {hidden}\n")
    );
    let entries = [entry(&home, TOKEN), entry(&home, DB_PROD)];
    assert_eq!(entry(&home, TOKEN), entries[0], "the same each time");
    assert_ne!(entry(&home, OTHER), entries[0]);
    fs::write(home.dir.path().join("notes"), &content).unwrap();
    let place = home.ok(&["allow", "--at", "notes:1:3"]);
    assert_eq!(place.trim_end(), entries[0], "what is found at a place");
    configure(&home, &[&entries[0], &entries[1]]);
    let shown = format!("a {TOKEN} b {hidden} c [REDACTED:DATABASE_URL]\napi_key = {TOKEN}\n");
    assert_eq!(home.ok_with(&["redact"], &content), shown);
    assert_eq!(written(&home, "one", &content), shown);
    // A value of the vault is hidden from the moment that it is one, whatever the list has.
    home.ok_with(&["secret", "set", "GITHUB_TOKEN", "--scope", "org"], TOKEN);
    let value = shown.replace(TOKEN, "[REDACTED:GITHUB_TOKEN]");
    assert_eq!(home.ok_with(&["redact"], &content), value);
    // The agent's chain does not have it, so it is not told its name.
    assert_eq!(written(&home, "two", &content), shown.replace(TOKEN, "[REDACTED]"));
    // Without the key nothing is on the list.
    let local = home.ok_with(&["redact", "--local"], &format!("{TOKEN}\n"));
    assert_eq!(local, format!("{hidden}\n"));
}

#[test]
fn entries_outlive_a_slots_key_and_those_of_another_vault_allow_nothing_and_are_told() {
    if !may_mount() {
        return;
    }
    let (home, other) = (Home::new(), Home::new());
    home.start();
    other.start();
    configure(&home, &[&entry(&home, TOKEN)]);
    let own_key = home.json(&["key", "list"])["slots"][0]["id"].as_str().unwrap().to_owned();
    let key = home.dir.path().join("second");
    fs::write(&key, [8; 32]).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    home.ok(&["key", "rekey", &own_key, "--path", key.to_str().unwrap()]);
    home.ok(&["lock"]);
    home.ok(&["unlock", "--key-file", key.to_str().unwrap()]);
    let input = format!("{TOKEN}\n");
    assert_eq!(home.ok_with(&["redact"], &input), input);
    let check = |home: &Home| {
        // Its status tells that something is wrong.
        let output = home.run(&["doctor", "--json"]);
        let doctor: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = doctor["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["name"] == "allow list")
    };
    assert_eq!(check(&other), None);
    let good = check(&home).unwrap();
    assert_eq!((&good["ok"], &good["found"]), (&true.into(), &"1 entry".into()));

    configure(&other, &[&entry(&home, TOKEN), &entry(&other, OTHER)]);
    assert_eq!(
        other.ok_with(&["redact"], &format!("{TOKEN} {OTHER}\n")),
        format!("[REDACTED:github-token] {OTHER}\n")
    );
    let bad = check(&other).unwrap();
    assert_eq!(bad["ok"], false);
    let found = "1 of 2 entries were made with another key, and allow nothing";
    assert_eq!(bad["found"], found);
    assert!(bad["remedy"].as_str().unwrap().contains("strongroom allow"), "{bad}");
    let status = other.ok(&["status"]);
    assert!(status.contains(found), "{status}");
}

#[test]
fn what_is_no_entry_is_an_error_with_a_hint_that_never_tells_it() {
    let home = Home::new();
    home.init();
    let file = home.home().join("strongroom.toml");
    let own = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{own}\n[redaction]\nallow = [\"{TOKEN}\"]\n")).unwrap();
    let told = home.refused(&["config", "check"]);
    assert!(told.contains("redaction.allow: entry 1 is none"), "{told}");
    assert!(told.contains("strongroom allow") && !told.contains(&TOKEN[4..12]), "{told}");
    fs::write(&file, own).unwrap();
}

#[test]
fn each_entry_that_is_made_is_on_record_and_nothing_of_its_token_but_the_length() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    let made = entry(&home, TOKEN);
    let [_, key, len, tag] = made.split(':').collect::<Vec<_>>()[..] else { panic!("{made}") };
    let records = home.records("allow_made");
    assert_eq!(records.len(), 1, "{records:?}");
    let record = &records[0];
    assert_eq!(record["uid"], nix::unistd::getuid().as_raw(), "{record}");
    assert!(record["user"].is_string(), "{record}");
    assert_eq!(record["decision"], "granted");
    assert_eq!(record["reason"], format!("a token of {len} bytes, key {key}"));
    // Neither the token nor its tag, by which it could be tried.
    let all = home.ok(&["audit", "query", "--json"]);
    assert!(!all.contains(tag) && !all.contains(&TOKEN[4..12]), "{all}");
    // One of another token differs in nothing that its bytes decide.
    entry(&home, OTHER);
    let records = home.records("allow_made");
    assert_eq!((records.len(), &records[1]["reason"]), (2, &record["reason"]));
    // What is no token makes no entry, and is on no record.
    assert!(!home.run_with(&["allow"], "short\n").status.success());
    assert_eq!(home.records("allow_made").len(), 2);
}

#[test]
fn who_may_not_administer_makes_no_entry() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let program = env!("CARGO_BIN_EXE_strongroom");
    let script = format!("printf {TOKEN} | {program} --home {} allow", home.home().display());
    let told = text(&home.agent("CodeAnalyzer", &script));
    assert!(told.contains("agents have no role") && !told.contains("allow1"), "{told}");
    // An auditor sees everything, and may not.
    home.configure(
        "[[role]]\nname = \"root\"\nuids = [0]\nmay = [\"launch\", \"operate\", \"audit\"]\n\
         [[role]]\nname = \"audit\"\nuids = [54321]\nmay = [\"audit\", \"launch\"]",
    );
    for dir in [home.home(), home.home().join("run")] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir, open).unwrap();
    }
    let copy = home.dir.path().join("strongroom");
    fs::copy(program, &copy).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "sh", "-c"])
        .arg(format!("printf {TOKEN} | {} allow", copy.display()))
        .env("STRONGROOM_HOME", home.home())
        .current_dir(home.dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(output.stdout.is_empty(), "{}", text(&output));
    // Both on record, and nothing as made.
    let denied = home.records("role_denied");
    let tried: Vec<_> = denied.iter().filter(|r| r["reason"] == "allow").collect();
    assert_eq!(tried.len(), 2, "{denied:?}");
    assert!(tried.iter().any(|r| r["uid"] == 54321), "{tried:?}");
    assert!(home.records("allow_made").is_empty());
    let short = home.run_with(&["allow"], "short\n");
    assert_eq!(short.status.code(), Some(1), "{}", text(&short));
    assert!(text(&short).contains("a token has 8 to 8192 bytes"), "{}", text(&short));
}
