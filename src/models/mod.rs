//! Numbers in, logits or vectors out.
//!
//! [`Decoder`] is what generates text, [`Encoder`] what embeds it. A model knows token ids,
//! positions and tensors; it never sees a string, a request or a clock. There is one decoder and
//! one encoder, each described by data; a family is a short file ([`decoder`], [`encoder`]) that
//! says what differs. Weights come through [`load`].

pub mod decoder;
pub mod encoder;
mod fields;
pub mod kv_store;
mod layers;
pub mod load;
pub mod profile;
mod rope;

use std::ops::Range;

use candle_core::Tensor;

pub use decoder::ModelConfig;
pub use kv_store::{BlockId, BlockTable, KvStore, SequenceId};

/// The window and block arithmetic of attention that schedulers share with the kernels.
pub use crate::kernels::attention::{first_key, kv_block::BLOCK_TOKENS};

use crate::error::{Error, Result};
use crate::kernels::isa::Isa;

/// How a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// With plain tensor operations on float32 weights: the law for the other.
    Reference,
    /// With the kernels for an instruction set, on weights as the checkpoint has them.
    Kernels(Isa),
    /// The same, with weights in float32 and what meets them rounded to bfloat16 where the processor multiplies
    /// that faster.
    Rounding(Isa),
}

impl Arithmetic {
    /// The instruction set of the kernels, where these are used.
    pub fn isa(self) -> Option<Isa> {
        match self {
            Self::Reference => None,
            Self::Kernels(isa) | Self::Rounding(isa) => Some(isa),
        }
    }

    /// Whether floats are rounded to bfloat16.
    pub fn rounds(self) -> bool {
        matches!(self, Self::Rounding(isa) if isa.has_bf16())
    }
}

/// A causal language model.
pub trait Decoder: Send {
    /// What the model is: sizes and limits.
    fn config(&self) -> &ModelConfig;

    /// Computes one batch: appends the keys and values of `input`'s tokens to `kv` and returns the
    /// logits of the rows that `input` asks for, float32 `[n_logit_rows, n_vocab]`.
    ///
    /// # Errors
    /// When a tensor operation fails; `kv` then holds an undefined state for the batch's sequences.
    fn forward(&mut self, kv: &mut KvStore, input: &ForwardInput) -> Result<Tensor>;
}

/// A text encoder.
pub trait Encoder: Send + Sync {
    /// Length of a hidden state.
    fn hidden_size(&self) -> usize;

    /// Most tokens one text may have.
    fn max_tokens(&self) -> usize;

    /// How many labels its classification head scores; none without a head.
    fn n_labels(&self) -> usize;

    /// The last hidden states of a batch of texts, float32 `[n_tokens, hidden]`, the texts one
    /// after the other without padding.
    ///
    /// # Errors
    /// When a text is empty or longer than [`Encoder::max_tokens`], or a token id is out of range.
    fn forward(&self, texts: &[EncoderInput]) -> Result<Tensor>;

    /// The scores of every label for each of a batch of texts, float32 `[n_texts, n_labels]`.
    ///
    /// # Errors
    /// As [`Encoder::forward`], and when the model has no classification head.
    fn classify(&self, texts: &[EncoderInput]) -> Result<Tensor>;
}

/// One text for an [`Encoder`], or a pair of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderInput {
    /// All tokens, the model's own first and last ones among them.
    pub token_ids: Vec<u32>,
    /// How many of them belong to the first text of a pair; all of them where there is one text.
    pub n_first: usize,
}

impl From<Vec<u32>> for EncoderInput {
    /// One text.
    fn from(token_ids: Vec<u32>) -> Self {
        Self { n_first: token_ids.len(), token_ids }
    }
}

/// One batch for a [`Decoder`]: the new tokens of several sequences, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForwardInput {
    /// The new tokens of all spans.
    pub token_ids: Vec<u32>,
    /// Which sequence each stretch of `token_ids` continues; together they cover it.
    pub spans: Vec<Span>,
    /// Of each span the blocks of its sequence's keys and values with room for the new tokens: a table for each
    /// of [`ModelConfig::kv_groups`], or one for all.
    pub block_tables: Vec<Vec<BlockTable>>,
    /// Rows (indices into `token_ids`) whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

/// A stretch of new tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub sequence: SequenceId,
    /// Position of the first new token: how many tokens of the sequence came before.
    pub start: usize,
    /// How many new tokens.
    pub len: usize,
    /// Tokens of the sequence's prompt, those still to come among them; some rotations depend on it.
    pub n_prompt: usize,
}

impl ForwardInput {
    /// Adds the next tokens of a sequence whose prompt has `n_prompt` tokens and that has `start`
    /// tokens already, in the blocks of `tables`; the logits of the last `n_logits` of them are wanted.
    pub fn push(
        &mut self,
        sequence: SequenceId,
        n_prompt: usize,
        start: usize,
        tables: &[BlockTable],
        token_ids: &[u32],
        n_logits: usize,
    ) {
        self.token_ids.extend_from_slice(token_ids);
        self.spans.push(Span { sequence, start, len: token_ids.len(), n_prompt });
        self.block_tables.push(tables.to_vec());
        let end = self.token_ids.len() as u32;
        self.logit_rows.extend(end - n_logits.min(token_ids.len()) as u32..end);
    }
}

impl ForwardInput {
    /// Each sequence whose logits are wanted, with which of all wanted rows are its own, and the tokens of the
    /// batch that come after the first of them.
    pub fn sampled(&self) -> impl Iterator<Item = (SequenceId, Range<usize>, &[u32])> + '_ {
        self.parts().filter_map(|(span, rows)| {
            let place = |row: usize| self.logit_rows.partition_point(|&wanted| (wanted as usize) < row);
            let wanted = place(rows.start)..place(rows.end);
            let first = *self.logit_rows[wanted.clone()].first()? as usize;
            Some((span.sequence, wanted, &self.token_ids[first + 1..rows.end]))
        })
    }

    /// The same batch as one for each sequence.
    pub fn split(&self) -> Vec<Self> {
        let alone = |((span, rows), tables): ((Span, Range<usize>), &Vec<BlockTable>)| {
            let of_span = self.logit_rows.iter().filter(|&&row| rows.contains(&(row as usize)));
            Self {
                token_ids: self.token_ids[rows.clone()].to_vec(),
                spans: vec![span],
                block_tables: vec![tables.clone()],
                logit_rows: of_span.map(|row| row - rows.start as u32).collect(),
            }
        };
        self.parts().zip(&self.block_tables).map(alone).collect()
    }

    /// Each span with its rows.
    fn parts(&self) -> impl Iterator<Item = (Span, Range<usize>)> + '_ {
        let mut start = 0;
        self.spans.iter().map(move |span| {
            let rows = start..start + span.len;
            start = rows.end;
            (*span, rows)
        })
    }
}

impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Self {
        Self::internal(format!("tensor operation failed: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_splits_into_its_sequences() {
        let mut input = ForwardInput::default();
        let blocks = [BlockId::run(4, 16)];
        input.push(SequenceId(3), 5, 0, &blocks, &[1, 2], 0);
        input.push(SequenceId(1), 4, 7, &blocks, &[3], 1);
        input.push(SequenceId(2), 3, 0, &[BlockId::run(7, 16)], &[4, 5, 6], 2);
        assert_eq!(input.logit_rows, [2, 4, 5]);
        let sampled = [(SequenceId(1), 0..1, &[][..]), (SequenceId(2), 1..3, &[6][..])];
        assert_eq!(input.sampled().collect::<Vec<_>>(), sampled);
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
        assert_eq!(parts[1].spans, [Span { sequence: SequenceId(1), start: 7, len: 1, n_prompt: 4 }]);
    }
}
