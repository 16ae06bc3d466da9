//! Values of several lines behind a prefix on each line, as a logger writes it.
//!
//! The prefix is what stands on the line before the value's first line; before each further line stand
//! as many bytes, which are the same but for digits: times and counters go on. Invariant: what is found
//! depends on at most [`PREFIX_BYTES_MAX`] bytes before it, so that cuts leave no trace. Danger: a value
//! that was begun must not be waited for longer than it is with its prefixes.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::needle;
use super::part::{Hit, Part, Text};

/// A longer prefix is none.
pub(super) const PREFIX_BYTES_MAX: usize = 64;

/// So many bytes of the second line tell values apart that begin alike.
const KEY_BYTES: usize = 8;

/// Values of several lines, by their first ones.
#[derive(Default)]
pub(super) struct Prefixed {
    /// First lines, each with the number of its group: keys of one kind all begin alike.
    heads: Part,
    groups: Vec<Vec<Value>>,
    longest: usize,
}

/// A value, in the order of how its second line begins; none for one that is too short to tell.
struct Value {
    key: Option<[u8; KEY_BYTES]>,
    id: u32,
    bytes: Zeroizing<Vec<u8>>,
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
        let mut all: Vec<Value> = Vec::new();
        let mut longest = 0;
        for (id, value) in values {
            let mut bytes = Zeroizing::default();
            needle::of_lines(value, &mut bytes);
            if !bytes.is_empty() {
                let lines = bytes.iter().filter(|b| **b == b'\n').count();
                longest = longest.max(bytes.len() + lines * (PREFIX_BYTES_MAX + 1));
                let second = first_line(&bytes[first_line(&bytes).len() + 1..]);
                let key = second.first_chunk().copied();
                all.push(Value { key, id, bytes });
            }
        }
        let order = |one: &Value, two: &Value| {
            let heads = first_line(&one.bytes).cmp(first_line(&two.bytes));
            heads.then(one.key.cmp(&two.key))
        };
        all.sort_by(order);
        let mut groups: Vec<Vec<Value>> = Vec::new();
        for value in all {
            match groups.last_mut() {
                Some(group) if first_line(&group[0].bytes) == first_line(&value.bytes) => {
                    group.push(value);
                }
                _ => groups.push(vec![value]),
            }
        }
        let firsts = groups.iter().map(|group| first_line(&group[0].bytes));
        let heads = Part::of_plain((0..).zip(firsts));
        Self { heads, groups, longest }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Bytes of the longest with its prefixes.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        let of = |value: &Value| size_of::<Value>() + value.bytes.len();
        let values: usize = self.groups.iter().flatten().map(of).sum();
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
        self.heads.find(&text, &mut |head| {
            // What has begun is known as the value itself.
            if head.end > text.bytes.len() {
                return;
            }
            let Some(prefix) = prefix(text, head.start) else { return };
            let group = self.groups.get(head.id as usize).map_or(&[][..], Vec::as_slice);
            for Value { id, bytes, .. } in alike(group, second_line(text, head.end, prefix.len())) {
                if !counts(*id) {
                    continue;
                }
                let end = match follow(text, head.start, prefix, bytes) {
                    Outcome::Hit(end) => end,
                    Outcome::Maybe(have) if text.end => {
                        let least = first_line(bytes).len() + needle::CUT_BYTES_MIN;
                        if have < least || !named(*id) {
                            continue;
                        }
                        text.bytes.len()
                    }
                    Outcome::Maybe(_) => {
                        limit = limit.min(head.start);
                        continue;
                    }
                    Outcome::No => continue,
                };
                each(Hit { end, id: *id, literal: false, ..head });
            }
        });
        limit
    }
}

/// Those of a group whose second line may begin so; all, where that is not known.
fn alike(group: &[Value], key: Option<[u8; KEY_BYTES]>) -> impl Iterator<Item = &Value> {
    let (short, long) = group.split_at(group.partition_point(|value| value.key.is_none()));
    let from = key.map_or(0, |key| long.partition_point(|value| value.key < Some(key)));
    let same = long[from..].iter().take_while(move |value| key.is_none() || value.key == key);
    short.iter().chain(same)
}

/// What stands on the next line behind as many bytes as there are of a prefix, if that is enough to tell.
fn second_line(text: Text<'_>, end: usize, prefix_bytes: usize) -> Option<[u8; KEY_BYTES]> {
    let newline = end + usize::from(text.bytes.get(end) == Some(&b'\r'));
    text.bytes.get(newline + 1 + prefix_bytes..)?.first_chunk().copied()
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

fn follow(text: Text<'_>, start: usize, prefix: &[u8], value: &[u8]) -> Outcome {
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
