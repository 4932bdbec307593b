//! Text embeddings and reranking.
//!
//! A process holds one [`TextEmbedding`], in the `once_cell` singleton [`TEXT_EMBEDDING`]. The start of the server,
//! or the first request that needs the model, loads it, exactly once, and all later requests share it. A load that
//! fails is reported to the request that caused it, and the next request tries again. [`Embedder`] is
//! the handle to the thread that computes.
//!
//! There are two backends: our own encoder ([`crate::models::Encoder`]; safetensors and GGUF) and
//! fastembed (ONNX Runtime).

mod backend;
mod batch;
mod cache;
mod embedder;
mod entry;
mod fairness;
mod input_tokens;
mod job_queue;
mod ledger;
mod prompts;
mod rerank;
mod sentence_config;
mod source;
mod text_embedding;
mod worker;

pub use batch::{EmbeddingOutput, EmbeddingRequest, InputTokens, LengthRule, UnitVectors};
pub use cache::DiskCache;
pub use embedder::{Embedder, EmbedderOptions};
pub use entry::{Embedding, EmbeddingInput, Fingerprint};
pub use ledger::LedgerLimits;
pub use prompts::PromptPrefix;
pub use rerank::{RelevanceScores, ScoringRequest};
pub use source::EmbeddingSource;
pub use text_embedding::{TEXT_EMBEDDING, TextEmbedding};
pub use worker::Loader;
