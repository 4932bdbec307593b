//! Attention as a mixer of a decoder's layer, in three operations:
//!
//! 1. norm, then the query, key and value projections
//! 2. head norms, rotary embedding, KV cache write, attention
//! 3. output projection and its norm, added to the residual
//!
//! A norm of whole projections or of values and a gate of the attention output are operations of their own.

use candle_core::{D, Tensor};
use candle_nn::ops::sigmoid;

use super::config::{ModelConfig, QkNorm};
use super::layer_context::LayerContext;
use crate::error::Result;
use crate::kernels::attention::kv_block::KvLayout;
use crate::kernels::attention::{HeadNorms, PagedAttention, SequenceKv, window_start};
use crate::kernels::custom_ops::PagedAttentionOp;
use crate::models::backend::DEVICE;
use crate::models::kv_cache::{gather, write_and_gather};
use crate::models::layers::attention::{AttentionParams, attention};
use crate::models::layers::linear::{Linear, concat_linear, linear_residual};
use crate::models::layers::mixer::MixerInput;
use crate::models::layers::norm::{RmsNorm, RowNorm};
use crate::models::profile::ForwardOp;

/// The weights of attention in one layer.
#[derive(Debug, Clone)]
pub struct Attention {
    /// The query projection, `[n_heads * head_dim, hidden]`.
    pub query: Linear,
    /// The key projection, `[n_kv_heads * head_dim, hidden]`; `None` in a layer that reads another one's keys and values.
    pub key: Option<Linear>,
    /// The value projection, `[n_kv_heads * head_dim, hidden]`; without it, values are keys as projected.
    pub value: Option<Linear>,
    /// The norm of each head of values.
    pub value_norm: Option<RmsNorm>,
    /// The norms of queries and of keys; [`QkNorm`] says over what.
    pub qk_norms: Option<(RmsNorm, RmsNorm)>,
    /// The attention sinks, `[n_heads]`.
    pub sinks: Option<Vec<f32>>,
    /// The projection of the sigmoid gate of the attention output, `[n_heads * head_dim, hidden]`.
    pub gate: Option<Linear>,
    /// The output projection, `[hidden, n_heads * head_dim]`.
    pub output: Linear,
}

impl Attention {
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
        let projections: Vec<&Linear> = self.projections().collect();
        let qkv = concat_linear(input.norm, &projections, input.x)?;
        let qkv = self.with_values(self.norm_projections(qkv, context)?, context)?;
        profile.lap(ForwardOp::Qkv);
        let attended = self.attend(&qkv, sequences, context)?;
        profile.lap(ForwardOp::Attention);
        let attended = match &self.gate {
            Some(gate) => (attended * sigmoid(&concat_linear(input.norm, &[gate], input.x)?)?)?,
            None => attended,
        };
        let y = linear_residual(&self.output, input.add, &attended, input.residual)?;
        profile.lap(ForwardOp::Output);
        Ok(y)
    }

    /// The matrices that a token is multiplied with, each with its operation.
    pub fn matrices(&self) -> Vec<(ForwardOp, &Linear)> {
        let qkv = self.projections().map(|matrix| (ForwardOp::Qkv, matrix));
        let output = [Some(&self.output), self.gate.as_ref()].into_iter().flatten();
        qkv.chain(output.map(|matrix| (ForwardOp::Output, matrix))).collect()
    }

    /// The query, key and value projections, as far as the layer has them.
    fn projections(&self) -> impl Iterator<Item = &Linear> {
        [Some(&self.query), self.key.as_ref(), self.value.as_ref()].into_iter().flatten()
    }

    /// Norms the whole rows of queries and keys, in families that do so.
    fn norm_projections(&self, qkv: Tensor, context: &LayerContext) -> Result<Tensor> {
        let Some((query_norm, key_norm)) =
            self.qk_norms.as_ref().filter(|_| context.config.qk_norm == QkNorm::Projection)
        else {
            return Ok(qkv);
        };
        let (n_query, n_key) = (query_norm.weight.len(), key_norm.weight.len());
        let part = |start: usize, n: usize| qkv.narrow(D::Minus1, start, n)?.contiguous();
        let (query, key) = (part(0, n_query)?, part(n_query, n_key)?);
        let value = part(n_query + n_key, n_key)?;
        let isa = context.backend.isa();
        Ok(Tensor::cat(&[query_norm.apply(isa, &query)?, key_norm.apply(isa, &key)?, value], D::Minus1)?)
    }

    /// Norms the heads of values, where they have a norm, and adds values to rows without a projection to them.
    fn with_values(&self, qkv: Tensor, context: &LayerContext) -> Result<Tensor> {
        if self.key.is_none() || (self.value.is_some() && self.value_norm.is_none()) {
            return Ok(qkv);
        }
        let KvLayout { n_kv_heads, head_dim, .. } = context.kv_layout;
        let (n_tokens, n_columns) = qkv.dims2()?;
        let n_values = n_kv_heads * head_dim;
        // Without values, the last columns are those of keys.
        let mut values = qkv.narrow(D::Minus1, n_columns - n_values, n_values)?.contiguous()?;
        if let Some(norm) = &self.value_norm {
            let heads = values.reshape((n_tokens * n_kv_heads, head_dim))?;
            values = norm.apply(context.backend.isa(), &heads)?.reshape((n_tokens, n_values))?;
        }
        let n_kept = if self.value.is_some() { n_columns - n_values } else { n_columns };
        Ok(Tensor::cat(&[&qkv.narrow(D::Minus1, 0, n_kept)?, &values], D::Minus1)?)
    }

    /// The norms of query and key heads, in families that norm heads.
    fn head_norms(&self, config: &ModelConfig) -> Option<&(RmsNorm, RmsNorm)> {
        self.qk_norms.as_ref().filter(|_| config.qk_norm != QkNorm::Projection)
    }

    /// Operation 2: `[n_tokens, (n_heads + 2 * n_kv_heads) * head_dim]`, or `[n_tokens, n_heads * head_dim]` where keys and
    /// values are another layer's, to `[n_tokens, n_heads * head_dim]`.
    fn attend(&self, qkv: &Tensor, sequences: &mut [SequenceKv], context: &LayerContext) -> Result<Tensor> {
        match context.backend.isa() {
            None => self.attend_reference(qkv, sequences, context),
            Some(isa) => {
                Ok(qkv.apply_op1_no_bwd(&PagedAttentionOp::new(isa, self.attention(context), sequences))?)
            }
        }
    }

    /// The parameters of the kernel for operation 2.
    fn attention<'a>(&'a self, context: &LayerContext<'a>) -> PagedAttention<'a> {
        let config = context.config;
        PagedAttention {
            is_kv_shared: self.key.is_none(),
            head_norms: self.head_norms(config).map(|(query, key)| HeadNorms {
                query: &query.weight,
                key: &key.weight,
                eps: query.eps,
                after_rope: config.qk_norm == QkNorm::RotatedHead,
            }),
            sinks: self.sinks.as_deref(),
            ..context.paged_attention()
        }
    }

    /// Operation 2 in plain candle operations, sequence by sequence.
    fn attend_reference(
        &self,
        qkv: &Tensor,
        sequences: &mut [SequenceKv],
        context: &LayerContext,
    ) -> Result<Tensor> {
        let n_heads = context.config.n_heads;
        let KvLayout { n_kv_heads, head_dim, .. } = context.kv_layout;
        let n_tokens = qkv.dims()[0];
        let heads = |first: usize, n: usize| -> Result<Tensor> {
            let part = qkv.narrow(D::Minus1, first * head_dim, n * head_dim)?;
            Ok(part.contiguous()?.reshape((n_tokens, n, head_dim))?)
        };
        let head_norms = self.head_norms(context.config);
        let mut query =
            norm_and_rotate(heads(0, n_heads)?, head_norms.map(|(query_norm, _)| query_norm), context)?;
        // The keys and values of the new tokens, unless another layer has written them.
        let new = match &self.key {
            None => None,
            Some(_) => Some((
                norm_and_rotate(
                    heads(n_heads, n_kv_heads)?,
                    head_norms.map(|(_, key_norm)| key_norm),
                    context,
                )?,
                heads(n_heads + n_kv_heads, n_kv_heads)?,
            )),
        };
        if let Some(scales) = context.query_scales {
            query = query.broadcast_mul(&Tensor::from_slice(scales, (n_tokens, 1, 1), &DEVICE)?)?;
        }
        let new = new.as_ref().map(|(key, value)| [key, value]);
        attend_sequences(&query, new, self.sinks.as_deref(), sequences, context)
    }
}

/// Attention of normed and rotated queries, `[n_tokens, heads, head_dim]`, in plain candle operations, sequence by
/// sequence; the result is `[n_tokens, n_heads * head_dim]`. The `new` keys and values, of the same form, are written first;
/// without them those of another layer are read.
///
/// # Errors
/// When a tensor operation fails.
pub(super) fn attend_sequences(
    query: &Tensor,
    new: Option<[&Tensor; 2]>,
    sinks: Option<&[f32]>,
    sequences: &mut [SequenceKv],
    context: &LayerContext,
) -> Result<Tensor> {
    let params = AttentionParams {
        scale: context.config.attention_scale,
        softcap: context.config.attention_softcap,
        sinks,
    };
    let mut row = 0;
    let mut outputs = Vec::with_capacity(sequences.len());
    for (sequence, mask) in sequences.iter_mut().zip(context.masks) {
        let (start, len) = (sequence.start, sequence.len);
        // [n_tokens, heads, head_dim] -> [heads, len, head_dim]
        let heads_first = |x: &Tensor| x.narrow(0, row, len)?.transpose(0, 1)?.contiguous();
        let (layout, layer) = (&context.kv_layout, context.layer_idx);
        let (keys, values) = match new {
            Some([key, value]) => {
                write_and_gather(sequence, layout, layer, &heads_first(key)?, &heads_first(value)?)?
            }
            None => gather(sequence, layout, layer)?,
        };
        let first = window_start(start, context.window);
        let in_window = |x: &Tensor| x.narrow(1, first, start + len - first)?.contiguous();
        let (keys, values) = (in_window(&keys)?, in_window(&values)?);
        outputs.push(attention(&heads_first(query)?, &keys, &values, params, mask.as_ref())?);
        row += len;
    }
    match outputs.as_slice() {
        [single] => Ok(single.clone()),
        several => Ok(Tensor::cat(several, 0)?),
    }
}

/// Norms and rotates heads, `[n_tokens, heads, head_dim]`, in the order of the family.
fn norm_and_rotate(mut heads: Tensor, norm: Option<&RmsNorm>, context: &LayerContext) -> Result<Tensor> {
    let after_rope = context.config.qk_norm == QkNorm::RotatedHead;
    if let Some(norm) = norm.filter(|_| !after_rope) {
        heads = norm.forward(&heads)?;
    }
    if let Some(cos_sin) = context.cos_sin {
        heads = cos_sin.apply(&heads)?;
    }
    if let Some(norm) = norm.filter(|_| after_rope) {
        heads = norm.forward(&heads)?;
    }
    Ok(heads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::attention::kv_block::KvFormat;
    use crate::kernels::isa::Isa;
    use crate::models::decoder::LayerConfig;
    use crate::models::decoder::config::ScoreGrowth;
    use crate::models::layers::attention::causal_mask;
    use crate::models::layers::linear::Weight;
    use crate::models::layers::rope::CosSinCache;
    use crate::models::profile::ForwardProfile;
    use crate::models::rope::{Rope, RopeScaling};
    use crate::models::{Backend, BlockId, ForwardInput, KvCache, SequenceChunk, SequenceId};

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1999) as f32 / 500.0 - 2.0).collect()
    }

    fn config(n_heads: usize, n_kv_heads: usize, head_dim: usize, softcap: Option<f64>) -> ModelConfig {
        let json = format!(
            r#"{{"model_type":"llama","hidden_size":{0},"intermediate_size":8,"num_hidden_layers":1,
            "num_attention_heads":{n_heads},"num_key_value_heads":{n_kv_heads},"head_dim":{head_dim},
            "vocab_size":10,"max_position_embeddings":4096,"rms_norm_eps":1e-5}}"#,
            n_heads * head_dim
        );
        let config = ModelConfig::from_json(json.as_bytes()).unwrap();
        ModelConfig { attention_softcap: softcap, layers: vec![LayerConfig::default()], ..config }
    }

    /// Attention without its projections.
    fn layer(head_dim: usize, has_norms: bool, sinks: Option<&[f32]>) -> Attention {
        let empty = || {
            Linear::new(Weight::Dense(Tensor::zeros((1, 1), candle_core::DType::F32, &DEVICE).unwrap()), None)
        };
        let norm = |seed| RmsNorm { weight: values(head_dim, seed), eps: 1e-5 };
        Attention {
            query: empty(),
            key: Some(empty()),
            value: Some(empty()),
            value_norm: None,
            qk_norms: has_norms.then(|| (norm(1), norm(2))),
            sinks: sinks.map(<[f32]>::to_vec),
            gate: None,
            output: empty(),
        }
    }

    /// Attention over prompts of several sequences and the tokens that follow them.
    fn attend(
        config: &ModelConfig,
        layer: &Attention,
        backend: Backend,
        format: KvFormat,
        (rope, window): (Option<&Rope>, Option<usize>),
    ) -> Vec<f32> {
        let mut kv = KvCache::new(config.kv_layouts(format));
        let row_len = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim;
        let mut all = Vec::new();
        // The numbers of new tokens of each sequence in each batch.
        for (step, lengths) in [[7, 70, 300], [64, 1, 3], [1, 5, 1], [1, 1, 1]].iter().enumerate() {
            let mut input = ForwardInput::default();
            for (idx, &len) in lengths.iter().enumerate() {
                let start: usize =
                    [[7, 70, 300], [64, 1, 3], [1, 5, 1]][..step].iter().map(|past| past[idx]).sum();
                input.push(SequenceChunk {
                    sequence: SequenceId(idx as u64),
                    n_prompt: 7,
                    n_rounded: 0,
                    start,
                    tables: &[BlockId::consecutive(100 * idx as u32, start + len)],
                    state: None,
                    token_ids: &vec![0; len],
                    n_logits: 0,
                });
            }
            let n_tokens = input.token_ids.len();
            let qkv = Tensor::from_vec(values(n_tokens * row_len, step), (n_tokens, row_len), &DEVICE);
            let cos_sin = rope.map(|rope| CosSinCache::new(rope, &input.spans));
            let masks: Vec<Option<Tensor>> = input
                .spans
                .iter()
                .map(|span| {
                    let (first, end) = (window_start(span.start, window), span.start + span.len);
                    causal_mask(span.start..end, first..end, window).unwrap()
                })
                .collect();
            let growth = ScoreGrowth { beta: 0.3, original_context: 20.0 };
            let positions = input.spans.iter().flat_map(|span| span.start..span.start + span.len);
            let query_scales: Vec<f32> = positions.map(|position| growth.factor(position)).collect();
            let context = LayerContext {
                config,
                backend,
                kv_layout: kv.layout(0),
                layer_idx: 0,
                state_layout: &config.state_layout(),
                recurrent_idx: 0,
                per_layer_input: None,
                window,
                query_scales: layer.sinks.is_some().then_some(&query_scales[..]),
                cos_sin: cos_sin.as_ref(),
                masks: &masks,
                profile: &ForwardProfile::default(),
            };
            let mut sequences = kv.sequences(&input).unwrap();
            let y = layer.attend(&qkv.unwrap(), &mut sequences[0], &context).unwrap();
            all.extend(y.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        all
    }

    #[test]
    fn the_attention_kernel_equals_the_reference() {
        let rope =
            |rotary_dim| Rope { theta: 1e4, rotary_dim, scaling: RopeScaling::None, attention_factor: 1.0 };
        // Sinks below, among and far above the scores; those layers also have scores that grow with the position.
        let sinks = [-30.0, 0.5, 200.0, 3.0, 8.0];
        for (n_heads, n_kv_heads, head_dim, window, softcap, has_norms, rotary_dim, has_sinks, qk_norm) in [
            (9, 3, 64, None, None, false, Some(64), false, QkNorm::Head),
            (4, 4, 20, Some(30), None, true, Some(8), false, QkNorm::Head),
            (5, 1, 96, Some(300), Some(5.0), false, None, true, QkNorm::Head),
            (2, 2, 6, None, Some(3.0), true, Some(6), false, QkNorm::Head),
            (4, 2, 16, Some(30), None, true, Some(16), true, QkNorm::RotatedHead),
        ] {
            let config = ModelConfig { qk_norm, ..config(n_heads, n_kv_heads, head_dim, softcap) };
            let layer = layer(head_dim, has_norms, has_sinks.then_some(&sinks[..n_heads.min(5)]));
            let rope = rotary_dim.map(rope);
            // A key may be rounded to another half-precision neighbor.
            for (format, bound) in [(KvFormat::F32, 2e-5), (KvFormat::F16, 1e-4), (KvFormat::Int8, 2e-2)] {
                let attend = |backend| attend(&config, &layer, backend, format, (rope.as_ref(), window));
                let expected = attend(Backend::Reference);
                for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                    let found = attend(Backend::Kernels(isa));
                    assert_eq!(found.len(), expected.len());
                    for (idx, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        assert!(
                            (found - expected).abs() <= bound,
                            "{isa} {format:?} {head_dim}, {idx}: {found} is not {expected}"
                        );
                    }
                }
            }
        }
    }
}
