//! Online softmax: scores of a few blocks at a time become weights, relative to the largest score so far.

use std::ops::Range;

use super::super::simd::{LANES, Simd, exp, load_array, load_masked, store_array, tanh};
use super::kv_kernel::STEP_BLOCKS;

/// A soft bound of scores.
#[derive(Clone, Copy)]
pub(super) struct Softcap {
    cap: f32,
    /// The reciprocal, computed once since divisions are slow.
    inverse: f32,
}

impl Softcap {
    pub(super) fn new(cap: f32) -> Self {
        Self { cap, inverse: 1.0 / cap }
    }
}

/// Scores of a row for some blocks of keys: one vector per block.
pub(super) struct RowScores<'a> {
    /// Begins with the row's scores for the first block.
    pub(super) vectors: &'a mut [[f32; LANES]],
    /// Vectors from a block to the next.
    pub(super) stride: usize,
}

/// Running softmax of a row over the keys so far.
pub(super) struct RowSoftmax<'a> {
    /// The largest score.
    pub(super) max: &'a mut f32,
    /// Sums of the weights `e^(score - max)`, lane by lane.
    pub(super) weight_sums: &'a mut [f32; LANES],
    /// Weighted sum of the values, `[padded_dim]`.
    pub(super) values: &'a mut [f32],
}

/// Turns a row's scores of some blocks into weights, in place, and rescales the row's sums when a score is
/// larger than all before. The weights of keys that are not `visible` are zero.
#[inline(always)]
pub(super) fn softmax_step<S: Simd>(
    simd: S,
    softcap: Option<Softcap>,
    visible: &[Range<usize>],
    scores: RowScores,
    row: RowSoftmax,
) {
    let RowScores { vectors, stride } = scores;
    let RowSoftmax { max: row_max, weight_sums, values } = row;
    let mut max = *row_max;
    let mut x = [simd.splat(f32::NEG_INFINITY); STEP_BLOCKS];
    let mut new_max = simd.splat(f32::NEG_INFINITY);
    for (n, visible) in visible.iter().enumerate() {
        x[n] = load_array(simd, &vectors[n * stride]);
        if let Some(Softcap { cap, inverse }) = softcap {
            x[n] = simd.mul(tanh(simd, simd.mul(x[n], simd.splat(inverse))), simd.splat(cap));
        }
        if *visible != (0..LANES) {
            x[n] = simd.add(x[n], SCORE_MASK.lanes(simd, visible));
        }
        new_max = simd.max(new_max, x[n]);
    }
    let new_max = simd.reduce_max(new_max);
    if new_max > max {
        let factor =
            if max == f32::NEG_INFINITY { simd.splat(0.0) } else { exp(simd, simd.splat(max - new_max)) };
        store_array(simd, simd.mul(load_array(simd, weight_sums), factor), weight_sums);
        for values in values.as_chunks_mut().0 {
            store_array(simd, simd.mul(load_array(simd, values), factor), values);
        }
        (max, *row_max) = (new_max, new_max);
    }
    let mut sums = load_array(simd, weight_sums);
    for (n, visible) in visible.iter().enumerate() {
        let mut weights = exp(simd, simd.sub(x[n], simd.splat(max)));
        if *visible != (0..LANES) {
            // While no key has been visible yet, `max` is minus infinity and the weights are NaN.
            let mask = WEIGHT_MASK.lanes(simd, visible);
            weights = if visible.is_empty() { mask } else { simd.mul(weights, mask) };
        }
        store_array(simd, weights, &mut vectors[n * stride]);
        sums = simd.add(sums, weights);
    }
    store_array(simd, sums, weight_sums);
}

/// Sixteen `inner` numbers between sixteen smaller `outer` ones on either side: a vector that is loaded from
/// the right place begins or ends with as many outer numbers as are needed.
struct MaskTable([f32; 3 * LANES]);

/// Added to scores.
static SCORE_MASK: MaskTable = MaskTable::new(0.0, f32::NEG_INFINITY);

/// Multiplied with weights.
static WEIGHT_MASK: MaskTable = MaskTable::new(1.0, 0.0);

impl MaskTable {
    const fn new(inner: f32, outer: f32) -> Self {
        let mut numbers = [outer; 3 * LANES];
        let mut i = LANES;
        while i < 2 * LANES {
            numbers[i] = inner;
            i += 1;
        }
        Self(numbers)
    }

    /// The inner number in the `visible` lanes, the outer one in the others.
    #[inline(always)]
    fn lanes<S: Simd>(&self, simd: S, visible: &Range<usize>) -> S::Floats {
        let masked_below = load_masked(simd, &self.0, LANES - visible.start);
        let masked_above = load_masked(simd, &self.0, 2 * LANES - visible.end);
        // Outer numbers are smaller.
        simd.min(masked_below, masked_above)
    }
}
