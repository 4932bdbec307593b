//! A two-tier LRU cache of embeddings: memory, then disk.
//!
//! Both tiers have a byte budget and a time to live.

mod disk;
mod memory;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::disk::CacheWrite;
pub use self::disk::DiskCache;
use self::memory::MemoryCache;
use super::entry::{CacheHit, Embedding, EmbeddingKey};
use crate::telemetry;

/// The embedding cache of one model. Its disk tier may be shared with other models.
pub struct EmbeddingCache {
    memory: MemoryCache,
    disk: Option<Arc<DiskCache>>,
}

impl EmbeddingCache {
    /// An empty memory tier of at most `max_bytes`, in front of `disk`.
    pub fn new(max_bytes: usize, time_to_live: Duration, disk: Option<Arc<DiskCache>>) -> Self {
        Self { memory: MemoryCache::new(max_bytes, time_to_live), disk }
    }

    /// Whether a look-up may wait for the disk.
    pub fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// The embeddings under `keys` that have not expired at the time `now`.
    pub fn get_all(&self, keys: &[EmbeddingKey], now: SystemTime) -> Vec<Option<Arc<Embedding>>> {
        let mut found = self.memory.get_all(keys, now);
        count_hits("memory", found.iter().flatten().count());
        if let Some(disk) = &self.disk {
            let missing: Vec<usize> = (0..keys.len()).filter(|&idx| found[idx].is_none()).collect();
            let wanted: Vec<&EmbeddingKey> = missing.iter().map(|&idx| &keys[idx]).collect();
            let on_disk = disk.get_all(&wanted, now);
            count_hits("disk", on_disk.iter().flatten().count());
            let hits = missing.into_iter().zip(on_disk).filter_map(|(idx, hit)| Some((idx, hit?)));
            self.memory.insert_all(hits.map(|(idx, hit)| {
                found[idx] = Some(hit.embedding.clone());
                (keys[idx], hit)
            }));
        }
        found
    }

    /// Caches embeddings computed at the time `now`, in both tiers.
    pub fn insert_all(&self, computed: Vec<(EmbeddingKey, Arc<Embedding>)>, now: SystemTime) {
        let entry = |(key, embedding)| (key, CacheHit { embedding, computed_at: now });
        let entries: Vec<(EmbeddingKey, CacheHit)> = computed.into_iter().map(entry).collect();
        if let Some(disk) = self.disk.as_ref().filter(|_| !entries.is_empty()) {
            disk.enqueue(entries.iter().map(|(key, hit)| CacheWrite::Insert(*key, hit.clone())).collect());
        }
        self.memory.insert_all(entries.into_iter());
    }
}

fn count_hits(tier: &'static str, n: usize) {
    metrics::counter!(telemetry::EMBEDDING_CACHE_HITS, "tier" => tier).increment(n as u64);
}

#[cfg(test)]
mod tests {
    use super::memory::ENTRY_BYTES;
    use super::*;
    use crate::embeddings::entry::{EmbeddingInput, KeyScope};

    #[test]
    fn entries_expire_and_the_least_recently_used_is_evicted() {
        let cache = EmbeddingCache::new(2 * (ENTRY_BYTES + 8), Duration::from_secs(60), None);
        let start = SystemTime::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let scope =
            KeyScope { model: &[1; 32], tenant: "", truncate: false, max_text_tokens: None, prefix: "" };
        let key = |text: &str| scope.keys(&[EmbeddingInput::Text(text.into())]).remove(0);
        let embedding = |x: f32| Arc::new(Embedding { values: vec![x, 0.0], n_tokens: 3 });
        let get = |text, now| cache.get_all(&[key(text)], now).remove(0);
        cache.insert_all(vec![(key("a"), embedding(1.0)), (key("b"), embedding(2.0))], start);
        assert_eq!(get("a", at(10)), Some(embedding(1.0)));
        cache.insert_all(vec![(key("c"), embedding(3.0))], at(10));
        assert_eq!(get("b", at(11)), None, "the least recently used");
        assert_eq!(get("a", at(60)), None);
        assert_eq!(get("c", at(60)), Some(embedding(3.0)));
    }
}
