//! Events of a response, converted from the engine's.

use crate::error::Error;
use crate::inference::{self, Event, RepeatPenaltyStats, Timings};
use crate::openai::chat::{
    ChoiceLogprobs, CompletionTokensDetails, FinishReason, PromptTokensDetails, TokenLogprob, ToolCallDelta,
    TopLogprob, Usage,
};

/// An event of one choice: any number of [`ChatEvent::Content`], then one of the others.
#[derive(Debug, Clone)]
pub enum ChatEvent {
    /// More of the choice.
    Content {
        /// Text to append.
        text: String,
        /// Reasoning to append; all of it precedes the text.
        reasoning: String,
        /// Tool calls to add or extend; all of them follow the text.
        calls: Vec<ToolCallDelta>,
        /// Log probabilities of the tokens, if requested.
        logprobs: Option<ChoiceLogprobs>,
        /// Tokens of text, reasoning and calls.
        n_tokens: usize,
    },
    /// The choice is complete.
    Finished {
        /// Why generation ended.
        reason: FinishReason,
        /// The stop string that ended it.
        stop: Option<String>,
        /// Token counts of this choice.
        usage: Usage,
        /// Measurements; `None` for a response from the cache.
        stats: Option<GenerationStats>,
    },
    /// The choice failed.
    Failed(Error),
}

/// Measurements of a finished generation, for the log.
#[derive(Debug, Clone, Copy)]
pub struct GenerationStats {
    /// Time spent in each phase.
    pub timings: Timings,
    /// Work of the cached repeat penalty.
    pub repeat_penalty: RepeatPenaltyStats,
}

impl ChatEvent {
    /// The event as a cache hit replays it: without measurements, and with the whole prompt counted as cached.
    pub fn replayed(&self) -> Self {
        let mut event = self.clone();
        if let Self::Finished { usage, stats, .. } = &mut event {
            usage.prompt_tokens_details.cached_tokens = usage.prompt_tokens;
            *stats = None;
        }
        event
    }
}

impl ChatEvent {
    /// The event of a choice that an event of the engine is; `None` for scores.
    pub fn from_engine(event: Event) -> Option<Self> {
        Some(match event {
            Event::PromptScores(_) | Event::ContinuationScores(_) => return None,
            Event::Text(delta) => ChatEvent::Content {
                text: delta.text,
                reasoning: String::new(),
                calls: Vec::new(),
                n_tokens: delta.n_tokens,
                logprobs: (!delta.logprobs.is_empty()).then(|| ChoiceLogprobs {
                    content: delta.logprobs.into_iter().map(token_logprob).collect(),
                    refusal: None,
                }),
            },
            Event::Finished(finished) => ChatEvent::Finished {
                reason: match finished.reason {
                    inference::FinishReason::Stop => FinishReason::Stop,
                    inference::FinishReason::Length => FinishReason::Length,
                },
                stop: finished.stop,
                usage: Usage {
                    prompt_tokens: finished.prompt_tokens,
                    completion_tokens: finished.completion_tokens,
                    total_tokens: finished.prompt_tokens + finished.completion_tokens,
                    prompt_tokens_details: PromptTokensDetails { cached_tokens: finished.cached_tokens },
                    completion_tokens_details: CompletionTokensDetails {
                        accepted_prediction_tokens: finished.drafts.accepted,
                        rejected_prediction_tokens: finished.drafts.rejected,
                        ..CompletionTokensDetails::default()
                    },
                },
                stats: Some(GenerationStats {
                    timings: finished.timings,
                    repeat_penalty: finished.repeat_penalty,
                }),
            },
            Event::Failed(e) => ChatEvent::Failed(e),
        })
    }
}

fn token_logprob(entry: inference::TokenLogprob) -> TokenLogprob {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    TokenLogprob {
        token: text(&entry.bytes),
        logprob: clamp_logprob(entry.logprob),
        top_logprobs: entry
            .top
            .into_iter()
            .map(|(bytes, logprob)| TopLogprob {
                token: text(&bytes),
                logprob: clamp_logprob(logprob),
                bytes,
            })
            .collect(),
        bytes: entry.bytes,
    }
}

/// Replaces negative infinity, which JSON lacks, by -9999, as OpenAI does for the unlikeliest tokens.
pub fn clamp_logprob(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
