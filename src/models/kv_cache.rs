//! The paged KV cache: keys and values in numbered blocks of [`BLOCK_TOKENS`] tokens.
//!
//! Layers with the same attention window and the same heads share blocks; each group of layers has its own blocks
//! and block ids.
//! Block tables come from the scheduler, and sequences with a common prefix share blocks. New keys and
//! values are written in place; cached ones are never copied.

use candle_core::Tensor;

use super::forward_input::{BlockId, BlockTable, ForwardInput};
use crate::error::{Error, Result};
use crate::kernels::attention::kv_block::{BLOCK_TOKENS, KvBlock, KvKind, KvLayout, KvRow};
use crate::kernels::attention::{KvRef, SequenceKv};
use crate::models::backend::DEVICE;

/// The blocks of all layer groups; memory is allocated when a block is first used.
#[derive(Debug)]
pub struct KvCache {
    groups: Vec<KvCacheGroup>,
}

/// The blocks of one group of layers.
#[derive(Debug)]
struct KvCacheGroup {
    layout: KvLayout,
    blocks: Vec<KvBlock>,
}

impl KvCache {
    /// An empty cache with one group per layout.
    pub fn new(layouts: Vec<KvLayout>) -> Self {
        let group = |layout| KvCacheGroup { layout, blocks: Vec::new() };
        Self { groups: layouts.into_iter().map(group).collect() }
    }

    /// The number of layer groups.
    pub fn n_groups(&self) -> usize {
        self.groups.len()
    }

    /// The block layout of a group.
    pub fn layout(&self, group: usize) -> KvLayout {
        self.groups[group].layout
    }

    /// Resolves the block tables of a batch: returns the blocks of each sequence, for each group of layers.
    /// Blocks whose first slot is about to be written are cleared.
    ///
    /// # Errors
    /// When a sequence has too few blocks, or a block to be written is used by another sequence, too.
    pub fn sequences(&mut self, input: &ForwardInput) -> Result<Vec<Vec<SequenceKv<'_>>>> {
        self.groups.iter_mut().enumerate().map(|(idx, group)| group.sequences(idx, input)).collect()
    }
}

impl KvCacheGroup {
    fn sequences(&mut self, group_idx: usize, input: &ForwardInput) -> Result<Vec<SequenceKv<'_>>> {
        let tables: Option<Vec<&BlockTable>> =
            input.block_tables.iter().map(|tables| tables.get(group_idx).or(tables.last())).collect();
        let tables = tables.ok_or_else(|| Error::internal("a sequence has no block table"))?;
        let n_used =
            tables.iter().copied().flatten().flatten().map(|id| id.0 as usize + 1).max().unwrap_or(0);
        while self.blocks.len() < n_used {
            self.blocks.extend(self.layout.allocate_blocks());
        }
        let mut blocks: Vec<Option<&mut KvBlock>> = self.blocks[..n_used].iter_mut().map(Some).collect();
        // Blocks to be written are taken out first: they must not be shared.
        let mut written = Vec::with_capacity(input.spans.len());
        for (span, table) in input.spans.iter().zip(&tables) {
            let n_blocks = (span.start + span.len).div_ceil(BLOCK_TOKENS);
            let ids = table.get(span.start / BLOCK_TOKENS..n_blocks).ok_or_else(|| {
                let (n, id) = (table.len(), span.sequence);
                Error::internal(format!("sequence {id:?} has {n} blocks and needs {n_blocks}"))
            })?;
            let mut own = Vec::with_capacity(ids.len());
            for (idx, id) in ids.iter().enumerate() {
                let id =
                    id.ok_or_else(|| Error::internal("a block to be written is missing from its table"))?;
                let block = blocks[id.0 as usize].take().ok_or_else(|| write_conflict(id))?;
                if (span.start / BLOCK_TOKENS + idx) * BLOCK_TOKENS >= span.start {
                    // The kernels read whole blocks, so unwritten slots must hold finite numbers.
                    block.clear();
                }
                own.push(KvRef::Own(block));
            }
            written.push(own);
        }
        let shared: Vec<Option<&KvBlock>> = blocks.into_iter().map(|block| block.map(|b| &*b)).collect();
        let sequences = input.spans.iter().zip(&tables).zip(written);
        sequences
            .map(|((span, table), own)| {
                let past = table[..span.start / BLOCK_TOKENS].iter();
                let past = past.map(|id| match id {
                    Some(id) => shared[id.0 as usize].map(KvRef::Shared).ok_or_else(|| write_conflict(*id)),
                    None => Ok(KvRef::OutOfWindow),
                });
                let mut blocks = past.collect::<Result<Vec<_>>>()?;
                blocks.extend(own);
                Ok(SequenceKv { start: span.start, len: span.len, blocks })
            })
            .collect()
    }
}

fn write_conflict(id: BlockId) -> Error {
    Error::internal(format!("{id:?} is written by one sequence and used by another"))
}

/// Writes the `keys` and `values` of a sequence's new tokens, each `[n_kv_heads, n_new, head_dim]`, into a
/// layer, and gathers those of all its tokens, each `[n_kv_heads, n_tokens, head_dim]`. Blocks outside the
/// attention window are zeros. The reference for the attention kernel's KV write.
///
/// # Errors
/// When a tensor operation fails.
pub fn write_and_gather(
    sequence: &mut SequenceKv,
    layout: &KvLayout,
    layer: usize,
    keys: &Tensor,
    values: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let KvLayout { n_kv_heads, head_dim, .. } = *layout;
    for (kind, tensor) in [(KvKind::Key, keys), (KvKind::Value, values)] {
        let new = tensor.flatten_all()?.to_vec1::<f32>()?;
        for head in 0..n_kv_heads {
            for token in 0..sequence.len {
                let position = sequence.start + token;
                if let Some(block) = sequence.blocks[position / BLOCK_TOKENS].get_mut() {
                    let new = &new[(head * sequence.len + token) * head_dim..][..head_dim];
                    block.write(KvRow { layer, head, slot: position % BLOCK_TOKENS, kind }, new);
                }
            }
        }
    }
    gather(sequence, layout, layer)
}

/// Gathers the keys and values of all tokens of a sequence in a layer, each `[n_kv_heads, n_tokens, head_dim]`. Blocks
/// outside the attention window are zeros.
///
/// # Errors
/// When a tensor operation fails.
pub fn gather(sequence: &SequenceKv, layout: &KvLayout, layer: usize) -> Result<(Tensor, Tensor)> {
    let KvLayout { n_kv_heads, head_dim, .. } = *layout;
    let end = sequence.start + sequence.len;
    let [keys, values] = [KvKind::Key, KvKind::Value].map(|kind| {
        let mut gathered = vec![0.0f32; n_kv_heads * end * head_dim];
        for (idx, row) in gathered.chunks_exact_mut(head_dim).enumerate() {
            let (head, position) = (idx / end, idx % end);
            if let Some(block) = sequence.blocks[position / BLOCK_TOKENS].get() {
                block.read(KvRow { layer, head, slot: position % BLOCK_TOKENS, kind }, row);
            }
        }
        Tensor::from_vec(gathered, (n_kv_heads, end, head_dim), &DEVICE)
    });
    Ok((keys?, values?))
}
