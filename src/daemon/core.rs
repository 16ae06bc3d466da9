//! Vault, catalog and audit log together, as the read path and the verbs share them.
//!
//! Lock order: `changing`, `catalog`, `vault`. Invariant: the catalog in memory is what the vault
//! holds; a change goes to the vault first. Danger: a lookup of the mount that waits for the
//! catalog while a change waits for the disk.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::audit::log::{Log, Unavailable};
use crate::audit::record::{Event, Record};
use crate::broker::Refusal;
use crate::broker::backend::{Access, Backend, Outcome, Recorder};
use crate::catalog::Catalog;
use crate::catalog::name::EnvName;
use crate::catalog::secret::Stage;
use crate::clock::Clock;
use crate::execution::principal::Principal;
use crate::proto::{Code, Problem};
use crate::secret::SecretBytes;
use crate::sys::proc;
use crate::vault::crypto::{self, Key};
use crate::vault::record::{Batch, RecordId, RecordKind};
use crate::vault::{self, Vault};

use super::needles::Needles;
use super::search::Searches;

/// See the module.
pub struct Core {
    /// The audit log.
    pub log: Log,
    /// The time.
    pub clock: Arc<dyn Clock>,
    environments: Vec<EnvName>,
    /// One change at a time. Held over the store's fsync; the catalog's own lock is not.
    changing: Mutex<()>,
    catalog: RwLock<Catalog>,
    vault: RwLock<Option<Arc<Vault>>>,
    /// Values that are denied to everybody, by record id: revoked ones, from the moment on that a
    /// revoke has begun.
    denied: RwLock<HashSet<String>>,
    /// What redaction looks for.
    pub needles: Needles,
    /// What event files that are complete are still to be searched for.
    pub(super) searches: Searches,
    /// Seals what is held back of event files, while the vault is unlocked.
    seal: RwLock<Option<Arc<Key>>>,
    /// Keys of the fingerprints that came with backups of other vaults.
    foreign: RwLock<Arc<Vec<Key>>>,
}

thread_local! {
    /// Whether this thread reads the catalog now.
    static READING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The catalog while it is read.
pub struct Reading<'a>(RwLockReadGuard<'a, Catalog>);

impl std::ops::Deref for Reading<'_> {
    type Target = Catalog;

    fn deref(&self) -> &Catalog {
        &self.0
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        READING.with(|reading| reading.set(false));
    }
}

impl Core {
    /// With a locked vault.
    pub fn new(log: Log, clock: Arc<dyn Clock>, environments: Vec<EnvName>) -> Self {
        Self {
            log,
            clock,
            changing: Mutex::new(()),
            catalog: RwLock::new(Catalog::new(environments.clone())),
            environments,
            vault: RwLock::new(None),
            denied: RwLock::default(),
            needles: Needles::default(),
            searches: Searches::default(),
            seal: RwLock::default(),
            foreign: RwLock::default(),
        }
    }

    /// Denies values to everybody, at once.
    pub fn deny(&self, values: impl IntoIterator<Item = String>) {
        self.denied.write().unwrap_or_else(PoisonError::into_inner).extend(values);
    }

    /// Whether a value is denied to everybody.
    pub fn is_denied(&self, value: &str) -> bool {
        self.denied.read().unwrap_or_else(PoisonError::into_inner).contains(value)
    }

    /// The catalog, for reading. One at a time in a thread: a second reading behind a waiting writer
    /// would wait for ever.
    pub fn catalog(&self) -> Reading<'_> {
        READING.with(|reading| {
            debug_assert!(!reading.get(), "the catalog is being read by this thread already");
            reading.set(true);
        });
        Reading(self.catalog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The vault, if it is unlocked.
    pub fn vault(&self) -> Option<Arc<Vault>> {
        self.vault.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The vault, or the problem that it is locked.
    ///
    /// # Errors
    /// The problem.
    pub fn unlocked(&self) -> Result<Arc<Vault>, Problem> {
        self.vault().ok_or_else(|| {
            Problem::new(Code::Locked, "the vault is locked").with_hint("strongroom unlock")
        })
    }

    /// Takes an unlocked vault and reads its catalog.
    ///
    /// # Errors
    /// [`vault::Error::Altered`] when a record is not what its kind says.
    pub fn install(&self, vault: Vault) -> Result<(), vault::Error> {
        let _turn = self.turn();
        let catalog = load(&vault, &self.environments)?;
        self.searches.load(&vault)?;
        self.deny_revoked(&catalog);
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
        self.take_foreign(&vault)?;
        let seal = Arc::new(vault.derive_key("events held back"));
        *self.seal.write().unwrap_or_else(PoisonError::into_inner) = Some(seal);
        *self.vault.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(vault));
        self.needles.forget();
        Ok(())
    }

    /// Reads the catalog anew, after a restore.
    ///
    /// # Errors
    /// As [`Core::install`].
    pub fn reload(&self) -> Result<(), vault::Error> {
        let _turn = self.turn();
        let Some(vault) = self.vault() else { return Ok(()) };
        let catalog = load(&vault, &self.environments)?;
        self.deny_revoked(&catalog);
        self.take_foreign(&vault)?;
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
        self.needles.forget();
        self.searches.load(&vault)?;
        self.searches.add_values(&vault, Vec::new())
    }

    fn take_foreign(&self, vault: &Vault) -> Result<(), vault::Error> {
        let mut foreign = Vec::new();
        vault.each(RecordKind::FingerprintKey, |id, bytes| {
            if id.0 != vault.vault_id() {
                foreign.extend(Key::from_bytes(bytes.expose()));
            }
            Ok(())
        })?;
        *self.foreign.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(foreign);
        Ok(())
    }

    /// Keys of the fingerprints that came with backups of other vaults.
    pub fn foreign_keys(&self) -> Arc<Vec<Key>> {
        self.foreign.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key that seals what is held back of event files; none while the vault is locked.
    pub fn seal(&self) -> Option<Arc<Key>> {
        self.seal.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn deny_revoked(&self, catalog: &Catalog) {
        let versions = catalog.each_secret().flat_map(|s| &s.versions);
        let revoked = versions.filter(|v| v.stage == Stage::Revoked);
        self.deny(revoked.filter_map(|v| v.value.clone()));
    }

    /// Forgets the vault and the catalog.
    pub fn forget(&self) {
        let _turn = self.turn();
        *self.vault.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.seal.write().unwrap_or_else(PoisonError::into_inner) = None;
        *self.foreign.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        self.needles.forget();
        self.searches.forget();
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) =
            Catalog::new(self.environments.clone());
    }

    /// Decides on the catalog, stores what was decided, and then shows it to readers. One change at
    /// a time; `decide` gets the catalog as it is and returns what to store and how to apply it.
    ///
    /// # Errors
    /// What `decide` says, or that storing failed; nothing has changed then.
    pub fn change<T>(
        &self,
        decide: impl FnOnce(&Catalog, &mut Batch) -> Result<(T, Apply), Problem>,
    ) -> Result<(T, u64), Problem> {
        let _turn = self.turn();
        let vault = self.unlocked()?;
        let mut batch = Batch::new();
        let (value, apply) = decide(&self.catalog(), &mut batch)?;
        let noted = Searches::note(&mut batch)?;
        let revision = vault.commit(&batch).map_err(|e| vault_problem(&e))?;
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        apply(&mut catalog);
        // Before anybody can be pinned to a new value.
        self.needles.follow(&batch, &catalog);
        drop(catalog);
        self.searches.add(noted);
        Ok((value, revision))
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a record that a change must not be without.
    ///
    /// # Errors
    /// The problem that it cannot be written.
    pub fn record(&self, record: &Record<'_>) -> Result<u64, Problem> {
        self.log.append(record, 0).map_err(|error| audit_problem(&error))
    }

    /// Writes a record unless an earlier worker or attempt has, by this tag. Tag 0 is none.
    ///
    /// # Errors
    /// The problem.
    pub fn record_once(&self, record: &Record<'_>, tag: u64) -> Result<(), Problem> {
        let recorded = match tag {
            0 => self.log.append(record, 0).map(drop),
            tag => self.log.append_once(record, tag),
        };
        recorded.map_err(|error| audit_problem(&error))
    }

    /// The record of this tag is not asked for again.
    pub fn forget_tag(&self, tag: u64) {
        self.log.forget(tag);
    }

    /// A record of `event`, now.
    pub fn new_record(&self, event: Event) -> Record<'static> {
        Record::new(event, self.clock.now())
    }

    /// The same, of something that a principal did or that was done to it.
    pub fn new_record_of<'a>(&self, event: Event, principal: &'a Principal) -> Record<'a> {
        let mut record: Record<'a> = Record::new(event, self.clock.now());
        record.chain = Some(&principal.chain);
        record.agent = Some(&principal.agent);
        record.user = Some(&principal.user);
        record.workspace = Some(&principal.workspace);
        record.environment = principal.environment.as_deref();
        record.execution = Some(principal.execution.as_str());
        record.uid = Some(principal.uid);
        record
    }
}

/// Names a record, so that a worker that takes up what it tells of does not write it again. No
/// number of a request of the kernel's has this bit.
pub fn record_tag(parts: &[&[u8]]) -> u64 {
    let digest = crypto::digest(parts);
    u64::from_le_bytes(digest[..8].try_into().unwrap_or_default()) >> 2 | 1 << 62
}

/// How a stored change reaches the catalog in memory.
pub type Apply = Box<dyn FnOnce(&mut Catalog)>;

/// The problem behind a vault's error.
pub fn vault_problem(error: &vault::Error) -> Problem {
    let code = match error {
        vault::Error::Unlock(_) => Code::UnlockFailed,
        vault::Error::RolledBack { .. } => Code::RollbackRefused,
        vault::Error::NoSlot { .. } | vault::Error::Store(vault::store::Error::Missing) => {
            Code::NotFound
        }
        vault::Error::LastSlot { .. } => Code::Conflict,
        vault::Error::Store(vault::store::Error::InUse) => Code::Busy,
        vault::Error::Store(vault::store::Error::Io { .. }) => Code::DiskFull,
        _ => Code::Internal,
    };
    let problem = Problem::new(code, error.to_string());
    match error.hint() {
        Some(hint) => problem.with_hint(hint),
        None => problem,
    }
}

/// The problem that no record can be written.
pub fn audit_problem(error: &Unavailable) -> Problem {
    Problem::new(Code::AuditUnavailable, error.to_string())
        .with_hint("free space where the audit directory lies; it heals by itself")
}

/// The catalog of what a vault holds.
///
/// # Errors
/// [`vault::Error::Altered`] when a record is not what its kind says.
pub fn load(vault: &Vault, environments: &[EnvName]) -> Result<Catalog, vault::Error> {
    fn parse<T: serde::de::DeserializeOwned>(bytes: &SecretBytes) -> Result<T, vault::Error> {
        serde_json::from_slice(bytes.expose())
            .map_err(|_| vault::Error::Altered { what: "a record is not what its kind says" })
    }
    let mut catalog = Catalog::new(environments.to_vec());
    // One at a time: all of them in clear at once would be as much memory again.
    vault.each(RecordKind::Secret, |_, bytes| {
        catalog.put_secret(parse(&bytes)?);
        Ok(())
    })?;
    for (_, bytes) in vault.all(RecordKind::Group)? {
        catalog.put_group(parse(&bytes)?);
    }
    for (_, bytes) in vault.all(RecordKind::Project)? {
        catalog.put_project(parse(&bytes)?);
    }
    for (_, bytes) in vault.all(RecordKind::Chain)? {
        catalog.put_chain(parse(&bytes)?);
    }
    for (_, bytes) in vault.all(RecordKind::Policy)? {
        catalog.put_policy(parse(&bytes)?);
    }
    for (_, bytes) in vault.all(RecordKind::Buried)? {
        catalog.bury(parse(&bytes)?);
    }
    Ok(catalog)
}

/// Stores an object of the catalog under its id.
///
/// # Errors
/// A fault: ids are made by us.
pub fn put<T: serde::Serialize>(
    batch: &mut Batch,
    kind: RecordKind,
    id: &str,
    object: &T,
) -> Result<(), Problem> {
    let fault = || Problem::new(Code::Internal, "an object of the catalog cannot be stored");
    let id: RecordId = id.parse().map_err(|_| fault())?;
    let bytes = serde_json::to_vec(object).map_err(|_| fault())?;
    batch.put(kind, id, SecretBytes::from_vec(bytes));
    Ok(())
}

/// A new record id.
///
/// # Errors
/// The problem that the system has no randomness.
pub fn new_id() -> Result<RecordId, Problem> {
    RecordId::random().map_err(|e| Problem::new(Code::Internal, e.to_string()))
}

impl Backend for Core {
    fn value(&self, id: &str) -> Result<SecretBytes, Refusal> {
        let vault = self.vault().ok_or(Refusal::Locked)?;
        let id: RecordId = id.parse().map_err(|_| Refusal::Fault)?;
        match vault.get(RecordKind::Value, id) {
            Ok(Some(value)) => Ok(value),
            // Destroyed since it was pinned.
            Ok(None) => Err(Refusal::Revoked),
            Err(error) => {
                tracing::error!(%error, "a value of the vault cannot be opened");
                Err(Refusal::Fault)
            }
        }
    }

    fn is_revoked(&self, id: &str) -> bool {
        if self.is_denied(id) {
            return true;
        }
        // While it is locked no value is in reach, and every read says so.
        let Some(vault) = self.vault() else { return false };
        id.parse().is_ok_and(|id: RecordId| !vault.contains(RecordKind::Value, id))
    }

    fn name_exists(&self, name: &str) -> bool {
        name.parse().is_ok_and(|name| self.catalog().has_name(&name))
    }
}

impl Recorder for Core {
    fn record(&self, access: &Access<'_>) -> Result<(), Refusal> {
        let (event, decision, reason) = match access.outcome {
            Outcome::Granted => (Event::SecretAccessed, "granted", None),
            Outcome::Denied(why) => (Event::SecretDenied, "denied", Some(why.to_string())),
        };
        let pid =
            access.tgid.or_else(|| proc::status_ids(access.caller.tid).ok().map(|ids| ids.tgid));
        let exe = proc::exe(access.caller.tid);
        let mut record = match access.principal {
            Some(principal) => self.new_record_of(event, principal),
            None => self.new_record(event),
        };
        record.secret_key = access.file.map(|f| f.key.as_str()).or(access.name);
        record.scope = access.file.map(|f| f.scope.as_str());
        record.version = access.file.map(|f| f.version);
        record.uid = Some(access.caller.uid);
        record.login_uid = match access.principal {
            Some(principal) => principal.login_uid,
            None => proc::login_uid(access.caller.tid),
        };
        record.pid = pid;
        record.exe = exe.as_deref();
        record.via = Some("file");
        record.decision = Some(decision);
        record.reason = reason.as_deref();
        record.count = (access.count > 1).then_some(access.count);
        // A reader of a version that is being revoked is answered at once.
        let denied = || {
            access.outcome == Outcome::Granted
                && access.file.is_some_and(|file| self.is_denied(&file.value))
        };
        self.log
            .append_unless(&record, access.request, &denied)
            .map(|_| ())
            .map_err(|_| Refusal::AuditUnavailable)
    }

    fn has_recorded(&self, request: u64) -> bool {
        self.log.has_recorded(request)
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("unlocked", &self.vault().is_some()).finish_non_exhaustive()
    }
}
