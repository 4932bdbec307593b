//! Tokens in, events out.
//!
//! [`Engine`] owns the model, the keys and values and a thread; requests reach it through a
//! bounded queue and answer with [`Event`]s. Each turn of its loop the [`scheduler`] decides what
//! the next batch holds, the model computes it, and each sequence's [`TextGeneration`] turns its
//! logits into the next token. This module never sees a message, a template or a socket.

mod block_pool;
pub mod engine;
pub mod grammar;
mod prompt_lookup;
pub mod sampling;
pub mod scheduler;
mod stop;
mod text_generation;

use std::sync::Arc;
use std::time::Duration;

pub use engine::{Admission, Engine, EngineOptions, EngineStatus, Generation};
pub use grammar::{Constraint, Grammar};
pub use sampling::{RepeatPenaltyStats, SamplingParams};
pub use scheduler::ContextShift;
pub use stop::overlap;
pub use text_generation::TextGeneration;

use crate::error::Error;

/// One text to generate.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// The prompt; at least one token.
    pub prompt: Vec<u32>,
    /// What the text is predicted to be, perhaps: the more of it is right, the faster it comes.
    pub prediction: Vec<u32>,
    /// Most tokens to generate; at least one.
    pub max_tokens: usize,
    /// Before so many tokens nothing ends the text but its limits.
    pub min_tokens: usize,
    pub sampling: SamplingParams,
    /// What the text must be, if not anything.
    pub constraint: Option<Constraint>,
    /// Strings that end the text where they appear; they are not part of it.
    pub stop: Vec<String>,
    /// Whether the text goes on from the prompt's, so that a space between them is its own.
    pub is_continuation: bool,
    /// Tokens that end it; they are not part of it.
    pub stop_tokens: Vec<u32>,
    /// Special tokens whose text is part of the text; that of others is not.
    pub visible_tokens: Vec<u32>,
    /// Go on past the model's own end-of-text tokens.
    pub ignore_eos: bool,
    /// How many of the likeliest tokens to report with each token; `None` reports no
    /// probabilities at all.
    pub top_logprobs: Option<usize>,
    /// Who sent it: tenants get their turns alike, and share nothing.
    pub tenant: Arc<str>,
    /// Requests with different ones share nothing either.
    pub cache_salt: Option<String>,
}

/// What a generation reports, in order: [`Event::Text`] any number of times, then exactly one of
/// the others.
#[derive(Debug, Clone)]
pub enum Event {
    /// More text, complete in UTF-8.
    Text(TextDelta),
    Finished(Finished),
    Failed(Error),
}

/// Text that may be shown, with the probabilities of the tokens it was made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TextDelta {
    pub text: String,
    /// One entry per token, where they were asked for; tokens that are parts of one character
    /// share an entry, since none of them is text alone.
    pub logprobs: Vec<TokenLogprob>,
    /// Tokens since the last text.
    pub n_tokens: usize,
}

/// How likely the model found a token before sampling changed anything.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability.
    pub logprob: f32,
    /// The likeliest tokens at this place (of several tokens: the last), likeliest first.
    pub top: Vec<(Vec<u8>, f32)>,
}

impl TokenLogprob {
    /// Adds the next token of the same character.
    fn extend(&mut self, next: Self) {
        self.bytes.extend(next.bytes);
        self.logprob += next.logprob;
        self.top = next.top;
    }
}

/// The end of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub reason: FinishReason,
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were there already.
    pub cached_tokens: usize,
    /// Generated tokens, the one that ended the text included.
    pub completion_tokens: usize,
    pub timings: Timings,
    pub repeat_penalty: RepeatPenaltyStats,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model or a stop string ended the text.
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
}

/// Where a generation's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From arrival to the first batch that held some of the prompt.
    pub queue: Duration,
    /// From there to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}
