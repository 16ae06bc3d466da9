//! File systems of their own, for what is full, hangs or goes away; gone with the test.

use std::path::PathBuf;
use std::process::Command;

use crate::common::{Home, text};

/// Runs a command that must succeed.
pub(crate) fn tool(args: &[&str]) {
    let output = Command::new(args[0]).args(&args[1..]).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output));
}

/// A file system that is mounted beside the home.
pub(crate) struct Disk(pub(crate) PathBuf);

impl Disk {
    /// What `mount` is told but for the place.
    pub(crate) fn mounted(home: &Home, args: &[&str]) -> Self {
        Self::at(home.dir.path().join("disk"), args)
    }

    fn at(point: PathBuf, args: &[&str]) -> Self {
        std::fs::create_dir_all(&point).unwrap();
        tool(&[&["mount"], args, &[point.to_str().unwrap()]].concat());
        Self(point)
    }

    /// One at `point` that can be frozen: `fsfreeze` and `mkfs.ext4` are needed.
    pub(crate) fn made(home: &Home, point: PathBuf) -> Self {
        let image = home.dir.path().join("image");
        let image = image.to_str().unwrap();
        tool(&["truncate", "--size=64M", image]);
        tool(&["mkfs.ext4", "-q", image]);
        Self::at(point, &["-o", "loop", image])
    }

    /// Every write hangs from now on.
    pub(crate) fn freeze(&self) {
        tool(&["fsfreeze", "--freeze", self.0.to_str().unwrap()]);
    }

    pub(crate) fn thaw(&self) {
        let _thawed = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).output();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        tool(&["umount", "--lazy", self.0.to_str().unwrap()]);
    }
}
