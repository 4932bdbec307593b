//! Responses as the server writes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::JsonMap;
use crate::openai::chat::{TokenLogprob, TopLogprob};

/// A response, complete or in progress.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ResponseObject {
    /// Unique id of the response.
    pub id: String,
    /// Always `response`.
    #[schemars(extend("const" = "response"))]
    pub object: String,
    /// Unix time at which the response was begun, in seconds.
    pub created_at: u64,
    /// Unix time at which it was completed, in seconds.
    pub completed_at: Option<u64>,
    /// The state of the response.
    pub status: ResponseStatus,
    /// Whether it is or was generated in the background.
    pub background: bool,
    /// The conversation that it belongs to.
    pub conversation: Option<ConversationId>,
    /// Why it failed.
    pub error: Option<ResponseFailure>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// The request's instructions.
    pub instructions: Option<String>,
    /// The request's token limit.
    pub max_output_tokens: Option<u64>,
    /// The request's limit for calls of hosted tools.
    pub max_tool_calls: Option<u64>,
    /// The request's metadata.
    pub metadata: Value,
    /// Id of the model that responds.
    pub model: String,
    /// The items that the model has generated.
    pub output: Vec<OutputItem>,
    /// Whether several calls are allowed.
    pub parallel_tool_calls: bool,
    /// The response that this one follows.
    pub previous_response_id: Option<String>,
    /// The request's cache key.
    pub prompt_cache_key: Option<Value>,
    /// The request's reasoning settings.
    pub reasoning: Value,
    /// The request's safety identifier.
    pub safety_identifier: Option<Value>,
    /// Always `default`.
    pub service_tier: String,
    /// Whether the response is stored.
    pub store: bool,
    /// The sampling temperature.
    pub temperature: f32,
    /// The form of the text.
    pub text: Value,
    /// The request's choice of tools.
    pub tool_choice: Value,
    /// The request's tools.
    pub tools: Vec<Value>,
    /// Number of likeliest tokens returned with each token.
    pub top_logprobs: u64,
    /// The share of the probability that is sampled from.
    pub top_p: f32,
    /// The treatment of a conversation that exceeds the context.
    pub truncation: String,
    /// Token counts, once the response has ended.
    pub usage: Option<ResponseUsage>,
    /// The request's user.
    pub user: Option<Value>,
}

/// A compacted conversation: what to send as input instead of it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "CompactedResponse")]
pub struct CompactionObject {
    /// Unique id of the compaction.
    pub id: String,
    /// Always `response.compaction`.
    #[schemars(extend("const" = "response.compaction"))]
    pub object: &'static str,
    /// Unix time of the compaction, in seconds.
    pub created_at: u64,
    /// The messages of the user, then an item of type `compaction` with a summary of the conversation.
    pub output: Vec<Value>,
    /// Token counts of the summary's generation.
    pub usage: ResponseUsage,
}

/// The state of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// Waits for its turn.
    Queued,
    /// Is generated.
    InProgress,
    /// Is complete.
    Completed,
    /// Ended at the token limit.
    Incomplete,
    /// Was cancelled.
    Cancelled,
    /// Failed.
    Failed,
}

impl ResponseStatus {
    /// Whether the response is still generated.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Queued | Self::InProgress)
    }
}

/// A reference to a conversation.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConversationId {
    /// Its id.
    pub id: String,
}

/// Why a response failed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ResponseFailure {
    /// `server_error`, `rate_limit_exceeded` or `invalid_prompt`.
    pub code: String,
    /// The problem and its remedy.
    pub message: String,
}

/// Why a response is incomplete.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct IncompleteDetails {
    /// Always `max_output_tokens`.
    pub reason: String,
}

/// Token counts of a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponseUsage {
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// Breakdown of `input_tokens`.
    pub input_tokens_details: InputTokensDetails,
    /// Generated tokens.
    pub output_tokens: usize,
    /// Breakdown of `output_tokens`.
    pub output_tokens_details: OutputTokensDetails,
    /// The sum of both.
    pub total_tokens: usize,
}

/// Breakdown of the prompt's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputTokensDetails {
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: usize,
    /// Always 0: the prefix cache needs no explicit writes.
    #[serde(default)]
    pub cache_write_tokens: usize,
}

/// Breakdown of the generated tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputTokensDetails {
    /// Tokens of the reasoning.
    pub reasoning_tokens: usize,
}

/// An item that the model has generated.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// A message to the user.
    Message {
        /// Unique id of the item.
        id: String,
        /// The state of the item.
        status: ItemStatus,
        /// Always `assistant`.
        role: String,
        /// The text, in one part.
        content: Vec<OutputText>,
    },
    /// The reasoning before an answer.
    Reasoning {
        /// Unique id of the item.
        id: String,
        /// The state of the item.
        status: ItemStatus,
        /// The reasoning, if a summary was requested.
        summary: Vec<TextPart>,
        /// The reasoning, if no summary was requested.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Vec<TextPart>>,
        /// The reasoning as a signed text that can be sent back, if requested.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encrypted_content: Option<String>,
    },
    /// A call of a function.
    FunctionCall {
        /// Unique id of the item.
        id: String,
        /// The state of the item.
        status: ItemStatus,
        /// Id that the output of the function refers to.
        call_id: String,
        /// The function's name.
        name: String,
        /// The namespace of the function, if it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// The arguments as the text of a JSON object, exactly as the model wrote it.
        arguments: String,
    },
    /// A call of a custom tool.
    CustomToolCall {
        /// Unique id of the item.
        id: String,
        /// The state of the item.
        status: ItemStatus,
        /// Id that the output of the tool refers to.
        call_id: String,
        /// The tool's name.
        name: String,
        /// The namespace of the tool, if it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        /// The input of the tool.
        input: String,
    },
    /// A command for the client's shell.
    LocalShellCall {
        /// Unique id of the item.
        id: String,
        /// The state of the item.
        status: ItemStatus,
        /// Id that the output of the command refers to.
        call_id: String,
        /// The command.
        action: JsonMap,
    },
    /// Commands for the client's shell.
    ShellCall {
        /// Unique id of the item.
        id: String,
        /// The state of the item.
        status: ItemStatus,
        /// Id that the output of the commands refers to.
        call_id: String,
        /// The commands.
        action: JsonMap,
    },
    /// A change of one of the client's files.
    ApplyPatchCall {
        /// Unique id of the item.
        id: String,
        /// The state of the item.
        status: ItemStatus,
        /// Id that the output of the change refers to.
        call_id: String,
        /// The change.
        operation: JsonMap,
    },
    /// A conversation, compacted by `/v1/responses/compact`.
    Compaction {
        /// Unique id of the item.
        id: String,
        /// The summary as a signed text that can be sent back.
        encrypted_content: String,
    },
}

impl OutputItem {
    /// The item's id.
    pub fn id(&self) -> &str {
        match self {
            Self::Message { id, .. }
            | Self::Reasoning { id, .. }
            | Self::FunctionCall { id, .. }
            | Self::CustomToolCall { id, .. }
            | Self::LocalShellCall { id, .. }
            | Self::ShellCall { id, .. }
            | Self::ApplyPatchCall { id, .. }
            | Self::Compaction { id, .. } => id,
        }
    }
}

/// The state of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    /// Is generated.
    InProgress,
    /// Is complete.
    Completed,
    /// Ended at the token limit.
    Incomplete,
}

/// The text of a message.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct OutputText {
    /// Always `output_text`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "output_text"))]
    pub kind: String,
    /// The text.
    pub text: String,
    /// Always empty.
    pub annotations: Vec<Value>,
    /// Log probabilities of the tokens; empty unless requested.
    pub logprobs: Vec<OutputLogprob>,
}

impl OutputText {
    /// A text with its log probabilities.
    pub fn new(text: String, logprobs: Vec<OutputLogprob>) -> Self {
        Self { kind: "output_text".to_owned(), text, annotations: Vec::new(), logprobs }
    }
}

/// A text of type `reasoning_text` or `summary_text`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TextPart {
    /// The type of the text.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: String,
}

/// A token of a text and its log probability.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct OutputLogprob {
    /// The token's text, with U+FFFD for incomplete UTF-8.
    pub token: String,
    /// Natural logarithm of the token's probability, at least -9999.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at this position.
    pub top_logprobs: Vec<OutputTopLogprob>,
}

/// One of the likeliest tokens at a position.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct OutputTopLogprob {
    /// The token's text, with U+FFFD for incomplete UTF-8.
    pub token: String,
    /// Natural logarithm of the token's probability, at least -9999.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Vec<u8>,
}

impl From<TokenLogprob> for OutputLogprob {
    fn from(entry: TokenLogprob) -> Self {
        let TokenLogprob { token, logprob, bytes, top_logprobs } = entry;
        let top = |TopLogprob { token, logprob, bytes }| OutputTopLogprob { token, logprob, bytes };
        Self { token, logprob, bytes, top_logprobs: top_logprobs.into_iter().map(top).collect() }
    }
}
