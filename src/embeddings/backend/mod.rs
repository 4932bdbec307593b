//! The backends that compute vectors: our own encoder, and ONNX Runtime.

pub mod encoder;
pub mod onnx;
pub mod onnx_catalog;

use crate::error::Result;

/// An input with its token ids.
#[derive(Debug, Clone)]
pub struct TokenizedInput {
    /// The text, prompt prefix included; `None` where the client sent token ids, and for pairs.
    pub text: Option<String>,
    /// The ids, the model's first and last special tokens included.
    pub ids: Vec<u32>,
    /// For a pair, the number of ids that belong to its first text.
    pub n_first: Option<usize>,
}

/// Computes vectors.
pub trait VectorBackend: Send + Sync {
    /// Name of the model's family.
    fn family(&self) -> &str;

    /// Length of a vector.
    fn dimensions(&self) -> usize;

    /// Maximum number of tokens of an input, the model's first and last special tokens included.
    fn max_tokens(&self) -> usize;

    /// The best number of tokens per batch: more take more memory and delay other requests, fewer are slower.
    fn batch_tokens(&self) -> usize;

    /// Returns one vector per input, in order.
    ///
    /// # Errors
    /// When the computation fails, or the backend does not support this kind of input.
    fn embed(&self, inputs: &[&TokenizedInput]) -> Result<Vec<Vec<f32>>>;
}
