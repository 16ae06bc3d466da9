//! Vault files of each format that was ever written, and of one that is yet to come.

mod common;

use std::path::{Path, PathBuf};

use common::{Home, may_mount};
use strongroom::clock::Timestamp;
use strongroom::secret::SecretBytes;
use strongroom::vault::record::{Batch, RecordId, RecordKind};
use strongroom::vault::store::redb::{FORMAT, RedbStore};
use strongroom::vault::store::{self, Store};
use strongroom::vault::unlock::Credential;
use strongroom::vault::unlock::passphrase::Cost;
use strongroom::vault::{Error, Locked, Vault};

const PASSPHRASE: &[u8] = b"correct horse battery staple";

fn stored(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/format/v{format}.redb"))
}

fn credentials() -> [(&'static str, Credential); 3] {
    [
        ("words", Credential::Passphrase(SecretBytes::copy_of(PASSPHRASE))),
        ("file", Credential::KeyFile(SecretBytes::copy_of(&[42; 32]))),
        ("command", Credential::Command(vec!["/bin/cat".to_owned()])),
    ]
}

/// Every kind of record that a format has, one of them large, one of them written twice.
fn content(format: u32) -> Vec<(RecordKind, RecordId, Vec<u8>)> {
    let mut all = Vec::new();
    for byte in 1..=u8::MAX {
        let Some(kind) = RecordKind::from_byte(byte).filter(|k| k.since() <= format) else {
            continue;
        };
        let text = format!("{{\"record\": \"of kind {byte}\"}}");
        all.push((kind, RecordId([byte; 16]), text.into_bytes()));
    }
    all.push((RecordKind::Value, RecordId([99; 16]), vec![0xa5; 10_000]));
    all
}

fn batch(all: &[(RecordKind, RecordId, Vec<u8>)]) -> Batch {
    let mut batch = Batch::new();
    for (kind, id, bytes) in all {
        batch.put(*kind, *id, SecretBytes::copy_of(bytes));
    }
    batch
}

/// Not a test of its own: writes the file of the present format, once for each format.
#[test]
fn writer() {
    if std::env::var_os("STRONGROOM_WRITE_FORMAT").is_none() {
        return;
    }
    let path = stored(FORMAT);
    assert!(!path.exists(), "a stored file is never changed");
    let store = RedbStore::create(&path).unwrap();
    // The command slot needs a program that wraps; the other two are what a file can show.
    let vault =
        Vault::create(Box::new(store), &credentials()[..2], Timestamp::UNIX_EPOCH, Cost::least())
            .unwrap();
    let mut all = content(FORMAT);
    vault.commit(&batch(&all)).unwrap();
    all.truncate(1);
    vault.commit(&batch(&all)).unwrap();
}

#[test]
fn a_vault_of_every_format_opens_with_all_that_it_held_and_takes_changes() {
    let dir = tempfile::tempdir().unwrap();
    for format in 1..=FORMAT {
        for credential in &credentials()[..2] {
            let path = dir.path().join(format!("{format}.{}", credential.0));
            std::fs::copy(stored(format), &path).unwrap();
            let locked = Locked::open(Box::new(RedbStore::open(&path).unwrap())).unwrap();
            let root = locked.root_key(&credential.1).unwrap();
            let vault = locked.unlock(root, Some(3), false).unwrap();
            let all = content(format);
            assert_eq!(vault.len(), all.len());
            for (kind, id, bytes) in &all {
                assert_eq!(vault.get(*kind, *id).unwrap().unwrap().expose(), bytes);
            }
            let labels: Vec<_> = vault.slots().into_iter().map(|s| s.label).collect();
            assert_eq!(labels, ["words", "file"]);
            vault.commit(&batch(&all[..1])).unwrap();
            drop(vault);
            // With its first change it has become one that an older program calls newer.
            let store = RedbStore::open(&path).unwrap();
            assert_eq!(store.load().unwrap().format, FORMAT);
            let locked = Locked::open(Box::new(store)).unwrap();
            let root = locked.root_key(&credential.1).unwrap();
            assert_eq!(locked.unlock(root, Some(4), false).unwrap().len(), all.len());
        }
        let wrong = Credential::KeyFile(SecretBytes::copy_of(&[41; 32]));
        let path = dir.path().join(format!("{format}.file"));
        let locked = Locked::open(Box::new(RedbStore::open(&path).unwrap())).unwrap();
        assert!(locked.root_key(&wrong).is_err());
    }
}

fn set_format(path: &Path, format: u32) {
    let table = redb::TableDefinition::<&str, &[u8]>::new("meta");
    let database = redb::Database::open(path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(table).unwrap().insert("format", format.to_be_bytes().as_slice()).unwrap();
    write.commit().unwrap();
}

#[test]
fn a_newer_format_is_refused_with_the_next_step_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vault.redb");
    std::fs::copy(stored(FORMAT), &path).unwrap();
    set_format(&path, FORMAT + 1);
    let store = RedbStore::open(&path).unwrap();
    assert!(matches!(store.load(), Err(store::Error::Newer { found, .. }) if found == FORMAT + 1));
    let error = Locked::open(Box::new(store)).err().unwrap();
    assert!(matches!(&error, Error::Store(store::Error::Newer { .. })), "{error}");
    assert!(error.hint().unwrap().contains("newer"), "{:?}", error.hint());
    // A format that says it is another than its seal knows is no way in either.
    for (format, changed) in [(1, 0), (1, FORMAT), (FORMAT, 0), (FORMAT, FORMAT - 1)] {
        let path = dir.path().join(format!("{format}.{changed}"));
        std::fs::copy(stored(format), &path).unwrap();
        set_format(&path, changed);
        let locked = Locked::open(Box::new(RedbStore::open(&path).unwrap()));
        let opened = locked.and_then(|locked| {
            let root = locked.root_key(&credentials()[1].1)?;
            locked.unlock(root, None, false)
        });
        assert!(matches!(opened, Err(Error::Altered { .. })), "{format} as {changed}");
    }
}

#[test]
fn every_kind_of_record_is_of_a_format_that_has_a_stored_file() {
    for byte in 0..=u8::MAX {
        let Some(kind) = RecordKind::from_byte(byte) else { continue };
        assert_eq!(kind as u8, byte);
        assert!((1..=FORMAT).contains(&kind.since()), "{kind:?}: FORMAT grows with a new kind");
        assert!(stored(kind.since()).exists(), "{kind:?}");
    }
}

#[test]
fn a_daemon_over_a_newer_vault_says_so_and_serves_nothing() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    home.ok(&["down"]);
    let vault = home.home().join("vault.redb");
    set_format(&vault, FORMAT + 1);
    let message = home.refused(&["up"]);
    assert!(message.contains(&format!("format {}", FORMAT + 1)), "{message}");
    assert!(message.contains("newer"), "{message}");
    assert_eq!(home.json(&["status"])["state"], "locked");
    home.ok(&["down"]);
    set_format(&vault, FORMAT);
    home.ok(&["up"]);
    assert_eq!(home.json(&["secret", "list"])["secrets"].as_array().unwrap().len(), 5);
}
