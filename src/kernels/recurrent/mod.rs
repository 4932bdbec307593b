//! Recurrent layers: layers that keep a state of fixed size for each sequence in place of keys and values.
//!
//! A [`StateSlot`] holds the state of one sequence in all recurrent layers, in float32. A batch takes in the new tokens
//! of a sequence row by row, in the same arithmetic for every number of rows, so the state does not depend on how a
//! prompt was cut into chunks. After given rows it is copied to other slots: the snapshots of the prefix cache.
//!
//! Draft tokens of speculative decoding are computed from a copy of the state. Their inputs are kept in the slot, and the
//! next batch takes in those of the drafts that were accepted.

mod causal_conv;
pub mod linear_attention;
pub mod short_conv;

pub use causal_conv::CausalConv;

/// The sizes of the recurrent state of one sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateLayout {
    /// Number of recurrent layers.
    pub n_layers: usize,
    /// Columns of a row of inputs of a layer's causal convolution.
    pub conv_channels: usize,
    /// Rows that the convolution looks back to.
    pub conv_rows: usize,
    /// Numbers in the matrices of a layer, all heads together.
    pub matrices_len: usize,
}

impl StateLayout {
    /// Numbers of a layer's state: the last inputs of its convolution, then its matrices.
    pub fn layer_len(&self) -> usize {
        self.conv_rows * self.conv_channels + self.matrices_len
    }

    /// Bytes of the state of a sequence.
    pub fn slot_bytes(&self) -> usize {
        self.n_layers * self.layer_len() * size_of::<f32>()
    }
}

/// The recurrent state of one sequence.
#[derive(Debug, Clone, Default)]
pub struct StateSlot {
    /// `[n_layers, layer_len]`
    pub(crate) values: Vec<f32>,
    /// For each layer, the input rows of draft tokens that the state has not taken in.
    draft_rows: Vec<Vec<f32>>,
}

impl StateSlot {
    /// The state of an empty sequence.
    pub fn new(layout: &StateLayout) -> Self {
        Self {
            values: vec![0.0; layout.n_layers * layout.layer_len()],
            draft_rows: vec![Vec::new(); layout.n_layers],
        }
    }

    /// Makes it the state of an empty sequence.
    pub fn clear(&mut self) {
        self.values.fill(0.0);
        self.draft_rows.iter_mut().for_each(Vec::clear);
    }

    /// Copies the state of another slot, without drafts.
    pub fn copy_from(&mut self, other: &Self) {
        self.values.copy_from_slice(&other.values);
        self.draft_rows.iter_mut().for_each(Vec::clear);
    }
}

/// The new tokens of a sequence in a batch, and its state.
#[derive(Debug)]
pub struct SequenceState<'a> {
    /// Number of new tokens.
    pub len: usize,
    /// How many of the last of them are drafts, which the state does not take in.
    pub n_drafts: usize,
    /// Drafts of the batch before that were accepted; the state takes them in first.
    pub n_replayed: usize,
    /// The state before the batch, and after it.
    pub slot: &'a mut StateSlot,
    /// Copies to be made of the state: a number of rows, those replayed included, and the slot for the state after them.
    pub snapshots: Vec<(usize, &'a mut StateSlot)>,
}

impl SequenceState<'_> {
    /// Rows that the state takes in: accepted drafts, then the new tokens that are none.
    pub fn n_taken_in(&self) -> usize {
        self.n_replayed + self.len - self.n_drafts
    }
}

/// The rows of a sequence in one layer, and its state there.
#[derive(Debug)]
pub struct LayerRows<'a> {
    /// Input rows: accepted drafts, then the new tokens.
    pub rows: Vec<&'a [f32]>,
    /// How many of them were replayed.
    pub n_replayed: usize,
    /// How many of them the state takes in.
    pub n_taken_in: usize,
    /// The layer's state, `[layer_len]`.
    pub state: &'a mut [f32],
    /// Copies of the state: a number of rows, and the place for the state after them.
    pub snapshots: Vec<(usize, &'a mut [f32])>,
}

/// Computes a layer's rows: takes accepted drafts out of the slots, passes each sequence's rows in `x` to `compute`, and
/// keeps the rows of new drafts. `x` is `[n_tokens, n_columns]`, the new tokens of all sequences.
///
/// # Panics
/// When `x` has fewer rows than the sequences, or a slot has fewer drafts than are replayed.
pub fn with_layer_rows<T>(
    layout: &StateLayout,
    layer: usize,
    sequences: &mut [SequenceState],
    x: &[f32],
    n_columns: usize,
    compute: impl FnOnce(&mut [LayerRows]) -> T,
) -> T {
    let layer_len = layout.layer_len();
    let range = layer * layer_len..(layer + 1) * layer_len;
    let replayed: Vec<Vec<f32>> =
        sequences.iter_mut().map(|sequence| std::mem::take(&mut sequence.slot.draft_rows[layer])).collect();
    let mut new_rows = x.chunks_exact(n_columns);
    let mut drafts = Vec::with_capacity(sequences.len());
    let mut layer_rows = Vec::with_capacity(sequences.len());
    for (sequence, replayed) in sequences.iter_mut().zip(&replayed) {
        let n_taken_in = sequence.n_taken_in();
        let accepted = replayed.chunks_exact(n_columns).take(sequence.n_replayed);
        let rows: Vec<&[f32]> = accepted.chain(new_rows.by_ref().take(sequence.len)).collect();
        assert_eq!(rows.len(), sequence.n_replayed + sequence.len, "rows of a sequence are missing");
        drafts.push(rows[n_taken_in..].concat());
        layer_rows.push(LayerRows {
            rows,
            n_replayed: sequence.n_replayed,
            n_taken_in,
            state: &mut sequence.slot.values[range.clone()],
            snapshots: sequence
                .snapshots
                .iter_mut()
                .map(|(n_rows, slot)| (*n_rows, &mut slot.values[range.clone()]))
                .collect(),
        });
    }
    let result = compute(&mut layer_rows);
    drop(layer_rows);
    for (sequence, drafts) in sequences.iter_mut().zip(drafts) {
        sequence.slot.draft_rows[layer] = drafts;
    }
    result
}
