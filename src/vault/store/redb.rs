//! The vault file: one redb database, mode 0600.
//!
//! Tables: `meta` (format, vault id, slots, seal, revision) and `records` (17 bytes of kind and id to
//! sealed bytes). redb makes a transaction durable with fsync before `commit` returns.
#![forbid(unsafe_code)]

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Change, Error, Image, Store};

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const RECORDS: TableDefinition<'static, &[u8; 17], &[u8]> = TableDefinition::new("records");

/// What redb may keep of the file in memory, in bytes: all records are in the vault's own memory, so
/// that pages are read once (redb's default is 1 GiB).
const CACHE_BYTES: usize = 8 << 20;

/// With less than this left, a fault is put down to it.
const LEAST_FREE_BYTES: u64 = 1 << 20;

/// The newest format that this program reads and the one it writes. It grows with whatever an older
/// program would take for an alteration, as a new kind of record
/// ([`RecordKind::since`](crate::vault::record::RecordKind::since)); an older vault gets it with its
/// next change.
pub const FORMAT: u32 = 2;

/// The vault file.
#[derive(Debug)]
pub struct RedbStore {
    path: PathBuf,
    /// None after a failed write, as on a full disk: redb refuses all else then, so that the file is
    /// opened anew.
    database: Mutex<Option<Database>>,
}

fn io(error: impl std::fmt::Display) -> Error {
    // redb's own errors name pages and files, never content.
    Error::Io { what: error.to_string() }
}

fn opening(error: DatabaseError) -> Error {
    match error {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse,
        DatabaseError::Storage(redb::StorageError::Corrupted(what)) => Error::Damaged { what },
        DatabaseError::Storage(redb::StorageError::Io(e))
            if e.kind() == std::io::ErrorKind::InvalidData
                || e.kind() == std::io::ErrorKind::UnexpectedEof =>
        {
            Error::Damaged { what: e.to_string() }
        }
        other => io(other),
    }
}

fn key(kind: u8, id: &[u8; 16]) -> [u8; 17] {
    let mut key = [0; 17];
    key[0] = kind;
    key[1..].copy_from_slice(id);
    key
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

impl RedbStore {
    /// Makes the file; there must be none.
    ///
    /// # Errors
    /// [`Error::Exists`]; else see [`Error`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Error::Exists,
                _ => io(e),
            })?;
        let backend = FileBackend::new(file).map_err(io)?;
        let database = builder().create_with_backend(backend).map_err(opening)?;
        Ok(Self { path: path.to_owned(), database: Mutex::new(Some(database)) })
    }

    /// Opens an existing file.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::InUse`], [`Error::Damaged`]; else see [`Error`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let database = Some(open(path)?);
        Ok(Self { path: path.to_owned(), database: Mutex::new(database) })
    }

    /// A vault on any storage: what tests count and break the writes of.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn on(storage: impl redb::StorageBackend) -> Result<Self, Error> {
        let database = contained(|| builder().create_with_backend(storage).map_err(opening))?;
        Ok(Self { path: PathBuf::new(), database: Mutex::new(Some(database)) })
    }

    fn load_image(&self) -> Result<Image, Error> {
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = self.opened(&mut held)?;
        let read = database.begin_read().map_err(io)?;
        let damaged = |what: &str| Error::Damaged { what: what.to_owned() };
        let meta = match read.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Err(Error::Missing),
            other => other.map_err(io)?,
        };
        let field = |name: &str| -> Result<Vec<u8>, Error> {
            let found = meta.get(name).map_err(io)?;
            found
                .map(|bytes| bytes.value().to_vec())
                .ok_or_else(|| damaged(&format!("the field {name} is missing")))
        };
        let format = u32::from_be_bytes(
            field("format")?.try_into().map_err(|_| damaged("the format's length"))?,
        );
        if format > FORMAT {
            return Err(Error::Newer { found: format, known: FORMAT });
        }
        let revision = u64::from_be_bytes(
            field("revision")?.try_into().map_err(|_| damaged("the revision's length"))?,
        );
        let mut image = Image {
            format,
            vault_id: field("vault-id")?.try_into().map_err(|_| damaged("the id's length"))?,
            slots: field("slots")?,
            seal: field("seal")?,
            revision,
            records: Vec::new(),
        };
        let records = read.open_table(RECORDS).map_err(io)?;
        for entry in records.iter().map_err(io)? {
            let (key, bytes) = entry.map_err(io)?;
            let [kind, id @ ..] = *key.value();
            image.records.push((kind, id, bytes.value().to_vec()));
        }
        Ok(image)
    }

    /// What redb does not say: whether a fault is for want of room.
    fn no_space(&self) -> Option<String> {
        let facts = nix::sys::statvfs::statvfs(&self.path).ok()?;
        let free = facts.blocks_available() * facts.fragment_size();
        (free < LEAST_FREE_BYTES).then(|| "no space is left on its disk".to_owned())
    }

    fn opened<'d>(&self, held: &'d mut Option<Database>) -> Result<&'d Database, Error> {
        if held.is_none() {
            *held = Some(open(&self.path)?);
        }
        held.as_ref().ok_or(Error::Missing)
    }

    fn store_change(
        &self,
        expected: Option<u64>,
        change: &Change,
        first: Option<&Image>,
    ) -> Result<(), Error> {
        let mut held = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = self.opened(&mut held)?;
        let mut write = database.begin_write().map_err(io)?;
        // A worker is killed, not closed: without this the next one reads the file three times over
        // before it serves. What a commit costs more is paid by changes, which are rare.
        write.set_quick_repair(true);
        {
            let mut meta = write.open_table(META).map_err(io)?;
            let mut records = write.open_table(RECORDS).map_err(io)?;
            let found = meta
                .get("revision")
                .map_err(io)?
                .and_then(|b| b.value().try_into().ok().map(u64::from_be_bytes));
            match (expected, found) {
                (None, Some(_)) => return Err(Error::Exists),
                (Some(_), None) => return Err(Error::Missing),
                (Some(expected), Some(found)) if expected != found => {
                    return Err(Error::Conflict { expected, found });
                }
                _ => {}
            }
            if let Some(image) = first {
                meta.insert("vault-id", image.vault_id.as_slice()).map_err(io)?;
            }
            meta.insert("format", change.format.to_be_bytes().as_slice()).map_err(io)?;
            meta.insert("revision", change.revision.to_be_bytes().as_slice()).map_err(io)?;
            meta.insert("seal", change.seal.as_slice()).map_err(io)?;
            if let Some(slots) = &change.slots {
                meta.insert("slots", slots.as_slice()).map_err(io)?;
            }
            for (kind, id, bytes) in &change.records {
                match bytes {
                    Some(bytes) => {
                        records.insert(&key(*kind, id), bytes.as_slice()).map_err(io)?;
                    }
                    None => {
                        records.remove(&key(*kind, id)).map_err(io)?;
                    }
                }
            }
        }
        write.commit().map_err(io)
    }
}

fn open(path: &Path) -> Result<Database, Error> {
    if !path.exists() {
        return Err(Error::Missing);
    }
    contained(|| builder().open(path).map_err(opening))
}

/// redb asserts on pages that an attacker or a bad disk altered, and on a file that was cut short;
/// that must be an error here.
fn contained<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Error::Damaged { what: "its pages do not hold together".into() }))
}

impl Store for RedbStore {
    fn create(&self, image: &Image) -> Result<(), Error> {
        let change = Change {
            format: image.format,
            revision: image.revision,
            seal: image.seal.clone(),
            slots: Some(image.slots.clone()),
            records: image.records.iter().map(|(k, i, b)| (*k, *i, Some(b.clone()))).collect(),
        };
        contained(|| self.store_change(None, &change, Some(image)))
    }

    fn load(&self) -> Result<Image, Error> {
        contained(|| self.load_image())
    }

    fn commit(&self, expected: u64, change: &Change) -> Result<(), Error> {
        let stored = contained(|| self.store_change(Some(expected), change, None));
        if matches!(stored, Err(Error::Io { .. } | Error::Damaged { .. })) {
            *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        match stored {
            Err(Error::Io { what }) => Err(Error::Io { what: self.no_space().unwrap_or(what) }),
            stored => stored,
        }
    }
}
