//! Checkpoints against an attacker who may write the log's directory, and links again as we do.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::{Home, may_mount, text};
use serde_json::Value;
use strongroom::audit::checkpoint::Keys;
use strongroom::audit::files::files;
use strongroom::audit::link::{FIRST_LINK, Head, link};
use strongroom::audit::log::{Log, Options};
use strongroom::audit::record::{Event, Record};
use strongroom::audit::verify::{Known, Verdict, verify};
use strongroom::clock::{FakeClock, Timestamp};
use strongroom::config::Sync;
use strongroom::sys::shm::Region;

const RING: (usize, usize) = (0, 64 << 10);
const LIMIT: Duration = Duration::from_secs(120);

/// Three days of four records and a checkpoint each, then two records that nothing seals.
struct Written {
    dir: tempfile::TempDir,
    keys: Keys,
    /// The links of all records, from number 1.
    links: Vec<String>,
}

impl Written {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let region = Arc::new(Region::create(c"ring", RING.1).unwrap());
        let clock = Arc::new(FakeClock::at(Timestamp::UNIX_EPOCH));
        let options = Options { sync: Sync::Os, patience: LIMIT };
        let log = Log::open(dir.path(), region, RING, options, clock.clone()).unwrap();
        let mut keys = Keys::new().unwrap();
        let mut append = |version: u32| {
            let mut record = Record::new(Event::SecretAccessed, Timestamp::UNIX_EPOCH);
            record.version = Some(version);
            log.append(&record, 0).unwrap();
            log.flush(LIMIT).unwrap();
        };
        for day in 21..24 {
            clock.set(format!("2026-11-{day}T10:00:00Z").parse().unwrap());
            (0..4).for_each(&mut append);
            keys.prepare().unwrap();
            let checkpoint = keys.sign(&log.head()).unwrap();
            let mut record = Record::new(Event::Checkpoint, Timestamp::UNIX_EPOCH);
            record.checkpoint = Some(&checkpoint);
            log.append(&record, 0).unwrap();
            log.flush(LIMIT).unwrap();
            assert!(keys.advance(&checkpoint));
        }
        (0..2).for_each(&mut append);
        log.stop(LIMIT);
        let mut written = Self { dir, keys, links: Vec::new() };
        written.links =
            written.records().iter().map(|r| r["link"].as_str().unwrap().into()).collect();
        written
    }

    fn known(&self) -> Known {
        Known { public_key: Some(self.keys.first.clone()), head: None }
    }

    fn files(&self) -> Vec<PathBuf> {
        files(self.dir.path()).unwrap()
    }

    fn records(&self) -> Vec<Value> {
        let lines = self.files().into_iter().map(|f| fs::read_to_string(f).unwrap());
        lines
            .flat_map(|t| t.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<_>>())
            .collect()
    }

    /// What verify finds: the kind, or `whole N` with the number of unsealed records.
    fn found(&self, known: &Known) -> String {
        match verify(self.dir.path(), known).unwrap() {
            Verdict::Broken { kind, line, .. } => format!("{kind} {line}"),
            Verdict::Whole { unsealed, .. } => format!("whole {unsealed}"),
        }
    }

    /// Changes the lines of one file, and links every line after it anew, as anyone can.
    fn relink(&self, file: usize, change: impl Fn(&mut Vec<String>)) {
        let mut previous = FIRST_LINK.to_owned();
        let mut seq = 0;
        for (index, path) in self.files().iter().enumerate() {
            let old = fs::read_to_string(path).unwrap();
            let mut lines: Vec<String> = old.lines().map(ToOwned::to_owned).collect();
            if index == file {
                change(&mut lines);
            }
            let mut new = String::new();
            for line in lines {
                let value: Value = serde_json::from_str(&line).unwrap();
                let cut = line.rfind(",\"link\":").unwrap();
                seq += 1;
                let was = format!(",\"seq\":{},", value["seq"]);
                let unlinked = line[..cut].replace(&was, &format!(",\"seq\":{seq},"));
                previous = link(&previous, unlinked.as_bytes());
                new.push_str(&format!("{unlinked},\"link\":\"{previous}\"}}\n"));
            }
            fs::write(path, new).unwrap();
        }
    }
}

fn alter(lines: &mut [String]) {
    let at = lines.iter().position(|l| l.contains("\"version\":2")).unwrap();
    lines[at] = lines[at].replace("\"version\":2", "\"version\":7");
}

#[test]
fn an_untouched_log_is_whole_and_its_unsealed_tail_is_told() {
    let written = Written::new();
    assert_eq!(written.found(&written.known()), "whole 2");
    // Without any key the signatures still follow from each other.
    assert_eq!(written.found(&Known::default()), "whole 2");
    let other = Known { public_key: Some(Keys::new().unwrap().first), head: None };
    assert_eq!(written.found(&other), "forged_checkpoint 5");
}

#[test]
fn a_log_that_was_changed_and_linked_anew_breaks_at_the_next_checkpoint() {
    for day in 0..3 {
        let written = Written::new();
        written.relink(day, |lines| alter(lines));
        assert_eq!(written.found(&written.known()), "forged_checkpoint 5", "day {day}");
    }
    let written = Written::new();
    written.relink(1, |lines| {
        lines.remove(1);
    });
    assert_eq!(written.found(&written.known()), "forged_checkpoint 4", "a dropped record");
    let written = Written::new();
    written.relink(1, |lines| lines.swap(0, 1));
    assert_eq!(written.found(&written.known()), "forged_checkpoint 5", "swapped records");
    let written = Written::new();
    written.relink(1, |lines| {
        lines.pop();
    });
    assert_eq!(written.found(&written.known()), "forged_checkpoint 5", "a dropped checkpoint");
    let written = Written::new();
    fs::remove_file(&written.files()[1]).unwrap();
    written.relink(9, |_| ());
    assert_eq!(written.found(&written.known()), "forged_checkpoint 5", "a day that was taken out");
}

#[test]
fn a_file_that_was_changed_deleted_swapped_or_cut_is_told() {
    let written = Written::new();
    fs::remove_file(&written.files()[1]).unwrap();
    assert_eq!(written.found(&written.known()), "missing 1");
    let written = Written::new();
    let all = written.files();
    fs::rename(&all[0], written.dir.path().join("x")).unwrap();
    fs::rename(&all[1], &all[0]).unwrap();
    fs::rename(written.dir.path().join("x"), &all[1]).unwrap();
    assert_eq!(written.found(&written.known()), "missing 1");
    let written = Written::new();
    let last = written.files().pop().unwrap();
    let bytes = fs::read(&last).unwrap();
    fs::write(&last, &bytes[..bytes.len() - 3]).unwrap();
    assert_eq!(written.found(&written.known()), "cut 7");
}

#[test]
fn who_takes_todays_key_cannot_forge_yesterday() {
    let mut written = Written::new();
    // The thief rewrites the second day and signs its checkpoint with the key that is stored now.
    written.keys.prepare().unwrap();
    let keys = &written.keys;
    written.relink(1, |lines| {
        alter(lines);
        let last = lines.last_mut().unwrap();
        let old: Value = serde_json::from_str(last).unwrap();
        let head = Head { seq: 9, link: "0".repeat(64) };
        let forged = keys.sign(&head).unwrap();
        for (field, new) in [
            ("public_key", &forged.public_key),
            ("next_key", &forged.next_key),
            ("signature", &forged.signature),
        ] {
            *last = last.replace(old[field].as_str().unwrap(), new);
        }
    });
    assert_eq!(written.found(&written.known()), "forged_checkpoint 5");
}

#[test]
fn a_tail_that_was_cut_off_cleanly_is_told_by_a_head_that_was_noted() {
    let written = Written::new();
    let last = written.files().pop().unwrap();
    let noted = Known { head: Some((17, written.links[16].clone())), ..written.known() };
    assert_eq!(written.found(&noted), "whole 2");
    let kept = fs::read_to_string(&last).unwrap();
    let kept: String = kept.lines().take(5).map(|l| format!("{l}\n")).collect();
    fs::write(&last, kept).unwrap();
    assert_eq!(written.found(&written.known()), "whole 0");
    assert_eq!(written.found(&noted), "truncated 15");
    let other = Known { head: Some((3, "1".repeat(64))), ..written.known() };
    assert_eq!(written.found(&other), "altered 3");
}

fn audit_dir(home: &Home) -> PathBuf {
    home.home().join("audit")
}

fn add_config(home: &Home, lines: &str) {
    let file = home.home().join("strongroom.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n{lines}")).unwrap();
}

fn verified(home: &Home, more: &[&str]) -> Value {
    let mut args = vec!["audit", "verify", "--json"];
    args.extend(more);
    let output = home.run(&args);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
}

#[test]
fn a_daemon_seals_its_log_goes_on_after_a_kill_and_prunes_it() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    add_config(&home, "[audit]\ncheckpoint_records = 10\n");
    home.ok(&["reload"]);
    home.fill();
    for turn in 0..4 {
        for _ in 0..4 {
            assert!(
                home.agent("TestRunner", "cat view/OPENAI_API_KEY >/dev/null").status.success()
            );
        }
        if turn % 2 == 1 {
            let worker = home.worker_pid();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::SIGKILL)
                .unwrap();
        }
    }
    common::wait_until("checkpoints", LIMIT, || {
        verified(&home, &[])["checkpoints"].as_u64() >= Some(3)
    });
    let head = home.json(&["audit", "head"]);
    let key = head["first_public_key"].as_str().unwrap().to_owned();
    let (seq, link) = (head["seq"].to_string(), head["link"].as_str().unwrap().to_owned());
    home.ok(&["down"]);
    let dir = audit_dir(&home);
    let sealed = verified(&home, &["--dir", dir.to_str().unwrap(), "--public-key", &key]);
    assert_eq!(sealed["ok"], true, "{sealed}");
    assert_eq!(sealed["unsealed"], 0, "a clean stop seals: {sealed}");
    let told = ["--dir", dir.to_str().unwrap(), "--head", &seq, &link];
    assert_eq!(verified(&home, &told)["ok"], true);

    // As if it had been written earlier; the daemon goes on in a file of today.
    let today = files(&dir).unwrap().pop().unwrap();
    fs::rename(&today, dir.join("2026-01-02.jsonl")).unwrap();
    home.ok(&["up"]);
    assert!(home.agent("TestRunner", "cat view/OPENAI_API_KEY >/dev/null").status.success());
    assert_eq!(verified(&home, &[])["ok"], true);
    home.refused(&["audit", "prune", "--before", "2999-01-01"]);
    home.refused(&["audit", "prune", "--before", "yesterday"]);
    let pruned = home.json(&["audit", "prune", "--keep-days", "90"]);
    assert_eq!(pruned["files"], serde_json::json!(["2026-01-02.jsonl"]));
    let after = verified(&home, &["--public-key", &key]);
    assert_eq!(after["ok"], true, "{after}");
    assert_eq!(home.records("audit_pruned").len(), 1);
    assert_eq!(home.json(&["audit", "prune", "--keep-days", "90"])["files"], serde_json::json!([]));
    // The anchor is as little to be changed as a record is.
    let anchor = fs::read_to_string(dir.join("anchor.json")).unwrap();
    let seq = pruned["anchor_seq"].as_u64().unwrap();
    fs::write(
        dir.join("anchor.json"),
        anchor.replace(&format!(":{seq},"), &format!(":{},", seq - 1)),
    )
    .unwrap();
    assert_eq!(verified(&home, &[])["first_bad"]["kind"], "forged_checkpoint");
    fs::write(dir.join("anchor.json"), &anchor).unwrap();
    assert_eq!(verified(&home, &[])["ok"], true);

    let export = home.dir.path().join("export.jsonl");
    home.ok(&["audit", "export", export.to_str().unwrap(), "--event", "audit_pruned"]);
    assert_eq!(fs::read_to_string(&export).unwrap().lines().count(), 1);

    // A tail that goes with its checkpoints leaves a valid log: the vault counts.
    home.ok(&["down"]);
    let today = files(&dir).unwrap().pop().unwrap();
    let lines = fs::read_to_string(&today).unwrap();
    let first = lines.lines().position(|l| l.contains("\"event\":\"checkpoint\"")).unwrap();
    let kept: String = lines.lines().take(first + 1).map(|l| format!("{l}\n")).collect();
    fs::write(&today, kept).unwrap();
    home.ok(&["up"]);
    let cut = verified(&home, &[]);
    assert_eq!(cut["ok"], false, "{cut}");
}

/// A small file system of its own below the directory of the log, ended with the test.
struct Small(PathBuf);

impl Small {
    fn over(dir: &Path) -> Self {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs"])
            .arg(dir)
            .status()
            .unwrap();
        assert!(status.success());
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _unmounted = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_reads_lets_a_revoke_through_and_heals() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    fs::create_dir_all(audit_dir(&home)).unwrap();
    let small = Small::over(&audit_dir(&home));
    home.start();
    home.fill();
    assert!(home.agent("TestRunner", "cat view/DATABASE_URL").status.success());
    let filler = audit_dir(&home).join("filler");
    // As another program that takes all there is.
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    drop(file);
    // What is left of the last page takes a few records.
    common::wait_until("reads stop", LIMIT, || {
        !home.agent("TestRunner", "cat view/DATABASE_URL").status.success()
    });
    common::wait_until("degraded", LIMIT, || home.json(&["status"])["state"] == "degraded");
    let revoked = home.run(&[
        "secret",
        "revoke",
        "prod/DATABASE_URL",
        "--no-replacement",
        "--reason",
        "leaked",
    ]);
    assert!(revoked.status.success(), "{}", text(&revoked));
    fs::remove_file(&filler).unwrap();
    common::wait_until("it heals", LIMIT, || home.json(&["status"])["state"] == "ready");
    assert_eq!(home.records("secret_revoked").len(), 1);
    let whole = verified(&home, &[]);
    assert_eq!(whole["ok"], true, "{whole}");
    home.ok(&["down"]);
    drop(small);
}

#[test]
fn a_directory_that_is_taken_away_stops_reads_and_heals() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let (dir, away) = (audit_dir(&home), home.dir.path().join("away"));
    fs::rename(&dir, &away).unwrap();
    common::wait_until("reads stop", LIMIT, || {
        !home.agent("TestRunner", "cat view/OPENAI_API_KEY").status.success()
    });
    // What decides what is shown is not given out either.
    let unmade = home.run_with(&["allow"], "ghp_q7Zk2Wm9Lx4Tb8Rv3Yd6Nc1Jf5Hg0Ps8UaEo\n");
    assert!(!unmade.status.success() && unmade.stdout.is_empty(), "{}", text(&unmade));
    fs::rename(&away, &dir).unwrap();
    common::wait_until("reads again", LIMIT, || {
        home.agent("TestRunner", "cat view/OPENAI_API_KEY").status.success()
    });
    assert!(home.records("allow_made").is_empty());
    let whole = verified(&home, &[]);
    assert_eq!(whole["ok"], true, "{whole}");
}
