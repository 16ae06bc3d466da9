//! Executions and principals: in the runtime state first, in memory for speed.
//!
//! Invariant: a principal is found exactly while its execution runs; the moment an execution ends,
//! none of its processes is anybody, whatever descriptors they hold. Lock order: `roster`, then the
//! journal's own.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::identity::attestor::{Members, PrincipalNumber};
use crate::sys::pidfd::PidFd;

use super::exposure::Ledger;
use super::id::ExecutionId;
use super::journal::{self, Journal, Kind};
use super::principal::{Ended, Execution, Principal};
use super::process::ProcessRef;
use super::roster::{Inode, Roster, SecretInode};

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
    roster: RwLock<Roster>,
    /// Processes that were asked for at the last turn, held.
    watched: Mutex<HashMap<ProcessRef, PidFd>>,
    unfinished: Mutex<Unfinished>,
}

impl Registry {
    /// Reads what earlier workers registered.
    pub fn open(journal: Journal) -> Self {
        let journal = Arc::new(journal);
        let mut roster = Roster { next_number: 1, ..Roster::default() };
        for (_, value) in journal.all(Kind::Execution) {
            match serde_json::from_slice::<Execution>(&value) {
                Ok(execution) => {
                    roster.insert_execution(execution);
                }
                Err(_) => tracing::error!("an execution in the runtime state does not parse"),
            }
        }
        for (key, value) in journal.all(Kind::Inode) {
            if let (Ok(number), Ok(secret)) =
                (<[u8; 8]>::try_from(key), serde_json::from_slice::<SecretInode>(&value))
            {
                roster.insert_secret_inode(u64::from_be_bytes(number), secret);
            }
        }
        let mut unfinished = Unfinished::default();
        for (_, value) in journal.all(Kind::Principal) {
            match serde_json::from_slice::<Principal>(&value) {
                Ok(principal) => {
                    roster.next_number =
                        roster.next_number.max(principal.number.0.saturating_add(1));
                    let principal = roster.insert_principal(principal);
                    if !roster.principals.contains_key(&principal.number) {
                        unfinished.principals.push(Principal::clone(&principal));
                    }
                }
                Err(_) => tracing::error!("a principal in the runtime state does not parse"),
            }
        }
        if let Some(number) = journal.get(Kind::Fact, b"next-principal")
            && let Ok(number) = <[u8; 8]>::try_from(number)
        {
            roster.next_number = roster.next_number.max(u64::from_be_bytes(number));
        }
        let populated: HashSet<_> = roster.principals.values().map(|p| &p.execution).collect();
        for execution in roster.executions.values() {
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
        Self { journal, ledger, roster: RwLock::new(roster), watched, unfinished }
    }

    /// What an earlier worker had begun to end; given once.
    pub fn take_unfinished(&self) -> Unfinished {
        std::mem::take(&mut *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The runtime state behind it.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Roster> {
        self.roster.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Roster> {
        self.roster.write().unwrap_or_else(PoisonError::into_inner)
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
            let pidfd = watched.remove(process).or_else(|| process.find());
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
        let mut roster = self.write();
        if let Some(existing) = roster.executions.get(&execution.id) {
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
        Ok((roster.insert_execution(execution), true))
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
        let mut roster = self.write();
        let existing =
            roster.executions.get(id).ok_or_else(|| Error::Unknown { id: id.to_string() })?;
        if let Some(ended) = &existing.ended {
            return Err(Error::Ended { id: id.clone(), reason: ended.reason.clone() });
        }
        let mut changed = Execution::clone(existing);
        change(&mut changed);
        self.store_execution(&changed)?;
        Ok(roster.insert_execution(changed))
    }

    /// A number for a principal to be.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn next_principal(&self) -> Result<PrincipalNumber, Error> {
        let mut roster = self.write();
        let number = roster.next_number;
        self.journal.put(Kind::Fact, b"next-principal", &(number + 1).to_be_bytes())?;
        roster.next_number = number + 1;
        Ok(PrincipalNumber(number))
    }

    /// Registers a principal of a running execution: from now on its processes are somebody.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn register(&self, principal: Principal) -> Result<Arc<Principal>, Error> {
        let mut roster = self.write();
        match roster.executions.get(&principal.execution) {
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
        Ok(roster.insert_principal(principal))
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
        let mut roster = self.write();
        let Some(existing) = roster.principals.get(&number) else { return Ok(None) };
        let mut changed = Principal::clone(existing);
        change(&mut changed);
        let value = serde_json::to_vec(&changed).map_err(|_| journal::Error::TooLong)?;
        self.journal.put(Kind::Principal, &number.0.to_be_bytes(), &value)?;
        let changed = Arc::new(changed);
        roster.principals.insert(number, changed.clone());
        Ok(Some(changed))
    }

    /// Takes a principal off the register. Its directory stays, empty. A successor knows that its
    /// processes are to be ended until [`Registry::forget`].
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn unregister(&self, number: PrincipalNumber) -> Result<Option<Arc<Principal>>, Error> {
        let mut roster = self.write();
        let Some(principal) = roster.principals.get(&number) else { return Ok(None) };
        self.store_ending(principal)?;
        Ok(roster.remove_principal(number))
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
        let roster = self.write();
        if roster.principals.contains_key(&number) {
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
        let mut roster = self.write();
        let existing =
            roster.executions.get(id).ok_or_else(|| Error::Unknown { id: id.to_string() })?;
        if existing.ended.is_some() {
            return Ok((existing.clone(), Vec::new()));
        }
        let mut execution = Execution::clone(existing);
        execution.ended = Some(ended);
        // The end is stored first: a successor that reads it drops the principals as well.
        self.store_execution(&execution)?;
        let execution = roster.insert_execution(execution);
        let members: Vec<_> =
            roster.principals.values().filter(|p| p.execution == *id).map(|p| p.number).collect();
        let mut removed = Vec::new();
        for number in members {
            if let Some(principal) = roster.principals.get(&number) {
                self.store_ending(principal)?;
            }
            removed.extend(roster.remove_principal(number));
        }
        self.forget_old(&mut roster)?;
        Ok((execution, removed))
    }

    /// The end of an execution is on record, and its processes are gone.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn settle(&self, id: &ExecutionId) -> Result<(), Error> {
        let mut roster = self.write();
        let Some(mut execution) = roster.executions.get(id).map(|e| Execution::clone(e)) else {
            return Ok(());
        };
        let Some(ended) = execution.ended.as_mut().filter(|ended| ended.unsettled) else {
            return Ok(());
        };
        ended.unsettled = false;
        self.store_execution(&execution)?;
        roster.insert_execution(execution);
        Ok(())
    }

    /// Forgets the oldest of too many ended executions.
    fn forget_old(&self, roster: &mut Roster) -> Result<(), Error> {
        let mut ended: Vec<_> = roster
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
            roster.executions.remove(&id);
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
        let mut roster = self.write();
        if let Some(inode) = roster.secret_inodes.get(&key) {
            return Ok(*inode);
        }
        let value = serde_json::to_vec(&secret).map_err(|_| journal::Error::TooLong)?;
        self.journal.put(Kind::Inode, &fresh.to_be_bytes(), &value)?;
        roster.insert_secret_inode(fresh, secret);
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
        let roster = self.read();
        let mut found: Vec<_> =
            roster.principals.values().filter(|p| p.execution == *id).cloned().collect();
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

impl Members for Registry {
    fn by_cgroup(&self, cgroup_id: u64) -> Option<PrincipalNumber> {
        self.read().by_cgroup.get(&cgroup_id).copied()
    }

    fn by_cgroup_path(&self, path: &Path) -> Option<PrincipalNumber> {
        let roster = self.read();
        if roster.by_path.is_empty() {
            return None;
        }
        path.ancestors().find_map(|ancestor| roster.by_path.get(ancestor).copied())
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
mod tests;
