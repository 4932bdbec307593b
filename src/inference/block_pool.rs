//! The block pool of the paged KV cache: which blocks are free, in use, cached or evictable. Pure: ids and
//! counts only.
//!
//! A full block is cached under the [`PrefixId`] of what it holds. It stays cached when no sequence uses it any
//! more, until its memory is needed: then the least recently used block is evicted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use super::prefix_cache::PrefixId;
use crate::models::BlockId;

/// The blocks of one group of layers.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Blocks without cached contents. The lowest id is allocated first, so that little memory is ever touched.
    free: BinaryHeap<Reverse<BlockId>>,
    /// Blocks with cached contents, by the prefix that ends with them.
    cached: HashMap<PrefixId, BlockId>,
    /// Cached blocks that no sequence uses, by the time of their release.
    evictable: BTreeMap<u64, BlockId>,
    n_releases: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// Sequences that use it.
    ref_count: usize,
    /// The prefix that it is cached under.
    prefix: Option<PrefixId>,
    /// Its key in [`BlockPool::evictable`].
    released_at: u64,
}

/// A block to write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The block.
    pub id: BlockId,
    /// The prefix that was evicted to free it.
    pub evicted: Option<PrefixId>,
}

impl BlockPool {
    /// A pool of `n_blocks` free blocks.
    pub fn new(n_blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); n_blocks],
            free: (0..n_blocks as u32).map(|n| Reverse(BlockId(n))).collect(),
            cached: HashMap::new(),
            evictable: BTreeMap::new(),
            n_releases: 0,
        }
    }

    /// All blocks, in whatever state.
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be allocated: free and evictable ones.
    pub fn n_available(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// A block to write to, with a reference count of 1; `None` if all are in use. When none is free, the least
    /// recently used cached block is evicted.
    pub fn allocate(&mut self) -> Option<Allocation> {
        let allocation = match self.free.pop() {
            Some(Reverse(id)) => Allocation { id, evicted: None },
            None => {
                let (_, id) = self.evictable.pop_first()?;
                let evicted = self.blocks[id.0 as usize].prefix.take();
                evicted.and_then(|prefix| self.cached.remove(&prefix));
                Allocation { id, evicted }
            }
        };
        self.blocks[allocation.id.0 as usize].ref_count = 1;
        Some(allocation)
    }

    /// Whether a block ends this prefix.
    pub fn is_cached(&self, prefix: PrefixId) -> bool {
        self.cached.contains_key(&prefix)
    }

    /// The block that ends this prefix, with one more reference.
    pub fn acquire_cached(&mut self, prefix: PrefixId) -> Option<BlockId> {
        let id = *self.cached.get(&prefix)?;
        let block = &mut self.blocks[id.0 as usize];
        if block.ref_count == 0 {
            self.evictable.remove(&block.released_at);
        }
        block.ref_count += 1;
        Some(id)
    }

    /// Caches a block in use under the prefix that it ends. If another block is cached under it already, that one
    /// stays.
    pub fn cache(&mut self, id: BlockId, prefix: PrefixId) {
        if !self.is_cached(prefix) {
            self.cached.insert(prefix, id);
            self.blocks[id.0 as usize].prefix = Some(prefix);
        }
    }

    /// Forgets the contents that are cached under a prefix; their block is free once no sequence uses it.
    pub fn evict(&mut self, prefix: PrefixId) {
        let Some(id) = self.cached.remove(&prefix) else { return };
        let block = &mut self.blocks[id.0 as usize];
        block.prefix = None;
        if block.ref_count == 0 {
            self.evictable.remove(&block.released_at);
            self.free.push(Reverse(id));
        }
    }

    /// Drops a sequence's references to `blocks`, given in order. The last become evictable before the first,
    /// without which no look-up would reach them.
    pub fn release(&mut self, blocks: impl DoubleEndedIterator<Item = BlockId>) {
        for id in blocks.rev() {
            let block = &mut self.blocks[id.0 as usize];
            block.ref_count -= 1;
            if block.ref_count > 0 {
                continue;
            }
            if block.prefix.is_none() {
                self.free.push(Reverse(id));
                continue;
            }
            self.n_releases += 1;
            block.released_at = self.n_releases;
            self.evictable.insert(self.n_releases, id);
        }
    }

    /// Asserts that every block is free, evictable or in use, and only one of these, given all references.
    #[cfg(test)]
    pub fn check_integrity<'a>(&self, references: impl Iterator<Item = &'a BlockId>) {
        let mut ref_counts = vec![0; self.n_blocks()];
        references.for_each(|id| ref_counts[id.0 as usize] += 1);
        let mut n_available = vec![0; self.n_blocks()];
        self.free.iter().for_each(|Reverse(id)| n_available[id.0 as usize] += 1);
        self.evictable.values().for_each(|id| n_available[id.0 as usize] += 1);
        for (idx, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.ref_count, ref_counts[idx], "references to block {idx}");
            assert_eq!(n_available[idx], usize::from(block.ref_count == 0), "block {idx} is available");
            if let Some(prefix) = block.prefix {
                assert_eq!(self.cached.get(&prefix), Some(&BlockId(idx as u32)));
            }
        }
        assert_eq!(self.cached.len(), self.blocks.iter().filter(|block| block.prefix.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: PrefixId = PrefixId(1);
    const TWO: PrefixId = PrefixId(2);
    const THREE: PrefixId = PrefixId(3);

    fn allocate(pool: &mut BlockPool) -> Option<BlockId> {
        pool.allocate().map(|allocation| allocation.id)
    }

    #[test]
    fn cached_blocks_are_found() {
        let mut pool = BlockPool::new(4);
        let (a, b) = (allocate(&mut pool).unwrap(), allocate(&mut pool).unwrap());
        pool.cache(a, ONE);
        pool.cache(b, TWO);
        pool.release([a, b].into_iter());
        pool.check_integrity([].iter());

        let mut acquire = |prefix| pool.acquire_cached(prefix);
        assert_eq!((acquire(ONE), acquire(TWO), acquire(THREE)), (Some(a), Some(b), None));
        pool.check_integrity([a, b].iter());
    }

    #[test]
    fn eviction_takes_the_least_recently_used_and_suffixes_before_prefixes() {
        let mut pool = BlockPool::new(3);
        let [a, b, c] = [(); 3].map(|()| allocate(&mut pool).unwrap());
        assert_eq!(pool.allocate(), None, "all are in use");
        pool.cache(a, ONE);
        pool.cache(b, TWO);
        pool.cache(c, THREE);
        pool.release([a, b].into_iter());
        pool.release([c].into_iter());
        assert_eq!(pool.n_available(), 3);
        assert_eq!(pool.allocate(), Some(Allocation { id: b, evicted: Some(TWO) }));
        assert!(!pool.is_cached(TWO));
        assert_eq!(pool.allocate(), Some(Allocation { id: a, evicted: Some(ONE) }));
        assert_eq!(pool.acquire_cached(THREE), Some(c));
        pool.check_integrity([a, b, c].iter());
    }

    #[test]
    fn the_first_of_two_blocks_with_one_prefix_stays_cached() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (allocate(&mut pool).unwrap(), allocate(&mut pool).unwrap());
        pool.cache(a, ONE);
        pool.cache(b, ONE);
        pool.release([b].into_iter());
        pool.check_integrity([a].iter());
        assert_eq!(allocate(&mut pool), Some(b), "it was not cached");
    }
}
