//! What time and the ends of executions do to the versions of one secret or group.
//!
//! Invariant: a version that somebody holds is neither retired nor destroyed; all members of a group
//! go the same step or none does. Danger: a clock that was set back must not undo or repeat a step.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::catalog::secret::{Secret, Stage, Version};
use crate::clock::Timestamp;

/// How long versions stay.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// A pending version is promoted after this time even while the old one is held.
    pub drain: Duration,
    /// How long the previous version can be brought back.
    pub keep_previous: Duration,
    /// How long a retired version is kept for redaction.
    pub keep_retired: Duration,
}

/// One step of a unit. In the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The pending version becomes current, in every member.
    Promote,
    /// A version becomes unreadable.
    Retire {
        /// Which member.
        member: usize,
        /// Which version.
        number: u32,
    },
    /// A version's bytes go.
    Destroy {
        /// Which member.
        member: usize,
        /// Which version.
        number: u32,
    },
}

fn passed(since: Timestamp, period: Duration, now: Timestamp) -> bool {
    // A time that cannot be reckoned with never comes.
    since.checked_add(period).is_ok_and(|end| end <= now)
}

/// From when on a pending version counts, and from when it is promoted whoever holds the old one.
pub fn drain_ends(pending: &Version, rules: Rules) -> Option<Timestamp> {
    let from = pending.valid_from.map_or(pending.created_at, |from| from.max(pending.created_at));
    from.checked_add(pending.drain.map_or(rules.drain, |p| p.0)).ok()
}

fn may_promote(
    member: &Secret,
    is_held: &dyn Fn(&str) -> bool,
    rules: Rules,
    now: Timestamp,
) -> bool {
    let Some(pending) = member.at_stage(Stage::Pending) else { return false };
    if pending.untested || pending.valid_from.is_some_and(|from| from > now) {
        return false;
    }
    let current = member.at_stage(Stage::Current).and_then(|v| v.value.as_deref());
    !current.is_some_and(is_held) || drain_ends(pending, rules).is_some_and(|end| end <= now)
}

/// The steps that are due now. `is_held` tells whether a running execution is pinned to a value.
pub fn due(
    members: &[&Secret],
    is_held: &dyn Fn(&str) -> bool,
    rules: Rules,
    now: Timestamp,
) -> Vec<Step> {
    let mut steps = Vec::new();
    // Of a rotation in one commit all members have a pending version, or none.
    if !members.is_empty() && members.iter().all(|m| may_promote(m, is_held, rules, now)) {
        steps.push(Step::Promote);
    }
    for (member, secret) in members.iter().enumerate() {
        let back = secret.rollback_target().map(|v| v.number);
        for version in &secret.versions {
            let Some(value) = version.value.as_deref() else { continue };
            let number = version.number;
            match version.stage {
                Stage::Previous if is_held(value) => {}
                // The newest can be brought back for a while; older ones cannot, and go at once.
                Stage::Previous
                    if back != Some(number)
                        || passed(version.since(), rules.keep_previous, now) =>
                {
                    steps.push(Step::Retire { member, number });
                }
                Stage::Retired | Stage::Revoked
                    if !is_held(value) && passed(version.since(), rules.keep_retired, now) =>
                {
                    steps.push(Step::Destroy { member, number });
                }
                Stage::Current
                | Stage::Pending
                | Stage::Previous
                | Stage::Retired
                | Stage::Revoked => {}
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::secret::NewVersion;
    use crate::catalog::secret::tests::{at, new, secret};
    use crate::config::Period;

    const RULES: Rules = Rules {
        drain: Duration::from_secs(100),
        keep_previous: Duration::from_secs(1000),
        keep_retired: Duration::from_secs(5000),
    };

    fn nobody(_: &str) -> bool {
        false
    }

    #[test]
    fn promotion_waits_for_holders_of_the_old_version_up_to_the_drain() {
        let mut secret = secret();
        secret.stage(new(10)).unwrap();
        let holds_old = |value: &str| value == "v1";
        assert_eq!(due(&[&secret], &holds_old, RULES, at(109)), []);
        assert_eq!(due(&[&secret], &holds_old, RULES, at(110)), [Step::Promote]);
        assert_eq!(due(&[&secret], &nobody, RULES, at(11)), [Step::Promote]);
        // Who holds the new one is nobody to wait for.
        assert_eq!(due(&[&secret], &|v| v == "v10", RULES, at(11)), [Step::Promote]);
    }

    #[test]
    fn a_version_that_is_not_valid_yet_is_not_promoted_and_may_have_its_own_drain() {
        let mut secret = secret();
        let own = NewVersion { valid_from: Some(at(50)), drain: Some(Period::secs(7)), ..new(10) };
        secret.stage(own).unwrap();
        assert_eq!(due(&[&secret], &nobody, RULES, at(49)), []);
        assert_eq!(due(&[&secret], &nobody, RULES, at(50)), [Step::Promote]);
        let held = |value: &str| value == "v1";
        assert_eq!(due(&[&secret], &held, RULES, at(56)), []);
        assert_eq!(due(&[&secret], &held, RULES, at(57)), [Step::Promote]);
    }

    #[test]
    fn members_of_a_group_are_promoted_together_or_not_at_all() {
        let (mut one, mut two) = (secret(), secret());
        one.stage(new(10)).unwrap();
        two.stage(NewVersion { value: "w10".into(), ..new(10) }).unwrap();
        two.versions[0].value = Some("w1".into());
        let held = |value: &str| value == "w1";
        assert_eq!(due(&[&one, &two], &held, RULES, at(20)), []);
        assert_eq!(due(&[&one, &two], &nobody, RULES, at(20)), [Step::Promote]);
    }

    #[test]
    fn what_is_held_stays_and_the_rest_goes_in_its_time() {
        let mut secret = secret();
        for second in [10, 20] {
            secret.stage(new(second)).unwrap();
            secret.promote(at(second)).unwrap();
        }
        // Version 1 and 2 are previous: 2 can be brought back, 1 only read by who holds it.
        assert_eq!(due(&[&secret], &|v| v == "v1", RULES, at(30)), []);
        assert_eq!(
            due(&[&secret], &nobody, RULES, at(30)),
            [Step::Retire { member: 0, number: 1 }]
        );
        secret.retire(1, at(30));
        assert_eq!(
            due(&[&secret], &nobody, RULES, at(1020)),
            [Step::Retire { member: 0, number: 2 }]
        );
        assert_eq!(
            due(&[&secret], &|v| v == "v1", RULES, at(5031)),
            [Step::Retire { member: 0, number: 2 }]
        );
        secret.retire(2, at(1020));
        assert_eq!(
            due(&[&secret], &nobody, RULES, at(5030)),
            [Step::Destroy { member: 0, number: 1 }]
        );
        // A clock that was set back undoes nothing.
        assert_eq!(due(&[&secret], &nobody, RULES, at(0)), []);
    }
}
