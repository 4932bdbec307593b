//! Keys and values that are whole numbers: queries and weights become such too, of 16 bits, and the products
//! are those of a matrix whose rows are tokens, or the numbers of a value.

use std::ops::Range;

use super::super::matmul::quantize::quantization_scale;
use super::super::simd::{LANES, QUAD_BYTES, QUAD_LEN, Simd};
use super::kv_block::{BLOCK_TOKENS, Int8, KvLayout};
use super::{Rows, STEP_BLOCKS, Step, fetch, rows_at_once};

/// Bytes of the quads of a vector.
const VECTOR_BYTES: usize = LANES / QUAD_LEN * QUAD_BYTES;

/// Bytes of a quad of sixteen rows of a matrix.
const CODE_BYTES: usize = LANES * QUAD_LEN;

/// Bytes of the scales of a block's keys and values.
const SCALE_BYTES: usize = 2 * BLOCK_TOKENS * size_of::<f32>();

/// Vectors whose products are summed as whole numbers: of more, the sums might be too large.
const SUM_VECTORS: usize = 8;

/// Rows that meet whole numbers.
pub struct WholeRows {
    queries: WholeNumbers,
    /// Weights of a step's keys.
    weights: WholeNumbers,
}

/// Rows of vectors as whole numbers.
struct WholeNumbers {
    n_vectors: usize,
    /// `[n_rows, n_vectors, 4 quads]`
    quads: Vec<u8>,
    /// What the numbers of a row are multiplied by.
    scales: Vec<f32>,
    /// The sum of the numbers of each vector.
    sums: Vec<i32>,
}

impl WholeNumbers {
    fn new(n_rows: usize, n_vectors: usize) -> Self {
        Self {
            n_vectors,
            quads: vec![0; n_rows * n_vectors * VECTOR_BYTES],
            scales: vec![0.0; n_rows],
            sums: vec![0; n_rows * n_vectors],
        }
    }

    /// Makes `vectors` a row.
    #[inline(always)]
    unsafe fn set<S: Simd>(&mut self, simd: S, row: usize, vectors: impl Iterator<Item = S::Floats> + Clone) {
        let first = row * self.n_vectors;
        // SAFETY: the caller's promise; a vector's quads have their place.
        unsafe {
            let (scale, inverse) = quantization_scale(simd, vectors.clone());
            self.scales[row] = scale;
            let of_row = first..first + self.n_vectors;
            let Some(inverse) = inverse.map(|inverse| simd.splat(inverse)) else {
                self.quads[of_row.start * VECTOR_BYTES..of_row.end * VECTOR_BYTES].fill(0);
                self.sums[of_row].fill(0);
                return;
            };
            for (idx, x) in of_row.zip(vectors) {
                let quads = &mut self.quads[idx * VECTOR_BYTES..(idx + 1) * VECTOR_BYTES];
                self.sums[idx] = simd.quantize_quads(simd.mul(x, inverse), quads.as_mut_ptr());
            }
        }
    }

    /// The quads of some vectors of a row, and what sums of their products with codes begin with.
    #[inline(always)]
    fn part(&self, row: usize, vectors: Range<usize>) -> (*const u8, i32) {
        let first = row * self.n_vectors;
        let sum: i32 = self.sums[first + vectors.start..first + vectors.end].iter().sum();
        (self.quads[(first + vectors.start) * VECTOR_BYTES..].as_ptr(), -i32::from(Int8::ZERO) * sum)
    }
}

impl Rows for WholeRows {
    type Number = Int8;

    #[inline(always)]
    unsafe fn new<S: Simd>(simd: S, layout: &KvLayout, queries: Vec<f32>, n_rows_of_head: usize) -> Self {
        let padded = layout.padded_dim();
        let mut whole = WholeNumbers::new(queries.len() / padded, padded / LANES);
        for (row, query) in queries.chunks_exact(padded).enumerate() {
            // SAFETY: the caller's promise; a query is whole vectors.
            unsafe { whole.set(simd, row, query.chunks_exact(LANES).map(|x| simd.load(x.as_ptr()))) };
        }
        Self { queries: whole, weights: WholeNumbers::new(n_rows_of_head, STEP_BLOCKS) }
    }

    #[inline(always)]
    unsafe fn scores<S: Simd>(&mut self, simd: S, step: &Step, scores: &mut [f32]) {
        let stride = step.stride();
        for n in 0..step.n_blocks {
            let scores = &mut scores[n * stride..(n + 1) * stride];
            if let Some(ahead) = step.ahead[n] {
                fetch(simd, ahead.wrapping_add(step.layout.scales_offset()), SCALE_BYTES);
            }
            let mut row = 0;
            while row < step.rows.len() {
                let m = (step.rows.len() - row).min(rows_at_once::<S>());
                let rows = step.rows.start + row;
                let ahead = step.ahead[n].filter(|_| row == 0);
                let to = &mut scores[row * LANES..(row + m) * LANES];
                // SAFETY: the caller's promise.
                unsafe {
                    match m {
                        1 => self.block_scores::<S, 1>(simd, step, rows, n, ahead, to),
                        2 => self.block_scores::<S, 2>(simd, step, rows, n, ahead, to),
                        3 => self.block_scores::<S, 3>(simd, step, rows, n, ahead, to),
                        _ => self.block_scores::<S, 4>(simd, step, rows, n, ahead, to),
                    }
                }
                row += m;
            }
        }
    }

    #[inline(always)]
    unsafe fn add_values<S: Simd>(&mut self, simd: S, step: &Step, weights: &mut [f32], values: &mut [f32]) {
        let (n_rows, padded, stride) = (step.rows.len(), step.layout.padded_dim(), step.stride());
        // SAFETY: the caller's promise.
        unsafe {
            for row in 0..n_rows {
                let of_block = |n: usize| {
                    let weights = simd.load(weights[n * stride + row * LANES..].as_ptr());
                    simd.mul(weights, scales(simd, step, n, 1))
                };
                self.weights.set(simd, row, (0..step.n_blocks).map(of_block));
            }
            for column in (0..padded).step_by(2 * LANES) {
                let mut row = 0;
                while row < n_rows {
                    let m = (n_rows - row).min(rows_at_once::<S>());
                    let has_two = column + LANES < padded;
                    let values = &mut values[row * padded + column..];
                    match (m, has_two) {
                        (1, false) => self.add_rows::<S, 1, 1>(simd, step, row, column, values),
                        (1, true) => self.add_rows::<S, 1, 2>(simd, step, row, column, values),
                        (2, false) => self.add_rows::<S, 2, 1>(simd, step, row, column, values),
                        (2, true) => self.add_rows::<S, 2, 2>(simd, step, row, column, values),
                        (3, false) => self.add_rows::<S, 3, 1>(simd, step, row, column, values),
                        (3, true) => self.add_rows::<S, 3, 2>(simd, step, row, column, values),
                        (_, false) => self.add_rows::<S, 4, 1>(simd, step, row, column, values),
                        (_, true) => self.add_rows::<S, 4, 2>(simd, step, row, column, values),
                    }
                    row += m;
                }
            }
        }
    }
}

impl WholeRows {
    /// Scores of block `n` for `M` rows from `first_row` on.
    #[inline(always)]
    unsafe fn block_scores<S: Simd, const M: usize>(
        &self,
        simd: S,
        step: &Step,
        first_row: usize,
        n: usize,
        ahead: Option<*const u8>,
        scores: &mut [f32],
    ) {
        let n_quads = step.layout.key_dim() / QUAD_LEN;
        let quads_at_once = SUM_VECTORS * LANES / QUAD_LEN;
        // SAFETY: the caller's promise.
        unsafe {
            let mut totals = [simd.splat(0.0); M];
            for start in (0..n_quads).step_by(quads_at_once) {
                let vector = start * QUAD_LEN / LANES;
                let vectors = vector..self.queries.n_vectors.min(vector + SUM_VECTORS);
                let parts: [_; M] =
                    std::array::from_fn(|m| self.queries.part(first_row + m, vectors.clone()));
                let mut sums = parts.map(|(_, start)| simd.splat_sums(start));
                for quad in 0..quads_at_once.min(n_quads - start) {
                    let place = (start + quad) * CODE_BYTES;
                    if let Some(ahead) = ahead {
                        fetch(simd, ahead.add(place), CODE_BYTES);
                    }
                    let codes = simd.load_codes_8(step.blocks[n].add(place));
                    for m in 0..M {
                        sums[m] = simd.dot_codes(sums[m], codes, parts[m].0.add(quad * QUAD_BYTES));
                    }
                }
                for m in 0..M {
                    totals[m] = simd.add(totals[m], simd.sums_to_floats(sums[m]));
                }
            }
            let of_keys = scales(simd, step, n, 0);
            for m in 0..M {
                let scale = simd.mul(of_keys, simd.splat(self.queries.scales[first_row + m]));
                simd.store(simd.mul(totals[m], scale), scores[m * LANES..].as_mut_ptr());
            }
        }
    }

    /// Adds weighted values to `V` vectors, from `column` on, of `M` rows from `first_row` of the head on.
    #[inline(always)]
    unsafe fn add_rows<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        step: &Step,
        first_row: usize,
        column: usize,
        values: &mut [f32],
    ) {
        let padded = step.layout.padded_dim();
        let offset = step.layout.values_offset() + column * QUAD_LEN;
        // SAFETY: the caller's promise.
        unsafe {
            let parts: [_; M] = std::array::from_fn(|m| self.weights.part(first_row + m, 0..step.n_blocks));
            let mut sums = parts.map(|(_, start)| [simd.splat_sums(start); V]);
            for n in 0..step.n_blocks {
                let ahead = step.ahead[n].filter(|_| first_row == 0).map(|ahead| ahead.add(offset));
                let n_keys = BLOCK_TOKENS.min(step.n_keys - n * BLOCK_TOKENS);
                for quad in 0..n_keys.div_ceil(QUAD_LEN) {
                    let place = quad * QUAD_LEN * padded;
                    if let Some(ahead) = ahead {
                        fetch(simd, ahead.add(place), V * CODE_BYTES);
                    }
                    let mut codes = [simd.load_codes_8(step.blocks[n].add(offset + place)); V];
                    for (v, codes) in codes.iter_mut().enumerate().skip(1) {
                        *codes = simd.load_codes_8(step.blocks[n].add(offset + place + v * CODE_BYTES));
                    }
                    for m in 0..M {
                        let weights = parts[m].0.add(n * VECTOR_BYTES + quad * QUAD_BYTES);
                        for v in 0..V {
                            sums[m][v] = simd.dot_codes(sums[m][v], codes[v], weights);
                        }
                    }
                }
            }
            for m in 0..M {
                let scale = simd.splat(self.weights.scales[first_row + m]);
                for v in 0..V {
                    let to = values[m * padded + v * LANES..].as_mut_ptr();
                    simd.store(simd.mul_add(simd.sums_to_floats(sums[m][v]), scale, simd.load(to)), to);
                }
            }
        }
    }
}

/// The scales of a block's keys, or its values.
#[inline(always)]
unsafe fn scales<S: Simd>(simd: S, step: &Step, n: usize, idx: usize) -> S::Floats {
    // SAFETY: the caller's promise: the block has them.
    unsafe {
        let scales = step.blocks[n].add(step.layout.scales_offset()).cast::<f32>();
        simd.load(scales.add(idx * BLOCK_TOKENS))
    }
}
