//! Anthropic's error envelope: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

use schemars::JsonSchema;
use serde::Serialize;

/// The body of every error response, and the data of an `error` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AnthropicErrorBody {
    /// Always `error`.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "error"))]
    pub kind: &'static str,
    /// The error.
    pub error: AnthropicErrorObject,
    /// The id of the request in the server's log.
    pub request_id: Option<String>,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AnthropicErrorObject {
    /// Class of the error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The problem and its remedy.
    pub message: String,
    /// A code for programs, if the error has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<AnthropicErrorDetails>,
}

/// The part of an error that programs read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AnthropicErrorDetails {
    /// The name of the cause, such as `model_not_found`.
    pub error_code: &'static str,
}
