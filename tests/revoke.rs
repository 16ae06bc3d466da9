//! Emergency revoke against those who would outlive it: processes that have left their group, are
//! traced or frozen; launches in work; a full disk; the same value given again.

mod common;
mod tools;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Home, LIMIT, lives, may_mount, text, wait_until};
use serde_json::{Value, json};
use tools::disk::Disk;

const CHAIN: &str = r#"{"chain": "c", "agents": [
  {"name": "a", "secrets": ["KEY"]},
  {"name": "env", "secrets": ["KEY"], "deliver": "env"},
  {"name": "none", "secrets": []}]}"#;

fn fill(home: &Home) {
    home.ok_with(&["secret", "set", "KEY"], "key-value-one");
    home.apply(CHAIN);
}

fn home() -> Home {
    let home = Home::new();
    home.start();
    fill(&home);
    home
}

/// An agent that root runs, so that it may do anything.
fn rooted(home: &Home, agent: &str, more: &[&str], script: &str) -> Child {
    let view = home.dir.path().join("view");
    home.command(&["run", "--redact", "off", "--chain", "c", "--agent", agent])
        .args(more)
        .args(["--secrets-path", view.to_str().unwrap(), "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn exposures(home: &Home) -> usize {
    home.json(&["secret", "exposures", "KEY"])["exposures"].as_array().unwrap().len()
}

fn revoke(home: &Home) -> Value {
    let args = ["secret", "revoke", "KEY", "--reason", "leaked", "--json"];
    let output = home.run_with(&args, "key-replacement");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
}

/// Where the v2 hierarchy is mounted.
fn hierarchy() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let of = |line: &str| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next(), words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    };
    mounts.lines().find_map(of).expect("a cgroup2 mount")
}

/// The process whose id a script wrote to a file.
fn pid_in(file: &Path) -> u32 {
    wait_until("a process id", LIMIT, || {
        std::fs::read_to_string(file).is_ok_and(|text| text.ends_with('\n'))
    });
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

#[test]
fn processes_that_left_their_group_are_ended_too_and_what_could_hide_is_said() {
    if !may_mount() {
        return;
    }
    let procs = hierarchy().join("cgroup.procs");
    let leave =
        format!("cat $CREDENTIALS_DIRECTORY/KEY >/dev/null; echo $$ > {};", procs.display());
    let daemon =
        format!("{leave} setsid sh -c 'echo $$ > @PID@; exec sleep 1000' & sleep 0.2; exit 0");
    for (name, script) in [
        ("itself", format!("{leave} echo $$ > @PID@; exec sleep 1000")),
        ("without marks", format!("{leave} echo $$ > @PID@; exec env -i sleep 1000")),
        ("a daemon", daemon.clone()),
        ("a daemon of an execution that is over", daemon),
        (
            "a child without marks",
            format!("{leave} env -i sh -c 'echo $$ > @PID@; exec sleep 1000' & wait"),
        ),
    ] {
        let home = home();
        let file = home.dir.path().join("pid");
        let script = script.replace("@PID@", file.to_str().unwrap());
        let mut child = rooted(&home, "a", &["--keep-background"], &script);
        let pid = pid_in(&file);
        if name.starts_with("a daemon") {
            child.wait().unwrap();
        }
        if name.ends_with("over") {
            wait_until("it is over", LIMIT, || home.json(&["status"])["executions"] == 0);
        }
        assert!(lives(pid), "{name}");
        let answer = revoke(&home);
        assert_eq!(answer["complete"], true, "{name}: {answer}");
        assert!(!lives(pid), "{name}: {answer}");
        let note = answer["notes"][0].as_str().unwrap_or_default();
        assert!(note.contains("ran as root"), "{name}: {answer}");
        child.wait().unwrap();
    }
}

fn tracer(home: &Home, args: &[&str]) -> Child {
    let mut tracer = Command::new(tools::compile(home, "tracer"))
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(tracer.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "traced\n");
    tracer
}

#[test]
fn who_cannot_be_ended_is_named_with_what_holds_it_and_the_status_says_so() {
    if !may_mount() || !tools::has("cc") {
        return;
    }
    let home = home();
    let read = "cat $CREDENTIALS_DIRECTORY/KEY >/dev/null; echo $$; exec sleep 1000";
    let mut child = rooted(&home, "a", &["--as", "nobody"], read);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = line.trim();
    let mut tracer = tracer(&home, &[pid, "to its end"]);
    let args = ["secret", "revoke", "KEY", "--reason", "leaked", "--json"];
    let output = home.run_with(&args, "key-replacement");
    assert_eq!(output.status.code(), Some(9), "{}", text(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["complete"], false, "{answer}");
    let survivor = answer["survivors"][0].as_str().unwrap();
    assert!(survivor.contains(&format!("process {pid} of execution")), "{answer}");
    assert!(survivor.contains(&format!("its tracer, process {}", tracer.id())), "{answer}");
    assert_eq!(home.records("secret_revoked")[0]["decision"], "incomplete");
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    child.wait().unwrap();
    assert!(!lives(pid.parse().unwrap()));
}

#[test]
fn a_traced_a_frozen_and_an_environment_holder_die_and_their_end_is_on_record() {
    if !may_mount() || !tools::has("cc") {
        return;
    }
    let home = home();
    let read = "cat $CREDENTIALS_DIRECTORY/KEY >/dev/null; echo $$; exec sleep 1000";
    let mut children = Vec::new();
    for (id, agent, script) in [
        ("traced", "a", read),
        ("frozen", "a", read),
        ("environment", "env", "[ \"$KEY\" = key-value-one ] && echo $$; exec sleep 1000"),
    ] {
        home.ok(&["execution", "start", "--chain", "c", "--id", id]);
        let more = ["--execution", id, "--as", "nobody"];
        let mut child = rooted(&home, agent, &more, script);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        children.push((id, child, line.trim().parse::<u32>().unwrap()));
    }
    assert_eq!(exposures(&home), 3);
    let mut tracer = tracer(&home, &[&children[0].2.to_string()]);
    let of = std::fs::read_to_string(format!("/proc/{}/cgroup", children[1].2)).unwrap();
    let below = of.lines().find_map(|l| l.strip_prefix("0::/")).unwrap().to_owned();
    std::fs::write(hierarchy().join(below).join("cgroup.freeze"), "1").unwrap();

    let args = ["secret", "revoke", "KEY", "--reason", "leaked", "--dry-run"];
    let dry = home.json(&args);
    let ended = dry["ended"].as_array().unwrap();
    let channels: Vec<_> = ended.iter().map(|e| (&e["execution"], &e["via"])).collect();
    let expected = [
        (json!("environment"), json!(["env"])),
        (json!("frozen"), json!(["file"])),
        (json!("traced"), json!(["file"])),
    ];
    assert_eq!(channels, expected.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>());
    assert!(ended.iter().all(|e| e["since"].is_string()), "{dry}");
    assert!(home.ok(&args).contains("SINCE (UTC)"));

    let answer = revoke(&home);
    let _gone = tracer.kill();
    tracer.wait().unwrap();
    assert_eq!(answer["complete"], true, "{answer}");
    for (id, mut child, pid) in children {
        assert!(!lives(pid), "{id}");
        child.wait().unwrap();
        let records = home.records("execution_ended");
        let mine: Vec<_> = records.iter().filter(|r| r["execution"] == id).collect();
        assert_eq!(mine.len(), 1, "{id}");
        assert_eq!(mine[0]["reason"], "revoked:KEY", "{id}");
    }
}

#[test]
fn a_held_descriptor_never_turns_into_the_replacement() {
    if !may_mount() {
        return;
    }
    let home = home();
    home.ok(&["execution", "start", "--chain", "c", "--id", "holder"]);
    let go = home.dir.path().join("go");
    // Opened and never read: it goes on, and its descriptor is of a version that is gone.
    let script = format!(
        "exec 3<$CREDENTIALS_DIRECTORY/KEY; echo open; while [ ! -e {} ]; do sleep 0.01; done; \
         cat <&3 2>&1; cat $CREDENTIALS_DIRECTORY/KEY",
        go.display()
    );
    let mut child = rooted(&home, "a", &["--execution", "holder", "--as", "nobody"], &script);
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let answer = revoke(&home);
    assert_eq!((&answer["ended"], &answer["goes_on"]), (&json!([]), &json!(["holder"])));
    std::fs::write(&go, "").unwrap();
    let said = std::io::read_to_string(lines).unwrap();
    child.wait().unwrap();
    assert!(said.contains("Key has been revoked"), "{said}");
    assert!(said.ends_with("key-replacement"), "{said}");
}

#[test]
fn a_launch_in_work_gets_the_replacement_or_is_ended() {
    if !may_mount() {
        return;
    }
    let home = home();
    let said = home.dir.path().join("said");
    std::fs::create_dir(&said).unwrap();
    let mut children = Vec::new();
    for round in 0..24 {
        let file = said.join(round.to_string());
        let script = format!("printf %s \"$KEY\" > {}; exec sleep 1000", file.display());
        children.push((rooted(&home, "env", &[], &script), file));
    }
    // In the middle of them.
    wait_until("some", LIMIT, || std::fs::read_dir(&said).unwrap().count() >= 4);
    let answer = revoke(&home);
    assert_eq!(answer["complete"], true, "{answer}");
    wait_until("all have spoken or ended", LIMIT, || {
        children.iter_mut().all(|(child, file)| {
            child.try_wait().unwrap().is_some()
                || std::fs::read_to_string(file).is_ok_and(|text| text == "key-replacement")
        })
    });
    for (child, file) in &mut children {
        if child.try_wait().unwrap().is_none() {
            assert_eq!(std::fs::read_to_string(file).unwrap(), "key-replacement");
        }
    }
    for (mut child, _) in children {
        // The end of a launcher is the end of its agent.
        let _gone = child.kill();
        child.wait().unwrap();
    }
    wait_until("all have ended", LIMIT, || {
        home.json(&["execution", "list"])["executions"].as_array().unwrap().is_empty()
    });
}

#[test]
fn an_agent_that_redeems_a_ticket_takes_its_exposures_along() {
    if !may_mount() {
        return;
    }
    let home = home();
    let ticket = home.dir.path().join("ticket");
    let output = Command::new("curl")
        .args(["-s", "--max-time", "120", "--unix-socket"])
        .arg(home.socket())
        .args(["-H", "content-type: application/json"])
        .args(["-d", r#"{"chain": "c", "agent": "none"}"#, "http://strongroom/v1/tickets"])
        .output()
        .unwrap();
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    std::fs::write(&ticket, made["ticket"].as_str().unwrap()).unwrap();
    let ready = home.dir.path().join("ready");
    let script = format!(
        "{} --home {} run --ticket-file {} -- sh -c 'touch {}; exec sleep 1000'",
        env!("CARGO_BIN_EXE_strongroom"),
        home.home().display(),
        ticket.display(),
        ready.display()
    );
    let mut child = rooted(&home, "env", &[], &script);
    wait_until("launched", LIMIT, || ready.exists());
    assert_eq!(exposures(&home), 2);
    let answer = revoke(&home);
    assert_eq!(answer["ended"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(answer["complete"], true, "{answer}");
    child.wait().unwrap();
}

#[test]
fn a_version_by_number_is_judged_by_its_stage_and_the_pending_one_goes_alone() {
    if !may_mount() {
        return;
    }
    let home = home();
    let by =
        |version: &'static str| ["secret", "revoke", "KEY", "--reason", "x", "--version", version];
    let refused = home.refused(&by("1"));
    assert!(
        refused.contains("no replacement") && refused.contains("--no-replacement"),
        "{refused}"
    );
    assert!(home.refused(&by("pending")).contains("KEY has no pending version"));
    assert!(home.refused(&by("seven")).contains("seven"));
    home.ok(&["execution", "start", "--chain", "c", "--id", "old"]);
    home.ok_with(&["secret", "rotate", "KEY"], "key-value-two");
    home.ok(&["execution", "start", "--chain", "c", "--id", "new"]);
    let answer = home.json(&by("pending"));
    assert_eq!(answer["versions"], json!({"KEY": [2]}));
    assert_eq!(answer["goes_on"], json!(["new"]));
    // Whoever was pinned to it has the current one now.
    let mut child = rooted(&home, "a", &["--execution", "new"], "cat $CREDENTIALS_DIRECTORY/KEY");
    let said = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    child.wait().unwrap();
    assert_eq!(said, "key-value-one");
    let shown = home.json(&["secret", "show", "KEY"]);
    assert_eq!(shown["versions"]["current"]["version"], 1);
}

#[test]
fn a_revoked_value_does_not_come_back_under_any_name() {
    if !may_mount() {
        return;
    }
    let home = home();
    let same = home.run_with(&["secret", "revoke", "KEY", "--reason", "x"], "key-value-one");
    assert!(text(&same).contains("the replacement is a value of KEY"), "{}", text(&same));
    assert_eq!(home.json(&["secret", "show", "KEY"])["versions"]["current"]["version"], 1);
    assert_eq!(revoke(&home)["complete"], true);
    home.ok_with(&["secret", "set", "FIRST"], "first-value");
    let pair = r#"{"LEFT": "left-value-1", "RIGHT": "key-value-one"}"#;
    let env = home.dir.path().join("import.env");
    std::fs::write(&env, "IMPORTED=key-value-one\n").unwrap();
    let again = |home: &Home| {
        for (args, input) in [
            (&["secret", "set", "OTHER"][..], "key-value-one"),
            (&["secret", "set", "KEY", "--replace"], "key-value-one"),
            (&["secret", "rotate", "FIRST"], "key-value-one"),
            (&["secret", "revoke", "FIRST", "--reason", "x"], "key-value-one"),
            (&["group", "set", "pair"], pair),
            (&["import", env.to_str().unwrap()], ""),
        ] {
            let output = home.run_with(args, input);
            assert!(!output.status.success(), "{args:?}");
            let said = text(&output);
            assert!(said.contains("the value of version 1 of KEY, which was revoked"), "{said}");
            assert!(said.contains("\nhint: "), "{said}");
        }
    };
    again(&home);
    home.ok(&["secret", "destroy", "KEY", "--version", "1"]);
    home.ok(&["down"]);
    home.ok(&["up"]);
    again(&home);
}

/// A file system of a few megabytes.
struct Small(PathBuf);

impl Small {
    fn over(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=12m,mode=755", "tmpfs"])
            .arg(dir)
            .status();
        assert!(mount.unwrap().success());
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn on_a_full_disk_the_value_is_denied_who_had_it_ended_and_the_rest_follows_when_there_is_room() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let small = Small::over(&home.home());
    home.start();
    fill(&home);
    home.ok(&["execution", "start", "--chain", "c", "--id", "victim"]);
    let script = "cat $CREDENTIALS_DIRECTORY/KEY >/dev/null; echo $$; exec sleep 1000";
    let mut victim = rooted(&home, "a", &["--execution", "victim", "--as", "nobody"], script);
    let mut line = String::new();
    BufReader::new(victim.stdout.take().unwrap()).read_line(&mut line).unwrap();
    home.ok(&["execution", "start", "--chain", "c", "--id", "idle"]);
    let filler = home.home().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    drop(file);
    // Longer than what the vault's file has free inside.
    let replacement = "r".repeat(900_000);
    let output = home.run_with(&["secret", "revoke", "KEY", "--reason", "leaked"], &replacement);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("KEY is denied and 1 executions are ended"), "{said}");
    assert!(said.contains("not durable yet"), "{said}");
    assert!(!lives(line.trim().parse().unwrap()));
    victim.wait().unwrap();
    let mut idle = rooted(&home, "a", &["--execution", "idle"], "cat $CREDENTIALS_DIRECTORY/KEY");
    let read = std::io::read_to_string(idle.stdout.take().unwrap()).unwrap();
    idle.wait().unwrap();
    assert_eq!(read, "", "the denial holds meanwhile");
    std::fs::remove_file(&filler).unwrap();
    wait_until("it is finished", LIMIT, || home.records("secret_revoked").len() == 2);
    assert_eq!(home.json(&["secret", "show", "KEY"])["versions"]["current"]["version"], 2);
    let ended: Vec<_> = home
        .records("execution_ended")
        .into_iter()
        .filter(|r| r["reason"] == "revoked:KEY")
        .collect();
    assert_eq!(ended.len(), 1, "{ended:?}");
    let told: Vec<_> =
        home.records("secret_revoked").iter().map(|r| r["decision"].clone()).collect();
    assert_eq!(told, [json!("incomplete"), json!("complete")]);
    home.ok(&["down"]);
    drop(small);
}

/// What drills have made and not removed: views in the runtime directory and beside it, and canaries.
fn left_of_drills(home: &Home) -> (Vec<String>, Vec<String>) {
    let mut views = Vec::new();
    for dir in [home.home().join("run"), std::env::temp_dir()] {
        let entries = std::fs::read_dir(dir).unwrap().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        views.extend(names.filter(|name| name.starts_with("STRONGROOM_DRILL_")));
    }
    let listed = home.json(&["secret", "list", "STRONGROOM_DRILL_"]);
    let names = listed["secrets"].as_array().unwrap().iter();
    (views, names.map(|s| s["key"].as_str().unwrap().to_owned()).collect())
}

#[test]
fn a_drill_leaves_nothing_and_what_a_killed_one_left_the_next_removes() {
    if !may_mount() {
        return;
    }
    use nix::sys::signal::{Signal, kill};
    let home = home();
    let nothing = (Vec::new(), Vec::new());
    let mut before = left_of_drills(&home);
    // Of other homes, in the common directory.
    let foreign: Vec<_> = std::mem::take(&mut before.0);
    let left = |home: &Home| {
        let mut left = left_of_drills(home);
        left.0.retain(|name| !foreign.contains(name));
        left
    };
    assert_eq!(home.json(&["drill", "revoke"])["complete"], true);
    assert_eq!(left(&home), nothing);
    let start = || {
        let mut drill = home
            .command(&["drill", "revoke"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let seen = || !left(&home).1.is_empty() || drill.try_wait().unwrap().is_some();
        let mut seen = seen;
        wait_until("the canary", LIMIT, &mut seen);
        drill
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let drill = start();
        kill(nix::unistd::Pid::from_raw(drill.id().cast_signed()), signal).unwrap();
        let output = drill.wait_with_output().unwrap();
        assert!(output.status.code().is_some(), "it ends by itself: {:?}", output.status);
        if !output.status.success() {
            assert!(text(&output).contains("\nhint: "), "{}", text(&output));
        }
        assert_eq!(left(&home), nothing, "{signal}");
    }
    // A view that is in use is left alone; what is nobody's goes with the next drill.
    let used = home.home().join("run/STRONGROOM_DRILL_used.view");
    std::fs::create_dir(&used).unwrap();
    let file = std::fs::File::open(&used).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    for _ in 0..3 {
        let mut drill = start();
        drill.kill().unwrap();
        drill.wait().unwrap();
    }
    wait_until("their agents end", LIMIT, || {
        home.json(&["execution", "list"])["executions"].as_array().unwrap().is_empty()
    });
    assert_eq!(home.json(&["drill", "revoke"])["complete"], true);
    assert_eq!(left(&home), (vec!["STRONGROOM_DRILL_used.view".to_owned()], Vec::new()));
    drop(lock);
    assert_eq!(home.json(&["drill", "revoke"])["complete"], true);
    assert_eq!(left(&home), nothing);
    // One that cannot even begin.
    home.ok(&["lock"]);
    home.refused(&["drill", "revoke"]);
    home.ok(&["unlock"]);
    assert_eq!(left(&home), nothing);
}

#[test]
fn readers_that_wait_for_a_sink_that_hangs_are_refused_by_a_revoke_and_get_no_byte() {
    if !may_mount() || !tools::has("fsfreeze") || !tools::has("mkfs.ext4") {
        return;
    }
    let home = Home::new();
    let disk = Disk::made(&home, home.home().join("audit"));
    home.start();
    home.configure("[audit]\nsync = \"each\"");
    fill(&home);
    // Each of its threads waits for a record nearly always, and reads until it is refused for good.
    let source = r#"
import errno, os, sys, threading
path = os.environ["CREDENTIALS_DIRECTORY"] + "/KEY"
print("ready")
sys.stdin.readline()
def read():
    seen = "EIO"
    while seen == "EIO":
        try:
            with open(path, "rb", buffering=0) as f:
                seen = f.read().decode()
        except OSError as e:
            seen = errno.errorcode[e.errno]
        os.write(1, (seen + "\n").encode())
threads = [threading.Thread(target=read) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
"#;
    let run = ["--chain", "c", "--agent", "a"];
    let mut reader = tools::Talker::agent(&home, &run, "reader.py", source);
    assert_eq!(reader.line(), "ready");
    disk.freeze();
    reader.tell("go");
    // No record, no secret: also while nobody revokes.
    for _ in 0..8 {
        assert_eq!(reader.line(), "EIO");
    }
    // The verb cannot be recorded either, and says so; what it denied stays denied.
    let args = ["secret", "revoke", "KEY", "--reason", "leaked", "--no-replacement"];
    let told = home.run(&args);
    assert!(!told.status.success() && text(&told).contains("\nhint: "), "{}", text(&told));
    let (rest, ended_well) = reader.end();
    assert!(ended_well, "it obtained nothing, so nothing ends it: {rest:?}");
    assert!(rest.iter().all(|seen| seen == "EIO" || seen == "EKEYREVOKED"), "{rest:?}");
    assert_eq!(rest.iter().filter(|seen| *seen == "EKEYREVOKED").count(), 8, "{rest:?}");
    disk.thaw();
    wait_until("recorded", LIMIT, || !home.records("secret_revoked").is_empty());
    assert_eq!(home.records("secret_revoked").len(), 1, "{:#?}", home.records("secret_revoked"));
    assert_eq!(exposures(&home), 0);
    assert!(home.records("secret_accessed").len() >= 8, "a record may be of what was refused then");
    home.ok(&["down"]);
}
