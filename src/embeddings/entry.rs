//! Inputs, their cache keys, and what they have become.

use std::sync::Arc;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Something to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    Text(String),
    /// Token ids of the model's own vocabulary, without its first and last tokens.
    Tokens(Vec<u32>),
    /// Two texts that a cross-encoder scores against each other.
    Pair(String, String),
}

/// What tells one model's vectors from another's: the SHA-256 of its files and of how they are computed.
pub type Fingerprint = [u8; 32];

/// A text and what it depends on what becomes of it: the SHA-256 of all of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of an input of a model that is cut if it is too long, or is not.
    pub fn new(model: &Fingerprint, input: &EmbeddingInput, truncates: bool) -> Self {
        let mut hash = Sha256::new();
        hash.update(model);
        hash.update([u8::from(truncates)]);
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

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What a text has become: the model's numbers for it, not cut and of any length.
#[derive(Debug, PartialEq)]
pub struct Embedded {
    pub numbers: Vec<f32>,
    /// Tokens of the text, the model's first and last ones included.
    pub n_tokens: usize,
}

/// What a text has become, and when.
#[derive(Clone)]
pub struct Known {
    pub embedded: Arc<Embedded>,
    pub since: SystemTime,
}

/// Scales a vector to length 1.
pub fn unit_length(vector: &[f32]) -> Result<Vec<f32>> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(Error::internal(format!("the model gave a vector of length {length}; it is not served")));
    }
    Ok(vector.iter().map(|&x| (f64::from(x) / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Fingerprint = [1; 32];

    #[test]
    fn keys_differ_with_what_makes_a_difference() {
        let text = |text: &str| EmbeddingInput::Text(text.to_owned());
        let tokens = |ids: &[u32]| EmbeddingInput::Tokens(ids.to_vec());
        let keys = [
            Key::new(&MODEL, &text("a"), false),
            Key::new(&MODEL, &text("b"), false),
            Key::new(&MODEL, &text("a"), true),
            Key::new(&MODEL, &text(""), false),
            Key::new(&MODEL, &tokens(&[]), false),
            Key::new(&MODEL, &EmbeddingInput::Pair("a".into(), "b".into()), false),
            Key::new(&MODEL, &EmbeddingInput::Pair(String::new(), "ab".into()), false),
            Key::new(&MODEL, &tokens(&[97]), false),
            Key::new(&MODEL, &tokens(&[97, 0]), false),
        ];
        for (idx, key) in keys.iter().enumerate() {
            assert!(!keys[..idx].contains(key), "{idx}");
        }
        assert_eq!(Key::new(&MODEL, &text("a"), false), keys[0]);
    }

    #[test]
    fn vectors_that_are_not_numbers_are_not_served() {
        assert_eq!(unit_length(&[3.0, 4.0]).unwrap(), [0.6, 0.8]);
        for bad in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0]] {
            assert!(unit_length(&bad).is_err());
        }
    }
}
