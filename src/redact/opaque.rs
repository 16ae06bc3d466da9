//! Content that cannot be looked into: what is compressed or encrypted, by how it begins.
//!
//! Danger: a secret in such content is found by nothing, and nobody would know; so it is on record.
//! The beginnings are from RFC 1952 (gzip), RFC 8878 (Zstandard), RFC 9580 (OpenPGP), the formats'
//! own documents (bzip2, LZ4, xz, ZIP, 7z, age) and openssl-enc(1).
#![forbid(unsafe_code)]

/// So many bytes tell.
pub const HEAD_BYTES: usize = 40;

const BEGINNINGS: &[(&[u8], &str)] = &[
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xfd7zXZ\0", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"PK\x03\x04", "zip"),
    (b"Salted__", "openssl"),
    (b"age-encryption.org/", "age"),
    (b"-----BEGIN AGE ENCRYPTED FILE-----", "age"),
    (b"-----BEGIN PGP MESSAGE-----", "openpgp"),
];
/// In front of a bzip2 block, after `BZh` and a digit.
const BZIP2_BLOCK: &[u8] = b"\x31\x41\x59\x26\x53\x59";

/// What a text is that begins so, if it cannot be looked into.
pub fn opaque(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(b"BZh") && head.get(4..).is_some_and(|rest| rest.starts_with(BZIP2_BLOCK)) {
        return Some("bzip2");
    }
    let known = BEGINNINGS.iter().find(|(beginning, _)| head.starts_with(beginning));
    known.map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_or_encrypted_is_told_by_its_beginning_and_text_is_not() {
        assert!(BEGINNINGS.iter().all(|(beginning, _)| beginning.len() <= HEAD_BYTES));
        for (head, kind) in [
            (b"\x1f\x8b\x08\0\0".as_slice(), Some("gzip")),
            (b"BZh91AY&SY\x8d", Some("bzip2")),
            (b"Salted__\x01\x02", Some("openssl")),
            (b"-----BEGIN PGP MESSAGE-----\n", Some("openpgp")),
            (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n", None),
            (b"BZhello, world of ours", None),
            (b"\x1f\x8b", None),
            (b"a line of a log\n", None),
            (b"", None),
        ] {
            assert_eq!(opaque(head), kind, "{}", String::from_utf8_lossy(head));
        }
    }
}
