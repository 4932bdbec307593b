//! Bounds on everything that a client can fill, and their defaults.

use std::time::Duration;

use super::args::{ContextOverflow, EmbeddingOverflow};
use super::memory;
use super::model_args::{KvPrecision, PromptActivations};

/// Bounds on what the server takes in. Every queue and buffer that a client can fill has its
/// bound here.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests with a wrong API key within [`Limits::wrong_key_window`] that get 401; further ones get 429.
    pub wrong_keys: usize,
    /// Period in which requests with a wrong API key are counted.
    pub wrong_key_window: Duration,
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Numbers, strings and other values in a request body. A parsed value takes 72 bytes.
    pub body_values: usize,
    /// Arrays and objects in a request body. A parsed one takes about 400 bytes.
    pub body_containers: usize,
    /// Bytes of the bodies of all chat and completion requests in progress, and again of all embedding requests.
    pub bodies_bytes: usize,
    /// How long a body may take to arrive while the server is full; a slower one gives its place to the next request.
    pub place_grace: Duration,
    /// Requests for tokenizing and detokenizing in progress.
    pub token_requests: usize,
    /// Bytes of their bodies together.
    pub token_bodies_bytes: usize,
    /// Bytes of a text to tokenize by itself. Tokenizing can take a thousand times as much memory.
    pub tokenize_bytes: usize,
    /// Bytes of a text that token ids are converted into.
    pub detokenize_bytes: usize,
    /// How long a request may be in preparation before the server reports itself unhealthy.
    pub preparation_time: Duration,
    /// Tokens of a response to a chat request that sets no limit; without a value, the context is the limit.
    pub default_max_tokens: Option<u64>,
    /// Whether a request for a model that is not served gets the default one.
    pub any_model_name: bool,
    /// Chat requests that may wait for the engine, in addition to the running ones.
    pub queued_requests: usize,
    /// Prompt tokens of all waiting chat requests together. A single request may exceed it.
    pub queued_tokens: usize,
    /// How long a chat, embedding or scoring request may wait before it is refused.
    pub queue_timeout: Duration,
    /// Chat requests that the engine processes at the same time.
    pub running_requests: usize,
    /// Time for one batch. When a batch takes longer, the server reports itself unhealthy.
    pub batch_time: Duration,
    /// Prompt tokens computed in one batch.
    pub prefill_chunk_tokens: usize,
    /// Bytes of the KV cache of one chat model. Requests that do not fit wait; a context window
    /// that does not fit alone is reduced to what does.
    pub kv_bytes: usize,
    /// Whether the KV cache is smaller where the memory budget has no room for so much beside the weights.
    pub kv_reducible: bool,
    /// Number format of the KV cache.
    pub kv_format: KvPrecision,
    /// Precision of the activations of prompts.
    pub activations: PromptActivations,
    /// Policy for prompts and answers that exceed the context.
    pub context_overflow: ContextOverflow,
    /// Log probabilities of prompt tokens in one response: each token's own, and those of the most likely tokens at its
    /// position. One takes about 100 bytes of JSON.
    pub prompt_logprobs: usize,
    /// Tokens of the input, the questions and their labels in one request for decisions.
    pub decision_tokens: usize,
    /// Whether to decode speculatively (prompt lookup) where it is profitable.
    pub speculative: bool,
    /// Bytes of the response cache; 0 disables it.
    pub response_cache_bytes: usize,
    /// Time to live of a cached response.
    pub response_cache_ttl: Duration,
    /// How long the head of a streamed response waits for the first token.
    pub stream_head_delay: Duration,
    /// Interval of the spaces sent ahead of a slow response; zero disables them.
    pub heartbeat: Duration,
    /// How long a client must have waited for its response to be kept for a retry. The default is a
    /// little less than the minute after which proxies give up.
    pub retry_patience: Duration,
    /// How long the response of a disconnected client is kept for its retry; zero disables that.
    pub retry_grace: Duration,
    /// Responses of disconnected clients that are kept for retries at the same time.
    pub orphaned_responses: usize,
    /// Embedding and scoring requests of a model that wait or run.
    pub embedding_requests: usize,
    /// Bytes of the inputs of all these requests. A single one may exceed it.
    pub embedding_queue_bytes: usize,
    /// Tokens that these requests still have to compute. A single one may exceed it.
    pub embedding_queue_tokens: usize,
    /// Tokens of one embedding or scoring request, after truncation. Each pair of texts counts whole.
    pub embedding_tokens: usize,
    /// Policy for embedding inputs that exceed the model's limit.
    pub embedding_overflow: EmbeddingOverflow,
    /// Whether tenants share the embedding cache.
    pub share_embedding_cache: bool,
    /// Bytes of the embedding cache in memory; 0 disables it.
    pub embedding_cache_bytes: usize,
    /// Time to live of a cached embedding.
    pub embedding_cache_ttl: Duration,
    /// Bytes of all stored responses and conversations.
    pub state_bytes: u64,
    /// Bytes of a stored response or conversation.
    pub state_record_bytes: usize,
    /// How long a response or conversation is kept after its last use.
    pub state_ttl: Duration,
    /// Bytes of all files: uploads, and results of batches. A tenant may upload half of them.
    pub files_bytes: u64,
    /// Bytes of an uploaded file.
    pub file_bytes: u64,
    /// Responses that are generated in the background at the same time.
    pub background_responses: usize,
    /// Bytes of the events of one of these that are kept for clients that follow it.
    pub background_event_bytes: usize,
    /// Connections open at once. Beyond it, idle ones are closed for new ones.
    pub connections: usize,
    /// Connections open at once from one IPv4 address or one /64 network of IPv6; 0 is unlimited. Loopback
    /// addresses are exempt.
    pub connections_per_peer: usize,
    /// Connections beyond [`Limits::connections`] that are served nothing but probes.
    pub probe_connections: usize,
    /// Keep-alive time of a connection between two requests; at least the 75 s that clients and
    /// proxies expect.
    pub keep_alive_idle: Duration,
    /// Time to receive the head of a request from its first byte, and time until the first byte of a new
    /// connection.
    pub head_timeout: Duration,
    /// Bytes of a request's head; larger ones get 431. The heads of browsers and SDKs have a few KiB.
    pub head_bytes: usize,
    /// Time to receive the next bytes of a request body.
    pub body_idle: Duration,
    /// Time to receive the first bytes of a request body.
    pub body_grace: Duration,
    /// Least rate at which a request body must arrive, averaged over [`Limits::body_idle`]; 0 is none.
    pub body_bytes_per_second: u64,
    /// Time for a client to accept the next bytes of a response.
    pub write_stall: Duration,
    /// Least rate at which a client must take what is ready of a response, averaged over
    /// [`Limits::write_stall`]; 0 is none.
    pub response_bytes_per_second: u64,
    /// Bytes of all whole responses that wait for their clients. A single one may exceed it.
    pub untaken_response_bytes: usize,
    /// How long requests are still accepted after SIGTERM, while `/health` tells load balancers to
    /// go elsewhere.
    pub drain_delay: Duration,
    /// Time for running requests to finish once no new ones are accepted.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wrong_keys: 100,
            wrong_key_window: Duration::from_secs(60),
            body_bytes: 2 << 20,
            body_values: 400_000,
            body_containers: 50_000,
            bodies_bytes: 64 << 20,
            place_grace: Duration::from_secs(1),
            token_requests: 64,
            token_bodies_bytes: 16 << 20,
            tokenize_bytes: 512 << 10,
            detokenize_bytes: 4 << 20,
            preparation_time: Duration::from_secs(10),
            default_max_tokens: None,
            any_model_name: false,
            queued_requests: 256,
            queued_tokens: 262_144,
            queue_timeout: Duration::from_secs(300),
            running_requests: 32,
            batch_time: Duration::from_secs(10),
            prefill_chunk_tokens: 256,
            kv_bytes: MAX_DEFAULT_KV_BYTES,
            kv_reducible: true,
            kv_format: KvPrecision::F16,
            activations: PromptActivations::Auto,
            context_overflow: ContextOverflow::Refuse,
            prompt_logprobs: 262_144,
            decision_tokens: 131_072,
            speculative: true,
            response_cache_bytes: 0,
            response_cache_ttl: Duration::from_secs(3600),
            stream_head_delay: Duration::from_secs(2),
            heartbeat: Duration::ZERO,
            retry_patience: Duration::from_secs(50),
            retry_grace: Duration::from_secs(30),
            orphaned_responses: 4,
            embedding_requests: 256,
            embedding_queue_bytes: 64 << 20,
            embedding_queue_tokens: 4 << 20,
            // The largest number of inputs, each of the 512 tokens that most models take.
            embedding_tokens: MAX_EMBEDDING_INPUTS * 512,
            embedding_overflow: EmbeddingOverflow::Refuse,
            share_embedding_cache: false,
            embedding_cache_bytes: 64 << 20,
            embedding_cache_ttl: Duration::from_secs(24 * 3600),
            state_bytes: 64 << 20,
            state_record_bytes: 8 << 20,
            state_ttl: Duration::from_secs(30 * 24 * 3600),
            files_bytes: 64 << 20,
            // OpenAI's own limit of a batch.
            file_bytes: 200 << 20,
            background_responses: 16,
            background_event_bytes: 16 << 20,
            connections: DEFAULT_CONNECTIONS,
            connections_per_peer: DEFAULT_CONNECTIONS / PEER_SHARE,
            probe_connections: 64,
            keep_alive_idle: Duration::from_secs(90),
            head_timeout: Duration::from_secs(10),
            head_bytes: 64 << 10,
            body_idle: Duration::from_secs(30),
            body_grace: Duration::from_secs(10),
            body_bytes_per_second: 1 << 10,
            write_stall: Duration::from_secs(30),
            response_bytes_per_second: 16 << 10,
            untaken_response_bytes: 256 << 20,
            drain_delay: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// Connections open at once by default.
const DEFAULT_CONNECTIONS: usize = 1024;

/// The share of all connections that one peer may have by default, as a divisor.
pub(super) const PEER_SHARE: usize = 4;

/// Inputs of one embedding request, documents or pairs of a scoring request; OpenAI's own limit. Requests are read no
/// further.
pub const MAX_EMBEDDING_INPUTS: usize = 2048;

/// Largest KV cache that is allocated by default.
const MAX_DEFAULT_KV_BYTES: usize = 4 << 30;

/// The part of the available memory that the KV cache of a chat model takes by default, as a divisor.
const KV_SHARE: u64 = 4;

/// The part of the available memory that is left to everything that `--memory-budget` does not cover by default, as a
/// divisor: vocabularies, activations, requests, threads.
const UNCOVERED_SHARE: u64 = 8;

/// The default size of a chat model's KV cache: a quarter of the memory that is `available`, at most
/// [`MAX_DEFAULT_KV_BYTES`].
pub(super) fn default_kv_bytes(available: Option<u64>) -> usize {
    let share = available.and_then(|bytes| usize::try_from(bytes / KV_SHARE).ok());
    share.unwrap_or(MAX_DEFAULT_KV_BYTES).min(MAX_DEFAULT_KV_BYTES)
}

/// Bytes that models may take on this machine now, unless `--memory-budget` says otherwise; `None` if the system does
/// not tell.
pub fn memory_for_models() -> Option<u64> {
    default_memory_budget(memory::available_bytes())
}

/// The default memory budget: seven eighths of the memory that is `available`.
pub(super) fn default_memory_budget(available: Option<u64>) -> Option<u64> {
    available.map(|bytes| bytes - bytes / UNCOVERED_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_out_from_what_is_available() {
        assert_eq!((default_kv_bytes(None), default_memory_budget(None)), (4 << 30, None));
        assert_eq!(
            (default_kv_bytes(Some(64 << 30)), default_memory_budget(Some(64 << 30))),
            (4 << 30, Some(56 << 30))
        );
        assert_eq!(
            (default_kv_bytes(Some(512 << 20)), default_memory_budget(Some(512 << 20))),
            (128 << 20, Some(448 << 20))
        );
    }
}
