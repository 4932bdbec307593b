//! predict-otron-9000: an OpenAI-compatible inference server in one binary.
//!
//! Everything follows from one sentence:
//!
//! > **http knows no tokens; chat knows no tensors; the engine knows no messages; models know no
//! > requests; kernels know no models.**
//!
//! Each clause is an import rule. These are the layers, top first. Imports point only downward, and
//! siblings do not import each other; `tests/it/layers.rs` checks both.
//!
//! 1. [`cli`]
//! 2. [`http`]
//! 3. [`app`]
//! 4. [`batches`], [`bundle`], [`decisions`], [`responses`]
//! 5. [`chat`], [`messages`], [`ollama`]
//! 6. [`inference`], [`embeddings`]
//! 7. [`models`], [`tokenizer`], [`registry`]
//! 8. [`anthropic`], [`metering`]
//! 9. [`kernels`], [`openai`], [`telemetry`], [`gguf`], [`cache`], [`pulse`], [`store`]
//! 10. [`config`]
//! 11. [`error`]
//!
//! # The life of a chat request
//!
//! 1. [`http::serve`] accepts the connection. The router in [`http`] assigns the request id, checks
//!    the API key, finds the route, and turns every error into OpenAI's envelope. [`app::AdmissionControl`]
//!    admits the request by its head or refuses it, before its body is read.
//! 2. The body becomes an [`openai::chat::ChatCompletionRequest`]. [`openai::params`] decides for every
//!    field whether it is honored, refused or ignored; ignored ones are named in a response header.
//! 3. [`app::App`] finds the model by name and loads it if it is not in memory ([`app::ChatModels`]).
//!    On a hit in the response cache ([`chat::ResponseCache`]) the request ends here.
//! 4. [`inference::Engine`] admits the request to its bounded queue, or refuses it at once and says
//!    when to come back.
//! 5. [`chat::ChatModel`] renders the model's own chat template and encodes the prompt with the
//!    [`tokenizer`]; text of a message can never become a special token. A required output format or
//!    tool call becomes a grammar ([`inference::grammar`]). The first bytes of a stream are sent
//!    with its first token, or after two seconds if that takes longer.
//! 6. The engine's thread repeats one step: [`inference::scheduler`] composes a batch (continuous
//!    batching), and the [`models::Decoder`] computes it. A batch has one token for every running
//!    sequence, draft tokens where speculative decoding is worth it, and a bounded chunk of new prompts,
//!    without what the prefix cache already has.
//! 7. Each sequence's [`inference::TextGeneration`] samples its next token (with
//!    [`inference::sampling::CachedRepeatPenalty`] and the grammar's mask), then verifies its draft
//!    tokens. It emits text that is complete UTF-8 and cannot be part of a stop string.
//! 8. [`chat`] separates reasoning and tool calls from the text. [`http`] writes the events as chunks or
//!    collects them into one response, and logs the request's figures.
//!
//! A client that disconnects drops its receiver, and the engine drops the sequence before the next
//! step. Only a response that the client is likely to retry is kept for a while ([`http`], `retry`).
//!
//! An embeddings request comes in the same way. [`embeddings::Embedder`] admits it, looks up its texts in the
//! cache, tokenizes the rest, and hands them to its own thread, which batches the texts of all clients in fair
//! shares. The start, or the first request, fills the process's `TextEmbedding` singleton. Reranking does the same with pairs
//! of texts, or with the vectors of both.
//!
//! # Invariants
//!
//! - Worker threads are threads, not tasks: tokio never multiplies matrices, and the engine never
//!   awaits.
//! - One owner holds the model, the KV cache and the recurrent states; there is no lock around tensors. A model that a request
//!   uses is never unloaded: the request holds an `Arc` of it.
//! - All computation shares one thread pool, in fair shares of its time ([`kernels::threads`]).
//! - Every queue is bounded, by [`config::Limits`].
//! - Every accepted request gets exactly one final event. A panic costs one request.
//! - Nothing is truncated, ignored or invented silently.
//! - `unsafe` occurs in [`kernels`], in [`models::load`] for the memory map, and in `main` for what is
//!   set before the first thread starts.
//!
//! # Numbers
//!
//! - Weights keep the file's type, repacked once at load ([`kernels::weights`]): nothing is rounded
//!   twice, and memory is the file's size.
//! - Activations that meet quantized weights are 16-bit integers with a scale per group. Every number
//!   of rows goes through the same arithmetic on every instruction set, so a token's logits do not
//!   depend on its batch.
//! - Float weights of encoders, and the activations that meet them, are rounded to bfloat16 where the
//!   processor multiplies it faster, and stay float32 elsewhere.
//! - KV cache blocks are identified by their tokens, not by a hash of them: two contents are never
//!   confused.
//! - [`gguf`] has the only reader of GGUF headers, for the tokenizer, the models and the registry; it
//!   checks every size.

pub mod anthropic;
pub mod app;
pub mod batches;
pub mod bundle;
pub mod cache;
pub mod chat;
pub mod cli;
pub mod config;
pub mod decisions;
pub mod embeddings;
pub mod error;
pub mod gguf;
pub mod http;
pub mod inference;
pub mod kernels;
pub mod messages;
pub mod metering;
pub mod models;
pub mod ollama;
pub mod openai;
pub mod pulse;
pub mod registry;
pub mod responses;
pub mod store;
pub mod telemetry;
pub mod tokenizer;
