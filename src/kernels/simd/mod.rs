//! Vectors of sixteen lanes, on every instruction set.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set. An implementation of the
//! trait defines how sixteen float32 lanes, 64 weight codes and their integer products are held in
//! registers; [`dispatch`] chooses one at run time. [`Scalar`] is the definition: the others compute the
//! same integers, and the same floats up to the rounding of fused multiplications.
//!
//! An implementation is a zero-sized *token*, made only where detection has found its instructions, so a
//! kernel that holds one may use them. Methods that read or write through pointers are unsafe; all others
//! are safe.

/// Wraps the intrinsics in a method of a [`Simd`] token.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: a token exists only where detection has found its instructions; a method that takes
        // pointers is itself unsafe and requires valid ones.
        unsafe { $($body)* }
    };
}

/// Evaluates `$call` with `$M` as the constant that `$n` equals: turns a number of rows, known at run time,
/// into a const generic, so that the sums of a tile stay in registers.
macro_rules! with_rows {
    ($n:expr, $M:ident in [$($m:literal),* $(,)?] => $call:expr) => {
        match $n {
            $($m => {
                const $M: usize = $m;
                $call
            })*
            n => unreachable!("no tile of {n} rows"),
        }
    };
}
pub(super) use with_rows;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "x86_64")]
use avx2::{Avx2, AvxVnni};
#[cfg(target_arch = "x86_64")]
pub use avx512::{Avx512, Avx512Bf16};
use half::bf16;
#[cfg(target_arch = "aarch64")]
use neon::{Neon, NeonDotprod, NeonI8mm};
pub use scalar::Scalar;

use super::isa::Isa;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Activations of a quad: neighbors in a row that are multiplied with as many codes of a row at once.
pub const QUAD_LEN: usize = 4;

/// Bytes of a quad of activations, in the form that [`Simd::dot_codes`] reads.
pub const QUAD_BYTES: usize = 8;

/// Neighbors in a row that are rotated together.
pub const ROTATION_LEN: usize = LANES;

/// The largest integer that an activation is quantized to: it fits two signed bytes, `256 * high + low`.
pub const ACTIVATION_MAX: f32 = 32_639.0;

/// An instruction set, as a token that shows that the processor has it.
///
/// # Safety
/// Of all unsafe methods: pointers are valid for what is read or written; any alignment will do.
pub trait Simd: Copy + 'static {
    /// Rows of activations of a GEMV tile, whose sums fit the registers beside the codes.
    const GEMV_TILE_ROWS: usize;
    /// Vectors of sums that fit the registers beside their operands.
    const SUM_VECTORS: usize;
    /// Rows of activations of a 16-bit GEMM tile, for two panels and [`Simd::dot_i16_pairs`].
    const I16_TILE_ROWS: usize;
    /// Rows of activations from which on unpacking panels for such a GEMM is profitable.
    const MIN_GEMM_ROWS: usize;
    /// Rows of activations, and panels, of a float GEMM tile.
    const FLOAT_TILE: (usize, usize);
    /// Numbers in a dword, the unit of a float GEMM: one float32 or two bfloat16.
    const FLOATS_PER_DWORD: usize = 1;

    /// Sixteen float32.
    type Floats: Copy;
    /// 64 unsigned bytes: the codes of four inner elements of each of sixteen rows, those of a row side by
    /// side.
    type Codes: Copy;
    /// Integer sums of products, for each of sixteen rows.
    type Sums: Copy;
    /// Two 16-bit integers for each of sixteen rows.
    type I16Pairs: Copy;
    /// Integer sums of products of such pairs, for each of sixteen rows.
    type I16Sums: Copy;

    /// Runs `kernel`, compiled for this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    /// Sixteen copies of `x`.
    fn splat(self, x: f32) -> Self::Floats;
    /// Loads sixteen floats.
    unsafe fn load(self, from: *const f32) -> Self::Floats;
    /// Stores sixteen floats.
    unsafe fn store(self, x: Self::Floats, to: *mut f32);
    /// Loads the sixteen floats of an array.
    #[inline(always)]
    fn load_array(self, from: &[f32; LANES]) -> Self::Floats {
        // SAFETY: an array of sixteen floats is read.
        unsafe { self.load(from.as_ptr()) }
    }

    /// Stores sixteen floats to an array.
    #[inline(always)]
    fn store_array(self, x: Self::Floats, to: &mut [f32; LANES]) {
        // SAFETY: an array of sixteen floats is written.
        unsafe { self.store(x, to.as_mut_ptr()) };
    }

    /// Loads sixteen half-precision floats.
    unsafe fn load_f16(self, from: *const u16) -> Self::Floats;
    /// Rounds to half precision and stores.
    unsafe fn store_f16(self, x: Self::Floats, to: *mut u16);
    /// Loads sixteen bfloat16.
    unsafe fn load_bf16(self, from: *const u16) -> Self::Floats;
    /// Rounds to bfloat16 and stores.
    #[inline(always)]
    unsafe fn store_bf16(self, x: Self::Floats, to: *mut bf16) {
        intrinsics! {
            let mut numbers = [0.0; LANES];
            self.store_array(x, &mut numbers);
            to.cast::<[bf16; LANES]>().write(numbers.map(bf16::from_f32));
        }
    }

    /// Loads sixteen unsigned bytes as floats.
    unsafe fn load_u8(self, from: *const u8) -> Self::Floats;
    /// Loads sixteen signed bytes as floats.
    unsafe fn load_i8(self, from: *const i8) -> Self::Floats;
    /// Rounds numbers from -127 to 127 to signed bytes and stores them.
    unsafe fn store_i8(self, x: Self::Floats, to: *mut i8);
    /// `a + b`
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a - b`
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b`
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a / b`
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The larger of each pair; `b` where either is NaN.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller of each pair; `b` where either is NaN.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Rounds to the nearest integer, ties to even.
    fn round(self, x: Self::Floats) -> Self::Floats;
    /// `x * 2^n` for integers `n` from -126 to 127.
    fn scale_by_power(self, x: Self::Floats, n: Self::Floats) -> Self::Floats;
    /// The sum of all lanes.
    fn reduce_add(self, x: Self::Floats) -> f32;
    /// The largest lane.
    fn reduce_max(self, x: Self::Floats) -> f32;
    /// The larger magnitude of each pair; not finite where either is not.
    fn max_magnitude(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The largest magnitude of all lanes; not finite if one is not.
    fn reduce_max_magnitude(self, x: Self::Floats) -> f32;

    /// Loads 64 codes of one byte each.
    unsafe fn load_codes_8(self, from: *const u8) -> Self::Codes;
    /// Loads twice 64 codes of 4 bits each: the low halves of 64 bytes, then the high halves.
    unsafe fn load_codes_4(self, from: *const u8) -> [Self::Codes; 2];
    /// Adds two bits above the low four: the bits at `SHIFT` of each of 64 bytes.
    unsafe fn or_high_bits<const SHIFT: i32>(self, low: Self::Codes, from: *const u8) -> Self::Codes;
    /// Replaces codes below 16 by what a table has for them.
    fn look_up(self, table: &[u8; 16], codes: Self::Codes) -> Self::Codes;
    /// Sums that all start at `start`.
    fn splat_sums(self, start: i32) -> Self::Sums;
    /// Adds the products of 64 codes of `bits` bits with a quad of activations, to sums of `n_before` quads.
    unsafe fn dot_codes(
        self,
        sums: Self::Sums,
        codes: Self::Codes,
        bits: u32,
        quad: *const u8,
        n_before: usize,
    ) -> Self::Sums;
    /// The sums of the products of `n_quads` quads with codes of `bits` bits, as floats.
    fn sums_to_floats(self, sums: Self::Sums, bits: u32, n_quads: usize) -> Self::Floats;
    /// Rounds sixteen numbers to integers and stores them as four quads; returns their sum.
    unsafe fn quantize_quads(self, x: Self::Floats, quads: *mut u8) -> i32;

    /// [`Simd::quantize_quads`] for two vectors at once.
    #[inline(always)]
    unsafe fn quantize_two_quads(self, x: [Self::Floats; 2], quads: [*mut u8; 2]) -> [i32; 2] {
        intrinsics! {
            [self.quantize_quads(x[0], quads[0]), self.quantize_quads(x[1], quads[1])]
        }
    }

    /// Subtracts `zero` from 64 codes and stores them as twice [`Simd::I16Pairs`]: inner elements 0 and 2 of
    /// each row, then 1 and 3.
    unsafe fn store_codes_i16(self, codes: Self::Codes, zero: i16, to: *mut i16);
    /// Subtracts `zero` from 64 codes and stores them as signed bytes.
    unsafe fn store_codes_i8(self, codes: Self::Codes, zero: i8, to: *mut i8);
    /// Turns 64 codes of `bits` bits (at most 8) into weights, `code * scale + min` with those of their row, and stores them
    /// as bfloat16: inner elements 0 and 1 of each row, then 2 and 3.
    #[inline(always)]
    unsafe fn store_weights_bf16(
        self,
        codes: Self::Codes,
        _bits: u32,
        scale: Self::Floats,
        min: Self::Floats,
        to: *mut bf16,
    ) {
        intrinsics! {
            let (mut bytes, mut scales, mut mins) = ([0u8; LANES * QUAD_LEN], [0.0; LANES], [0.0; LANES]);
            self.store_codes_i8(codes, 0, bytes.as_mut_ptr().cast());
            self.store_array(scale, &mut scales);
            self.store_array(min, &mut mins);
            for (i, code) in bytes.into_iter().enumerate() {
                let (row, inner) = (i / QUAD_LEN, i % QUAD_LEN);
                let weight = f32::from(code).mul_add(scales[row], mins[row]);
                to.add(2 * (inner / 2 * LANES + row) + inner % 2).write(bf16::from_f32(weight));
            }
        }
    }

    /// Loads two 16-bit integers for each of sixteen rows.
    unsafe fn load_i16_pairs(self, from: *const i16) -> Self::I16Pairs;
    /// Sums that all start at `start`.
    fn splat_i16_sums(self, start: i32) -> Self::I16Sums;
    /// Adds the products of pairs with a pair of activations.
    unsafe fn dot_i16_pairs(
        self,
        sums: Self::I16Sums,
        words: Self::I16Pairs,
        pair: *const i16,
    ) -> Self::I16Sums;
    /// Adds the products of 64 codes with a quad of signed bytes.
    unsafe fn dot_bytes(self, sums: Self::I16Sums, codes: Self::Codes, quad: *const i8) -> Self::I16Sums;
    /// The sums as floats.
    fn i16_sums_to_floats(self, sums: Self::I16Sums) -> Self::Floats;
    /// Rounds sixteen numbers to 16-bit integers and stores them, of each four the first and third before
    /// the second and fourth; returns their sum.
    unsafe fn quantize_i16(self, x: Self::Floats, words: *mut i16) -> i32;

    /// Rotates sixteen numbers: multiplies them with the Hadamard matrix whose last four columns are negated. The rows of
    /// that matrix are orthogonal, so a product of two vectors is a sixteenth of the product of the rotated ones; and an
    /// outlier is spread over all sixteen.
    fn rotate(self, x: Self::Floats) -> Self::Floats;
    /// Rotates sixteen neighbors of each row, from whose codes `zero` is subtracted; returns unsigned bytes, 128 for zero.
    /// Numbers from -8 to 7 stay within -127 to 127, since every row of the matrix has both signs.
    fn rotate_codes(self, quads: [Self::Codes; ROTATION_LEN / QUAD_LEN], zero: u8) -> [Self::Codes; 4];

    /// Rounds sixteen numbers to integers and stores the two signed bytes of each in separate planes; returns
    /// the sum of the integers.
    #[inline(always)]
    unsafe fn quantize_i8_planes(self, x: Self::Floats, high: *mut i8, low: *mut i8) -> i32 {
        intrinsics! {
            let mut numbers = [0.0f32; LANES];
            self.store(self.round(x), numbers.as_mut_ptr());
            let numbers = numbers.map(|number| number as i32);
            // The low byte is signed, so the high byte is the number rounded to a multiple of 256.
            high.cast::<[i8; LANES]>().write(numbers.map(|number| ((number + 128) >> 8) as i8));
            low.cast::<[i8; LANES]>().write(numbers.map(|number| number as i8));
            numbers.into_iter().sum()
        }
    }

    /// Adds the products of sixteen dwords, held in a vector of floats, with one dword.
    #[inline(always)]
    unsafe fn dot_dwords(self, sums: Self::Floats, units: Self::Floats, unit: *const f32) -> Self::Floats {
        intrinsics! {
            self.mul_add(units, self.splat(*unit), sums)
        }
    }

    /// Stores sixteen numbers as consecutive dwords.
    #[inline(always)]
    unsafe fn store_dwords(self, x: Self::Floats, to: *mut f32) {
        intrinsics! {
            self.store(x, to);
        }
    }

    /// Stores sixteen dwords: each holds a number of `first` and, if there is room for two, one of `second`.
    #[inline(always)]
    unsafe fn store_dword_pairs(self, first: Self::Floats, _second: Self::Floats, to: *mut f32) {
        intrinsics! {
            self.store(first, to);
        }
    }

    /// Prefetches a cache line into the L1 cache; any address will do.
    fn prefetch_l1(self, from: *const u8);
    /// Prefetches a cache line into the L2 cache; any address will do.
    fn prefetch_l2(self, from: *const u8);
}

/// Code that is compiled for every instruction set.
pub trait Kernel {
    /// The result.
    type Output;

    /// Runs the kernel; to be inlined.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs a kernel on an instruction set; its dwords are two bfloat16 if `in_bf16`, else a float32.
///
/// # Panics
/// When the processor does not have the instructions.
pub fn dispatch_float<K: Kernel>(isa: Isa, in_bf16: bool, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if in_bf16 {
        return token(isa, Avx512Bf16::detect()).run(kernel);
    }
    debug_assert!(!in_bf16);
    dispatch(isa, kernel)
}

/// Runs a kernel on an instruction set.
///
/// # Panics
/// When the processor does not have the instructions.
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => token(isa, Avx512::detect()).run(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => token(isa, AvxVnni::detect()).run(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => token(isa, Avx2::detect()).run(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm => token(isa, NeonI8mm::detect()).run(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod => token(isa, NeonDotprod::detect()).run(kernel),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => token(isa, Neon::detect()).run(kernel),
        _ => Scalar.run(kernel),
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn token<S: Simd>(isa: Isa, detected: Option<S>) -> S {
    detected.unwrap_or_else(|| panic!("this processor has no `{isa}` instructions"))
}

/// `e^x` to within two units in the last place; x is clamped to -87..88.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let [y] = exp_array::<S, 1>(simd, [x]);
    y
}

/// [`exp`] of several vectors in step, since each operation on one waits for the one before it.
#[inline(always)]
pub fn exp_array<S: Simd, const N: usize>(simd: S, mut x: [S::Floats; N]) -> [S::Floats; N] {
    // e^x = 2^n * e^r with n an integer and |r| <= ln(2) / 2; e^r by its series, whose next term is less
    // than 2^-26.
    let (mut powers, mut sums) = (x, [simd.splat(1.0 / 5040.0); N]);
    for i in 0..N {
        x[i] = simd.min(simd.max(x[i], simd.splat(-87.0)), simd.splat(88.0));
        powers[i] = simd.round(simd.mul(x[i], simd.splat(std::f32::consts::LOG2_E)));
    }
    // ln(2) in two parts, the first with few bits, so that the subtraction is exact.
    for part in [-0.693_359_4, 2.121_944_4e-4] {
        for i in 0..N {
            x[i] = simd.mul_add(powers[i], simd.splat(part), x[i]);
        }
    }
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        for i in 0..N {
            sums[i] = simd.mul_add(sums[i], x[i], simd.splat(coefficient));
        }
    }
    for i in 0..N {
        sums[i] = simd.scale_by_power(sums[i], powers[i]);
    }
    sums
}

/// `tanh(x)`, as `(e^2x - 1) / (e^2x + 1)`.
#[inline(always)]
pub fn tanh<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let one = simd.splat(1.0);
    // Beyond 20 the result rounds to one.
    let x = simd.min(simd.max(x, simd.splat(-20.0)), simd.splat(20.0));
    let e = exp(simd, simd.add(x, x));
    simd.div(simd.sub(e, one), simd.add(e, one))
}

/// Loads the numbers of an array.
#[inline(always)]
pub fn load_array<S: Simd>(simd: S, from: &[f32; LANES]) -> S::Floats {
    // SAFETY: the array has the sixteen numbers that are read.
    unsafe { simd.load(from.as_ptr()) }
}

/// Stores a vector in an array.
#[inline(always)]
pub fn store_array<S: Simd>(simd: S, x: S::Floats, to: &mut [f32; LANES]) {
    // SAFETY: the array has room for the sixteen numbers that are written.
    unsafe { simd.store(x, to.as_mut_ptr()) }
}

/// Loads sixteen numbers from `start` on; lanes past the end of `x` are zero.
#[inline(always)]
pub fn load_masked<S: Simd>(simd: S, x: &[f32], start: usize) -> S::Floats {
    let rest = &x[start..];
    // SAFETY: sixteen numbers are read from a slice of at least as many, or from an array of sixteen.
    unsafe {
        if rest.len() >= LANES {
            return simd.load(rest.as_ptr());
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        simd.load(last.as_ptr())
    }
}

/// Stores sixteen numbers from `start` on; lanes past the end of `to` are dropped.
#[inline(always)]
pub fn store_masked<S: Simd>(simd: S, x: S::Floats, to: &mut [f32], start: usize) {
    let rest = &mut to[start..];
    // SAFETY: sixteen numbers are written to a slice of at least as many, or to an array of sixteen.
    unsafe {
        if rest.len() >= LANES {
            return simd.store(x, rest.as_mut_ptr());
        }
        let mut last = [0.0; LANES];
        simd.store(x, last.as_mut_ptr());
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of the products of codes of `bits` bits with some quads of activations, whose integers are given.
    struct SumOfProducts<'a> {
        bits: u32,
        codes: [u8; 64],
        activations: &'a [[f32; LANES]],
        n_quads: usize,
    }

    impl Kernel for SumOfProducts<'_> {
        type Output = [f32; LANES];

        fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
            let Self { bits, codes, activations, n_quads } = self;
            let quads_per_vector = LANES / QUAD_LEN;
            let mut quads = vec![0; activations.len() * quads_per_vector * QUAD_BYTES];
            for (activations, quads) in
                activations.iter().zip(quads.chunks_exact_mut(quads_per_vector * QUAD_BYTES))
            {
                // SAFETY: there is room for the quads of a vector.
                unsafe { simd.quantize_quads(simd.load_array(activations), quads.as_mut_ptr()) };
            }
            let mut sums = simd.splat_sums(-7);
            for (idx, quad) in quads.chunks_exact(QUAD_BYTES).take(n_quads).enumerate() {
                // SAFETY: all 64 codes and the quad can be read.
                unsafe {
                    let codes = simd.load_codes_8(codes.as_ptr());
                    sums = simd.dot_codes(sums, codes, bits, quad.as_ptr(), idx);
                }
            }
            let mut result = [0.0; LANES];
            simd.store_array(simd.sums_to_floats(sums, bits, n_quads), &mut result);
            result
        }
    }

    #[test]
    fn sums_of_the_largest_products_do_not_overflow() {
        let negative = [-ACTIVATION_MAX; LANES];
        let low_bytes = [255.0; LANES];
        let high_bytes = [-32_512.0; LANES];
        let mixed = std::array::from_fn(|i| [ACTIVATION_MAX, -ACTIVATION_MAX, 255.0, -256.0][i % 4]);
        for bits in [4, 5, 6, 8] {
            let largest = u8::MAX >> (8 - bits);
            for codes in [[largest; 64], std::array::from_fn(|i| i as u8 & largest)] {
                for activations in [[ACTIVATION_MAX; LANES], negative, low_bytes, high_bytes, mixed] {
                    for n_quads in 1..=8 {
                        let sums = |isa| {
                            dispatch(
                                isa,
                                SumOfProducts { bits, codes, activations: &[activations; 2], n_quads },
                            )
                        };
                        let expected = sums(Isa::Scalar);
                        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                            assert_eq!(sums(isa), expected, "{isa}, {bits} bits, {n_quads} quads");
                        }
                    }
                }
            }
        }
    }

    /// Sixteen numbers and sixteen codes of each row, rotated, and their products in bytes.
    struct Rotation {
        numbers: [f32; LANES],
        codes: [[u8; 64]; 4],
        zero: u8,
    }

    impl Kernel for Rotation {
        type Output = ([f32; LANES], [[i8; 64]; 4], [f32; LANES]);

        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let Self { numbers, codes, zero } = self;
            let (mut rotated, mut products) = ([0.0; LANES], [0.0; LANES]);
            simd.store_array(simd.rotate(simd.load_array(&numbers)), &mut rotated);
            let mut rotated_codes = [[0; 64]; 4];
            // SAFETY: every array has the 64 codes or the sixteen bytes that are read or written.
            unsafe {
                let [a, b, c, d] = codes.each_ref().map(|quad| quad.as_ptr());
                let quads =
                    [simd.load_codes_8(a), simd.load_codes_8(b), simd.load_codes_8(c), simd.load_codes_8(d)];
                let quads = simd.rotate_codes(quads, zero);
                let mut bytes = [0i8; LANES];
                simd.store_i8(simd.load_array(&rotated), bytes.as_mut_ptr());
                let total: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
                let mut sums = simd.splat_i16_sums(-128 * total);
                for (idx, (quad, to)) in quads.into_iter().zip(&mut rotated_codes).enumerate() {
                    simd.store_codes_i8(quad, i8::MIN, to.as_mut_ptr());
                    sums = simd.dot_bytes(sums, quad, bytes[4 * idx..].as_ptr());
                }
                simd.store_array(simd.i16_sums_to_floats(sums), &mut products);
            }
            (rotated, rotated_codes, products)
        }
    }

    #[test]
    fn rotations_keep_products_and_fit_bytes() {
        let numbers: [f32; LANES] = std::array::from_fn(|i| (i * 5 % 13) as f32 - 6.0);
        let all_of = |code: u8| [[code; 64]; 4];
        let mixed = std::array::from_fn(|quad| std::array::from_fn(|i| ((7 * quad + 3 * i) % 16) as u8));
        let extremes = (0..4).map(|quad| {
            let mut codes = all_of(0);
            codes[quad] = [15; 64];
            codes
        });
        for codes in extremes.chain([all_of(0), all_of(15), mixed]) {
            let rotation = || Rotation { numbers, codes, zero: 8 };
            let (rotated, rotated_codes, products) = dispatch(Isa::Scalar, rotation());
            for row in 0..LANES {
                let code = |i: usize| f32::from(codes[i / 4][4 * row + i % 4]) - 8.0;
                let rotated_code = |i: usize| f32::from(rotated_codes[i / 4][4 * row + i % 4]);
                let product: f32 = (0..LANES).map(|i| numbers[i] * code(i)).sum();
                let of_rotated: f32 = (0..LANES).map(|i| rotated[i] * rotated_code(i)).sum();
                assert_eq!([of_rotated, products[row]], [16.0 * product; 2]);
            }
            assert!(rotated_codes.as_flattened().iter().all(|&code| code > i8::MIN));
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                assert!(dispatch(isa, rotation()) == (rotated, rotated_codes, products), "{isa}");
            }
        }
    }
}
