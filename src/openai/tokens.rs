//! `/tokenize` and `/detokenize`, as in vLLM's API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::chat::{Message, Tool};

/// A text or a conversation to tokenize.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct TokenizeRequest {
    /// Id or alias of any model; the first chat model by default.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The text. Excludes `messages`.
    #[serde(default)]
    #[schemars(example = "Say hello.")]
    pub prompt: Option<String>,
    /// Add the model's special tokens at the start and the end of `prompt`; true by default.
    #[serde(default)]
    pub add_special_tokens: Option<bool>,
    /// Include the text of each token in the response.
    #[serde(default)]
    pub return_token_strs: Option<bool>,
    /// The conversation, rendered with the model's chat template. Excludes `prompt`.
    #[serde(default)]
    pub messages: Option<Vec<Message>>,
    /// Functions that the model may call; they are a part of the prompt.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<Tool>>,
    /// Additional variables for the model's chat template.
    #[serde(default)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// End the prompt with the header of the assistant's message; true by default.
    #[serde(default)]
    pub add_generation_prompt: Option<bool>,
    /// Continue the last message, which is the assistant's. Excludes `add_generation_prompt`.
    #[serde(default)]
    pub continue_final_message: Option<bool>,
}

/// The response: token ids.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct TokenizeResponse {
    /// Number of tokens.
    pub count: usize,
    /// Context length of the model in tokens.
    pub max_model_len: usize,
    /// The token ids.
    pub tokens: Vec<u32>,
    /// The text of each token, if `return_token_strs` was set.
    pub token_strs: Option<Vec<String>>,
}

/// The tokenizer of the first chat model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct TokenizerInfo {
    /// Id of the model.
    pub model: String,
    /// Always `PreTrainedTokenizerFast`: the class of transformers that loads any tokenizer.
    #[schemars(extend("const" = "PreTrainedTokenizerFast"))]
    pub tokenizer_class: &'static str,
    /// Text of the token that starts a text.
    pub bos_token: Option<String>,
    /// Text of the token that ends a text.
    pub eos_token: Option<String>,
    /// Text of the token for unknown text.
    pub unk_token: Option<String>,
    /// Text of the token that fills up a batch.
    pub pad_token: Option<String>,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Context length of the model in tokens.
    pub model_max_length: usize,
    /// The chat template for conversations without tools; null if the model has none.
    pub chat_template: Option<String>,
}

/// A conversation to render with the model's chat template.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ApplyTemplateRequest {
    /// Id or alias of a chat model; the first one by default.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The conversation.
    #[schemars(length(min = 1), example = [json!({"role": "user", "content": "Say hello."})])]
    pub messages: Vec<Message>,
    /// Functions that the model may call; they are a part of the prompt.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<Tool>>,
    /// Additional variables for the model's chat template.
    #[serde(default)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// The response: the prompt of a conversation, as in llama.cpp's API.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ApplyTemplateResponse {
    /// The text of the prompt.
    pub prompt: String,
}

/// Token ids to convert into text.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DetokenizeRequest {
    /// Id or alias of any model; the first chat model by default.
    #[serde(default)]
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The token ids.
    #[schemars(example = [72, 105])]
    pub tokens: Vec<u32>,
}

/// The response: text.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}
