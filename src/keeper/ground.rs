//! Where the mount stands: what is there before, and what is left after.
//!
//! Invariant: nothing of others is covered or unmounted, no file of ours lies beneath the mount, and a
//! start that fails leaves nothing mounted. Danger: a worker of a killed keeper, which unmounts a moment
//! later.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::Paths;
use crate::execution::state::State;
use crate::sys::device;
use crate::sys::mount::{self, Ground, OwnMount};

use super::Error;

/// How long a worker may outlive its keeper.
const ORPHAN_LIMIT: Duration = Duration::from_secs(3);
/// The mount and the only descriptor that keeps its connection alive.
pub(super) struct Mounted {
    pub(super) device: OwnedFd,
    pub(super) own: OwnMount,
}

impl Mounted {
    pub(super) fn undo(&self) {
        match mount::unmount(&self.own) {
            Ok(true) => {}
            Ok(false) => tracing::warn!("our mount was gone or covered; nothing was unmounted"),
            Err(error) => tracing::error!(%error, "the mount could not be undone"),
        }
        // Dropping the device aborts the connection, and with it every bind of the mount.
    }
}

/// Names our home in the mount table, so that no other home's mount is taken for ours.
pub(super) fn source(paths: &Paths) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(paths.state_dir.as_os_str().as_bytes());
    let hex: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("strongroom-{hex}")
}

/// Where a keeper notes its mount, for an `up` after its death.
pub fn note(paths: &Paths) -> PathBuf {
    paths.runtime_dir.join("mount.json")
}

/// Where `path` leads, links followed, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(mut found) = ancestor.canonicalize() {
            found.extend(missing.iter().rev());
            return found;
        }
        missing.extend(ancestor.file_name());
    }
    path.to_owned()
}

/// Mounts where nothing else is; what of ours is dead there goes first.
pub(super) fn anew(paths: &Paths, source: &str, state: &State) -> Result<Mounted, Error> {
    let path = &paths.mount;
    let prepare = |source| Error::Prepare { path: path.clone(), source };
    // A worker whose keeper was killed unmounts first and goes; that takes a moment.
    let deadline = Instant::now() + ORPHAN_LIMIT;
    while mount::ground(path, source) == Ground::Live && Instant::now() < deadline {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    match mount::ground(path, source) {
        Ground::Free => {}
        Ground::Dead => {
            tracing::warn!(path = %path.display(), "clearing the dead mount of an earlier daemon");
            mount::clear_dead(path, source).map_err(prepare)?;
        }
        // We hold the lock: whoever still answers there is an orphan of ours. Its mount goes first.
        Ground::Live => {
            return Err(Error::MountPointTaken {
                path: path.clone(),
                by: "an earlier daemon of this home still answers there".into(),
            });
        }
        Ground::Foreign { fs_type } => {
            return Err(Error::MountPointTaken {
                path: path.clone(),
                by: format!("a mount of type {fs_type}"),
            });
        }
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(prepare)?;
    let path = path.canonicalize().map_err(prepare)?;
    // Now that nothing is mounted there, links may be followed.
    if let Some(own) = paths.own().into_iter().find(|own| resolved(own).starts_with(&path)) {
        return Err(Error::Beneath { path: own.to_owned(), mount: path });
    }
    if fs::read_dir(&path).map_err(prepare)?.next().is_some() {
        return Err(Error::MountPointTaken { path, by: "it is not empty".into() });
    }
    let (device, own) = mount::mount_fuse(&path, source)?;
    let init = device::read_init(device.as_fd(), Duration::from_secs(5)).and_then(|init| {
        state.reset_init(&init)?;
        Ok(())
    });
    if let Err(source) = init {
        // Nothing is left behind by a start that failed.
        let _undone = mount::unmount(&own);
        return Err(Error::NoInit { source });
    }
    if let Ok(text) = serde_json::to_vec(&own) {
        let _noted = fs::write(note(paths), text);
    }
    Ok(Mounted { device, own })
}
