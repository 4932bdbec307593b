//! The functions between the products of a model.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::kernels::matmul::ActivationFn;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh formula.
    GeluTanh,
    Tanh,
}

impl Activation {
    /// The function that a checkpoint calls `name`.
    ///
    /// # Errors
    /// When it is not known.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "silu" | "swish" | "swiglu" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Self::GeluTanh),
            "tanh" => Ok(Self::Tanh),
            other => Err(Error::model(format!(
                "the model asks for the activation `{other}`; known are silu, gelu, gelu_pytorch_tanh, tanh"
            ))),
        }
    }

    /// What the kernels call it.
    pub fn gate(self) -> ActivationFn {
        match self {
            Self::Silu => ActivationFn::Silu,
            Self::Gelu => ActivationFn::Gelu,
            Self::GeluTanh => ActivationFn::GeluTanh,
            Self::Tanh => ActivationFn::Tanh,
        }
    }

    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => candle_nn::ops::silu(x)?,
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::Tanh => x.tanh()?,
        })
    }
}
