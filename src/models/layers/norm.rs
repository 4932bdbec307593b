//! Normalisation over the last dimension.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::activations::Norm;

/// `x / sqrt(mean(x²) + eps) * weight`
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[hidden]`
    pub weight: Vec<f32>,
    pub eps: f32,
}

impl RmsNorm {
    /// What the kernels need of it.
    pub fn kernel(&self) -> Norm<'_> {
        Norm::Rms { weight: &self.weight, eps: self.eps }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::rms_norm(x, &Tensor::new(self.weight.as_slice(), x.device())?, self.eps)?)
    }
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[hidden]`
    weight: Tensor,
    /// `[hidden]`
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps: eps as f32 }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(candle_nn::ops::layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}
