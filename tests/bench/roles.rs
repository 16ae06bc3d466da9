//! What this program does when it is not the bench but what is measured.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use strongroom::broker::memory::MemoryBroker;
use strongroom::execution::state::State;
use strongroom::fs::tree::Tree;
use strongroom::fuse::adapter::{Adapter, Alarms};
use strongroom::fuse::session;
use strongroom::sys::{device, shm::Region};

use super::home::VALUE;

const ROUNDS: usize = 20_000;
const WARM_UP: usize = 1_000;
const FRESH_ROUNDS: usize = 500;
const READERS: usize = 4;

/// Prints sorted nanoseconds as p50 and p99.
fn print(mut nanos: Vec<u64>) {
    nanos.sort_unstable();
    println!("{} {}", nanos[nanos.len() / 2], nanos[nanos.len() * 99 / 100]);
}

/// Nanoseconds of one open, read and close.
fn once(path: &Path) -> std::io::Result<u64> {
    let mut buffer = [0; 256];
    let start = Instant::now();
    let mut file = std::fs::File::open(path)?;
    let read = file.read(&mut buffer)?;
    drop(file);
    let nanos = start.elapsed().as_nanos();
    assert_eq!(read, VALUE.len());
    Ok(u64::try_from(nanos).unwrap())
}

/// One process that reads again and again.
pub(crate) fn read(path: &Path) {
    for _ in 0..WARM_UP {
        once(path).unwrap();
    }
    print((0..ROUNDS).map(|_| once(path).unwrap()).collect());
}

/// A process for each read.
pub(crate) fn fresh(path: &Path) {
    let exe = std::env::current_exe().unwrap();
    let one = || -> u64 {
        let output = Command::new(&exe)
            .args([super::ROLE, "one"])
            .arg(path)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    for _ in 0..20 {
        one();
    }
    print((0..FRESH_ROUNDS).map(|_| one()).collect());
}

/// The process of [`fresh`].
pub(crate) fn one(path: &Path) {
    // What the first open of any file costs the process itself.
    let _own = std::fs::read("/proc/self/comm").unwrap();
    println!("{}", once(path).unwrap());
}

/// Readers that go on until `stop` exists, and say by a file beside it that they run; prints reads, failures and the longest stall.
pub(crate) fn load(path: &Path, stop: &Path) {
    let (reads, failed, longest) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                once(path).unwrap();
                std::fs::write(stop.with_extension("ready"), b"").unwrap();
                while !stop.exists() {
                    for _ in 0..64 {
                        let start = Instant::now();
                        if once(path).is_err() {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap();
                        longest.fetch_max(nanos, Ordering::Relaxed);
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    println!("{} {} {}", reads.into_inner(), failed.into_inner(), longest.into_inner());
}

/// A bare server on the descriptors of the device and of a runtime state.
pub(crate) fn serve(dev: i32, memory: i32) {
    let dev = device::inherited(dev).unwrap();
    let memory = device::inherited(memory).unwrap();
    let state = State::adopt(Region::map(memory).unwrap()).unwrap();
    let broker = MemoryBroker::new().with_agent(0, [("KEY", VALUE)]);
    let adapter = Adapter::new(Arc::new(Tree::new(broker)), Arc::new(Alarms::default()));
    let (session, _) =
        session::take_over(adapter, &state, std::os::fd::AsFd::as_fd(&dev), 4, true).unwrap();
    session.run().unwrap();
}
