//! Versions against a small reference model: random starts, ends, rotations, promotions, rollbacks,
//! revokes, expiries, crashes and clock jumps, through the real store and the real runtime state. The
//! store fails, or its worker dies, at any commit, before the change is durable and after it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use strongroom::catalog::scope::Scope;
use strongroom::catalog::secret::{Binding, NewVersion, Secret, Stage};
use strongroom::clock::Timestamp;
use strongroom::execution::journal::Journal;
use strongroom::execution::principal::{Ended, Execution, Pin};
use strongroom::execution::registry::Registry;
use strongroom::execution::state::State;
use strongroom::rotation::plan::{self, Rules, Step};
use strongroom::secret::SecretBytes;
use strongroom::vault::record::{Batch, RecordId, RecordKind};
use strongroom::vault::store::redb::RedbStore;
use strongroom::vault::store::{self, Change, Image, Store};
use strongroom::vault::unlock::Credential;
use strongroom::vault::unlock::passphrase::Cost;
use strongroom::vault::{Locked, Vault};

const RULES: Rules = Rules {
    drain: Duration::from_secs(100),
    keep_previous: Duration::from_secs(300),
    keep_retired: Duration::from_secs(900),
};

#[derive(Debug, Clone)]
enum Act {
    Crash,
    End(usize),
    Expire,
    /// Seconds, either way.
    Jump(i64),
    Promote,
    Revoke {
        replace: bool,
    },
    Rollback,
    Rotate {
        later: bool,
    },
    Start,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => Just(Act::Crash),
        3 => (0_usize..8).prop_map(Act::End),
        1 => Just(Act::Expire),
        4 => (-150_i64..400).prop_map(Act::Jump),
        2 => Just(Act::Promote),
        1 => any::<bool>().prop_map(|replace| Act::Revoke { replace }),
        2 => Just(Act::Rollback),
        4 => (0_u8..4).prop_map(|n| Act::Rotate { later: n == 0 }),
        5 => Just(Act::Start),
    ]
}

/// The reference: what a person would write down, without the program's types.
#[derive(Default)]
struct Model {
    now: i64,
    expires: Option<i64>,
    /// By number: (stage, since, from, was given up).
    versions: BTreeMap<u32, (&'static str, i64, i64, bool)>,
    /// Running executions and the version that each holds.
    holds: BTreeMap<String, u32>,
    destroyed: BTreeSet<u32>,
}

impl Model {
    fn at(&self, stage: &str) -> Option<u32> {
        self.versions.iter().find(|(_, v)| v.0 == stage).map(|(n, _)| *n)
    }

    fn go(&mut self, number: u32, stage: &'static str) {
        let now = self.now;
        let version = self.versions.get_mut(&number).unwrap();
        version.0 = stage;
        version.1 = now;
    }

    fn held(&self, number: u32) -> bool {
        self.holds.values().any(|n| *n == number)
    }

    fn add(&mut self, stage: &'static str, from: i64) {
        let number = self.versions.keys().max().unwrap_or(&0) + 1;
        self.versions.insert(number, (stage, self.now, from, false));
    }

    fn give_up(&mut self) {
        if let Some(pending) = self.at("pending") {
            self.go(pending, "previous");
            self.versions.get_mut(&pending).unwrap().3 = true;
        }
    }

    fn promote(&mut self) {
        let pending = self.at("pending").unwrap();
        if let Some(current) = self.at("current") {
            self.go(current, "previous");
        }
        self.go(pending, "current");
    }

    fn to_give(&self) -> Option<u32> {
        if self.expires.is_some_and(|end| end <= self.now) {
            return None;
        }
        let pending = self.at("pending").filter(|n| self.versions[n].2 <= self.now);
        pending.or_else(|| self.at("current"))
    }

    fn back(&self) -> Option<u32> {
        let of = |(n, v): &(&u32, &(&str, i64, i64, bool))| {
            v.0 == "previous" && !v.3 && !self.destroyed.contains(n)
        };
        self.versions.iter().filter(of).max_by_key(|(n, v)| (v.1, **n)).map(|(n, _)| *n)
    }

    fn settle(&mut self) {
        if let Some(pending) = self.at("pending") {
            let (_, made, from, _) = self.versions[&pending];
            let free = self.at("current").is_none_or(|current| !self.held(current));
            if from <= self.now && (free || from.max(made) + 100 <= self.now) {
                self.promote();
            }
        }
        let back = self.back();
        for (number, (stage, since, _, _)) in self.versions.clone() {
            if self.held(number) || self.destroyed.contains(&number) {
                continue;
            }
            if stage == "previous" && (back != Some(number) || since + 300 <= self.now) {
                self.go(number, "retired");
            } else if matches!(stage, "retired" | "revoked") && since + 900 <= self.now {
                self.destroyed.insert(number);
            }
        }
    }
}

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is durable, and the store reports a failure all the same.
    After,
    /// Nothing was done, and the store says so.
    Before,
    /// It is durable, and the worker dies before it hears of it.
    DeathAfter,
    /// The worker dies before anything is done.
    DeathBefore,
}

const FAULTS: [Fault; 4] = [Fault::After, Fault::Before, Fault::DeathAfter, Fault::DeathBefore];

/// Which commit fails, and how; shared with the store.
#[derive(Default)]
struct Plan {
    /// Commits until the one that fails, and how it does.
    next: Mutex<Option<(u32, Fault)>>,
    commits: AtomicU32,
    /// The worker is dead: its store answers nothing any more.
    dead: AtomicBool,
}

impl Plan {
    fn arm(&self, fault: Option<(u32, Fault)>) {
        *self.next.lock().unwrap() = fault;
    }

    fn take(&self) -> Option<Fault> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        let mut next = self.next.lock().unwrap();
        match &mut *next {
            Some((0, fault)) => {
                let fault = *fault;
                *next = None;
                Some(fault)
            }
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        }
    }

    fn answer(&self) -> Result<(), store::Error> {
        match self.dead.load(Ordering::Relaxed) {
            true => Err(store::Error::Io { what: "the worker is dead".into() }),
            false => Ok(()),
        }
    }
}

/// The real store, but for its faults.
struct Faulty {
    inner: RedbStore,
    plan: Arc<Plan>,
}

impl Store for Faulty {
    fn create(&self, image: &Image) -> Result<(), store::Error> {
        self.inner.create(image)
    }

    fn load(&self) -> Result<Image, store::Error> {
        self.plan.answer()?;
        self.inner.load()
    }

    fn commit(&self, expected: u64, change: &Change) -> Result<(), store::Error> {
        self.plan.answer()?;
        let fault = self.plan.take();
        if !matches!(fault, Some(Fault::Before | Fault::DeathBefore)) {
            self.inner.commit(expected, change)?;
        }
        if matches!(fault, Some(Fault::DeathAfter | Fault::DeathBefore)) {
            self.plan.dead.store(true, Ordering::Relaxed);
        }
        match fault {
            Some(_) => Err(store::Error::Io { what: "as planned".into() }),
            None => Ok(()),
        }
    }
}

/// The program's parts, over a real file and a real runtime state.
struct Parts {
    file: PathBuf,
    plan: Arc<Plan>,
    /// None while it is opened anew.
    vault: Option<Vault>,
    state: State,
    registry: Registry,
    secret: Secret,
}

fn credential() -> Credential {
    Credential::KeyFile(SecretBytes::copy_of(&[3; 32]))
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn ended(at: Timestamp, reason: &str) -> Ended {
    Ended { at, reason: reason.to_owned(), unsettled: false }
}

fn value(number: u32) -> Vec<u8> {
    format!("value of version {number}").into_bytes()
}

impl Parts {
    fn new(file: &Path) -> Self {
        let plan = Arc::new(Plan::default());
        let inner = RedbStore::create(file).unwrap();
        let store = Box::new(Faulty { inner, plan: plan.clone() });
        let vault =
            Vault::create(store, &[("first", credential())], time(0), Cost::least()).unwrap();
        let state = State::create().unwrap();
        let registry = Registry::open(Journal::open(&state));
        let secret = Secret {
            id: RecordId([1; 16]).to_string(),
            key: "KEY".parse().unwrap(),
            scope: Scope::Org,
            description: None,
            group: None,
            plain: false,
            binding: Binding::Pinned,
            access_log_enabled: true,
            created_at: time(0),
            created_by: "me".into(),
            rotated_at: None,
            expires_at: None,
            end_told: None,
            versions: Vec::new(),
        };
        Self { file: file.to_owned(), plan, vault: Some(vault), state, registry, secret }
    }

    fn vault(&self) -> &Vault {
        self.vault.as_ref().unwrap()
    }

    /// All memory of a worker is gone; the file and the keeper's memory stay.
    fn crash(&mut self) {
        self.vault = None;
        self.plan.dead.store(false, Ordering::Relaxed);
        let inner = RedbStore::open(&self.file).unwrap();
        let locked = Locked::open(Box::new(Faulty { inner, plan: self.plan.clone() })).unwrap();
        let key = locked.root_key(&credential()).unwrap();
        let vault = locked.unlock(key, None, false).unwrap();
        let (_, bytes) = vault.all(RecordKind::Secret).unwrap().pop().unwrap();
        self.secret = serde_json::from_slice(bytes.expose()).unwrap();
        self.registry = Registry::open(Journal::open(&self.state));
        self.vault = Some(vault);
    }

    /// One change of the secret, with the values that come and go, in one commit; whether it was made.
    /// A worker that died over it is started again, and finds all of it or nothing.
    fn store(&mut self, secret: Secret, mut batch: Batch) -> bool {
        let id = secret.id.parse().unwrap();
        let bytes = serde_json::to_vec(&secret).unwrap();
        batch.put(RecordKind::Secret, id, SecretBytes::from_vec(bytes));
        let fault = self.plan.next.lock().unwrap().filter(|(left, _)| *left == 0).map(|(_, f)| f);
        let committed = self.vault().commit(&batch);
        let made = !matches!(fault, Some(Fault::Before | Fault::DeathBefore));
        let told = !matches!(fault, Some(Fault::Before | Fault::DeathAfter | Fault::DeathBefore));
        // What is durable is acknowledged, but by the dead.
        assert_eq!(committed.is_ok(), told, "{fault:?}");
        if self.plan.dead.load(Ordering::Relaxed) {
            let before = self.secret.clone();
            self.crash();
            assert_eq!(self.secret, if made { secret } else { before }, "{fault:?}");
        } else if made {
            self.secret = secret;
        }
        made
    }

    fn new_version(&self, now: i64, from: Option<i64>, batch: &mut Batch) -> NewVersion {
        let number = self.secret.versions.iter().map(|v| v.number).max().unwrap_or(0) + 1;
        let id = RecordId::random().unwrap();
        batch.put(RecordKind::Value, id, SecretBytes::from_vec(value(number)));
        NewVersion {
            value: id.to_string(),
            size_bytes: value(number).len() as u64,
            at: time(now),
            by: "me".into(),
            valid_from: from.map(time),
            valid_until: None,
            generation: 0,
            drain: None,
            untested: false,
        }
    }

    fn settle(&mut self, now: i64) {
        loop {
            let held = |value: &str| self.registry.is_held(value);
            let steps = plan::due(&[&self.secret], &held, RULES, time(now));
            if steps.is_empty() {
                return;
            }
            let mut secret = self.secret.clone();
            let mut batch = Batch::new();
            for step in steps {
                match step {
                    Step::Promote => {
                        secret.promote(time(now)).unwrap();
                        break;
                    }
                    Step::Retire { number, .. } => secret.retire(number, time(now)),
                    Step::Destroy { number, .. } => {
                        let gone = secret.destroy(number).unwrap();
                        batch.delete(RecordKind::Value, gone.parse().unwrap());
                    }
                }
            }
            // What was not made is due still.
            self.store(secret, batch);
        }
    }

    fn start(&self, id: &str, now: i64) -> bool {
        let Ok(version) = self.secret.version_to_pin(time(now)) else { return false };
        let pin = Pin {
            version: version.number,
            value: version.value.clone().unwrap(),
            size_bytes: version.size_bytes,
            created_at: version.created_at,
            generation: 0,
        };
        let execution = Execution {
            id: id.parse().unwrap(),
            chain: "c".into(),
            environment: None,
            user: "me".into(),
            uid: 0,
            workspace: "host".into(),
            labels: BTreeMap::new(),
            started_at: time(now),
            deadline: None,
            owner: None,
            implicit: false,
            definition_digest: String::new(),
            pins: BTreeMap::from([(self.secret.id.clone(), pin)]),
            ended: None,
        };
        self.registry.start(execution).unwrap();
        true
    }

    fn compare(&self, model: &Model) -> Result<(), TestCaseError> {
        let stages: BTreeMap<_, _> =
            self.secret.versions.iter().map(|v| (v.number, v.stage.word())).collect();
        let expected: BTreeMap<_, _> = model.versions.iter().map(|(n, v)| (*n, v.0)).collect();
        prop_assert_eq!(stages, expected);
        for version in &self.secret.versions {
            let gone = model.destroyed.contains(&version.number);
            prop_assert_eq!(version.value.is_none(), gone, "version {}", version.number);
            let Some(id) = &version.value else { continue };
            // Whatever is not destroyed has its own bytes, for those that hold it and for redaction.
            let bytes = self.vault().get(RecordKind::Value, id.parse().unwrap()).unwrap().unwrap();
            prop_assert_eq!(bytes.expose(), &value(version.number)[..]);
        }
        let values = self.secret.versions.iter().filter(|v| v.value.is_some()).count();
        prop_assert_eq!(self.vault().all(RecordKind::Value).unwrap().len(), values, "no strays");
        let running: BTreeMap<_, _> = self
            .registry
            .executions()
            .iter()
            .filter(|e| e.ended.is_none())
            .map(|e| (e.id.to_string(), e.pins[&self.secret.id].version))
            .collect();
        prop_assert_eq!(&running, &model.holds);
        // What a running execution holds is readable, until it is revoked.
        for number in running.values() {
            let version = self.secret.version(*number).unwrap();
            prop_assert!(version.value.is_some());
            prop_assert!(version.stage.is_readable() || version.stage == Stage::Revoked);
        }
        for stage in ["current", "pending"] {
            prop_assert!(
                self.secret.versions.iter().filter(|v| v.stage.word() == stage).count() < 2
            );
        }
        Ok(())
    }
}

fn perform(act: &Act, parts: &mut Parts, model: &mut Model, round: usize) {
    let now = model.now;
    match act {
        Act::Crash => parts.crash(),
        Act::Jump(seconds) => model.now = (now + seconds).max(1),
        Act::Start => {
            let id = format!("run-{round}");
            let given = model.to_give();
            assert_eq!(parts.start(&id, now), given.is_some());
            if let Some(number) = given {
                model.holds.insert(id, number);
            }
        }
        Act::End(index) => {
            if let Some(id) = model.holds.keys().nth(*index).cloned() {
                parts.registry.end(&id.parse().unwrap(), ended(time(now), "ended")).unwrap();
                model.holds.remove(&id);
            }
        }
        Act::Expire => {
            let mut secret = parts.secret.clone();
            secret.expires_at = Some(time(now + 50));
            if parts.store(secret, Batch::new()) {
                model.expires = Some(now + 50);
            }
        }
        Act::Rotate { later } => {
            let from = if *later { now + 60 } else { now };
            let mut batch = Batch::new();
            let new = parts.new_version(now, Some(from), &mut batch);
            let mut secret = parts.secret.clone();
            let staged = secret.at_stage(Stage::Current).is_some() && secret.stage(new).is_ok();
            assert_eq!(staged, model.at("pending").is_none() && model.at("current").is_some());
            if staged && parts.store(secret, batch) {
                model.add("pending", from);
            }
        }
        Act::Promote => {
            let mut secret = parts.secret.clone();
            let done = secret.promote(time(now)).is_ok();
            assert_eq!(done, model.at("pending").is_some());
            if done && parts.store(secret, Batch::new()) {
                model.promote();
            }
        }
        Act::Rollback => {
            let mut secret = parts.secret.clone();
            if secret.discard(time(now)).is_some() {
                if parts.store(secret, Batch::new()) {
                    model.give_up();
                }
                return;
            }
            let back = model.back();
            let done = secret.rollback(time(now), false).ok();
            assert_eq!(done, back);
            if let Some(back) = back
                && parts.store(secret, Batch::new())
            {
                if let Some(current) = model.at("current") {
                    model.go(current, "previous");
                }
                model.go(back, "current");
            }
        }
        Act::Revoke { replace } => {
            let mut secret = parts.secret.clone();
            let all: Vec<_> = secret.versions.iter().map(|v| v.number).collect();
            let mut batch = Batch::new();
            secret.revoke(&all, time(now));
            if *replace {
                let new = parts.new_version(now, None, &mut batch);
                secret.replace(new);
            }
            // Ended before the commit. All of them are taken for exposed, as readers in a loop are.
            for id in std::mem::take(&mut model.holds).into_keys() {
                parts.registry.end(&id.parse().unwrap(), ended(time(now), "revoked:KEY")).unwrap();
            }
            if !parts.store(secret, batch) {
                return;
            }
            for number in all {
                if model.versions[&number].0 != "revoked" {
                    model.go(number, "revoked");
                }
            }
            if *replace {
                model.add("current", i64::MIN);
            }
        }
    }
}

/// A secret with one version, in both.
fn begin(file: &Path) -> (Parts, Model) {
    let mut parts = Parts::new(file);
    let mut model = Model { now: 10_000, ..Model::default() };
    let mut batch = Batch::new();
    let mut secret = parts.secret.clone();
    secret.replace(parts.new_version(model.now, None, &mut batch));
    assert!(parts.store(secret, batch));
    model.add("current", i64::MIN);
    (parts, model)
}

/// One act and what follows from it, in both.
fn step(
    act: &Act,
    parts: &mut Parts,
    model: &mut Model,
    round: usize,
) -> Result<(), TestCaseError> {
    perform(act, parts, model, round);
    parts.settle(model.now);
    // The reference does one thing at a time as well.
    for _ in 0..4 {
        model.settle();
    }
    parts.compare(model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn versions_are_what_the_model_says_over_any_interleaving(
        acts in proptest::collection::vec(
            (act(), proptest::option::weighted(0.3, (0_u32..3, proptest::sample::select(&FAULTS[..])))),
            10..60,
        )
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut parts, mut model) = begin(&dir.path().join("vault.redb"));
        for (round, (act, fault)) in acts.iter().enumerate() {
            if fault.is_some() {
                parts.plan.arm(*fault);
            }
            step(act, &mut parts, &mut model, round)?;
        }
    }
}

#[test]
fn each_commit_of_a_secrets_life_is_made_whole_or_not_at_all() {
    let jump = Act::Jump;
    let life = [
        Act::Start,
        Act::Rotate { later: false },
        Act::Start,
        Act::End(0),
        Act::Rotate { later: true },
        Act::Rollback,
        Act::Rollback,
        Act::Rollback,
        jump(400),
        Act::Rotate { later: false },
        Act::Start,
        Act::Promote,
        Act::Revoke { replace: true },
        Act::Crash,
        Act::Start,
        Act::Rotate { later: true },
        jump(200),
        Act::Expire,
        jump(1000),
        Act::End(0),
        Act::Revoke { replace: false },
        jump(1000),
    ];
    let run = |fault: Option<(u32, Fault)>| -> (u32, bool) {
        let dir = tempfile::tempdir().unwrap();
        let (mut parts, mut model) = begin(&dir.path().join("vault.redb"));
        parts.plan.arm(fault);
        for (round, act) in life.iter().enumerate() {
            step(act, &mut parts, &mut model, round).unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        }
        (parts.plan.commits.load(Ordering::Relaxed), parts.plan.next.lock().unwrap().is_none())
    };
    let (commits, _) = run(None);
    assert!(commits > 15, "{commits}");
    for number in 0..commits - 1 {
        for fault in FAULTS {
            let (_, met) = run(Some((number, fault)));
            // A change that was not made may leave fewer to come.
            assert!(met || number > commits / 2, "{number} {fault:?}");
        }
    }
}
