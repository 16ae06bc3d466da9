//! Runs of a class of bytes in a text, found by bit masks of 64 bytes.
//!
//! Invariant: an answer never depends on where in the text a mask begins. See `sys::simd`.
#![forbid(unsafe_code)]

use crate::sys::simd::{self, BLOCK_BYTES, Set};

/// Masks of `N` sets, of a text from some byte on; room that is used again.
#[derive(Default)]
pub(super) struct Masks<const N: usize> {
    words: Vec<[u64; N]>,
    /// See [`Masks::after_runs`].
    after: Vec<u64>,
    from: usize,
}

/// For one mask after the other of a text, which bytes end a run of `LEN` (2 to 64) bytes that are all
/// set.
#[derive(Default)]
pub(super) struct Runs<const LEN: usize> {
    /// Of the mask before, what ends a run of 1, 2, 4, ... bytes.
    before: [u64; 6],
}

impl<const LEN: usize> Runs<LEN> {
    #[inline]
    pub(super) fn ends(&mut self, mask: u64) -> u64 {
        let (mut ends, mut have) = (mask, 1);
        for before in &mut self.before {
            let by = have.min(LEN - have);
            if by == 0 {
                break;
            }
            let moved = ends << by | *before >> (BLOCK_BYTES - by);
            *before = ends;
            ends &= moved;
            have += by;
        }
        ends
    }
}

impl Masks<2> {
    /// Masks, some of whose bits are set, of the bytes of the first set that stand behind a run of
    /// [`simd::RUN_BYTES`] bytes of the second, and where they begin.
    pub(super) fn after_runs(&mut self) -> impl Iterator<Item = (usize, u64)> {
        simd::after_runs(&self.words, &mut self.after);
        let from = self.from;
        let some = self.after.iter().enumerate().filter(|(_, found)| **found != 0);
        some.map(move |(number, found)| (from + number * BLOCK_BYTES, *found))
    }
}

impl<const N: usize> Masks<N> {
    /// Makes those of `text` from byte `from` on.
    pub(super) fn fill(&mut self, text: &[u8], from: usize, sets: &[Set; N]) {
        self.from = from;
        simd::masks(&text[from..], sets, &mut self.words);
    }

    /// The masks of every 64 bytes, and where those begin.
    pub(super) fn each(&self) -> impl Iterator<Item = (usize, [u64; N])> {
        let place = |number: usize| self.from + number * BLOCK_BYTES;
        self.words.iter().enumerate().map(move |(number, masks)| (place(number), *masks))
    }

    /// The 64 bytes' masks that `from..to` has a part in, those of the 64 bytes before, where they
    /// begin, and a mask of what lies in `from..to`.
    #[inline]
    pub(super) fn blocks(
        &self,
        from: usize,
        to: usize,
    ) -> impl Iterator<Item = (usize, Option<&[u64; N]>, &[u64; N], u64)> {
        let (from, to) = (from - self.from, to.max(from) - self.from);
        let (first, after) = (from / BLOCK_BYTES, to.div_ceil(BLOCK_BYTES));
        (first..after.min(self.words.len())).map(move |number| {
            let at = number * BLOCK_BYTES;
            let mut inside = u64::MAX;
            if from > at {
                inside <<= from - at;
            }
            if to < at + BLOCK_BYTES {
                inside &= u64::MAX >> (at + BLOCK_BYTES - to);
            }
            let before = number.checked_sub(1).map(|number| &self.words[number]);
            (self.from + at, before, &self.words[number], inside)
        })
    }

    /// The masks of the 64 bytes from `at` on.
    #[inline]
    pub(super) fn window(&self, at: usize) -> [u64; N] {
        let at = at - self.from;
        let (number, bit) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
        let Some(first) = self.words.get(number) else { return [0; N] };
        let mut window = *first;
        if bit > 0 {
            let next = self.words.get(number + 1).unwrap_or(&[0; N]);
            for (mask, next) in window.iter_mut().zip(next) {
                *mask = *mask >> bit | next << (BLOCK_BYTES - bit);
            }
        }
        window
    }

    /// Where the run of a set's bytes ends that begins at `at`; `at` itself if there is none.
    pub(super) fn run_end(&self, set: usize, at: usize) -> usize {
        let at = at - self.from;
        let (number, bit) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
        let Some(first) = self.words.get(number) else { return self.from + at };
        let missing = !first[set] >> bit;
        if missing != 0 {
            return self.from + at + missing.trailing_zeros() as usize;
        }
        let next = number + 1;
        let rest = &self.words[next..];
        let whole = rest.iter().take_while(|masks| masks[set] == u64::MAX).count();
        let last = rest.get(whole).map_or(0, |masks| masks[set].trailing_ones() as usize);
        self.from + (next + whole) * BLOCK_BYTES + last
    }

    /// Where the run of a set's bytes begins that ends before `at`, as far as there are masks.
    pub(super) fn run_start(&self, set: usize, at: usize) -> usize {
        let at = at - self.from;
        let (number, bit) = (at / BLOCK_BYTES, at % BLOCK_BYTES);
        let mut start = at;
        if bit > 0 {
            let run = (self.words[number][set] << (BLOCK_BYTES - bit)).leading_ones() as usize;
            if run < bit {
                return self.from + at - run;
            }
            start = at - bit;
        }
        let before = self.words[..number].iter().rev();
        let whole = before.take_while(|masks| masks[set] == u64::MAX).count();
        start -= whole * BLOCK_BYTES;
        let last = (number - whole).checked_sub(1).map_or(0, |n| self.words[n][set].leading_ones());
        self.from + start - last as usize
    }
}

/// The places of the set bits.
pub(super) fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (first < 64).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_also_across_masks() {
        for (sparse, from) in [(18, 0), (18, 70), (2, 3), (0, 128)] {
            let text: Vec<u8> = (0..2000_u32)
                .map(|n| if n.wrapping_mul(0x9e37_79b9) >> 24 < sparse { b' ' } else { b'x' })
                .collect();
            let (mut masks, mut found) = (Masks::default(), [vec![], vec![], vec![]]);
            let (mut sixteen, mut fifteen, mut two) =
                (Runs::<16>::default(), Runs::<15>::default(), Runs::<2>::default());
            masks.fill(&text, from, &[Set::of(b"x")]);
            for (at, [mask]) in masks.each() {
                let ends = [two.ends(mask), fifteen.ends(mask), sixteen.ends(mask)];
                for (found, ends) in found.iter_mut().zip(ends) {
                    found.extend(bits(ends).map(|bit| at + bit));
                }
            }
            let is_set = |b: &&u8| **b == b'x';
            for (found, len) in found.iter().zip([2, 15, 16]) {
                let is_run = |end: &usize| text[end + 1 - len..=*end].iter().all(|b| is_set(&b));
                let expected: Vec<_> = (from + len - 1..text.len()).filter(is_run).collect();
                assert_eq!(*found, expected, "{len}");
            }
            for at in from..=text.len() {
                let after = text[at..].iter().take_while(is_set).count();
                let before = text[from..at].iter().rev().take_while(is_set).count();
                assert_eq!(masks.run_end(0, at), at + after, "{sparse} {from} {at}");
                let [window] = masks.window(at);
                for bit in 0..BLOCK_BYTES {
                    let is_there = text.get(at + bit).is_some_and(|b| is_set(&b));
                    assert_eq!(window >> bit & 1 == 1, is_there, "{sparse} {from} {at} {bit}");
                }
                assert_eq!(masks.run_start(0, at), at - before, "{sparse} {from} {at}");
                let to = text.len().min(at + at % 200);
                let mut count = 0;
                for (place, _, [mask], inside) in masks.blocks(at, to) {
                    bits(inside).for_each(|bit| assert!((at..to).contains(&(place + bit))));
                    count += (mask & inside).count_ones() as usize;
                }
                assert_eq!(count, text[at..to].iter().filter(is_set).count(), "{sparse} {at} {to}");
            }
        }
    }
}
