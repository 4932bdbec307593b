//! Paged attention over quantized keys and values: queries and weights become 16-bit integers too, and
//! integer dot products multiply them as they do the weights of a matrix, whose rows are tokens (keys) or
//! elements (values).

use super::super::matmul::quantize::quantization_scale;
use super::super::simd::{
    ACTIVATION_MAX, LANES, QUAD_BYTES, QUAD_LEN, Simd, load_array, store_array, with_rows,
};
use super::kv_block::{BLOCK_TOKENS, Int8, KvKind, KvLayout};
use super::kv_kernel::{KvHeadLayout, KvKernel, KvStep, STEP_BLOCKS, prefetch};

/// Bytes of a vector's quads.
const VECTOR_BYTES: usize = LANES / QUAD_LEN * QUAD_BYTES;

/// Bytes of a quad of each of sixteen tokens or elements.
const CODE_BYTES: usize = LANES * QUAD_LEN;

/// Bytes of the scales of a head's keys, and of its values.
const SCALE_BYTES: usize = BLOCK_TOKENS * size_of::<f32>();

/// Vectors whose products are summed as integers; with more, the 32-bit sums could overflow.
const SUM_VECTORS: usize = 8;

/// [`KvKernel`] of 8-bit integers.
pub(super) struct Int8KvKernel {
    head: KvHeadLayout,
    queries: QuantizedRows,
    /// Weights of a step's keys, one row per query row of a head.
    weights: QuantizedRows,
    /// Scratch memory for the keys of a step as values, where these are the keys.
    transposed: Vec<u8>,
}

/// Rows of vectors, quantized to 16-bit integers with one scale per row.
struct QuantizedRows {
    /// Vectors per row.
    n_vectors: usize,
    /// Chunks of [`SUM_VECTORS`] vectors per row.
    n_chunks: usize,
    /// `[n_rows, n_vectors, 4 quads]`
    quads: Vec<u8>,
    /// Factor of the integers of each row.
    scales: Vec<f32>,
    /// Sum of the integers of each chunk, `[n_rows, n_chunks]`.
    sums: Vec<i32>,
}

impl QuantizedRows {
    fn new(n_rows: usize, n_vectors: usize) -> Self {
        let n_chunks = n_vectors.div_ceil(SUM_VECTORS);
        Self {
            n_vectors,
            n_chunks,
            quads: vec![0; n_rows * n_vectors * VECTOR_BYTES],
            scales: vec![0.0; n_rows],
            sums: vec![0; n_rows * n_chunks],
        }
    }

    /// Quantizes `vectors`, at most `n_vectors`, into a row.
    #[inline(always)]
    fn set<S: Simd>(&mut self, simd: S, row: usize, vectors: impl Iterator<Item = S::Floats> + Clone) {
        let quads = &mut self.quads[row * self.n_vectors * VECTOR_BYTES..][..self.n_vectors * VECTOR_BYTES];
        let sums = &mut self.sums[row * self.n_chunks..][..self.n_chunks];
        let (scale, inverse) = quantization_scale(simd, vectors.clone(), ACTIVATION_MAX);
        self.scales[row] = scale;
        sums.fill(0);
        let Some(inverse) = inverse.map(|inverse| simd.splat(inverse)) else {
            quads.fill(0);
            return;
        };
        for (idx, (quads, x)) in quads.chunks_exact_mut(VECTOR_BYTES).zip(vectors).enumerate() {
            // SAFETY: a chunk of `quads` has room for a vector's.
            let sum = unsafe { simd.quantize_quads(simd.mul(x, inverse), quads.as_mut_ptr()) };
            sums[idx / SUM_VECTORS] += sum;
        }
    }

    /// Quads of a chunk of a row, and the start value of their dot product with codes: codes are unsigned,
    /// and the start value subtracts their zero.
    #[inline(always)]
    fn operand(&self, row: usize, chunk: usize) -> (*const u8, i32) {
        let sum = self.sums[row * self.n_chunks + chunk];
        let first = row * self.n_vectors + chunk * SUM_VECTORS;
        // SAFETY: `new` made room for the quads of each row, whose chunks have sums.
        let quads = unsafe { self.quads.as_ptr().add(first * VECTOR_BYTES) };
        (quads, -i32::from(Int8::ZERO) * sum)
    }
}

impl KvKernel for Int8KvKernel {
    type Element = Int8;

    #[inline(always)]
    fn new<S: Simd>(simd: S, layout: &KvLayout, mut queries: Vec<f32>, rows_per_head: usize) -> Self {
        let head = KvHeadLayout::new::<Int8>(layout);
        let padded = head.padded_dim;
        let mut quantized = QuantizedRows::new(queries.len() / padded, padded / LANES);
        for (row, query) in queries.chunks_exact_mut(padded).enumerate() {
            layout.rotate(simd, query);
            quantized.set(simd, row, query.as_chunks().0.iter().map(|x| load_array(simd, x)));
        }
        let weights = QuantizedRows::new(rows_per_head, STEP_BLOCKS);
        let n_transposed = if layout.shared_values { STEP_BLOCKS * BLOCK_TOKENS * padded } else { 0 };
        Self { head, queries: quantized, weights, transposed: vec![0; n_transposed] }
    }

    #[inline(always)]
    fn scores<S: Simd>(&mut self, simd: S, step: &KvStep, scores: &mut [[f32; LANES]]) {
        let n_rows = step.rows.len();
        let tile = Int8Tile { kernel: self, step, blocks: step.pointers(&self.head) };
        for n in 0..step.n_blocks {
            let scores = &mut scores[n * n_rows..(n + 1) * n_rows];
            if let Some(ahead) = step.ahead[n] {
                prefetch(simd, ahead.wrapping_add(self.head.scales_offset), 2 * SCALE_BYTES);
            }
            let mut row = 0;
            while row < n_rows {
                let m = (n_rows - row).min(tile_rows::<S>());
                with_rows!(m, M in [1, 2, 3, 4] => tile.scores::<S, M>(simd, n, row, scores));
                row += m;
            }
        }
    }

    #[inline(always)]
    fn add_values<S: Simd>(&mut self, simd: S, step: &KvStep, weights: &[[f32; LANES]], values: &mut [f32]) {
        let (n_rows, padded) = (step.rows.len(), self.head.padded_dim);
        assert!(step.n_keys <= step.n_blocks * BLOCK_TOKENS);
        let scales = step.blocks.map(|block| scales_of(&self.head, block, KvKind::Value));
        for row in 0..n_rows {
            let scaled = |n: usize| {
                simd.mul(load_array(simd, &weights[n * n_rows + row]), load_scales(simd, scales[n]))
            };
            self.weights.set(simd, row, (0..step.n_blocks).map(scaled));
        }
        let mut blocks = step.pointers(&self.head);
        if self.head.shared_values {
            let transposed = self.transposed.chunks_exact_mut(BLOCK_TOKENS * padded);
            for (n, to) in transposed.enumerate().take(step.n_blocks) {
                transpose(&step.blocks[n][..BLOCK_TOKENS * self.head.key_dim], to);
                blocks[n] = to.as_ptr();
            }
        }
        let tile = Int8Tile { kernel: self, step, blocks };
        for column in (0..padded).step_by(2 * LANES) {
            let n_vectors = (padded - column).min(2 * LANES) / LANES;
            let mut row = 0;
            while row < n_rows {
                let m = (n_rows - row).min(tile_rows::<S>());
                with_rows!(m, M in [1, 2, 3, 4] => {
                    with_rows!(n_vectors, V in [1, 2] => {
                        tile.add_values::<S, M, V>(simd, row, column, values)
                    })
                });
                row += m;
            }
        }
    }
}

/// Rows that are multiplied with keys or values at once, so that their sums stay in registers.
const fn tile_rows<S: Simd>() -> usize {
    if S::GEMV_TILE_ROWS >= 8 { 4 } else { 1 }
}

/// Products of some rows of a step.
struct Int8Tile<'a> {
    kernel: &'a Int8KvKernel,
    step: &'a KvStep<'a>,
    /// Addresses of the blocks, each of which has a whole head: from [`KvStep::pointers`], or for values that are the
    /// keys from [`transpose`].
    blocks: [*const u8; STEP_BLOCKS],
}

impl Int8Tile<'_> {
    /// Computes the scores of block `n` for `M` rows of the step from `row` on.
    #[inline(always)]
    fn scores<S: Simd, const M: usize>(&self, simd: S, n: usize, row: usize, scores: &mut [[f32; LANES]]) {
        let Self { kernel: Int8KvKernel { head, queries, .. }, step, blocks } = self;
        let first_row = step.rows.start + row;
        let ahead = step.ahead[n].filter(|_| row == 0);
        let n_quads = head.key_dim / QUAD_LEN;
        let quads_at_once = SUM_VECTORS * LANES / QUAD_LEN;
        let mut totals = [simd.splat(0.0); M];
        for start in (0..n_quads).step_by(quads_at_once) {
            let chunk = start / quads_at_once;
            let operands: [_; M] = std::array::from_fn(|m| queries.operand(first_row + m, chunk));
            let mut sums = operands.map(|(_, start)| simd.splat_sums(start));
            for quad in 0..quads_at_once.min(n_quads - start) {
                let offset = (start + quad) * CODE_BYTES;
                if let Some(ahead) = ahead {
                    prefetch(simd, ahead.wrapping_add(offset), CODE_BYTES);
                }
                // SAFETY: `pointers` checked that the block has all `n_quads` of the keys, and `operand` that
                // the row has these quads.
                unsafe {
                    let codes = simd.load_codes_8(blocks[n].add(offset));
                    for m in 0..M {
                        sums[m] =
                            simd.dot_codes(sums[m], codes, 8, operands[m].0.add(quad * QUAD_BYTES), quad);
                    }
                }
            }
            for m in 0..M {
                totals[m] = simd.add(totals[m], simd.sums_to_floats(sums[m], 8, quads_at_once));
            }
        }
        let key_scales = load_scales(simd, scales_of(head, step.blocks[n], KvKind::Key));
        for m in 0..M {
            let scale = simd.mul(key_scales, simd.splat(queries.scales[first_row + m]));
            store_array(simd, simd.mul(totals[m], scale), &mut scores[row + m]);
        }
    }

    /// Adds `V` vectors, from `column` on, of the weighted values to those of `M` rows of the step from `row`
    /// on.
    #[inline(always)]
    fn add_values<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        column: usize,
        values: &mut [f32],
    ) {
        let Self { kernel: Int8KvKernel { head, weights, .. }, step, blocks } = self;
        let padded = head.padded_dim;
        let offset = head.values_offset + column * QUAD_LEN;
        let operands: [_; M] = std::array::from_fn(|m| weights.operand(row + m, 0));
        let mut sums = operands.map(|(_, start)| [simd.splat_sums(start); V]);
        for n in 0..step.n_blocks {
            let ahead = step.ahead[n].filter(|_| row == 0).map(|ahead| ahead.wrapping_add(offset));
            let n_keys = BLOCK_TOKENS.min(step.n_keys - n * BLOCK_TOKENS);
            for quad in 0..n_keys.div_ceil(QUAD_LEN) {
                let quad_offset = quad * QUAD_LEN * padded;
                if let Some(ahead) = ahead {
                    prefetch(simd, ahead.wrapping_add(quad_offset), V * CODE_BYTES);
                }
                // SAFETY: `pointers` checked that the block has all values of a head, or `transpose` wrote them;
                // these are their `V` vectors from `column` on. The row has quads for `STEP_BLOCKS` blocks.
                unsafe {
                    let of_quad = blocks[n].add(offset + quad_offset);
                    let mut codes = [simd.load_codes_8(of_quad); V];
                    for (v, codes) in codes.iter_mut().enumerate().skip(1) {
                        *codes = simd.load_codes_8(of_quad.add(v * CODE_BYTES));
                    }
                    for m in 0..M {
                        let weights = operands[m].0.add(n * VECTOR_BYTES + quad * QUAD_BYTES);
                        for v in 0..V {
                            sums[m][v] = simd.dot_codes(sums[m][v], codes[v], 8, weights, quad);
                        }
                    }
                }
            }
        }
        for m in 0..M {
            let scale = simd.splat(weights.scales[row + m]);
            let values = values[(row + m) * padded + column..].as_chunks_mut().0;
            for (v, values) in values[..V].iter_mut().enumerate() {
                let sum = simd.mul_add(
                    simd.sums_to_floats(sums[m][v], 8, step.n_keys.div_ceil(QUAD_LEN)),
                    scale,
                    load_array(simd, values),
                );
                store_array(simd, sum, values);
            }
        }
    }
}

/// Writes the codes of a block's keys as values: `[key_dim / 4][BLOCK_TOKENS][4]` to `[BLOCK_TOKENS / 4][padded][4 tokens]`.
///
/// # Panics
/// When `to` has no room for rows of `key_dim` elements.
#[inline(always)]
fn transpose(keys: &[u8], to: &mut [u8]) {
    for (to, first_token) in
        to.chunks_exact_mut(to.len() / (BLOCK_TOKENS / QUAD_LEN)).zip((0..).step_by(QUAD_LEN))
    {
        for (elements, keys) in to.chunks_exact_mut(QUAD_LEN * QUAD_LEN).zip(keys.chunks_exact(CODE_BYTES)) {
            let tokens = &keys[first_token * QUAD_LEN..][..QUAD_LEN * QUAD_LEN];
            for i in 0..QUAD_LEN {
                for token in 0..QUAD_LEN {
                    elements[i * QUAD_LEN + token] = tokens[token * QUAD_LEN + i];
                }
            }
        }
    }
}

/// Scales of a head's keys or values in a block.
#[inline(always)]
fn scales_of<'a>(head: &KvHeadLayout, block: &'a [u8], kind: KvKind) -> &'a [u8; SCALE_BYTES] {
    let is_second = kind == KvKind::Value && !head.shared_values;
    let offset = head.scales_offset + if is_second { SCALE_BYTES } else { 0 };
    let Some(scales) = block[offset..].first_chunk() else { unreachable!("a head ends with its scales") };
    scales
}

#[inline(always)]
fn load_scales<S: Simd>(simd: S, scales: &[u8; SCALE_BYTES]) -> S::Floats {
    // SAFETY: the array has the bytes of sixteen float32; loads need no alignment.
    unsafe { simd.load(scales.as_ptr().cast()) }
}
