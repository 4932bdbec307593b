//! predict-otron-9000: an OpenAI-compatible inference server in one binary.
//!
//! Everything follows from one sentence:
//!
//! > **http knows no tokens; chat knows no tensors; the engine knows no messages; models know no
//! > requests; kernels know no models.**
//!
//! Each clause is an import rule. The layers, top first; imports point only downward, siblings do
//! not import each other, and `tests/it/layers.rs` fails when one does:
//!
//! 1. [`cli`]
//! 2. [`http`]
//! 3. [`app`]
//! 4. [`chat`]
//! 5. [`inference`], [`embeddings`]
//! 6. [`models`], [`tokenizer`], [`registry`]
//! 7. [`kernels`], [`openai`], [`telemetry`], [`gguf`], [`cache`]
//! 8. [`config`]
//! 9. [`error`]
//!
//! # The life of a chat request
//!
//! 1. [`http::serve`] accepts a connection; the router in [`http`] finds the route, gives the
//!    request its id, and turns whatever goes wrong into OpenAI's error envelope.
//! 2. The body becomes an [`openai::chat::ChatCompletionRequest`]; [`openai::params`] says of every
//!    field whether it is honoured, refused or ignored, and the last are named in the answer.
//! 3. [`app::App`] finds the model that answers to the name, and has it loaded if it is not in
//!    memory ([`app::ChatModels`]). Where answers are kept and one is there, that is all
//!    ([`chat::ResponseCache`]).
//! 4. [`chat::ChatModel`] renders the model's own template and encodes the prompt with the
//!    [`tokenizer`]; what a message says can never become a special token. What the answer has to be, JSON
//!    or calls of functions, becomes a grammar ([`inference::grammar`]).
//! 5. [`inference::Engine`] takes a place in its bounded queue, or refuses at once and says when to
//!    come back. The first bytes of a stream go out here, before the prompt is computed.
//! 6. The engine's thread asks [`inference::scheduler`] what the next batch holds, and the
//!    [`models::Decoder`] computes it: one token for every running sequence, guesses at those after
//!    it where they pay, and a bounded part of new prompts, of which what another sequence has
//!    computed is taken over.
//! 7. Each sequence's [`inference::TextGeneration`] samples its next token (with
//!    [`inference::sampling::CachedRepeatPenalty`]), then the one after each guess that was right, and
//!    gives out text that is whole in UTF-8 and certainly not part of a stop string. Where there is a
//!    grammar, nothing comes that it does not allow.
//! 8. Thoughts and calls of functions are told from the text. The events become chunks or one answer;
//!    the figures of the request become a line of the log.
//!    A client that goes away drops its receiver, and the engine drops the sequence before the next
//!    batch; only an answer that it is likely to ask for again is kept for a while (`http::retry`).
//!
//! An embeddings request takes the same way in. [`embeddings::Embedder`] looks up what is known,
//! tokenizes the rest, and hands it to its own thread, which fills the process's `TextEmbedding`
//! singleton when the first request comes and computes texts of all clients together. Reranking is the
//! same with pairs of texts, or with the vectors of both.
//!
//! # Invariants
//!
//! - Worker threads are threads, not tasks: tokio never multiplies matrices, the engine never
//!   awaits.
//! - One owner holds the model and the keys and values; there is no lock around tensors. A model
//!   that a request uses is never unloaded: whoever holds its `Arc` keeps it.
//! - Who computes takes turns at one pool of threads, each party for the same share of its time
//!   ([`kernels::threads::pool`]).
//! - Every queue has a bound, and it stands in [`config::Limits`].
//! - Every accepted request gets exactly one last event. A panic costs one request.
//! - Nothing is truncated, ignored or invented silently.
//! - `unsafe` stands in [`kernels`], in [`models::load`] for the memory map, and in `main` for what is
//!   settled before the first thread starts.
//!
//! # Departures from the design
//!
//! - [`gguf`] is a module of its own: the tokenizer, the models and the registry all read headers.
//!   There are no two readers, ours to check and candle's to read, but one that checks.
//! - Weights keep the type that the file has ([`kernels::weights`]) instead of being turned into a few
//!   internal ones: nothing is rounded twice, memory is the file's size, and a format is a few lines.
//! - Every number of rows goes through the same arithmetic, whole numbers of 16 bits times the
//!   weights' codes, so that a token's logits do not depend on what is computed beside it. AMX, too,
//!   multiplies these, as two planes of bytes, and not bfloat16.
//! - Encoders are another matter: their float weights, and what meets them, are rounded to bfloat16 where
//!   the processor multiplies that twice as fast, and stay float32 elsewhere ([`models::Arithmetic`]).
//! - Blocks of keys and values are known by their tokens, not by a hash of them: two contents are never
//!   mistaken for each other.

pub mod app;
pub mod cache;
pub mod chat;
pub mod cli;
pub mod config;
pub mod embeddings;
pub mod error;
pub mod gguf;
pub mod http;
pub mod inference;
pub mod kernels;
pub mod models;
pub mod openai;
pub mod registry;
pub mod telemetry;
pub mod tokenizer;
