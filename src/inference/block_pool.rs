//! Who has which block of keys and values. Pure: names and counts only.
//!
//! A full block is known by its tokens and by the block before it, back to the first one and whoever may
//! share it: so a prompt that begins like another finds the other's blocks, and two that differ anywhere
//! before never meet. Tokens are compared, not a digest of them, so no two contents are ever mistaken for
//! each other. [`Prefixes`] gives each content a number, by which every group of layers knows its own block
//! with it in its [`BlockPool`]. A block that nobody uses any more stays known until its room is needed; the
//! one that has been unused for longest goes first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::models::{BLOCK_TOKENS, BlockId};

/// What comes before a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Parent {
    /// Nothing: it is the first, of those who share a name.
    Root(Arc<str>),
    /// The content of this number.
    Content(u64),
}

/// Numbers of contents: of all that blocks hold somewhere.
#[derive(Debug, Default)]
pub struct Prefixes {
    numbers: HashMap<Content, u64>,
    contents: HashMap<u64, Content>,
    n_numbered: u64,
}

/// The content of a full block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Content {
    parent: Parent,
    tokens: [u32; BLOCK_TOKENS],
}

impl Prefixes {
    /// The number of `tokens` after `parent`, if it is known.
    pub fn find(&self, parent: &Parent, tokens: &[u32; BLOCK_TOKENS]) -> Option<u64> {
        self.numbers.get(&Content { parent: parent.clone(), tokens: *tokens }).copied()
    }

    /// The number of `tokens` after `parent`, a new one if it is not known.
    pub fn number(&mut self, parent: &Parent, tokens: &[u32; BLOCK_TOKENS]) -> u64 {
        let content = Content { parent: parent.clone(), tokens: *tokens };
        *self.numbers.entry(content).or_insert_with_key(|content| {
            self.n_numbered += 1;
            self.contents.insert(self.n_numbered, content.clone());
            self.n_numbered
        })
    }

    /// Forgets a content. What came after it is never found again.
    pub fn forget(&mut self, number: u64) {
        if let Some(content) = self.contents.remove(&number) {
            self.numbers.remove(&content);
        }
    }
}

/// All blocks of one group of layers.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Those without content, of which the first is taken next: so few are touched at all.
    free: BinaryHeap<Reverse<BlockId>>,
    /// Those that are known, by the number of their content.
    published: HashMap<u64, BlockId>,
    /// Those that are known and not used, by when that began.
    unused: BTreeMap<u64, BlockId>,
    n_releases: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    n_users: usize,
    /// The number of what is known to be in it.
    content: Option<u64>,
    unused_since: u64,
}

/// A block to write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocated {
    pub id: BlockId,
    /// The number of what was in it until now and is there no more.
    pub forgotten: Option<u64>,
}

impl BlockPool {
    pub fn new(n_blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); n_blocks],
            free: (0..n_blocks as u32).map(|n| Reverse(BlockId(n))).collect(),
            published: HashMap::new(),
            unused: BTreeMap::new(),
            n_releases: 0,
        }
    }

    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be had: those without content and those that nobody uses.
    pub fn n_available(&self) -> usize {
        self.free.len() + self.unused.len()
    }

    /// A block to write to, if there is one; what nobody uses may be forgotten for it.
    pub fn allocate(&mut self) -> Option<Allocated> {
        let allocated = match self.free.pop() {
            Some(Reverse(id)) => Allocated { id, forgotten: None },
            None => {
                let (_, id) = self.unused.pop_first()?;
                let forgotten = self.blocks[id.0 as usize].content.take();
                forgotten.and_then(|number| self.published.remove(&number));
                Allocated { id, forgotten }
            }
        };
        self.blocks[allocated.id.0 as usize].n_users = 1;
        Some(allocated)
    }

    /// Whether a block holds the content of this number.
    pub fn knows(&self, content: u64) -> bool {
        self.published.contains_key(&content)
    }

    /// The block that holds the content of this number, for one user more.
    pub fn find(&mut self, content: u64) -> Option<BlockId> {
        let id = *self.published.get(&content)?;
        let block = &mut self.blocks[id.0 as usize];
        if block.n_users == 0 {
            self.unused.remove(&block.unused_since);
        }
        block.n_users += 1;
        Some(id)
    }

    /// Makes known that a block, which somebody uses, holds the content of this number. Of two with the same
    /// content the first stays known.
    pub fn publish(&mut self, id: BlockId, content: u64) {
        if !self.knows(content) {
            self.published.insert(content, id);
            self.blocks[id.0 as usize].content = Some(content);
        }
    }

    /// Gives back blocks of a sequence, in order. The last are forgotten before the first, without which nobody
    /// would find them.
    pub fn release(&mut self, blocks: impl DoubleEndedIterator<Item = BlockId>) {
        for id in blocks.rev() {
            let block = &mut self.blocks[id.0 as usize];
            block.n_users -= 1;
            if block.n_users > 0 {
                continue;
            }
            if block.content.is_none() {
                self.free.push(Reverse(id));
                continue;
            }
            self.n_releases += 1;
            block.unused_since = self.n_releases;
            self.unused.insert(self.n_releases, id);
        }
    }

    /// Whether each block is in exactly one place, given what is in use.
    #[cfg(test)]
    pub fn check_integrity<'a>(&self, in_use: impl Iterator<Item = &'a BlockId>) {
        let mut n_users = vec![0; self.n_blocks()];
        in_use.for_each(|id| n_users[id.0 as usize] += 1);
        let mut n_free = vec![0; self.n_blocks()];
        self.free.iter().for_each(|Reverse(id)| n_free[id.0 as usize] += 1);
        self.unused.values().for_each(|id| n_free[id.0 as usize] += 1);
        for (idx, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.n_users, n_users[idx], "users of block {idx}");
            assert_eq!(n_free[idx], usize::from(block.n_users == 0), "places of block {idx}");
            if let Some(content) = block.content {
                assert_eq!(self.published.get(&content), Some(&BlockId(idx as u32)));
            }
        }
        assert_eq!(self.published.len(), self.blocks.iter().filter(|b| b.content.is_some()).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(n: u32) -> [u32; BLOCK_TOKENS] {
        [n; BLOCK_TOKENS]
    }

    fn allocate(pool: &mut BlockPool) -> Option<BlockId> {
        pool.allocate().map(|allocated| allocated.id)
    }

    #[test]
    fn contents_are_told_apart_by_all_that_came_before() {
        let mut prefixes = Prefixes::default();
        let root = Parent::Root("".into());
        let a = prefixes.number(&root, &tokens(1));
        let b = prefixes.number(&Parent::Content(a), &tokens(2));
        assert_eq!(prefixes.number(&root, &tokens(1)), a);
        assert_eq!(prefixes.find(&Parent::Content(a), &tokens(2)), Some(b));
        assert_eq!(prefixes.find(&root, &tokens(2)), None, "another beginning");
        assert_eq!(prefixes.find(&Parent::Root("other".into()), &tokens(1)), None, "another's");
        prefixes.forget(a);
        assert_eq!(prefixes.find(&root, &tokens(1)), None);
        assert!(prefixes.number(&root, &tokens(1)) > b, "a number is never used again");
    }

    #[test]
    fn what_is_published_is_found() {
        let mut pool = BlockPool::new(4);
        let (a, b) = (allocate(&mut pool).unwrap(), allocate(&mut pool).unwrap());
        pool.publish(a, 1);
        pool.publish(b, 2);
        pool.release([a, b].into_iter());
        pool.check_integrity([].iter());

        assert_eq!((pool.find(1), pool.find(2), pool.find(3)), (Some(a), Some(b), None));
        pool.check_integrity([a, b].iter());
    }

    #[test]
    fn the_longest_unused_is_forgotten_first_and_ends_before_beginnings() {
        let mut pool = BlockPool::new(3);
        let [a, b, c] = [(); 3].map(|()| allocate(&mut pool).unwrap());
        assert_eq!(pool.allocate(), None, "all are in use");
        pool.publish(a, 1);
        pool.publish(b, 2);
        pool.publish(c, 3);
        pool.release([a, b].into_iter());
        pool.release([c].into_iter());
        assert_eq!(pool.n_available(), 3);
        assert_eq!(pool.allocate(), Some(Allocated { id: b, forgotten: Some(2) }));
        assert!(!pool.knows(2));
        assert_eq!(pool.allocate(), Some(Allocated { id: a, forgotten: Some(1) }));
        assert_eq!(pool.find(3), Some(c));
        pool.check_integrity([a, b, c].iter());
    }

    #[test]
    fn of_two_with_one_content_the_first_stays_known() {
        let mut pool = BlockPool::new(2);
        let (a, b) = (allocate(&mut pool).unwrap(), allocate(&mut pool).unwrap());
        pool.publish(a, 1);
        pool.publish(b, 1);
        pool.release([b].into_iter());
        pool.check_integrity([a].iter());
        assert_eq!(allocate(&mut pool), Some(b), "it was not kept");
    }
}
