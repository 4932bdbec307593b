//! Parts that mixers share: their input, and the walk of a recurrent one's reference over the sequences of a batch. A mixer is the
//! part of a layer in which the tokens of a sequence exchange information.

use candle_core::Tensor;

use super::linear::ResidualAdd;
use super::norm::RowNorm;
use crate::error::Result;
use crate::kernels::recurrent::{LayerRows, SequenceState, StateLayout, with_layer_rows};

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

/// Computes recurrent layer `layer` sequence by sequence: `compute` gets a sequence's part of `rows`, `[n_tokens,
/// n_columns]`, and returns the outputs of its new rows. The result has all of them, one below the other.
///
/// # Errors
/// When a tensor operation fails.
pub fn for_each_sequence(
    rows: &Tensor,
    layout: &StateLayout,
    layer: usize,
    sequences: &mut [SequenceState],
    compute: impl Fn(&mut LayerRows) -> Result<Tensor>,
) -> Result<Tensor> {
    let (_, n_columns) = rows.dims2()?;
    let x = rows.flatten_all()?.to_vec1::<f32>()?;
    let outputs = with_layer_rows(layout, layer, sequences, &x, n_columns, |sequences| {
        sequences.iter_mut().map(compute).collect::<Result<Vec<_>>>()
    })?;
    Ok(Tensor::cat(&outputs, 0)?)
}
