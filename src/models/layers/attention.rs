//! Scaled dot-product attention of one sequence and its masks, in plain candle operations.

use std::ops::Range;

use candle_core::{D, Tensor};

use crate::error::Result;
use crate::models::backend::DEVICE;

/// The scale, the softcap and the sinks of attention scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams<'a> {
    /// The factor that the dot product of a query and a key is scaled by.
    pub scale: f64,
    /// The bound of the absolute score: `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// For each query head a score that takes part in the softmax and has no value, `[n_heads]`.
    pub sinks: Option<&'a [f32]>,
}

/// Attention with grouped heads: `queries` `[n_heads, n_queries, head_dim]` (contiguous), `keys`
/// and `values` `[n_kv_heads, n_keys, head_dim]`; the result is `[n_queries, n_heads * head_dim]`.
/// `bias`, `[n_queries, n_keys]` or `[n_heads, n_queries, n_keys]`, is added to the scores; minus
/// infinity masks a key.
///
/// The query heads of a group are stacked as rows of their key head's matrix, so keys and values are never
/// repeated.
///
/// # Errors
/// When a tensor operation fails.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    params: AttentionParams,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (n_heads, n_queries, head_dim) = queries.dims3()?;
    let (n_kv_heads, n_keys, _) = keys.dims3()?;
    let stacked_rows = n_heads / n_kv_heads * n_queries;

    let stacked = (queries * params.scale)?.reshape((n_kv_heads, stacked_rows, head_dim))?;
    let mut scores = stacked.matmul(&keys.transpose(1, 2)?)?;
    if let Some(cap) = params.softcap {
        scores = softcap(&scores, cap)?;
    }
    if let Some(bias) = bias {
        scores = scores.reshape((n_heads, n_queries, n_keys))?.broadcast_add(bias)?.reshape((
            n_kv_heads,
            stacked_rows,
            n_keys,
        ))?;
    }
    if let Some(sinks) = params.sinks {
        let sinks = Tensor::from_slice(sinks, (n_heads, 1, 1), &DEVICE)?;
        let column = sinks.broadcast_as((n_heads, n_queries, 1))?.reshape((n_kv_heads, stacked_rows, 1))?;
        scores = Tensor::cat(&[&scores, &column], D::Minus1)?;
    }
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    let weights = weights.narrow(D::Minus1, 0, n_keys)?.contiguous()?;
    let outputs = weights.matmul(values)?.reshape((n_heads, n_queries, head_dim))?;
    Ok(outputs.transpose(0, 1)?.flatten_from(D::Minus2)?)
}

/// `cap * tanh(x / cap)`
///
/// # Errors
/// When a tensor operation fails.
pub fn softcap(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(((x / cap)?.tanh()? * cap)?)
}

/// The causal mask for queries and keys at these positions: hides the keys after each query and, with a
/// `window`, those more than `window - 1` before it. `None` when nothing is hidden.
///
/// # Errors
/// When a tensor operation fails.
pub fn causal_mask(
    queries: Range<usize>,
    keys: Range<usize>,
    window: Option<usize>,
) -> Result<Option<Tensor>> {
    let is_visible =
        |query: usize, key: usize| key <= query && window.is_none_or(|window| query - key < window);
    additive_mask(queries, keys, is_visible)
}

/// The sliding-window mask of a text of `n_tokens` tokens: hides the keys more than `window` tokens away from
/// each query on either side. `None` when nothing is hidden.
///
/// # Errors
/// When a tensor operation fails.
pub fn sliding_window_mask(n_tokens: usize, window: usize) -> Result<Option<Tensor>> {
    additive_mask(0..n_tokens, 0..n_tokens, |query, key| query.abs_diff(key) <= window)
}

fn additive_mask(
    queries: Range<usize>,
    keys: Range<usize>,
    is_visible: impl Fn(usize, usize) -> bool,
) -> Result<Option<Tensor>> {
    let shape = (queries.len(), keys.len());
    let mut any_hidden = false;
    let mask: Vec<f32> = queries
        .flat_map(|query| keys.clone().map(move |key| (query, key)))
        .map(|(query, key)| {
            if is_visible(query, key) {
                0.0
            } else {
                any_hidden = true;
                f32::NEG_INFINITY
            }
        })
        .collect();
    any_hidden.then(|| Ok(Tensor::from_vec(mask, shape, &DEVICE)?)).transpose()
}
