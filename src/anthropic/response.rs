//! Responses of the Messages API, whole and as events.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::error::AnthropicErrorBody;

/// A complete response; in a stream's first event, without its content.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct MessageObject {
    /// Unique id of the response.
    pub id: String,
    /// Always `message`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "message"))]
    pub kind: &'static str,
    /// Always `assistant`.
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// Id of the model that answered.
    pub model: String,
    /// The generated blocks.
    pub content: Vec<OutputBlock>,
    /// Why generation ended.
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<String>,
    /// Always null.
    #[schemars(extend("type" = "null"))]
    pub stop_details: Option<String>,
    /// Token counts of the request.
    pub usage: MessageUsage,
}

/// A generated content block.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// Reasoning that precedes the text.
    Thinking {
        /// The reasoning.
        thinking: String,
        /// A value to send back with it.
        signature: String,
    },
    /// The use of a tool.
    ToolUse {
        /// Id that the result refers to.
        id: String,
        /// The tool's name.
        name: String,
        /// The tool's input.
        input: Map<String, Value>,
    },
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended it.
    EndTurn,
    /// The token limit was reached.
    MaxTokens,
    /// A stop sequence occurred.
    StopSequence,
    /// The model uses at least one tool.
    ToolUse,
    /// The end of the context was reached before the token limit.
    ModelContextWindowExceeded,
}

/// Token counts. The tokens of the prompt are the sum of the three input counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MessageUsage {
    /// Prompt tokens that were computed.
    pub input_tokens: usize,
    /// Always 0: prompts are cached without being asked.
    pub cache_creation_input_tokens: usize,
    /// Prompt tokens found in the prefix cache.
    pub cache_read_input_tokens: usize,
    /// Generated tokens.
    pub output_tokens: usize,
    /// Breakdown of `output_tokens`.
    pub output_tokens_details: MessageOutputDetails,
}

/// Breakdown of the generated tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MessageOutputDetails {
    /// Tokens of the reasoning, its tags included.
    pub thinking_tokens: usize,
}

/// An event of a streamed response; its type is also the event's name.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessageEvent {
    /// The first event.
    MessageStart {
        /// The response without content.
        message: MessageObject,
    },
    /// The beginning of a block.
    ContentBlockStart {
        /// Index among the blocks.
        index: usize,
        /// The block without content.
        content_block: OutputBlock,
    },
    /// More of a block.
    ContentBlockDelta {
        /// Index among the blocks.
        index: usize,
        /// The addition.
        delta: BlockDelta,
    },
    /// The end of a block.
    ContentBlockStop {
        /// Index among the blocks.
        index: usize,
    },
    /// The end of the content.
    MessageDelta {
        /// Why generation ended.
        delta: MessageEnd,
        /// Token counts of the whole request.
        usage: MessageUsage,
    },
    /// The last event.
    MessageStop,
    /// Keeps the connection alive.
    Ping,
    /// The response failed; the last event.
    #[serde(untagged)]
    Error(AnthropicErrorBody),
}

impl MessageEvent {
    /// The event's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Ping => "ping",
            Self::Error(_) => "error",
        }
    }
}

/// The part of a block that an event adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta {
    /// More text.
    TextDelta {
        /// Text to append.
        text: String,
    },
    /// More of a tool's input.
    InputJsonDelta {
        /// Text to append to the input's JSON.
        partial_json: String,
    },
    /// More reasoning.
    ThinkingDelta {
        /// Reasoning to append.
        thinking: String,
    },
    /// The signature of the reasoning.
    SignatureDelta {
        /// The signature.
        signature: String,
    },
}

/// Why generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MessageEnd {
    /// The reason.
    pub stop_reason: StopReason,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<String>,
}

/// The number of tokens of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TokenCount {
    /// Tokens of the prompt: of system, messages and tools.
    pub input_tokens: usize,
}
