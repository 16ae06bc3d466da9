//! Bytes that must not be seen: allocated once, filled in place, wiped on drop.
//!
//! Invariant: the content leaves a [`SecretBytes`] through [`SecretBytes::expose`] alone, so
//! `grep 'expose()'` is the review list. Danger: a `Debug`, a clone or a growing vector that leaves
//! a copy behind. See CWE-226, CWE-532.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Read};

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The longest value of one version, in bytes (1 MiB).
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// Secret bytes: no `Clone`, `Display`, `Serialize` or `PartialEq`; `Debug` tells nothing.
pub struct SecretBytes(Zeroizing<Box<[u8]>>);

impl SecretBytes {
    /// Copies `bytes`; the caller wipes its own copy.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// Takes over a vector. Its spare capacity is wiped before it is given back.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self::copy_of(&bytes)
    }

    /// Allocates `len` bytes and lets `fill` write them in place.
    ///
    /// # Errors
    /// What `fill` returns; the bytes are wiped then.
    pub fn fill_with<E>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = Zeroizing::new(vec![0_u8; len].into_boxed_slice());
        fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Reads to the end of `source`, at most `max_bytes`, without a growing buffer.
    ///
    /// # Errors
    /// `InvalidData` when there is more than `max_bytes`; else what the source reports.
    pub fn read_from(mut source: impl Read, max_bytes: usize) -> io::Result<Self> {
        let mut buffer = Zeroizing::new(vec![0_u8; max_bytes + 1].into_boxed_slice());
        let mut filled = 0;
        while filled < buffer.len() {
            match source.read(&mut buffer[filled..]) {
                Ok(0) => return Ok(Self::copy_of(&buffer[..filled])),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("value is longer than {max_bytes} bytes"),
        ))
    }

    /// The bytes. The one door: every call is a place to review.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Equality in time that depends on the lengths only.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.0.as_ref().ct_eq(other.0.as_ref()).into()
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_neither_content_nor_length() {
        let text = format!("{:?}", SecretBytes::copy_of(b"hunter2hunter2"));
        assert_eq!(text, "SecretBytes(..)");
    }

    #[test]
    fn a_source_longer_than_the_bound_is_refused_without_quoting_it() {
        let error = SecretBytes::read_from(&b"abcdef"[..], 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(!error.to_string().contains("abc"));
        assert_eq!(SecretBytes::read_from(&b"abcde"[..], 5).unwrap().expose(), b"abcde");
    }

    #[test]
    fn equality_is_of_content() {
        assert!(SecretBytes::copy_of(b"a").ct_eq(&SecretBytes::from_vec(b"a".to_vec())));
        assert!(!SecretBytes::copy_of(b"a").ct_eq(&SecretBytes::copy_of(b"ab")));
    }
}
