//! Text embeddings and reranking.
//!
//! A process holds one [`TextEmbedding`], in the `once_cell` singleton [`TEXT_EMBEDDING`]. The first
//! request that needs the model loads it, exactly once, and all later requests share it. A load that
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
mod prompts;
mod rerank;
mod source;
mod text_embedding;

pub use batch::{EmbeddingOutput, EmbeddingRequest};
pub use cache::DiskCache;
pub use embedder::{Embedder, EmbedderOptions, Loader};
pub use entry::{Embedding, EmbeddingInput, Fingerprint};
pub use prompts::PromptPrefix;
pub use rerank::{RelevanceScores, ScoringRequest};
pub use source::EmbeddingSource;
pub use text_embedding::{TEXT_EMBEDDING, TextEmbedding};
