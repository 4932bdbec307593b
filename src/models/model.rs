//! The traits that models implement.

use candle_core::Tensor;

use super::decoder::config::ModelConfig;
use super::forward_input::{EncoderInput, ForwardInput};
use super::sequence_states::SequenceStates;
use crate::error::Result;

/// A causal language model.
pub trait Decoder: Send {
    /// The model's sizes and limits.
    fn config(&self) -> &ModelConfig;

    /// Computes one batch: adds `input`'s tokens to the state of their sequences and returns the logits of the rows
    /// that `input` asks for, float32 `[n_logit_rows, n_vocab]`.
    ///
    /// # Errors
    /// When a tensor operation fails; the state of the batch's sequences is then undefined.
    fn forward(&mut self, states: &mut SequenceStates, input: &ForwardInput) -> Result<Tensor>;
}

/// A text encoder.
pub trait Encoder: Send + Sync {
    /// The length of a hidden state.
    fn hidden_size(&self) -> usize;

    /// The maximum number of tokens in one text.
    fn max_tokens(&self) -> usize;

    /// The number of labels that the classification head scores; 0 without a head.
    fn n_labels(&self) -> usize;

    /// Returns the last hidden states of a batch of texts, float32 `[n_tokens, hidden]`, the texts one
    /// after the other without padding.
    ///
    /// # Errors
    /// When a text is empty or longer than [`Encoder::max_tokens`], or a token id is out of range.
    fn forward(&self, texts: &[EncoderInput]) -> Result<Tensor>;

    /// Returns the score of every label for each text of a batch, float32 `[n_texts, n_labels]`.
    ///
    /// # Errors
    /// Those of [`Encoder::forward`], and when the model has no classification head.
    fn classify(&self, texts: &[EncoderInput]) -> Result<Tensor>;
}
