//! Normalization over the last dimension.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::custom_ops::NormOp;
use crate::kernels::isa::Isa;
use crate::kernels::norm::Norm;

/// A norm of rows, as kernel parameters and in plain candle operations.
pub trait RowNorm {
    /// The parameters of the kernels.
    fn kernel_params(&self) -> Norm<'_>;

    /// Normalizes each row in plain candle operations.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// Normalizes each row, by the kernel for `isa` or in plain candle operations.
    ///
    /// # Errors
    /// When a tensor operation fails.
    fn apply(&self, isa: Option<Isa>, x: &Tensor) -> Result<Tensor> {
        match isa {
            Some(isa) => Ok(x.apply_op1_no_bwd(&NormOp { isa, norm: self.kernel_params() })?),
            None => self.forward(x),
        }
    }
}

/// `x / sqrt(mean(x²) + eps) * weight`
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[hidden]`
    pub weight: Vec<f32>,
    /// Added to the mean square for numerical stability.
    pub eps: f32,
}

impl RowNorm for RmsNorm {
    fn kernel_params(&self) -> Norm<'_> {
        Norm::Rms { weight: &self.weight, eps: self.eps }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm(x, &Tensor::new(self.weight.as_slice(), x.device())?, self.eps)?)
    }
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[hidden]`
    pub weight: Vec<f32>,
    /// `[hidden]`
    pub bias: Vec<f32>,
    /// Added to the variance for numerical stability.
    pub eps: f32,
}

impl RowNorm for LayerNorm {
    fn kernel_params(&self) -> Norm<'_> {
        Norm::Layer { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [weight, bias] = [&self.weight, &self.bias].map(|part| Tensor::new(part.as_slice(), x.device()));
        Ok(candle_nn::ops::layer_norm(x, &weight?, &bias?, self.eps)?)
    }
}
