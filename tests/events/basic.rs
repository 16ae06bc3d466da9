//! What a user sees of the events directory, one thing after the other.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{DB_PROD, Home, LIMIT, OPENAI, may_mount, text, wait_until};
pub(crate) use crate::common::{in_execution as agent, printed as good};
use crate::tools::script;

/// Starts an execution and gives the directory that the orchestrator watches.
pub(crate) fn execution(home: &Home, id: &str) -> PathBuf {
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", id]);
    home.home().join("events/deploy-pipeline/prod").join(id)
}

fn stored(path: PathBuf) -> String {
    String::from_utf8_lossy(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .into_owned()
}

#[test]
fn what_agents_write_lands_without_their_secrets() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "one");
    let told = good(&agent(
        &home,
        "one",
        r#"
        set -e
        cd "$STRONGROOM_EVENTS_DIR"
        echo "key $(cat ../OPENAI_API_KEY) used" > log
        cat ../DATABASE_URL | base64 -w0 >> log
        echo >> log
        mkdir sub && mv log sub/log2 && ls sub
        cat sub/log2
        echo '{"url": "'"$(cat ../DATABASE_URL)"'", "n": 1}' > sub/a.json
        rm -f gone; echo x > gone; rm gone
        printf '\037\213\010 looks like gzip' > sub/log.gz
        printf 'plain\n' > plain; printf 'more\n' >> plain
    "#,
    ));
    assert!(told.contains("log2"), "{told}");
    let log = stored(store.join("sub/log2"));
    assert!(log.starts_with("key [REDACTED:OPENAI_API_KEY] used\n"), "{log}");
    assert!(log.contains("[REDACTED:DATABASE_URL]"), "{log}");
    let json: serde_json::Value = serde_json::from_str(&stored(store.join("sub/a.json"))).unwrap();
    assert_eq!(json["url"], "[REDACTED:DATABASE_URL]");
    assert_eq!(stored(store.join("plain")), "plain\nmore\n");
    assert!(!store.join("gone").exists());
    for secret in [OPENAI, DB_PROD, "canary-hunter2"] {
        assert!(!told.contains(secret), "read back in clear: {told}");
        assert!(!log.contains(secret));
    }
    let records = home.records("event_redacted");
    assert!(records.iter().any(|r| r["secret_key"] == "OPENAI_API_KEY"), "{records:?}");
    home.ok(&["execution", "end", "one"]);
    wait_until("the record of what could not be looked into", LIMIT, || {
        let records = home.records("event_unchecked");
        assert!(records.iter().all(|r| r["reason"] == "gzip: sub/log.gz"), "{records:?}");
        !records.is_empty()
    });
    assert_eq!(home.json(&["audit", "verify"])["ok"], true);
}

#[test]
fn a_finished_line_is_in_the_store_while_the_file_is_open() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "live");
    let file = store.join("log");
    let mut child = home
        .command(&["run", "--execution", "live", "--agent", "TestRunner", "--secrets-path"])
        .arg(home.dir.path().join("view"))
        .args([
            "--",
            "sh",
            "-c",
            r#"
            exec 3> "$STRONGROOM_EVENTS_DIR/log"
            echo first line >&3
            printf 'half: %.20s' "$(cat "$CREDENTIALS_DIRECTORY/OPENAI_API_KEY")" >&3
            read go
            cut -c21- "$CREDENTIALS_DIRECTORY/OPENAI_API_KEY" >&3
        "#,
        ])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the first line", LIMIT, || {
        fs::read_to_string(&file).is_ok_and(|t| t.starts_with("first line\nhalf: "))
    });
    std::thread::park_timeout(Duration::from_millis(300));
    assert_eq!(stored(file.clone()), "first line\nhalf: ", "held back, whatever time goes by");
    // The worker's death changes nothing.
    let worker = nix::unistd::Pid::from_raw(home.worker_pid());
    nix::sys::signal::kill(worker, nix::sys::signal::SIGKILL).unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(stored(file), "first line\nhalf: [REDACTED:OPENAI_API_KEY]\n");
    home.ok(&["execution", "end", "live"]);
}

/// The kernel appends where it believes that the file ends: it is told so while the file becomes
/// complete, which is after its close was answered.
#[test]
fn who_appends_right_after_a_close_does_so_at_the_end() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "a");
    // The ends of the first pieces could go on as a token, and are held back.
    let appender = r#"
import os
for n in range(300):
    for text in [b"build-2024-", b"0815-ab", b"cd\n"]:
        name = os.environ["STRONGROOM_EVENTS_DIR"] + "/f%d" % n
        f = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(f, text)
        os.close(f)
"#;
    let appender = script(&home, "appender.py", appender);
    let mut command = home.command(&["run", "--no-redact", "--execution", "a"]);
    command.args(["--agent", "TestRunner", "--secrets-path"]).arg(home.dir.path().join("view"));
    good(&command.args(["--", "/usr/bin/python3"]).arg(appender).output().unwrap());
    home.ok(&["execution", "end", "a"]);
    for n in 0..300 {
        assert_eq!(stored(store.join(format!("f{n}"))), "build-2024-0815-abcd\n", "of file {n}");
    }
}

/// The kernel may believe an earlier length of a file that several processes make, rename and append to.
#[test]
fn lines_of_several_processes_are_neither_lost_nor_doubled_while_their_file_is_renamed() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "l");
    let writers = r#"
import os, random
d = os.environ["STRONGROOM_EVENTS_DIR"]
def write(me):
    rnd, kept = random.Random(me), None
    for n in range(2500):
        line = ("%d %d " % (me, n) + "x" * rnd.randint(0, 30) + "\n").encode()
        f = kept or os.open(d + "/log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        assert os.write(f, line) == len(line)
        kept = f if rnd.random() < .4 else os.close(f)
        if rnd.random() < .02:
            try:
                os.rename(d + "/log", d + "/log.%d.%d" % (me, n))
            except FileNotFoundError:
                pass
    os._exit(0)
children = [os.fork() or write(me) for me in range(4)]
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
# Elsewhere than at the end although the descriptor appends (RWF_NOAPPEND, Linux 6.9).
f = os.open(d + "/over", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
os.write(f, b"0123456789")
try:
    os.pwritev(f, [b"abc"], 4, 0x20)
except OSError:
    os.pwrite(os.open(d + "/over", os.O_WRONLY), b"abc", 4)
"#;
    let writers = script(&home, "writers.py", writers);
    let mut command = home.command(&["run", "--no-redact", "--execution", "l"]);
    command.args(["--agent", "TestRunner", "--secrets-path"]).arg(home.dir.path().join("view"));
    good(&command.args(["--", "/usr/bin/python3"]).arg(writers).output().unwrap());
    home.ok(&["execution", "end", "l"]);
    let mut lines = Vec::new();
    for file in fs::read_dir(&store).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("log") {
            lines.extend(stored(path).lines().map(|line| {
                let mut words = line.split(' ').map(|word| word.parse::<u32>());
                (words.next().unwrap().unwrap(), words.next().unwrap().unwrap())
            }));
        }
    }
    lines.sort_unstable();
    let all: Vec<_> = (0..4).flat_map(|me| (0..2500).map(move |n| (me, n))).collect();
    assert!(lines == all, "{} lines of {}", lines.len(), all.len());
    assert_eq!(stored(store.join("over")), "0123abc789");
}

#[test]
fn names_links_and_devices_with_or_as_a_way_out_are_refused() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "out");
    let script = r#"
import errno, os, mmap
d = os.environ["STRONGROOM_EVENTS_DIR"]
key = open(os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY").read()
def refused(number, do):
    try:
        do()
    except OSError as e:
        assert e.errno == number, (errno.errorcode[e.errno], errno.errorcode[number])
        return
    raise SystemExit("not refused: " + errno.errorcode[number])
os.chdir(d)
open("plain", "w").write("x")
refused(errno.EPERM, lambda: open("k-" + key, "w"))
refused(errno.EPERM, lambda: os.mkdir(key))
refused(errno.EPERM, lambda: os.rename("plain", key))
refused(errno.EPERM, lambda: os.symlink("/etc/passwd", "link"))
refused(errno.EPERM, lambda: os.link("plain", "hard"))
refused(errno.EPERM, lambda: os.mkfifo("fifo"))
refused(errno.EROFS, lambda: os.rename("plain", "../plain"))
refused(errno.EROFS, lambda: os.rename("../OPENAI_API_KEY", "stolen"))
refused(errno.EOPNOTSUPP, lambda: os.setxattr("plain", "user.x", b"1"))
f = os.open("plain", os.O_RDWR)
refused(errno.ENODEV, lambda: mmap.mmap(f, 1, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
os.write(f, (key + "\n").encode())
back = os.pread(f, 4096, 0).decode()
assert back == "*" * len(key) + "\n", back
assert os.fstat(f).st_size == len(key) + 1
assert os.lseek(f, 0, os.SEEK_CUR) == len(key) + 1
before = os.fstat(f).st_ino
os.close(f)
print("fine")
"#;
    let file = home.dir.path().join("script.py");
    fs::write(&file, script).unwrap();
    let told = good(&agent(&home, "out", &format!("python3 {}", file.display())));
    assert_eq!(told.trim(), "fine");
    assert_eq!(stored(store.join("plain")), "[REDACTED:OPENAI_API_KEY]\n");
    assert!(home.records("event_name_refused").len() >= 3);
    home.ok(&["execution", "end", "out"]);
}

#[test]
fn the_folder_of_an_execution_is_its_own_and_all_its_agents() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "a");
    execution(&home, "b");
    good(&agent(&home, "a", "echo of a > $STRONGROOM_EVENTS_DIR/f"));
    let told = good(&agent(&home, "b", "ls -a $STRONGROOM_EVENTS_DIR"));
    assert_eq!(told.split_whitespace().collect::<Vec<_>>(), [".", ".."]);
    let view = home.dir.path().join("view");
    let other = home.run(&[
        "run",
        "--execution",
        "a",
        "--agent",
        "CodeAnalyzer",
        "--secrets-path",
        view.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "cd $STRONGROOM_EVENTS_DIR && cat f && echo more >> f && cat f",
    ]);
    assert_eq!(good(&other), "of a\nof a\nmore\n");
    // Through the shared root, by a link that answers each caller.
    let mount = home.mount();
    let root = good(&agent(&home, "a", &format!("cat {}/events/f", mount.display())));
    assert_eq!(root, "of a\nmore\n");
    // A stranger finds neither.
    assert!(!mount.join("events").exists());
    for id in ["a", "b"] {
        home.ok(&["execution", "end", id]);
    }
}

#[test]
fn quotas_and_a_locked_vault_have_their_own_errors() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    let config = home.home().join("strongroom.toml");
    let own = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{own}\n[events]\nmax_file = 1000\nmax_total = 5000\n")).unwrap();
    home.ok(&["reload"]);
    home.fill();
    execution(&home, "q");
    let script = r#"
import errno, os
os.chdir(os.environ["STRONGROOM_EVENTS_DIR"])
def number(do):
    try:
        do()
    except OSError as e:
        return errno.errorcode[e.errno]
    return "-"
def write(name, size):
    f = os.open(name, os.O_CREAT | os.O_WRONLY)
    try:
        os.write(f, b"x" * size)
    finally:
        os.close(f)
print(number(lambda: write("f", 2000)))
print(number(lambda: os.truncate("f", 2000)))
print(number(lambda: [write("g%d" % i, 900) for i in range(9)]))
"#;
    let file = home.dir.path().join("script.py");
    fs::write(&file, script).unwrap();
    let told = good(&agent(&home, "q", &format!("python3 {}", file.display())));
    assert_eq!(told.split_whitespace().collect::<Vec<_>>(), ["EDQUOT"; 3]);
    let locked = home
        .command(&[
            "run",
            "--no-redact",
            "--execution",
            "q",
            "--agent",
            "TestRunner",
            "--secrets-path",
        ])
        .arg(home.dir.path().join("view"))
        .args(["--", "sh", "-c", "read go; echo x > $STRONGROOM_EVENTS_DIR/new"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the agent", LIMIT, || home.records("agent_started").len() >= 2);
    home.ok(&["lock"]);
    let mut locked = locked;
    std::io::Write::write_all(&mut locked.stdin.take().unwrap(), b"go\n").unwrap();
    let output = locked.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("Required key not available"), "{}", text(&output));
}

/// What would change or copy bytes that the redactor never saw.
#[test]
fn holes_clones_and_copies_within_the_kernel_are_refused() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "holes");
    let script = r#"
import ctypes, errno, fcntl, os, struct
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(os.environ["STRONGROOM_EVENTS_DIR"])
text = b"some text of a file " * 500
f = os.open("f", os.O_CREAT | os.O_RDWR)
g = os.open("g", os.O_CREAT | os.O_RDWR)
os.write(f, text)
os.write(g, text)
def name(do):
    try:
        return str(do())
    except OSError as e:
        return errno.errorcode[e.errno]
def allocate(mode, at, length):
    if libc.fallocate(f, mode, ctypes.c_long(at), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "")
    return 0
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
print("punch", name(lambda: allocate(PUNCH | KEEP, 0, 4096)))
print("collapse", name(lambda: allocate(COLLAPSE, 0, 4096)))
print("zero", name(lambda: allocate(ZERO, 0, 4096)))
print("insert", name(lambda: allocate(INSERT, 0, 4096)))
print("unshare", name(lambda: allocate(UNSHARE, 0, 4096)))
print("keep", name(lambda: allocate(KEEP, 0, 99999)))
print("clone", name(lambda: fcntl.ioctl(g, FICLONE, f)))
print("clone_range", name(lambda: fcntl.ioctl(g, FICLONERANGE, struct.pack("qQQQ", f, 0, 4096, 0))))
print("copy_file_range", name(lambda: os.copy_file_range(f, g, 100, 0, 0)))
print("sendfile", name(lambda: os.sendfile(g, f, 0, 100)))
print("hole", name(lambda: os.lseek(f, 0, os.SEEK_HOLE)))
print("same", os.pread(f, 99999, 0) == text and os.pread(g, 99999, 0) == text)
print("size", os.fstat(f).st_size)
"#;
    let file = home.dir.path().join("holes.py");
    fs::write(&file, script).unwrap();
    let told = good(&agent(&home, "holes", &format!("python3 {}", file.display())));
    let expected = "punch ENOTSUP\ncollapse ENOTSUP\nzero ENOTSUP\ninsert ENOTSUP\n\
        unshare ENOTSUP\nkeep 0\nclone ENOTSUP\nclone_range ENOTSUP\n\
        copy_file_range EINVAL\nsendfile EINVAL\nhole 10000\nsame True\nsize 10000\n";
    assert_eq!(told, expected);
    home.ok(&["execution", "end", "holes"]);
    assert_eq!(stored(store.join("f")), "some text of a file ".repeat(500));
}
