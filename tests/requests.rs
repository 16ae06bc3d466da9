//! How many requests of the kernel a use of the mount costs: counted, not timed.

mod common;
mod tools;

use std::collections::BTreeMap;

use common::{Home, LIMIT, may_mount, text, wait_until};

/// The daemon's counters by operation.
fn counted(home: &Home) -> BTreeMap<String, i64> {
    tools::requests(home).into_iter().map(|(of, n)| (of, n.cast_signed())).collect()
}

/// What an agent's script costs, after its files were released.
fn cost(home: &Home, script: &str) -> BTreeMap<String, i64> {
    let before = counted(home);
    let output = home.agent("CodeAnalyzer", script);
    assert!(output.status.success(), "{}", text(&output));
    // RELEASE comes by itself, after close(2) has returned.
    let difference = || -> BTreeMap<String, i64> {
        let after = counted(home);
        after
            .into_iter()
            .map(|(operation, n)| (operation.clone(), n - before[&operation]))
            .collect()
    };
    wait_until("every open file is released", LIMIT, || {
        let now = difference();
        now["open"] == now["release"]
    });
    difference()
}

#[test]
fn open_read_and_close_of_a_secret_cost_four_requests() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let file = home.dir.path().join("reads.py");
    let script = r#"
import os, sys
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
for _ in range(int(sys.argv[1])):
    fd = os.open(path, os.O_RDONLY)
    assert len(os.read(fd, 4096)) > 0
    os.close(fd)
"#;
    std::fs::write(&file, script).unwrap();
    let reads = |n: i64| cost(&home, &format!("python3 {} {n}", file.display()));
    // What starting the agent costs is in both.
    let (without, with) = (reads(0), reads(100));
    let more: BTreeMap<_, _> = with
        .iter()
        .map(|(operation, n)| (operation.as_str(), n - without[operation]))
        .filter(|(_, n)| *n != 0)
        .collect();
    let each = [("lookup", 100), ("open", 100), ("read", 100), ("release", 100)];
    assert_eq!(more, BTreeMap::from(each));
}
