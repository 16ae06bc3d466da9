//! What the fuzz targets of the parsers do; `tests/fuzzed.rs` does it with changed `samples`.
//!
//! For any bytes: no panic, no value in an error, an end within bounds; and what was read and is
//! printed reads as the same.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::de::DeserializeOwned;
use strongroom::audit::checkpoint::Keys;
use strongroom::audit::ring::Ring;
use strongroom::audit::verify::{self, Known};
use strongroom::audit::{files, revision};
use strongroom::catalog::definition::Definition;
use strongroom::catalog::name::{AgentName, ChainName, EnvName, GroupName, SecretKey, SecretName};
use strongroom::catalog::resolve::Asker;
use strongroom::catalog::scope::Scope;
use strongroom::catalog::secret::Secret;
use strongroom::catalog::{import, policy};
use strongroom::clock::Timestamp;
use strongroom::config::{Config, Period};
use strongroom::execution::exposure::Exposure;
use strongroom::execution::handles::Handles;
use strongroom::execution::id::ExecutionId;
use strongroom::execution::journal::{Journal, Kind};
use strongroom::execution::registry::Registry;
use strongroom::execution::state::State;
use strongroom::proto::{self, Problem, stream, wire};
use strongroom::rotation::plan::{self, Rules};
use strongroom::rotation::schedule::{self, Facts};
use strongroom::secret::SecretBytes;
use strongroom::sys::{mount, proc};
use strongroom::vault::record::{Batch, RecordId, RecordKind};
use strongroom::vault::store::memory::MemoryStore;
use strongroom::vault::store::redb::RedbStore;
use strongroom::vault::unlock::Credential;
use strongroom::vault::unlock::passphrase::Cost;
use strongroom::vault::{Locked, Vault, backup};

/// What stands for a value in the samples. Only whole: a piece is no secret any more.
pub(crate) const VALUE: &str = "canary+Value7/Zk8Wq2LmN5rT7yU0pX3c=";

/// A target: the folder of its samples, and what it does.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    ("audit", audit),
    ("backup", backup_file),
    ("config", config),
    ("definition", definition),
    ("dotenv", dotenv),
    ("frames", frames),
    ("import", import_json),
    ("names", names),
    ("policy", policies),
    ("proc", proc_files),
    ("records", records),
    ("requests", requests),
    ("state", state),
    ("vault", vault_file),
];

/// No error shows a value that stood in the input.
fn quiet(input: &[u8], error: &(impl Debug + Display), hint: Option<&str>) {
    let told = format!("{error}\n{error:?}\n{hint:?}");
    let held = input.windows(VALUE.len()).any(|window| window == VALUE.as_bytes());
    assert!(!held || !told.contains(VALUE), "an error quotes a value: {told}");
    assert!(told.len() < 16 << 10, "an error of {} bytes", told.len());
}

fn same<T: Debug + Display + FromStr + PartialEq>(text: &str)
where
    T::Err: Debug + Display,
{
    match text.parse::<T>() {
        Ok(parsed) => {
            let printed = parsed.to_string();
            let again = printed.parse::<T>();
            assert!(again.is_ok_and(|again| again == parsed), "{printed:?} reads as another");
        }
        Err(error) => quiet(text.as_bytes(), &error, None),
    }
}

fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        same::<AgentName>(line);
        same::<ChainName>(line);
        same::<EnvName>(line);
        same::<ExecutionId>(line);
        same::<GroupName>(line);
        same::<Period>(line);
        same::<Scope>(line);
        same::<SecretKey>(line);
        same::<SecretName>(line);
    }
}

fn definition(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for strict in [false, true] {
        match Definition::parse(&text, strict) {
            Ok(parsed) => {
                let stored = serde_json::to_string(&parsed).expect("a definition is JSON");
                let again: Definition = serde_json::from_str(&stored).expect("as it was written");
                assert_eq!(again, parsed);
            }
            Err(error) => quiet(text.as_bytes(), &error, error.hint.as_deref()),
        }
    }
}

fn policies(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(error) = policy::parse(&text) {
        quiet(text.as_bytes(), &error, None);
    }
}

fn dotenv(data: &[u8]) {
    if let Err(error) = import::from_dotenv(data) {
        quiet(data, &error, None);
    }
}

fn import_json(data: &[u8]) {
    match import::from_json(data) {
        Ok(entries) => assert!(entries.len() <= data.len()),
        Err(error) => quiet(data, &error, None),
    }
}

fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Config::parse(&text, Path::new("/etc/strongroom/strongroom.toml")) {
        Ok(config) => {
            let home = strongroom::config::Surroundings {
                strongroom_home: Some("/h".into()),
                ..Default::default()
            };
            let paths = strongroom::config::Paths::of(&home).expect("a home is a place");
            if let Err(error) = config.check(&paths) {
                quiet(text.as_bytes(), &error, Some(&error.hint()));
            }
            let shown = serde_json::to_value(&config).expect("a configuration is JSON");
            let again: Config = serde_json::from_value(shown.clone()).expect("as it was shown");
            assert_eq!(serde_json::to_value(&again).expect("JSON"), shown);
        }
        Err(error) => quiet(text.as_bytes(), &error, Some(&error.hint())),
    }
}

fn proc_files(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(stat) = proc::Stat::parse(data) {
        assert!(stat.comm.len() <= data.len());
    }
    let _ids = proc::StatusIds::parse(&text);
    let _tracer = proc::tracer_of(&text);
    if let Some(path) = proc::unified_cgroup(&text) {
        assert!(path.as_os_str().len() <= text.len());
    }
    for entry in mount::parse_table(data) {
        assert!(entry.mount_point.as_os_str().len() <= data.len());
    }
}

fn audit(data: &[u8]) {
    let dir = scratch();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).expect("a scratch file");
    };
    // A zero parts the day's records from the anchor.
    let mut parts = data.splitn(2, |byte| *byte == 0);
    write("2026-11-24.jsonl", parts.next().unwrap_or_default());
    if let Some(anchor) = parts.next() {
        write("anchor.json", anchor);
    }
    let known = Known { public_key: None, head: Some((1, "00".repeat(32))) };
    let _verdict = verify::verify(dir.path(), &known).expect("files that are there");
    let _highest = revision::highest(dir.path()).expect("files that are there");
    let mut seen = 0;
    // What is no record is passed over or said; what is one is given as it stands.
    let read = verify::read(dir.path(), 0, |line, _record| {
        assert!(data.windows(line.len().max(1)).any(|window| window == line.as_bytes()));
        seen += 1;
        seen < 100
    });
    if let Err(error) = read {
        quiet(data, &error, None);
    }
    let _files = files::files(dir.path()).expect("a directory that is there");
}

fn frames(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some((kind, payload, len))) = stream::first(rest) {
        let head = stream::head(kind, payload.len()).expect("it came in a frame");
        assert_eq!([&head[..], payload].concat(), rest[..len]);
        rest = &rest[len..];
        if let Ok((session, state)) = stream::parse_resume(payload) {
            assert_eq!(stream::resume(session, state), payload);
        }
        if let Ok(out) = stream::Out::parse(payload) {
            let mut again = Vec::new();
            stream::put_out(&mut again, out.consumed, out.ended, out.state).expect("it was short");
            out.each(&mut |piece| stream::put_piece(&mut again, piece)).expect("it was parsed");
            let parsed = stream::Out::parse(&again).expect("it was just written");
            let mut pieces = (Vec::new(), Vec::new());
            out.each(&mut |piece| pieces.0.push(piece)).expect("it was parsed");
            parsed.each(&mut |piece| pieces.1.push(piece)).expect("it was parsed");
            assert_eq!(pieces.0, pieces.1);
        }
    }
}

/// Reads a request as the control interface does, from a body and from a query.
fn request<T: DeserializeOwned>(data: &[u8]) {
    let told = |problem: &Problem| {
        let told = format!("{problem:?}");
        let held = data.windows(VALUE.len()).any(|window| window == VALUE.as_bytes());
        assert!(!held || !told.contains(VALUE), "a problem quotes a value: {told}");
        assert!(told.len() < 4 << 10, "a problem of {} bytes", told.len());
    };
    if let Err(problem) = wire::from_bytes::<T>(data) {
        told(&problem);
    }
    if let Ok(query) = std::str::from_utf8(data)
        && let Err(problem) = wire::from_query::<T>(query)
    {
        told(&problem);
    }
}

macro_rules! requests {
    ($($name:ident)*) => {
        fn requests(data: &[u8]) {
            $(request::<proto::$name>(data);)*
        }
    };
}

requests! {
    Access AgentAttach AgentEnd AgentLaunch AuditPrune AuditQuery AuditVerify BackupCreate
    BackupRestore BackupVerify ChainApply ChainCheck ChainList ChainName Confirm EventsList
    EventsPath EventsPrune ExecutionEnd ExecutionExtend ExecutionList ExecutionName ExecutionStart
    Explain GroupList GroupName GroupRotate GroupSet Import KeyAdd KeyRekey KeyRm ProjectChains
    ProjectList ProjectName ProjectSet Redact RotationApply RotationList RotationRm RotationRun
    SecretDestroy SecretEdit SecretGet SecretList SecretName SecretPromote SecretRevoke SecretRm
    SecretRotate SecretSet Self_ TicketCreate TicketRedeem Unlock Watch
}

/// The runtime state as another program may have left it: entries, then bytes over any part of it.
fn state(data: &[u8]) {
    let state = State::create().expect("memory for a state");
    let journal = Journal::open(&state);
    let mut put = BTreeMap::new();
    // Lines are entries, `KIND KEY VALUE`; what follows a zero is put over the memory.
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let kinds = [
        ("execution", Kind::Execution),
        ("principal", Kind::Principal),
        ("inode", Kind::Inode),
        ("exposure", Kind::Exposure),
        ("fact", Kind::Fact),
        ("event", Kind::EventNode),
    ];
    for line in parts.next().unwrap_or_default().split(|byte| *byte == b'\n') {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let (Some(kind), Some(key), Some(value)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Some((_, kind)) = kinds.iter().find(|(word, _)| word.as_bytes() == kind) else {
            continue;
        };
        let key = match kind {
            // Numbers are eight bytes.
            Kind::Principal | Kind::Inode | Kind::EventNode => std::str::from_utf8(key)
                .ok()
                .and_then(|k| k.parse::<u64>().ok())
                .unwrap_or(7)
                .to_be_bytes()
                .to_vec(),
            _ => key.to_vec(),
        };
        if journal.put(*kind, &key, value).is_ok() {
            put.insert((*kind, key), value.to_vec());
        }
    }
    for ((kind, key), value) in &put {
        assert_eq!(Journal::open(&state).get(*kind, key).as_ref(), Some(value));
    }
    if let Some(over) = parts.next() {
        let region = state.region();
        let (ring, _) = state.ring();
        for patch in over.chunks_exact(11) {
            let base = [0, 16 << 10, (16 << 10) + (64 << 17), ring][usize::from(patch[0] % 4)];
            let at = base + usize::from(u16::from_le_bytes([patch[1], patch[2]]) & 0x3ff8);
            let bytes = patch[3..].try_into().expect("eight bytes");
            region.store(at, u64::from_le_bytes(bytes), Ordering::Release);
        }
    }
    let _init = state.init();
    let handles = Handles::open(&state);
    for (number, _) in handles.all() {
        let _time = handles.recorded_at(number);
    }
    let registry = Registry::open(Journal::open(&state));
    for execution in registry.executions() {
        assert!(registry.execution(&execution.id).is_some());
    }
    let _held = registry.is_held("value");
    let (offset, len) = state.ring();
    let ring = Ring::open(state.region().clone(), offset, len, 0);
    let _entries = ring.unflushed();
    let _requests = ring.requests();
}

/// The credential of the stored vault.
fn key() -> Credential {
    Credential::KeyFile(SecretBytes::copy_of(&[42; 32]))
}

fn vault_file(data: &[u8]) {
    let backend = redb::backends::InMemoryBackend::new();
    {
        use redb::StorageBackend;
        backend.set_len(data.len() as u64).expect("memory");
        backend.write(0, data).expect("memory");
    }
    let store = match RedbStore::on(backend) {
        Ok(store) => store,
        Err(error) => return quiet(data, &error, None),
    };
    match Locked::open(Box::new(store)) {
        Err(error) => quiet(data, &error, error.hint()),
        Ok(locked) => {
            let _slots = locked.slots();
            match locked.root_key(&key()) {
                Ok(_) => {}
                Err(error) => quiet(data, &error, error.hint()),
            }
        }
    }
}

/// What the vault's records hold, as a faulty program or one with the key may have written it: lines are
/// records, `KIND BODY`. Whatever is taken up can be asked, goes through its life, and is stored again
/// as the same.
fn records(data: &[u8]) {
    let now = Timestamp::UNIX_EPOCH;
    let store = Box::new(Arc::new(MemoryStore::new()));
    let vault = Vault::create(store, &[("key", key())], now, Cost::least()).expect("a new vault");
    let mut batch = Batch::new();
    for (number, line) in data.split(|byte| *byte == b'\n').take(64).enumerate() {
        let mut words = line.splitn(2, |byte| *byte == b' ');
        let kind = words.next().and_then(|word| std::str::from_utf8(word).ok());
        let Some(kind) = kind.and_then(|k| k.parse().ok()).and_then(RecordKind::from_byte) else {
            continue;
        };
        let body = words.next().unwrap_or_default();
        match kind {
            RecordKind::Exposure => stored_again::<Vec<Exposure>>(body),
            RecordKind::Signing => stored_again::<Keys>(body),
            _ => {}
        }
        batch.put(kind, RecordId([number as u8; 16]), SecretBytes::copy_of(body));
    }
    vault.commit(&batch).expect("memory");
    let environments = ["dev", "prod"].map(|name| name.parse().expect("an environment"));
    let catalog = match strongroom::daemon::core::load(&vault, &environments) {
        Ok(catalog) => catalog,
        Err(error) => return quiet(data, &error, error.hint()),
    };
    for chain in catalog.chains() {
        for agent in &chain.definition.agents {
            for environment in [None, environments.first()] {
                let asker =
                    Asker { chain: &chain.definition.chain, agent: &agent.name, environment };
                let _answer = catalog.resolve(asker);
            }
        }
    }
    let hour = Duration::from_secs(3600);
    let rules = Rules { drain: hour, keep_previous: hour, keep_retired: hour };
    for secret in catalog.secrets() {
        let _unit = catalog.unit_of(&secret);
        let _steps = plan::due(&[&*secret], &|_| false, rules, Timestamp::MAX);
        if let Some(policy) = catalog.policy(&secret.id) {
            let facts = Facts { rotated_at: secret.rotated_at.unwrap_or(now), is_pending: false };
            for now in [Timestamp::MIN, now, Timestamp::MAX] {
                let _steps = schedule::steps(policy, facts, now);
            }
        }
        let numbers: Vec<u32> = secret.versions.iter().map(|v| v.number).collect();
        for life in 0..5 {
            let mut secret = Secret::clone(&secret);
            let _changed = match life {
                0 => secret.promote(now).is_ok(),
                1 => secret.rollback(now, true).is_ok(),
                2 => secret.discard(now).is_some(),
                3 => !secret.revoke(&numbers, now).is_empty(),
                _ => numbers.iter().any(|number| secret.destroy(*number).is_some()),
            };
            secret.retire(numbers.first().copied().unwrap_or(0), Timestamp::MAX);
            let _pinned =
                (secret.version_to_pin(now).is_ok(), secret.version_to_follow(now).is_ok());
            let (_buried, _end) = (secret.buried(), secret.untold_end(Timestamp::MAX));
            let body = serde_json::to_vec(&secret).expect("a secret is JSON");
            stored_again::<Secret>(&body);
        }
    }
}

/// What is read of a record and written reads as the same.
fn stored_again<T: DeserializeOwned + serde::Serialize>(body: &[u8]) {
    match serde_json::from_slice::<T>(body) {
        Ok(read) => {
            let written = serde_json::to_value(&read).expect("a record is JSON");
            let again: T = serde_json::from_value(written.clone()).expect("as it was written");
            assert_eq!(serde_json::to_value(&again).expect("JSON"), written);
        }
        Err(error) => assert!(error.to_string().len() < 16 << 10),
    }
}

fn backup_file(data: &[u8]) {
    // A header that asks for much work is refused or done; here it would only take long.
    let text = String::from_utf8_lossy(&data[..data.len().min(2048)]);
    for field in ["\"memory_kib\":", "\"passes\":"] {
        let digits = text.split(field).nth(1).unwrap_or_default();
        let number: String = digits.chars().take_while(char::is_ascii_digit).collect();
        if number.parse::<u64>().unwrap_or(0) > 4096 {
            return;
        }
    }
    let phrase = SecretBytes::copy_of(b"a long passphrase");
    if let Err(error) = backup::open(&phrase, data) {
        quiet(data, &error, None);
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a scratch directory")
}
