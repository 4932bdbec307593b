//! The tensor names of encoder checkpoints.

use crate::kernels::matmul::ActivationFn;
use crate::models::family::{GateUp, Qkv};

/// The tensor names of a checkpoint, without `.weight`. A layer's tensors have the layer's prefix in front.
#[derive(Debug, Clone, Copy)]
pub struct EncoderLayout {
    /// The prefix of the encoder's names in checkpoints of a model with a head.
    pub prefix: &'static str,
    /// The token embedding.
    pub words: &'static str,
    /// The table of learned positions.
    pub positions: Option<&'static str>,
    /// The table of token types.
    pub types: Option<&'static str>,
    /// The norm of the summed embeddings.
    pub embedding_norm: &'static str,
    /// The table of relative attention biases.
    pub relative_bias: Option<&'static str>,
    /// The prefix of a layer's number.
    pub layers: &'static str,
    /// The query, key and value projections.
    pub qkv: Qkv,
    /// The output projection of attention.
    pub output: &'static str,
    /// The norm before or after attention.
    pub attention_norm: &'static str,
    /// The first projections of the MLP.
    pub up: UpNames,
    /// The down projection of the MLP.
    pub down: &'static str,
    /// The norm before or after the MLP.
    pub mlp_norm: &'static str,
    /// The norm after the last layer.
    pub final_norm: Option<&'static str>,
    /// The classification head.
    pub head: Option<HeadLayout>,
}

/// The tensor names of an MLP's first projections.
#[derive(Debug, Clone, Copy)]
pub enum UpNames {
    /// One projection without a gate.
    Plain(&'static str),
    /// An up projection with a gate.
    Gated(GateUp),
}

/// The tensor names of a classification head, and its activation function.
#[derive(Debug, Clone, Copy)]
pub struct HeadLayout {
    /// The first projection.
    pub dense: &'static str,
    /// The function after the first projection.
    pub activation: ActivationFn,
    /// The norm after the activation function.
    pub norm: Option<&'static str>,
    /// The projection to the labels.
    pub output: &'static str,
}
