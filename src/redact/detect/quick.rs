//! Where in a run of usual length anything can begin, by masks alone: most runs hold nothing.
//!
//! Invariant: a place that is left out is one where the full look, at the place in question, finds
//! nothing; what it rests on is said at each step. Danger: the full look changes and this does not; the
//! tests of the module compare the two.
#![forbid(unsafe_code)]

use super::Look;
use super::class::{
    OF_ALNUM, OF_BODY, OF_COLON, OF_DIGIT, OF_DOT, OF_PERCENT, OF_SPECIAL, OF_STRIKING, Run,
};
use super::random::{ENTROPY_BYTES_MIN, KEYWORD_BYTES_MIN};
use super::value::VALUE_BYTES_MIN;
use crate::redact::masks::bits;
use crate::sys::simd::BLOCK_BYTES;

/// A longer run is looked at in full.
const RUN_BYTES_MAX: usize = 64;
/// Digits of a bot's number, at least, before the colon and its token.
const TELEGRAM_DIGITS_MIN: usize = 8;
/// From the dot before the time to the token, in a bot's token.
const DISCORD_BACK_BYTES: usize = 8;

/// Places of a run, one bit for each byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quick {
    /// Where a token may begin as patterns do.
    pub heads: u64,
    /// Where something may be a value by what stands before it.
    pub values: u64,
    /// Where a value may begin after a word that tells.
    pub keywords: u64,
    /// What begins at the start may be a value in running text.
    pub may_strike: bool,
}

/// Of a run that all is known of; none if the masks do not tell.
#[inline]
pub(super) fn quick(look: Look<'_>, run: &Run) -> Option<Quick> {
    let Look { text, marks, firsts, .. } = look;
    let len = run.end - run.start;
    // What stands before is all in the text, and is no escape.
    if run.is_open || len > RUN_BYTES_MAX || run.start < BLOCK_BYTES {
        return None;
    }
    if matches!(text.bytes[run.start - 1], b'\\' | b'[' | b';') {
        return None;
    }
    let masks = marks.window(run.start);
    let inside = u64::MAX >> (BLOCK_BYTES - len);
    let of = |set: usize| masks[set] & inside;
    if of(OF_PERCENT) != 0 {
        return None;
    }
    let (colons, dots, digits) = (of(OF_COLON), of(OF_DOT), of(OF_DIGIT));
    // The byte before a run is of no token.
    let places = inside & !(of(OF_ALNUM) << 1);
    let values = places & !(of(OF_BODY) << 1);
    let after_colon = values & colons << 1;
    for place in bits(after_colon) {
        if text.bytes[run.start + place..].starts_with(b"//") {
            return None;
        }
    }
    // The bytes from each on that a secret has.
    let up_to_last = |mask: u64| u64::MAX.checked_shr(mask.leading_zeros()).unwrap_or(0);
    // Those with so many bytes, at least one, up to the end.
    let room = |least: usize| len.checked_sub(least).map_or(0, |last| u64::MAX >> (63 - last));
    let mut kept = values & !(dots << 1) & up_to_last(of(OF_STRIKING)) & room(VALUE_BYTES_MIN);
    // A number of a bot before a colon.
    let mut numbers = digits;
    for step in [1, 2, 4] {
        numbers &= numbers << step;
    }
    const _: () = assert!(TELEGRAM_DIGITS_MIN == 8, "three steps");
    kept |= after_colon & numbers << 2;
    kept |= values & dots << 1 & dots << DISCORD_BACK_BYTES;
    let after_sign = values & !(dots << 1) & !(colons << 1 & colons << 2);
    let keywords = after_sign & up_to_last(digits) & room(KEYWORD_BYTES_MIN);
    let (lower, upper) = (of(OF_ALNUM) & !of(OF_STRIKING), of(OF_STRIKING) & !digits);
    let may_strike = lower != 0 && upper != 0 || of(OF_SPECIAL) != 0;
    let head = |place| u64::from(firsts.may_begin(text.bytes, run.start + place)) << place;
    let heads = bits(places).fold(0, |heads, place| heads | head(place));
    Some(Quick { heads, values: kept, keywords, may_strike })
}

/// Whether a run is too short to be judged by itself.
pub(super) fn is_short(run: &Run) -> bool {
    run.end - run.start < ENTROPY_BYTES_MIN
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::class::{self, Text};
    use super::super::formats::{Begins, Outcome, each_place};
    use super::super::value::Scheming;
    use super::super::{Detector, label};
    use super::*;

    #[test]
    fn no_beginning_of_a_pattern_is_missed_and_little_else_is_looked_at() {
        let detector = Detector::usual();
        let firsts = &detector.firsts;
        let heads = detector.heads.iter().flatten();
        for head in heads.map(|head| detector.patterns[head.pattern].pattern.head()) {
            for next in [b'0', b'A', b'_', b'z', b'~'] {
                let text = [b".", head, &[next; 9]].concat();
                assert!(firsts.may_begin(&text, 1), "{}", String::from_utf8_lossy(head));
            }
            for cut in 1..=head.len() {
                assert!(firsts.may_begin(&head[..cut], 0), "{}", String::from_utf8_lossy(head));
            }
        }
        let all = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-./_".iter();
        let texts = || all.clone().flat_map(|a| all.clone().map(move |b| [*a, *b, b'k', b'3']));
        let passed = texts().filter(|text| firsts.may_begin(text, 0)).count();
        assert!(passed * 20 < texts().count(), "{passed} of {}", texts().count());
    }

    #[test]
    fn nothing_begins_at_a_place_that_is_left_out() {
        const PARTS: [&str; 24] = [
            " ",
            "\n",
            "\"",
            "=",
            ":",
            "::",
            ".",
            "-",
            "_",
            "/",
            "key=",
            "token:",
            "password=",
            "12345678:AA",
            "N",
            "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAx.",
            "abcdef.",
            "7Q",
            "xoxb-",
            "ghp_",
            "abcdefgh",
            "Zk3v9QxLm2",
            "0123456789",
            "@host",
        ];
        let detector = Detector::usual();
        let (mut marks, mut runs) = (class::Marks::default(), vec![]);
        let (mut left_out, mut seen, mut state) = (0, 0, 1_u64);
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize
        };
        for _ in 0..2000 {
            let mut bytes = vec![b' '; BLOCK_BYTES];
            while bytes.len() < 600 {
                bytes.extend_from_slice(PARTS[next() % PARTS.len()].as_bytes());
            }
            let text = Text { before: b"", bytes: &bytes, end: true };
            class::runs(&text, &mut marks, &mut runs);
            let names = RefCell::new(label::Names::default());
            names.borrow_mut().are_of(detector.number);
            let firsts = &detector.firsts;
            let look = Look { text: &text, runs: &runs, marks: &marks, firsts, names: &names };
            for run in &runs {
                let Some(quick) = quick(look, run) else { continue };
                let whole = each_place(look, run, run.start, run.end, |place, _| {
                    let bit = 1_u64 << (place - run.start);
                    let kept =
                        Begins { head: quick.heads & bit != 0, value: quick.values & bit != 0 };
                    seen += 1;
                    for begins in [
                        Begins { head: !kept.head, value: false },
                        Begins { head: false, value: !kept.value },
                    ] {
                        let is_value =
                            run.start == place || matches!(bytes[place - 1], b'=' | b':' | b'.');
                        if begins.head || begins.value && is_value {
                            left_out += 1;
                            let scheme = &mut Scheming::Unseen;
                            let (_, found) = detector.at(look, run, place, begins, scheme);
                            let here = String::from_utf8_lossy(&bytes[run.start..run.end]);
                            assert!(matches!(found, Outcome::No), "{here} {}", place - run.start);
                        }
                    }
                    std::ops::ControlFlow::Continue(())
                });
                assert!(whole.is_continue());
            }
        }
        assert!(left_out > 10_000 && seen > 20_000, "{left_out} {seen}");
    }
}
