//! Links: what binds each line of the log to all before it.
//!
//! `link` is SHA-256 in hex over the previous link and the line up to its own. Invariant: a line that
//! is altered, dropped or moved breaks every link after it. Danger: whoever may write the files can
//! link anew; [`super::checkpoint`] stands against that.
#![forbid(unsafe_code)]

/// The link before the first record.
pub const FIRST_LINK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Where the log stands.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Head {
    /// The last record's number, 0 for none.
    pub seq: u64,
    /// Its link.
    pub link: String,
}

/// Appends the line of an entry to `out`; the head after it.
pub(super) fn line(head: &Head, seq: u64, bytes: &[u8], out: &mut Vec<u8>) -> Head {
    let start = out.len();
    let split = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    out.extend_from_slice(&bytes[..split]);
    out.extend_from_slice(format!(",\"seq\":{seq}").as_bytes());
    out.extend_from_slice(bytes.get(split + 1..).unwrap_or_default());
    let link = link(&head.link, &out[start..]);
    out.extend_from_slice(format!(",\"link\":\"{link}\"}}\n").as_bytes());
    Head { seq, link }
}

/// The link of a line: SHA-256 over the previous link and the line up to its own.
pub fn link(previous: &str, unlinked: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(previous.as_bytes());
    hash.update(unlinked);
    hex(&hash.finalize())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The bytes of a link; none when it is not one.
pub(super) fn unhex(link: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if link.len() != 64 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(link.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
