//! `/v1/completions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::chat::{ChatCompletionRequest, FinishReason, OneOrMany, StreamOptions, Usage};
use super::embeddings::Input;

/// A request, as far as it is honoured ([`super::params`] deals with the rest). What it shares with a chat request
/// means the same there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct CompletionRequest {
    /// Texts, or token ids of the model's own vocabulary.
    pub prompt: Option<Input>,
    pub model: Option<String>,
    /// What comes after the text that is to be filled in.
    pub suffix: Option<String>,
    /// 16 unless it is said.
    pub max_tokens: Option<u64>,
    pub n: Option<u64>,
    /// How many texts are computed for each prompt, of which the `n` likeliest are given.
    pub best_of: Option<u64>,
    /// Whether the prompt stands before each text.
    pub echo: Option<bool>,
    /// How many of the likeliest tokens are reported with each.
    pub logprobs: Option<u64>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub seed: Option<i64>,
    pub stop: Option<OneOrMany>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub repeat_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub repeat_last_n: Option<i64>,
    pub ignore_eos: Option<bool>,
    pub min_tokens: Option<u64>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub cache_salt: Option<String>,
    pub truncate_prompt_tokens: Option<i64>,
}

impl CompletionRequest {
    /// The same options of a chat request.
    pub fn as_chat(&self) -> ChatCompletionRequest {
        /// OpenAI's.
        const DEFAULT_MAX_TOKENS: u64 = 16;
        let request = self.clone();
        ChatCompletionRequest {
            model: request.model,
            n: request.n,
            max_tokens: Some(request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            min_p: request.min_p,
            seed: request.seed,
            stop: request.stop,
            stream: request.stream,
            stream_options: request.stream_options,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            logit_bias: request.logit_bias,
            logprobs: request.logprobs.map(|_| true),
            top_logprobs: request.logprobs,
            repeat_penalty: request.repeat_penalty,
            repetition_penalty: request.repetition_penalty,
            repeat_last_n: request.repeat_last_n,
            ignore_eos: request.ignore_eos,
            min_tokens: request.min_tokens,
            stop_token_ids: request.stop_token_ids,
            cache_salt: request.cache_salt,
            truncate_prompt_tokens: request.truncate_prompt_tokens,
            ..ChatCompletionRequest::default()
        }
    }
}

/// A whole answer, or an event of a streamed one.
#[derive(Debug, Clone, Serialize)]
pub struct Completion {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub choices: Vec<CompletionChoice>,
    pub system_fingerprint: String,
    /// Left out of a stream unless the request asked for it; then null on every event but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<FinishReason>,
}

/// Of each token, side by side.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<f32>,
    /// The likeliest tokens; null where none were asked for.
    pub top_logprobs: Option<Vec<BTreeMap<String, f32>>>,
    /// Where each begins in the text, in characters.
    pub text_offset: Vec<usize>,
}
