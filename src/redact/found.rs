//! Ranges of a stream that are secret, and what stands in their place.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::sync::Arc;

/// Names in one marker.
const MAX_NAMES: usize = 3;

/// How a range became one; later ones name a merged range rather than earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    /// It looks random.
    Entropy,
    /// It looks random, and a word before it tells.
    Keyword,
    /// It has a known format.
    Format,
    /// A value in another form, or of others.
    Encoded,
    /// A value as it is.
    Literal,
}

impl Grade {
    pub(super) fn to_byte(self) -> u8 {
        self as u8
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Entropy, Self::Keyword, Self::Format, Self::Encoded, Self::Literal]
            .into_iter()
            .find(|grade| *grade as u8 == byte)
    }
}

/// A range of the stream, by its own count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub start: u64,
    pub end: u64,
    pub grade: Grade,
    /// The value's or the rule's name; none for what has no name for this writer.
    pub name: Option<Arc<str>>,
    /// Goes on where the last one of its rule was cut.
    pub continues: bool,
    /// A bare number of JSON: its marker is a string.
    pub quote: bool,
}

/// Ranges that were merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub start: u64,
    pub end: u64,
    /// What names it: whether it has a name, its grade, its length, and where it starts.
    best: (bool, Grade, u64, std::cmp::Reverse<u64>),
    /// In order, each once.
    names: Vec<Arc<str>>,
    quote: bool,
}

impl Range {
    pub(super) fn new(found: &Found) -> Self {
        Self {
            start: found.start,
            end: found.end,
            best: rank(found),
            names: found.name.iter().cloned().collect(),
            quote: found.quote,
        }
    }

    /// Whether `found` shares a byte with it.
    pub(super) fn meets(&self, found: &Found) -> bool {
        found.start < self.end || (found.continues && found.start == self.end)
    }

    /// Takes in a range that meets it.
    pub(super) fn merge(&mut self, found: &Found) {
        self.quote &= found.quote && (self.start, self.end) == (found.start, found.end);
        self.start = self.start.min(found.start);
        self.end = self.end.max(found.end);
        let rank = rank(found);
        if rank > self.best {
            self.best = rank;
            self.names.clear();
            self.names.extend(found.name.clone());
        } else if rank == self.best
            && let Some(name) = &found.name
            && let Err(place) = self.names.binary_search(name)
        {
            self.names.insert(place, name.clone());
        }
    }

    /// Appends `[REDACTED:A|B]`.
    pub(super) fn marker(&self, text: &mut String) {
        text.push_str(if self.quote { "\"[REDACTED" } else { "[REDACTED" });
        for (index, name) in self.names.iter().take(MAX_NAMES).enumerate() {
            text.push(if index == 0 { ':' } else { '|' });
            text.push_str(name);
        }
        if self.names.len() > MAX_NAMES {
            // Writing to a string cannot fail.
            let _written = write!(text, "|+{}", self.names.len() - MAX_NAMES);
        }
        text.push_str(if self.quote { "]\"" } else { "]" });
    }

    /// What it is counted as.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("", |name| name)
    }

    pub(super) fn save(&self, out: &mut Vec<u8>) {
        for number in [self.start, self.end, self.best.2, self.best.3.0, self.names.len() as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(u8::from(self.best.0) | u8::from(self.quote) << 1);
        out.push(self.best.1.to_byte());
        self.names.iter().for_each(|name| save_name(name, out));
    }

    pub(super) fn load(from: &mut Reader<'_>) -> Option<Self> {
        let (start, end) = (from.number()?, from.number()?);
        let (len, at, count) = (from.number()?, from.number()?, from.number()?);
        let flags = from.byte()?;
        let (named, quote) = (flags & 1 != 0, flags & 2 != 0);
        let grade = Grade::from_byte(from.byte()?)?;
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(from.name()?);
        }
        Some(Self { start, end, best: (named, grade, len, std::cmp::Reverse(at)), names, quote })
    }
}

/// Values of one rank cover the same bytes: they are one value under several names, or have a form that
/// is the same there. All of their names are told; which versions they are of decides nothing, or it would
/// be hidden that a name has the value too; nor their order, which would tell a writer of a rotation.
fn rank(found: &Found) -> (bool, Grade, u64, std::cmp::Reverse<u64>) {
    // A token may come in pieces, so its length would tell of cuts: of tokens the first one names.
    let len = if found.grade > Grade::Format { found.end - found.start } else { 0 };
    (found.name.is_some(), found.grade, len, std::cmp::Reverse(found.start))
}

impl Found {
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.start.to_le_bytes());
        out.extend_from_slice(&self.end.to_le_bytes());
        out.push(self.grade.to_byte());
        out.push(u8::from(self.continues) | u8::from(self.quote) << 1);
        save_name(self.name.as_deref().unwrap_or(""), out);
    }

    pub(super) fn load(from: &mut Reader<'_>) -> Option<Self> {
        let (start, end) = (from.number()?, from.number()?);
        let (grade, flags) = (Grade::from_byte(from.byte()?)?, from.byte()?);
        let name = Some(from.name()?).filter(|name| !name.is_empty());
        Some(Self { start, end, grade, name, continues: flags & 1 != 0, quote: flags & 2 != 0 })
    }
}

pub(super) fn save_name(name: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(&name.as_bytes()[..name.len().min(255)]);
}

/// Reads what was saved.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(super) fn name(&mut self) -> Option<Arc<str>> {
        let len = usize::from(self.byte()?);
        std::str::from_utf8(self.take(len)?).ok().map(Arc::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(start: u64, end: u64, grade: Grade, name: &str) -> Found {
        Found { start, end, grade, name: Some(name.into()), continues: false, quote: false }
    }

    fn marker(range: &Range) -> String {
        let mut text = String::new();
        range.marker(&mut text);
        text
    }

    #[test]
    fn the_better_grade_then_the_longer_names_a_merged_range() {
        let mut range = Range::new(&found(0, 40, Grade::Entropy, "high-entropy"));
        range.merge(&found(4, 12, Grade::Literal, "PIN"));
        assert_eq!(marker(&range), "[REDACTED:PIN]");
        range.merge(&found(2, 30, Grade::Literal, "URL"));
        assert_eq!(marker(&range), "[REDACTED:URL]");
        range.merge(&found(2, 30, Grade::Literal, "COPY"));
        assert_eq!(marker(&range), "[REDACTED:COPY|URL]");
        for name in ["D", "E"] {
            range.merge(&found(2, 30, Grade::Literal, name));
        }
        assert_eq!(marker(&range), "[REDACTED:COPY|D|E|+1]");
        let foreign = Found { name: None, ..found(0, 60, Grade::Literal, "") };
        range.merge(&foreign);
        assert_eq!((range.start, range.end), (0, 60));
        assert_eq!(marker(&Range::new(&foreign)), "[REDACTED]");
        let mut saved = Vec::new();
        range.save(&mut saved);
        assert_eq!(Range::load(&mut Reader(&saved)), Some(range));
    }

    #[test]
    fn touching_ranges_do_not_meet_and_overlapping_ones_do() {
        let range = Range::new(&found(0, 5, Grade::Literal, "A"));
        assert!(!range.meets(&found(5, 9, Grade::Literal, "B")));
        assert!(range.meets(&found(4, 9, Grade::Literal, "B")));
        let more = Found { continues: true, ..found(5, 9, Grade::Entropy, "x") };
        assert!(range.meets(&more));
    }
}
