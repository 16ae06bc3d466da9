//! An immutable set of needles: where they occur in a text, and where its end could begin one.
//!
//! A needle of at least 15 bytes is entered with 8 consecutive windows of 8 bytes, one of at least 11
//! with 4, others with 1; so the text is probed at every 8th, 4th or single byte only, and each
//! occurrence is met once. A probe is one word of a Bloom filter; what passes is compared with the
//! needle. Letters are folded before hashing, so that needles without case share the tables.
//!
//! Invariant: [`Part::find`] reports every occurrence that lies in the text as a whole, and
//! [`Part::open_from`] the first byte from which the text's end could still become one.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::needle::Needle;

/// Bytes of a window.
const WINDOW: usize = 8;
/// Bits of the filter for each window that is entered.
const FILTER_BITS: usize = 16;
/// The shortest needle.
const SHORTEST: usize = 5;
/// Bytes of ASCII letters differ in this bit alone.
const FOLD: u64 = 0x2020_2020_2020_2020;
/// 2^64 / golden ratio, made odd: spreads windows over the high bits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// An occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hit {
    pub start: usize,
    pub end: usize,
    /// The value.
    pub id: u32,
    /// As the value itself is written.
    pub literal: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    needle: u32,
    tag: u32,
    offset: u32,
}

/// Windows of needles of one length class.
#[derive(Default)]
struct Class {
    stride: usize,
    seed: u64,
    filter: Vec<u64>,
    /// Where the entries of each bucket begin; one more at the end.
    buckets: Vec<u32>,
    entries: Vec<Entry>,
}

struct Known {
    at: usize,
    len: u32,
    id: u32,
    caseless: bool,
    boundary: bool,
    literal: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Part {
    text: Zeroizing<Vec<u8>>,
    known: Vec<Known>,
    classes: Vec<Class>,
    /// Needles below a window's length, by their first bytes.
    short: Vec<u32>,
    /// All needles, by their folded bytes.
    sorted: Vec<u32>,
    /// Of the folded first window of each needle that has one.
    heads: Vec<u64>,
    heads_seed: u64,
    /// Which pairs of folded first bytes there are.
    pairs: Vec<u64>,
    /// Which bytes occur in any needle.
    alphabet: Vec<bool>,
    longest: usize,
    numbers: bool,
}

fn window(text: &[u8], at: usize) -> Option<u64> {
    let bytes = text.get(at..at + WINDOW)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?) | FOLD)
}

fn hash(window: u64, seed: u64) -> u64 {
    let mixed = (window ^ seed).wrapping_mul(SPREAD);
    (mixed ^ mixed >> 32).wrapping_mul(SPREAD)
}

/// Two bits of one word.
fn mask(hash: u64) -> u64 {
    1 << (hash & 63) | 1 << (hash >> 6 & 63)
}

fn word(hash: u64, words: usize) -> usize {
    // `words` is a power of two; the high bits are the best mixed.
    (hash >> 40) as usize & (words - 1)
}

fn fold(byte: u8) -> u8 {
    byte | 0x20
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn pair(first: u8, second: u8) -> usize {
    usize::from(fold(first)) << 8 | usize::from(fold(second))
}

impl Class {
    fn build(stride: usize, seed: u64, windows: &[(u64, u32, u32)]) -> Self {
        let words = (windows.len() * FILTER_BITS / 64).next_power_of_two().max(8);
        let count = windows.len().next_power_of_two().max(8);
        let mut filter = vec![0; words];
        let mut buckets = vec![0_u32; count + 1];
        let bucket = |hash: u64| (hash >> 20) as usize & (count - 1);
        for (hash, _, _) in windows {
            filter[word(*hash, words)] |= mask(*hash);
            buckets[bucket(*hash) + 1] += 1;
        }
        for at in 0..count {
            buckets[at + 1] += buckets[at];
        }
        let mut next = buckets.clone();
        let mut entries = vec![Entry { needle: 0, tag: 0, offset: 0 }; windows.len()];
        for (hash, needle, offset) in windows {
            let place = &mut next[bucket(*hash)];
            entries[*place as usize] =
                Entry { needle: *needle, tag: *hash as u32, offset: *offset };
            *place += 1;
        }
        Self { stride, seed, filter, buckets, entries }
    }

    /// Needles that have this window, with its place in them.
    fn with(&self, hash: u64) -> impl Iterator<Item = &Entry> {
        let count = self.buckets.len() - 1;
        let bucket = (hash >> 20) as usize & (count - 1);
        let range = self.buckets[bucket] as usize..self.buckets[bucket + 1] as usize;
        self.entries[range].iter().filter(move |e| e.tag == hash as u32)
    }
}

/// Strides of the classes, and the shortest needle of each.
const CLASSES: [(usize, usize); 3] = [(8, 15), (4, 11), (1, 8)];

impl Part {
    /// Takes needles, each with its value's id.
    pub(super) fn build(needles: Vec<(u32, Needle)>) -> Self {
        let total = needles.iter().map(|(_, n)| n.bytes.len()).sum();
        let mut part = Self {
            text: Zeroizing::new(Vec::with_capacity(total)),
            known: Vec::with_capacity(needles.len()),
            alphabet: vec![false; 256],
            pairs: vec![0; 1 << 10],
            ..Self::default()
        };
        for (id, needle) in needles {
            if needle.bytes.len() < SHORTEST {
                continue;
            }
            let Ok(len) = u32::try_from(needle.bytes.len()) else { continue };
            part.known.push(Known {
                at: part.text.len(),
                len,
                id,
                caseless: needle.caseless,
                boundary: needle.boundary,
                literal: needle.literal,
            });
            part.text.extend_from_slice(&needle.bytes);
            part.numbers |= needle.literal && needle.bytes.iter().all(u8::is_ascii_digit);
            part.longest = part.longest.max(needle.bytes.len());
        }
        for byte in part.text.iter() {
            part.alphabet[usize::from(*byte)] = true;
        }
        // Caseless needles are entered in lower case.
        for byte in b'a'..=b'z' {
            if part.alphabet[usize::from(byte)] {
                part.alphabet[usize::from(byte.to_ascii_uppercase())] = true;
            }
        }
        // A seed that others cannot know: nobody can prepare text whose windows collide.
        let mut seed = [0; 16];
        if getrandom::fill(&mut seed).is_err() {
            tracing::warn!("no randomness for the index of needles");
        }
        let half = |at: usize| u64::from_le_bytes(seed[at..at + 8].try_into().unwrap_or_default());
        part.enter(half(0));
        part.heads_seed = half(8);
        part.sort();
        part
    }

    /// Fills the classes.
    fn enter(&mut self, seed: u64) {
        // How often each window was seen where needles might be entered: common ones are avoided.
        let mut counts = vec![0_u16; (self.known.len() * 4).next_power_of_two().max(64)];
        let slots = counts.len();
        let slot = |hash: u64| (hash >> 24) as usize & (slots - 1);
        let places = |len: usize, region: usize| {
            let room = len - region;
            [room, room / 2, 0, room / 3, room - room / 4]
        };
        let region_of = |len: usize| {
            CLASSES.iter().find(|(_, least)| len >= *least).map(|(stride, _)| stride + WINDOW - 1)
        };
        for known in &self.known {
            let bytes = &self.text[known.at..known.at + known.len as usize];
            let Some(region) = region_of(bytes.len()) else { continue };
            for place in places(bytes.len(), region) {
                if let Some(window) = window(bytes, place) {
                    let count = &mut counts[slot(hash(window, seed))];
                    *count = count.saturating_add(1);
                }
            }
        }
        let mut windows: [Vec<(u64, u32, u32)>; 3] = Default::default();
        for (number, known) in self.known.iter().enumerate() {
            // More than four thousand million needles do not fit into memory.
            let Ok(number) = u32::try_from(number) else { break };
            let bytes = &self.text[known.at..known.at + known.len as usize];
            let class = CLASSES.iter().position(|(_, least)| bytes.len() >= *least);
            let Some(class) = class else {
                self.short.push(number);
                continue;
            };
            let stride = CLASSES[class].0;
            let rarity = |place: &usize| {
                window(bytes, *place).map_or(u16::MAX, |w| counts[slot(hash(w, seed))])
            };
            let place = places(bytes.len(), stride + WINDOW - 1)
                .into_iter()
                .min_by_key(rarity)
                .unwrap_or(0);
            for offset in place..place + stride {
                if let (Some(window), Ok(offset)) = (window(bytes, offset), u32::try_from(offset)) {
                    windows[class].push((hash(window, seed), number, offset));
                }
            }
        }
        for ((stride, _), windows) in CLASSES.iter().zip(&windows) {
            if !windows.is_empty() {
                self.classes.push(Class::build(*stride, seed, windows));
            }
        }
    }

    fn sort(&mut self) {
        let mut sorted: Vec<u32> =
            (0..self.known.len()).filter_map(|n| n.try_into().ok()).collect();
        let folded = |n: &u32| self.bytes(*n).iter().map(|b| fold(*b));
        sorted.sort_unstable_by(|a, b| folded(a).cmp(folded(b)));
        let words = (sorted.len() * FILTER_BITS / 64).next_power_of_two().max(8);
        let mut heads = vec![0; words];
        for number in &sorted {
            let bytes = self.bytes(*number);
            if let Some(window) = window(bytes, 0) {
                let hash = hash(window, self.heads_seed);
                heads[word(hash, words)] |= mask(hash);
            }
            let pair = pair(bytes[0], bytes[1]);
            self.pairs[pair / 64] |= 1 << (pair % 64);
        }
        let mut short = std::mem::take(&mut self.short);
        short.sort_unstable_by_key(|n| pair(self.bytes(*n)[0], self.bytes(*n)[1]));
        (self.sorted, self.heads, self.short) = (sorted, heads, short);
    }

    fn bytes(&self, number: u32) -> &[u8] {
        let known = &self.known[number as usize];
        &self.text[known.at..known.at + known.len as usize]
    }

    /// Bytes of the longest needle.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Whether some value is a number.
    pub(super) fn has_numbers(&self) -> bool {
        self.numbers
    }

    /// How many needles there are.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Bytes of memory beside the needles' own.
    pub(super) fn overhead(&self) -> usize {
        let of = |c: &Class| c.filter.len() * 8 + c.buckets.len() * 4 + c.entries.len() * 12;
        self.known.len() * size_of::<Known>()
            + self.classes.iter().map(of).sum::<usize>()
            + self.sorted.len() * 4
            + self.heads.len() * 8
    }

    fn same(&self, known: &Known, text: &[u8], len: usize) -> bool {
        let bytes = &self.text[known.at..known.at + len];
        if known.caseless { bytes.eq_ignore_ascii_case(text) } else { bytes == text }
    }

    /// Reports every occurrence in `text`, whose first byte is byte `base` of the stream and follows
    /// `before`. At the `end` of the stream nothing follows.
    pub(super) fn find(
        &self,
        text: &[u8],
        base: u64,
        before: &[u8],
        end: bool,
        each: &mut dyn FnMut(Hit),
    ) {
        for class in &self.classes {
            let words = class.filter.len();
            // Probed where the stream's own count is a multiple, so that cuts do not matter.
            let phase = (base % class.stride as u64) as usize;
            let mut at = (class.stride - phase) % class.stride;
            while let Some(window) = window(text, at) {
                let hash = hash(window, class.seed);
                let bits = mask(hash);
                if class.filter[word(hash, words)] & bits == bits {
                    for entry in class.with(hash) {
                        let offset = entry.offset as usize;
                        if let Some(start) = at.checked_sub(offset) {
                            self.verify(entry.needle, text, start, before, end, each);
                        }
                    }
                }
                at += class.stride;
            }
        }
        if !self.short.is_empty() {
            for start in 0..text.len() {
                let Some(second) = text.get(start + 1) else { break };
                let found = pair(text[start], *second);
                if self.pairs[found / 64] >> (found % 64) & 1 == 0 {
                    continue;
                }
                let of = |n: &u32| pair(self.bytes(*n)[0], self.bytes(*n)[1]);
                let first = self.short.partition_point(|n| of(n) < found);
                for number in self.short[first..].iter().take_while(|n| of(n) == found) {
                    self.verify(*number, text, start, before, end, each);
                }
            }
        }
    }

    fn verify(
        &self,
        number: u32,
        text: &[u8],
        start: usize,
        before: &[u8],
        end: bool,
        each: &mut dyn FnMut(Hit),
    ) {
        let known = &self.known[number as usize];
        let len = known.len as usize;
        let Some(found) = text.get(start..start + len) else { return };
        if !self.same(known, found, len) {
            return;
        }
        if known.boundary {
            let previous = start.checked_sub(1).map_or(before.last(), |p| text.get(p));
            let next = text.get(start + len);
            if previous.is_some_and(|b| is_word(*b))
                || next.is_some_and(|b| is_word(*b))
                || (next.is_none() && !end)
            {
                return;
            }
        }
        each(Hit { start, end: start + len, id: known.id, literal: known.literal });
    }

    /// The first byte of `text` from which on it is the beginning of a needle that `counts`.
    pub(super) fn open_from(
        &self,
        text: &[u8],
        before: &[u8],
        counts: &dyn Fn(u32) -> bool,
    ) -> Option<usize> {
        let words = self.heads.len();
        // A whole needle that needs its next byte is open as well.
        let mut from = text.len().saturating_sub(self.longest);
        if let Some(foreign) = text[from..].iter().rposition(|b| !self.alphabet[usize::from(*b)]) {
            from += foreign + 1;
        }
        // The byte after a whole needle may be one that none contains.
        let from = from.min(text.len());
        (from..text.len()).find(|start| {
            let rest = &text[*start..];
            if let Some(window) = window(rest, 0) {
                let hash = hash(window, self.heads_seed);
                let bits = mask(hash);
                if self.heads[word(hash, words)] & bits != bits {
                    return false;
                }
            } else if let [first, second, ..] = rest {
                let pair = pair(*first, *second);
                if self.pairs[pair / 64] >> (pair % 64) & 1 == 0 {
                    return false;
                }
            }
            self.begins_with(rest, |known| {
                let previous = start.checked_sub(1).map_or(before.last(), |p| text.get(p));
                let open = known.len as usize > rest.len()
                    || (known.boundary && known.len as usize == rest.len());
                open && counts(known.id)
                    && !(known.boundary && previous.is_some_and(|b| is_word(*b)))
            })
            .is_some()
        })
    }

    /// The value of a needle that begins with all of `rest` and is `wanted`.
    fn begins_with(&self, rest: &[u8], wanted: impl Fn(&Known) -> bool) -> Option<&Known> {
        let folded = |bytes: &[u8], n: u32| {
            self.bytes(n).iter().map(|b| fold(*b)).cmp(bytes.iter().map(|b| fold(*b)))
        };
        let first = self.sorted.partition_point(|n| folded(rest, *n).is_lt());
        for number in &self.sorted[first..] {
            let known = &self.known[*number as usize];
            let bytes = self.bytes(*number);
            let begins = bytes.len() >= rest.len()
                && bytes.iter().zip(rest).all(|(a, b)| fold(*a) == fold(*b));
            if !begins {
                return None;
            }
            if self.same(known, rest, rest.len()) && wanted(known) {
                return Some(known);
            }
        }
        None
    }

    /// The earliest end of `text` that is a part of a needle, cut off by the text's own end: at least
    /// `beyond` of the needle's bytes, a number that the needle itself decides.
    pub(super) fn cut_off(
        &self,
        text: &[u8],
        beyond: &dyn Fn(&[u8]) -> usize,
        counts: &dyn Fn(u32) -> bool,
    ) -> Option<Hit> {
        let from = text.len().saturating_sub(self.longest);
        (from..text.len().saturating_sub(WINDOW - 1)).find_map(|start| {
            let rest = &text[start..];
            let hash = hash(window(rest, 0)?, self.heads_seed);
            let bits = mask(hash);
            if self.heads[word(hash, self.heads.len())] & bits != bits {
                return None;
            }
            let known = self.begins_with(rest, |known| {
                let bytes = &self.text[known.at..known.at + known.len as usize];
                bytes.len() > rest.len() && rest.len() >= beyond(bytes) && counts(known.id)
            })?;
            Some(Hit { start, end: text.len(), id: known.id, literal: known.literal })
        })
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("needles", &self.known.len()).finish_non_exhaustive()
    }
}
