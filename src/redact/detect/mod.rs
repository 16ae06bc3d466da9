//! Secrets that nobody registered: known formats, and text that looks random.
//!
//! `rules` is the table; `formats` finds them, `value` by what stands before, `guesses` what looks
//! random; `label` reads the name before a value, `jwt`, `pem` and `url` what has a grammar of its own. Invariant: what is found is a function of the whole text
//! and the level, however the text is cut: each decision rests on a bounded number of bytes before and
//! after a place, what is undecided is held back, and what is known to be a secret is swallowed by state.
//! A hit never holds a quote, a backslash or white space (but for armour), so JSON that parsed parses.
#![forbid(unsafe_code)]

mod class;
mod formats;
mod guesses;
mod jwt;
mod label;
mod pattern;
mod pem;
mod quick;
mod random;
mod rules;
mod url;
mod value;
mod within;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::class::Text;
use self::pattern::Pattern;
use self::rules::{Coded, How};
use super::{Level, allow};
use crate::config::{self, Redaction};

pub use pattern::BadPattern;
pub(super) use within::Token;

/// Whether tokens are made of a byte.
pub(super) const fn is_token(byte: u8) -> bool {
    class::is_token(byte)
}

/// The rule of text that looks random.
pub const HIGH_ENTROPY: &str = "high-entropy";
/// The rule of text that looks random after a word that tells.
pub const KEYWORD: &str = "keyword-secret";
/// More rules of one's own are a mistake.
const MAX_OWN_RULES: usize = 500;
/// The longest id of a rule, as in a marker.
const MAX_ID_BYTES: usize = 64;

/// How sure a hit is; rising.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// It looks random.
    Entropy,
    /// It looks random, and a word before it tells.
    Keyword,
    /// A known format.
    Format,
}

/// A range of a text that is a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// First byte.
    pub start: usize,
    /// After the last byte.
    pub end: usize,
    /// The rule's id.
    pub rule: Arc<str>,
    /// How sure it is.
    pub grade: Grade,
    /// The same hit as the one that the last scan's end cut.
    pub continues: bool,
}

/// What goes on after the end of a scan: a hit that was cut, or text that is known to be none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    format: Option<(Option<usize>, formats::Going)>,
    guess: guesses::Going,
}

const NO_RULE: u64 = 0xffff;

impl Open {
    /// Whether a hit goes on.
    pub fn is_hit(self) -> bool {
        self.hits() != [false; 2]
    }

    /// Whether one of a known format goes on, and whether a guess does.
    pub fn hits(self) -> [bool; 2] {
        let guess = matches!(self.guess, guesses::Going::Count(..) | guesses::Going::Rest(_));
        [matches!(self.format, Some((Some(_), _))), guess]
    }

    /// For storing.
    pub fn to_bits(self) -> u64 {
        use formats::{Class, Going};
        let count = |n: usize| u64::try_from(n).unwrap_or(0).min(0x1ff);
        let number = |n: usize| u64::try_from(n).unwrap_or(0).min(0xffe);
        let format = match self.format {
            None => 0,
            Some((rule, going)) => {
                let (kind, argument) = match going {
                    Going::Armour(pem::Place::Between) => (1, 0),
                    Going::Armour(pem::Place::Inside) => (1, 1),
                    Going::Count(n) => (2, count(n)),
                    Going::Rest(n, Class::Token) => (3, count(n)),
                    Going::Rest(n, Class::Jwt) => (4, count(n)),
                    Going::Rest(n, Class::Pattern(of)) => (5, count(n) | number(of) << 9),
                };
                kind | argument << 3 | rule.map_or(NO_RULE, number) << 24
            }
        };
        let keyword = |kind: guesses::Kind| u64::from(kind == guesses::Kind::Keyword);
        let guess = match self.guess {
            guesses::Going::None => 0,
            guesses::Going::Count(n, kind) => 1 | keyword(kind) << 3 | count(n) << 4,
            guesses::Going::Rest(kind) => 2 | keyword(kind) << 3,
            guesses::Going::Skip(n) => 3 | count(n) << 4,
            guesses::Going::SkipRun => 4,
        };
        format | guess << 40
    }

    /// What was stored.
    pub fn from_bits(bits: u64) -> Option<Self> {
        use formats::{Class, Going};
        let argument = usize::try_from(bits >> 3 & 0x1f_ffff).ok()?;
        let going = match (bits & 7, argument) {
            (0, 0) => None,
            (1, 0) => Some(Going::Armour(pem::Place::Between)),
            (1, 1) => Some(Going::Armour(pem::Place::Inside)),
            (2, n) => Some(Going::Count(n)),
            (3, n) => Some(Going::Rest(n, Class::Token)),
            (4, n) => Some(Going::Rest(n, Class::Jwt)),
            (5, n) => Some(Going::Rest(n & 0x1ff, Class::Pattern(n >> 9))),
            _ => return None,
        };
        let rule = Some(bits >> 24 & NO_RULE).filter(|n| *n != NO_RULE);
        let rule = rule.and_then(|n| usize::try_from(n).ok());
        let guess = bits >> 40;
        let kind =
            if guess >> 3 & 1 == 1 { guesses::Kind::Keyword } else { guesses::Kind::Entropy };
        let count = usize::try_from(guess >> 4).ok()?;
        let guess = match guess & 7 {
            0 => guesses::Going::None,
            1 => guesses::Going::Count(count, kind),
            2 => guesses::Going::Rest(kind),
            3 => guesses::Going::Skip(count),
            4 => guesses::Going::SkipRun,
            _ => return None,
        };
        Some(Self { format: going.map(|going| (rule, going)), guess })
    }
}

/// What a scan found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// All hits that start before `undecided`, cut there.
    pub hits: Vec<Hit>,
    /// Where the next scan begins.
    pub undecided: usize,
    /// What goes on there.
    pub open: Open,
}

/// Why a configuration's rules are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRules {
    /// What is allowed is no entry; its text is not told, for it may be a token.
    #[error("redaction.allow: entry {number} is none")]
    Allowed {
        /// Which, from 1.
        number: usize,
    },
    /// A rule that is to be switched off is none.
    #[error("redaction.off: there is no rule `{id}`")]
    Unknown {
        /// As written.
        id: String,
        /// What was probably meant.
        near: Option<String>,
    },
    /// An id that cannot stand in a marker, or is taken.
    #[error("redaction.rule `{id}`: the id is {why}")]
    Id {
        /// As written.
        id: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The pattern is none.
    #[error("redaction.rule `{id}`: the pattern is none: {why}")]
    Pattern {
        /// The rule's id.
        id: String,
        /// What is wrong with it.
        why: BadPattern,
    },
    /// Too many.
    #[error("redaction.rule: more than {MAX_OWN_RULES} rules")]
    Many,
}

impl BadRules {
    /// The next step for a person.
    pub fn hint(&self) -> String {
        match self {
            Self::Allowed { .. } => {
                "an entry is what `strongroom allow` prints, and there are at most \
                                     10,000: never the token itself"
                    .to_owned()
            }
            Self::Unknown { near: Some(near), .. } => format!("did you mean `{near}`?"),
            Self::Unknown { .. } => {
                "the ids of all rules stand in markers and in the manual, section Known formats"
                    .to_owned()
            }
            Self::Id { .. } => "an id is like acme-api-key, and no other rule's".to_owned(),
            Self::Pattern { .. } => {
                "write it like pattern = \"acme_[A-Za-z0-9]{32}\", see the manual".to_owned()
            }
            Self::Many => "patterns of one provider can share a prefix and a class".to_owned(),
        }
    }
}

/// Room that is used again.
#[derive(Default)]
pub struct Room {
    marks: class::Marks,
    runs: Vec<class::Run>,
    /// What masks leave of those, one for each.
    quick: Vec<Option<quick::Quick>>,
    names: label::Names,
}

/// What a scan looks at.
#[derive(Clone, Copy)]
struct Look<'a> {
    text: &'a Text<'a>,
    runs: &'a [class::Run],
    marks: &'a class::Marks,
    firsts: &'a class::Firsts,
    names: &'a RefCell<label::Names>,
}

struct Compiled {
    pattern: Pattern,
    rule: usize,
    labels: &'static [&'static str],
}

/// The first bytes, at most four, of a pattern.
#[derive(Clone, Copy)]
struct Head {
    bytes: u32,
    /// Those that count.
    mask: u32,
    pattern: usize,
}

impl Head {
    fn new(text: &[u8], pattern: usize) -> Self {
        let (mut bytes, mut mask) = ([0; 4], [0; 4]);
        for (at, byte) in text.iter().take(4).enumerate() {
            (bytes[at], mask[at]) = (*byte, 0xff);
        }
        Self { bytes: u32::from_le_bytes(bytes), mask: u32::from_le_bytes(mask), pattern }
    }

    fn second(self) -> u8 {
        self.bytes.to_le_bytes()[1]
    }

    /// Whether text that begins with these four bytes may begin like it.
    fn fits(self, four: u32) -> bool {
        four & self.mask == self.bytes
    }
}

/// Finds them.
pub struct Detector {
    /// Each has its own.
    number: u64,
    ids: Vec<Arc<str>>,
    /// The rules of [`Coded`], in its order.
    coded: [Option<usize>; rules::CODED],
    patterns: Vec<Compiled>,
    /// Patterns by their first byte, in the table's order.
    heads: Vec<Vec<Head>>,
    /// What patterns and coded formats begin with.
    firsts: class::Firsts,
    /// Words in names, by their first byte, with the patterns of the values.
    words: Vec<Vec<(&'static str, usize)>>,
    /// The first two bytes of those.
    word_pairs: Vec<class::Pairs>,
    private_key: Option<usize>,
    telegram: usize,
    discord: usize,
    entropy: Option<usize>,
    keyword: Option<usize>,
}

impl std::fmt::Debug for Detector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detector").field("rules", &self.ids.len()).finish_non_exhaustive()
    }
}

impl Detector {
    /// With the rules of this program, shared by all.
    pub fn usual() -> Arc<Self> {
        static USUAL: std::sync::OnceLock<Arc<Detector>> = std::sync::OnceLock::new();
        USUAL
            .get_or_init(|| {
                Arc::new(Self::of_config(&Redaction::default()).expect("the table parses: a test"))
            })
            .clone()
    }

    /// With the rules of this program and those of a configuration, without those it switches off.
    ///
    /// # Errors
    /// [`BadRules`].
    pub fn of_config(config: &Redaction) -> Result<Self, BadRules> {
        let known = || rules::all().map(|rule| rule.id).chain([HIGH_ENTROPY, KEYWORD]);
        if config.rules.len() > MAX_OWN_RULES {
            return Err(BadRules::Many);
        }
        allow::entries(&config.allow).map_err(|number| BadRules::Allowed { number })?;
        let own = |id: &str| config.rules.iter().any(|rule| rule.id == id);
        for id in &config.off {
            if !known().any(|k| k == id) && !own(id) {
                let near = config::near_miss(id, known()).map(str::to_owned);
                return Err(BadRules::Unknown { id: id.clone(), near });
            }
        }
        let is_on = |id: &str| !config.off.iter().any(|off| off == id);
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let mut detector = Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            ids: Vec::new(),
            coded: [None; rules::CODED],
            patterns: Vec::new(),
            heads: vec![Vec::new(); 256],
            firsts: class::Firsts::none(),
            words: vec![Vec::new(); 256],
            word_pairs: vec![class::Pairs::default(); 256],
            private_key: None,
            telegram: 0,
            discord: 0,
            entropy: None,
            keyword: None,
        };
        // Rules that are off keep their numbers, which saved states may name.
        for rule in rules::all() {
            let (number, on) = (detector.rule(rule.id), is_on(rule.id));
            let bad = |why| BadRules::Pattern { id: rule.id.to_owned(), why };
            match rule.how {
                How::Coded(coded) => detector.add_coded(coded, number, on).map_err(bad)?,
                How::Labelled(labels, patterns) => {
                    for text in patterns {
                        let pattern = Pattern::parse(text).map_err(bad)?;
                        detector.pattern(pattern, number, labels, on);
                    }
                }
                How::Pattern(patterns) => {
                    for text in patterns {
                        let pattern = Pattern::parse(text).map_err(bad)?;
                        pattern.needs_head().map_err(bad)?;
                        detector.pattern(pattern, number, &[], on);
                    }
                }
            }
        }
        detector.entropy = Some(detector.rule(HIGH_ENTROPY)).filter(|_| is_on(HIGH_ENTROPY));
        detector.keyword = Some(detector.rule(KEYWORD)).filter(|_| is_on(KEYWORD));
        // One's own go before: they are more special.
        let heads = std::mem::replace(&mut detector.heads, vec![Vec::new(); 256]);
        for (index, rule) in config.rules.iter().enumerate() {
            let id = rule.id.clone();
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            let why = if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(fits) {
                Some("not made of a-z, 0-9 and -")
            } else if known().any(|k| k == id) {
                Some("one of the program's own")
            } else if config.rules[..index].iter().any(|other| other.id == id) {
                Some("there twice")
            } else {
                None
            };
            if let Some(why) = why {
                return Err(BadRules::Id { id, why });
            }
            let bad = |why| BadRules::Pattern { id: id.clone(), why };
            let pattern = Pattern::parse(&rule.pattern).map_err(bad)?;
            pattern.needs_head().map_err(bad)?;
            let number = detector.rule(&id);
            detector.pattern(pattern, number, &[], is_on(&id));
        }
        for (all, more) in detector.heads.iter_mut().zip(heads) {
            all.extend(more);
        }
        let on = detector.heads.iter().flatten();
        let patterns = on.map(|head| detector.patterns[head.pattern].pattern.head());
        let jwt = detector.coded(Coded::Jwt).map(|_| jwt::HEAD);
        patterns.chain(jwt).for_each(|head| detector.firsts.add(head));
        Ok(detector)
    }

    /// Each rule's id and what it finds, in the table's order.
    pub fn rules() -> impl Iterator<Item = (&'static str, &'static str)> {
        rules::all().map(|rule| (rule.id, rule.what)).chain([
            (KEYWORD, "text that looks random, as the value of a name like password or api_key"),
            (HIGH_ENTROPY, "base64 of 40 characters and more that looks random"),
        ])
    }

    fn rule(&mut self, id: &str) -> usize {
        self.ids.push(id.into());
        self.ids.len() - 1
    }

    fn pattern(
        &mut self,
        pattern: Pattern,
        rule: usize,
        labels: &'static [&'static str],
        on: bool,
    ) {
        let number = self.patterns.len();
        if !on {
            // It has a number, and nothing more.
        } else if !labels.is_empty() {
            for word in labels {
                let mut bytes = word.bytes().skip_while(|b| *b == b'=');
                let first = usize::from(bytes.next().unwrap_or(b'='));
                self.words[first].push((word, number));
                match bytes.next() {
                    Some(second) => self.word_pairs[first].add(second),
                    None => (0..=255).for_each(|second| self.word_pairs[first].add(second)),
                }
            }
        } else if let [first, _, ..] = pattern.head() {
            self.heads[usize::from(*first)].push(Head::new(pattern.head(), number));
        }
        self.patterns.push(Compiled { pattern, rule, labels });
    }

    fn add_coded(&mut self, coded: Coded, rule: usize, on: bool) -> Result<(), BadPattern> {
        if on {
            self.coded[coded as usize] = Some(rule);
        }
        let mut bare = |text: &str| {
            let pattern = Pattern::parse(text)?;
            self.patterns.push(Compiled { pattern, rule, labels: &[] });
            Ok(self.patterns.len() - 1)
        };
        match coded {
            Coded::TelegramToken => self.telegram = bare("AA[A-Za-z0-9_-]{33}")?,
            Coded::DiscordToken => self.discord = bare("[A-Za-z0-9_-]{27,38}")?,
            Coded::PrivateKey => self.private_key = Some(rule).filter(|_| on),
            _ => {}
        }
        Ok(())
    }

    fn coded(&self, coded: Coded) -> Option<usize> {
        self.coded[coded as usize]
    }

    fn id(&self, rule: usize) -> Arc<str> {
        // A saved state may name a rule of a configuration that is no more.
        self.ids.get(rule).cloned().unwrap_or_else(|| HIGH_ENTROPY.into())
    }

    /// Scans `text`, which follows `before` (its last 64 bytes at most).
    pub fn scan(
        &self,
        level: Level,
        before: &[u8],
        open: Open,
        text: &[u8],
        end: bool,
        room: &mut Room,
    ) -> Scan {
        if matches!(level, Level::Off | Level::Values) {
            return Scan { undecided: text.len(), ..Scan::default() };
        }
        let text = Text { before, bytes: text, end };
        let room = &mut *room;
        class::runs(&text, &mut room.marks, &mut room.runs);
        room.names.are_of(self.number);
        let names = RefCell::new(std::mem::take(&mut room.names));
        let Room { marks, runs, quick, .. } = room;
        let look = Look { text: &text, runs, marks, firsts: &self.firsts, names: &names };
        quick.clear();
        quick.extend(runs.iter().map(|run| quick::quick(look, run)));
        let formats = self.formats(look, quick, open.format);
        let mut limit = formats.undecided;
        let mut parts = Vec::new();
        let mut guess = guesses::Going::None;
        if level == Level::All {
            let armoured = |t: &&formats::Token| matches!(t.going, formats::Going::Armour(_));
            let quiet: Vec<_> =
                formats.tokens.iter().filter(armoured).map(|t| (t.start, t.end)).collect();
            let found = self.guesses(look, quick, &quiet, limit, open.guess);
            limit = limit.min(found.undecided);
            guess = if limit == found.undecided { found.open } else { guesses::Going::None };
            for part in &found.parts {
                if part.start < limit && part.end > limit {
                    guess = part.cut(limit);
                }
            }
            parts = found.parts;
        }
        let mut format = formats.open.filter(|_| limit == formats.undecided);
        let mut hits = Vec::new();
        for token in &formats.tokens {
            if token.start >= limit {
                continue;
            }
            if token.end > limit {
                format = Some((token.rule, token.cut(limit)));
            }
            let Some(rule) = token.rule else { continue };
            hits.push(Hit {
                start: token.start,
                end: token.end.min(limit),
                rule: self.id(rule),
                grade: Grade::Format,
                continues: token.continues,
            });
        }
        for part in parts {
            let (rule, grade) = match part.kind {
                Some(guesses::Kind::Entropy) => (self.entropy, Grade::Entropy),
                Some(guesses::Kind::Keyword) => (self.keyword, Grade::Keyword),
                None => continue,
            };
            if part.start < limit {
                hits.push(Hit {
                    start: part.start,
                    end: part.end.min(limit),
                    rule: self.id(rule.unwrap_or(usize::MAX)),
                    grade,
                    continues: part.continues,
                });
            }
        }
        room.names = names.into_inner();
        hits.sort_by_key(|hit| (hit.start, hit.end));
        let open = if limit == 0 && !text.end { open } else { Open { format, guess } };
        let open = if end { Open::default() } else { open };
        Scan { hits, undecided: limit, open }
    }
}

#[cfg(test)]
pub(super) mod tests;
