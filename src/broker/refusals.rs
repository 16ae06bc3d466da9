//! Refusals: the last one of each principal, how often the same one repeats, and bursts of them.
//!
//! Invariant: each refusal is on record or in the count of one that is; a count is written when its
//! minute is over, and what could not be written is counted on. Danger: a process that is refused in a
//! loop would fill the log, or, uncounted, look as if it had been refused once.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, Timestamp};
use crate::execution::principal::{File, Principal};
use crate::execution::registry::Registry;
use crate::identity::Caller;
use crate::identity::attestor::PrincipalNumber;

use super::Refusal;

/// A repeated refusal is recorded again, with its count, after this many seconds.
const REFUSAL_AGAIN_SECS: i64 = 60;
/// So many refusals within a minute are a burst.
const BURST: u64 = 20;
/// Refusals that are counted apart; beyond this many each one is recorded.
const MAX_COUNTED: usize = 4096;
/// The last refusal of a principal, for its `.identity`.
#[derive(Debug, Clone)]
pub(super) struct LastRefusal {
    pub(super) name: String,
    pub(super) why: Refusal,
    pub(super) at: Timestamp,
}

/// A refusal that repeats, and how often it did since its last record.
struct Counted {
    recorded_at: Timestamp,
    unrecorded: u64,
    /// The first of them: the record of the others says the same.
    first: Refused,
}

/// What the record of a refusal needs after its caller has gone.
#[derive(Clone)]
pub(super) struct Refused {
    pub(super) principal: Option<Arc<Principal>>,
    pub(super) file: Option<File>,
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) why: Refusal,
}

impl Counted {
    fn is_due(&self, now: Timestamp) -> bool {
        now.as_second() - self.recorded_at.as_second() >= REFUSAL_AGAIN_SECS
    }
}

/// Many refusals of one principal within a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Burst {
    /// Its execution.
    pub execution: String,
    /// Its chain.
    pub chain: String,
    /// Its agent.
    pub agent: String,
    /// When the minute began.
    pub since: Timestamp,
    /// How many there were when it was noticed.
    pub count: u64,
}

/// Who was refused, and what: the same again is counted, not recorded.
pub(super) type Key = (Option<PrincipalNumber>, String);

/// See the module.
pub(super) struct Refusals {
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    last: Mutex<HashMap<PrincipalNumber, LastRefusal>>,
    /// Refusals of each principal in its present minute, and those that were many.
    bursts: Mutex<(HashMap<PrincipalNumber, Burst>, Vec<Burst>)>,
    counted: Mutex<HashMap<Key, Counted>>,
}

impl Refusals {
    pub(super) fn new(registry: Arc<Registry>, clock: Arc<dyn Clock>) -> Self {
        Self {
            registry,
            clock,
            last: Mutex::default(),
            bursts: Mutex::default(),
            counted: Mutex::default(),
        }
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<Key, Counted>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last refusal of a principal.
    pub(super) fn last(&self, principal: PrincipalNumber) -> Option<LastRefusal> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get(&principal).cloned()
    }

    /// Bursts of refusals since the last call.
    pub(super) fn take_bursts(&self) -> Vec<Burst> {
        let mut bursts = self.bursts.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut bursts.1)
    }

    /// For the principal's `.identity`, and for the alert about bursts.
    pub(super) fn note(&self, principal: Option<&Principal>, name: &str, why: Refusal) {
        let now = self.clock.now();
        if let Some(principal) = principal {
            self.count_burst(principal, now);
            let last = LastRefusal { name: name.to_owned(), why, at: now };
            self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(principal.number, last);
        }
    }

    /// Counts a refusal; how many are to be recorded now, if any.
    pub(super) fn count(
        &self,
        principal: Option<&Principal>,
        file: Option<&File>,
        name: &str,
        caller: Caller,
        why: Refusal,
    ) -> Option<u64> {
        let now = self.clock.now();
        let mut counted = self.counted();
        let key = (principal.map(|p| p.number), format!("{name}\n{why}"));
        if counted.len() >= MAX_COUNTED && !counted.contains_key(&key) {
            counted.retain(|_, c| !c.is_due(now) || c.unrecorded > 0);
        }
        match counted.get_mut(&key) {
            Some(c) if !c.is_due(now) => {
                c.unrecorded += 1;
                None
            }
            Some(c) => {
                let count = c.unrecorded + 1;
                (c.recorded_at, c.unrecorded) = (now, 0);
                Some(count)
            }
            None => {
                if counted.len() < MAX_COUNTED {
                    let first = Refused {
                        principal: principal.and_then(|p| self.registry.principal(p.number)),
                        file: file.cloned(),
                        name: name.to_owned(),
                        uid: caller.uid,
                        gid: caller.gid,
                        why,
                    };
                    counted.insert(key, Counted { recorded_at: now, unrecorded: 0, first });
                }
                Some(1)
            }
        }
    }

    /// Counts a refusal whose record waits for the end of its minute.
    pub(super) fn count_for_later(
        &self,
        reader: &Principal,
        file: &File,
        name: &str,
        caller: Caller,
        why: Refusal,
    ) {
        if let Some(count) = self.count(Some(reader), Some(file), name, caller, why) {
            self.put_back(&(Some(reader.number), format!("{name}\n{why}")), count);
        }
    }

    /// Those that were counted and whose minute is over, or `all` of them, with their numbers.
    pub(super) fn take_due(&self, all: bool) -> Vec<(Key, Refused, u64)> {
        let now = self.clock.now();
        let mut due = Vec::new();
        self.counted().retain(|key, counted| {
            if !all && !counted.is_due(now) {
                return true;
            }
            if counted.unrecorded == 0 {
                return false;
            }
            due.push((key.clone(), counted.first.clone(), counted.unrecorded));
            (counted.recorded_at, counted.unrecorded) = (now, 0);
            true
        });
        due
    }

    /// Counts on what could not be recorded.
    pub(super) fn put_back(&self, key: &Key, count: u64) {
        if let Some(counted) = self.counted().get_mut(key) {
            counted.unrecorded += count;
        }
    }

    fn count_burst(&self, principal: &Principal, now: Timestamp) {
        let mut bursts = self.bursts.lock().unwrap_or_else(PoisonError::into_inner);
        let (open, noticed) = &mut *bursts;
        let is_over = |b: &Burst| now.as_second() - b.since.as_second() >= REFUSAL_AGAIN_SECS;
        if open.len() >= MAX_COUNTED {
            open.retain(|_, b| !is_over(b));
        }
        let new = || Burst {
            execution: principal.execution.to_string(),
            chain: principal.chain.clone(),
            agent: principal.agent.clone(),
            since: now,
            count: 0,
        };
        let burst = open.entry(principal.number).or_insert_with(new);
        if is_over(burst) {
            *burst = new();
        }
        burst.count += 1;
        if burst.count == BURST {
            noticed.push(burst.clone());
        }
    }
}
