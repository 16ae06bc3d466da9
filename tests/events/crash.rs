//! Workers that die at any moment while agents write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Home, may_mount};
use crate::hand::{Random, home};
use crate::oracle::{play, seeds};

/// Kills each worker at a random age until it is told to stop; how many.
pub(crate) fn kill_workers(home: &Home, seed: u64, stop: &AtomicBool) -> u32 {
    let keeper = std::fs::read_to_string(home.home().join("run/keeper.pid")).unwrap();
    let children = format!("/proc/{0}/task/{0}/children", keeper.trim());
    let mut random = Random::new(seed);
    let (mut last, mut killed) = (String::new(), 0);
    while !stop.load(Ordering::Acquire) {
        let now = std::fs::read_to_string(&children).unwrap_or_default();
        if now.trim().is_empty() || now == last {
            std::thread::park_timeout(Duration::from_micros(200));
            continue;
        }
        // From its first instructions to some tenths of a second of service.
        let age = if random.below(4) == 0 { random.below(1_000) } else { random.below(200_000) };
        std::thread::park_timeout(Duration::from_micros(age as u64));
        let pid = now.split_whitespace().next().unwrap().parse().unwrap();
        if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            killed += 1;
        }
        last = now;
    }
    killed
}

#[test]
fn nothing_is_lost_or_doubled_while_workers_are_killed() {
    if !may_mount() {
        return;
    }
    let home = home();
    for seed in seeds(15).map(|seed| seed + 1000) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Its agents are launched before the first death: a launch is no request of the mount.
            let mut killer = None;
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                play(&home, seed, &mut || {
                    if killer.is_none() {
                        killer = Some(scope.spawn(|| kill_workers(&home, seed, &stop)));
                    }
                })
            }));
            stop.store(true, Ordering::Release);
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        });
    }
    assert!(home.json(&["status"])["worker_restarts"].as_u64().unwrap() > 0);
    assert_eq!(home.json(&["audit", "verify"])["ok"], true);
}
