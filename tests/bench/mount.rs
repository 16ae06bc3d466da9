//! Whole-mount figures with their baseline in the same run: `cargo bench --bench mount` (as root).
//!
//! Measures open + read + close of one secret by one process on one CPU, with all servers on that
//! CPU too (the only stable placement on a small virtual machine), first against a bare fuser server
//! that checks and records nothing, then against the daemon with records in `batch`. Prints the
//! ratio; it asserts nothing.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strongroom::broker::memory::MemoryBroker;
use strongroom::execution::state::State;
use strongroom::fs::tree::Tree;
use strongroom::fuse::adapter::{Adapter, Alarms};
use strongroom::fuse::session;
use strongroom::sys::{device, mount, shm::Region};

const SERVE: &str = "STRONGROOM_BENCH_SERVE";
const MEASURE: &str = "STRONGROOM_BENCH_MEASURE";
const ROUNDS: usize = 20_000;
const VALUE: &[u8] = b"sk-bench-0123456789abcdef0123456789abcdef";

fn main() {
    if let Ok(numbers) = std::env::var(SERVE) {
        return serve(&numbers);
    }
    if let Ok(path) = std::env::var(MEASURE) {
        return measure(Path::new(&path));
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT RUN: needs root");
        return;
    }
    pin();
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let bare = bare();
        let ours = daemon();
        println!(
            "open+read+close: bare p50 {:.1} p99 {:.1} us, strongroom p50 {:.1} p99 {:.1} us, ratio {:.2} {:.2}",
            bare.0,
            bare.1,
            ours.0,
            ours.1,
            ours.0 / bare.0,
            ours.1 / bare.1
        );
        ratios.push(ours.0 / bare.0);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio of p50: {:.2}", ratios[ratios.len() / 2]);
}

/// This process and all that it starts, on CPU 0.
fn pin() {
    let own = std::process::id().to_string();
    let status = Command::new("taskset").args(["-pc", "0", &own]).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|s| s.success()), "taskset (util-linux) is needed");
}

fn measure(path: &Path) {
    let mut nanos = Vec::with_capacity(ROUNDS);
    let mut buffer = [0; 256];
    for round in 0..ROUNDS + 1000 {
        let start = Instant::now();
        let mut file = std::fs::File::open(path).unwrap();
        let read = file.read(&mut buffer).unwrap();
        drop(file);
        if round >= 1000 {
            nanos.push(start.elapsed().as_nanos());
        }
        assert_eq!(read, VALUE.len());
    }
    nanos.sort_unstable();
    println!("{} {}", nanos[ROUNDS / 2], nanos[ROUNDS / 100 * 99]);
}

fn parse(text: &str) -> (f64, f64) {
    let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>().unwrap() / 1000.0);
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn serve(numbers: &str) {
    let mut numbers = numbers.split(',').map(|n| n.parse::<i32>().unwrap());
    let dev = device::inherited(numbers.next().unwrap()).unwrap();
    let memory = device::inherited(numbers.next().unwrap()).unwrap();
    let state = State::adopt(Region::map(memory).unwrap()).unwrap();
    let broker = MemoryBroker::new().with_agent(0, [("KEY", VALUE)]);
    let adapter = Adapter::new(Arc::new(Tree::new(broker)), Arc::new(Alarms::default()));
    let (session, _) = session::take_over(adapter, &state, dev.as_fd(), 4, true).unwrap();
    session.run().unwrap();
}

fn bare() -> (f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    let (device, own) = mount::mount_fuse(dir.path(), "strongroom-bench").unwrap();
    let state = State::create().unwrap();
    let init = device::read_init(device.as_fd(), Duration::from_secs(5)).unwrap();
    state.reset_init(&init).unwrap();
    mount::inheritable(device.as_fd()).unwrap();
    mount::inheritable(state.region().as_fd()).unwrap();
    let numbers = format!("{},{}", device.as_raw_fd(), state.region().as_fd().as_raw_fd());
    let exe = std::env::current_exe().unwrap();
    let mut server = Command::new(&exe).env(SERVE, numbers).spawn().unwrap();
    let output = Command::new(&exe).env(MEASURE, dir.path().join("KEY")).output().unwrap();
    mount::unmount(&own).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    parse(&String::from_utf8(output.stdout).unwrap())
}

fn daemon() -> (f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let key = dir.path().join("key");
    std::fs::write(&key, [7; 32]).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key, private).unwrap();
    let run = |args: &[&str], input: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(args)
            .env("STRONGROOM_HOME", &home)
            .env(MEASURE, "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["init", "--unlock", &format!("key-file:{}", key.display())], b"");
    run(&["up"], b"");
    run(&["secret", "set", "KEY"], VALUE);
    let exe = std::env::current_exe().unwrap();
    let view = dir.path().join("view");
    let script = format!("{MEASURE}=$CREDENTIALS_DIRECTORY/KEY exec {}", exe.display());
    let told = run(
        &[
            "run",
            "-s",
            "KEY",
            "--deliver",
            "files",
            "--secrets-path",
            view.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            &script,
        ],
        b"",
    );
    run(&["down"], b"");
    parse(&told)
}
