//! One layer of a decoder, as five operations:
//!
//! 1. norm, then the query, key and value projections
//! 2. rotary embedding, writing keys and values, attention
//! 3. output projection, added to the residual
//! 4. norm, then gate and up projections and the activation
//! 5. down projection, added to the residual

use candle_core::Tensor;

use super::super::{DecoderConfig, ForwardInput, KvStore};
use super::attention::{Visibility, attention};
use super::linear::Linear;
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
    pub output: Linear,
    pub mlp_norm: RmsNorm,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// What the layers of one forward pass share.
pub struct LayerContext<'a> {
    pub config: &'a DecoderConfig,
    pub input: &'a ForwardInput,
    pub rotation: &'a Rotation,
    /// Index of this layer.
    pub layer: usize,
}

impl DecoderLayer {
    /// `x` and the result are `[n_tokens, hidden]`.
    pub fn forward(&self, x: &Tensor, kv: &mut KvStore, context: &LayerContext) -> Result<Tensor> {
        let (query, key, value) = self.norm_qkv(x)?;
        let mixed = rope_attention(&query, &key, &value, kv, context)?;
        let x = residual(&self.output, &mixed, x)?;
        let activated = self.norm_gate_up(&x)?;
        residual(&self.down, &activated, &x)
    }

    /// Operation 1; each result is `[n_tokens, heads * head_dim]`.
    fn norm_qkv(&self, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let x = self.attention_norm.forward(x)?;
        Ok((self.query.forward(&x)?, self.key.forward(&x)?, self.value.forward(&x)?))
    }

    /// Operation 4: `silu(gate(x)) * up(x)`, `[n_tokens, intermediate]`.
    fn norm_gate_up(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.mlp_norm.forward(x)?;
        Ok((candle_nn::ops::silu(&self.gate.forward(&x)?)? * self.up.forward(&x)?)?)
    }
}

/// Operation 2, sequence by sequence; the result is `[n_tokens, n_heads * head_dim]`.
fn rope_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    kv: &mut KvStore,
    context: &LayerContext,
) -> Result<Tensor> {
    let DecoderConfig { n_heads, n_kv_heads, head_dim, .. } = *context.config;
    let n_tokens = context.input.token_ids.len();
    let query = context.rotation.apply(&query.reshape((n_tokens, n_heads, head_dim))?)?;
    let key = context.rotation.apply(&key.reshape((n_tokens, n_kv_heads, head_dim))?)?;
    let value = value.reshape((n_tokens, n_kv_heads, head_dim))?;

    let mut row = 0;
    let mut mixed = Vec::with_capacity(context.input.spans.len());
    for span in &context.input.spans {
        // [n_tokens, heads, head_dim] -> [heads, span.len, head_dim]
        let heads_first = |x: &Tensor| x.narrow(0, row, span.len)?.transpose(0, 1)?.contiguous();
        let (keys, values) =
            kv.append(span.sequence, context.layer, span.start, &heads_first(&key)?, &heads_first(&value)?)?;
        mixed.push(attention(&heads_first(&query)?, &keys, &values, Visibility::Causal)?);
        row += span.len;
    }
    match mixed.as_slice() {
        [single] => Ok(single.clone()),
        several => Ok(Tensor::cat(several, 0)?),
    }
}

/// Operations 3 and 5: `x + projection(y)`.
fn residual(projection: &Linear, y: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok((projection.forward(y)? + x)?)
}
