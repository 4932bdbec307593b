//! Paged attention over float keys and values, which are widened to float32 where they are used.

use std::marker::PhantomData;

use super::super::simd::{LANES, Simd, store_array, with_rows};
use super::kv_block::{BLOCK_TOKENS, F32, KvFloat, KvLayout};
use super::kv_kernel::{KvHeadLayout, KvKernel, KvStep, STEP_BLOCKS, prefetch};

/// Rows up to which reading keys and values takes longer than multiplying them. With more rows, each element
/// is widened once for all of them.
const MAX_DIRECT_ROWS: usize = 16;

/// [`KvKernel`] of elements `E`.
pub(super) struct FloatKvKernel<E> {
    head: KvHeadLayout,
    /// `[n_rows, padded_dim]`
    queries: Vec<f32>,
    /// Scratch memory for the keys or values of a step in float32; empty where they are used as they are. Keys that are
    /// values, too, are never used as they are.
    widened: Vec<f32>,
    element: PhantomData<E>,
}

impl<E: KvFloat> KvKernel for FloatKvKernel<E> {
    type Element = E;

    #[inline(always)]
    fn new<S: Simd>(_: S, layout: &KvLayout, queries: Vec<f32>, rows_per_head: usize) -> Self {
        let is_direct = rows_per_head <= MAX_DIRECT_ROWS && !layout.shared_values;
        let n_widened = if is_direct { 0 } else { STEP_BLOCKS };
        let widened = vec![0.0; n_widened * BLOCK_TOKENS * layout.padded_dim()];
        Self { head: KvHeadLayout::new::<E>(layout), queries, widened, element: PhantomData }
    }

    #[inline(always)]
    fn scores<S: Simd>(&mut self, simd: S, step: &KvStep, scores: &mut [[f32; LANES]]) {
        let Self { head, queries, widened, .. } = self;
        let (head_dim, padded, n_rows) = (head.dim, head.padded_dim, step.rows.len());
        let blocks = step.pointers(head);
        for first in (0..step.n_blocks).step_by(2) {
            let n_blocks = (step.n_blocks - first).min(2);
            let mut product = KeyProduct {
                queries: &queries[step.rows.start * padded..step.rows.end * padded],
                head_dim,
                padded,
                keys: [blocks[first], blocks[first + n_blocks - 1]],
                n_blocks,
                ahead: [step.ahead[first], step.ahead[first + 1]],
            };
            let scores = &mut scores[first * n_rows..(first + n_blocks) * n_rows];
            // SAFETY: `new` checked the element type, and `pointers` that each block has all keys of a head;
            // `widen` fills memory for as many float32.
            unsafe {
                if widened.is_empty() {
                    product.compute::<S, E>(simd, scores);
                } else {
                    for (keys, to) in product.keys.iter_mut().zip(widened.chunks_exact_mut(padded * LANES)) {
                        *keys = widen::<S, E>(simd, *keys, &mut to[..head_dim * LANES]);
                    }
                    product.ahead = [None; 2];
                    product.compute::<S, F32>(simd, scores);
                }
            }
        }
    }

    #[inline(always)]
    fn add_values<S: Simd>(&mut self, simd: S, step: &KvStep, weights: &[[f32; LANES]], values: &mut [f32]) {
        let Self { head, widened, .. } = self;
        let (padded, offset) = (head.padded_dim, head.values_offset);
        let n_rows = step.rows.len();
        assert!(step.n_keys <= step.n_blocks * BLOCK_TOKENS && step.n_blocks <= STEP_BLOCKS);
        let mut product = ValueProduct {
            weights: &weights[..step.n_blocks * n_rows],
            n_rows,
            padded,
            blocks: step.pointers(head).map(|keys| keys.wrapping_add(offset)),
            ahead: step.ahead.map(|keys| keys.map(|keys| keys.wrapping_add(offset))),
            n_keys: step.n_keys,
        };
        let values = &mut values[..n_rows * padded];
        // SAFETY: `new` checked the element type, and `pointers` that each block has all values of a head
        // behind the keys, or all keys; `widen` and `transpose` fill memory for as many float32.
        unsafe {
            if widened.is_empty() {
                return product.add_to::<S, E>(simd, values);
            }
            let widened = widened.chunks_exact_mut(padded * LANES);
            for (block, to) in product.blocks[..step.n_blocks].iter_mut().zip(widened) {
                *block = if head.shared_values {
                    transpose::<S, E>(simd, *block, head.dim, to)
                } else {
                    widen::<S, E>(simd, *block, to)
                };
            }
            product.ahead = [None; STEP_BLOCKS];
            product.add_to::<S, F32>(simd, values);
        }
    }
}

/// Widens as many elements to float32 as `to` has room for. Returns the address of `to`.
///
/// # Safety
/// As many elements can be read at `from`.
#[inline(always)]
unsafe fn widen<S: Simd, E: KvFloat>(simd: S, from: *const u8, to: &mut [f32]) -> *const u8 {
    for (idx, to) in to.as_chunks_mut().0.iter_mut().enumerate() {
        // SAFETY: the caller has checked that there is an element for each of `to`.
        store_array(simd, unsafe { E::load(simd, from.add(idx * LANES * E::BYTES)) }, to);
    }
    to.as_ptr().cast()
}

/// Widens the keys of a block to float32, as values: `[dim][BLOCK_TOKENS]` to `[BLOCK_TOKENS][padded]`. Returns the
/// address of `to`.
///
/// # Safety
/// `dim * BLOCK_TOKENS` elements can be read at `from`.
///
/// # Panics
/// When `to` has no room for rows of `dim` elements, padded to whole vectors.
#[inline(always)]
unsafe fn transpose<S: Simd, E: KvFloat>(simd: S, from: *const u8, dim: usize, to: &mut [f32]) -> *const u8 {
    let padded = to.len() / BLOCK_TOKENS;
    for start in (0..dim).step_by(LANES) {
        let mut columns = [[0.0; BLOCK_TOKENS]; LANES];
        for (i, column) in columns.iter_mut().enumerate().take(dim - start) {
            // SAFETY: `start + i < dim`; the caller has checked that there are so many vectors of elements.
            let elements = unsafe { E::load(simd, from.add((start + i) * BLOCK_TOKENS * E::BYTES)) };
            store_array(simd, elements, column);
        }
        for (token, row) in to.chunks_exact_mut(padded).enumerate() {
            for (element, column) in row[start..start + LANES].iter_mut().zip(&columns) {
                *element = column[token];
            }
        }
    }
    to.as_ptr().cast()
}

/// Rows that are multiplied with keys or values at once, at most.
const MAX_TILE_ROWS: usize = 4;

/// Product of query rows with one or two blocks of keys.
struct KeyProduct<'a> {
    /// `[n_rows, padded]`
    queries: &'a [f32],
    head_dim: usize,
    padded: usize,
    /// Keys of each block, `[head_dim][BLOCK_TOKENS]`.
    keys: [*const u8; 2],
    n_blocks: usize,
    /// Keys to be prefetched meanwhile.
    ahead: [Option<*const u8>; 2],
}

/// Partial sums per score, since an addition waits for the one before it.
const PARTIAL_SUMS: usize = 2;

impl KeyProduct<'_> {
    /// Computes `scores[block][row][key] = queries[row] · keys[block][key]`.
    ///
    /// # Safety
    /// Each block has `head_dim * BLOCK_TOKENS` elements `E`.
    ///
    /// # Panics
    /// When `scores` has not one vector per block and row.
    #[inline(always)]
    unsafe fn compute<S: Simd, E: KvFloat>(&self, simd: S, scores: &mut [[f32; LANES]]) {
        let n_rows = self.queries.len() / self.padded;
        assert!(scores.len() == self.n_blocks * n_rows);
        let n_scores = (S::SUM_VECTORS / PARTIAL_SUMS).max(1);
        let mut row = 0;
        while row < n_rows {
            let m = (n_rows - row).min(n_scores).min(MAX_TILE_ROWS);
            let blocks_at_once = (n_scores / m).min(self.n_blocks);
            for block in (0..self.n_blocks).step_by(blocks_at_once) {
                // SAFETY: the tile ends with the queries and the blocks at the latest, and `scores` has a vector for
                // each of its rows; the caller has checked the keys.
                unsafe {
                    with_rows!(m, M in [1, 2, 3, 4] => {
                        with_rows!(blocks_at_once, B in [1, 2] => {
                            self.tile::<S, E, M, B>(simd, row, block, scores)
                        })
                    });
                }
            }
            row += m;
        }
    }

    /// Computes the scores of `M` rows with `B` blocks.
    ///
    /// # Safety
    /// See [`Self::compute`]; there are `M` rows from `row` on, and `B` blocks from `block` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, E: KvFloat, const M: usize, const B: usize>(
        &self,
        simd: S,
        row: usize,
        block: usize,
        scores: &mut [[f32; LANES]],
    ) {
        let Self { head_dim, padded, keys, ahead, .. } = *self;
        let n_rows = self.queries.len() / padded;
        let ahead = if row == 0 { &ahead[block..block + B] } else { &[] };
        let mut sums = [[[simd.splat(0.0); PARTIAL_SUMS]; B]; M];
        // SAFETY: `i < head_dim <= padded`; the caller has checked that there are `M` rows of `padded`
        // queries, and keys of `head_dim` vectors of elements.
        unsafe {
            let queries = self.queries.as_ptr().add(row * padded);
            let key = |b: usize, i: usize| E::load(simd, keys[block + b].add(i * BLOCK_TOKENS * E::BYTES));
            let n_whole = head_dim / PARTIAL_SUMS * PARTIAL_SUMS;
            for start in (0..n_whole).step_by(PARTIAL_SUMS) {
                for ahead in ahead.iter().flatten() {
                    let n_bytes = PARTIAL_SUMS * BLOCK_TOKENS * E::BYTES;
                    prefetch(simd, ahead.wrapping_add(start * BLOCK_TOKENS * E::BYTES), n_bytes);
                }
                for n in 0..PARTIAL_SUMS {
                    let i = start + n;
                    let mut of_blocks = [simd.splat(0.0); B];
                    for b in 0..B {
                        of_blocks[b] = key(b, i);
                    }
                    for m in 0..M {
                        let query = simd.splat(*queries.add(m * padded + i));
                        for b in 0..B {
                            sums[m][b][n] = simd.mul_add(query, of_blocks[b], sums[m][b][n]);
                        }
                    }
                }
            }
            for i in n_whole..head_dim {
                for b in 0..B {
                    let keys = key(b, i);
                    for m in 0..M {
                        let query = simd.splat(*queries.add(m * padded + i));
                        sums[m][b][0] = simd.mul_add(query, keys, sums[m][b][0]);
                    }
                }
            }
        }
        for m in 0..M {
            for b in 0..B {
                let [first, second] = sums[m][b];
                store_array(simd, simd.add(first, second), &mut scores[(block + b) * n_rows + row + m]);
            }
        }
    }
}

/// Product of the weights of a step's keys with their values.
struct ValueProduct<'a> {
    /// `[n_blocks, n_rows][BLOCK_TOKENS]`
    weights: &'a [[f32; LANES]],
    n_rows: usize,
    padded: usize,
    /// Values of each block, `[BLOCK_TOKENS][padded]`.
    blocks: [*const u8; STEP_BLOCKS],
    /// Values to be prefetched meanwhile.
    ahead: [Option<*const u8>; STEP_BLOCKS],
    n_keys: usize,
}

impl ValueProduct<'_> {
    /// Adds `weights[block][row] · values[block]` of all blocks to each row of `to`, `[n_rows, padded]`.
    ///
    /// # Safety
    /// Each block has `BLOCK_TOKENS * padded` elements `E`, and the blocks of all keys have weights.
    ///
    /// # Panics
    /// When `to` has too few rows.
    #[inline(always)]
    unsafe fn add_to<S: Simd, E: KvFloat>(&self, simd: S, to: &mut [f32]) {
        let Self { n_rows, padded, .. } = *self;
        assert!(to.len() >= n_rows * padded);
        let rows_at_once = n_rows.min(S::SUM_VECTORS).clamp(1, MAX_TILE_ROWS);
        let columns_at_once = (S::SUM_VECTORS / rows_at_once).min(4) * LANES;
        for column in (0..padded).step_by(columns_at_once) {
            let n_vectors = (padded - column).min(columns_at_once) / LANES;
            let mut row = 0;
            while row < n_rows {
                let m = (n_rows - row).min(rows_at_once);
                // SAFETY: the tile ends with the rows and the columns of `to` at the latest; the caller has
                // checked blocks and weights.
                unsafe {
                    let to = to.as_mut_ptr().add(row * padded + column);
                    with_rows!(m, M in [1, 2, 3, 4] => {
                        with_rows!(n_vectors, V in [1, 2, 3, 4] => {
                            self.add_tile_to::<S, E, M, V>(simd, row, column, to)
                        })
                    });
                }
                row += m;
            }
        }
    }

    /// Adds `V` vectors, from `column` on, of the weighted values to `M` rows from `row` on.
    ///
    /// # Safety
    /// See [`Self::add_to`]; `to` is where these rows' vectors begin, `padded` elements apart.
    #[inline(always)]
    unsafe fn add_tile_to<S: Simd, E: KvFloat, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        column: usize,
        to: *mut f32,
    ) {
        let Self { n_rows, padded, n_keys, .. } = *self;
        // SAFETY: the caller has checked that the tile lies in `to`, and that blocks and weights have all
        // keys.
        unsafe {
            let mut sums = [[simd.splat(0.0); V]; M];
            for m in 0..M {
                for v in 0..V {
                    sums[m][v] = simd.load(to.add(m * padded + v * LANES));
                }
            }
            for n in 0..n_keys.div_ceil(BLOCK_TOKENS) {
                let weights = self.weights.as_ptr().add(n * n_rows + row).cast::<f32>();
                let of_block = self.blocks[n].add(column * E::BYTES);
                let ahead = self.ahead[n].filter(|_| row == 0);
                let ahead = ahead.map(|ahead| ahead.wrapping_add(column * E::BYTES));
                for key in 0..BLOCK_TOKENS.min(n_keys - n * BLOCK_TOKENS) {
                    let offset = key * padded * E::BYTES;
                    if let Some(ahead) = ahead {
                        prefetch(simd, ahead.wrapping_add(offset), V * LANES * E::BYTES);
                    }
                    let mut of_key = [simd.splat(0.0); V];
                    for v in 0..V {
                        of_key[v] = E::load(simd, of_block.add(offset + v * LANES * E::BYTES));
                    }
                    for m in 0..M {
                        let weight = simd.splat(*weights.add(m * LANES + key));
                        for v in 0..V {
                            sums[m][v] = simd.mul_add(weight, of_key[v], sums[m][v]);
                        }
                    }
                }
            }
            for m in 0..M {
                for v in 0..V {
                    simd.store(sums[m][v], to.add(m * padded + v * LANES));
                }
            }
        }
    }
}
