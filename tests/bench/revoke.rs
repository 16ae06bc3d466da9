//! An emergency revoke over many executions that obtained the value, and a promotion over many that
//! hold the old version.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use strongroom::proto;
use strongroom::sys::cgroup::{self, Cgroup};

use super::home::Home;
use super::met;

const CHAIN: &str = r#"{"chain": "victims", "agents": [{"name": "a", "secrets": ["VICTIM"]}]}"#;
const PINNED: usize = 10_000;

/// A process in a group of its own that obtained the value and then does as its number says.
fn victim(n: usize, group: &str, file: &str) -> Child {
    let then = match n {
        0..10 => format!("while :; do cat {file} >/dev/null; done"),
        10..20 => "while :; do (sleep 9 &); sleep 0.05; done".to_owned(),
        n if n % 2 == 0 => "kill -STOP $$".to_owned(),
        _ => "exec sleep 1000".to_owned(),
    };
    Command::new("sh")
        .args(["-c", &format!("echo $$ > {group}/cgroup.procs; cat {file} >/dev/null; {then}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn start(home: &Home, id: &str) {
    let start = proto::ExecutionStart {
        chain: "victims".into(),
        id: Some(id.to_owned()),
        environment: None,
        owner_pid: None,
        deadline: None,
        labels: BTreeMap::new(),
        workspace: None,
    };
    let _started: proto::ExecutionShown = home.client().post("/v1/executions", &start).unwrap();
}

fn launch(home: &Home, id: &str) -> proto::AgentLaunched {
    let launch = proto::AgentLaunch {
        chain: Some("victims".into()),
        agent: Some("a".into()),
        environment: None,
        execution: Some(id.to_owned()),
        secrets: Vec::new(),
        deliver: None,
        workspace: None,
        secrets_path: None,
        how: proto::How::Cgroup,
        as_user: None,
        exe: None,
        keep_background: false,
        isolation: None,
        pid: None,
        deadline: None,
        labels: BTreeMap::new(),
        launch: None,
    };
    home.client().post("/v1/agents", &launch).unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn prepared() -> Home {
    let home = Home::new();
    home.run(&["secret", "set", "VICTIM"], b"value-of-the-victims");
    let file = home.path("victims.json");
    std::fs::write(&file, CHAIN).unwrap();
    home.run(&["chain", "apply", file.to_str().unwrap()], b"");
    home
}

/// The same number of groups killed and awaited by nothing but the kernel's own files.
fn bare(count: usize) -> f64 {
    let root = cgroup::hierarchy_root().unwrap().join(format!("bench-{}", std::process::id()));
    Cgroup::create(&root).unwrap();
    let mut groups = Vec::new();
    let mut children = Vec::new();
    for n in 0..count {
        let path: PathBuf = root.join(n.to_string());
        let group = Cgroup::create(&path).unwrap();
        children.push(victim(n, path.to_str().unwrap(), "/dev/null"));
        groups.push(group);
    }
    wait_until("all in their groups", || {
        groups.iter().all(|g| g.members().is_ok_and(|m| !m.is_empty()))
    });
    let begun = Instant::now();
    for group in &groups {
        group.kill().unwrap();
    }
    for group in &groups {
        assert!(group.empty_within(Duration::from_secs(60)));
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    for mut child in children {
        child.wait().unwrap();
    }
    cgroup::remove_tree(&root).unwrap();
    took
}

pub(crate) fn revoke() {
    for count in [1, 100, 1_000] {
        let home = prepared();
        let mut children = Vec::new();
        for n in 0..count {
            let id = format!("victim-{n}");
            start(&home, &id);
            let launched = launch(&home, &id);
            let file = format!("{}/VICTIM", launched.principal_dir);
            children.push(victim(n, launched.cgroup_dir.as_deref().unwrap(), &file));
        }
        wait_until("all exposed", || {
            let name = proto::SecretName { name: "VICTIM".into(), scope: None };
            let listed: proto::ExposureList =
                home.client().get("/v1/secrets/exposures", &name).unwrap();
            listed.exposures.len() == count
        });
        let begun = Instant::now();
        let request = proto::SecretRevoke {
            name: "VICTIM".into(),
            scope: None,
            reason: "bench".into(),
            version: None,
            replacement: None,
            replacement_members: BTreeMap::new(),
            no_replacement: true,
            dry_run: false,
        };
        let revoked: proto::Revoked = home.client().post("/v1/secrets/revoke", &request).unwrap();
        let took = begun.elapsed().as_secs_f64() * 1e3;
        for mut child in children {
            child.wait().unwrap();
        }
        assert!(revoked.complete && revoked.ended.len() == count);
        let first = revoked.first_denial_us as f64 / 1e3;
        let bare = bare(count);
        println!(
            "revoke of {count} exposed: first denial {first:.2} ms ({}, aim 10), all dead, stored \
             and on record {took:.0} ms ({}, aim 1000), {:.1} x cgroup.kill alone ({bare:.0} ms)",
            met(first < 10.0),
            met(took < 1000.0),
            took / bare,
        );
    }
}

pub(crate) fn promote() {
    let home = prepared();
    let rotate = |value: &[u8]| home.run(&["secret", "rotate", "VICTIM"], value);
    let promote = || {
        let request = proto::SecretPromote { name: "VICTIM".into(), scope: None, force: true };
        let begun = Instant::now();
        let _rotated: proto::Rotated = home.client().post("/v1/secrets/promote", &request).unwrap();
        begun.elapsed().as_secs_f64() * 1e3
    };
    start(&home, "pinned-first");
    rotate(b"value-two-of-the-victims");
    let one = promote();
    for n in 0..PINNED {
        start(&home, &format!("pinned-{n}"));
    }
    rotate(b"value-three-of-the-victims");
    let many = promote();
    println!(
        "promotion with {PINNED} pinned: {many:.1} ms, {:.1} x with 1 ({one:.1} ms)",
        many / one
    );
}
