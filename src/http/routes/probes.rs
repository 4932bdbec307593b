//! Probes, metrics and load for operators and load balancers.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::http::error::ApiError;
use crate::openai::probes::{Health, Load, Loads};

const OK: Health = Health { status: "ok" };

/// 200 while the server is ready for requests, otherwise 503 with the reason.
pub async fn health(State(app): State<App>) -> Response {
    match app.check_health() {
        Ok(()) => Json(OK).into_response(),
        Err(e) => ApiError::from(e).into_response(),
    }
}

/// 200 while the process responds.
pub async fn alive() -> Json<Health> {
    Json(OK)
}

/// The load of each chat model, in the form in which SGLang reports it to load balancers.
pub async fn loads(State(app): State<App>) -> Json<Loads> {
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let statuses = app.chat_status().into_iter().enumerate();
    let loads: Vec<Load> = statuses
        .map(|(rank, (slot, status))| Load {
            dp_rank: rank,
            model: slot.served().id().to_owned(),
            num_running_reqs: status.load.n_running,
            num_waiting_reqs: status.load.n_waiting,
            num_waiting_uncached_tokens: status.load.n_waiting_tokens,
            num_total_reqs: status.load.n_running + status.load.n_waiting,
            num_used_tokens: status.load.used_tokens(),
            max_total_num_tokens: status.load.capacity_tokens(),
            token_usage: status.load.kv_usage,
            gen_throughput: status.tokens_per_second,
            cache_hit_rate: share(status.n_cached_tokens as f64, status.n_prompt_tokens as f64),
            utilization: share(status.load.n_running as f64, status.max_running as f64),
            max_running_requests: status.max_running,
        })
        .collect();
    Json(Loads { timestamp: jiff::Timestamp::now().to_string(), dp_rank_count: loads.len(), loads })
}

/// Metrics in the Prometheus text format.
pub async fn metrics(State(app): State<App>) -> String {
    app.render_metrics()
}
