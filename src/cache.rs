//! What was computed before and may be asked for again: the least recently used goes first, nothing is given
//! out after its time, and all of it together takes no more bytes than it may.

use std::borrow::Borrow;
use std::hash::Hash;
use std::time::{Duration, SystemTime};

use lru::LruCache;

/// Values by their keys. Whoever asks says what time it is.
#[derive(Debug)]
pub struct Cache<K: Hash + Eq, V> {
    entries: LruCache<K, Entry<V>>,
    n_bytes: usize,
    max_bytes: usize,
    time_to_live: Duration,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    n_bytes: usize,
    since: SystemTime,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    pub fn new(max_bytes: usize, time_to_live: Duration) -> Self {
        Self { entries: LruCache::unbounded(), n_bytes: 0, max_bytes, time_to_live }
    }

    /// What is known of `key` at the time `now`.
    pub fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, now: SystemTime) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let since = self.entries.peek(key)?.since;
        if now.duration_since(since).unwrap_or_default() >= self.time_to_live {
            let old = self.entries.pop(key)?;
            self.n_bytes -= old.n_bytes;
            return None;
        }
        self.entries.get(key).map(|entry| entry.value.clone())
    }

    /// Keeps a value that is true since a time and takes `n_bytes`, its key included; one that takes more than
    /// all may is not kept.
    pub fn insert(&mut self, key: K, value: V, n_bytes: usize, since: SystemTime) {
        if n_bytes > self.max_bytes {
            return;
        }
        self.n_bytes += n_bytes;
        if let Some(old) = self.entries.put(key, Entry { value, n_bytes, since }) {
            self.n_bytes -= old.n_bytes;
        }
        while self.n_bytes > self.max_bytes
            && let Some((_, oldest)) = self.entries.pop_lru()
        {
            self.n_bytes -= oldest.n_bytes;
        }
    }

    /// Bytes that all values take.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
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
    fn nothing_is_given_out_after_its_time() {
        let start = SystemTime::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut cache = Cache::new(10, Duration::from_secs(60));
        cache.insert("a", 1, 4, start);
        assert_eq!(cache.get("a", at(59)), Some(1));
        assert_eq!(cache.get("a", at(60)), None, "being asked for does not keep it");
        assert_eq!(cache.n_bytes(), 0);
        cache.insert("a", 2, 4, at(60));
        assert_eq!(cache.get("a", at(100)), Some(2));
    }
}
