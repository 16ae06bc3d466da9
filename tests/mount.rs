//! The mount under hostile callers: passed descriptors, page cache, other uids, deaths of the worker.

mod common;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Home, LIMIT, OPENAI, may_mount, text, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A Python script as an agent.
fn python(home: &Home, agent: &str, script: &str) -> String {
    let file = home.dir.path().join("script.py");
    std::fs::write(&file, script).unwrap();
    text(&home.agent(agent, &format!("python3 {}", file.display())))
}

#[test]
fn nothing_enters_the_page_cache() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import mmap, os, signal, sys, ctypes
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
fd = os.open(path, os.O_RDONLY)
r, w = os.pipe()
for name, call in [("sendfile", lambda: os.sendfile(w, fd, 0, 10)),
                   ("splice", lambda: os.splice(fd, w, 10, offset_src=0))]:
    try:
        print(name, call())
    except OSError as e:
        print(name, e.errno)
try:
    m = mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ)
    print("shared mapped")
except OSError as e:
    print("shared", e.errno)
pid = os.fork()
if pid == 0:
    m = mmap.mmap(fd, 4, mmap.MAP_PRIVATE, mmap.PROT_READ)
    os._exit(m[0] & 1)
print("private", os.waitpid(pid, 0)[1] & 127)
print(len(os.pread(fd, 100, 0)))
"#;
    let told = python(&home, "CodeAnalyzer", script);
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines,
        [
            &format!("sendfile {}", libc::EINVAL),
            &format!("splice {}", libc::EINVAL),
            &format!("shared {}", libc::ENODEV),
            &format!("private {}", libc::SIGBUS),
            &OPENAI.len().to_string(),
        ],
        "{told}"
    );
}

#[test]
fn a_descriptor_in_other_hands_reads_nothing() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let socket = home.dir.path().join("pass.sock");
    // A stranger waits for a descriptor and tries it, and its /proc link.
    let receiver = format!(
        r#"
import os, socket
s = socket.socket(socket.AF_UNIX); s.bind("{0}"); os.chmod("{0}", 0o666); s.listen(1)
c, _ = s.accept()
_, fds, _, _ = socket.recv_fds(c, 1, 1)
for name, call in [("pread", lambda: os.pread(fds[0], 100, 0)),
                   ("reopen", lambda: os.read(os.open("/proc/self/fd/%d" % fds[0], os.O_RDONLY), 100))]:
    try:
        print(name, "read", len(call()))
    except OSError as e:
        print(name, e.errno)
c.send(b"x")
"#,
        socket.display()
    );
    let file = home.dir.path().join("receiver.py");
    std::fs::write(&file, receiver).unwrap();
    let stranger =
        Command::new("python3").arg(&file).stdout(std::process::Stdio::piped()).spawn().unwrap();
    wait_until("the stranger listens", LIMIT, || socket.exists());
    let sender = format!(
        r#"
import os, socket, time
fd = os.open(os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY", os.O_RDONLY)
s = socket.socket(socket.AF_UNIX)
for _ in range(100):
    try:
        s.connect("{}"); break
    except OSError:
        time.sleep(0.05)
socket.send_fds(s, [b"x"], [fd])
s.recv(1)
print(len(os.pread(fd, 100, 0)))
"#,
        socket.display()
    );
    let own = python(&home, "CodeAnalyzer", &sender);
    assert_eq!(own.trim(), OPENAI.len().to_string());
    let output = stranger.wait_with_output().unwrap();
    let told = text(&output);
    assert!(told.contains(&format!("pread {}", libc::EACCES)), "{told}");
    assert!(told.contains("reopen") && !told.contains("read 3"), "{told}");
    let denied = home.records("secret_denied");
    assert!(denied.iter().any(|r| r["reason"].as_str().unwrap().contains("another principal")));
}

#[test]
fn threads_and_daemonised_children_are_the_agent_and_another_uid_is_not() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import os, threading
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
def read():
    print("thread", len(open(path).read()), flush=True)
t = threading.Thread(target=read); t.start(); t.join()
r, w = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(w, b"orphan %d" % len(open(path).read()))
        os._exit(0)
    os._exit(0)
os.close(w)
print(os.read(r, 100).decode(), flush=True)
r, w = os.pipe()
if os.fork() == 0:
    os.setgid(12345); os.setuid(12345)
    try:
        os.write(w, b"other uid %d" % len(open(path).read()))
    except OSError as e:
        os.write(w, b"other uid errno %d" % e.errno)
    os._exit(0)
os.close(w)
print(os.read(r, 100).decode())
"#;
    let told = python(&home, "CodeAnalyzer", script);
    let len = OPENAI.len();
    assert_eq!(
        told.lines().collect::<Vec<_>>(),
        [
            format!("thread {len}"),
            format!("orphan {len}"),
            format!("other uid errno {}", libc::ENOENT)
        ]
    );
}

#[test]
fn an_agent_of_another_user_owns_its_files() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let view = home.dir.path().join("view");
    let output = home.run(&[
        "run",
        "--no-redact",
        "--chain",
        "deploy-pipeline",
        "--agent",
        "CodeAnalyzer",
        "--env",
        "prod",
        "--as",
        "nobody",
        "--secrets-path",
        view.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "id -un; stat -c '%U %a %s' $CREDENTIALS_DIRECTORY/OPENAI_API_KEY; \
         cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY",
    ]);
    assert_eq!(text(&output), format!("nobody\nnobody 400 {}\n{OPENAI}", OPENAI.len()));
}

#[test]
fn an_ended_execution_reads_nothing_through_what_it_still_holds() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", "r1"]);
    let view = home.dir.path().join("view");
    let ready = home.dir.path().join("ready");
    let told = home.dir.path().join("told");
    let script = format!(
        "trap '' TERM; exec 3<$CREDENTIALS_DIRECTORY/OPENAI_API_KEY; touch {}; sleep 0.3; \
         while cat <&3 >/dev/null 2>{}; do sleep 0.05; done",
        ready.display(),
        told.display()
    );
    let mut child = home
        .command(&[
            "run",
            "--no-redact",
            "--execution",
            "r1",
            "--agent",
            "CodeAnalyzer",
            "--secrets-path",
            view.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            &script,
        ])
        .spawn()
        .unwrap();
    wait_until("the agent holds its file", LIMIT, || ready.exists());
    home.ok(&["execution", "end", "r1"]);
    child.wait().unwrap();
    let message = std::fs::read_to_string(&told).unwrap_or_default();
    assert!(message.contains("Permission denied") || message.is_empty(), "{message}");
    let shown = home.json(&["execution", "show", "r1"]);
    assert_eq!(shown["state"], "ended");
    assert_eq!(shown["survivors"].as_array().unwrap().len(), 0);
}

/// Files of events that are written in blocks of 128 KiB, with values across them.
const WRITER: &str = r#"
import os, sys
name, stop, ready = sys.argv[1:]
key = open(os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY", "rb").read()
block = 128 << 10
text = bytearray()
while len(text) < 16 * block:
    text += b"line %07d of the log\n" % len(text)
    if len(text) % block < 500 or len(text) % 97 == 0:
        text += key + b"\n"
text = bytes(text[:16 * block - len(key)]) + key
shown = text.replace(key, b"*" * len(key))
path = os.environ["STRONGROOM_EVENTS_DIR"] + "/" + name
n = 0
while not os.path.exists(stop):
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC)
    for at in range(0, len(text), block):
        assert os.write(fd, text[at:at + block]) == block
    assert os.fstat(fd).st_size == len(text)
    back = b"".join(os.pread(fd, block, at) for at in range(0, len(text), block))
    assert back == shown, "read back otherwise"
    os.close(fd)
    if n == 0:
        open(ready + name, "w").close()
    n += 1
"#;

/// What [`WRITER`] leaves in the store.
fn written() -> Vec<u8> {
    let (block, key) = (128 << 10, OPENAI.as_bytes());
    let mut text = Vec::new();
    while text.len() < 16 * block {
        text.extend_from_slice(format!("line {:07} of the log\n", text.len()).as_bytes());
        if text.len() % block < 500 || text.len().is_multiple_of(97) {
            text.extend_from_slice(&[key, b"\n"].concat());
        }
    }
    text.truncate(16 * block - key.len());
    text.extend_from_slice(key);
    String::from_utf8(text).unwrap().replace(OPENAI, "[REDACTED:OPENAI_API_KEY]").into_bytes()
}

#[test]
fn no_read_or_write_fails_and_each_is_done_once_while_workers_are_killed() {
    if !may_mount() {
        return;
    }
    let kills = std::env::var("STRONGROOM_KILLS").ok().and_then(|k| k.parse().ok());
    kill_under_load(&Home::deployed(), kills.unwrap_or(60));
}

#[test]
fn no_read_or_write_fails_either_where_the_kernel_tells_less_of_a_process() {
    if !may_mount() {
        return;
    }
    let mut home = Home::new();
    home.env.push(("STRONGROOM_DISABLE".into(), "pidfd-info".into()));
    home.start();
    home.fill();
    kill_under_load(&home, 40);
}

/// Kills workers under eight readers and two writers; nothing may fail, and each thing is done once.
fn kill_under_load(home: &Home, kills: u32) {
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", "k"]);
    let stop = home.dir.path().join("stop");
    let ready = home.dir.path().join("ready.");
    let reader = format!(
        r#"
import os, sys
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
open("{}" + str(os.getpid()), "w").close()
n = 0
while not os.path.exists("{}"):
    fd = os.open(path, os.O_RDONLY)
    assert len(os.pread(fd, 100, 0)) == {}
    os.close(fd)
    n += 1
os.write(1, b"%d\n" % n)
"#,
        ready.display(),
        stop.display(),
        OPENAI.len()
    );
    let file = home.dir.path().join("reader.py");
    std::fs::write(&file, reader).unwrap();
    let writer = home.dir.path().join("writer.py");
    std::fs::write(&writer, WRITER).unwrap();
    let view = home.dir.path().join("view");
    let writers = format!(
        "for i in 1 2; do python3 {} w$i {} {} || exit 1 & p=\"$p $!\"; done",
        writer.display(),
        stop.display(),
        ready.display()
    );
    let script = format!(
        "{writers}; for i in 1 2 3 4 5 6 7 8; do python3 {} & p=\"$p $!\"; done; \
         for q in $p; do wait $q || bad=1; done; exit ${{bad:-0}}",
        file.display()
    );
    let child = home
        .command(&[
            "run",
            "--no-redact",
            "--execution",
            "k",
            "--agent",
            "CodeAnalyzer",
            "--secrets-path",
            view.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            &script,
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // A launch is no request of the mount: it is over before the first death.
    wait_until("eight readers and two writers", LIMIT, || {
        let entries = std::fs::read_dir(home.dir.path()).unwrap();
        let all = entries
            .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().starts_with("ready."));
        all.count() == 10
    });
    let keeper = std::fs::read_to_string(home.home().join("run/keeper.pid")).unwrap();
    let children = format!("/proc/{0}/task/{0}/children", keeper.trim());
    let mut killed = 0;
    let mut last = String::new();
    while killed < kills {
        let now = std::fs::read_to_string(&children).unwrap();
        if now.trim().is_empty() || now == last {
            std::thread::yield_now();
            continue;
        }
        if killed == kills / 2 {
            // A new worker in order, in the middle of it.
            home.ok(&["reload"]);
            killed += 1;
            continue;
        }
        // From its first instructions to some milliseconds of service.
        std::thread::park_timeout(Duration::from_micros(u64::from(killed % 30) * 700));
        let pid: i32 = now.trim().parse().unwrap();
        // It may just have ended for the reload.
        let _killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
        last = now;
        killed += 1;
    }
    std::fs::write(&stop, "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let counts: Vec<u64> = told.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(counts.len(), 8, "{}", text(&output));
    // Each writer read the secret once.
    let reads: u64 = counts.iter().sum::<u64>() + 2;
    home.ok(&["execution", "end", "k"]);
    for name in ["w1", "w2"] {
        let stored =
            std::fs::read(home.home().join("events/deploy-pipeline/prod/k").join(name)).unwrap();
        assert!(stored == written(), "{name} is not what was written");
    }
    let recorded = home.records("secret_accessed").len() as u64;
    println!("{reads} reads over {kills} kills");
    assert_eq!(recorded, reads);
    assert!(home.ok(&["audit", "verify"]).starts_with("ok: "));
    assert!(home.json(&["status"])["worker_restarts"].as_u64().unwrap() > 0);
}

#[test]
fn reload_and_a_kernel_without_newer_features_serve_as_well() {
    if !may_mount() {
        return;
    }
    let mut home = Home::new();
    home.env.push(("STRONGROOM_DISABLE".into(), "pidfd-info,resend".into()));
    home.start();
    home.fill();
    let read = |home: &Home| {
        text(&home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY"))
    };
    assert_eq!(read(&home), OPENAI);
    let before = home.worker_pid();
    home.ok(&["reload"]);
    assert_ne!(home.worker_pid(), before);
    assert_eq!(read(&home), OPENAI);
    let doctor = home.json(&["doctor"]);
    let survival =
        doctor["promises"].as_array().unwrap().iter().find(|p| p["number"] == 7).unwrap();
    assert_eq!(survival["holds"], "partial");
}

#[test]
fn down_leaves_no_mount_and_up_clears_a_dead_one_but_no_strangers() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mounted = || {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|l| l.contains(home.mount().to_str().unwrap())).count()
    };
    assert_eq!(mounted(), 1);
    home.kill_daemon();
    wait_until("the dead mount", LIMIT, || {
        std::fs::metadata(home.mount()).is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    home.ok(&["up"]);
    assert_eq!(mounted(), 1);
    home.ok(&["down"]);
    assert_eq!(mounted(), 0);
    // Somebody else's mount there is refused and stays.
    let mount =
        |args: &[&str]| assert!(Command::new(args[0]).args(&args[1..]).status().unwrap().success());
    let point = home.mount();
    mount(&["mount", "-t", "tmpfs", "stranger", point.to_str().unwrap()]);
    let message = home.refused(&["up"]);
    assert_eq!(mounted(), 1);
    mount(&["umount", point.to_str().unwrap()]);
    assert!(message.contains("tmpfs"), "{message}");
    std::fs::write(point.join("file"), "").unwrap();
    assert!(home.refused(&["up"]).contains("not empty"));
}

#[test]
fn a_plain_user_serves_through_fusermount3() {
    if !may_mount() {
        return;
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata("/dev/fuse").unwrap().permissions(),
    );
    // A namespace of its own with a device that everybody may open, as distributions have it.
    let home = Home::new();
    std::os::unix::fs::chown(home.dir.path(), Some(65534), Some(65534)).unwrap();
    let strongroom = env!("CARGO_BIN_EXE_strongroom");
    let script = format!(
        r#"set -e
mount -t tmpfs dev {dir}.dev
mknod -m 666 {dir}.dev/fuse c 10 229
mount --bind {dir}.dev/fuse /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '
set -e
export STRONGROOM_HOME={dir}/home HOME={dir}
head -c 32 /dev/urandom > {dir}/key; chmod 600 {dir}/key
{strongroom} init --unlock key-file:{dir}/key
{strongroom} up
printf %s {OPENAI} | {strongroom} secret set OPENAI_API_KEY
{strongroom} run --no-redact -s OPENAI_API_KEY -- sh -c "cat \$CREDENTIALS_DIRECTORY/OPENAI_API_KEY; echo; (sleep 0; cat \$CREDENTIALS_DIRECTORY/OPENAI_API_KEY); echo; echo \$CREDENTIALS_DIRECTORY"
cat {dir}/home/mnt/OPENAI_API_KEY && echo STRANGER READ IT
{strongroom} audit query --event secret_accessed | wc -l
{strongroom} drill revoke --json
{strongroom} down
'"#,
        dir = home.dir.path().display()
    );
    let script = script.replace("cat {dir}/home/mnt", "cat");
    let device_dir = format!("{}.dev", home.dir.path().display());
    std::fs::create_dir(&device_dir).unwrap();
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            &script.replace(
                " && echo STRANGER READ IT",
                " 2>/dev/null && echo STRANGER READ IT || true",
            ),
        ])
        .arg0("unshare")
        .output()
        .unwrap();
    std::fs::remove_dir(&device_dir).unwrap();
    let told = text(&output);
    assert!(output.status.success(), "mode of /dev/fuse {mode:o}: {told}");
    assert_eq!(told.matches(OPENAI).count(), 2, "{told}");
    assert!(!told.contains("STRANGER"), "{told}");
    assert!(told.contains("home/mnt/.agents/"), "{told}");
    assert!(told.contains("\"complete\": true"), "{told}");
    assert!(told.lines().any(|l| l.trim() == "2"), "{told}");
}

#[test]
fn readers_of_two_executions_never_share_bytes() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let wrong = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for agent in ["CodeAnalyzer", "TestRunner"] {
            let (home, wrong, reads) = (&home, &wrong, &reads);
            scope.spawn(move || {
                for _ in 0..10 {
                    let output =
                        home.agent(agent, "cat $CREDENTIALS_DIRECTORY/DATABASE_URL 2>/dev/null");
                    let got = text(&output);
                    let want = if agent == "TestRunner" { common::DB_PROD } else { "" };
                    wrong.fetch_or(got != want, Ordering::Relaxed);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(reads.into_inner(), 20);
    assert!(!wrong.into_inner());
}
