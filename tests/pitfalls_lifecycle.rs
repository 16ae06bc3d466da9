//! Beginning, end and accidents of the mount: strangers' mounts, old namespaces, paths beneath
//! itself, frozen readers, and what the log says of it all.

mod common;
#[path = "tools/mod.rs"]
mod tools;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Home, LIMIT, OPENAI, cannot_run, may_mount, text, wait_until};
use tools::{OBEY, Talker, good, group_of, obedient, python};

/// Runs a command of the host that must succeed.
fn host(args: &[&str]) {
    good(&Command::new(args[0]).args(&args[1..]).output().unwrap());
}

/// Types of what is mounted at `path`, the topmost last.
fn mounted_at(path: &Path) -> Vec<String> {
    let table = strongroom::sys::mount::table().unwrap();
    table.into_iter().filter(|m| m.mount_point == path).map(|m| m.fs_type).collect()
}

/// A mount of the test's own, undone with it.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path) -> Self {
        host(&["mount", "-t", "tmpfs", "stranger", path.to_str().unwrap()]);
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let undone = Command::new("umount").arg(&self.0).status().unwrap();
        assert!(undone.success() || std::thread::panicking());
    }
}

// The daemon would wait for itself, for ever.
#[test]
fn a_daemon_whose_own_files_would_lie_beneath_its_mount_is_refused_at_the_start() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    home.ok(&["down"]);
    let file = home.home().join("strongroom.toml");
    let good_config = std::fs::read_to_string(&file).unwrap();
    let link = home.home().join("link");
    std::os::unix::fs::symlink(home.mount(), &link).unwrap();
    let away = home.dir.path().join("away");
    std::fs::create_dir(&away).unwrap();
    let to_away = home.dir.path().join("to-away");
    std::os::unix::fs::symlink(&away, &to_away).unwrap();
    // An empty one, so that no other check is in the way.
    let log = home.home().join("audit");
    std::fs::rename(&log, home.dir.path().join("audit.kept")).unwrap();
    std::fs::create_dir(&log).unwrap();
    let cases = [
        ("the home itself", "[mount]\npath = \".\"\n".to_owned()),
        ("above the home", "[mount]\npath = \"..\"\n".to_owned()),
        ("the audit log", "[mount]\npath = \"audit\"\n".to_owned()),
        ("above the audit log", "[mount]\npath = \"x/../audit\"\n".to_owned()),
        ("the runtime directory", "[mount]\npath = \"run\"\n".to_owned()),
        ("events", "[events]\ndir = \"mnt/events\"\n".to_owned()),
        ("events by dots", "[events]\ndir = \"run/../mnt/events\"\n".to_owned()),
        ("events by a link", format!("[events]\ndir = \"{}/events\"\n", link.display())),
        (
            "events by a link on the mount's side",
            format!(
                "[mount]\npath = \"{}\"\n[events]\ndir = \"{}/events\"\n",
                to_away.display(),
                away.display()
            ),
        ),
    ];
    let mut failed = Vec::new();
    for (what, more) in &cases {
        std::fs::write(&file, format!("{good_config}\n{more}")).unwrap();
        let output = Command::new("timeout")
            .args(["120", env!("CARGO_BIN_EXE_strongroom"), "up"])
            .env("STRONGROOM_HOME", home.home())
            .output()
            .unwrap();
        let message = text(&output);
        let refused = !output.status.success()
            && message.contains("beneath the mount")
            && message.contains("hint: ");
        if !refused {
            failed.push(format!("{what}: {message}"));
            home.run(&["down"]);
        }
    }
    let key = good_config.replace(
        home.dir.path().join("key").to_str().unwrap(),
        home.mount().join("key").to_str().unwrap(),
    );
    assert_ne!(key, good_config);
    std::fs::write(&file, key).unwrap();
    assert!(home.refused(&["up"]).contains("beneath the mount"));
    assert!(mounted_at(&home.mount()).is_empty());
    // The neighbouring allow.
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::rename(home.dir.path().join("audit.kept"), &log).unwrap();
    std::fs::write(&file, format!("{good_config}\n[mount]\npath = \"{}\"\n", away.display()))
        .unwrap();
    home.ok(&["up"]);
    assert!(away.join(".identity").exists());
    home.ok(&["down"]);
    std::fs::write(&file, good_config).unwrap();
    assert!(failed.is_empty(), "not refused: {failed:#?}");
}

// fuser's own teardown can take away what somebody else mounted there meanwhile.
#[test]
fn what_others_mounted_over_or_instead_of_the_mount_is_there_after_the_end() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let point = home.mount().canonicalize().unwrap();
    // Over it.
    let over = Mounted::tmpfs(&point);
    std::fs::write(point.join("file"), "theirs").unwrap();
    home.ok(&["down"]);
    assert_eq!(mounted_at(&point).last().unwrap(), "tmpfs");
    assert_eq!(std::fs::read_to_string(point.join("file")).unwrap(), "theirs");
    assert!(home.refused(&["up"]).contains("tmpfs"));
    drop(over);
    // What is beneath is ours and dead; the next start clears it.
    home.ok(&["up"]);
    assert_eq!(mounted_at(&point), ["fuse.strongroom"]);
    // Instead of it: the keeper held, so that it cannot be faster than us.
    let keeper = std::fs::read_to_string(home.home().join("run/keeper.pid")).unwrap();
    host(&["kill", "-STOP", keeper.trim()]);
    host(&["umount", "--lazy", point.to_str().unwrap()]);
    let instead = Mounted::tmpfs(&point);
    std::fs::write(point.join("file"), "theirs").unwrap();
    host(&["kill", "-CONT", keeper.trim()]);
    // It may give up by itself, when it finds its place taken.
    let ended = home.run(&["down"]);
    assert!(ended.status.success() || text(&ended).contains("no daemon"), "{}", text(&ended));
    wait_until("the daemon is gone", LIMIT, || {
        !strongroom::keeper::is_served(&home.home().join("run"))
    });
    assert_eq!(mounted_at(&point), ["tmpfs"]);
    assert_eq!(std::fs::read_to_string(point.join("file")).unwrap(), "theirs");
    drop(instead);
    home.ok(&["up"]);
    assert_eq!(mounted_at(&point), ["fuse.strongroom"]);
}

#[test]
fn a_mount_that_was_taken_away_comes_back_and_agents_start_again() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let point = home.mount().canonicalize().unwrap();
    let read = "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY";
    assert_eq!(text(&home.agent("CodeAnalyzer", read)), OPENAI);
    host(&["umount", point.to_str().unwrap()]);
    wait_until("the mount is back", LIMIT, || {
        mounted_at(&point) == ["fuse.strongroom"] && point.join(".identity").exists()
    });
    wait_until("the worker answers", LIMIT, || home.run(&["status"]).status.success());
    assert_eq!(text(&home.agent("CodeAnalyzer", read)), OPENAI);
    assert_eq!(home.records("secret_accessed").len(), 2);
}

// A container keeps the mount namespace of its start, and with it what was mounted then.
#[test]
fn a_namespace_from_before_a_restart_sees_the_new_mount_if_its_parent_is_shared() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    std::fs::create_dir(home.home()).unwrap();
    let parent = home.home().canonicalize().unwrap();
    let parent_path = parent.to_str().unwrap();
    // A mount of its own that passes on what happens beneath it, as a host's /run does.
    host(&["mount", "--bind", parent_path, parent_path]);
    let _parent = Mounted(parent.clone());
    host(&["mount", "--make-private", parent_path]);
    host(&["mount", "--make-shared", parent_path]);
    home.start();
    home.fill();
    let file = tools::script(&home, "look.py", OBEY);
    let [mut slave, mut private] = ["slave", "private"].map(|propagation| {
        let mut talker = Talker::spawn(
            Command::new("unshare")
                .args(["--mount", "--propagation", propagation, "/usr/bin/python3", "-u"])
                .arg(&file)
                .current_dir("/"),
        );
        talker.line();
        talker
    });
    let look = format!("read('{parent_path}/mnt/.identity')[:1]");
    assert_eq!(slave.ask(&look), "{");
    assert_eq!(private.ask(&look), "{");
    home.ok(&["down"]);
    // The connection ended with the daemon, also where the mount itself stays.
    assert_eq!(slave.ask(&look), "errno ENOENT");
    assert_eq!(private.ask(&look), "errno ENOTCONN");
    home.ok(&["up"]);
    assert_eq!(slave.ask(&look), "{");
    assert_eq!(private.ask(&look), "errno ENOTCONN");
    for talker in [slave, private] {
        assert_eq!(talker.end(), (Vec::new(), true));
    }
    home.ok(&["down"]);
}

#[test]
fn a_frozen_reader_freezes_at_once_and_reads_on_when_it_is_thawed() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let stop = home.dir.path().join("stop");
    let reader = format!(
        r#"
import os
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
print(os.getpid(), flush=True)
n = 0
while not os.path.exists({stop:?}):
    with open(path) as f:
        assert len(f.read()) == 31
    n += 1
print(n)
"#
    );
    let run = ["--chain", "deploy-pipeline", "--agent", "CodeAnalyzer", "--env", "prod"];
    let mut agent = Talker::agent(&home, &run, "reader.py", &reader);
    let group = group_of(&agent.line());
    let events = || std::fs::read_to_string(group.join("cgroup.events")).unwrap();
    if !group.join("cgroup.freeze").exists() {
        cannot_run("this kernel has no freezer of the v2 hierarchy");
        return;
    }
    for _ in 0..20 {
        std::fs::write(group.join("cgroup.freeze"), "1").unwrap();
        wait_until("it is frozen", LIMIT, || events().contains("frozen 1"));
        // Nobody waits for it: the mount serves others, and the daemon its socket.
        assert!(home.mount().join(".identity").exists());
        std::fs::write(group.join("cgroup.freeze"), "0").unwrap();
        wait_until("it is thawed", LIMIT, || events().contains("frozen 0"));
    }
    std::fs::write(&stop, "").unwrap();
    let reads: usize = agent.line().parse().unwrap();
    assert_eq!(agent.end(), (Vec::new(), true));
    assert_eq!(home.records("secret_accessed").len(), reads);
}

// Libraries print names and data at their own debug levels.
#[test]
fn the_log_at_its_most_talkative_holds_no_name_and_no_value() {
    if !may_mount() {
        return;
    }
    let mut home = Home::new();
    let loud = "trace,fuser=trace,fuser::request=trace,hyper=trace,log=trace,redb=trace";
    home.env.push(("STRONGROOM_LOG".into(), loud.into()));
    home.env.push(("RUST_LOG".into(), "trace".into()));
    home.env.push(("RUST_BACKTRACE".into(), "full".into()));
    home.start();
    home.fill();
    let script = r#"
import os, socket
d = os.environ["CREDENTIALS_DIRECTORY"]
for name in sorted(os.listdir(d)) + ["DATABASE_URL", "id_deploy", "x" * 300, "GUESSED_NAME"]:
    path = d + "/" + name
    for call in (lambda: open(path).read(), lambda: os.stat(path), lambda: os.unlink(path),
                 lambda: os.setxattr(path, "user.a", b"b")):
        try:
            call()
        except OSError:
            pass
fd = os.open(d + "/OPENAI_API_KEY", os.O_RDONLY)
try:
    os.sendfile(os.open("/dev/null", os.O_WRONLY), fd, 0, 10)
except OSError:
    pass
"#;
    assert_eq!(python(&home, "CodeAnalyzer", script, &[]), "");
    let mut agent = obedient(&home, "TestRunner", "agent.py");
    assert_eq!(agent.ask("read(path)"), OPENAI);
    home.ok(&["secret", "get", "OPENAI_API_KEY", "--reveal"]);
    home.ok_with(&["secret", "set", "OPENAI_API_KEY", "--scope", "org", "--replace"], "canary-two");
    home.refused(&["secret", "get", "DATABASE_URL", "--reveal"]);
    home.ok(&["reload"]);
    // Read again by a worker that did not open it.
    assert_eq!(agent.ask("read(path)"), OPENAI);
    drop(agent);
    home.ok(&["lock"]);
    // Something that both processes write about.
    let point = home.mount().canonicalize().unwrap();
    host(&["umount", point.to_str().unwrap()]);
    wait_until("the mount is back", LIMIT, || {
        mounted_at(&point) == ["fuse.strongroom"] && home.run(&["status"]).status.success()
    });
    home.ok(&["down"]);
    let log = std::fs::read_to_string(home.home().join("daemon.log")).unwrap();
    assert!(log.contains("the mount was taken away"), "{log}");
    assert!(log.contains("mounting anew"), "{log}");
    for forbidden in [
        OPENAI,
        "canary",
        "OPENAI_API_KEY",
        "DATABASE_URL",
        "AWS_SECRET",
        "id_deploy",
        "GUESSED_NAME",
        "xxxxxxxx",
    ] {
        let line = log.lines().find(|l| l.contains(forbidden));
        assert_eq!(line, None, "{forbidden} is in the log");
    }
}
