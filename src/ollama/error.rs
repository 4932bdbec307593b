//! Ollama's error envelope: `{"error": "message"}`.

use schemars::JsonSchema;
use serde::Serialize;

/// The body of every error response, and the last line of a stream that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OllamaErrorBody {
    /// The problem and its remedy.
    pub error: String,
}
