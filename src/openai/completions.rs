//! `/v1/completions`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::chat::{ChatCompletionRequest, FinishReason, Usage};
use super::embeddings::TextsOrTokens;
use crate::error::Result;

/// A request, as far as it is honoured ([`super::params`] deals with the rest).
#[derive(Debug, Clone)]
pub struct CompletionRequest {
    pub own: Own,
    /// What means the same in a chat request, with the probabilities that are asked for in its terms.
    pub options: ChatCompletionRequest,
}

/// What chat requests have not, or in another form.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "Texts to go on with as they are.", extend("required" = ["prompt"]))]
pub struct Own {
    /// Texts, or token ids of the model's own vocabulary.
    #[schemars(example = "Once upon a time")]
    pub prompt: Option<TextsOrTokens>,
    /// What comes after the text that is to be filled in.
    pub suffix: Option<String>,
    /// Whether the prompt stands before each text.
    pub echo: Option<bool>,
    /// How many texts are computed for each prompt, of which the `n` likeliest are given.
    #[schemars(range(min = 1, max = 8))]
    pub best_of: Option<u64>,
    /// How many of the likeliest tokens are reported with each.
    #[schemars(range(max = 5))]
    pub logprobs: Option<u64>,
}

impl JsonSchema for CompletionRequest {
    fn schema_name() -> Cow<'static, str> {
        "CompletionRequest".into()
    }

    /// Its own fields, then those of a chat request; which of them are known here is for
    /// [`super::params`] to say.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut own = Own::json_schema(generator);
        let options = ChatCompletionRequest::json_schema(generator);
        if let Some(Value::Object(fields)) = own.get_mut("properties")
            && let Some(Value::Object(options)) = options.get("properties")
        {
            for (name, schema) in options {
                fields.entry(name).or_insert_with(|| schema.clone());
            }
        }
        own
    }
}

impl CompletionRequest {
    /// The request that a JSON object is.
    ///
    /// # Errors
    /// When a field does not have its form.
    pub fn from_object(mut object: Map<String, Value>) -> Result<Self> {
        /// Tokens of a text unless it is said: OpenAI's.
        const MAX_TOKENS: u64 = 16;
        let names = ["prompt", "suffix", "echo", "best_of", "logprobs"];
        let own: Map<String, Value> =
            names.into_iter().filter_map(|name| object.remove_entry(name)).collect();
        let own: Own = super::from_value(Value::Object(own))?;
        let options: ChatCompletionRequest = super::from_value(Value::Object(object))?;
        let options = ChatCompletionRequest {
            max_tokens: Some(options.max_tokens.unwrap_or(MAX_TOKENS)),
            logprobs: own.logprobs.map(|_| true),
            top_logprobs: own.logprobs,
            ..options
        };
        Ok(Self { own, options })
    }
}

/// A whole answer, or an event of a streamed one.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Completion {
    pub id: String,
    #[schemars(extend("const" = "text_completion"))]
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub choices: Vec<CompletionChoice>,
    pub system_fingerprint: String,
    /// Left out of a stream unless the request asked for it; then null on every event but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<FinishReason>,
}

/// Of each token, side by side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<f32>,
    /// The likeliest tokens; null where none were asked for.
    pub top_logprobs: Option<Vec<BTreeMap<String, f32>>>,
    /// Where each begins in the text, in characters.
    pub text_offset: Vec<usize>,
}
