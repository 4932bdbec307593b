//! ActivationFn functions: their names in checkpoints and their reference implementations.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::matmul::ActivationFn;

impl ActivationFn {
    /// The function with this name in a checkpoint's configuration.
    ///
    /// # Errors
    /// When the name is unknown.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "silu" | "swish" | "swiglu" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Self::GeluTanh),
            "tanh" => Ok(Self::Tanh),
            "relu2" => Ok(Self::ReluSquared),
            other => Err(Error::model(format!(
                "activation function `{other}` is not supported; supported: silu, gelu, gelu_pytorch_tanh, tanh, relu2"
            ))),
        }
    }

    /// Applies the function to every element, in plain candle operations.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => candle_nn::ops::silu(x)?,
            Self::ScaledSilu(factor) => candle_nn::ops::silu(&(x * f64::from(factor))?)?,
            Self::ReluSquared => x.relu()?.sqr()?,
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::Tanh => x.tanh()?,
            Self::ClampedSwiGlu { alpha, limit } => {
                let bounded = x.minimum(f64::from(limit))?;
                (candle_nn::ops::sigmoid(&(&bounded * f64::from(alpha))?)? * bounded)?
            }
        })
    }

    /// The factor that an activated gate is multiplied by, given the up projection `x`, in plain candle operations.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn factor_reference(self, x: Tensor) -> Result<Tensor> {
        match self {
            Self::ClampedSwiGlu { limit, .. } => Ok((x.clamp(-limit, limit)? + 1.0)?),
            _ => Ok(x),
        }
    }
}
