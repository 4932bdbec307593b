//! Sixteen lanes at a time, on every instruction set.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set: an implementation
//! of the trait says how sixteen float32 lanes, 64 small codes and their integer products are held,
//! [`dispatch`] chooses one at run time. [`Scalar`] is the definition; the others give the same
//! integers, and the same floats but for the rounding of fused multiplications.

#![allow(unsafe_op_in_unsafe_fn)] // Every function here is one expression of unsafe operations.

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

/// Bytes that a quad of activations takes, in the form in which [`Simd::dot`] multiplies them.
pub const QUAD_BYTES: usize = 8;

/// The largest whole number that stands for an activation: two signed bytes hold it, the high one
/// being at most 127.
pub const ACTIVATION_MAX: f32 = 32_639.0;

/// An instruction set.
///
/// # Safety
/// All functions: the processor has the instructions, and pointers are valid for what is read or
/// written, of any alignment.
pub trait Simd: Copy + 'static {
    /// Rows of activations whose sums the registers hold beside what else a product needs.
    const TILE_ROWS: usize;
    /// Pairs of quads whose codes are made before any of them is used: few stay in registers beside the sums.
    const PAIRS_AT_ONCE: usize = 1;
    /// The same for products of two panels with [`Simd::dot_words`].
    const WIDE_TILE_ROWS: usize;
    /// Rows from which on it pays to expand panels for that.
    const MANY_ROWS: usize;
    /// Rows whose sums the registers hold in products of units, and with how many panels at once.
    const UNIT_TILE: (usize, usize);
    /// Numbers of a unit: four bytes of what is multiplied as floats, one float32 or two bfloat16.
    const UNIT_LEN: usize = 1;

    /// Sixteen float32.
    type Floats: Copy;
    /// One unsigned byte for four inner elements of each of sixteen rows: 64 in all, those of a row
    /// side by side.
    type Codes: Copy;
    /// Sixteen sums of products in progress, one for each row.
    type Sums: Copy;
    /// Two whole numbers of 16 bits for each of sixteen rows.
    type Words: Copy;
    /// Sixteen sums of products of such, one for each row.
    type WordSums: Copy;

    /// Runs a kernel compiled for this instruction set.
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output;

    unsafe fn splat(x: f32) -> Self::Floats;
    unsafe fn load(from: *const f32) -> Self::Floats;
    unsafe fn store(x: Self::Floats, to: *mut f32);
    unsafe fn load_f16(from: *const u16) -> Self::Floats;
    unsafe fn store_f16(x: Self::Floats, to: *mut u16);
    unsafe fn load_bf16(from: *const u16) -> Self::Floats;
    unsafe fn load_u8(from: *const u8) -> Self::Floats;
    unsafe fn load_i8(from: *const i8) -> Self::Floats;
    /// Rounds numbers from -127 to 127.
    unsafe fn store_i8(x: Self::Floats, to: *mut i8);
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn sub(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn div(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The larger of each pair; `b` where one is not a number.
    unsafe fn max(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller of each pair; `b` where one is not a number.
    unsafe fn min(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// To the nearest whole number.
    unsafe fn round(x: Self::Floats) -> Self::Floats;
    /// `x * 2^n` for whole `n` from -126 to 127.
    unsafe fn scale_by_power(x: Self::Floats, n: Self::Floats) -> Self::Floats;
    unsafe fn reduce_add(x: Self::Floats) -> f32;
    unsafe fn reduce_max(x: Self::Floats) -> f32;
    /// The larger magnitude of each pair; where one is not finite, neither is the result.
    unsafe fn max_magnitude(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The largest magnitude; not finite where one number is not.
    unsafe fn reduce_max_magnitude(x: Self::Floats) -> f32;

    /// 64 codes of a byte each.
    unsafe fn codes_8(from: *const u8) -> Self::Codes;
    /// Two times 64 codes of 4 bits each: in the low halves of 64 bytes, then in the high ones.
    unsafe fn codes_4(from: *const u8) -> [Self::Codes; 2];
    /// Adds two bits above the low four: those at `shift` of each of 64 bytes.
    unsafe fn with_high_2<const SHIFT: i32>(low: Self::Codes, from: *const u8) -> Self::Codes;
    /// Sums that start at a number.
    unsafe fn sums(start: i32) -> Self::Sums;
    /// Adds the products of 64 codes with four activations.
    unsafe fn dot(sums: Self::Sums, codes: Self::Codes, quad: *const u8) -> Self::Sums;
    unsafe fn finish(sums: Self::Sums) -> Self::Floats;
    /// Rounds sixteen numbers and stores them as four quads; gives their sum.
    unsafe fn quantize(x: Self::Floats, quads: *mut u8) -> i32;

    /// The same of two vectors.
    #[inline(always)]
    unsafe fn quantize_two(x: [Self::Floats; 2], quads: [*mut u8; 2]) -> [i32; 2] {
        [Self::quantize(x[0], quads[0]), Self::quantize(x[1], quads[1])]
    }

    /// Stores 64 codes less `zero` as two times [`Simd::Words`]: first inner elements 0 and 2 of each row,
    /// then 1 and 3.
    unsafe fn store_words(codes: Self::Codes, zero: i16, to: *mut i16);
    /// Stores 64 codes less `zero`.
    unsafe fn store_bytes(codes: Self::Codes, zero: i8, to: *mut i8);
    unsafe fn load_words(from: *const i16) -> Self::Words;
    unsafe fn word_sums() -> Self::WordSums;
    /// Adds the products of words with two activations.
    unsafe fn dot_words(sums: Self::WordSums, words: Self::Words, pair: *const i16) -> Self::WordSums;
    unsafe fn finish_words(sums: Self::WordSums) -> Self::Floats;
    /// Rounds sixteen numbers and stores them as words, of each four the first and third before the second
    /// and fourth; gives their sum.
    unsafe fn quantize_words(x: Self::Floats, words: *mut i16) -> i32;

    /// Rounds sixteen numbers and stores the two signed bytes of each, high and low ones apart; gives their
    /// sum.
    #[inline(always)]
    unsafe fn quantize_bytes(x: Self::Floats, high: *mut i8, low: *mut i8) -> i32 {
        let mut numbers = [0.0f32; LANES];
        Self::store(Self::round(x), numbers.as_mut_ptr());
        let numbers = numbers.map(|number| number as i32);
        // The low byte is signed, so the high one takes what rounding to 256 leaves.
        high.cast::<[i8; LANES]>().write(numbers.map(|number| ((number + 128) >> 8) as i8));
        low.cast::<[i8; LANES]>().write(numbers.map(|number| number as i8));
        numbers.into_iter().sum()
    }

    /// Adds the products of sixteen units, which are loaded as floats, with one unit.
    #[inline(always)]
    unsafe fn dot_units(sums: Self::Floats, units: Self::Floats, unit: *const f32) -> Self::Floats {
        Self::mul_add(units, Self::splat(*unit), sums)
    }

    /// Stores sixteen numbers as units, one after the other.
    #[inline(always)]
    unsafe fn store_units(x: Self::Floats, to: *mut f32) {
        Self::store(x, to);
    }

    /// Stores sixteen units, of which each holds a number of `first` and, if it holds two, one of `second`.
    #[inline(always)]
    unsafe fn zip_units(first: Self::Floats, _second: Self::Floats, to: *mut f32) {
        Self::store(first, to);
    }

    /// Fetches a line into the first-level cache; any address will do.
    unsafe fn prefetch_l1(from: *const u8);
    /// Fetches a line into the second-level cache; any address will do.
    unsafe fn prefetch_l2(from: *const u8);
}

/// A piece of work that is compiled for every instruction set.
pub trait Kernel {
    type Output;

    /// Does the work; to be inlined.
    ///
    /// # Safety
    /// The processor has the instructions of `S`; and what the kernel itself asks for.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel on an instruction set; one that multiplies units of two bfloat16 if `in_bf16`.
///
/// # Safety
/// As [`dispatch`]; and the processor multiplies bfloat16, if it is to ([`Isa::has_bf16`]).
pub unsafe fn dispatch_units<K: Kernel>(isa: Isa, in_bf16: bool, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if in_bf16 {
        return Avx512Bf16::run(kernel);
    }
    debug_assert!(!in_bf16);
    dispatch(isa, kernel)
}

/// Runs a kernel on an instruction set.
///
/// # Safety
/// The processor has it ([`Isa::is_available`]); and what the kernel itself asks for.
pub unsafe fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => Avx512::run(kernel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Avx2::run(kernel),
        _ => Scalar::run(kernel),
    }
}

/// `e^x`, to within two units in the last place, for x from -87 to 88; beyond these, of these.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::Floats) -> S::Floats {
    let [y] = exp_each::<S, 1>([x]);
    y
}

/// The same of several vectors in step: each operation on one waits for the one before it.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn exp_each<S: Simd, const N: usize>(mut x: [S::Floats; N]) -> [S::Floats; N] {
    // e^x = 2^n * e^r with |r| <= ln(2) / 2, n whole; e^r by its series, whose next term is less than
    // 2^-26.
    let (mut powers, mut sums) = (x, [S::splat(1.0 / 5040.0); N]);
    for i in 0..N {
        x[i] = S::min(S::max(x[i], S::splat(-87.0)), S::splat(88.0));
        powers[i] = S::round(S::mul(x[i], S::splat(std::f32::consts::LOG2_E)));
    }
    // ln(2) in two parts, the first of few bits, so that the subtraction is exact.
    for part in [-0.693_359_4, 2.121_944_4e-4] {
        for i in 0..N {
            x[i] = S::mul_add(powers[i], S::splat(part), x[i]);
        }
    }
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        for i in 0..N {
            sums[i] = S::mul_add(sums[i], x[i], S::splat(coefficient));
        }
    }
    for i in 0..N {
        sums[i] = S::scale_by_power(sums[i], powers[i]);
    }
    sums
}

/// `(e^2x - 1) / (e^2x + 1)`
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::Floats) -> S::Floats {
    let one = S::splat(1.0);
    // Beyond 20 it is one, to the last place.
    let x = S::min(S::max(x, S::splat(-20.0)), S::splat(20.0));
    let e = exp::<S>(S::add(x, x));
    S::div(S::sub(e, one), S::add(e, one))
}

/// Sixteen numbers from `start` on; zeros past the end.
#[inline(always)]
pub unsafe fn load_part<S: Simd>(x: &[f32], start: usize) -> S::Floats {
    let rest = &x[start..];
    // SAFETY: a vector is read where there are as many numbers.
    unsafe {
        if rest.len() >= LANES {
            return S::load(rest.as_ptr());
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        S::load(last.as_ptr())
    }
}
