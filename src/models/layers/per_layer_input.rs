//! Per-layer inputs (per-layer embeddings, PLE): beside the residual, each layer has a small input of its own, made of
//! the token and of its embedding.

use std::f64::consts::FRAC_1_SQRT_2;

use candle_core::{D, Tensor};

use super::linear::{Linear, Weight};
use super::norm::{RmsNorm, RowNorm};
use crate::error::Result;
use crate::kernels::isa::Isa;
use crate::kernels::matmul::ActivationFn;

/// The weights that make the inputs of all layers.
#[derive(Debug, Clone)]
pub struct PerLayerInputs {
    /// The token embeddings, `[n_rows, n_layers * width]`.
    pub embedding: Weight,
    /// The number of these; other tokens have the first one.
    pub n_rows: usize,
    /// The projection of the model's embeddings, `[n_layers * width, hidden]`.
    pub projection: Linear,
    /// The norm of a layer's part of that projection, `[width]`.
    pub projection_norm: RmsNorm,
}

/// The weights of a layer that add its input to the residual.
#[derive(Debug, Clone)]
pub struct PerLayerInput {
    /// The gate, `[width, hidden]`.
    pub gate: Linear,
    /// The function applied to the gate.
    pub activation: ActivationFn,
    /// The projection of the gated input, `[hidden, width]`.
    pub projection: Linear,
    /// The norm of that projection.
    pub post_norm: RmsNorm,
}

impl PerLayerInputs {
    /// Computes the inputs of all layers, one after the other in a row, `[n_tokens, n_layers * width]`; `embeddings` are
    /// those of the model, `[n_tokens, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, isa: Option<Isa>, token_ids: &[u32], embeddings: &Tensor) -> Result<Tensor> {
        let (n_tokens, hidden_size) = embeddings.dims2()?;
        let width = self.projection_norm.weight.len();
        let rows: Vec<u32> =
            token_ids.iter().map(|&id| if (id as usize) < self.n_rows { id } else { 0 }).collect();
        let tokens = (self.embedding.rows(&rows)? * (width as f64).sqrt())?;
        let n_columns = tokens.dim(D::Minus1)?;
        let projected = (self.projection.forward(embeddings)? / (hidden_size as f64).sqrt())?;
        let parts = projected.reshape((n_tokens * n_columns / width, width))?;
        let normed = self.projection_norm.apply(isa, &parts)?.reshape((n_tokens, n_columns))?;
        Ok(((normed + tokens)? * FRAC_1_SQRT_2)?)
    }

    /// The part of these inputs that is the one of a layer, `[n_tokens, width]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn layer_part(&self, inputs: &Tensor, layer: usize) -> Result<Tensor> {
        let width = self.projection_norm.weight.len();
        Ok(inputs.narrow(D::Minus1, layer * width, width)?.contiguous()?)
    }
}

impl PerLayerInput {
    /// Computes the addend of the residual `x`, `[n_tokens, hidden]`, from the layer's `input`, `[n_tokens, width]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, isa: Option<Isa>, input: &Tensor, x: &Tensor) -> Result<Tensor> {
        let gated = (self.activation.forward(&self.gate.forward(x)?)? * input)?;
        self.post_norm.apply(isa, &self.projection.forward(&gated)?)
    }
}
