//! Embedding inputs, their cache keys, and their embeddings.

use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// One input of an embedding request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    /// A text.
    Text(String),
    /// Token ids of the model's own vocabulary, without its first and last special tokens.
    Tokens(Vec<u32>),
    /// Two texts that a cross-encoder scores against each other.
    Pair(String, String),
}

/// Identifies a model in the cache: the SHA-256 of its files and of how they are computed.
pub type Fingerprint = [u8; 32];

/// A cache key: the SHA-256 of an input and everything its embedding depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EmbeddingKey([u8; 32]);

impl EmbeddingKey {
    /// The key of an `input` of a model; `truncate` says whether an input that is too long is cut.
    pub fn new(model: &Fingerprint, input: &EmbeddingInput, truncate: bool) -> Self {
        let mut hash = Sha256::new();
        hash.update(model);
        hash.update([u8::from(truncate)]);
        match input {
            EmbeddingInput::Text(text) => {
                hash.update(b"text");
                hash.update(text);
            }
            EmbeddingInput::Pair(first, second) => {
                hash.update(b"pair");
                hash.update(first.len().to_le_bytes());
                hash.update(first);
                hash.update(second);
            }
            EmbeddingInput::Tokens(ids) => {
                hash.update(b"tokens");
                ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
            }
        }
        Self(hash.finalize().into())
    }

    /// The bytes of the hash.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The raw output of a model for one input: not normalized, and with all dimensions. A cross-encoder's
/// is its logits.
#[derive(Debug, PartialEq)]
pub struct Embedding {
    /// `[dimensions]`.
    pub values: Vec<f32>,
    /// Tokens of the input, the model's first and last special tokens included.
    pub n_tokens: usize,
}

/// An embedding found in the cache.
#[derive(Debug, Clone)]
pub struct CacheHit {
    /// The cached embedding.
    pub embedding: Arc<Embedding>,
    /// When it was computed; its time to live counts from here.
    pub computed_at: SystemTime,
}

/// Scales a vector to length 1 (L2 norm).
///
/// # Errors
/// When the vector is zero or not finite.
pub fn l2_normalize(vector: &[f32]) -> Result<Vec<f32>> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(Error::internal(format!(
            "the model computed a vector of length {length}, which cannot be normalized"
        )));
    }
    Ok(vector.iter().map(|&x| (f64::from(x) / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Fingerprint = [1; 32];

    #[test]
    fn every_detail_of_an_input_changes_its_key() {
        let text = |text: &str| EmbeddingInput::Text(text.to_owned());
        let tokens = |ids: &[u32]| EmbeddingInput::Tokens(ids.to_vec());
        let keys = [
            EmbeddingKey::new(&MODEL, &text("a"), false),
            EmbeddingKey::new(&MODEL, &text("b"), false),
            EmbeddingKey::new(&MODEL, &text("a"), true),
            EmbeddingKey::new(&MODEL, &text(""), false),
            EmbeddingKey::new(&MODEL, &tokens(&[]), false),
            EmbeddingKey::new(&MODEL, &EmbeddingInput::Pair("a".into(), "b".into()), false),
            EmbeddingKey::new(&MODEL, &EmbeddingInput::Pair(String::new(), "ab".into()), false),
            EmbeddingKey::new(&MODEL, &tokens(&[97]), false),
            EmbeddingKey::new(&MODEL, &tokens(&[97, 0]), false),
        ];
        for (idx, key) in keys.iter().enumerate() {
            assert!(!keys[..idx].contains(key), "{idx}");
        }
        assert_eq!(EmbeddingKey::new(&MODEL, &text("a"), false), keys[0]);
    }

    #[test]
    fn zero_and_non_finite_vectors_are_refused() {
        assert_eq!(l2_normalize(&[3.0, 4.0]).unwrap(), [0.6, 0.8]);
        for bad in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert!(l2_normalize(&bad).is_err());
        }
    }
}
