//! The input of a mixer: the part of a layer in which the tokens of a sequence exchange information.

use candle_core::Tensor;

use super::linear::ResidualAdd;
use super::norm::RowNorm;

/// The input of a mixer, and what its output is added to.
pub struct MixerInput<'a> {
    /// The norm of the input.
    pub norm: Option<&'a dyn RowNorm>,
    /// The input, `[n_tokens, hidden]`.
    pub x: &'a Tensor,
    /// The residual, `[n_tokens, hidden]`.
    pub residual: &'a Tensor,
    /// How the output is added to the residual.
    pub add: ResidualAdd<'a>,
}
