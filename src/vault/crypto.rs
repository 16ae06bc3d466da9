//! The vault's cryptography, and the only place that names AES-GCM and HKDF.
//!
//! AES-256-GCM (NIST SP 800-38D) with random 96-bit nonces; HKDF-SHA-256 (RFC 5869) gives each
//! purpose and each record version a key of its own, so no key ever encrypts two messages and a
//! repeated nonce would betray nothing. Invariant: a key is wiped when dropped and never printed.
#![forbid(unsafe_code)]

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// What sealing adds to a message.
pub const OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// A 256-bit key: no `Debug`, no `Clone`, wiped on drop.
pub struct Key(Zeroizing<[u8; KEY_BYTES]>);

/// The kernel gave no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the system has no randomness")]
pub struct NoRandomness;

/// A tag did not verify: wrong key, or altered bytes; deliberately not told apart.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("sealed bytes do not verify")]
pub struct Forged;

/// Fills `bytes` from the kernel.
///
/// # Errors
/// [`NoRandomness`].
pub fn random(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    getrandom::fill(bytes).map_err(|_| NoRandomness)
}

impl Key {
    /// A new random key.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        random(bytes.as_mut())?;
        Ok(Self(bytes))
    }

    /// Takes over exactly 32 bytes; `None` for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// Equality in constant time.
    pub fn same(&self, other: &Self) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.0.as_slice(), other.0.as_slice()).into()
    }

    /// The bytes, for wrapping and for the keeper's box.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// A key for one purpose. `info` parts are length-prefixed, so no two lists run together.
    pub fn derive(&self, salt: &[u8], info: &[&[u8]]) -> Key {
        expand(&Hkdf::new(Some(salt), self.0.as_ref()), info)
    }

    /// The same for many keys of one parent without a salt: what is equal for all is done once.
    pub fn deriver(&self) -> Deriver {
        Deriver(Hkdf::new(Some(&[]), self.0.as_ref()))
    }

    /// Encrypts: nonce, ciphertext, tag.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, NoRandomness> {
        let mut nonce = [0; NONCE_BYTES];
        random(&mut nonce)?;
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let cipher = Aes256Gcm::new((&*self.0).into());
        let tag = cipher
            .encrypt_inout_detached(
                &Nonce::from(nonce),
                context,
                InOutBuf::from(&mut out[NONCE_BYTES..]),
            )
            .expect("messages are far below AES-GCM's limit of 64 GiB");
        out.extend_from_slice(&tag);
        Ok(out)
    }

    /// Decrypts what [`Key::seal`] made with the same key and context.
    ///
    /// # Errors
    /// [`Forged`].
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<SecretBytes, Forged> {
        let plain_len = sealed.len().checked_sub(OVERHEAD_BYTES).ok_or(Forged)?;
        let (nonce, rest) = sealed.split_at(NONCE_BYTES);
        let (body, tag) = rest.split_at(plain_len);
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| Forged)?;
        let tag: [u8; TAG_BYTES] = tag.try_into().map_err(|_| Forged)?;
        let cipher = Aes256Gcm::new((&*self.0).into());
        SecretBytes::fill_with(plain_len, |out| {
            out.copy_from_slice(body);
            cipher
                .decrypt_inout_detached(
                    &Nonce::from(nonce),
                    context,
                    InOutBuf::from(out),
                    &Tag::from(tag),
                )
                .map_err(|_| Forged)
        })
    }
}

/// What keys of one parent are derived from, after HKDF's extraction: as secret as the parent, and
/// wiped on drop as every hash is (feature `zeroize` of `sha2`).
pub struct Deriver(Hkdf<Sha256>);

impl Deriver {
    /// The key that [`Key::derive`] gives for an empty salt.
    pub fn derive(&self, info: &[&[u8]]) -> Key {
        expand(&self.0, info)
    }
}

fn expand(extracted: &Hkdf<Sha256>, info: &[&[u8]]) -> Key {
    let mut out = Zeroizing::new([0; KEY_BYTES]);
    let mut joined = Vec::with_capacity(128);
    for part in info {
        joined.extend_from_slice(&(part.len() as u64).to_be_bytes());
        joined.extend_from_slice(part);
    }
    extracted.expand(&joined, out.as_mut()).expect("32 bytes are below HKDF's limit of 8,160");
    Key(out)
}

/// SHA-256 (FIPS 180-4) of the parts in a row.
pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

/// Hex back to bytes; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_with_the_same_key_and_context_alone() {
        let key = Key::random().unwrap();
        let sealed = key.seal(b"context", b"value").unwrap();
        assert_eq!(key.open(b"context", &sealed).unwrap().expose(), b"value");
        assert_eq!(key.open(b"other", &sealed).unwrap_err(), Forged);
        assert!(Key::random().unwrap().open(b"context", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key.open(b"context", &altered).is_err(), "byte {at}");
            assert!(key.open(b"context", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn two_seals_of_one_message_differ() {
        let key = Key::random().unwrap();
        assert_ne!(key.seal(b"", b"x").unwrap(), key.seal(b"", b"x").unwrap());
    }

    #[test]
    fn derived_keys_differ_by_every_part() {
        let key = Key::from_bytes(&[7; 32]).unwrap();
        let of = |salt: &[u8], info: &[&[u8]]| *key.derive(salt, info).expose();
        assert_eq!(of(b"s", &[b"a", b"b"]), of(b"s", &[b"a", b"b"]));
        assert_ne!(of(b"s", &[b"a", b"b"]), of(b"t", &[b"a", b"b"]));
        assert_ne!(of(b"s", &[b"a", b"b"]), of(b"s", &[b"ab"]));
        assert_ne!(of(b"s", &[b"a", b"b"]), of(b"s", &[b"ab", b""]));
        assert_eq!(of(b"", &[b"a", b"b"]), *key.deriver().derive(&[b"a", b"b"]).expose());
    }

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
        assert_eq!(unhex("00ff10").unwrap(), [0, 255, 16]);
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
    }
}
