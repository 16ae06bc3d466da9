//! What stands in front of a value: the name it is given to, and how.
//!
//! `api_key = "`, `"password": "`, `--token `, `<secret>`, `?sig=`, `Authorization: Bearer `, also with
//! escaped quotes. Everything is read backwards within [`BACK_BYTES`], so that a value can be
//! judged however the text before it was cut.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::class::{BACK_BYTES, is_alnum, is_name};

/// A name and what follows it may be this far from the value.
const DISTANCE_MAX: usize = 40;

/// Where the bytes before `end` begin, at most so many, that all are of a kind.
fn strip(back: &[u8], end: usize, is: impl Fn(u8) -> bool, most: usize) -> usize {
    end - back[..end].iter().rev().take(most).take_while(|b| is(**b)).count()
}

/// The word between `Authorization:` and the value (RFC 9110, 11.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Basic,
    Bearer,
    Other,
}

/// What stands before a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label<'a> {
    /// The name as it is written; at most [`BACK_BYTES`].
    raw: &'a [u8],
    /// It is a parameter of a URL.
    pub is_parameter: bool,
    pub scheme: Option<Scheme>,
}

/// A name as it is compared: its words in lower case with `_` between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    bytes: [u8; BACK_BYTES],
    len: usize,
}

impl<'a> Label<'a> {
    /// Reads what `back` ends with.
    #[inline]
    pub(super) fn read(back: &'a [u8]) -> Option<Self> {
        let quote = |b: u8| matches!(b, b'"' | b'\'' | b'`' | b'\\');
        let blank = |b: u8| matches!(b, b' ' | b'\t');
        // What no name is followed by.
        if !back.last().is_some_and(|b| quote(*b) || blank(*b) || matches!(b, b':' | b'=' | b'>')) {
            return None;
        }
        let mut end = strip(back, back.len(), quote, 4);
        let quoted = end < back.len();
        let mut scheme = None;
        // The last letters of the words below.
        let last = end.checked_sub(2).map_or(0, |at| back[at].to_ascii_lowercase());
        if back[..end].ends_with(b" ") && b"crntys".contains(&last) {
            for (word, which) in [
                (b"basic ".as_slice(), Scheme::Basic),
                (b"bearer ", Scheme::Bearer),
                (b"token ", Scheme::Other),
                (b"apikey ", Scheme::Other),
                (b"bot ", Scheme::Other),
                (b"ssws ", Scheme::Other),
                (b"key ", Scheme::Other),
            ] {
                let start = end.checked_sub(word.len());
                if let Some(start) = start
                    && back[start..end].eq_ignore_ascii_case(word)
                    && start.checked_sub(1).is_none_or(|p| !is_name(back[p]))
                {
                    scheme = Some(which);
                    end = strip(back, start, quote, 2);
                    break;
                }
            }
        }
        let spaced = strip(back, end, blank, DISTANCE_MAX);
        let blanks = end - spaced;
        end = spaced;
        let sign = end.checked_sub(1).map(|at| back[at]);
        let mut is_flag = false;
        let mut is_tag = false;
        match sign {
            Some(b'=') => {
                end = strip(
                    back,
                    end - 1,
                    |b| matches!(b, b':' | b'=' | b'+' | b'?' | b'~' | b'!'),
                    2,
                );
            }
            Some(b':') => end -= 1,
            Some(b'>') if end >= 2 && matches!(back[end - 2], b'=' | b'-') => end -= 2,
            Some(b'>') if blanks == 0 => {
                end -= 1;
                is_tag = true;
            }
            Some(b'(' | b',') if quoted => end -= 1,
            _ if blanks > 0 && !quoted || scheme.is_some() => is_flag = true,
            _ => return None,
        }
        if !is_tag {
            end = strip(back, end, blank, DISTANCE_MAX);
            end = strip(back, end, |b| quote(b) || matches!(b, b']' | b')'), 5);
        }
        let mut start = strip(back, end, is_name, BACK_BYTES);
        // `name: str = `
        const TYPES: &[&[u8]] = &[b"str", b"string", b"String", b"bytes", b"text", b"any"];
        if sign == Some(b'=') && TYPES.contains(&&back[start..end]) {
            let colon = strip(back, start, |b| blank(b) || b == b'&', 3);
            if colon > 0 && back[colon - 1] == b':' {
                end = strip(back, colon - 1, blank, 2);
                start = strip(back, end, is_name, BACK_BYTES);
            }
        }
        let lead = start.checked_sub(1).map(|at| back[at]);
        if is_flag && scheme.is_none() && !back[start..end].starts_with(b"--") {
            // `ENV NAME VALUE`, `password is VALUE`
            let is_set =
                [b"ENV ".as_slice(), b"setenv "].iter().any(|w| back[..start].ends_with(w));
            let said = [b"is".as_slice(), b"was", b"to"].contains(&&back[start..end]);
            if !is_set {
                if !said || start == 0 {
                    return None;
                }
                end = strip(back, start, blank, 3);
                start = strip(back, end, is_name, BACK_BYTES);
            }
        }
        if is_tag && lead != Some(b'<') || back.len() - end > DISTANCE_MAX {
            return None;
        }
        let mut raw = &back[start..end];
        let mut is_parameter = matches!(lead, Some(b'?' | b'&'))
            || lead == Some(b';') && back[..start].ends_with(b"&amp;");
        if lead == Some(b'\\') && raw.starts_with(b"u0026") {
            is_parameter = true;
            raw = &raw[5..];
        }
        let is_named = raw.iter().any(|b| is_alnum(*b));
        (is_named || scheme.is_some()).then_some(Self { raw, is_parameter, scheme })
    }

    pub(super) fn name(&self) -> Name {
        let mut name = Name { bytes: [0; BACK_BYTES], len: 0 };
        let mut previous = b'_';
        for (at, byte) in self.raw.iter().enumerate() {
            let next_is_lower = || self.raw.get(at + 1).is_some_and(u8::is_ascii_lowercase);
            let new_word = byte.is_ascii_uppercase()
                && (previous.is_ascii_lowercase()
                    || previous.is_ascii_digit()
                    || previous.is_ascii_uppercase() && next_is_lower());
            if !is_alnum(*byte) || new_word {
                name.put(b'_');
            }
            if is_alnum(*byte) {
                name.put(byte.to_ascii_lowercase());
            }
            previous = *byte;
        }
        while name.len > 0 && name.bytes[name.len - 1] == b'_' {
            name.len -= 1;
        }
        name
    }
}

impl Name {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether `word` stands at `start`, where a word begins, up to the end of a word; after `=`,
    /// whether it is all of the name.
    pub(super) fn has(&self, word: &[u8], start: usize) -> bool {
        if let Some(whole) = word.strip_prefix(b"=") {
            return self.bytes() == whole;
        }
        let rest = self.bytes()[start..].strip_prefix(word);
        rest.is_some_and(|rest| rest.first().is_none_or(|b| *b == b'_'))
    }

    fn put(&mut self, byte: u8) {
        let doubled = byte == b'_' && (self.len == 0 || self.bytes[self.len - 1] == b'_');
        if self.len < BACK_BYTES && !doubled {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
    }

    /// Whether the name is that of a secret.
    pub(super) fn tells(&self) -> bool {
        let mut name = self.bytes();
        loop {
            let trimmed = name.trim_ascii_end();
            let cut = trimmed.iter().rposition(|b| *b == b'_').map_or(0, |at| at + 1);
            let last = &trimmed[cut..];
            if cut > 0 && (last.iter().all(u8::is_ascii_digit) || is_suffix(last)) {
                name = &trimmed[..cut - 1];
            } else {
                break;
            }
        }
        let digits = name.iter().rev().take_while(|b| b.is_ascii_digit()).count();
        let name = &name[..name.len() - digits];
        let cut = name.iter().rposition(|b| *b == b'_').map_or(0, |at| at + 1);
        let last = &name[cut..];
        let rest = &name[..cut.saturating_sub(1)];
        let before = rest.rsplit(|b| *b == b'_').next().unwrap_or(b"");
        if last == b"token" && is_counted(before) {
            return false;
        }
        is_whole(last)
            || ENDS.iter().any(|end| last.ends_with(end))
            || (last == b"key" && is_of_key(before))
            || (last == b"string" && before == b"connection")
            || (last == b"code" && (before == b"access" || before == b"auth"))
    }
}

/// What the last word of a secret's name may end with.
const ENDS: &[&[u8]] = &[
    b"password",
    b"passwd",
    b"passphrase",
    b"secret",
    b"token",
    b"apikey",
    b"secretkey",
    b"accesskey",
    b"pwd",
];

/// `api_key_prod`, `password2`
fn is_suffix(word: &[u8]) -> bool {
    matches!(
        word,
        b"prod"
            | b"production"
            | b"dev"
            | b"staging"
            | b"test"
            | b"live"
            | b"old"
            | b"new"
            | b"value"
            | b"str"
            | b"string"
            | b"plain"
            | b"base64"
            | b"b64"
            | b"main"
            | b"primary"
            | b"secondary"
            | b"current"
            | b"default"
            | b"raw"
            | b"env"
    )
}

/// What stands before `token` for a place in a list, or a number of words.
fn is_counted(word: &[u8]) -> bool {
    matches!(
        word,
        b"page"
            | b"next"
            | b"continuation"
            | b"sync"
            | b"max"
            | b"num"
            | b"total"
            | b"prompt"
            | b"completion"
            | b"input"
            | b"output"
            | b"cancellation"
            | b"resume"
            | b"pagination"
            | b"cursor"
            | b"per"
    )
}

/// The last word of a secret's name.
fn is_whole(word: &[u8]) -> bool {
    matches!(
        word,
        b"pass"
            | b"pwd"
            | b"pw"
            | b"auth"
            | b"creds"
            | b"credential"
            | b"credentials"
            | b"secrets"
            | b"passcode"
            | b"psk"
            | b"apitoken"
            | b"authkey"
            | b"privatekey"
            | b"encryptionkey"
            | b"passwort"
            | b"pat"
    )
}

/// What stands before `key` in a secret's name.
fn is_of_key(word: &[u8]) -> bool {
    matches!(
        word,
        b"api"
            | b"secret"
            | b"access"
            | b"private"
            | b"auth"
            | b"encryption"
            | b"signing"
            | b"master"
            | b"account"
            | b"service"
            | b"client"
            | b"app"
            | b"application"
            | b"shared"
            | b"session"
            | b"storage"
            | b"deploy"
            | b"license"
            | b"admin"
            | b"consumer"
            | b"subscription"
            | b"jwt"
            | b"hmac"
            | b"root"
            | b"crypto"
            | b"security"
            | b"webhook"
            | b"secure"
            | b"user"
            | b"project"
            | b"restricted"
            | b"integration"
            | b"ingest"
            | b"write"
            | b"server"
            | b"token"
            | b"cookie"
            | b"decryption"
            | b"authorization"
            | b"live"
    )
}

/// Longer names are not remembered.
const SHORT_BYTES: usize = 16;
/// A power of two.
const REMEMBERED: usize = 64;

/// A name of at most [`SHORT_BYTES`]: its length, its first and its last bytes.
type Short = [u64; 3];

fn short(name: &[u8]) -> Option<Short> {
    if name.len() > SHORT_BYTES {
        return None;
    }
    let [first, last] = if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        [first, last].map(|bytes| u64::from_le_bytes(*bytes))
    } else if let (Some(first), Some(last)) = (name.first_chunk(), name.last_chunk()) {
        [first, last].map(|bytes| u64::from(u32::from_le_bytes(*bytes)))
    } else {
        [name.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)), 0]
    };
    Some([name.len() as u64, first, last])
}

/// Names as they are written that say nothing of their values: logs repeat a few.
#[derive(Default)]
pub(super) struct Names {
    detector: u64,
    dull: Zeroizing<Vec<Short>>,
    /// Places of this text where no name tells; rising.
    none: Vec<usize>,
    /// Those that were asked for.
    asked: usize,
}

impl Names {
    /// For another text; forgets what another detector thought of names.
    pub(super) fn are_of(&mut self, detector: u64) {
        self.none.clear();
        self.asked = 0;
        if self.detector != detector {
            self.detector = detector;
            self.dull = Zeroizing::new(vec![[0; 3]; REMEMBERED]);
        }
    }

    /// Says that before `at` no name tells of a value; places rise.
    pub(super) fn none_at(&mut self, at: usize) {
        self.none.push(at);
    }

    /// Whether that was said of `at`; places that are asked for rise.
    pub(super) fn is_none_at(&mut self, at: usize) -> bool {
        let more = &self.none[self.asked..];
        self.asked += more.iter().take_while(|none| **none < at).count();
        self.none.get(self.asked) == Some(&at)
    }

    /// The name, and where it is remembered.
    fn slot(label: Label<'_>) -> Option<(usize, Short)> {
        let name = short(label.raw)?;
        let mixed = (name[1] ^ name[2].rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Some(((mixed >> 58) as usize % REMEMBERED, name))
    }

    /// Whether a name is known to say nothing.
    pub(super) fn is_dull(&self, label: Label<'_>) -> bool {
        let known = |(slot, name): (usize, _)| self.dull.get(slot) == Some(&name);
        !label.raw.is_empty() && Self::slot(label).is_some_and(known)
    }

    /// Remembers one that says nothing.
    pub(super) fn put(&mut self, label: Label<'_>) {
        if let Some((slot, name)) = Self::slot(label)
            && let Some(place) = self.dull.get_mut(slot)
        {
            *place = name;
        }
    }
}

/// A word that tells in running text before a value, with nothing long or bracketed between them.
pub(super) fn is_told(back: &[u8]) -> bool {
    let line = back.rsplit(|b| *b == b'\n' || *b == b'\r').next().unwrap_or(back);
    let near = &line[line.len().saturating_sub(DISTANCE_MAX)..];
    let near = near.rsplit(|b| matches!(b, b']' | b'[')).next().unwrap_or(near);
    const WORDS: &[&[u8]] = &[
        b"password",
        b"passwd",
        b"passphrase",
        b"secret",
        b"token",
        b"api_key",
        b"apikey",
        b"api-key",
        b"credential",
        b"credentials",
        b"bearer",
        b"pwd",
        b"key",
    ];
    let mut told = false;
    let mut words = near.split(|b| !is_name(*b)).filter(|w| !w.is_empty());
    let mut previous: &[u8] = b"";
    for word in words.by_ref() {
        if word.len() >= super::class::RUN_BYTES_MIN {
            told = false;
        }
        let word = word.strip_suffix(b".").unwrap_or(word);
        let is_key = word.eq_ignore_ascii_case(b"key");
        let qualified = [b"api".as_slice(), b"access", b"secret", b"private", b"license"]
            .iter()
            .any(|q| previous.eq_ignore_ascii_case(q));
        told |= WORDS.iter().any(|w| w.eq_ignore_ascii_case(word)) && (!is_key || qualified);
        previous = word;
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(back: &str) -> Option<String> {
        let label = Label::read(back.as_bytes())?;
        Some(String::from_utf8_lossy(label.name().bytes()).into_owned())
    }

    #[test]
    fn names_are_read_in_all_ways_that_values_are_given() {
        for (back, expected) in [
            ("API_KEY=", "api_key"),
            ("export  APIKey='", "api_key"),
            ("  \"clientSecret\": \"", "client_secret"),
            ("{\\\"client_secret\\\": \\\"", "client_secret"),
            ("x --auth-token ", "auth_token"),
            ("<db.password>", "db_password"),
            ("'pass' => '", "pass"),
            ("os.environ[\"API_KEY\"] = \"", "os_environ\"api_key"),
            ("token := \"", "token"),
            ("password: str = '", "password"),
            ("set(\"api_key\", \"", "api_key"),
            ("setPassword(\"", "set_password"),
            ("the password is ", "password"),
            ("X-Api-Key: ", "x_api_key"),
            ("ENV API_KEY ", "api_key"),
        ] {
            let expected = expected.rsplit('"').next().unwrap();
            assert_eq!(name(back).as_deref(), Some(expected), "{back}");
        }
        for back in ["a word ", "", "https://x/", "a, ", "\n"] {
            assert_eq!(name(back), None, "{back}");
        }
        let label = Label::read(b"Authorization: Bearer ").unwrap();
        assert_eq!(
            (label.name().bytes(), label.scheme),
            (b"authorization".as_slice(), Some(Scheme::Bearer))
        );
        assert!(Label::read(b"https://x/y?a=b&sig=").unwrap().is_parameter);
        assert!(Label::read(b"https://x/y?a=b\\u0026sig=").unwrap().is_parameter);
        assert!(!Label::read(b"sig=").unwrap().is_parameter);
    }

    #[test]
    fn names_of_secrets_tell_and_names_about_them_do_not() {
        let tells = |text: &str| Label::read(format!("{text}=").as_bytes()).unwrap().name().tells();
        for text in [
            "password",
            "DB_PASSWORD",
            "db-pass",
            "apiKey",
            "API_KEY_PROD",
            "secretKey2",
            "authToken",
            "x-api-key",
            "AZURE_CLIENT_SECRET",
            "awsSecretAccessKey",
            "accesstoken",
        ] {
            assert!(tells(text), "{text}");
        }
        for text in [
            "password_hash",
            "token_count",
            "max_token",
            "nextPageToken",
            "secret_name",
            "key",
            "cache_key",
            "public_key",
            "tokenizer",
            "api_key_id",
            "passwordFile",
            "key_name",
            "compass",
        ] {
            assert!(!tells(text), "{text}");
        }
    }
}
