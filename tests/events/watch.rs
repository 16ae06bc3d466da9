//! The store is read all the time while agents write and workers die: no byte of a secret is ever
//! there, and an orchestrator that waits for finished files gets them whole.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::common::{DB_PROD, Home, LIMIT, OPENAI, may_mount, wait_until};
use crate::crash::kill_workers;
use crate::tools::{execution, member, script};

/// Bytes of a value that say something of it.
const WINDOW: usize = 8;

/// Whether a part of a value is in `bytes`.
fn part_of_a_value(bytes: &[u8]) -> Option<String> {
    static PARTS: LazyLock<HashSet<&[u8]>> = LazyLock::new(|| {
        let random = |value: &'static str| {
            // What all values of a kind begin with is no part of one.
            let start = value.find("canary").unwrap();
            value.as_bytes()[start..].windows(WINDOW)
        };
        [OPENAI, DB_PROD].into_iter().flat_map(random).collect()
    });
    let found = bytes.windows(WINDOW).find(|window| PARTS.contains(window));
    found.map(|window| String::from_utf8_lossy(window).into_owned())
}

/// Reads every file below `root`, staged ones included, until it is told to stop; how many.
fn read_all(root: &Path, stop: &AtomicBool) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Acquire) {
        let mut left = vec![root.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    left.push(path);
                    continue;
                }
                let Ok(bytes) = fs::read(&path) else { continue };
                count += 1;
                if let Some(part) = part_of_a_value(&bytes) {
                    panic!("{part:?} of a value is in {}", path.display());
                }
            }
        }
    }
    count
}

/// Writes whole values, cut at every place, in order, elsewhere and over each other.
const WRITER: &str = r#"
import os, random, sys, time
d = os.environ["STRONGROOM_EVENTS_DIR"]
c = os.environ["CREDENTIALS_DIRECTORY"]
r = random.Random(int(sys.argv[1]))
values = [open(c + "/" + n).read().encode() for n in sys.argv[3:]]
end = time.monotonic() + float(sys.argv[2])
turn = 0
while time.monotonic() < end:
    turn += 1
    name = d + "/%s.%d" % (sys.argv[1], r.randrange(4))
    f = os.open(name + ".new", os.O_CREAT | os.O_RDWR | r.choice([0, os.O_APPEND, os.O_TRUNC]))
    for _ in range(r.randrange(1, 12)):
        text = b"line %d " % turn + r.choice(values) + b"\n"
        how = r.randrange(8)
        if how == 0:
            # A place of its own on a grid: values are never cut by one another.
            assert os.pwrite(f, text.ljust(128, b"."), 4096 + 128 * r.randrange(20)) == 128
        elif how == 1:
            os.fsync(f)
        elif how == 2:
            assert os.pread(f, 9000, 0).find(values[0]) == -1
        else:
            at = 0
            while at < len(text):
                n = r.randrange(1, 20)
                assert os.write(f, text[at:at + n]) == len(text[at:at + n])
                at += n
    os.close(f)
    os.rename(name + ".new", name)
    if r.randrange(5) == 0:
        os.unlink(name)
print(turn)
"#;

#[test]
fn the_store_never_holds_a_part_of_a_secret_while_agents_write_and_workers_die() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let secs = std::env::var("STRONGROOM_WATCH_SECS").unwrap_or("8".to_owned());
    execution(&home, "w");
    let file = script(&home, "writer.py", WRITER);
    let stop = AtomicBool::new(false);
    let read = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let store = home.home().join("events");
        let (stop, read, home) = (&stop, &read, &home);
        scope.spawn(move || {
            let view = home.dir.path().join("view");
            let mut agents: Vec<_> =
                [("1", "TestRunner"), ("2", "TestRunner"), ("3", "CodeAnalyzer")]
                    .map(|(number, agent)| {
                        let mut command = home.command(&[
                            "run",
                            "--no-redact",
                            "--execution",
                            "w",
                            "--agent",
                            agent,
                        ]);
                        command.arg("--secrets-path").arg(&view).args(["--", "python3"]);
                        command.arg(&file).args([number, &secs, "OPENAI_API_KEY"]);
                        if agent == "TestRunner" {
                            command.arg("DATABASE_URL");
                        }
                        command.spawn().unwrap()
                    })
                    .into();
            // Launched before the first death.
            wait_until("all are launched", LIMIT, || {
                home.records("agent_started").len() == agents.len()
            });
            std::thread::park_timeout(Duration::from_secs(1));
            let killer = scope.spawn(|| kill_workers(home, 7, stop));
            let good = agents.iter_mut().all(|agent| agent.wait().unwrap().success());
            stop.store(true, Ordering::Release);
            println!("{} workers killed", killer.join().unwrap());
            assert!(good, "an agent failed");
        });
        scope.spawn(move || {
            let count = read_all(&store, stop);
            read.store(count, Ordering::Release);
        });
    });
    println!("{} files read", read.into_inner());
    home.ok(&["execution", "end", "w"]);
    // The last close of a file without a name comes after its process' end.
    let staging = home.home().join("events/.strongroom");
    wait_until("no file without a name is left", LIMIT, || {
        fs::read_dir(&staging).unwrap().count() == 0
    });
}

#[test]
fn an_orchestrator_is_told_of_files_as_their_writers_made_them() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "i");
    let store = home.home().join("events/deploy-pipeline/prod/i");
    let mut agent = member(&home, "i", "TestRunner", &[]);
    assert_eq!(agent.ask("os.listdir(d + '/events')"), "[]");
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let wanted = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE;
    inotify.add_watch(&store, wanted).unwrap();
    let steps = [
        "keep('f', os.open(d + '/events/a.tmp', os.O_CREAT | os.O_RDWR)) > 0",
        "os.write(held['f'], b'key: ' + read(path).encode() + b'.') > 0",
        "os.close(held['f'])",
        "os.rename(d + '/events/a.tmp', d + '/events/a.json')",
        "keep('f', os.open(d + '/events/b', os.O_CREAT | os.O_RDWR)) > 0",
        "os.pwrite(held['f'], b'later', 5)",
        "os.pwrite(held['f'], b'first', 0)",
        "os.close(held['f'])",
    ];
    for step in steps {
        let answer = agent.ask(step);
        assert!(!answer.contains("errno"), "{step}: {answer}");
    }
    let mut seen = Vec::new();
    let deadline = Instant::now() + LIMIT;
    let is_told = |seen: &[(String, AddWatchFlags)], name: &str, flag| {
        seen.iter().any(|(n, f)| n == name && f.contains(flag))
    };
    loop {
        for event in inotify.read_events().unwrap_or_default() {
            let name = event.name.unwrap().into_string().unwrap();
            if name == "a.json" && event.mask.contains(AddWatchFlags::IN_MOVED_TO) {
                // Whole at the moment of its name.
                let stored = fs::read_to_string(store.join(&name)).unwrap();
                assert_eq!(stored, "key: [REDACTED:OPENAI_API_KEY].");
            }
            seen.push((name, event.mask));
        }
        let is_done = is_told(&seen, "a.json", AddWatchFlags::IN_MOVED_TO)
            && (is_told(&seen, "b", AddWatchFlags::IN_CLOSE_WRITE)
                || is_told(&seen, "b", AddWatchFlags::IN_MOVED_TO))
            && fs::read(store.join("b")).unwrap() == b"firstlater";
        if is_done {
            break;
        }
        assert!(Instant::now() < deadline, "{seen:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert!(is_told(&seen, "a.tmp", AddWatchFlags::IN_CREATE), "{seen:?}");
    // Nothing but the writer's own names appears.
    let names: std::collections::BTreeSet<_> = seen.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["a.json", "a.tmp", "b"].into(), "{seen:?}");
    drop(agent);
    home.ok(&["execution", "end", "i"]);
}
