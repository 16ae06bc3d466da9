//! Which bytes of a text are in sets of ASCII characters, 64 at a time.
//!
//! Invariant: with vector instructions (AVX2) and without, the answer is the same; which of them runs
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
    out.clear();
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

fn fill<const N: usize>(blocks: &[[u8; BLOCK_BYTES]], sets: &[Set; N], out: &mut [[u64; N]]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
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

    use super::{BLOCK_BYTES, Set};

    const VECTOR_BYTES: usize = 32;

    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; VECTOR_BYTES]) -> __m256i {
        // SAFETY: the array has as many bytes as are read; no alignment is needed.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn fill<const N: usize>(
        blocks: &[[u8; BLOCK_BYTES]],
        sets: &[Set; N],
        out: &mut [[u64; N]],
    ) {
        let twice = |rows: &[u8; 16]| {
            let mut bytes = [0; VECTOR_BYTES];
            bytes[..16].copy_from_slice(rows);
            bytes[16..].copy_from_slice(rows);
            load(&bytes)
        };
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
            }
        }
        assert!(SETS[2].has(b'a') && !SETS[2].has(b' ') && !SETS[2].has(0x80));
    }
}
