//! NEON: a vector is four registers. Later extensions multiply bytes.
//!
//! Without them, codes are widened to 16 bits and multiplied with whole activations. With dot products of bytes
//! (`sdot`), an activation is two signed bytes, each in a plane of its own, as with AVX-512. `sdot` multiplies signed
//! bytes with signed bytes: codes of eight bits are made signed by subtracting 128, and 128 times the sum of the
//! activations is added at the end. `usdot`, of the extension for matrices of bytes, takes them as they are.

use std::arch::aarch64::*;
use std::arch::asm;

use super::super::isa::Isa;
use super::{Kernel, LANES, Simd};

/// The token of NEON, of dot products of bytes if `DOT`, and of those of unsigned with signed bytes if `I8MM`.
#[derive(Debug, Clone, Copy)]
pub struct NeonWith<const DOT: bool, const I8MM: bool>(());

/// NEON alone.
pub type Neon = NeonWith<false, false>;
/// NEON with `sdot`.
pub type NeonDotprod = NeonWith<true, false>;
/// NEON with `sdot` and `usdot`.
pub type NeonI8mm = NeonWith<true, true>;

impl Neon {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        Isa::Neon.is_available().then_some(Self(()))
    }
}

impl NeonDotprod {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        Isa::NeonDotprod.is_available().then_some(Self(()))
    }
}

impl NeonI8mm {
    /// The token, if the processor has the instructions.
    pub fn detect() -> Option<Self> {
        Isa::NeonI8mm.is_available().then_some(Self(()))
    }
}

#[target_feature(enable = "neon")]
fn run<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "neon,dotprod")]
fn run_dotprod<K: Kernel>(simd: NeonDotprod, kernel: K) -> K::Output {
    kernel.run(simd)
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn run_i8mm<K: Kernel>(simd: NeonI8mm, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Defines functions for an instruction that adds, to each sum, the products of four bytes of `codes` with quarter
/// `QUARTER` of `quads`: for one register of sums, and for four. Its intrinsic is not stable yet.
macro_rules! dot_product {
    ($one:ident, $four:ident, $instruction:literal, $features:literal, $codes:ty) => {
        #[inline]
        #[target_feature(enable = $features)]
        fn $one<const QUARTER: i32>(mut sums: int32x4_t, codes: $codes, quads: int8x16_t) -> int32x4_t {
            // SAFETY: the function is only called where the processor has the instruction, which reads and writes
            // nothing but these registers.
            unsafe {
                asm!(
                    concat!($instruction, " {sums:v}.4s, {codes:v}.16b, {quads:v}.4b[{quarter}]"),
                    sums = inout(vreg) sums,
                    codes = in(vreg) codes,
                    quads = in(vreg) quads,
                    quarter = const QUARTER,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            sums
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn $four<const QUARTER: i32>(
            [a, b, c, d]: Quad<int32x4_t>,
            codes: Quad<$codes>,
            quads: int8x16_t,
        ) -> Quad<int32x4_t> {
            [
                $one::<QUARTER>(a, codes[0], quads),
                $one::<QUARTER>(b, codes[1], quads),
                $one::<QUARTER>(c, codes[2], quads),
                $one::<QUARTER>(d, codes[3], quads),
            ]
        }
    };
}

dot_product!(sdot, four_sdot, "sdot", "neon,dotprod", int8x16_t);
dot_product!(usdot, four_usdot, "usdot", "neon,i8mm", uint8x16_t);

type Quad<T> = [T; 4];

// Without loops: kernels have so many vectors that the optimizer takes minutes to unroll all of them.
#[inline(always)]
fn each<T: Copy, U>(x: Quad<T>, f: impl Fn(T) -> U) -> Quad<U> {
    [f(x[0]), f(x[1]), f(x[2]), f(x[3])]
}

#[inline(always)]
fn each_two<T: Copy, U: Copy, V>(a: Quad<T>, b: Quad<U>, f: impl Fn(T, U) -> V) -> Quad<V> {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// Integer sums of products for sixteen rows, in parts.
#[derive(Clone, Copy)]
pub struct NeonSums {
    /// Without `sdot`, four sums for each row. With it, a sum for each row of the products with low bytes, then one for
    /// each of those with high bytes.
    parts: Quad<Quad<int32x4_t>>,
    /// Without `sdot`, the start of each sum. With it, if codes have eight bits, the sums of the low and of the high
    /// bytes of activations, twice.
    others: int32x4_t,
}

impl<const DOT: bool, const I8MM: bool> NeonWith<DOT, I8MM> {
    /// Magnitudes as integers, among which infinity and NaN are the largest.
    #[inline(always)]
    fn magnitudes(self, x: float32x4_t) -> uint32x4_t {
        intrinsics! {
            vreinterpretq_u32_f32(vabsq_f32(x))
        }
    }

    /// Sixteen numbers rounded to integers of 16 bits, and the sum of the integers.
    #[inline(always)]
    fn to_integers(self, x: Quad<float32x4_t>) -> ([int16x8_t; 2], i32) {
        intrinsics! {
            let [a, b, c, d] = each(x, |x| vcvtnq_s32_f32(x));
            let sum = vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
            let narrow = |a, b| vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
            ([narrow(a, b), narrow(c, d)], sum)
        }
    }

    /// Stores sixteen integers, the bytes of each eight in the order of `order`.
    #[inline(always)]
    unsafe fn store_integers(self, numbers: [int16x8_t; 2], order: &[u8; 16], to: *mut u8) {
        intrinsics! {
            let order = vld1q_u8(order.as_ptr());
            vst1q_u8(to, vqtbl1q_u8(vreinterpretq_u8_s16(numbers[0]), order));
            vst1q_u8(to.add(16), vqtbl1q_u8(vreinterpretq_u8_s16(numbers[1]), order));
        }
    }

    /// Sixteen integers of 16 bits as floats.
    #[inline(always)]
    fn integers_to_floats(self, [low, high]: [int16x8_t; 2]) -> Quad<float32x4_t> {
        intrinsics! {
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ]
        }
    }
}

impl<const DOT: bool, const I8MM: bool> Simd for NeonWith<DOT, I8MM> {
    // A row has eight registers of sums with `sdot`, else sixteen, and four of floats.
    const GEMV_TILE_ROWS: usize = if DOT { 2 } else { 1 };
    const SUM_VECTORS: usize = 4;
    const I16_TILE_ROWS: usize = 2;
    // `sdot` multiplies twice as many whole activations as `smlal`, which multiplies unpacked codes.
    const MIN_GEMM_ROWS: usize = if DOT { usize::MAX } else { 24 };
    const FLOAT_TILE: (usize, usize) = (6, 1);

    type Floats = Quad<float32x4_t>;
    /// Sixteen bytes for four rows each.
    type Codes = Quad<uint8x16_t>;
    type Sums = NeonSums;
    /// The first integers of eight rows each, then the second.
    type I16Pairs = Quad<int16x8_t>;
    type I16Sums = Quad<int32x4_t>;

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        intrinsics! {
            if I8MM {
                run_i8mm(NeonWith(()), kernel)
            } else if DOT {
                run_dotprod(NeonWith(()), kernel)
            } else {
                run(NeonWith(()), kernel)
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        intrinsics! {
            [vdupq_n_f32(x); 4]
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::Floats {
        intrinsics! {
            [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))]
        }
    }

    #[inline(always)]
    unsafe fn store(self, x: Self::Floats, to: *mut f32) {
        intrinsics! {
            vst1q_f32(to, x[0]);
            vst1q_f32(to.add(4), x[1]);
            vst1q_f32(to.add(8), x[2]);
            vst1q_f32(to.add(12), x[3]);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::Floats {
        intrinsics! {
            let four = |from: *const u16| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
            [four(from), four(from.add(4)), four(from.add(8)), four(from.add(12))]
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, x: Self::Floats, to: *mut u16) {
        intrinsics! {
            let halves = each(x, |x| vreinterpret_u16_f16(vcvt_f16_f32(x)));
            vst1q_u16(to, vcombine_u16(halves[0], halves[1]));
            vst1q_u16(to.add(8), vcombine_u16(halves[2], halves[3]));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::Floats {
        intrinsics! {
            let four = |from: *const u16| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from)));
            [four(from), four(from.add(4)), four(from.add(8)), four(from.add(12))]
        }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::Floats {
        intrinsics! {
            let bytes = vld1q_u8(from);
            let [low, high] = [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)];
            self.integers_to_floats([vreinterpretq_s16_u16(low), vreinterpretq_s16_u16(high)])
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::Floats {
        intrinsics! {
            let bytes = vld1q_s8(from);
            self.integers_to_floats([vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)])
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, x: Self::Floats, to: *mut i8) {
        intrinsics! {
            let ([low, high], _) = self.to_integers(x);
            vst1q_s8(to, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        intrinsics! {
            each_two(a, b, |a, b| vaddq_f32(a, b))
        }
    }

    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        intrinsics! {
            each_two(a, b, |a, b| vsubq_f32(a, b))
        }
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        intrinsics! {
            each_two(a, b, |a, b| vmulq_f32(a, b))
        }
    }

    #[inline(always)]
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        intrinsics! {
            each_two(a, b, |a, b| vdivq_f32(a, b))
        }
    }

    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        intrinsics! {
            // `fmax` would return NaN where either is NaN.
            each_two(a, b, |a, b| vbslq_f32(vcgtq_f32(a, b), a, b))
        }
    }

    #[inline(always)]
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        intrinsics! {
            each_two(a, b, |a, b| vbslq_f32(vcltq_f32(a, b), a, b))
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        intrinsics! {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    fn round(self, x: Self::Floats) -> Self::Floats {
        intrinsics! {
            each(x, |x| vrndnq_f32(x))
        }
    }

    #[inline(always)]
    fn scale_by_power(self, x: Self::Floats, n: Self::Floats) -> Self::Floats {
        intrinsics! {
            each_two(x, n, |x, n| {
                let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
                vmulq_f32(x, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
            })
        }
    }

    #[inline(always)]
    fn reduce_add(self, x: Self::Floats) -> f32 {
        intrinsics! {
            let four = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }

    #[inline(always)]
    fn reduce_max(self, x: Self::Floats) -> f32 {
        intrinsics! {
            vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(x[0], x[1]), vmaxnmq_f32(x[2], x[3])))
        }
    }

    #[inline(always)]
    fn max_magnitude(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        intrinsics! {
            each_two(a, b, |a, b| vreinterpretq_f32_u32(vmaxq_u32(self.magnitudes(a), self.magnitudes(b))))
        }
    }

    #[inline(always)]
    fn reduce_max_magnitude(self, x: Self::Floats) -> f32 {
        intrinsics! {
            let [a, b, c, d] = each(x, |x| self.magnitudes(x));
            f32::from_bits(vmaxvq_u32(vmaxq_u32(vmaxq_u32(a, b), vmaxq_u32(c, d))))
        }
    }

    #[inline(always)]
    unsafe fn load_codes_8(self, from: *const u8) -> Self::Codes {
        intrinsics! {
            [vld1q_u8(from), vld1q_u8(from.add(16)), vld1q_u8(from.add(32)), vld1q_u8(from.add(48))]
        }
    }

    #[inline(always)]
    unsafe fn load_codes_4(self, from: *const u8) -> [Self::Codes; 2] {
        intrinsics! {
            let bytes = self.load_codes_8(from);
            [
                each(bytes, |bytes| vandq_u8(bytes, vdupq_n_u8(0xF))),
                each(bytes, |bytes| vshrq_n_u8::<4>(bytes)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn or_high_bits<const SHIFT: i32>(self, low: Self::Codes, from: *const u8) -> Self::Codes {
        intrinsics! {
            each_two(low, self.load_codes_8(from), |low, bytes| {
                // The bits from `SHIFT` on, moved to the fifth and sixth.
                let moved = match SHIFT {
                    0 => vshlq_n_u8::<4>(bytes),
                    2 => vshlq_n_u8::<2>(bytes),
                    4 => bytes,
                    _ => vshrq_n_u8::<2>(bytes),
                };
                vorrq_u8(low, vandq_u8(moved, vdupq_n_u8(0x30)))
            })
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], codes: Self::Codes) -> Self::Codes {
        intrinsics! {
            let table = vld1q_u8(table.as_ptr());
            each(codes, |codes| vqtbl1q_u8(table, codes))
        }
    }

    #[inline(always)]
    fn splat_sums(self, start: i32) -> NeonSums {
        intrinsics! {
            let (zero, start) = (vdupq_n_s32(0), vdupq_n_s32(start));
            let first = if DOT { start } else { zero };
            NeonSums { parts: [[first; 4], [zero; 4], [zero; 4], [zero; 4]], others: if DOT { zero } else { start } }
        }
    }

    #[inline(always)]
    unsafe fn dot_codes(
        self,
        sums: NeonSums,
        codes: Self::Codes,
        bits: u32,
        quad: *const u8,
        _: usize,
    ) -> NeonSums {
        intrinsics! {
            let NeonSums { parts, mut others } = sums;
            if !DOT {
                let activations = vld1_s16(quad.cast());
                let parts = each_two(parts, codes, |[a, b, c, d], codes| {
                    let first = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes)));
                    let second = vreinterpretq_s16_u16(vmovl_high_u8(codes));
                    [
                        vmlal_s16(a, vget_low_s16(first), activations),
                        vmlal_s16(b, vget_high_s16(first), activations),
                        vmlal_s16(c, vget_low_s16(second), activations),
                        vmlal_s16(d, vget_high_s16(second), activations),
                    ]
                });
                return NeonSums { parts, others };
            }
            // The low bytes, the high bytes, and both again.
            let quads = vreinterpretq_s8_s64(vld1q_dup_s64(quad.cast()));
            let [low, high, ..] = parts;
            let [low, high] = if bits == 8 && I8MM {
                [four_usdot::<0>(low, codes, quads), four_usdot::<1>(high, codes, quads)]
            } else {
                let mut signed = each(codes, |codes| vreinterpretq_s8_u8(codes));
                if bits == 8 {
                    signed = each(signed, |codes| veorq_s8(codes, vdupq_n_s8(i8::MIN)));
                    others = sdot::<0>(others, quads, vdupq_n_s8(1));
                }
                [four_sdot::<0>(low, signed, quads), four_sdot::<1>(high, signed, quads)]
            };
            NeonSums { parts: [low, high, parts[2], parts[3]], others }
        }
    }

    #[inline(always)]
    fn sums_to_floats(self, NeonSums { parts, others }: NeonSums, bits: u32, _: usize) -> Self::Floats {
        intrinsics! {
            if !DOT {
                return each(parts, |[a, b, c, d]| {
                    let total = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
                    vcvtq_f32_s32(vaddq_s32(total, others))
                });
            }
            let join = |low, high| vaddq_s32(low, vshlq_n_s32::<8>(high));
            let mut totals = each_two(parts[0], parts[1], join);
            if bits == 8 && !I8MM {
                let of_activations = join(vdupq_laneq_s32::<0>(others), vdupq_laneq_s32::<1>(others));
                totals = each(totals, |total| vaddq_s32(total, vshlq_n_s32::<7>(of_activations)));
            }
            each(totals, |total| vcvtq_f32_s32(total))
        }
    }

    #[inline(always)]
    unsafe fn quantize_quads(self, x: Self::Floats, quads: *mut u8) -> i32 {
        intrinsics! {
            let (numbers, sum) = self.to_integers(x);
            if DOT {
                // After adding 128, the high byte is that of a signed low byte, which is right but for its sign.
                let half = vdupq_n_s16(128);
                let to_planes = |numbers| veorq_s16(vaddq_s16(numbers, half), half);
                let bytes = [to_planes(numbers[0]), to_planes(numbers[1])];
                // The low bytes of each quad, then the high bytes.
                self.store_integers(bytes, &[0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15], quads);
            } else {
                vst1q_s16(quads.cast(), numbers[0]);
                vst1q_s16(quads.cast::<i16>().add(8), numbers[1]);
            }
            sum
        }
    }

    #[inline(always)]
    unsafe fn store_codes_i16(self, codes: Self::Codes, zero: i16, to: *mut i16) {
        intrinsics! {
            let zero = vdupq_n_s16(zero);
            let signed = |codes| vsubq_s16(vreinterpretq_s16_u16(codes), zero);
            let [a, b, c, d] = each(codes, |codes| {
                let codes = vreinterpretq_u16_u8(codes);
                [signed(vandq_u16(codes, vdupq_n_u16(0xFF))), signed(vshrq_n_u16::<8>(codes))]
            });
            for idx in 0..2 {
                let to = to.add(2 * LANES * idx);
                vst1q_s16(to, vuzp1q_s16(a[idx], b[idx]));
                vst1q_s16(to.add(8), vuzp1q_s16(c[idx], d[idx]));
                vst1q_s16(to.add(16), vuzp2q_s16(a[idx], b[idx]));
                vst1q_s16(to.add(24), vuzp2q_s16(c[idx], d[idx]));
            }
        }
    }

    #[inline(always)]
    unsafe fn store_codes_i8(self, codes: Self::Codes, zero: i8, to: *mut i8) {
        intrinsics! {
            let signed = each(codes, |codes| vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(zero)));
            vst1q_s8(to, signed[0]);
            vst1q_s8(to.add(16), signed[1]);
            vst1q_s8(to.add(32), signed[2]);
            vst1q_s8(to.add(48), signed[3]);
        }
    }

    #[inline(always)]
    unsafe fn load_i16_pairs(self, from: *const i16) -> Self::I16Pairs {
        intrinsics! {
            [vld1q_s16(from), vld1q_s16(from.add(8)), vld1q_s16(from.add(16)), vld1q_s16(from.add(24))]
        }
    }

    #[inline(always)]
    fn splat_i16_sums(self, start: i32) -> Self::I16Sums {
        intrinsics! {
            [vdupq_n_s32(start); 4]
        }
    }

    #[inline(always)]
    unsafe fn dot_i16_pairs(
        self,
        sums: Self::I16Sums,
        words: Self::I16Pairs,
        pair: *const i16,
    ) -> Self::I16Sums {
        intrinsics! {
            let [first, second] = [vdupq_n_s16(*pair), vdupq_n_s16(*pair.add(1))];
            let [a, b, c, d] = sums;
            let sums = [
                vmlal_s16(a, vget_low_s16(words[0]), vget_low_s16(first)),
                vmlal_high_s16(b, words[0], first),
                vmlal_s16(c, vget_low_s16(words[1]), vget_low_s16(first)),
                vmlal_high_s16(d, words[1], first),
            ];
            let [a, b, c, d] = sums;
            [
                vmlal_s16(a, vget_low_s16(words[2]), vget_low_s16(second)),
                vmlal_high_s16(b, words[2], second),
                vmlal_s16(c, vget_low_s16(words[3]), vget_low_s16(second)),
                vmlal_high_s16(d, words[3], second),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, sums: Self::I16Sums, codes: Self::Codes, quad: *const i8) -> Self::I16Sums {
        intrinsics! {
            let quads = vreinterpretq_s8_s32(vld1q_dup_s32(quad.cast()));
            if I8MM {
                return four_usdot::<0>(sums, codes, quads);
            }
            if DOT {
                let signed = each(codes, |codes| veorq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(i8::MIN)));
                let of_activations = sdot::<0>(vdupq_n_s32(0), quads, vdupq_n_s8(1));
                let sums = each(sums, |sums| vaddq_s32(sums, vshlq_n_s32::<7>(of_activations)));
                return four_sdot::<0>(sums, signed, quads);
            }
            let activations = vget_low_s16(vmovl_s8(vget_low_s8(quads)));
            each_two(sums, codes, |sums, codes| {
                let first = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes)));
                let second = vreinterpretq_s16_u16(vmovl_high_u8(codes));
                let a = vmull_s16(vget_low_s16(first), activations);
                let b = vmull_s16(vget_high_s16(first), activations);
                let c = vmull_s16(vget_low_s16(second), activations);
                let d = vmull_s16(vget_high_s16(second), activations);
                vaddq_s32(sums, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)))
            })
        }
    }

    #[inline(always)]
    fn rotate(self, [a, b, c, d]: Self::Floats) -> Self::Floats {
        intrinsics! {
            let [odd, last] = [vreinterpretq_u32_u64(vdupq_n_u64(0xFFFF_FFFF << 32)), vcombine_u32(vdup_n_u32(0), vdup_n_u32(u32::MAX))];
            let [a, b, c, d] = each([a, b, c, vnegq_f32(d)], |x| {
                let other = vrev64q_f32(x);
                let x = vbslq_f32(odd, vsubq_f32(other, x), vaddq_f32(x, other));
                let other = vextq_f32::<2>(x, x);
                vbslq_f32(last, vsubq_f32(other, x), vaddq_f32(x, other))
            });
            let [a, b, c, d] = [vaddq_f32(a, b), vsubq_f32(a, b), vaddq_f32(c, d), vsubq_f32(c, d)];
            [vaddq_f32(a, c), vaddq_f32(b, d), vsubq_f32(a, c), vsubq_f32(b, d)]
        }
    }

    #[inline(always)]
    fn rotate_codes(self, [a, b, c, d]: [Self::Codes; 4], zero: u8) -> [Self::Codes; 4] {
        intrinsics! {
            let zeros = vdupq_n_u8(2 * zero);
            let add = |a, b| each_two(a, b, |a, b| vaddq_u8(a, b));
            let subtract = |a, b| each_two(a, b, |a, b| vsubq_u8(a, b));
            let (sum, difference) = (subtract(add(a, b), [zeros; 4]), subtract(a, b));
            let (last_difference, last_sum) = (subtract(c, d), subtract(add(c, d), [zeros; 4]));
            let [odd, last] = [vreinterpretq_u8_u16(vdupq_n_u16(0xFF00)), vreinterpretq_u8_u32(vdupq_n_u32(0xFFFF_0000))];
            let rotate_quads = |quads| {
                each(quads, |x| {
                    let other = vrev16q_u8(x);
                    let x = vbslq_u8(odd, vsubq_u8(other, x), vaddq_u8(x, other));
                    let other = vreinterpretq_u8_u16(vrev32q_u16(vreinterpretq_u16_u8(x)));
                    let x = vbslq_u8(last, vsubq_u8(other, x), vaddq_u8(x, other));
                    veorq_u8(x, vdupq_n_u8(0x80))
                })
            };
            [
                rotate_quads(add(sum, last_difference)),
                rotate_quads(add(difference, last_sum)),
                rotate_quads(subtract(sum, last_difference)),
                rotate_quads(subtract(difference, last_sum)),
            ]
        }
    }

    #[inline(always)]
    fn i16_sums_to_floats(self, sums: Self::I16Sums) -> Self::Floats {
        intrinsics! {
            each(sums, |sums| vcvtq_f32_s32(sums))
        }
    }

    #[inline(always)]
    unsafe fn quantize_i16(self, x: Self::Floats, words: *mut i16) -> i32 {
        intrinsics! {
            let (numbers, sum) = self.to_integers(x);
            let order = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
            self.store_integers(numbers, &order, words.cast());
            sum
        }
    }

    #[inline(always)]
    fn prefetch_l1(self, from: *const u8) {
        intrinsics! {
            asm!("prfm pldl1keep, [{}]", in(reg) from, options(nomem, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn prefetch_l2(self, from: *const u8) {
        intrinsics! {
            asm!("prfm pldl2keep, [{}]", in(reg) from, options(nomem, nostack, preserves_flags));
        }
    }
}
