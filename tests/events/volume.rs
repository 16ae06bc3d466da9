//! Much of it: another program's own check of what it wrote (fio), long streams, many small appends.
#![forbid(unsafe_code)]

use std::fs;

use super::basic::{agent, execution, good};
use super::common::{Home, may_mount};

/// fio's checks are of its own making: it writes blocks with checksums and reads them back through the
/// mount. What is excluded, and why, stands in the manual's chapter on events.
#[test]
fn fio_reads_back_what_it_wrote_in_order_and_at_random() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "fio");
    let common = "--directory=\"$STRONGROOM_EVENTS_DIR\" --verify=crc32c --do_verify=1 \
        --ioengine=psync --fallocate=none --thread --verify_fatal=1";
    for job in [
        "--name=order --rw=write --bs=128k --size=16m --end_fsync=1",
        "--name=random --rw=randwrite --bs=4k --size=4m",
        "--name=mixed --numjobs=4 --rw=randrw --bsrange=512-16k --size=1m",
        "--name=synced --rw=randwrite --bs=4k --size=512k --fsync=16",
        "--name=direct --rw=write --bs=4k --size=512k --direct=1",
    ] {
        let script = format!("cd {} && fio {common} {job}", home.dir.path().display());
        let told = good(&agent(&home, "fio", &script));
        assert!(told.contains("err= 0"), "{told}");
    }
    let size = |name: &str| fs::metadata(store.join(name)).unwrap().len();
    assert_eq!((size("order.0.0"), size("random.0.0")), (16 << 20, 4 << 20));
    // Nothing in it is a secret: what is stored passes the same check, read by the orchestrator.
    let again = std::process::Command::new("fio")
        .arg(format!("--directory={}", store.display()))
        .args(["--name=order", "--rw=read", "--bs=128k", "--size=16m", "--verify=crc32c"])
        .args(["--ioengine=psync", "--thread", "--verify_fatal=1"])
        .current_dir(home.dir.path())
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", super::common::text(&again));
    home.ok(&["execution", "end", "fio"]);
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_long_stream_and_many_appends_cost_no_memory() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let store = execution(&home, "long");
    good(&agent(&home, "long", "echo warm > $STRONGROOM_EVENTS_DIR/warm"));
    let before = resident_kib(home.worker_pid());
    let script = r#"
        yes "an ordinary line of a log that an agent writes" | head -c 96000000 > $STRONGROOM_EVENTS_DIR/long
        i=0; while [ $i -lt 10000 ]; do echo "line $i"; i=$((i + 1)); done >> $STRONGROOM_EVENTS_DIR/many
    "#;
    good(&agent(&home, "long", script));
    let after = resident_kib(home.worker_pid());
    // A third of the stream, and buffers of the requests in work.
    assert!(after < before + 48_000, "from {before} to {after} KiB");
    assert_eq!(fs::metadata(store.join("long")).unwrap().len(), 96_000_000);
    assert_eq!(fs::read_to_string(store.join("many")).unwrap().lines().count(), 10_000);
    home.ok(&["execution", "end", "long"]);
}

/// What the orchestrator asked of the look of stored files holds for each of them.
#[test]
fn stored_files_have_the_owner_the_group_and_the_mode_that_were_asked_for() {
    use std::os::unix::fs::MetadataExt;
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    let config = home.home().join("strongroom.toml");
    let own = fs::read_to_string(&config).unwrap();
    let look = "[events]\nowner = \"daemon\"\ngroup = \"nogroup\"\nmode = \"0640\"\n";
    fs::write(&config, format!("{own}\n{look}")).unwrap();
    home.ok(&["reload"]);
    home.fill();
    let store = execution(&home, "look");
    let script = "cd $STRONGROOM_EVENTS_DIR; mkdir d; echo x > d/f; \
        python3 -c 'import os; f = os.open(\"g\", os.O_CREAT | os.O_RDWR); \
        os.pwrite(f, b\"late\", 100); os.pwrite(f, b\"early\", 0)'";
    good(&agent(&home, "look", script));
    let daemon = nix::unistd::User::from_name("daemon").unwrap().unwrap().uid.as_raw();
    let nogroup = nix::unistd::Group::from_name("nogroup").unwrap().unwrap().gid.as_raw();
    for (path, mode) in [("d", 0o750), ("d/f", 0o640), ("g", 0o640)] {
        let found = fs::metadata(store.join(path)).unwrap();
        let look = (found.uid(), found.gid(), found.mode() & 0o777);
        assert_eq!(look, (daemon, nogroup, mode), "{path}");
    }
    home.ok(&["execution", "end", "look"]);
}
