//! AVX2 with FMA: a vector is two registers, an activation two bytes, each in a plane of its own.
//!
//! Without AVX-VNNI, low bytes are unsigned and high bytes signed. Codes of up to six bits are multiplied with them, and
//! 16-bit integers hold the sums of as many products as are sure not to overflow; codes of eight bits are widened and
//! multiplied with whole activations. With AVX-VNNI both bytes are signed, as with AVX-512, and sums have 32 bits.

use std::arch::x86_64::*;

use super::super::isa::Isa;
use super::{Kernel, Simd};

/// The token of AVX2, FMA and F16C, and of AVX-VNNI if `VNNI`.
#[derive(Debug, Clone, Copy)]
pub struct Avx2With<const VNNI: bool>(());

/// AVX2 without AVX-VNNI.
pub type Avx2 = Avx2With<false>;
/// AVX2 with AVX-VNNI.
pub type AvxVnni = Avx2With<true>;

impl Avx2 {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        (Isa::detect() >= Isa::Avx2).then_some(Self(()))
    }
}

impl AvxVnni {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        Isa::AvxVnni.is_available().then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn run<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn run_vnni<K: Kernel>(simd: AvxVnni, kernel: K) -> K::Output {
    kernel.run(simd)
}

type Pair = [__m256; 2];

#[inline(always)]
fn each(a: Pair, b: Pair, f: impl Fn(__m256, __m256) -> __m256) -> Pair {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// Integer sums of products for sixteen rows, in parts.
#[derive(Clone, Copy)]
pub struct Sums {
    /// With codes of up to six bits, 16-bit sums of products with the low bytes, then with the high bytes; two for each
    /// row. With codes of eight bits, 32-bit sums for four rows each; two for each row. With AVX-VNNI, 32-bit sums of
    /// products with the low bytes, then with the high bytes.
    parts: [__m256i; 4],
    /// The rest of each sum.
    total: [__m256i; 2],
}

/// The number of quads whose products with codes of `bits` bits can be added in 16 bits, for bytes of up to `largest`.
const fn quads_in_16_bits(bits: u32, largest: i32) -> usize {
    (i16::MAX as i32 / (2 * ((1 << bits) - 1) * largest)) as usize
}

/// Whether the 16-bit sums of the low bytes and of the high bytes are full after some quads.
const fn are_full(bits: u32, n_quads: usize) -> [bool; 2] {
    [n_quads.is_multiple_of(quads_in_16_bits(bits, 255)), n_quads.is_multiple_of(quads_in_16_bits(bits, 128))]
}

impl Sums {
    /// Moves 16-bit sums of the low bytes and of the high bytes to the total.
    #[inline(always)]
    fn widen(&mut self, [low, high]: [bool; 2]) {
        intrinsics! {
            let ones = _mm256_set1_epi16(1);
            for half in 0..2 {
                if low {
                    let sums = _mm256_madd_epi16(self.parts[half], ones);
                    self.total[half] = _mm256_add_epi32(self.total[half], sums);
                    self.parts[half] = _mm256_setzero_si256();
                }
                if high {
                    let sums = _mm256_slli_epi32::<8>(_mm256_madd_epi16(self.parts[2 + half], ones));
                    self.total[half] = _mm256_add_epi32(self.total[half], sums);
                    self.parts[2 + half] = _mm256_setzero_si256();
                }
            }
        }
    }
}

impl<const VNNI: bool> Avx2With<VNNI> {
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

impl<const VNNI: bool> Simd for Avx2With<VNNI> {
    const GEMV_TILE_ROWS: usize = 3;
    const SUM_VECTORS: usize = 4;
    const I16_TILE_ROWS: usize = 2;
    const MIN_GEMM_ROWS: usize = 24;
    const FLOAT_TILE: (usize, usize) = (6, 1);

    type Floats = Pair;
    /// 32 bytes for eight rows each.
    type Codes = [__m256i; 2];
    type Sums = Sums;
    type I16Pairs = [__m256i; 2];
    type I16Sums = [__m256i; 2];

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        intrinsics! {
            if VNNI { run_vnni(Avx2With(()), kernel) } else { run(Avx2With(()), kernel) }
        }
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
    fn look_up(self, table: &[u8; 16], codes: [__m256i; 2]) -> [__m256i; 2] {
        intrinsics! {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
        }
    }

    #[inline(always)]
    fn splat_sums(self, start: i32) -> Sums {
        intrinsics! {
            let (zero, start) = (_mm256_setzero_si256(), _mm256_set1_epi32(start));
            if VNNI {
                return Sums { parts: [start, start, zero, zero], total: [zero; 2] };
            }
            Sums { parts: [zero; 4], total: [start; 2] }
        }
    }

    #[inline(always)]
    unsafe fn dot_codes(
        self,
        mut sums: Sums,
        codes: [__m256i; 2],
        bits: u32,
        quad: *const u8,
        n_before: usize,
    ) -> Sums {
        intrinsics! {
            if bits == 8 && !VNNI {
                let order = _mm_set_epi8(15, 11, 14, 10, 13, 9, 12, 8, 7, 3, 6, 2, 5, 1, 4, 0);
                let bytes = _mm256_set1_epi64x(quad.cast::<i64>().read_unaligned());
                let words = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order));
                for (idx, sums) in sums.parts.iter_mut().enumerate() {
                    let four_rows = match idx % 2 {
                        0 => _mm256_castsi256_si128(codes[idx / 2]),
                        _ => _mm256_extracti128_si256::<1>(codes[idx / 2]),
                    };
                    *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(_mm256_cvtepu8_epi16(four_rows), words));
                }
                return sums;
            }
            let low = _mm256_set1_epi32(quad.cast::<i32>().read_unaligned());
            let high = _mm256_set1_epi32(quad.cast::<i32>().add(1).read_unaligned());
            for half in 0..2 {
                let [of_low, of_high] = [half, 2 + half];
                if VNNI {
                    sums.parts[of_low] = _mm256_dpbusd_avx_epi32(sums.parts[of_low], codes[half], low);
                    sums.parts[of_high] = _mm256_dpbusd_avx_epi32(sums.parts[of_high], codes[half], high);
                    continue;
                }
                let products = _mm256_maddubs_epi16(low, codes[half]);
                sums.parts[of_low] = _mm256_add_epi16(sums.parts[of_low], products);
                let products = _mm256_maddubs_epi16(codes[half], high);
                sums.parts[of_high] = _mm256_add_epi16(sums.parts[of_high], products);
            }
            if !VNNI {
                sums.widen(are_full(bits, n_before + 1));
            }
            sums
        }
    }

    #[inline(always)]
    fn sums_to_floats(self, mut sums: Sums, bits: u32, n_quads: usize) -> Pair {
        intrinsics! {
            if VNNI {
                for half in 0..2 {
                    let high = _mm256_slli_epi32::<8>(sums.parts[2 + half]);
                    sums.total[half] = _mm256_add_epi32(sums.parts[half], high);
                }
            } else if bits == 8 {
                for half in 0..2 {
                    // Rows 0 1 4 5 2 3 6 7 after the addition of neighbors.
                    let added = _mm256_hadd_epi32(sums.parts[2 * half], sums.parts[2 * half + 1]);
                    let in_order = _mm256_permute4x64_epi64::<0b11_01_10_00>(added);
                    sums.total[half] = _mm256_add_epi32(sums.total[half], in_order);
                }
            } else {
                sums.widen(are_full(bits, n_quads).map(|is_full| !is_full));
            }
            sums.total.map(|sums| _mm256_cvtepi32_ps(sums))
        }
    }

    #[inline(always)]
    unsafe fn quantize_quads(self, x: Pair, quads: *mut u8) -> i32 {
        intrinsics! {
            let [a, b] = x.map(|x| _mm256_cvtps_epi32(x));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let words = if VNNI {
                // After adding 128, the high byte is that of a signed low byte, which is right but for its sign.
                let half = _mm256_set1_epi16(128);
                _mm256_xor_si256(_mm256_add_epi16(words, half), half)
            } else {
                words
            };
            // The low bytes of each quad, then the high bytes.
            let order = _mm_set_epi8(15, 13, 11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0);
            let planes = _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(order));
            _mm256_storeu_si256(quads.cast(), planes);
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
    fn splat_i16_sums(self, start: i32) -> [__m256i; 2] {
        intrinsics! {
            [_mm256_set1_epi32(start); 2]
        }
    }

    #[inline(always)]
    unsafe fn dot_i16_pairs(self, sums: [__m256i; 2], words: [__m256i; 2], pair: *const i16) -> [__m256i; 2] {
        intrinsics! {
            let pair = _mm256_set1_epi32(pair.cast::<i32>().read_unaligned());
            if VNNI {
                return [
                    _mm256_dpwssd_avx_epi32(sums[0], words[0], pair),
                    _mm256_dpwssd_avx_epi32(sums[1], words[1], pair),
                ];
            }
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(words[0], pair)),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(words[1], pair)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, sums: [__m256i; 2], codes: [__m256i; 2], quad: *const i8) -> [__m256i; 2] {
        intrinsics! {
            let quad = _mm256_set1_epi32(quad.cast::<i32>().read_unaligned());
            if VNNI {
                return [
                    _mm256_dpbusd_avx_epi32(sums[0], codes[0], quad),
                    _mm256_dpbusd_avx_epi32(sums[1], codes[1], quad),
                ];
            }
            // Products of pairs of bytes may not fit 16 bits.
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(quad));
            let odd = _mm256_srai_epi16::<8>(quad);
            let mask = _mm256_set1_epi16(0xFF);
            let mut result = sums;
            for (sums, codes) in result.iter_mut().zip(codes) {
                let of_even = _mm256_madd_epi16(_mm256_and_si256(codes, mask), even);
                let of_odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes), odd);
                *sums = _mm256_add_epi32(*sums, _mm256_add_epi32(of_even, of_odd));
            }
            result
        }
    }

    #[inline(always)]
    fn rotate(self, [a, b]: Pair) -> Pair {
        intrinsics! {
            let signs = _mm256_set_ps(-0.0, -0.0, -0.0, -0.0, 0.0, 0.0, 0.0, 0.0);
            let mut halves = [a, _mm256_xor_ps(b, signs)];
            for x in &mut halves {
                let other = _mm256_permute_ps::<0b10_11_00_01>(*x);
                *x = _mm256_blend_ps::<0xAA>(_mm256_add_ps(*x, other), _mm256_sub_ps(other, *x));
                let other = _mm256_permute_ps::<0b01_00_11_10>(*x);
                *x = _mm256_blend_ps::<0xCC>(_mm256_add_ps(*x, other), _mm256_sub_ps(other, *x));
                let other = _mm256_permute2f128_ps::<1>(*x, *x);
                *x = _mm256_blend_ps::<0xF0>(_mm256_add_ps(*x, other), _mm256_sub_ps(other, *x));
            }
            let [a, b] = halves;
            [_mm256_add_ps(a, b), _mm256_sub_ps(a, b)]
        }
    }

    #[inline(always)]
    fn rotate_codes(self, quads: [[__m256i; 2]; 4], zero: u8) -> [[__m256i; 2]; 4] {
        intrinsics! {
            let mut rotated = quads;
            let zeros = _mm256_set1_epi8((2 * zero).cast_signed());
            let neighbors = _mm256_broadcastsi128_si256(_mm_set_epi8(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1));
            let pairs = _mm256_broadcastsi128_si256(_mm_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2));
            // 1 and -1 in turn, and in turns of two.
            let [single, double] = [_mm256_set1_epi16(0xFF01u16.cast_signed()), _mm256_set1_epi32(0xFFFF_0101u32.cast_signed())];
            for half in 0..2 {
                let [a, b, c, d] = [quads[0][half], quads[1][half], quads[2][half], quads[3][half]];
                let (sum, difference) = (_mm256_sub_epi8(_mm256_add_epi8(a, b), zeros), _mm256_sub_epi8(a, b));
                let (last_difference, last_sum) =
                    (_mm256_sub_epi8(c, d), _mm256_sub_epi8(_mm256_add_epi8(c, d), zeros));
                let across = [
                    _mm256_add_epi8(sum, last_difference),
                    _mm256_add_epi8(difference, last_sum),
                    _mm256_sub_epi8(sum, last_difference),
                    _mm256_sub_epi8(difference, last_sum),
                ];
                for (rotated, x) in rotated.iter_mut().zip(across) {
                    let x = _mm256_add_epi8(_mm256_shuffle_epi8(x, neighbors), _mm256_sign_epi8(x, single));
                    let x = _mm256_add_epi8(_mm256_shuffle_epi8(x, pairs), _mm256_sign_epi8(x, double));
                    rotated[half] = _mm256_xor_si256(x, _mm256_set1_epi8(i8::MIN));
                }
            }
            rotated
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
