//! Requests of the Messages API.

use std::num::NonZeroU64;

use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::openai;
use crate::openai::generation_options::GenerationOptions;

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(
    description = "A conversation to continue, in Anthropic's form.",
    extend("required" = ["max_tokens", "messages"]),
    transform = require_token_limit
)]
pub struct MessagesRequest {
    /// Strings at which generation stops; they are not part of the text. Up to 32, of 1 to 1,024 bytes each.
    #[schemars(length(max = 32), inner(length(min = 1, max = 1024)))]
    pub stop_sequences: Option<Vec<String>>,
    /// The part that becomes the prompt.
    #[schemars(flatten)]
    pub conversation: CountTokensRequest,
    /// Options that the chat route has too.
    #[schemars(flatten)]
    pub options: GenerationOptions,
}

/// Gives `max_tokens` the range that it has here.
fn require_token_limit(schema: &mut Schema) {
    if let Some(field) = schema.pointer_mut("/properties/max_tokens") {
        *field = json!({
            "type": "integer",
            "minimum": 0,
            "description": "Maximum number of tokens to generate; 0 only computes and caches the prompt.",
            "examples": [16],
        });
    }
}

/// The part of a request that becomes the prompt.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(
    description = "A conversation whose tokens are counted, in Anthropic's form.",
    extend("required" = ["messages"])
)]
pub struct CountTokensRequest {
    /// Id or alias of a chat model; the first one by default.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The conversation so far. A last message of the assistant is continued.
    #[schemars(length(min = 1), example = [json!({"role": "user", "content": "Say hello."})])]
    pub messages: Vec<InputMessage>,
    /// Instructions to the model.
    pub system: Option<InputContent>,
    /// Tools that the model may use.
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<InputTool>>,
    /// Whether the model may or must use a tool, and which.
    pub tool_choice: Option<InputToolChoice>,
    /// Whether the model reasons before it answers.
    pub thinking: Option<ThinkingConfig>,
    /// How much effort the model makes, and the form that the response must have.
    pub output_config: Option<OutputConfig>,
    /// Predecessor of `output_config.format`.
    pub output_format: Option<OutputFormat>,
    /// Accepted for compatibility; prompts are cached anyway.
    #[schemars(schema_with = "openai::generation_options::object_or_null")]
    pub cache_control: Option<Map<String, Value>>,
    /// A conversation that the server is to keep, which this one does not: `create` is listed in `x-ignored-params`,
    /// and `continue` is a 404 with the code `thread_not_found`, upon which clients send all messages again.
    pub thread: Option<InputThread>,
    /// Additional variables for the model's chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

impl MessagesRequest {
    /// Reads a request from its JSON object.
    ///
    /// # Errors
    /// When a field has the wrong form; the error names the field.
    pub fn from_object(object: Map<String, Value>) -> Result<Self> {
        #[derive(Deserialize)]
        struct OwnFields {
            #[serde(default)]
            stop_sequences: Option<Vec<String>>,
        }
        let body = Value::Object(object);
        let options = GenerationOptions::from_body(&body)?;
        let OwnFields { stop_sequences } = openai::from_value(&body)?;
        Ok(Self { stop_sequences, conversation: openai::from_value(body)?, options })
    }
}

/// A conversation that the server is to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum InputThread {
    /// A new one.
    Create,
    /// The one of an earlier response.
    Continue,
}

/// One message of a conversation.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct InputMessage {
    /// The author's role.
    pub role: InputRole,
    /// The message's text or blocks.
    pub content: InputContent,
}

/// The role of a message's author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InputRole {
    /// The person who talks to the model; also the results of tools.
    User,
    /// The model.
    Assistant,
    /// Instructions in the middle of the conversation.
    System,
}

/// A text or content blocks.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of content blocks, each with its `type`")]
pub enum InputContent {
    /// A text.
    Text(String),
    /// Content blocks.
    Blocks(Vec<InputBlock>),
}

/// A content block. Which fields it has depends on its type: `text`, `tool_use`, `tool_result`, `thinking`,
/// `redacted_thinking`, `document` (of text), `search_result` or `tool_reference`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct InputBlock {
    /// The block's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a `text` block.
    #[serde(default)]
    pub text: Option<String>,
    /// The id of a `tool_use` block.
    #[serde(default)]
    pub id: Option<String>,
    /// The tool's name in a `tool_use` block.
    #[serde(default)]
    pub name: Option<String>,
    /// The arguments of a `tool_use` block, an object.
    #[serde(default)]
    #[schemars(schema_with = "openai::generation_options::object_or_null")]
    pub input: Option<Value>,
    /// The id of the `tool_use` block that a `tool_result` block belongs to.
    #[serde(default)]
    pub tool_use_id: Option<String>,
    /// The content of a `tool_result` or `search_result` block.
    #[serde(default)]
    pub content: Option<InputContent>,
    /// Whether a `tool_result` block reports a failure.
    #[serde(default)]
    pub is_error: Option<bool>,
    /// The reasoning of a `thinking` block.
    #[serde(default)]
    pub thinking: Option<String>,
    /// The signature of a `thinking` block.
    #[serde(default)]
    pub signature: Option<String>,
    /// The source of a `document` block, an object, or of a `search_result` block, a text.
    #[serde(default)]
    pub source: Option<InputSource>,
    /// The title of a `document` or `search_result` block.
    #[serde(default)]
    pub title: Option<String>,
    /// The context of a `document` block.
    #[serde(default)]
    pub context: Option<String>,
    /// The tool's name in a `tool_reference` block.
    #[serde(default)]
    pub tool_name: Option<String>,
}

/// The source of a document or of a search result.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an object with its `type`")]
pub enum InputSource {
    /// The place where a search result was found.
    Place(String),
    /// A document.
    Document(DocumentSource),
}

/// The source of a document. Only `text` and `content` are supported.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct DocumentSource {
    /// The source's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a source of type `text`.
    #[serde(default)]
    pub data: Option<String>,
    /// The content of a source of type `content`.
    #[serde(default)]
    pub content: Option<InputContent>,
}

/// A tool that the model may use.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct InputTool {
    /// `custom`, the default, or the type of a tool of Anthropic's, such as `bash_20250124`.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    /// Name of 1 to 64 letters, digits, `_` or `-`.
    #[serde(default)]
    pub name: Option<String>,
    /// Description of what the tool does and when to use it.
    #[serde(default)]
    pub description: Option<String>,
    /// JSON schema of the tool's input.
    #[serde(default)]
    #[schemars(schema_with = "openai::generation_options::object_or_null")]
    pub input_schema: Option<Value>,
    /// Constrain the input to the schema.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// Controls whether and which tools are used.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct InputToolChoice {
    /// The mode.
    #[serde(rename = "type")]
    pub kind: InputToolMode,
    /// The tool to use, if the mode is `tool`.
    #[serde(default)]
    pub name: Option<String>,
    /// Allow at most one use of a tool in the response.
    #[serde(default)]
    pub disable_parallel_tool_use: Option<bool>,
}

/// Whether the model may or must use a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InputToolMode {
    /// The model decides.
    Auto,
    /// At least one tool is used.
    Any,
    /// One tool is used.
    Tool,
    /// No tool is used.
    None,
}

/// Whether the model reasons before it answers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ThinkingConfig {
    /// The mode.
    #[serde(rename = "type")]
    pub kind: InputThinkingMode,
    /// Most tokens of the reasoning; required if the mode is `enabled`.
    #[serde(default)]
    pub budget_tokens: Option<NonZeroU64>,
    /// Whether the response has the reasoning's text.
    #[serde(default)]
    pub display: Option<ThinkingDisplay>,
}

/// When the model reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputThinkingMode {
    /// Before it answers.
    Enabled,
    /// When the model decides to.
    Adaptive,
    /// When the model decides to, also between uses of tools.
    BetweenTools,
    /// Never.
    Disabled,
}

/// How reasoning appears in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThinkingDisplay {
    /// As it is.
    Summarized,
    /// Only as a signature, from which this server restores it when the block is sent back.
    Omitted,
}

/// How much effort the model makes, and the form that the response must have.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OutputConfig {
    /// How much effort the model makes.
    pub effort: Option<Effort>,
    /// The form that the response must have.
    pub format: Option<OutputFormat>,
}

/// How much effort the model makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Less than usual.
    Low,
    /// The usual amount.
    Medium,
    /// More than usual.
    High,
    /// Much more than usual.
    XHigh,
    /// As much as possible.
    Max,
}

/// The form that the response must have.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct OutputFormat {
    /// Always `json_schema`.
    #[serde(rename = "type")]
    pub kind: OutputFormatKind,
    /// The JSON schema.
    pub schema: Option<Map<String, Value>>,
}

/// The only kind of output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputFormatKind {
    /// JSON that matches a schema.
    JsonSchema,
}
