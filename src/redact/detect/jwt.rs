//! JSON web tokens, and what else tells itself by what its base64 decodes to.
//!
//! Invariant: no more of a token is decoded than is held back for it. See RFC 7519, RFC 7516, RFC 4648.
#![forbid(unsafe_code)]

use super::class::{Text, is_url_safe};
use super::formats::{Class, Going, Outcome};

/// What every one begins with: a brace and a quote.
pub(super) const HEAD: &[u8] = b"eyJ";
/// The longest first part of a JWT that is held back.
const JWT_HEAD_BYTES_MAX: usize = 400;
/// The shortest second part.
const JWT_BODY_BYTES_MIN: usize = 10;

/// Whether base64 is of text with a colon in it, as `user:password` has.
pub(super) fn holds_colon(value: &[u8]) -> bool {
    decoded(value).contains(&b':')
}

/// What base64 decodes to, as far as it does.
fn decoded(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut word, mut bits) = (0_u32, 0);
    for byte in value {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => break,
        };
        word = word << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
        }
    }
    out
}

/// A JSON web token (RFC 7519, RFC 7516): two parts or more, the first of which is a JSON object.
pub(super) fn jwt(text: &Text<'_>, at: usize) -> Outcome {
    let bytes = &text.bytes[at..];
    let known = bytes.len().min(3);
    if bytes[..known] != HEAD[..known] {
        return Outcome::No;
    }
    let maybe = |here: usize| {
        if text.is_cut(at + here) { Outcome::Maybe } else { Outcome::No }
    };
    let head = bytes.iter().take(JWT_HEAD_BYTES_MAX).take_while(|b| is_url_safe(**b)).count();
    let names_algorithm = || {
        let head = decoded(&bytes[..head]);
        head.windows(5).any(|w| w == b"\"alg\"" || w == b"\"enc\"" || w == b"\"kid\"")
    };
    let yes = || {
        let end =
            at + bytes.iter().take_while(|b| is_url_safe(**b) || matches!(b, b'.' | b'=')).count();
        Outcome::Yes { end, going: Going::Rest(0, Class::Jwt), open: text.is_cut(end) }
    };
    if head == JWT_HEAD_BYTES_MAX {
        return if names_algorithm() { yes() } else { Outcome::No };
    }
    match bytes.get(head) {
        None => return maybe(head),
        Some(b'.') if head >= 12 => {}
        Some(_) => return Outcome::No,
    }
    let body = &bytes[head + 1..];
    let len = body.iter().take(JWT_BODY_BYTES_MIN).take_while(|b| is_url_safe(**b)).count();
    if len < JWT_BODY_BYTES_MIN {
        return if body.len() > len { Outcome::No } else { maybe(head + 1 + len) };
    }
    if body.starts_with(HEAD) || names_algorithm() { yes() } else { Outcome::No }
}
