//! Matrix products of rows of activations, fused with what comes before and after them: a norm in front;
//! a bias, an activation function, a gate or a residual behind.
//!
//! [`linear()`] chooses between GEMV, which multiplies weights as it reads them, a GEMM on floats, and one on quantized
//! weights. Activations of the latter are 16-bit integers; in [`RoundedRows`] they are 8-bit ones, or bfloat16 with AMX.
//! [`mlp()`] fuses two products, and [`experts()`] those of a mixture of experts.

mod activation_fns;
pub(super) mod epilogue;
mod experts;
mod gemm;
mod gemm_bf16;
pub(super) mod gemm_float;
mod gemm_int16;
mod gemm_int8;
mod gemm_quantized;
mod gemv;
mod linear;
mod mlp;
mod projection;
pub(super) mod quantize;
mod rounded_rows;

pub use self::activation_fns::ActivationFn;
pub use self::experts::{RoutedExpert, experts};
pub use self::linear::linear;
pub use self::mlp::mlp;
pub use self::projection::{Projection, ResidualWeight, WeightWithBias};
pub use self::rounded_rows::{RoundedRows, with_rounded_rows};
