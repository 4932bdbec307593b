//! The inputs of a forward pass: token batches and the block tables of their sequences.

use std::ops::Range;

use crate::kernels::attention::kv_block::BLOCK_TOKENS;

/// Identifies a sequence within one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Identifies a block within one layer group of a KV cache, or a slot for the recurrent state of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// The blocks of a sequence in one layer group of the KV cache, from the first token on. An entry is `None`
/// once its tokens have left the attention window of every layer in the group.
pub type BlockTable = Vec<Option<BlockId>>;

impl BlockId {
    /// Returns a table of consecutive blocks from `first` on, with room for `n_tokens` tokens, for callers
    /// that have no block allocator.
    pub fn consecutive(first: u32, n_tokens: usize) -> BlockTable {
        (first..).map(|id| Some(Self(id))).take(n_tokens.div_ceil(BLOCK_TOKENS)).collect()
    }
}

/// One text, or a pair of texts, for an [`Encoder`](super::Encoder).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderInput {
    /// All tokens, including the model's special first and last ones.
    pub token_ids: Vec<u32>,
    /// The number of tokens that belong to the first text of a pair; all of them for a single text.
    pub n_first: usize,
}

impl From<Vec<u32>> for EncoderInput {
    /// A single text.
    fn from(token_ids: Vec<u32>) -> Self {
        Self { n_first: token_ids.len(), token_ids }
    }
}

/// One batch for a [`Decoder`](super::Decoder): the new tokens of several sequences, concatenated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForwardInput {
    /// The new tokens of all spans.
    pub token_ids: Vec<u32>,
    /// The sequence that each run of `token_ids` continues; together the spans cover `token_ids`.
    pub spans: Vec<Span>,
    /// The block tables of each span's sequence, with room for the new tokens: one table per layer group
    /// ([`ModelConfig::kv_groups`](super::ModelConfig::kv_groups)), or one for all groups.
    pub block_tables: Vec<Vec<BlockTable>>,
    /// The recurrent state of each span's sequence; `None` for models without recurrent layers.
    pub states: Vec<Option<StateStep>>,
    /// Rows (indices into `token_ids`) whose logits are needed, ascending.
    pub logit_rows: Vec<u32>,
}

/// The steps of a sequence's recurrent state in a batch. A sequence that starts with its first token starts with an
/// empty state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateStep {
    /// The slot of the state.
    pub slot: BlockId,
    /// The slot of a snapshot that is copied to it first.
    pub restored_from: Option<BlockId>,
    /// Draft tokens of the sequence's batch before that were accepted; the state takes them in first.
    pub n_replayed: usize,
    /// How many of the last new tokens are drafts, which the state does not take in.
    pub n_drafts: usize,
    /// Snapshots to take: after how many tokens, those replayed included, and the slots for them.
    pub snapshots: Vec<(usize, BlockId)>,
}

/// A run of new tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The sequence that the tokens continue.
    pub sequence: SequenceId,
    /// The position of the first new token, which is the number of tokens before it.
    pub start: usize,
    /// The number of new tokens.
    pub len: usize,
    /// The length of the sequence's whole prompt, which LongRoPE depends on.
    pub n_prompt: usize,
    /// How many of the sequence's first tokens are computed with activations that are rounded to 8 bits.
    pub n_rounded: usize,
}

/// The rows of a sequence that have logits; its last rows in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogitSpan<'a> {
    /// The sequence.
    pub sequence: SequenceId,
    /// The position of the token in the first of these rows.
    pub start: usize,
    /// The rows, within the batch's `logit_rows`.
    pub rows: Range<usize>,
    /// The tokens in these rows after the first.
    pub following: &'a [u32],
}

/// The next tokens of one sequence, to be added to a [`ForwardInput`].
#[derive(Debug, Clone, Copy)]
pub struct SequenceChunk<'a> {
    /// The sequence that the tokens continue.
    pub sequence: SequenceId,
    /// The length of the sequence's whole prompt.
    pub n_prompt: usize,
    /// How many of the sequence's first tokens are computed with activations that are rounded to 8 bits.
    pub n_rounded: usize,
    /// The number of the sequence's tokens that are already in the KV cache.
    pub start: usize,
    /// The sequence's block tables, with room for `token_ids`.
    pub tables: &'a [BlockTable],
    /// The sequence's recurrent state; `None` for a model without recurrent layers.
    pub state: Option<&'a StateStep>,
    /// The new tokens.
    pub token_ids: &'a [u32],
    /// How many of the last of these tokens need logits.
    pub n_logits: usize,
}

impl ForwardInput {
    /// Adds the next tokens of a sequence.
    pub fn push(&mut self, chunk: SequenceChunk) {
        let SequenceChunk { sequence, n_prompt, n_rounded, start, tables, state, token_ids, n_logits } =
            chunk;
        self.token_ids.extend_from_slice(token_ids);
        self.spans.push(Span { sequence, start, len: token_ids.len(), n_prompt, n_rounded });
        self.block_tables.push(tables.to_vec());
        self.states.push(state.cloned());
        let end = self.token_ids.len() as u32;
        self.logit_rows.extend(end - n_logits.min(token_ids.len()) as u32..end);
    }

    /// Returns the rows with logits of each sequence that has some.
    pub fn logit_spans(&self) -> impl Iterator<Item = LogitSpan<'_>> + '_ {
        self.spans_with_rows().filter_map(|(span, rows)| {
            let position =
                |row: usize| self.logit_rows.partition_point(|&logit_row| (logit_row as usize) < row);
            let logit_rows = position(rows.start)..position(rows.end);
            let first = *self.logit_rows[logit_rows.clone()].first()? as usize;
            Some(LogitSpan {
                sequence: span.sequence,
                start: span.start + first - rows.start,
                rows: logit_rows,
                following: &self.token_ids[first + 1..rows.end],
            })
        })
    }

    /// Returns the rows of each sequence that are computed with activations rounded to 8 bits.
    pub fn rounded_rows(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.spans_with_rows().map(|(span, rows)| {
            rows.start..rows.start + span.n_rounded.saturating_sub(span.start).min(span.len)
        })
    }

    /// Splits the batch into one batch per sequence.
    pub fn split(&self) -> Vec<Self> {
        let single = |(idx, (span, rows)): (usize, (Span, Range<usize>))| {
            let span_rows = self.logit_rows.iter().filter(|&&row| rows.contains(&(row as usize)));
            Self {
                token_ids: self.token_ids[rows.clone()].to_vec(),
                spans: vec![span],
                block_tables: vec![self.block_tables[idx].clone()],
                states: vec![self.states[idx].clone()],
                logit_rows: span_rows.map(|row| row - rows.start as u32).collect(),
            }
        };
        self.spans_with_rows().enumerate().map(single).collect()
    }

    /// Returns each span with its rows.
    fn spans_with_rows(&self) -> impl Iterator<Item = (Span, Range<usize>)> + '_ {
        let mut start = 0;
        self.spans.iter().map(move |span| {
            let rows = start..start + span.len;
            start = rows.end;
            (*span, rows)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_splits_into_its_sequences() {
        let mut input = ForwardInput::default();
        let blocks = [BlockId::consecutive(4, 16)];
        let chunk = |sequence, n_prompt, start, token_ids, n_logits| SequenceChunk {
            sequence: SequenceId(sequence),
            n_prompt,
            n_rounded: 0,
            start,
            tables: &blocks,
            state: None,
            token_ids,
            n_logits,
        };
        input.push(chunk(3, 5, 0, &[1, 2], 0));
        input.push(chunk(1, 4, 7, &[3], 1));
        let last_blocks = [BlockId::consecutive(7, 16)];
        input.push(SequenceChunk { tables: &last_blocks, ..chunk(2, 3, 0, &[4, 5, 6], 2) });
        assert_eq!(input.logit_rows, [2, 4, 5]);
        let spans = [
            LogitSpan { sequence: SequenceId(1), start: 7, rows: 0..1, following: &[] },
            LogitSpan { sequence: SequenceId(2), start: 1, rows: 1..3, following: &[6] },
        ];
        assert_eq!(input.logit_spans().collect::<Vec<_>>(), spans);
        let parts = input.split();
        assert_eq!(
            parts.iter().map(|part| &part.token_ids[..]).collect::<Vec<_>>(),
            [&[1, 2][..], &[3], &[4, 5, 6]]
        );
        assert_eq!(
            parts.iter().map(|part| &part.logit_rows[..]).collect::<Vec<_>>(),
            [&[][..], &[0], &[1, 2]]
        );
        assert_eq!(parts[2].block_tables, [[[Some(BlockId(7))]]]);
        assert_eq!(
            parts[1].spans,
            [Span { sequence: SequenceId(1), start: 7, len: 1, n_prompt: 4, n_rounded: 0 }]
        );
    }
}
