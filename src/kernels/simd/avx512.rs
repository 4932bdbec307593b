//! AVX-512 with VNNI: a vector is one register, an activation two signed bytes, each in a plane of its own.
//! Newer processors also multiply pairs of bfloat16.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::bf16;

use super::super::isa::Isa;
use super::{Kernel, LANES, Simd};

/// The token of AVX-512 F, BW, VL, DQ and VNNI, and of BF16 if `BF16`.
#[derive(Debug, Clone, Copy)]
pub struct Avx512With<const BF16: bool>(());

/// AVX-512, with dwords of one float32.
pub type Avx512 = Avx512With<false>;
/// AVX-512, with dwords of two bfloat16.
pub type Avx512Bf16 = Avx512With<true>;

impl Avx512 {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        (Isa::detect() >= Isa::Avx512).then_some(Self(()))
    }
}

impl Avx512Bf16 {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        Isa::detect().has_bf16().then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn run<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
fn run_bf16<K: Kernel>(simd: Avx512Bf16, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Sums of products with the high bytes and with the low bytes of the activations.
#[derive(Clone, Copy)]
pub struct Planes {
    high: __m512i,
    low: __m512i,
}

impl Planes {
    #[inline(always)]
    fn to_floats(self) -> __m512 {
        intrinsics! {
            _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(self.high), self.low))
        }
    }
}

#[cfg(target_os = "linux")] // Where there is AMX.
impl Avx512 {
    /// Loads sums of products with high bytes and with low bytes, and joins them.
    ///
    /// # Safety
    /// Sixteen integers can be read at each address.
    #[inline(always)]
    pub unsafe fn join_planes(self, high: *const i32, low: *const i32) -> __m512 {
        intrinsics! {
            let (high, low) = (_mm512_loadu_si512(high.cast()), _mm512_loadu_si512(low.cast()));
            Planes { high, low }.to_floats()
        }
    }
}

impl<const BF16: bool> Avx512With<BF16> {
    /// Magnitudes as integers, among which infinity and NaN are the largest.
    #[inline(always)]
    fn magnitudes(self, x: __m512) -> __m512i {
        intrinsics! {
            _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX))
        }
    }

    /// The high and the low bytes of sixteen integers.
    #[inline(always)]
    fn signed_bytes(self, numbers: __m512i) -> [__m128i; 2] {
        intrinsics! {
            // The low byte is signed, so the high byte is the number rounded to a multiple of 256.
            let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(numbers, _mm512_set1_epi32(128)));
            [_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(numbers)]
        }
    }

    /// Stores sixteen integers as four quads: the low bytes of each, then the high bytes.
    #[inline(always)]
    unsafe fn store_quads(self, numbers: __m512i, quads: *mut u8) {
        intrinsics! {
            // After adding 128, the second byte is the high byte, and the first is the low byte but for its sign.
            let half = _mm512_set1_epi32(128);
            let bytes = _mm512_xor_si512(_mm512_add_epi32(numbers, half), half);
            let order = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 13, 9, 5, 1, 12, 8, 4, 0);
            let in_lanes = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
            let in_order = _mm512_permutexvar_epi64(_mm512_set_epi64(0, 0, 0, 0, 6, 4, 2, 0), in_lanes);
            _mm256_storeu_si256(quads.cast(), _mm512_castsi512_si256(in_order));
        }
    }
}

impl<const BF16: bool> Simd for Avx512With<BF16> {
    const GEMV_TILE_ROWS: usize = 8;
    const SUM_VECTORS: usize = 16;
    const I16_TILE_ROWS: usize = 6;
    const MIN_GEMM_ROWS: usize = 24;
    const FLOAT_TILE: (usize, usize) = (12, 2);
    const FLOATS_PER_DWORD: usize = if BF16 { 2 } else { 1 };

    type Floats = __m512;
    type Codes = __m512i;
    type Sums = Planes;
    type I16Pairs = __m512i;
    type I16Sums = __m512i;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        intrinsics! {
            if BF16 { run_bf16(Avx512With(()), kernel) } else { run(Avx512With(()), kernel) }
        }
    }

    #[inline(always)]
    unsafe fn dot_dwords(self, sums: __m512, units: __m512, unit: *const f32) -> __m512 {
        intrinsics! {
            let unit = _mm512_set1_ps(unit.read_unaligned());
            if BF16 {
                // The types differ only in name: 512 bits each.
                let [units, unit] = [units, unit].map(|pairs| transmute::<__m512, __m512bh>(pairs));
                _mm512_dpbf16_ps(sums, units, unit)
            } else {
                _mm512_fmadd_ps(units, unit, sums)
            }
        }
    }

    #[inline(always)]
    unsafe fn store_dwords(self, x: __m512, to: *mut f32) {
        intrinsics! {
            if BF16 {
                _mm256_storeu_si256(to.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)));
            } else {
                self.store(x, to);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_dword_pairs(self, first: __m512, second: __m512, to: *mut f32) {
        intrinsics! {
            if BF16 {
                let [first, second] = [first, second]
                    .map(|x| _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))));
                _mm512_storeu_si512(to.cast(), _mm512_or_si512(first, _mm512_slli_epi32::<16>(second)));
            } else {
                self.store(first, to);
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        intrinsics! {
            _mm512_set1_ps(x)
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        intrinsics! {
            _mm512_loadu_ps(from)
        }
    }

    #[inline(always)]
    unsafe fn store(self, x: __m512, to: *mut f32) {
        intrinsics! {
            _mm512_storeu_ps(to, x);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> __m512 {
        intrinsics! {
            _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, x: __m512, to: *mut u16) {
        intrinsics! {
            _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m512 {
        intrinsics! {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, x: __m512, to: *mut bf16) {
        intrinsics! {
            // The upper half of the bits, after half a unit of it has been added: a little less, unless it is odd.
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let rounded = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7FC0_0000));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded)));
        }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m512 {
        intrinsics! {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m512 {
        intrinsics! {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, x: __m512, to: *mut i8) {
        intrinsics! {
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
        }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! {
            _mm512_add_ps(a, b)
        }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! {
            _mm512_sub_ps(a, b)
        }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! {
            _mm512_mul_ps(a, b)
        }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! {
            _mm512_div_ps(a, b)
        }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! {
            _mm512_max_ps(a, b)
        }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! {
            _mm512_min_ps(a, b)
        }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsics! {
            _mm512_fmadd_ps(a, b, c)
        }
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        intrinsics! {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
    }

    #[inline(always)]
    fn scale_by_power(self, x: __m512, n: __m512) -> __m512 {
        intrinsics! {
            _mm512_scalef_ps(x, n)
        }
    }

    #[inline(always)]
    fn reduce_add(self, x: __m512) -> f32 {
        intrinsics! {
            _mm512_reduce_add_ps(x)
        }
    }

    #[inline(always)]
    fn reduce_max(self, x: __m512) -> f32 {
        intrinsics! {
            _mm512_reduce_max_ps(x)
        }
    }

    #[inline(always)]
    fn max_magnitude(self, a: __m512, b: __m512) -> __m512 {
        intrinsics! {
            _mm512_castsi512_ps(_mm512_max_epi32(self.magnitudes(a), self.magnitudes(b)))
        }
    }

    #[inline(always)]
    fn reduce_max_magnitude(self, x: __m512) -> f32 {
        intrinsics! {
            f32::from_bits(_mm512_reduce_max_epi32(self.magnitudes(x)).cast_unsigned())
        }
    }

    #[inline(always)]
    unsafe fn load_codes_8(self, from: *const u8) -> __m512i {
        intrinsics! {
            _mm512_loadu_si512(from.cast())
        }
    }

    #[inline(always)]
    unsafe fn load_codes_4(self, from: *const u8) -> [__m512i; 2] {
        intrinsics! {
            let bytes = _mm512_loadu_si512(from.cast());
            let mask = _mm512_set1_epi8(0xF);
            [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
        }
    }

    #[inline(always)]
    unsafe fn or_high_bits<const SHIFT: i32>(self, low: __m512i, from: *const u8) -> __m512i {
        intrinsics! {
            let bytes = _mm512_loadu_si512(from.cast());
            let mask = _mm512_set1_epi8(0x30);
            // The bits from `SHIFT` on, moved to the fifth and sixth.
            let moved = match SHIFT {
                0 => _mm512_slli_epi16::<4>(bytes),
                2 => _mm512_slli_epi16::<2>(bytes),
                4 => bytes,
                _ => _mm512_srli_epi16::<2>(bytes),
            };
            _mm512_or_si512(low, _mm512_and_si512(moved, mask))
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], codes: __m512i) -> __m512i {
        intrinsics! {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, codes)
        }
    }

    #[inline(always)]
    fn splat_sums(self, start: i32) -> Planes {
        intrinsics! {
            Planes { high: _mm512_setzero_si512(), low: _mm512_set1_epi32(start) }
        }
    }

    #[inline(always)]
    unsafe fn dot_codes(self, sums: Planes, codes: __m512i, _: u32, quad: *const u8, _: usize) -> Planes {
        intrinsics! {
            let quad = quad.cast::<i32>();
            let low = _mm512_set1_epi32(quad.read_unaligned());
            let high = _mm512_set1_epi32(quad.add(1).read_unaligned());
            Planes {
                high: _mm512_dpbusd_epi32(sums.high, codes, high),
                low: _mm512_dpbusd_epi32(sums.low, codes, low),
            }
        }
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: Planes, _: u32, _: usize) -> __m512 {
        sums.to_floats()
    }

    #[inline(always)]
    unsafe fn quantize_quads(self, x: __m512, quads: *mut u8) -> i32 {
        intrinsics! {
            let numbers = _mm512_cvtps_epi32(x);
            self.store_quads(numbers, quads);
            _mm512_reduce_add_epi32(numbers)
        }
    }

    #[inline(always)]
    unsafe fn quantize_two_quads(self, x: [__m512; 2], quads: [*mut u8; 2]) -> [i32; 2] {
        intrinsics! {
            let [first, second] = [_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1])];
            self.store_quads(first, quads[0]);
            self.store_quads(second, quads[1]);
            // Both sums at once, their terms interleaved.
            let sixteen =
                _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second));
            let eight =
                _mm256_add_epi32(_mm512_castsi512_si256(sixteen), _mm512_extracti64x4_epi64::<1>(sixteen));
            let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_cvtsi128_si64(_mm_add_epi32(four, _mm_unpackhi_epi64(four, four)));
            [two as i32, (two >> 32) as i32]
        }
    }

    #[inline(always)]
    unsafe fn store_weights_bf16(self, codes: __m512i, bits: u32, scale: __m512, min: __m512, to: *mut bf16) {
        intrinsics! {
            // A code becomes a float as a part of its mantissa: that of 128, or of 32768 for codes with more bits than the
            // mantissa of bfloat16 has.
            let (mask, one, offset) =
                if bits < 8 { (0x00FF_0000, 0x4300_0000, 128.0) } else { (0xFF00, 0x4700_0000, 32_768.0) };
            let mut weights = if bits < 8 {
                [
                    _mm512_slli_epi32::<16>(codes),
                    _mm512_slli_epi32::<8>(codes),
                    codes,
                    _mm512_srli_epi32::<8>(codes),
                ]
            } else {
                [
                    _mm512_slli_epi32::<8>(codes),
                    codes,
                    _mm512_srli_epi32::<8>(codes),
                    _mm512_srli_epi32::<16>(codes),
                ]
            };
            let min = _mm512_fnmadd_ps(_mm512_set1_ps(offset), scale, min);
            // Half a unit of the upper half of the bits rounds to it.
            let half = _mm512_set1_epi32(0x8000);
            for x in &mut weights {
                const A_AND_B_OR_C: i32 = 0xEA;
                let (mask, one) = (_mm512_set1_epi32(mask), _mm512_set1_epi32(one));
                let codes = _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<A_AND_B_OR_C>(*x, mask, one));
                *x = _mm512_add_epi32(_mm512_castps_si512(_mm512_fmadd_ps(codes, scale, min)), half);
            }
            for pair in 0..2 {
                let (first, second) = (_mm512_srli_epi32::<16>(weights[2 * pair]), weights[2 * pair + 1]);
                let dwords = _mm512_mask_mov_epi16(first, 0xAAAA_AAAA, second);
                _mm512_storeu_si512(to.add(2 * LANES * pair).cast(), dwords);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_codes_i16(self, codes: __m512i, zero: i16, to: *mut i16) {
        intrinsics! {
            let (mask, zero) = (_mm512_set1_epi16(0xFF), _mm512_set1_epi16(zero));
            let even = _mm512_and_si512(codes, mask);
            let odd = _mm512_srli_epi16::<8>(codes);
            _mm512_storeu_si512(to.cast(), _mm512_sub_epi16(even, zero));
            _mm512_storeu_si512(to.add(32).cast(), _mm512_sub_epi16(odd, zero));
        }
    }

    #[inline(always)]
    unsafe fn store_codes_i8(self, codes: __m512i, zero: i8, to: *mut i8) {
        intrinsics! {
            _mm512_storeu_si512(to.cast(), _mm512_sub_epi8(codes, _mm512_set1_epi8(zero)));
        }
    }

    #[inline(always)]
    unsafe fn load_i16_pairs(self, from: *const i16) -> __m512i {
        intrinsics! {
            _mm512_loadu_si512(from.cast())
        }
    }

    #[inline(always)]
    fn splat_i16_sums(self, start: i32) -> __m512i {
        intrinsics! {
            _mm512_set1_epi32(start)
        }
    }

    #[inline(always)]
    unsafe fn dot_i16_pairs(self, sums: __m512i, words: __m512i, pair: *const i16) -> __m512i {
        intrinsics! {
            _mm512_dpwssd_epi32(sums, words, _mm512_set1_epi32(pair.cast::<i32>().read_unaligned()))
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, sums: __m512i, codes: __m512i, quad: *const i8) -> __m512i {
        intrinsics! {
            _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(quad.cast::<i32>().read_unaligned()))
        }
    }

    #[inline(always)]
    fn rotate(self, x: __m512) -> __m512 {
        intrinsics! {
            let x = _mm512_mask_sub_ps(x, 0xF000, _mm512_setzero_ps(), x);
            let other = _mm512_permute_ps::<0b10_11_00_01>(x);
            let x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xAAAA, other, x);
            let other = _mm512_permute_ps::<0b01_00_11_10>(x);
            let x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xCCCC, other, x);
            let other = _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x);
            let x = _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xF0F0, other, x);
            let other = _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x);
            _mm512_mask_sub_ps(_mm512_add_ps(x, other), 0xFF00, other, x)
        }
    }

    #[inline(always)]
    fn rotate_codes(self, [a, b, c, d]: [__m512i; 4], zero: u8) -> [__m512i; 4] {
        intrinsics! {
            // The zeros of the first two quads and of the last two cancel where these are subtracted.
            let zeros = _mm512_set1_epi8((2 * zero).cast_signed());
            let (sum, difference) = (_mm512_sub_epi8(_mm512_add_epi8(a, b), zeros), _mm512_sub_epi8(a, b));
            let (last_difference, last_sum) = (_mm512_sub_epi8(c, d), _mm512_sub_epi8(_mm512_add_epi8(c, d), zeros));
            let mut quads = [
                _mm512_add_epi8(sum, last_difference),
                _mm512_add_epi8(difference, last_sum),
                _mm512_sub_epi8(sum, last_difference),
                _mm512_sub_epi8(difference, last_sum),
            ];
            let neighbors =
                _mm512_broadcast_i32x4(_mm_set_epi8(14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1));
            for x in &mut quads {
                let other = _mm512_shuffle_epi8(*x, neighbors);
                *x = _mm512_mask_sub_epi8(_mm512_add_epi8(*x, other), 0xAAAA_AAAA_AAAA_AAAA, other, *x);
                let other = _mm512_rol_epi32::<16>(*x);
                *x = _mm512_mask_sub_epi8(_mm512_add_epi8(*x, other), 0xCCCC_CCCC_CCCC_CCCC, other, *x);
                *x = _mm512_xor_si512(*x, _mm512_set1_epi8(i8::MIN));
            }
            quads
        }
    }

    #[inline(always)]
    fn i16_sums_to_floats(self, sums: __m512i) -> __m512 {
        intrinsics! {
            _mm512_cvtepi32_ps(sums)
        }
    }

    #[inline(always)]
    unsafe fn quantize_i16(self, x: __m512, words: *mut i16) -> i32 {
        intrinsics! {
            let numbers = _mm512_cvtps_epi32(x);
            let ordered = _mm512_shuffle_epi32::<0b11_01_10_00>(numbers);
            _mm256_storeu_si256(words.cast(), _mm512_cvtepi32_epi16(ordered));
            _mm512_reduce_add_epi32(numbers)
        }
    }

    #[inline(always)]
    unsafe fn quantize_i8_planes(self, x: __m512, high: *mut i8, low: *mut i8) -> i32 {
        intrinsics! {
            let numbers = _mm512_cvtps_epi32(x);
            let [of_high, of_low] = self.signed_bytes(numbers);
            _mm_storeu_si128(high.cast(), of_high);
            _mm_storeu_si128(low.cast(), of_low);
            _mm512_reduce_add_epi32(numbers)
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
