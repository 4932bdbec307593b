//! The part of paged attention that depends on the number format of the KV cache.

use std::ops::Range;

use super::super::simd::{LANES, Simd};
use super::kv_block::{KvElement, KvLayout};

/// Blocks whose keys go through the softmax at once: the latency of a row's weights is long and is then paid
/// once. Steps begin at multiples of this, so that a result does not depend on the rest of the batch.
pub(super) const STEP_BLOCKS: usize = 4;

/// Products of query rows with keys, and of weights with values, in some number format.
pub(super) trait KvKernel {
    /// Element type of keys and values.
    type Element: KvElement;

    /// Takes the `queries` of some key heads, `[n_rows, padded_dim]`; each head has `rows_per_head` of them.
    fn new<S: Simd>(simd: S, layout: &KvLayout, queries: Vec<f32>, rows_per_head: usize) -> Self;

    /// Computes the scores `Q · Kᵀ` of a step, `[n_blocks, n_rows][BLOCK_TOKENS]`.
    fn scores<S: Simd>(&mut self, simd: S, step: &KvStep, scores: &mut [[f32; LANES]]);

    /// Adds the weighted values of a step, `P · V`, to those of each row, `[n_rows, padded_dim]`. `weights`
    /// are `[n_blocks, n_rows][BLOCK_TOKENS]`.
    fn add_values<S: Simd>(&mut self, simd: S, step: &KvStep, weights: &[[f32; LANES]], values: &mut [f32]);
}

/// A few blocks of one key head, and the query rows that meet them.
pub(super) struct KvStep<'a> {
    /// Keys, values and scales of the head in each block; the last block is repeated.
    pub(super) blocks: [&'a [u8]; STEP_BLOCKS],
    /// Heads of other blocks, to be prefetched meanwhile.
    pub(super) ahead: [Option<*const u8>; STEP_BLOCKS],
    /// Number of blocks.
    pub(super) n_blocks: usize,
    /// Keys of all blocks; only the last block may be partly filled.
    pub(super) n_keys: usize,
    /// Rows of the work item.
    pub(super) rows: Range<usize>,
}

impl KvStep<'_> {
    /// Addresses of the blocks.
    ///
    /// # Panics
    /// When a block is shorter than a head.
    #[inline(always)]
    pub(super) fn pointers(&self, head: &KvHeadLayout) -> [*const u8; STEP_BLOCKS] {
        self.blocks.map(|block| {
            assert!(block.len() >= head.bytes);
            block.as_ptr()
        })
    }
}

/// The dimensions of a head in a block, which take too long to compute at each step.
#[derive(Clone, Copy)]
pub(super) struct KvHeadLayout {
    pub(super) dim: usize,
    pub(super) key_dim: usize,
    pub(super) padded_dim: usize,
    pub(super) values_offset: usize,
    pub(super) scales_offset: usize,
    pub(super) bytes: usize,
    pub(super) shared_values: bool,
}

impl KvHeadLayout {
    /// The dimensions of a head of elements `E`.
    ///
    /// # Panics
    /// When the layout is of another format.
    pub(super) fn new<E: KvElement>(layout: &KvLayout) -> Self {
        assert!(E::FORMAT == layout.format);
        Self {
            dim: layout.head_dim,
            key_dim: layout.key_dim(),
            padded_dim: layout.padded_dim(),
            values_offset: layout.values_offset(),
            scales_offset: layout.scales_offset(),
            bytes: layout.head_bytes(),
            shared_values: layout.shared_values,
        }
    }
}

/// Prefetches bytes. Callers do so a few cache lines at a time, since many prefetches at once delay other
/// loads.
#[inline(always)]
pub(super) fn prefetch<S: Simd>(simd: S, from: *const u8, n_bytes: usize) {
    for line in (0..n_bytes).step_by(64) {
        simd.prefetch_l2(from.wrapping_add(line));
    }
}
