//! Sixteen lanes at a time, on every instruction set.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set: an implementation
//! of the trait says how sixteen float32 lanes, 64 small codes and their integer products are held,
//! [`dispatch`] chooses one at run time. [`Scalar`] is the definition; the others give the same
//! integers, and the same floats but for the rounding of fused multiplications.

/// Runs intrinsics in a method of a [`Simd`] token.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: a token is made only where detection has found its instructions; a method that takes
        // pointers is unsafe itself, and its caller has shown that they are valid.
        unsafe { $($body)* }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::{Avx512, Avx512Bf16};
pub use scalar::Scalar;

use super::isa::Isa;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Activations that are multiplied with as many neighbours of a row at once.
pub const QUAD_LEN: usize = 4;

/// Bytes that a quad of activations takes, in the form in which [`Simd::dot_codes`] multiplies them.
pub const QUAD_BYTES: usize = 8;

/// The largest whole number that stands for an activation: two signed bytes hold it, the high one
/// being at most 127.
pub const ACTIVATION_MAX: f32 = 32_639.0;

/// An instruction set.
///
/// # Safety
/// All functions: the processor has the instructions, and pointers are valid for what is read or
/// collect_rows, of any alignment.
pub trait Simd: Copy + 'static {
    /// Rows of activations whose sums the registers hold beside what else a product needs.
    const GEMV_TILE_ROWS: usize;
    /// Pairs of quads whose codes are made before any of them is used: few stay in registers beside the sums.
    const PAIRS_AT_ONCE: usize = 1;
    /// The same for products of two panels with [`Simd::dot_i16_pairs`].
    const I16_TILE_ROWS: usize;
    /// Rows from which on it pays to expand panels for that.
    const MIN_GEMM_ROWS: usize;
    /// Rows whose sums the registers hold in products of units, and with how many panels at once.
    const FLOAT_TILE: (usize, usize);
    /// Numbers of a unit: four bytes of what is multiplied as floats, one float32 or two bfloat16.
    const FLOATS_PER_DWORD: usize = 1;

    /// Sixteen float32.
    type Floats: Copy;
    /// One unsigned byte for four inner elements of each of sixteen rows: 64 in all, those of a row
    /// side by side.
    type Codes: Copy;
    /// Sixteen sums of products in progress, one for each row.
    type Sums: Copy;
    /// Two whole numbers of 16 bits for each of sixteen rows.
    type I16Pairs: Copy;
    /// Sixteen sums of products of such, one for each row.
    type I16Sums: Copy;

    /// Runs a kernel compiled for this instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::Floats;
    unsafe fn load(self, from: *const f32) -> Self::Floats;
    unsafe fn store(self, x: Self::Floats, to: *mut f32);
    unsafe fn load_f16(self, from: *const u16) -> Self::Floats;
    unsafe fn store_f16(self, x: Self::Floats, to: *mut u16);
    unsafe fn load_bf16(self, from: *const u16) -> Self::Floats;
    unsafe fn load_u8(self, from: *const u8) -> Self::Floats;
    unsafe fn load_i8(self, from: *const i8) -> Self::Floats;
    /// Rounds numbers from -127 to 127.
    unsafe fn store_i8(self, x: Self::Floats, to: *mut i8);
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The larger of each pair; `b` where one is not a number.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller of each pair; `b` where one is not a number.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// To the nearest whole number.
    fn round(self, x: Self::Floats) -> Self::Floats;
    /// `x * 2^n` for whole `n` from -126 to 127.
    fn scale_by_power(self, x: Self::Floats, n: Self::Floats) -> Self::Floats;
    fn reduce_add(self, x: Self::Floats) -> f32;
    fn reduce_max(self, x: Self::Floats) -> f32;
    /// The larger magnitude of each pair; where one is not finite, neither is the result.
    fn max_magnitude(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The largest magnitude; not finite where one number is not.
    fn reduce_max_magnitude(self, x: Self::Floats) -> f32;

    /// 64 codes of a byte each.
    unsafe fn load_codes_8(self, from: *const u8) -> Self::Codes;
    /// Two times 64 codes of 4 bits each: in the low halves of 64 bytes, then in the high ones.
    unsafe fn load_codes_4(self, from: *const u8) -> [Self::Codes; 2];
    /// Adds two bits above the low four: those at `shift` of each of 64 bytes.
    unsafe fn or_high_bits<const SHIFT: i32>(self, low: Self::Codes, from: *const u8) -> Self::Codes;
    /// Sums that start at a number.
    fn splat_sums(self, start: i32) -> Self::Sums;
    /// Adds the products of 64 codes with four activations.
    unsafe fn dot_codes(self, sums: Self::Sums, codes: Self::Codes, quad: *const u8) -> Self::Sums;
    fn sums_to_floats(self, sums: Self::Sums) -> Self::Floats;
    /// Rounds sixteen numbers and stores them as four quads; gives their sum.
    unsafe fn quantize_quads(self, x: Self::Floats, quads: *mut u8) -> i32;

    /// The same of two vectors.
    #[inline(always)]
    unsafe fn quantize_two_quads(self, x: [Self::Floats; 2], quads: [*mut u8; 2]) -> [i32; 2] {
        intrinsics! {
            [self.quantize_quads(x[0], quads[0]), self.quantize_quads(x[1], quads[1])]
        }
    }

    /// Stores 64 codes less `zero` as two times [`Simd::I16Pairs`]: first inner elements 0 and 2 of each row,
    /// then 1 and 3.
    unsafe fn store_codes_i16(self, codes: Self::Codes, zero: i16, to: *mut i16);
    /// Stores 64 codes less `zero`.
    unsafe fn store_codes_i8(self, codes: Self::Codes, zero: i8, to: *mut i8);
    unsafe fn load_i16_pairs(self, from: *const i16) -> Self::I16Pairs;
    fn zero_i16_sums(self) -> Self::I16Sums;
    /// Adds the products of words with two activations.
    unsafe fn dot_i16_pairs(
        self,
        sums: Self::I16Sums,
        words: Self::I16Pairs,
        pair: *const i16,
    ) -> Self::I16Sums;
    fn i16_sums_to_floats(self, sums: Self::I16Sums) -> Self::Floats;
    /// Rounds sixteen numbers and stores them as words, of each four the first and third before the second
    /// and fourth; gives their sum.
    unsafe fn quantize_i16(self, x: Self::Floats, words: *mut i16) -> i32;

    /// Rounds sixteen numbers and stores the two signed bytes of each, high and low ones apart; gives their
    /// sum.
    #[inline(always)]
    unsafe fn quantize_i8_planes(self, x: Self::Floats, high: *mut i8, low: *mut i8) -> i32 {
        intrinsics! {
            let mut numbers = [0.0f32; LANES];
            self.store(self.round(x), numbers.as_mut_ptr());
            let numbers = numbers.map(|number| number as i32);
            // The low byte is signed, so the high one takes what rounding to 256 leaves.
            high.cast::<[i8; LANES]>().write(numbers.map(|number| ((number + 128) >> 8) as i8));
            low.cast::<[i8; LANES]>().write(numbers.map(|number| number as i8));
            numbers.into_iter().sum()
        }
    }

    /// Adds the products of sixteen units, which are loaded as floats, with one unit.
    #[inline(always)]
    unsafe fn dot_dwords(self, sums: Self::Floats, units: Self::Floats, unit: *const f32) -> Self::Floats {
        intrinsics! {
            self.mul_add(units, self.splat(*unit), sums)
        }
    }

    /// Stores sixteen numbers as units, one after the other.
    #[inline(always)]
    unsafe fn store_dwords(self, x: Self::Floats, to: *mut f32) {
        intrinsics! {
            self.store(x, to);
        }
    }

    /// Stores sixteen units, of which each holds a number of `first` and, if it holds two, one of `second`.
    #[inline(always)]
    unsafe fn store_dword_pairs(self, first: Self::Floats, _second: Self::Floats, to: *mut f32) {
        intrinsics! {
            self.store(first, to);
        }
    }

    /// Fetches a line into the first-level cache; any address will do.
    fn prefetch_l1(self, from: *const u8);
    /// Fetches a line into the second-level cache; any address will do.
    fn prefetch_l2(self, from: *const u8);
}

/// A piece of work that is compiled for every instruction set.
pub trait Kernel {
    type Output;

    /// Does the work; to be inlined.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; and what the kernel itself asks for.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs a kernel on an instruction set, with dwords of two bfloat16 if `in_bf16`.
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
        Isa::Avx2 => token(isa, Avx2::detect()).run(kernel),
        _ => Scalar.run(kernel),
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn token<S: Simd>(isa: Isa, detected: Option<S>) -> S {
    detected.unwrap_or_else(|| panic!("this processor does not have the instructions `{isa}`"))
}

/// `e^x`, to within two units in the last place, for x from -87 to 88; beyond these, of these.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let [y] = exp_array::<S, 1>(simd, [x]);
    y
}

/// The same of several vectors in step: each operation on one waits for the one before it.
#[inline(always)]
pub fn exp_array<S: Simd, const N: usize>(simd: S, mut x: [S::Floats; N]) -> [S::Floats; N] {
    // e^x = 2^n * e^r with |r| <= ln(2) / 2, n whole; e^r by its series, whose next term is less than
    // 2^-26.
    let (mut powers, mut sums) = (x, [simd.splat(1.0 / 5040.0); N]);
    for i in 0..N {
        x[i] = simd.min(simd.max(x[i], simd.splat(-87.0)), simd.splat(88.0));
        powers[i] = simd.round(simd.mul(x[i], simd.splat(std::f32::consts::LOG2_E)));
    }
    // ln(2) in two parts, the first of few bits, so that the subtraction is exact.
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

/// `(e^2x - 1) / (e^2x + 1)`
#[inline(always)]
pub fn tanh<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let one = simd.splat(1.0);
    // Beyond 20 it is one, to the last place.
    let x = simd.min(simd.max(x, simd.splat(-20.0)), simd.splat(20.0));
    let e = exp(simd, simd.add(x, x));
    simd.div(simd.sub(e, one), simd.add(e, one))
}

/// Sixteen numbers from `start` on; zeros past the end.
#[inline(always)]
pub fn load_masked<S: Simd>(simd: S, x: &[f32], start: usize) -> S::Floats {
    let rest = &x[start..];
    // SAFETY: a vector is read where there are as many numbers.
    unsafe {
        if rest.len() >= LANES {
            return simd.load(rest.as_ptr());
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        simd.load(last.as_ptr())
    }
}
