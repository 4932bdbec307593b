//! What became of texts before, for those who ask again.

mod disk;
mod memory;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use self::disk::DiskCache;
use self::disk::Note;
use self::memory::MemoryCache;
use super::entry::{Embedded, Key, Known};
use crate::telemetry;

/// The vectors of one model's texts in memory, as many as there is room for, and for so long; behind it, the
/// disk's of all models.
pub struct EmbeddingCache {
    memory: MemoryCache,
    disk: Option<Arc<DiskCache>>,
}

impl EmbeddingCache {
    pub fn new(max_bytes: usize, time_to_live: Duration, disk: Option<Arc<DiskCache>>) -> Self {
        Self { memory: MemoryCache::new(max_bytes, time_to_live), disk }
    }

    /// Whether looking something up may have to wait for the disk.
    pub fn reads_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// What each text became, as far as it is known at the time `now`.
    pub fn get_all(&self, keys: &[Key], now: SystemTime) -> Vec<Option<Arc<Embedded>>> {
        let mut found = self.memory.get_all(keys, now);
        count_hits("memory", found.iter().flatten().count());
        if let Some(disk) = &self.disk {
            let unknown: Vec<usize> = (0..keys.len()).filter(|&idx| found[idx].is_none()).collect();
            let wanted: Vec<&Key> = unknown.iter().map(|&idx| &keys[idx]).collect();
            let on_disk = disk.get_all(&wanted, now);
            count_hits("disk", on_disk.iter().flatten().count());
            let known = unknown.into_iter().zip(on_disk).filter_map(|(idx, known)| Some((idx, known?)));
            self.memory.insert_all(known.map(|(idx, known)| {
                found[idx] = Some(known.embedded.clone());
                (keys[idx], known)
            }));
        }
        found
    }

    /// Keeps what texts have become at the time `now`.
    pub fn insert_all(&self, all: Vec<(Key, Arc<Embedded>)>, now: SystemTime) {
        let known = |(key, embedded)| (key, Known { embedded, since: now });
        let all: Vec<(Key, Known)> = all.into_iter().map(known).collect();
        if let Some(disk) = &self.disk {
            disk.note(all.iter().map(|(key, known)| Note::New(*key, known.clone())).collect());
        }
        self.memory.insert_all(all.into_iter());
    }
}

fn count_hits(tier: &'static str, n: usize) {
    metrics::counter!(telemetry::EMBEDDING_CACHE_HITS, "tier" => tier).increment(n as u64);
}

#[cfg(test)]
mod tests {
    use super::memory::ENTRY_BYTES;
    use super::*;
    use crate::embeddings::entry::{EmbeddingInput, Fingerprint};

    const MODEL: Fingerprint = [1; 32];

    #[test]
    fn what_is_known_is_known_for_a_while() {
        let cache = EmbeddingCache::new(2 * (ENTRY_BYTES + 8), Duration::from_secs(60), None);
        let start = SystemTime::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let key = |text: &str| Key::new(&MODEL, &EmbeddingInput::Text(text.to_owned()), false);
        let embedded = |x: f32| Arc::new(Embedded { numbers: vec![x, 0.0], n_tokens: 3 });
        let get = |text, now| cache.get_all(&[key(text)], now).remove(0);
        cache.insert_all(vec![(key("a"), embedded(1.0)), (key("b"), embedded(2.0))], start);
        assert_eq!(get("a", at(10)), Some(embedded(1.0)));
        cache.insert_all(vec![(key("c"), embedded(3.0))], at(10));
        assert_eq!(get("b", at(11)), None, "it was asked for longest ago");
        assert_eq!(get("a", at(60)), None);
        assert_eq!(get("c", at(60)), Some(embedded(3.0)));
    }
}
