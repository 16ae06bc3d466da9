//! What the keeper is told of how things are: one byte when it changes, and every second.
//!
//! Invariant: it is told only by the thread that keeps house, so silence means that this one is stuck.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::proto::State;

use super::Daemon;

/// Between two words when nothing changes.
const EVERY: Duration = Duration::from_secs(1);

/// It serves, and a fault keeps it from some of it.
pub const DEGRADED: u8 = b'D';
/// It serves, and the vault is locked.
pub const LOCKED: u8 = b'L';
/// It serves.
pub const READY: u8 = b'R';

/// Where the keeper reads, and what it was told last.
pub(super) struct News {
    to: Option<File>,
    last: Option<(u8, Instant)>,
}

impl News {
    pub(super) fn new(to: Option<File>) -> Self {
        Self { to, last: None }
    }

    fn tell(&mut self, word: u8) {
        let Some(to) = &mut self.to else { return };
        if self.last.is_some_and(|(last, at)| last == word && at.elapsed() < EVERY) {
            return;
        }
        // A pipe that is full says enough.
        let _told = to.write(&[word]);
        self.last = Some((word, Instant::now()));
    }
}

impl Daemon {
    pub(super) fn tell_keeper(&self) {
        let word = if self.core.vault().is_none() {
            LOCKED
        } else if self.state() == State::Degraded {
            DEGRADED
        } else {
            READY
        };
        self.news.lock().unwrap_or_else(PoisonError::into_inner).tell(word);
    }
}
