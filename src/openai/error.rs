//! The error envelope: `{"error": {"message", "type", "param", "code"}}`, all keys always there.

use schemars::JsonSchema;
use serde::Serialize;

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ErrorBody {
    pub error: ErrorObject,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ErrorObject {
    /// What went wrong, and what to do.
    pub message: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The parameter at fault, if it is one.
    pub param: Option<String>,
    pub code: Option<&'static str>,
}
