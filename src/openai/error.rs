//! The error envelope: `{"error": {"message", "type", "param", "code"}}`, with all keys always present.

use schemars::JsonSchema;
use serde::Serialize;

/// The body of every error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ErrorObject {
    /// The problem and its remedy.
    pub message: String,
    /// Class of the error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The parameter at fault, if any.
    pub param: Option<String>,
    /// A code for programs, if the error has one.
    pub code: Option<&'static str>,
}
