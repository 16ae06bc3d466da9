//! A delegated scope of systemd: where control groups of agents are made while systemd manages the
//! hierarchy, since it wants to be the only one who makes groups elsewhere.
//!
//! Invariant: a scope that is used holds a process of ours, or agents; systemd removes an empty one.
//! Danger: a manager that does not answer; the start waits for it only so long. See systemd.scope(5),
//! systemd-run(1), <https://systemd.io/CGROUP_DELEGATION/>.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::cgroup::{Cgroup, hierarchy_root};
use super::pidfd::PidFd;
use super::{proc, process};

/// Below the scope: the groups of agents. The holder stays beside them.
const AGENTS: &str = "agents";

/// The group for agents in scope `unit` of the system's manager, which is asked for it where it is not
/// there yet.
///
/// # Errors
/// `NotFound` where systemd does not manage this host; `TimedOut` where it does not answer.
pub fn obtain(unit: &str, limit: Duration) -> io::Result<PathBuf> {
    // sd_booted(3)
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "systemd does not manage this host"));
    }
    let root = hierarchy_root()?;
    let dir = root.join("system.slice").join(unit);
    if is_populated(&dir) {
        return agents_of(&dir);
    }
    let mut command = Command::new("systemd-run");
    command
        .args(["--quiet", "--scope", "--collect", "--slice=system.slice", "--unit", unit])
        .args(["--property=Delegate=yes", "--description=Agents of strongroom", "--"])
        .args(["sleep", "infinity"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // The worker keeps TERM from itself; the holder is to end by it.
    let mut holder = process::begin_afresh(&mut command, false).spawn()?;
    let deadline = Instant::now() + limit;
    loop {
        // It becomes the holder once it has been moved there.
        let place = proc::cgroup_path(holder.id())?;
        if place.ends_with(unit) {
            return agents_of(&root.join(place.strip_prefix("/").unwrap_or(&place)));
        }
        if holder.try_wait()?.is_some() {
            return Err(io::Error::other("systemd-run could not make the scope"));
        }
        if Instant::now() >= deadline {
            holder.kill()?;
            holder.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn is_populated(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
}

fn agents_of(dir: &Path) -> io::Result<PathBuf> {
    let agents = dir.join(AGENTS);
    Cgroup::create(&agents)?;
    Ok(agents)
}

/// Lets go of the scope that `agents` lies in: it ends with the last agent.
pub fn release(agents: &Path) {
    let Some(group) = agents.parent().and_then(|dir| Cgroup::open(dir).ok()) else { return };
    for pid in group.members().unwrap_or_default() {
        let Ok(holder) = PidFd::open(pid) else { continue };
        if holder.info().is_ok_and(|info| info.cgroup_id == group.id()) {
            // It may be gone: somebody stopped the scope.
            let _gone = holder.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }
}
