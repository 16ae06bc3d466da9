//! A process that is killed at every single write, truncation and sync of every operation on the
//! vault: what is there afterwards is the vault before the operation, or after it.
//!
//! The operation runs in a child of this binary on a storage that counts; at the chosen call it
//! kills itself with SIGKILL, before the write or with half of its bytes written.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use strongroom::clock::Timestamp;
use strongroom::secret::SecretBytes;
use strongroom::vault::record::{Batch, RecordId, RecordKind};
use strongroom::vault::store::redb::RedbStore;
use strongroom::vault::unlock::Credential;
use strongroom::vault::unlock::passphrase::Cost;
use strongroom::vault::{Locked, Vault};

const FILE: &str = "STRONGROOM_TEST_VAULT";
const OPERATION: &str = "STRONGROOM_TEST_OPERATION";
const KILL_AT: &str = "STRONGROOM_TEST_KILL_AT";
const TORN: &str = "STRONGROOM_TEST_TORN";

/// Storage that counts what changes it, and dies at one of these calls.
#[derive(Debug)]
struct Counting {
    file: std::fs::File,
    calls: AtomicU64,
    kill_at: u64,
    torn: bool,
}

impl Counting {
    fn step(&self, tear: impl FnOnce()) {
        if self.calls.fetch_add(1, Ordering::Relaxed) + 1 == self.kill_at {
            if self.torn {
                tear();
            }
            let me = nix::unistd::getpid();
            nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL).unwrap();
            loop {
                std::thread::park();
            }
        }
    }
}

impl redb::StorageBackend for &'static Counting {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.step(|| {});
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.step(|| {});
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.step(|| {
            let _half = self.file.write_all_at(&data[..data.len() / 2], offset);
        });
        self.file.write_all_at(data, offset)
    }
}

fn key_file(byte: u8) -> Credential {
    Credential::KeyFile(SecretBytes::copy_of(&[byte; 32]))
}

fn id(n: u8) -> RecordId {
    RecordId([n; 16])
}

fn value(n: u8, len: usize) -> SecretBytes {
    SecretBytes::copy_of(&vec![n; len])
}

fn open(store: RedbStore) -> Vault {
    let locked = Locked::open(Box::new(store)).unwrap();
    // A rekey leaves the first or the second key.
    let root = locked.root_key(&key_file(9)).or_else(|_| locked.root_key(&key_file(8))).unwrap();
    locked.unlock(root, None, false).unwrap()
}

/// Everything that a vault says of itself: records with their bytes, slots by number and label.
type Told = (BTreeMap<(u8, [u8; 16]), Vec<u8>>, Vec<(u32, String)>, bool);

fn told(vault: &Vault) -> Told {
    let (_, records) = vault.snapshot().unwrap();
    let records = records
        .into_iter()
        .map(|((kind, id), bytes)| ((kind as u8, id.0), bytes.expose().to_vec()))
        .collect();
    let slots = vault.slots().into_iter().map(|s| (s.id, s.label)).collect();
    (records, slots, vault.check(&key_file(9)).is_ok())
}

const OPERATIONS: [&str; 9] = [
    "create a secret",
    "replace a large value",
    "rotate a group",
    "remove many",
    "replace everything",
    "add a slot",
    "remove a slot",
    "rekey a slot",
    "two changes in a row",
];

fn operate(vault: &Vault, operation: &str) {
    let mut batch = Batch::new();
    let now = Timestamp::UNIX_EPOCH;
    match operation {
        "create a secret" => {
            batch.put(RecordKind::Secret, id(200), value(1, 400));
            batch.put(RecordKind::Value, id(201), value(2, 48));
        }
        "replace a large value" => batch.put(RecordKind::Value, id(1), value(3, 1 << 18)),
        "rotate a group" => {
            for member in 2..12 {
                batch.put(RecordKind::Secret, id(member), value(member, 600));
                batch.put(RecordKind::Value, id(member + 100), value(member, 100));
            }
        }
        "remove many" => (1..30).for_each(|n| batch.delete(RecordKind::Value, id(n))),
        // One change in place of all that is there, as `backup restore` makes it.
        "replace everything" => {
            for kind in [RecordKind::Value, RecordKind::Secret] {
                vault.all(kind).unwrap().iter().for_each(|(id, _)| batch.delete(kind, *id));
            }
            (50..80).for_each(|n| batch.put(RecordKind::Value, id(n), value(n, 500)));
        }
        "add a slot" => {
            vault.add_slot("second", &key_file(7), now, Cost::least()).unwrap();
            return;
        }
        "remove a slot" => return vault.remove_slot(2).unwrap(),
        "rekey a slot" => {
            vault.rekey_slot(1, &key_file(8), now, Cost::least()).unwrap();
            return;
        }
        "two changes in a row" => {
            batch.put(RecordKind::Value, id(220), value(1, 100));
            vault.commit(&batch).unwrap();
            println!("\nfirst is durable");
            batch = Batch::new();
            batch.put(RecordKind::Value, id(221), value(1, 100));
        }
        _ => unreachable!("{operation}"),
    }
    vault.commit(&batch).unwrap();
}

/// Not a test of its own: the process that dies.
#[test]
fn operator() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let counting: &'static Counting = Box::leak(Box::new(Counting {
        file,
        calls: AtomicU64::new(0),
        kill_at: number(KILL_AT),
        torn: number(TORN) == 1,
    }));
    let vault = open(RedbStore::on(counting).unwrap());
    operate(&vault, &std::env::var(OPERATION).unwrap());
    println!("\nacknowledged");
    // The file is closed as an orderly end does it: these writes count as well.
    drop(vault);
    println!("\ncalls {}", counting.calls.load(Ordering::Relaxed));
}

/// What the child printed, by line.
fn run(path: &Path, operation: &str, kill_at: u64, torn: bool) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["operator", "--exact", "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .env(OPERATION, operation)
        .env(KILL_AT, kill_at.to_string())
        .env(TORN, u8::from(torn).to_string())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(ToOwned::to_owned).collect()
}

fn said(lines: &[String], what: &str) -> bool {
    lines.iter().any(|line| line == what)
}

#[test]
fn a_kill_at_every_write_of_every_operation_leaves_before_or_after() -> io::Result<()> {
    // In memory where there is such a place: what a kill leaves does not depend on the disk.
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm)? } else { tempfile::tempdir()? };
    let base = dir.path().join("base.redb");
    let vault = Vault::create(
        Box::new(RedbStore::create(&base).unwrap()),
        &[("first", key_file(9)), ("spare", key_file(6))],
        Timestamp::UNIX_EPOCH,
        Cost::least(),
    )
    .unwrap();
    let mut batch = Batch::new();
    for n in 1..60 {
        batch.put(RecordKind::Value, id(n), value(n, 300));
        batch.put(RecordKind::Secret, id(n), value(n, 500));
    }
    vault.commit(&batch).unwrap();
    let before = told(&vault);
    drop(vault);
    let file = dir.path().join("vault.redb");
    let mut kills = 0;
    for operation in OPERATIONS {
        std::fs::copy(&base, &file)?;
        let lines = run(&file, operation, u64::MAX, false);
        let calls: u64 = lines
            .iter()
            .find_map(|line| line.strip_prefix("calls ")?.parse().ok())
            .unwrap_or_else(|| panic!("{operation}: {lines:?}"));
        let after = told(&open(RedbStore::open(&file).unwrap()));
        assert_ne!(before, after, "{operation} changes something");
        assert!(calls > 2, "{operation}: {calls}");
        for kill_at in 1..=calls {
            for torn in [false, true] {
                std::fs::copy(&base, &file)?;
                let lines = run(&file, operation, kill_at, torn);
                let place = format!("{operation}, call {kill_at} of {calls}, torn {torn}");
                assert!(!lines.iter().any(|l| l.starts_with("calls ")), "{place}: not killed");
                let now = told(&open(RedbStore::open(&file).unwrap()));
                let acknowledged = said(&lines, "acknowledged");
                let first = {
                    let mut first = before.clone();
                    first.0.insert((RecordKind::Value as u8, [220; 16]), vec![1; 100]);
                    first
                };
                let two = operation == "two changes in a row";
                assert!(
                    now == after
                        || (now == before && !acknowledged && !said(&lines, "first is durable"))
                        || (two && now == first && !acknowledged),
                    "{place}: half done or lost"
                );
                // And it takes the next change.
                let mut batch = Batch::new();
                batch.put(RecordKind::Value, id(250), value(1, 10));
                open(RedbStore::open(&file).unwrap()).commit(&batch).unwrap();
                kills += 1;
            }
        }
    }
    println!("{kills} kills");
    Ok(())
}
