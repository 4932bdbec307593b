//! Causal depthwise convolution: its weights, and its reference in plain candle operations.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::kernels::recurrent::{CausalConv, StateLayout};
use crate::models::backend::DEVICE;

/// The weights of a causal convolution.
#[derive(Debug, Clone)]
pub struct ConvWeights {
    /// `[kernel, channels]`, the oldest row first.
    pub weight: Vec<f32>,
    /// `[channels]`
    pub bias: Option<Vec<f32>>,
    /// Rows of a sum.
    pub kernel: usize,
}

impl ConvWeights {
    /// The parameters of the kernels.
    pub fn kernel_params(&self) -> CausalConv<'_> {
        CausalConv { weight: &self.weight, bias: self.bias.as_deref(), kernel: self.kernel }
    }
}

/// The inputs of a convolution: those that the state keeps, then those of new rows, `[conv_rows + n_rows, channels]`.
///
/// # Errors
/// When a tensor operation fails.
pub fn convolution_inputs(layout: &StateLayout, state: &[f32], rows: &Tensor) -> Result<Tensor> {
    let StateLayout { conv_rows, conv_channels, .. } = *layout;
    let kept = Tensor::from_slice(&state[..conv_rows * conv_channels], (conv_rows, conv_channels), &DEVICE)?;
    Ok(Tensor::cat(&[&kept, rows], 0)?)
}

/// The causal convolution of `inputs` in plain candle operations, `[n_rows, channels]`.
///
/// # Errors
/// When a tensor operation fails.
pub fn convolve(conv: &ConvWeights, inputs: &Tensor) -> Result<Tensor> {
    let (n_inputs, n_channels) = inputs.dims2()?;
    let n_rows = n_inputs + 1 - conv.kernel;
    let mut sum = match &conv.bias {
        Some(bias) => Tensor::new(bias.as_slice(), &DEVICE)?.broadcast_as((n_rows, n_channels))?,
        None => Tensor::zeros((n_rows, n_channels), DType::F32, &DEVICE)?,
    };
    for (idx, weight) in conv.weight.chunks_exact(n_channels).enumerate() {
        let weight = Tensor::from_slice(weight, (1, n_channels), &DEVICE)?;
        sum = (sum + inputs.narrow(0, idx, n_rows)?.broadcast_mul(&weight)?)?;
    }
    Ok(sum)
}
