//! Whoever may write to the store from outside cannot lead the daemon out of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::{Home, may_mount};
use crate::tools::{execution, member, script};

/// Writes, renames, reads and removes below a directory that is swapped all the time.
const WRITER: &str = r#"
import os, sys, time
d = os.environ["STRONGROOM_EVENTS_DIR"] + "/sub"
end = time.monotonic() + float(sys.argv[1])
done = failed = 0
def attempt(do):
    global done, failed
    try:
        do()
        done += 1
    except OSError:
        failed += 1
def write(name, flags):
    f = os.open(d + "/" + name, flags | os.O_CREAT)
    try:
        os.write(f, b"from the agent\n")
        os.pwrite(f, b"elsewhere", 40)
        os.fsync(f)
    finally:
        os.close(f)
while time.monotonic() < end:
    attempt(lambda: write("precious", os.O_WRONLY | os.O_TRUNC))
    attempt(lambda: write("new", os.O_RDWR | os.O_APPEND))
    attempt(lambda: os.truncate(d + "/precious", 3))
    attempt(lambda: os.chmod(d + "/precious", 0o777))
    attempt(lambda: os.utime(d + "/precious", (1, 1)))
    attempt(lambda: os.rename(d + "/new", d + "/newer"))
    attempt(lambda: os.mkdir(d + "/dir"))
    attempt(lambda: os.rmdir(d + "/dir"))
    attempt(lambda: os.unlink(d + "/newer"))
    attempt(lambda: os.unlink(d + "/precious"))
    for name in ("precious", "only-outside"):
        try:
            text = open(d + "/" + name).read()
            assert "outside" not in text, text
        except OSError:
            pass
    try:
        assert "only-outside" not in os.listdir(d)
    except OSError:
        pass
print(done, failed)
"#;

#[test]
fn a_component_that_is_swapped_for_a_link_all_the_time_leads_nowhere() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "s");
    let store = home.home().join("events/deploy-pipeline/prod/s");
    fs::create_dir(store.join("sub")).unwrap();
    let outside = home.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "outside, and older than all of it\n").unwrap();
    fs::write(outside.join("only-outside"), "outside as well\n").unwrap();
    let before = fs::metadata(outside.join("precious")).unwrap();
    let writer = script(&home, "swap-writer.py", WRITER);
    let stop = AtomicBool::new(false);
    let swaps = AtomicU64::new(0);
    let told = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (real, link) = (store.join("sub"), store.join("link"));
            let aside = store.join("aside");
            while !stop.load(Ordering::Acquire) {
                symlink(&outside, &link).unwrap();
                // The directory, then for a moment nothing, then the link; and back.
                fs::rename(&real, &aside).unwrap();
                // An agent may make a name where there is none for a moment.
                let swapped = fs::rename(&link, &real).is_ok();
                std::thread::park_timeout(std::time::Duration::from_micros(300));
                if swapped {
                    fs::remove_file(&real).unwrap();
                } else {
                    fs::remove_file(&link).unwrap();
                }
                fs::rename(&aside, &real).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(std::time::Duration::from_micros(300));
            }
        });
        let view = home.dir.path().join("view");
        let mut command = home.command(&["run", "--no-redact", "--execution", "s"]);
        command.args(["--agent", "TestRunner", "--secrets-path"]).arg(&view);
        let output = command.args(["--", "python3"]).arg(&writer).arg("4").output();
        stop.store(true, Ordering::Release);
        crate::tools::good(&output.unwrap())
    });
    let counts: Vec<u64> = told.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    println!("{} swaps; {} steps went well, {} failed", swaps.into_inner(), counts[0], counts[1]);
    assert!(counts[0] > 20 && counts[1] > 20, "both were met: {told}");
    let mut left: Vec<_> =
        fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["only-outside", "precious"]);
    assert_eq!(
        fs::read_to_string(outside.join("precious")).unwrap(),
        "outside, and older than all of it\n"
    );
    let after = fs::metadata(outside.join("precious")).unwrap();
    assert_eq!(after.permissions(), before.permissions());
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    home.ok(&["execution", "end", "s"]);
}

#[test]
fn a_hard_link_that_was_planted_in_the_store_is_neither_written_nor_changed() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "h");
    let store = home.home().join("events/deploy-pipeline/prod/h");
    let outside = home.dir.path().join("precious");
    fs::write(&outside, "outside\n").unwrap();
    fs::hard_link(&outside, store.join("planted")).unwrap();
    nix::unistd::mkfifo(&store.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(&outside, store.join("link")).unwrap();
    let before = fs::metadata(&outside).unwrap();
    let mut agent = member(&home, "h", "TestRunner", &[]);
    for step in [
        "os.open(d + '/events/planted', os.O_WRONLY)",
        "os.open(d + '/events/planted', os.O_WRONLY | os.O_TRUNC)",
        "os.truncate(d + '/events/planted', 0)",
        "read(d + '/events/planted')",
        "os.chmod(d + '/events/planted', 0o777)",
        "os.utime(d + '/events/planted', (1, 1))",
    ] {
        let answer = agent.ask(step);
        assert_eq!(answer, "errno EACCES", "{step}");
    }
    // What is no file is not there at all.
    for name in ["fifo", "link"] {
        assert_eq!(agent.ask(&format!("os.stat(d + '/events/{name}')")), "errno ENOENT", "{name}");
    }
    assert_eq!(agent.ask("sorted(os.listdir(d + '/events'))"), "['planted']");
    let after = fs::metadata(&outside).unwrap();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "outside\n");
    assert_eq!(after.permissions(), before.permissions());
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    // Its name in the store may go; the file stays.
    assert_eq!(agent.ask("os.unlink(d + '/events/planted')"), "None");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "outside\n");
    drop(agent);
    home.ok(&["execution", "end", "h"]);
}
