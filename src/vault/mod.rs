//! The vault: an encrypted, authenticated set of records that changes in transactions.
//!
//! A stolen file shows neither names nor values; an altered, mixed or rolled-back one is refused.
//! Every record is sealed under a key of its own, bound to vault, format, kind, id and version; the
//! *set* of records is sealed too, so that a missing or resurrected one is found; and the revision,
//! which only grows, is kept in the audit log as well.
//!
//! Invariant: a [`Vault`] that exists was verified as a whole. Lock order: `writing`, then `sealed`.
//! The format is described in `manual::vault_format`; stored files of each are in `tests/format`.
#![forbid(unsafe_code)]

pub mod backup;
pub mod crypto;
pub mod record;
mod slots;
pub mod store;
pub mod unlock;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::secret::SecretBytes;

use crypto::{Deriver, Key, NoRandomness};
use record::{Batch, RecordId, RecordKey, RecordKind};
use slots::{encode_slots, open_slots};
use store::redb::FORMAT;
use store::{Change, Image, Store};
use unlock::passphrase::Cost;
use unlock::{Credential, NewSlot, Slot};

/// Why the vault refuses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A record or the set of records is not what we wrote.
    #[error("the vault was altered: {what}")]
    Altered {
        /// What does not verify.
        what: &'static str,
    },
    /// The last slot cannot go.
    #[error("key slot {id} is the last one")]
    LastSlot {
        /// Its number.
        id: u32,
    },
    /// No such slot.
    #[error("there is no key slot {id}")]
    NoSlot {
        /// Its number.
        id: u32,
    },
    /// Randomness failed.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The file is older than what the audit log has seen.
    #[error(
        "the vault file is older than the audit log: it is at revision {found}, the log has seen {known}"
    )]
    RolledBack {
        /// In the file.
        found: u64,
        /// In the log.
        known: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A slot failed.
    #[error(transparent)]
    Unlock(#[from] unlock::Error),
}

impl Error {
    /// The next step, where there is one.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Altered { .. } | Self::Store(store::Error::Damaged { .. }) => {
                "restore it from a backup: `strongroom backup restore FILE`"
            }
            Self::LastSlot { .. } => "add another first: `strongroom key add`",
            Self::NoSlot { .. } => "`strongroom key list` shows the slots",
            Self::RolledBack { .. } => {
                "if you restored it on purpose: strongroom unlock --accept-rollback"
            }
            Self::Store(store::Error::Exists) => "it stays as it is; `strongroom up` serves it",
            Self::Store(store::Error::InUse) => "a daemon has it open: `strongroom status`",
            Self::Store(store::Error::Missing) => "make one: `strongroom init`",
            Self::Store(store::Error::Newer { .. }) => "install a newer strongroom",
            Self::Store(store::Error::Conflict { .. }) => "try again",
            Self::Store(store::Error::Io { .. }) => "check the disk's space and the file's mode",
            Self::Unlock(unlock::Error::Refused) => {
                "check the credential; `strongroom key list` shows which slots there are"
            }
            Self::Unlock(unlock::Error::Command { .. }) => {
                "run the program by hand; [unlock] command in strongroom.toml names it"
            }
            Self::Unlock(unlock::Error::Credential { .. }) => "give a stronger one",
            Self::Unlock(unlock::Error::Random(_)) | Self::Random(_) => return None,
        })
    }
}

/// The seal: what makes a set of records the set that we wrote.
#[derive(Serialize, Deserialize)]
struct Seal {
    revision: u64,
    count: u64,
    /// XOR of a keyed digest of each record, in hex.
    set: String,
    /// Digest of the slots, in hex.
    slots: String,
    /// The format that the store names in clear; vaults of the first one do not say it.
    #[serde(default = "first_format")]
    format: u32,
}

fn first_format() -> u32 {
    1
}

/// What is bound into every sealed record. Only where records would be sealed in another way does it
/// become another: then all are sealed anew. New kinds of records are told by the format alone.
const SEALING: u32 = 1;

#[derive(Clone)]
struct Sealed {
    version: u64,
    bytes: Box<[u8]>,
}

struct Keys {
    records: Deriver,
    set: Deriver,
    seal: Deriver,
}

impl Keys {
    fn of(root: &Key, vault_id: &[u8; 16]) -> Self {
        Self {
            records: root.derive(vault_id, &[b"records"]).deriver(),
            set: root.derive(vault_id, &[b"set"]).deriver(),
            seal: root.derive(vault_id, &[b"seal"]).deriver(),
        }
    }
}

struct Head {
    revision: u64,
    /// The highest revision that the audit log knew: after an accepted rollback numbers go on from
    /// there, so that none is used twice and the next start is not refused.
    floor: u64,
    set: [u8; 32],
    slots: Vec<Slot>,
}

impl Head {
    fn next(&self) -> u64 {
        self.revision.max(self.floor) + 1
    }
}

/// A vault whose key is not known yet.
pub struct Locked {
    store: Box<dyn Store>,
    image: Image,
    slots: Vec<Slot>,
}

/// An unlocked vault.
pub struct Vault {
    store: Box<dyn Store>,
    vault_id: [u8; 16],
    root: Key,
    keys: Keys,
    /// One change at a time. Held over the store's fsync; readers do not wait for it.
    writing: Mutex<Head>,
    sealed: RwLock<HashMap<RecordKey, Sealed>>,
}

fn context(what: &[u8], vault_id: &[u8; 16], rest: &[&[u8]]) -> Vec<u8> {
    let mut out = [b"strongroom ", what, vault_id.as_slice(), &SEALING.to_be_bytes()].concat();
    for part in rest {
        out.extend_from_slice(part);
    }
    out
}

fn xor(into: &mut [u8; 32], mark: &[u8; 32]) {
    for (a, b) in into.iter_mut().zip(mark) {
        *a ^= b;
    }
}

impl Locked {
    /// Reads a vault without its key.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Altered`] when the slots do not parse.
    pub fn open(store: Box<dyn Store>) -> Result<Self, Error> {
        let image = store.load()?;
        let slots = serde_json::from_slice(&image.slots)
            .map_err(|_| Error::Altered { what: "the key slots do not parse" })?;
        Ok(Self { store, image, slots })
    }

    /// Its key slots.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Names the vault.
    pub fn vault_id(&self) -> [u8; 16] {
        self.image.vault_id
    }

    /// The root key, by whichever slot the credential opens.
    ///
    /// # Errors
    /// [`Error::Unlock`].
    pub fn root_key(&self, credential: &Credential) -> Result<Key, Error> {
        open_slots(&self.slots, &self.image.vault_id, credential)
    }

    /// Unlocks and verifies everything. `known_revision` is the highest that the audit log has
    /// seen; an older file is refused unless `accept_rollback`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn unlock(
        self,
        root: Key,
        known_revision: Option<u64>,
        accept_rollback: bool,
    ) -> Result<Vault, Error> {
        let Self { store, image, slots } = self;
        let keys = Keys::of(&root, &image.vault_id);
        let altered = |what| Error::Altered { what };
        let seal_context = context(b"seal", &image.vault_id, &[&image.revision.to_be_bytes()]);
        let seal_key = keys.seal.derive(&[&image.revision.to_be_bytes()]);
        let opened = seal_key
            .open(&seal_context, &image.seal)
            .map_err(|_| altered("its seal does not verify"))?;
        let seal: Seal = serde_json::from_slice(opened.expose())
            .map_err(|_| altered("its seal does not parse"))?;
        if seal.revision != image.revision {
            return Err(altered("its seal is of another revision"));
        }
        if seal.format != image.format {
            return Err(altered("its format is not the one that was sealed"));
        }
        if seal.slots != crypto::hex(&crypto::digest(&[&image.slots])) {
            return Err(altered("its key slots are not those that were sealed"));
        }
        if seal.count != image.records.len() as u64 {
            return Err(altered("a record is missing or too many"));
        }
        let mut set = [0; 32];
        let mut sealed = HashMap::with_capacity(image.records.len());
        for (kind, id, bytes) in image.records {
            let kind =
                RecordKind::from_byte(kind).ok_or(altered("a record has an unknown kind"))?;
            let key = (kind, RecordId(id));
            let record =
                Sealed::parse(bytes).ok_or(altered("a record is shorter than its header"))?;
            xor(&mut set, &mark(&keys, key, &record.bytes));
            sealed.insert(key, record);
        }
        if seal.set != crypto::hex(&set) {
            return Err(altered("its records are not those that were sealed together"));
        }
        if let Some(known) = known_revision
            && image.revision < known
            && !accept_rollback
        {
            return Err(Error::RolledBack { found: image.revision, known });
        }
        Ok(Vault {
            store,
            vault_id: image.vault_id,
            root,
            keys,
            writing: Mutex::new(Head {
                revision: image.revision,
                floor: known_revision.unwrap_or(0),
                set,
                slots,
            }),
            sealed: RwLock::new(sealed),
        })
    }
}

impl Sealed {
    /// Version (8 bytes), then the sealed bytes.
    fn parse(stored: Vec<u8>) -> Option<Self> {
        let version = u64::from_be_bytes(*stored.first_chunk::<8>()?);
        Some(Self { version, bytes: stored.into() })
    }
}

/// The keyed digest by which a record counts in the set.
fn mark(keys: &Keys, (kind, id): RecordKey, stored: &[u8]) -> [u8; 32] {
    *keys.set.derive(&[&[kind as u8], &id.0, &crypto::digest(&[stored])]).expose()
}

impl Vault {
    /// Makes a vault with one slot for each credential.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn create(
        store: Box<dyn Store>,
        credentials: &[(&str, Credential)],
        now: crate::clock::Timestamp,
        cost: Cost,
    ) -> Result<Self, Error> {
        let mut vault_id = [0; 16];
        crypto::random(&mut vault_id)?;
        let root = Key::random()?;
        let mut slots = Vec::new();
        for (index, (label, credential)) in credentials.iter().enumerate() {
            let id = u32::try_from(index + 1).unwrap_or(u32::MAX);
            let new = NewSlot { id, label, created_at: now, cost };
            slots.push(unlock::enroll(&vault_id, &root, credential, new)?);
        }
        let keys = Keys::of(&root, &vault_id);
        let head = Head { revision: 1, floor: 0, set: [0; 32], slots };
        let vault = Self {
            store,
            vault_id,
            root,
            keys,
            writing: Mutex::new(head),
            sealed: RwLock::new(HashMap::new()),
        };
        {
            let head = vault.head();
            let slots = encode_slots(&head.slots);
            let seal = vault.seal(1, 0, &head.set, &slots)?;
            vault.store.create(&Image {
                format: FORMAT,
                vault_id,
                slots,
                seal,
                revision: 1,
                records: Vec::new(),
            })?;
        }
        Ok(vault)
    }

    fn head(&self) -> std::sync::MutexGuard<'_, Head> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seal(
        &self,
        revision: u64,
        count: u64,
        set: &[u8; 32],
        slots: &[u8],
    ) -> Result<Vec<u8>, NoRandomness> {
        let seal = Seal {
            revision,
            count,
            set: crypto::hex(set),
            slots: crypto::hex(&crypto::digest(&[slots])),
            format: FORMAT,
        };
        let text = serde_json::to_vec(&seal).expect("a seal is plain JSON");
        let seal_context = context(b"seal", &self.vault_id, &[&revision.to_be_bytes()]);
        self.keys.seal.derive(&[&revision.to_be_bytes()]).seal(&seal_context, &text)
    }

    /// Names the vault.
    pub fn vault_id(&self) -> [u8; 16] {
        self.vault_id
    }

    /// Counts the changes; it only grows.
    pub fn revision(&self) -> u64 {
        self.head().revision
    }

    /// The root key, for the keeper's box.
    pub fn root_key(&self) -> &Key {
        &self.root
    }

    /// A key for a purpose outside the vault, as the audit log's.
    pub fn derive_key(&self, purpose: &str) -> Key {
        self.root.derive(&self.vault_id, &[b"purpose", purpose.as_bytes()])
    }

    /// Its key slots.
    pub fn slots(&self) -> Vec<Slot> {
        self.head().slots.clone()
    }

    /// Whether a credential opens one of its slots.
    ///
    /// # Errors
    /// [`Error::Unlock`] when it opens none.
    pub fn check(&self, credential: &Credential) -> Result<(), Error> {
        let slots = self.slots();
        let root = open_slots(&slots, &self.vault_id, credential)?;
        // A slot of this vault wraps this root key; anything else was put there by somebody.
        if root.same(&self.root) { Ok(()) } else { Err(unlock::Error::Refused.into()) }
    }

    /// Decrypts a record.
    ///
    /// # Errors
    /// [`Error::Altered`] when it does not verify; it did when the vault was unlocked, as part of
    /// the set.
    pub fn get(&self, kind: RecordKind, id: RecordId) -> Result<Option<SecretBytes>, Error> {
        let sealed = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        sealed.get(&(kind, id)).map(|record| self.open(kind, id, record)).transpose()
    }

    fn open(&self, kind: RecordKind, id: RecordId, record: &Sealed) -> Result<SecretBytes, Error> {
        let (key, context) = self.record_key(kind, id, record.version);
        key.open(&context, &record.bytes[8..])
            .map_err(|_| Error::Altered { what: "a record does not verify" })
    }

    fn record_key(&self, kind: RecordKind, id: RecordId, version: u64) -> (Key, Vec<u8>) {
        let version = version.to_be_bytes();
        let parts: [&[u8]; 3] = [&[kind as u8], &id.0, &version];
        let key = self.keys.records.derive(&parts);
        (key, context(b"record", &self.vault_id, &parts))
    }

    /// Whether a record is there.
    pub fn contains(&self, kind: RecordKind, id: RecordId) -> bool {
        self.sealed.read().unwrap_or_else(PoisonError::into_inner).contains_key(&(kind, id))
    }

    /// Decrypts all records of a kind.
    ///
    /// # Errors
    /// [`Error::Altered`].
    pub fn all(&self, kind: RecordKind) -> Result<Vec<(RecordId, SecretBytes)>, Error> {
        let mut all = Vec::new();
        self.each(kind, |id, bytes| {
            all.push((id, bytes));
            Ok(())
        })?;
        Ok(all)
    }

    /// Decrypts the records of a kind one after the other, in no order. Changes wait meanwhile.
    ///
    /// # Errors
    /// [`Error::Altered`], or what `take` says.
    pub fn each(
        &self,
        kind: RecordKind,
        mut take: impl FnMut(RecordId, SecretBytes) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let sealed = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        for ((_, id), record) in sealed.iter().filter(|((k, _), _)| *k == kind) {
            take(*id, self.open(kind, *id, record)?)?;
        }
        Ok(())
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.sealed.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes all changes of `batch`, durable on return; returns the new revision.
    ///
    /// # Errors
    /// See [`Error`]; nothing has changed then.
    pub fn commit(&self, batch: &Batch) -> Result<u64, Error> {
        let mut head = self.head();
        if batch.is_empty() {
            return Ok(head.revision);
        }
        let revision = head.next();
        let mut set = head.set;
        let mut records = Vec::with_capacity(batch.changes.len());
        let mut applied = Vec::with_capacity(batch.changes.len());
        let mut count = self.len() as u64;
        for (key @ (kind, id), bytes) in &batch.changes {
            let old = {
                let sealed = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
                sealed.get(key).map(|record| mark(&self.keys, *key, &record.bytes))
            };
            if let Some(old) = old {
                xor(&mut set, &old);
                count -= 1;
            }
            let Some(bytes) = bytes else {
                records.push((*kind as u8, id.0, None));
                applied.push((*key, None));
                continue;
            };
            let (record_key, context) = self.record_key(*kind, *id, revision);
            let stored =
                [&revision.to_be_bytes()[..], &record_key.seal(&context, bytes.expose())?].concat();
            let mark = mark(&self.keys, *key, &stored);
            xor(&mut set, &mark);
            count += 1;
            records.push((*kind as u8, id.0, Some(stored.clone())));
            applied.push((*key, Some(Sealed { version: revision, bytes: stored.into() })));
        }
        let seal = self.seal(revision, count, &set, &encode_slots(&head.slots))?;
        self.store_change(
            head.revision,
            &Change { format: FORMAT, revision, seal, slots: None, records },
        )?;
        head.revision = revision;
        head.set = set;
        let mut sealed = self.sealed.write().unwrap_or_else(PoisonError::into_inner);
        for (key, record) in applied {
            match record {
                Some(record) => {
                    sealed.insert(key, record);
                }
                None => {
                    sealed.remove(&key);
                }
            }
        }
        Ok(revision)
    }

    /// Stores a change. A store that fails after the change became durable has made it: memory must
    /// follow, or nothing could ever be changed again.
    fn store_change(&self, expected: u64, change: &Change) -> Result<(), Error> {
        match self.store.commit(expected, change) {
            Ok(()) => Ok(()),
            Err(error) => match self.store.load() {
                Ok(image) if image.revision == change.revision && image.seal == change.seal => {
                    Ok(())
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Every record of one revision, decrypted, with that revision's number.
    ///
    /// # Errors
    /// [`Error::Altered`].
    pub fn snapshot(&self) -> Result<(u64, Vec<(RecordKey, SecretBytes)>), Error> {
        // Held: no change comes in between.
        let head = self.head();
        let sealed = self.sealed.read().unwrap_or_else(PoisonError::into_inner);
        let all = sealed
            .iter()
            .map(|(key, record)| Ok((*key, self.open(key.0, key.1, record)?)))
            .collect::<Result<_, Error>>()?;
        Ok((head.revision, all))
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Locked").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use std::sync::Arc;
    use store::memory::MemoryStore;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn key_file(byte: u8) -> Credential {
        Credential::KeyFile(SecretBytes::copy_of(&[byte; 32]))
    }

    fn new_vault() -> (Arc<MemoryStore>, Vault) {
        let store = Arc::new(MemoryStore::new());
        let credentials = [("first", key_file(1))];
        let vault =
            Vault::create(Box::new(store.clone()), &credentials, NOW, Cost::least()).unwrap();
        (store, vault)
    }

    fn put(vault: &Vault, id: u8, bytes: &[u8]) {
        let mut batch = Batch::new();
        batch.put(RecordKind::Value, RecordId([id; 16]), SecretBytes::copy_of(bytes));
        vault.commit(&batch).unwrap();
    }

    fn reopen(image: Image) -> Result<Vault, Error> {
        let locked = Locked::open(Box::new(Arc::new(MemoryStore::with(image))))?;
        let root = locked.root_key(&key_file(1))?;
        locked.unlock(root, None, false)
    }

    fn get(vault: &Vault, id: u8) -> Option<Vec<u8>> {
        vault
            .get(RecordKind::Value, RecordId([id; 16]))
            .unwrap()
            .map(|bytes| bytes.expose().to_vec())
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart_and_not_in_clear() {
        let (store, vault) = new_vault();
        put(&vault, 1, b"a secret value");
        put(&vault, 2, b"another");
        put(&vault, 1, b"a newer value");
        let mut batch = Batch::new();
        batch.delete(RecordKind::Value, RecordId([2; 16]));
        vault.commit(&batch).unwrap();
        let image = store.image().unwrap();
        assert!(!format!("{image:?}").contains("secret"));
        let vault = reopen(image).unwrap();
        assert_eq!(get(&vault, 1).unwrap(), b"a newer value");
        assert_eq!(get(&vault, 2), None);
        assert_eq!(vault.all(RecordKind::Value).unwrap().len(), 1);
        assert!(vault.all(RecordKind::Secret).unwrap().is_empty());
    }

    #[test]
    fn any_altered_missing_swapped_or_resurrected_record_is_refused() {
        let (store, vault) = new_vault();
        put(&vault, 1, b"one");
        put(&vault, 2, b"two");
        let old = store.image().unwrap();
        put(&vault, 1, b"new");
        let good = store.image().unwrap();
        assert!(reopen(good.clone()).is_ok());
        let refused = |image: Image| matches!(reopen(image), Err(Error::Altered { .. }));

        let mut altered = good.clone();
        *altered.records[0].2.last_mut().unwrap() ^= 1;
        assert!(refused(altered), "flipped bit");

        let mut missing = good.clone();
        missing.records.pop();
        assert!(refused(missing), "missing record");

        let mut swapped = good.clone();
        let first = swapped.records[0].2.clone();
        swapped.records[0].2 = swapped.records[1].2.clone();
        swapped.records[1].2 = first;
        assert!(refused(swapped), "swapped records");

        let mut resurrected = good.clone();
        let old_one = old.records.iter().find(|(_, id, _)| *id == [1; 16]).unwrap().clone();
        resurrected.records.retain(|(_, id, _)| *id != [1; 16]);
        resurrected.records.push(old_one);
        assert!(refused(resurrected), "older version of a record");

        let mut mixed = good.clone();
        mixed.seal.clone_from(&old.seal);
        assert!(refused(mixed), "older seal");

        let mut slots = good.clone();
        slots.slots.push(b' ');
        assert!(refused(slots), "altered slots");
    }

    #[test]
    fn an_older_file_is_refused_unless_accepted() {
        let (store, vault) = new_vault();
        put(&vault, 1, b"one");
        let old = store.image().unwrap();
        put(&vault, 1, b"two");
        let known = vault.revision();
        let open = |accept| {
            let locked = Locked::open(Box::new(Arc::new(MemoryStore::with(old.clone())))).unwrap();
            let root = locked.root_key(&key_file(1)).unwrap();
            locked.unlock(root, Some(known), accept)
        };
        assert!(matches!(open(false), Err(Error::RolledBack { found: 2, known: 3 })));
        let accepted = open(true).unwrap();
        assert_eq!(get(&accepted, 1).unwrap(), b"one");
        // The next change is newer than all that the log has seen.
        put(&accepted, 1, b"three");
        assert_eq!(accepted.revision(), known + 1);
    }

    #[test]
    fn a_failed_commit_changes_nothing() {
        let (store, vault) = new_vault();
        put(&vault, 1, b"one");
        store.fail_next();
        let mut batch = Batch::new();
        batch.put(RecordKind::Value, RecordId([1; 16]), SecretBytes::copy_of(b"two"));
        assert!(matches!(vault.commit(&batch), Err(Error::Store(_))));
        assert_eq!(get(&vault, 1).unwrap(), b"one");
        vault.commit(&batch).unwrap();
        assert_eq!(get(&reopen(store.image().unwrap()).unwrap(), 1).unwrap(), b"two");
    }

    #[test]
    fn slots_are_added_removed_and_rekeyed_and_the_last_one_stays() {
        let (store, vault) = new_vault();
        let second = vault.add_slot("second", &key_file(2), NOW, Cost::least()).unwrap();
        let open = |byte| {
            let locked = Locked::open(Box::new(store.clone())).unwrap();
            locked.root_key(&key_file(byte)).is_ok()
        };
        assert!(open(1) && open(2) && !open(3));
        vault.remove_slot(1).unwrap();
        assert!(!open(1) && open(2));
        assert!(matches!(vault.remove_slot(second.id), Err(Error::LastSlot { .. })));
        assert!(matches!(vault.remove_slot(9), Err(Error::NoSlot { id: 9 })));
        vault.rekey_slot(second.id, &key_file(3), NOW, Cost::least()).unwrap();
        assert!(!open(2) && open(3));
    }

    #[test]
    fn an_old_slot_cannot_be_put_back() {
        let (store, vault) = new_vault();
        let with_one = store.image().unwrap().slots;
        vault.add_slot("second", &key_file(2), NOW, Cost::least()).unwrap();
        vault.remove_slot(1).unwrap();
        let mut image = store.image().unwrap();
        image.slots = with_one;
        assert!(matches!(reopen(image), Err(Error::Altered { .. })));
    }
}
