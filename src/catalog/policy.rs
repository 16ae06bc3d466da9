//! When a secret or a group is to be rotated, and by which chain.
//!
//! Invariant: a policy that [`parse`] returns has a positive period, a notice that is not longer than
//! it, and automatic rotation only with a chain that makes the new value.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::config::{Period, expected, unknown_field};

use super::name::ChainName;

/// Longer periods are refused: 100 years.
const MAX_PERIOD: Duration = Duration::from_secs(36_500 * 86_400);
/// Notices come this long before the due date unless said otherwise; at most half the period.
const NOTIFY_BEFORE: Duration = Duration::from_secs(7 * 86_400);
const DAY_SECS: u64 = 86_400;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// From one change of the value to the next.
    pub rotate_every: Period,
    /// How long before the due date the notice comes.
    pub notify_before: Period,
    /// Whether the daemon rotates by itself when it is due.
    pub auto_rotate: bool,
    /// The chain that makes, sets and tests the new value.
    pub rotation_chain: Option<ChainName>,
}

/// A clock that was set back behind the last rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetBack {
    /// When the rotation was, by the clock of then.
    pub rotated_at: Timestamp,
    /// When that was found to be in the future.
    pub seen_at: Timestamp,
}

/// What has happened under a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The due date that was announced.
    pub noticed_for: Option<Timestamp>,
    /// When a rotation was last tried and failed.
    pub failed_at: Option<Timestamp>,
    /// Failures since the last success.
    pub failures: u32,
    /// The clock was found to be behind the last rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_back: Option<SetBack>,
}

/// A policy as it is stored, in a record of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The vault's record of this, in hex.
    pub id: String,
    /// The record of the secret or group that it is for, in hex.
    pub target: String,
    /// What was asked for.
    pub terms: Terms,
    /// What has happened.
    pub state: State,
    /// When it was applied.
    pub applied_at: Timestamp,
    /// Who applied it.
    pub applied_by: String,
}

/// Why a text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Rotation by itself needs a chain that makes a value.
    #[error("{name}: auto_rotate needs a rotation_chain")]
    NoChain {
        /// Which secret or group.
        name: String,
    },
    /// The notice would come before the last rotation.
    #[error(
        "{name}: the notice is to come {notify} before the due date, but it rotates every {every}"
    )]
    NotifyLater {
        /// Which.
        name: String,
        /// The notice.
        notify: Period,
        /// The period.
        every: Period,
    },
    /// No period, or two.
    #[error("{name}: give rotate_every_days or rotate_every, one of them")]
    Period {
        /// Which.
        name: String,
    },
    /// A period that is zero, negative or longer than 100 years.
    #[error("{name}: {field} is not between 1 and 36500 days")]
    Range {
        /// Which.
        name: String,
        /// Which field.
        field: &'static str,
    },
    /// The text is not of this form.
    #[error("line {line}, column {column}: {what}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong there.
        what: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    rotation_policy: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    rotate_every_days: Option<i64>,
    rotate_every: Option<Period>,
    notify_before_days: Option<i64>,
    notify_before: Option<Period>,
    #[serde(default)]
    auto_rotate: bool,
    rotation_chain: Option<ChainName>,
}

/// Reads `{"rotation_policy": {"NAME": {...}}}`: terms by name of a secret or group.
///
/// # Errors
/// See [`Error`]; the first that was found.
pub fn parse(text: &str) -> Result<BTreeMap<String, Terms>, Error> {
    let document: Document = serde_json::from_str(text).map_err(|error| Error::Syntax {
        line: error.line(),
        column: error.column(),
        what: describe(&error.to_string()),
    })?;
    document.rotation_policy.into_iter().map(|(name, entry)| terms(name, &entry)).collect()
}

/// serde's text without what it quotes: a file of values may have been given in a policy's place.
fn describe(message: &str) -> String {
    let message = message.split(" at line ").next().unwrap_or_default();
    if message.starts_with("invalid ") || message.starts_with("unknown variant ") {
        return expected(message).unwrap_or("this is no rotation policy").to_owned();
    }
    match unknown_field(message) {
        Some((key, known)) => format!("unknown key `{key}`; known here: {}", known.join(", ")),
        None => message.chars().take(400).collect(),
    }
}

fn days(name: &str, field: &'static str, days: i64, least: i64) -> Result<Period, Error> {
    let range = || Error::Range { name: name.to_owned(), field };
    let days = u64::try_from(days).ok().filter(|_| days >= least).ok_or_else(range)?;
    let period = Duration::from_secs(days.checked_mul(DAY_SECS).ok_or_else(range)?);
    if period > MAX_PERIOD { Err(range()) } else { Ok(Period(period)) }
}

fn terms(name: String, entry: &Entry) -> Result<(String, Terms), Error> {
    let rotate_every = match (entry.rotate_every_days, entry.rotate_every) {
        (Some(count), None) => days(&name, "rotate_every_days", count, 1)?,
        (None, Some(period)) if period.0.is_zero() || period.0 > MAX_PERIOD => {
            return Err(Error::Range { name, field: "rotate_every" });
        }
        (None, Some(period)) => period,
        _ => return Err(Error::Period { name }),
    };
    let notify_before = match (entry.notify_before_days, entry.notify_before) {
        (Some(count), None) => days(&name, "notify_before_days", count, 0)?,
        (None, Some(period)) => period,
        (None, None) => Period(NOTIFY_BEFORE.min(rotate_every.0 / 2)),
        (Some(_), Some(_)) => return Err(Error::Period { name }),
    };
    if notify_before.0 >= rotate_every.0 {
        return Err(Error::NotifyLater { name, notify: notify_before, every: rotate_every });
    }
    if entry.auto_rotate && entry.rotation_chain.is_none() {
        return Err(Error::NoChain { name });
    }
    let rotation_chain = entry.rotation_chain.clone();
    let auto_rotate = entry.auto_rotate;
    Ok((name, Terms { rotate_every, notify_before, auto_rotate, rotation_chain }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(fields: &str) -> Result<Terms, Error> {
        parse(&format!(r#"{{"rotation_policy": {{"KEY": {{{fields}}}}}}}"#))
            .map(|mut all| all.remove("KEY").unwrap())
    }

    #[test]
    fn a_policy_has_a_period_and_a_notice_inside_it() {
        let terms = one(r#""rotate_every_days": 30, "notify_before_days": 7, "auto_rotate": true,
               "rotation_chain": "rotate-db""#)
        .unwrap();
        assert_eq!(terms.rotate_every, Period::secs(30 * DAY_SECS));
        assert_eq!(terms.notify_before, Period::secs(7 * DAY_SECS));
        assert!(terms.auto_rotate);
        assert_eq!(one(r#""rotate_every": "45m""#).unwrap().rotate_every, Period::secs(2700));
        assert_eq!(one(r#""rotate_every": "45m""#).unwrap().notify_before, Period::secs(1350));
    }

    #[test]
    fn what_cannot_hold_is_refused_with_its_name() {
        for days in ["0", "-3", "36501", "9223372036854775807"] {
            let error = one(&format!(r#""rotate_every_days": {days}"#)).unwrap_err();
            assert!(matches!(error, Error::Range { .. }), "{days}: {error}");
        }
        assert!(matches!(one(r#""rotate_every": "0s""#), Err(Error::Range { .. })));
        assert!(matches!(one(""), Err(Error::Period { .. })));
        let both = r#""rotate_every_days": 3, "rotate_every": "3d""#;
        assert!(matches!(one(both), Err(Error::Period { .. })));
        let late = r#""rotate_every_days": 3, "notify_before_days": 3"#;
        assert!(matches!(one(late), Err(Error::NotifyLater { .. })));
        let alone = r#""rotate_every_days": 3, "auto_rotate": true"#;
        assert!(matches!(one(alone), Err(Error::NoChain { .. })));
        let misspelt = r#""rotate_every_day": 3"#;
        assert!(matches!(one(misspelt), Err(Error::Syntax { line: 1, .. })));
        assert!(matches!(parse("{"), Err(Error::Syntax { .. })));
        // A file of values, given by mistake.
        let values = r#"{"rotation_policy": {"KEY": "hunter2, expected hunter2"}}"#;
        let error = parse(values).unwrap_err().to_string();
        assert!(error.contains("expected struct Entry") && !error.contains("hunter2"), "{error}");
    }
}
