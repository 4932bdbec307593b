//! Activation functions.

use super::super::simd::{Simd, exp_array, tanh};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActivationFn {
    /// `x / (1 + e^-x)`
    Silu,
    /// The SiLU of `x` times a factor.
    ScaledSilu(f32),
    /// The square of `max(x, 0)`.
    ReluSquared,
    /// GELU with the error function.
    Gelu,
    /// GELU with the tanh approximation.
    GeluTanh,
    /// The hyperbolic tangent.
    Tanh,
    /// The clamped SwiGLU of gpt-oss: for a gate `x`, `min(x, limit) / (1 + e^(-alpha * min(x, limit)))`. The up
    /// projection is bounded by `limit` on either side, and one is added to it.
    ClampedSwiGlu {
        /// The slope of the sigmoid.
        alpha: f32,
        /// The bound.
        limit: f32,
    },
}

impl ActivationFn {
    /// Applies the function to several vectors in step, since each operation on one waits for the one before it.
    /// A faster approximation will do where the result is rounded to bfloat16.
    #[inline(always)]
    pub fn apply<S: Simd, const N: usize>(
        self,
        simd: S,
        x: [S::Floats; N],
        is_rounded: bool,
    ) -> [S::Floats; N] {
        match self {
            Self::Gelu if is_rounded => gelu_for_bf16::<S, N>(simd, x),
            Self::Silu => silu::<S, N>(simd, x),
            Self::ScaledSilu(factor) => {
                let mut scaled = x;
                for i in 0..N {
                    scaled[i] = simd.mul(x[i], simd.splat(factor));
                }
                silu::<S, N>(simd, scaled)
            }
            Self::ReluSquared => {
                let mut y = x;
                for i in 0..N {
                    let positive = simd.max(x[i], simd.splat(0.0));
                    y[i] = simd.mul(positive, positive);
                }
                y
            }
            Self::Gelu => gelu::<S, N>(simd, x),
            Self::GeluTanh => gelu_tanh::<S, N>(simd, x),
            Self::ClampedSwiGlu { alpha, limit } => {
                let (mut bounded, mut powers) = (x, x);
                for i in 0..N {
                    bounded[i] = simd.min(x[i], simd.splat(limit));
                    powers[i] = simd.mul(bounded[i], simd.splat(-alpha));
                }
                over_one_plus_exp::<S, N>(simd, bounded, powers)
            }
            Self::Tanh => {
                let mut y = x;
                for i in 0..N {
                    y[i] = tanh(simd, x[i]);
                }
                y
            }
        }
    }

    /// The factor that the activated gate is multiplied by: the up projection `x` itself, but for functions that bound
    /// it.
    #[inline(always)]
    pub fn factor<S: Simd>(self, simd: S, x: S::Floats) -> S::Floats {
        match self {
            Self::ClampedSwiGlu { limit, .. } => {
                let bounded = simd.min(simd.max(x, simd.splat(-limit)), simd.splat(limit));
                simd.add(bounded, simd.splat(1.0))
            }
            _ => x,
        }
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
fn silu<S: Simd, const N: usize>(simd: S, x: [S::Floats; N]) -> [S::Floats; N] {
    let mut minus_x = x;
    for i in 0..N {
        minus_x[i] = simd.sub(simd.splat(0.0), x[i]);
    }
    over_one_plus_exp::<S, N>(simd, x, minus_x)
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))`, which is `x / (1 + e^-2a)` for that `a`.
#[inline(always)]
fn gelu_tanh<S: Simd, const N: usize>(simd: S, x: [S::Floats; N]) -> [S::Floats; N] {
    let mut minus_2a = x;
    for i in 0..N {
        let cubic = simd.mul_add(simd.mul(x[i], x[i]), simd.splat(0.044_715), simd.splat(1.0));
        minus_2a[i] = simd.mul(simd.mul(x[i], cubic), simd.splat(-2.0 * 0.797_884_6));
    }
    over_one_plus_exp::<S, N>(simd, x, minus_2a)
}

/// `x / (1 + e^y)`
#[inline(always)]
fn over_one_plus_exp<S: Simd, const N: usize>(
    simd: S,
    mut x: [S::Floats; N],
    y: [S::Floats; N],
) -> [S::Floats; N] {
    let powers = exp_array::<S, N>(simd, y);
    for i in 0..N {
        x[i] = simd.div(x[i], simd.add(simd.splat(1.0), powers[i]));
    }
    x
}

/// [`gelu`] to within 1e-4: half of the error function as a polynomial up to 4.25, where it reaches one half.
/// The coefficients minimize the largest error of the result.
#[inline(always)]
fn gelu_for_bf16<S: Simd, const N: usize>(simd: S, mut x: [S::Floats; N]) -> [S::Floats; N] {
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
    let (mut near, mut squares, mut sums) = (x, x, [simd.splat(-8.460_426e-10); N]);
    for i in 0..N {
        near[i] = simd.min(simd.max(x[i], simd.splat(-END)), simd.splat(END));
        squares[i] = simd.mul(near[i], near[i]);
    }
    for coefficient in COEFFICIENTS {
        for i in 0..N {
            sums[i] = simd.mul_add(sums[i], squares[i], simd.splat(coefficient));
        }
    }
    for i in 0..N {
        x[i] = simd.mul(x[i], simd.mul_add(near[i], sums[i], simd.splat(0.5)));
    }
    x
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`. The error function is formula 7.1.26 of Abramowitz and Stegun,
/// "Handbook of Mathematical Functions", to within 1.5e-7.
#[inline(always)]
fn gelu<S: Simd, const N: usize>(simd: S, mut x: [S::Floats; N]) -> [S::Floats; N] {
    let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
    let (mut magnitudes, mut t, mut minus_squares) = (x, x, x);
    for i in 0..N {
        magnitudes[i] = simd.max(x[i], simd.sub(zero, x[i]));
        let scaled = simd.mul(magnitudes[i], simd.splat(std::f32::consts::FRAC_1_SQRT_2));
        t[i] = simd.div(one, simd.mul_add(scaled, simd.splat(0.327_591_1), one));
        minus_squares[i] = simd.mul(simd.sub(zero, scaled), scaled);
    }
    let powers = exp_array::<S, N>(simd, minus_squares);
    // Half of 1 - erf.
    let mut rest = [simd.splat(0.5 * 1.061_405_4); N];
    for coefficient in [-1.453_152_1, 1.421_413_7, -0.284_496_72, 0.254_829_6, 0.0] {
        for i in 0..N {
            rest[i] = simd.mul_add(rest[i], t[i], simd.splat(0.5 * coefficient));
        }
    }
    for i in 0..N {
        rest[i] = simd.mul(rest[i], powers[i]);
        x[i] = simd.sub(simd.max(x[i], zero), simd.mul(magnitudes[i], rest[i]));
    }
    x
}
