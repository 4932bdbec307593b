//! Scaled dot-product attention of one sequence, and what its queries may see.

use candle_core::{D, Device, Tensor};

use crate::error::Result;

/// How scores are made from products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Multiplies the product of a query and a key.
    pub scale: f64,
    /// Bounds the scores to plus and minus this number: `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
}

/// Attention with grouped heads: `queries` `[n_heads, n_queries, head_dim]` (contiguous), `keys`
/// and `values` `[n_kv_heads, n_keys, head_dim]`; the result is `[n_queries, n_heads * head_dim]`.
/// `bias`, `[n_queries, n_keys]` or `[n_heads, n_queries, n_keys]`, is added to the scores: minus
/// infinity hides a key.
///
/// The heads that share a key head are stacked as its rows, so keys and values are never
/// repeated.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    scores: Scores,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (n_heads, n_queries, head_dim) = queries.dims3()?;
    let (n_kv_heads, n_keys, _) = keys.dims3()?;
    let stacked_rows = n_heads / n_kv_heads * n_queries;

    let stacked = (queries * scores.scale)?.reshape((n_kv_heads, stacked_rows, head_dim))?;
    let mut weights = stacked.matmul(&keys.transpose(1, 2)?)?;
    if let Some(cap) = scores.softcap {
        weights = softcap(&weights, cap)?;
    }
    if let Some(bias) = bias {
        weights = weights.reshape((n_heads, n_queries, n_keys))?.broadcast_add(bias)?.reshape((
            n_kv_heads,
            stacked_rows,
            n_keys,
        ))?;
    }
    let weights = candle_nn::ops::softmax_last_dim(&weights)?;
    let mixed = weights.matmul(values)?.reshape((n_heads, n_queries, head_dim))?;
    Ok(mixed.transpose(0, 1)?.flatten_from(D::Minus2)?)
}

/// `cap * tanh(x / cap)`
pub fn softcap(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(((x / cap)?.tanh()? * cap)?)
}

/// The bias that hides the keys behind each query, and, where there is a `window`, those more than
/// `window - 1` before it. The queries stand at positions `first_query ..`, the keys at
/// `first_key ..`; none when nothing is hidden.
pub fn causal_bias(
    first_query: usize,
    n_queries: usize,
    first_key: usize,
    n_keys: usize,
    window: Option<usize>,
) -> Result<Option<Tensor>> {
    let is_seen = |query: usize, key: usize| key <= query && window.is_none_or(|window| query - key < window);
    bias_of(first_query, n_queries, first_key, n_keys, is_seen)
}

/// The bias that hides the keys more than `reach` away from each query, of a text of `n_tokens`;
/// none when nothing is hidden.
pub fn local_bias(n_tokens: usize, reach: usize) -> Result<Option<Tensor>> {
    bias_of(0, n_tokens, 0, n_tokens, |query, key| query.abs_diff(key) <= reach)
}

fn bias_of(
    first_query: usize,
    n_queries: usize,
    first_key: usize,
    n_keys: usize,
    is_seen: impl Fn(usize, usize) -> bool,
) -> Result<Option<Tensor>> {
    let mut hides = false;
    let bias: Vec<f32> = (first_query..first_query + n_queries)
        .flat_map(|query| (first_key..first_key + n_keys).map(move |key| (query, key)))
        .map(|(query, key)| {
            if is_seen(query, key) {
                0.0
            } else {
                hides = true;
                f32::NEG_INFINITY
            }
        })
        .collect();
    hides.then(|| Ok(Tensor::from_vec(bias, (n_queries, n_keys), &Device::Cpu)?)).transpose()
}
