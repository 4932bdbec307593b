//! One layer of a decoder, as four operations:
//!
//! 1. norm, then the query, key and value projections
//! 2. head norms, rotary embedding, writing keys and values, attention
//! 3. output projection, its norm, added to the residual
//! 4. norm, gate and up projections, the activation, and the down projection, added to the residual
//!
//! Norms that a family does not have are left out. Where it has one behind the down projection, that is
//! an operation of its own; a mixture of experts is two for each of its experts.

use candle_core::{D, Tensor};

use super::super::Arithmetic;
use super::super::decoder::ModelConfig;
use super::super::kv_store::append;
use super::super::profile::{Op, Profile};
use super::attention::{Scores, attention};
use super::linear::{Linear, added, mlp, side_by_side};
use super::mlp::{GatedMlp, Mixture};
use super::norm::{RmsNorm, RowNorm};
use super::rope::Rotation;
use crate::error::Result;
use crate::kernels::attention::kv_block::KvLayout;
use crate::kernels::attention::{Attention, HeadNorms, Sequence, first_key};
use crate::kernels::custom_ops::AttentionOp;

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
    pub arithmetic: Arithmetic,
    /// How keys and values lie.
    pub kv_layout: KvLayout,
    /// The place of this layer among those that share blocks.
    pub layer: usize,
    /// How far this layer's attention reaches.
    pub window: Option<usize>,
    pub rotation: Option<&'a Rotation>,
    /// For each sequence the bias over the keys that its queries see ([`first_key`]), where they are
    /// computed by plain tensor operations.
    pub biases: &'a [Option<Tensor>],
    pub profile: &'a Profile,
}

impl DecoderLayer {
    /// `x` and the result are `[n_tokens, hidden]`, the new tokens of all `sequences`.
    pub fn forward(&self, x: &Tensor, sequences: &mut [Sequence], context: &LayerContext) -> Result<Tensor> {
        let profile = context.profile;
        let qkv = side_by_side(Some(&self.attention_norm), &[&self.query, &self.key, &self.value], x)?;
        profile.lap(Op::Qkv);
        let mixed = self.attention_of(&qkv, sequences, context)?;
        profile.lap(Op::Attention);
        let x = added(&self.output, self.attention_post_norm.as_ref(), &mixed, x)?;
        profile.lap(Op::Output);
        match &self.mlp {
            Mlp::Dense(dense) => {
                let (norm, post_norm) = (&self.mlp_norm, self.mlp_post_norm.as_ref());
                let y = mlp(Some(norm), dense.inner(), &dense.down, post_norm, &x)?;
                profile.lap(Op::Mlp);
                Ok(y)
            }
            Mlp::Mixture(mixture) => {
                let y = mixture.forward(&self.mlp_norm.forward(&x)?)?;
                let y = self.mlp_post_norm.as_ref().map_or_else(|| Ok(y.clone()), |norm| norm.forward(&y))?;
                let y = (y + x)?;
                profile.lap(Op::Experts);
                Ok(y)
            }
        }
    }

    /// Operation 2: `[n_tokens, (n_heads + 2 * n_kv_heads) * head_dim]` to `[n_tokens, n_heads * head_dim]`.
    fn attention_of(
        &self,
        qkv: &Tensor,
        sequences: &mut [Sequence],
        context: &LayerContext,
    ) -> Result<Tensor> {
        match context.arithmetic.isa() {
            None => self.attend(qkv, sequences, context),
            Some(isa) => {
                Ok(qkv.apply_op1_no_bwd(&AttentionOp::new(isa, self.attention(context), sequences))?)
            }
        }
    }

    /// The matrices that a token goes through, by operation and by how many of each.
    pub fn matrices(&self) -> Vec<(Op, &Linear, usize)> {
        let mut matrices = vec![
            (Op::Qkv, &self.query, 1),
            (Op::Qkv, &self.key, 1),
            (Op::Qkv, &self.value, 1),
            (Op::Output, &self.output, 1),
        ];
        match &self.mlp {
            Mlp::Dense(GatedMlp { gate, up, down, .. }) => {
                matrices.extend([gate, up, down].map(|matrix| (Op::Mlp, matrix, 1)));
            }
            Mlp::Mixture(mixture) => {
                matrices.push((Op::Experts, &mixture.router, 1));
                let expert = mixture.experts.iter().take(1).flat_map(|mlp| [&mlp.gate, &mlp.up, &mlp.down]);
                matrices.extend(expert.map(|matrix| (Op::Experts, matrix, mixture.n_used)));
            }
        }
        matrices
    }

    /// What the kernel for operation 2 needs to know.
    fn attention<'a>(&'a self, context: &LayerContext<'a>) -> Attention<'a> {
        let config = context.config;
        Attention {
            n_heads: config.n_heads,
            layout: context.kv_layout,
            layer: context.layer,
            scale: config.attention_scale as f32,
            softcap: config.attention_softcap.map(|cap| cap as f32),
            window: context.window,
            head_norms: self.head_norms.as_ref().map(|(query, key)| HeadNorms {
                query: &query.weight,
                key: &key.weight,
                eps: query.eps,
            }),
            rotation: context.rotation.map(Rotation::kernel),
        }
    }

    /// Operation 2 in plain tensor operations, sequence by sequence.
    fn attend(&self, qkv: &Tensor, sequences: &mut [Sequence], context: &LayerContext) -> Result<Tensor> {
        let ModelConfig { n_heads, n_kv_heads, head_dim, .. } = *context.config;
        let n_tokens = qkv.dims()[0];
        let heads = |first: usize, n: usize| -> Result<Tensor> {
            let part = qkv.narrow(D::Minus1, first * head_dim, n * head_dim)?;
            Ok(part.contiguous()?.reshape((n_tokens, n, head_dim))?)
        };
        let mut query = heads(0, n_heads)?;
        let mut key = heads(n_heads, n_kv_heads)?;
        let value = heads(n_heads + n_kv_heads, n_kv_heads)?;
        if let Some((query_norm, key_norm)) = &self.head_norms {
            (query, key) = (query_norm.forward(&query)?, key_norm.forward(&key)?);
        }
        if let Some(rotation) = context.rotation {
            (query, key) = (rotation.apply(&query)?, rotation.apply(&key)?);
        }
        let scores =
            Scores { scale: context.config.attention_scale, softcap: context.config.attention_softcap };
        let mut row = 0;
        let mut mixed = Vec::with_capacity(sequences.len());
        for (sequence, bias) in sequences.iter_mut().zip(context.biases) {
            let (start, len) = (sequence.start, sequence.len);
            // [n_tokens, heads, head_dim] -> [heads, len, head_dim]
            let heads_first = |x: &Tensor| x.narrow(0, row, len)?.transpose(0, 1)?.contiguous();
            let (key, value) = (heads_first(&key)?, heads_first(&value)?);
            let (keys, values) = append(sequence, &context.kv_layout, context.layer, &key, &value)?;
            let first = first_key(start, context.window);
            let seen = |x: &Tensor| x.narrow(1, first, start + len - first)?.contiguous();
            let (keys, values) = (seen(&keys)?, seen(&values)?);
            mixed.push(attention(&heads_first(&query)?, &keys, &values, scores, bias.as_ref())?);
            row += len;
        }
        match mixed.as_slice() {
            [single] => Ok(single.clone()),
            several => Ok(Tensor::cat(several, 0)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::attention::kv_block::KvFormat;
    use crate::kernels::isa::Isa;
    use crate::models::decoder::LayerConfig;
    use crate::models::layers::attention::causal_bias;
    use crate::models::layers::linear::Weight;
    use crate::models::rope::{Rope, RopeScaling};
    use crate::models::{BlockId, ForwardInput, KvStore, SequenceId};

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
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

    /// A layer of which only the attention between the projections is used.
    fn layer(head_dim: usize, has_norms: bool) -> DecoderLayer {
        let empty = || {
            Linear::new(
                Weight::Dense(Tensor::zeros((1, 1), candle_core::DType::F32, &Device::Cpu).unwrap()),
                None,
            )
        };
        let norm = |seed| RmsNorm { weight: numbers(head_dim, seed), eps: 1e-5 };
        let mlp = GatedMlp {
            gate: empty(),
            up: empty(),
            down: empty(),
            activation: crate::models::layers::activation::Activation::Silu,
        };
        DecoderLayer {
            attention_norm: norm(0),
            query: empty(),
            key: empty(),
            value: empty(),
            head_norms: has_norms.then(|| (norm(1), norm(2))),
            output: empty(),
            attention_post_norm: None,
            mlp_norm: norm(3),
            mlp: Mlp::Dense(mlp),
            mlp_post_norm: None,
        }
    }

    /// Attention over prompts of several sequences and the tokens that follow them.
    fn attend(
        config: &ModelConfig,
        layer: &DecoderLayer,
        arithmetic: Arithmetic,
        format: KvFormat,
        window: Option<usize>,
        rope: Option<&Rope>,
    ) -> Vec<f32> {
        let mut kv = KvStore::new(config, format);
        let row_len = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim;
        let mut all = Vec::new();
        // Of each sequence how many tokens come in each batch.
        for (step, lengths) in [[7, 70, 300], [64, 1, 3], [1, 5, 1], [1, 1, 1]].iter().enumerate() {
            let mut input = ForwardInput::default();
            for (idx, &len) in lengths.iter().enumerate() {
                let start: usize =
                    [[7, 70, 300], [64, 1, 3], [1, 5, 1]][..step].iter().map(|past| past[idx]).sum();
                let blocks = BlockId::run(100 * idx as u32, start + len);
                input.push(SequenceId(idx as u64), 7, start, &[blocks], &vec![0; len], 0);
            }
            let n_tokens = input.token_ids.len();
            let qkv = Tensor::from_vec(numbers(n_tokens * row_len, step), (n_tokens, row_len), &Device::Cpu);
            let rotation = rope.map(|rope| Rotation::new(rope, &input.spans));
            let biases: Vec<Option<Tensor>> = input
                .spans
                .iter()
                .map(|span| {
                    let (first, end) = (first_key(span.start, window), span.start + span.len);
                    causal_bias(span.start, span.len, first, end - first, window).unwrap()
                })
                .collect();
            let context = LayerContext {
                config,
                arithmetic,
                kv_layout: kv.layout(0),
                layer: 0,
                window,
                rotation: rotation.as_ref(),
                biases: &biases,
                profile: &Profile::default(),
            };
            let mut sequences = kv.sequences(&input).unwrap();
            let y = layer.attention_of(&qkv.unwrap(), &mut sequences[0], &context).unwrap();
            all.extend(y.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        }
        all
    }

    #[test]
    fn the_kernel_equals_plain_tensor_operations() {
        let rope = |n_rotated| Rope { theta: 1e4, n_rotated, scaling: RopeScaling::None, magnitude: 1.0 };
        for (n_heads, n_kv_heads, head_dim, window, softcap, has_norms, n_rotated) in [
            (9, 3, 64, None, None, false, Some(64)),
            (4, 4, 20, Some(30), None, true, Some(8)),
            (5, 1, 96, Some(300), Some(5.0), false, None),
            (2, 2, 6, None, Some(3.0), true, Some(6)),
        ] {
            let config = config(n_heads, n_kv_heads, head_dim, softcap);
            let layer = layer(head_dim, has_norms);
            let rope = n_rotated.map(rope);
            for (format, bound) in [(KvFormat::F32, 2e-5), (KvFormat::F16, 2e-5), (KvFormat::Int8, 2e-2)] {
                let of =
                    |arithmetic, format| attend(&config, &layer, arithmetic, format, window, rope.as_ref());
                let expected = of(Arithmetic::Reference, format);
                for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                    let found = of(Arithmetic::Kernels(isa), format);
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
