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
        let n_heads = self.table.first().map_or(0, Vec::len);
        let mut biases = Vec::with_capacity(n_heads * n_tokens * n_tokens);
        for head in 0..n_heads {
            for query in 0..n_tokens {
                biases.extend((0..n_tokens).map(|key| self.table[self.bucket(query, key)][head]));
            }
        }
        Ok(Tensor::from_vec(biases, (n_heads, n_tokens, n_tokens), &Device::Cpu)?)
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
