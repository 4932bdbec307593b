//! Causal depthwise convolution: each channel of a row is a weighted sum of that channel in the last rows.

use super::StateLayout;
use crate::kernels::simd::{Simd, load_masked};

/// The weights of a causal convolution.
#[derive(Debug, Clone, Copy)]
pub struct CausalConv<'a> {
    /// `[kernel, channels]`, the oldest row first.
    pub weight: &'a [f32],
    /// `[channels]`
    pub bias: Option<&'a [f32]>,
    /// Rows of a sum.
    pub kernel: usize,
}

impl CausalConv<'_> {
    /// The sums of sixteen channels from `channel` on. `input` gives the channels of the row that is `back` rows before
    /// the newest.
    #[inline(always)]
    pub(super) fn sums<S: Simd>(
        &self,
        simd: S,
        n_channels: usize,
        channel: usize,
        input: impl Fn(usize) -> S::Floats,
    ) -> S::Floats {
        let mut sums = self.bias.map_or(simd.splat(0.0), |bias| load_masked(simd, bias, channel));
        for (idx, weight) in self.weight.chunks_exact(n_channels).enumerate() {
            let weight = load_masked(simd, weight, channel);
            sums = simd.mul_add(weight, input(self.kernel - 1 - idx), sums);
        }
        sums
    }
}

/// The inputs of a convolution before a row: from earlier rows of the batch, and before those from the state.
pub(super) fn input_before<'a>(
    layout: &StateLayout,
    state: &'a [f32],
    rows: &[&'a [f32]],
    row: usize,
    back: usize,
) -> &'a [f32] {
    match row.checked_sub(back) {
        Some(row) => rows[row],
        None => {
            let from_end = back - row;
            let start = (layout.conv_rows - from_end) * layout.conv_channels;
            &state[start..start + layout.conv_channels]
        }
    }
}

/// The inputs that the convolution keeps after `n_rows` rows, `[conv_rows, conv_channels]`. `input` copies the channels of
/// a row.
pub(super) fn kept_inputs(
    layout: &StateLayout,
    state: &[f32],
    n_rows: usize,
    input: impl Fn(usize, &mut [f32]),
) -> Vec<f32> {
    let StateLayout { conv_rows, conv_channels, .. } = *layout;
    let mut kept = vec![0.0; conv_rows * conv_channels];
    for (idx, kept) in kept.chunks_exact_mut(conv_channels.max(1)).enumerate() {
        match (n_rows + idx).checked_sub(conv_rows) {
            Some(row) => input(row, kept),
            None => kept.copy_from_slice(&state[(n_rows + idx) * conv_channels..][..conv_channels]),
        }
    }
    kept
}
