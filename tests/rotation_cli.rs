//! Rotation as people meet it at the terminal: progress, tables, and each wrong request with what
//! mends it.

mod common;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};

use common::{Home, LIMIT, may_mount, text, wait_until};

/// A rotation chain whose `create` is a script.
const ROTATE: &str = r#"{"chain": "@CHAIN@", "agents": [
  {"name": "create", "command": ["sh", "-c", "@CREATE@"]},
  {"name": "set", "command": ["true"]},
  {"name": "test", "command": ["true"]}]}"#;

fn home() -> Home {
    let home = Home::new();
    home.start();
    home.ok_with(&["secret", "set", "PASSWORD"], "first-password");
    home.ok_with(
        &["group", "set", "prod/pair", "--scope", "chain:app"],
        r#"{"LEFT": "left-value-1", "RIGHT": "right-value-1"}"#,
    );
    apply(&home, "rotate", "head -c 18 /dev/urandom | base64");
    define(&home, r#"{"chain": "app", "agents": [{"name": "a", "secrets": ["PASSWORD"]}]}"#);
    home
}

fn define(home: &Home, definition: &str) {
    let file = home.dir.path().join("chain.json");
    std::fs::write(&file, definition).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap(), "--yes"]);
}

fn apply(home: &Home, chain: &str, create: &str) {
    define(home, &ROTATE.replace("@CHAIN@", chain).replace("@CREATE@", create));
}

/// Runs a command with a terminal of its own as the streams that are `on` it; what the terminal shows,
/// and the output of the others.
fn on_terminal(home: &Home, args: &[&str], on: [bool; 2]) -> (String, Output) {
    let pty = nix::pty::openpty(None, None).unwrap();
    let end = |is_on: bool| -> Stdio {
        if is_on { pty.slave.try_clone().unwrap().into() } else { Stdio::piped() }
    };
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_strongroom")]).args(args);
    command.env("STRONGROOM_HOME", home.home()).stdin(end(true));
    let child: Child = command.stdout(end(on[0])).stderr(end(on[1])).spawn().unwrap();
    drop(command);
    let reader = std::thread::spawn(move || screen(pty.master));
    let output = child.wait_with_output().unwrap();
    drop(pty.slave);
    (reader.join().unwrap(), output)
}

/// All that a terminal shows until nobody has it open any more.
fn screen(master: OwnedFd) -> String {
    let mut shown = Vec::new();
    let mut file = std::fs::File::from(master);
    let mut buffer = [0; 4096];
    // The last to close it makes this fail with EIO.
    while let Ok(count @ 1..) = file.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

#[test]
fn a_person_sees_each_step_begin_and_end_and_a_script_sees_the_result_alone() {
    if !may_mount() {
        return;
    }
    let home = home();
    let run = ["rotation", "run", "PASSWORD", "--chain", "rotate"];
    let promoted = |number: u64| {
        wait_until("promoted", LIMIT, || {
            home.json(&["secret", "show", "PASSWORD"])["versions"]["current"]["version"] == number
        });
    };
    let steps = "create ...\ncreate done\nset ...\nset done\ntest ...\ntest done\n";
    let (shown, _) = on_terminal(&home, &run, [true, true]);
    assert_eq!(shown, format!("{steps}PASSWORD is rotated\n"));
    promoted(2);
    // The result piped on, the person still there.
    let (shown, output) = on_terminal(&home, &run, [false, true]);
    assert_eq!(shown, steps);
    assert_eq!(output.stdout, b"PASSWORD is rotated\n");
    promoted(3);
    // Messages go to a file: none of these.
    let (shown, output) = on_terminal(&home, &run, [true, false]);
    assert_eq!((shown.as_str(), text(&output).as_str()), ("PASSWORD is rotated\n", ""));
    promoted(4);
    let output = home.run(&run);
    assert_eq!(output.stdout, b"PASSWORD is rotated\n");
    assert_eq!(text(&output), "PASSWORD is rotated\n");
    promoted(5);
    let lines = home.ok(&[&run[..], &["--json"]].concat());
    let states: Vec<_> = lines
        .lines()
        .map(|line| {
            let step: serde_json::Value = serde_json::from_str(line).unwrap();
            let of = |name: &str| step[name].as_str().unwrap().to_owned();
            assert_eq!(of("token").len(), 32);
            format!("{} {}", of("step"), of("state"))
        })
        .collect();
    let all = ["create started", "create ok", "set started", "set ok", "test started", "test ok"];
    assert_eq!(states[..6], all);
    assert_eq!(states[6..], ["done ok"]);
    promoted(6);
    // What fails is told in two lines after the step that failed.
    apply(&home, "rotate", "exit 3");
    let (shown, _) = on_terminal(&home, &run, [true, true]);
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[0], "create ...");
    assert!(lines[1].starts_with("error: create failed: exit status: 3"), "{shown}");
    assert!(lines[2].starts_with("hint: the current version stays"), "{shown}");
}

/// The cells of a table, each where its heading begins.
fn cells(table: &str) -> Vec<Vec<String>> {
    let heading = table.lines().next().unwrap();
    let mut starts = vec![0];
    let mut blanks = 0;
    for (at, c) in heading.char_indices() {
        if c != ' ' && blanks >= 2 {
            starts.push(at);
        }
        blanks = if c == ' ' { blanks + 1 } else { 0 };
    }
    starts.push(usize::MAX);
    let cut = |line: &str| -> Vec<String> {
        starts
            .windows(2)
            .map(|pair| {
                let (from, to) = (pair[0].min(line.len()), pair[1].min(line.len()));
                // Two blanks between columns, at the least.
                assert!(from == 0 || line[..from].ends_with("  ") || from == line.len(), "{table}");
                line[from..to].trim_end().to_owned()
            })
            .collect()
    };
    table.lines().map(cut).collect()
}

/// A time as tables have it: to the second.
fn moment(at: &serde_json::Value) -> String {
    format!("{}Z", &at.as_str().unwrap()[..19])
}

#[test]
fn the_list_of_policies_is_a_table_of_what_is_due_when() {
    if !may_mount() {
        return;
    }
    let home = home();
    assert_eq!(home.ok(&["rotation", "list"]), "(none)\n");
    for name in ["CALM", "LATE", "BROKEN"] {
        home.ok_with(&["secret", "set", name], "value-of-a-secret");
    }
    let later = ["secret", "rotate", "PASSWORD", "--valid-from", "2099-01-01T00:00:00Z"];
    home.ok_with(&later, "second-password");
    apply(&home, "breaks", "exit 1");
    let policies = r#"{"rotation_policy": {
        "CALM": {"rotate_every_days": 90, "rotation_chain": "rotate"},
        "LATE": {"rotate_every": "1s"},
        "BROKEN": {"rotate_every": "2s", "auto_rotate": true, "rotation_chain": "breaks"},
        "PASSWORD": {"rotate_every_days": 30},
        "prod/pair": {"rotate_every_days": 10, "notify_before": "239h"}}}"#;
    home.ok_with(&["rotation", "apply", "-"], policies);
    let states = |home: &Home| home.json(&["rotation", "list"])["policies"].clone();
    wait_until("late, soon and broken", LIMIT, || {
        let all = states(&home).to_string();
        all.contains("\"due\"") && all.contains("\"failed\"")
    });
    let table = cells(&home.ok(&["rotation", "list"]));
    let heading = ["SECRET", "SCOPE", "EVERY", "DUE (UTC)", "STATE", "HOW", "CHAIN"];
    assert_eq!(table[0], heading);
    let listed = states(&home);
    let due = |name: &str| -> String {
        let all = listed.as_array().unwrap();
        let policy = all.iter().find(|p| p["name"] == name).unwrap();
        moment(&policy["due_at"])
    };
    let row = |name: &str, rest: [&str; 5]| -> Vec<String> {
        let [scope, every, state, how, chain] = rest;
        [name, scope, every, &due(name), state, how, chain].map(str::to_owned).to_vec()
    };
    // The next due first.
    assert_eq!(
        table[1..],
        [
            row("LATE", ["org", "1s", "due", "by hand", "-"]),
            row("BROKEN", ["org", "2s", "failed", "auto", "breaks"]),
            row("prod/pair", ["chain:app", "10d", "ok", "by hand", "-"]),
            row("PASSWORD", ["org", "30d", "pending", "by hand", "-"]),
            row("CALM", ["org", "90d", "ok", "by hand", "rotate"]),
        ]
    );
    home.ok_with(
        &["rotation", "apply", "-"],
        r#"{"rotation_policy": {"CALM": {"rotate_every": "1h", "notify_before": "3599s"}}}"#,
    );
    wait_until("soon", LIMIT, || {
        let listed = states(&home);
        let all = listed.as_array().unwrap();
        all.iter().find(|p| p["name"] == "CALM").unwrap()["state"] == "soon"
    });
}

#[test]
fn the_exposures_of_a_secret_are_a_table_of_who_obtained_it_how_and_since_when() {
    if !may_mount() {
        return;
    }
    let home = home();
    assert_eq!(home.ok(&["secret", "exposures", "PASSWORD"]), "(none)\n");
    home.ok(&["execution", "start", "--chain", "app", "--id", "reads"]);
    home.ok(&["execution", "start", "--chain", "app", "--id", "holds"]);
    let view = home.dir.path().join("view");
    let agent = |id: &str, deliver: &str, script: &str| {
        let output = home.run(&[
            "run",
            "--execution",
            id,
            "--agent",
            "a",
            "--deliver",
            deliver,
            "--secrets-path",
            view.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            script,
        ]);
        assert!(output.status.success(), "{}", text(&output));
    };
    agent("reads", "files", "cat $CREDENTIALS_DIRECTORY/PASSWORD");
    agent("holds", "env", "true");
    home.ok(&["secret", "get", "PASSWORD", "--reveal"]);
    home.ok(&["execution", "end", "reads"]);
    home.ok(&["rotation", "run", "PASSWORD", "--chain", "rotate"]);
    let shown = home.ok(&["secret", "exposures", "PASSWORD"]);
    let table = cells(&shown);
    let heading = ["SECRET", "VERSION", "VIA", "EXECUTION", "AGENT", "USER", "SINCE", "NOW"];
    assert_eq!(table[0], heading);
    let listed = home.json(&["secret", "exposures", "PASSWORD"]);
    let listed = listed["exposures"].as_array().unwrap();
    let rotation = listed[0]["execution"].as_str().unwrap();
    assert!(rotation.starts_with("rotation-"), "{shown}");
    // The newest first.
    let rows = [
        ["2", "rotation", rotation, "create", "-"],
        ["1", "reveal", "-", "-", "-"],
        ["1", "env", "holds", "a", "running"],
        ["1", "file", "reads", "a", "-"],
    ];
    assert_eq!(table.len(), rows.len() + 1, "{shown}");
    for ((cells, row), json) in table[1..].iter().zip(rows).zip(listed) {
        let [version, via, execution, agent, now] = row;
        let since = moment(&json["at"]);
        let expected = ["PASSWORD", version, via, execution, agent, "root", &since, now];
        assert_eq!(*cells, expected, "{shown}");
    }
    // A group's members in one table.
    home.ok(&["secret", "get", "prod/LEFT", "--reveal"]);
    let group = cells(&home.ok(&["secret", "exposures", "prod/pair"]));
    assert_eq!((group.len(), group[1][0].as_str()), (2, "prod/LEFT"));
    let unknown = home.refused(&["secret", "exposures", "NO_SUCH"]);
    assert!(unknown.contains("there is no secret NO_SUCH"), "{unknown}");
}

/// Refused with this status, these words in the error and those in the hint.
fn refused(home: &Home, args: &[&str], input: &str, status: i32, error: &[&str], hint: &[&str]) {
    let output = home.run_with(args, input);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    let line = |start: &str| {
        let found = said.lines().find_map(|l| l.strip_prefix(start));
        found.unwrap_or_else(|| panic!("{args:?}: no {start}in {said}")).to_owned()
    };
    let (what, next) = (line("error: "), line("hint: "));
    for part in error {
        assert!(what.contains(part), "{args:?}: {part:?} is not in {what:?}");
    }
    for part in hint {
        assert!(next.contains(part), "{args:?}: {part:?} is not in {next:?}");
    }
}

#[test]
fn each_wrong_rotation_is_refused_with_what_is_wrong_and_how_to_go_on() {
    if !may_mount() {
        return;
    }
    let home = home();
    let rotate = |name: &'static str| ["secret", "rotate", name];
    let group = |name: &'static str| ["group", "rotate", name];
    let pair = r#"{"LEFT": "left-value-2", "RIGHT": "right-value-2"}"#;
    let no = "NO_SUCH";
    let unknown_secret = ["there is no secret NO_SUCH"];
    refused(&home, &rotate(no), "value-two", 6, &unknown_secret, &["strongroom secret list"]);
    refused(&home, &["secret", "promote", no], "", 6, &unknown_secret, &["strongroom secret list"]);
    refused(
        &home,
        &["secret", "rollback", no],
        "",
        6,
        &unknown_secret,
        &["strongroom secret list"],
    );
    let unknown = ["there is no secret or group prod/none"];
    refused(&home, &group("prod/none"), pair, 6, &unknown, &["strongroom secret list"]);

    // Revoked, without a replacement.
    home.ok_with(&["secret", "set", "DEAD"], "dead-value-one");
    home.ok(&["secret", "revoke", "DEAD", "--reason", "x", "--no-replacement"]);
    let revoked = ["DEAD has no current version: it was revoked"];
    refused(&home, &rotate("DEAD"), "dead-value-two", 7, &revoked, &["secret set DEAD --replace"]);
    let run = ["rotation", "run", "DEAD", "--chain", "rotate"];
    refused(&home, &run, "", 7, &revoked, &["secret set DEAD --replace"]);
    home.ok_with(&["group", "set", "dead"], r#"{"ONE": "one-value-1", "TWO": "two-value-1"}"#);
    home.ok(&["group", "revoke", "dead", "--reason", "x", "--no-replacement"]);
    let both = r#"{"ONE": "one-value-2", "TWO": "two-value-2"}"#;
    let revoked = ["ONE has no current version: it was revoked"];
    refused(&home, &group("dead"), both, 7, &revoked, &["group set dead --replace"]);

    // A second one while one is pending, and promotion by hand while the old one is held.
    home.ok(&["execution", "start", "--chain", "app", "--id", "first"]);
    home.ok(&["execution", "start", "--chain", "app", "--id", "second"]);
    home.ok_with(&rotate("PASSWORD"), "second-password");
    let pending = ["version 2 of PASSWORD is pending already, since 20"];
    let on = ["secret promote PASSWORD", "secret rollback PASSWORD to give it up"];
    refused(&home, &rotate("PASSWORD"), "third-password", 7, &pending, &on);
    let run = ["rotation", "run", "PASSWORD", "--chain", "rotate"];
    refused(&home, &run, "", 7, &["version 2 of PASSWORD is pending already"], &on);
    let held = ["2 executions hold the current version of PASSWORD: first, second"];
    let promote = ["secret", "promote", "PASSWORD"];
    refused(&home, &promote, "", 7, &held, &["--force", "keep their version"]);
    home.ok(&["secret", "promote", "PASSWORD", "--force"]);
    refused(&home, &promote, "", 7, &["no pending version"], &["secret rotate PASSWORD"]);
    home.ok_with(
        &[&group("prod/pair")[..], &["--valid-from", "2099-01-01T00:00:00Z"]].concat(),
        pair,
    );
    let pending = ["version 2 of prod/LEFT is pending already"];
    refused(&home, &group("prod/pair"), pair, 7, &pending, &["secret promote prod/pair"]);
    home.ok(&["group", "rollback", "prod/pair"]);

    // Policies.
    let policy = |entry: &str, status: i32, error: &[&str], hint: &[&str]| {
        let text = format!(r#"{{"rotation_policy": {{{entry}}}}}"#);
        refused(&home, &["rotation", "apply", "-"], &text, status, error, hint);
        // None of it holds, also not what stood beside it.
        assert_eq!(home.ok(&["rotation", "list"]), "(none)\n");
    };
    let form = ["rotate_every_days"];
    let of = |fields: &str| format!(r#""PASSWORD": {{{fields}}}"#);
    let unknown = r#""PASSWORD": {"rotate_every_days": 3}, "NO_SUCH": {"rotate_every_days": 3}"#;
    policy(unknown, 6, &unknown_secret, &["secret list"]);
    policy(
        &of(r#""rotate_every_days": 3, "rotation_chain": "none""#),
        6,
        &["no chain none"],
        &["chain apply"],
    );
    for fields in
        [r#""rotate_every_days": 0"#, r#""rotate_every_days": -1"#, r#""rotate_every": "0s""#]
    {
        policy(&of(fields), 1, &["PASSWORD: rotate_every", "between 1 and 36500 days"], &form);
    }
    let late = r#""rotate_every_days": 3, "notify_before_days": 4"#;
    policy(&of(late), 1, &["PASSWORD: the notice is to come 4d before", "rotates every 3d"], &form);
    let negative = r#""rotate_every_days": 3, "notify_before_days": -4"#;
    policy(&of(negative), 1, &["PASSWORD: notify_before_days"], &form);
    let alone = r#""rotate_every_days": 3, "auto_rotate": true"#;
    policy(&of(alone), 1, &["auto_rotate needs a rotation_chain"], &form);
    policy(&of(r#""rotate_every_day": 3"#), 1, &["line 1", "rotate_every_day"], &form);
    let half = r#""PASSWORD": {"rotate_every_days": 3, "rotation_chain": "app"}"#;
    policy(half, 1, &["chain app has no agent create"], &["create and test"]);
    let chainless = ["rotation", "run", "PASSWORD"];
    refused(&home, &chainless, "", 1, &["PASSWORD has no rotation chain"], &["--chain"]);

    // What `create` prints.
    let alone = ["create prints the value on its stdout, and nothing else"];
    for (create, error) in [
        ("true", "create printed nothing"),
        ("head -c 1048577 /dev/zero", "create printed more than 1048576 bytes"),
    ] {
        apply(&home, "rotate", create);
        refused(&home, &run, "", 1, &[error], &alone);
    }
    apply(&home, "rotate", "exit 3");
    let stays = ["the current version stays", "strongroom rotation run"];
    refused(&home, &run, "", 7, &["create failed: exit status: 3"], &stays);
    let run = ["rotation", "run", "prod/pair", "--chain", "rotate"];
    let no_object = "create printed no JSON object of names and texts";
    let members = "for a group it prints {\"MEMBER\": \"value\", ...}";
    for (create, error, hint) in [
        ("echo no json", no_object, members),
        (r#"echo '[\"left-value-2\"]'"#, no_object, members),
        (r#"echo '{\"LEFT\": 7, \"RIGHT\": 8}'"#, no_object, members),
        (
            r#"echo '{\"LEFT\": \"left-value-2\"}'"#,
            "there is no value for prod/RIGHT",
            "all members at once: LEFT, RIGHT",
        ),
        (
            r#"echo '{\"LEFT\": \"left-value-2\", \"RIGHT\": \"right-2\", \"MIDDLE\": \"m-value\"}'"#,
            "MIDDLE is no member of prod/pair",
            "its members are LEFT, RIGHT",
        ),
        (r#"echo '{\"LEFT\": \"left-value-2\", \"RIGHT\": \"\"}'"#, "the value is empty", ""),
        ("true", "create printed nothing", alone[0]),
    ] {
        apply(&home, "rotate", create);
        refused(&home, &run, "", 1, &[error], &[hint]);
        let shown = home.json(&["group", "show", "prod/pair"]);
        assert!(shown["members"].as_array().unwrap().iter().all(|m| m["current"] == 1), "{shown}");
    }
    let failed: Vec<_> = home.records("rotation_failed");
    assert!(failed.iter().all(|r| !r.to_string().contains("left-value-2")), "{failed:?}");
}
