//! Random values, as `--generate` makes them.
//!
//! Invariant: each character of the alphabet is as likely as each other.
#![forbid(unsafe_code)]

use crate::proto::{self, Code, Problem};
use crate::secret::SecretBytes;
use crate::vault::crypto;

/// A random value as `--generate` makes it.
pub(super) fn generate(wanted: &proto::Generate) -> Result<SecretBytes, Problem> {
    const ALPHANUMERIC: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const HEX: &[u8] = b"0123456789abcdef";
    if !(16..=4096).contains(&wanted.length) {
        return Err(Problem::new(Code::Invalid, "a generated value has 16 to 4096 characters")
            .with_hint("as in --generate alphanumeric:32"));
    }
    let alphabet = match wanted.alphabet.as_deref().unwrap_or("alphanumeric") {
        "alphanumeric" => ALPHANUMERIC,
        "base64" => BASE64,
        "hex" => HEX,
        other => {
            return Err(Problem::new(Code::Invalid, format!("there is no kind of value {other}"))
                .with_hint("kinds are alphanumeric, hex and base64"));
        }
    };
    let len = wanted.length as usize;
    let mut value = Vec::with_capacity(len);
    // Bytes beyond the last whole multiple are thrown away, so that each character is as likely.
    let fair = 256 / alphabet.len() * alphabet.len();
    while value.len() < len {
        let mut bytes = [0_u8; 64];
        crypto::random(&mut bytes).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        let usable = bytes.iter().map(|b| usize::from(*b)).filter(|b| *b < fair);
        value.extend(usable.map(|b| alphabet[b % alphabet.len()]).take(len - value.len()));
    }
    Ok(SecretBytes::from_vec(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_value_has_its_length_and_alphabet_and_comes_but_once() {
        let kind = |length, alphabet: &str| proto::Generate {
            length,
            alphabet: Some(alphabet.to_owned()),
        };
        for (alphabet, is_in) in [
            ("alphanumeric", (|b| b.is_ascii_alphanumeric()) as fn(&u8) -> bool),
            ("hex", u8::is_ascii_hexdigit),
            ("base64", |b| b.is_ascii_alphanumeric() || b"-_".contains(b)),
        ] {
            let one = generate(&kind(64, alphabet)).unwrap();
            assert_eq!(one.len(), 64);
            assert!(one.expose().iter().all(is_in));
            let two = generate(&kind(64, alphabet)).unwrap();
            assert!(one.expose() != two.expose());
        }
        assert!(generate(&kind(15, "hex")).is_err());
        assert!(generate(&kind(4097, "hex")).is_err());
        assert!(generate(&kind(32, "emoji")).is_err());
    }
}
