//! `/health`, `/livez`, `/readyz` and `/v1/loads`, for operators and load balancers.

use schemars::JsonSchema;
use serde::Serialize;

/// The response of a healthy server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Health {
    /// Always `ok`.
    #[schemars(extend("const" = "ok"))]
    pub status: &'static str,
}

/// The load of each chat model. The field names are SGLang's.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Loads {
    /// Time of the measurement, as in RFC 3339.
    pub timestamp: String,
    /// Number of chat models in memory.
    pub dp_rank_count: usize,
    /// The load of each.
    pub loads: Vec<Load>,
}

/// The load of a chat model.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Load {
    /// Index of the model.
    pub dp_rank: usize,
    /// Id of the model.
    pub model: String,
    /// Running requests.
    pub num_running_reqs: usize,
    /// Queued requests.
    pub num_waiting_reqs: usize,
    /// Prompt tokens of queued requests.
    pub num_waiting_uncached_tokens: usize,
    /// Running and queued requests.
    pub num_total_reqs: usize,
    /// Tokens in the KV cache that running requests use.
    pub num_used_tokens: usize,
    /// Capacity of the KV cache in tokens.
    pub max_total_num_tokens: usize,
    /// Share of the KV cache in use, from 0 to 1.
    pub token_usage: f64,
    /// Recent throughput in generated tokens per second.
    pub gen_throughput: f64,
    /// Share of prompt tokens that were found in the prefix cache.
    pub cache_hit_rate: f64,
    /// Running requests as a share of `max_running_requests`.
    pub utilization: f64,
    /// The most requests that can run at once.
    pub max_running_requests: usize,
}
