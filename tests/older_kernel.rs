//! Workers that die under load on a kernel that cannot repeat requests (before Linux 6.9): requests in
//! flight may fail, and nothing else. `tests/mount.rs` has the same without `PIDFD_GET_INFO` alone.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Home, LIMIT, OPENAI, may_mount, text, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const KILLS: u64 = 30;

/// Reads without end; what fails is tried again, what comes must be right.
const READER: &str = r#"
import os, sys, time
path, stop, ready, expected = sys.argv[1:]
good = bad = 0
while not os.path.exists(stop):
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(fd, 4096, 0)
        finally:
            os.close(fd)
    except OSError:
        bad += 1
        time.sleep(0.002)
        continue
    assert data.decode() == expected, data
    good += 1
    if good == 1:
        open(ready + str(os.getpid()), "w").close()
# In one piece, beside the others.
os.write(1, b"%d %d\n" % (good, bad))
"#;

/// A directory whose mounts reach the namespaces of agents, as they do on most hosts.
struct Shared(PathBuf);

impl Shared {
    fn make(dir: &Path) -> Self {
        let mount = |args: &[&str]| {
            let status = Command::new("mount").args(args).arg(dir).status().unwrap();
            assert!(status.success(), "{args:?}");
        };
        mount(&["--bind", dir.to_str().unwrap()]);
        mount(&["--make-shared"]);
        Self(dir.to_owned())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn where_requests_cannot_be_repeated_the_mount_comes_back_and_nothing_else_is_lost() {
    if !may_mount() {
        return;
    }
    let mut home = Home::new();
    let shared = Shared::make(home.dir.path());
    home.env.push(("STRONGROOM_DISABLE".into(), "pidfd-info,resend".into()));
    home.start();
    home.fill();
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", "k"]);
    // Staged while it runs: what it is pinned to is what it reads, over every death.
    home.ok_with(&["secret", "rotate", "OPENAI_API_KEY"], "sk-second-0123456789abcdef");
    let (stop, ready) = (home.dir.path().join("stop"), home.dir.path().join("ready."));
    let reader = home.dir.path().join("reader.py");
    std::fs::write(&reader, READER).unwrap();
    // By the shared directory: what was bound before belongs to the dead connection.
    let path = home.mount().join("OPENAI_API_KEY");
    let one = format!(
        "/usr/bin/python3 {} {} {} {} {OPENAI}",
        reader.display(),
        path.display(),
        stop.display(),
        ready.display()
    );
    let script = format!(
        "for i in 1 2 3 4; do {one} & p=\"$p $!\"; done; \
         for q in $p; do wait $q || bad=1; done; exit ${{bad:-0}}"
    );
    let view = home.dir.path().join("view");
    let agent = home
        .command(&["run", "--no-redact", "--execution", "k", "--agent", "CodeAnalyzer"])
        .args(["--secrets-path", view.to_str().unwrap(), "--", "sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = || {
        let entries = std::fs::read_dir(home.dir.path()).unwrap().flatten();
        entries.filter(|e| e.file_name().to_string_lossy().starts_with("ready.")).count()
    };
    wait_until("four readers", LIMIT, || ready() == 4);
    let worker = |home: &Home| {
        let output = home.run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["state"] == "ready").then(|| status["worker_pid"].as_i64())?
    };
    let mut last = 0;
    for round in 0..KILLS {
        let mut pid = 0;
        wait_until("a worker that serves", LIMIT, || {
            pid = worker(&home).unwrap_or(0);
            pid != 0 && pid != last
        });
        // The mount is there again, for whoever looks.
        wait_until("the mount", LIMIT, || {
            std::fs::metadata(home.mount().join(".identity")).is_ok()
        });
        std::thread::sleep(Duration::from_micros(round % 10 * 700));
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
        last = pid;
    }
    wait_until("the last worker", LIMIT, || worker(&home).is_some_and(|pid| pid != last));
    // The same agent reads on, and a new one of the same execution has the same version.
    let before = home.records("secret_accessed").len();
    wait_until("reads go on", LIMIT, || home.records("secret_accessed").len() > before);
    let view = home.dir.path().join("view.new");
    let read = home.run(&[
        "run",
        "--no-redact",
        "--execution",
        "k",
        "--agent",
        "TestRunner",
        "--secrets-path",
        view.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY",
    ]);
    assert_eq!(text(&read), OPENAI);
    std::fs::write(&stop, "").unwrap();
    let output = agent.wait_with_output().unwrap();
    assert!(output.status.success(), "a value that was wrong: {}", text(&output));
    let told = String::from_utf8(output.stdout).unwrap();
    let counts: Vec<(u64, u64)> = told
        .lines()
        .map(|line| {
            let (good, bad) = line.split_once(' ').unwrap();
            (good.parse().unwrap(), bad.parse().unwrap())
        })
        .collect();
    assert_eq!(counts.len(), 4, "{told}");
    let (good, bad) = counts.iter().fold((0, 0), |(g, b), (good, bad)| (g + good, b + bad));
    println!("{good} reads, {bad} failed over {KILLS} kills");

    // Executions, pins, exposures and records are as they were.
    let shown = home.json(&["execution", "show", "k"]);
    assert_eq!(shown["state"], "active", "{shown}");
    let stages = home.json(&["secret", "show", "OPENAI_API_KEY"])["versions"].clone();
    assert_eq!(
        (&stages["current"]["version"], &stages["pending"]["version"]),
        (&1.into(), &2.into())
    );
    assert_eq!(stages["current"]["held_by"], serde_json::json!(["k"]));
    let exposures = home.json(&["secret", "exposures", "OPENAI_API_KEY"])["exposures"].clone();
    assert_eq!(exposures.as_array().unwrap().len(), 1, "{exposures}");
    assert_eq!(exposures[0]["execution"], "k");
    // One more for the new agent. A read whose answer was lost is on record as well.
    let records = home.records("secret_accessed");
    assert!(records.len() as u64 > good, "{} of {good}", records.len());
    assert!(records.iter().all(|r| r["version"] == 1 && r["execution"] == "k"));
    assert!(home.ok(&["audit", "verify"]).starts_with("ok: "));
    assert!(home.json(&["status"])["worker_restarts"].as_u64().unwrap() >= KILLS);
    home.ok(&["execution", "end", "k"]);
    home.ok(&["down"]);
    drop(shared);
}
