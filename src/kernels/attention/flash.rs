//! The fused kernel of a work item (flash attention): scores, online softmax and weighted values, a few
//! blocks of keys at a time.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::simd::{Kernel, LANES, Simd, load_array};
use super::kv_block::BLOCK_TOKENS;
use super::kv_kernel::{KvKernel, KvStep, STEP_BLOCKS};
use super::kv_write::{KvWrite, NewToken};
use super::merge::PartialSoftmax;
use super::partition::{KV_SPLIT, WorkItem};
use super::rope::{HeadNorms, norm_rope_scale};
use super::softmax::{RowScores, RowSoftmax, softmax_step};
use super::{AttentionPass, PagedAttention};

/// Computes a work item with the keys and values of a [`KvKernel`].
pub(super) struct WorkItemKernel<'a, K> {
    pass: &'a AttentionPass<'a>,
    item: &'a WorkItem,
    /// The item that the thread is likely to claim next, whose first blocks are prefetched.
    next: Option<&'a WorkItem>,
    /// Query heads per key head.
    group: usize,
    kv_kernel: PhantomData<K>,
}

/// Buffers of a work item.
struct ItemState<K> {
    kv_kernel: K,
    /// Scores of a step, then weights: `[STEP_BLOCKS, rows_per_head][LANES]`.
    scores: Vec<[f32; LANES]>,
    split: SplitSoftmax,
    /// Softmax over all splits so far of each row, and its values, `[n_rows, padded_dim]`.
    totals: Vec<PartialSoftmax>,
    total_values: Vec<f32>,
}

/// Running softmax of each row over the keys of a KV split.
struct SplitSoftmax {
    max: Vec<f32>,
    weight_sums: Vec<[f32; LANES]>,
    /// `[n_rows, padded_dim]`
    values: Vec<f32>,
    padded: usize,
}

impl SplitSoftmax {
    fn new(n_rows: usize, padded: usize) -> Self {
        Self {
            values: vec![0.0; n_rows * padded],
            max: vec![f32::NEG_INFINITY; n_rows],
            weight_sums: vec![[0.0; LANES]; n_rows],
            padded,
        }
    }

    #[inline(always)]
    fn row(&mut self, row: usize) -> RowSoftmax<'_> {
        RowSoftmax {
            max: &mut self.max[row],
            weight_sums: &mut self.weight_sums[row],
            values: &mut self.values[row * self.padded..(row + 1) * self.padded],
        }
    }

    fn reset(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.weight_sums.fill([0.0; LANES]);
        self.values.fill(0.0);
    }
}

impl<K: KvKernel> Kernel for WorkItemKernel<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { pass, item, .. } = self;
        let layout = &pass.attention.layout;
        let (rows_per_head, padded) = (item.rows_per_head(self.group), layout.padded_dim());
        let n_rows = rows_per_head * item.kv_heads.len();
        // The lines that are written arrive while the queries are gathered.
        let writes = self.decode_writes();
        writes.clone().for_each(|write| write.prefetch(simd));
        let queries = self.gather_queries(n_rows);
        writes.for_each(|write| write.write(simd));

        let mut state = ItemState {
            totals: vec![PartialSoftmax::EMPTY; n_rows],
            total_values: vec![0.0; n_rows * padded],
            split: SplitSoftmax::new(n_rows, padded),
            scores: vec![[0.0; LANES]; STEP_BLOCKS * rows_per_head],
            kv_kernel: K::new(simd, layout, queries, rows_per_head),
        };
        let Range { start: mut block, end: end_block } = item.blocks();
        while block < end_block {
            let end = end_block.min(block + STEP_BLOCKS - block % STEP_BLOCKS);
            for kv_head in item.kv_heads.clone() {
                self.attend(simd, kv_head, block..end, &mut state);
            }
            block = end;
            if block.is_multiple_of(KV_SPLIT / BLOCK_TOKENS) || block == end_block {
                self.fold_split(simd, (block - 1) * BLOCK_TOKENS / KV_SPLIT, &mut state);
            }
        }
        if item.first_partial.is_none() {
            self.write_output(simd, &mut state);
        }
    }
}

impl<'a, K: KvKernel> WorkItemKernel<'a, K> {
    /// The kernel of one of the items of a pass.
    ///
    /// # Safety
    /// The item is run once, and the keys and values of prefills have been written before.
    pub(super) unsafe fn new(
        pass: &'a AttentionPass<'a>,
        item: &'a WorkItem,
        next: Option<&'a WorkItem>,
    ) -> Self {
        Self { pass, item, next, group: pass.attention.group(), kv_kernel: PhantomData }
    }

    /// The KV writes that are this item's: those of decoded tokens among its keys, which no other item reads.
    #[inline(always)]
    fn decode_writes(&self) -> impl Iterator<Item = KvWrite<'a, K::Element>> + Clone + use<'a, K> {
        let Self { pass, item, .. } = *self;
        let sequence = &pass.sequences[item.sequence];
        let is_written = sequence.is_decode() && !pass.attention.is_kv_shared;
        let tokens = if is_written { item.tokens.clone() } else { 0..0 };
        tokens.filter(|token| item.keys.contains(&(sequence.start + token))).map(|token| {
            let token = NewToken { sequence: item.sequence, token };
            // SAFETY: the items of a decode differ in heads or keys, so only this one, which the caller of
            // `new` runs once, uses these heads of the token's block.
            unsafe { KvWrite::new(pass, token, item.kv_heads.clone()) }
        })
    }

    /// Normed, rotated and scaled queries, `[n_rows, padded_dim]`.
    #[inline(always)]
    fn gather_queries(&self, n_rows: usize) -> Vec<f32> {
        let attention = self.pass.attention;
        let (head_dim, padded) = (attention.layout.head_dim, attention.layout.padded_dim());
        let norm = attention.head_norms.map(HeadNorms::query_norm);
        let mut queries = vec![0.0f32; n_rows * padded];
        for (row, query) in queries.chunks_exact_mut(padded).enumerate() {
            let (row, head) = self.batch_row_and_head(row);
            let query = &mut query[..head_dim];
            query.copy_from_slice(&self.pass.qkv_of(row)[head * head_dim..(head + 1) * head_dim]);
            let rope = attention.rope.as_ref().map(|rope| (rope, row));
            norm_rope_scale(query, norm, rope, attention.query_scale(row));
        }
        queries
    }

    /// Row of the batch and query head of a row of the item.
    #[inline(always)]
    fn batch_row_and_head(&self, row: usize) -> (usize, usize) {
        let (token, head) = self.item.token_and_head(row, self.group);
        (self.pass.sequences[self.item.sequence].first_row + token, head)
    }

    /// Adds the keys and values of a head in some blocks of the sequence to the running softmax of the head's
    /// rows.
    #[inline(always)]
    fn attend<S: Simd>(&self, simd: S, kv_head: usize, blocks: Range<usize>, state: &mut ItemState<K>) {
        let Self { pass, item, group, .. } = *self;
        let rows_per_head = item.rows_per_head(group);
        let ItemState { kv_kernel, scores, split, .. } = state;
        let step = self.step(kv_head, blocks.clone());
        kv_kernel.scores(simd, &step, scores);
        for row in 0..rows_per_head {
            let position = pass.sequences[item.sequence].start + item.tokens.start + row / group;
            let visible = self.visible_keys(position);
            let visible: [Range<usize>; STEP_BLOCKS] =
                std::array::from_fn(|n| slots_of(&visible, blocks.start + n));
            let scores = RowScores { vectors: &mut scores[row..], stride: rows_per_head };
            let softmax = split.row(step.rows.start + row);
            softmax_step(simd, pass.softcap, &visible[..blocks.len()], scores, softmax);
        }
        let values = &mut split.values[step.rows.start * split.padded..step.rows.end * split.padded];
        kv_kernel.add_values(simd, &step, scores, values);
    }

    /// A head's step over some blocks of the sequence.
    #[inline(always)]
    fn step(&self, kv_head: usize, blocks: Range<usize>) -> KvStep<'a> {
        let Self { pass, item, next, .. } = *self;
        let sequence = &pass.sequences[item.sequence];
        let rows_per_head = item.rows_per_head(self.group);
        let first = (kv_head - item.kv_heads.start) * rows_per_head;
        // Next come the next head, the first head of the next blocks, or the next item's first blocks.
        let ahead = if kv_head + 1 < item.kv_heads.end {
            Some((item, kv_head + 1, blocks.start))
        } else if blocks.end < item.blocks().end {
            Some((item, item.kv_heads.start, blocks.end))
        } else {
            next.map(|next| (next, next.kv_heads.start, next.blocks().start))
        };
        let ahead = |n| {
            let (item, kv_head, first) = ahead?;
            let is_there = first + n < item.blocks().end;
            is_there.then(|| pass.sequences[item.sequence].head_ptr(kv_head, first + n).cast_const())
        };
        KvStep {
            // SAFETY: prefills were written before, as the caller of `new` said, and decodes by this item,
            // which is the only one to write this head of its blocks and writes nothing more.
            blocks: std::array::from_fn(|n| unsafe {
                sequence.head(kv_head, (blocks.start + n).min(blocks.end - 1))
            }),
            ahead: std::array::from_fn(ahead),
            n_blocks: blocks.len(),
            n_keys: (blocks.len() * BLOCK_TOKENS).min(item.keys.end - blocks.start * BLOCK_TOKENS),
            rows: first..first + rows_per_head,
        }
    }

    /// Positions of the keys that a query at `position` sees.
    #[inline(always)]
    fn visible_keys(&self, position: usize) -> Range<usize> {
        self.pass.attention.window_start(position)..position + 1
    }

    /// Ends a KV split: merges the rows' softmaxes into the totals, or stores them as partials if other items
    /// have the rest of the keys.
    #[inline(always)]
    fn fold_split<S: Simd>(&self, simd: S, split_idx: usize, state: &mut ItemState<K>) {
        let Self { pass, item, .. } = *self;
        let ItemState { split, totals, total_values, .. } = state;
        let padded = split.padded;
        for row in 0..totals.len() {
            let of_row = row * padded..(row + 1) * padded;
            let weight_sum = simd.reduce_add(load_array(simd, &split.weight_sums[row]));
            let partial = PartialSoftmax { max: split.max[row], weight_sum };
            let values = &split.values[of_row.clone()];
            match item.first_partial {
                None => totals[row].merge(simd, &mut total_values[of_row], partial, values),
                Some(first) => {
                    let idx = (first + split_idx - item.splits().start) * pass.rows_per_partial + row;
                    // SAFETY: each split of each item has its own partial, and the caller of `new` runs the
                    // item once.
                    unsafe {
                        pass.partials.slice(idx, 1)[0] = partial;
                        pass.partial_values.slice(idx * padded, padded).copy_from_slice(values);
                    }
                }
            }
        }
        split.reset();
    }

    /// Writes the weighted means of the values.
    #[inline(always)]
    fn write_output<S: Simd>(&self, simd: S, state: &mut ItemState<K>) {
        let PagedAttention { n_heads, layout, .. } = self.pass.attention;
        let head_dim = layout.head_dim;
        let values = state.total_values.chunks_exact_mut(state.split.padded);
        for (row, (total, values)) in state.totals.iter().zip(values).enumerate() {
            layout.rotate_back(simd, values);
            let (row, head) = self.batch_row_and_head(row);
            // SAFETY: an item without partials has all keys of its rows, so no other item has the same row
            // and head; the caller of `new` runs it once.
            let y = unsafe { self.pass.y.slice((row * n_heads + head) * head_dim, head_dim) };
            let weight_sum = total.weight_sum_with(self.pass.attention.sink(head));
            for (y, value) in y.iter_mut().zip(values) {
                *y = *value / weight_sum;
            }
        }
    }
}

/// The slots of a block whose positions are among `keys`.
#[inline(always)]
fn slots_of(keys: &Range<usize>, block: usize) -> Range<usize> {
    let block_start = block * BLOCK_TOKENS;
    let end = keys.end.saturating_sub(block_start).min(BLOCK_TOKENS);
    keys.start.saturating_sub(block_start).min(end)..end
}
