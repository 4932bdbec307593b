//! MPNet's attention bias: one number per head and distance, distances in buckets.

use candle_core::{Device, Tensor};

use crate::error::Result;

/// Distances from here on share the last bucket of their direction.
const MAX_DISTANCE: f32 = 128.0;

/// The bias of every head for every bucket.
pub struct RelativeBias {
    /// `[n_buckets][n_heads]`
    table: Vec<Vec<f32>>,
}

impl RelativeBias {
    /// `table` is `[n_buckets, n_heads]`.
    pub fn new(table: &Tensor) -> Result<Self> {
        Ok(Self { table: table.to_vec2()? })
    }

    /// The biases of a text, `[n_heads, n_tokens, n_tokens]`.
    pub fn of(&self, n_tokens: usize) -> Result<Tensor> {
        let farthest = n_tokens - 1;
        let by_distance = self.by_distance(farthest);
        let biases: Vec<f32> = by_distance
            .chunks_exact(2 * farthest + 1)
            .flat_map(|of_head| {
                (0..n_tokens).flat_map(move |query| &of_head[farthest - query..2 * farthest + 1 - query])
            })
            .copied()
            .collect();
        Ok(Tensor::from_vec(
            biases,
            (by_distance.len() / (2 * farthest + 1), n_tokens, n_tokens),
            &Device::Cpu,
        )?)
    }

    /// The biases of every head by how far the key is behind the query, `[n_heads, 2 * farthest + 1]`, from
    /// the farthest in front of it to the farthest behind.
    pub fn by_distance(&self, farthest: usize) -> Vec<f32> {
        let n_heads = self.table.first().map_or(0, Vec::len);
        let bucket = |place: usize| self.bucket(farthest, place);
        let of_head = |head: usize| (0..=2 * farthest).map(move |place| self.table[bucket(place)][head]);
        (0..n_heads).flat_map(of_head).collect()
    }

    /// Half of the buckets are for keys behind the query. Of each half, one half is for single
    /// distances, the other for ranges that grow like their logarithm.
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
