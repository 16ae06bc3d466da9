//! The id of an execution: chosen by whoever starts it, or made up.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// The longest id, in bytes: it is a directory name of the cgroup hierarchy and of the event store.
pub const MAX_ID_BYTES: usize = 64;

/// `[A-Za-z0-9][A-Za-z0-9._-]*`, at most [`MAX_ID_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutionId(String);

/// Why a text is no execution id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "an execution id has 1 to {MAX_ID_BYTES} of the characters A-Z a-z 0-9 . _ - and starts with a \
     letter or digit"
)]
pub struct BadExecutionId;

impl ExecutionId {
    /// An id from 80 random bits, as 16 characters of Crockford's base 32.
    pub fn from_random(bits: [u8; 10]) -> Self {
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let mut text = String::with_capacity(16);
        for chunk in bits.chunks_exact(5) {
            let word = chunk.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
            for shift in (0..8).rev() {
                text.push(char::from(ALPHABET[(word >> (shift * 5) & 31) as usize]));
            }
        }
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExecutionId {
    type Err = BadExecutionId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest_ok = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        match text.as_bytes() {
            [first, rest @ ..]
                if first.is_ascii_alphanumeric()
                    && rest.iter().all(rest_ok)
                    && text.len() <= MAX_ID_BYTES =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(BadExecutionId),
        }
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for ExecutionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for ExecutionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_name_other_directories_are_refused() {
        for bad in ["", ".", "..", "a/b", ".hidden", "-x", "a b", "a\n", "\u{e9}", &"a".repeat(65)]
        {
            assert_eq!(bad.parse::<ExecutionId>(), Err(BadExecutionId), "{bad:?}");
        }
        for good in ["a", "run-2026.11_23", &"a".repeat(64)] {
            assert_eq!(good.parse::<ExecutionId>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn random_ids_parse_and_differ() {
        let one = ExecutionId::from_random([0; 10]);
        let two = ExecutionId::from_random([255; 10]);
        assert_eq!(one.as_str(), "0000000000000000");
        assert_eq!(two.as_str(), "zzzzzzzzzzzzzzzz");
        assert_eq!(two.as_str().parse::<ExecutionId>().unwrap(), two);
    }
}
