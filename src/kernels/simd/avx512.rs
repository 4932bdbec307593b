//! AVX-512 with VNNI: a vector is one register, an activation two signed bytes in a plane each. Newer
//! processors also multiply pairs of bfloat16.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Kernel, Simd};

/// With or without products of bfloat16.
#[derive(Debug, Clone, Copy)]
pub struct Avx512With<const BF16: bool>;

pub type Avx512 = Avx512With<false>;
pub type Avx512Bf16 = Avx512With<true>;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512Bf16>()
}

/// Magnitudes as whole numbers, among which what is not finite is larger than all others.
#[inline(always)]
unsafe fn magnitudes(x: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX))
}

/// The high and the low bytes of sixteen whole numbers.
#[inline(always)]
unsafe fn signed_bytes(numbers: __m512i) -> [__m128i; 2] {
    // The low byte is signed, so the high one takes what rounding to 256 leaves.
    let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(numbers, _mm512_set1_epi32(128)));
    [_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(numbers)]
}

/// Stores sixteen whole numbers as four quads: of each the low bytes, then the high ones.
#[inline(always)]
unsafe fn store_quads(numbers: __m512i, quads: *mut u8) {
    // The second byte is the high one of a number that is rounded to 256, the first the low one but for its sign.
    let half = _mm512_set1_epi32(128);
    let bytes = _mm512_xor_si512(_mm512_add_epi32(numbers, half), half);
    let order = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 13, 9, 5, 1, 12, 8, 4, 0);
    let in_lanes = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
    let in_order = _mm512_permutexvar_epi64(_mm512_set_epi64(0, 0, 0, 0, 6, 4, 2, 0), in_lanes);
    _mm256_storeu_si256(quads.cast(), _mm512_castsi512_si256(in_order));
}

/// Sums of the products with the high and with the low bytes of the activations.
#[derive(Clone, Copy)]
pub struct Planes {
    high: __m512i,
    low: __m512i,
}

#[cfg(target_os = "linux")] // Where there is AMX.
impl Avx512 {
    /// Sixteen sums of products with high bytes and as many with low bytes, together as numbers.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub unsafe fn join(high: *const i32, low: *const i32) -> __m512 {
        let (high, low) = (_mm512_loadu_si512(high.cast()), _mm512_loadu_si512(low.cast()));
        Self::finish(Planes { high, low })
    }
}

impl<const BF16: bool> Simd for Avx512With<BF16> {
    const TILE_ROWS: usize = 8;
    const WIDE_TILE_ROWS: usize = 6;
    // Codes are multiplied as they are read, in as many instructions.
    const MANY_ROWS: usize = usize::MAX;
    const UNIT_TILE: (usize, usize) = (12, 2);
    const UNIT_LEN: usize = if BF16 { 2 } else { 1 };

    type Floats = __m512;
    type Codes = __m512i;
    type Sums = Planes;
    type Words = __m512i;
    type WordSums = __m512i;

    #[inline(always)]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        if BF16 { run_bf16(kernel) } else { run(kernel) }
    }

    #[inline(always)]
    unsafe fn dot_units(sums: __m512, units: __m512, unit: *const f32) -> __m512 {
        let unit = _mm512_set1_ps(unit.read_unaligned());
        if BF16 {
            // SAFETY: all are 512 bits of numbers.
            let [units, unit] = [units, unit].map(|pairs| transmute::<__m512, __m512bh>(pairs));
            _mm512_dpbf16_ps(sums, units, unit)
        } else {
            _mm512_fmadd_ps(units, unit, sums)
        }
    }

    #[inline(always)]
    unsafe fn store_units(x: __m512, to: *mut f32) {
        if BF16 {
            _mm256_storeu_si256(to.cast(), transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)));
        } else {
            Self::store(x, to);
        }
    }

    #[inline(always)]
    unsafe fn zip_units(first: __m512, second: __m512, to: *mut f32) {
        if BF16 {
            let [first, second] = [first, second]
                .map(|x| _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))));
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(first, _mm512_slli_epi32::<16>(second)));
        } else {
            Self::store(first, to);
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }

    #[inline(always)]
    unsafe fn store(x: __m512, to: *mut f32) {
        _mm512_storeu_ps(to, x);
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }

    #[inline(always)]
    unsafe fn store_f16(x: __m512, to: *mut u16) {
        _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))
    }

    #[inline(always)]
    unsafe fn store_i8(x: __m512, to: *mut i8) {
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }

    #[inline(always)]
    unsafe fn scale_by_power(x: __m512, n: __m512) -> __m512 {
        _mm512_scalef_ps(x, n)
    }

    #[inline(always)]
    unsafe fn reduce_add(x: __m512) -> f32 {
        _mm512_reduce_add_ps(x)
    }

    #[inline(always)]
    unsafe fn reduce_max(x: __m512) -> f32 {
        _mm512_reduce_max_ps(x)
    }

    #[inline(always)]
    unsafe fn max_magnitude(a: __m512, b: __m512) -> __m512 {
        _mm512_castsi512_ps(_mm512_max_epi32(magnitudes(a), magnitudes(b)))
    }

    #[inline(always)]
    unsafe fn reduce_max_magnitude(x: __m512) -> f32 {
        f32::from_bits(_mm512_reduce_max_epi32(magnitudes(x)).cast_unsigned())
    }

    #[inline(always)]
    unsafe fn codes_8(from: *const u8) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }

    #[inline(always)]
    unsafe fn codes_4(from: *const u8) -> [__m512i; 2] {
        let bytes = _mm512_loadu_si512(from.cast());
        let mask = _mm512_set1_epi8(0xF);
        [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
    }

    #[inline(always)]
    unsafe fn with_high_2<const SHIFT: i32>(low: __m512i, from: *const u8) -> __m512i {
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

    #[inline(always)]
    unsafe fn sums(start: i32) -> Planes {
        Planes { high: _mm512_setzero_si512(), low: _mm512_set1_epi32(start) }
    }

    #[inline(always)]
    unsafe fn dot(sums: Planes, codes: __m512i, quad: *const u8) -> Planes {
        let quad = quad.cast::<i32>();
        let low = _mm512_set1_epi32(quad.read_unaligned());
        let high = _mm512_set1_epi32(quad.add(1).read_unaligned());
        Planes {
            high: _mm512_dpbusd_epi32(sums.high, codes, high),
            low: _mm512_dpbusd_epi32(sums.low, codes, low),
        }
    }

    #[inline(always)]
    unsafe fn finish(sums: Planes) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(sums.high), sums.low))
    }

    #[inline(always)]
    unsafe fn quantize(x: __m512, quads: *mut u8) -> i32 {
        let numbers = _mm512_cvtps_epi32(x);
        store_quads(numbers, quads);
        _mm512_reduce_add_epi32(numbers)
    }

    #[inline(always)]
    unsafe fn quantize_two(x: [__m512; 2], quads: [*mut u8; 2]) -> [i32; 2] {
        let [first, second] = [_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1])];
        store_quads(first, quads[0]);
        store_quads(second, quads[1]);
        // Both sums at once: their terms take turns.
        let sixteen =
            _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second));
        let eight =
            _mm256_add_epi32(_mm512_castsi512_si256(sixteen), _mm512_extracti64x4_epi64::<1>(sixteen));
        let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_cvtsi128_si64(_mm_add_epi32(four, _mm_unpackhi_epi64(four, four)));
        [two as i32, (two >> 32) as i32]
    }

    #[inline(always)]
    unsafe fn store_words(codes: __m512i, zero: i16, to: *mut i16) {
        let (mask, zero) = (_mm512_set1_epi16(0xFF), _mm512_set1_epi16(zero));
        let even = _mm512_and_si512(codes, mask);
        let odd = _mm512_srli_epi16::<8>(codes);
        _mm512_storeu_si512(to.cast(), _mm512_sub_epi16(even, zero));
        _mm512_storeu_si512(to.add(32).cast(), _mm512_sub_epi16(odd, zero));
    }

    #[inline(always)]
    unsafe fn store_bytes(codes: __m512i, zero: i8, to: *mut i8) {
        _mm512_storeu_si512(to.cast(), _mm512_sub_epi8(codes, _mm512_set1_epi8(zero)));
    }

    #[inline(always)]
    unsafe fn load_words(from: *const i16) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }

    #[inline(always)]
    unsafe fn word_sums() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline(always)]
    unsafe fn dot_words(sums: __m512i, words: __m512i, pair: *const i16) -> __m512i {
        _mm512_dpwssd_epi32(sums, words, _mm512_set1_epi32(pair.cast::<i32>().read_unaligned()))
    }

    #[inline(always)]
    unsafe fn finish_words(sums: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(sums)
    }

    #[inline(always)]
    unsafe fn quantize_words(x: __m512, words: *mut i16) -> i32 {
        let numbers = _mm512_cvtps_epi32(x);
        let ordered = _mm512_shuffle_epi32::<0b11_01_10_00>(numbers);
        _mm256_storeu_si256(words.cast(), _mm512_cvtepi32_epi16(ordered));
        _mm512_reduce_add_epi32(numbers)
    }

    #[inline(always)]
    unsafe fn quantize_bytes(x: __m512, high: *mut i8, low: *mut i8) -> i32 {
        let numbers = _mm512_cvtps_epi32(x);
        let [of_high, of_low] = signed_bytes(numbers);
        _mm_storeu_si128(high.cast(), of_high);
        _mm_storeu_si128(low.cast(), of_low);
        _mm512_reduce_add_epi32(numbers)
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
