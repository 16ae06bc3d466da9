//! When a policy asks for a notice or for a rotation: state and clock in, steps out.
//!
//! Invariant: one notice for each due date, one rotation for each due date that was missed, whatever
//! the clock does in between. Danger: a host that slept for a month must not send thirty notices.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::catalog::policy::{Policy, SetBack};
use crate::clock::Timestamp;

/// The first wait after a failure; doubled for each further one.
const FIRST_RETRY: Duration = Duration::from_secs(15 * 60);
/// The longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_secs(24 * 3600);
/// The longest jitter: rotations of one due date do not all begin at once.
const MAX_JITTER: Duration = Duration::from_secs(3600);

/// What is known of the secret or group.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// When its value last changed.
    pub rotated_at: Timestamp,
    /// Whether a version is pending: a rotation is under way.
    pub is_pending: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Note that the clock was found to be behind the last rotation, or no more.
    Anchor(Option<SetBack>),
    /// Say that a rotation is due, or overdue.
    Notice {
        /// When.
        due: Timestamp,
    },
    /// Run the rotation chain.
    Rotate {
        /// When it was due.
        due: Timestamp,
    },
}

/// From when a period counts: the last rotation, or, where the clock was set back behind it, the
/// moment at which that was seen. Otherwise a clock that was years ahead for a moment would skip the
/// rotations of all those years.
fn base(policy: &Policy, rotated_at: Timestamp, now: Timestamp) -> Timestamp {
    match policy.state.set_back {
        _ if rotated_at <= now => rotated_at,
        Some(seen) if seen.rotated_at == rotated_at => seen.seen_at.min(now),
        _ => now,
    }
}

/// When the next rotation is due.
pub fn due_at(policy: &Policy, rotated_at: Timestamp, now: Timestamp) -> Timestamp {
    let base = base(policy, rotated_at, now);
    base.checked_add(policy.terms.rotate_every.0).unwrap_or(Timestamp::MAX)
}

/// The part of the period by which this one is late: the same for one target, spread over many.
pub fn jitter(policy: &Policy) -> Duration {
    // FNV-1a, 64 bits: only an even spread is wanted.
    let hash = policy.target.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let most = (policy.terms.rotate_every.0 / 20).min(MAX_JITTER);
    most.mul_f64((hash >> 11) as f64 / (1_u64 << 53) as f64)
}

/// How long to wait after so many failures in a row.
pub fn retry_after(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LAST_RETRY)
}

/// What is to be done now.
pub fn steps(policy: &Policy, facts: Facts, now: Timestamp) -> Vec<Step> {
    let due = due_at(policy, facts.rotated_at, now);
    let mut steps = Vec::new();
    let seen_at = base(policy, facts.rotated_at, now);
    let set_back =
        (facts.rotated_at > now).then_some(SetBack { rotated_at: facts.rotated_at, seen_at });
    if set_back != policy.state.set_back {
        steps.push(Step::Anchor(set_back));
    }
    if facts.is_pending {
        return steps;
    }
    let notice_at = due.checked_sub(policy.terms.notify_before.0).unwrap_or(Timestamp::MIN);
    if notice_at <= now && policy.state.noticed_for != Some(due) {
        steps.push(Step::Notice { due });
    }
    if policy.terms.auto_rotate {
        let begins = due.checked_add(jitter(policy)).unwrap_or(Timestamp::MAX);
        // A failure in the future was noted by a clock that has been set back since.
        let waits = policy.state.failed_at.filter(|at| *at <= now).is_some_and(|at| {
            at.checked_add(retry_after(policy.state.failures)).is_ok_and(|end| end > now)
        });
        if begins <= now && !waits {
            steps.push(Step::Rotate { due });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::policy::{State, Terms};
    use crate::config::Period;
    use proptest::prelude::*;

    const DAY: i64 = 86_400;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn policy(days: i64) -> Policy {
        Policy {
            id: "11".into(),
            target: "22".into(),
            terms: Terms {
                rotate_every: Period::secs((days * DAY).cast_unsigned()),
                notify_before: Period::secs(2 * DAY.cast_unsigned()),
                auto_rotate: true,
                rotation_chain: Some("rotate".parse().unwrap()),
            },
            state: State::default(),
            applied_at: at(0),
            applied_by: "me".into(),
        }
    }

    fn facts(rotated: i64) -> Facts {
        Facts { rotated_at: at(rotated), is_pending: false }
    }

    #[test]
    fn a_notice_comes_once_for_each_due_date() {
        let mut policy = policy(30);
        let due = at(30 * DAY);
        assert_eq!(steps(&policy, facts(0), at(28 * DAY - 1)), []);
        assert_eq!(steps(&policy, facts(0), at(28 * DAY)), [Step::Notice { due }]);
        policy.state.noticed_for = Some(due);
        assert_eq!(steps(&policy, facts(0), at(29 * DAY)), []);
        // A clock set back, and forth again.
        assert_eq!(steps(&policy, facts(0), at(0)), []);
        assert_eq!(steps(&policy, facts(0), at(28 * DAY)), []);
        assert_eq!(
            steps(&policy, facts(30 * DAY), at(58 * DAY)),
            [Step::Notice { due: at(60 * DAY) }]
        );
    }

    #[test]
    fn a_failure_is_tried_again_later_and_a_pending_rotation_is_left_alone() {
        let mut policy = policy(30);
        policy.state.noticed_for = Some(at(30 * DAY));
        let late = at(31 * DAY);
        assert_eq!(steps(&policy, facts(0), late), [Step::Rotate { due: at(30 * DAY) }]);
        assert_eq!(steps(&policy, Facts { is_pending: true, ..facts(0) }, late), []);
        policy.state.failed_at = Some(late);
        policy.state.failures = 1;
        assert_eq!(steps(&policy, facts(0), at(31 * DAY + 899)), []);
        assert_eq!(steps(&policy, facts(0), at(31 * DAY + 900)).len(), 1);
        assert!(retry_after(1) < retry_after(2));
        assert_eq!(retry_after(40), LAST_RETRY);
    }

    /// Carries out what the daemon carries out.
    fn look(policy: &mut Policy, rotated: &mut i64, now: i64) -> usize {
        let mut rotations = 0;
        for step in steps(policy, facts(*rotated), at(now)) {
            match step {
                Step::Anchor(set_back) => policy.state.set_back = set_back,
                Step::Notice { due } => policy.state.noticed_for = Some(due),
                Step::Rotate { .. } => {
                    *rotated = now;
                    rotations += 1;
                }
            }
        }
        rotations
    }

    #[test]
    fn a_clock_that_was_ten_years_ahead_for_a_moment_does_not_skip_ten_years() {
        let (mut policy, mut rotated) = (policy(30), 0);
        assert_eq!(look(&mut policy, &mut rotated, 3650 * DAY), 1);
        let mut now = 10 * DAY;
        assert_eq!(look(&mut policy, &mut rotated, now), 0);
        let mut rotations = 0;
        while now < 375 * DAY {
            now += DAY / 24;
            rotations += look(&mut policy, &mut rotated, now);
        }
        assert_eq!(rotations, 12, "one each 30 days from the correction on");
    }

    #[test]
    fn a_clock_that_starts_in_1970_until_it_is_set_rotates_nothing_twice() {
        let (mut policy, mut rotated) = (policy(30), 20_000 * DAY);
        policy.state.noticed_for = Some(at(20_030 * DAY));
        for boot in [0, 100 * DAY, 5_000 * DAY] {
            assert_eq!(look(&mut policy, &mut rotated, boot), 0);
            assert_eq!(look(&mut policy, &mut rotated, boot + 60), 0);
            assert_eq!(look(&mut policy, &mut rotated, 20_010 * DAY + boot / 1000), 0);
        }
        assert_eq!(policy.state.set_back, None);
        assert_eq!(policy.state.noticed_for, Some(at(20_030 * DAY)));
    }

    #[test]
    fn a_year_of_downtime_is_caught_up_with_one_notice_and_one_rotation() {
        let mut policy = policy(30);
        let due = at(30 * DAY);
        let late = at(395 * DAY);
        assert_eq!(steps(&policy, facts(0), late), [Step::Notice { due }, Step::Rotate { due }]);
        let mut rotated = 0;
        assert_eq!(look(&mut policy, &mut rotated, 395 * DAY), 1);
        for hour in 0..27 * 24 {
            assert_eq!(look(&mut policy, &mut rotated, 395 * DAY + hour * 3600), 0);
        }
        assert_eq!(policy.state.noticed_for, Some(due));
    }

    #[test]
    fn jitter_spreads_targets_is_stable_and_at_most_a_twentieth_of_the_period() {
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..200 {
            let mut policy = policy(30);
            policy.target = format!("target-{number}");
            assert_eq!(jitter(&policy), jitter(&policy.clone()));
            assert!(jitter(&policy) <= MAX_JITTER);
            seen.insert(jitter(&policy));
            policy.terms.rotate_every = Period::secs(100);
            assert!(jitter(&policy) <= Duration::from_secs(5));
        }
        assert!(seen.len() > 190);
    }

    proptest! {
        #[test]
        fn over_years_each_due_date_has_one_notice_and_one_rotation(
            period in 3_i64..90,
            sleeps in proptest::collection::vec((1_i64..40 * DAY, -2 * DAY..2 * DAY), 50..200),
        ) {
            let mut policy = policy(period);
            let mut rotated = 0;
            let mut now = 0;
            let mut last_due = None;
            for (sleep, jump) in sleeps {
                now += sleep;
                // Steps are carried out as the daemon does, also while the clock is wrong.
                for looked_at in [now, (now + jump).max(0), now] {
                    for step in steps(&policy, facts(rotated), at(looked_at)) {
                        match step {
                            Step::Anchor(set_back) => policy.state.set_back = set_back,
                            Step::Notice { due } => {
                                prop_assert_ne!(Some(due), policy.state.noticed_for);
                                policy.state.noticed_for = Some(due);
                            }
                            Step::Rotate { due } => {
                                prop_assert_ne!(Some(due), last_due);
                                prop_assert!(at(looked_at) >= due);
                                last_due = Some(due);
                                rotated = looked_at;
                            }
                        }
                    }
                }
                // Never later than one look after it was due.
                let due = due_at(&policy, at(rotated), at(now)).as_second();
                prop_assert!(due + 3600 >= now || rotated >= now - sleep);
            }
        }
    }
}
