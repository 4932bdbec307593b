//! `GET /v1/usage`: the requests and tokens of the client's key, in the form of OpenAI's usage pages.

use schemars::JsonSchema;
use serde::Serialize;

/// Usage by day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UsagePage {
    /// Always `page`.
    #[schemars(extend("const" = "page"))]
    pub object: &'static str,
    /// The days, the oldest first.
    pub data: Vec<UsageBucket>,
    /// Whether there are later days.
    pub has_more: bool,
    /// The `start_time` of the next page, as text.
    pub next_page: Option<String>,
}

/// The usage of one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UsageBucket {
    /// Always `bucket`.
    #[schemars(extend("const" = "bucket"))]
    pub object: &'static str,
    /// The beginning of the day in UTC, in Unix seconds.
    pub start_time: u64,
    /// The beginning of the next day.
    pub end_time: u64,
    /// The usage of each model that was used.
    pub results: Vec<UsageResult>,
}

/// The usage of one model on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UsageResult {
    /// Always `organization.usage.completions.result`, for embeddings too.
    #[schemars(extend("const" = "organization.usage.completions.result"))]
    pub object: &'static str,
    /// Id of the model.
    pub model: String,
    /// Name of the key.
    pub api_key_id: String,
    /// Requests.
    pub num_model_requests: u64,
    /// Tokens of prompts and inputs, cached ones included.
    pub input_tokens: u64,
    /// Input tokens that were found in the prefix cache.
    pub input_cached_tokens: u64,
    /// Generated tokens.
    pub output_tokens: u64,
}
