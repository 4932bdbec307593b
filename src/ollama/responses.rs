//! Responses of Ollama's API: whole ones, and the lines of streamed ones.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::openai::call_arguments::complete_arguments;
use crate::openai::chat::{FinishReason, TokenLogprob, ToolCall, Usage};

/// A response, or a line of a streamed one.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "{S}Response")]
pub struct OllamaResponse<S> {
    /// Id of the model that answers.
    pub model: String,
    /// Time of the response or line, as in RFC 3339.
    pub created_at: String,
    /// The text.
    #[serde(flatten)]
    pub surface: S,
    /// Log probabilities of the tokens, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Whether the response is complete.
    pub done: bool,
    /// The end of a complete response.
    #[serde(flatten)]
    pub end: Option<OllamaEnd>,
}

/// The part of a response that only `/api/chat` has.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OllamaChat {
    /// The message, or what a line adds to it.
    pub message: OutputMessage,
}

/// The part of a response that only `/api/generate` has.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OllamaText {
    /// The text, or what a line adds to it.
    pub response: String,
    /// The reasoning that precedes the text, or what a line adds to it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
}

/// A message of the model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OutputMessage {
    /// Always `assistant`.
    #[schemars(extend("const" = "assistant"))]
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// The reasoning that precedes the text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// Calls of functions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<OutputToolCall>,
}

/// A call of a function.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OutputToolCall {
    /// Id that the message with the result may refer to.
    pub id: String,
    /// The function's name and arguments.
    pub function: OutputFunctionCall,
}

/// A function's name and the arguments of one call.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OutputFunctionCall {
    /// The function's name.
    pub name: String,
    /// The arguments.
    pub arguments: Map<String, Value>,
}

/// The end of a response. Durations are in nanoseconds.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OllamaEnd {
    /// Why generation ended.
    pub done_reason: DoneReason,
    /// Time from the request to the end.
    pub total_duration: u64,
    /// Time for which the request waited for the model to be loaded.
    pub load_duration: u64,
    /// Tokens of the prompt, those found in the prefix cache included.
    pub prompt_eval_count: usize,
    /// Time in which the prompt was computed; 0 for a response from the response cache.
    pub prompt_eval_duration: u64,
    /// Generated tokens.
    pub eval_count: usize,
    /// Time from the first generated token to the last; 0 for a response from the response cache.
    pub eval_duration: u64,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DoneReason {
    /// The model ended it, or a stop string occurred.
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
    /// Only the model was to be loaded.
    Load,
}

/// The vectors of `/api/embed`, in the order of the texts.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OllamaEmbedResponse {
    /// The vectors, of length 1.
    pub embeddings: Vec<Vec<f32>>,
    /// Id of the model.
    pub model: String,
    /// Nanoseconds from the request to the response.
    pub total_duration: u64,
    /// Nanoseconds for which the request waited for the model to be loaded.
    pub load_duration: u64,
    /// Tokens of all texts.
    pub prompt_eval_count: usize,
}

/// The vector of `/api/embeddings`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct OllamaEmbeddingsResponse {
    /// The vector, of length 1; empty if only the model was to be loaded.
    pub embedding: Vec<f32>,
}

/// A part of a generation.
#[derive(Debug, Default)]
pub struct OllamaParts {
    /// Text.
    pub text: String,
    /// Reasoning.
    pub thinking: String,
    /// Complete calls.
    pub calls: Vec<ToolCall>,
}

/// How long the phases of a request took.
#[derive(Debug, Clone, Copy, Default)]
pub struct OllamaTimes {
    /// All of it.
    pub total: Duration,
    /// Loading the model.
    pub load: Duration,
    /// Computing the prompt.
    pub prefill: Duration,
    /// Generating.
    pub decode: Duration,
}

impl OllamaParts {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.thinking.is_empty() && self.calls.is_empty()
    }
}

impl OllamaEnd {
    /// The end of a generation, or of a request that only loaded the model and so has no finish reason.
    pub fn new(reason: Option<FinishReason>, usage: &Usage, times: OllamaTimes) -> Self {
        Self {
            done_reason: match reason {
                None => DoneReason::Load,
                Some(FinishReason::Stop | FinishReason::ToolCalls) => DoneReason::Stop,
                Some(FinishReason::Length) => DoneReason::Length,
            },
            total_duration: nanoseconds(times.total),
            load_duration: nanoseconds(times.load),
            prompt_eval_count: usage.prompt_tokens,
            prompt_eval_duration: nanoseconds(times.prefill),
            eval_count: usage.completion_tokens,
            eval_duration: nanoseconds(times.decode),
        }
    }
}

impl From<ToolCall> for OutputToolCall {
    fn from(call: ToolCall) -> Self {
        let arguments = complete_arguments(&call.function.arguments);
        Self { id: call.id, function: OutputFunctionCall { name: call.function.name, arguments } }
    }
}

/// A duration in nanoseconds, which fit for 584 years.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
