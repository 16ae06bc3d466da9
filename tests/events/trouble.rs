//! A store that hangs, is full, or goes away.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::common::{Home, LIMIT, OPENAI, may_mount, wait_until};
use crate::tools::disk::Disk;
use crate::tools::{Talker, execution, has, member};

/// A home whose store is below `dir`.
fn home_on(home: &Home, dir: &Path, more: &str) {
    home.start();
    let config = home.home().join("strongroom.toml");
    let own = fs::read_to_string(&config).unwrap();
    let events = format!("\n[events]\ndir = {:?}\n{more}\n", dir.join("store"));
    fs::write(&config, own + &events).unwrap();
    home.ok(&["down"]);
    home.ok(&["up"]);
    home.fill();
}

/// An agent that says what becomes of each line that it appends.
fn appender(home: &Home, id: &str, file: &str) -> Talker {
    let mut agent = member(home, id, "TestRunner", &[]);
    let open = format!(
        "keep('f', os.open(d + '/events/{file}', os.O_CREAT | os.O_RDWR | os.O_APPEND)) > 0"
    );
    assert_eq!(agent.ask(&open), "True");
    agent
}

fn append(agent: &mut Talker, line: &str) -> String {
    agent.ask(&format!("os.write(held['f'], {}.encode())", json!(format!("{line}\n"))))
}

#[test]
fn a_store_that_hangs_keeps_nobody_from_reading_secrets() {
    if !may_mount() || !has("fsfreeze") || !has("mkfs.ext4") {
        return;
    }
    let home = Home::new();
    let disk = Disk::made(&home, home.dir.path().join("disk"));
    home_on(&home, &disk.0, "patience = \"2s\"");
    execution(&home, "e");
    let mut reader = member(&home, "e", "CodeAnalyzer", &[]);
    let mut writers: Vec<_> = (0..9).map(|n| appender(&home, "e", &format!("f{n}"))).collect();
    for writer in &mut writers {
        assert_eq!(append(writer, "before"), "7");
    }
    disk.freeze();
    for writer in &mut writers {
        writer.tell("os.write(held['f'], b'while\\n')");
    }
    // More of them than the mount has threads, and than the pool has.
    for _ in 0..50 {
        assert_eq!(reader.ask("read(path)"), OPENAI);
        assert_eq!(reader.ask("len(os.listdir(d)) > 1"), "True");
    }
    for writer in &mut writers {
        assert_eq!(writer.line(), "errno EIO");
    }
    assert_eq!(reader.ask("read(path)"), OPENAI);
    disk.thaw();
    for writer in &mut writers {
        wait_until("the store answers again", LIMIT, || append(writer, "after") == "6");
    }
    drop(reader);
    drop(writers);
    home.ok(&["execution", "end", "e"]);
    for n in 0..9 {
        let file = disk.0.join(format!("store/deploy-pipeline/prod/e/f{n}"));
        // Complete when its agent has ended, or as soon after as the store lets it.
        wait_until("the file is complete", LIMIT, || {
            fs::read_to_string(&file).unwrap().contains("after\n")
        });
        let stored = fs::read_to_string(&file).unwrap();
        // Nobody knows whether a write was done that got an error; never by halves.
        let left = stored.strip_prefix("before\n").unwrap_or(&stored).replace("while\n", "");
        assert!(!left.is_empty() && left.replace("after\n", "").is_empty(), "{stored:?}");
    }
    home.ok(&["down"]);
}

#[test]
fn a_full_disk_is_told_to_the_writer_and_heals() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let disk = Disk::mounted(&home, &["-t", "tmpfs", "-o", "size=1m", "small"]);
    home_on(&home, &disk.0, "");
    execution(&home, "e");
    let mut agent = appender(&home, "e", "log");
    assert_eq!(append(&mut agent, "first"), "6");
    let filler = disk.0.join("filler");
    let _full = fs::write(&filler, vec![1; 2 << 20]);
    let big = "os.write(held['f'], b'x' * 100000)";
    assert_eq!(agent.ask(big), "errno ENOSPC");
    assert_eq!(agent.ask("os.fstat(held['f']).st_size"), "6");
    assert_eq!(agent.ask("os.pread(held['f'], 100, 0)"), "b'first\\n'");
    // Its end is held back, and has no room either.
    assert_eq!(agent.ask("os.write(held['f'], read(path)[:20].encode())"), "20");
    assert_eq!(agent.ask("os.close(held['f'])"), "None");
    assert_eq!(agent.ask("read(path) > ''"), "True");
    fs::remove_file(&filler).unwrap();
    let file = disk.0.join("store/deploy-pipeline/prod/e/log");
    wait_until("the end of the file", LIMIT, || {
        fs::read_to_string(&file).is_ok_and(|t| t == "first\n[REDACTED:OPENAI_API_KEY]")
    });
    assert_eq!(agent.ask("os.listdir(d + '/events')"), "['log']");
    drop(agent);
    home.ok(&["execution", "end", "e"]);
    home.ok(&["down"]);
}

#[test]
fn a_store_that_is_removed_under_the_daemon_fails_writers_and_nobody_else() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "e");
    let mut agent = appender(&home, "e", "log");
    assert_eq!(append(&mut agent, "first"), "6");
    let store = home.home().join("events");
    fs::rename(&store, home.dir.path().join("taken")).unwrap();
    // The open file is where it was; names are found by the open folder.
    assert_eq!(append(&mut agent, "second"), "7");
    fs::remove_dir_all(home.dir.path().join("taken")).unwrap();
    assert_eq!(agent.ask("os.open(d + '/events/new', os.O_CREAT | os.O_WRONLY)"), "errno ENOENT");
    assert_eq!(agent.ask("read(path)"), OPENAI);
    drop(agent);
    // The next worker makes it anew.
    home.ok(&["reload"]);
    let mut agent = appender(&home, "e", "log2");
    assert_eq!(append(&mut agent, "again"), "6");
    drop(agent);
    home.ok(&["execution", "end", "e"]);
    assert_eq!(fs::read_to_string(store.join("deploy-pipeline/prod/e/log2")).unwrap(), "again\n");
}
