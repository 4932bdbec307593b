//! A generic LRU cache with a time to live and a byte budget.

use std::borrow::Borrow;
use std::hash::Hash;
use std::time::{Duration, SystemTime};

use lru::LruCache;
use sha2::{Digest, Sha256};

/// An LRU cache. Entries expire after a time to live, and the least recently used are evicted to keep within a
/// byte budget. The caller supplies the time.
#[derive(Debug)]
pub struct Cache<K: Hash + Eq, V> {
    entries: LruCache<K, CacheEntry<V>>,
    n_bytes: usize,
    max_bytes: usize,
    time_to_live: Duration,
}

#[derive(Debug)]
struct CacheEntry<V> {
    value: V,
    n_bytes: usize,
    since: SystemTime,
}

/// A digest in hex of a name that a client chose, such as a token or a salt, for use in the keys of caches: its
/// length does not depend on the name, and the name cannot be read from it.
pub fn name_digest(name: &[u8]) -> String {
    Sha256::digest(name).iter().take(NAME_DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// Length of a [`name_digest`] before it is written in hex; enough that nobody finds two names with one digest.
const NAME_DIGEST_BYTES: usize = 16;

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    /// An empty cache for at most `max_bytes`, whose entries expire after `time_to_live`.
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self { entries: LruCache::unbounded(), n_bytes: 0, max_bytes, time_to_live }
    }

    /// Returns the value of `key`, unless it has expired by `now`.
    pub fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, now: SystemTime) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let since = self.entries.peek(key)?.since;
        if now.duration_since(since).unwrap_or_default() >= self.time_to_live {
            let expired = self.entries.pop(key)?;
            self.n_bytes -= expired.n_bytes;
            return None;
        }
        self.entries.get(key).map(|entry| entry.value.clone())
    }

    /// Inserts a value of `n_bytes`, its key included, whose time to live begins at `since`. A value that exceeds
    /// the whole budget is dropped.
    pub fn insert(&mut self, key: K, value: V, n_bytes: usize, since: SystemTime) {
        if n_bytes > self.max_bytes {
            return;
        }
        self.n_bytes += n_bytes;
        if let Some(replaced) = self.entries.put(key, CacheEntry { value, n_bytes, since }) {
            self.n_bytes -= replaced.n_bytes;
        }
        while self.n_bytes > self.max_bytes
            && let Some((_, evicted)) = self.entries.pop_lru()
        {
            self.n_bytes -= evicted.n_bytes;
        }
    }

    /// Bytes of all entries.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evicts_the_least_recently_used() {
        let now = SystemTime::now();
        let mut cache = Cache::new(10, Duration::from_secs(60));
        cache.insert("a", 1, 4, now);
        cache.insert("b", 2, 4, now);
        assert_eq!(cache.get("a", now), Some(1));
        cache.insert("c", 3, 4, now);
        assert_eq!((cache.get("a", now), cache.get("b", now), cache.get("c", now)), (Some(1), None, Some(3)));
        assert_eq!(cache.n_bytes(), 8);
        cache.insert("a", 4, 10, now);
        assert_eq!((cache.get("a", now), cache.get("c", now), cache.n_bytes()), (Some(4), None, 10));
        cache.insert("d", 5, 11, now);
        assert_eq!((cache.get("d", now), cache.n_bytes()), (None, 10));
    }

    #[test]
    fn entries_expire() {
        let start = SystemTime::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut cache = Cache::new(10, Duration::from_secs(60));
        cache.insert("a", 1, 4, start);
        assert_eq!(cache.get("a", at(59)), Some(1));
        assert_eq!(cache.get("a", at(60)), None, "a look-up does not extend the time to live");
        assert_eq!(cache.n_bytes(), 0);
        cache.insert("a", 2, 4, at(60));
        assert_eq!(cache.get("a", at(100)), Some(2));
    }
}
