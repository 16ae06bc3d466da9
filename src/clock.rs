//! Time as a fact that is passed in, so that logic can be tested over years in a moment.
//!
//! Invariant: logic takes a [`Timestamp`] or a [`Clock`]; only [`SystemClock`] asks the machine.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicI64, Ordering};

pub use jiff::Timestamp;

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// The wall clock's time, which may jump either way.
    fn now(&self) -> Timestamp;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct FakeClock {
    unix_nanos: AtomicI64,
}

impl FakeClock {
    /// Starts at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { unix_nanos: AtomicI64::new(nanos(now)) }
    }

    /// Moves to `now`, forwards or back.
    pub fn set(&self, now: Timestamp) {
        self.unix_nanos.store(nanos(now), Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.unix_nanos.load(Ordering::SeqCst)))
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// Nanoseconds since 1970; saturates in the year 2262, where an `i64` ends.
fn nanos(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fake_clock_tells_what_it_was_set_to() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2027-01-01T00:00:00Z".parse().unwrap();
        let clock = FakeClock::at(start);
        assert_eq!(clock.now(), start);
        clock.set(later);
        assert_eq!(clock.now(), later);
    }
}
