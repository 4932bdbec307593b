//! Requests of Ollama's API.

use std::num::NonZeroU64;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::MAX_EMBEDDING_INPUTS;
use crate::error::{Error, Result};
use crate::openai::chat::{Role, Tool};
use crate::openai::generation_options::OneOrMany;

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A conversation to continue, in Ollama's form.")]
pub struct OllamaChatRequest {
    /// Id or alias of a chat model; the first one by default.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The conversation so far; an empty one only loads the model. A last message of the assistant is continued.
    #[schemars(example = [json!({"role": "user", "content": "Say hello."})])]
    pub messages: Vec<OllamaMessage>,
    /// Functions that the model may call.
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<Tool>>,
    /// Fields that `/api/generate` has too.
    #[serde(flatten)]
    pub common: OllamaGenerationFields,
}

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A prompt to answer, in Ollama's form.")]
pub struct OllamaGenerateRequest {
    /// Id or alias of a chat model; the first one by default.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The prompt, which the model's chat template shows as a user's message; an empty one only loads the model.
    #[schemars(example = &"Say hello.")]
    pub prompt: String,
    /// Instructions to the model.
    pub system: Option<String>,
    /// Text that follows the text to fill in. No chat template is used with it.
    pub suffix: Option<String>,
    /// Continue the prompt as it is, without a chat template.
    pub raw: Option<bool>,
    /// Fields that `/api/chat` has too.
    #[serde(flatten)]
    pub common: OllamaGenerationFields,
}

/// Fields of all requests that generate.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OllamaGenerationFields {
    /// Send the response as lines of JSON while it is generated; true by default.
    pub stream: Option<bool>,
    /// The form of the response: `json`, or a JSON schema, beyond which objects have no properties.
    #[schemars(schema_with = "format_schema")]
    pub format: Option<Value>,
    /// Sampling and limits.
    pub options: Option<OllamaOptions>,
    /// Whether, and how much, the model reasons before it answers.
    pub think: Option<Think>,
    /// Return the log probabilities of the generated tokens.
    pub logprobs: Option<bool>,
    /// Number of likeliest tokens to return with each token; only valid with `logprobs`.
    #[schemars(range(max = 20))]
    pub top_logprobs: Option<u64>,
    /// How long the model stays in memory. Not honored, but 0 in a request that generates nothing is refused.
    #[schemars(schema_with = "any")]
    pub keep_alive: Option<Value>,
}

/// Whether, and how much, a model reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected true, false, `low`, `medium`, `high` or `max`")]
pub enum Think {
    /// Whether it reasons.
    Switch(bool),
    /// How much it reasons.
    Level(ThinkLevel),
}

/// How much a model reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThinkLevel {
    /// Less than usual.
    Low,
    /// The usual amount.
    Medium,
    /// More than usual.
    High,
    /// As much as possible.
    Max,
}

/// Sampling and limits of a generation. Others are listed in `x-ignored-params`; a `typical_p`, `tfs_z` or `mirostat`
/// that has an effect is refused.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OllamaOptions {
    /// Maximum number of tokens to generate; 0 and negative numbers mean no limit.
    pub num_predict: Option<i64>,
    /// Sampling temperature, 0.8 by default; 0 always picks the likeliest token.
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f32>,
    /// Sample from this many of the likeliest tokens, 40 by default; 0 means all of them.
    #[schemars(range(min = -1))]
    pub top_k: Option<i64>,
    /// Sample from the likeliest tokens whose probabilities together reach this value, 0.9 by default.
    #[schemars(range(min = 0, max = 1))]
    pub top_p: Option<f32>,
    /// Sample from tokens that are at least this likely, relative to the likeliest token.
    #[schemars(range(min = 0, max = 1))]
    pub min_p: Option<f32>,
    /// Seed of the sampler; equal seeds draw equal tokens, and a negative one is a random one.
    pub seed: Option<i64>,
    /// Strings at which generation stops; they are not part of the text.
    pub stop: Option<OneOrMany>,
    /// Divisor of the logits of tokens that have occurred, 1.1 by default.
    #[schemars(range(min = 0.01, max = 10))]
    pub repeat_penalty: Option<f32>,
    /// Number of recent tokens that the repeat penalty considers, 64 by default; -1 means all of them.
    #[schemars(range(min = -1))]
    pub repeat_last_n: Option<i64>,
    /// Penalty on the logits of tokens that have occurred in the generated text.
    #[schemars(range(min = -2, max = 2))]
    pub presence_penalty: Option<f32>,
    /// Penalty on the logits of tokens, multiplied by their number of occurrences in the generated text.
    #[schemars(range(min = -2, max = 2))]
    pub frequency_penalty: Option<f32>,
}

/// One message of a conversation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct OllamaMessage {
    /// The author's role.
    pub role: Role,
    /// The message's text.
    #[serde(default)]
    pub content: Option<String>,
    /// The reasoning that preceded an assistant message.
    #[serde(default)]
    pub thinking: Option<String>,
    /// Images; refused, unless there are none.
    #[serde(default)]
    #[schemars(schema_with = "no_images")]
    pub images: Option<Vec<Value>>,
    /// The tool calls of an assistant message.
    #[serde(default)]
    pub tool_calls: Option<Vec<OllamaToolCall>>,
    /// Name of the function that a tool message is the result of.
    #[serde(default)]
    pub tool_name: Option<String>,
    /// Id of the call that a tool message is the result of.
    #[serde(default)]
    pub tool_call_id: Option<String>,
}

/// A call of a function in the conversation so far.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct OllamaToolCall {
    /// Id that the message with the result may refer to.
    #[serde(default)]
    pub id: Option<String>,
    /// The function's name and arguments.
    pub function: OllamaFunctionCall,
}

/// A function's name and the arguments of one call.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct OllamaFunctionCall {
    /// The function's name.
    pub name: String,
    /// The arguments.
    #[serde(default)]
    pub arguments: Map<String, Value>,
}

/// A request for embeddings.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "Texts to embed, in Ollama's form.")]
pub struct OllamaEmbedRequest {
    /// Id or alias of the embedding model.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// A text or several; none, or an empty one alone, only loads the model.
    #[schemars(schema_with = "texts_schema")]
    pub input: Option<OneOrMany>,
    /// Truncate texts that are too long instead of refusing them; true by default.
    pub truncate: Option<bool>,
    /// Number of leading dimensions of each vector to return.
    pub dimensions: Option<NonZeroU64>,
}

/// A request for one embedding, in the form that preceded `/api/embed`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A text to embed, in Ollama's former form.")]
pub struct OllamaEmbeddingsRequest {
    /// Id or alias of the embedding model.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The text; an empty one only loads the model.
    #[schemars(example = &"A man is eating food.")]
    pub prompt: Option<String>,
}

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A model to describe.")]
pub struct OllamaShowRequest {
    /// The model.
    #[serde(flatten)]
    pub model: OllamaModelName,
}

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A model to download, in Ollama's form.")]
pub struct OllamaPullRequest {
    /// The model.
    #[serde(flatten)]
    pub model: OllamaModelName,
    /// Send the progress as lines of JSON; true by default.
    pub stream: Option<bool>,
}

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A model to delete.")]
pub struct OllamaDeleteRequest {
    /// The model.
    #[serde(flatten)]
    pub model: OllamaModelName,
}

/// The name of a model that a request is about.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OllamaModelName {
    /// Id, alias or reference of the model.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// Former name of `model`.
    pub name: Option<String>,
}

impl OllamaModelName {
    /// The name.
    ///
    /// # Errors
    /// When there is none.
    pub fn into_name(self) -> Result<String> {
        self.model.or(self.name).ok_or_else(|| Error::invalid("model", "`model` is missing"))
    }
}

fn format_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"enum": ["", "json", null]}, {"type": "object"}]})
}

fn texts_schema(_: &mut SchemaGenerator) -> Schema {
    let texts =
        json_schema!({"type": "array", "items": {"type": "string"}, "maxItems": MAX_EMBEDDING_INPUTS});
    json_schema!({"anyOf": [{"type": ["string", "null"]}, texts], "examples": ["A man is eating food."]})
}

fn no_images(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["array", "null"], "maxItems": 0})
}

fn any(_: &mut SchemaGenerator) -> Schema {
    json_schema!({})
}
