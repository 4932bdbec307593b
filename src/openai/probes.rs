//! What operators and routers read: `/health`, `/livez`, `/readyz` and `/v1/loads`.

use schemars::JsonSchema;
use serde::Serialize;

/// All is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Health {
    #[schemars(extend("const" = "ok"))]
    pub status: &'static str,
}

/// How busy each chat model is.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Loads {
    /// When, in RFC 3339.
    pub timestamp: String,
    pub dp_rank_count: usize,
    pub loads: Vec<Load>,
}

/// How busy a chat model is.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Load {
    /// Its place among them.
    pub dp_rank: usize,
    pub num_running_reqs: usize,
    pub num_waiting_reqs: usize,
    /// Prompt tokens of those that wait.
    pub num_waiting_uncached_tokens: usize,
    pub num_total_reqs: usize,
    /// Tokens whose keys and values are held.
    pub num_used_tokens: usize,
    /// Tokens that there is room for.
    pub max_total_num_tokens: usize,
    /// The share of that room that is used, from 0 to 1.
    pub token_usage: f64,
    /// Tokens generated a second, of late.
    pub gen_throughput: f64,
    /// Share of prompt tokens that were there already.
    pub cache_hit_rate: f64,
    /// Share of the requests it could compute at once.
    pub utilization: f64,
    pub max_running_requests: usize,
}
