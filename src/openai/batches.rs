//! Wire types of `/v1/batches`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request to answer the requests of a file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct BatchRequest {
    /// Id of the file: one request per line, each an object with `custom_id`, `method`, `url` and `body`.
    pub input_file_id: String,
    /// The path that all requests are for: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`,
    /// `/v1/responses` or `/v1/decisions`.
    #[schemars(example = &"/v1/chat/completions")]
    pub endpoint: String,
    /// The time the batch may take, in hours: `1h` to `168h`.
    #[schemars(example = &"24h")]
    pub completion_window: String,
    /// Up to 16 pairs of a key and a text.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 16))]
    pub metadata: Option<BTreeMap<String, String>>,
    /// How long the files with the results are kept.
    #[serde(default)]
    pub output_expires_after: Option<ExpiresAfter>,
}

/// A time to live.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub struct ExpiresAfter {
    /// Always `created_at`.
    #[schemars(extend("const" = "created_at"))]
    pub anchor: String,
    /// Seconds, from 3,600 to 2,592,000.
    #[schemars(range(min = 3600, max = 2_592_000))]
    pub seconds: u64,
}

/// A batch.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct BatchObject {
    /// Unique id of the batch.
    pub id: String,
    /// Always `batch`.
    #[schemars(extend("const" = "batch"))]
    pub object: &'static str,
    /// The path that its requests are for.
    pub endpoint: String,
    /// The model of its first request.
    pub model: Option<String>,
    /// Why it has failed.
    pub errors: Option<BatchErrors>,
    /// Id of the file with its requests.
    pub input_file_id: String,
    /// The time it may take.
    pub completion_window: String,
    /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`, `cancelling` or `cancelled`.
    pub status: String,
    /// Id of the file with the responses, once it has ended.
    pub output_file_id: Option<String>,
    /// Id of the file with the errors, once it has ended.
    pub error_file_id: Option<String>,
    /// Unix time at which it was created, in seconds; so are all others.
    pub created_at: u64,
    /// When its requests began to be answered.
    pub in_progress_at: Option<u64>,
    /// When it ends at the latest.
    pub expires_at: u64,
    /// When its results became files.
    pub finalizing_at: Option<u64>,
    /// When all requests were answered.
    pub completed_at: Option<u64>,
    /// When it failed.
    pub failed_at: Option<u64>,
    /// When its time was over.
    pub expired_at: Option<u64>,
    /// When the client wanted no more of it.
    pub cancelling_at: Option<u64>,
    /// When it had ended because of that.
    pub cancelled_at: Option<u64>,
    /// Its requests.
    pub request_counts: RequestCounts,
    /// The tokens of all responses so far.
    pub usage: BatchTokens,
    /// Pairs of a key and a text.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Requests of a batch.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct RequestCounts {
    /// All.
    pub total: u64,
    /// Requests that were answered with a response.
    pub completed: u64,
    /// Requests that were answered with an error, or left unanswered.
    pub failed: u64,
}

/// Why a batch has failed.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct BatchErrors {
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: &'static str,
    /// The errors; only the first of many.
    pub data: Vec<BatchError>,
}

/// A mistake in a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchError {
    /// A name for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// The line at fault, from 1.
    pub line: Option<u64>,
}

/// Tokens of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchTokens {
    /// Tokens of the prompts or inputs.
    pub input_tokens: u64,
    /// Parts of the input tokens.
    pub input_tokens_details: CachedTokens,
    /// Tokens that were generated.
    pub output_tokens: u64,
    /// Parts of the output tokens.
    pub output_tokens_details: ReasoningTokens,
    /// Both together.
    pub total_tokens: u64,
}

/// Input tokens that were found in a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CachedTokens {
    /// Tokens found in the prefix cache.
    pub cached_tokens: u64,
}

/// Generated tokens that are no part of the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReasoningTokens {
    /// Tokens of the reasoning.
    pub reasoning_tokens: u64,
}
