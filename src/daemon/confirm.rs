//! The passphrase again, for what an agent of the operator's own uid must not do behind his back.
//!
//! In user mode an agent may have the operator's uid; where `[operator] confirm` says so, verbs that
//! reveal, store, grant or revoke want the passphrase from the session that asks, once in that time.
//! Invariant: what one session has shown counts for no other, and for no longer. Danger: a grant that
//! a number carries on which came back. Where the session cannot be told, nothing is granted.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::Instant;

use crate::audit::record::Event;
use crate::control::Caller;
use crate::proto::{self, Code, Problem};
use crate::sys::peer::Session;
use crate::vault::unlock::Credential;

use super::core::vault_problem;
use super::{Daemon, keys, user_of};

/// Sessions that are remembered; the longest ago goes first.
const MAX_SESSIONS: usize = 1024;

/// When each session of a user last showed the passphrase.
pub(super) type Confirmed = HashMap<(u32, Session), Instant>;

impl Daemon {
    /// Whether the verbs of [`crate::control::route::Route::confirmed`] are open to the caller now.
    pub(super) fn is_confirmed(&self, who: &Caller) -> bool {
        let Some(period) = &self.config.operator.confirm else { return true };
        let Some(session) = Session::of(&who.peer) else { return false };
        let confirmed = self.confirmed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        confirmed.get(&(who.peer.uid, session)).is_some_and(|at| at.elapsed() < period.0)
    }

    /// Takes the passphrase for the caller's session.
    pub(super) fn confirm_session(
        &self,
        who: &Caller,
        req: proto::Confirm,
    ) -> Result<proto::Done, Problem> {
        // One at a time, as for unlocking: guesses queue up behind the penalty.
        let _turn = self.unlocking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let vault = self.core.unlocked()?;
        let session = Session::of(&who.peer).ok_or_else(|| {
            Problem::new(Code::NoRole, "the session that asks cannot be told")
                .with_hint("ask from a terminal on this host")
        })?;
        if !vault.slots().iter().any(|slot| slot.method.name() == "passphrase") {
            return Err(Problem::new(Code::Conflict, "the vault has no passphrase to ask for")
                .with_hint(
                    "take [operator] confirm out of strongroom.toml, strongroom reload, then \
                     strongroom key add passphrase",
                ));
        }
        if let Err(error) = vault.check(&Credential::Passphrase(req.passphrase.into_secret())) {
            self.note_unlock(Event::UnlockFailed, "confirm", who.peer.uid);
            std::thread::park_timeout(keys::PENALTY);
            return Err(vault_problem(&error));
        }
        let mut record = self.core.new_record(Event::OperatorConfirmed);
        let user = user_of(who.peer.uid);
        record.user = Some(&user);
        record.uid = Some(who.peer.uid);
        self.core.record(&record)?;
        let mut confirmed =
            self.confirmed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if confirmed.len() >= MAX_SESSIONS
            && let Some(oldest) = confirmed.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            confirmed.remove(&oldest);
        }
        confirmed.insert((who.peer.uid, session), Instant::now());
        Ok(proto::Done::default())
    }
}
