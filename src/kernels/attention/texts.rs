//! PagedAttention within whole texts, each token seeing those on both sides: products of units
//! ([`super::super::matmul::gemm_float`]), a few queries against all keys that they see.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::amx;
use super::super::isa::Isa;
use super::super::layout::FloatTile;
use super::super::matmul::gemm_float::padded_dwords;
use super::super::simd::{Kernel, LANES, Simd, dispatch_float, exp_array, load_masked};
use super::super::threads::disjoint::{DisjointSlice, collect_rows};
use super::super::threads::pool;
use super::{PIECES_PER_THREAD, RopeTable, rotate};

/// What a layer's attention is.
#[derive(Debug, Clone, Copy)]
pub struct EncoderAttention<'a> {
    pub n_heads: usize,
    pub head_dim: usize,
    /// Multiplies the product of a query and a key.
    pub scale: f32,
    /// How many tokens to each side a query sees, if not all.
    pub window: Option<usize>,
    pub rope: Option<RopeTable<'a>>,
    pub bias: Option<RelativePositionBias<'a>>,
    /// Whether numbers are rounded to bfloat16 before they are multiplied.
    pub in_bf16: bool,
}

/// What is added to a score by how far the key is behind the query.
#[derive(Debug, Clone, Copy)]
pub struct RelativePositionBias<'a> {
    /// `[n_heads, 2 * max_distance + 1]`, from the farthest key in front of the query to the farthest behind.
    pub values: &'a [f32],
    pub max_distance: usize,
}

/// Most queries of a piece where there are few texts.
const PIECE_ROWS: usize = 96;

/// Most queries that meet the keys at once.
const MAX_TILE_ROWS: usize = 32;

/// A piece of work: some queries of a head of a text.
struct Piece {
    first_row: usize,
    n_tokens: usize,
    head: usize,
    queries: Range<usize>,
}

impl EncoderAttention<'_> {
    /// PagedAttention of texts of `lengths` tokens, whose queries, keys and values are the rows of `qkv`, `[n_tokens,
    /// 3 * n_heads * head_dim]`, one text after the other; the result is `[n_tokens, n_heads * head_dim]`.
    ///
    /// # Panics
    /// When a length does not fit the others.
    pub fn forward(&self, isa: Isa, qkv: &[f32], lengths: &[usize]) -> Vec<f32> {
        let hidden = self.n_heads * self.head_dim;
        let n_tokens: usize = lengths.iter().sum();
        assert_eq!(qkv.len(), n_tokens * 3 * hidden);
        if let Some(RopeTable { cos, sin, n_pairs }) = self.rope {
            assert!(2 * n_pairs <= self.head_dim);
            assert!(cos.len() == n_tokens * n_pairs && sin.len() == n_tokens * n_pairs);
        }
        if let Some(RelativePositionBias { values, max_distance }) = self.bias {
            assert!(lengths.iter().all(|&len| len <= max_distance + 1));
            assert_eq!(values.len(), self.n_heads * (2 * max_distance + 1));
        }
        assert!(!self.in_bf16 || isa.has_bf16());
        let pieces = self.pieces(lengths);
        let write = |y: DisjointSlice<MaybeUninit<f32>>| {
            let do_pieces = |own: &mut dyn Iterator<Item = usize>| {
                let amx = amx::TileConfig::for_floats(isa, self.in_bf16);
                SCRATCH.with_borrow_mut(|scratch| {
                    for idx in own {
                        let piece = &pieces[idx];
                        let kernel = PieceKernel { attention: self, piece, qkv, amx: &amx, scratch, y };
                        dispatch_float(isa, self.in_bf16, kernel);
                    }
                });
            };
            match pieces.len() {
                1 => do_pieces(&mut (0..1)),
                n => pool::run(|team| do_pieces(&mut team.claim_chunks(n, 1).flatten())),
            }
        };
        // SAFETY: the pieces write every head of every token.
        unsafe { collect_rows(n_tokens * hidden, write) }
    }

    /// Shares out the work.
    fn pieces(&self, lengths: &[usize]) -> Vec<Piece> {
        let n_wanted = PIECES_PER_THREAD * pool::n_threads();
        // Keys and values are prepared anew for each piece.
        let shares_rows = lengths.len() * self.n_heads < n_wanted;
        let mut first_row = 0;
        let mut pieces = Vec::new();
        for &n_tokens in lengths {
            let at_once = if shares_rows { PIECE_ROWS } else { n_tokens.max(1) };
            for head in 0..self.n_heads {
                for start in (0..n_tokens).step_by(at_once) {
                    let queries = start..n_tokens.min(start + at_once);
                    pieces.push(Piece { first_row, n_tokens, head, queries });
                }
            }
            first_row += n_tokens;
        }
        pieces
    }
}

/// Room for what a piece prepares; it only grows.
#[derive(Default)]
struct Scratch {
    /// `[n_panels][units of a head][LANES]`, and room for one more panel.
    keys: Vec<f32>,
    /// `[panels of a head][units of all keys][LANES]`, and room for one more panel.
    values: Vec<f32>,
    /// `[rows of a tile][units of a head]`
    queries: Vec<f32>,
    /// `[n_panels][rows of a tile]`
    scores: Vec<[f32; LANES]>,
    /// `[rows of a tile][units of all keys]`
    weights: Vec<f32>,
    /// `[panels of a head][rows of a tile]`
    sums: Vec<[f32; LANES]>,
    /// A head of a token.
    turned: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Makes room for `n`.
fn at_least<T: Copy>(room: &mut Vec<T>, n: usize, nothing: T) -> &mut [T] {
    room.resize(room.len().max(n), nothing);
    &mut room[..n]
}

struct PieceKernel<'a> {
    attention: &'a EncoderAttention<'a>,
    piece: &'a Piece,
    qkv: &'a [f32],
    amx: &'a Option<amx::TileConfig>,
    scratch: &'a mut Scratch,
    y: DisjointSlice<'a, MaybeUninit<f32>>,
}

impl Kernel for PieceKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { attention, piece, qkv, amx, scratch, y } = self;
        let EncoderAttention { n_heads, head_dim, scale, window, .. } = *attention;
        let Piece { first_row, n_tokens, head, .. } = *piece;
        let hidden = n_heads * head_dim;
        let head_units = padded_dwords(head_dim, S::FLOATS_PER_DWORD);
        let key_units = padded_dwords(n_tokens, S::FLOATS_PER_DWORD);
        let n_panels = n_tokens.div_ceil(LANES);
        let head_panels = head_dim.div_ceil(LANES);
        let tile_rows = if amx.is_some() { amx::FLOAT_TILE_ROWS } else { S::FLOAT_TILE.0 };

        let mut heads =
            Heads { attention, qkv, first_row, head, turned: at_least(&mut scratch.turned, head_dim, 0.0) };

        let panel_len = head_units * LANES;
        let keys = at_least(&mut scratch.keys, (n_panels + 1) * panel_len, 0.0);
        keys[n_tokens / LANES * panel_len..].fill(0.0);
        let queries = at_least(&mut scratch.queries, tile_rows * head_units, 0.0);
        for token in 0..n_tokens {
            // SAFETY: there is room for the units of a head.
            unsafe { heads.store_units(simd, token, KEY, 1.0, &mut queries[..head_units]) };
            let panel = &mut keys[token / LANES * panel_len..][..panel_len];
            for (unit, to) in queries.iter().zip(panel.chunks_exact_mut(LANES)) {
                to[token % LANES] = *unit;
            }
        }

        let value_len = key_units * LANES;
        let values = at_least(&mut scratch.values, (head_panels + 1) * value_len, 0.0);
        for unit in 0..key_units {
            let rows = [0, 1].map(|half| {
                let token = unit * S::FLOATS_PER_DWORD + half;
                if token < n_tokens { heads.of(token, VALUE) } else { &[] }
            });
            for panel in 0..head_panels {
                let to = &mut values[panel * value_len + unit * LANES..][..LANES];
                // SAFETY: there is room for a vector of units.
                unsafe {
                    let [first, second] =
                        rows.map(|row| load_masked(simd, row, row.len().min(panel * LANES)));
                    simd.store_dword_pairs(first, second, to.as_mut_ptr());
                }
            }
        }

        let scores = at_least(&mut scratch.scores, (n_panels + 1) * tile_rows, [0.0; LANES]);
        let weights = at_least(&mut scratch.weights, tile_rows * key_units, 0.0);
        let sums = at_least(&mut scratch.sums, (head_panels + 1) * tile_rows, [0.0; LANES]);
        let n_tiles = piece.queries.len().div_ceil(tile_rows);
        let edge = |idx: usize| piece.queries.start + idx * piece.queries.len() / n_tiles;
        // Keys that are multiplied at once.
        let step = 2 * LANES;
        for tile in 0..n_tiles {
            let of_tile = edge(tile)..edge(tile + 1);
            let m = of_tile.len();
            for (query, to) in of_tile.clone().zip(queries.chunks_exact_mut(head_units)) {
                // SAFETY: as above.
                unsafe { heads.store_units(simd, query, QUERY, scale, to) };
            }
            // Keys that any of them sees, in whole steps.
            let seen = window.map_or(0..n_tokens, |window| {
                of_tile.start.saturating_sub(window) / step * step..n_tokens.min(of_tile.end + window)
            });
            let panels = seen.start / LANES..seen.end.div_ceil(LANES);
            let factors = FloatTile {
                rows: queries.as_ptr(),
                n_rows: m,
                stride: head_units,
                n_dwords: head_dim.div_ceil(S::FLOATS_PER_DWORD),
                prefetch: false,
            };
            for panel in panels.clone().step_by(2) {
                let of_panels = [panel, panel + 1].map(|panel| keys[panel * panel_len..].as_ptr());
                let (first, second) = scores[panel * tile_rows..].split_at_mut(tile_rows);
                // SAFETY: whole panels of keys, behind which there is one more; room for the scores.
                unsafe {
                    factors.multiply::<S, 2>(simd, amx.as_ref(), of_panels, [first, second]);
                }
            }
            let mut of_rows = [0.0; MAX_TILE_ROWS];
            for (row, query) in of_tile.clone().enumerate() {
                let visible = window.map_or(0..n_tokens, |window| {
                    query.saturating_sub(window)..n_tokens.min(query + window + 1)
                });
                let softmax = Softmax {
                    scores: &mut *scores,
                    tile_rows,
                    row,
                    panels: panels.clone(),
                    visible,
                    bias: attention.bias.map(|bias| {
                        let of_head = &bias.values[head * (2 * bias.max_distance + 1)..];
                        &of_head[bias.max_distance - query..2 * bias.max_distance + 1]
                    }),
                };
                let of_row = &mut weights[row * key_units..][..key_units];
                // SAFETY: scores and weights of all panels are there.
                of_rows[row] = unsafe { softmax.weigh(simd, of_row) };
            }
            let first_unit = panels.start * LANES / S::FLOATS_PER_DWORD;
            let end_unit = padded_dwords(panels.end * LANES, S::FLOATS_PER_DWORD).min(key_units);
            // SAFETY: the weights from there on are those of the keys that are seen, and zeros behind them.
            let factors = FloatTile {
                rows: unsafe { weights.as_ptr().add(first_unit) },
                n_rows: m,
                stride: key_units,
                n_dwords: end_unit - first_unit,
                prefetch: false,
            };
            for panel in (0..head_panels).step_by(2) {
                let of_panels =
                    [panel, panel + 1].map(|panel| values[panel * value_len + first_unit * LANES..].as_ptr());
                let (first, second) = sums[panel * tile_rows..].split_at_mut(tile_rows);
                // SAFETY: as above, for the values.
                unsafe {
                    factors.multiply::<S, 2>(simd, amx.as_ref(), of_panels, [first, second]);
                }
            }
            for (row, query) in of_tile.enumerate() {
                let start = (first_row + query) * hidden + head * head_dim;
                // SAFETY: each head of each token belongs to one piece.
                let y = unsafe { y.slice(start, head_dim) };
                let inverse = 1.0 / of_rows[row];
                for (panel, y) in y.chunks_mut(LANES).enumerate() {
                    for (y, sum) in y.iter_mut().zip(&sums[panel * tile_rows + row]) {
                        y.write(sum * inverse);
                    }
                }
            }
        }
    }
}

/// Thirds of a row.
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

/// A head of each token of a text.
struct Heads<'a> {
    attention: &'a EncoderAttention<'a>,
    qkv: &'a [f32],
    first_row: usize,
    head: usize,
    /// Room for one that is turned.
    turned: &'a mut [f32],
}

impl<'a> Heads<'a> {
    #[inline(always)]
    fn of(&self, token: usize, third: usize) -> &'a [f32] {
        let EncoderAttention { n_heads, head_dim, .. } = *self.attention;
        &self.qkv[(((self.first_row + token) * 3 + third) * n_heads + self.head) * head_dim..][..head_dim]
    }

    /// Writes a query or a key, turned and times `scale`, as units, filled up with zeros.
    #[inline(always)]
    unsafe fn store_units<S: Simd>(
        &mut self,
        simd: S,
        token: usize,
        third: usize,
        scale: f32,
        to: &mut [f32],
    ) {
        let mut numbers = self.of(token, third);
        if let Some(rotation) = &self.attention.rope {
            self.turned.copy_from_slice(numbers);
            rotate(rotation, self.first_row + token, self.turned);
            numbers = self.turned;
        }
        for (idx, to) in to.chunks_exact_mut(LANES / S::FLOATS_PER_DWORD).enumerate() {
            // SAFETY: the caller's promise; a vector of numbers fills as many units.
            unsafe {
                let numbers = load_masked(simd, numbers, numbers.len().min(idx * LANES));
                simd.store_dwords(simd.mul(numbers, simd.splat(scale)), to.as_mut_ptr());
            }
        }
    }
}

/// The scores of one query.
struct Softmax<'a> {
    scores: &'a mut [[f32; LANES]],
    tile_rows: usize,
    row: usize,
    /// Those that were computed.
    panels: Range<usize>,
    /// Keys that the query sees.
    visible: Range<usize>,
    /// What is added to the score of each key, from the first on.
    bias: Option<&'a [f32]>,
}

impl Softmax<'_> {
    /// Writes weights as units, from the first panel's on, with zeros up to the end; gives their sum.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(self, simd: S, weights: &mut [f32]) -> f32 {
        let Self { scores, tile_rows, row, panels, visible, bias } = self;
        // SAFETY: the caller's promise; scores are whole vectors.
        unsafe {
            let mut largest = simd.splat(f32::NEG_INFINITY);
            for panel in panels.clone() {
                let of_panel = &mut scores[panel * tile_rows + row];
                let first = panel * LANES;
                if let Some(bias) = bias {
                    let sum = simd.add(simd.load(of_panel.as_ptr()), load_masked(simd, bias, first));
                    simd.store(sum, of_panel.as_mut_ptr());
                }
                if first < visible.start || first + LANES > visible.end {
                    for (lane, score) in of_panel.iter_mut().enumerate() {
                        if !visible.contains(&(first + lane)) {
                            *score = f32::NEG_INFINITY;
                        }
                    }
                }
                largest = simd.max(simd.load(of_panel.as_ptr()), largest);
            }
            let largest = simd.splat(simd.reduce_max(largest));
            let mut sum = simd.splat(0.0);
            let mut panel = panels.start;
            while panel < panels.end {
                let scores = |panel: usize| scores[panel * tile_rows + row].as_ptr();
                let to = weights.as_mut_ptr().add(panel * LANES / S::FLOATS_PER_DWORD);
                if panels.end - panel >= IN_STEP {
                    sum = weigh::<S, IN_STEP>(simd, scores, panel, largest, to, sum);
                    panel += IN_STEP;
                } else {
                    sum = weigh::<S, 1>(simd, scores, panel, largest, to, sum);
                    panel += 1;
                }
            }
            weights[panels.end * LANES / S::FLOATS_PER_DWORD..].fill(0.0);
            simd.reduce_add(sum)
        }
    }
}

/// Panels whose weights are computed in step.
const IN_STEP: usize = 4;

/// Writes the weights of `N` panels from one on as units; gives `sum` with them.
#[inline(always)]
unsafe fn weigh<S: Simd, const N: usize>(
    simd: S,
    scores: impl Fn(usize) -> *const f32,
    panel: usize,
    largest: S::Floats,
    to: *mut f32,
    mut sum: S::Floats,
) -> S::Floats {
    // SAFETY: the caller's promise: there are scores of all panels, and room for their weights.
    unsafe {
        let mut differences = [largest; N];
        for i in 0..N {
            differences[i] = simd.sub(simd.load(scores(panel + i)), largest);
        }
        let of_panels = exp_array::<S, N>(simd, differences);
        for i in 0..N {
            sum = simd.add(sum, of_panels[i]);
            simd.store_dwords(of_panels[i], to.add(i * LANES / S::FLOATS_PER_DWORD));
        }
        sum
    }
}
