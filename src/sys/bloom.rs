//! Bloom filters of 8-byte windows, probed at many places of a text at once.
//!
//! A window's hash is of 32 bits, made of products of 32 bits, which vector instructions have; four
//! bits of one word stand for an entry. Letters count without case.
//!
//! Invariant: with vector instructions (AVX2, AVX-512) and without, the answer is the same; which of
//! them runs is decided by the processor at run time. Danger: text that is made to pass; hashes are
//! seeded. The words are read without a check of the place, which [`share`] bounds.
//! See Putze, Sanders and Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2009), for
//! filters with all bits of an entry in one word, and Lemire, "Fast Random Integer Generation in an
//! Interval" (2019), for tables of any length.

/// Bytes of a window.
pub const WINDOW: usize = 8;
/// Windows that are probed at once.
const BLOCK: usize = 8;
/// Bits of a filter for each window that is entered.
const FILTER_BITS: usize = 24;
/// Where in a product the numbers of an entry's bits are: in its middle, since its upper end depends on
/// little but what hashes of one word share.
const BITS: [u32; 4] = [20, 26, 32, 38];
/// Bytes of ASCII letters differ in this bit alone.
const FOLD: u64 = 0x2020_2020_2020_2020;

/// The window at `at`, folded.
#[inline]
pub fn window(text: &[u8], at: usize) -> Option<u64> {
    let bytes = text.get(at..at + WINDOW)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?) | FOLD)
}

/// What hashes depend on: others cannot prepare text whose windows collide.
#[derive(Clone, Copy, Default)]
pub struct Seed {
    low: u32,
    high: u32,
    bits: u32,
}

impl Seed {
    /// Of random bytes.
    pub fn new(random: [u8; 12]) -> Self {
        let (parts, _) = random.as_chunks::<4>();
        // Odd, and with bits at both ends.
        let part = |n: usize| u32::from_le_bytes(parts[n]) | 0x8000_0001;
        Self { low: part(0), high: part(1), bits: part(2) }
    }

    /// Every bit depends on all of the window.
    #[inline]
    pub fn hash(self, window: u64) -> u32 {
        let low = (window & 0xffff_ffff) * u64::from(self.low);
        let high = (window >> 32) * u64::from(self.high);
        let sum = low.wrapping_add(high);
        (sum ^ sum >> 32) as u32
    }

    /// Four bits of a word.
    #[inline]
    fn mask(self, hash: u32) -> u64 {
        let product = u64::from(hash) * u64::from(self.bits);
        let [one, two, three, four] = BITS.map(|by| 1_u64 << (product >> by & 63));
        one | two | three | four
    }
}

/// Which of `count` a hash falls to, in the order of hashes: below `count`, if that is above 0 and
/// below 2^32.
#[inline]
pub fn share(hash: u32, count: usize) -> usize {
    (u64::from(hash).wrapping_mul(count as u64) >> 32) as usize
}

/// A Bloom filter.
#[derive(Default)]
pub struct Filter {
    seed: Seed,
    /// Fewer than 2^32.
    words: Vec<u64>,
}

impl Filter {
    /// With room for so many windows.
    pub fn with_capacity(seed: Seed, windows: usize) -> Self {
        let words = (windows.saturating_mul(FILTER_BITS) / 64).clamp(8, u32::MAX as usize);
        Self { seed, words: vec![0; words] }
    }

    /// Enters a window by its hash.
    pub fn insert(&mut self, hash: u32) {
        let place = share(hash, self.words.len());
        self.words[place] |= self.seed.mask(hash);
    }

    /// Whether a window with this hash may have been entered.
    #[inline]
    pub fn has(&self, hash: u32) -> bool {
        let mask = self.seed.mask(hash);
        let word = self.words.get(share(hash, self.words.len()));
        word.is_some_and(|word| word & mask == mask)
    }

    /// Bytes of memory.
    pub fn size(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }

    /// Calls `each` with every place of `text`, from `at` on in strides of 1, 4 or 8, whose window
    /// passes, and the window's hash.
    pub fn probe<const STRIDE: usize>(
        &self,
        text: &[u8],
        at: usize,
        each: &mut dyn FnMut(usize, u32),
    ) {
        if self.words.is_empty() {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if STRIDE == 8 && std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            let at = unsafe { wide::probe(self, text, at, each) };
            return self.probe_portably::<STRIDE>(text, at, each);
        } else if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            let at = unsafe { vector::probe::<STRIDE>(self, text, at, each) };
            return self.probe_portably::<STRIDE>(text, at, each);
        }
        self.probe_portably::<STRIDE>(text, at, each);
    }

    fn probe_portably<const STRIDE: usize>(
        &self,
        text: &[u8],
        mut at: usize,
        each: &mut dyn FnMut(usize, u32),
    ) {
        while let Some(window) = window(text, at) {
            let hash = self.seed.hash(window);
            if self.has(hash) {
                each(at, hash);
            }
            at += STRIDE;
        }
    }
}

/// How far ahead text is asked for: memory is slower than the probes, and the processor's own
/// prefetching ends at each page. Measured: 2048 is best, 1024 and 4096 cost 5 to 10 %.
#[cfg(target_arch = "x86_64")]
const AHEAD_BYTES: usize = 2048;

/// Asks for an item that is looked at soon, if there is one.
#[inline]
pub fn fetch<T>(items: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(item) = items.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that can be seen, and of no address is it an error.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, at);
}

/// Asks for the text that comes `AHEAD_BYTES` behind where this begins, if any does.
#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch(text: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let ahead = text.as_ptr().wrapping_add(AHEAD_BYTES);
    // SAFETY: a prefetch reads nothing that can be seen, and of no address is it an error.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi64, _mm256_and_si256,
        _mm256_broadcastsi128_si256, _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_loadu_si256,
        _mm256_movemask_pd, _mm256_mul_epu32, _mm256_or_si256, _mm256_permutevar8x32_epi32,
        _mm256_set1_epi64x, _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setr_epi64x,
        _mm256_shuffle_epi8, _mm256_sllv_epi64, _mm256_srli_epi64, _mm256_srlv_epi64,
        _mm256_storeu_si256, _mm256_xor_si256,
    };

    use super::{BITS, BLOCK, FOLD, Filter, Seed, prefetch, window};

    /// Windows of one vector.
    const LANES: usize = 4;

    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: the array has as many bytes as are read; no alignment is needed.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store(vector: __m256i) -> [u64; LANES] {
        let mut numbers = [0; LANES];
        // SAFETY: the array has as many bytes as are written; no alignment is needed.
        unsafe { _mm256_storeu_si256(numbers.as_mut_ptr().cast(), vector) };
        numbers
    }

    #[target_feature(enable = "avx2")]
    fn load_half(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: as above.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    /// Four windows of which each begins `STRIDE` bytes behind the last.
    #[target_feature(enable = "avx2")]
    fn windows<const STRIDE: usize>(text: &[u8]) -> Option<__m256i> {
        if STRIDE == 1 {
            let twice = _mm256_broadcastsi128_si256(load_half(text.first_chunk()?));
            #[rustfmt::skip]
            let order = _mm256_setr_epi8(
                0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 8,
                2, 3, 4, 5, 6, 7, 8, 9, 3, 4, 5, 6, 7, 8, 9, 10,
            );
            return Some(_mm256_shuffle_epi8(twice, order));
        }
        let all = load(text.first_chunk()?);
        if STRIDE == 4 {
            let order = _mm256_setr_epi32(0, 1, 1, 2, 2, 3, 3, 4);
            return Some(_mm256_permutevar8x32_epi32(all, order));
        }
        Some(all)
    }

    /// What is the same for all windows.
    struct Lanes {
        low: __m256i,
        high: __m256i,
        bits: __m256i,
        count: __m256i,
    }

    impl Lanes {
        #[target_feature(enable = "avx2")]
        fn new(seed: Seed, count: usize) -> Self {
            let all = |number: u32| _mm256_set1_epi64x(i64::from(number));
            Self {
                low: all(seed.low),
                high: all(seed.high),
                bits: all(seed.bits),
                // Fewer than 2^32.
                count: all(count as u32),
            }
        }

        /// One bit for each window that passes.
        #[target_feature(enable = "avx2")]
        fn passed(&self, words: &[u64], windows: __m256i) -> u32 {
            let windows = _mm256_or_si256(windows, _mm256_set1_epi64x(FOLD as i64));
            let low = _mm256_mul_epu32(windows, self.low);
            let high = _mm256_mul_epu32(_mm256_srli_epi64(windows, 32), self.high);
            let sum = _mm256_add_epi64(low, high);
            // The lower halves are the hashes, and alone count in products.
            let hash = _mm256_xor_si256(sum, _mm256_srli_epi64(sum, 32));
            let place = _mm256_srli_epi64(_mm256_mul_epu32(hash, self.count), 32);
            let bits = _mm256_mul_epu32(hash, self.bits);
            let (one, last) = (_mm256_set1_epi64x(1), _mm256_set1_epi64x(63));
            let bit = |by: u32| {
                let number = _mm256_srlv_epi64(bits, _mm256_set1_epi64x(i64::from(by)));
                _mm256_sllv_epi64(one, _mm256_and_si256(number, last))
            };
            let [first, second, third, fourth] = BITS;
            let mask = _mm256_or_si256(
                _mm256_or_si256(bit(first), bit(second)),
                _mm256_or_si256(bit(third), bit(fourth)),
            );
            // One after the other: a gather is slower where the words are not in the first cache.
            let places: [u64; LANES] = store(place);
            let [one, two, three, four] = places.map(
                #[inline(always)]
                |place| {
                    // SAFETY: a hash is below 2^32, so its product with the number of words, shifted by
                    // 32 bits, is below that number.
                    unsafe { *words.get_unchecked(place as usize) }.cast_signed()
                },
            );
            let word = _mm256_setr_epi64x(one, two, three, four);
            let set = _mm256_cmpeq_epi64(_mm256_and_si256(word, mask), mask);
            _mm256_movemask_pd(_mm256_castsi256_pd(set)) as u32
        }
    }

    /// As far as whole blocks go; where that is. There must be words.
    #[target_feature(enable = "avx2")]
    pub(super) fn probe<const STRIDE: usize>(
        filter: &Filter,
        text: &[u8],
        mut at: usize,
        each: &mut dyn FnMut(usize, u32),
    ) -> usize {
        let words = &filter.words[..];
        let lanes = Lanes::new(filter.seed, words.len());
        // What is read for a block: both vectors' bytes.
        let needed = STRIDE * LANES + if STRIDE == 1 { 16 } else { 32 };
        while let Some(block) = text.get(at..at + needed) {
            prefetch(block);
            let (one, two) =
                (windows::<STRIDE>(block), windows::<STRIDE>(&block[STRIDE * LANES..]));
            let (Some(one), Some(two)) = (one, two) else { break };
            let mut passed = lanes.passed(words, one) | lanes.passed(words, two) << LANES;
            while passed != 0 {
                let place = at + passed.trailing_zeros() as usize * STRIDE;
                if let Some(window) = window(text, place) {
                    each(place, filter.seed.hash(window));
                }
                passed &= passed - 1;
            }
            at += STRIDE * BLOCK;
        }
        at
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_loadu_si512, _mm512_mul_epu32,
        _mm512_or_si512, _mm512_rorv_epi64, _mm512_set1_epi64, _mm512_srli_epi64,
        _mm512_srlv_epi64, _mm512_storeu_si512, _mm512_test_epi64_mask, _mm512_xor_si512,
    };

    use super::{BITS, BLOCK, FOLD, Filter, WINDOW, prefetch, window};

    /// All windows of a block, one behind the other.
    const BLOCK_BYTES: usize = BLOCK * WINDOW;

    #[target_feature(enable = "avx512f")]
    fn load(bytes: &[u8; BLOCK_BYTES]) -> __m512i {
        // SAFETY: the array has as many bytes as are read; no alignment is needed.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    fn load_words(words: &[u64; BLOCK]) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    fn store(vector: __m512i) -> [u64; BLOCK] {
        let mut numbers = [0; BLOCK];
        // SAFETY: the array has as many bytes as are written; no alignment is needed.
        unsafe { _mm512_storeu_si512(numbers.as_mut_ptr().cast(), vector) };
        numbers
    }

    /// As far as whole blocks go, at a stride of 8; where that is. There must be words.
    #[target_feature(enable = "avx512f")]
    pub(super) fn probe(
        filter: &Filter,
        text: &[u8],
        mut at: usize,
        each: &mut dyn FnMut(usize, u32),
    ) -> usize {
        let words = &filter.words[..];
        let all = |number: u32| _mm512_set1_epi64(i64::from(number));
        let (low, high, bits) =
            (all(filter.seed.low), all(filter.seed.high), all(filter.seed.bits));
        // Fewer than 2^32.
        let count = all(words.len() as u32);
        let (fold, one) = (_mm512_set1_epi64(FOLD as i64), _mm512_set1_epi64(1));
        while let Some(block) = text.get(at..).and_then(<[u8]>::first_chunk::<BLOCK_BYTES>) {
            prefetch(block);
            let windows = _mm512_or_si512(load(block), fold);
            let sum = _mm512_add_epi64(
                _mm512_mul_epu32(windows, low),
                _mm512_mul_epu32(_mm512_srli_epi64(windows, 32), high),
            );
            // The lower halves are the hashes, and alone count in products.
            let hash = _mm512_xor_si512(sum, _mm512_srli_epi64(sum, 32));
            let place = _mm512_srli_epi64(_mm512_mul_epu32(hash, count), 32);
            let bits = _mm512_mul_epu32(hash, bits);
            // One after the other: a gather is slower.
            let places = store(place);
            let mut found = [0_u64; BLOCK];
            for (found, place) in found.iter_mut().zip(places) {
                // SAFETY: a hash is below 2^32, so its product with the number of words, shifted by
                // 32 bits, is below that number.
                *found = unsafe { *words.get_unchecked(place as usize) };
            }
            let word = load_words(&found);
            // Each bit moves to the lowest place.
            let moved = |by: u32| {
                let by = _mm512_set1_epi64(i64::from(by));
                _mm512_rorv_epi64(word, _mm512_srlv_epi64(bits, by))
            };
            let [first, second, third, fourth] = BITS;
            let set = _mm512_and_si512(
                _mm512_and_si512(moved(first), moved(second)),
                _mm512_and_si512(moved(third), moved(fourth)),
            );
            let mut passed = _mm512_test_epi64_mask(set, one);
            while passed != 0 {
                let place = at + passed.trailing_zeros() as usize * WINDOW;
                if let Some(window) = window(text, place) {
                    each(place, filter.seed.hash(window));
                }
                passed &= passed - 1;
            }
            at += BLOCK_BYTES;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: u64) -> impl Iterator<Item = u64> {
        (1..=count).map(|n| {
            let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        })
    }

    fn probed<const STRIDE: usize>(filter: &Filter, text: &[u8], from: usize) -> Vec<(usize, u32)> {
        let mut found = Vec::new();
        filter.probe::<STRIDE>(text, from, &mut |at, hash| found.push((at, hash)));
        let mut portable = Vec::new();
        filter.probe_portably::<STRIDE>(text, from, &mut |at, hash| portable.push((at, hash)));
        assert_eq!(found, portable, "stride {STRIDE} from {from} of {}", text.len());
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && !filter.words.is_empty() {
            // Also where wider vectors would be used.
            let mut narrow = Vec::new();
            let mut each = |at, hash| narrow.push((at, hash));
            // SAFETY: the processor has the instructions.
            let at = unsafe { vector::probe::<STRIDE>(filter, text, from, &mut each) };
            filter.probe_portably::<STRIDE>(text, at, &mut each);
            assert_eq!(found, narrow);
        }
        found
    }

    #[test]
    fn what_was_entered_passes_at_each_stride_with_vectors_and_without() {
        let seed = Seed::new(*b"seed of test");
        let text: Vec<u8> = numbers(300).flat_map(u64::to_le_bytes).collect();
        for text in [&text[..], &text[..100], &text[..65], &text[..8], &text[..7], &[]] {
            let places = || (0..text.len().saturating_sub(WINDOW - 1)).step_by(7);
            let mut filter = Filter::with_capacity(seed, places().count());
            let hash = |at: usize| seed.hash(window(text, at).unwrap());
            places().for_each(|at| filter.insert(hash(at)));
            for from in 0..text.len().min(20) {
                let one = probed::<1>(&filter, text, from);
                assert!(places().filter(|at| *at >= from).all(|at| one.contains(&(at, hash(at)))));
                let of = |stride: usize| {
                    one.iter().filter(move |(at, _)| (at - from) % stride == 0).copied()
                };
                assert_eq!(probed::<4>(&filter, text, from), of(4).collect::<Vec<_>>());
                assert_eq!(probed::<8>(&filter, text, from), of(8).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn few_others_pass_and_letters_count_without_case() {
        for entered in [100, 10_000, 500_000] {
            let seed = Seed::new(*b"another seed");
            let mut filter = Filter::with_capacity(seed, entered);
            let text: Vec<u8> = numbers(entered as u64).flat_map(u64::to_le_bytes).collect();
            for at in (0..text.len()).step_by(8) {
                filter.insert(seed.hash(window(&text, at).unwrap()));
            }
            let others: Vec<u8> =
                numbers(20_000).flat_map(|n| format!("{:08x}", n as u32).into_bytes()).collect();
            let passed = probed::<8>(&filter, &others, 0).len();
            assert!(passed <= 300, "{passed} of 20000 at {entered}");
            assert_eq!(filter.has(seed.hash(window(b"PassWord", 0).unwrap())), {
                filter.has(seed.hash(window(b"pAsswORD", 0).unwrap()))
            });
        }
    }

    #[test]
    fn hashes_of_like_windows_fall_everywhere() {
        let seed = Seed::new(*b"and a third ");
        let mut counts = [0; 64];
        let all = 64 * 64;
        for n in 0..all {
            let text = format!("{n:04}-key");
            counts[share(seed.hash(window(format!("{text:0<8}").as_bytes(), 0).unwrap()), 64)] += 1;
        }
        assert!(counts.iter().all(|count| (16..=192).contains(count)), "{counts:?}");
        assert_eq!((share(0, 8), share(u32::MAX, 8)), (0, 7));
    }
}
