//! Base64 that is decoded at each of its four alignments, and whether that could be text.
//!
//! Invariant: with vector instructions (AVX2) and without, the answer is the same; which of them runs
//! is decided by the processor at run time. Danger: instructions that the processor lacks end the
//! process, so the vector code is reached through the check alone.
//! See RFC 4648, both alphabets, and Mula and Lemire, "Faster Base64 Encoding and Decoding Using AVX2
//! Instructions" (2018).

/// Where in a group of four characters the first byte may begin.
pub const ALIGNMENTS: usize = 4;
/// Fewer bytes of a set in a row are none.
pub const STRETCH_BYTES: usize = 8;
/// What is read at once, in characters or in bytes.
const VECTOR_BYTES: usize = 32;
/// Bytes of as many characters.
const DECODED_BYTES: usize = VECTOR_BYTES * 6 / 8;
/// Zeros behind what was decoded: a vector may begin at its last byte, at the last alignment.
const ZEROS: usize = VECTOR_BYTES + ALIGNMENTS;

/// A set of any bytes.
#[derive(Debug, Clone, Copy)]
pub struct Bytes {
    /// For each low half of a byte, the high halves with which it is in the set: 0 to 7, 8 to 15.
    rows: [[u8; 16]; 2],
}

impl Bytes {
    /// Those for which it is said.
    pub fn of(is: impl Fn(u8) -> bool) -> Self {
        let mut rows = [[0; 16]; 2];
        for byte in (0..=u8::MAX).filter(|byte| is(*byte)) {
            rows[usize::from(byte >> 7)][usize::from(byte & 15)] |= 1 << (byte >> 4 & 7);
        }
        Self { rows }
    }

    /// Whether a byte is one of them.
    #[inline]
    pub fn has(&self, byte: u8) -> bool {
        self.rows[usize::from(byte >> 7)][usize::from(byte & 15)] >> (byte >> 4 & 7) & 1 != 0
    }
}

const SIX_BITS: [u8; 256] = six_bits(0);

/// The six bits of each character, either alphabet, and `other` for what is none.
pub const fn six_bits(other: u8) -> [u8; 256] {
    let mut bits = [other; 256];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_";
    let mut at = 0;
    while at < alphabet.len() {
        bits[alphabet[at] as usize] = if at < 64 { at as u8 } else { at as u8 - 2 };
        at += 1;
    }
    bits
}

/// Whole bytes of as many characters.
pub const fn len_of(chars: usize) -> usize {
    chars * 6 / 8
}

/// Bytes that [`bits_of`] needs for as many characters.
pub const fn room_of(chars: usize) -> usize {
    chars.div_ceil(VECTOR_BYTES) * DECODED_BYTES + ZEROS
}

/// Writes all bits of `chars` to `out`, [`room_of`] bytes, and zeros behind them. Characters must be of
/// base64.
pub fn bits_of(chars: &[u8], out: &mut [u8]) {
    debug_assert_eq!(out.len(), room_of(chars.len()), "enough room");
    let (blocks, rest) = chars.as_chunks();
    let (places, zeros) = out.split_at_mut(blocks.len() * DECODED_BYTES);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        unsafe { vector::bits_of(blocks, rest, places, zeros) };
        return;
    }
    bits_of_portably(blocks, rest, places, zeros);
}

/// The last block of all, with what stands for zeros behind it.
fn last_block(rest: &[u8]) -> [u8; VECTOR_BYTES] {
    let mut block = [b'A'; VECTOR_BYTES];
    block[..rest.len()].copy_from_slice(rest);
    block
}

fn bits_of_portably(
    blocks: &[[u8; VECTOR_BYTES]],
    rest: &[u8],
    places: &mut [u8],
    zeros: &mut [u8],
) {
    let decode = |block: &[u8; VECTOR_BYTES], out: &mut [u8]| {
        let (groups, _) = block.as_chunks::<4>();
        let (places, _) = out.as_chunks_mut::<3>();
        for (group, place) in groups.iter().zip(places) {
            let bits = group.map(|byte| SIX_BITS[usize::from(byte)]);
            let sum = bits.iter().fold(0, |sum, bits| sum << 6 | u32::from(*bits));
            let [_, bytes @ ..] = sum.to_be_bytes();
            *place = bytes;
        }
    };
    for (block, out) in blocks.iter().zip(places.chunks_exact_mut(DECODED_BYTES)) {
        decode(block, out);
    }
    zeros.fill(0);
    if !rest.is_empty() {
        decode(&last_block(rest), zeros);
    }
}

/// What `bits`, of [`bits_of`], are when their first characters, at most three, are left out.
pub fn shift(bits: &[u8], chars: usize, out: &mut [u8]) {
    let (skip, by) = (chars * 6 / 8, chars * 6 % 8);
    if by == 0 {
        return out.copy_from_slice(&bits[skip..][..out.len()]);
    }
    let pairs = bits[skip..].iter().zip(&bits[skip + 1..]);
    for (to, (high, low)) in out.iter_mut().zip(pairs) {
        *to = high << by | low >> (8 - by);
    }
}

/// For each alignment, whether the whole bytes that `bits`, of [`bits_of`] for so many characters, are
/// at it have [`STRETCH_BYTES`] of the set in a row.
pub fn stretches(bits: &[u8], chars: usize, set: &Bytes) -> [bool; ALIGNMENTS] {
    debug_assert_eq!(bits.len(), room_of(chars), "what was decoded");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        return unsafe { vector::stretches(bits, chars, set) };
    }
    stretches_portably(bits, chars, set)
}

fn stretches_portably(bits: &[u8], chars: usize, set: &Bytes) -> [bool; ALIGNMENTS] {
    std::array::from_fn(|alignment| {
        let (skip, by) = (alignment * 6 / 8, alignment * 6 % 8);
        let len = len_of(chars.saturating_sub(alignment));
        let mut run = 0;
        let pairs = bits[skip..].iter().zip(bits[skip + 1..].iter().chain([&0])).take(len);
        pairs.map(|(high, low)| ((u32::from(*high) << 8 | u32::from(*low)) << by >> 8) as u8).any(
            |byte| {
                run = if set.has(byte) { run + 1 } else { 0 };
                run == STRETCH_BYTES
            },
        )
    })
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi8, _mm256_and_si256, _mm256_blendv_epi8, _mm256_cmpeq_epi8,
        _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_movemask_epi8,
        _mm256_or_si256, _mm256_permutevar8x32_epi32, _mm256_set1_epi8, _mm256_set1_epi16,
        _mm256_set1_epi32, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setzero_si256,
        _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16, _mm256_storeu_si256,
    };

    use super::{
        ALIGNMENTS, Bytes, DECODED_BYTES, STRETCH_BYTES, VECTOR_BYTES, last_block, len_of,
    };

    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; VECTOR_BYTES]) -> __m256i {
        // SAFETY: the array has as many bytes as are read; no alignment is needed.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store(vector: __m256i) -> [u8; VECTOR_BYTES] {
        let mut bytes = [0; VECTOR_BYTES];
        // SAFETY: the array has as many bytes as are written; no alignment is needed.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) };
        bytes
    }

    #[target_feature(enable = "avx2")]
    fn twice(bytes: &[u8; 16]) -> __m256i {
        let mut both = [0; VECTOR_BYTES];
        both[..16].copy_from_slice(bytes);
        both[16..].copy_from_slice(bytes);
        load(&both)
    }

    /// The high half of each byte.
    #[target_feature(enable = "avx2")]
    fn high(bytes: __m256i) -> __m256i {
        _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15))
    }

    #[target_feature(enable = "avx2")]
    fn decode(chars: &[u8; VECTOR_BYTES]) -> [u8; VECTOR_BYTES] {
        let chars = load(chars);
        // What is added to a character by its high half makes its six bits, but for three.
        let by_half = twice(&[0, 0, 16, 4, 191, 191, 185, 185, 0, 0, 0, 0, 0, 0, 0, 0]);
        let more = |byte: u8, by: i8| {
            let is = _mm256_cmpeq_epi8(chars, _mm256_set1_epi8(byte.cast_signed()));
            _mm256_and_si256(is, _mm256_set1_epi8(by))
        };
        let extra = _mm256_or_si256(_mm256_or_si256(more(b'+', 3), more(b'-', 1)), more(b'_', 33));
        let bits = _mm256_add_epi8(
            _mm256_add_epi8(chars, _mm256_shuffle_epi8(by_half, high(chars))),
            extra,
        );
        // Two characters are twelve bits, two of those 24.
        let pairs = _mm256_maddubs_epi16(bits, _mm256_set1_epi16(0x0140));
        let groups = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x0001_1000));
        #[rustfmt::skip]
        let order = _mm256_setr_epi8(
            2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, -1, -1, -1, -1,
            2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, -1, -1, -1, -1,
        );
        let bytes = _mm256_shuffle_epi8(groups, order);
        store(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7)))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn bits_of(
        blocks: &[[u8; VECTOR_BYTES]],
        rest: &[u8],
        places: &mut [u8],
        zeros: &mut [u8],
    ) {
        for (block, out) in blocks.iter().zip(places.chunks_exact_mut(DECODED_BYTES)) {
            out.copy_from_slice(&decode(block)[..DECODED_BYTES]);
        }
        zeros.fill(0);
        if !rest.is_empty() {
            zeros[..DECODED_BYTES].copy_from_slice(&decode(&last_block(rest))[..DECODED_BYTES]);
        }
    }

    /// Bits behind `BY` of each byte, and those of the next byte.
    #[target_feature(enable = "avx2")]
    fn shifted<const BY: i32, const BACK: i32>(bytes: __m256i, next: __m256i) -> __m256i {
        let first = _mm256_set1_epi8((0xff_u8 << BY).cast_signed());
        let last = _mm256_set1_epi8((0xff_u8 >> BACK).cast_signed());
        _mm256_or_si256(
            _mm256_and_si256(_mm256_slli_epi16(bytes, BY), first),
            _mm256_and_si256(_mm256_srli_epi16(next, BACK), last),
        )
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn stretches(bits: &[u8], chars: usize, set: &Bytes) -> [bool; ALIGNMENTS] {
        let columns = twice(&[1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128]);
        let rows = [twice(&set.rows[0]), twice(&set.rows[1])];
        let inside = |bytes: __m256i| {
            let column = _mm256_shuffle_epi8(columns, high(bytes));
            let low = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
            let both = rows.map(
                #[inline(always)]
                |rows| _mm256_shuffle_epi8(rows, low),
            );
            let row = _mm256_blendv_epi8(both[0], both[1], bytes);
            let common = _mm256_and_si256(row, column);
            let outside = _mm256_cmpeq_epi8(common, _mm256_setzero_si256());
            !_mm256_movemask_epi8(outside).cast_unsigned()
        };
        let (mut before, mut found) = ([0_u32; ALIGNMENTS], [0_u64; ALIGNMENTS]);
        let lens: [usize; ALIGNMENTS] =
            std::array::from_fn(|alignment| len_of(chars.saturating_sub(alignment)));
        for at in (0..len_of(chars)).step_by(VECTOR_BYTES) {
            let from = |skip: usize| bits.get(at + skip..).and_then(<[u8]>::first_chunk);
            let (Some(one), Some(two), Some(three), Some(four)) =
                (from(0), from(1), from(2), from(3))
            else {
                // Not so by [`super::room_of`].
                return [true; ALIGNMENTS];
            };
            let [one, two, three, four] = [load(one), load(two), load(three), load(four)];
            let mut masks = [
                inside(one),
                inside(shifted::<6, 2>(one, two)),
                inside(shifted::<4, 4>(two, three)),
                inside(shifted::<2, 6>(three, four)),
            ];
            if at + VECTOR_BYTES > lens[ALIGNMENTS - 1] {
                for (mask, len) in masks.iter_mut().zip(lens) {
                    let inside = len.saturating_sub(at).min(VECTOR_BYTES);
                    *mask &= (!(u64::MAX << inside)) as u32;
                }
            }
            for alignment in 0..ALIGNMENTS {
                let mut ends = u64::from(masks[alignment]) << 32 | u64::from(before[alignment]);
                let mut have = 1;
                while have < STRETCH_BYTES {
                    ends &= ends << have;
                    have *= 2;
                }
                before[alignment] = masks[alignment];
                found[alignment] |= ends;
            }
        }
        // What lies in one mask was found with it.
        found.map(|ends| ends != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(chars: &[u8], decode: impl Fn(&[u8], &mut [u8])) -> Vec<u8> {
        let mut out = vec![7; room_of(chars.len())];
        decode(chars, &mut out);
        out
    }

    fn portably(chars: &[u8], out: &mut [u8]) {
        let (blocks, rest) = chars.as_chunks();
        let (places, zeros) = out.split_at_mut(blocks.len() * DECODED_BYTES);
        bits_of_portably(blocks, rest, places, zeros);
    }

    fn text(len: usize, seed: u32) -> Vec<u8> {
        let byte = |n: u32| {
            let mixed = (n ^ seed << 16).wrapping_mul(0x9e37_79b9);
            ((mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b) >> 24) as u8
        };
        (0..len as u32).map(byte).collect()
    }

    #[test]
    fn bytes_are_those_of_base64_with_vectors_and_without() {
        use base64ct::{Base64Unpadded, Base64UrlUnpadded, Encoding};
        for len in 0..200 {
            let bytes = text(len, 3);
            for chars in
                [Base64Unpadded::encode_string(&bytes), Base64UrlUnpadded::encode_string(&bytes)]
            {
                let chars = chars.as_bytes();
                let out = decoded(chars, bits_of);
                assert_eq!(out[..len], bytes);
                assert!(out[len..].iter().all(|b| *b == 0));
                assert_eq!(decoded(chars, portably), out);
                for skipped in 0..chars.len().min(4) {
                    let mut shifted = vec![0; len_of(chars.len() - skipped)];
                    shift(&out, skipped, &mut shifted);
                    let expected = decoded(&chars[skipped..], bits_of);
                    assert_eq!(shifted, expected[..shifted.len()]);
                }
            }
        }
    }

    #[test]
    fn no_stretch_of_a_set_is_missed_at_any_alignment_with_vectors_and_without() {
        use base64ct::{Base64Unpadded, Encoding};
        let sets = [
            Bytes::of(|b| b.is_ascii_graphic()),
            Bytes::of(|b| b.is_ascii_lowercase() || b >= 0xe0),
            Bytes::of(|b| b != 0),
            Bytes::of(|b| b < 0x60),
        ];
        assert!(sets[1].has(b'z') && sets[1].has(0xff) && !sets[1].has(0xdf));
        let mut counts = [0; 2];
        for seed in 0..400 {
            let mut bytes = text(16 + seed as usize % 100, seed);
            let at = seed as usize * 7 % bytes.len();
            for (n, byte) in bytes.iter_mut().skip(at).take(seed as usize % 12).enumerate() {
                *byte = b'a' + n as u8;
            }
            let chars = Base64Unpadded::encode_string(&bytes);
            let chars = &chars.as_bytes()[..chars.len() - seed as usize % 4];
            let bits = decoded(chars, bits_of);
            for set in &sets {
                let found = stretches(&bits, chars.len(), set);
                assert_eq!(found, stretches_portably(&bits, chars.len(), set), "{seed}");
                for (alignment, found) in found.iter().enumerate() {
                    let mut out = vec![0; len_of(chars.len() - alignment)];
                    shift(&bits, alignment, &mut out);
                    let has = |run: &[u8]| run.iter().all(|b| set.has(*b));
                    assert_eq!(*found, out.windows(STRETCH_BYTES).any(has), "{seed} {alignment}");
                    counts[usize::from(*found)] += 1;
                }
            }
        }
        assert!(counts.iter().all(|count| *count > 300), "{counts:?}");
    }
}
