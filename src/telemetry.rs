//! Logging and metrics: their set-up, and the table of all metrics.

mod log_writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::error::{Error, Result, quote};
use log_writer::LogWriter;

/// The kind of a metric.
enum MetricKind {
    /// A counter without labels; it is 0 until something is counted.
    Counter,
    /// A counter with labels.
    CounterFamily,
    Gauge,
    Histogram,
}

/// Declares each metric once: a constant with its name, documented by its help text, and a row of [`METRICS`].
macro_rules! metrics_table {
    ($($kind:ident $id:ident = $name:literal, $help:literal;)+) => {
        $(#[doc = $help] pub const $id: &str = $name;)+

        /// The kind, name and help text of every metric.
        const METRICS: &[(MetricKind, &str, &str)] = &[$((MetricKind::$kind, $id, $help)),+];
    };
}

// The names that begin with `vllm:` are those that load balancers for inference servers look for.
metrics_table! {
    Gauge WAITING = "vllm:num_requests_waiting",
        "Chat requests in the queue.";
    Gauge RUNNING = "vllm:num_requests_running",
        "Chat requests that are running.";
    Gauge KV_USAGE = "vllm:kv_cache_usage_perc",
        "Share of the KV cache that running requests use, from 0 to 1.";
    Gauge KV_CONFIG = "vllm:cache_config_info",
        "Size of the KV cache, in the labels.";
    Gauge PROCESS_START = "process_start_time_seconds",
        "Start of the process in Unix seconds.";
    Counter REQUESTS_CANCELLED = "predict_otron_requests_cancelled_total",
        "Requests whose client disconnected before the response was complete.";
    Counter REQUESTS_SHED = "predict_otron_requests_shed_total",
        "Requests refused because a queue was full.";
    Counter REQUESTS_RATE_LIMITED = "predict_otron_requests_rate_limited_total",
        "Requests refused because their key exceeded a limit of its own.";
    CounterFamily KEY_REQUESTS = "predict_otron_key_requests_total",
        "Requests by name of the API key.";
    CounterFamily KEY_TOKENS = "predict_otron_key_tokens_total",
        "Tokens by name of the API key and kind: `prompt` or `completion`.";
    Gauge REQUESTS_IN_PROGRESS = "predict_otron_requests_in_progress",
        "Requests admitted and not yet answered, by class.";
    Gauge BODY_BYTES = "predict_otron_request_body_bytes",
        "Bytes of the bodies of requests in progress, by class.";
    Gauge PREPARATIONS_WAITING = "predict_otron_preparations_waiting",
        "Requests that wait to be rendered or tokenized, by queue.";
    Counter ENGINE_RESTARTS = "predict_otron_engine_restarts_total",
        "Restarts of an engine after a fault that ended all its requests.";
    Counter RETRIES_JOINED = "predict_otron_retries_joined_total",
        "Retries that joined a running attempt.";
    Gauge CONNECTIONS = "predict_otron_connections",
        "Open connections by phase: `new`, `head`, `serving`, `sending` or `idle`.";
    CounterFamily CONNECTIONS_CLOSED = "predict_otron_connections_closed_total",
        "Connections closed for being slow, idle for long, or in the way of others, by reason.";
    Counter CONNECTIONS_REFUSED = "predict_otron_connections_refused_total",
        "Connections beyond the limits, on which only probes were answered or nothing.";
    Counter PREEMPTIONS = "predict_otron_preemptions_total",
        "Running chat requests preempted for lack of KV cache blocks, to be recomputed later.";
    Histogram QUEUE_SECONDS = "predict_otron_queue_seconds",
        "Time from a chat request's arrival to its first batch.";
    Histogram FIRST_TOKEN_SECONDS = "predict_otron_time_to_first_token_seconds",
        "Time from a chat request's arrival to its first token.";
    Histogram TOKEN_SECONDS = "predict_otron_time_per_output_token_seconds",
        "Mean time between the tokens of a chat request.";
    Histogram REQUEST_SECONDS = "predict_otron_request_seconds",
        "Time from a chat request's arrival to its last token.";
    Histogram REQUEST_PROMPT_TOKENS = "predict_otron_request_prompt_tokens",
        "Prompt tokens of a chat request.";
    Histogram REQUEST_COMPLETION_TOKENS = "predict_otron_request_completion_tokens",
        "Completion tokens of a chat request.";
    Histogram BATCH_SEQUENCES = "predict_otron_batch_sequences",
        "Sequences in a batch.";
    Counter PROMPT_TOKENS = "predict_otron_prompt_tokens_total",
        "Prompt tokens, cached ones included.";
    Counter PREFIX_CACHE_TOKENS = "predict_otron_prefix_cache_tokens_total",
        "Prompt tokens found in the prefix cache.";
    Counter COMPLETION_TOKENS = "predict_otron_completion_tokens_total",
        "Generated tokens.";
    Counter DRAFT_TOKENS = "predict_otron_draft_tokens_total",
        "Draft tokens proposed by speculative decoding.";
    Counter ACCEPTED_DRAFT_TOKENS = "predict_otron_accepted_draft_tokens_total",
        "Draft tokens accepted.";
    Counter REPEAT_PENALTY_HITS = "predict_otron_repeat_penalty_cache_hits_total",
        "Sampling steps that reused the cached repeat-penalty tensor.";
    Counter REPEAT_PENALTY_UPDATES = "predict_otron_repeat_penalty_cache_updates_total",
        "Elements of the cached repeat-penalty tensor that changed.";
    Counter REPEAT_PENALTY_SKIPPED = "predict_otron_repeat_penalty_skipped_total",
        "Sampling steps with a repeat penalty of 1, which has no effect.";
    Histogram MASK_SECONDS = "predict_otron_mask_seconds",
        "Time to compute a grammar's token mask.";
    Histogram GRAMMAR_COMPILE_SECONDS = "predict_otron_grammar_compile_seconds",
        "Time to compile a grammar that is not in the cache.";
    Counter GRAMMAR_CACHE_HITS = "predict_otron_grammar_cache_hits_total",
        "Requests whose grammar had been compiled, or refused, before.";
    Counter RESPONSE_HITS = "predict_otron_response_cache_hits_total",
        "Chat requests served from the response cache.";
    Counter RESPONSE_MISSES = "predict_otron_response_cache_misses_total",
        "Chat requests that could be cached but were not found in the response cache.";
    Gauge RESPONSE_BYTES = "predict_otron_response_cache_bytes",
        "Size of the response cache in bytes.";
    Counter EMBEDDING_REQUESTS_SHED = "predict_otron_embedding_requests_shed_total",
        "Embedding and scoring requests refused because the queue was full or they waited too long.";
    Counter EMBEDDED_TEXTS = "predict_otron_embedded_texts_total",
        "Texts embedded, without those found in the cache.";
    Counter EMBEDDED_TOKENS = "predict_otron_embedded_tokens_total",
        "Tokens of embedded texts.";
    CounterFamily EMBEDDING_CACHE_HITS = "predict_otron_embedding_cache_hits_total",
        "Texts found in the embedding cache.";
    Counter EMBEDDING_CACHE_FAILURES = "predict_otron_embedding_cache_failures_total",
        "Failed attempts to write or open the embedding cache on disk.";
    Gauge EMBEDDING_CACHE_BYTES = "predict_otron_embedding_cache_bytes",
        "Size of the embedding cache in bytes.";
    Counter LOG_LINES_DROPPED = "predict_otron_log_lines_dropped_total",
        "Log lines dropped because stderr was not read.";
}

/// Upper bounds of the buckets of durations, in seconds.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Upper bounds of the buckets of token counts.
const TOKENS: [f64; 9] = [1.0, 8.0, 32.0, 128.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];
/// Upper bounds of the buckets of batch sizes.
const SEQUENCES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// The log, once it has started.
static LOG: OnceLock<(LogWriter, LogFormat)> = OnceLock::new();

/// Time for the last log lines at the end of the process, if stderr is not read.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Starts logging to stderr at the level of `RUST_LOG`, or `level` if that is not set. Panics are logged, too: the default
/// hook would block where nobody reads stderr.
///
/// # Errors
/// When the log's thread cannot be started.
pub fn start_logging(format: LogFormat, level: &str) -> Result<()> {
    // These crates' problems reach the user through our own errors.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},hf_hub=off,ort=warn,tokenizers=error")));
    let has_colors = format == LogFormat::Text && io::stderr().is_terminal();
    let writer = LogWriter::spawn(raw_stderr(), has_colors, LOG_LINES_DROPPED)
        .map_err(|e| Error::internal(format!("cannot start the log's thread: {e}")))?;
    let (writer, _) = LOG.get_or_init(|| (writer, format));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone());
    match format {
        LogFormat::Text => builder.with_ansi(has_colors).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).init(),
    }
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Stderr without the lock of [`io::stderr`], which a writer that waits for a reader would hold.
fn raw_stderr() -> Box<dyn Write + Send> {
    match io::stderr().as_fd().try_clone_to_owned() {
        Ok(stderr) => Box::new(File::from(stderr)),
        Err(_) => Box::new(io::stderr()),
    }
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    // The message may quote a request.
    let message = quote(info.payload_as_str().unwrap_or("no message"));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread, location, %backtrace, "panicked: {message}");
    } else {
        tracing::error!(thread, location, "panicked: {message}");
    }
}

/// Prints lines for the user on stderr, or logs them if the log has a format for machines.
pub fn print_lines(text: &str) {
    match LOG.get() {
        Some((_, LogFormat::Json)) => tracing::info!("{text}"),
        Some((writer, LogFormat::Text)) => text.lines().for_each(|line| writer.write_line(line)),
        None => eprintln!("{text}"),
    }
}

/// Prints the error that ends the process.
pub fn print_error(error: &Error) {
    match LOG.get() {
        Some((_, LogFormat::Json)) => tracing::error!("{error}"),
        _ => print_lines(&format!("error: {error}")),
    }
    flush_log();
}

/// Waits shortly until all lines of the log are written, before the process ends.
pub fn flush_log() {
    if let Some((writer, _)) = LOG.get() {
        writer.flush(FLUSH_TIMEOUT);
    }
}

/// Interval at which recorded values of histograms are sorted into their buckets. Between two times every value
/// takes memory of its own, whether or not anybody reads the metrics.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Starts collecting metrics. The handle renders them in the Prometheus text format. Only the first handle of a
/// process has metrics to render.
pub fn start_metrics() -> PrometheusHandle {
    let buckets = |suffix: &str, buckets: &[f64]| (Matcher::Suffix(suffix.to_owned()), buckets.to_vec());
    let builder =
        [buckets("_seconds", &SECONDS), buckets("_tokens", &TOKENS), buckets("_sequences", &SEQUENCES)]
            .into_iter()
            // Fails only for an empty list of buckets.
            .try_fold(PrometheusBuilder::new(), |builder, (names, buckets)| {
                builder.set_buckets_for_metric(names, &buckets)
            })
            .unwrap_or_default();
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_ok() {
        for &(ref kind, name, help) in METRICS {
            match kind {
                MetricKind::Counter => {
                    metrics::describe_counter!(name, help);
                    metrics::counter!(name).absolute(0);
                }
                MetricKind::CounterFamily => metrics::describe_counter!(name, help),
                MetricKind::Gauge => metrics::describe_gauge!(name, help),
                MetricKind::Histogram => metrics::describe_histogram!(name, help),
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::gauge!(PROCESS_START).set(now.as_secs_f64());
        let upkeep = handle.clone();
        let keep_up = move || loop {
            thread::sleep(UPKEEP_INTERVAL);
            upkeep.run_upkeep();
        };
        // Without the thread, only reading the metrics does it.
        if let Err(e) = thread::Builder::new().name("metrics".to_owned()).spawn(keep_up) {
            tracing::warn!(error = %e, "cannot start the thread for the upkeep of metrics");
        }
    }
    handle
}
