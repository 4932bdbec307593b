//! The learned augmented residual layer (LAuReL, Menghani et al., 2024), in its low-rank form.

use std::f64::consts::FRAC_1_SQRT_2;

use candle_core::Tensor;

use super::linear::Linear;
use super::norm::{RmsNorm, RowNorm};
use crate::error::Result;
use crate::kernels::isa::Isa;

/// The weights of an augmented residual in one layer.
#[derive(Debug, Clone)]
pub struct Laurel {
    /// `[rank, hidden]`
    pub left: Linear,
    /// `[hidden, rank]`
    pub right: Linear,
    /// The norm of the product of the two.
    pub post_norm: RmsNorm,
}

impl Laurel {
    /// Augments the `residual` after attention by attention's normed input `x`, both `[n_tokens, hidden]`:
    /// `(residual + x + post_norm(right(left(x)))) / sqrt(2)`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, isa: Option<Isa>, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let product = self.right.forward(&self.left.forward(x)?)?;
        Ok((((self.post_norm.apply(isa, &product)? + x)? + residual)? * FRAC_1_SQRT_2)?)
    }
}
