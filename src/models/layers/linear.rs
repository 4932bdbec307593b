//! The matrix product with a checkpoint's weights.

use candle_core::quantized::QMatMul;
use candle_core::{Module, Tensor};

use crate::error::Result;

/// `y = x Wᵀ + b`, `x` being `[n_rows, n_in]` and `y` `[n_rows, n_out]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    /// `[n_out]`
    bias: Option<Tensor>,
}

/// How the weight is kept: float32 `[n_out, n_in]`, or as the file has it.
#[derive(Debug, Clone)]
pub enum Weight {
    Dense(Tensor),
    Quantized(QMatMul),
}

impl Linear {
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Dense(weight) => x.matmul(&weight.t()?)?,
            Weight::Quantized(weight) => weight.forward(x)?,
        };
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }
}
