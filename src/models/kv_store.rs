//! The keys and values of all sequences, in numbered blocks of [`BLOCK_TOKENS`] tokens.
//!
//! Layers that see equally far back share blocks; each group of them has its own, with names of its own.
//! Which blocks a sequence has is decided elsewhere: sequences that begin alike may read the same ones. A
//! token is written in place, and what came before is never copied.

use candle_core::{Device, Tensor};

use super::decoder::KvGroup;
use super::{ForwardInput, ModelConfig};
use crate::error::{Error, Result};
use crate::kernels::attention::kv_block::{BLOCK_TOKENS, KvBlock, KvFormat, KvLayout, Row};
use crate::kernels::attention::{KvRef, Sequence};

/// Names a sequence within one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Names a block within one [`KvStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// As many blocks in a row as `n_tokens` tokens take, from `first` on: for who has a few sequences and
    /// a place for each.
    pub fn run(first: u32, n_tokens: usize) -> BlockTable {
        (first..).map(|id| Some(Self(id))).take(n_tokens.div_ceil(BLOCK_TOKENS)).collect()
    }
}

/// The blocks of a sequence, from its first token on, in one group of layers; none in place of one whose tokens
/// no layer of the group sees any more.
pub type BlockTable = Vec<Option<BlockId>>;

/// Blocks, which take memory from when they are first used.
#[derive(Debug)]
pub struct KvStore {
    groups: Vec<Group>,
}

/// Blocks of one group of layers.
#[derive(Debug)]
struct Group {
    layout: KvLayout,
    blocks: Vec<KvBlock>,
}

impl KvStore {
    /// A store for a model of this configuration.
    pub fn new(config: &ModelConfig, format: KvFormat) -> Self {
        let group = |layout| Group { layout, blocks: Vec::new() };
        Self { groups: layouts(config, format).map(group).collect() }
    }

    /// How many groups of layers there are.
    pub fn n_groups(&self) -> usize {
        self.groups.len()
    }

    /// What the blocks of a group look like.
    pub fn layout(&self, group: usize) -> KvLayout {
        self.groups[group].layout
    }

    /// The blocks of each sequence of a batch, for each group of layers; those that its first new tokens go to
    /// are emptied.
    ///
    /// # Errors
    /// When a sequence has too few blocks, or one that is written belongs to another as well.
    pub fn sequences(&mut self, input: &ForwardInput) -> Result<Vec<Vec<Sequence<'_>>>> {
        self.groups.iter_mut().enumerate().map(|(idx, group)| group.sequences(idx, input)).collect()
    }

    /// Bytes that a block takes in each group of a model of this shape.
    pub fn block_bytes(config: &ModelConfig, format: KvFormat) -> Vec<usize> {
        layouts(config, format).map(|layout| layout.block_bytes()).collect()
    }
}

impl Group {
    fn sequences(&mut self, idx: usize, input: &ForwardInput) -> Result<Vec<Sequence<'_>>> {
        let tables: Option<Vec<&BlockTable>> =
            input.block_tables.iter().map(|tables| tables.get(idx).or(tables.last())).collect();
        let tables = tables.ok_or_else(|| Error::internal("a sequence has no blocks"))?;
        let used = tables.iter().copied().flatten().flatten().map(|id| id.0 as usize + 1).max().unwrap_or(0);
        while self.blocks.len() < used {
            self.blocks.extend(self.layout.blocks());
        }
        let mut blocks: Vec<Option<&mut KvBlock>> = self.blocks[..used].iter_mut().map(Some).collect();
        // First what is written, which is left for nobody else.
        let mut own = Vec::with_capacity(input.spans.len());
        for (span, table) in input.spans.iter().zip(&tables) {
            let n_blocks = (span.start + span.len).div_ceil(BLOCK_TOKENS);
            let written = table.get(span.start / BLOCK_TOKENS..n_blocks).ok_or_else(|| {
                let (n, id) = (table.len(), span.sequence);
                Error::internal(format!("sequence {id:?} has {n} blocks and needs {n_blocks}"))
            })?;
            let mut of_sequence = Vec::with_capacity(written.len());
            for (idx, id) in written.iter().enumerate() {
                let id = id.ok_or_else(|| Error::internal("a block that is to be written is not there"))?;
                let block = blocks[id.0 as usize].take().ok_or_else(|| taken(id))?;
                if (span.start / BLOCK_TOKENS + idx) * BLOCK_TOKENS >= span.start {
                    // What no token has been written to must be numbers.
                    block.clear();
                }
                of_sequence.push(KvRef::Own(block));
            }
            own.push(of_sequence);
        }
        let shared: Vec<Option<&KvBlock>> = blocks.into_iter().map(|block| block.map(|b| &*b)).collect();
        let sequences = input.spans.iter().zip(&tables).zip(own);
        sequences
            .map(|((span, table), own)| {
                let past = table[..span.start / BLOCK_TOKENS].iter();
                let past = past.map(|id| match id {
                    Some(id) => shared[id.0 as usize].map(KvRef::Shared).ok_or_else(|| taken(*id)),
                    None => Ok(KvRef::Unseen),
                });
                let mut blocks = past.collect::<Result<Vec<_>>>()?;
                blocks.extend(own);
                Ok(Sequence { start: span.start, len: span.len, blocks })
            })
            .collect()
    }
}

fn taken(id: BlockId) -> Error {
    Error::internal(format!("{id:?} is written by one sequence and used by another"))
}

fn layouts(config: &ModelConfig, format: KvFormat) -> impl Iterator<Item = KvLayout> {
    let ModelConfig { n_kv_heads, head_dim, .. } = *config;
    let of_group = move |group: KvGroup| KvLayout { n_layers: group.n_layers, n_kv_heads, head_dim, format };
    config.kv_groups().into_iter().map(of_group)
}

/// Writes the `keys` and `values` of a sequence's new tokens, each `[n_kv_heads, n_new, head_dim]`, into a
/// layer and gives all of them up to the end, `[n_kv_heads, n_tokens, head_dim]`, and zeros for those that
/// nothing sees: what the kernel for attention does, for plain tensor operations.
///
/// # Errors
/// When a tensor operation fails.
pub fn append(
    sequence: &mut Sequence,
    layout: &KvLayout,
    layer: usize,
    keys: &Tensor,
    values: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let KvLayout { n_kv_heads, head_dim, .. } = *layout;
    let end = sequence.start + sequence.len;
    let mut all = [vec![0.0f32; n_kv_heads * end * head_dim], vec![0.0f32; n_kv_heads * end * head_dim]];
    for ((row, tensor), all) in [(Row::Key, keys), (Row::Value, values)].into_iter().zip(&mut all) {
        let new = tensor.flatten_all()?.to_vec1::<f32>()?;
        for head in 0..n_kv_heads {
            for position in 0..end {
                let (block, slot) = (&mut sequence.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
                if let Some(token) = position.checked_sub(sequence.start)
                    && let Some(block) = block.get_mut()
                {
                    let new = &new[(head * sequence.len + token) * head_dim..][..head_dim];
                    block.write(layer, head, slot, row, new);
                }
                let numbers = &mut all[(head * end + position) * head_dim..][..head_dim];
                if let Some(block) = block.get() {
                    block.read(layer, head, slot, row, numbers);
                }
            }
        }
    }
    let [keys, values] = all.map(|all| Tensor::from_vec(all, (n_kv_heads, end, head_dim), &Device::Cpu));
    Ok((keys?, values?))
}
