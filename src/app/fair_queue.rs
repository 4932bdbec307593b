//! A queue that serves tenants in equal shares: start-time fair queueing (Goyal, Vin and Cheng, 1996) with the size of
//! an item as its cost. Pure: no clock, no thread.
//!
//! However much one tenant queues, an item of another tenant that has nothing in the queue goes next.

use std::collections::HashMap;
use std::sync::Arc;

/// The cost of an item besides its bytes.
const ITEM_COST: u64 = 1 << 10;

/// Tenants without waiting items whose service is remembered, at most.
const MAX_REMEMBERED: usize = 64;

/// Items that wait, each on behalf of a tenant.
#[derive(Debug)]
pub struct FairQueue<T> {
    /// In order of arrival.
    waiting: Vec<QueuedItem<T>>,
    /// The virtual time at which all of a tenant's items are served.
    finish_times: HashMap<Arc<str>, u64>,
    /// The start tag of the item served last; not beyond that of any waiting item.
    virtual_time: u64,
    n_pushed: u64,
}

/// An item with its place in the queue.
#[derive(Debug)]
pub struct QueuedItem<T> {
    /// Identifies the item within its queue.
    pub id: u64,
    /// The size that the item was queued with.
    pub n_bytes: usize,
    /// The item.
    pub item: T,
    tenant: Arc<str>,
    /// The virtual time at which its service begins.
    start_tag: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), finish_times: HashMap::new(), virtual_time: 0, n_pushed: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Queues an item of `n_bytes`, and returns its id.
    pub fn push(&mut self, tenant: &Arc<str>, n_bytes: usize, item: T) -> u64 {
        self.n_pushed += 1;
        let finish_time = self.finish_times.entry(tenant.clone()).or_default();
        let start_tag = self.virtual_time.max(*finish_time);
        *finish_time = start_tag + n_bytes as u64 + ITEM_COST;
        self.waiting.push(QueuedItem { id: self.n_pushed, n_bytes, item, tenant: tenant.clone(), start_tag });
        self.n_pushed
    }

    /// Takes the next item of at most `max_bytes` out of the queue.
    pub fn pop(&mut self, max_bytes: usize) -> Option<QueuedItem<T>> {
        let eligible = self.waiting.iter().enumerate().filter(|(_, item)| item.n_bytes <= max_bytes);
        // Of equal tags, the first to arrive.
        let (idx, _) = eligible.min_by_key(|(_, item)| item.start_tag)?;
        let item = self.waiting.remove(idx);
        // An item that passes larger ones does not advance the time beyond theirs.
        let earliest = self.waiting.iter().map(|waiting| waiting.start_tag).fold(item.start_tag, u64::min);
        self.virtual_time = self.virtual_time.max(earliest);
        self.forget_served_tenants();
        Some(item)
    }

    /// Removes an item; returns whether it still waited.
    pub fn remove(&mut self, id: u64) -> bool {
        let n_before = self.waiting.len();
        self.waiting.retain(|item| item.id != id);
        self.forget_served_tenants();
        self.waiting.len() < n_before
    }

    /// The waiting items, in order of arrival.
    pub fn iter(&self) -> impl Iterator<Item = &QueuedItem<T>> {
        self.waiting.iter()
    }

    /// Forgets the service of tenants that wait for nothing, so that the table does not grow with every tenant ever
    /// seen.
    fn forget_served_tenants(&mut self) {
        if self.waiting.is_empty() {
            self.finish_times.clear();
            self.virtual_time = 0;
        } else if self.finish_times.len() > self.waiting.len() + MAX_REMEMBERED {
            let waiting = &self.waiting;
            self.finish_times.retain(|tenant, _| waiting.iter().any(|item| item.tenant == *tenant));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(items: &[(&str, usize)]) -> FairQueue<String> {
        let mut queue = FairQueue::default();
        for (idx, &(tenant, n_bytes)) in items.iter().enumerate() {
            queue.push(&tenant.into(), n_bytes, format!("{tenant}{idx}"));
        }
        queue
    }

    fn order(mut queue: FairQueue<String>) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(usize::MAX)).map(|item| item.item).collect()
    }

    #[test]
    fn tenants_share_by_bytes() {
        assert_eq!(order(queue(&[("a", 9), ("a", 9), ("a", 9)])), ["a0", "a1", "a2"]);
        assert_eq!(order(queue(&[("a", 9), ("a", 9), ("b", 9), ("b", 9)])), ["a0", "b2", "a1", "b3"]);
        // A large item is followed by as many small ones of the other tenant as it is worth.
        let mixed = [("a", 4 << 10), ("a", 4 << 10), ("b", 1 << 10), ("b", 1 << 10), ("b", 1 << 10)];
        assert_eq!(order(queue(&mixed)), ["a0", "b2", "b3", "b4", "a1"]);
    }

    #[test]
    fn a_newcomer_goes_next_and_gains_nothing_from_its_absence() {
        let mut queue = queue(&[("a", 1 << 20); 24]);
        for _ in 0..3 {
            queue.pop(usize::MAX);
        }
        queue.push(&"b".into(), 1 << 20, "b".to_owned());
        queue.push(&"b".into(), 1 << 20, "b again".to_owned());
        let next: Vec<String> =
            std::iter::from_fn(|| queue.pop(usize::MAX)).map(|item| item.item).take(4).collect();
        assert_eq!(next, ["b", "a3", "b again", "a4"]);
    }

    #[test]
    fn small_items_can_pass_large_ones() {
        let mut queue = queue(&[("a", 1 << 20), ("a", 1 << 20), ("a", 10)]);
        assert_eq!(queue.pop(1 << 10).unwrap().item, "a2");
        assert!(queue.pop(1 << 10).is_none());
        // That has cost other tenants nothing.
        queue.push(&"b".into(), 1 << 20, "b".to_owned());
        assert_eq!(order(queue), ["a0", "b", "a1"]);
    }

    #[test]
    fn removed_items_are_gone_and_tenants_are_forgotten() {
        let mut queue = queue(&[("a", 10), ("b", 10), ("c", 10)]);
        assert!(queue.remove(2) && !queue.remove(2));
        assert_eq!(order_of_ids(&queue), [1, 3]);
        while queue.pop(usize::MAX).is_some() {}
        assert!(queue.finish_times.is_empty());
        queue.push(&"kept".into(), 1 << 20, String::new());
        for tenant in 0..1000 {
            queue.push(&tenant.to_string().into(), 10, String::new());
            queue.pop(1 << 10);
        }
        assert!(queue.finish_times.len() <= MAX_REMEMBERED + 2, "{}", queue.finish_times.len());
    }

    fn order_of_ids(queue: &FairQueue<String>) -> Vec<u64> {
        queue.iter().map(|item| item.id).collect()
    }
}
