//! Wire types of `/v1/responses`: the request. Its items and tools have many forms, so they are read from JSON by
//! [`crate::responses`]; [`output`] has what the server writes, [`events`] how it is streamed.

pub mod conversations;
pub mod events;
pub mod output;

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::chat::ReasoningEffort;
use super::generation_options::{GenerationOptions, object_or_null};
use crate::error::Result;

/// A JSON object that is read elsewhere.
pub type JsonMap = Map<String, Value>;

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "Items to respond to.")]
pub struct ResponsesRequest {
    /// A text, or items: messages, function calls and their outputs, reasoning, references to stored items.
    #[schemars(example = &"Say hello.")]
    pub input: Option<ResponseInput>,
    /// Instructions that precede the conversation; those of earlier responses do not carry over.
    pub instructions: Option<String>,
    /// Id of a stored response whose conversation goes on.
    pub previous_response_id: Option<String>,
    /// A stored conversation that goes on, and to which input and output are added; an id, or an object with it.
    pub conversation: Option<ConversationRef>,
    /// Whether the response is stored for later requests; true by default.
    pub store: Option<bool>,
    /// Generate in the background: the response outlives the request, and is fetched by its id. Needs `store`.
    pub background: Option<bool>,
    /// Maximum number of tokens to generate, reasoning included.
    #[schemars(range(min = 1))]
    #[schemars(example = 16)]
    pub max_output_tokens: Option<u64>,
    /// Maximum number of calls of hosted tools. This server has none, so the limit is always kept.
    pub max_tool_calls: Option<u64>,
    /// Allow several calls in one response; true by default.
    pub parallel_tool_calls: Option<bool>,
    /// How much the model reasons, and how its reasoning is shown.
    pub reasoning: Option<ResponseReasoning>,
    /// The form of the text.
    pub text: Option<TextOptions>,
    /// Tools of type `function`, `custom`, `namespace`, `local_shell`, `shell` or `apply_patch`, which the client
    /// runs; others are listed in `x-ignored-params` and never called.
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<JsonMap>>,
    /// `none`, `auto`, `required`, or an object that names a tool or a set of allowed ones.
    #[schemars(schema_with = "text_or_object")]
    pub tool_choice: Option<Value>,
    /// Number of likeliest tokens to return with each token of the text.
    #[schemars(range(max = 20))]
    pub top_logprobs: Option<u64>,
    /// Additional output: `reasoning.encrypted_content`, `message.output_text.logprobs`.
    pub include: Option<Vec<String>>,
    /// Up to 16 pairs of a key and a text, which the response repeats.
    #[schemars(extend("maxProperties" = 16))]
    pub metadata: Option<BTreeMap<String, String>>,
    /// With `auto`, the beginning of a conversation that exceeds the context is left out.
    pub truncation: Option<TruncationMode>,
    /// Repeated in the response; the prefix cache needs no key.
    pub prompt_cache_key: Option<Value>,
    /// Repeated in the response.
    pub safety_identifier: Option<Value>,
    /// Repeated in the response.
    pub user: Option<Value>,
    /// Options that chat completions have too.
    #[serde(flatten)]
    pub options: GenerationOptions,
}

impl ResponsesRequest {
    /// Reads a request from its JSON object.
    ///
    /// # Errors
    /// When a field has the wrong form; the error names the field.
    pub fn from_object(object: JsonMap) -> Result<Self> {
        let body = Value::Object(object);
        let options = GenerationOptions::from_body(&body)?;
        Ok(Self { options, ..super::from_value(body)? })
    }
}

/// A text or a list of items.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of items")]
pub enum ResponseInput {
    /// The text of one user message.
    Text(String),
    /// Items, each an object with a `type`; a message may leave it out.
    Items(Vec<JsonMap>),
}

/// A reference to a stored conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected the id of a conversation, or an object with `id`")]
pub enum ConversationRef {
    /// Its id.
    Id(String),
    /// An object with its id.
    Object {
        /// Its id.
        id: String,
    },
}

impl ConversationRef {
    /// The conversation's id.
    pub fn id(&self) -> &str {
        match self {
            Self::Id(id) | Self::Object { id } => id,
        }
    }
}

/// Settings of the reasoning that precedes an answer.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct ResponseReasoning {
    /// How much the model reasons before it answers.
    pub effort: Option<ReasoningEffort>,
    /// Most tokens that the model may reason for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Whether the model reasons.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// If set, reasoning comes as a summary, with the events of one; it is the whole reasoning, not a shorter text.
    pub summary: Option<SummaryMode>,
    /// The former name of `summary`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate_summary: Option<SummaryMode>,
}

/// How detailed a summary is; all are the whole reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SummaryMode {
    /// Any length.
    Auto,
    /// A short text.
    Concise,
    /// A long text.
    Detailed,
    /// No summary.
    None,
}

/// The form of the text of a response.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct TextOptions {
    /// Any text, any JSON object, or JSON of a schema.
    pub format: Option<TextFormat>,
    /// A hint that models of this server do not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub verbosity: Option<Value>,
}

/// Any text, any JSON object, or JSON of a schema.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct TextFormat {
    /// Text, any JSON object, or JSON of a given schema.
    #[serde(rename = "type")]
    pub kind: super::generation_options::ResponseFormatKind,
    /// Name of the schema, of 1 to 64 letters, digits, `_` or `-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Description of the schema's purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The JSON schema; required if `type` is `json_schema`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_or_null")]
    pub schema: Option<Value>,
    /// Accepted for compatibility; the schema is always enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// The treatment of a conversation that exceeds the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TruncationMode {
    /// Its beginning is left out.
    Auto,
    /// The request is refused.
    Disabled,
}

/// The schema of `tool_choice`.
fn text_or_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object", "required": ["type"]}, {"type": "null"}]})
}

/// A request for a compacted conversation; read as a [`ResponsesRequest`].
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CompactRequest {
    /// Id of the model that writes the summary; the default model if absent.
    pub model: Option<String>,
    /// A text, or items, as for `/v1/responses`.
    #[schemars(example = &"Say hello.")]
    pub input: Option<ResponseInput>,
    /// Instructions that precede the conversation while it is summarized.
    pub instructions: Option<String>,
    /// Id of a stored response whose conversation precedes `input`.
    pub previous_response_id: Option<String>,
}

/// The number of tokens of an input.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ResponseInputTokens {
    /// Always `response.input_tokens`.
    #[schemars(extend("const" = "response.input_tokens"))]
    pub object: &'static str,
    /// Tokens of the prompt.
    pub input_tokens: usize,
}

/// Returns a text format in the form that responses repeat.
pub fn plain_text_format() -> Value {
    json!({"type": "text"})
}
