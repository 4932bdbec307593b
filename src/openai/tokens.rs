//! `/tokenize` and `/detokenize`, as vLLM has them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chat::Message;

/// A text or a conversation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct TokenizeRequest {
    /// Any name of any model; the first chat model unless it is said.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// A text; not together with `messages`.
    #[serde(default)]
    #[schemars(example = "Say hello.")]
    pub prompt: Option<String>,
    /// Whether the model's own first and last tokens are put around it.
    #[serde(default)]
    pub add_special_tokens: Option<bool>,
    /// Whether the texts of the tokens are given too.
    #[serde(default)]
    pub return_token_strs: Option<bool>,
    /// A conversation instead of a text, for the model's own template.
    #[serde(default)]
    pub messages: Option<Vec<Message>>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct TokenizeResponse {
    pub count: usize,
    /// Most tokens that the model takes.
    pub max_model_len: usize,
    pub tokens: Vec<u32>,
    pub token_strs: Option<Vec<String>>,
}

/// Token ids.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DetokenizeRequest {
    /// Any name of any model; the first chat model unless it is said.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    #[schemars(example = [72, 105])]
    pub tokens: Vec<u32>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DetokenizeResponse {
    pub prompt: String,
}
