//! What the service manager is told, and what it keeps for the next keeper.
//!
//! Invariant: the unit is ready once, when the vault can be read, and each reload ends with that word
//! again. What cannot be told is logged and no reason to stop. See sd_notify(3).
#![forbid(unsafe_code)]

use crate::daemon::news;
use crate::sys::notify::{self, Manager};

/// Names in the service manager's store.
pub(super) mod stored {
    pub(in crate::keeper) const DEVICE: &str = "strongroom-device";
    pub(in crate::keeper) const SOCKET: &str = "strongroom-socket";
    pub(in crate::keeper) const STATE: &str = "strongroom-state";
    pub(in crate::keeper) const ALL: [&str; 3] = [DEVICE, SOCKET, STATE];
}

/// What the service manager has been told.
pub(super) struct Service {
    manager: Option<Manager>,
    wants_signs_of_life: bool,
    is_ready: std::cell::Cell<bool>,
    is_reloading: std::cell::Cell<bool>,
}

impl Service {
    pub(super) fn of_environment() -> Self {
        let manager = Manager::of_environment().unwrap_or_else(|error| {
            tracing::warn!(%error, "the service manager cannot be reached");
            None
        });
        Self {
            manager,
            wants_signs_of_life: notify::watchdog().is_some(),
            is_ready: false.into(),
            is_reloading: false.into(),
        }
    }

    /// Whether there is a manager that keeps descriptors.
    pub(super) fn is_there(&self) -> bool {
        self.manager.is_some()
    }

    pub(super) fn tell(&self, text: &str) {
        let told = self.manager.as_ref().map(|manager| manager.tell(text));
        if let Some(Err(error)) = told {
            tracing::warn!(%error, "the service manager was not told");
        }
    }

    pub(super) fn store(&self, name: &str, fd: std::os::fd::BorrowedFd<'_>) {
        let told = self.manager.as_ref().map(|manager| manager.store(name, fd));
        if let Some(Err(error)) = told {
            tracing::warn!(name, %error, "the service manager keeps no descriptor");
        }
    }

    pub(super) fn forget(&self, names: &[&str]) {
        for name in names {
            let told = self.manager.as_ref().map(|manager| manager.forget(name));
            if let Some(Err(error)) = told {
                tracing::warn!(name, %error, "the service manager still keeps a descriptor");
            }
        }
    }

    /// Passes on what a worker has said; `is_leaving`: it will say no more.
    pub(super) fn pass_on(&self, said: u8, is_leaving: bool) {
        let status = match said {
            news::READY => "STATUS=serving",
            news::LOCKED => "STATUS=the vault is locked: strongroom unlock",
            _ => "STATUS=degraded: strongroom doctor says why",
        };
        let can_read = said != news::LOCKED;
        let mut words = vec![status];
        if (can_read && !self.is_ready.get()) || (self.is_reloading.get() && !is_leaving) {
            self.is_ready.set(true);
            self.is_reloading.set(false);
            words.push("READY=1");
        }
        if self.wants_signs_of_life {
            words.push("WATCHDOG=1");
        }
        self.tell(&words.join("\n"));
    }

    pub(super) fn reloads(&self) {
        if self.manager.is_none() || !self.is_ready.get() {
            return;
        }
        self.is_reloading.set(true);
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let micros = now.map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }
}
