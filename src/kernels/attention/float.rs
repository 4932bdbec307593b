//! Keys and values that become float32 where they are used.

use std::marker::PhantomData;

use super::super::simd::{LANES, Simd};
use super::kv_block::{BLOCK_TOKENS, F32, KvFloat, KvLayout};
use super::{Rows, STEP_BLOCKS, Step, fetch, rows_at_once};

/// Rows up to which keys and values come from memory more slowly than they are used. With more, each number
/// is made float32 once for all rows.
const FEW_ROWS: usize = 16;

/// Rows that meet keys and values in `N`.
pub struct FloatRows<N> {
    queries: Vec<f32>,
    /// Room for a step's keys or values as float32, where there are many rows.
    expanded: Vec<f32>,
    has_few: bool,
    number: PhantomData<N>,
}

impl<N: KvFloat> Rows for FloatRows<N> {
    type Number = N;

    #[inline(always)]
    unsafe fn new<S: Simd>(_: S, layout: &KvLayout, queries: Vec<f32>, n_rows_of_head: usize) -> Self {
        let has_few = n_rows_of_head <= FEW_ROWS;
        let room = if has_few { 0 } else { STEP_BLOCKS * layout.padded_dim() * BLOCK_TOKENS };
        Self { queries, expanded: vec![0.0; room], has_few, number: PhantomData }
    }

    #[inline(always)]
    unsafe fn scores<S: Simd>(&mut self, simd: S, step: &Step, scores: &mut [f32]) {
        let (head_dim, padded) = (step.layout.head_dim, step.layout.padded_dim());
        let queries = &self.queries[step.rows.start * padded..];
        let stride = step.stride();
        for pair in (0..step.n_blocks).step_by(2) {
            let end = step.n_blocks.min(pair + 2);
            let scores = &mut scores[pair * stride..];
            // SAFETY: the caller's promise.
            unsafe {
                if self.has_few {
                    let ahead = [step.ahead[pair], step.ahead[pair + 1]];
                    let keys = &step.blocks[pair..end];
                    products::<S, N>(simd, queries, padded, keys, ahead, head_dim, scores, stride);
                } else {
                    let mut keys = [step.blocks[pair], step.blocks[end - 1]];
                    for (keys, to) in keys.iter_mut().zip(self.expanded.chunks_exact_mut(padded * LANES)) {
                        *keys = expand::<S, N>(simd, *keys, &mut to[..head_dim * LANES]);
                    }
                    let keys = &keys[..end - pair];
                    products::<S, F32>(simd, queries, padded, keys, [None; 2], head_dim, scores, stride);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add_values<S: Simd>(&mut self, simd: S, step: &Step, weights: &mut [f32], values: &mut [f32]) {
        let (padded, offset, stride) = (step.layout.padded_dim(), step.layout.values_offset(), step.stride());
        // SAFETY: the caller's promise.
        unsafe {
            let mut of_step = StepValues {
                blocks: step.blocks.map(|keys| keys.add(offset)),
                ahead: step.ahead.map(|keys| keys.map(|keys| keys.add(offset))),
                n_keys: step.n_keys,
                padded,
            };
            if self.has_few {
                return add_values::<S, N>(simd, weights, stride, &of_step, values);
            }
            of_step.ahead = [None; STEP_BLOCKS];
            let rooms = self.expanded.chunks_exact_mut(padded * LANES);
            for (block, to) in of_step.blocks[..step.n_blocks].iter_mut().zip(rooms) {
                *block = expand::<S, N>(simd, *block, to);
            }
            add_values::<S, F32>(simd, weights, stride, &of_step, values);
        }
    }
}

/// The values of a step's blocks.
struct StepValues {
    blocks: [*const u8; STEP_BLOCKS],
    /// Values to fetch meanwhile.
    ahead: [Option<*const u8>; STEP_BLOCKS],
    n_keys: usize,
    padded: usize,
}

/// Numbers as float32; gives where they are.
#[inline(always)]
unsafe fn expand<S: Simd, N: KvFloat>(simd: S, from: *const u8, to: &mut [f32]) -> *const u8 {
    for (idx, to) in to.chunks_exact_mut(LANES).enumerate() {
        // SAFETY: the caller's promise: as many numbers as there is room for.
        unsafe { simd.store(N::load(simd, from.add(idx * LANES * N::BYTES)), to.as_mut_ptr()) };
    }
    to.as_ptr().cast()
}

/// Scores of the keys of blocks for each row: `scores[row][key] = query[row] · key`, those of the second
/// block `stride` behind those of the first. Fetches the keys of blocks `ahead` meanwhile.
#[inline(always)]
unsafe fn products<S: Simd, N: KvFloat>(
    simd: S,
    queries: &[f32],
    padded: usize,
    keys: &[*const u8],
    mut ahead: [Option<*const u8>; 2],
    head_dim: usize,
    scores: &mut [f32],
    stride: usize,
) {
    let n_rows = stride / LANES;
    let mut row = 0;
    // SAFETY: the caller's promise: as many rows of queries as of scores.
    unsafe {
        while row < n_rows {
            let queries = queries.as_ptr().add(row * padded);
            let scores = scores.as_mut_ptr().add(row * LANES);
            let m = (n_rows - row).min(rows_at_once::<S>());
            macro_rules! product {
                ($($m:literal),*) => {
                    match (m, keys) {
                        $(
                            ($m, &[a]) => product_rows::<S, N, $m, 1>(simd, queries, padded, [a], ahead, head_dim, scores, stride),
                            ($m, &[a, b]) => product_rows::<S, N, $m, 2>(simd, queries, padded, [a, b], ahead, head_dim, scores, stride),
                        )*
                        _ => unreachable!("one or two blocks"),
                    }
                };
            }
            product!(1, 2, 3, 4);
            ahead = [None; 2];
            row += m;
        }
    }
}

/// Sums of a score that are built up side by side, since an addition waits for the one before it.
const SUMS: usize = 2;

#[inline(always)]
unsafe fn product_rows<S: Simd, N: KvFloat, const M: usize, const B: usize>(
    simd: S,
    queries: *const f32,
    padded: usize,
    keys: [*const u8; B],
    ahead: [Option<*const u8>; 2],
    head_dim: usize,
    scores: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[[simd.splat(0.0); SUMS]; B]; M];
        let n_whole = head_dim / SUMS * SUMS;
        for start in (0..n_whole).step_by(SUMS) {
            for ahead in ahead.into_iter().flatten() {
                fetch(simd, ahead.add(start * BLOCK_TOKENS * N::BYTES), SUMS * BLOCK_TOKENS * N::BYTES);
            }
            for n in 0..SUMS {
                let i = start + n;
                let mut of_blocks = [simd.splat(0.0); B];
                for b in 0..B {
                    of_blocks[b] = N::load(simd, keys[b].add(i * BLOCK_TOKENS * N::BYTES));
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
                let keys = N::load(simd, keys[b].add(i * BLOCK_TOKENS * N::BYTES));
                for m in 0..M {
                    sums[m][b][0] =
                        simd.mul_add(simd.splat(*queries.add(m * padded + i)), keys, sums[m][b][0]);
                }
            }
        }
        for m in 0..M {
            for b in 0..B {
                let [first, second] = sums[m][b];
                simd.store(simd.add(first, second), scores.add(m * LANES + b * stride));
            }
        }
    }
}

/// Adds the weighted values of a step's keys to each row's sums; the weights of a block are `stride` behind
/// those of the one before it. Fetches the values ahead meanwhile.
#[inline(always)]
unsafe fn add_values<S: Simd, N: KvFloat>(
    simd: S,
    weights: &[f32],
    stride: usize,
    step: &StepValues,
    values: &mut [f32],
) {
    let n_rows = stride / LANES;
    let padded = step.padded;
    // SAFETY: the caller's promise: as many rows of values as of weights.
    unsafe {
        for column in (0..padded).step_by(4 * LANES) {
            let n_vectors = (padded - column).min(4 * LANES) / LANES;
            let mut row = 0;
            while row < n_rows {
                let weights = weights.as_ptr().add(row * LANES);
                let values = values.as_mut_ptr().add(row * padded + column);
                let m = (n_rows - row).min(rows_at_once::<S>());
                macro_rules! add {
                    ($($m:literal $v:literal),*) => {
                        match (m, n_vectors) {
                            $(($m, $v) => add_rows::<S, N, $m, $v>(simd, weights, stride, step, column, row == 0, values),)*
                            _ => {}
                        }
                    };
                }
                add!(1 1, 1 2, 1 3, 1 4, 2 1, 2 2, 2 3, 2 4, 3 1, 3 2, 3 3, 3 4, 4 1, 4 2, 4 3, 4 4);
                row += m;
            }
        }
    }
}

#[inline(always)]
unsafe fn add_rows<S: Simd, N: KvFloat, const M: usize, const V: usize>(
    simd: S,
    weights: *const f32,
    stride: usize,
    step: &StepValues,
    column: usize,
    fetches: bool,
    values: *mut f32,
) {
    let padded = step.padded;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[simd.splat(0.0); V]; M];
        for m in 0..M {
            for v in 0..V {
                sums[m][v] = simd.load(values.add(m * padded + v * LANES));
            }
        }
        for n in 0..step.n_keys.div_ceil(BLOCK_TOKENS) {
            let weights = weights.add(n * stride);
            let of_block = step.blocks[n].add(column * N::BYTES);
            let ahead = step.ahead[n].filter(|_| fetches).map(|ahead| ahead.add(column * N::BYTES));
            for key in 0..BLOCK_TOKENS.min(step.n_keys - n * BLOCK_TOKENS) {
                let place = key * padded * N::BYTES;
                if let Some(ahead) = ahead {
                    fetch(simd, ahead.add(place), V * LANES * N::BYTES);
                }
                let mut of_key = [simd.splat(0.0); V];
                for v in 0..V {
                    of_key[v] = N::load(simd, of_block.add(place + v * LANES * N::BYTES));
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
                simd.store(sums[m][v], values.add(m * padded + v * LANES));
            }
        }
    }
}
