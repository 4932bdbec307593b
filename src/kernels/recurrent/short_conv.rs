//! The short convolution of LFM2: `c * conv(b * x)`, where `b`, `c` and `x` are parts of an input row.

use super::causal_conv::{CausalConv, input_before, kept_inputs};
use super::{LayerRows, StateLayout};
use crate::kernels::isa::Isa;
use crate::kernels::simd::{Kernel, LANES, Simd, dispatch, load_masked, store_masked};
use crate::kernels::threads::disjoint::DisjointSlice;
use crate::kernels::threads::pool;

/// Computes the outputs of new rows, `[n_rows, channels]`, from input rows `[3 * channels]`, and updates the state of each
/// sequence, which keeps the products of `b` and `x`.
///
/// # Panics
/// When lengths do not fit each other.
pub fn short_conv(
    isa: Isa,
    conv: &CausalConv,
    layout: &StateLayout,
    sequences: &mut [LayerRows],
) -> Vec<f32> {
    let n_channels = layout.conv_channels;
    assert!(layout.matrices_len == 0 && layout.conv_rows + 1 == conv.kernel);
    assert!(conv.weight.len() == conv.kernel * n_channels);
    let products: Vec<Vec<Vec<f32>>> = sequences
        .iter()
        .map(|sequence| sequence.rows.iter().map(|row| product(row, n_channels)).collect())
        .collect();
    let new_rows = |(idx, sequence): (usize, &LayerRows)| {
        (sequence.n_replayed..sequence.rows.len()).map(move |row| (idx, row)).collect::<Vec<_>>()
    };
    let places: Vec<(usize, usize)> = sequences.iter().enumerate().flat_map(new_rows).collect();
    let mut y = vec![0.0; places.len() * n_channels];
    let shared = DisjointSlice::new(&mut y);
    let compute = |new_row: usize| {
        let (sequence, idx) = places[new_row];
        let inputs: Vec<&[f32]> = (0..conv.kernel)
            .map(|back| {
                let rows = &products[sequence];
                match idx.checked_sub(back) {
                    Some(row) => &rows[row][..],
                    None => input_before(layout, sequences[sequence].state, &[], idx, back),
                }
            })
            .collect();
        // SAFETY: each row is claimed once.
        let y = unsafe { shared.slice(new_row * n_channels, n_channels) };
        let factors = &sequences[sequence].rows[idx][n_channels..2 * n_channels];
        dispatch(isa, ShortConvRow { conv, inputs: &inputs, factors, y });
    };
    pool::run(|team| team.claim_chunks(places.len(), 1).flatten().for_each(compute));
    for (sequence, products) in sequences.iter_mut().zip(&products) {
        let kept = |state: &[f32], n_rows: usize| {
            kept_inputs(layout, state, n_rows, |row, kept| kept.copy_from_slice(&products[row]))
        };
        for (n_rows, snapshot) in &mut sequence.snapshots {
            snapshot.copy_from_slice(&kept(sequence.state, *n_rows));
        }
        let state = kept(sequence.state, sequence.n_taken_in);
        sequence.state.copy_from_slice(&state);
    }
    y
}

/// `b * x`
fn product(row: &[f32], n_channels: usize) -> Vec<f32> {
    let (b, x) = (&row[..n_channels], &row[2 * n_channels..]);
    b.iter().zip(x).map(|(b, x)| b * x).collect()
}

struct ShortConvRow<'a> {
    conv: &'a CausalConv<'a>,
    /// The newest input first.
    inputs: &'a [&'a [f32]],
    factors: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for ShortConvRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { conv, inputs, factors, y } = self;
        for channel in (0..y.len()).step_by(LANES) {
            let sums = conv.sums(simd, y.len(), channel, |back| load_masked(simd, inputs[back], channel));
            let product = simd.mul(sums, load_masked(simd, factors, channel));
            store_masked(simd, product, y, channel);
        }
    }
}
