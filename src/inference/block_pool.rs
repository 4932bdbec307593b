//! Who has which block of keys and values. Pure: names and counts only.
//!
//! A full block is known by its tokens and by the block before it, back to the first one and whoever may
//! share it: so a prompt that begins like another finds the other's blocks, and two that differ anywhere
//! before never meet. Tokens are compared, not a digest of them, so no two contents are ever mistaken for
//! each other. A block that nobody uses any more stays known until its room is needed; the one that has
//! been unused for longest goes first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::kernels::kv::BLOCK_TOKENS;
use crate::models::BlockId;

/// What comes before a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Parent {
    /// Nothing: it is the first, of those who share a name.
    Root(Arc<str>),
    /// The block that was published under this number.
    Block(u64),
}

/// The content of a full block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Content {
    parent: Parent,
    tokens: [u32; BLOCK_TOKENS],
}

/// All blocks there are.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Those without content, of which the first is taken next: so few are touched at all.
    free: BinaryHeap<Reverse<BlockId>>,
    published: HashMap<Content, BlockId>,
    /// Those that are known and not used, by when that began.
    unused: BTreeMap<u64, BlockId>,
    n_published: u64,
    n_releases: u64,
}

#[derive(Debug, Clone, Default)]
struct Block {
    n_users: usize,
    /// What is known to be in it, and the number it was published under.
    content: Option<(Content, u64)>,
    unused_since: u64,
}

impl BlockPool {
    pub fn new(n_blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); n_blocks],
            free: (0..n_blocks as u32).map(|n| Reverse(BlockId(n))).collect(),
            published: HashMap::new(),
            unused: BTreeMap::new(),
            n_published: 0,
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
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = match self.free.pop() {
            Some(Reverse(id)) => id,
            None => {
                let (_, id) = self.unused.pop_first()?;
                if let Some((content, _)) = self.blocks[id.0 as usize].content.take() {
                    self.published.remove(&content);
                }
                id
            }
        };
        self.blocks[id.0 as usize].n_users = 1;
        Some(id)
    }

    /// The block that holds `tokens` after `parent`, for one user more, and what comes after it.
    pub fn find(&mut self, parent: &Parent, tokens: &[u32; BLOCK_TOKENS]) -> Option<(BlockId, Parent)> {
        let content = Content { parent: parent.clone(), tokens: *tokens };
        let id = *self.published.get(&content)?;
        let block = &mut self.blocks[id.0 as usize];
        if block.n_users == 0 {
            self.unused.remove(&block.unused_since);
        }
        block.n_users += 1;
        block.content.as_ref().map(|(_, number)| (id, Parent::Block(*number)))
    }

    /// Makes known that a block, which somebody uses, holds `tokens` after `parent`; gives what comes after
    /// it. Of two with the same content the first stays known.
    pub fn publish(&mut self, id: BlockId, parent: &Parent, tokens: &[u32; BLOCK_TOKENS]) -> Parent {
        let content = Content { parent: parent.clone(), tokens: *tokens };
        if let Some(known) = self.published.get(&content)
            && let Some((_, number)) = &self.blocks[known.0 as usize].content
        {
            return Parent::Block(*number);
        }
        self.n_published += 1;
        self.published.insert(content.clone(), id);
        self.blocks[id.0 as usize].content = Some((content, self.n_published));
        Parent::Block(self.n_published)
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
            if let Some((content, _)) = &block.content {
                assert_eq!(self.published.get(content), Some(&BlockId(idx as u32)));
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

    #[test]
    fn what_begins_alike_is_found_and_nothing_else() {
        let mut pool = BlockPool::new(4);
        let root = Parent::Root("".into());
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        let after_a = pool.publish(a, &root, &tokens(1));
        pool.publish(b, &after_a, &tokens(2));
        pool.release([a, b].into_iter());
        pool.check_integrity([].iter());

        assert_eq!(pool.find(&root, &tokens(1)), Some((a, after_a.clone())));
        assert_eq!(pool.find(&after_a, &tokens(2)).map(|(id, _)| id), Some(b));
        assert_eq!(pool.find(&root, &tokens(2)), None, "another beginning");
        assert_eq!(pool.find(&Parent::Root("other".into()), &tokens(1)), None, "another's");
        pool.check_integrity([a, b].iter());
    }

    #[test]
    fn the_longest_unused_is_forgotten_first_and_ends_before_beginnings() {
        let mut pool = BlockPool::new(3);
        let root = Parent::Root("".into());
        let (a, b, c) = (pool.allocate().unwrap(), pool.allocate().unwrap(), pool.allocate().unwrap());
        assert_eq!(pool.allocate(), None, "all are in use");
        let after_a = pool.publish(a, &root, &tokens(1));
        pool.publish(b, &after_a, &tokens(2));
        pool.publish(c, &root, &tokens(3));
        pool.release([a, b].into_iter());
        pool.release([c].into_iter());
        assert_eq!(pool.n_available(), 3);
        assert_eq!(pool.allocate(), Some(b));
        assert_eq!(pool.find(&after_a, &tokens(2)), None);
        assert_eq!(pool.allocate(), Some(a));
        assert_eq!(pool.find(&root, &tokens(3)).map(|(id, _)| id), Some(c));
        pool.check_integrity([a, b, c].iter());
    }

    #[test]
    fn of_two_with_one_content_the_first_stays_known() {
        let mut pool = BlockPool::new(2);
        let root = Parent::Root("".into());
        let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
        let after = pool.publish(a, &root, &tokens(1));
        assert_eq!(pool.publish(b, &root, &tokens(1)), after);
        pool.release([b].into_iter());
        pool.check_integrity([a].iter());
        assert_eq!(pool.allocate(), Some(b), "it was not kept");
    }
}
