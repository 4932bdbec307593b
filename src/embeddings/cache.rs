//! What became of texts before, for those who ask again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::disk::{DiskCache, Known, Note};
use super::request::{Embedded, EmbeddingInput};
use crate::cache::Cache;
use crate::telemetry;

/// A text and what it depends on what becomes of it: the SHA-256 of all of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

/// What tells one model's vectors from another's: the SHA-256 of its files and of how they are computed.
pub type Fingerprint = [u8; 32];

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

/// The vectors of one model's texts in memory, as many as there is room for, and for so long; behind it, the
/// disk's of all models.
pub struct EmbeddingCache {
    memory: Mutex<Cache<Key, Arc<Embedded>>>,
    disk: Option<Arc<DiskCache>>,
}

impl EmbeddingCache {
    pub fn new(max_bytes: usize, time_to_live: Duration, disk: Option<Arc<DiskCache>>) -> Self {
        Self { memory: Mutex::new(Cache::new(max_bytes, time_to_live)), disk }
    }

    /// Whether looking something up may have to wait for the disk.
    pub fn reads_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// What each text became, as far as it is known at the time `now`.
    pub fn get_all(&self, keys: &[Key], now: SystemTime) -> Vec<Option<Arc<Embedded>>> {
        let mut found: Vec<_> = {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            keys.iter().map(|key| memory.get(key, now)).collect()
        };
        count_hits("memory", found.iter().flatten().count());
        if let Some(disk) = &self.disk {
            let unknown: Vec<usize> = (0..keys.len()).filter(|&idx| found[idx].is_none()).collect();
            let wanted: Vec<&Key> = unknown.iter().map(|&idx| &keys[idx]).collect();
            let on_disk = disk.get_all(&wanted, now);
            count_hits("disk", on_disk.iter().flatten().count());
            let known = unknown.into_iter().zip(on_disk).filter_map(|(idx, known)| Some((idx, known?)));
            self.keep(known.map(|(idx, known)| {
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
        self.keep(all.into_iter());
    }

    /// Keeps in memory what is known since a time.
    fn keep(&self, all: impl Iterator<Item = (Key, Known)>) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, Known { embedded, since }) in all {
            let n_bytes = ENTRY_BYTES + size_of_val(&embedded.numbers[..]);
            memory.insert(key, embedded, n_bytes, since);
        }
        metrics::gauge!(telemetry::EMBEDDING_CACHE_BYTES, "tier" => "memory").set(memory.n_bytes() as f64);
    }
}

fn count_hits(tier: &'static str, n: usize) {
    metrics::counter!(telemetry::EMBEDDING_CACHE_HITS, "tier" => tier).increment(n as u64);
}

/// Bytes of an entry beside its numbers, about: key, list, table and counters.
const ENTRY_BYTES: usize = 256;

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
