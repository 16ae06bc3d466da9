//! Unlocking and locking, key slots, backups.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::audit::record::Event;
use crate::audit::revision;
use crate::config::{Mode, UnlockMethod};
use crate::control::Caller;
use crate::proto::{self, Code, Problem, Value};
use crate::secret::SecretBytes;
use crate::sys::alloc;
use crate::vault::crypto::Key;
use crate::vault::store::redb::RedbStore;
use crate::vault::unlock::passphrase::Cost;
use crate::vault::unlock::{Credential, Slot, key_file, recovery};
use crate::vault::{self, Locked, backup};

use super::core::vault_problem;
use super::{Daemon, user_of};

/// About how long one guess of a passphrase is to take on this host.
const STRETCH_GOAL: Duration = Duration::from_millis(500);
/// After a wrong credential the next try waits this long.
pub(super) const PENALTY: Duration = Duration::from_secs(1);

/// Offsets in the keeper's box: a word that says that a key is there, then the key.
const BOX_FULL: usize = 0;
const BOX_KEY: usize = 64;

fn key_file_problem(error: &key_file::ReadError) -> Problem {
    Problem::new(Code::Invalid, error.to_string()).with_hint(error.hint())
}

/// Where a key file must not lie.
fn forbidden(mode: Mode, state_dir: &Path) -> Option<&Path> {
    (mode == Mode::System).then_some(state_dir)
}

fn slot_shown(slot: &Slot) -> proto::Slot {
    proto::Slot {
        id: slot.id.to_string(),
        method: slot.method.name().to_owned(),
        label: (!slot.label.is_empty()).then(|| slot.label.clone()),
        created_at: slot.created_at,
        in_use: false,
    }
}

/// How long a start waits for the worker of a keeper that has died.
const PREDECESSOR_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

impl Daemon {
    /// The key that an earlier worker left with the keeper.
    fn boxed_key(&self) -> Option<Key> {
        if self.key_box.load(BOX_FULL, Ordering::Acquire) == 0 {
            return None;
        }
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        self.key_box.read(BOX_KEY, bytes.as_mut());
        Key::from_bytes(bytes.as_ref())
    }

    fn fill_box(&self, key: &Key) {
        self.key_box.write(BOX_KEY, key.expose());
        self.key_box.store(BOX_FULL, 1, Ordering::Release);
    }

    fn empty_box(&self) {
        self.key_box.store(BOX_FULL, 0, Ordering::Release);
        self.key_box.write(BOX_KEY, &[0; 32]);
    }

    /// The credential that the configuration names, where one can be had without a person.
    fn configured_credential(&self) -> Result<Option<Credential>, Problem> {
        let unlock = &self.config.unlock;
        Ok(match unlock.method {
            Some(UnlockMethod::Command) => Some(Credential::Command(unlock.command.clone())),
            Some(UnlockMethod::KeyFile) => {
                let Some(path) = &unlock.path else { return Ok(None) };
                let path = self.paths.beside_config(path);
                let forbidden = forbidden(self.paths.mode, &self.paths.state_dir);
                let content = key_file::read(&path, forbidden).map_err(|e| key_file_problem(&e))?;
                Some(Credential::KeyFile(content))
            }
            Some(UnlockMethod::SystemdCredential) => {
                let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
                    return Ok(None);
                };
                let label = unlock.label.as_deref().unwrap_or("strongroom.key");
                let path = Path::new(&dir).join(label);
                let content = key_file::read(&path, None).map_err(|e| key_file_problem(&e))?;
                Some(Credential::KeyFile(content))
            }
            Some(UnlockMethod::Passphrase) | None => None,
        })
    }

    /// Unlocks at the start, where no person is needed.
    pub(super) fn unlock_at_start(&self) {
        if let Some(key) = self.boxed_key() {
            // Verified against the log when it was unlocked; readers wait for this takeover.
            if let Err(problem) = self.open_vault(|_| Ok(key), None, false) {
                tracing::error!(%problem, "the vault could not be taken over");
            }
            return;
        }
        match self.configured_credential() {
            Ok(None) => tracing::info!("the vault is locked"),
            Ok(Some(credential)) => {
                let open = || {
                    self.known_revision().and_then(|known| {
                        self.open_vault(|locked| locked.root_key(&credential), known, false)
                    })
                };
                let mut opened = open();
                let deadline = std::time::Instant::now() + PREDECESSOR_LIMIT;
                // The worker of a keeper that was killed may hold the file for one moment more.
                while opened.as_ref().is_err_and(|problem| problem.code == Code::Busy)
                    && std::time::Instant::now() < deadline
                {
                    std::thread::park_timeout(std::time::Duration::from_millis(20));
                    opened = open();
                }
                match opened {
                    Ok(_) => self.note_unlock(Event::VaultUnlocked, "at start", 0),
                    Err(problem) => {
                        tracing::error!(%problem, "the vault stays locked");
                        self.note_unlock(Event::UnlockFailed, "at start", 0);
                    }
                }
            }
            Err(problem) => tracing::error!(%problem, "the vault stays locked"),
        }
    }

    pub(super) fn note_unlock(&self, event: Event, how: &str, uid: u32) {
        let mut record = self.core.new_record(event);
        record.reason = Some(how);
        // The next start finds it in the newest file.
        record.revision = self.core.vault().map(|v| v.revision());
        record.uid = Some(uid);
        if self.core.record(&record).is_err() {
            tracing::error!("an attempt to unlock could not be recorded");
        }
        if event == Event::UnlockFailed {
            self.alert(super::alert::Alert {
                event: event.name(),
                secret: None,
                message: format!("an attempt of {} to unlock the vault failed", user_of(uid)),
                reason: Some(how.to_owned()),
                at: self.core.clock.now(),
            });
        }
    }

    /// The highest revision of the vault that the audit log tells.
    fn known_revision(&self) -> Result<Option<u64>, Problem> {
        revision::highest(self.core.log.dir()).map_err(|error| {
            let what = format!("the audit log does not tell the vault's revision: {error}");
            Problem::new(Code::AuditUnavailable, what)
                .with_hint("the audit directory must be readable before the vault is unlocked")
        })
    }

    fn open_vault(
        &self,
        root: impl FnOnce(&Locked) -> Result<Key, vault::Error>,
        known: Option<u64>,
        accept_rollback: bool,
    ) -> Result<u64, Problem> {
        let store = RedbStore::open(&self.paths.vault_file)
            .map_err(|e| vault_problem(&vault::Error::Store(e)))?;
        let locked = Locked::open(Box::new(store)).map_err(|e| vault_problem(&e))?;
        let key = root(&locked).map_err(|e| vault_problem(&e))?;
        let vault = locked.unlock(key, known, accept_rollback).map_err(|e| vault_problem(&e))?;
        let revision = vault.revision();
        self.fill_box(vault.root_key());
        self.core.install(vault).map_err(|e| vault_problem(&e))?;
        // Much was read and parsed, once.
        alloc::give_back();
        self.load_exposures()?;
        self.settle_soon();
        Ok(revision)
    }

    pub(super) fn unlock_vault(
        &self,
        who: &Caller,
        req: proto::Unlock,
    ) -> Result<proto::Unlocked, Problem> {
        // One at a time: guesses queue up behind the penalty.
        let _turn = self.unlocking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(vault) = self.core.vault() {
            return Ok(proto::Unlocked {
                slot: String::new(),
                epoch: vault.revision(),
                notes: vec!["it was unlocked already".to_owned()],
            });
        }
        let credential = if let Some(text) = req.passphrase {
            Credential::Passphrase(text.into_secret())
        } else if let Some(text) = req.recovery_key {
            Credential::Recovery(text.into_secret())
        } else if let Some(path) = &req.key_file {
            let forbidden = forbidden(self.paths.mode, &self.paths.state_dir);
            let content =
                key_file::read(Path::new(path), forbidden).map_err(|e| key_file_problem(&e))?;
            Credential::KeyFile(content)
        } else {
            self.configured_credential()?.ok_or_else(|| {
                Problem::new(Code::UnlockFailed, "no credential was given, and none is configured")
                    .with_hint("strongroom unlock asks for the passphrase at a terminal")
            })?
        };
        let method = credential.method();
        let opened = self.open_vault(
            |locked| locked.root_key(&credential),
            self.known_revision()?,
            req.accept_rollback,
        );
        let event = if opened.is_ok() { Event::VaultUnlocked } else { Event::UnlockFailed };
        self.note_unlock(event, method, who.peer.uid);
        match opened {
            Ok(epoch) => Ok(proto::Unlocked { slot: method.to_owned(), epoch, notes: Vec::new() }),
            Err(problem) => {
                if problem.code == Code::UnlockFailed {
                    std::thread::park_timeout(PENALTY);
                }
                Err(problem)
            }
        }
    }

    pub(super) fn lock_vault(&self, who: &Caller) -> Result<proto::Done, Problem> {
        let mut record = self.core.new_record(Event::VaultLocked);
        let user = user_of(who.peer.uid);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        self.core.record(&record)?;
        self.seal_and_forget();
        self.empty_box();
        self.core.forget();
        self.tree.broker().wipe();
        Ok(proto::Done::default())
    }

    pub(super) fn list_keys(&self) -> Result<proto::KeyListed, Problem> {
        let slots = self.core.unlocked()?.slots();
        Ok(proto::KeyListed { slots: slots.iter().map(slot_shown).collect() })
    }

    fn new_credential(
        &self,
        method: proto::KeyMethod,
        passphrase: Option<Value>,
        path: Option<&str>,
        command: &[String],
    ) -> Result<Credential, Problem> {
        let missing = |what: &str| {
            Problem::new(Code::Invalid, format!("this method needs a {what}"))
                .with_hint("strongroom key add --help")
        };
        Ok(match method {
            proto::KeyMethod::Command => {
                if command.is_empty() {
                    return Err(missing("command"));
                }
                Credential::Command(command.to_vec())
            }
            proto::KeyMethod::KeyFile | proto::KeyMethod::SystemdCredential => {
                let path = path.ok_or_else(|| missing("path"))?;
                let forbidden = forbidden(self.paths.mode, &self.paths.state_dir);
                Credential::KeyFile(
                    key_file::read(Path::new(path), forbidden).map_err(|e| key_file_problem(&e))?,
                )
            }
            proto::KeyMethod::Passphrase => Credential::Passphrase(
                passphrase.ok_or_else(|| missing("passphrase"))?.into_secret(),
            ),
            proto::KeyMethod::Recovery => Credential::Recovery(
                recovery::generate().map_err(|e| Problem::new(Code::Internal, e.to_string()))?,
            ),
        })
    }

    pub(super) fn add_key(
        &self,
        who: &Caller,
        req: proto::KeyAdd,
    ) -> Result<proto::KeyAdded, Problem> {
        let vault = self.core.unlocked()?;
        let credential =
            self.new_credential(req.method, req.passphrase, req.path.as_deref(), &req.command)?;
        let slot = vault
            .add_slot(
                req.label.as_deref().unwrap_or_default(),
                &credential,
                self.core.clock.now(),
                Cost::tuned(STRETCH_GOAL),
            )
            .map_err(|e| vault_problem(&e))?;
        self.note_key(who, Event::KeyAdded, slot.id)?;
        let recovery_key = match credential {
            Credential::Recovery(text) => Some(Value::new(text)),
            _ => None,
        };
        Ok(proto::KeyAdded { slot: slot_shown(&slot), recovery_key })
    }

    fn note_key(&self, who: &Caller, event: Event, id: u32) -> Result<(), Problem> {
        let (user, slot) = (user_of(who.peer.uid), format!("slot {id}"));
        let mut record = self.core.new_record(event);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.reason = Some(&slot);
        record.revision = self.core.vault().map(|v| v.revision());
        self.core.record(&record)?;
        Ok(())
    }

    fn slot_id(text: &str) -> Result<u32, Problem> {
        text.parse().map_err(|_| {
            Problem::new(Code::Invalid, "a slot is a number").with_hint("strongroom key list")
        })
    }

    pub(super) fn remove_key(
        &self,
        who: &Caller,
        req: &proto::KeyRm,
    ) -> Result<proto::Done, Problem> {
        let id = Self::slot_id(&req.slot)?;
        self.core.unlocked()?.remove_slot(id).map_err(|e| vault_problem(&e))?;
        self.note_key(who, Event::KeyRemoved, id)?;
        Ok(proto::Done::default())
    }

    pub(super) fn rekey(
        &self,
        who: &Caller,
        req: proto::KeyRekey,
    ) -> Result<proto::KeyAdded, Problem> {
        let vault = self.core.unlocked()?;
        let id = Self::slot_id(&req.slot)?;
        let method = match vault.slots().iter().find(|s| s.id == id).map(|s| s.method.name()) {
            Some("command") => proto::KeyMethod::Command,
            Some("key-file") => proto::KeyMethod::KeyFile,
            Some("passphrase") => proto::KeyMethod::Passphrase,
            Some(_) => proto::KeyMethod::Recovery,
            None => return Err(vault_problem(&vault::Error::NoSlot { id })),
        };
        let credential =
            self.new_credential(method, req.passphrase, req.path.as_deref(), &req.command)?;
        let slot = vault
            .rekey_slot(id, &credential, self.core.clock.now(), Cost::tuned(STRETCH_GOAL))
            .map_err(|e| vault_problem(&e))?;
        self.note_key(who, Event::KeyRekeyed, id)?;
        let recovery_key = match credential {
            Credential::Recovery(text) => Some(Value::new(text)),
            _ => None,
        };
        Ok(proto::KeyAdded { slot: slot_shown(&slot), recovery_key })
    }

    pub(super) fn create_backup(
        &self,
        who: &Caller,
        req: &proto::BackupCreate,
    ) -> Result<proto::BackupCreated, Problem> {
        self.keep_fingerprint_key()?;
        let vault = self.core.unlocked()?;
        let mut bytes = Vec::new();
        let header =
            backup::create(&vault, req.passphrase.secret(), Cost::tuned(STRETCH_GOAL), &mut bytes)
                .map_err(|e| backup_problem(&e))?;
        let user = user_of(who.peer.uid);
        let mut record = self.core.new_record(Event::BackupCreated);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.revision = Some(header.revision);
        self.core.record(&record)?;
        Ok(proto::BackupCreated {
            backup: proto::Blob(bytes),
            records: header.count,
            epoch: header.revision,
        })
    }

    pub(super) fn verify_backup(
        &self,
        req: &proto::BackupVerify,
    ) -> Result<proto::BackupVerified, Problem> {
        let content = backup::open(req.passphrase.secret(), &req.backup.0[..])
            .map_err(|e| backup_problem(&e))?;
        Ok(proto::BackupVerified {
            records: content.header.count,
            epoch: content.header.revision,
            vault_id: content.header.vault_id,
        })
    }

    pub(super) fn restore_backup(
        &self,
        who: &Caller,
        req: &proto::BackupRestore,
    ) -> Result<proto::BackupRestored, Problem> {
        let vault = self.core.unlocked()?;
        let empty = {
            let catalog = self.core.catalog();
            catalog.secret_count() == 0
                && catalog.chains().is_empty()
                && catalog.groups().is_empty()
        };
        if !empty && !req.replace {
            return Err(Problem::new(Code::Exists, "the vault is not empty")
                .with_hint("add --replace to put the backup in the place of all that is there"));
        }
        if self.registry.executions().iter().any(|e| e.ended.is_none()) {
            return Err(Problem::new(Code::Conflict, "executions run and hold versions")
                .with_hint("end them first: strongroom execution list"));
        }
        let content = backup::open(req.passphrase.secret(), &req.backup.0[..])
            .map_err(|e| backup_problem(&e))?;
        let (records, epoch) = (content.header.count, content.header.revision);
        let burials = self.burials()?;
        let revision = content.restore(&vault, burials).map_err(|e| backup_problem(&e))?;
        self.core.reload().map_err(|e| vault_problem(&e))?;
        let reapplied = self.reapply_revocations()?;
        self.load_exposures()?;
        let user = user_of(who.peer.uid);
        let mut record = self.core.new_record(Event::Restored);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        record.revision = Some(revision);
        self.core.record(&record)?;
        Ok(proto::BackupRestored { records, epoch, reapplied })
    }
}

fn backup_problem(error: &backup::Error) -> Problem {
    match error {
        backup::Error::Vault(error) => vault_problem(error),
        backup::Error::Unlock(error) => Problem::new(Code::Invalid, error.to_string())
            .with_hint("choose a passphrase of at least 8 characters"),
        backup::Error::Forged | backup::Error::Foreign => {
            Problem::new(Code::UnlockFailed, error.to_string())
                .with_hint("check the passphrase and that the whole file was copied")
        }
        backup::Error::Io(_) | backup::Error::Random(_) => {
            Problem::new(Code::Internal, error.to_string())
        }
    }
}

/// How `init` makes a vault.
pub struct Init {
    /// The first slot's method, as the configuration names it.
    pub method: UnlockMethod,
    /// Its credential.
    pub credential: Credential,
    /// Whether a recovery key is made and printed.
    pub recovery: bool,
}

/// Makes the vault file. Returns the recovery key where one was wanted.
///
/// # Errors
/// See [`vault::Error`].
pub fn create_vault(
    file: &Path,
    init: Init,
    now: crate::clock::Timestamp,
) -> Result<Option<SecretBytes>, vault::Error> {
    // Built beside its place and put there whole: a killed `init` leaves nothing half done.
    let draft = file.with_extension("new");
    match std::fs::remove_file(&draft) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(vault::store::Error::Io { what: e.to_string() }.into());
        }
        _ => {}
    }
    if file.exists() {
        return Err(vault::store::Error::Exists.into());
    }
    let recovery_key = if init.recovery { Some(recovery::generate()?) } else { None };
    let mut credentials = vec![(init.credential.method(), init.credential)];
    if let Some(key) = &recovery_key {
        credentials.push(("recovery", Credential::Recovery(SecretBytes::copy_of(key.expose()))));
    }
    let cost = match init.method {
        UnlockMethod::Passphrase => Cost::tuned(STRETCH_GOAL),
        _ => Cost::least(),
    };
    let store = RedbStore::create(&draft)?;
    drop(vault::Vault::create(Box::new(store), &credentials, now, cost)?);
    let io = |e: std::io::Error| vault::store::Error::Io { what: e.to_string() };
    // link(2) refuses to replace, unlike rename(2).
    std::fs::hard_link(&draft, file).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => vault::store::Error::Exists,
        _ => io(e),
    })?;
    std::fs::remove_file(&draft).map_err(io)?;
    if let Some(dir) = file.parent() {
        std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
    }
    Ok(recovery_key)
}
