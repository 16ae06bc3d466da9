//! Tokens that may be shown: a list of tags, made with a key, and never of the tokens themselves.
//!
//! What nobody registered is found by how it looks; a test key that stands in documents, or an
//! identifier that looks like a token, is found each time. Such a token as a whole, exactly its bytes,
//! can be allowed. Invariant: a value of the vault is never allowed, whatever the list has: this is
//! asked for detections alone. Danger: a list that tells what is in it to those who guess, so a tag
//! is made with a key that they do not have, or at a price (see [`Tagger`]).
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Level;
use super::detect::{Detector, Hit, Open, Room};
use crate::secret::SecretBytes;
use crate::vault::crypto::{self, Key, NoRandomness};
use crate::vault::unlock::passphrase::{self, Cost, Parameters};

/// More entries are a mistake.
pub const MAX_ENTRIES: usize = 10_000;
/// Longer tokens are not allowed: as much of a stream is held back for one. The longest private keys
/// in use have half of it.
pub const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Shorter ones are not: nothing so short is found.
pub const MIN_TOKEN_BYTES: usize = 8;
/// Of HMAC-SHA-256; 128 bits, so that no second token with a tag of the list can be made.
const TAG_BYTES: usize = 16;
const KEY_ID_BYTES: usize = 4;
/// As RFC 9106 has it for Argon2.
const SALT_BYTES: usize = 16;
const PREFIX: &str = "allow1";

/// Makes tags. Two taggers with one id give the same tags.
pub trait Tagger: Send + Sync {
    /// Tells its key from others, and nothing about it.
    fn key_id(&self) -> KeyId;
    /// The tag of a token; none where it cannot be made, and then the token is not allowed.
    fn tag(&self, token: &[u8]) -> Option<Tag>;
}

/// Which key a tag was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

/// What stands for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; TAG_BYTES]);

impl KeyId {
    /// Of a key.
    pub fn of(key: &Key) -> Self {
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&key.derive(b"", &[b"id"]).expose()[..KEY_ID_BYTES]);
        Self(id)
    }
}

impl Tag {
    /// The first bytes of a key that was derived from the token.
    pub fn of(derived: &Key) -> Self {
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&derived.expose()[..TAG_BYTES]);
        Self(tag)
    }
}

/// Tags by a secret key alone: for who has the vault open.
pub struct Keyed(Key);

impl Keyed {
    /// With a key for this purpose.
    pub fn new(key: Key) -> Self {
        Self(key)
    }
}

impl Tagger for Keyed {
    fn key_id(&self) -> KeyId {
        KeyId::of(&self.0)
    }

    fn tag(&self, token: &[u8]) -> Option<Tag> {
        // The digest stands for the token: what goes into a derivation is not wiped.
        Some(Tag::of(&self.0.derive(b"", &[b"token", &crypto::digest(&[token])])))
    }
}

/// What tags at a price are made with: no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt([u8; SALT_BYTES]);

impl Salt {
    /// A new one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn random() -> Result<Self, NoRandomness> {
        let mut salt = [0; SALT_BYTES];
        crypto::random(&mut salt)?;
        Ok(Self(salt))
    }

    /// As it is printed.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(crypto::unhex(text)?.try_into().ok()?))
    }
}

impl fmt::Display for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crypto::hex(&self.0))
    }
}

/// Tags at a price, for lists that live where no secret key does: whoever has the list can try
/// tokens, and each costs what one of a vault's weakest passphrase does.
pub struct Costly(Salt);

impl Costly {
    /// With a list's salt.
    pub fn new(salt: Salt) -> Self {
        Self(salt)
    }
}

impl Tagger for Costly {
    fn key_id(&self) -> KeyId {
        let digest = crypto::digest(&[b"strongroom allow list 1", &self.0.0]);
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest[..KEY_ID_BYTES]);
        KeyId(id)
    }

    fn tag(&self, token: &[u8]) -> Option<Tag> {
        let parameters = Parameters::new(Cost::least(), self.0.to_string());
        passphrase::master(&SecretBytes::copy_of(token), &parameters).ok().as_ref().map(Tag::of)
    }
}

/// One token of a list, as it is written: `allow1:KEY:LENGTH:TAG`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    key: KeyId,
    len: usize,
    tag: Tag,
}

/// The text is no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an entry of an allow list")]
pub struct BadEntry;

impl Entry {
    /// Of a token; none where it has no length that is allowed, or no tag can be made.
    pub fn of(token: &[u8], tagger: &dyn Tagger) -> Option<Self> {
        let len = token.len();
        let fits = (MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&len);
        let tag = fits.then(|| tagger.tag(token)).flatten()?;
        Some(Self { key: tagger.key_id(), len, tag })
    }

    /// What is on record of its making: no tag, by which who has the log and the key could try tokens.
    pub fn told(&self) -> String {
        format!("a token of {} bytes, key {}", self.len, crypto::hex(&self.key.0))
    }

    /// Whether it was made with this key.
    pub fn is_of(&self, key: KeyId) -> bool {
        self.key == key
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, tag) = (crypto::hex(&self.key.0), crypto::hex(&self.tag.0));
        write!(f, "{PREFIX}:{key}:{}:{tag}", self.len)
    }
}

impl FromStr for Entry {
    type Err = BadEntry;

    fn from_str(text: &str) -> Result<Self, BadEntry> {
        let bytes = |text: &str| crypto::unhex(text).ok_or(BadEntry);
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or(BadEntry);
        if part()? != PREFIX {
            return Err(BadEntry);
        }
        let key = bytes(part()?)?.try_into().map_err(|_| BadEntry)?;
        let len: usize = part()?.parse().map_err(|_| BadEntry)?;
        let tag = bytes(part()?)?.try_into().map_err(|_| BadEntry)?;
        let is_one = parts.next().is_none() && (MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&len);
        let entry = Self { key: KeyId(key), len, tag: Tag(tag) };
        // One spelling alone, or a list could have an entry twice.
        if is_one && entry.to_string() == text { Ok(entry) } else { Err(BadEntry) }
    }
}

/// A list with the key that its entries were made with.
pub struct Allowed {
    entries: HashSet<(usize, Tag)>,
    /// Lengths that some entry has: a token of another one is not looked at.
    lens: HashSet<usize>,
    longest: usize,
    tagger: Box<dyn Tagger>,
}

impl Allowed {
    /// The entries that were made with the tagger's key; none if there are none.
    pub fn new<'a>(
        entries: impl IntoIterator<Item = &'a Entry>,
        tagger: Box<dyn Tagger>,
    ) -> Option<Self> {
        let key = tagger.key_id();
        let own = entries.into_iter().filter(|entry| entry.is_of(key));
        let entries: HashSet<_> = own.map(|entry| (entry.len, entry.tag)).collect();
        let lens: HashSet<usize> = entries.iter().map(|(len, _)| *len).collect();
        let longest = lens.iter().copied().max()?;
        Some(Self { entries, lens, longest, tagger })
    }

    /// The longest token that is allowed.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Lengths that some token of the list has.
    pub fn lens(&self) -> impl Iterator<Item = usize> + '_ {
        self.lens.iter().copied()
    }

    /// Whether some token of this length is on the list.
    pub fn has_len(&self, len: usize) -> bool {
        self.lens.contains(&len)
    }

    /// Whether the token is on the list.
    pub fn has(&self, token: &[u8]) -> bool {
        self.has_len(token.len())
            && self.tagger.tag(token).is_some_and(|tag| self.entries.contains(&(token.len(), tag)))
    }
}

impl fmt::Debug for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allowed").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

/// The entries of a configuration.
///
/// # Errors
/// The number of the first one that is none, from 1; never its text, which may be a token that was
/// written there by mistake.
pub fn entries(texts: &[String]) -> Result<Vec<Entry>, usize> {
    let entry = |(index, text): (usize, &String)| text.parse().map_err(|BadEntry| index + 1);
    let entries: Vec<_> = texts.iter().enumerate().map(entry).collect::<Result<_, _>>()?;
    if entries.len() > MAX_ENTRIES { Err(MAX_ENTRIES + 1) } else { Ok(entries) }
}

/// Which rule finds exactly this token where it stands alone, or as the value of a name that tells.
pub fn rule_of(detector: &Detector, token: &[u8]) -> Option<Arc<str>> {
    ["", "api_key = "].into_iter().find_map(|before| {
        let text = Zeroizing::new([before.as_bytes(), token].concat());
        let room = &mut Room::default();
        let scan = detector.scan(Level::All, &[], Open::default(), &text, true, room);
        let whole = |hit: &Hit| (hit.start, hit.end) == (before.len(), text.len());
        scan.hits.into_iter().find(whole).map(|hit| hit.rule)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyed(byte: u8) -> Box<dyn Tagger> {
        Box::new(Keyed::new(Key::from_bytes(&[byte; 32]).unwrap()))
    }

    #[test]
    fn an_entry_reads_what_it_prints_and_nothing_else() {
        let entry = Entry::of(b"AKIAIOSFODNN7QXWZRTY", &*keyed(1)).unwrap();
        let text = entry.to_string();
        assert_eq!(text.parse(), Ok(entry));
        assert!(text.starts_with("allow1:") && text.contains(":20:"), "{text}");
        for cut in 0..text.len() {
            assert_eq!(text[..cut].parse::<Entry>(), Err(BadEntry), "{cut}");
        }
        for bad in [
            format!("{text}0"),
            format!("{text}:"),
            format!(" {text}"),
            text.to_uppercase(),
            text.replace(":20:", ":020:"),
            text.replace(":20:", ":4:"),
            text.replace(":20:", ":99999999:"),
            text.replace("allow1", "allow2"),
            "AKIAIOSFODNN7QXWZRTY".to_owned(),
        ] {
            assert_eq!(bad.parse::<Entry>(), Err(BadEntry), "{bad}");
        }
    }

    #[test]
    fn a_token_is_allowed_as_a_whole_and_with_its_key_alone() {
        let token = b"AKIAIOSFODNN7QXWZRTY".as_slice();
        let entry = Entry::of(token, &*keyed(1)).unwrap();
        let list = Allowed::new([&entry], keyed(1)).unwrap();
        assert!(list.has(token));
        assert_eq!(list.longest(), 20);
        for other in [&token[..19], b"AKIAIOSFODNN7QXWZRTZ", b"", b"xAKIAIOSFODNN7QXWZRTY"] {
            assert!(!list.has(other));
        }
        assert!(Allowed::new([&entry], keyed(2)).is_none(), "made with another key");
        assert!(!format!("{list:?} {entry:?}").contains("AKIA"));
        assert_ne!(Entry::of(token, &*keyed(2)).unwrap().tag, entry.tag);
        assert_eq!(Entry::of(b"short", &*keyed(1)), None);
        assert_eq!(Entry::of(&[b'a'; MAX_TOKEN_BYTES + 1], &*keyed(1)), None);
    }

    #[test]
    fn a_rule_is_told_for_what_is_found_as_a_whole_alone() {
        let rule = |token: &str| rule_of(&Detector::usual(), token.as_bytes());
        let key = "ghp_q7Zk2Wm9Lx4Tb8Rv3Yd6Nc1Jf5Hg0Ps8UaEo";
        assert_eq!(rule(key).as_deref(), Some("github-token"));
        assert_eq!(rule("k7Hq2ZpX9vLm4TnB8sRd3WfY").as_deref(), Some("keyword-secret"));
        assert_eq!(rule(&format!("{key} x")), None);
        assert_eq!(rule("plain words"), None);
    }

    #[test]
    fn a_bad_entry_is_told_by_its_number_and_never_by_its_text() {
        let good = Entry::of(b"AKIAIOSFODNN7QXWZRTY", &*keyed(1)).unwrap().to_string();
        assert_eq!(entries(&[good.clone(), good.clone()]).unwrap().len(), 2);
        assert_eq!(entries(&[good.clone(), "AKIAIOSFODNN7QXWZRTY".to_owned()]), Err(2));
        assert_eq!(entries(&vec![good; MAX_ENTRIES + 1]), Err(MAX_ENTRIES + 1));
    }
}
