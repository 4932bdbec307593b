//! Linear attention: heads whose state is a matrix of keys by values, to which each token adds an outer product, and
//! which decays before that. The gated delta rule of Gated DeltaNet (Yang and others, 2024) adds what the state does not
//! know of a value yet; the state space of Mamba-2 (Dao and Gu, 2024) adds the value itself.
//!
//! A forward pass has three stages: the causal convolution of queries, keys and values and the gates of every row; the
//! recurrence of every head, row by row; the gated norm of every row. Columns of a matrix are independent of each other,
//! so a thread takes a tile of them through all rows, and a tile fits the L1 cache.

use super::causal_conv::{CausalConv, input_before, kept_inputs};
use super::{LayerRows, StateLayout};
use crate::kernels::isa::Isa;
use crate::kernels::matmul::ActivationFn;
use crate::kernels::simd::{Kernel, LANES, Simd, dispatch, load_masked, store_masked, with_rows};
use crate::kernels::threads::disjoint::DisjointSlice;
use crate::kernels::threads::pool;

/// Vectors of a tile: as many sums as the latency of a multiplication needs.
const TILE_VECTORS: usize = 4;

/// Columns of a tile.
const TILE_LEN: usize = TILE_VECTORS * LANES;

/// Added to the sum of squares of a query or a key of the gated delta rule.
const L2_NORM_EPS: f32 = 1e-6;

/// The rule by which a token changes the state of a head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UpdateRule {
    /// The gated delta rule: of the value that the decayed state has for a key, `beta` parts are replaced. Queries and
    /// keys are scaled to length one.
    GatedDelta,
    /// The state space of Mamba-2: the value times the step, which is bounded.
    StateSpace {
        /// The smallest step.
        min_step: f32,
        /// The largest step.
        max_step: f32,
    },
}

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadShape {
    /// Number of heads of values; each has a state.
    pub n_heads: usize,
    /// Number of heads of queries and keys; each serves `n_heads / n_key_heads` heads of values.
    pub n_key_heads: usize,
    /// Width of a query and of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Whether head `i` of the values has the key of head `i % n_key_heads`, not of `i / (n_heads / n_key_heads)`.
    pub is_tiled: bool,
}

/// The norm of outputs, which are also multiplied with the SiLU of their gates.
#[derive(Debug, Clone, Copy)]
pub struct GatedNorm<'a> {
    /// Factors of an output row, or of each group in it.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// Columns that are normed together.
    pub group_len: usize,
    /// Whether outputs are multiplied with their gates before they are normed.
    pub gates_first: bool,
}

/// One layer's linear attention, as parameters of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct LinearAttention<'a> {
    /// The update of the state.
    pub rule: UpdateRule,
    /// The heads.
    pub shape: HeadShape,
    /// The convolution of queries, keys and values.
    pub conv: CausalConv<'a>,
    /// For each head the logarithm of the decay per step, which is negative.
    pub decay_rates: &'a [f32],
    /// Addend of each head's step before its softplus.
    pub step_bias: &'a [f32],
    /// Factor of each head's values that are added to its outputs, in Mamba-2.
    pub skip: Option<&'a [f32]>,
    /// The norm of outputs; without one they are only gated.
    pub norm: Option<GatedNorm<'a>>,
}

impl HeadShape {
    /// Columns of queries, keys and values.
    pub fn conv_channels(&self) -> usize {
        2 * self.n_key_heads * self.key_dim + self.inner_len()
    }

    /// Columns of values, and of outputs.
    pub fn inner_len(&self) -> usize {
        self.n_heads * self.value_dim
    }

    /// Numbers in the states of all heads, whose rows are filled up to whole vectors.
    pub fn matrices_len(&self) -> usize {
        self.n_heads * self.head_len()
    }

    fn head_len(&self) -> usize {
        self.key_dim * self.value_dim.next_multiple_of(LANES)
    }

    /// The place of each element of the states, `[n_heads, key_dim, value_dim]`: tiles of columns follow each other.
    pub fn state_places(self) -> impl Iterator<Item = usize> {
        let Self { n_heads, key_dim, value_dim, .. } = self;
        let padded = value_dim.next_multiple_of(LANES);
        let place = move |head: usize, key: usize, column: usize| {
            let tile_start = column / TILE_LEN * TILE_LEN;
            let tile_len = (padded - tile_start).min(TILE_LEN);
            head * self.head_len() + tile_start * key_dim + key * tile_len + column - tile_start
        };
        let rows = (0..n_heads).flat_map(move |head| (0..key_dim).map(move |key| (head, key)));
        rows.flat_map(move |(head, key)| (0..value_dim).map(move |column| place(head, key, column)))
    }

    /// The head of queries and keys that serves a head of values.
    pub fn key_head(&self, head: usize) -> usize {
        if self.is_tiled { head % self.n_key_heads } else { head / (self.n_heads / self.n_key_heads) }
    }
}

impl UpdateRule {
    /// Columns of an input row: what is convolved, a gate for each output, a step for each head, and for the delta rule
    /// a `beta` for each head.
    pub fn n_columns(self, shape: &HeadShape) -> usize {
        let n_gates = if self == Self::GatedDelta { 2 } else { 1 };
        shape.conv_channels() + shape.inner_len() + n_gates * shape.n_heads
    }

    /// Columns in which queries, keys and values begin.
    pub fn starts(self, shape: &HeadShape) -> [usize; 3] {
        let n_key = shape.n_key_heads * shape.key_dim;
        match self {
            Self::GatedDelta => [0, n_key, 2 * n_key],
            Self::StateSpace { .. } => [shape.inner_len() + n_key, shape.inner_len(), 0],
        }
    }

    /// The decay of a head's state in a row, and the factor of what is added to it.
    pub fn gates(self, rate: f32, step: f32, beta: Option<f32>) -> [f32; 2] {
        let step = if step > 20.0 { step } else { step.exp().ln_1p() };
        match self {
            Self::GatedDelta => [(rate * step).exp(), 1.0 / (1.0 + (-beta.unwrap_or_default()).exp())],
            Self::StateSpace { min_step, max_step } => {
                let step = step.clamp(min_step, max_step);
                [(rate * step).exp(), step]
            }
        }
    }
}

/// A sequence as the threads see it.
struct SharedRows<'a> {
    rows: &'a [&'a [f32]],
    n_replayed: usize,
    n_taken_in: usize,
    /// Its first row among the rows of all sequences, those replayed included.
    first_row: usize,
    /// Its first new row.
    first_new_row: usize,
    /// The convolution's part of the state, which is only read.
    conv_state: &'a [f32],
    matrices: DisjointSlice<'a, f32>,
    snapshots: Vec<(usize, DisjointSlice<'a, f32>)>,
}

impl LinearAttention<'_> {
    /// Computes the outputs of new rows, `[n_rows, inner_len]`, and updates the state of each sequence.
    ///
    /// # Panics
    /// When lengths do not fit each other.
    pub fn forward(&self, isa: Isa, layout: &StateLayout, sequences: &mut [LayerRows]) -> Vec<f32> {
        let shape = self.shape;
        let (n_channels, inner) = (shape.conv_channels(), shape.inner_len());
        self.check(layout, sequences);
        let conv_len = layout.conv_rows * layout.conv_channels;
        // The convolution's part of the state is replaced at the end; until then all threads read it.
        let kept: Vec<(Vec<f32>, Vec<Vec<f32>>)> = sequences.iter().map(|s| self.kept(layout, s)).collect();
        let (mut n_rows, mut n_new_rows) = (0, 0);
        let mut shared = Vec::with_capacity(sequences.len());
        for sequence in &mut *sequences {
            let (conv_state, matrices) = sequence.state.split_at_mut(conv_len);
            shared.push(SharedRows {
                rows: &sequence.rows,
                n_replayed: sequence.n_replayed,
                n_taken_in: sequence.n_taken_in,
                first_row: n_rows,
                first_new_row: n_new_rows,
                conv_state,
                matrices: DisjointSlice::new(matrices),
                snapshots: sequence
                    .snapshots
                    .iter_mut()
                    .map(|(n, state)| (*n, DisjointSlice::new(&mut state[conv_len..])))
                    .collect(),
            });
            n_rows += sequence.rows.len();
            n_new_rows += sequence.rows.len() - sequence.n_replayed;
        }
        let places: Vec<(usize, usize)> = shared
            .iter()
            .enumerate()
            .flat_map(|(s, rows)| (0..rows.rows.len()).map(move |r| (s, r)))
            .collect();
        let new_places: Vec<(usize, usize)> =
            places.iter().copied().filter(|&(s, row)| row >= shared[s].n_replayed).collect();
        let n_tiles = shape.value_dim.div_ceil(TILE_LEN);
        let n_items = shared.len() * shape.n_heads * n_tiles;
        let mut convolved = vec![0.0; n_rows * n_channels];
        let mut gates = vec![0.0; n_rows * 2 * shape.n_heads];
        let mut outputs = vec![0.0; n_new_rows * inner];
        let [convolved, gates, y] =
            [&mut convolved, &mut gates, &mut outputs].map(|all| DisjointSlice::new(all));
        let prepare = |row: usize| {
            let (sequence, idx) = (&shared[places[row].0], places[row].1);
            // SAFETY: each row is claimed once in this stage, and read only after it.
            let (convolved, gates) = unsafe {
                (
                    convolved.slice(row * n_channels, n_channels),
                    gates.slice(row * 2 * shape.n_heads, 2 * shape.n_heads),
                )
            };
            self.gate_row(sequence.rows[idx], gates);
            dispatch(isa, ConvolveRow { attention: self, layout, sequence, idx, convolved });
        };
        let recur = |item: usize| {
            let tiles_per_sequence = shape.n_heads * n_tiles;
            let (sequence, tile) = (&shared[item / tiles_per_sequence], item % tiles_per_sequence);
            let part = |columns: usize| (sequence.first_row * columns, sequence.rows.len() * columns);
            let ((first, n), (first_gate, n_gates)) = (part(n_channels), part(2 * shape.n_heads));
            // SAFETY: written in the stage before, which a barrier has ended, and only read in this one.
            let (convolved, gates) =
                unsafe { (convolved.shared(first, n), gates.shared(first_gate, n_gates)) };
            let (head, tile) = (tile / n_tiles, tile % n_tiles);
            dispatch(isa, RecurTile { attention: self, sequence, head, tile, convolved, gates, y });
        };
        let gate = |new_row: usize| {
            let (sequence, idx) = new_places[new_row];
            // SAFETY: each row is claimed once in this stage; a barrier has ended the one before.
            let y = unsafe { y.slice(new_row * inner, inner) };
            let gates = &shared[sequence].rows[idx][n_channels..n_channels + inner];
            dispatch(isa, GateRow { norm: self.norm, gates, y });
        };
        pool::run(|team| {
            team.claim_chunks(places.len(), 1).flatten().for_each(prepare);
            team.barrier();
            team.claim_chunks(n_items, 1).flatten().for_each(recur);
            team.barrier();
            team.claim_chunks(new_places.len(), 1).flatten().for_each(gate);
        });
        drop(shared);
        for (sequence, (state, snapshots)) in sequences.iter_mut().zip(kept) {
            sequence.state[..conv_len].copy_from_slice(&state);
            for ((_, snapshot), kept) in sequence.snapshots.iter_mut().zip(snapshots) {
                snapshot[..conv_len].copy_from_slice(&kept);
            }
        }
        outputs
    }

    fn check(&self, layout: &StateLayout, sequences: &[LayerRows]) {
        let Self { shape, rule, conv, .. } = self;
        let n_channels = shape.conv_channels();
        assert!(layout.conv_channels == n_channels && layout.matrices_len == shape.matrices_len());
        assert!(conv.weight.len() == conv.kernel * n_channels && layout.conv_rows + 1 == conv.kernel);
        assert!(conv.bias.is_none_or(|bias| bias.len() == n_channels));
        assert!(self.decay_rates.len() == shape.n_heads && self.step_bias.len() == shape.n_heads);
        assert!(self.skip.is_none_or(|skip| skip.len() == shape.n_heads));
        assert!(shape.n_heads.is_multiple_of(shape.n_key_heads));
        if let Some(GatedNorm { weight, group_len, .. }) = self.norm {
            assert!(shape.inner_len().is_multiple_of(group_len));
            assert!(weight.len() == group_len || weight.len() == shape.inner_len());
        }
        for sequence in sequences {
            assert!(sequence.rows.iter().all(|row| row.len() == rule.n_columns(shape)));
            assert!(sequence.n_taken_in <= sequence.rows.len());
            let states =
                [&*sequence.state].into_iter().chain(sequence.snapshots.iter().map(|(_, state)| &**state));
            states.for_each(|state| assert_eq!(state.len(), layout.layer_len()));
            assert!(sequence.snapshots.iter().all(|(n, _)| *n <= sequence.n_taken_in));
        }
    }

    /// The inputs of the convolution that the state and each snapshot keep.
    fn kept(&self, layout: &StateLayout, sequence: &LayerRows) -> (Vec<f32>, Vec<Vec<f32>>) {
        let kept = |n_rows: usize| {
            kept_inputs(layout, sequence.state, n_rows, |row, kept| {
                kept.copy_from_slice(&sequence.rows[row][..kept.len()]);
            })
        };
        (kept(sequence.n_taken_in), sequence.snapshots.iter().map(|(n, _)| kept(*n)).collect())
    }

    /// The gates of each head in a row, `[n_heads, 2]`.
    fn gate_row(&self, row: &[f32], gates: &mut [f32]) {
        let shape = &self.shape;
        let steps = &row[shape.conv_channels() + shape.inner_len()..];
        let (steps, betas) = steps.split_at(shape.n_heads);
        for (head, gates) in gates.as_chunks_mut().0.iter_mut().enumerate() {
            let step = steps[head] + self.step_bias[head];
            *gates = self.rule.gates(self.decay_rates[head], step, betas.get(head).copied());
        }
    }
}

/// The convolution of a row and its SiLU; the queries and keys of the delta rule are scaled to length one.
struct ConvolveRow<'a> {
    attention: &'a LinearAttention<'a>,
    layout: &'a StateLayout,
    sequence: &'a SharedRows<'a>,
    idx: usize,
    convolved: &'a mut [f32],
}

impl Kernel for ConvolveRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { attention, layout, sequence, idx, convolved } = self;
        let LinearAttention { shape, rule, conv, .. } = attention;
        let n_channels = convolved.len();
        for channel in (0..n_channels).step_by(LANES) {
            let sums = conv.sums(simd, n_channels, channel, |back| {
                let row = input_before(layout, sequence.conv_state, sequence.rows, idx, back);
                load_masked(simd, &row[..n_channels], channel)
            });
            let [y] = ActivationFn::Silu.apply(simd, [sums], false);
            store_masked(simd, y, convolved, channel);
        }
        if *rule == UpdateRule::GatedDelta {
            let n_key = shape.n_key_heads * shape.key_dim;
            let query_scale = (shape.key_dim as f32).sqrt().recip();
            let (queries, rest) = convolved.split_at_mut(n_key);
            for (heads, scale) in [(queries, query_scale), (&mut rest[..n_key], 1.0)] {
                heads.chunks_exact_mut(shape.key_dim).for_each(|head| scale_to_length(simd, head, scale));
            }
        }
    }
}

/// Scales a vector to a length.
#[inline(always)]
fn scale_to_length<S: Simd>(simd: S, x: &mut [f32], length: f32) {
    let factor = simd.splat(length / (sum_of_squares(simd, x) + L2_NORM_EPS).sqrt());
    for start in (0..x.len()).step_by(LANES) {
        let scaled = simd.mul(load_masked(simd, x, start), factor);
        store_masked(simd, scaled, x, start);
    }
}

#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut sums = simd.splat(0.0);
    for start in (0..x.len()).step_by(LANES) {
        let x = load_masked(simd, x, start);
        sums = simd.mul_add(x, x, sums);
    }
    simd.reduce_add(sums)
}

/// A tile of a head's state, taken through all rows of a sequence.
struct RecurTile<'a> {
    attention: &'a LinearAttention<'a>,
    sequence: &'a SharedRows<'a>,
    head: usize,
    tile: usize,
    /// `[n_rows, conv_channels]`
    convolved: &'a [f32],
    /// `[n_rows, n_heads, 2]`
    gates: &'a [f32],
    y: DisjointSlice<'a, f32>,
}

impl Kernel for RecurTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let n_columns = self.attention.shape.value_dim - self.tile * TILE_LEN;
        with_rows!(n_columns.div_ceil(LANES).min(TILE_VECTORS), N in [1, 2, 3, 4] => self.recur::<S, N>(simd));
    }
}

impl RecurTile<'_> {
    #[inline(always)]
    fn recur<S: Simd, const N: usize>(&self, simd: S) {
        let Self { attention, sequence, head, tile, .. } = *self;
        let LinearAttention { shape, rule, skip, .. } = attention;
        let HeadShape { key_dim, value_dim, n_heads, .. } = *shape;
        let n_channels = shape.conv_channels();
        let (start, len) = (head * shape.head_len() + tile * TILE_LEN * key_dim, N * LANES * key_dim);
        // SAFETY: each tile of each head of a sequence is claimed once, and nothing else uses its part of the states.
        let mut state = unsafe { sequence.matrices.slice(start, len) };
        let keep = |n_rows: usize, state: &[f32]| {
            for (_, snapshot) in sequence.snapshots.iter().filter(|(n, _)| *n == n_rows) {
                // SAFETY: as above.
                unsafe { snapshot.slice(start, len) }.copy_from_slice(state);
            }
        };
        let [query_start, key_start, value_start] = rule.starts(shape);
        let key_head = shape.key_head(head);
        let column = tile * TILE_LEN;
        let mut drafts_state;
        for (row, (convolved, gates)) in
            self.convolved.chunks_exact(n_channels).zip(self.gates.chunks_exact(2 * n_heads)).enumerate()
        {
            if row <= sequence.n_taken_in {
                keep(row, state);
            }
            if row == sequence.n_taken_in {
                drafts_state = state.to_vec();
                state = &mut drafts_state;
            }
            let part = |start: usize| &convolved[start + key_head * key_dim..][..key_dim];
            let (query, key) = (part(query_start), part(key_start));
            let values = &convolved[value_start + head * value_dim..][..value_dim];
            let [decay, factor] = [gates[2 * head], gates[2 * head + 1]].map(|gate| simd.splat(gate));
            let mut added = [simd.splat(0.0); N];
            for (idx, added) in added.iter_mut().enumerate() {
                *added = load_masked(simd, values, column + idx * LANES);
            }
            let values = added;
            if *rule == UpdateRule::GatedDelta {
                let known = read::<S, N>(simd, state, key);
                for (added, known) in added.iter_mut().zip(known) {
                    *added = simd.sub(*added, simd.mul(known, decay));
                }
            }
            added.iter_mut().for_each(|added| *added = simd.mul(*added, factor));
            let mut outputs = update_and_read::<S, N>(simd, state, key, query, added, decay);
            let Some(new_row) = row.checked_sub(sequence.n_replayed) else { continue };
            if let Some(skip) = skip {
                for (output, value) in outputs.iter_mut().zip(values) {
                    *output = simd.mul_add(value, simd.splat(skip[head]), *output);
                }
            }
            let width = (value_dim - column).min(N * LANES);
            let place = (sequence.first_new_row + new_row) * shape.inner_len() + head * value_dim + column;
            // SAFETY: each tile of a row is written once.
            let y = unsafe { self.y.slice(place, width) };
            for (idx, output) in outputs.into_iter().enumerate() {
                store_masked(simd, output, y, idx * LANES);
            }
        }
        if sequence.rows.len() == sequence.n_taken_in {
            keep(sequence.n_taken_in, state);
        }
    }
}

/// The product of a state, `[key_dim, N * LANES]`, with a key. Even and odd rows have sums of their own: each addition to
/// a sum waits for the one before it.
#[inline(always)]
fn read<S: Simd, const N: usize>(simd: S, state: &[f32], key: &[f32]) -> [S::Floats; N] {
    let mut sums = [[simd.splat(0.0); N]; 2];
    let add = |row: &[f32], key: f32, sums: &mut [S::Floats; N]| {
        let key = simd.splat(key);
        for (vector, sum) in row.as_chunks().0.iter().zip(sums) {
            *sum = simd.mul_add(simd.load_array(vector), key, *sum);
        }
    };
    let (pairs, last) = key.as_chunks();
    let rows = state.chunks_exact(2 * N * LANES);
    let last_row = rows.remainder();
    for (rows, [first, second]) in rows.zip(pairs) {
        add(&rows[..N * LANES], *first, &mut sums[0]);
        add(&rows[N * LANES..], *second, &mut sums[1]);
    }
    last.iter().for_each(|&key| add(last_row, key, &mut sums[0]));
    let [mut even, odd] = sums;
    even.iter_mut().zip(odd).for_each(|(even, odd)| *even = simd.add(*even, odd));
    even
}

/// Lets a state decay, adds the outer product of a key and `added`, and returns its product with a query.
#[inline(always)]
fn update_and_read<S: Simd, const N: usize>(
    simd: S,
    state: &mut [f32],
    key: &[f32],
    query: &[f32],
    added: [S::Floats; N],
    decay: S::Floats,
) -> [S::Floats; N] {
    let mut sums = [simd.splat(0.0); N];
    for ((row, &key), &query) in state.chunks_exact_mut(N * LANES).zip(key).zip(query) {
        let (key, query) = (simd.splat(key), simd.splat(query));
        for (idx, (vector, sum)) in row.as_chunks_mut().0.iter_mut().zip(&mut sums).enumerate() {
            let decayed = simd.mul(simd.load_array(vector), decay);
            let new = simd.mul_add(key, added[idx], decayed);
            simd.store_array(new, vector);
            *sum = simd.mul_add(new, query, *sum);
        }
    }
    sums
}

/// The gated norm of an output row.
struct GateRow<'a> {
    norm: Option<GatedNorm<'a>>,
    gates: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for GateRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { norm, gates, y } = self;
        let Some(GatedNorm { weight, eps, group_len, gates_first }) = norm else {
            return multiply_by_silu(simd, y, gates);
        };
        if gates_first {
            multiply_by_silu(simd, y, gates);
        }
        for (idx, group) in y.chunks_exact_mut(group_len).enumerate() {
            let mean = sum_of_squares(simd, group) / group_len as f32;
            let factor = simd.splat((mean + eps).sqrt().recip());
            let weight = &weight[if weight.len() == group_len { 0 } else { idx * group_len }..];
            for start in (0..group_len).step_by(LANES) {
                let scaled = simd.mul(load_masked(simd, group, start), factor);
                let normed = simd.mul(scaled, load_masked(simd, &weight[..group_len], start));
                store_masked(simd, normed, group, start);
            }
        }
        if !gates_first {
            multiply_by_silu(simd, y, gates);
        }
    }
}

#[inline(always)]
fn multiply_by_silu<S: Simd>(simd: S, y: &mut [f32], gates: &[f32]) {
    for start in (0..y.len()).step_by(LANES) {
        let [gate] = ActivationFn::Silu.apply(simd, [load_masked(simd, gates, start)], false);
        let product = simd.mul(load_masked(simd, y, start), gate);
        store_masked(simd, product, y, start);
    }
}
