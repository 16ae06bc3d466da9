//! Suites that others wrote for file systems, on the events directory: fsx and pjdfstest.
//!
//! `tests/run.sh` builds both from crates.io into `target/tools`. What of them cannot hold here
//! stands in [`EXCEPTIONS`], each with its reason; the manual has the groups.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::common::{Home, cannot_run, may_mount, text};
use crate::basic::{agent, execution, good};

fn tool(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(name);
    if !path.exists() {
        cannot_run(&format!("{} is not there: tests/run.sh builds it", path.display()));
        return None;
    }
    Some(path)
}

/// Reads and writes at random places, cuts, extends, syncs and opens again; fsx compares what it
/// reads, and the size, with what it wrote. Maps, sendfile, copy_file_range and holes are left out:
/// they are refused here.
const FSX: &str = r#"
flen = 262144
[opsize]
max = 40000
min = 1
[weights]
close_open = 2
read = 10
write = 10
truncate = 4
fsync = 1
fdatasync = 1
posix_fallocate = 2
posix_fadvise = 1
mapread = 0
mapwrite = 0
invalidate = 0
punch_hole = 0
sendfile = 0
copy_file_range = 0
"#;

#[test]
fn fsx_finds_every_byte_where_it_wrote_it() {
    let Some(fsx) = tool("fsx").filter(|_| may_mount()) else { return };
    let home = Home::deployed();
    let store = execution(&home, "fsx");
    let config = home.dir.path().join("fsx.toml");
    for (seed, settings, steps) in [
        (1, FSX.to_owned(), 4000),
        // Small steps in a small file: everything overlaps.
        (2, FSX.replace("262144", "3000").replace("40000", "200"), 4000),
        // Appending more than anything else, and never closed.
        (
            3,
            FSX.replace("truncate = 4", "truncate = 0").replace("close_open = 2", "close_open = 0"),
            1500,
        ),
    ] {
        fs::write(&config, settings).unwrap();
        let script = format!(
            "cd {dir}; {fsx} -q -S {seed} -N {steps} -f {config} -P {dir} \
             $STRONGROOM_EVENTS_DIR/f{seed} >fsx.log 2>&1 || {{ tail -n 60 fsx.log; exit 1; }}; \
             sha256sum < $STRONGROOM_EVENTS_DIR/f{seed}",
            dir = home.dir.path().display(),
            fsx = fsx.display(),
            config = config.display(),
        );
        let seen = good(&agent(&home, "fsx", &script));
        let stored = std::process::Command::new("sha256sum")
            .stdin(fs::File::open(store.join(format!("f{seed}"))).unwrap())
            .output()
            .unwrap();
        assert_eq!(seen, text(&stored), "what is stored is what was there to be read");
        assert!(home.records("event_redacted").is_empty(), "random bytes are no secret");
    }
    home.ok(&["execution", "end", "fsx"]);
}

/// Cases of pjdfstest that fail here, and why: by the beginning of their names.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("*::block", "devices are refused"),
    ("*::char", "devices are refused"),
    ("*::fifo", "fifos are refused"),
    ("*::socket", "sockets are refused"),
    ("*::symlink", "links are refused"),
    ("*_symlink", "links are refused"),
    ("*eloop*", "links are refused"),
    ("link::*", "links are refused"),
    ("mkfifo::*", "fifos are refused"),
    ("mknod::*", "fifos are refused"),
    ("symlink::*", "links are refused"),
    ("open::fifo_nonblock_wronly", "fifos are refused"),
    ("open::open_nofollow", "links are refused"),
    ("open::socket_error", "sockets are refused"),
    ("posix_fallocate::affected_only_create_flags", "another user is nobody in an agent's events"),
    ("rename::preserve_metadata::regular", "its file has two names: links are refused"),
    ("rename::to_multiply_linked::regular", "its file has two names: links are refused"),
    ("unlink::unchanged_ctime_failed::regular", "its file has two names: links are refused"),
    ("unlink::update_ctime_success::regular", "its file has two names: links are refused"),
    ("chmod::change_perm::dir", "directories keep the mode of the configuration"),
    ("chmod::change_perm::regular", "files keep at least the mode of the configuration"),
    ("chmod::update_ctime::dir", "directories keep the mode of the configuration"),
    ("mkdir::permission_bits_from_mode", "directories have the mode of the configuration"),
    ("open::permission_bits_from_mode", "new files have the mode of the configuration"),
    ("open::interact_2gb", "there are no holes, and max_file is 1 GiB"),
    ("chmod::clear_isgid_bit", "another user is nobody in an agent's events"),
    ("ftruncate::affected_create_flags_only", "another user is nobody in an agent's events"),
    ("mkdir::uid_gid_eq_euid_egid", "another user is nobody in an agent's events"),
    ("open::uid_gid_eq_euid_egid", "another user is nobody in an agent's events"),
    ("rename::unchanged_ctime_failed::dir", "another user is nobody in an agent's events"),
    ("rename::unchanged_ctime_failed::regular", "another user is nobody in an agent's events"),
    ("rename::write_access_required_subdir", "another user is nobody in an agent's events"),
    ("utimensat::nobody", "another user is nobody in an agent's events"),
    ("utimensat::utime_now_nobody", "another user is nobody in an agent's events"),
    ("utimensat::write_perm", "another user is nobody in an agent's events"),
    ("truncate::unchanged_ctime_failed", "another user is nobody in an agent's events"),
];

fn fits(pattern: &str, name: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(inner), Some(_)) => name.contains(inner.trim_end_matches('*')),
        (Some(end), None) => name.ends_with(end),
        (None, Some(start)) => name.starts_with(start),
        (None, None) => name == pattern,
    }
}

#[test]
fn pjdfstest_finds_a_posix_file_system_but_for_what_is_refused_on_purpose() {
    let Some(suite) = tool("pjdfstest").filter(|_| may_mount()) else { return };
    let home = Home::deployed();
    execution(&home, "posix");
    let config = home.dir.path().join("pjdfstest.toml");
    fs::write(
        &config,
        "[features]\nposix_fallocate = {}\nutimensat = {}\nutime_now = {}\nrename_ctime = {}\n[settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n",
    )
    .unwrap();
    let script = format!(
        "cd {}; mkdir $STRONGROOM_EVENTS_DIR/p; umask 022; \
         NO_COLOR=1 {} -c {} -p $STRONGROOM_EVENTS_DIR/p 2>&1; echo ended",
        home.dir.path().display(),
        suite.display(),
        config.display(),
    );
    let told = good(&agent(&home, "posix", &script));
    // Each case is a line: its name, and what came of it.
    let mut outcomes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in told.lines() {
        if let [name, outcome @ ("FAILED" | "skipped" | "ok")] =
            line.split_whitespace().collect::<Vec<_>>()[..]
            && name.contains("::")
        {
            outcomes.entry(outcome).or_default().push(name);
        }
    }
    let count = |outcome: &str| outcomes.get(outcome).map_or(0, Vec::len);
    println!("{} passed, {} failed, {} skipped", count("ok"), count("FAILED"), count("skipped"));
    assert!(count("ok") > 130, "{told}");
    let failed = outcomes.remove("FAILED").unwrap_or_default();
    let is_excepted = |name: &str| EXCEPTIONS.iter().any(|(pattern, _)| fits(pattern, name));
    let mut unknown = String::new();
    for name in failed.iter().filter(|name| !is_excepted(name)) {
        let at = told.find(&format!("\n{name} ")).unwrap_or(0);
        unknown.extend(told[at..].lines().take(6).flat_map(|line| [line, "\n"]));
    }
    assert!(unknown.is_empty(), "{unknown}");
    for (pattern, reason) in EXCEPTIONS {
        let is_used = failed.iter().any(|name| fits(pattern, name));
        assert!(is_used, "{pattern} ({reason}) is no exception any more");
    }
    home.ok(&["execution", "end", "posix"]);
}
