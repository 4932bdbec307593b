//! What became of texts before, for those who ask again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::request::{Embedded, EmbeddingInput};
use crate::cache::Cache;
use crate::telemetry;

/// A text and what it depends on beside the model what becomes of it: the SHA-256 of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of an input that is cut if it is too long, or is not.
    pub fn new(input: &EmbeddingInput, truncates: bool) -> Self {
        let mut hash = Sha256::new();
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
}

/// The vectors of one model's texts, as many as there is room for, and for so long.
pub struct EmbeddingCache {
    known: Mutex<Cache<Key, Arc<Embedded>>>,
}

impl EmbeddingCache {
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self { known: Mutex::new(Cache::new(max_bytes, time_to_live)) }
    }

    /// What a text became, if that is known at the time `now`.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Arc<Embedded>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key, now)
    }

    /// Keeps what texts have become at the time `now`.
    pub fn insert_all(&self, all: impl Iterator<Item = (Key, Arc<Embedded>)>, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, embedded) in all {
            let n_bytes = ENTRY_BYTES + size_of_val(&embedded.numbers[..]);
            known.insert(key, embedded, n_bytes, now);
        }
        metrics::gauge!(telemetry::EMBEDDING_CACHE_BYTES).set(known.n_bytes() as f64);
    }
}

/// Bytes of an entry beside its numbers, about: key, list, table and counters.
const ENTRY_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_with_what_makes_a_difference() {
        let text = |text: &str| EmbeddingInput::Text(text.to_owned());
        let tokens = |ids: &[u32]| EmbeddingInput::Tokens(ids.to_vec());
        let keys = [
            Key::new(&text("a"), false),
            Key::new(&text("b"), false),
            Key::new(&text("a"), true),
            Key::new(&text(""), false),
            Key::new(&tokens(&[]), false),
            Key::new(&EmbeddingInput::Pair("a".into(), "b".into()), false),
            Key::new(&EmbeddingInput::Pair(String::new(), "ab".into()), false),
            Key::new(&tokens(&[97]), false),
            Key::new(&tokens(&[97, 0]), false),
        ];
        for (idx, key) in keys.iter().enumerate() {
            assert!(!keys[..idx].contains(key), "{idx}");
        }
        assert_eq!(Key::new(&text("a"), false), keys[0]);
    }

    #[test]
    fn what_is_known_is_known_for_a_while() {
        let cache = EmbeddingCache::new(2 * (ENTRY_BYTES + 8), Duration::from_secs(60));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let key = |text: &str| Key::new(&EmbeddingInput::Text(text.to_owned()), false);
        let embedded = |x: f32| Arc::new(Embedded { numbers: vec![x, 0.0], n_tokens: 3 });
        cache.insert_all([(key("a"), embedded(1.0)), (key("b"), embedded(2.0))].into_iter(), start);
        assert_eq!(cache.get(&key("a"), at(10)), Some(embedded(1.0)));
        cache.insert_all([(key("c"), embedded(3.0))].into_iter(), at(10));
        assert_eq!(cache.get(&key("b"), at(11)), None, "it was asked for longest ago");
        assert_eq!(cache.get(&key("a"), at(60)), None);
        assert_eq!(cache.get(&key("c"), at(60)), Some(embedded(3.0)));
    }
}
