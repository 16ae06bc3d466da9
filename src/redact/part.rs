//! An immutable set of needles: where they occur in a text, and where its end could begin one.
//!
//! A needle of at least 15 bytes is entered with 8 consecutive windows of 8 bytes, one of at least 11
//! with 4, others with 1; so the text is probed at every 8th, 4th or single byte only, and each
//! occurrence is met once. A probe is one word of a Bloom filter; what passes is compared with the
//! needle. Letters are folded before hashing, so that needles without case share the tables.
//!
//! Invariant: [`Part::find`] reports every occurrence that lies in the text as a whole, and
//! [`Part::open_from`] the first byte from which the text's end could still become one. Danger: text
//! that is made to be slow; hashes are seeded, and common windows are not entered.
#![forbid(unsafe_code)]

use std::cmp::Ordering;

use zeroize::Zeroizing;

use super::needle::{self, Maker, Shape};
use super::variant;
use super::windows::{Owned, Windows};
use crate::sys::bloom::{Filter, Seed, WINDOW, fetch, window};

/// The shortest needle.
const SHORTEST: usize = 5;
/// A needle's windows are entered this near its start if some there are rare.
const NEAR_PLACE: usize = 16;
/// How often a window may be seen that counts as rare.
const RARE: u16 = 4;
/// So many bytes of a needle that is entered near its start contain a window that is probed.
const NEAR_BYTES: usize = NEAR_PLACE + 8 + WINDOW - 1;
/// Needles' own bytes are kept in blocks, the first of this size and no other above that.
const BLOCK_BYTES_MIN: usize = 4 << 10;
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// An occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hit {
    pub start: usize,
    /// Behind the text's end: it may become one.
    pub end: usize,
    /// The value.
    pub id: u32,
    /// As the value itself is written.
    pub literal: bool,
    /// Only between bytes that are no part of a word.
    pub weak: bool,
}

/// A text of which a part is looked at.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub bytes: &'a [u8],
    /// Occurrences that start before this byte are known.
    pub from: usize,
    /// The stream's own count of the first byte; what is probed depends on it alone.
    pub at: u64,
    /// Nothing follows.
    pub end: bool,
}

#[derive(Clone, Copy)]
struct Known {
    block: u32,
    at: u32,
    len: u32,
    id: u32,
    /// Where the windows that are entered begin.
    place: u32,
    caseless: bool,
    percent: bool,
    boundary: bool,
    literal: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Part {
    blocks: Vec<Zeroizing<Vec<u8>>>,
    own_bytes: usize,
    known: Vec<Known>,
    seed: Seed,
    classes: Vec<Windows>,
    /// Needles below a window's length, by their first bytes.
    short: Vec<u32>,
    /// Pairs of folded first bytes of those, and of all.
    short_pairs: Vec<u64>,
    pairs: Vec<u64>,
    /// All needles, by their folded bytes: [`KEY_BYTES`] of those behind what its set tells, and the
    /// needle.
    sorted: Vec<(u32, u32)>,
    /// Where in that those begin that have the same first bytes; one more at the end.
    index: Vec<u32>,
    /// Of the folded first window of each needle that has one, and of the first four bytes of all.
    heads: Filter,
    half_heads: Filter,
    /// First four bytes of needles that are entered far from their start, which bytes those begin
    /// with, and the longest of them.
    far_heads: Filter,
    far_firsts: Option<Box<[bool; 256]>>,
    longest_far: usize,
    /// Which bytes occur in any needle.
    alphabet: Vec<bool>,
    longest: usize,
    /// Of those that are not only looked for between bytes that are no part of a word.
    shortest_anywhere: usize,
    numbers: bool,
}

/// The first four bytes.
fn half(text: &[u8]) -> Option<u64> {
    let bytes: &[u8; 4] = text.first_chunk()?;
    Some(u64::from(u32::from_le_bytes(bytes.map(fold))))
}

fn fold(byte: u8) -> u8 {
    byte | 0x20
}

fn folded(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| fold(*b))
}

/// The order of two byte strings without ASCII case.
fn compare_folded(one: &[u8], two: &[u8]) -> Ordering {
    let len = one.len().min(two.len()) / 8 * 8;
    let (one, one_rest) = one.split_at(len);
    let (two, two_rest) = two.split_at(len);
    let number = |bytes: &[u8; 8]| u64::from_be_bytes(bytes.map(fold));
    let (one, two) = (one.as_chunks().0.iter(), two.as_chunks().0.iter());
    one.map(number)
        .cmp(two.map(number))
        .then_with(|| one_rest.iter().map(|b| fold(*b)).cmp(two_rest.iter().map(|b| fold(*b))))
}

/// The seven bits of a folded byte that differ.
fn bits(byte: u8) -> usize {
    usize::from(byte >> 1 & 0x60 | byte & 0x1f)
}

/// Sets in the index: one for each first byte, or for each pair of those.
const BYTE_SETS: usize = 1 << 7;
const PAIR_SETS: usize = 1 << 14;
/// Bytes of a needle that are at hand where needles are in order.
const KEY_BYTES: usize = 4;
/// From so many needles on the larger index is worth its memory.
const MANY_NEEDLES: usize = 4096;

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Whether the byte before `at` is part of a word.
fn is_in_word(text: &[u8], at: usize) -> bool {
    at.checked_sub(1).and_then(|p| text.get(p)).is_some_and(|b| is_word(*b))
}

fn pair(first: u8, second: u8) -> usize {
    usize::from(fold(first)) << 8 | usize::from(fold(second))
}

fn has_pair(pairs: &[u64], first: u8, second: u8) -> bool {
    let pair = pair(first, second);
    pairs.get(pair / 64).is_some_and(|word| word >> (pair % 64) & 1 != 0)
}

/// Strides of the classes, and the shortest needle of each.
const CLASSES: [(usize, usize); 3] = [(8, 15), (4, 11), (1, 8)];

impl Part {
    /// Of the needles of these values, each with its id.
    pub(super) fn build<'a>(values: impl IntoIterator<Item = (u32, &'a [u8])>) -> Self {
        let mut part = Self::empty();
        let mut maker = Maker::default();
        for (id, value) in values {
            maker.each(value, &mut |bytes, shape| part.take(id, bytes, shape));
        }
        part.ready()
    }

    /// Of the same values as a lens shows those of several lines.
    pub(super) fn of_lines<'a>(values: impl IntoIterator<Item = (u32, &'a [u8])>) -> Self {
        let mut part = Self::empty();
        let mut folded = Zeroizing::default();
        for (id, value) in values {
            needle::folded(value, &mut folded);
            let shape = Shape { caseless: false, percent: false, boundary: false, literal: false };
            part.take(id, &folded, shape);
        }
        part.ready()
    }

    /// Of byte strings as they are.
    pub(super) fn of_plain<'a>(bytes: impl IntoIterator<Item = (u32, &'a [u8])>) -> Self {
        let mut part = Self::empty();
        let shape = Shape { caseless: false, percent: false, boundary: false, literal: false };
        for (id, bytes) in bytes {
            part.take(id, bytes, shape);
        }
        part.ready()
    }

    fn empty() -> Self {
        Self {
            alphabet: vec![false; 256],
            shortest_anywhere: usize::MAX,
            pairs: vec![0; 1 << 10],
            seed: Self::new_seed(),
            ..Self::default()
        }
    }

    fn ready(mut self) -> Self {
        let part = &mut self;
        // Caseless needles are entered in lower case.
        for byte in b'a'..=b'z' {
            if part.alphabet[usize::from(byte)] {
                part.alphabet[usize::from(byte.to_ascii_uppercase())] = true;
            }
        }
        self.enter();
        self.sort();
        self
    }

    fn take(&mut self, id: u32, bytes: &[u8], shape: Shape) {
        if bytes.len() < SHORTEST {
            return;
        }
        let has_room = |b: &Zeroizing<Vec<u8>>| b.capacity() - b.len() >= bytes.len();
        if !self.blocks.last().is_some_and(has_room) {
            let double = self.blocks.last().map_or(0, |b| 2 * b.capacity());
            let room = double.clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX).max(bytes.len());
            self.blocks.push(Zeroizing::new(Vec::with_capacity(room)));
        }
        let number = self.blocks.len() - 1;
        let block = &mut self.blocks[number];
        let numbers = (u32::try_from(number), u32::try_from(block.len()), bytes.len().try_into());
        let (Ok(number), Ok(at), Ok(len)) = numbers else { return };
        block.extend_from_slice(bytes);
        let Shape { caseless, percent, boundary, literal } = shape;
        self.known.push(Known {
            block: number,
            at,
            len,
            id,
            place: 0,
            caseless,
            percent,
            boundary,
            literal,
        });
        self.own_bytes += bytes.len();
        self.numbers |= literal && bytes.iter().all(u8::is_ascii_digit);
        self.longest = self.longest.max(bytes.len());
        if !boundary {
            self.shortest_anywhere = self.shortest_anywhere.min(bytes.len());
        }
        for byte in bytes {
            self.alphabet[usize::from(*byte)] = true;
        }
    }

    fn new_seed() -> Seed {
        let mut seed = [0; 12];
        if getrandom::fill(&mut seed).is_err() {
            tracing::warn!("no randomness for the index of needles");
        }
        Seed::new(seed)
    }

    /// Fills the classes.
    fn enter(&mut self) {
        // How often each window was seen where needles might be entered: common ones are avoided.
        let mut counts = vec![0_u16; (self.known.len() * 4).next_power_of_two().max(64)];
        let slots = counts.len();
        let slot = |hash: u32| hash as usize & (slots - 1);
        let places = |len: usize, region: usize| {
            let room = len - region;
            [room.min(NEAR_PLACE), room.min(NEAR_PLACE / 2), room / 2, room]
        };
        let class_of = |len: usize| CLASSES.iter().position(|(_, least)| len >= *least);
        for known in &self.known {
            let bytes = self.bytes_of(known);
            let Some(class) = class_of(bytes.len()) else { continue };
            for place in places(bytes.len(), CLASSES[class].0 + WINDOW - 1) {
                if let Some(window) = window(bytes, place) {
                    let count = &mut counts[slot(self.seed.hash(window))];
                    *count = count.saturating_add(1);
                }
            }
        }
        let mut windows: [Vec<Owned>; 3] = Default::default();
        windows[0].reserve_exact(self.known.len() * CLASSES[0].0);
        for number in 0..self.known.len() {
            // Five hundred million needles do not fit into memory.
            let Some(packed) = u32::try_from(number).ok().and_then(|n| n.checked_mul(8)) else {
                break;
            };
            let bytes = self.bytes_of(&self.known[number]);
            let Some(class) = class_of(bytes.len()) else {
                self.short.push(packed / 8);
                continue;
            };
            let stride = CLASSES[class].0;
            let rarity = |place: &usize| {
                window(bytes, *place).map_or(u16::MAX, |w| counts[slot(self.seed.hash(w))])
            };
            let places = places(bytes.len(), stride + WINDOW - 1);
            let is_rare = |place: &&usize| **place <= NEAR_PLACE && rarity(place) <= RARE;
            let near = places.iter().find(is_rare).copied();
            let place = near.or(places.into_iter().min_by_key(rarity)).unwrap_or(0);
            for step in 0..stride {
                if let Some(window) = window(bytes, place + step) {
                    // A stride is at most 8.
                    windows[class].push((self.seed.hash(window), packed | step as u32));
                }
            }
            self.known[number].place = u32::try_from(place).unwrap_or(0);
        }
        drop(counts);
        for ((stride, _), windows) in CLASSES.iter().zip(windows) {
            if !windows.is_empty() {
                self.classes.push(Windows::build(self.seed, *stride, windows));
            }
        }
    }

    fn sort(&mut self) {
        // The first eight bytes decide nearly always.
        let mut keyed: Vec<(u64, u32)> = (0..self.known.len())
            .filter_map(|n| n.try_into().ok())
            .map(|n| {
                let bytes = self.bytes(n);
                let mut head = [0; 8];
                head.iter_mut().zip(bytes).for_each(|(to, from)| *to = fold(*from));
                (u64::from_be_bytes(head), n)
            })
            .collect();
        keyed.sort_unstable();
        for same in keyed.chunk_by_mut(|(a, _), (b, _)| a == b).filter(|same| same.len() > 1) {
            same.sort_unstable_by(|(_, n), (_, m)| compare_folded(self.bytes(*n), self.bytes(*m)));
        }
        let sets = if keyed.len() >= MANY_NEEDLES { PAIR_SETS } else { BYTE_SETS };
        let told = if sets == PAIR_SETS { 2 } else { 1 };
        // What a needle does not have is below all folded bytes.
        let key = |head: u64| (head << (8 * told) >> (64 - 8 * KEY_BYTES)) as u32;
        let sorted: Vec<_> = keyed.into_iter().map(|(head, n)| (key(head), n)).collect();
        let mut index = vec![0_u32; sets + 1];
        for (_, number) in &sorted {
            let bytes = self.bytes(*number);
            let second = if sets == PAIR_SETS { bits(bytes[1]) } else { 0 };
            index[bits(bytes[0]) * (sets / BYTE_SETS) + second + 1] += 1;
        }
        for at in 0..sets {
            index[at + 1] += index[at];
        }
        let is_far = |n: &u32| self.known[*n as usize].place as usize > NEAR_PLACE;
        let mut far_heads =
            Filter::with_capacity(self.seed, sorted.iter().filter(|(_, n)| is_far(n)).count());
        let mut far_firsts: Option<Box<[bool; 256]>> = None;
        let mut longest_far = 0;
        let (mut heads, mut half_heads) = (
            Filter::with_capacity(self.seed, sorted.len()),
            Filter::with_capacity(self.seed, sorted.len()),
        );
        let mut pairs = std::mem::take(&mut self.pairs);
        let mut short_pairs = vec![0; if self.short.is_empty() { 0 } else { 1 << 10 }];
        for (_, number) in &sorted {
            let bytes = self.bytes(*number);
            if let Some(half) = half(bytes) {
                half_heads.insert(self.seed.hash(half));
            }
            let pair = pair(bytes[0], bytes[1]);
            pairs[pair / 64] |= 1 << (pair % 64);
            let Some(window) = window(bytes, 0) else {
                short_pairs[pair / 64] |= 1 << (pair % 64);
                continue;
            };
            heads.insert(self.seed.hash(window));
            if is_far(number) {
                let first = half(bytes).map_or(0, |half| self.seed.hash(half));
                far_heads.insert(first);
                longest_far = longest_far.max(bytes.len());
                let firsts = far_firsts.get_or_insert_with(|| Box::new([false; 256]));
                for byte in [bytes[0], bytes[0].to_ascii_uppercase()] {
                    firsts[usize::from(byte)] = true;
                }
            }
        }
        let mut short = std::mem::take(&mut self.short);
        short.sort_unstable_by_key(|n| pair(self.bytes(*n)[0], self.bytes(*n)[1]));
        (self.sorted, self.index, self.short) = (sorted, index, short);
        (self.pairs, self.short_pairs) = (pairs, short_pairs);
        (self.heads, self.half_heads) = (heads, half_heads);
        (self.far_heads, self.far_firsts) = (far_heads, far_firsts);
        self.longest_far = longest_far;
    }

    fn bytes_of(&self, known: &Known) -> &[u8] {
        let at = known.at as usize;
        &self.blocks[known.block as usize][at..at + known.len as usize]
    }

    fn bytes(&self, number: u32) -> &[u8] {
        self.bytes_of(&self.known[number as usize])
    }

    /// Bytes of the longest needle.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Bytes of the shortest needle that may stand inside of a word.
    pub(super) fn shortest_anywhere(&self) -> usize {
        self.shortest_anywhere
    }

    /// Whether a byte occurs in any needle.
    pub(super) fn uses(&self, byte: u8) -> bool {
        self.alphabet[usize::from(byte)]
    }

    /// Whether some value is a number.
    pub(super) fn has_numbers(&self) -> bool {
        self.numbers
    }

    /// How many needles there are.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Bytes of the needles themselves.
    pub(super) fn own_bytes(&self) -> usize {
        self.own_bytes
    }

    /// Bytes of memory beside those.
    pub(super) fn overhead(&self) -> usize {
        self.known.len() * size_of::<Known>()
            + self.classes.iter().map(Windows::size).sum::<usize>()
            + self.sorted.len() * 8
            + (self.index.len() + self.short.len()) * 4
            + self.heads.size()
            + self.half_heads.size()
            + self.far_heads.size()
            + (self.pairs.len() + self.short_pairs.len()) * 8
    }

    /// Whether `text` is how the needle begins.
    fn same(&self, known: &Known, text: &[u8]) -> bool {
        let bytes = &self.bytes_of(known)[..text.len()];
        if known.caseless {
            bytes.eq_ignore_ascii_case(text)
        } else {
            bytes == text || known.percent && variant::same_percent(bytes, text)
        }
    }

    /// Reports every occurrence in `text`.
    pub(super) fn find(&self, text: &Text<'_>, each: &mut dyn FnMut(Hit)) {
        for class in &self.classes {
            class.find(text.bytes, text.from, text.at, &mut |owned| {
                for (_, owner) in owned {
                    fetch(&self.known, (owner / 8) as usize);
                }
                for (_, owner) in owned {
                    fetch(self.bytes(owner / 8), 0);
                }
                for (at, owner) in owned {
                    let number = owner / 8;
                    let offset = self.known[number as usize].place + owner % 8;
                    if let Some(start) = at.checked_sub(offset as usize) {
                        self.verify(number, text, start, each);
                    }
                }
            });
        }
        if !self.short.is_empty() {
            self.find_short(text, each);
        }
    }

    fn find_short(&self, text: &Text<'_>, each: &mut dyn FnMut(Hit)) {
        let bytes = text.bytes;
        for start in text.from..bytes.len().saturating_sub(SHORTEST - 1) {
            if !has_pair(&self.short_pairs, bytes[start], bytes[start + 1]) {
                continue;
            }
            let found = pair(bytes[start], bytes[start + 1]);
            let of = |n: &u32| pair(self.bytes(*n)[0], self.bytes(*n)[1]);
            let first = self.short.partition_point(|n| of(n) < found);
            for number in self.short[first..].iter().take_while(|n| of(n) == found) {
                self.verify(*number, text, start, each);
            }
        }
    }

    fn verify(&self, number: u32, text: &Text<'_>, start: usize, each: &mut dyn FnMut(Hit)) {
        let known = &self.known[number as usize];
        if start < text.from {
            return;
        }
        let end = start + known.len as usize;
        let found = &text.bytes[start..end.min(text.bytes.len())];
        if !self.same(known, found) {
            return;
        }
        let (id, literal, weak) = (known.id, known.literal, known.boundary);
        let hit = Hit { start, end, id, literal, weak };
        if known.boundary {
            let next = text.bytes.get(end);
            if is_in_word(text.bytes, start) || next.is_some_and(|b| is_word(*b)) {
                return;
            }
            if next.is_none() && !text.end {
                // Its next byte decides.
                return each(Hit { end: end.max(text.bytes.len() + 1), ..hit });
            }
        }
        if end <= text.bytes.len() || !text.end {
            each(hit);
        }
    }

    /// The first byte of `text`, but for those before `from`, from which on it is the beginning of a
    /// needle that `counts`, where [`Part::find`] does not tell.
    pub(super) fn open_from(
        &self,
        text: &[u8],
        from: usize,
        counts: &dyn Fn(u32) -> bool,
    ) -> Option<usize> {
        // A whole needle that needs its next byte is open as well.
        let far = from.max(text.len().saturating_sub(self.longest_far));
        let mut from = from.max(text.len().saturating_sub(self.longest.min(NEAR_BYTES)));
        let is_foreign = |b: &u8| !self.alphabet[usize::from(*b)];
        if let Some(foreign) = text[from..].iter().rposition(is_foreign) {
            from += foreign + 1;
        } else if let Some(firsts) = self.far_firsts.as_ref().filter(|_| far < from) {
            let foreign = text[far..from].iter().rposition(is_foreign);
            let far = foreign.map_or(far, |foreign| far + foreign + 1);
            let start = (far..from).find(|start| {
                let rest = &text[*start..];
                let begins = firsts[usize::from(rest[0])]
                    && half(rest).is_some_and(|h| self.far_heads.has(self.seed.hash(h)))
                    && window(rest, 0).is_some_and(|w| self.heads.has(self.seed.hash(w)));
                begins && self.is_open(text, *start, counts)
            });
            if start.is_some() {
                return start;
            }
        }
        (from..text.len()).find(|start| {
            let rest = &text[*start..];
            if let [first, second, ..] = rest
                && !has_pair(&self.pairs, *first, *second)
            {
                return false;
            }
            if let Some(window) = window(rest, 0) {
                if !self.heads.has(self.seed.hash(window)) {
                    return false;
                }
            } else if let Some(half) = half(rest)
                && !self.half_heads.has(self.seed.hash(half))
            {
                return false;
            }
            self.is_open(text, *start, counts)
        })
    }

    fn is_open(&self, text: &[u8], start: usize, counts: &dyn Fn(u32) -> bool) -> bool {
        let rest = &text[start..];
        let in_word = is_in_word(text, start);
        let open = |known: &Known| {
            let len = known.len as usize;
            (len > rest.len() || (known.boundary && len == rest.len()))
                && counts(known.id)
                && !(known.boundary && in_word)
        };
        self.begins_with(rest, open).is_some()
    }

    /// A needle that begins with all of `rest` and is `wanted`.
    fn begins_with(&self, rest: &[u8], mut wanted: impl FnMut(&Known) -> bool) -> Option<&Known> {
        let each = (self.index.len().max(1) - 1) / BYTE_SETS;
        let set = bits(*rest.first()?) * each;
        let sets = match rest.get(1) {
            Some(second) if each > 1 => set + bits(*second)..set + bits(*second) + 1,
            _ => set..set + each,
        };
        let range = *self.index.get(sets.start)? as usize..*self.index.get(sets.end)? as usize;
        let sorted = &self.sorted[range];
        // All of a set begin like it.
        let told = if each > 1 { 2 } else { 1 };
        let behind = rest.get(told..).unwrap_or_default();
        let (mut key, mut mask) = ([0; KEY_BYTES], [0; KEY_BYTES]);
        for ((key, mask), byte) in key.iter_mut().zip(&mut mask).zip(behind) {
            (*key, *mask) = (fold(*byte), u8::MAX);
        }
        let (key, mask) = (u32::from_be_bytes(key), u32::from_be_bytes(mask));
        let is_long = behind.len() > KEY_BYTES;
        let first = sorted.partition_point(|(has, n)| match (has & mask).cmp(&key) {
            Ordering::Equal => is_long && folded(self.bytes(*n)).lt(folded(rest)),
            order => order.is_lt(),
        });
        for (has, number) in &sorted[first..] {
            let known = &self.known[*number as usize];
            let begins = has & mask == key
                && known.len as usize >= rest.len()
                && (!is_long || folded(&self.bytes(*number)[..rest.len()]).eq(folded(rest)));
            if !begins {
                return None;
            }
            if self.same(known, rest) && wanted(known) {
                return Some(known);
            }
        }
        None
    }

    /// The earliest end of `text` that is a part of needles, cut off by the text's own end: at least
    /// `beyond` of the needle's bytes, a number that the needle itself decides.
    pub(super) fn cut_off(
        &self,
        text: &[u8],
        from: usize,
        beyond: &dyn Fn(&[u8]) -> usize,
        counts: &dyn Fn(u32) -> bool,
    ) -> Vec<Hit> {
        let from = from.max(text.len().saturating_sub(self.longest));
        for start in from..text.len().saturating_sub(WINDOW - 1) {
            let rest = &text[start..];
            let Some(window) = window(rest, 0) else { break };
            if !self.heads.has(self.seed.hash(window)) {
                continue;
            }
            let mut hits = Vec::new();
            let in_word = is_in_word(text, start);
            self.begins_with(rest, |known| {
                let bytes = self.bytes_of(known);
                let could = bytes.len() > rest.len() && !(known.boundary && in_word);
                if could && rest.len() >= beyond(bytes) && counts(known.id) {
                    let (id, literal, weak) = (known.id, known.literal, known.boundary);
                    hits.push(Hit { start, end: text.len(), id, literal, weak });
                }
                false
            });
            if !hits.is_empty() {
                return hits;
            }
        }
        Vec::new()
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("needles", &self.known.len()).finish_non_exhaustive()
    }
}
