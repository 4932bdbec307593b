//! Scaled dot-product attention of one sequence.

use candle_core::{D, Device, Tensor};

use crate::error::Result;

/// Which keys a query may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// Query `i` of `n` sees all keys but the last `n - 1 - i`.
    Causal,
    /// Every query sees every key.
    Full,
}

/// Attention with grouped heads: `queries` `[n_heads, n_queries, head_dim]` (contiguous), `keys`
/// and `values` `[n_kv_heads, n_keys, head_dim]`; the result is `[n_queries, n_heads * head_dim]`.
///
/// The heads that share a key head are stacked as its rows, so keys and values are never
/// repeated.
pub fn attention(queries: &Tensor, keys: &Tensor, values: &Tensor, visibility: Visibility) -> Result<Tensor> {
    let (n_heads, n_queries, head_dim) = queries.dims3()?;
    let (n_kv_heads, n_keys, _) = keys.dims3()?;
    let n_groups = n_heads / n_kv_heads;
    let scale = 1.0 / (head_dim as f64).sqrt();

    let stacked = (queries * scale)?.reshape((n_kv_heads, n_groups * n_queries, head_dim))?;
    let mut scores = stacked.matmul(&keys.transpose(1, 2)?)?;
    if visibility == Visibility::Causal && n_queries > 1 {
        let mask = causal_mask(n_queries, n_keys)?;
        scores = scores.reshape((n_heads, n_queries, n_keys))?.broadcast_add(&mask)?.reshape((
            n_kv_heads,
            n_groups * n_queries,
            n_keys,
        ))?;
    }
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    let mixed = weights.matmul(values)?.reshape((n_heads, n_queries, head_dim))?;
    Ok(mixed.transpose(0, 1)?.flatten_from(D::Minus2)?)
}

/// `[n_queries, n_keys]`: zero where the query sees the key, minus infinity elsewhere.
fn causal_mask(n_queries: usize, n_keys: usize) -> Result<Tensor> {
    let first = n_keys - n_queries;
    let mask: Vec<f32> = (0..n_queries)
        .flat_map(|query| {
            (0..n_keys).map(move |key| if key <= first + query { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    Ok(Tensor::from_vec(mask, (n_queries, n_keys), &Device::Cpu)?)
}
