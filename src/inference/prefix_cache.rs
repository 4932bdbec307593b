//! The index of the prefix cache: an id for every prefix whose blocks the KV cache holds. Pure: tokens and
//! names only.
//!
//! A full block is identified by its contents and by the prefix before it, back to the first block and its
//! namespace. So a prompt that begins like another one finds the other's blocks, and two prompts that differ
//! anywhere before a block never share it. Tokens are compared, not a digest of them, so two prefixes are never
//! confused. Each group of layers finds its own block for a prefix under the [`PrefixId`], in its
//! [`BlockPool`](super::block_pool::BlockPool).

use std::collections::HashMap;
use std::sync::Arc;

use crate::models::BLOCK_TOKENS;

/// Names a prefix that ends with a full block. Ids are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixId(pub u64);

/// The text before a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PrefixParent {
    /// None: the block is the first of a sequence in this namespace.
    Namespace(Arc<str>),
    /// The prefix that ends just before the block.
    Prefix(PrefixId),
}

/// The contents of a full block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockContents {
    /// The tokens.
    pub tokens: [u32; BLOCK_TOKENS],
    /// How many of them, the first, are computed with activations that are rounded to 8 bits. Blocks that are computed
    /// with different precision differ, so that a cached prefix gives the same answer as one that is computed.
    pub n_rounded: u8,
}

/// The ids of all prefixes that some block holds.
#[derive(Debug, Default)]
pub struct PrefixIndex {
    ids: HashMap<PrefixKey, PrefixId>,
    keys: HashMap<PrefixId, PrefixKey>,
    n_assigned: u64,
}

/// The identity of a prefix: its last block and the prefix before that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PrefixKey {
    parent: PrefixParent,
    contents: BlockContents,
}

impl PrefixIndex {
    /// The id of the prefix that extends `parent` by a block, if it is cached.
    pub fn lookup(&self, parent: &PrefixParent, contents: BlockContents) -> Option<PrefixId> {
        self.ids.get(&PrefixKey { parent: parent.clone(), contents }).copied()
    }

    /// The id of the prefix that extends `parent` by a block; a new id if it has none yet.
    pub fn insert(&mut self, parent: &PrefixParent, contents: BlockContents) -> PrefixId {
        let key = PrefixKey { parent: parent.clone(), contents };
        *self.ids.entry(key).or_insert_with_key(|key| {
            self.n_assigned += 1;
            let id = PrefixId(self.n_assigned);
            self.keys.insert(id, key.clone());
            id
        })
    }

    /// Removes a prefix. Longer prefixes that extend it are not found any more either.
    pub fn evict(&mut self, id: PrefixId) {
        if let Some(key) = self.keys.remove(&id) {
            self.ids.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(n: u32) -> BlockContents {
        BlockContents { tokens: [n; BLOCK_TOKENS], n_rounded: 0 }
    }

    #[test]
    fn prefixes_differ_by_everything_before_them() {
        let mut index = PrefixIndex::default();
        let root = PrefixParent::Namespace("".into());
        let a = index.insert(&root, block(1));
        let b = index.insert(&PrefixParent::Prefix(a), block(2));
        assert_eq!(index.insert(&root, block(1)), a);
        assert_eq!(index.lookup(&PrefixParent::Prefix(a), block(2)), Some(b));
        assert_eq!(index.lookup(&root, block(2)), None, "another parent");
        assert_eq!(
            index.lookup(&PrefixParent::Namespace("other".into()), block(1)),
            None,
            "another namespace"
        );
        let rounded = BlockContents { n_rounded: 3, ..block(1) };
        assert_eq!(index.lookup(&root, rounded), None, "another precision");
        index.evict(a);
        assert_eq!(index.lookup(&root, block(1)), None);
        assert!(index.insert(&root, block(1)) > b, "an id is never reused");
    }
}
