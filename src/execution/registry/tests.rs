//! The registry: who is found, for how long, and by the next worker.
#![forbid(unsafe_code)]

use super::*;
use crate::clock::Timestamp;
use crate::execution::principal::{File, Membership, Pin};
use crate::execution::state::State;
use std::collections::BTreeMap;

fn execution(id: &str) -> Execution {
    Execution {
        id: id.parse().unwrap(),
        chain: "deploy-pipeline".into(),
        environment: Some("prod".into()),
        user: "ci".into(),
        uid: 1000,
        workspace: "host".into(),
        labels: BTreeMap::new(),
        started_at: Timestamp::UNIX_EPOCH,
        deadline: None,
        owner: None,
        implicit: false,
        definition_digest: String::new(),
        pins: BTreeMap::new(),
        ended: None,
    }
}

fn principal(registry: &Registry, id: &str, cgroup: u64) -> Principal {
    let number = registry.next_principal().unwrap();
    Principal {
        number,
        execution: id.parse().unwrap(),
        chain: "deploy-pipeline".into(),
        agent: "Deployer".into(),
        environment: Some("prod".into()),
        user: "ci".into(),
        login_uid: None,
        workspace: "host".into(),
        uid: 1000,
        gid: 1000,
        uids: vec![1001],
        token: format!("{cgroup:032x}"),
        directory: 1 << 20 | cgroup << 1,
        identity: 1 << 20 | cgroup << 1 | 1,
        membership: Membership::Cgroup {
            id: cgroup,
            path: format!("/sys/fs/cgroup/strongroom/{id}/{cgroup}").into(),
            below: format!("/strongroom/{id}/{cgroup}").into(),
        },
        files: BTreeMap::new(),
        earlier: Vec::new(),
        started_at: Timestamp::UNIX_EPOCH,
        launch: String::new(),
        lifeline: None,
        keep_background: false,
        events_folder: String::new(),
        outputs: None,
        isolation: None,
        redact: crate::redact::Level::All,
        ending: false,
    }
}

fn over() -> Ended {
    Ended { at: Timestamp::UNIX_EPOCH, reason: "ended".into(), unsettled: true }
}

/// An agent that runs and has one file, for tests of those who serve it.
pub(crate) fn fixture(registry: &Registry) -> (Arc<Principal>, File) {
    registry.start(execution("run-1")).unwrap();
    let value = "00".repeat(16);
    let secret = SecretInode {
        value: value.clone(),
        uid: 1000,
        gid: 1000,
        size_bytes: 9,
        created_at: Timestamp::UNIX_EPOCH,
    };
    let file = File {
        inode: registry.secret_inode(secret, 1 << 40).unwrap(),
        secret: "11".repeat(16),
        key: "KEY".into(),
        scope: "org".into(),
        environment: None,
        version: 1,
        value,
        size_bytes: 9,
        created_at: Timestamp::UNIX_EPOCH,
        expires_at: None,
        access_log_enabled: true,
        floating: false,
    };
    let mut one = principal(registry, "run-1", 41);
    one.files.insert("KEY".into(), file.clone());
    (registry.register(one).unwrap(), file)
}

#[test]
fn a_principal_is_found_while_its_execution_runs_and_by_the_next_worker() {
    let state = State::create().unwrap();
    let registry = Registry::open(Journal::open(&state));
    registry.start(execution("run-1")).unwrap();
    let one = principal(&registry, "run-1", 41);
    let number = registry.register(one.clone()).unwrap().number;
    for registry in [&registry, &Registry::open(Journal::open(&state))] {
        assert_eq!(registry.by_cgroup(41), Some(number));
        assert_eq!(registry.by_cgroup(42), None);
        assert_eq!(
            registry.by_cgroup_path(Path::new("/strongroom/run-1/41/docker/x")),
            Some(number)
        );
        assert_eq!(registry.by_cgroup_path(Path::new("/strongroom/run-1/410")), None);
        assert_eq!(registry.directory(&one.token), Some(one.directory));
    }
    let next = Registry::open(Journal::open(&state));
    assert!(next.next_principal().unwrap() > number);
    let (_, members) = next.end(&one.execution, over()).unwrap();
    assert_eq!(members.len(), 1);
    assert_eq!(next.by_cgroup(41), None);
    assert_eq!(next.principal(number), None);
    assert_eq!(next.inode(one.directory), Some(Inode::Directory(number)));
    assert_eq!(Registry::open(Journal::open(&state)).by_cgroup(41), None);
}

#[test]
fn what_was_being_ended_is_told_to_the_next_worker_until_it_is_done() {
    let state = State::create().unwrap();
    let registry = Registry::open(Journal::open(&state));
    registry.start(execution("run-1")).unwrap();
    for id in ["alone", "cut-short"] {
        registry.start(Execution { implicit: true, ..execution(id) }).unwrap();
    }
    let one = registry.register(principal(&registry, "run-1", 41)).unwrap().number;
    let two = registry.register(principal(&registry, "run-1", 42)).unwrap().number;
    let three = registry.register(principal(&registry, "alone", 43)).unwrap().number;
    let unfinished = |registry: &Registry| {
        let mut left = registry.take_unfinished();
        left.principals.sort_by_key(|p| p.number);
        let numbers: Vec<_> = left.principals.iter().map(|p| p.number).collect();
        let names = |ids: &[ExecutionId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        (numbers, names(&left.ended), names(&left.deserted))
    };
    let next = || Registry::open(Journal::open(&state));
    assert_eq!(unfinished(&next()), (vec![], vec![], vec!["cut-short".to_owned()]));

    registry.unregister(one).unwrap();
    let seen = next();
    assert_eq!((seen.by_cgroup(41), seen.by_cgroup(42)), (None, Some(two)));
    let cut_short = vec!["cut-short".to_owned()];
    assert_eq!(unfinished(&seen), (vec![one], vec![], cut_short.clone()));
    assert_eq!(unfinished(&seen), (vec![], vec![], vec![]), "given once");
    registry.forget(one).unwrap();
    registry.forget(two).unwrap();
    assert_eq!(next().by_cgroup(42), Some(two), "one that is registered is not forgotten");

    registry.end(&"run-1".parse().unwrap(), over()).unwrap();
    assert_eq!(unfinished(&next()), (vec![two], vec!["run-1".to_owned()], cut_short.clone()));
    registry.forget(two).unwrap();
    registry.settle(&"run-1".parse().unwrap()).unwrap();
    assert_eq!(unfinished(&next()), (vec![], vec![], cut_short));

    registry.unregister(three).unwrap();
    registry.forget(three).unwrap();
    let deserted = vec!["alone".to_owned(), "cut-short".to_owned()];
    assert_eq!(unfinished(&next()), (vec![], vec![], deserted));
}

#[test]
fn a_repeated_start_is_the_same_execution_and_a_different_one_is_refused() {
    let registry = Registry::open(Journal::open(&State::create().unwrap()));
    let (first, is_new) = registry.start(execution("run-1")).unwrap();
    assert!(is_new);
    let (again, is_new) = registry.start(execution("run-1")).unwrap();
    assert!(!is_new);
    assert_eq!(first, again);
    let other = Execution { chain: "other".into(), ..execution("run-1") };
    assert!(matches!(registry.start(other), Err(Error::Conflict { .. })));
    registry.end(&first.id, over()).unwrap();
    assert!(matches!(registry.start(execution("run-1")), Err(Error::Ended { .. })));
    let late = principal(&registry, "run-1", 7);
    assert!(matches!(registry.register(late), Err(Error::Ended { .. })));
}

#[test]
fn a_value_is_held_while_an_execution_that_is_pinned_to_it_runs() {
    let state = State::create().unwrap();
    let registry = Registry::open(Journal::open(&state));
    let pin = |value: &str| Pin {
        version: 1,
        value: value.into(),
        size_bytes: 1,
        created_at: Timestamp::UNIX_EPOCH,
        generation: 0,
    };
    for id in ["run-1", "run-2"] {
        let mut one = execution(id);
        one.pins.insert("key".into(), pin("aa"));
        registry.start(one).unwrap();
    }
    for registry in [&registry, &Registry::open(Journal::open(&state))] {
        assert_eq!(registry.holders("aa").len(), 2);
        assert!(!registry.is_held("bb"));
    }
    let id: ExecutionId = "run-1".parse().unwrap();
    registry.update(&id, |e| drop(e.pins.insert("key".into(), pin("bb")))).unwrap();
    assert_eq!(registry.holders("aa").len(), 1);
    assert_eq!(registry.holders("bb"), std::slice::from_ref(&id));
    registry.end(&id, over()).unwrap();
    assert!(!registry.is_held("bb"));
    assert!(!Registry::open(Journal::open(&state)).is_held("bb"));
}

#[test]
fn a_process_that_ended_is_told_and_one_that_is_not_asked_for_is_not_held() {
    let registry = Registry::open(Journal::open(&State::create().unwrap()));
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let of = |pid| ProcessRef::of(&PidFd::open(pid).unwrap()).unwrap();
    let (own, other) = (of(std::process::id()), of(child.id()));
    let held = || registry.watched.lock().unwrap().len();
    for _ in 0..2 {
        assert!(registry.ended_of([&own, &other, &own].into_iter()).is_empty());
        assert_eq!(held(), 2);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(registry.ended_of([&own, &other].into_iter()), HashSet::from([other.clone()]));
    assert_eq!(registry.ended_of([&other].into_iter()), HashSet::from([other]));
    assert_eq!(held(), 0);
}

#[test]
fn one_version_and_owner_has_one_inode_for_ever() {
    let state = State::create().unwrap();
    let registry = Registry::open(Journal::open(&state));
    let secret = |uid| SecretInode {
        value: "aa".into(),
        uid,
        gid: 0,
        size_bytes: 3,
        created_at: Timestamp::UNIX_EPOCH,
    };
    assert_eq!(registry.secret_inode(secret(1), 5000).unwrap(), 5000);
    assert_eq!(registry.secret_inode(secret(1), 5001).unwrap(), 5000);
    assert_eq!(registry.secret_inode(secret(2), 5002).unwrap(), 5002);
    let next = Registry::open(Journal::open(&state));
    assert_eq!(next.secret_inode(secret(1), 5003).unwrap(), 5000);
}
