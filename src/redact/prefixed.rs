//! Values of several lines behind a prefix on each line, as a logger writes it.
//!
//! The prefix is what stands on the line before the value's first line; before each further line stand
//! as many bytes, which are the same but for digits: times and counters go on. Invariant: what is found
//! depends on at most [`PREFIX_BYTES_MAX`] bytes before it, so that cuts leave no trace. Danger: a value
//! that was begun must not be waited for longer than it is with its prefixes.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use zeroize::Zeroizing;

use super::needle;
use super::part::{Hit, Part, Text};

/// A longer prefix is none.
pub(super) const PREFIX_BYTES_MAX: usize = 64;

/// Values of several lines, by their first ones.
#[derive(Default)]
pub(super) struct Prefixed {
    heads: Part,
    values: HashMap<u32, Zeroizing<Vec<u8>>>,
    longest: usize,
}

/// What stands at a place.
enum Outcome {
    Hit(usize),
    /// So many bytes of the value are there, up to the text's end.
    Maybe(usize),
    No,
}

impl Prefixed {
    /// Of these values, each with its id.
    pub(super) fn build<'a>(values: impl IntoIterator<Item = (u32, &'a [u8])>) -> Self {
        let mut all = Self::default();
        for (id, value) in values {
            let mut own = Zeroizing::default();
            needle::of_lines(value, &mut own);
            if !own.is_empty() {
                let lines = own.iter().filter(|b| **b == b'\n').count();
                all.longest = all.longest.max(own.len() + lines * (PREFIX_BYTES_MAX + 1));
                all.values.insert(id, own);
            }
        }
        let heads = all.values.iter().map(|(id, value)| (*id, first_line(value)));
        all.heads = Part::of_plain(heads);
        all
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Bytes of the longest with its prefixes.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        let of = |value: &Zeroizing<Vec<u8>>| value.len() + size_of::<(u32, Zeroizing<Vec<u8>>)>();
        let values: usize = self.values.values().map(of).sum();
        values + self.heads.own_bytes() + self.heads.overhead()
    }

    /// Reports every occurrence of what `counts`; where those begin that are undecided. What the text's
    /// end cuts off is one if it is `named`.
    pub(super) fn find(
        &self,
        text: Text<'_>,
        counts: &dyn Fn(u32) -> bool,
        named: &dyn Fn(u32) -> bool,
        each: &mut dyn FnMut(Hit),
    ) -> usize {
        let mut limit = text.bytes.len();
        self.heads.find(text, &mut |head| {
            if head.end > text.bytes.len() || !counts(head.id) {
                // What has begun is known as the value itself.
                return;
            }
            let Some(value) = self.values.get(&head.id) else { return };
            let end = match follow(text, head.start, value) {
                Outcome::Hit(end) => end,
                Outcome::Maybe(have) if text.end => {
                    if have < first_line(value).len() + needle::CUT_BYTES_MIN || !named(head.id) {
                        return;
                    }
                    text.bytes.len()
                }
                Outcome::Maybe(_) => {
                    limit = limit.min(head.start);
                    return;
                }
                Outcome::No => return,
            };
            each(Hit { end, literal: false, ..head });
        });
        limit
    }
}

fn first_line(value: &[u8]) -> &[u8] {
    value.split(|b| *b == b'\n').next().unwrap_or(value)
}

/// What stands before `start` on its line; nothing for a line that is too long or begins there.
fn prefix<'a>(text: Text<'a>, start: usize) -> Option<&'a [u8]> {
    let low = start.saturating_sub(PREFIX_BYTES_MAX + 1);
    let before = &text.bytes[low..start];
    let prefix = match before.iter().rposition(|b| *b == b'\n') {
        Some(at) => &before[at + 1..],
        None if low == 0 && text.at == 0 && start <= PREFIX_BYTES_MAX => before,
        None => return None,
    };
    Some(prefix).filter(|prefix| !prefix.is_empty())
}

fn follow(text: Text<'_>, start: usize, value: &[u8]) -> Outcome {
    let Some(prefix) = prefix(text, start) else { return Outcome::No };
    let mut lines = value.split(|b| *b == b'\n');
    let head = lines.next().unwrap_or(value).len();
    let (mut at, mut have) = (start + head, head);
    let same = |one: &u8, two: &u8| one == two || one.is_ascii_digit() && two.is_ascii_digit();
    for line in lines {
        at += usize::from(text.bytes.get(at) == Some(&b'\r'));
        match text.bytes.get(at) {
            None => return Outcome::Maybe(have),
            Some(b'\n') => at += 1,
            Some(_) => return Outcome::No,
        }
        let rest = &text.bytes[at..];
        if !rest.iter().zip(prefix).all(|(one, two)| same(one, two)) {
            return Outcome::No;
        }
        let Some(rest) = rest.get(prefix.len()..) else { return Outcome::Maybe(have) };
        let known = rest.len().min(line.len());
        if rest[..known] != line[..known] {
            return Outcome::No;
        }
        have += 1 + known;
        if known < line.len() {
            return Outcome::Maybe(have);
        }
        at += prefix.len() + line.len();
    }
    Outcome::Hit(at)
}
