//! The keys and values of the sequences in flight.
//!
//! Each sequence owns, per layer, one buffer for keys and one for values that doubles when it is
//! full: a token is written in place, so n tokens cost at most n copies of a token in all, never
//! a copy of the past per token.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::ModelConfig;
use crate::error::{Error, Result};

/// Names a sequence within one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Tokens a new sequence has room for before its buffers first grow.
const FIRST_CAPACITY: usize = 256;

/// Key and value tensors by sequence and layer.
#[derive(Debug, Default)]
pub struct KvStore {
    sequences: HashMap<SequenceId, Vec<Option<LayerKv>>>,
}

/// One layer's cache of one sequence; both tensors are float32 `[n_kv_heads, capacity, head_dim]`.
#[derive(Debug)]
struct LayerKv {
    keys: Tensor,
    values: Tensor,
    n_tokens: usize,
}

impl KvStore {
    /// Writes `keys` and `values`, each `[n_kv_heads, n_new, head_dim]`, at position `start` of a
    /// sequence's layer and returns all keys and values up to their end, as views
    /// `[n_kv_heads, start + n_new, head_dim]`.
    ///
    /// # Errors
    /// When the sequence has fewer than `start` tokens, or a tensor operation fails.
    pub fn append(
        &mut self,
        sequence: SequenceId,
        layer: usize,
        start: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (n_kv_heads, n_new, head_dim) = keys.dims3()?;
        let end = start + n_new;
        let layers = self.sequences.entry(sequence).or_default();
        if layers.len() <= layer {
            layers.resize_with(layer + 1, || None);
        }
        let slot = &mut layers[layer];
        let capacity = slot.as_ref().map_or(0, |kv| kv.keys.dims()[1]);
        if start > slot.as_ref().map_or(0, |kv| kv.n_tokens) {
            return Err(Error::internal(format!(
                "sequence {sequence:?} has no tokens before position {start}"
            )));
        }
        if end > capacity {
            let shape = (n_kv_heads, Self::room(end), head_dim);
            let empty = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
            let grown = LayerKv { keys: empty()?, values: empty()?, n_tokens: start };
            if let Some(old) = slot.as_ref().filter(|_| start > 0) {
                grown.keys.slice_set(&old.keys.narrow(1, 0, start)?.contiguous()?, 1, 0)?;
                grown.values.slice_set(&old.values.narrow(1, 0, start)?.contiguous()?, 1, 0)?;
            }
            *slot = Some(grown);
        }
        let Some(kv) = slot else {
            return Err(Error::internal("a batch with an empty span reached the key/value store"));
        };
        kv.keys.slice_set(&keys.contiguous()?, 1, start)?;
        kv.values.slice_set(&values.contiguous()?, 1, start)?;
        kv.n_tokens = end;
        Ok((kv.keys.narrow(1, 0, end)?, kv.values.narrow(1, 0, end)?))
    }

    /// Forgets a sequence.
    pub fn remove(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    /// How many sequences have tokens here.
    pub fn n_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens that a sequence of at most `n_tokens` may take room for.
    pub fn room(n_tokens: usize) -> usize {
        n_tokens.next_power_of_two().max(FIRST_CAPACITY)
    }

    /// Bytes that room for one token takes in a model of this shape.
    pub fn bytes_per_token(config: &ModelConfig) -> usize {
        2 * config.layers.len() * config.n_kv_heads * config.head_dim * DType::F32.size_in_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f32, n: usize) -> Tensor {
        Tensor::full(value, (2, n, 4), &Device::Cpu).unwrap()
    }

    #[test]
    fn tokens_stay_in_place_while_the_buffers_grow() {
        let mut store = KvStore::default();
        let sequence = SequenceId(7);
        let mut start = 0;
        for (step, n) in [3usize, 1, FIRST_CAPACITY, 1, 700].into_iter().enumerate() {
            let value = step as f32;
            let (keys, values) = store.append(sequence, 1, start, &row(value, n), &row(-value, n)).unwrap();
            start += n;
            assert_eq!(keys.dims(), [2, start, 4]);
            assert_eq!(values.dims(), [2, start, 4]);
            let firsts = keys.get(1).unwrap().narrow(1, 0, 1).unwrap().flatten_all().unwrap();
            let firsts = firsts.to_vec1::<f32>().unwrap();
            assert_eq!(firsts[..3], [0.0; 3]);
            assert_eq!(firsts[start - n..], vec![value; n]);
        }
        store.remove(sequence);
        assert_eq!(store.n_sequences(), 0);
    }

    #[test]
    fn a_gap_is_an_error() {
        let mut store = KvStore::default();
        let mut append = |start| store.append(SequenceId(1), 0, start, &row(0.0, 3), &row(0.0, 3)).is_ok();
        assert!(!append(1));
        assert!(append(0));
        assert!(!append(4));
        assert!(append(3));
    }
}
