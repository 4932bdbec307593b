//! The decoder: one for all families, described by a [`ModelConfig`] and, where checkpoints lie
//! differently, by a [`Family`].

mod config;
mod family;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;

use candle_core::{Device, Tensor};

pub use config::{Experts, KvGroup, LayerConfig, ModelConfig};
pub use family::Family;

use self::family::{ExpertNames, GateUp, Layout, Qkv};
use super::layers::attention::{causal_bias, softcap};
use super::layers::decoder_layer::{DecoderLayer, LayerContext, Mlp};
use super::layers::linear::{Linear, Weight, side_by_side};
use super::layers::mlp::{GatedMlp, Mixture};
use super::layers::norm::RmsNorm;
use super::layers::rope::Rotation;
use super::load::{Rows, Weights};
use super::profile::{Op, Profile};
use super::rope::Rope;
use super::{Arithmetic, Decoder, ForwardInput, KvStore};
use crate::error::{Error, Result};
use crate::kernels::attention::first_key;
use crate::kernels::attention::kv_block::KvLayout;

/// A causal language model with its weights.
pub struct CausalLm {
    config: ModelConfig,
    arithmetic: Arithmetic,
    /// `[n_vocab, hidden]`
    embedding: Weight,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    head: Linear,
    /// The different rotations and windows among the layers.
    kinds: Vec<LayerKind>,
    /// Which of them each layer has.
    kind_of_layer: Vec<usize>,
    /// Of each layer the group of keys and values, and its place in it.
    kv_places: Vec<(usize, usize)>,
    profile: Profile,
}

/// What the matrices of an operation take, in all layers together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiplications for one token.
    pub products: usize,
    /// Bytes of weights that are read for one token.
    pub weight_bytes: usize,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.products += other.products;
        self.weight_bytes += other.weight_bytes;
    }
}

/// A rotation and a window.
type LayerKind = (Option<Rope>, Option<usize>);

/// The rotations of a batch's tokens, and a bias for each of its sequences.
type KindContext = (Option<Rotation>, Vec<Option<Tensor>>);

impl CausalLm {
    /// Reads the weights of a model of this configuration.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn load(config: ModelConfig, weights: &Weights, arithmetic: Arithmetic) -> Result<Self> {
        let layout = match weights {
            Weights::Gguf(_) => &config.family.gguf,
            Weights::Safetensors(_) => &config.family.safetensors,
        };
        let reader =
            Reader { config: &config, layout, weights, arithmetic, prefix: prefix_of(layout, weights) };
        let (embedding_name, head_name) =
            (reader.name(layout.embedding, ".weight"), reader.name(layout.head, ""));
        let vocabulary = Rows::all(config.n_vocab);
        let embedding = weights.matrix(&embedding_name, &vocabulary, config.hidden_size, arithmetic)?;
        let head = if config.ties_head && !weights.contains(&format!("{head_name}.weight")) {
            Linear::new(embedding.clone(), None)
        } else {
            reader.linear(&head_name, &vocabulary, config.hidden_size)?
        };
        let layers = (0..config.layers.len()).map(|idx| reader.layer(idx)).collect::<Result<Vec<_>>>()?;
        let norm = reader.norm(&reader.name(layout.norm, ""), config.hidden_size)?;

        let mut kinds = Vec::new();
        let kind_of_layer = config
            .layers
            .iter()
            .map(|layer| {
                let kind = (layer.rope.clone(), layer.window);
                kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                    kinds.push(kind);
                    kinds.len() - 1
                })
            })
            .collect();
        Ok(Self {
            arithmetic,
            embedding,
            layers,
            norm,
            head,
            kinds,
            kind_of_layer,
            kv_places: config.kv_places(),
            profile: Profile::default(),
            config,
        })
    }
}

impl Decoder for CausalLm {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn forward(&mut self, kv: &mut KvStore, input: &ForwardInput) -> Result<Tensor> {
        self.profile.start();
        let mut x = self.embedding.rows(&input.token_ids)?;
        if let Some(scale) = self.config.embedding_scale {
            x = (x * scale)?;
        }
        let kinds = self.kinds.iter().map(|kind| self.context_of(kind, input)).collect::<Result<Vec<_>>>()?;
        let kv_layouts: Vec<KvLayout> = (0..kv.n_groups()).map(|group| kv.layout(group)).collect();
        let mut sequences = kv.sequences(input)?;
        self.profile.lap(Op::Embedding);
        for ((layer, &kind), &(group, place)) in
            self.layers.iter().zip(&self.kind_of_layer).zip(&self.kv_places)
        {
            let (rotation, biases) = &kinds[kind];
            let context = LayerContext {
                config: &self.config,
                arithmetic: self.arithmetic,
                kv_layout: kv_layouts[group],
                layer: place,
                window: self.kinds[kind].1,
                rotation: rotation.as_ref(),
                biases,
                profile: &self.profile,
            };
            x = layer.forward(&x, &mut sequences[group], &context)?;
        }
        let rows = Tensor::from_slice(&input.logit_rows, input.logit_rows.len(), &Device::Cpu)?;
        let logits = side_by_side(Some(&self.norm), &[&self.head], &x.index_select(&rows, 0)?)?;
        let logits = match self.config.logit_softcap {
            Some(cap) => softcap(&logits, cap)?,
            None => logits,
        };
        self.profile.lap(Op::Head);
        Ok(logits)
    }
}

impl CausalLm {
    /// What each of [`Op::ALL`] takes, attention aside.
    pub fn costs(&self) -> [Cost; Op::ALL.len()] {
        let mut costs = [Cost::default(); Op::ALL.len()];
        let of_layers = self.layers.iter().flat_map(DecoderLayer::matrices);
        for (op, linear, times) in of_layers.chain([(Op::Head, &self.head, 1)]) {
            let (products, bytes) = linear.size();
            costs[op as usize] += Cost { products: times * products, weight_bytes: times * bytes };
        }
        costs
    }

    /// Where the time of forward passes goes.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What is the same for a batch in every layer of a kind: its rotations and, for plain tensor
    /// operations, what hides keys from each sequence's queries.
    fn context_of(&self, (rope, window): &LayerKind, input: &ForwardInput) -> Result<KindContext> {
        let rotation = rope.as_ref().map(|rope| Rotation::new(rope, &input.spans));
        let bias = |span: &super::Span| match self.arithmetic {
            Arithmetic::Kernels(_) | Arithmetic::Rounding(_) => Ok(None),
            Arithmetic::Reference => {
                let (first, end) = (first_key(span.start, *window), span.start + span.len);
                causal_bias(span.start, span.len, first, end - first, *window)
            }
        };
        Ok((rotation, input.spans.iter().map(bias).collect::<Result<_>>()?))
    }
}

/// What stands in front of all names: checkpoints of models that see pictures keep the language
/// model under a name of its own.
fn prefix_of(layout: &Layout, weights: &Weights) -> &'static str {
    let prefixes = ["", "language_model."];
    let has_embedding = |prefix: &&str| weights.contains(&format!("{prefix}{}.weight", layout.embedding));
    prefixes.into_iter().find(has_embedding).unwrap_or_default()
}

/// Reads the parts of a model as its layout has them.
struct Reader<'a> {
    config: &'a ModelConfig,
    layout: &'a Layout,
    weights: &'a Weights,
    arithmetic: Arithmetic,
    prefix: &'static str,
}

impl Reader<'_> {
    fn name(&self, name: &str, suffix: &str) -> String {
        format!("{}{name}{suffix}", self.prefix)
    }

    /// The norm of vectors of `n` numbers.
    fn norm(&self, name: &str, n: usize) -> Result<RmsNorm> {
        let mut weight = self.weights.tensor(&format!("{name}.weight"), &[n])?.to_vec1::<f32>()?;
        weight.iter_mut().for_each(|weight| *weight += self.layout.norm_offset as f32);
        Ok(RmsNorm { weight, eps: self.config.rms_norm_eps as f32 })
    }

    fn linear(&self, name: &str, rows: &Rows, n_in: usize) -> Result<Linear> {
        self.weights.linear(name, rows, n_in, self.arithmetic)
    }

    fn layer(&self, idx: usize) -> Result<DecoderLayer> {
        let Self { config, layout, .. } = self;
        let name = |part: &str| format!("{}.{idx}.{part}", self.name(layout.layers, ""));
        let norm = |part: &str| self.norm(&name(part), config.hidden_size);
        let head_norm = |part: &str| self.norm(&name(part), config.head_dim);
        let [query, key, value] = self.qkv(&name)?;
        let mlp = match config.experts {
            Some(experts) if config.layers[idx].is_mixture => Mlp::Mixture(Mixture {
                router: self.linear(
                    &name(layout.router),
                    &Rows::all(experts.n_experts),
                    config.hidden_size,
                )?,
                experts: (0..experts.n_experts)
                    .map(|expert| self.expert(&name, expert, &experts))
                    .collect::<Result<Vec<_>>>()?,
                n_used: experts.n_used,
                normalizes: experts.normalizes,
            }),
            _ => Mlp::Dense(self.dense_mlp(&name)?),
        };
        Ok(DecoderLayer {
            attention_norm: norm(layout.attention_norm)?,
            query,
            key,
            value,
            head_norms: layout
                .head_norms
                .map(|names| Ok::<_, Error>((head_norm(names.query)?, head_norm(names.key)?)))
                .transpose()?,
            output: self.linear(
                &name(layout.output),
                &Rows::all(config.hidden_size),
                config.n_heads * config.head_dim,
            )?,
            attention_post_norm: layout.attention_post_norm.map(norm).transpose()?,
            mlp_norm: norm(layout.mlp_norm)?,
            mlp,
            mlp_post_norm: layout.mlp_post_norm.map(norm).transpose()?,
        })
    }

    fn qkv(&self, name: &dyn Fn(&str) -> String) -> Result<[Linear; 3]> {
        let ModelConfig { hidden_size, n_heads, n_kv_heads, head_dim, .. } = *self.config;
        let (q_size, kv_size) = (n_heads * head_dim, n_kv_heads * head_dim);
        let linear = |part, rows: Rows| self.linear(&name(part), &rows, hidden_size);
        match self.layout.qkv {
            Qkv::Apart { query, key, value } => {
                let heads = |n_heads| {
                    if self.layout.interleaves_heads {
                        Rows::halves_apart(n_heads, head_dim)
                    } else {
                        Rows::all(n_heads * head_dim)
                    }
                };
                Ok([
                    linear(query, heads(n_heads))?,
                    linear(key, heads(n_kv_heads))?,
                    linear(value, Rows::all(kv_size))?,
                ])
            }
            Qkv::Fused(part) => {
                let n_stored = q_size + 2 * kv_size;
                Ok([
                    linear(part, Rows::range(0..q_size, n_stored))?,
                    linear(part, Rows::range(q_size..q_size + kv_size, n_stored))?,
                    linear(part, Rows::range(q_size + kv_size..n_stored, n_stored))?,
                ])
            }
        }
    }

    fn dense_mlp(&self, name: &dyn Fn(&str) -> String) -> Result<GatedMlp> {
        let ModelConfig { hidden_size, intermediate_size: n, activation, .. } = *self.config;
        let linear = |part, rows: Rows| self.linear(&name(part), &rows, hidden_size);
        let (gate, up) = match self.layout.gate_up {
            GateUp::Apart { gate, up } => (linear(gate, Rows::all(n))?, linear(up, Rows::all(n))?),
            GateUp::Fused(part) => {
                (linear(part, Rows::range(0..n, 2 * n))?, linear(part, Rows::range(n..2 * n, 2 * n))?)
            }
        };
        let down = self.linear(&name(self.layout.down), &Rows::all(hidden_size), n)?;
        Ok(GatedMlp { gate, up, down, activation })
    }

    fn expert(&self, name: &dyn Fn(&str) -> String, expert: usize, experts: &Experts) -> Result<GatedMlp> {
        let ModelConfig { hidden_size, activation, .. } = *self.config;
        let linear = |part: &str, n_out: usize, n_in: usize| match self.layout.experts {
            ExpertNames::Apart { prefix, .. } => {
                self.linear(&name(&format!("{prefix}.{expert}.{part}")), &Rows::all(n_out), n_in)
            }
            ExpertNames::Stacked { .. } => {
                let rows = Rows::range(expert * n_out..(expert + 1) * n_out, experts.n_experts * n_out);
                self.linear(&name(part), &rows, n_in)
            }
        };
        let (ExpertNames::Apart { gate, up, down, .. } | ExpertNames::Stacked { gate, up, down }) =
            self.layout.experts;
        let n = experts.intermediate_size;
        Ok(GatedMlp {
            gate: linear(gate, n, hidden_size)?,
            up: linear(up, n, hidden_size)?,
            down: linear(down, hidden_size, n)?,
            activation,
        })
    }
}
