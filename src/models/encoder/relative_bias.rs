//! MPNet's relative attention bias: one value per head and distance, with distances in buckets.

use candle_core::Tensor;

use crate::error::Result;
use crate::models::backend::DEVICE;

/// The distance from which on all distances share the last bucket of their direction.
const MAX_DISTANCE: f32 = 128.0;

/// The bias of every head for every bucket.
pub struct RelativeBias {
    /// `[n_buckets][n_heads]`
    table: Vec<Vec<f32>>,
}

impl RelativeBias {
    /// The biases of a `table`, `[n_buckets, n_heads]`.
    ///
    /// # Errors
    /// When the table has another number of dimensions.
    pub fn new(table: &Tensor) -> Result<Self> {
        Ok(Self { table: table.to_vec2()? })
    }

    /// The biases of a text, `[n_heads, n_tokens, n_tokens]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn for_length(&self, n_tokens: usize) -> Result<Tensor> {
        let max_distance = n_tokens - 1;
        let by_distance = self.by_distance(max_distance);
        let biases: Vec<f32> = by_distance
            .chunks_exact(2 * max_distance + 1)
            .flat_map(|head| {
                (0..n_tokens).flat_map(move |query| &head[max_distance - query..2 * max_distance + 1 - query])
            })
            .copied()
            .collect();
        Ok(Tensor::from_vec(
            biases,
            (by_distance.len() / (2 * max_distance + 1), n_tokens, n_tokens),
            &DEVICE,
        )?)
    }

    /// The biases of every head by the key's position relative to the query, from `-max_distance` to
    /// `max_distance`, `[n_heads, 2 * max_distance + 1]`.
    pub fn by_distance(&self, max_distance: usize) -> Vec<f32> {
        let n_heads = self.table.first().map_or(0, Vec::len);
        let bucket = |key: usize| self.bucket(max_distance, key);
        let head_biases = |head: usize| (0..=2 * max_distance).map(move |key| self.table[bucket(key)][head]);
        (0..n_heads).flat_map(head_biases).collect()
    }

    /// The bucket of a query and a key at these positions. Half of the buckets are for keys after the query.
    /// Of each half, one half is for single distances and the other for ranges that grow logarithmically.
    fn bucket(&self, query: usize, key: usize) -> usize {
        let half = self.table.len() / 2;
        let n_exact = half / 2;
        let distance = query.abs_diff(key);
        let within = if distance < n_exact {
            distance
        } else {
            let exact = n_exact as f32;
            let share = (distance as f32 / exact).ln() / (MAX_DISTANCE / exact).ln();
            (n_exact + (share * (half - n_exact) as f32) as usize).min(half - 1)
        };
        if key > query { half + within } else { within }
    }
}
