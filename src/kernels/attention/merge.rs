//! Merging of partial softmaxes: the results of KV splits become the result of all keys.

use super::super::simd::{Kernel, Simd, exp, load_array, store_array};
use super::PagedAttention;
use super::paged::PagedSequence;
use super::partition::WorkItem;

/// Softmax of a row over some of its keys: the largest score, and the sum of the weights `e^(score - max)`.
/// The weighted sum of the values is kept elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartialSoftmax {
    pub(super) max: f32,
    pub(super) weight_sum: f32,
}

impl PartialSoftmax {
    /// The softmax over no keys.
    pub(super) const EMPTY: Self = Self { max: f32::NEG_INFINITY, weight_sum: 0.0 };

    /// The sum of the weights, that of a sink included: a score without a value.
    pub(super) fn weight_sum_with(&self, sink: Option<f32>) -> f32 {
        // A sink far above every score makes the sum infinite and the output zero, which it is to within rounding.
        self.weight_sum + sink.map_or(0.0, |sink| (sink - self.max).exp())
    }

    /// Adds another partial softmax, and its weighted values to one's own: whole vectors, equally many.
    #[inline(always)]
    pub(super) fn merge<S: Simd>(&mut self, simd: S, values: &mut [f32], other: Self, other_values: &[f32]) {
        if other.weight_sum == 0.0 {
            return;
        }
        if self.weight_sum == 0.0 {
            *self = other;
            values.copy_from_slice(other_values);
            return;
        }
        let max = self.max.max(other.max);
        let factor = |partial: Self| exp(simd, simd.splat(partial.max - max));
        let (own, others) = (factor(*self), factor(other));
        let weight_sum =
            simd.mul_add(simd.splat(other.weight_sum), others, simd.mul(simd.splat(self.weight_sum), own));
        *self = Self { max, weight_sum: simd.reduce_max(weight_sum) };
        for (value, other) in values.as_chunks_mut().0.iter_mut().zip(other_values.as_chunks().0) {
            let scaled = simd.mul(load_array(simd, value), own);
            store_array(simd, simd.mul_add(load_array(simd, other), others, scaled), value);
        }
    }
}

/// Merges the partial softmaxes of sequences whose keys were cut into splits, in order, and writes the
/// output.
pub(super) struct MergePartials<'a> {
    pub(super) attention: &'a PagedAttention<'a>,
    pub(super) sequences: &'a [PagedSequence<'a>],
    pub(super) items: &'a [WorkItem],
    pub(super) rows_per_partial: usize,
    /// `[n_partials, rows_per_partial]`
    pub(super) partials: &'a [PartialSoftmax],
    /// `[n_partials, rows_per_partial, padded_dim]`
    pub(super) values: &'a [f32],
    /// `[n_tokens, n_heads, head_dim]`
    pub(super) y: &'a mut [f32],
}

impl Kernel for MergePartials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { attention, sequences, items, rows_per_partial, partials, values, y } = self;
        let (head_dim, padded, group) =
            (attention.layout.head_dim, attention.layout.padded_dim(), attention.group());
        let have_same_rows =
            |a: &WorkItem, b: &WorkItem| a.sequence == b.sequence && a.kv_heads == b.kv_heads;
        let mut total_values = vec![0.0; padded];
        for items in items.chunk_by(have_same_rows).filter(|items| items[0].first_partial.is_some()) {
            let first = &items[0];
            for row in 0..first.rows_per_head(group) * first.kv_heads.len() {
                let mut total = PartialSoftmax::EMPTY;
                for partial in items.iter().flat_map(WorkItem::partials) {
                    let idx = partial * rows_per_partial + row;
                    let values = &values[idx * padded..(idx + 1) * padded];
                    total.merge(simd, &mut total_values, partials[idx], values);
                }
                attention.layout.rotate_back(simd, &mut total_values);
                let (token, head) = first.token_and_head(row, group);
                let row = sequences[first.sequence].first_row + token;
                let start = (row * attention.n_heads + head) * head_dim;
                let weight_sum = total.weight_sum_with(attention.sink(head));
                for (y, value) in y[start..start + head_dim].iter_mut().zip(&total_values) {
                    *y = value / weight_sum;
                }
            }
        }
    }
}
