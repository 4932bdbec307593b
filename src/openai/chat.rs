//! `/v1/chat/completions`.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A request, as far as it is honoured ([`super::params`] deals with the rest).
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A conversation to go on with.", extend("required" = ["messages"]))]
pub struct ChatCompletionRequest {
    /// Any name of a chat model that is served; the first one unless it is said.
    #[schemars(example = &"default")]
    pub model: Option<String>,
    /// The conversation so far.
    #[schemars(length(min = 1), example = [json!({"role": "user", "content": "Say hello."})])]
    pub messages: Vec<Message>,
    /// How many answers to give.
    #[schemars(range(min = 1, max = 8))]
    pub n: Option<u64>,
    /// Most tokens of the answer.
    #[schemars(range(min = 1))]
    pub max_tokens: Option<u64>,
    /// Wins over `max_tokens`.
    #[schemars(range(min = 1))]
    #[schemars(example = 16)]
    pub max_completion_tokens: Option<u64>,
    /// How freely tokens are drawn; 0 takes the likeliest.
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f32>,
    /// Draw from the likeliest tokens that have this probability together.
    #[schemars(range(min = 0, max = 1))]
    pub top_p: Option<f32>,
    /// Draw from so many of the likeliest tokens; 0 and -1 are all of them.
    #[schemars(range(min = -1))]
    pub top_k: Option<i64>,
    /// Draw from tokens that are at least this likely, as a share of the likeliest one's probability.
    #[schemars(range(min = 0, max = 1))]
    pub min_p: Option<f32>,
    /// The same seed draws the same tokens.
    pub seed: Option<i64>,
    /// Texts that end the answer before them: up to 4, each of 1 to 1,024 bytes.
    #[schemars(schema_with = "stop_schema")]
    pub stop: Option<OneOrMany>,
    /// Whether the answer comes as server-sent events, as it is made.
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Makes tokens less likely that were said before.
    #[schemars(range(min = -2, max = 2))]
    pub presence_penalty: Option<f32>,
    /// The same, by how often they were.
    #[schemars(range(min = -2, max = 2))]
    pub frequency_penalty: Option<f32>,
    /// Token ids, written as JSON keys, to a value from -100 to 100.
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": -100, "maximum": 100}))]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Whether the probabilities of the answer's tokens are given.
    pub logprobs: Option<bool>,
    /// How many of the likeliest tokens are given with each; only with `logprobs`.
    #[schemars(range(max = 20))]
    pub top_logprobs: Option<u64>,
    /// Divides the logits of tokens that were said before.
    #[schemars(range(min = 0.01, max = 10))]
    pub repeat_penalty: Option<f32>,
    /// Another name of `repeat_penalty`.
    #[schemars(range(min = 0.01, max = 10))]
    pub repetition_penalty: Option<f32>,
    /// Tokens the repeat penalty looks back on; -1 is all of them.
    #[schemars(range(min = -1))]
    pub repeat_last_n: Option<i64>,
    /// Whether the answer goes on where the model would end it.
    pub ignore_eos: Option<bool>,
    /// Tokens before which nothing ends the answer but its limits.
    pub min_tokens: Option<u64>,
    /// Tokens that end it, beside the model's own.
    #[schemars(length(max = 64))]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Only requests with the same one may share what was computed of their prompts.
    pub cache_salt: Option<String>,
    /// Leave all but the last so many tokens of the prompt out; -1 leaves out what does not fit.
    #[schemars(schema_with = "truncate_schema")]
    pub truncate_prompt_tokens: Option<i64>,
    /// What most of the answer will be, as the client thinks.
    pub prediction: Option<Prediction>,
    /// How much the model is to think before it answers.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Functions that the model may call.
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<Tool>>,
    /// Which of them, and whether it has to.
    pub tool_choice: Option<ToolChoice>,
    /// Whether it may call several at once; it may unless it is said.
    pub parallel_tool_calls: Option<bool>,
    /// What the answer must be.
    pub response_format: Option<ResponseFormat>,
    /// The same as a JSON schema, or the text of one.
    #[schemars(extend("type" = ["object", "string", "null"]))]
    pub guided_json: Option<Value>,
    /// The same as a regular expression that matches all of it.
    pub guided_regex: Option<String>,
    /// The same as a list of which it is one.
    #[schemars(length(min = 1))]
    pub guided_choice: Option<Vec<String>>,
    /// The same as a grammar in Lark's form.
    pub grammar: Option<String>,
    /// More variables for the model's template.
    pub chat_template_kwargs: Option<serde_json::Map<String, Value>>,
}

/// `stop`, with the bounds that [`OneOrMany`] has only here.
fn stop_schema(_: &mut SchemaGenerator) -> Schema {
    let text = || json_schema!({"type": "string", "minLength": 1, "maxLength": 1024});
    json_schema!({"anyOf": [text(), {"type": "array", "items": text(), "maxItems": 4}, {"type": "null"}]})
}

/// `truncate_prompt_tokens`, which is never 0.
fn truncate_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["integer", "null"], "minimum": -1, "not": {"const": 0}})
}

/// The schema of a schema.
fn object_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": ["object", "null"]})
}

/// The schema of what is always refused.
fn nothing(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "null"})
}

/// Something that a model may call.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct Tool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    /// Which function.
    pub function: FunctionDefinition,
}

/// What a model is told of a function.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct FunctionDefinition {
    /// Letters, digits, `_` and `-`.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-zA-Z0-9_-]+$"))]
    pub name: String,
    /// What it does, and when it is of use.
    #[serde(default)]
    pub description: Option<String>,
    /// A JSON schema of its arguments.
    #[serde(default)]
    #[schemars(schema_with = "object_or_null")]
    pub parameters: Option<Value>,
    /// Whether the arguments are kept to it.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// What is called: as the model likes, anything, nothing, or a certain function.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected `none`, `auto`, `required`, or an object of type `function` or `allowed_tools`"
)]
pub enum ToolChoice {
    Mode(ToolChoiceMode),
    Object(ToolChoiceObject),
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoiceMode {
    None,
    Auto,
    Required,
}

#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolChoiceObject {
    Function { function: FunctionName },
    AllowedTools { allowed_tools: AllowedTools },
}

/// Functions of which alone some may be called.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct AllowedTools {
    /// Whether one has to be called.
    pub mode: AllowedToolsMode,
    /// Those that may be.
    pub tools: Vec<AllowedTool>,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AllowedToolsMode {
    Auto,
    Required,
}

#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct AllowedTool {
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    pub function: FunctionName,
}

#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct FunctionName {
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FunctionKind {
    Function,
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    pub function: FunctionCall,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct FunctionCall {
    pub name: String,
    /// The text of a JSON object, as the model wrote it.
    pub arguments: String,
}

/// What an answer must be.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    pub kind: ResponseFormatKind,
    /// What JSON, where it is of that kind.
    #[serde(default)]
    pub json_schema: Option<JsonSchemaFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormatKind {
    Text,
    JsonObject,
    JsonSchema,
}

/// JSON of a certain kind.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct JsonSchemaFormat {
    /// Letters, digits, `_` and `-`.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-zA-Z0-9_-]+$"))]
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
    /// Any object where it is left out.
    #[serde(default)]
    #[schemars(schema_with = "object_or_null")]
    pub schema: Option<Value>,
    /// The schema is kept to either way.
    #[serde(default)]
    pub strict: Option<bool>,
}

/// How much a model thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningEffort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
}

/// A guess at an answer.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct Prediction {
    /// `content`.
    #[serde(rename = "type")]
    pub kind: PredictionKind,
    pub content: Content,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PredictionKind {
    Content,
}

/// One message of a conversation.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("anyOf" = [
    {"properties": {"content": {"not": {"type": "null"}}}, "required": ["content"]},
    {
        "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
        "required": ["tool_calls"]
    },
]))]
pub struct Message {
    pub role: Role,
    /// What is said; only an assistant message with tool calls may lack it.
    #[serde(default)]
    pub content: Option<Content>,
    /// Who says it, where the model's template shows that.
    #[serde(default)]
    pub name: Option<String>,
    /// The tools that an assistant called, where the model's template shows them.
    #[serde(default)]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Which of these calls a tool's message answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// What `tool_calls` was before; refused.
    #[serde(default)]
    #[schemars(schema_with = "nothing")]
    pub function_call: Option<Value>,
    /// What an assistant thought before.
    #[serde(default)]
    pub reasoning_content: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Developer,
    System,
    #[default]
    User,
    Assistant,
    Tool,
    Function,
}

/// What is said: a string or a list of parts.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of content parts")]
pub enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// A part of a message. Only text has a meaning to the models served here.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("oneOf" = [part_schema("text"), part_schema("refusal")]))]
pub struct ContentPart {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub text: Option<String>,
    #[serde(default)]
    pub refusal: Option<String>,
}

/// A part that has its text under the name of its kind.
fn part_schema(kind: &str) -> Value {
    json!({"properties": {"type": {"const": kind}, kind: {"type": "string"}}, "required": ["type", kind]})
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct StreamOptions {
    /// Whether the last event before the end tells the numbers of tokens.
    pub include_usage: Option<bool>,
}

/// A whole answer.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ChatCompletion {
    pub id: String,
    #[schemars(extend("const" = "chat.completion"))]
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub choices: Vec<Choice>,
    pub usage: Usage,
    pub system_fingerprint: String,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Choice {
    pub index: usize,
    pub message: AssistantMessage,
    pub logprobs: Option<ChoiceLogprobs>,
    pub finish_reason: FinishReason,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AssistantMessage {
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    pub content: Option<String>,
    pub refusal: Option<String>,
    /// What the model thought before, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// One event of a streamed answer.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ChatCompletionChunk {
    pub id: String,
    #[schemars(extend("const" = "chat.completion.chunk"))]
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub choices: Vec<ChunkChoice>,
    pub system_fingerprint: String,
    /// Left out unless the request asked for usage; then null on every chunk but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ChunkChoice {
    pub index: usize,
    pub delta: Delta,
    pub logprobs: Option<ChoiceLogprobs>,
    pub finish_reason: Option<FinishReason>,
}

/// What a chunk adds to the message.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// What a chunk adds to a call: first who is called, then arguments piece by piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ToolCallDelta {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<FunctionKind>,
    pub function: FunctionCallDelta,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FunctionCallDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct ChoiceLogprobs {
    pub content: Vec<TokenLogprob>,
    pub refusal: Option<Vec<TokenLogprob>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TokenLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    pub top_logprobs: Vec<TopLogprob>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
    pub completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PromptTokensDetails {
    /// Prompt tokens whose keys and values were already there.
    pub cached_tokens: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CompletionTokensDetails {
    pub reasoning_tokens: usize,
}
