//! Whole-mount figures with their baseline in the same run, as root:
//! `cargo bench --bench mount [-- ROW...]`, rows: read fresh scale peers kill
//! run events revoke promote start.
//!
//! Each row prints what was measured, its ratio to the baseline, and whether the design's aim is met;
//! none fails by time. Rows that are ratios run on one CPU with all servers (the only stable placement
//! on a small virtual machine); rows whose aim is a duration run on all.

mod events;
mod home;
mod peers;
mod revoke;
mod roles;

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use strongroom::execution::state::State;
use strongroom::sys::{device, mount};

use home::{Home, NOBODY};

/// The first argument of this program when it is what is measured.
const ROLE: &str = "role";
/// Repetitions of a row; the median of their ratios counts.
const TURNS: usize = 3;
const MANY_SECRETS: usize = 100_000;
const MANY_EXECUTIONS: usize = 10_000;
const MANY_AGENTS: usize = 1_000;
const ROWS: [(&str, fn()); 10] = [
    ("read", read),
    ("fresh", fresh),
    ("peers", peers),
    ("kill", kill),
    ("run", run),
    ("events", events::events),
    ("revoke", revoke::revoke),
    ("promote", revoke::promote),
    ("start", start),
    ("scale", scale),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).filter(|a| *a != "--bench").collect();
    match words[..] {
        [ROLE, "read", path] => return roles::read(Path::new(path)),
        [ROLE, "fresh", path] => return roles::fresh(Path::new(path)),
        [ROLE, "one", path] => return roles::one(Path::new(path)),
        [ROLE, "load", path, stop] => return roles::load(Path::new(path), Path::new(stop)),
        [ROLE, role @ ("stream" | "append"), path] => return events::write(role, Path::new(path)),
        [ROLE, "sink", dev, memory, level, store] => {
            let (dev, memory) = (dev.parse().unwrap(), memory.parse().unwrap());
            return events::sink(dev, memory, level, Path::new(store));
        }
        [ROLE, "serve", dev, memory] => {
            return roles::serve(dev.parse().unwrap(), memory.parse().unwrap());
        }
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT RUN: needs root");
        return;
    }
    for (name, row) in ROWS {
        if words.is_empty() || words.contains(&name) {
            row();
        }
    }
}

/// p50 and p99 in microseconds.
#[derive(Clone, Copy)]
struct Figures {
    p50: f64,
    p99: f64,
}

impl Figures {
    fn parse(text: &str) -> Self {
        let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>().unwrap() / 1000.0);
        Self { p50: numbers.next().unwrap(), p99: numbers.next().unwrap() }
    }

    fn of(mut micros: Vec<f64>) -> Self {
        micros.sort_by(f64::total_cmp);
        Self { p50: micros[micros.len() / 2], p99: micros[micros.len() * 99 / 100] }
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

/// Measures both sides in turns and prints them; the aim is a ratio that neither percentile exceeds.
fn compare(
    what: &str,
    aim: f64,
    (base_name, base): (&str, &dyn Fn() -> Figures),
    ours: &dyn Fn() -> Figures,
) {
    let mut ratios = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (base, ours) = (base(), ours());
        println!(
            "{what}: {base_name} p50 {:.1} p99 {:.1} us, strongroom p50 {:.1} p99 {:.1} us",
            base.p50, base.p99, ours.p50, ours.p99
        );
        ratios.0.push(ours.p50 / base.p50);
        ratios.1.push(ours.p99 / base.p99);
    }
    let (p50, p99) = (median(ratios.0), median(ratios.1));
    println!(
        "{what}: ratio of p50 {p50:.2} ({}), of p99 {p99:.2} ({}), aim <= {aim}",
        met(p50 <= aim),
        met(p99 <= aim)
    );
}

/// This process, and all that it starts, on these CPUs.
fn place(cpus: &str) {
    let own = std::process::id().to_string();
    let status = Command::new("taskset").args(["-pc", cpus, &own]).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|s| s.success()), "taskset (util-linux) is needed");
}

fn on_one_cpu() {
    place("0");
}

fn on_all_cpus() {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    place(online.trim());
}

/// Runs a role of this program against a bare server that checks and records nothing.
fn bare(role: &str) -> Figures {
    beside_server("serve", &[], |mounted| on_path(role, &mounted.join("KEY")))
}

/// Measures on the mount of a server that is a role of this program; it gets the descriptors of the
/// device and of a runtime state, then `more`.
fn beside_server<T>(server: &str, more: &[&str], measure: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let (device, own) = mount::mount_fuse(dir.path(), "strongroom-bench").unwrap();
    let state = State::create().unwrap();
    let init = device::read_init(device.as_fd(), Duration::from_secs(5)).unwrap();
    state.reset_init(&init).unwrap();
    mount::inheritable(device.as_fd()).unwrap();
    mount::inheritable(state.region().as_fd()).unwrap();
    let fds = [device.as_raw_fd(), state.region().as_fd().as_raw_fd()].map(|fd| fd.to_string());
    let exe = std::env::current_exe().unwrap();
    let mut server = Command::new(&exe).args([ROLE, server]).args(&fds).args(more).spawn().unwrap();
    let measured = measure(dir.path());
    mount::unmount(&own).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    measured
}

/// Runs a role of this program on a file of any filesystem.
fn on_path(role: &str, path: &Path) -> Figures {
    let exe = std::env::current_exe().unwrap();
    let output = Command::new(exe).args([ROLE, role]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Figures::parse(&String::from_utf8(output.stdout).unwrap())
}

fn read() {
    on_one_cpu();
    let home = Home::new();
    let ours = || Figures::parse(&home.agent("read", &[]));
    compare("open+read+close", 1.3, ("bare fuser", &|| bare("read")), &ours);
}

fn fresh() {
    on_one_cpu();
    let home = Home::new();
    let ours = || Figures::parse(&home.agent("fresh", &[]));
    compare("the same by fresh processes", 1.6, ("bare fuser", &|| bare("fresh")), &ours);
}

fn peers() {
    on_one_cpu();
    let home = Home::new();
    for (name, mounted) in [
        ("gocryptfs", peers::Peer::gocryptfs as fn() -> Option<peers::Peer>),
        ("bindfs", peers::Peer::bindfs),
    ] {
        let Some(peer) = mounted() else {
            eprintln!("NOT RUN: {name} is not installed (Debian package {name})");
            continue;
        };
        let mut ratios = Vec::new();
        for _ in 0..TURNS {
            let theirs = on_path("read", &peer.file());
            let ours = Figures::parse(&home.agent("read", &[]));
            println!(
                "against {name}: theirs p50 {:.1} p99 {:.1} us, strongroom p50 {:.1} p99 {:.1} us",
                theirs.p50, theirs.p99, ours.p50, ours.p99
            );
            ratios.push(theirs.p50 / ours.p50);
        }
        let ratio = median(ratios);
        println!("against {name}: {ratio:.2} x as fast, aim >= 1.5 ({})", met(ratio >= 1.5));
    }
}

/// Readers on all CPUs while the worker is killed; without kills first, for the baseline.
fn kill() {
    let kills: u32 =
        std::env::var("STRONGROOM_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(100);
    on_all_cpus();
    let home = Home::new();
    for secrets in [10, 1_000] {
        home.fill_up_to(secrets);
        for kills in [0, kills] {
            let stop = home.path("stop");
            let ready = stop.with_extension("ready");
            let (reads, failed, longest) = std::thread::scope(|scope| {
                let readers = scope.spawn(|| home.agent("load", &[stop.to_str().unwrap()]));
                let deadline = Instant::now() + Duration::from_secs(10);
                while !ready.exists() {
                    assert!(Instant::now() < deadline, "no reader runs");
                    pause(Duration::from_millis(5));
                }
                pause(Duration::from_millis(300));
                for kill in 0..kills {
                    kill_worker(&home, Duration::from_millis(u64::from(kill % 8) * 10));
                }
                pause(Duration::from_millis(300));
                std::fs::write(&stop, b"").unwrap();
                let told = readers.join().unwrap();
                let mut numbers = told.split_whitespace().map(|n| n.parse::<u64>().unwrap());
                (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap())
            });
            std::fs::remove_file(&stop).unwrap();
            std::fs::remove_file(&ready).unwrap();
            let millis = longest as f64 / 1e6;
            let verdict = match kills {
                0 => "baseline",
                _ => met(millis < 100.0 && failed == 0),
            };
            println!(
                "kill -9 under load, {secrets} secrets, {kills} kills: {reads} reads, {failed} \
                 failed, longest stall {millis:.1} ms, aim < 100 and none failed ({verdict})"
            );
        }
    }
}

/// Waits this long, whoever unparks this thread meanwhile, as the end of an earlier scope does.
fn pause(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

/// Kills the worker and waits until its successor exists, and `after` that for the next kill.
fn kill_worker(home: &Home, after: Duration) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let wait = |old: Option<u32>| loop {
        assert!(Instant::now() < deadline, "no worker");
        match home.worker() {
            Some(worker) if Some(worker) != old => return worker,
            _ => std::thread::yield_now(),
        }
    };
    let worker = wait(None);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(worker).unwrap());
    // It may have been killed by itself in this moment.
    let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    wait(Some(worker));
    pause(after);
}

/// Milliseconds of a command, median and p99 of `rounds`, in microseconds.
fn times(rounds: usize, mut command: impl FnMut() -> Command) -> Figures {
    let one = |mut command: Command| {
        let start = Instant::now();
        let output = command.output().unwrap();
        let micros = start.elapsed().as_secs_f64() * 1e6;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        micros
    };
    for _ in 0..5 {
        one(command());
    }
    Figures::of((0..rounds).map(|_| one(command())).collect())
}

fn run() {
    const LAUNCHES: usize = 100;
    on_all_cpus();
    let home = Home::new();
    let exe = env!("CARGO_BIN_EXE_strongroom");
    let (uid, gid) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
    let nobody = ["setpriv", uid.as_str(), gid.as_str(), "--clear-groups", "--"];
    let view = home.path("view");
    let launch = home.run_args(&view, &["true"]);
    for (how, prefix, aim) in
        [("into the cgroup by clone3", &[][..], 10.0), ("moved by the daemon", &nobody[..], 30.0)]
    {
        let command = |words: &[&str]| home.command(words[0], &words[1..]);
        let base = times(LAUNCHES, || command(&[prefix, &["true"]].concat()));
        let ours = times(LAUNCHES, || command(&[prefix, &[exe], &launch].concat()));
        let more = (ours.p50 - base.p50) / 1000.0;
        println!(
            "run -- true, {how}: true p50 {:.2} p99 {:.2} ms, run p50 {:.2} p99 {:.2} ms, {more:.2} \
             ms more, aim < {aim} ({})",
            base.p50 / 1e3,
            base.p99 / 1e3,
            ours.p50 / 1e3,
            ours.p99 / 1e3,
            met(more < aim)
        );
    }
}

fn start() {
    on_all_cpus();
    let home = Home::new();
    for secrets in [10, MANY_SECRETS] {
        let start = Instant::now();
        home.fill_up_to(secrets);
        let filled = start.elapsed().as_secs_f64();
        println!("import: {secrets} secrets in all after {filled:.2} s");
        let seconds = median((0..TURNS).map(|_| restart(&home)).collect());
        println!(
            "start to mounted and unlocked, {secrets} secrets, key file: {seconds:.3} s, aim < 1 ({})",
            met(seconds < 1.0)
        );
        memory(&home, secrets);
    }
}

fn restart(home: &Home) -> f64 {
    home.run(&["down"], b"");
    let start = Instant::now();
    home.run(&["up"], b"");
    let seconds = start.elapsed().as_secs_f64();
    let health = home.run(&["status", "--json"], b"");
    assert!(health.contains("unlocked") || health.contains("\"ready\""), "{health}");
    seconds
}

/// Resident memory of worker and keeper in MB; the runtime state is mapped by both.
fn memory(home: &Home, secrets: usize) {
    let worker = home.worker().unwrap();
    let of = |pid: u32, field: &str| -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() * 1024.0 / 1e6
    };
    let (worker_all, keeper_all) = (of(worker, "VmRSS:"), of(home.keeper(), "VmRSS:"));
    let all = worker_all + keeper_all;
    println!(
        "memory, {secrets} secrets: worker {worker_all:.0} MB (anonymous {:.0}, shared {:.0}), \
         keeper {keeper_all:.0} MB, aim < 200 in all ({})",
        of(worker, "RssAnon:"),
        of(worker, "RssShmem:"),
        met(all < 200.0)
    );
}

fn scale() {
    on_all_cpus();
    let small = Home::new();
    let big = Home::new();
    let begin = Instant::now();
    big.fill_up_to(MANY_SECRETS);
    let filled = begin.elapsed();
    big.populate(MANY_EXECUTIONS, MANY_AGENTS);
    println!(
        "filled: {MANY_SECRETS} secrets in {:.1} s, {MANY_EXECUTIONS} executions and {MANY_AGENTS} \
         agents in {:.1} s",
        filled.as_secs_f64(),
        (begin.elapsed() - filled).as_secs_f64()
    );
    memory(&big, MANY_SECRETS);
    for home in [&small, &big] {
        // Started where they are measured.
        for pid in home.worker().into_iter().chain([home.keeper()]) {
            let pid = pid.to_string();
            let placed = Command::new("taskset").args(["-apc", "0", &pid]).output().unwrap();
            assert!(placed.status.success());
        }
    }
    on_one_cpu();
    compare(
        "open+read+close with 100,000 secrets, 10,000 executions, 1,000 agents",
        1.1,
        ("with 1 and 1", &|| Figures::parse(&small.agent("read", &[]))),
        &|| Figures::parse(&big.agent("read", &[])),
    );
}
