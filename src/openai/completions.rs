//! Wire types of `/v1/completions`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chat::{FinishReason, Usage};
use super::embeddings::TextsOrTokens;
use super::generation_options::{GenerationOptions, MAX_CHOICES};
use super::prompt_logprobs::PositionLogprobs;
use crate::error::Result;

/// OpenAI's default of `max_tokens`.
const DEFAULT_MAX_TOKENS: u64 = 16;

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "Texts to continue as they are.", extend("required" = ["prompt"]))]
pub struct CompletionRequest {
    /// One or several texts, or token ids of the model's vocabulary.
    #[schemars(example = "Once upon a time")]
    pub prompt: Option<TextsOrTokens>,
    /// Text that follows the text to fill in.
    pub suffix: Option<String>,
    /// Prepend the prompt to each generated text.
    pub echo: Option<bool>,
    /// Number of texts to generate for each prompt; the `n` likeliest are returned.
    #[schemars(range(min = 1, max = MAX_CHOICES))]
    pub best_of: Option<u64>,
    /// Number of likeliest tokens to return with each token.
    #[schemars(range(max = 5))]
    pub logprobs: Option<u64>,
    /// Options that chat completions have too.
    #[serde(flatten)]
    pub options: GenerationOptions,
}

impl CompletionRequest {
    /// Reads a request from its JSON object.
    ///
    /// # Errors
    /// When a field has the wrong form; the error names the field.
    pub fn from_object(object: Map<String, Value>) -> Result<Self> {
        let body = Value::Object(object);
        let mut options = GenerationOptions::from_body(&body)?;
        options.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        Ok(Self { options, ..super::from_value(body)? })
    }

    /// The number of likeliest tokens to return with each token of the echoed prompt, if they have log probabilities.
    pub fn echoed_logprobs(&self) -> Option<u64> {
        self.logprobs.filter(|_| self.echo.unwrap_or(false))
    }
}

/// A complete response, or one event of a streamed one.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Completion {
    /// Unique id of the response.
    pub id: String,
    /// Always `text_completion`.
    #[schemars(extend("const" = "text_completion"))]
    pub object: &'static str,
    /// Unix time of the response, in seconds.
    pub created: u64,
    /// Id of the model that answered.
    pub model: String,
    /// The generated texts.
    pub choices: Vec<CompletionChoice>,
    /// Fingerprint of the model; changes when the same request may be answered differently.
    pub system_fingerprint: String,
    /// Token counts; left out of a stream unless requested, and then null in every event but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One generated text, or what an event adds to it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct CompletionChoice {
    /// Index among the texts; those of the first prompt come first.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Log probabilities of the tokens, if requested.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why generation ended; null in a stream until it has.
    pub finish_reason: Option<FinishReason>,
    /// Log probabilities of the prompt's tokens, if requested; null for the first, which nothing predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<PositionLogprobs>>>,
}

/// Log probabilities of a text's tokens, as parallel arrays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct CompletionLogprobs {
    /// Texts of the tokens; of one that is a part of a character its bytes, such as `bytes:\xf0\x9f`.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities; null for the first token of an echoed prompt, which nothing predicts.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens at each position, as many as requested, and the generated one.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Position of each token in the text, in characters.
    pub text_offset: Vec<usize>,
}
