//! The scores of a prompt's tokens, with their texts.

use std::sync::Arc;

use crate::inference::{PromptScores, RankedToken, ScoredToken};
use crate::openai::prompt_logprobs::{PositionLogprobs, PromptTokenLogprob};
use crate::tokenizer::Tokenizer;

/// A token of a prompt, or one of the most likely tokens at its position.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// Its id.
    pub id: u32,
    /// Its bytes; those of its text for a special token.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, at least -9999; `None` for the first token, which nothing predicts.
    pub logprob: Option<f32>,
    /// Its rank among all tokens; 1 is the most likely one.
    pub rank: usize,
    /// The most likely tokens at its position, most likely first.
    pub top: Vec<PromptToken>,
}

impl PromptToken {
    fn logprob_entry(&self) -> (u32, PromptTokenLogprob) {
        let logprob = PromptTokenLogprob {
            logprob: self.logprob.unwrap_or_default(),
            rank: self.rank,
            decoded_token: String::from_utf8_lossy(&self.bytes).into_owned(),
        };
        (self.id, logprob)
    }
}

/// The scores of a prompt in vLLM's form, with the `n_top` most likely tokens at each position.
pub fn prompt_logprobs(tokens: &[PromptToken], n_top: usize) -> Vec<Option<PositionLogprobs>> {
    let position = |token: &PromptToken| {
        token.logprob?;
        let top = token.top.iter().take(n_top).filter(|top| top.id != token.id);
        Some(PositionLogprobs([token].into_iter().chain(top).map(PromptToken::logprob_entry).collect()))
    };
    tokens.iter().map(position).collect()
}

/// A prompt's tokens with their texts.
pub fn prompt_tokens(scores: PromptScores, tokenizer: &Tokenizer) -> Arc<[PromptToken]> {
    let token = |id: u32, logprob: Option<f32>, rank: usize| PromptToken {
        id,
        bytes: match tokenizer.special_token_text(id) {
            Some(text) => text.as_bytes().to_vec(),
            None => tokenizer.token_bytes(id).to_vec(),
        },
        logprob: logprob.map(super::event::clamp_logprob),
        rank,
        top: Vec::new(),
    };
    let ranked = |RankedToken { id, logprob, rank }: RankedToken| token(id, Some(logprob), rank);
    let rest = scores.rest.into_iter().map(|ScoredToken { token, top }| PromptToken {
        top: top.into_iter().map(ranked).collect(),
        ..ranked(token)
    });
    [token(scores.first, None, 0)].into_iter().chain(rest).collect()
}
