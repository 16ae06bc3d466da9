//! The recovery key: 160 random bits, printed once, typed in when all else is lost.
//!
//! Shown as eight groups of four characters of Crockford's base 32, which has no letters that read
//! alike; letters that do (I, L, O) are taken for what they look like.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use crate::secret::SecretBytes;

use super::super::crypto::{self, Key, NoRandomness, digest};
use super::Error;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CHARACTERS: usize = 32;

/// Makes one.
///
/// # Errors
/// [`NoRandomness`].
pub fn generate() -> Result<SecretBytes, NoRandomness> {
    let mut bits = Zeroizing::new([0_u8; CHARACTERS]);
    crypto::random(bits.as_mut())?;
    SecretBytes::fill_with(CHARACTERS + CHARACTERS / 4 - 1, |out| {
        let mut at = 0;
        for (i, byte) in bits.iter().enumerate() {
            if i > 0 && i % 4 == 0 {
                out[at] = b'-';
                at += 1;
            }
            out[at] = ALPHABET[usize::from(byte & 31)];
            at += 1;
        }
        Ok(())
    })
}

/// The master key of a recovery key as typed.
///
/// # Errors
/// [`Error::Credential`] when it cannot be one.
pub fn master(text: &SecretBytes, salt: &[u8]) -> Result<Key, Error> {
    let mut typed = Zeroizing::new(Vec::with_capacity(CHARACTERS + 1));
    for byte in text.expose() {
        let letter = match byte.to_ascii_uppercase() {
            b'-' | b' ' | b'\n' | b'\r' | b'\t' => continue,
            b'O' => b'0',
            b'I' | b'L' => b'1',
            other => other,
        };
        if !ALPHABET.contains(&letter) || typed.len() == CHARACTERS {
            return Err(Error::Credential { what: "that is no recovery key" });
        }
        typed.push(letter);
    }
    if typed.len() != CHARACTERS {
        return Err(Error::Credential { what: "a recovery key has eight groups of four" });
    }
    let all = Key::from_bytes(&digest(&[&typed])).ok_or(Error::Refused)?;
    Ok(all.derive(salt, &[b"recovery"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_may_be_typed_in_lower_case_without_dashes() {
        let key = generate().unwrap();
        assert_eq!(key.len(), 39);
        let loose: Vec<u8> =
            key.expose().iter().filter(|b| **b != b'-').map(u8::to_ascii_lowercase).collect();
        let one = master(&key, b"salt").unwrap();
        let two = master(&SecretBytes::copy_of(&loose), b"salt").unwrap();
        assert_eq!(one.expose(), two.expose());
        assert!(master(&SecretBytes::copy_of(&loose[1..]), b"salt").is_err());
        assert!(master(&SecretBytes::copy_of(b"!"), b"salt").is_err());
    }
}
