//! Executions and principals: in the runtime state first, in memory for speed.
//!
//! Invariant: a principal is found exactly while its execution runs; the moment an execution ends,
//! none of its processes is anybody, whatever descriptors they hold. Lock order: `inner`, then the
//! journal's own.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::identity::attestor::{Members, PrincipalNumber};
use crate::sys::pidfd::PidFd;
use crate::sys::proc;

use super::exposure::Ledger;
use super::id::ExecutionId;
use super::journal::{self, Journal, Kind};
use super::principal::{Ended, Execution, Membership, Principal, ProcessRef};

/// Ended executions that are kept for `execution list`.
const KEPT_ENDED: usize = 1_000;

/// Why a registration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The execution is over.
    #[error("execution {id} has ended: {reason}")]
    Ended {
        /// Which.
        id: ExecutionId,
        /// Why it ended.
        reason: String,
    },
    /// The id is in use for something else.
    #[error("execution {id} exists already, with {what}")]
    Conflict {
        /// Which.
        id: ExecutionId,
        /// What differs.
        what: String,
    },
    /// The runtime state is full.
    #[error(transparent)]
    State(#[from] journal::Error),
    /// No such execution.
    #[error("there is no execution {id}")]
    Unknown {
        /// Which.
        id: String,
    },
}

/// What an inode of the journal stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretInode {
    /// The vault's record of the value, in hex.
    pub value: String,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Exact size.
    pub size_bytes: u64,
    /// When the version was made.
    pub created_at: Timestamp,
}

/// What an inode number is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inode {
    /// A principal's directory.
    Directory(PrincipalNumber),
    /// A principal's `.identity`.
    Identity(PrincipalNumber),
    /// A version as a file of one owner.
    Secret(Arc<SecretInode>),
}

#[derive(Default)]
struct Inner {
    executions: BTreeMap<ExecutionId, Arc<Execution>>,
    principals: HashMap<PrincipalNumber, Arc<Principal>>,
    by_cgroup: HashMap<u64, PrincipalNumber>,
    by_path: BTreeMap<PathBuf, PrincipalNumber>,
    by_root: HashMap<u32, (PrincipalNumber, Arc<PidFd>)>,
    by_token: HashMap<String, u64>,
    inodes: HashMap<u64, Inode>,
    secret_inodes: HashMap<(String, u32), u64>,
    /// Running executions that are pinned to a value.
    held: HashMap<String, BTreeSet<ExecutionId>>,
    next_number: u64,
}

/// What an earlier worker had begun to end, and died over.
#[derive(Debug, Default)]
pub struct Unfinished {
    /// Agents whose processes may live on.
    pub principals: Vec<Principal>,
    /// Executions that are over, whose ends may not be on record.
    pub ended: Vec<ExecutionId>,
    /// Executions that run for one agent, and have none: its launch was cut short, or its end.
    pub deserted: Vec<ExecutionId>,
}

/// See the module.
pub struct Registry {
    journal: Arc<Journal>,
    ledger: Ledger,
    inner: RwLock<Inner>,
    /// Processes that were asked for at the last turn, held.
    watched: Mutex<HashMap<ProcessRef, PidFd>>,
    unfinished: Mutex<Unfinished>,
}

impl Registry {
    /// Reads what earlier workers registered.
    pub fn open(journal: Journal) -> Self {
        let journal = Arc::new(journal);
        let mut inner = Inner { next_number: 1, ..Inner::default() };
        for (_, value) in journal.all(Kind::Execution) {
            match serde_json::from_slice::<Execution>(&value) {
                Ok(execution) => {
                    inner.insert_execution(execution);
                }
                Err(_) => tracing::error!("an execution in the runtime state does not parse"),
            }
        }
        for (key, value) in journal.all(Kind::Inode) {
            if let (Ok(number), Ok(secret)) =
                (<[u8; 8]>::try_from(key), serde_json::from_slice::<SecretInode>(&value))
            {
                inner.insert_secret_inode(u64::from_be_bytes(number), secret);
            }
        }
        let mut unfinished = Unfinished::default();
        for (_, value) in journal.all(Kind::Principal) {
            match serde_json::from_slice::<Principal>(&value) {
                Ok(principal) => {
                    inner.next_number = inner.next_number.max(principal.number.0.saturating_add(1));
                    let principal = inner.insert_principal(principal);
                    if !inner.principals.contains_key(&principal.number) {
                        unfinished.principals.push(Principal::clone(&principal));
                    }
                }
                Err(_) => tracing::error!("a principal in the runtime state does not parse"),
            }
        }
        if let Some(number) = journal.get(Kind::Fact, b"next-principal")
            && let Ok(number) = <[u8; 8]>::try_from(number)
        {
            inner.next_number = inner.next_number.max(u64::from_be_bytes(number));
        }
        let populated: HashSet<_> = inner.principals.values().map(|p| &p.execution).collect();
        for execution in inner.executions.values() {
            match &execution.ended {
                Some(ended) if ended.unsettled => unfinished.ended.push(execution.id.clone()),
                None if execution.implicit && !populated.contains(&execution.id) => {
                    unfinished.deserted.push(execution.id.clone());
                }
                _ => {}
            }
        }
        let ledger = Ledger::open(journal.clone());
        let (watched, unfinished) = (Mutex::default(), Mutex::new(unfinished));
        Self { journal, ledger, inner: RwLock::new(inner), watched, unfinished }
    }

    /// What an earlier worker had begun to end; given once.
    pub fn take_unfinished(&self) -> Unfinished {
        std::mem::take(&mut *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The runtime state behind it.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of these processes have ended. Those that live are held until they are not asked for any
    /// more: the next answer costs one poll(2) each, not a search by number.
    pub fn ended_of<'p>(&self, asked: impl Iterator<Item = &'p ProcessRef>) -> HashSet<ProcessRef> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held: HashMap<ProcessRef, PidFd> = HashMap::new();
        let mut ended = HashSet::new();
        for process in asked {
            if held.contains_key(process) || ended.contains(process) {
                continue;
            }
            let pidfd = watched.remove(process).or_else(|| find_process(process));
            match pidfd.filter(PidFd::is_alive) {
                Some(pidfd) => {
                    held.insert(process.clone(), pidfd);
                }
                None => {
                    ended.insert(process.clone());
                }
            }
        }
        *watched = held;
        ended
    }

    /// Who obtained which version.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Running executions that are pinned to a value.
    pub fn holders(&self, value: &str) -> Vec<ExecutionId> {
        self.read().held.get(value).into_iter().flatten().cloned().collect()
    }

    /// Whether a running execution is pinned to a value.
    pub fn is_held(&self, value: &str) -> bool {
        self.read().held.contains_key(value)
    }

    /// Starts an execution. One that exists with the same chain and environment, and still runs, is
    /// returned as it is: a start may be repeated.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(&self, execution: Execution) -> Result<(Arc<Execution>, bool), Error> {
        let mut inner = self.write();
        if let Some(existing) = inner.executions.get(&execution.id) {
            if let Some(ended) = &existing.ended {
                return Err(Error::Ended {
                    id: execution.id.clone(),
                    reason: ended.reason.clone(),
                });
            }
            if existing.chain != execution.chain {
                let what = format!("chain {}", existing.chain);
                return Err(Error::Conflict { id: execution.id.clone(), what });
            }
            if existing.environment != execution.environment {
                let what =
                    format!("environment {}", existing.environment.as_deref().unwrap_or("(none)"));
                return Err(Error::Conflict { id: execution.id.clone(), what });
            }
            return Ok((existing.clone(), false));
        }
        self.store_execution(&execution)?;
        Ok((inner.insert_execution(execution), true))
    }

    fn store_execution(&self, execution: &Execution) -> Result<(), Error> {
        let value = serde_json::to_vec(execution).map_err(|_| journal::Error::TooLong)?;
        Ok(self.journal.put(Kind::Execution, execution.id.as_str().as_bytes(), &value)?)
    }

    /// Changes a running execution.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn update(
        &self,
        id: &ExecutionId,
        change: impl FnOnce(&mut Execution),
    ) -> Result<Arc<Execution>, Error> {
        let mut inner = self.write();
        let existing =
            inner.executions.get(id).ok_or_else(|| Error::Unknown { id: id.to_string() })?;
        if let Some(ended) = &existing.ended {
            return Err(Error::Ended { id: id.clone(), reason: ended.reason.clone() });
        }
        let mut changed = Execution::clone(existing);
        change(&mut changed);
        self.store_execution(&changed)?;
        Ok(inner.insert_execution(changed))
    }

    /// A number for a principal to be.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn next_principal(&self) -> Result<PrincipalNumber, Error> {
        let mut inner = self.write();
        let number = inner.next_number;
        self.journal.put(Kind::Fact, b"next-principal", &(number + 1).to_be_bytes())?;
        inner.next_number = number + 1;
        Ok(PrincipalNumber(number))
    }

    /// Registers a principal of a running execution: from now on its processes are somebody.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn register(&self, principal: Principal) -> Result<Arc<Principal>, Error> {
        let mut inner = self.write();
        match inner.executions.get(&principal.execution) {
            None => return Err(Error::Unknown { id: principal.execution.to_string() }),
            Some(execution) => {
                if let Some(ended) = &execution.ended {
                    return Err(Error::Ended {
                        id: execution.id.clone(),
                        reason: ended.reason.clone(),
                    });
                }
            }
        }
        let value = serde_json::to_vec(&principal).map_err(|_| journal::Error::TooLong)?;
        self.journal.put(Kind::Principal, &principal.number.0.to_be_bytes(), &value)?;
        Ok(inner.insert_principal(principal))
    }

    /// Changes a registered principal, but for what it is found by.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn update_principal(
        &self,
        number: PrincipalNumber,
        change: impl FnOnce(&mut Principal),
    ) -> Result<Option<Arc<Principal>>, Error> {
        let mut inner = self.write();
        let Some(existing) = inner.principals.get(&number) else { return Ok(None) };
        let mut changed = Principal::clone(existing);
        change(&mut changed);
        let value = serde_json::to_vec(&changed).map_err(|_| journal::Error::TooLong)?;
        self.journal.put(Kind::Principal, &number.0.to_be_bytes(), &value)?;
        let changed = Arc::new(changed);
        inner.principals.insert(number, changed.clone());
        Ok(Some(changed))
    }

    /// Takes a principal off the register. Its directory stays, empty. A successor knows that its
    /// processes are to be ended until [`Registry::forget`].
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn unregister(&self, number: PrincipalNumber) -> Result<Option<Arc<Principal>>, Error> {
        let mut inner = self.write();
        let Some(principal) = inner.principals.get(&number) else { return Ok(None) };
        self.store_ending(principal)?;
        Ok(inner.remove_principal(number))
    }

    fn store_ending(&self, principal: &Principal) -> Result<(), Error> {
        // What it could read is nobody's any more.
        let ending = Principal {
            ending: true,
            files: BTreeMap::new(),
            earlier: Vec::new(),
            ..Principal::clone(principal)
        };
        let value = serde_json::to_vec(&ending).map_err(|_| journal::Error::TooLong)?;
        Ok(self.journal.put(Kind::Principal, &principal.number.0.to_be_bytes(), &value)?)
    }

    /// The processes of one that is off the register have ended.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn forget(&self, number: PrincipalNumber) -> Result<(), Error> {
        let inner = self.write();
        if inner.principals.contains_key(&number) {
            return Ok(());
        }
        Ok(self.journal.remove(Kind::Principal, &number.0.to_be_bytes())?)
    }

    /// Ends an execution: its view is empty when this returns. Gives back who was in it.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::State`]; one that has ended already is fine and gives nobody.
    pub fn end(
        &self,
        id: &ExecutionId,
        ended: Ended,
    ) -> Result<(Arc<Execution>, Vec<Arc<Principal>>), Error> {
        let mut inner = self.write();
        let existing =
            inner.executions.get(id).ok_or_else(|| Error::Unknown { id: id.to_string() })?;
        if existing.ended.is_some() {
            return Ok((existing.clone(), Vec::new()));
        }
        let mut execution = Execution::clone(existing);
        execution.ended = Some(ended);
        // The end is stored first: a successor that reads it drops the principals as well.
        self.store_execution(&execution)?;
        let execution = inner.insert_execution(execution);
        let members: Vec<_> =
            inner.principals.values().filter(|p| p.execution == *id).map(|p| p.number).collect();
        let mut removed = Vec::new();
        for number in members {
            if let Some(principal) = inner.principals.get(&number) {
                self.store_ending(principal)?;
            }
            removed.extend(inner.remove_principal(number));
        }
        self.forget_old(&mut inner)?;
        Ok((execution, removed))
    }

    /// The end of an execution is on record, and its processes are gone.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn settle(&self, id: &ExecutionId) -> Result<(), Error> {
        let mut inner = self.write();
        let Some(mut execution) = inner.executions.get(id).map(|e| Execution::clone(e)) else {
            return Ok(());
        };
        let Some(ended) = execution.ended.as_mut().filter(|ended| ended.unsettled) else {
            return Ok(());
        };
        ended.unsettled = false;
        self.store_execution(&execution)?;
        inner.insert_execution(execution);
        Ok(())
    }

    /// Forgets the oldest of too many ended executions.
    fn forget_old(&self, inner: &mut Inner) -> Result<(), Error> {
        let mut ended: Vec<_> = inner
            .executions
            .values()
            .filter_map(|e| e.ended.as_ref().map(|ended| (ended.at, e.id.clone())))
            .collect();
        if ended.len() <= KEPT_ENDED + KEPT_ENDED / 10 {
            return Ok(());
        }
        ended.sort();
        for (_, id) in ended.drain(..ended.len() - KEPT_ENDED) {
            self.journal.remove(Kind::Execution, id.as_str().as_bytes())?;
            inner.executions.remove(&id);
        }
        Ok(())
    }

    /// The inode of a version for one owner: the same number always means the same bytes, size and
    /// owner. `fresh` is used for a new one.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn secret_inode(&self, secret: SecretInode, fresh: u64) -> Result<u64, Error> {
        let key = (secret.value.clone(), secret.uid);
        let mut inner = self.write();
        if let Some(inode) = inner.secret_inodes.get(&key) {
            return Ok(*inode);
        }
        let value = serde_json::to_vec(&secret).map_err(|_| journal::Error::TooLong)?;
        self.journal.put(Kind::Inode, &fresh.to_be_bytes(), &value)?;
        inner.insert_secret_inode(fresh, secret);
        Ok(fresh)
    }

    /// What an inode number stands for.
    pub fn inode(&self, number: u64) -> Option<Inode> {
        self.read().inodes.get(&number).cloned()
    }

    /// Whether an inode number is taken.
    pub fn has_inode(&self, number: u64) -> bool {
        self.read().inodes.contains_key(&number)
    }

    /// A registered principal.
    pub fn principal(&self, number: PrincipalNumber) -> Option<Arc<Principal>> {
        self.read().principals.get(&number).cloned()
    }

    /// Whether a registered principal is of this launch.
    pub fn has_launch(&self, launch: &str) -> bool {
        self.read().principals.values().any(|p| p.launch == launch)
    }

    /// Principals of an execution, by number.
    pub fn principals_of(&self, id: &ExecutionId) -> Vec<Arc<Principal>> {
        let inner = self.read();
        let mut found: Vec<_> =
            inner.principals.values().filter(|p| p.execution == *id).cloned().collect();
        found.sort_by_key(|p| p.number);
        found
    }

    /// The inode of the directory with this token.
    pub fn directory(&self, token: &str) -> Option<u64> {
        self.read().by_token.get(token).copied()
    }

    /// An execution, running or ended.
    pub fn execution(&self, id: &ExecutionId) -> Option<Arc<Execution>> {
        self.read().executions.get(id).cloned()
    }

    /// All executions that are known, by id.
    pub fn executions(&self) -> Vec<Arc<Execution>> {
        self.read().executions.values().cloned().collect()
    }

    /// All registered principals, by number.
    pub fn principals(&self) -> Vec<Arc<Principal>> {
        let mut found: Vec<_> = self.read().principals.values().cloned().collect();
        found.sort_by_key(|p| p.number);
        found
    }
}

impl Inner {
    fn insert_execution(&mut self, execution: Execution) -> Arc<Execution> {
        if let Some(old) = self.executions.get(&execution.id).cloned() {
            for pin in old.pins.values() {
                if let Some(holders) = self.held.get_mut(&pin.value) {
                    holders.remove(&old.id);
                    if holders.is_empty() {
                        self.held.remove(&pin.value);
                    }
                }
            }
        }
        if execution.ended.is_none() {
            for pin in execution.pins.values() {
                self.held.entry(pin.value.clone()).or_default().insert(execution.id.clone());
            }
        }
        let execution = Arc::new(execution);
        self.executions.insert(execution.id.clone(), execution.clone());
        execution
    }

    fn insert_secret_inode(&mut self, number: u64, secret: SecretInode) {
        self.secret_inodes.insert((secret.value.clone(), secret.uid), number);
        self.inodes.insert(number, Inode::Secret(Arc::new(secret)));
    }

    fn insert_principal(&mut self, principal: Principal) -> Arc<Principal> {
        let number = principal.number;
        let principal = Arc::new(principal);
        self.inodes.insert(principal.directory, Inode::Directory(number));
        self.inodes.insert(principal.identity, Inode::Identity(number));
        self.by_token.insert(principal.token.clone(), principal.directory);
        let ended = self.executions.get(&principal.execution).is_none_or(|e| e.ended.is_some());
        if ended || principal.ending {
            return principal;
        }
        match &principal.membership {
            Membership::Cgroup { id, below, .. } => {
                self.by_cgroup.insert(*id, number);
                self.by_path.insert(below.clone(), number);
            }
            Membership::Tree { root } => {
                // A root that is gone, or another process under its id, roots nothing.
                if let Some(pidfd) = find_process(root) {
                    self.by_root.insert(root.pid, (number, Arc::new(pidfd)));
                }
            }
        }
        self.principals.insert(number, principal.clone());
        principal
    }

    fn remove_principal(&mut self, number: PrincipalNumber) -> Option<Arc<Principal>> {
        let principal = self.principals.remove(&number)?;
        match &principal.membership {
            Membership::Cgroup { id, below, .. } => {
                self.by_cgroup.remove(id);
                self.by_path.remove(below);
            }
            Membership::Tree { root } => {
                self.by_root.remove(&root.pid);
            }
        }
        Some(principal)
    }
}

/// The process that `process` names, if it still lives.
pub fn find_process(process: &ProcessRef) -> Option<PidFd> {
    let pidfd = PidFd::open(process.pid).ok()?;
    let stat = proc::Stat::read(process.pid).ok()?;
    let same_start = stat.start_ticks == process.start_ticks;
    let same_id =
        process.unique_id == 0 || pidfd.unique_id().is_ok_and(|id| id == process.unique_id);
    (same_start && same_id && pidfd.is_alive()).then_some(pidfd)
}

/// What later workers need to find a process again.
///
/// # Errors
/// When it is gone.
pub fn process_ref(pidfd: &PidFd) -> std::io::Result<ProcessRef> {
    let pid = pidfd.pid()?;
    let stat = proc::Stat::read(pid)?;
    // Asked again after the reading: the id was this process's all along.
    pidfd.pid()?;
    Ok(ProcessRef { pid, unique_id: pidfd.unique_id()?, start_ticks: stat.start_ticks })
}

impl Members for Registry {
    fn by_cgroup(&self, cgroup_id: u64) -> Option<PrincipalNumber> {
        self.read().by_cgroup.get(&cgroup_id).copied()
    }

    fn by_cgroup_path(&self, path: &Path) -> Option<PrincipalNumber> {
        let inner = self.read();
        if inner.by_path.is_empty() {
            return None;
        }
        path.ancestors().find_map(|ancestor| inner.by_path.get(ancestor).copied())
    }

    fn by_root(&self, pid: u32) -> Option<PrincipalNumber> {
        let (number, pidfd) = self.read().by_root.get(&pid).cloned()?;
        // Its id is its own for as long as it lives.
        pidfd.is_alive().then_some(number)
    }

    fn has_trees(&self) -> bool {
        !self.read().by_root.is_empty()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) use tests::fixture;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::principal::{File, Pin};
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
            let names =
                |ids: &[ExecutionId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
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
        let of = |pid| process_ref(&PidFd::open(pid).unwrap()).unwrap();
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
}
