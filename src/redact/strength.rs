//! How guessable a value is, and whether it can be looked for at all.
//!
//! Invariant: both answers depend on the bytes alone and err to the careful side: a value that is
//! called unguessable has at least 64 bits by an estimate that counts words as almost nothing.
//! Danger: a foreign value that can be guessed turns its marker into an oracle; a value such as
//! `true` or `a` masks everything. See NIST SP 800-63B, 5.1.1.2; zxcvbn's idea of runs.
#![forbid(unsafe_code)]

use base64ct::{Base64Unpadded, Base64UrlUnpadded, Encoding};

/// Values of at least this many bits by [`bits`] cannot be found by trying.
const UNGUESSABLE_BITS: u32 = 64;
/// A line or leaf of at least this many bits looks random enough to be hidden by itself.
const RANDOM_BITS: u32 = 48;
/// What all words of a value together may count for.
const WORDS_BITS_MAX: u32 = 24;
/// A beginning of at least this many bits is written by nobody who does not know the value or try.
const TELLING_BITS: u32 = 32;
/// No byte counts for more than four.
const TELLING_BYTES_MIN: usize = TELLING_BITS as usize / 4;
/// So much of it is looked at.
const TOLD_BYTES: usize = 256;
/// The longest header of a JSON web token that is recognised.
const MAX_HEADER_BYTES: usize = 200;
/// Shorter readable text is chance.
const DECODED_BYTES_MIN: usize = 8;

/// Why a value is not looked for as others are; for the warning of `secret set` and for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// A word that stands in ordinary text: only looked for between non-word bytes.
    CommonWord,
    /// Up to 7 digits: only looked for between non-word bytes.
    FewDigits,
    /// Occurs in a marker: never looked for.
    InMarker,
    /// One character repeated: only looked for between non-word bytes.
    Repeated,
    /// 5 to 7 bytes: only looked for between non-word bytes.
    Short,
    /// At most 4 bytes: never looked for.
    TooShort,
}

impl Weakness {
    /// What a person should know of such a value.
    pub fn note(self) -> &'static str {
        match self {
            Self::CommonWord => {
                "an ordinary word: redaction hides it where it stands alone, and there it hides the \
                 ordinary word as well"
            }
            Self::FewDigits => {
                "fewer than 8 digits: redaction hides them only between bytes that are no part of a \
                 word"
            }
            Self::InMarker => "it stands in redaction's own markers and is never looked for",
            Self::Repeated => {
                "one character repeated: redaction hides it only between bytes that are no part of \
                 a word"
            }
            Self::Short => {
                "fewer than 8 bytes: redaction hides it only between bytes that are no part of a word"
            }
            Self::TooShort => "a value of 4 bytes or fewer is never looked for by redaction",
        }
    }

    /// Whether such a value is not looked for at all.
    pub fn is_unseen(self) -> bool {
        matches!(self, Self::InMarker | Self::TooShort)
    }
}

/// Words that values are set to and that ordinary text is full of (5 bytes and more).
const COMMON: &[&str] = &[
    "12345678",
    "123456789",
    "1234567890",
    "access",
    "account",
    "admin",
    "administrator",
    "anonymous",
    "application",
    "authentication",
    "authorization",
    "bearer",
    "changeit",
    "changeme",
    "client",
    "config",
    "configuration",
    "connection",
    "content",
    "credentials",
    "database",
    "default",
    "default_password",
    "development",
    "disabled",
    "docker",
    "enabled",
    "environment",
    "example",
    "example.com",
    "false",
    "function",
    "github",
    "google",
    "guest",
    "hello",
    "information",
    "internal",
    "kubernetes",
    "letmein",
    "local",
    "localhost",
    "master",
    "message",
    "mongodb",
    "nobody",
    "number",
    "object",
    "online",
    "option",
    "optional",
    "passw0rd",
    "password",
    "password1",
    "password123",
    "placeholder",
    "postgres",
    "postgresql",
    "private",
    "production",
    "project",
    "public",
    "qwerty",
    "rabbitmq",
    "readonly",
    "redacted",
    "redis",
    "release",
    "request",
    "required",
    "response",
    "secret",
    "secrets",
    "security",
    "server",
    "service",
    "session",
    "staging",
    "standard",
    "string",
    "success",
    "support",
    "system",
    "template",
    "testing",
    "testtest",
    "token",
    "transaction",
    "unknown",
    "undefined",
    "update",
    "username",
    "value",
    "version",
    "warning",
    "welcome",
    "workspace",
];

/// Why `value` cannot be looked for everywhere; `None` for an ordinary secret.
pub fn weakness(value: &[u8]) -> Option<Weakness> {
    let value = value.trim_ascii();
    if value.len() <= 4 {
        return Some(Weakness::TooShort);
    }
    let inside = |text: &[u8]| text.windows(value.len()).any(|w| w == value);
    if inside(b"[REDACTED:") || inside(b"[REDACTED]") {
        return Some(Weakness::InMarker);
    }
    if value.iter().all(|b| *b == value[0]) {
        return Some(Weakness::Repeated);
    }
    if COMMON.iter().any(|word| word.as_bytes().eq_ignore_ascii_case(value)) {
        return Some(Weakness::CommonWord);
    }
    if value.len() < 8 {
        let digits = value.iter().all(u8::is_ascii_digit);
        return Some(if digits { Weakness::FewDigits } else { Weakness::Short });
    }
    None
}

/// Whether trying values until the marker appears is hopeless.
pub fn unguessable(value: &[u8]) -> bool {
    bits(value.trim_ascii()) >= UNGUESSABLE_BITS
}

/// Whether a line or leaf of a larger value looks random.
pub(super) fn random(text: &[u8]) -> bool {
    bits(text) >= RANDOM_BITS
}

/// A careful estimate in bits: letters in a row are taken for words, sequences for nothing.
fn bits(value: &[u8]) -> u32 {
    #[derive(PartialEq, Clone, Copy)]
    enum Class {
        Digit,
        Lower,
        Other,
        Upper,
    }
    let class = |b: u8| match b {
        b'0'..=b'9' => Class::Digit,
        b'a'..=b'z' => Class::Lower,
        b'A'..=b'Z' => Class::Upper,
        _ => Class::Other,
    };
    let (mut words, mut rest, mut at) = (0, 0, 0);
    while at < value.len() {
        let kind = class(value[at]);
        let mut end = at + 1;
        // A capital belongs to the word that it starts.
        if kind == Class::Upper && end < value.len() && class(value[end]) == Class::Lower {
            end += value[end..].iter().take_while(|b| class(**b) == Class::Lower).count();
        } else {
            end += value[end..].iter().take_while(|b| class(**b) == kind).count();
        }
        let run = &value[at..end];
        let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
        let steps = run.windows(2).filter(|w| w[0].abs_diff(w[1]) <= 1).count();
        let dull = u32::try_from(steps).unwrap_or(u32::MAX);
        let lively = count.saturating_sub(dull);
        match kind {
            Class::Lower | Class::Upper if count >= 4 => words += lively,
            Class::Lower | Class::Upper => rest += lively * 4,
            Class::Digit if count >= 8 => rest += lively * 2,
            Class::Digit => rest += lively * 3,
            Class::Other => rest += if count == 1 { 1 } else { lively.min(4) },
        }
        at = end;
    }
    let distinct = {
        let mut seen = [false; 256];
        value.iter().for_each(|b| seen[usize::from(*b)] = true);
        seen.iter().filter(|s| **s).count()
    };
    // Few distinct bytes repeat: the whole is worth no more than twice their number.
    let ceiling = u32::try_from(distinct).unwrap_or(256) * 8;
    (rest + words.min(WORDS_BITS_MAX)).min(ceiling)
}

/// What all values of a kind begin with.
const PUBLIC: &[&[u8]] = &[
    b"AKIA",
    b"IQoJb3JpZ2luX2Vj",
    b"SG.",
    b"eyJhbGciOi",
    b"ghp_",
    b"github_pat_",
    b"glpat-",
    b"https://",
    b"mongodb+srv://",
    b"mysql://",
    b"npm_",
    b"postgres://",
    b"postgresql://",
    b"pypi-AgEIcHlwaS5vcmc",
    b"redis://",
    b"sk-ant-api03-",
    b"sk-proj-",
    b"sk_live_",
    b"sk_test_",
    b"xoxb-",
];

/// Bytes at the start of `text` that say nothing of which value it is.
fn public(text: &[u8]) -> usize {
    if text.starts_with(b"-----BEGIN ") {
        // The whole first line.
        return text.iter().position(|b| *b == b'\n').unwrap_or(0);
    }
    if text.starts_with(b"eyJ") {
        // The header of a JSON web token, RFC 7515.
        let header = text.iter().take(MAX_HEADER_BYTES).position(|b| *b == b'.');
        return header.unwrap_or(0).max(b"eyJhbGciOi".len().min(text.len()));
    }
    PUBLIC.iter().filter(|p| text.starts_with(p)).map(|p| p.len()).max().unwrap_or(0)
}

/// A part of this length says something of a value: 8 bytes beyond what all of its kind begin with.
pub(super) fn beyond_public(needle: &[u8]) -> usize {
    public(needle) + 8
}

/// Whether a text that is the beginning of a value, or of a form of it, is so much of it that nobody
/// writes it by accident.
pub(super) fn is_telling(text: &[u8]) -> bool {
    // Most are nothing of the kind, and whoever looks at the clock is to see little of this.
    if text.iter().filter(|b| b.is_ascii_alphanumeric()).count() < TELLING_BYTES_MIN {
        return false;
    }
    let text = &text[..text.len().min(TOLD_BYTES)];
    if !text.contains(&0) && told_bits(text) < TELLING_BITS {
        return false;
    }
    // UTF-16 has a zero in each character.
    let mut text: Vec<u8> = text.iter().copied().filter(|b| *b != 0).collect();
    if told_bits(&text) < TELLING_BITS {
        return false;
    }
    // What words are, in whatever form, and what all of a kind have.
    while let Some(inner) = decoded(&text) {
        text = inner;
    }
    told_bits(&text[public(&text)..]) >= TELLING_BITS
}

/// The bits of those pieces that look random.
fn told_bits(text: &[u8]) -> u32 {
    let pieces = text.split(|b| !b.is_ascii_alphanumeric());
    let is_random = |piece: &&[u8]| {
        let has = |is: fn(&u8) -> bool| piece.iter().any(is);
        let is_mixed =
            has(u8::is_ascii_lowercase) && piece.iter().skip(1).any(u8::is_ascii_uppercase);
        is_mixed || has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic)
    };
    pieces.filter(is_random).map(bits).sum()
}

/// The readable text that `text` is the base64 or hexadecimal form of, wherever in a group it begins.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let is_readable = |bytes: &Vec<u8>| {
        bytes.len() >= DECODED_BYTES_MIN && bytes.iter().all(|b| matches!(b, b' '..=b'~' | b'\n'))
    };
    let nibble = |b: &u8| (*b as char).to_digit(16);
    let bytes = |pair: &[u8]| u8::try_from(nibble(&pair[0])? << 4 | nibble(&pair[1])?).ok();
    if let Some(inner) = text.chunks_exact(2).map(bytes).collect::<Option<Vec<u8>>>() {
        return Some(inner).filter(is_readable);
    }
    let text = std::str::from_utf8(text).ok()?;
    (0..4).find_map(|skipped| {
        let groups = text.get(skipped..)?;
        let groups = groups.get(..groups.len() / 4 * 4)?;
        let inner = Base64Unpadded::decode_vec(groups);
        inner.or_else(|_| Base64UrlUnpadded::decode_vec(groups)).ok().filter(is_readable)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tokens_are_unguessable_and_words_are_not() {
        for token in [
            "k7Hq2ZpX9vLm4TnB8sRd3WfY",
            "9f86d081884c7d659a2feaa0c55ad015",
            "3f2b8c1e-7a4d-4f0b-9c6e-1d5a8b2f7e90",
            "xK9+/mQ2vB7nL4pR8sT1wY5zA3cE6gH0",
        ] {
            assert!(unguessable(token.as_bytes()), "{token} has {}", bits(token.as_bytes()));
        }
        for token in [
            "correct horse battery staple again",
            "https://hooks.internal.example.com/services/team/alpha/channel",
            "hunter2hunter2",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "password-password-password-password",
            "2024-01-01T00:00:00Z",
        ] {
            assert!(!unguessable(token.as_bytes()), "{token} has {}", bits(token.as_bytes()));
        }
    }

    #[test]
    fn each_weakness_has_its_value() {
        for (value, expected) in [
            (&b"abcd"[..], Some(Weakness::TooShort)),
            (b" abcd\n", Some(Weakness::TooShort)),
            (b"EDACTED", Some(Weakness::InMarker)),
            (b"********", Some(Weakness::Repeated)),
            (b"Password", Some(Weakness::CommonWord)),
            (b"123457", Some(Weakness::FewDigits)),
            (b"s3cr3t", Some(Weakness::Short)),
            (b"s3cr3t-x", None),
        ] {
            assert_eq!(weakness(value), expected, "{}", String::from_utf8_lossy(value));
        }
    }
}
