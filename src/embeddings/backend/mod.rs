//! The backends that compute vectors: our own encoder, and ONNX Runtime.

pub mod encoder;
pub mod onnx;
pub mod onnx_catalog;

use std::sync::Arc;

use crate::error::Result;

/// An input with its token ids.
#[derive(Debug, Clone)]
pub struct TokenizedInput {
    /// The text, prompt prefix included, for backends that need it; `None` where the client sent token ids, and for
    /// pairs.
    pub text: Option<Arc<str>>,
    /// The ids, the model's first and last special tokens included.
    pub ids: Vec<u32>,
    /// For a pair, the number of ids that belong to its first text.
    pub n_first: Option<usize>,
}

impl TokenizedInput {
    /// Bytes of the text and the ids.
    pub fn n_bytes(&self) -> usize {
        self.text.as_ref().map_or(0, |text| text.len()) + size_of_val(&self.ids[..])
    }
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

    /// Whether inputs need their text beside their ids.
    fn needs_text(&self) -> bool {
        false
    }

    /// Returns one vector per input, in order.
    ///
    /// # Errors
    /// When the computation fails, or the backend does not support this kind of input.
    fn embed(&self, inputs: &[&TokenizedInput]) -> Result<Vec<Vec<f32>>>;
}
