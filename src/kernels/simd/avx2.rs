//! AVX2 with FMA: a vector is two registers, an activation a 16-bit integer.

use std::arch::x86_64::*;

use super::super::isa::Isa;
use super::{Kernel, Simd};

/// The token of AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        (Isa::detect() >= Isa::Avx2).then_some(Self(()))
    }
}

type Pair = [__m256; 2];

#[inline(always)]
fn each(a: Pair, b: Pair, f: impl Fn(__m256, __m256) -> __m256) -> Pair {
    [f(a[0], b[0]), f(a[1], b[1])]
}

impl Avx2 {
    #[inline(always)]
    fn reduce_add_integers(self, a: __m256i, b: __m256i) -> i32 {
        intrinsics! {
            let eight = _mm256_add_epi32(a, b);
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }

    /// Magnitudes as integers, among which infinity and NaN are the largest.
    #[inline(always)]
    fn magnitudes(self, x: __m256) -> __m256i {
        intrinsics! {
            _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX))
        }
    }
}

impl Simd for Avx2 {
    const GEMV_TILE_ROWS: usize = 3;
    const I16_TILE_ROWS: usize = 2;
    const MIN_GEMM_ROWS: usize = 24;
    const FLOAT_TILE: (usize, usize) = (6, 1);

    type Floats = Pair;
    /// 32 bytes for eight rows each.
    type Codes = [__m256i; 2];
    /// Four rows each; the sum of a row is in two halves.
    type Sums = [__m256i; 4];
    type I16Pairs = [__m256i; 2];
    type I16Sums = [__m256i; 2];

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled_for_avx2<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        intrinsics! { compiled_for_avx2(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        intrinsics! {
            [_mm256_set1_ps(x); 2]
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Pair {
        intrinsics! {
            [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn store(self, x: Pair, to: *mut f32) {
        intrinsics! {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Pair {
        intrinsics! {
            let half = |from: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            [half(from), half(from.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, x: Pair, to: *mut u16) {
        intrinsics! {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Pair {
        intrinsics! {
            let half = |from: *const u16| {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            };
            [half(from), half(from.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Pair {
        intrinsics! {
            let half = |from: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())));
            [half(from), half(from.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Pair {
        intrinsics! {
            let half = |from: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())));
            [half(from), half(from.add(8))]
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, x: Pair, to: *mut i8) {
        intrinsics! {
            let [a, b] = x.map(|x| _mm256_cvtps_epi32(x));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
        }
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        intrinsics! {
            each(a, b, |a, b| _mm256_add_ps(a, b))
        }
    }

    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        intrinsics! {
            each(a, b, |a, b| _mm256_sub_ps(a, b))
        }
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        intrinsics! {
            each(a, b, |a, b| _mm256_mul_ps(a, b))
        }
    }

    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        intrinsics! {
            each(a, b, |a, b| _mm256_div_ps(a, b))
        }
    }

    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        intrinsics! {
            each(a, b, |a, b| _mm256_max_ps(a, b))
        }
    }

    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        intrinsics! {
            each(a, b, |a, b| _mm256_min_ps(a, b))
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        intrinsics! {
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
        }
    }

    #[inline(always)]
    fn round(self, x: Pair) -> Pair {
        intrinsics! {
            x.map(|x| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
        }
    }

    #[inline(always)]
    fn scale_by_power(self, x: Pair, n: Pair) -> Pair {
        intrinsics! {
            each(x, n, |x, n| {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            })
        }
    }

    #[inline(always)]
    fn reduce_add(self, x: Pair) -> f32 {
        intrinsics! {
            let eight = _mm256_add_ps(x[0], x[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn reduce_max(self, x: Pair) -> f32 {
        intrinsics! {
            let eight = _mm256_max_ps(x[0], x[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn max_magnitude(self, a: Pair, b: Pair) -> Pair {
        intrinsics! {
            each(a, b, |a, b| _mm256_castsi256_ps(_mm256_max_epi32(self.magnitudes(a), self.magnitudes(b))))
        }
    }

    #[inline(always)]
    fn reduce_max_magnitude(self, x: Pair) -> f32 {
        intrinsics! {
            let eight = _mm256_max_epi32(self.magnitudes(x[0]), self.magnitudes(x[1]));
            let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
            let one = _mm_max_epi32(two, _mm_shuffle_epi32::<1>(two));
            f32::from_bits(_mm_cvtsi128_si32(one).cast_unsigned())
        }
    }

    #[inline(always)]
    unsafe fn load_codes_8(self, from: *const u8) -> [__m256i; 2] {
        intrinsics! {
            [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())]
        }
    }

    #[inline(always)]
    unsafe fn load_codes_4(self, from: *const u8) -> [[__m256i; 2]; 2] {
        intrinsics! {
            let bytes = self.load_codes_8(from);
            let mask = _mm256_set1_epi8(0xF);
            [
                bytes.map(|bytes| _mm256_and_si256(bytes, mask)),
                bytes.map(|bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn or_high_bits<const SHIFT: i32>(self, low: [__m256i; 2], from: *const u8) -> [__m256i; 2] {
        intrinsics! {
            let high = self.load_codes_8(from).map(|bytes| {
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
    }

    #[inline(always)]
    fn splat_sums(self, start: i32) -> [__m256i; 4] {
        intrinsics! {
            // The first of the two halves of a sum starts at the number.
            [_mm256_set1_epi64x(i64::from(start.cast_unsigned())); 4]
        }
    }

    #[inline(always)]
    unsafe fn dot_codes(self, sums: [__m256i; 4], codes: [__m256i; 2], quad: *const u8) -> [__m256i; 4] {
        intrinsics! {
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
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: [__m256i; 4]) -> Pair {
        intrinsics! {
            // Rows 0 1 4 5 2 3 6 7 after the addition of neighbors.
            let eight = |a: __m256i, b: __m256i| {
                let added = _mm256_hadd_epi32(a, b);
                _mm256_cvtepi32_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(added))
            };
            [eight(sums[0], sums[1]), eight(sums[2], sums[3])]
        }
    }

    #[inline(always)]
    unsafe fn quantize_quads(self, x: Pair, quads: *mut u8) -> i32 {
        intrinsics! {
            let [a, b] = x.map(|x| _mm256_cvtps_epi32(x));
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            _mm256_storeu_si256(quads.cast(), packed);
            self.reduce_add_integers(a, b)
        }
    }

    #[inline(always)]
    unsafe fn store_codes_i16(self, codes: [__m256i; 2], zero: i16, to: *mut i16) {
        intrinsics! {
            let (mask, zero) = (_mm256_set1_epi16(0xFF), _mm256_set1_epi16(zero));
            for (idx, codes) in codes.into_iter().enumerate() {
                let even = _mm256_and_si256(codes, mask);
                let odd = _mm256_srli_epi16::<8>(codes);
                _mm256_storeu_si256(to.add(16 * idx).cast(), _mm256_sub_epi16(even, zero));
                _mm256_storeu_si256(to.add(32 + 16 * idx).cast(), _mm256_sub_epi16(odd, zero));
            }
        }
    }

    #[inline(always)]
    unsafe fn store_codes_i8(self, codes: [__m256i; 2], zero: i8, to: *mut i8) {
        intrinsics! {
            for (idx, codes) in codes.into_iter().enumerate() {
                _mm256_storeu_si256(to.add(32 * idx).cast(), _mm256_sub_epi8(codes, _mm256_set1_epi8(zero)));
            }
        }
    }

    #[inline(always)]
    unsafe fn load_i16_pairs(self, from: *const i16) -> [__m256i; 2] {
        intrinsics! {
            self.load_codes_8(from.cast())
        }
    }

    #[inline(always)]
    fn zero_i16_sums(self) -> [__m256i; 2] {
        intrinsics! {
            [_mm256_setzero_si256(); 2]
        }
    }

    #[inline(always)]
    unsafe fn dot_i16_pairs(self, sums: [__m256i; 2], words: [__m256i; 2], pair: *const i16) -> [__m256i; 2] {
        intrinsics! {
            let pair = _mm256_set1_epi32(pair.cast::<i32>().read_unaligned());
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(words[0], pair)),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(words[1], pair)),
            ]
        }
    }

    #[inline(always)]
    fn i16_sums_to_floats(self, sums: [__m256i; 2]) -> Pair {
        intrinsics! {
            sums.map(|sums| _mm256_cvtepi32_ps(sums))
        }
    }

    #[inline(always)]
    unsafe fn quantize_i16(self, x: Pair, words: *mut i16) -> i32 {
        intrinsics! {
            let [a, b] = x.map(|x| _mm256_cvtps_epi32(x));
            let ordered = |x| _mm256_shuffle_epi32::<0b11_01_10_00>(x);
            let packed = _mm256_packs_epi32(ordered(a), ordered(b));
            _mm256_storeu_si256(words.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
            self.reduce_add_integers(a, b)
        }
    }

    #[inline(always)]
    fn prefetch_l1(self, from: *const u8) {
        intrinsics! {
            _mm_prefetch::<_MM_HINT_T0>(from.cast());
        }
    }

    #[inline(always)]
    fn prefetch_l2(self, from: *const u8) {
        intrinsics! {
            _mm_prefetch::<_MM_HINT_T1>(from.cast());
        }
    }
}
