//! The vault under kill -9: a real process commits to a real file and dies at any moment.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use strongroom::clock::Timestamp;
use strongroom::secret::SecretBytes;
use strongroom::vault::record::{Batch, RecordId, RecordKind};
use strongroom::vault::store::redb::RedbStore;
use strongroom::vault::unlock::Credential;
use strongroom::vault::unlock::passphrase::Cost;
use strongroom::vault::{Error, Locked, Vault};

const FILE: &str = "STRONGROOM_TEST_VAULT";
const ONE: RecordId = RecordId([1; 16]);
const TWO: RecordId = RecordId([2; 16]);

fn credential() -> Credential {
    Credential::KeyFile(SecretBytes::copy_of(&[9; 32]))
}

fn create(path: &Path) -> Vault {
    let store = RedbStore::create(path).unwrap();
    let credentials = [("k", credential())];
    Vault::create(Box::new(store), &credentials, Timestamp::UNIX_EPOCH, Cost::least()).unwrap()
}

fn open(path: &Path) -> Result<Vault, Error> {
    let locked = Locked::open(Box::new(RedbStore::open(path)?))?;
    let root = locked.root_key(&credential())?;
    locked.unlock(root, None, false)
}

fn number(vault: &Vault, id: RecordId) -> u64 {
    vault
        .get(RecordKind::Value, id)
        .unwrap()
        .map_or(0, |bytes| std::str::from_utf8(bytes.expose()).unwrap().trim().parse().unwrap())
}

/// Not a test of its own: the process that dies.
#[test]
fn committer() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let vault = open(Path::new(&path)).unwrap();
    let mut counter = number(&vault, ONE);
    let mut out = std::io::stdout().lock();
    loop {
        counter += 1;
        let mut batch = Batch::new();
        // Padded, so that a change spans pages.
        let text = SecretBytes::from_vec(format!("{counter:<6000}").into_bytes());
        batch.put(RecordKind::Value, ONE, SecretBytes::copy_of(text.expose()));
        batch.put(RecordKind::Value, TWO, text);
        vault.commit(&batch).unwrap();
        writeln!(out, "\nacknowledged {counter}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_writer_leaves_the_state_before_or_after_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vault.redb");
    drop(create(&path));
    // What is known to be stored: acknowledged, or seen after a death.
    let (mut known, mut acknowledged) = (0, 0);
    for round in 0..40_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["committer", "--exact", "--nocapture", "--test-threads=1"])
            .env(FILE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (works, begun) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .filter_map(|l| l.strip_prefix("acknowledged ")?.parse::<u64>().ok())
                .inspect(|_| works.send(()).unwrap_or(()))
                .last()
        });
        // Some die before they have stored anything; the others when they are at it.
        if round % 2 == 1 {
            begun.recv().unwrap();
        }
        std::thread::park_timeout(Duration::from_micros(round * 1_300));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(last) = reader.join().unwrap() {
            acknowledged += 1;
            known = last;
        }
        let vault = open(&path).unwrap();
        let (one, two) = (number(&vault, ONE), number(&vault, TWO));
        assert_eq!(one, two, "round {round}: half a change");
        assert!(one >= known, "round {round}: {one} after {known} was stored");
        assert!(one <= known + 1, "round {round}: {one} after {known}");
        known = one;
    }
    assert!(acknowledged >= 20, "{acknowledged} were at work");
}

#[test]
fn a_damaged_or_cut_file_is_refused_and_never_read_as_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vault.redb");
    let vault = create(&path);
    let mut batch = Batch::new();
    for i in 0..50_u8 {
        batch.put(RecordKind::Value, RecordId([i; 16]), SecretBytes::copy_of(&[i; 300]));
    }
    vault.commit(&batch).unwrap();
    drop(vault);
    let good = std::fs::read(&path).unwrap();
    let intact = |vault: &Vault| {
        (0..50_u8).all(|i| {
            let bytes = vault.get(RecordKind::Value, RecordId([i; 16])).unwrap();
            bytes.is_some_and(|b| b.expose() == [i; 300])
        })
    };
    let mut refused = 0;
    for step in 0..60_usize {
        let mut bad = good.clone();
        if step % 3 == 0 {
            bad.truncate(good.len() / 60 * step);
        } else {
            let at = good.len() / 60 * step + step * 37 % 4096;
            for byte in bad.iter_mut().skip(at).take(64) {
                *byte ^= 0x5a;
            }
        }
        std::fs::write(&path, &bad).unwrap();
        match open(&path) {
            Err(_) => refused += 1,
            // What was hit held nothing: all of it is still there.
            Ok(vault) => assert!(intact(&vault), "step {step}"),
        }
    }
    assert!(refused > 0);
    std::fs::write(&path, &good).unwrap();
    assert!(intact(&open(&path).unwrap()));
}
