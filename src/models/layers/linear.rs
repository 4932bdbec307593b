//! The matrix product with a checkpoint's weights.

use candle_core::quantized::{QMatMul, QTensor};
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

/// With this many rows the weight goes on the left of candle's product, which splits the rows of
/// its left side over the cores: 29 instead of 42 to 63 ms for 350 MB of weights with 2 to 16 rows
/// (2026-11-23). One row is bound by memory either way; many pay more for turning the result.
const FEW_ROWS: std::ops::RangeInclusive<usize> = 2..=32;

impl Weight {
    pub fn quantized(tensor: QTensor) -> Result<Self> {
        Ok(Self::Quantized(QMatMul::from_qtensor(tensor)?))
    }
}

impl Linear {
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Dense(weight) if FEW_ROWS.contains(&x.dims()[0]) => {
                weight.matmul(&x.t()?)?.t()?.contiguous()?
            }
            Weight::Dense(weight) => x.matmul(&weight.t()?)?,
            Weight::Quantized(weight) => weight.forward(x)?,
        };
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }
}
