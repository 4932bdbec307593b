//! The memory tier of the embedding cache.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::super::entry::{Embedded, Key, Known};
use crate::cache::Cache;
use crate::telemetry;

/// Bytes of an entry beside its numbers, about: key, list, table and counters.
pub const ENTRY_BYTES: usize = 256;

/// Vectors in memory, as many as there is room for, and for so long.
pub struct MemoryCache(Mutex<Cache<Key, Arc<Embedded>>>);

impl MemoryCache {
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self(Mutex::new(Cache::new(max_bytes, time_to_live)))
    }

    /// What each text became, as far as it is known at the time `now`.
    pub fn get_all(&self, keys: &[Key], now: SystemTime) -> Vec<Option<Arc<Embedded>>> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(|key| memory.get(key, now)).collect()
    }

    /// Keeps in memory what is known since a time.
    pub fn insert_all(&self, all: impl Iterator<Item = (Key, Known)>) {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, Known { embedded, since }) in all {
            let n_bytes = ENTRY_BYTES + size_of_val(&embedded.numbers[..]);
            memory.insert(key, embedded, n_bytes, since);
        }
        metrics::gauge!(telemetry::EMBEDDING_CACHE_BYTES, "tier" => "memory").set(memory.n_bytes() as f64);
    }
}
