//! Which bytes of a text are in sets of ASCII characters, 64 at a time.
//!
//! Invariant: with vector instructions (AVX2, AVX-512) and without, the answer is the same; which of them runs
//! is decided by the processor at run time. Danger: instructions that the processor lacks end the
//! process, so the vector code is reached through the check alone.
//! See Mula and Lemire, "Faster Base64 Encoding and Decoding Using AVX2 Instructions" (2018), for
//! classes by two shuffles.

/// A set of ASCII characters.
#[derive(Clone, Copy)]
pub struct Set {
    /// For each low half of a byte, the high halves (0 to 7) with which it is in the set.
    rows: [u8; 16],
}

impl Set {
    /// All ASCII characters whose entry in the table has one of these bits.
    pub const fn of_table(table: &[u8; 256], bits: u8) -> Self {
        let mut rows = [0; 16];
        let mut byte = 0;
        while byte < 128 {
            if table[byte] & bits != 0 {
                rows[byte & 15] |= 1 << (byte >> 4);
            }
            byte += 1;
        }
        Self { rows }
    }

    /// These ASCII characters.
    pub const fn of(bytes: &[u8]) -> Self {
        let mut rows = [0; 16];
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] < 128, "ASCII");
            rows[(bytes[at] & 15) as usize] |= 1 << (bytes[at] >> 4);
            at += 1;
        }
        Self { rows }
    }

    fn has(&self, byte: u8) -> bool {
        byte < 128 && self.rows[usize::from(byte & 15)] >> (byte >> 4) & 1 != 0
    }
}

/// Bytes that one mask tells of.
pub const BLOCK_BYTES: usize = 64;

/// For each 64 bytes of the text, and for each set, one bit for each byte: whether it is in the set.
/// What `out` held is replaced; bits beyond the text are zero.
pub fn masks<const N: usize>(text: &[u8], sets: &[Set; N], out: &mut Vec<[u64; N]>) {
    // Each is written to.
    out.resize(text.len().div_ceil(BLOCK_BYTES), [0; N]);
    let (blocks, rest) = text.as_chunks::<BLOCK_BYTES>();
    let (whole, last) = out.split_at_mut(blocks.len());
    fill(blocks, sets, whole);
    if let [last] = last {
        let mut block = [0xff; BLOCK_BYTES];
        block[..rest.len()].copy_from_slice(rest);
        fill(&[block], sets, std::slice::from_mut(last));
    }
}

/// Bytes of a run that [`after_runs`] looks for.
pub const RUN_BYTES: usize = 16;

/// For each mask of two sets, in the order of the text: which bytes of the first set stand behind a run
/// of [`RUN_BYTES`] bytes of the second. What `out` held is replaced.
pub fn after_runs(masks: &[[u64; 2]], out: &mut Vec<u64>) {
    // Each is written to.
    out.resize(masks.len(), 0);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions.
        unsafe { wide::after_runs(masks, out) };
        return;
    } else if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        unsafe { vector::after_runs(masks, out) };
        return;
    }
    after_runs_portably(masks, out);
}

/// The compiler makes vector instructions of it where it may.
#[inline(always)]
fn after_runs_portably(masks: &[[u64; 2]], out: &mut [u64]) {
    // Which bits end a run of 16 in the same number.
    #[inline(always)]
    fn ends(mut mask: u64) -> u64 {
        mask &= mask << 1;
        mask &= mask << 2;
        mask &= mask << 4;
        mask & mask << 8
    }
    const RUN: usize = RUN_BYTES;
    const { assert!(RUN == 16, "four doublings") };
    if let ([first, ..], [out, ..]) = (masks, &mut *out) {
        *out = first[0] & ends(first[1]) << 1;
    }
    let pairs = masks.iter().zip(masks.iter().skip(1));
    for ((before, mask), out) in pairs.zip(out.iter_mut().skip(1)) {
        // Once with what ends the mask before, and once with what that pushes out.
        let with_before = mask[1] << RUN | before[1] >> (BLOCK_BYTES - RUN);
        *out = mask[0] & (ends(mask[1]) << 1 | ends(with_before) >> (RUN - 1));
    }
}

fn fill<const N: usize>(blocks: &[[u8; BLOCK_BYTES]], sets: &[Set; N], out: &mut [[u64; N]]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has the instructions.
        unsafe { wide::fill(blocks, sets, out) };
        return;
    } else if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        unsafe { vector::fill(blocks, sets, out) };
        return;
    }
    fill_portably(blocks, sets, out);
}

fn fill_portably<const N: usize>(
    blocks: &[[u8; BLOCK_BYTES]],
    sets: &[Set; N],
    out: &mut [[u64; N]],
) {
    for (block, masks) in blocks.iter().zip(out) {
        for (set, mask) in sets.iter().zip(masks) {
            let bit = |sum, byte: &u8| sum << 1 | u64::from(set.has(*byte));
            *mask = block.iter().rev().fold(0, bit);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::{
        __m256i, _mm256_and_si256, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_movemask_epi8,
        _mm256_set1_epi8, _mm256_setr_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8,
        _mm256_srli_epi16,
    };

    use super::{BLOCK_BYTES, Set, after_runs_portably};

    #[target_feature(enable = "avx2")]
    pub(super) fn after_runs(masks: &[[u64; 2]], out: &mut [u64]) {
        after_runs_portably(masks, out);
    }

    const VECTOR_BYTES: usize = 32;

    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; VECTOR_BYTES]) -> __m256i {
        // SAFETY: the array has as many bytes as are read; no alignment is needed.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn twice(rows: &[u8; 16]) -> __m256i {
        let mut bytes = [0; VECTOR_BYTES];
        bytes[..16].copy_from_slice(rows);
        bytes[16..].copy_from_slice(rows);
        load(&bytes)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn fill<const N: usize>(
        blocks: &[[u8; BLOCK_BYTES]],
        sets: &[Set; N],
        out: &mut [[u64; N]],
    ) {
        // The bit of each high half; none for bytes beyond ASCII.
        #[rustfmt::skip]
        let columns = _mm256_setr_epi8(
            1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0,
            1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0,
        );
        let rows = sets.map(|set| twice(&set.rows));
        for (block, masks) in blocks.iter().zip(out) {
            let (halves, _) = block.as_chunks::<VECTOR_BYTES>();
            *masks = [0; N];
            for (number, half) in halves.iter().enumerate() {
                let bytes = load(half);
                let high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
                let column = _mm256_shuffle_epi8(columns, high);
                for (mask, rows) in masks.iter_mut().zip(&rows) {
                    // A byte beyond ASCII selects nothing.
                    let row = _mm256_shuffle_epi8(*rows, bytes);
                    let common = _mm256_and_si256(row, column);
                    let outside = _mm256_cmpeq_epi8(common, _mm256_setzero_si256());
                    let inside = !_mm256_movemask_epi8(outside) as u32;
                    *mask |= u64::from(inside) << (VECTOR_BYTES * number);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m512i, _mm512_and_si512, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_shuffle_epi8,
        _mm512_srli_epi16, _mm512_test_epi8_mask,
    };

    use super::{BLOCK_BYTES, Set, after_runs_portably};

    #[target_feature(enable = "avx512f")]
    pub(super) fn after_runs(masks: &[[u64; 2]], out: &mut [u64]) {
        after_runs_portably(masks, out);
    }

    #[target_feature(enable = "avx512f")]
    fn load(bytes: &[u8; BLOCK_BYTES]) -> __m512i {
        // SAFETY: the array has as many bytes as are read; no alignment is needed.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    fn four_times(rows: &[u8; 16]) -> __m512i {
        let mut bytes = [0; BLOCK_BYTES];
        bytes.as_chunks_mut().0.fill(*rows);
        load(&bytes)
    }

    #[target_feature(enable = "avx512bw")]
    pub(super) fn fill<const N: usize>(
        blocks: &[[u8; BLOCK_BYTES]],
        sets: &[Set; N],
        out: &mut [[u64; N]],
    ) {
        // The bit of each high half; none for bytes beyond ASCII.
        let columns = four_times(&[1, 2, 4, 8, 16, 32, 64, 128, 0, 0, 0, 0, 0, 0, 0, 0]);
        let rows = sets.map(|set| four_times(&set.rows));
        for (block, masks) in blocks.iter().zip(out) {
            let bytes = load(block);
            let high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
            let column = _mm512_shuffle_epi8(columns, high);
            for (mask, rows) in masks.iter_mut().zip(&rows) {
                // A byte beyond ASCII selects nothing.
                *mask = _mm512_test_epi8_mask(_mm512_shuffle_epi8(*rows, bytes), column);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETS: [Set; 3] = [
        Set::of(b"abcxyzABCXYZ0189+/-_"),
        Set::of(b"\n\\\r\0\x7f"),
        Set::of_table(
            &{
                let mut table = [4; 256];
                table[b' ' as usize] = 8;
                table
            },
            4,
        ),
    ];

    #[test]
    fn what_stands_behind_a_run_is_told_with_vectors_and_without() {
        for (sparse, len) in [(18_u32, 2000_usize), (2, 2001), (0, 640), (18, 64), (1, 15), (0, 0)]
        {
            let byte = |n: u32| match n.wrapping_mul(0x9e37_79b9) >> 24 {
                low if low < sparse => b' ',
                low if low < 2 * sparse => b'\n',
                _ => b'x',
            };
            let text: Vec<u8> = (0..len as u32).map(byte).collect();
            let (mut both, mut out) = (Vec::new(), vec![7; 3]);
            masks(&text, &[Set::of(b"\nx"), Set::of(b"x")], &mut both);
            after_runs(&both, &mut out);
            let is_behind = |at: usize| {
                let run = at.checked_sub(RUN_BYTES).map(|from| &text[from..at]);
                run.is_some_and(|run| run.iter().all(|b| *b == b'x'))
            };
            for at in 0..out.len() * BLOCK_BYTES {
                let bit = out[at / BLOCK_BYTES] >> (at % BLOCK_BYTES) & 1 != 0;
                let expected = text.get(at).is_some_and(|b| *b != b' ' && is_behind(at));
                assert_eq!(bit, expected, "{at} of {len}");
            }
            let mut portable = vec![7; out.len()];
            after_runs_portably(&both, &mut portable);
            assert_eq!(portable, out);
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the instructions.
                unsafe { vector::after_runs(&both, &mut portable) };
                assert_eq!(portable, out);
            }
        }
    }

    #[test]
    fn each_byte_is_where_its_set_says_with_vectors_and_without() {
        let text: Vec<u8> =
            (0..1000_u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
        let all: Vec<u8> = (0..=255).collect();
        for text in [&text[..], &all] {
            for len in [0, 1, 63, 64, 65, 128, 200, text.len()] {
                let text = &text[..len.min(text.len())];
                let mut out = vec![[7; 3]; 3];
                masks(text, &SETS, &mut out);
                assert_eq!(out.len(), text.len().div_ceil(BLOCK_BYTES));
                for at in 0..out.len() * BLOCK_BYTES {
                    for (number, set) in SETS.iter().enumerate() {
                        let bit = out[at / BLOCK_BYTES][number] >> (at % BLOCK_BYTES) & 1 != 0;
                        assert_eq!(bit, text.get(at).is_some_and(|b| set.has(*b)), "{at} {number}");
                    }
                }
                let (blocks, _) = text.as_chunks();
                let mut portable = vec![[0; 3]; blocks.len()];
                fill_portably(blocks, &SETS, &mut portable);
                assert_eq!(portable, out[..blocks.len()]);
                #[cfg(target_arch = "x86_64")]
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has the instructions.
                    unsafe { vector::fill(blocks, &SETS, &mut portable) };
                    assert_eq!(portable, out[..blocks.len()]);
                }
            }
        }
        assert!(SETS[2].has(b'a') && !SETS[2].has(b' ') && !SETS[2].has(0x80));
    }
}
