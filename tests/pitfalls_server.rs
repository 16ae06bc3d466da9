//! The adapter and the session over a broker that is slow or broken on purpose, on a real mount.
//!
//! The server is a child of this test, run from the test binary itself: a process that looks into
//! its own mount could wait for itself.

mod common;

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use common::{LIMIT, may_mount, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strongroom::broker::memory::MemoryBroker;
use strongroom::broker::{Broker, FileFact, Node, Range, Refusal, Request, Standing, Writer};
use strongroom::execution::state::State;
use strongroom::fs::tree::Tree;
use strongroom::fuse::adapter::{Adapter, Alarms, MAX_WRITE_BYTES};
use strongroom::fuse::session;
use strongroom::identity::Caller;
use strongroom::identity::attestor::PrincipalNumber;
use strongroom::sys::mount::{self, OwnMount};
use strongroom::sys::{device, shm::Region};

const SERVER: &str = "STRONGROOM_TEST_SERVER";
/// How long the broker takes for the name `SLOW`.
const SLOW: Duration = Duration::from_millis(800);
const THREADS: usize = 4;

/// Whether the name `HELD` is let go.
static GO: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// Files for everybody; the name `SLOW` takes its time, `HELD` until it is let go, `PANIC` panics.
struct Trouble(MemoryBroker);

impl Broker for Trouble {
    fn standing(&self, caller: Caller) -> Result<Standing, Refusal> {
        self.0.standing(caller)
    }
    fn directory(&self, token: &str) -> Option<u64> {
        self.0.directory(token)
    }
    fn inodes(&self, principal: PrincipalNumber) -> Option<(u64, u64)> {
        self.0.inodes(principal)
    }
    fn files(&self, principal: PrincipalNumber) -> Vec<FileFact> {
        self.0.files(principal)
    }
    fn file(&self, principal: PrincipalNumber, name: &str, caller: Caller) -> Option<FileFact> {
        match name {
            "PANIC" => panic!("asked for it"),
            "SLOW" => {
                println!("slow begins");
                std::thread::sleep(SLOW);
            }
            "HELD" => {
                println!("held begins");
                drop(GO.1.wait_while(GO.0.lock().unwrap(), |go| !*go).unwrap());
            }
            _ => {}
        }
        self.0.file(principal, name, caller)
    }
    fn node(&self, inode: u64) -> Option<Node> {
        self.0.node(inode)
    }
    fn writer(&self, principal: PrincipalNumber) -> Option<Arc<Writer>> {
        self.0.writer(principal)
    }
    fn owner(&self, principal: PrincipalNumber) -> Option<(u32, u32)> {
        self.0.owner(principal)
    }
    fn open(
        &self,
        principal: PrincipalNumber,
        inode: u64,
        caller: Caller,
        request: Request,
    ) -> Result<u64, Refusal> {
        self.0.open(principal, inode, caller, request)
    }
    fn read(
        &self,
        handle: u64,
        caller: Caller,
        range: Range,
        request: Request,
        reply: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        self.0.read(handle, caller, range, request, reply)
    }
    fn release(&self, handle: u64) {
        self.0.release(handle);
    }
    fn identity(&self, principal: PrincipalNumber) -> Vec<u8> {
        self.0.identity(principal)
    }
    fn refused(
        &self,
        principal: Option<PrincipalNumber>,
        inode: u64,
        caller: Caller,
        why: Refusal,
    ) {
        self.0.refused(principal, inode, caller, why);
    }
}

fn trouble() -> Trouble {
    let files: [(&str, &[u8]); 4] =
        [("FAST", b"fast"), ("HELD", b"held"), ("PANIC", b"panic"), ("SLOW", b"slow")];
    Trouble(MemoryBroker::new().with_agent(0, files))
}

/// Not a test of its own: what the child of the others runs. It tells its panics when asked, and lets
/// `HELD` go when it is told.
#[test]
fn server() {
    let Ok(numbers) = std::env::var(SERVER) else { return };
    let mut numbers = numbers.split(',').map(|n| n.parse::<i32>().unwrap());
    let dev = device::inherited(numbers.next().unwrap()).unwrap();
    let memory = device::inherited(numbers.next().unwrap()).unwrap();
    let state = State::adopt(Region::map(memory).unwrap()).unwrap();
    state.next_generation();
    let alarms = Arc::new(Alarms::default());
    let adapter = Adapter::new(Arc::new(Tree::new(trouble())), alarms.clone());
    let (session, _) = session::take_over(adapter, &state, dev.as_fd(), THREADS, true).unwrap();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            if line.is_ok_and(|line| line == "go") {
                *GO.0.lock().unwrap() = true;
                GO.1.notify_all();
            } else {
                println!("panics {}", alarms.panics.load(Ordering::Relaxed));
            }
        }
    });
    session.run().unwrap();
}

struct Served {
    own: OwnMount,
    child: Child,
    said: Mutex<Lines<BufReader<ChildStdout>>>,
    dir: tempfile::TempDir,
}

impl Served {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (device, own) = mount::mount_fuse(dir.path(), name).unwrap();
        let state = State::create().unwrap();
        let init = device::read_init(device.as_fd(), LIMIT).unwrap();
        state.reset_init(&init).unwrap();
        let pass = |fd: BorrowedFd<'_>| {
            let fd = fd.try_clone_to_owned().unwrap();
            mount::inheritable(fd.as_fd()).unwrap();
            fd
        };
        let (device, memory) = (pass(device.as_fd()), pass(state.region().as_fd()));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["server", "--exact", "--nocapture", "--test-threads=1"])
            .env(SERVER, format!("{},{}", device.as_raw_fd(), memory.as_raw_fd()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let said = Mutex::new(BufReader::new(child.stdout.take().unwrap()).lines());
        let served = Self { own, child, said, dir };
        served.read("FAST").unwrap();
        served
    }

    fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.dir.path().join(name))
    }

    fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().count()
    }

    /// The rest of the server's next line that starts so.
    fn said(&self, start: &str) -> String {
        let mut said = self.said.lock().unwrap();
        // The test harness of the child may have begun the line.
        said.by_ref()
            .map(Result::unwrap)
            .find_map(|line| line.split_once(start).map(|(_, rest)| rest.to_owned()))
            .unwrap()
    }

    fn let_go(&self) {
        self.child.stdin.as_ref().unwrap().write_all(b"go\n").unwrap();
    }

    fn panics(&mut self) -> u64 {
        self.child.stdin.as_mut().unwrap().write_all(b"panics?\n").unwrap();
        self.said("panics ").parse().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        mount::unmount(&self.own).unwrap();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

// Without parallel directory operations one slow name blocks every other in its directory.
#[test]
fn a_slow_name_does_not_delay_another_in_its_directory_nor_the_listing() {
    if !may_mount() {
        return;
    }
    let served = Served::new("strongroom-slow");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| served.read("HELD"));
        served.said("held begins");
        let others = scope.spawn(|| {
            let fast = served.read("FAST");
            let absent = served.read("ABSENT");
            let listed = std::fs::read_dir(served.dir.path()).unwrap().count();
            tell.send(()).unwrap();
            (fast, absent, listed)
        });
        let in_time = told.recv_timeout(LIMIT);
        served.let_go();
        assert!(in_time.is_ok(), "they waited for the slow one");
        let (fast, absent, listed) = others.join().unwrap();
        assert_eq!(fast.unwrap(), b"fast");
        assert!(absent.is_err());
        assert_eq!(listed, 5);
        assert_eq!(held.join().unwrap().unwrap(), b"held");
    });
}

// fuser's thread is gone for good when a panic leaves a handler.
#[test]
fn a_handler_that_panics_answers_eio_raises_an_alarm_and_costs_no_thread() {
    if !may_mount() {
        return;
    }
    let mut served = Served::new("strongroom-panic");
    // Beside those that serve: two of the program, and the one that reads its input.
    wait_until("all of its threads", LIMIT, || served.threads() >= THREADS + 3);
    let threads = served.threads();
    let attempts = THREADS as u64 * 5;
    for _ in 0..attempts {
        let error = served.read("PANIC").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    assert_eq!(served.threads(), threads);
    assert_eq!(served.panics(), attempts);
    assert_eq!(served.read("FAST").unwrap(), b"fast");
}

#[test]
fn a_killed_reader_is_gone_once_its_request_is_answered() {
    if !may_mount() {
        return;
    }
    let served = Served::new("strongroom-killed");
    let mut reader = Command::new("cat")
        .arg(served.dir.path().join("HELD"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    served.said("held begins");
    kill(Pid::from_raw(reader.id().cast_signed()), Signal::SIGKILL).unwrap();
    served.let_go();
    wait_until("it is gone", LIMIT, || reader.try_wait().unwrap().is_some());
    assert!(!reader.wait().unwrap().success());
    assert_eq!(served.read("FAST").unwrap(), b"fast");
}

/// A FUSE_INIT request of a kernel that offers everything, `include/uapi/linux/fuse.h`.
fn init_offering_everything() -> Vec<u8> {
    let mut bytes = Vec::new();
    // fuse_in_header: len, opcode 26, unique, nodeid, uid, gid, pid, lengths.
    for word in [104_u32, 26, 1, 0, 0, 0, 0, 0, 0, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    // fuse_init_in: major, minor, max_readahead, flags, flags2, unused.
    for word in [7_u32, 45, 128 << 10, u32::MAX, u32::MAX].into_iter().chain([0; 11]) {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

// Asynchronous direct I/O would let callers go while they are judged; caches would serve strangers.
#[test]
fn the_mount_asks_for_parallel_directories_and_for_nothing_that_changes_who_is_judged() {
    let (handshake, stand_in) = device::Handshake::begin(&init_offering_everything()).unwrap();
    let adapter = Adapter::new(Arc::new(Tree::new(trouble())), Arc::new(Alarms::default()));
    let session = fuser::Session::from_fd(
        adapter,
        stand_in,
        fuser::SessionACL::All,
        fuser::Config::default(),
    )
    .unwrap();
    let reply = handshake.reply().unwrap();
    drop(session);
    let word = |at: usize| u32::from_ne_bytes(reply[at..at + 4].try_into().unwrap());
    assert_eq!(word(4), 0, "the INIT was refused");
    // fuse_init_out after the header of 16 bytes: major, minor, max_readahead, flags, two short
    // numbers, max_write, time_gran, two short numbers, flags2.
    let (flags, max_write, flags2) = (word(16 + 12), word(16 + 20), word(16 + 32));
    const ASYNC_READ: u32 = 1 << 0;
    const BIG_WRITES: u32 = 1 << 5;
    const PARALLEL_DIROPS: u32 = 1 << 18;
    const MAX_PAGES: u32 = 1 << 22;
    const NO_EXPORT_SUPPORT: u32 = 1 << (38 - 32);
    const INIT_EXT: u32 = 1 << 30;
    assert_eq!(flags & PARALLEL_DIROPS, PARALLEL_DIROPS);
    let harmless = ASYNC_READ | BIG_WRITES | PARALLEL_DIROPS | MAX_PAGES | INIT_EXT;
    assert_eq!(flags & !harmless, 0, "{flags:#x}");
    assert_eq!(flags2, NO_EXPORT_SUPPORT, "{flags2:#x}");
    assert_eq!(max_write, MAX_WRITE_BYTES);
}

// What is decided belongs to the program that asked: nobody takes its place before the answer.
#[test]
fn an_exec_beside_a_request_waits_for_its_answer() {
    if !may_mount() {
        return;
    }
    let served = Served::new("strongroom-exec");
    let script = r#"
import os, sys, threading, time
started = time.monotonic()
threading.Thread(target=lambda: open(sys.argv[1], "rb").read()).start()
sys.stdin.readline()
os.execv("/usr/bin/python3", ["python3", "-c",
         f"import time; print('after', time.monotonic() - {started}, flush=True)"])
"#;
    let mut program = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .arg(served.dir.path().join("SLOW"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    served.said("slow begins");
    program.stdin.take().unwrap().write_all(b"exec\n").unwrap();
    let output = program.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let after: f64 = text.trim().trim_start_matches("after ").parse().expect("the new program ran");
    assert!(after >= SLOW.as_secs_f64(), "{after}");
    assert_eq!(served.read("FAST").unwrap(), b"fast");
}

#[test]
fn a_frozen_group_with_a_request_in_work_freezes_when_it_is_answered() {
    if !may_mount() {
        return;
    }
    let served = Served::new("strongroom-frozen");
    let path = strongroom::sys::cgroup::hierarchy_root()
        .unwrap()
        .join(format!("sr-frozen-{}", std::process::id()));
    let group = strongroom::sys::cgroup::Cgroup::create(&path).unwrap();
    if !path.join("cgroup.freeze").exists() {
        common::cannot_run("this kernel has no freezer of the v2 hierarchy");
        return;
    }
    let held = served.dir.path().join("HELD");
    let mut reader = Command::new("sh")
        .args(["-c", "read go; cat \"$0\"; exec sleep 600"])
        .arg(&held)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    group.enter(reader.id()).unwrap();
    reader.stdin.take().unwrap().write_all(b"go\n").unwrap();
    served.said("held begins");
    std::fs::write(path.join("cgroup.freeze"), "1").unwrap();
    let frozen =
        || std::fs::read_to_string(path.join("cgroup.events")).unwrap().contains("frozen 1");
    assert!(!frozen(), "a task inside a request cannot freeze");
    served.let_go();
    wait_until("it is frozen", LIMIT, frozen);
    // Others are served, and the frozen one can be ended.
    assert_eq!(served.read("FAST").unwrap(), b"fast");
    group.kill().unwrap();
    reader.wait().unwrap();
    assert!(group.empty_within(LIMIT));
    group.remove().unwrap();
}
