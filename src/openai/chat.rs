//! Wire types of `/v1/chat/completions`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::generation_options::{GenerationOptions, object_or_null, token_limit, token_limit_schema};
use super::prompt_logprobs::PositionLogprobs;
use crate::error::Result;

/// The honored part of a request; [`super::params`] decides about the rest.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
#[schemars(description = "A conversation to continue.", extend("required" = ["messages"]))]
pub struct ChatCompletionRequest {
    /// The conversation so far.
    #[schemars(length(min = 1), example = [json!({"role": "user", "content": "Say hello."})])]
    pub messages: Vec<Message>,
    /// Maximum number of tokens to generate, -1 for no limit; takes precedence over `max_tokens`.
    #[serde(deserialize_with = "token_limit")]
    #[schemars(schema_with = "token_limit_schema", example = 16)]
    pub max_completion_tokens: Option<u64>,
    /// Return the log probabilities of the generated tokens.
    pub logprobs: Option<bool>,
    /// Number of likeliest tokens to return with each token; only valid with `logprobs`.
    #[schemars(range(max = 20))]
    pub top_logprobs: Option<u64>,
    /// A text that most of the response is expected to repeat.
    pub prediction: Option<Prediction>,
    /// How much the model reasons before it answers.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Most tokens that the model may reason for before its thought is closed; -1 means no limit.
    #[schemars(range(min = -1))]
    pub thinking_budget: Option<i64>,
    /// Whether and how much the model reasons, as other servers name it.
    pub reasoning: Option<ReasoningOptions>,
    /// Whether and how much the model reasons, as other servers name it.
    pub thinking: Option<ThinkingOptions>,
    /// Functions that the model may call.
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<Tool>>,
    /// Whether the model may or must call a function, and which.
    pub tool_choice: Option<ToolChoice>,
    /// Allow several calls in one response; true by default.
    pub parallel_tool_calls: Option<bool>,
    /// Additional variables for the model's chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// End the prompt with the header of the assistant's message; true by default.
    pub add_generation_prompt: Option<bool>,
    /// Continue the last message, which is the assistant's. Excludes `add_generation_prompt`.
    pub continue_final_message: Option<bool>,
    /// Options that text completions have too.
    #[serde(flatten)]
    pub options: GenerationOptions,
}

impl ChatCompletionRequest {
    /// Reads a request from its JSON object.
    ///
    /// # Errors
    /// When a field has the wrong form; the error names the field.
    pub fn from_object(object: Map<String, Value>) -> Result<Self> {
        let body = Value::Object(object);
        let options = GenerationOptions::from_body(&body)?;
        Ok(Self { options, ..super::from_value(body)? })
    }

    /// Whether the model may call a function.
    pub fn offers_tools(&self) -> bool {
        let is_forbidden = matches!(self.tool_choice, Some(ToolChoice::Mode(ToolChoiceMode::None)));
        !is_forbidden && self.tools.as_ref().is_some_and(|tools| !tools.is_empty())
    }

    /// Most tokens of the model's reasoning: the smallest limit of those that are given.
    pub fn thought_tokens(&self) -> Option<usize> {
        let budget = self.thinking_budget.and_then(|budget| u64::try_from(budget).ok());
        let reasoning = self.reasoning.as_ref().and_then(|reasoning| reasoning.max_tokens);
        let thinking = self.thinking.as_ref().and_then(|thinking| thinking.budget_tokens);
        let smallest = [budget, reasoning, thinking].into_iter().flatten().min();
        smallest.map(|budget| usize::try_from(budget).unwrap_or(usize::MAX))
    }

    /// Whether the request switches reasoning on or off without saying how much.
    pub fn has_thinking(&self) -> Option<bool> {
        match &self.thinking {
            Some(ThinkingOptions { kind: ThinkingMode::Disabled, .. }) => Some(false),
            Some(ThinkingOptions { kind: ThinkingMode::Enabled, .. }) => Some(true),
            Some(ThinkingOptions { kind: ThinkingMode::Adaptive, .. }) => None,
            None => self.reasoning.as_ref().and_then(|reasoning| reasoning.enabled),
        }
    }

    /// How much the model reasons.
    pub fn effort(&self) -> Option<ReasoningEffort> {
        self.reasoning_effort.or_else(|| self.reasoning.as_ref().and_then(|reasoning| reasoning.effort))
    }
}

/// The schema of a field that is always refused.
fn null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "null"})
}

/// A tool that the model may call.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct Tool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    /// The function's definition.
    pub function: FunctionDefinition,
}

/// A function that the model may call.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct FunctionDefinition {
    /// Name of 1 to 64 letters, digits, `_` or `-`.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-zA-Z0-9_-]+$"))]
    pub name: String,
    /// Description of what the function does and when to use it.
    #[serde(default)]
    pub description: Option<String>,
    /// JSON schema of the function's arguments.
    #[serde(default)]
    #[schemars(schema_with = "object_or_null")]
    pub parameters: Option<Value>,
    /// Constrain the arguments to the schema.
    #[serde(default)]
    pub strict: Option<bool>,
    /// Rules in Lark's form that the only argument, a text, must match; other APIs have tools with such an input.
    #[serde(skip)]
    pub input_grammar: Option<String>,
}

/// Controls whether and which functions are called: a mode, one function, or a set of allowed functions.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected `none`, `auto`, `required`, or an object of type `function` or `allowed_tools`"
)]
pub enum ToolChoice {
    /// A mode that applies to all functions.
    Mode(ToolChoiceMode),
    /// One function, or several that are allowed.
    Object(ToolChoiceObject),
}

/// Whether the model may or must call a function.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoiceMode {
    /// No function is called.
    None,
    /// The model decides.
    Auto,
    /// At least one function is called.
    Required,
}

/// A choice of functions.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToolChoiceObject {
    /// One function, which must be called.
    Function {
        /// The function to call.
        function: FunctionName,
    },
    /// A subset of `tools`.
    AllowedTools {
        /// The functions that may be called.
        allowed_tools: AllowedTools,
    },
}

/// The functions that may be called; others are not offered to the model.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct AllowedTools {
    /// Whether the model may or must call one of them.
    pub mode: AllowedToolsMode,
    /// The allowed functions.
    pub tools: Vec<AllowedTool>,
}

/// Whether the model may or must call one of the allowed functions.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AllowedToolsMode {
    /// The model decides.
    Auto,
    /// At least one function is called.
    Required,
}

/// One of the allowed functions.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct AllowedTool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    /// The function's name.
    pub function: FunctionName,
}

/// A reference to a function of `tools`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct FunctionName {
    /// The function's name.
    pub name: String,
}

/// The only kind of tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FunctionKind {
    /// A function that the client runs.
    Function,
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct ToolCall {
    /// Id that the message with the result refers to.
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    /// The function's name and arguments.
    pub function: FunctionCall,
}

/// A function's name and the arguments of one call.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// The arguments as the text of a JSON object, exactly as the model wrote it.
    pub arguments: String,
}

/// How much a model reasons before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReasoningEffort {
    /// No reasoning.
    None,
    /// As little as possible.
    Minimal,
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

/// Whether and how much a model reasons, in the form of routers.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct ReasoningOptions {
    /// How much the model reasons before it answers.
    pub effort: Option<ReasoningEffort>,
    /// Most tokens that the model may reason for.
    pub max_tokens: Option<u64>,
    /// Whether the model reasons.
    pub enabled: Option<bool>,
}

/// Whether and how much a model reasons, in Anthropic's form.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct ThinkingOptions {
    /// Whether the model reasons.
    #[serde(rename = "type")]
    pub kind: ThinkingMode,
    /// Most tokens that the model may reason for.
    #[serde(default)]
    pub budget_tokens: Option<u64>,
}

/// Whether a model reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingMode {
    /// It does.
    Enabled,
    /// It does not.
    Disabled,
    /// It decides.
    Adaptive,
}

/// A predicted response.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
pub struct Prediction {
    /// Always `content`.
    #[serde(rename = "type")]
    pub kind: PredictionKind,
    /// The predicted text.
    pub content: Content,
}

/// The only kind of prediction.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PredictionKind {
    /// Text of the response.
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
    /// The author's role.
    pub role: Role,
    /// The message's text; may be left out only in an assistant message with tool calls.
    #[serde(default)]
    pub content: Option<Content>,
    /// The author's name, if the model's template shows it.
    #[serde(default)]
    pub name: Option<String>,
    /// The tool calls of an assistant message.
    #[serde(default)]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Id of the call that a tool message is the result of.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// OpenAI's predecessor of `tool_calls`; refused.
    #[serde(default)]
    #[schemars(schema_with = "null")]
    pub function_call: Option<Value>,
    /// The reasoning that preceded an assistant message.
    #[serde(default)]
    pub reasoning_content: Option<String>,
}

/// The role of a message's author.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// OpenAI's newer name for the system role.
    Developer,
    /// Instructions to the model.
    System,
    /// The person who talks to the model.
    #[default]
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
    /// OpenAI's predecessor of `tool`.
    Function,
}

/// The text of a message: a string or a list of parts.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or an array of content parts")]
pub enum Content {
    /// A string.
    Text(String),
    /// Parts, whose texts are concatenated.
    Parts(Vec<ContentPart>),
}

/// A part of a message. Only text parts are supported.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("oneOf" = [part_schema("text"), part_schema("refusal")]))]
pub struct ContentPart {
    /// `text` or `refusal`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a part of type `text`.
    #[serde(default)]
    pub text: Option<String>,
    /// The text of a part of type `refusal`.
    #[serde(default)]
    pub refusal: Option<String>,
}

/// The schema of a part whose text is stored under the name of its type.
fn part_schema(kind: &str) -> Value {
    json!({"properties": {"type": {"const": kind}, kind: {"type": "string"}}, "required": ["type", kind]})
}

/// A complete response.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ChatCompletion {
    /// Unique id of the response.
    pub id: String,
    /// Always `chat.completion`.
    #[schemars(extend("const" = "chat.completion"))]
    pub object: &'static str,
    /// Unix time of the response, in seconds.
    pub created: u64,
    /// Id of the model that answered.
    pub model: String,
    /// The generated choices.
    pub choices: Vec<Choice>,
    /// Token counts of the request.
    pub usage: Usage,
    /// Fingerprint of the model; changes when the same request may be answered differently.
    pub system_fingerprint: String,
    /// Log probabilities of the prompt's tokens, if requested; null for the first, which nothing predicts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<PositionLogprobs>>>,
}

/// One of the generated choices.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Choice {
    /// Index among the choices.
    pub index: usize,
    /// The generated message.
    pub message: AssistantMessage,
    /// Log probabilities of the tokens, if requested.
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why generation ended.
    pub finish_reason: FinishReason,
}

/// A generated message.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AssistantMessage {
    /// Always `assistant`.
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// The text; null if the model only called functions.
    pub content: Option<String>,
    /// Always null.
    pub refusal: Option<String>,
    /// The reasoning that preceded the text, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The function calls, if any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// One event of a streamed response.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ChatCompletionChunk {
    /// Unique id of the response.
    pub id: String,
    /// Always `chat.completion.chunk`.
    #[schemars(extend("const" = "chat.completion.chunk"))]
    pub object: &'static str,
    /// Unix time of the response, in seconds.
    pub created: u64,
    /// Id of the model that answered.
    pub model: String,
    /// The choice that this chunk extends; empty in the last chunk, which has only usage.
    pub choices: Vec<ChunkChoice>,
    /// Fingerprint of the model; changes when the same request may be answered differently.
    pub system_fingerprint: String,
    /// Token counts; left out unless requested, and then null in every chunk but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A choice and what a chunk adds to it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ChunkChoice {
    /// Index among the choices.
    pub index: usize,
    /// The addition to the message.
    pub delta: Delta,
    /// Log probabilities of the added tokens, if requested.
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why generation ended; null until it has.
    pub finish_reason: Option<FinishReason>,
}

/// The part of a message that a chunk adds.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct Delta {
    /// `assistant` in the first chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text to append; null in the first chunk of a choice that may be a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Option<String>>,
    /// Reasoning to append.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Function calls to add or extend.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// The part of a function call that a chunk adds: first id and name, then arguments piece by piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ToolCallDelta {
    /// Index among the choice's calls.
    pub index: usize,
    /// Id of the call, in its first delta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Always `function`, in the call's first delta.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<FunctionKind>,
    /// The addition to name and arguments.
    pub function: FunctionCallDelta,
}

/// The part of a call's name and arguments that a chunk adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FunctionCallDelta {
    /// The function's name, in the call's first delta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Text to append to the arguments.
    pub arguments: String,
}

/// Why the generation of a choice ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string or stop token occurred.
    #[default]
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
    /// The model called at least one function.
    ToolCalls,
}

/// Log probabilities of a choice's tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct ChoiceLogprobs {
    /// One entry for each generated token, those that are a part of a character included.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A generated token and its log probability.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TokenLogprob {
    /// The token's text, with U+FFFD for incomplete UTF-8.
    pub token: String,
    /// Natural logarithm of the token's probability, at least -9999.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at this position.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the likeliest tokens at a position.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TopLogprob {
    /// The token's text, with U+FFFD for incomplete UTF-8.
    pub token: String,
    /// Natural logarithm of the token's probability, at least -9999.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Vec<u8>,
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Generated tokens of all choices.
    pub completion_tokens: usize,
    /// The sum of both.
    pub total_tokens: usize,
    /// Breakdown of `prompt_tokens`.
    pub prompt_tokens_details: PromptTokensDetails,
    /// Breakdown of `completion_tokens`.
    pub completion_tokens_details: CompletionTokensDetails,
}

/// Breakdown of the prompt tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PromptTokensDetails {
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
}

/// Breakdown of the generated tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CompletionTokensDetails {
    /// Tokens of the reasoning, its tags included.
    pub reasoning_tokens: usize,
    /// Draft tokens of speculative decoding that became tokens of the text.
    pub accepted_prediction_tokens: usize,
    /// Draft tokens that were computed in vain; `completion_tokens` does not count them.
    pub rejected_prediction_tokens: usize,
}
