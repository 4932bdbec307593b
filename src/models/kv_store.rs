//! The keys and values of the sequences in flight.
//!
//! They lie in blocks of [`BLOCK_TOKENS`] tokens that belong to one sequence each: a token is written
//! in place, and what came before is never copied. Blocks of a sequence that is removed serve others.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::{ModelConfig, Span};
use crate::error::{Error, Result};
use crate::kernels::attention::Sequence;
use crate::kernels::kv::{BLOCK_TOKENS, KvBlock, KvFormat, KvLayout, Row};

/// Names a sequence within one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Blocks by sequence.
#[derive(Debug)]
pub struct KvStore {
    layout: KvLayout,
    sequences: HashMap<SequenceId, Blocks>,
    free: Vec<KvBlock>,
}

#[derive(Debug, Default)]
struct Blocks {
    blocks: Vec<KvBlock>,
    n_tokens: usize,
}

impl KvStore {
    /// A store for a model of this configuration.
    pub fn new(config: &ModelConfig, format: KvFormat) -> Self {
        Self { layout: layout(config, format), sequences: HashMap::new(), free: Vec::new() }
    }

    /// What the blocks look like.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// Makes room for the new tokens of a batch and gives each span's blocks.
    ///
    /// # Errors
    /// When a sequence has fewer tokens than its span starts at, or more than one span.
    pub fn extend(&mut self, spans: &[Span]) -> Result<Vec<Sequence<'_>>> {
        for span in spans {
            let sequence = self.sequences.entry(span.sequence).or_default();
            if span.start > sequence.n_tokens {
                return Err(Error::internal(format!(
                    "sequence {:?} has no tokens before position {}",
                    span.sequence, span.start
                )));
            }
            sequence.n_tokens = span.start + span.len;
            let n_blocks = sequence.n_tokens.div_ceil(BLOCK_TOKENS);
            while sequence.blocks.len() < n_blocks {
                if self.free.is_empty() {
                    // The last is taken first, and neighbours in memory are to follow each other.
                    self.free.extend(self.layout.blocks().into_iter().rev());
                }
                sequence.blocks.extend(self.free.pop());
            }
        }
        let mut of_sequence: HashMap<_, _> = self.sequences.iter_mut().collect();
        spans
            .iter()
            .map(|span| {
                let sequence = of_sequence.remove(&span.sequence).ok_or_else(|| {
                    Error::internal(format!("sequence {:?} has two spans in a batch", span.sequence))
                })?;
                let blocks = sequence.blocks.iter_mut().collect();
                Ok(Sequence { start: span.start, len: span.len, blocks })
            })
            .collect()
    }

    /// Forgets a sequence.
    pub fn remove(&mut self, sequence: SequenceId) {
        let blocks = self.sequences.remove(&sequence).unwrap_or_default().blocks;
        // What no token has been written to must be numbers.
        self.free.extend(blocks.into_iter().map(KvBlock::cleared));
    }

    /// How many sequences have tokens here.
    pub fn n_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens that a sequence of at most `n_tokens` may take room for.
    pub fn room(n_tokens: usize) -> usize {
        n_tokens.next_multiple_of(BLOCK_TOKENS)
    }

    /// Bytes that room for one token takes in a model of this shape.
    pub fn bytes_per_token(config: &ModelConfig, format: KvFormat) -> usize {
        layout(config, format).block_bytes() / BLOCK_TOKENS
    }
}

fn layout(config: &ModelConfig, format: KvFormat) -> KvLayout {
    KvLayout {
        n_layers: config.layers.len(),
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        format,
    }
}

/// Writes the `keys` and `values` of a sequence's new tokens, each `[n_kv_heads, n_new, head_dim]`, into a
/// layer and gives all of them up to the end, `[n_kv_heads, n_tokens, head_dim]`: what the kernel for
/// attention does, for plain tensor operations.
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
                if let Some(token) = position.checked_sub(sequence.start) {
                    let new = &new[(head * sequence.len + token) * head_dim..][..head_dim];
                    block.write(layer, head, slot, row, new);
                }
                let numbers = &mut all[(head * end + position) * head_dim..][..head_dim];
                block.read(layer, head, slot, row, numbers);
            }
        }
    }
    let [keys, values] = all.map(|all| Tensor::from_vec(all, (n_kv_heads, end, head_dim), &Device::Cpu));
    Ok((keys?, values?))
}
