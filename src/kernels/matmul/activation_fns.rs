//! Activation functions, on vectors.

use super::super::simd::{Simd, exp_each, tanh};

/// What a gate is passed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh formula.
    GeluTanh,
    Tanh,
}

impl Gate {
    /// Of several vectors in step, since each operation on one waits for the one before it; what is to be
    /// rounded to bfloat16 need not be right to the last place.
    #[inline(always)]
    pub unsafe fn of<S: Simd, const N: usize>(self, x: [S::Floats; N], is_rounded: bool) -> [S::Floats; N] {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Gelu if is_rounded => gelu_to_round::<S, N>(x),
                Self::Silu => silu::<S, N>(x),
                Self::Gelu => gelu::<S, N>(x),
                Self::GeluTanh => gelu_tanh::<S, N>(x),
                Self::Tanh => {
                    let mut y = x;
                    for i in 0..N {
                        y[i] = tanh::<S>(x[i]);
                    }
                    y
                }
            }
        }
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
unsafe fn silu<S: Simd, const N: usize>(x: [S::Floats; N]) -> [S::Floats; N] {
    // SAFETY: the processor has the instructions.
    unsafe {
        let mut minus_x = x;
        for i in 0..N {
            minus_x[i] = S::sub(S::splat(0.0), x[i]);
        }
        over_one_plus_exp::<S, N>(x, minus_x)
    }
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))`, which is `x / (1 + e^-2a)` for that `a`.
#[inline(always)]
unsafe fn gelu_tanh<S: Simd, const N: usize>(x: [S::Floats; N]) -> [S::Floats; N] {
    // SAFETY: the processor has the instructions.
    unsafe {
        let mut minus_2a = x;
        for i in 0..N {
            let cubic = S::mul_add(S::mul(x[i], x[i]), S::splat(0.044_715), S::splat(1.0));
            minus_2a[i] = S::mul(S::mul(x[i], cubic), S::splat(-2.0 * 0.797_884_6));
        }
        over_one_plus_exp::<S, N>(x, minus_2a)
    }
}

/// `x / (1 + e^y)`
#[inline(always)]
unsafe fn over_one_plus_exp<S: Simd, const N: usize>(
    mut x: [S::Floats; N],
    y: [S::Floats; N],
) -> [S::Floats; N] {
    // SAFETY: the processor has the instructions.
    unsafe {
        let powers = exp_each::<S, N>(y);
        for i in 0..N {
            x[i] = S::div(x[i], S::add(S::splat(1.0), powers[i]));
        }
        x
    }
}

/// The same as [`gelu`], right to 1e-4: half of the error function by a polynomial up to 4.25, where it becomes
/// one half. The coefficients make the largest error of the result smallest.
#[inline(always)]
unsafe fn gelu_to_round<S: Simd, const N: usize>(mut x: [S::Floats; N]) -> [S::Floats; N] {
    const END: f32 = 4.25;
    const COEFFICIENTS: [f32; 7] = [
        7.570_843_7e-8,
        -2.938_805_2e-6,
        6.552_713e-5,
        -9.404_478_5e-4,
        9.257_824e-3,
        -6.545_35e-2,
        0.398_420_04,
    ];
    // SAFETY: the processor has the instructions.
    unsafe {
        let (mut near, mut squares, mut sums) = (x, x, [S::splat(-8.460_426e-10); N]);
        for i in 0..N {
            near[i] = S::min(S::max(x[i], S::splat(-END)), S::splat(END));
            squares[i] = S::mul(near[i], near[i]);
        }
        for coefficient in COEFFICIENTS {
            for i in 0..N {
                sums[i] = S::mul_add(sums[i], squares[i], S::splat(coefficient));
            }
        }
        for i in 0..N {
            x[i] = S::mul(x[i], S::mul_add(near[i], sums[i], S::splat(0.5)));
        }
        x
    }
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`. The error function is formula 7.1.26 of Abramowitz and Stegun,
/// "Handbook of Mathematical Functions", right to 1.5e-7.
#[inline(always)]
unsafe fn gelu<S: Simd, const N: usize>(mut x: [S::Floats; N]) -> [S::Floats; N] {
    // SAFETY: the processor has the instructions.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let (mut magnitudes, mut t, mut minus_squares) = (x, x, x);
        for i in 0..N {
            magnitudes[i] = S::max(x[i], S::sub(zero, x[i]));
            let scaled = S::mul(magnitudes[i], S::splat(std::f32::consts::FRAC_1_SQRT_2));
            t[i] = S::div(one, S::mul_add(scaled, S::splat(0.327_591_1), one));
            minus_squares[i] = S::mul(S::sub(zero, scaled), scaled);
        }
        let powers = exp_each::<S, N>(minus_squares);
        // Half of 1 - erf: what is left of x, or of nothing where x is negative.
        let mut rest = [S::splat(0.5 * 1.061_405_4); N];
        for coefficient in [-1.453_152_1, 1.421_413_7, -0.284_496_72, 0.254_829_6, 0.0] {
            for i in 0..N {
                rest[i] = S::mul_add(rest[i], t[i], S::splat(0.5 * coefficient));
            }
        }
        for i in 0..N {
            rest[i] = S::mul(rest[i], powers[i]);
            x[i] = S::sub(S::max(x[i], zero), S::mul(magnitudes[i], rest[i]));
        }
        x
    }
}
