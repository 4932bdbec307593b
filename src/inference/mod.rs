//! Tokens in, events out: continuous batching over a paged KV cache.
//!
//! [`Engine`] owns the model, the KV cache and a thread. Requests reach the thread through a bounded queue, and it
//! answers with [`Event`]s. In each step the [`scheduler`] decides what the next batch computes, the model runs
//! forward, and each sequence's [`TextGeneration`] turns its logits into the next token. This module never sees a
//! message, a template or a socket.

mod block_pool;
mod constrained_drawing;
pub mod divergence;
pub mod engine;
pub mod grammar;
mod prefix_cache;
mod prompt_lookup;
pub mod sampling;
pub mod scheduler;
mod scoring;
mod stop;
mod text_generation;
mod thought_budget;
mod trial_texts;

use std::sync::Arc;
use std::time::Duration;

pub use engine::{Admission, Engine, EngineOptions, EngineStatus, Generation};
pub use grammar::{CompiledGrammar, Constraint, Grammar};
pub use sampling::{RepeatPenaltyStats, SamplingParams};
pub use scheduler::{ContextShift, Priority};
pub use scoring::{PromptScores, RankedToken, ScoredToken, Scoring};
pub use stop::overlap;
pub use text_generation::TextGeneration;
pub use thought_budget::ThoughtBudget;

use crate::error::Error;

/// The sender of a request, and its urgency.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The sender. Tenants get equal shares and do not share the prefix cache.
    pub tenant: Arc<str>,
    /// The request's urgency.
    pub priority: Priority,
}

/// One text to generate.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// The client's prediction of the text. The more of it is right, the faster the text is generated.
    pub prediction: Vec<u32>,
    /// Most tokens to generate; none computes the prompt only.
    pub max_tokens: usize,
    /// Fewest tokens before an end-of-text token or a stop string may end the text.
    pub min_tokens: usize,
    /// How tokens are sampled.
    pub sampling: SamplingParams,
    /// The grammar that the text must follow, if any.
    pub constraint: Option<Constraint>,
    /// A limit on the tokens of the model's thoughts.
    pub thought_budget: Option<ThoughtBudget>,
    /// Stop strings: they end the text where they appear and are not part of it.
    pub stop: Vec<String>,
    /// Whether the text continues the prompt's text, so that a space between them is part of it.
    pub is_continuation: bool,
    /// Tokens that end the text and are not part of it.
    pub stop_tokens: Vec<u32>,
    /// Special tokens whose text is part of the text; that of all others is not.
    pub visible_tokens: Vec<u32>,
    /// Whether to continue past the model's own end-of-text tokens.
    pub ignore_eos: bool,
    /// How many of the most likely tokens to report with each token; `None` reports no probabilities at all.
    pub top_logprobs: Option<usize>,
    /// Whether the token that ends the text is reported, too.
    pub is_end_reported: bool,
    /// The given tokens to score.
    pub scoring: Option<Scoring>,
    /// The sender.
    pub caller: Caller,
    /// A digest of the salt for the prefix cache: requests with different salts do not share it.
    pub cache_salt: Option<String>,
}

/// A report of a generation. They come in this order: one of [`Event::PromptScores`] and [`Event::ContinuationScores`],
/// if requested; [`Event::Text`] any number of times; then exactly one of the others.
#[derive(Debug, Clone)]
pub enum Event {
    /// The scores of the prompt.
    PromptScores(PromptScores),
    /// The log probability of each text that may follow the prompt, its end included.
    ContinuationScores(Vec<f64>),
    /// More text, complete in UTF-8.
    Text(TextDelta),
    /// The text is complete.
    Finished(Finished),
    /// The generation ended with an error.
    Failed(Error),
}

/// Text that may be shown, with the probabilities of its tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TextDelta {
    /// The text; empty if only probabilities are reported.
    pub text: String,
    /// One entry per token, if requested, those of tokens that are a part of a character included.
    pub logprobs: Vec<TokenLogprob>,
    /// Tokens since the last text.
    pub n_tokens: usize,
}

/// The probability that the model gave a token, before sampling changed it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token's text, which may be a part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability.
    pub logprob: f32,
    /// The most likely tokens at this position, most likely first.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// The end of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// The stop string that ended it.
    pub stop: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that came from the prefix cache.
    pub cached_tokens: usize,
    /// Generated tokens, including the one that ended the text.
    pub completion_tokens: usize,
    /// Its draft tokens.
    pub drafts: DraftCounts,
    /// The durations of its phases.
    pub timings: Timings,
    /// Statistics of the repeat penalty's cache.
    pub repeat_penalty: RepeatPenaltyStats,
}

/// Draft tokens of speculative decoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Draft tokens that became tokens of the text.
    pub accepted: usize,
    /// Draft tokens that were computed in vain.
    pub rejected: usize,
}

/// The reason why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-text token, a stop string or the grammar ended the text.
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
}

/// The durations of a generation's phases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From arrival to the first batch that held some of the prompt.
    pub queue: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}
