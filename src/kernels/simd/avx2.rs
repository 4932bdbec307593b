//! AVX2 with FMA: a vector is two registers, an activation a 16-bit number.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

#[derive(Debug, Clone, Copy)]
pub struct Avx2;

type Pair = [__m256; 2];

#[inline(always)]
unsafe fn each(a: Pair, b: Pair, f: impl Fn(__m256, __m256) -> __m256) -> Pair {
    [f(a[0], b[0]), f(a[1], b[1])]
}

#[inline(always)]
unsafe fn reduce_add_integers(a: __m256i, b: __m256i) -> i32 {
    let eight = _mm256_add_epi32(a, b);
    let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
}

/// Magnitudes as whole numbers, among which what is not finite is larger than all others.
#[inline(always)]
unsafe fn magnitudes(x: __m256) -> __m256i {
    _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX))
}

impl Simd for Avx2 {
    const TILE_ROWS: usize = 3;
    const WIDE_TILE_ROWS: usize = 2;
    const MANY_ROWS: usize = 24;
    const UNIT_TILE: (usize, usize) = (6, 1);

    type Floats = Pair;
    /// 32 bytes of eight rows each.
    type Codes = [__m256i; 2];
    /// Four rows each; of each row two sums, which belong together.
    type Sums = [__m256i; 4];
    type Words = [__m256i; 2];
    type WordSums = [__m256i; 2];

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Pair {
        [_mm256_set1_ps(x); 2]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
    }

    #[inline(always)]
    unsafe fn store(x: Pair, to: *mut f32) {
        _mm256_storeu_ps(to, x[0]);
        _mm256_storeu_ps(to.add(8), x[1]);
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Pair {
        let half = |from: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
        [half(from), half(from.add(8))]
    }

    #[inline(always)]
    unsafe fn store_f16(x: Pair, to: *mut u16) {
        _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
        _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Pair {
        let half = |from: *const u16| {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        };
        [half(from), half(from.add(8))]
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Pair {
        let half = |from: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())));
        [half(from), half(from.add(8))]
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Pair {
        let half = |from: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())));
        [half(from), half(from.add(8))]
    }

    #[inline(always)]
    unsafe fn store_i8(x: Pair, to: *mut i8) {
        let [a, b] = x.map(|x| _mm256_cvtps_epi32(x));
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
        let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        _mm_storeu_si128(to.cast(), bytes);
    }

    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        each(a, b, |a, b| _mm256_add_ps(a, b))
    }

    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        each(a, b, |a, b| _mm256_sub_ps(a, b))
    }

    #[inline(always)]
    unsafe fn mul(a: Pair, b: Pair) -> Pair {
        each(a, b, |a, b| _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    unsafe fn div(a: Pair, b: Pair) -> Pair {
        each(a, b, |a, b| _mm256_div_ps(a, b))
    }

    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        each(a, b, |a, b| _mm256_max_ps(a, b))
    }

    #[inline(always)]
    unsafe fn min(a: Pair, b: Pair) -> Pair {
        each(a, b, |a, b| _mm256_min_ps(a, b))
    }

    #[inline(always)]
    unsafe fn mul_add(a: Pair, b: Pair, c: Pair) -> Pair {
        [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
    }

    #[inline(always)]
    unsafe fn round(x: Pair) -> Pair {
        x.map(|x| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }

    #[inline(always)]
    unsafe fn scale_by_power(x: Pair, n: Pair) -> Pair {
        each(x, n, |x, n| {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        })
    }

    #[inline(always)]
    unsafe fn reduce_add(x: Pair) -> f32 {
        let eight = _mm256_add_ps(x[0], x[1]);
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    #[inline(always)]
    unsafe fn reduce_max(x: Pair) -> f32 {
        let eight = _mm256_max_ps(x[0], x[1]);
        let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }

    #[inline(always)]
    unsafe fn max_magnitude(a: Pair, b: Pair) -> Pair {
        each(a, b, |a, b| _mm256_castsi256_ps(_mm256_max_epi32(magnitudes(a), magnitudes(b))))
    }

    #[inline(always)]
    unsafe fn reduce_max_magnitude(x: Pair) -> f32 {
        let eight = _mm256_max_epi32(magnitudes(x[0]), magnitudes(x[1]));
        let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
        let one = _mm_max_epi32(two, _mm_shuffle_epi32::<1>(two));
        f32::from_bits(_mm_cvtsi128_si32(one).cast_unsigned())
    }

    #[inline(always)]
    unsafe fn codes_8(from: *const u8) -> [__m256i; 2] {
        [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())]
    }

    #[inline(always)]
    unsafe fn codes_4(from: *const u8) -> [[__m256i; 2]; 2] {
        let bytes = Self::codes_8(from);
        let mask = _mm256_set1_epi8(0xF);
        [
            bytes.map(|bytes| _mm256_and_si256(bytes, mask)),
            bytes.map(|bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask)),
        ]
    }

    #[inline(always)]
    unsafe fn with_high_2<const SHIFT: i32>(low: [__m256i; 2], from: *const u8) -> [__m256i; 2] {
        let high = Self::codes_8(from).map(|bytes| {
            // The bits from `SHIFT` on, moved to the fifth and sixth.
            let moved = match SHIFT {
                0 => _mm256_slli_epi16::<4>(bytes),
                2 => _mm256_slli_epi16::<2>(bytes),
                4 => bytes,
                _ => _mm256_srli_epi16::<2>(bytes),
            };
            _mm256_and_si256(moved, _mm256_set1_epi8(0x30))
        });
        [_mm256_or_si256(low[0], high[0]), _mm256_or_si256(low[1], high[1])]
    }

    #[inline(always)]
    unsafe fn sums(start: i32) -> [__m256i; 4] {
        // Of the two sums of a row the first starts at the number.
        [_mm256_set1_epi64x(i64::from(start.cast_unsigned())); 4]
    }

    #[inline(always)]
    unsafe fn dot(sums: [__m256i; 4], codes: [__m256i; 2], quad: *const u8) -> [__m256i; 4] {
        let quad = _mm256_set1_epi64x(quad.cast::<i64>().read_unaligned());
        let add = |sum: __m256i, codes: __m128i| {
            _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(codes), quad))
        };
        [
            add(sums[0], _mm256_castsi256_si128(codes[0])),
            add(sums[1], _mm256_extracti128_si256::<1>(codes[0])),
            add(sums[2], _mm256_castsi256_si128(codes[1])),
            add(sums[3], _mm256_extracti128_si256::<1>(codes[1])),
        ]
    }

    #[inline(always)]
    unsafe fn finish(sums: [__m256i; 4]) -> Pair {
        // Rows 0 1 4 5 2 3 6 7 after the addition of neighbours.
        let eight = |a: __m256i, b: __m256i| {
            let added = _mm256_hadd_epi32(a, b);
            _mm256_cvtepi32_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(added))
        };
        [eight(sums[0], sums[1]), eight(sums[2], sums[3])]
    }

    #[inline(always)]
    unsafe fn quantize(x: Pair, quads: *mut u8) -> i32 {
        let [a, b] = x.map(|x| _mm256_cvtps_epi32(x));
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
        _mm256_storeu_si256(quads.cast(), packed);
        reduce_add_integers(a, b)
    }

    #[inline(always)]
    unsafe fn store_words(codes: [__m256i; 2], zero: i16, to: *mut i16) {
        let (mask, zero) = (_mm256_set1_epi16(0xFF), _mm256_set1_epi16(zero));
        for (idx, codes) in codes.into_iter().enumerate() {
            let even = _mm256_and_si256(codes, mask);
            let odd = _mm256_srli_epi16::<8>(codes);
            _mm256_storeu_si256(to.add(16 * idx).cast(), _mm256_sub_epi16(even, zero));
            _mm256_storeu_si256(to.add(32 + 16 * idx).cast(), _mm256_sub_epi16(odd, zero));
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(codes: [__m256i; 2], zero: i8, to: *mut i8) {
        for (idx, codes) in codes.into_iter().enumerate() {
            _mm256_storeu_si256(to.add(32 * idx).cast(), _mm256_sub_epi8(codes, _mm256_set1_epi8(zero)));
        }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const i16) -> [__m256i; 2] {
        Self::codes_8(from.cast())
    }

    #[inline(always)]
    unsafe fn word_sums() -> [__m256i; 2] {
        [_mm256_setzero_si256(); 2]
    }

    #[inline(always)]
    unsafe fn dot_words(sums: [__m256i; 2], words: [__m256i; 2], pair: *const i16) -> [__m256i; 2] {
        let pair = _mm256_set1_epi32(pair.cast::<i32>().read_unaligned());
        [
            _mm256_add_epi32(sums[0], _mm256_madd_epi16(words[0], pair)),
            _mm256_add_epi32(sums[1], _mm256_madd_epi16(words[1], pair)),
        ]
    }

    #[inline(always)]
    unsafe fn finish_words(sums: [__m256i; 2]) -> Pair {
        sums.map(|sums| _mm256_cvtepi32_ps(sums))
    }

    #[inline(always)]
    unsafe fn quantize_words(x: Pair, words: *mut i16) -> i32 {
        let [a, b] = x.map(|x| _mm256_cvtps_epi32(x));
        let ordered = |x| _mm256_shuffle_epi32::<0b11_01_10_00>(x);
        let packed = _mm256_packs_epi32(ordered(a), ordered(b));
        _mm256_storeu_si256(words.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        reduce_add_integers(a, b)
    }

    #[inline(always)]
    unsafe fn prefetch_l1(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }

    #[inline(always)]
    unsafe fn prefetch_l2(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
}
