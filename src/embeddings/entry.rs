//! Embedding inputs, their cache keys, and their embeddings.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// One input of an embedding request. Texts are shared: a query that is scored against many documents is in memory
/// once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    /// A text.
    Text(Arc<str>),
    /// Token ids of the model's own vocabulary, without its first and last special tokens.
    Tokens(Vec<u32>),
    /// Two texts that a cross-encoder scores against each other.
    Pair(Arc<str>, Arc<str>),
}

/// Identifies a model in the cache: the SHA-256 of its files and of how they are computed.
pub type Fingerprint = [u8; 32];

/// A cache key: the SHA-256 of an input and everything its embedding depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EmbeddingKey([u8; 32]);

impl EmbeddingKey {
    /// The bytes of the hash.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Everything but the input itself that a cache key depends on.
#[derive(Debug, Clone, Copy)]
pub struct KeyScope<'a> {
    /// The model.
    pub model: &'a Fingerprint,
    /// The owner of the entry, so that no tenant learns from a hit what another one embedded; empty where the cache
    /// is shared.
    pub tenant: &'a str,
    /// Whether an input that is too long is truncated.
    pub truncate: bool,
    /// Tokens of a text, or of the second text of a pair, beyond which it is truncated in any case.
    pub max_text_tokens: Option<usize>,
    /// The prompt prefix of every text.
    pub prefix: &'a str,
}

impl KeyScope<'_> {
    /// The keys of `inputs`. Each text in memory is hashed once, in however many pairs it occurs.
    pub fn keys(&self, inputs: &[EmbeddingInput]) -> Vec<EmbeddingKey> {
        let mut scope = Sha256::new();
        scope.update(self.model);
        scope.update([u8::from(self.truncate)]);
        for part in [self.tenant, self.prefix] {
            scope.update(part.len().to_le_bytes());
            scope.update(part);
        }
        if let Some(n) = self.max_text_tokens {
            scope.update(b"max");
            scope.update(n.to_le_bytes());
        }
        let mut digests = HashMap::new();
        let mut digest = |text: &Arc<str>| -> [u8; 32] {
            *digests.entry(Arc::as_ptr(text)).or_insert_with(|| Sha256::digest(text.as_bytes()).into())
        };
        let key = |input: &EmbeddingInput| {
            let mut hash = scope.clone();
            match input {
                EmbeddingInput::Text(text) => {
                    hash.update(b"text");
                    hash.update(text.as_bytes());
                }
                EmbeddingInput::Pair(first, second) => {
                    hash.update(b"pair");
                    hash.update(digest(first));
                    hash.update(digest(second));
                }
                EmbeddingInput::Tokens(ids) => {
                    hash.update(b"tokens");
                    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
                }
            }
            EmbeddingKey(hash.finalize().into())
        };
        inputs.iter().map(key).collect()
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

/// The length of a vector (L2 norm).
///
/// # Errors
/// When it is zero or not finite, so that the vector has no direction.
pub fn l2_norm(vector: &[f32]) -> Result<f64> {
    let norm = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if norm.is_finite() && norm > 0.0 {
        return Ok(norm);
    }
    Err(Error::internal(format!("the model computed a vector of length {norm}, which cannot be normalized")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Fingerprint = [1; 32];
    const SCOPE: KeyScope =
        KeyScope { model: &MODEL, tenant: "a", truncate: false, max_text_tokens: None, prefix: "" };

    #[test]
    fn every_detail_of_an_input_changes_its_key() {
        let text = |text: &str| EmbeddingInput::Text(text.into());
        let pair = |first: &str, second: &str| EmbeddingInput::Pair(first.into(), second.into());
        let mut keys = SCOPE.keys(&[
            text("a"),
            text("b"),
            text(""),
            EmbeddingInput::Tokens(vec![]),
            pair("a", "b"),
            pair("", "ab"),
            pair("b", "a"),
            EmbeddingInput::Tokens(vec![97]),
            EmbeddingInput::Tokens(vec![97, 0]),
        ]);
        for scope in [
            KeyScope { model: &[2; 32], ..SCOPE },
            KeyScope { tenant: "b", ..SCOPE },
            KeyScope { tenant: "", ..SCOPE },
            KeyScope { truncate: true, ..SCOPE },
            KeyScope { max_text_tokens: Some(1), ..SCOPE },
            KeyScope { max_text_tokens: Some(2), ..SCOPE },
            KeyScope { prefix: "p", ..SCOPE },
            KeyScope { tenant: "", prefix: "a", ..SCOPE },
        ] {
            keys.extend(scope.keys(&[text("a")]));
        }
        for (idx, key) in keys.iter().enumerate() {
            assert!(!keys[..idx].contains(key), "{idx}");
        }
        assert_eq!(SCOPE.keys(&[text("a")]), keys[..1]);
    }

    #[test]
    fn zero_and_non_finite_vectors_are_refused() {
        assert_eq!(l2_norm(&[3.0, 4.0]).unwrap(), 5.0);
        for bad in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert!(l2_norm(&bad).is_err());
        }
    }
}
