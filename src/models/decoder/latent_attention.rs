//! Multi-head latent attention (MLA) with absorbed weights, as in DeepSeek-V2 (2024, arXiv:2405.04434).
//!
//! The KV cache keeps one head per layer: the rotated part of a token's key and its latent, of which the keys and values
//! of all heads are projections. The projection to a head's key is absorbed into its query, so that queries are multiplied
//! with latents; the projection to its value is applied to the sum of latents that attention returns.

use candle_core::{D, Tensor};

use super::attention::attend_sequences;
use super::layer_context::LayerContext;
use crate::error::{Error, Result};
use crate::kernels::attention::SequenceKv;
use crate::kernels::custom_ops::PagedAttentionOp;
use crate::models::layers::linear::{Linear, concat_linear, linear_residual};
use crate::models::layers::mixer::MixerInput;
use crate::models::layers::norm::{RmsNorm, RowNorm};
use crate::models::profile::ForwardOp;

/// The weights of latent attention in one layer.
#[derive(Debug, Clone)]
pub struct LatentAttention {
    /// The projection to the latent of queries, `[query_rank, hidden]`, and the norm of that latent; without it queries
    /// are projected from the hidden state.
    pub query_down: Option<(Linear, RmsNorm)>,
    /// The projection to the parts of queries without positions, `[n_heads * nope_dim, query_rank or hidden]`.
    pub query_nope: Linear,
    /// The projection to the parts of queries that are rotated, `[n_heads * rope_dim, query_rank or hidden]`.
    pub query_rope: Linear,
    /// The projection to the rotated part of keys, `[rope_dim, hidden]`.
    pub key_rope: Linear,
    /// The projection to the latent of keys and values, `[kv_rank, hidden]`.
    pub latent: Linear,
    /// The norm of that latent.
    pub latent_norm: RmsNorm,
    /// The transposed projection from the latent to the key of each head, `[kv_rank, nope_dim]`.
    pub key_up: HeadLinears,
    /// The projection from the latent to the value of each head, `[value_dim, kv_rank]`.
    pub value_up: HeadLinears,
    /// The output projection, `[hidden, n_heads * value_dim]`.
    pub output: Linear,
}

/// A linear layer for each head.
#[derive(Debug, Clone)]
pub struct HeadLinears(pub Vec<Linear>);

impl HeadLinears {
    /// Applies each head's layer to its part: `[n_tokens, n_heads, n_in]` to `[n_tokens, n_heads, n_out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let head =
            |(idx, linear): (usize, &Linear)| linear.forward(&x.narrow(1, idx, 1)?.squeeze(1)?.contiguous()?);
        Ok(Tensor::stack(&self.0.iter().enumerate().map(head).collect::<Result<Vec<_>>>()?, 1)?)
    }
}

impl LatentAttention {
    /// Computes attention for the new tokens of all `sequences` and adds its output to the residual.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(
        &self,
        input: &MixerInput,
        sequences: &mut [SequenceKv],
        context: &LayerContext,
    ) -> Result<Tensor> {
        let profile = context.profile;
        let (queries, key) = self.project(input, context)?;
        profile.lap(ForwardOp::Qkv);
        let attended = attend(&queries, &key, sequences, context)?;
        profile.lap(ForwardOp::Attention);
        let kv_rank = self.latent_norm.weight.len();
        let latents = attended.narrow(D::Minus1, attended.dims()[2] - kv_rank, kv_rank)?;
        let values = self.value_up.forward(&latents)?.flatten_from(1)?;
        let y = linear_residual(&self.output, input.add, &values, input.residual)?;
        profile.lap(ForwardOp::Output);
        Ok(y)
    }

    /// The matrices that a token is multiplied with, each with its operation.
    pub fn matrices(&self) -> Vec<(ForwardOp, &Linear)> {
        let query_down = self.query_down.iter().map(|(down, _)| down);
        let qkv = [&self.query_nope, &self.query_rope, &self.key_rope, &self.latent];
        let qkv = query_down.chain(qkv).chain(&self.key_up.0).map(|matrix| (ForwardOp::Qkv, matrix));
        let output = self.value_up.0.iter().chain([&self.output]);
        qkv.chain(output.map(|matrix| (ForwardOp::Output, matrix))).collect()
    }

    /// The queries with the projection to keys absorbed, `[n_tokens, n_heads, rope_dim + kv_rank]`, and the key,
    /// `[n_tokens, 1, rope_dim + kv_rank]`, before the rotary embedding.
    fn project(&self, input: &MixerInput, context: &LayerContext) -> Result<(Tensor, Tensor)> {
        let query_parts = [&self.query_nope, &self.query_rope];
        let mut first: Vec<&Linear> = match &self.query_down {
            Some((down, _)) => vec![down],
            None => query_parts.to_vec(),
        };
        first.extend([&self.key_rope, &self.latent]);
        let projected = concat_linear(input.norm, &first, input.x)?;
        let columns = |x: &Tensor, start: usize, end: usize| x.narrow(1, start, end - start)?.contiguous();

        let (n_tokens, n_columns) = projected.dims2()?;
        let n_latent = self.latent_norm.weight.len();
        let n_rope = context.config.head_dim - n_latent;
        let (key_start, latent_start) = (n_columns - n_latent - n_rope, n_columns - n_latent);
        let mut query = columns(&projected, 0, key_start)?;
        if let Some((_, norm)) = &self.query_down {
            query = concat_linear(Some(norm), &query_parts, &query)?;
        }
        let n_heads = self.key_up.0.len();
        let n_query = query.dims()[1];
        let split = n_query - n_heads * n_rope;
        let heads = |x: Tensor| x.reshape((n_tokens, n_heads, ()));
        let nope = heads(columns(&query, 0, split)?)?;
        let rope = heads(columns(&query, split, n_query)?)?;
        let queries = Tensor::cat(&[rope, self.key_up.forward(&nope)?], D::Minus1)?;
        let latent = columns(&projected, latent_start, n_columns)?;
        let latent = self.latent_norm.apply(context.backend.isa(), &latent)?;
        let key = Tensor::cat(&[columns(&projected, key_start, latent_start)?, latent], D::Minus1)?;
        Ok((queries, key.unsqueeze(1)?))
    }
}

/// Rotates queries and keys, writes the key into the KV cache, and computes attention with keys as values;
/// the result is `[n_tokens, n_heads, rope_dim + kv_rank]`.
fn attend(
    queries: &Tensor,
    key: &Tensor,
    sequences: &mut [SequenceKv],
    context: &LayerContext,
) -> Result<Tensor> {
    let shape = queries.shape();
    let attended = match context.backend.isa() {
        Some(isa) => {
            let rows = Tensor::cat(&[queries, key], 1)?.flatten_from(1)?;
            rows.apply_op1_no_bwd(&PagedAttentionOp::new(isa, context.paged_attention(), sequences))?
        }
        None => {
            let cos_sin = context.cos_sin.ok_or_else(|| Error::internal("latent attention rotates keys"))?;
            let (queries, key) = (cos_sin.apply(queries)?, cos_sin.apply(key)?);
            attend_sequences(&queries, Some([&key, &key]), None, sequences, context)?
        }
    };
    Ok(attended.reshape(shape)?)
}
