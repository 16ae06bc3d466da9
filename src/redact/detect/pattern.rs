//! The language that formats are written in: a small part of that of regular expressions, which is
//! matched in one pass without ever going back, within a bounded number of bytes.
//!
//! Literal text; `[A-Za-z0-9_-]`, one byte of a class; `{n}`, `{n,m}` and, at the end alone, `{n,}` after
//! a class; `\` before a byte that would mean something else. A part takes as many bytes as it can.
//! After a pattern that ends with `{n}` or `{n,m}` no further byte of that class and no letter or digit
//! may follow. Invariant: whether a pattern matches at a place is decided by at most
//! [`PATTERN_BYTES_MAX`] bytes.
#![forbid(unsafe_code)]

use super::class::{Text, is_alnum, is_token};

/// The longest text that decides.
pub(super) const PATTERN_BYTES_MAX: usize = 400;
/// The bytes of an unlimited last part that decide whether the text looks made up.
pub(super) const DECIDING_BYTES: usize = 128;
/// A literal beginning of this length is telling enough.
const HEAD_BYTES_MIN: usize = 2;

/// Why a pattern is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// A class without its closing bracket, an empty or a reversed one.
    #[error("a class is written like [A-Za-z0-9_-]")]
    Class,
    /// A count that does not parse, or stands after no class.
    #[error("a count is written after a class, like {{20}}, {{20,40}} or, at the end, {{20,}}")]
    Count,
    /// It begins with no literal text.
    #[error("it must begin with at least {HEAD_BYTES_MIN} fixed characters that tell it apart")]
    Head,
    /// It may match more than can be held back.
    #[error("it is longer than {PATTERN_BYTES_MAX} bytes")]
    Long,
    /// It would match short or ordinary text.
    #[error("it is shorter than {} characters", super::class::RUN_BYTES_MIN)]
    Short,
    /// It contains white space, a quote or another delimiter.
    #[error("it contains white space, a quote, a bracket or another delimiter of text")]
    Symbol,
}

/// A set of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Set([u64; 4]);

impl Set {
    fn add(&mut self, byte: u8) {
        self.0[usize::from(byte) / 64] |= 1 << (byte % 64);
    }

    pub(super) fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte) / 64] >> (byte % 64) & 1 == 1
    }

    fn each(&self) -> impl Iterator<Item = u8> {
        (0..=255).filter(|b| self.has(*b))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Fixed(Box<[u8]>),
    Some { set: Set, least: usize, most: Option<usize> },
}

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    pieces: Box<[Piece]>,
}

/// What a text is to a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// It begins like it; more bytes decide.
    Maybe,
    No,
    /// Up to here; `goes_on` as long as bytes of the last class follow.
    Yes {
        end: usize,
        goes_on: bool,
    },
}

impl Pattern {
    /// Parses.
    pub(super) fn parse(text: &str) -> Result<Self, BadPattern> {
        let mut rest = text.as_bytes();
        let mut pieces = Vec::new();
        let mut fixed = Vec::new();
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match first {
                b'[' => {
                    if !fixed.is_empty() {
                        pieces.push(Piece::Fixed(std::mem::take(&mut fixed).into()));
                    }
                    let end = rest.iter().position(|b| *b == b']').ok_or(BadPattern::Class)?;
                    let set = class(&rest[..end])?;
                    rest = &rest[end + 1..];
                    let (least, most);
                    ((least, most), rest) = count(rest)?;
                    pieces.push(Piece::Some { set, least, most });
                }
                b'{' => return Err(BadPattern::Count),
                b'\\' => {
                    let (byte, after) = rest.split_first().ok_or(BadPattern::Symbol)?;
                    fixed.push(*byte);
                    rest = after;
                }
                byte => fixed.push(*byte),
            }
        }
        if !fixed.is_empty() {
            pieces.push(Piece::Fixed(fixed.into()));
        }
        let pattern = Self { pieces: pieces.into() };
        pattern.check()?;
        Ok(pattern)
    }

    fn check(&self) -> Result<(), BadPattern> {
        let (mut least_sum, mut most_sum) = (0, 0);
        for (index, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Fixed(bytes) => {
                    if !bytes.iter().all(|b| is_token(*b)) {
                        return Err(BadPattern::Symbol);
                    }
                    least_sum += bytes.len();
                    most_sum += bytes.len();
                }
                Piece::Some { set, least, most } => {
                    if !set.each().all(is_token) {
                        return Err(BadPattern::Symbol);
                    }
                    if most.is_none() && index + 1 != self.pieces.len() {
                        return Err(BadPattern::Count);
                    }
                    least_sum += least;
                    most_sum += most.unwrap_or(DECIDING_BYTES.max(*least));
                }
            }
        }
        if most_sum > PATTERN_BYTES_MAX {
            return Err(BadPattern::Long);
        }
        if least_sum < super::class::RUN_BYTES_MIN {
            return Err(BadPattern::Short);
        }
        Ok(())
    }

    /// The literal text that it begins with.
    pub(super) fn head(&self) -> &[u8] {
        match self.pieces.first() {
            Some(Piece::Fixed(bytes)) => bytes,
            _ => b"",
        }
    }

    /// Checks that it begins with what tells it apart.
    pub(super) fn needs_head(&self) -> Result<(), BadPattern> {
        if self.head().len() < HEAD_BYTES_MIN { Err(BadPattern::Head) } else { Ok(()) }
    }

    /// The class of bytes that a match goes on with.
    pub(super) fn last_set(&self) -> Set {
        match self.pieces.last() {
            Some(Piece::Some { set, .. }) => *set,
            _ => Set::default(),
        }
    }

    /// Matches at `at`.
    pub(super) fn matches(&self, text: &Text<'_>, at: usize) -> Match {
        let bytes = text.bytes;
        let mut here = at;
        let mut last: Option<&Set> = None;
        for piece in &self.pieces {
            match piece {
                Piece::Fixed(fixed) => {
                    let there = &bytes[here.min(bytes.len())..];
                    let known = fixed.len().min(there.len());
                    if there[..known] != fixed[..known] {
                        return Match::No;
                    }
                    if known < fixed.len() {
                        return if text.end { Match::No } else { Match::Maybe };
                    }
                    here += known;
                    last = None;
                }
                Piece::Some { set, least, most } => {
                    let limit = most.map_or(bytes.len(), |m| bytes.len().min(here + m));
                    let end = here
                        + bytes[here..limit.max(here)].iter().take_while(|b| set.has(**b)).count();
                    let len = end - here;
                    let enough = most.unwrap_or(DECIDING_BYTES.max(*least));
                    if text.is_cut(end) && len < enough {
                        return Match::Maybe;
                    }
                    if len < *least {
                        return Match::No;
                    }
                    if most.is_none() {
                        return Match::Yes { end, goes_on: true };
                    }
                    here = end;
                    last = Some(set);
                }
            }
        }
        if text.is_cut(here) {
            return Match::Maybe;
        }
        match bytes.get(here) {
            Some(next) if is_alnum(*next) || last.is_some_and(|set| set.has(*next)) => Match::No,
            _ => Match::Yes { end: here, goes_on: false },
        }
    }
}

fn class(text: &[u8]) -> Result<Set, BadPattern> {
    let mut set = Set::default();
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if let [b'-', last, after @ ..] = after {
            if first > last {
                return Err(BadPattern::Class);
            }
            (*first..=*last).for_each(|b| set.add(b));
            rest = after;
        } else {
            set.add(*first);
            rest = after;
        }
    }
    if set == Set::default() { Err(BadPattern::Class) } else { Ok(set) }
}

type Count = (usize, Option<usize>);

fn count(rest: &[u8]) -> Result<(Count, &[u8]), BadPattern> {
    let Some(after) = rest.strip_prefix(b"{") else { return Ok(((1, Some(1)), rest)) };
    let end = after.iter().position(|b| *b == b'}').ok_or(BadPattern::Count)?;
    let inside = std::str::from_utf8(&after[..end]).map_err(|_| BadPattern::Count)?;
    let number = |text: &str| text.parse::<u16>().map(usize::from).map_err(|_| BadPattern::Count);
    let count = match inside.split_once(',') {
        None => (number(inside)?, Some(number(inside)?)),
        Some((least, "")) => (number(least)?, None),
        Some((least, most)) => (number(least)?, Some(number(most)?)),
    };
    if count.1.is_some_and(|most| most < count.0 || most == 0) {
        return Err(BadPattern::Count);
    }
    Ok((count, &after[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_start(pattern: &str, text: &str, end: bool) -> Match {
        let pattern = Pattern::parse(pattern).unwrap();
        pattern.matches(&Text { before: b"", bytes: text.as_bytes(), end }, 0)
    }

    #[test]
    fn a_part_takes_what_it_can_and_the_end_is_a_boundary() {
        let fixed = "tok_[a-f]{12}";
        assert_eq!(
            at_start(fixed, "tok_abcdefabcdef", true),
            Match::Yes { end: 16, goes_on: false }
        );
        assert_eq!(at_start(fixed, "tok_abcdefabcdef", false), Match::Maybe);
        assert_eq!(at_start(fixed, "tok_abcdefabcdefa", true), Match::No);
        assert_eq!(at_start(fixed, "tok_abcdefabcdefz", true), Match::No);
        assert_eq!(
            at_start(fixed, "tok_abcdefabcdef.", false),
            Match::Yes { end: 16, goes_on: false }
        );
        assert_eq!(at_start(fixed, "to", false), Match::Maybe);
        assert_eq!(at_start(fixed, "to", true), Match::No);
        assert_eq!(at_start(fixed, "to-", false), Match::No);
        let open = "tok_[a-f]{12,}";
        assert_eq!(
            at_start(open, "tok_abcdefabcdefabc!", true),
            Match::Yes { end: 19, goes_on: true }
        );
        assert_eq!(at_start(open, "tok_abcdefabcdefabc", false), Match::Maybe);
        let long = format!("tok_{}", "a".repeat(DECIDING_BYTES));
        assert_eq!(at_start(open, &long, false), Match::Yes { end: long.len(), goes_on: true });
        assert_eq!(
            at_start("a\\.[0-9]{2,14}\\.b[.]{9}", "a.12.b.........", true),
            Match::Yes { end: 15, goes_on: false }
        );
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_its_reason() {
        for (text, why) in [
            ("tok_[a-f", BadPattern::Class),
            ("tok_[]{20}", BadPattern::Class),
            ("tok_[z-a]{20}", BadPattern::Class),
            ("tok_{20}", BadPattern::Count),
            ("tok_[a-f]{20", BadPattern::Count),
            ("tok_[a-f]{20,10}", BadPattern::Count),
            ("tok_[a-f]{20,}x", BadPattern::Count),
            ("tok_[a-f]{401}", BadPattern::Long),
            ("tok_[a-f]{9}", BadPattern::Short),
            ("tok [a-f]{20}", BadPattern::Symbol),
            ("tok_[ -~]{20}", BadPattern::Symbol),
        ] {
            assert_eq!(Pattern::parse(text), Err(why), "{text}");
        }
        assert_eq!(Pattern::parse("[a-f]{20}").unwrap().needs_head(), Err(BadPattern::Head));
    }
}
