//! Those who try to find out values that are not their own: by writing guesses and looking for markers,
//! or at the clock.
//!
//! Twenty values of others in what one execution writes within a minute are no accident, nor are twenty
//! beginnings of such that its chain wrote and went no further with (one more is allowed each hour). The
//! requests of such a chain's events are answered at even times from then on, until a worker takes over.
//! Invariant: what is counted is written by nobody who does not know the value or try. Danger: who is
//! noticed learns that the last guesses were right; each time, that is one more character.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::broker::Place;
use crate::clock::Timestamp;

/// So many are no accident.
const MAX_HITS: u64 = 20;
/// Within which values are counted.
const VALUES_SECS: i64 = 60;
/// After which one guess fewer is counted.
const GUESS_SECS: i64 = 3600;
/// Executions and chains that are counted at once.
const MAX_COUNTED: usize = 4096;

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// Whole values.
    Values,
    /// Beginnings of values.
    Beginnings,
}

/// One who was noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The execution.
    pub execution: String,
    /// Its chain.
    pub chain: String,
    /// What it tried.
    pub tried: Tried,
    /// When it was noticed.
    pub at: Timestamp,
}

#[derive(Default)]
struct State {
    /// Values by execution: how many since when.
    values: HashMap<String, (i64, u64)>,
    /// Guesses by chain: how many there were then.
    guesses: HashMap<String, (i64, u64)>,
    guessers: HashSet<String>,
    noticed: Vec<Probe>,
}

/// See the module.
#[derive(Default)]
pub struct Probes {
    state: Mutex<State>,
    has_guessers: AtomicBool,
}

/// Makes room; what is over is forgotten.
fn trim(counted: &mut HashMap<String, (i64, u64)>, is_over: impl Fn(&(i64, u64)) -> bool) {
    if counted.len() >= MAX_COUNTED {
        counted.retain(|_, count| !is_over(count));
    }
    if counted.len() >= MAX_COUNTED {
        counted.clear();
    }
}

impl Probes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who were noticed since the last call.
    pub fn take(&self) -> Vec<Probe> {
        std::mem::take(&mut self.lock().noticed)
    }

    /// Chains whose events are answered at even times.
    pub fn guessers(&self) -> Vec<String> {
        let mut all: Vec<_> = self.lock().guessers.iter().cloned().collect();
        all.sort_unstable();
        all
    }

    /// Whether a place's chain is one of those.
    pub(super) fn is_guesser(&self, place: &Place) -> bool {
        self.has_guessers.load(Ordering::Acquire) && self.lock().guessers.contains(&place.chain)
    }

    /// Counts values of others in what an execution writes.
    pub(super) fn count_values(&self, place: &Place, count: u64, now: Timestamp) {
        let second = now.as_second();
        let is_over = |(since, _): &(i64, u64)| second - since >= VALUES_SECS;
        let mut state = self.lock();
        trim(&mut state.values, is_over);
        let entry = state.values.entry(place.execution.clone()).or_insert((second, 0));
        if is_over(entry) {
            *entry = (second, 0);
        }
        let before = entry.1;
        entry.1 += count;
        if before < MAX_HITS && entry.1 >= MAX_HITS {
            state.notice(place, Tried::Values, now);
        }
    }

    /// Counts beginnings of such values.
    pub(super) fn count_guesses(&self, place: &Place, count: u64, now: Timestamp) {
        let second = now.as_second();
        let mut state = self.lock();
        if state.guessers.contains(&place.chain) {
            return;
        }
        let left = |(since, count): (i64, u64)| {
            let hours = u64::try_from((second - since) / GUESS_SECS).unwrap_or(0);
            (since + hours.cast_signed() * GUESS_SECS, count.saturating_sub(hours))
        };
        trim(&mut state.guesses, |entry| left(*entry).1 == 0);
        let entry = state.guesses.entry(place.chain.clone()).or_insert((second, 0));
        *entry = left(*entry);
        entry.1 += count;
        if entry.1 >= MAX_HITS {
            state.guesses.remove(&place.chain);
            state.guessers.insert(place.chain.clone());
            state.notice(place, Tried::Beginnings, now);
            self.has_guessers.store(true, Ordering::Release);
        }
    }
}

impl State {
    fn notice(&mut self, place: &Place, tried: Tried, at: Timestamp) {
        let (execution, chain) = (place.execution.clone(), place.chain.clone());
        self.noticed.push(Probe { execution, chain, tried, at });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(chain: &str, execution: &str) -> Place {
        Place {
            folder: format!("{chain}/-/{execution}"),
            chain: chain.into(),
            environment: None,
            execution: execution.into(),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn twenty_values_of_an_execution_within_a_minute_are_told_of_once() {
        let probes = Probes::default();
        for second in 0..100 {
            probes.count_values(&place("a", "slow"), 1, at(second * 4));
        }
        assert_eq!(probes.take(), []);
        for second in 0..59 {
            probes.count_values(&place("a", "x"), 1, at(second));
        }
        let noticed = probes.take();
        assert_eq!(noticed.len(), 1, "{noticed:?}");
        let Probe { execution, chain, tried, at: time } = &noticed[0];
        assert_eq!((&**execution, &**chain, *tried, *time), ("x", "a", Tried::Values, at(19)));
        assert!(!probes.is_guesser(&place("a", "x")), "it has guessed no beginning");
        assert_eq!(probes.take(), []);
    }

    #[test]
    fn twenty_guesses_of_a_chain_make_it_a_guesser_however_slow_but_for_one_in_an_hour() {
        let probes = Probes::default();
        for hour in 0..100 {
            probes.count_guesses(&place("patient", "x"), 1, at(hour * 3600));
        }
        assert!(!probes.is_guesser(&place("patient", "x")));
        for n in 0..40 {
            // Two in an hour, of two executions: one too many each hour.
            assert_eq!(probes.is_guesser(&place("a", "x")), n > 37, "{n}");
            let execution = if n % 2 == 0 { "x" } else { "y" };
            probes.count_guesses(&place("a", execution), 1, at(n * 1800));
        }
        assert!(probes.is_guesser(&place("a", "z")), "the chain, and not an execution of it");
        assert!(!probes.is_guesser(&place("b", "x")));
        assert_eq!(probes.guessers(), ["a"]);
        probes.count_guesses(&place("b", "x"), 500, at(0));
        assert_eq!(probes.guessers(), ["a", "b"]);
        let noticed = probes.take();
        let tried: Vec<_> = noticed.iter().map(|probe| probe.tried).collect();
        assert_eq!(tried, [Tried::Beginnings; 2], "each is told of once");
    }

    #[test]
    fn a_clock_that_goes_back_forgives_nothing() {
        let probes = Probes::default();
        for n in 0..20 {
            probes.count_guesses(&place("a", "x"), 1, at(-n * 7200));
        }
        assert!(probes.is_guesser(&place("a", "x")));
    }

    #[test]
    fn counts_are_bounded() {
        let probes = Probes::default();
        for n in 0..3 * MAX_COUNTED {
            probes.count_values(&place("a", &n.to_string()), 1, at(0));
            probes.count_guesses(&place(&n.to_string(), "x"), 1, at(0));
        }
        let state = probes.lock();
        assert!(state.values.len() <= MAX_COUNTED && state.guesses.len() <= MAX_COUNTED);
    }
}
