//! One layer of a decoder, as five operations:
//!
//! 1. norm, then the query, key and value projections
//! 2. head norms, rotary embedding, writing keys and values, attention
//! 3. output projection, its norm, added to the residual
//! 4. norm, then gate and up projections and the activation
//! 5. down projection, its norm, added to the residual
//!
//! Norms that a family does not have are left out. A mixture of experts does 4 and 5 for each of
//! its experts.

use candle_core::Tensor;

use super::super::decoder::ModelConfig;
use super::super::{ForwardInput, KvStore};
use super::attention::{Scores, attention};
use super::linear::Linear;
use super::mlp::{GatedMlp, Mixture};
use super::norm::RmsNorm;
use super::rope::Rotation;
use crate::error::Result;

/// Weights of one layer.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    pub attention_norm: RmsNorm,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    /// Over each query and each key head.
    pub head_norms: Option<(RmsNorm, RmsNorm)>,
    pub output: Linear,
    pub attention_post_norm: Option<RmsNorm>,
    pub mlp_norm: RmsNorm,
    pub mlp: Mlp,
    pub mlp_post_norm: Option<RmsNorm>,
}

#[derive(Debug, Clone)]
pub enum Mlp {
    Dense(GatedMlp),
    Mixture(Mixture),
}

/// What a forward pass tells a layer.
pub struct LayerContext<'a> {
    pub config: &'a ModelConfig,
    pub input: &'a ForwardInput,
    /// Index of this layer.
    pub layer: usize,
    /// How far this layer's attention reaches.
    pub window: Option<usize>,
    pub rotation: Option<&'a Rotation>,
    /// For each span the bias over the keys that its queries see ([`first_key`]).
    pub biases: &'a [Option<Tensor>],
}

/// The first key that a query at position `start` or later may see.
pub fn first_key(start: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (start + 1).saturating_sub(window))
}

impl DecoderLayer {
    /// `x` and the result are `[n_tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, kv: &mut KvStore, context: &LayerContext) -> Result<Tensor> {
        let qkv = self.norm_qkv(x)?;
        let mixed = self.attend(qkv, kv, context)?;
        let x = add(x, self.output.forward(&mixed)?, self.attention_post_norm.as_ref())?;
        let normed = self.mlp_norm.forward(&x)?;
        let y = match &self.mlp {
            Mlp::Dense(mlp) => mlp.forward(&normed)?,
            Mlp::Mixture(mixture) => mixture.forward(&normed)?,
        };
        add(&x, y, self.mlp_post_norm.as_ref())
    }

    /// Operation 1; each result is `[n_tokens, heads * head_dim]`.
    fn norm_qkv(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let x = self.attention_norm.forward(x)?;
        Ok([self.query.forward(&x)?, self.key.forward(&x)?, self.value.forward(&x)?])
    }

    /// Operation 2, sequence by sequence; the result is `[n_tokens, n_heads * head_dim]`.
    fn attend(
        &self,
        [query, key, value]: [Tensor; 3],
        kv: &mut KvStore,
        context: &LayerContext,
    ) -> Result<Tensor> {
        let ModelConfig { n_heads, n_kv_heads, head_dim, .. } = *context.config;
        let n_tokens = context.input.token_ids.len();
        let mut query = query.reshape((n_tokens, n_heads, head_dim))?;
        let mut key = key.reshape((n_tokens, n_kv_heads, head_dim))?;
        let value = value.reshape((n_tokens, n_kv_heads, head_dim))?;
        if let Some((query_norm, key_norm)) = &self.head_norms {
            (query, key) = (query_norm.forward(&query)?, key_norm.forward(&key)?);
        }
        if let Some(rotation) = context.rotation {
            (query, key) = (rotation.apply(&query)?, rotation.apply(&key)?);
        }
        let scores =
            Scores { scale: context.config.attention_scale, softcap: context.config.attention_softcap };

        let mut row = 0;
        let mut mixed = Vec::with_capacity(context.input.spans.len());
        for (span, bias) in context.input.spans.iter().zip(context.biases) {
            // [n_tokens, heads, head_dim] -> [heads, span.len, head_dim]
            let heads_first = |x: &Tensor| x.narrow(0, row, span.len)?.transpose(0, 1)?.contiguous();
            let (key, value) = (heads_first(&key)?, heads_first(&value)?);
            let (keys, values) = kv.append(span.sequence, context.layer, span.start, &key, &value)?;
            let first = first_key(span.start, context.window);
            let seen = |x: &Tensor| x.narrow(1, first, span.start + span.len - first);
            let (keys, values) = (seen(&keys)?, seen(&values)?);
            mixed.push(attention(&heads_first(&query)?, &keys, &values, scores, bias.as_ref())?);
            row += span.len;
        }
        match mixed.as_slice() {
            [single] => Ok(single.clone()),
            several => Ok(Tensor::cat(several, 0)?),
        }
    }
}

/// `x + norm(y)`: the end of operations 3 and 5.
fn add(x: &Tensor, y: Tensor, norm: Option<&RmsNorm>) -> Result<Tensor> {
    Ok(match norm {
        Some(norm) => (norm.forward(&y)? + x)?,
        None => (y + x)?,
    })
}
