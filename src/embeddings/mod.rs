//! Texts to vectors.
//!
//! One [`TextEmbedding`] per process, in a `once_cell` singleton ([`TEXT_EMBEDDING`]): loaded by the
//! first request that needs it, exactly once, kept for all later ones; a load that fails is reported
//! to its request and tried again by the next. [`Embedder`] is the handle to the thread that computes.
//!
//! Two backends: our encoder ([`crate::models::Encoder`], safetensors) and fastembed (ONNX Runtime).

mod backend;
mod batch;
mod cache;
mod embedder;
mod entry;
mod prompts;
mod rerank;
mod source;
mod text_embedding;

pub use batch::{EmbeddingRequest, Embeddings};
pub use cache::DiskCache;
pub use embedder::{Embedder, EmbedderOptions, Loader};
pub use entry::{Embedded, EmbeddingInput, Fingerprint};
pub use prompts::Prompt;
pub use rerank::{Scores, ScoresRequest};
pub use source::EmbeddingSource;
pub use text_embedding::{TEXT_EMBEDDING, TextEmbedding};
