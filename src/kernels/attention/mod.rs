//! Attention: [`PagedAttention`] of generated text over the paged KV cache, [`EncoderAttention`] within whole
//! texts.
//!
//! Paged attention is one fused kernel: it norms and rotates the heads, writes the new keys and values into
//! the blocks of each sequence's block table, and sums the values, weighted by the softmax of the scores. As
//! in flash attention, the scores exist only for a few blocks of keys at a time: the softmax is computed
//! online, and sums so far are rescaled when a larger score turns up (Milakov and Gimelshein, "Online
//! normalizer calculation for softmax", 2018). In grouped-query attention (GQA) the query heads that share a
//! key head are rows of one small matrix product, so key heads are never repeated. Decodes of long sequences
//! are cut into splits of keys that several threads sum separately (flash decoding) and that are then merged
//! in order.

mod bidirectional;
mod flash;
pub mod kv_block;
mod kv_float;
mod kv_int8;
mod kv_kernel;
mod kv_rotation;
mod kv_write;
mod merge;
mod paged;
mod partition;
mod rope;
mod softmax;

use std::cell::Cell;

pub use self::bidirectional::{EncoderAttention, RelativePositionBias};
pub use self::paged::{KvRef, SequenceKv, window_start};
pub use self::rope::{HeadNorms, RopeTable};

use self::flash::WorkItemKernel;
use self::kv_block::{KvFormat, KvLayout, with_kv_element};
use self::kv_float::FloatKvKernel;
use self::kv_int8::Int8KvKernel;
use self::kv_write::{KvWrite, NewToken};
use self::merge::{MergePartials, PartialSoftmax};
use self::paged::PagedSequence;
use self::partition::{Partition, WorkItem};
use self::softmax::Softcap;
use super::isa::Isa;
use super::simd::dispatch;
use super::threads::disjoint::DisjointSlice;
use super::threads::pool;

/// New tokens up to which a sequence is decoded: its keys are cut among threads, not its tokens. They include
/// the draft tokens of speculative decoding.
const MAX_DECODE_TOKENS: usize = 4;

/// Work items that each thread should have, so that none waits long for another.
const ITEMS_PER_THREAD: usize = 4;

/// Causal attention of a decoder layer over the paged KV cache.
#[derive(Debug, Clone, Copy)]
pub struct PagedAttention<'a> {
    /// Query heads; a multiple of the key heads (GQA).
    pub n_heads: usize,
    /// Layout of the blocks of the KV cache.
    pub layout: KvLayout,
    /// Index of the layer in the blocks.
    pub layer: usize,
    /// Whether another layer has written the keys and values of the new tokens; rows are then queries only.
    pub is_kv_shared: bool,
    /// Factor of the scores, the products of queries and keys.
    pub scale: f32,
    /// Soft bound of the scores: `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Sliding window: the most keys that a query sees, its own included.
    pub window: Option<usize>,
    /// Norms of query and key heads, before the rotary embedding.
    pub head_norms: Option<HeadNorms<'a>>,
    /// Rotary position embedding of query and key heads.
    pub rope: Option<RopeTable<'a>>,
    /// Factor of the scores of each query beside `scale`, `[n_tokens]`.
    pub query_scales: Option<&'a [f32]>,
    /// Attention sinks: for each query head a score that takes part in the softmax and has no value, `[n_heads]`.
    pub sinks: Option<&'a [f32]>,
}

thread_local! {
    /// Scratch memory for the values of partial softmaxes, which every layer needs.
    static PARTIAL_VALUES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl PagedAttention<'_> {
    /// Computes the attention of new tokens. `qkv` holds their queries, keys and values, `[n_tokens,
    /// (n_heads + 2 * n_kv_heads) * head_dim]`, sequence by sequence; with shared values only queries and keys. Writes the
    /// keys and values, unless they are another layer's, into the blocks and returns `[n_tokens, n_heads * head_dim]`.
    ///
    /// # Panics
    /// When lengths do not fit each other, a block has another layout, or a sequence lacks a block that is
    /// read or written.
    pub fn forward(&self, isa: Isa, qkv: &[f32], sequences: &mut [SequenceKv]) -> Vec<f32> {
        let n_tokens = sequences.iter().map(|sequence| sequence.len).sum();
        self.check(qkv, n_tokens);
        let mut next_row = 0;
        let sequences: Vec<PagedSequence> = sequences
            .iter_mut()
            .map(|sequence| {
                let first_row = next_row;
                next_row += sequence.len;
                PagedSequence::new(self, sequence, first_row)
            })
            .collect();

        let Partition { items, n_partials } = Partition::new(self, &sequences);
        let decodes = sequences.iter().filter(|sequence| sequence.is_decode());
        let rows_per_partial = decodes.map(|sequence| sequence.len).max().unwrap_or_default() * self.n_heads;
        let mut partials = vec![PartialSoftmax::EMPTY; n_partials * rows_per_partial];
        let mut partial_values = PARTIAL_VALUES.take();
        let n_values = n_partials * rows_per_partial * self.layout.padded_dim();
        partial_values.resize(partial_values.len().max(n_values), 0.0);
        let mut y = vec![0.0; n_tokens * self.n_heads * self.layout.head_dim];
        let pass = AttentionPass {
            attention: self,
            softcap: self.softcap.map(Softcap::new),
            qkv,
            sequences: &sequences,
            rows_per_partial,
            y: DisjointSlice::new(&mut y),
            partials: DisjointSlice::new(&mut partials),
            partial_values: DisjointSlice::new(&mut partial_values),
        };
        pass.run(isa, &items);
        if n_partials > 0 {
            let merge = MergePartials {
                attention: self,
                sequences: &sequences,
                items: &items,
                rows_per_partial,
                partials: &partials,
                values: &partial_values,
                y: &mut y,
            };
            dispatch(isa, merge);
        }
        PARTIAL_VALUES.set(partial_values);
        y
    }

    /// Checks the shapes of the inputs, which the kernels rely on.
    fn check(&self, qkv: &[f32], n_tokens: usize) {
        let KvLayout { n_kv_heads, head_dim, .. } = self.layout;
        assert_eq!(qkv.len(), n_tokens * self.row_len());
        assert!(self.n_heads.is_multiple_of(n_kv_heads));
        if let Some(rope) = self.rope {
            rope.check(n_tokens, head_dim);
        }
        if let Some(HeadNorms { query, key, .. }) = self.head_norms {
            assert!(query.len() == head_dim && key.len() == head_dim);
        }
        assert!(self.query_scales.is_none_or(|scales| scales.len() == n_tokens));
        assert!(self.sinks.is_none_or(|sinks| sinks.len() == self.n_heads));
    }

    /// Elements of the queries, keys and values of a token.
    pub fn row_len(&self) -> usize {
        let n_kv_heads = if self.is_kv_shared { 0 } else { self.layout.n_kv_heads };
        (self.n_heads + self.layout.rows_per_token() * n_kv_heads) * self.layout.head_dim
    }

    /// Factor of the scores of a query, given its row in the batch.
    fn query_scale(&self, row: usize) -> f32 {
        self.query_scales.map_or(self.scale, |scales| self.scale * scales[row])
    }

    /// The sink of a query head.
    fn sink(&self, head: usize) -> Option<f32> {
        self.sinks.map(|sinks| sinks[head])
    }

    /// Query heads that share a key head (GQA).
    fn group(&self) -> usize {
        self.n_heads / self.layout.n_kv_heads
    }

    /// Position of the first key that a query at `position` sees.
    fn window_start(&self, position: usize) -> usize {
        window_start(position, self.window)
    }
}

/// Inputs and outputs that all work items of a forward pass share.
struct AttentionPass<'a> {
    attention: &'a PagedAttention<'a>,
    softcap: Option<Softcap>,
    /// Queries, keys and values of each new token.
    qkv: &'a [f32],
    sequences: &'a [PagedSequence<'a>],
    /// Rows that each partial has room for.
    rows_per_partial: usize,
    /// `[n_tokens, n_heads, head_dim]`
    y: DisjointSlice<'a, f32>,
    /// `[n_partials, rows_per_partial]`
    partials: DisjointSlice<'a, PartialSoftmax>,
    /// `[n_partials, rows_per_partial, padded_dim]`
    partial_values: DisjointSlice<'a, f32>,
}

impl AttentionPass<'_> {
    /// Runs all items on the thread pool, after the KV writes that several items depend on.
    fn run(&self, isa: Isa, items: &[WorkItem]) {
        let prefill_tokens: Vec<NewToken> = self
            .sequences
            .iter()
            .enumerate()
            .filter(|(_, sequence)| !self.attention.is_kv_shared && !sequence.is_decode())
            .flat_map(|(idx, sequence)| (0..sequence.len).map(move |token| NewToken { sequence: idx, token }))
            .collect();
        if items.len() == 1 && prefill_tokens.is_empty() {
            self.run_item(isa, items, 0);
            return;
        }
        pool::run(|team| {
            if !prefill_tokens.is_empty() {
                let chunk_len = prefill_tokens.len().div_ceil(8 * team.n_threads());
                for idx in team.claim_chunks(prefill_tokens.len(), chunk_len).flatten() {
                    self.write_kv(isa, prefill_tokens[idx]);
                }
                team.barrier();
            }
            team.claim_chunks(items.len(), 1).flatten().for_each(|idx| self.run_item(isa, items, idx));
        });
    }

    /// Writes the keys and values of a prefill's token.
    fn write_kv(&self, isa: Isa, token: NewToken) {
        let KvLayout { n_kv_heads, format, .. } = self.attention.layout;
        with_kv_element!(format, E => {
            // SAFETY: `run` claims each token once, and no item is run before the barrier behind the writes.
            dispatch(isa, unsafe { KvWrite::<E>::new(self, token, 0..n_kv_heads) });
        });
    }

    fn run_item(&self, isa: Isa, items: &[WorkItem], idx: usize) {
        let (item, next) = (&items[idx], items.get(idx + 1));
        // SAFETY: `run` claims each item once, after the keys and values of prefills have been written.
        unsafe {
            match self.attention.layout.format {
                KvFormat::F32 => {
                    dispatch(isa, WorkItemKernel::<FloatKvKernel<kv_block::F32>>::new(self, item, next));
                }
                KvFormat::F16 => {
                    dispatch(isa, WorkItemKernel::<FloatKvKernel<kv_block::F16>>::new(self, item, next));
                }
                KvFormat::Int8 => dispatch(isa, WorkItemKernel::<Int8KvKernel>::new(self, item, next)),
            }
        }
    }

    /// Queries, keys and values of a row of the batch.
    fn qkv_of(&self, row: usize) -> &[f32] {
        let row_len = self.attention.row_len();
        &self.qkv[row * row_len..(row + 1) * row_len]
    }
}
