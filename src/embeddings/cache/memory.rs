//! The memory tier of the embedding cache.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::super::entry::{CacheHit, Embedding, EmbeddingKey};
use crate::cache::Cache;
use crate::telemetry;

/// Bytes of an entry beside its values, approximately: key, vector header, hash table and reference counts.
pub const ENTRY_BYTES: usize = 256;

/// An LRU cache of embeddings with a byte budget and a time to live.
pub struct MemoryCache(Mutex<Cache<EmbeddingKey, Arc<Embedding>>>);

impl MemoryCache {
    /// An empty cache of at most `max_bytes`.
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self(Mutex::new(Cache::new(max_bytes, time_to_live)))
    }

    /// The embeddings under `keys` that have not expired at the time `now`.
    pub fn get_all(&self, keys: &[EmbeddingKey], now: SystemTime) -> Vec<Option<Arc<Embedding>>> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(|key| memory.get(key, now)).collect()
    }

    /// Caches embeddings, and reports the bytes used.
    pub fn insert_all(&self, entries: impl Iterator<Item = (EmbeddingKey, CacheHit)>) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, CacheHit { embedding, computed_at }) in entries {
            let n_bytes = ENTRY_BYTES + size_of_val(&embedding.values[..]);
            memory.insert(key, embedding, n_bytes, computed_at);
        }
        metrics::gauge!(telemetry::EMBEDDING_CACHE_BYTES, "tier" => "memory").set(memory.n_bytes() as f64);
    }
}
