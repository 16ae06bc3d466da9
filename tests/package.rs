//! What is installed: the Debian package is built, looked at as its users' tools do, unpacked, and its
//! parts are used from where they then lie.
#![forbid(unsafe_code)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{cannot_run, text};

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_apparmor_profile_is_understood_and_gives_no_capability_that_the_unit_withholds() {
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib");
    let profile = contrib.join("apparmor/strongroom");
    let named = |file: &str, start: &str| -> Vec<String> {
        let text = std::fs::read_to_string(contrib.join(file)).unwrap();
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(start));
        let mut names: Vec<_> = lines
            .flat_map(|line| line.trim_end_matches(',').split(' '))
            .map(|name| name.trim_start_matches("CAP_").to_lowercase())
            .collect();
        names.sort();
        names
    };
    let capabilities = named("apparmor/strongroom", "capability ");
    assert_eq!(capabilities, named("systemd/strongroom.service", "CapabilityBoundingSet="));
    assert_eq!(capabilities.len(), 11);
    if !Path::new("/usr/sbin/apparmor_parser").exists() {
        return cannot_run("needs apparmor_parser");
    }
    // Read, compiled and not loaded: no kernel is asked.
    let parse = ["--skip-kernel-load", "--skip-cache"];
    output(Command::new("/usr/sbin/apparmor_parser").args(parse).arg(profile));
}

#[test]
fn the_debian_package_has_its_parts_in_their_places_and_they_work_there() {
    if !Path::new("/usr/bin/dpkg-deb").exists() {
        return cannot_run("needs dpkg-deb");
    }
    let dir = tempfile::tempdir().unwrap();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = output(
        Command::new(top.join("contrib/debian/build.sh"))
            .arg(dir.path())
            .env("STRONGROOM_PROGRAM", env!("CARGO_BIN_EXE_strongroom"))
            .env_remove("DEBEMAIL")
            .env("STRONGROOM_COMPRESSION", "none"),
    );
    let package = built.trim();
    let field = |name: &str| output(Command::new("dpkg-deb").args(["-f", package, name]));
    assert_eq!(field("Package").trim(), "strongroom");
    assert_eq!(field("Version").trim(), env!("CARGO_PKG_VERSION"));
    assert!(field("Depends").contains("fuse3"));

    let listed = output(Command::new("dpkg-deb").args(["-c", package]));
    for line in listed.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (mode, owner, path) = (words[0], words[1], words[5]);
        assert_eq!(owner, "root/root", "{line}");
        // Nobody but root changes it, everybody may read it, and nothing is setuid.
        assert!(mode[5..6] == *"-" && mode[8..9] == *"-" && !mode.contains('s'), "{line}");
        assert!(mode[7..8] == *"r", "{line}");
        let places = ["./usr/bin/", "./usr/lib/systemd/system/", "./usr/share/"];
        assert!(path.ends_with('/') || places.iter().any(|p| path.starts_with(p)), "{line}");
    }
    for part in [
        "./usr/bin/strongroom",
        "./usr/lib/systemd/system/strongroom.service",
        "./usr/share/man/man1/strongroom-secret-rotate.1.gz",
        "./usr/share/bash-completion/completions/strongroom",
        "./usr/share/zsh/vendor-completions/_strongroom",
        "./usr/share/fish/vendor_completions.d/strongroom.fish",
        "./usr/share/apparmor/extra-profiles/strongroom",
        "./usr/share/doc/strongroom/copyright",
        "./usr/share/doc/strongroom/CHANGELOG.md.gz",
        "./usr/share/doc/strongroom/changelog.gz",
        "./usr/share/doc/strongroom/examples/orchestrator.py",
    ] {
        assert!(listed.lines().any(|l| l.ends_with(&format!(" {part}"))), "{part}: {listed}");
    }

    if Path::new("/usr/bin/lintian").exists() {
        // Nobody installs this one: packing it would take longer than all else.
        let packing =
            "uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball";
        let lint = ["--allow-root", "--fail-on", "error,warning", "--suppress-tags", packing];
        assert_eq!(output(Command::new("lintian").args(lint).arg(package)).trim(), "");
    } else {
        cannot_run("needs lintian");
    }

    let root = dir.path().join("root");
    output(Command::new("dpkg-deb").arg("-x").arg(package).arg(&root));
    let version = output(Command::new(root.join("usr/bin/strongroom")).arg("--version"));
    assert_eq!(version.trim(), concat!("strongroom ", env!("CARGO_PKG_VERSION")));
    let unit = root.join("usr/lib/systemd/system/strongroom.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/strongroom serve"), "{unit}");
    assert!(!unit.contains("/usr/local"), "{unit}");
    let page = output(
        Command::new("zcat").arg(root.join("usr/share/man/man1/strongroom-secret-rotate.1.gz")),
    );
    assert!(page.contains(".TH STRONGROOM-SECRET-ROTATE 1"), "{page}");
    let completions = root.join("usr/share/bash-completion/completions/strongroom");
    let loaded = output(
        Command::new("bash")
            .args(["-c", "source \"$1\" && complete -p strongroom", "-"])
            .arg(completions),
    );
    assert!(loaded.contains("_strongroom"), "{loaded}");
    let scripts = dir.path().join("control");
    output(Command::new("dpkg-deb").arg("-e").arg(package).arg(&scripts));
    for (script, argument) in [("postinst", "configure"), ("prerm", "upgrade")] {
        output(Command::new("sh").arg("-n").arg(scripts.join(script)));
        output(Command::new(scripts.join(script)).arg(argument));
    }
}
