//! Logs and metrics: their set-up, and every metric's name.

use std::io::{self, IsTerminal};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Requests whose client went away before the answer was whole.
pub const REQUESTS_CANCELLED: &str = "predict_otron_requests_cancelled_total";
/// Retries that took over what their first try began.
pub const RETRIES_JOINED: &str = "predict_otron_retries_joined_total";
/// Chat requests refused because the queue was full.
pub const REQUESTS_SHED: &str = "predict_otron_requests_shed_total";
/// Times that a running request gave its memory to an older one, to be computed again later.
pub const PREEMPTIONS: &str = "predict_otron_preemptions_total";
/// From a chat request's arrival to the first batch with some of it.
pub const QUEUE_SECONDS: &str = "predict_otron_queue_seconds";
/// From a chat request's arrival to its first token.
pub const FIRST_TOKEN_SECONDS: &str = "predict_otron_time_to_first_token_seconds";
/// From one token of a chat request to the next, on average.
pub const TOKEN_SECONDS: &str = "predict_otron_time_per_output_token_seconds";
/// From a chat request's arrival to its last token.
pub const REQUEST_SECONDS: &str = "predict_otron_request_seconds";
/// Tokens of a chat request's prompt.
pub const REQUEST_PROMPT_TOKENS: &str = "predict_otron_request_prompt_tokens";
/// Tokens of a chat request's answer.
pub const REQUEST_COMPLETION_TOKENS: &str = "predict_otron_request_completion_tokens";
/// Sequences of a batch.
pub const BATCH_SEQUENCES: &str = "predict_otron_batch_sequences";
/// Chat requests that wait, that are computed, and the share of the room for keys and values that those
/// take: under the names that routers of inference servers look for.
pub const WAITING: &str = "vllm:num_requests_waiting";
pub const RUNNING: &str = "vllm:num_requests_running";
pub const KV_USAGE: &str = "vllm:kv_cache_usage_perc";
/// Of the room for keys and values its labels tell the size.
pub const KV_CONFIG: &str = "vllm:cache_config_info";
/// Tokens of prompts computed.
pub const PROMPT_TOKENS: &str = "predict_otron_prompt_tokens_total";
/// Tokens of prompts whose keys and values were there already.
pub const PREFIX_CACHE_TOKENS: &str = "predict_otron_prefix_cache_tokens_total";
/// Tokens that were guessed and computed along, and of those what was right.
pub const DRAFT_TOKENS: &str = "predict_otron_draft_tokens_total";
pub const ACCEPTED_DRAFT_TOKENS: &str = "predict_otron_accepted_draft_tokens_total";
/// Chat requests that an earlier answer served, and those that it could have served had there been one.
pub const RESPONSE_HITS: &str = "predict_otron_response_cache_hits_total";
pub const RESPONSE_MISSES: &str = "predict_otron_response_cache_misses_total";
/// Bytes that the answers take which are kept.
pub const RESPONSE_BYTES: &str = "predict_otron_response_cache_bytes";
/// Tokens generated.
pub const COMPLETION_TOKENS: &str = "predict_otron_completion_tokens_total";
/// Sampling steps that reused the cached repeat-penalty tensor.
pub const REPEAT_PENALTY_HITS: &str = "predict_otron_repeat_penalty_cache_hits_total";
/// Elements of the cached repeat-penalty tensor that changed.
pub const REPEAT_PENALTY_UPDATES: &str = "predict_otron_repeat_penalty_cache_updates_total";
/// Sampling steps at repeat penalty 1, which do nothing.
pub const REPEAT_PENALTY_SKIPPED: &str = "predict_otron_repeat_penalty_skipped_total";
/// Time to tell which tokens a grammar allows next.
pub const MASK_SECONDS: &str = "predict_otron_mask_seconds";
/// Inputs of embeddings requests whose vectors were known.
pub const EMBEDDING_CACHE_HITS: &str = "predict_otron_embedding_cache_hits_total";
/// Bytes that the vectors take which are kept.
pub const EMBEDDING_CACHE_BYTES: &str = "predict_otron_embedding_cache_bytes";
/// Texts embedded.
pub const EMBEDDED_TEXTS: &str = "predict_otron_embedded_texts_total";
/// Tokens of texts embedded.
pub const EMBEDDED_TOKENS: &str = "predict_otron_embedded_tokens_total";

/// Upper bounds of the buckets of times.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// The same of numbers of tokens.
const COUNTS: [f64; 9] = [1.0, 8.0, 32.0, 128.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

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
    let buckets = |suffix: &str, buckets: &[f64]| (Matcher::Suffix(suffix.to_owned()), buckets.to_vec());
    let builder = [
        buckets("_seconds", &SECONDS),
        buckets("_tokens", &COUNTS),
        buckets("_sequences", &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]),
    ]
    .into_iter()
    // Only an empty list of buckets is refused.
    .try_fold(PrometheusBuilder::new(), |builder, (names, buckets)| {
        builder.set_buckets_for_metric(names, &buckets)
    })
    .unwrap_or_default();
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    let descriptions = [
        (REQUESTS_CANCELLED, "Requests whose client went away before the answer was whole"),
        (RETRIES_JOINED, "Retries that took over what their first try began"),
        (REQUESTS_SHED, "Chat requests refused because the queue was full"),
        (PREEMPTIONS, "Times that a running request gave its memory to an older one"),
        (PROMPT_TOKENS, "Tokens of prompts computed"),
        (PREFIX_CACHE_TOKENS, "Tokens of prompts whose keys and values were there already"),
        (DRAFT_TOKENS, "Tokens that were guessed from the text so far and computed along"),
        (ACCEPTED_DRAFT_TOKENS, "Guessed tokens that were right"),
        (RESPONSE_HITS, "Chat requests that an earlier answer served"),
        (RESPONSE_MISSES, "Chat requests that no earlier answer was there for"),
        (COMPLETION_TOKENS, "Tokens generated"),
        (REPEAT_PENALTY_HITS, "Sampling steps that reused the cached repeat-penalty tensor"),
        (REPEAT_PENALTY_UPDATES, "Elements of the cached repeat-penalty tensor that changed"),
        (REPEAT_PENALTY_SKIPPED, "Sampling steps at repeat penalty 1, which do nothing"),
        (EMBEDDING_CACHE_HITS, "Inputs of embeddings requests whose vectors were known"),
        (EMBEDDED_TEXTS, "Texts embedded"),
        (EMBEDDED_TOKENS, "Tokens of texts embedded"),
    ];
    if metrics::set_global_recorder(recorder).is_ok() {
        for (name, description) in descriptions {
            metrics::describe_counter!(name, description);
        }
        for (name, description) in [
            (QUEUE_SECONDS, "From a chat request's arrival to the first batch with some of it"),
            (FIRST_TOKEN_SECONDS, "From a chat request's arrival to its first token"),
            (TOKEN_SECONDS, "From one token of a chat request to the next, on average"),
            (REQUEST_SECONDS, "From a chat request's arrival to its last token"),
            (REQUEST_PROMPT_TOKENS, "Tokens of a chat request's prompt"),
            (REQUEST_COMPLETION_TOKENS, "Tokens of a chat request's answer"),
            (BATCH_SEQUENCES, "Sequences of a batch"),
            (MASK_SECONDS, "Time to tell which tokens a grammar allows next"),
        ] {
            metrics::describe_histogram!(name, description);
        }
        for (name, description) in [
            (WAITING, "Chat requests that wait"),
            (RUNNING, "Chat requests that are computed"),
            (KV_USAGE, "Share of the room for keys and values that running requests use"),
            (RESPONSE_BYTES, "Bytes that the answers take which are kept to be given again"),
            (EMBEDDING_CACHE_BYTES, "Bytes that the vectors take which are kept to be given again"),
            (KV_CONFIG, "Size of the room for keys and values, in its labels"),
        ] {
            metrics::describe_gauge!(name, description);
        }
    }
    handle
}
