//! Other filesystems on the same work, with the kernel's caches of names and attributes off.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::home::VALUE;

/// A mounted peer; unmounted when dropped.
pub(crate) struct Peer {
    dir: tempfile::TempDir,
}

fn is_installed(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .unwrap()
        .status
        .success()
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Peer {
    fn prepare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { dir }
    }

    /// gocryptfs; `-sharedstorage` is its way to timeouts of zero.
    pub(crate) fn gocryptfs() -> Option<Self> {
        if !is_installed("gocryptfs") {
            return None;
        }
        let peer = Self::prepare();
        let pass = peer.dir.path().join("pass");
        std::fs::write(&pass, "a passphrase for a bench").unwrap();
        let (store, mnt) = (peer.dir.path().join("store"), peer.dir.path().join("mnt"));
        let gocryptfs = || {
            let mut command = Command::new("gocryptfs");
            command.arg("-q").arg("-passfile").arg(&pass);
            command
        };
        run(gocryptfs().args(["-init", "-scryptn", "10"]).arg(&store));
        run(gocryptfs().arg("-sharedstorage").arg(&store).arg(&mnt));
        std::fs::write(peer.file(), VALUE).unwrap();
        Some(peer)
    }

    /// bindfs over a directory of the same disk.
    pub(crate) fn bindfs() -> Option<Self> {
        if !is_installed("bindfs") {
            return None;
        }
        let peer = Self::prepare();
        let (store, mnt) = (peer.dir.path().join("store"), peer.dir.path().join("mnt"));
        std::fs::write(store.join("KEY"), VALUE).unwrap();
        let timeouts = "entry_timeout=0,attr_timeout=0,negative_timeout=0";
        run(Command::new("bindfs").args(["-o", timeouts]).arg(&store).arg(&mnt));
        Some(peer)
    }

    /// The file that is read.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("mnt/KEY")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mnt = self.dir.path().join("mnt");
        let unmounted = Command::new("umount").arg(&mnt).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", mnt.display());
        }
    }
}
