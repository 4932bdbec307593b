//! Events of an answer, as the engine's become the API's.

use crate::error::Error;
use crate::inference::{self, Event, Timings};
use crate::openai::chat::{
    ChoiceLogprobs, CompletionTokensDetails, FinishReason, PromptTokensDetails, TokenLogprob, ToolCallDelta,
    TopLogprob, Usage,
};

/// What an answer is made of: [`ChatEvent::Content`] any number of times, then one of the others.
#[derive(Debug, Clone)]
pub enum ChatEvent {
    Content {
        text: String,
        /// What was thought, before all that is said.
        reasoning: String,
        /// What is called, after all that is said.
        calls: Vec<ToolCallDelta>,
        logprobs: Option<ChoiceLogprobs>,
        /// Tokens of both.
        n_tokens: usize,
    },
    /// There are no figures of what was not computed.
    Finished {
        reason: FinishReason,
        usage: Usage,
        figures: Option<Figures>,
    },
    Failed(Error),
}

/// What a finished answer cost, for the log.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub timings: Timings,
    pub repeat_penalty: inference::RepeatPenaltyStats,
}

impl ChatEvent {
    /// The event of an answer that is given again: nothing of the prompt had to be computed.
    pub fn again(&self) -> Self {
        let mut event = self.clone();
        if let Self::Finished { usage, figures, .. } = &mut event {
            usage.prompt_tokens_details.cached_tokens = usage.prompt_tokens;
            *figures = None;
        }
        event
    }
}

impl From<Event> for ChatEvent {
    fn from(event: Event) -> Self {
        match event {
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
                usage: Usage {
                    prompt_tokens: finished.prompt_tokens,
                    completion_tokens: finished.completion_tokens,
                    total_tokens: finished.prompt_tokens + finished.completion_tokens,
                    prompt_tokens_details: PromptTokensDetails { cached_tokens: finished.cached_tokens },
                    completion_tokens_details: CompletionTokensDetails::default(),
                },
                figures: Some(Figures { timings: finished.timings, repeat_penalty: finished.repeat_penalty }),
            },
            Event::Failed(e) => ChatEvent::Failed(e),
        }
    }
}

fn token_logprob(entry: inference::TokenLogprob) -> TokenLogprob {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    TokenLogprob {
        token: text(&entry.bytes),
        logprob: finite(entry.logprob),
        top_logprobs: entry
            .top
            .into_iter()
            .map(|(bytes, logprob)| TopLogprob { token: text(&bytes), logprob: finite(logprob), bytes })
            .collect(),
        bytes: entry.bytes,
    }
}

/// JSON has no infinity; OpenAI writes -9999 for what is next to impossible.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
