//! Much of it: another program's own check of what it wrote (fio), long streams, many small appends.
#![forbid(unsafe_code)]

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::basic::{agent, execution, good};
use super::common::{Home, may_mount};

/// fio's checks are of its own making: it writes blocks with checksums and reads them back through the
/// mount. What is excluded, and why, stands in the manual's chapter on events.
#[test]
fn fio_reads_back_what_it_wrote_in_order_and_at_random() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "fio");
    let common = "--directory=\"$STRONGROOM_EVENTS_DIR\" --verify=crc32c --do_verify=1 \
        --ioengine=psync --fallocate=none --thread --verify_fatal=1";
    for job in [
        "--name=order --rw=write --bs=128k --size=16m --end_fsync=1",
        "--name=random --rw=randwrite --bs=4k --size=4m",
        "--name=mixed --numjobs=4 --rw=randrw --bsrange=512-16k --size=1m",
        "--name=synced --rw=randwrite --bs=4k --size=512k --fsync=16",
        "--name=direct --rw=write --bs=4k --size=512k --direct=1",
    ] {
        let script = format!("cd {} && fio {common} {job}", home.dir.path().display());
        let told = good(&agent(&home, "fio", &script));
        assert!(told.contains("err= 0"), "{told}");
    }
    let size = |name: &str| fs::metadata(store.join(name)).unwrap().len();
    assert_eq!((size("order.0.0"), size("random.0.0")), (16 << 20, 4 << 20));
    // Nothing in it is a secret: what is stored passes the same check, read by the orchestrator.
    let again = std::process::Command::new("fio")
        .arg(format!("--directory={}", store.display()))
        .args(["--name=order", "--rw=read", "--bs=128k", "--size=16m", "--verify=crc32c"])
        .args(["--ioengine=psync", "--thread", "--verify_fatal=1"])
        .current_dir(home.dir.path())
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", super::common::text(&again));
    home.ok(&["execution", "end", "fio"]);
}

/// Megabytes of the long stream; more of them where somebody asks for it, as `2300`.
fn stream_megabytes() -> u64 {
    std::env::var("STRONGROOM_STREAM_MB").map_or(96, |number| number.parse().unwrap())
}

/// The most that processes have while something is done, added up.
fn most_resident_kib(pids: &[i32], work: impl FnOnce()) -> u64 {
    let (most, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                most.fetch_max(pids.iter().map(|pid| resident_kib(*pid)).sum(), Ordering::AcqRel);
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Release);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    most.into_inner()
}

/// Memory of its own; the runtime state, whose size is fixed, is the keeper's.
fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_long_stream_and_many_appends_cost_no_memory() {
    if !may_mount() {
        return;
    }
    let home = configured("max_file = 9000000000\nmax_total = 9000000000");
    let store = execution(&home, "long");
    good(&agent(&home, "long", "echo warm > $STRONGROOM_EVENTS_DIR/warm"));
    let keeper = fs::read_to_string(home.home().join("run/keeper.pid")).unwrap();
    let pids = [home.worker_pid(), keeper.trim().parse().unwrap()];
    let before: u64 = pids.iter().map(|pid| resident_kib(*pid)).sum();
    let bytes = stream_megabytes() * 1_000_000;
    let script = format!(
        "yes 'an ordinary line of a log that an agent writes' | head -c {bytes} \
         > $STRONGROOM_EVENTS_DIR/long
         i=0; while [ $i -lt 10000 ]; do echo \"line $i\"; i=$((i + 1)); done \
         >> $STRONGROOM_EVENTS_DIR/many"
    );
    let most = most_resident_kib(&pids, || drop(good(&agent(&home, "long", &script))));
    // Half of the shortest stream, and buffers of the requests in work.
    println!("{bytes} bytes: from {before} to at most {most} KiB");
    assert!(most < before + 48_000, "from {before} to {most} KiB");
    assert_eq!(fs::metadata(store.join("long")).unwrap().len(), bytes);
    assert_eq!(fs::read_to_string(store.join("many")).unwrap().lines().count(), 10_000);
    home.ok(&["execution", "end", "long"]);
}

/// A home whose configuration says this of events.
fn configured(settings: &str) -> Home {
    let home = Home::new();
    home.start();
    let config = home.home().join("strongroom.toml");
    let own = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{own}\n[events]\n{settings}\n")).unwrap();
    home.ok(&["reload"]);
    home.fill();
    home
}

#[test]
fn a_log_with_a_secret_in_each_line_goes_on_without_end() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "dense");
    good(&agent(&home, "dense", "echo warm > $STRONGROOM_EVENTS_DIR/warm"));
    let before = resident_kib(home.worker_pid());
    // Each range in memory would be some hundred bytes.
    let script = r#"
        key=$(cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY)
        exec 3<> $STRONGROOM_EVENTS_DIR/f
        yes "a line with $key" | head -n 200000 >&3
        printf X | dd of=/dev/fd/3 bs=1 seek=0 conv=notrunc status=none
        head -c 100 $STRONGROOM_EVENTS_DIR/f | head -n 2
    "#;
    let told = good(&agent(&home, "dense", script));
    let after = resident_kib(home.worker_pid());
    assert!(after < before + 40_000, "from {before} to {after} KiB");
    let hidden = "*".repeat(super::common::OPENAI.len());
    assert_eq!(told, format!("X line with {hidden}\na line with {hidden}\n"));
    // Complete when its agent has ended, however long that took.
    let stored = fs::read_to_string(store.join("f")).unwrap();
    let rest = stored.strip_prefix("X line with [REDACTED:OPENAI_API_KEY]\n").unwrap();
    assert!(rest == "a line with [REDACTED:OPENAI_API_KEY]\n".repeat(199_999));
    home.ok(&["execution", "end", "dense"]);
    let count: u64 =
        home.records("event_redacted").iter().filter_map(|r| r["count"].as_u64()).sum();
    assert_eq!(count, 200_000);
    let left = fs::read_dir(home.home().join("events/.strongroom")).unwrap().count();
    assert_eq!(left, 0, "what was kept beside it is gone");
}

/// Blocks of a text in any order, much more than is held at once.
#[test]
fn writes_in_any_order_are_applied_when_they_are_much_and_none_is_refused() {
    if !may_mount() {
        return;
    }
    let home = configured("max_held = 1000000");
    let store = execution(&home, "mixed");
    let before = resident_kib(home.worker_pid());
    let script = r#"
import os, random
key = open(os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY").read()
text = "".join("%d: %s, some more of the line\n" % (n, key if n % 7 == 0 else "nothing")
               for n in range(200000)).encode()
f = os.open(os.environ["STRONGROOM_EVENTS_DIR"] + "/f", os.O_CREAT | os.O_RDWR)
blocks = list(range(0, len(text), 4099))
random.Random(5).shuffle(blocks)
for at in blocks:
    assert os.pwrite(f, text[at:at + 4099], at) == len(text[at:at + 4099])
assert os.fstat(f).st_size == len(text)
mask = text.replace(key.encode(), b"*" * len(key))
for at in blocks[:50]:
    assert os.pread(f, 4099, at) == mask[at:at + 4099], at
print(len(text))
"#;
    let file = home.dir.path().join("mixed.py");
    fs::write(&file, script).unwrap();
    let told = good(&agent(&home, "mixed", &format!("python3 {}", file.display())));
    assert!(told.trim().parse::<u64>().unwrap() > 8_000_000, "{told}");
    let after = resident_kib(home.worker_pid());
    assert!(after < before + 48_000, "from {before} to {after} KiB");
    let expected: String = (0..200_000)
        .map(|n| {
            let what = if n % 7 == 0 { "[REDACTED:OPENAI_API_KEY]" } else { "nothing" };
            format!("{n}: {what}, some more of the line\n")
        })
        .collect();
    assert!(fs::read_to_string(store.join("f")).unwrap() == expected);
    home.ok(&["execution", "end", "mixed"]);
    let count: u64 =
        home.records("event_redacted").iter().filter_map(|r| r["count"].as_u64()).sum();
    assert_eq!(count, 200_000 / 7 + 1, "what was not written in order is on record as well");
}

#[test]
fn events_are_redacted_as_the_configuration_says_and_never_not_at_all() {
    if !may_mount() {
        return;
    }
    let home = configured("redact = \"values\"");
    let token = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";
    let random = "q7Kz0Xv9bT3mW5yR8uJ1nL4cF6hD2sGpA0eZxVbNqM7kJ5tY";
    let script = format!(
        "f=$STRONGROOM_EVENTS_DIR/f; cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY > $f; \
         echo ' {token} {random}' >> $f"
    );
    let expected = [
        ("values", format!("[REDACTED:OPENAI_API_KEY] {token} {random}\n")),
        ("formats", format!("[REDACTED:OPENAI_API_KEY] [REDACTED:github-token] {random}\n")),
        (
            "all",
            "[REDACTED:OPENAI_API_KEY] [REDACTED:github-token] [REDACTED:high-entropy]\n".into(),
        ),
    ];
    let config = home.home().join("strongroom.toml");
    let mut level = "values";
    for (next, expected) in expected {
        let own = fs::read_to_string(&config).unwrap();
        fs::write(&config, own.replace(&format!("\"{level}\""), &format!("\"{next}\""))).unwrap();
        home.ok(&["reload"]);
        level = next;
        let store = execution(&home, next);
        good(&agent(&home, next, &script));
        home.ok(&["execution", "end", next]);
        assert_eq!(fs::read_to_string(store.join("f")).unwrap(), expected, "{next}");
    }
    let own = fs::read_to_string(&config).unwrap();
    fs::write(&config, own.replace("\"all\"", "\"off\"")).unwrap();
    let refused = home.refused(&["config", "check"]);
    assert!(refused.contains("values") && refused.contains("all"), "{refused}");
    fs::write(&config, own.replace("redact = \"all\"", "max_held = 99000000")).unwrap();
    assert!(home.refused(&["config", "check"]).contains("max_held"));
    fs::write(&config, own).unwrap();
}

/// What the orchestrator asked of the look of stored files holds for each of them.
#[test]
fn stored_files_have_the_owner_the_group_and_the_mode_that_were_asked_for() {
    use std::os::unix::fs::MetadataExt;
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    let config = home.home().join("strongroom.toml");
    let own = fs::read_to_string(&config).unwrap();
    let look = "[events]\nowner = \"daemon\"\ngroup = \"nogroup\"\nmode = \"0640\"\n";
    fs::write(&config, format!("{own}\n{look}")).unwrap();
    home.ok(&["reload"]);
    home.fill();
    let store = execution(&home, "look");
    let script = "cd $STRONGROOM_EVENTS_DIR; mkdir d; echo x > d/f; \
        python3 -c 'import os; f = os.open(\"g\", os.O_CREAT | os.O_RDWR); \
        os.pwrite(f, b\"late\", 100); os.pwrite(f, b\"early\", 0)'";
    good(&agent(&home, "look", script));
    let daemon = nix::unistd::User::from_name("daemon").unwrap().unwrap().uid.as_raw();
    let nogroup = nix::unistd::Group::from_name("nogroup").unwrap().unwrap().gid.as_raw();
    for (path, mode) in [("d", 0o750), ("d/f", 0o640), ("g", 0o640)] {
        let found = fs::metadata(store.join(path)).unwrap();
        let look = (found.uid(), found.gid(), found.mode() & 0o777);
        assert_eq!(look, (daemon, nogroup, mode), "{path}");
    }
    home.ok(&["execution", "end", "look"]);
}
