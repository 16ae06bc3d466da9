//! Values that are set, rotated or no longer plain when something with them was written before.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Home, LIMIT, may_mount, wait_until};
use crate::tools::{execution, member};

const NEW: &str = "Vq7Jx3Lm9Tz2Rw5Yb8NcHd4K";

/// Gives the pipeline's `OPENAI_API_KEY` another version.
fn rotate(home: &Home, value: &str) {
    home.ok_with(&["secret", "rotate", "OPENAI_API_KEY"], value);
}

fn searched(home: &Home) {
    wait_until("the search ends", LIMIT, || home.json(&["status"])["events_search"].is_null());
}

fn stored(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

fn write(agent: &mut crate::tools::Talker, file: &str, text: &str) {
    let line = format!("open(d + '/events/{file}', 'w').write({text:?})");
    assert_eq!(agent.ask(&line), text.len().to_string());
}

/// Files on the way to a search, each with the value in it.
fn many(agent: &mut crate::tools::Talker, count: usize, bytes: usize) {
    let line = format!(
        "[open(d + '/events/f%d' % n, 'w').write('x' * {bytes} + ' {NEW} ' + 'y' * {bytes}) \
         for n in range({count})] and 'done'"
    );
    assert_eq!(agent.ask(&line), "done");
}

fn all_redacted(store: &Path, count: usize) {
    for n in 0..count {
        let text = stored(&store.join(format!("f{n}")));
        assert!(!text.contains(NEW), "f{n}");
        assert!(text.contains("x [REDACTED:OPENAI_API_KEY] y"), "f{n}");
    }
}

#[test]
fn a_complete_file_loses_a_value_that_is_set_later_and_looks_as_before() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "l");
    let store = home.home().join("events/deploy-pipeline/prod/l");
    let mut agent = member(&home, "l", "TestRunner", &[]);
    assert_eq!(agent.ask("os.mkdir(d + '/events/sub')"), "None");
    write(&mut agent, "sub/log", &format!("before {NEW} after\n"));
    write(&mut agent, "json", &format!("{{\"key\": \"{NEW}\"}}\n"));
    write(&mut agent, "other", "nothing of it\n");
    drop(agent);
    home.ok(&["execution", "end", "l"]);
    let log = store.join("sub/log");
    wait_until("the file is complete", LIMIT, || fs::metadata(&log).is_ok_and(|m| m.len() > 9));
    // As an orchestrator may have arranged it.
    let hour = Duration::from_secs(3600);
    let (read, written) = (SystemTime::now() - 2 * hour, SystemTime::now() - 3 * hour);
    let times = fs::FileTimes::new().set_accessed(read).set_modified(written);
    fs::File::options().write(true).open(&log).unwrap().set_times(times).unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(&log, Some(1), Some(2)).unwrap();
    let (before, other) = (fs::metadata(&log).unwrap(), fs::metadata(store.join("other")).unwrap());
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    inotify.add_watch(&store.join("sub"), AddWatchFlags::IN_MOVED_TO).unwrap();
    let ago = home.records("event_redacted").len();

    rotate(&home, NEW);
    searched(&home);
    assert_eq!(stored(&log), "before [REDACTED:OPENAI_API_KEY] after\n");
    assert_eq!(stored(&store.join("json")), "{\"key\": \"[REDACTED:OPENAI_API_KEY]\"}\n");
    let after = fs::metadata(&log).unwrap();
    let look = |m: &fs::Metadata| (m.uid(), m.gid(), m.mode(), m.mtime(), m.mtime_nsec());
    assert_eq!(look(&after), look(&before));
    assert_eq!((after.uid(), after.gid(), after.mode() & 0o777), (1, 2, 0o644));
    assert_ne!(after.ino(), before.ino(), "a new file took its place");
    let moved: Vec<_> = inotify.read_events().unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(moved, [Some("log".into())]);
    let untouched = fs::metadata(store.join("other")).unwrap();
    assert_eq!((untouched.ino(), untouched.ctime()), (other.ino(), other.ctime()));
    let records = home.records("event_redacted").split_off(ago);
    let mut told: Vec<_> = records
        .iter()
        .map(|r| (r["reason"].as_str().unwrap(), r["secret_key"].as_str().unwrap(), &r["count"]))
        .collect();
    told.sort_by_key(|(file, ..)| *file);
    let one = serde_json::json!(1);
    assert_eq!(told, [("json", "OPENAI_API_KEY", &one), ("sub/log", "OPENAI_API_KEY", &one)]);
    assert!(!format!("{records:?}").contains(NEW));
}

#[test]
fn what_others_can_guess_is_left_alone_and_what_they_cannot_loses_no_name() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "o");
    let store = home.home().join("events/deploy-pipeline/prod/o");
    let mut agent = member(&home, "o", "TestRunner", &[]);
    write(&mut agent, "f", &format!("{NEW} 48151623 aGVsbG8td29ybGQ\n"));
    drop(agent);
    home.ok_with(&["secret", "set", "PIN", "--scope", "chain:elsewhere"], "48151623");
    home.ok_with(&["secret", "set", "FOREIGN", "--scope", "chain:elsewhere"], NEW);
    home.ok_with(&["secret", "set", "HELLO", "--scope", "org", "--plain"], "aGVsbG8td29ybGQ");
    searched(&home);
    assert_eq!(stored(&store.join("f")), "[REDACTED] 48151623 aGVsbG8td29ybGQ\n");
    home.ok(&["execution", "end", "o"]);
}

#[test]
fn a_value_that_is_no_longer_plain_is_taken_out() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "p");
    let store = home.home().join("events/deploy-pipeline/prod/p");
    home.ok_with(&["secret", "set", "REGION", "--scope", "org", "--plain"], NEW);
    searched(&home);
    let mut agent = member(&home, "p", "TestRunner", &[]);
    write(&mut agent, "f", &format!("in {NEW}\n"));
    assert_eq!(stored(&store.join("f")), format!("in {NEW}\n"));
    home.ok(&["secret", "edit", "REGION", "--plain", "false"]);
    searched(&home);
    assert_eq!(stored(&store.join("f")), "in [REDACTED]\n");
    write(&mut agent, "g", &format!("in {NEW}\n"));
    assert_eq!(stored(&store.join("g")), "in [REDACTED]\n");
    drop(agent);
    home.ok(&["execution", "end", "p"]);
}

#[test]
fn an_open_stream_loses_what_it_wrote_before_and_a_value_that_comes_in_two_halves() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "s");
    let store = home.home().join("events/deploy-pipeline/prod/s");
    let mut agent = member(&home, "s", "TestRunner", &[]);
    // Nothing before the blank looks as if more had to come.
    let (first, second) = ("correct-horse-9Tz ", "2Rw5-battery-staple");
    let value = format!("{first}{second}");
    let open = "keep('f', os.open(d + '/events/f', os.O_CREAT | os.O_RDWR)) > 0";
    assert_eq!(agent.ask(open), "True");
    let text = format!("whole {value} and half {first}");
    let written = agent.ask(&format!("os.write(held['f'], {text:?}.encode())"));
    assert_eq!(written, text.len().to_string());
    // Another, whose end is all that comes later, of a file that is complete by then.
    write(&mut agent, "g", &format!("half {first}"));
    assert_eq!(stored(&store.join("f")), text);
    rotate(&home, &value);
    searched(&home);
    let now = stored(&store.join("f"));
    assert_eq!(now, "whole [REDACTED:OPENAI_API_KEY] and half ");
    // Its writer's offsets are its own.
    assert_eq!(agent.ask("os.fstat(held['f']).st_size"), text.len().to_string());
    assert_eq!(agent.ask("os.lseek(held['f'], 0, 1)"), text.len().to_string());
    let shown = format!("whole {} and half {first}", "*".repeat(value.len()));
    assert_eq!(agent.ask("os.pread(held['f'], 99, 0).decode()"), shown);
    let more = format!("os.write(held['f'], b'{second} end')");
    assert_eq!(agent.ask(&more), (second.len() + 4).to_string());
    assert_eq!(agent.ask("os.close(held['f'])"), "None");
    let append = format!("open(d + '/events/g', 'a').write('{second} end')");
    assert_eq!(agent.ask(&append), (second.len() + 4).to_string());
    drop(agent);
    home.ok(&["execution", "end", "s"]);
    let name = "[REDACTED:OPENAI_API_KEY]";
    assert_eq!(stored(&store.join("f")), format!("whole {name} and half {name} end"));
    assert_eq!(stored(&store.join("g")), format!("half {name} end"));
}

#[test]
fn a_search_goes_on_after_its_worker_or_its_daemon_has_died() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "k");
    let store = home.home().join("events/deploy-pipeline/prod/k");
    let mut agent = member(&home, "k", "TestRunner", &[]);
    many(&mut agent, 60, 60_000);
    drop(agent);
    home.ok(&["execution", "end", "k"]);
    let holding = || (0..60).filter(|n| stored(&store.join(format!("f{n}"))).contains(NEW)).count();
    rotate(&home, NEW);
    let mut killed = 0;
    for _ in 0..6 {
        let worker = Pid::from_raw(home.worker_pid());
        if holding() > 0 {
            kill(worker, Signal::SIGKILL).unwrap();
            killed += 1;
        }
        std::thread::park_timeout(Duration::from_millis(120));
    }
    println!("{killed} workers killed, {} files left", holding());
    assert!(killed > 1);
    if holding() > 0 {
        home.ok(&["down"]);
        home.ok(&["up"]);
    }
    wait_until("all are redacted", LIMIT, || holding() == 0);
    searched(&home);
    all_redacted(&store, 60);
    // What the workers were killed over does not stay behind.
    wait_until("nothing is left over", LIMIT, || {
        fs::read_dir(home.home().join("events/.strongroom")).unwrap().count() == 0
    });
    assert!(home.records("event_redacted").iter().any(|r| r["reason"] == "f59"));
}

#[test]
fn files_that_are_moved_while_the_store_is_searched_are_found() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "m");
    let store: PathBuf = home.home().join("events/deploy-pipeline/prod/m");
    let mut agent = member(&home, "m", "TestRunner", &[]);
    many(&mut agent, 20, 100_000);
    for name in ["a", "z"] {
        assert_eq!(agent.ask(&format!("os.mkdir(d + '/events/{name}')")), "None");
    }
    write(&mut agent, "a/x", &format!("x {NEW} y"));
    // Back and forth, and the directory as well, until it is told to stop.
    agent.tell(
        "keep('t', threading.Thread(target=lambda: [(os.rename(d + '/events/a/x', d + '/events/z/x'), \
         os.rename(d + '/events/z', d + '/events/w'), os.rename(d + '/events/w/x', d + '/events/a/x'), \
         os.rename(d + '/events/w', d + '/events/z')) for _ in iter(lambda: 'stop' in held, True)])).start()",
    );
    assert_eq!(agent.line(), "None");
    rotate(&home, NEW);
    searched(&home);
    assert_eq!(agent.ask("keep('stop', 1)"), "1");
    assert_eq!(agent.ask("held['t'].join()"), "None");
    assert_eq!(stored(&store.join("a/x")), "x [REDACTED:OPENAI_API_KEY] y");
    all_redacted(&store, 20);
    drop(agent);
    home.ok(&["execution", "end", "m"]);
}

#[test]
fn what_cannot_be_searched_is_told_and_tried_again() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "h");
    let store = home.home().join("events/deploy-pipeline/prod/h");
    let mut agent = member(&home, "h", "TestRunner", &[]);
    many(&mut agent, 2, 10);
    drop(agent);
    home.ok(&["execution", "end", "h"]);
    // A second name from outside: what is written to the one is not in the other.
    fs::hard_link(store.join("f0"), store.join("linked")).unwrap();
    rotate(&home, NEW);
    wait_until("the search has failed", LIMIT, || {
        home.json(&["status"])["events_search"]["failed"].as_u64() == Some(2)
    });
    assert!(home.ok(&["status"]).contains("2 could not be read"));
    assert!(!stored(&store.join("f1")).contains(NEW));
    fs::remove_file(store.join("linked")).unwrap();
    // The next change looks again at once.
    home.ok_with(&["secret", "set", "MORE", "--scope", "org"], "Hd4KVq7Jx3Lm9Tz2Rw5Yb8Nc");
    searched(&home);
    all_redacted(&store, 2);
}

#[test]
fn a_file_that_was_removed_while_it_is_written_loses_a_value_that_is_set_later() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "u");
    let mut agent = member(&home, "u", "TestRunner", &[]);
    let open = "keep('f', os.open(d + '/events/f', os.O_CREAT | os.O_RDWR)) > 0";
    assert_eq!(agent.ask(open), "True");
    let text = format!("it is {NEW} and more\n");
    let written = agent.ask(&format!("os.write(held['f'], {text:?}.encode())"));
    assert_eq!(written, text.len().to_string());
    assert_eq!(agent.ask("os.unlink(d + '/events/f')"), "None");
    let nameless = || {
        let staging = home.home().join("events/.strongroom");
        let files = fs::read_dir(staging).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|e| e == "unlinked")).collect::<Vec<_>>()
    };
    assert_eq!(nameless().len(), 1);
    assert_eq!(stored(&nameless()[0]), text);
    rotate(&home, NEW);
    searched(&home);
    assert_eq!(stored(&nameless()[0]), "it is [REDACTED:OPENAI_API_KEY] and more\n");
    // Its writer goes on where it was.
    assert_eq!(agent.ask("os.write(held['f'], b'end')"), "3");
    let shown = format!("b'it is {} and more\\nend'", "*".repeat(NEW.len()));
    assert_eq!(agent.ask("os.pread(held['f'], 99, 0)"), shown);
    assert_eq!(agent.ask("os.close(held['f'])"), "None");
    wait_until("it goes with its writer", LIMIT, || nameless().is_empty());
    drop(agent);
    home.ok(&["execution", "end", "u"]);
}
