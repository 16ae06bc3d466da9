//! Places of connections and of redacted streams: in all, and for each uid.
//!
//! Invariant: what was taken is given back when it is dropped. Danger: one uid that takes every place.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use super::server::Shared;
use crate::proto::{Code, Problem};

#[derive(Default)]
pub(super) struct Counts {
    all: usize,
    by_uid: HashMap<u32, usize>,
}

impl Counts {
    fn leave(&mut self, uid: u32) {
        self.all -= 1;
        if let Some(own) = self.by_uid.get_mut(&uid) {
            *own -= 1;
            if *own == 0 {
                self.by_uid.remove(&uid);
            }
        }
    }
}

/// One redacted stream's place in the counts.
pub(super) struct Seat {
    shared: Arc<Shared>,
    uid: u32,
}

impl Seat {
    pub(super) fn take(shared: &Arc<Shared>, uid: u32) -> Result<Self, Problem> {
        let limits = &shared.limits;
        let privileged = uid == 0 || uid == shared.own_uid;
        let mut counts = shared.redacted.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_uid.get(&uid).copied().unwrap_or(0);
        if counts.all >= limits.redacted || (own >= limits.redacted_per_uid && !privileged) {
            return Err(Problem::new(Code::Busy, format!("{own} streams of uid {uid} are open"))
                .with_hint("end some; one connection serves many texts"));
        }
        counts.all += 1;
        *counts.by_uid.entry(uid).or_insert(0) += 1;
        drop(counts);
        Ok(Self { shared: shared.clone(), uid })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.redacted.lock().unwrap_or_else(PoisonError::into_inner).leave(self.uid);
    }
}

/// One connection's place in the counts.
pub(super) struct Place {
    shared: Arc<Shared>,
    uid: u32,
}

impl Place {
    pub(super) fn take(shared: &Arc<Shared>, uid: u32) -> Result<Self, Problem> {
        let limits = &shared.limits;
        let privileged = uid == 0 || uid == shared.own_uid;
        let most = limits.connections - if privileged { 0 } else { limits.reserved_connections };
        let mut counts = shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_uid.get(&uid).copied().unwrap_or(0);
        if own >= limits.connections_per_uid {
            return Err(Problem::new(Code::Busy, format!("uid {uid} has {own} connections open"))
                .with_hint("close some; one connection serves many requests"));
        }
        if counts.all >= most {
            return Err(Problem::new(Code::Busy, format!("{} connections are open", counts.all))
                .with_hint("try again in a moment"));
        }
        counts.all += 1;
        *counts.by_uid.entry(uid).or_insert(0) += 1;
        drop(counts);
        Ok(Self { shared: shared.clone(), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).leave(self.uid);
    }
}
