//! Block tables as the threads of a forward pass see them.

use std::marker::PhantomData;

use super::kv_block::{BLOCK_TOKENS, KvBlock};
use super::{MAX_DECODE_TOKENS, PagedAttention};

/// The new tokens of a sequence, and the blocks that hold its keys and values.
#[derive(Debug)]
pub struct SequenceKv<'a> {
    /// Position of the first new token.
    pub start: usize,
    /// Number of new tokens.
    pub len: usize,
    /// The sequence's block table, resolved: one block per [`BLOCK_TOKENS`] positions, with room for the new
    /// tokens. Blocks that new tokens are written to are [`KvRef::Own`].
    pub blocks: Vec<KvRef<'a>>,
}

/// A block of a sequence.
#[derive(Debug)]
pub enum KvRef<'a> {
    /// A block that is only read; other sequences with the same prefix may read it too.
    Shared(&'a KvBlock),
    /// A block that the sequence may write.
    Own(&'a mut KvBlock),
    /// No block, since no new token sees any of its positions.
    OutOfWindow,
}

impl KvRef<'_> {
    /// The block, unless it is out of the window.
    pub fn get(&self) -> Option<&KvBlock> {
        match self {
            Self::Shared(block) => Some(block),
            Self::Own(block) => Some(block),
            Self::OutOfWindow => None,
        }
    }

    /// The block, if the sequence may write it.
    pub fn get_mut(&mut self) -> Option<&mut KvBlock> {
        match self {
            Self::Shared(_) | Self::OutOfWindow => None,
            Self::Own(block) => Some(block),
        }
    }
}

/// Position of the first key that a query at `position` sees. A sliding `window` is the most keys that it
/// sees, its own included.
pub fn window_start(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// A [`SequenceKv`] whose blocks have been checked. It has pointers in place of references, since threads
/// write different tokens of the same block.
pub(super) struct PagedSequence<'a> {
    /// Position of the first new token.
    pub(super) start: usize,
    /// Number of new tokens.
    pub(super) len: usize,
    /// Row of the first new token in the batch.
    pub(super) first_row: usize,
    n_kv_heads: usize,
    /// `KvLayout::head_bytes`, which takes too long to compute at each step.
    head_bytes: usize,
    /// The layer of each block.
    blocks: Vec<BlockPtr>,
    /// The blocks stay borrowed for as long as the pointers are used.
    lifetime: PhantomData<&'a mut KvBlock>,
}

/// Start of a layer of a block; null where the block is out of the window.
#[derive(Clone, Copy)]
struct BlockPtr(*mut u8);

// SAFETY: only `PagedSequence` uses the pointer; its functions leave it to their callers that no thread
// writes what another one uses.
unsafe impl Send for BlockPtr {}
// SAFETY: a shared reference gives no more access than a copy, which may be sent.
unsafe impl Sync for BlockPtr {}

impl<'a> PagedSequence<'a> {
    /// Checks the blocks of a sequence whose first new token is in `first_row` of the batch.
    ///
    /// # Panics
    /// When there are too few blocks, a block in the window is missing or of another layout, or a block to be
    /// written is not the sequence's own.
    pub(super) fn new(attention: &PagedAttention, sequence: &'a mut SequenceKv, first_row: usize) -> Self {
        let SequenceKv { start, len, ref blocks } = *sequence;
        let PagedAttention { layout, layer, .. } = *attention;
        assert!(layer < layout.n_layers);
        assert!(
            blocks.len() * BLOCK_TOKENS >= start + len,
            "{} blocks for {} tokens",
            blocks.len(),
            start + len
        );
        let written = start / BLOCK_TOKENS..(start + len).div_ceil(BLOCK_TOKENS);
        let is_own = |block: &KvRef| matches!(block, KvRef::Own(_));
        assert!(blocks[written].iter().all(is_own), "new tokens would be written to a shared block");
        let n_out_of_window = window_start(start, attention.window) / BLOCK_TOKENS;
        assert!(
            blocks[n_out_of_window..].iter().all(|block| block.get().is_some()),
            "a block in the attention window is missing"
        );
        let layer_offset = layout.keys_offset(layer, 0);
        let pointer = |block: &KvRef| {
            let start = block.get().map(|block| block.start_for(&layout).wrapping_add(layer_offset));
            BlockPtr(start.unwrap_or(std::ptr::null_mut()))
        };
        let blocks = blocks.iter().map(pointer).collect();
        let (n_kv_heads, head_bytes) = (layout.n_kv_heads, layout.head_bytes());
        Self { start, len, first_row, n_kv_heads, head_bytes, blocks, lifetime: PhantomData }
    }

    /// Number of tokens, the new ones included.
    pub(super) fn n_tokens(&self) -> usize {
        self.start + self.len
    }

    /// Whether the sequence is decoded: whether it has so few new tokens that its keys are cut among threads.
    pub(super) fn is_decode(&self) -> bool {
        self.len <= MAX_DECODE_TOKENS
    }

    /// Address of a head's keys in a block, its values and their scales behind them.
    #[inline(always)]
    pub(super) fn head_ptr(&self, kv_head: usize, block: usize) -> *mut u8 {
        self.blocks[block].0.wrapping_add(kv_head * self.head_bytes)
    }

    /// A head's keys in a block, its values and their scales: `KvLayout::head_bytes` bytes.
    ///
    /// # Safety
    /// Nobody writes to this head of this block while the slice is in use.
    ///
    /// # Panics
    /// When there is no such head, or the block is out of the window.
    #[inline(always)]
    pub(super) unsafe fn head(&self, kv_head: usize, block: usize) -> &[u8] {
        assert!(kv_head < self.n_kv_heads && !self.blocks[block].0.is_null());
        // SAFETY: `new` checked that the block has this layout and the layer; the block and the head were
        // checked above.
        unsafe { std::slice::from_raw_parts(self.head_ptr(kv_head, block), self.head_bytes) }
    }
}
