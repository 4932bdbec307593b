//! Bidirectional attention within whole texts, for encoders: each token sees those on both sides.
//!
//! Scores and weighted values are float GEMMs ([`super::super::matmul::gemm_float`]) of a tile of queries
//! with all keys that they see. Operands are dwords: one float32 each, or two bfloat16.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::FloatTile;
use super::super::matmul::gemm_float::padded_dwords;
use super::super::simd::{
    Kernel, LANES, Simd, dispatch_float, exp_array, load_array, load_masked, store_array,
};
use super::super::threads::disjoint::{DisjointSlice, collect_rows};
use super::super::threads::pool;
use super::{ITEMS_PER_THREAD, RopeTable};

/// Attention of an encoder layer within texts.
#[derive(Debug, Clone, Copy)]
pub struct EncoderAttention<'a> {
    /// Heads of queries, keys and values alike.
    pub n_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of the scores, the products of queries and keys.
    pub scale: f32,
    /// Sliding window: the most tokens to each side that a query sees besides its own.
    pub window: Option<usize>,
    /// Rotary position embedding of queries and keys.
    pub rope: Option<RopeTable<'a>>,
    /// Bias of the scores by relative position.
    pub bias: Option<RelativePositionBias<'a>>,
    /// Whether factors are rounded to bfloat16; the processor must have instructions for it.
    pub in_bf16: bool,
}

/// Numbers that are added to scores, by head and by the distance from the query to the key.
#[derive(Debug, Clone, Copy)]
pub struct RelativePositionBias<'a> {
    /// `[n_heads, 2 * max_distance + 1]`, from the farthest key before the query to the farthest behind it.
    pub values: &'a [f32],
    /// The largest distance that has a bias.
    pub max_distance: usize,
}

/// Most queries of a work item where there are few texts.
const ITEM_QUERIES: usize = 96;

/// Upper bound of the queries of a tile.
const MAX_TILE_QUERIES: usize = 32;

/// Some queries of a head of a text.
struct EncoderItem {
    /// Row of the text's first token in the batch.
    first_row: usize,
    /// Tokens of the text.
    n_tokens: usize,
    head: usize,
    queries: Range<usize>,
}

impl EncoderAttention<'_> {
    /// Computes the attention within texts of `lengths` tokens. `qkv` holds the queries, keys and values of
    /// each token, `[n_tokens, 3 * n_heads * head_dim]`, text by text. Returns one row of heads per token,
    /// `[n_tokens, n_heads * head_dim]`.
    ///
    /// # Panics
    /// When lengths do not fit each other, or the processor lacks bfloat16 instructions.
    pub fn forward(&self, isa: Isa, qkv: &[f32], lengths: &[usize]) -> Vec<f32> {
        let hidden = self.n_heads * self.head_dim;
        let n_tokens: usize = lengths.iter().sum();
        assert_eq!(qkv.len(), n_tokens * 3 * hidden);
        if let Some(rope) = self.rope {
            rope.check(n_tokens, self.head_dim);
        }
        if let Some(RelativePositionBias { values, max_distance }) = self.bias {
            assert!(lengths.iter().all(|&len| len <= max_distance + 1));
            assert_eq!(values.len(), self.n_heads * (2 * max_distance + 1));
        }
        assert!(!self.in_bf16 || isa.has_bf16());
        let items = self.items(lengths);
        let write = |y: DisjointSlice<MaybeUninit<f32>>| {
            let run_items = |claimed: &mut dyn Iterator<Item = usize>| {
                let amx = amx::TileConfig::for_floats(isa, self.in_bf16);
                SCRATCH.with_borrow_mut(|scratch| {
                    for idx in claimed {
                        let item = &items[idx];
                        let kernel = EncoderItemKernel { attention: self, item, qkv, amx: &amx, scratch, y };
                        dispatch_float(isa, self.in_bf16, kernel);
                    }
                });
            };
            match items.len() {
                1 => run_items(&mut (0..1)),
                n => pool::run(|team| run_items(&mut team.claim_chunks(n, 1).flatten())),
            }
        };
        // SAFETY: the queries of the items are all tokens of all texts, for each head.
        unsafe { collect_rows(n_tokens * hidden, write) }
    }

    /// Partitions the work: each head of each text, in tiles of queries if that gives too few items.
    fn items(&self, lengths: &[usize]) -> Vec<EncoderItem> {
        let n_wanted = ITEMS_PER_THREAD * pool::n_threads();
        // Each item packs keys and values anew, so queries are cut only where heads are too few.
        let cut_queries = lengths.len() * self.n_heads < n_wanted;
        let mut first_row = 0;
        let mut items = Vec::new();
        for &n_tokens in lengths {
            let n_queries = if cut_queries { ITEM_QUERIES } else { n_tokens.max(1) };
            for head in 0..self.n_heads {
                for start in (0..n_tokens).step_by(n_queries) {
                    let queries = start..n_tokens.min(start + n_queries);
                    items.push(EncoderItem { first_row, n_tokens, head, queries });
                }
            }
            first_row += n_tokens;
        }
        items
    }
}

/// Buffers of a thread, reused by all items; they only grow.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<[f32; LANES]>,
    weights: Vec<f32>,
    sums: Vec<[f32; LANES]>,
    rotated: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The parts of [`Scratch`] that an item needs.
struct Buffers<'a> {
    /// `[n_panels][head_dwords][LANES]`, and room for one more panel.
    keys: &'a mut [f32],
    /// `[head_panels][key_dwords][LANES]`, and room for one more panel.
    values: &'a mut [f32],
    /// `[tile_queries][head_dwords]`
    queries: &'a mut [f32],
    /// `[n_panels][tile_queries]`, and room for one more panel.
    scores: &'a mut [[f32; LANES]],
    /// `[tile_queries][key_dwords]`
    weights: &'a mut [f32],
    /// `[head_panels][tile_queries]`, and room for one more panel.
    sums: &'a mut [[f32; LANES]],
    /// A rotated head of a token.
    rotated: &'a mut [f32],
}

impl Scratch {
    /// Buffers of the right lengths, with arbitrary contents.
    fn buffers(&mut self, dims: &ItemDims, head_dim: usize) -> Buffers<'_> {
        fn at_least<T: Copy>(buffer: &mut Vec<T>, n: usize, zero: T) -> &mut [T] {
            buffer.resize(buffer.len().max(n), zero);
            &mut buffer[..n]
        }
        let ItemDims { head_dwords, key_dwords, n_panels, head_panels, tile_queries } = *dims;
        Buffers {
            keys: at_least(&mut self.keys, (n_panels + 1) * head_dwords * LANES, 0.0),
            values: at_least(&mut self.values, (head_panels + 1) * key_dwords * LANES, 0.0),
            queries: at_least(&mut self.queries, tile_queries * head_dwords, 0.0),
            scores: at_least(&mut self.scores, (n_panels + 1) * tile_queries, [0.0; LANES]),
            weights: at_least(&mut self.weights, tile_queries * key_dwords, 0.0),
            sums: at_least(&mut self.sums, (head_panels + 1) * tile_queries, [0.0; LANES]),
            rotated: at_least(&mut self.rotated, head_dim, 0.0),
        }
    }
}

/// Dimensions of an item's operands.
#[derive(Clone, Copy)]
struct ItemDims {
    /// Dwords of a head, padded to whole tiles.
    head_dwords: usize,
    /// Dwords of a weight per key, padded to whole tiles.
    key_dwords: usize,
    /// Panels of keys.
    n_panels: usize,
    /// Panels of the elements of a head.
    head_panels: usize,
    /// Most queries of a tile.
    tile_queries: usize,
}

impl ItemDims {
    fn new<S: Simd>(head_dim: usize, n_tokens: usize, has_amx: bool) -> Self {
        Self {
            head_dwords: padded_dwords(head_dim, S::FLOATS_PER_DWORD),
            key_dwords: padded_dwords(n_tokens, S::FLOATS_PER_DWORD),
            n_panels: n_tokens.div_ceil(LANES),
            head_panels: head_dim.div_ceil(LANES),
            tile_queries: if has_amx { amx::FLOAT_TILE_ROWS } else { S::FLOAT_TILE.0 },
        }
    }
}

/// Computes an item.
struct EncoderItemKernel<'a> {
    attention: &'a EncoderAttention<'a>,
    item: &'a EncoderItem,
    qkv: &'a [f32],
    amx: &'a Option<amx::TileConfig>,
    scratch: &'a mut Scratch,
    y: DisjointSlice<'a, MaybeUninit<f32>>,
}

impl Kernel for EncoderItemKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { attention, item, qkv, amx, scratch, y } = self;
        let dims = ItemDims::new::<S>(attention.head_dim, item.n_tokens, amx.is_some());
        let buffers = scratch.buffers(&dims, attention.head_dim);
        let mut head = HeadAttention { attention, item, qkv, amx: amx.as_ref(), dims, buffers };
        head.pack_keys(simd);
        head.pack_values(simd);
        let n_tiles = item.queries.len().div_ceil(dims.tile_queries);
        let edge = |idx: usize| item.queries.start + idx * item.queries.len() / n_tiles;
        for tile in 0..n_tiles {
            let queries = edge(tile)..edge(tile + 1);
            let panels = head.visible_panels(&queries);
            head.compute_scores(simd, &queries, &panels);
            let weight_sums = head.compute_weights(simd, &queries, &panels);
            head.compute_values(simd, queries.len(), &panels);
            head.write_output(queries, &weight_sums, &y);
        }
    }
}

/// The thirds of a row of `qkv`.
#[derive(Clone, Copy)]
enum Third {
    Query,
    Key,
    Value,
}

/// Attention of a head of a text under way.
struct HeadAttention<'a> {
    attention: &'a EncoderAttention<'a>,
    item: &'a EncoderItem,
    qkv: &'a [f32],
    amx: Option<&'a amx::TileConfig>,
    dims: ItemDims,
    buffers: Buffers<'a>,
}

impl<'a> HeadAttention<'a> {
    /// The head's query, key or value of a token.
    #[inline(always)]
    fn row(&self, token: usize, third: Third) -> &'a [f32] {
        let EncoderAttention { n_heads, head_dim, .. } = *self.attention;
        let EncoderItem { first_row, head, .. } = *self.item;
        &self.qkv[(((first_row + token) * 3 + third as usize) * n_heads + head) * head_dim..][..head_dim]
    }

    /// Packs a query, scaled, or a key as row `idx` of the queries: rotated, and padded with zeros.
    #[inline(always)]
    fn pack_row<S: Simd>(&mut self, simd: S, idx: usize, token: usize, third: Third) {
        let mut row = self.row(token, third);
        let scale = if matches!(third, Third::Query) { self.attention.scale } else { 1.0 };
        let Buffers { queries, rotated, .. } = &mut self.buffers;
        if let Some(rope) = &self.attention.rope {
            rotated.copy_from_slice(row);
            rope.rotate(self.item.first_row + token, rotated);
            row = rotated;
        }
        let dwords = self.dims.head_dwords;
        let to = &mut queries[idx * dwords..(idx + 1) * dwords];
        for (idx, to) in to.chunks_exact_mut(LANES / S::FLOATS_PER_DWORD).enumerate() {
            let x = load_masked(simd, row, row.len().min(idx * LANES));
            // SAFETY: `to` has the dwords of a vector.
            unsafe { simd.store_dwords(simd.mul(x, simd.splat(scale)), to.as_mut_ptr()) };
        }
    }

    /// Packs all keys into panels of [`LANES`] tokens.
    #[inline(always)]
    fn pack_keys<S: Simd>(&mut self, simd: S) {
        let n_tokens = self.item.n_tokens;
        let panel_len = self.dims.head_dwords * LANES;
        self.buffers.keys[n_tokens / LANES * panel_len..].fill(0.0);
        for token in 0..n_tokens {
            self.pack_row(simd, 0, token, Third::Key);
            let Buffers { keys, queries, .. } = &mut self.buffers;
            let panel = &mut keys[token / LANES * panel_len..][..panel_len];
            for (dword, to) in queries[..self.dims.head_dwords].iter().zip(panel.chunks_exact_mut(LANES)) {
                to[token % LANES] = *dword;
            }
        }
    }

    /// Packs all values into panels of [`LANES`] elements of the head.
    #[inline(always)]
    fn pack_values<S: Simd>(&mut self, simd: S) {
        let ItemDims { key_dwords, head_panels, .. } = self.dims;
        for dword in 0..key_dwords {
            let rows = [0, 1].map(|half| {
                let token = dword * S::FLOATS_PER_DWORD + half;
                if token < self.item.n_tokens { self.row(token, Third::Value) } else { &[] }
            });
            for panel in 0..head_panels {
                let [first, second] = rows.map(|row| load_masked(simd, row, row.len().min(panel * LANES)));
                let to = &mut self.buffers.values[(panel * key_dwords + dword) * LANES..][..LANES];
                // SAFETY: `to` has sixteen dwords.
                unsafe { simd.store_dword_pairs(first, second, to.as_mut_ptr()) };
            }
        }
    }

    /// The tokens that a query sees.
    #[inline(always)]
    fn visible(&self, query: usize) -> Range<usize> {
        let n_tokens = self.item.n_tokens;
        self.attention
            .window
            .map_or(0..n_tokens, |window| query.saturating_sub(window)..n_tokens.min(query + window + 1))
    }

    /// Panels of the keys that any of the `queries` sees. The first is even: panels are multiplied in pairs.
    #[inline(always)]
    fn visible_panels(&self, queries: &Range<usize>) -> Range<usize> {
        let n_tokens = self.item.n_tokens;
        let step = 2 * LANES;
        let keys = self.attention.window.map_or(0..n_tokens, |window| {
            queries.start.saturating_sub(window) / step * step..n_tokens.min(queries.end + window)
        });
        keys.start / LANES..keys.end.div_ceil(LANES)
    }

    /// Packs the `queries` and computes their scores with the keys of `panels`.
    #[inline(always)]
    fn compute_scores<S: Simd>(&mut self, simd: S, queries: &Range<usize>, panels: &Range<usize>) {
        for (idx, query) in queries.clone().enumerate() {
            self.pack_row(simd, idx, query, Third::Query);
        }
        let ItemDims { head_dwords, tile_queries, .. } = self.dims;
        let Buffers { keys, queries: packed, scores, .. } = &mut self.buffers;
        let tile = FloatTile {
            rows: packed.as_ptr(),
            n_rows: queries.len(),
            stride: head_dwords,
            n_dwords: self.attention.head_dim.div_ceil(S::FLOATS_PER_DWORD),
            prefetch: false,
        };
        for panel in panels.clone().step_by(2) {
            let of_panels = [panel, panel + 1].map(|panel| keys[panel * head_dwords * LANES..].as_ptr());
            let (first, second) = scores[panel * tile_queries..].split_at_mut(tile_queries);
            // SAFETY: `buffers` made room for `tile_queries` rows of queries, and for one panel of keys and
            // of scores more than there are; rows and panels are padded to whole tiles.
            unsafe { tile.multiply::<S, 2>(simd, self.amx, of_panels, [first, second]) };
        }
    }

    /// Turns the scores of each query into weights. Returns the sums of the weights.
    #[inline(always)]
    fn compute_weights<S: Simd>(
        &mut self,
        simd: S,
        queries: &Range<usize>,
        panels: &Range<usize>,
    ) -> [f32; MAX_TILE_QUERIES] {
        let ItemDims { key_dwords, tile_queries, .. } = self.dims;
        let mut weight_sums = [0.0; MAX_TILE_QUERIES];
        for (row, query) in queries.clone().enumerate() {
            let visible = self.visible(query);
            let bias = self.attention.bias.map(|RelativePositionBias { values, max_distance }| {
                let of_head = &values[self.item.head * (2 * max_distance + 1)..];
                &of_head[max_distance - query..2 * max_distance + 1]
            });
            let Buffers { scores, weights, .. } = &mut self.buffers;
            let softmax = QuerySoftmax { scores, tile_queries, row, panels: panels.clone(), visible, bias };
            weight_sums[row] = softmax.write_weights(simd, &mut weights[row * key_dwords..][..key_dwords]);
        }
        weight_sums
    }

    /// Computes the weighted sums of the values of `panels` for the first `n_queries` rows of weights.
    #[inline(always)]
    fn compute_values<S: Simd>(&mut self, simd: S, n_queries: usize, panels: &Range<usize>) {
        let ItemDims { key_dwords, head_panels, tile_queries, .. } = self.dims;
        let Buffers { values, weights, sums, .. } = &mut self.buffers;
        let first = panels.start * LANES / S::FLOATS_PER_DWORD;
        let end = padded_dwords(panels.end * LANES, S::FLOATS_PER_DWORD).min(key_dwords);
        let tile = FloatTile {
            rows: weights[first..].as_ptr(),
            n_rows: n_queries,
            stride: key_dwords,
            n_dwords: end - first,
            prefetch: false,
        };
        for panel in (0..head_panels).step_by(2) {
            let of_panels =
                [panel, panel + 1].map(|panel| values[(panel * key_dwords + first) * LANES..].as_ptr());
            let (first, second) = sums[panel * tile_queries..].split_at_mut(tile_queries);
            // SAFETY: `buffers` made room for `tile_queries` rows of weights, which are zero behind `panels`,
            // and for one panel of values and of sums more than there are; rows and panels are padded to
            // whole tiles.
            unsafe { tile.multiply::<S, 2>(simd, self.amx, of_panels, [first, second]) };
        }
    }

    /// Writes the weighted means of the values.
    #[inline(always)]
    fn write_output(&self, queries: Range<usize>, weight_sums: &[f32], y: &DisjointSlice<MaybeUninit<f32>>) {
        let EncoderAttention { n_heads, head_dim, .. } = *self.attention;
        let EncoderItem { first_row, head, .. } = *self.item;
        for (row, query) in queries.enumerate() {
            // SAFETY: the items have different queries or heads, and `forward` runs each of them once.
            let y = unsafe { y.slice(((first_row + query) * n_heads + head) * head_dim, head_dim) };
            let inverse = 1.0 / weight_sums[row];
            for (panel, y) in y.chunks_mut(LANES).enumerate() {
                for (y, sum) in y.iter_mut().zip(&self.buffers.sums[panel * self.dims.tile_queries + row]) {
                    y.write(sum * inverse);
                }
            }
        }
    }
}

/// Softmax of one query.
struct QuerySoftmax<'a> {
    /// `[n_panels][tile_queries]`
    scores: &'a mut [[f32; LANES]],
    tile_queries: usize,
    /// Row of the query in the tile.
    row: usize,
    /// Panels whose scores were computed.
    panels: Range<usize>,
    /// Keys that the query sees.
    visible: Range<usize>,
    /// Bias of each key, from the first on.
    bias: Option<&'a [f32]>,
}

/// Panels whose weights are computed in step: the exponentials of one wait for each other.
const STEP_PANELS: usize = 4;

impl QuerySoftmax<'_> {
    /// Writes the weights as dwords, from those of the first panel on, with zeros up to the end. Returns
    /// their sum.
    #[inline(always)]
    fn write_weights<S: Simd>(mut self, simd: S, weights: &mut [f32]) -> f32 {
        let max = self.mask_scores(simd);
        let max = simd.splat(simd.reduce_max(max));
        let dword = |panel: usize| panel * LANES / S::FLOATS_PER_DWORD;
        let mut sum = simd.splat(0.0);
        let Range { start: mut panel, end } = self.panels;
        while panel < end {
            let to = &mut weights[dword(panel)..];
            if end - panel >= STEP_PANELS {
                sum = self.write_panels::<S, STEP_PANELS>(simd, panel, max, to, sum);
                panel += STEP_PANELS;
            } else {
                sum = self.write_panels::<S, 1>(simd, panel, max, to, sum);
                panel += 1;
            }
        }
        weights[dword(end)..].fill(0.0);
        simd.reduce_add(sum)
    }

    /// Adds the bias to the scores and hides the keys that the query does not see. Returns the largest
    /// scores.
    #[inline(always)]
    fn mask_scores<S: Simd>(&mut self, simd: S) -> S::Floats {
        let Self { visible, bias, .. } = self;
        let mut max = simd.splat(f32::NEG_INFINITY);
        for panel in self.panels.clone() {
            let scores = &mut self.scores[panel * self.tile_queries + self.row];
            let first = panel * LANES;
            if let Some(bias) = bias {
                let sum = simd.add(load_array(simd, scores), load_masked(simd, bias, first));
                store_array(simd, sum, scores);
            }
            if first < visible.start || first + LANES > visible.end {
                for (lane, score) in scores.iter_mut().enumerate() {
                    if !visible.contains(&(first + lane)) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
            max = simd.max(load_array(simd, scores), max);
        }
        max
    }

    /// Writes the weights of `N` panels. Returns `sum` plus the weights.
    #[inline(always)]
    fn write_panels<S: Simd, const N: usize>(
        &self,
        simd: S,
        panel: usize,
        max: S::Floats,
        to: &mut [f32],
        mut sum: S::Floats,
    ) -> S::Floats {
        let mut differences = [max; N];
        for i in 0..N {
            let scores = &self.scores[(panel + i) * self.tile_queries + self.row];
            differences[i] = simd.sub(load_array(simd, scores), max);
        }
        let weights = exp_array::<S, N>(simd, differences);
        let to = &mut to[..N * LANES / S::FLOATS_PER_DWORD];
        for i in 0..N {
            sum = simd.add(sum, weights[i]);
            // SAFETY: `to` has the dwords of `N` vectors.
            unsafe { simd.store_dwords(weights[i], to.as_mut_ptr().add(i * LANES / S::FLOATS_PER_DWORD)) };
        }
        sum
    }
}
