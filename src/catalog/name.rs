//! Names: made by parsing, so an invalid one cannot be built.
//!
//! Danger: `..`, a slash, NUL, look-alike letters: a name is ASCII from a short list of characters,
//! and comparisons are exact.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// The longest name of any kind, in bytes (a file name has at most 255).
pub const MAX_NAME_BYTES: usize = 128;
/// Names that the mount itself uses.
const RESERVED: [&str; 1] = ["events"];

/// Why a text is not a name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {rule}")]
pub struct BadName {
    /// The kind of name, as "a secret's name".
    pub kind: &'static str,
    /// What it must look like.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let check: fn(&str) -> bool = $check;
                if !text.is_empty() && text.len() <= MAX_NAME_BYTES && check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(BadName { kind: $kind, rule: $rule })
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A secret's name without its environment, as `DATABASE_URL`.
    SecretName,
    "a secret's name",
    "has letters, digits, '_', '.' and '-', starts with a letter or '_', has at most 128 \
     characters, and is not 'events'",
    |text| {
        let mut bytes = text.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            && !RESERVED.contains(&text)
    }
);

name!(
    /// An environment, as `prod`.
    EnvName,
    "an environment",
    "has lower-case letters, digits and '-', and starts with a letter",
    is_lower_name
);

name!(
    /// A group of secrets, as `aws-deploy`.
    GroupName,
    "a group's name",
    "has lower-case letters, digits and '-', starts with a letter, and is not 'events'",
    |text| is_lower_name(text) && !RESERVED.contains(&text)
);

name!(
    /// A project, as `billing-system`.
    ProjectName,
    "a project's name",
    "has letters, digits, '_', '.' and '-', and starts with a letter or digit",
    is_plain_name
);

name!(
    /// A chain, as `billing/invoice-generator`.
    ChainName,
    "a chain's name",
    "has parts of letters, digits, '_', '.' and '-' that start with a letter or digit, joined by '/'",
    |text| text.split('/').all(is_plain_name)
);

name!(
    /// An agent of a chain, as `Deployer`.
    AgentName,
    "an agent's name",
    "has letters, digits, '_', '.' and '-', and starts with a letter or digit",
    is_plain_name
);

fn is_lower_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_plain_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// A secret's name with its environment: `prod/DATABASE_URL`, or `DATABASE_URL` without one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretKey {
    /// The environment, if it has one.
    pub environment: Option<EnvName>,
    /// The name.
    pub name: SecretName,
}

impl FromStr for SecretKey {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Ok(match text.split_once('/') {
            None => Self { environment: None, name: text.parse()? },
            Some((environment, name)) => {
                Self { environment: Some(environment.parse()?), name: name.parse()? }
            }
        })
    }
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(environment) = &self.environment {
            write!(f, "{environment}/")?;
        }
        write!(f, "{}", self.name)
    }
}

impl serde::Serialize for SecretKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SecretKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_or_look_alike_are_refused() {
        let long = "A".repeat(129);
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b/c",
            "A B",
            "A\0",
            "A\n",
            "1A",
            "-A",
            "\u{410}PI",
            "events",
            long.as_str(),
            "A=B",
            "prod/",
            "/A",
            "PROD/A",
        ] {
            assert!(bad.parse::<SecretKey>().is_err(), "{bad:?}");
        }
        let longest = "A".repeat(128);
        for good in ["A", "_a", "OPENAI_API_KEY", "id.rsa-1", longest.as_str(), "prod/DATABASE_URL"]
        {
            assert_eq!(good.parse::<SecretKey>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn a_chain_may_have_parts_but_no_way_out() {
        for bad in ["", "/a", "a/", "a//b", "../a", "a/..", "a b"] {
            assert!(bad.parse::<ChainName>().is_err(), "{bad:?}");
        }
        assert!("billing/invoice-generator".parse::<ChainName>().is_ok());
        assert!("AWS".parse::<GroupName>().is_err());
        assert!("aws-deploy".parse::<GroupName>().is_ok());
    }

    #[test]
    fn a_stored_name_is_parsed_again() {
        assert!(serde_json::from_str::<SecretName>("\"..\"").is_err());
        assert!(serde_json::from_str::<SecretName>("\"A\"").is_ok());
    }
}
