//! What computes vectors: our encoder, or ONNX Runtime.

pub mod encoder;
pub mod onnx;
pub mod onnx_catalog;

use crate::error::Result;

/// A text with its token ids, the model's first and last ones included.
#[derive(Debug, Clone)]
pub struct Tokenized {
    /// What the ids were made of; absent where the client sent ids.
    pub text: Option<String>,
    pub ids: Vec<u32>,
    /// How many of them belong to the first text of a pair.
    pub n_first: Option<usize>,
}

/// What computes the vectors.
pub trait Backend: Send + Sync {
    /// Name of the model's family.
    fn family(&self) -> &str;

    /// Length of a vector.
    fn dimensions(&self) -> usize;

    /// Most tokens of a text, the model's own first and last ones included.
    fn max_tokens(&self) -> usize;

    /// Tokens that are best computed at once: more take more memory and keep others waiting longer, fewer are
    /// slower.
    fn batch_tokens(&self) -> usize;

    /// One vector per text, in order.
    fn embed(&self, texts: &[&Tokenized]) -> Result<Vec<Vec<f32>>>;
}
