//! What is known and stored of a batch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::openai::batches::{BatchError, BatchTokens};

/// How long batches and their results are kept, in seconds, unless the client says otherwise: 30 days.
pub const RESULTS_TTL: u64 = 30 * 24 * 3600;

/// A batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BatchRecord {
    /// Unique id.
    pub id: String,
    /// The tenant that it belongs to.
    pub owner: String,
    /// The API that it was created by.
    pub api: BatchApi,
    /// The path that its requests are for.
    pub endpoint: String,
    /// The id of the file with its requests.
    pub input_file: String,
    /// The time it may take, as the client wrote it.
    pub completion_window: String,
    /// The client's pairs of a key and a text.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How long the files with its results are kept, in seconds.
    pub results_ttl: u64,
    /// Its state.
    pub state: BatchState,
    /// When it came to each state, as Unix times in seconds.
    pub times: BTreeMap<BatchState, u64>,
    /// Unix time by which it ends, in seconds.
    pub expires_at: u64,
    /// The model of its first request.
    pub model: Option<String>,
    /// Its requests, by how they ended.
    pub counts: BatchCounts,
    /// The tokens of all responses.
    pub usage: BatchTokens,
    /// Why it has failed.
    pub errors: Vec<BatchError>,
    /// The results, or those that succeeded.
    pub results: ResultFile,
    /// The results of requests that failed.
    pub failures: ResultFile,
}

/// An API that has batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchApi {
    /// `/v1/batches`.
    OpenAi,
    /// `/v1/messages/batches`.
    Anthropic,
}

/// The state of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// Its lines are checked.
    Validating,
    /// Its requests are answered.
    InProgress,
    /// Its client wants no more of it.
    Cancelling,
    /// Its results become files.
    Finalizing,
    /// All requests are answered.
    Completed,
    /// It has ended because its client wanted no more of it.
    Cancelled,
    /// Its time was over.
    Expired,
    /// It could not be carried out.
    Failed,
}

/// Requests of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchCounts {
    /// All.
    pub total: u64,
    /// Requests that were answered with a response.
    pub succeeded: u64,
    /// Requests that were answered with an error.
    pub errored: u64,
    /// Requests that a cancellation left unanswered.
    pub cancelled: u64,
    /// Requests that were left unanswered when time was over.
    pub expired: u64,
}

/// A file of results that a batch writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResultFile {
    /// Its id.
    pub id: String,
    /// Its bytes so far.
    pub n_bytes: u64,
}

/// The server's answer to a request.
#[derive(Debug, Clone)]
pub struct CallResult {
    /// The status of HTTP.
    pub status: u16,
    /// The id of the request in the log.
    pub request_id: String,
    /// The JSON of the response or the error.
    pub body: Vec<u8>,
}

impl BatchState {
    /// Whether nothing more happens to the batch.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Expired | Self::Failed)
    }
}

impl CallResult {
    /// Whether it is a response rather than an error.
    pub fn is_success(&self) -> bool {
        self.status < 400
    }

    /// Whether the server may answer later.
    pub fn is_too_busy(&self) -> bool {
        matches!(self.status, 429 | 503)
    }
}

impl BatchRecord {
    /// A batch of `owner`, created at `now`, that may take `seconds`.
    pub fn new(api: BatchApi, owner: &str, endpoint: &str, seconds: u64, now: u64) -> Self {
        let id = match api {
            BatchApi::OpenAi => format!("batch_{}", Uuid::new_v4().simple()),
            BatchApi::Anthropic => format!("msgbatch_{}", Uuid::new_v4().simple()),
        };
        let result_file = || ResultFile { id: new_file_id(), n_bytes: 0 };
        Self {
            id,
            owner: owner.to_owned(),
            api,
            endpoint: endpoint.to_owned(),
            input_file: new_file_id(),
            completion_window: String::new(),
            metadata: None,
            results_ttl: RESULTS_TTL,
            state: BatchState::Validating,
            times: BTreeMap::from([(BatchState::Validating, now)]),
            expires_at: now + seconds,
            model: None,
            counts: BatchCounts::default(),
            usage: BatchTokens::default(),
            errors: Vec::new(),
            results: result_file(),
            failures: result_file(),
        }
    }

    /// Changes the state.
    pub fn enter(&mut self, state: BatchState, now: u64) {
        self.state = state;
        self.times.insert(state, now);
    }

    /// Unix time at which it was created, in seconds.
    pub fn created_at(&self) -> u64 {
        self.times.get(&BatchState::Validating).copied().unwrap_or_default()
    }

    /// Adds the usage of a response, in the form of any API.
    pub fn add_usage(&mut self, usage: &Value) {
        let count = |names: [&str; 2]| names.iter().find_map(|name| usage[*name].as_u64()).unwrap_or(0);
        let detail = |names: [&str; 2], detail: &str| {
            names.iter().find_map(|name| usage[*name][detail].as_u64()).unwrap_or(0)
        };
        let input = count(["input_tokens", "prompt_tokens"]);
        let output = count(["output_tokens", "completion_tokens"]);
        self.usage.input_tokens += input;
        self.usage.output_tokens += output;
        self.usage.total_tokens += input + output;
        self.usage.input_tokens_details.cached_tokens +=
            detail(["input_tokens_details", "prompt_tokens_details"], "cached_tokens");
        self.usage.output_tokens_details.reasoning_tokens +=
            detail(["output_tokens_details", "completion_tokens_details"], "reasoning_tokens");
    }
}

/// A new, unique id of a file.
pub fn new_file_id() -> String {
    format!("file-{}", Uuid::new_v4().simple())
}
