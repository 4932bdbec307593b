//! The portable definition: plain arrays, which the compiler vectorizes as far as it can.

use half::{bf16, f16};

use super::{Kernel, LANES, QUAD_BYTES, Simd};

/// The token of portable code.
#[derive(Debug, Clone, Copy)]
pub struct Scalar;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

/// Converts half precision to float32 in arithmetic that vectorizes: a multiplication corrects the
/// exponent, which also normalizes subnormal numbers.
#[inline(always)]
fn half_to_float(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7FFF) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    let finite = f32::from_bits(magnitude) * f32::from_bits((127 + 127 - 15) << 23);
    // An exponent of all ones stays one: infinity or NaN.
    let special = if magnitude >= 0x1F << 23 { 0xFF << 23 } else { 0 };
    f32::from_bits(finite.to_bits() | special | sign)
}

/// Loads the four activations of a quad.
#[inline(always)]
unsafe fn activations(quad: *const u8) -> [i32; 4] {
    // SAFETY: `quad` is valid, as this function requires.
    let numbers: [i16; 4] = unsafe { quad.cast::<[i16; 4]>().read_unaligned() };
    numbers.map(i32::from)
}

impl Simd for Scalar {
    const GEMV_TILE_ROWS: usize = 1;
    const SUM_VECTORS: usize = 1;
    const I16_TILE_ROWS: usize = 4;
    const MIN_GEMM_ROWS: usize = 24;
    const FLOAT_TILE: (usize, usize) = (4, 1);

    type Floats = [f32; LANES];
    type Codes = [u8; 64];
    type Sums = [i32; LANES];
    type I16Pairs = [i16; 2 * LANES];
    type I16Sums = [i32; LANES];

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::Floats {
        intrinsics! {
            from.cast::<Self::Floats>().read_unaligned()
        }
    }

    #[inline(always)]
    unsafe fn store(self, x: Self::Floats, to: *mut f32) {
        intrinsics! {
            to.cast::<Self::Floats>().write_unaligned(x);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::Floats {
        intrinsics! {
            let bits = from.cast::<[u16; LANES]>().read_unaligned();
            each(|i| half_to_float(bits[i]))
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, x: Self::Floats, to: *mut u16) {
        intrinsics! {
            to.cast::<[u16; LANES]>().write_unaligned(x.map(|x| f16::from_f32(x).to_bits()));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Self::Floats {
        intrinsics! {
            let bits = from.cast::<[u16; LANES]>().read_unaligned();
            each(|i| bf16::from_bits(bits[i]).to_f32())
        }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::Floats {
        intrinsics! {
            from.cast::<[u8; LANES]>().read_unaligned().map(f32::from)
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> Self::Floats {
        intrinsics! {
            from.cast::<[i8; LANES]>().read_unaligned().map(f32::from)
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, x: Self::Floats, to: *mut i8) {
        intrinsics! {
            to.cast::<[i8; LANES]>().write_unaligned(x.map(|x| x.round_ties_even() as i8));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // Not fused: without the instruction, that would be a function call.
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn round(self, x: Self::Floats) -> Self::Floats {
        x.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn scale_by_power(self, x: Self::Floats, n: Self::Floats) -> Self::Floats {
        each(|i| x[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn reduce_add(self, x: Self::Floats) -> f32 {
        // Half by half, in the order of the vector instructions.
        let eight: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn reduce_max(self, x: Self::Floats) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn max_magnitude(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // As integers, too, infinity and NaN are larger than all finite magnitudes.
        std::array::from_fn(|i| f32::from_bits(a[i].abs().to_bits().max(b[i].abs().to_bits())))
    }

    #[inline(always)]
    fn reduce_max_magnitude(self, x: Self::Floats) -> f32 {
        f32::from_bits(x.into_iter().fold(0, |largest, x| largest.max(x.abs().to_bits())))
    }

    #[inline(always)]
    unsafe fn load_codes_8(self, from: *const u8) -> Self::Codes {
        intrinsics! {
            from.cast::<[u8; 64]>().read()
        }
    }

    #[inline(always)]
    unsafe fn load_codes_4(self, from: *const u8) -> [Self::Codes; 2] {
        intrinsics! {
            let bytes = from.cast::<[u8; 64]>().read();
            [bytes.map(|byte| byte & 0xF), bytes.map(|byte| byte >> 4)]
        }
    }

    #[inline(always)]
    unsafe fn or_high_bits<const SHIFT: i32>(self, low: Self::Codes, from: *const u8) -> Self::Codes {
        intrinsics! {
            let bytes = from.cast::<[u8; 64]>().read();
            std::array::from_fn(|i| low[i] | ((bytes[i] >> SHIFT) & 0b11) << 4)
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], codes: Self::Codes) -> Self::Codes {
        codes.map(|code| table[usize::from(code)])
    }

    #[inline(always)]
    fn splat_sums(self, start: i32) -> Self::Sums {
        [start; LANES]
    }

    #[inline(always)]
    unsafe fn dot_codes(
        self,
        sums: Self::Sums,
        codes: Self::Codes,
        _: u32,
        quad: *const u8,
        _: usize,
    ) -> Self::Sums {
        intrinsics! {
            let quad = activations(quad);
            std::array::from_fn(|row| {
                (0..4).fold(sums[row], |sum, i| sum + i32::from(codes[4 * row + i]) * quad[i])
            })
        }
    }

    #[inline(always)]
    fn sums_to_floats(self, sums: Self::Sums, _: u32, _: usize) -> Self::Floats {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    unsafe fn quantize_quads(self, x: Self::Floats, quads: *mut u8) -> i32 {
        intrinsics! {
            let numbers = x.map(|x| x.round_ties_even() as i16);
            for (i, quad) in numbers.as_chunks::<4>().0.iter().enumerate() {
                quads.add(i * QUAD_BYTES).cast::<[i16; 4]>().write_unaligned(*quad);
            }
            numbers.into_iter().map(i32::from).sum()
        }
    }

    #[inline(always)]
    unsafe fn store_codes_i16(self, codes: Self::Codes, zero: i16, to: *mut i16) {
        intrinsics! {
            let word = |row: usize, i: usize| i16::from(codes[4 * row + i]) - zero;
            let words =
                |first: usize| std::array::from_fn::<i16, { 2 * LANES }, _>(|i| word(i / 2, first + 2 * (i % 2)));
            to.cast::<[[i16; 2 * LANES]; 2]>().write_unaligned([words(0), words(1)]);
        }
    }

    #[inline(always)]
    unsafe fn store_codes_i8(self, codes: Self::Codes, zero: i8, to: *mut i8) {
        intrinsics! {
            to.cast::<[i8; 4 * LANES]>()
                .write_unaligned(codes.map(|code| code.wrapping_sub_signed(zero).cast_signed()));
        }
    }

    #[inline(always)]
    unsafe fn load_i16_pairs(self, from: *const i16) -> Self::I16Pairs {
        intrinsics! {
            from.cast::<Self::I16Pairs>().read_unaligned()
        }
    }

    #[inline(always)]
    fn splat_i16_sums(self, start: i32) -> Self::I16Sums {
        [start; LANES]
    }

    #[inline(always)]
    unsafe fn dot_i16_pairs(
        self,
        sums: Self::I16Sums,
        words: Self::I16Pairs,
        pair: *const i16,
    ) -> Self::I16Sums {
        intrinsics! {
            let [a, b] = pair.cast::<[i16; 2]>().read_unaligned().map(i32::from);
            std::array::from_fn(|row| {
                sums[row] + i32::from(words[2 * row]) * a + i32::from(words[2 * row + 1]) * b
            })
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, sums: Self::I16Sums, codes: Self::Codes, quad: *const i8) -> Self::I16Sums {
        intrinsics! {
            let quad = quad.cast::<[i8; 4]>().read_unaligned().map(i32::from);
            std::array::from_fn(|row| {
                (0..4).fold(sums[row], |sum, i| sum + i32::from(codes[4 * row + i]) * quad[i])
            })
        }
    }

    #[inline(always)]
    fn rotate(self, mut x: Self::Floats) -> Self::Floats {
        x[12..].iter_mut().for_each(|x| *x = -*x);
        for step in [1, 2, 4, 8] {
            x = each(|i| if i & step == 0 { x[i] + x[i + step] } else { x[i - step] - x[i] });
        }
        x
    }

    #[inline(always)]
    fn rotate_codes(self, quads: [Self::Codes; 4], zero: u8) -> [Self::Codes; 4] {
        let mut rotated = quads;
        for row in 0..LANES {
            let mut x: [i16; LANES] =
                std::array::from_fn(|i| i16::from(quads[i / 4][4 * row + i % 4]) - i16::from(zero));
            x[12..].iter_mut().for_each(|x| *x = -*x);
            for step in [1, 2, 4, 8] {
                x = std::array::from_fn(
                    |i| if i & step == 0 { x[i] + x[i + step] } else { x[i - step] - x[i] },
                );
            }
            for (i, x) in x.into_iter().enumerate() {
                rotated[i / 4][4 * row + i % 4] = (x + 128) as u8;
            }
        }
        rotated
    }

    #[inline(always)]
    fn i16_sums_to_floats(self, sums: Self::I16Sums) -> Self::Floats {
        sums.map(|sum| sum as f32)
    }

    #[inline(always)]
    unsafe fn quantize_i16(self, x: Self::Floats, words: *mut i16) -> i32 {
        intrinsics! {
            let numbers = x.map(|x| x.round_ties_even() as i16);
            let ordered: [i16; LANES] = std::array::from_fn(|i| numbers[i / 4 * 4 + [0, 2, 1, 3][i % 4]]);
            words.cast::<[i16; LANES]>().write_unaligned(ordered);
            numbers.into_iter().map(i32::from).sum()
        }
    }

    #[inline(always)]
    fn prefetch_l1(self, _: *const u8) {}

    #[inline(always)]
    fn prefetch_l2(self, _: *const u8) {}
}
