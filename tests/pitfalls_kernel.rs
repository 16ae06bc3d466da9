//! Ways of the kernel to bytes that are not read(2): rings in other hands, copies within the mount.

mod common;
mod tools;

use std::path::Path;

use common::{DB_PROD, Home, LIMIT, OPENAI, cannot_run, may_mount, wait_until};
use tools::{Talker, compile, group_of, has, move_to, obedient};

#[test]
fn a_ring_and_a_descriptor_in_other_hands_are_judged_as_who_submits() {
    if !may_mount() || !has("cc") {
        return;
    }
    let home = Home::deployed();
    let rings = compile(&home, "rings").display().to_string();
    let view = home.dir.path().join("view");
    let mut args =
        vec!["run", "--no-redact", "--chain", "deploy-pipeline", "--agent", "TestRunner"];
    args.extend(["--env", "prod", "--secrets-path", view.to_str().unwrap(), "--", "sh", "-c"]);
    let script = format!("exec {rings} $CREDENTIALS_DIRECTORY/DATABASE_URL shared");
    args.push(&script);
    let mut talker = Talker::spawn(&mut home.command(&args));
    let first = talker.line();
    if !first.starts_with("child ") {
        cannot_run(&format!("io_uring is switched off on this host: {first}"));
        return;
    }
    // The child has the ring, its memory, and the open secret; it is in another execution now.
    let mut other = obedient(&home, "CodeAnalyzer", "other.py");
    let group = group_of(&other.ask("os.getpid()"));
    move_to(&group, first.trim_start_matches("child "));
    talker.tell("go");
    let refused = format!("errno {}", libc::EACCES);
    assert_eq!(talker.line(), format!("inline {refused}"));
    assert_eq!(talker.line(), format!("worker {refused}"));
    // Whoever made the ring reads on with it.
    assert_eq!(talker.line(), format!("parent {DB_PROD}"));
    talker.end();
    other.end();
}

#[test]
fn nothing_copies_a_secret_into_an_event_file_beside_read() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut agent = obedient(&home, "CodeAnalyzer", "copies.py");
    agent.ask("keep('s', os.open(path, os.O_RDONLY)) and None");
    agent.ask("keep('e', os.open(d + '/events/copy', os.O_RDWR | os.O_CREAT)) and None");
    for (how, want) in [
        ("os.copy_file_range(held['s'], held['e'], 31)", "errno EINVAL"),
        ("os.sendfile(held['e'], held['s'], 0, 31)", "errno EINVAL"),
        ("fcntl.ioctl(held['e'], 0x40049409, held['s'])", "errno "),
    ] {
        let told = agent.ask(how);
        assert!(told.starts_with(want), "{how}: {told}");
        assert_eq!(agent.ask("os.fstat(held['e']).st_size"), "0", "{how}");
    }
    // By read and write it is copied, and redacted on its way.
    assert_eq!(agent.ask("os.write(held['e'], os.read(held['s'], 100))"), "31");
    agent.ask("os.close(held['e'])");
    // It is complete at its RELEASE, which the kernel sends after close(2) has returned.
    wait_until("it is complete", LIMIT, || {
        agent.ask("read(d + '/events/copy')") == "[REDACTED:OPENAI_API_KEY]"
    });
    agent.end();
}

#[test]
fn a_program_that_an_agents_shell_runs_is_the_agent_and_on_record_by_its_file() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY; /usr/bin/env -i $(command -v head) -c 100 \
                  $CREDENTIALS_DIRECTORY/OPENAI_API_KEY";
    assert_eq!(tools::good(&home.agent("CodeAnalyzer", script)), OPENAI.repeat(2));
    let records = home.records("secret_accessed");
    let exes: Vec<_> = records.iter().map(|r| r["exe"].as_str().unwrap().to_owned()).collect();
    let name = |exe: &String| Path::new(exe).file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(exes.iter().map(name).collect::<Vec<_>>(), ["cat", "head"]);
}

/// The kernel is told nothing out of a handler, where `inval_entry` would wait for itself.
#[test]
fn no_handler_notifies_the_kernel() {
    let source = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fuse").join(name))
            .unwrap()
    };
    for name in ["adapter.rs", "gate.rs", "listings.rs", "session.rs", "translate.rs"] {
        for word in ["notifier(", "inval_entry", "inval_inode"] {
            assert!(!source(name).contains(word), "{name}: {word}");
        }
    }
}
