//! The short convolution of LFM2 as a mixer: `output(c * conv(b * x))`, where `b`, `c` and `x` are parts of a projection.

use candle_core::Tensor;

use super::causal_conv::{ConvWeights, convolution_inputs, convolve};
use super::linear::{Linear, concat_linear, linear_residual};
use super::mixer::{MixerInput, for_each_sequence};
use crate::error::Result;
use crate::kernels::custom_ops::{RecurrentLayer, ShortConvOp};
use crate::kernels::isa::Isa;
use crate::kernels::recurrent::{LayerRows, SequenceState, StateLayout};
use crate::models::backend::DEVICE;

/// The weights of a short convolution in one layer.
#[derive(Debug, Clone)]
pub struct ShortConvMixer {
    /// The projection to `b`, `c` and `x`, `[3 * hidden, hidden]`.
    pub input: Linear,
    /// The causal convolution.
    pub conv: ConvWeights,
    /// The output projection, `[hidden, hidden]`.
    pub output: Linear,
}

impl ShortConvMixer {
    /// Computes the mixer for the new tokens of all `sequences`, whose state in recurrent layer `layer` takes them in, and
    /// adds its output to the residual.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(
        &self,
        isa: Option<Isa>,
        input: &MixerInput,
        layout: &StateLayout,
        layer: usize,
        sequences: &mut [SequenceState],
    ) -> Result<Tensor> {
        let rows = concat_linear(input.norm, &[&self.input], input.x)?;
        let y = match isa {
            Some(isa) => {
                let states = RecurrentLayer::new(layout, layer, sequences);
                rows.apply_op1_no_bwd(&ShortConvOp { isa, conv: self.conv.kernel_params(), states })?
            }
            None => for_each_sequence(&rows, layout, layer, sequences, |sequence| {
                self.reference(layout, sequence)
            })?,
        };
        linear_residual(&self.output, input.add, &y, input.residual)
    }

    /// The outputs of a sequence's new rows, `[n_new_rows, hidden]`, in plain candle operations.
    fn reference(&self, layout: &StateLayout, sequence: &mut LayerRows) -> Result<Tensor> {
        let (n_rows, n_channels) = (sequence.rows.len(), layout.conv_channels);
        let rows = Tensor::from_vec(sequence.rows.concat(), (n_rows, 3 * n_channels), &DEVICE)?;
        let part = |idx: usize| rows.narrow(1, idx * n_channels, n_channels);
        let inputs = convolution_inputs(layout, sequence.state, &(part(0)? * part(2)?)?)?;
        let y = (part(1)? * convolve(&self.conv, &inputs)?)?;
        let kept = |n: usize| inputs.narrow(0, n, layout.conv_rows)?.flatten_all()?.to_vec1::<f32>();
        for (n, place) in &mut sequence.snapshots {
            place.copy_from_slice(&kept(*n)?);
        }
        sequence.state.copy_from_slice(&kept(sequence.n_taken_in)?);
        let first = sequence.n_replayed;
        Ok(y.narrow(0, first, n_rows - first)?.contiguous()?)
    }
}
