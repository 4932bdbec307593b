//! Logs and metrics: their set-up, and every metric's name.

use std::io::{self, IsTerminal};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Requests whose client went away before the answer was whole.
pub const REQUESTS_CANCELLED: &str = "predict_otron_requests_cancelled_total";
/// Tokens of prompts computed.
pub const PROMPT_TOKENS: &str = "predict_otron_prompt_tokens_total";
/// Tokens of prompts whose keys and values were there already.
pub const PREFIX_CACHE_TOKENS: &str = "predict_otron_prefix_cache_tokens_total";
/// Tokens generated.
pub const COMPLETION_TOKENS: &str = "predict_otron_completion_tokens_total";
/// Sampling steps that reused the cached repeat-penalty tensor.
pub const REPEAT_PENALTY_HITS: &str = "predict_otron_repeat_penalty_cache_hits_total";
/// Elements of the cached repeat-penalty tensor that changed.
pub const REPEAT_PENALTY_UPDATES: &str = "predict_otron_repeat_penalty_cache_updates_total";
/// Sampling steps at repeat penalty 1, which do nothing.
pub const REPEAT_PENALTY_SKIPPED: &str = "predict_otron_repeat_penalty_skipped_total";
/// Texts embedded.
pub const EMBEDDED_TEXTS: &str = "predict_otron_embedded_texts_total";
/// Tokens of texts embedded.
pub const EMBEDDED_TOKENS: &str = "predict_otron_embedded_tokens_total";

/// Starts logging to stderr at the level `RUST_LOG` asks for, `info` by default.
pub fn start_logging() {
    // What these crates have to say reaches the user through our own errors.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,hf_hub=off,ort=warn,tokenizers=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Starts collecting metrics. The handle renders them in Prometheus' text format; one that is
/// made after the first in a process renders nothing.
pub fn start_metrics() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let descriptions = [
        (REQUESTS_CANCELLED, "Requests whose client went away before the answer was whole"),
        (PROMPT_TOKENS, "Tokens of prompts computed"),
        (PREFIX_CACHE_TOKENS, "Tokens of prompts whose keys and values were there already"),
        (COMPLETION_TOKENS, "Tokens generated"),
        (REPEAT_PENALTY_HITS, "Sampling steps that reused the cached repeat-penalty tensor"),
        (REPEAT_PENALTY_UPDATES, "Elements of the cached repeat-penalty tensor that changed"),
        (REPEAT_PENALTY_SKIPPED, "Sampling steps at repeat penalty 1, which do nothing"),
        (EMBEDDED_TEXTS, "Texts embedded"),
        (EMBEDDED_TOKENS, "Tokens of texts embedded"),
    ];
    if metrics::set_global_recorder(recorder).is_ok() {
        for (name, description) in descriptions {
            metrics::describe_counter!(name, description);
        }
    }
    handle
}
