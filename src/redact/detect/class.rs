//! Classes of bytes, and the long runs of a text that are worth looking at.
//!
//! A token is made of bytes that stand neither for white space nor for a delimiter of a string, a list
//! or a call: a hit inside a run never crosses the end of a string of JSON. Nothing is looked for in
//! runs shorter than [`RUN_BYTES_MIN`], which leaves most of a log out.
#![forbid(unsafe_code)]

use std::sync::LazyLock;

use crate::redact::masks::{Masks, Runs, bits};
use crate::sys::simd::{BLOCK_BYTES, Set};

/// Shorter runs hold no secret of a known format.
pub(super) const RUN_BYTES_MIN: usize = 15;
/// What may be looked at before a position; what a caller has at hand.
pub(super) const BACK_BYTES: usize = 64;

const ALNUM: u8 = 1;
const BASE64: u8 = 2;
const URL_SAFE: u8 = 4;
const TOKEN: u8 = 8;
const HEX: u8 = 16;
const SPACE: u8 = 32;
const CELL: u8 = 64;

const TABLE: [u8; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let mut bits = 0;
        if byte.is_ascii_alphanumeric() {
            bits |= ALNUM | BASE64 | URL_SAFE | CELL;
        }
        if byte.is_ascii_hexdigit() {
            bits |= HEX;
        }
        if matches!(byte, b'+' | b'/') {
            bits |= BASE64;
        }
        if matches!(byte, b'-' | b'_') {
            bits |= URL_SAFE | CELL;
        }
        if matches!(byte, b'.' | b'$') {
            bits |= CELL;
        }
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            bits |= SPACE;
        }
        if in_token(byte) {
            bits |= TOKEN;
        }
        if byte.is_ascii_digit() || byte.is_ascii_uppercase() {
            bits |= STRIKING;
        }
        table[at] = bits;
        at += 1;
    }
    table
};

const fn in_token(byte: u8) -> bool {
    byte.is_ascii_graphic()
        && !matches!(byte, b'"' | b'&' | b'\'' | b'(' | b')' | b',' | b';' | b'<' | b'>' | b'`')
        && !matches!(byte, b'[' | b'\\' | b']' | b'{' | b'|' | b'}')
}

/// What is a secret's and no word's: digits and capitals.
const STRIKING: u8 = 128;

macro_rules! class {
    ($($(#[$doc:meta])* $name:ident: $bits:expr;)*) => {$(
        $(#[$doc])*
        pub(super) const fn $name(byte: u8) -> bool {
            TABLE[byte as usize] & ($bits) != 0
        }
    )*};
}

class! {
    /// Letters and digits.
    is_alnum: ALNUM;
    /// The standard alphabet of base64 (RFC 4648, 4), without padding.
    is_base64: BASE64;
    /// The alphabet for URLs (RFC 4648, 5), without padding.
    is_url_safe: URL_SAFE;
    /// Either alphabet.
    is_any_base64: BASE64 | URL_SAFE;
    /// What a token is made of.
    is_token: TOKEN;
    /// Hexadecimal digits.
    is_hex: HEX;
    /// Blanks and ends of lines.
    is_space: SPACE;
    /// What a name in front of a value is made of.
    is_name: CELL;
}

/// What a token is made of, but for that after which a value may begin.
pub(super) const fn is_body(byte: u8) -> bool {
    is_token(byte) && !matches!(byte, b'=' | b':' | b'.')
}

/// Bytes that may come second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pairs([u64; 4]);

impl Pairs {
    pub(super) const fn none() -> Self {
        Self([0; 4])
    }

    pub(super) const fn with(mut self, byte: u8) -> Self {
        self.0[byte as usize / 64] |= 1 << (byte % 64);
        self
    }

    pub(super) fn add(&mut self, byte: u8) {
        *self = self.with(byte);
    }

    pub(super) fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte) / 64] >> (byte % 64) & 1 == 1
    }
}

/// What words begin with: their first [`FIRST_BYTES`] bytes, or two of a shorter one, which more bytes
/// of a token follow.
pub(super) struct Firsts(Box<[u64; FIRSTS / 64]>);

const FIRST_BYTES: usize = 3;
/// A power of two: a thousand beginnings leave most of so many free.
const FIRSTS: usize = 1 << 16;

impl Firsts {
    pub(super) fn none() -> Self {
        Self(Box::new([0; FIRSTS / 64]))
    }

    pub(super) fn add(&mut self, word: &[u8]) {
        match *word {
            [first, second, third, ..] => self.put([first, second, third]),
            [first, second] => {
                let thirds = (0..=u8::MAX).filter(|third| is_token(*third));
                thirds.for_each(|third| self.put([first, second, third]));
            }
            _ => {}
        }
    }

    fn put(&mut self, bytes: [u8; FIRST_BYTES]) {
        let [first, second, third] = bytes;
        let slot = Self::slot([first, second, third, 0]);
        self.0[slot / 64] |= 1 << (slot % 64);
    }

    /// Where the first three of four bytes are.
    fn slot(four: [u8; 4]) -> usize {
        let three = u32::from_le_bytes(four) << 8;
        // The golden ratio spreads neighbours.
        (three.wrapping_mul(0x9e37_79b1) >> (32 - FIRSTS.trailing_zeros())) as usize
    }

    /// Whether a word may begin at `at`, also one that the text's end cuts.
    #[inline]
    pub(super) fn may_begin(&self, text: &[u8], at: usize) -> bool {
        text[at..].first_chunk().is_none_or(|four| {
            let slot = Self::slot(*four);
            self.0[slot / 64] >> (slot % 64) & 1 == 1
        })
    }
}

/// A text with what stands before it.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub before: &'a [u8],
    pub bytes: &'a [u8],
    /// Nothing follows.
    pub end: bool,
}

impl Text<'_> {
    /// The byte `back` bytes before `at`; 1 is the one directly before.
    pub(super) fn back(&self, at: usize, back: usize) -> Option<u8> {
        if back <= at {
            return self.bytes.get(at - back).copied();
        }
        self.before.len().checked_sub(back - at).map(|i| self.before[i])
    }

    /// The bytes before `at`, at most [`BACK_BYTES`].
    pub(super) fn before<'b>(&'b self, at: usize, room: &'b mut [u8; BACK_BYTES]) -> &'b [u8] {
        if at >= BACK_BYTES {
            return &self.bytes[at - BACK_BYTES..at];
        }
        let more = self.before.len().min(BACK_BYTES - at);
        room[..more].copy_from_slice(&self.before[self.before.len() - more..]);
        room[more..more + at].copy_from_slice(&self.bytes[..at]);
        &room[..more + at]
    }

    /// Whether the text might go on after `at`, as far as is known.
    pub(super) fn is_cut(&self, at: usize) -> bool {
        at >= self.bytes.len() && !self.end
    }

    /// Whether a token may begin at `at`, although a letter stands before it: that letter belongs to
    /// an escape (`\n`, `\u003d`, `\x1b`, `%3D`) or to a colour of a terminal.
    pub(super) fn is_after_escape(&self, at: usize) -> bool {
        self.is_after_escape_before(at, 0)
    }

    /// The same of the place so many bytes before `at`.
    fn is_after_escape_before(&self, at: usize, skip: usize) -> bool {
        let back = |n| self.back(at, n + skip);
        let slash = |n| back(n) == Some(b'\\') && self.is_escape(at, n + skip);
        let hex = |from: usize, to: usize| (from..=to).all(|n| back(n).is_some_and(is_hex));
        match back(1) {
            Some(b'n' | b'r' | b't' | b'b' | b'f') if slash(2) => true,
            Some(last) if is_hex(last) => {
                (back(3) == Some(b'%') && hex(1, 2))
                    || (back(3) == Some(b'x') && hex(1, 2) && slash(4))
                    || (back(5) == Some(b'u') && hex(1, 4) && slash(6))
            }
            Some(b'm') => {
                // ESC [ digits m (ECMA-48, 8.3.117).
                let count = (2..12)
                    .take_while(|n| back(*n).is_some_and(|b| b.is_ascii_digit() || b == b';'))
                    .count();
                back(count + 2) == Some(b'[')
                    && matches!(back(count + 3), Some(0x1b | b'b' | b'B' | b'3' | b'e'))
            }
            _ => false,
        }
    }

    /// Whether the backslash `back` bytes before `at` is not escaped itself.
    fn is_escape(&self, at: usize, back: usize) -> bool {
        let run = (back..BACK_BYTES).take_while(|n| self.back(at, *n) == Some(b'\\')).count();
        run % 2 == 1
    }

    /// Where the token of a run begins: after the rest of an escape that the run starts with.
    pub(super) fn token_start(&self, start: usize, end: usize) -> usize {
        // The run may have begun before the text.
        let is_first = start == 0;
        let before = self.before.iter().rev().take(FIRST_ESCAPE_BYTES_MAX);
        let earlier = if is_first { before.take_while(|b| is_token(**b)).count() } else { 0 };
        let opens = matches!(self.back(start, earlier + 1), Some(b'\\' | b'[' | b';'));
        let is_passed = || (1..earlier).any(|n| self.is_after_escape_before(start, earlier - n));
        if !opens || is_passed() {
            return start;
        }
        let stop = end.min(start + FIRST_ESCAPE_BYTES_MAX - earlier);
        let from = if earlier > 0 { start } else { start + 1 };
        (from..stop).find(|at| self.is_after_escape(*at)).unwrap_or(start)
    }
}

/// A token begins at most so many bytes after the start of a run that begins with an escape.
const FIRST_ESCAPE_BYTES_MAX: usize = 6;

/// An escape or a colour that a run begins with is no longer than this.
pub(super) const ESCAPE_BYTES_MAX: usize = 12;

/// A run of token bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub start: usize,
    pub end: usize,
    /// What follows is not known yet.
    pub is_open: bool,
}

impl Run {
    /// Whether an escape, or a part of one, may stand at its start.
    pub(super) fn may_open(&self, text: &Text<'_>) -> bool {
        let opens = |b| matches!(b, b'\\' | b'[' | b';') || is_token(b);
        text.back(self.start, 1).is_some_and(opens)
    }
}

/// Masks of a text, by [`SETS`].
pub(super) type Marks = Masks<10>;

/// What of those is which.
pub(super) const OF_TOKEN: usize = 0;
pub(super) const OF_ALNUM: usize = 1;
pub(super) const OF_STRIKING: usize = 2;
pub(super) const OF_DIGIT: usize = 3;
pub(super) const OF_ANY_BASE64: usize = 4;
/// Bytes of a token after which no value begins.
pub(super) const OF_BODY: usize = 5;
pub(super) const OF_PERCENT: usize = 6;
/// What passwords have, and names do not.
pub(super) const OF_SPECIAL: usize = 7;
pub(super) const OF_COLON: usize = 8;
pub(super) const OF_DOT: usize = 9;

/// What a scan looks for by masks.
const SETS: [Set; 10] = [
    Set::of_table(&TABLE, TOKEN),
    Set::of_table(&TABLE, ALNUM),
    Set::of_table(&TABLE, STRIKING),
    Set::of(b"0123456789"),
    Set::of_table(&TABLE, BASE64 | URL_SAFE),
    {
        let mut body = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            body[byte] = is_body(byte as u8) as u8;
            byte += 1;
        }
        Set::of_table(&body, 1)
    },
    Set::of(b"%"),
    Set::of(b"!#$%*+?@^~"),
    Set::of(b":"),
    Set::of(b"."),
];

/// Whether a byte of a set is in `from..to`.
pub(super) fn has(marks: &Marks, set: usize, from: usize, to: usize) -> bool {
    marks.blocks(from, to).any(|(_, _, masks, inside)| masks[set] & inside != 0)
}

/// How many bytes of a set are in `from..to`.
pub(super) fn count(marks: &Marks, set: usize, from: usize, to: usize) -> u32 {
    marks.blocks(from, to).map(|(_, _, masks, inside)| (masks[set] & inside).count_ones()).sum()
}

/// Which kinds of bytes a part of a text has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    pub lower: bool,
    pub upper: bool,
    pub digit: bool,
    pub special: bool,
}

/// The kinds of `from..to`, of which there are masks.
pub(super) fn kinds(marks: &Marks, from: usize, to: usize) -> Kinds {
    let (mut lower, mut upper, mut digit, mut special) = (0, 0, 0, 0);
    for (_, _, masks, inside) in marks.blocks(from, to) {
        lower |= masks[OF_ALNUM] & !masks[OF_STRIKING] & inside;
        upper |= masks[OF_STRIKING] & !masks[OF_DIGIT] & inside;
        digit |= masks[OF_DIGIT] & inside;
        special |= masks[OF_SPECIAL] & inside;
    }
    Kinds { lower: lower != 0, upper: upper != 0, digit: digit != 0, special: special != 0 }
}

/// Which share of neighbours in `from..to` is of different kinds, where what is neither a letter nor a
/// digit is of one.
pub(super) fn changes(marks: &Marks, from: usize, to: usize) -> f32 {
    let (mut count, mut letters_before, mut marked_before) = (0, 0, 0);
    // The first byte follows none.
    let mut first = 1_u64 << (from % BLOCK_BYTES);
    for (_, _, masks, inside) in marks.blocks(from, to) {
        // Two bits for each byte tell its kind.
        let upper = masks[OF_STRIKING] & !masks[OF_DIGIT];
        let letters = masks[OF_ALNUM] & !masks[OF_DIGIT];
        let marked = upper | masks[OF_DIGIT];
        let changed =
            (letters ^ (letters << 1 | letters_before)) | (marked ^ (marked << 1 | marked_before));
        count += (changed & inside & !first).count_ones();
        (letters_before, marked_before, first) = (letters >> 63, marked >> 63, 0);
    }
    count as f32 / ((to - from).max(2) - 1) as f32
}

/// All runs that are long enough, and the one at the end of what is known so far.
pub(super) fn runs(text: &Text<'_>, marks: &mut Marks, found: &mut Vec<Run>) {
    let len = text.bytes.len();
    found.clear();
    marks.fill(text.bytes, 0, &SETS);
    // The first may have begun before.
    let mut done = marks.run_end(OF_TOKEN, 0);
    if done > 0 {
        let earlier = text.before.iter().rev().take_while(|b| is_token(**b)).count();
        let is_open = text.is_cut(done);
        if is_open || done + earlier >= RUN_BYTES_MIN {
            found.push(Run { start: 0, end: done, is_open });
        }
    }
    let (mut long, mut ends_before) = (Runs::<RUN_BYTES_MIN>::default(), 0);
    for (at, masks) in marks.each() {
        let ends = long.ends(masks[OF_TOKEN]);
        // The last byte of each, if it were no longer.
        for bit in bits(ends & !(ends << 1 | ends_before >> 63)) {
            if at + bit >= done + RUN_BYTES_MIN - 1 {
                let start = at + bit + 1 - RUN_BYTES_MIN;
                done = marks.run_end(OF_TOKEN, start);
                found.push(Run { start, end: done, is_open: text.is_cut(done) });
            }
        }
        ends_before = ends;
    }
    let last = marks.run_start(OF_TOKEN, len);
    if !text.end && done <= last && last < len {
        found.push(Run { start: last, end: len, is_open: true });
    }
}

/// Texts that are judged are no longer.
const JUDGED_BYTES_MAX: usize = 256;
/// Fixed point, exact enough for sums of so many.
const ONE_BIT: f64 = (1_u64 << 40) as f64;

/// Shannon's entropy of the bytes, of which only so many are looked at, in bits a byte.
pub(super) fn shannon(bytes: &[u8]) -> f32 {
    /// What the next of equal bytes adds, after so many of them.
    static STEPS: LazyLock<[u64; JUDGED_BYTES_MAX]> = LazyLock::new(|| {
        let term =
            |count: usize| if count == 0 { 0.0 } else { count as f64 * (count as f64).log2() };
        std::array::from_fn(|count| ((term(count + 1) - term(count)) * ONE_BIT).round() as u64)
    });
    let bytes = &bytes[..bytes.len().min(JUDGED_BYTES_MAX)];
    let mut counts = [0_u8; 256];
    let mut sum = 0;
    let steps = &*STEPS;
    for byte in bytes {
        let count = &mut counts[usize::from(*byte)];
        sum += steps[usize::from(*count)];
        *count = count.wrapping_add(1);
    }
    let total = bytes.len().max(1) as f64;
    // What rounding adds is far below what is left.
    (total.log2() - sum as f64 / ONE_BIT / total) as f32
}
