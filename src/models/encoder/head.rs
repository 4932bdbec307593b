//! The classification head.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::layers::linear::Linear;
use crate::models::layers::norm::{LayerNorm, RowNorm};

/// A classification head: scores the labels of a text from one hidden state.
pub struct ClassificationHead {
    /// `[hidden, hidden]`
    pub dense: Linear,
    /// The function after the first projection.
    pub activation: ActivationFn,
    /// The norm after the activation function.
    pub norm: Option<LayerNorm>,
    /// `[n_labels, hidden]`
    pub output: Linear,
    /// The number of labels.
    pub n_labels: usize,
}

impl ClassificationHead {
    /// Scores the labels: `[n_texts, hidden]` to `[n_texts, n_labels]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, states: &Tensor) -> Result<Tensor> {
        let x = self.activation.forward(&self.dense.forward(states)?)?;
        let x = match &self.norm {
            Some(norm) => norm.forward(&x)?,
            None => x,
        };
        self.output.forward(&x)
    }
}
