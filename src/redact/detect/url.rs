//! Passwords in URLs.
//!
//! Invariant: whether a password stands at a place is decided by a bounded number of bytes before and
//! after it. See RFC 3986, 3.2.1.
#![forbid(unsafe_code)]

use super::class::{Text, is_alnum, is_hex, is_token};
use super::formats::{Going, Outcome};
use super::random::is_placeholder;

/// The longest password of a URL, and host after it.
const PASSWORD_BYTES_MAX: usize = 256;
const HOST_BYTES_MAX: usize = 64;

/// `scheme://user:` (RFC 3986, 3.2.1), where the user may be missing.
pub(super) fn is_url_user(back: &[u8]) -> bool {
    let is_user = |b: &u8| is_token(*b) && !matches!(b, b'/' | b'@' | b':' | b'?' | b'#');
    let end = back.len() - 1;
    let slashes = end - back[..end].iter().rev().take_while(|b| is_user(b)).count();
    back[..slashes].ends_with(b"://") && slashes > 3 && is_alnum(back[slashes - 4])
}

/// The password of a URL: up to the last `@` before the host.
pub(super) fn url_password(text: &Text<'_>, at: usize) -> Outcome {
    let bytes = &text.bytes[at..];
    let ends = |b: u8| !(0x21..0x7f).contains(&b) || matches!(b, b'"' | b'\'' | b'`' | b'\\');
    let digits = bytes.iter().take(6).take_while(|b| b.is_ascii_digit()).count();
    if let Some(next) = bytes.get(digits)
        && digits < 6
        && digits > 0
        && !(is_alnum(*next)
            || matches!(
                next,
                b'@' | b'-' | b'_' | b'.' | b'!' | b'$' | b'%' | b'*' | b'+' | b'~' | b'=' | b'^'
            ))
    {
        // A port.
        return Outcome::No;
    }
    let mut last: Option<usize> = None;
    let mut here = 0;
    loop {
        let Some(byte) = bytes.get(here) else {
            if text.is_cut(at + here) {
                return Outcome::Maybe;
            }
            break;
        };
        match last {
            None if here > PASSWORD_BYTES_MAX => return Outcome::No,
            Some(sign) if here - sign > HOST_BYTES_MAX => break,
            _ => {}
        }
        match byte {
            b'@' => last = Some(here),
            byte if ends(*byte) => break,
            b'/' | b'?' | b'#' | b',' | b';' | b')' | b']' | b'}' | b'>' if last.is_some() => break,
            _ => {}
        }
        here += 1;
        if here > PASSWORD_BYTES_MAX + HOST_BYTES_MAX {
            break;
        }
    }
    let Some(end) = last else { return Outcome::No };
    let password = &bytes[..end];
    const NONE: &[&[u8]] = &[
        b"password",
        b"PASSWORD",
        b"pass",
        b"PASS",
        b"passwd",
        b"secret",
        b"pwd",
        b"pw",
        b"token",
        b"x",
        b"xxx",
        b"x-oauth-basic",
    ];
    let is_none = password.is_empty()
        || NONE.contains(&password)
        || password.contains(&b'{') && password.contains(&b'}')
        || is_variable(password)
        || password.starts_with(b"<")
        || password.starts_with(b"[REDACTED")
        || password.starts_with(b"%") && !password.get(1).is_some_and(|b| is_hex(*b))
        || password.iter().all(|b| matches!(b, b'*' | b'x' | b'X' | b'.' | b'_'))
        || is_placeholder(password) && !password.iter().any(u8::is_ascii_digit);
    if is_none {
        return Outcome::No;
    }
    Outcome::Yes { end: at + end, going: Going::Count(end), open: false }
}

/// `$NAME` or `$(command)`.
fn is_variable(text: &[u8]) -> bool {
    let Some(name) = text.strip_prefix(b"$") else { return false };
    name.starts_with(b"(")
        || name.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
}
