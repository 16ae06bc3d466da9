//! A live mount is taken over by the next server: real kernel, real kill -9, no failed request.
//!
//! The servers are children of this test, run from the test binary itself; the test plays the keeper.

mod common;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{LIMIT, may_mount, wait_until};
use strongroom::broker::memory::MemoryBroker;
use strongroom::execution::state::State;
use strongroom::fs::tree::Tree;
use strongroom::fuse::adapter::{Adapter, Alarms};
use strongroom::fuse::session;
use strongroom::sys::mount::{self, OwnMount};
use strongroom::sys::{device, shm::Region};

const SERVER: &str = "STRONGROOM_TEST_SERVER";
const VALUE: &[u8] = b"sk-test-0123456789abcdef";

/// Not a test of its own: what the children of the others run.
#[test]
fn server() {
    let Ok(numbers) = std::env::var(SERVER) else { return };
    let mut numbers = numbers.split(',').map(|n| n.parse::<i32>().unwrap());
    let dev = device::inherited(numbers.next().unwrap()).unwrap();
    let memory = device::inherited(numbers.next().unwrap()).unwrap();
    let state = State::adopt(Region::map(memory).unwrap()).unwrap();
    state.next_generation();
    let broker = MemoryBroker::new().with_agent(0, [("KEY", VALUE)]);
    let adapter = Adapter::new(Arc::new(Tree::new(broker)), Arc::new(Alarms::default()));
    let (session, _) = session::take_over(adapter, &state, dev.as_fd(), 4, true).unwrap();
    session.run().unwrap();
}

struct Keeper {
    device: std::os::fd::OwnedFd,
    own: OwnMount,
    state: State,
    dir: tempfile::TempDir,
}

impl Keeper {
    fn mount(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (device, own) = mount::mount_fuse(dir.path(), name).unwrap();
        let state = State::create().unwrap();
        let init = device::read_init(device.as_fd(), LIMIT).unwrap();
        state.reset_init(&init).unwrap();
        Self { device, own, state, dir }
    }

    fn serve(&self) -> Child {
        let pass = |fd: BorrowedFd<'_>| {
            let fd = fd.try_clone_to_owned().unwrap();
            mount::inheritable(fd.as_fd()).unwrap();
            fd
        };
        let device = pass(self.device.as_fd());
        let state = pass(self.state.region().as_fd());
        let numbers = format!("{},{}", device.as_raw_fd(), state.as_raw_fd());
        Command::new(std::env::current_exe().unwrap())
            .args(["server", "--exact", "--nocapture", "--test-threads=1"])
            .env(SERVER, numbers)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        mount::unmount(&self.own).unwrap();
    }
}

fn read_key(dir: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(dir.join("KEY"))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn kill_loop(keeper: &Keeper, kills: u32) -> (u64, Duration) {
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let longest_nanos = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let readers = [(); 4].map(|()| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let bytes = read_key(keeper.dir.path()).expect("no request may fail");
                    assert_eq!(bytes, VALUE);
                    let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap();
                    longest_nanos.fetch_max(nanos, Ordering::Relaxed);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        for round in 0..kills {
            let mut child = keeper.serve();
            // Varied, from the server's first instruction to some milliseconds of service.
            std::thread::park_timeout(Duration::from_micros(u64::from(round % 40) * 500));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let mut last = keeper.serve();
        let at_end = reads.load(Ordering::Relaxed);
        wait_until("the last server serves", LIMIT, || {
            reads.load(Ordering::Relaxed) >= at_end + 100
        });
        stop.store(true, Ordering::Relaxed);
        // Readers leave by themselves, served by the last one.
        for reader in readers {
            reader.join().unwrap();
        }
        last.kill().unwrap();
        last.wait().unwrap();
    });
    (reads.into_inner(), Duration::from_nanos(longest_nanos.into_inner()))
}

#[test]
fn no_read_fails_while_servers_are_killed_under_load() {
    if !may_mount() {
        return;
    }
    let keeper = Keeper::mount("strongroom-takeover");
    let (reads, longest) = kill_loop(&keeper, 60);
    println!("{reads} reads over 60 kills, longest {longest:?}");
    assert!(reads > 0);
}
