//! Partition of a batch's attention into work items for threads.
//!
//! A prefill is cut into tiles of queries. A decode has few queries, so its keys are cut into splits of
//! [`KV_SPLIT`] (flash decoding), whose partial softmaxes are merged afterwards.

use std::ops::Range;

use super::super::threads::pool;
use super::kv_block::BLOCK_TOKENS;
use super::paged::PagedSequence;
use super::{ITEMS_PER_THREAD, PagedAttention};

/// Keys that a partial softmax covers. Splits begin at multiples of this and are merged in order, so that a
/// result depends neither on the rest of the batch nor on the number of threads.
pub(super) const KV_SPLIT: usize = 256;

/// Rows (query heads times tokens) of a prefill's work item.
const TILE_ROWS: usize = 48;

/// Multiplications of queries and keys that are too few to pay for waking other threads.
const MAX_SERIAL_MULTIPLICATIONS: usize = 1 << 15;

/// Some queries of some heads against some keys of a sequence. Its rows are ordered by key head, then token,
/// then query head of the group that shares the key head.
pub(super) struct WorkItem {
    /// Index of the sequence.
    pub(super) sequence: usize,
    /// New tokens, counted from the sequence's first new one.
    pub(super) tokens: Range<usize>,
    pub(super) kv_heads: Range<usize>,
    /// Positions of the keys.
    pub(super) keys: Range<usize>,
    /// Index of the partial softmax of the first KV split, if other items have the rest of the keys; those of
    /// the item's other splits follow.
    pub(super) first_partial: Option<usize>,
}

impl WorkItem {
    /// Indices of the KV splits.
    pub(super) fn splits(&self) -> Range<usize> {
        self.keys.start / KV_SPLIT..self.keys.end.div_ceil(KV_SPLIT)
    }

    /// Indices of the blocks in the sequence's block table.
    pub(super) fn blocks(&self) -> Range<usize> {
        self.keys.start / BLOCK_TOKENS..self.keys.end.div_ceil(BLOCK_TOKENS)
    }

    /// Indices of the partial softmaxes; none if the item has all keys.
    pub(super) fn partials(&self) -> Range<usize> {
        self.first_partial.map_or(0..0, |first| first..first + self.splits().len())
    }

    /// Rows of each key head, shared by `group` query heads.
    pub(super) fn rows_per_head(&self, group: usize) -> usize {
        self.tokens.len() * group
    }

    /// The token, counted from the sequence's first new one, and the query head of a row.
    #[inline(always)]
    pub(super) fn token_and_head(&self, row: usize, group: usize) -> (usize, usize) {
        let rows_per_head = self.rows_per_head(group);
        let (kv_head, rest) = (self.kv_heads.start + row / rows_per_head, row % rows_per_head);
        (self.tokens.start + rest / group, kv_head * group + rest % group)
    }
}

/// The work items of a batch.
pub(super) struct Partition {
    /// For each sequence, those that take longest first.
    pub(super) items: Vec<WorkItem>,
    /// Number of partial softmaxes to be merged.
    pub(super) n_partials: usize,
}

impl Partition {
    /// Cuts the attention of `sequences` into items, several per thread.
    pub(super) fn new(attention: &PagedAttention, sequences: &[PagedSequence]) -> Self {
        let granularity = Granularity::new(attention, sequences);
        let mut partition = Self { items: Vec::new(), n_partials: 0 };
        for (idx, sequence) in sequences.iter().enumerate() {
            if sequence.is_decode() {
                partition.push_decode(attention, &granularity, idx, sequence);
            } else {
                partition.push_prefill(attention, idx, sequence);
            }
        }
        partition
    }

    /// Adds the items of a sequence with few new tokens: all tokens at once, its heads or keys cut.
    fn push_decode(
        &mut self,
        attention: &PagedAttention,
        granularity: &Granularity,
        idx: usize,
        sequence: &PagedSequence,
    ) {
        let Granularity { heads_per_item, splits_per_item } = *granularity;
        let (first, end) = (attention.window_start(sequence.start), sequence.n_tokens());
        let splits = splits_of(attention, sequence);
        for head in (0..attention.layout.n_kv_heads).step_by(heads_per_item) {
            let item = |keys, first_partial| WorkItem {
                sequence: idx,
                tokens: 0..sequence.len,
                kv_heads: head..head + heads_per_item,
                keys,
                first_partial,
            };
            let Some(splits_per_item) = splits_per_item.filter(|_| splits.len() != 1) else {
                self.items.push(item(first..end, None));
                continue;
            };
            for split in splits.clone().step_by(splits_per_item) {
                let item_end = (split + splits_per_item) * KV_SPLIT;
                let item = item(first.max(split * KV_SPLIT)..end.min(item_end), Some(self.n_partials));
                self.n_partials += item.splits().len();
                self.items.push(item);
            }
        }
    }

    /// Adds the items of a sequence with many new tokens: tiles of queries, each against all its keys.
    fn push_prefill(&mut self, attention: &PagedAttention, idx: usize, sequence: &PagedSequence) {
        let tile = (TILE_ROWS / attention.group()).max(1);
        // Later tokens see more keys, so they come first.
        for start in (0..sequence.len).step_by(tile).rev() {
            let tokens = start..sequence.len.min(start + tile);
            for head in 0..attention.layout.n_kv_heads {
                let keys = attention.window_start(sequence.start + tokens.start)..sequence.start + tokens.end;
                self.items.push(WorkItem {
                    sequence: idx,
                    tokens: tokens.clone(),
                    kv_heads: head..head + 1,
                    keys,
                    first_partial: None,
                });
            }
        }
    }
}

/// How finely decodes are cut, which depends on how many there are.
struct Granularity {
    heads_per_item: usize,
    /// KV splits per item; none where an item has all keys.
    splits_per_item: Option<usize>,
}

impl Granularity {
    fn new(attention: &PagedAttention, sequences: &[PagedSequence]) -> Self {
        let n_kv_heads = attention.layout.n_kv_heads;
        let wanted = ITEMS_PER_THREAD * pool::n_threads();
        let n_scores: usize = sequences.iter().map(|sequence| sequence.len * sequence.n_tokens()).sum();
        let is_serial = sequences.len() == 1
            && n_scores * attention.n_heads * attention.layout.head_dim <= MAX_SERIAL_MULTIPLICATIONS;
        let n_splits: usize = sequences.iter().map(|sequence| splits_of(attention, sequence).len()).sum();
        // The heads of a block are adjacent in memory, so keys are cut before heads are.
        let cut_keys = sequences.len() < wanted && !is_serial;
        let cut_heads = n_splits < wanted && !is_serial;
        let heads_per_item = if cut_heads { 1 } else { n_kv_heads };
        let splits_per_item = (n_splits * n_kv_heads / heads_per_item).div_ceil(wanted);
        Self { heads_per_item, splits_per_item: cut_keys.then_some(splits_per_item) }
    }
}

/// Indices of the KV splits that the new tokens of a sequence see.
fn splits_of(attention: &PagedAttention, sequence: &PagedSequence) -> Range<usize> {
    attention.window_start(sequence.start) / KV_SPLIT..sequence.n_tokens().div_ceil(KV_SPLIT)
}
