//! Loads a decoder's tensors by the names of its family's layout.

use super::attention::Attention;
use super::config::{KvHeads, KvSource, LayerConfig, ModelConfig, MoeConfig, QkNorm};
use super::layer::{DecoderLayer, FeedForward, Mixer};
use super::layout::{DecoderLayout, ExpertNames};
use crate::error::{Error, Result};
use crate::models::backend::Backend;
use crate::models::family::{GateUp, Qkv};
use crate::models::layers::linear::{Linear, Weight};
use crate::models::layers::mlp::{Mlp, MoE, SharedExpert};
use crate::models::layers::norm::RmsNorm;
use crate::models::load::{RowSelection, Weights};

/// Loads the parts of a decoder from a checkpoint.
pub struct DecoderLoader<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) layout: &'static DecoderLayout,
    pub(super) weights: &'a Weights,
    pub(super) backend: Backend,
    nesting: Nesting,
}

/// The place of the language model in a checkpoint.
#[derive(Clone, Copy)]
struct Nesting {
    /// The prefix of all tensor names.
    outer: &'static str,
    /// The prefix behind a leading `model.`.
    inner: &'static str,
}

/// Multimodal checkpoints keep the language model under a name of its own, beside or within `model`. Tensors under
/// other names, such as those of a vision tower, are never read.
const NESTINGS: [Nesting; 3] = [
    Nesting { outer: "", inner: "" },
    Nesting { outer: "language_model.", inner: "" },
    Nesting { outer: "", inner: "language_model." },
];

impl Nesting {
    /// The name in the checkpoint of a tensor of the language model.
    fn name(self, name: &str) -> String {
        let Self { outer, inner } = self;
        match name.strip_prefix("model.") {
            Some(rest) => format!("{outer}model.{inner}{rest}"),
            None => format!("{outer}{name}"),
        }
    }
}

/// How a norm's weights are stored, and its epsilon.
#[derive(Clone, Copy)]
pub(super) struct StoredNorm {
    /// Added to the weights.
    pub(super) offset: f64,
    pub(super) eps: f64,
}

impl<'a> DecoderLoader<'a> {
    /// A loader for a model of this configuration.
    pub fn new(config: &'a ModelConfig, weights: &'a Weights, backend: Backend) -> Self {
        let layout = config.layouts.for_weights(weights);
        let has_embedding =
            |nesting: &Nesting| weights.contains(&format!("{}.weight", nesting.name(layout.embedding)));
        let nesting = NESTINGS.into_iter().find(has_embedding).unwrap_or(NESTINGS[0]);
        Self { config, layout, weights, backend, nesting }
    }

    /// Loads the token embeddings, `[n_vocab, hidden]`.
    ///
    /// # Errors
    /// When the tensor is missing or of the wrong shape.
    pub fn embedding(&self) -> Result<Weight> {
        let name = format!("{}.weight", self.name(self.layout.embedding));
        let rows = RowSelection::all(self.config.n_vocab);
        self.weights.matrix(&name, &rows, self.config.hidden_size, self.backend)
    }

    /// Loads the projection to the vocabulary, or uses the `embedding` where the two are tied.
    ///
    /// # Errors
    /// When the tensor is missing or of the wrong shape.
    pub fn head(&self, embedding: &Weight) -> Result<Linear> {
        let name = self.name(self.layout.head);
        if self.config.tied_head && !self.weights.contains(&format!("{name}.weight")) {
            return Ok(Linear::new(embedding.clone(), None));
        }
        self.linear(&name, &RowSelection::all(self.config.n_vocab), self.config.hidden_size)
    }

    /// Loads the norm before the head.
    ///
    /// # Errors
    /// When the tensor is missing or of the wrong shape.
    pub fn final_norm(&self) -> Result<RmsNorm> {
        let norm = StoredNorm { offset: self.layout.final_norm_offset, eps: self.config.rms_norm_eps };
        self.norm(&self.name(self.layout.norm), self.config.hidden_size, norm)
    }

    /// Loads a layer.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn layer(&self, idx: usize) -> Result<DecoderLayer> {
        let Self { config, layout, .. } = self;
        let name = |part: &str| format!("{}.{idx}.{part}", self.name(layout.layers));
        let pre = StoredNorm { offset: layout.norm_offset, eps: config.rms_norm_eps };
        let post = StoredNorm { eps: config.post_norm_eps, ..pre };
        let norm = |part: &str| self.norm(&name(part), config.hidden_size, pre);
        let post_norm = |part: &str| self.norm(&name(part), config.hidden_size, post);
        let layer = &config.layers[idx];
        let mut mixers = Vec::new();
        if layer.has_attention {
            mixers.push(match &config.latent_attention {
                Some(latent) => Mixer::LatentAttention(Box::new(self.latent_attention(&name, latent)?)),
                None => Mixer::Attention(Box::new(self.attention(&name, layer)?)),
            });
        }
        if layer.has_recurrence {
            mixers.push(self.recurrent_mixer(&name)?);
        }
        let mlp = match &config.moe {
            _ if !layer.has_mlp => None,
            Some(moe) if layer.is_moe && moe.has_dense_mlp => {
                Some(FeedForward::DenseMoE(Box::new(self.dense_moe(&name, layer, moe)?)))
            }
            Some(moe) if layer.is_moe => Some(FeedForward::MoE(self.moe(&name, moe)?)),
            _ => Some(FeedForward::Dense(self.dense_mlp(&name, layer)?)),
        };
        Ok(DecoderLayer {
            mixer_norm: layout.attention_norm.filter(|_| !mixers.is_empty()).map(norm).transpose()?,
            mixers,
            mixer_post_norm: layout.attention_post_norm.map(post_norm).transpose()?,
            laurel: self.laurel(&name)?,
            mlp_norm: layout.mlp_norm.filter(|_| mlp.is_some()).map(norm).transpose()?,
            mlp,
            mlp_post_norm: layout.mlp_post_norm.map(post_norm).transpose()?,
            per_layer_input: self.per_layer_input(&name)?,
            altup: self.altup(&name)?,
            output_scale: self.output_scale(&name)?,
        })
    }

    fn attention(&self, name: &dyn Fn(&str) -> String, layer: &LayerConfig) -> Result<Attention> {
        let Self { config, layout, .. } = self;
        let heads = config.kv_heads(layer);
        let (query, key, value) = self.qkv(name, layer)?;
        let value_norm = || RmsNorm { weight: vec![1.0; heads.head_dim], eps: config.rms_norm_eps as f32 };
        let gate = match (layout.has_gated_queries, layout.attention_gate, layout.qkv) {
            (true, _, Qkv::Split { query, .. }) => Some((query, self.gated_query_rows(1))),
            (_, Some(gate), _) => Some((gate, RowSelection::all(config.n_heads * heads.head_dim))),
            _ => None,
        };
        let sinks = |part| Ok::<_, Error>(self.weights.tensor(&name(part), &[config.n_heads])?.to_vec1()?);
        let output_rows = RowSelection::all(config.hidden_size);
        Ok(Attention {
            query,
            key,
            value_norm: config.normed_values.then(value_norm),
            value,
            qk_norms: self.qk_norms(name, layer)?,
            sinks: layout.sinks.map(sinks).transpose()?,
            gate: gate.map(|(part, rows)| self.linear(&name(part), &rows, config.hidden_size)).transpose()?,
            output: self.linear(&name(layout.output), &output_rows, config.n_heads * heads.head_dim)?,
        })
    }

    /// The rows of queries (`part` 0) or of their gates (`part` 1), where a head has both.
    fn gated_query_rows(&self, part: usize) -> RowSelection {
        let ModelConfig { n_heads, head_dim, .. } = *self.config;
        let head_rows = |head: usize| (2 * head + part) * head_dim..(2 * head + part + 1) * head_dim;
        RowSelection::indices((0..n_heads).flat_map(head_rows), 2 * n_heads * head_dim)
    }

    pub(super) fn name(&self, name: &str) -> String {
        self.nesting.name(name)
    }

    /// A norm of vectors of length `n`.
    pub(super) fn norm(
        &self,
        name: &str,
        n: usize,
        StoredNorm { offset, eps }: StoredNorm,
    ) -> Result<RmsNorm> {
        // The converter of Falcon-H1 leaves a suffix out.
        let full_name = format!("{name}.weight");
        let stored = if self.weights.contains(&full_name) { &full_name } else { name };
        let mut weight = self.weights.vector(stored, n)?.to_vec1::<f32>()?;
        weight.iter_mut().for_each(|weight| *weight += offset as f32);
        Ok(RmsNorm { weight, eps: eps as f32 })
    }

    /// The norms of queries and keys.
    fn qk_norms(
        &self,
        name: &dyn Fn(&str) -> String,
        layer: &LayerConfig,
    ) -> Result<Option<(RmsNorm, RmsNorm)>> {
        let ModelConfig { n_heads, rms_norm_eps, qk_norm, .. } = *self.config;
        let KvHeads { n_kv_heads, head_dim } = self.config.kv_heads(layer);
        let constant =
            |weight: f64| RmsNorm { weight: vec![weight as f32; head_dim], eps: rms_norm_eps as f32 };
        let Some(names) = self.layout.qk_norms else {
            let QkNorm::Unweighted(factor) = qk_norm else { return Ok(None) };
            let norm = constant;
            return Ok(Some((norm(factor), norm(1.0))));
        };
        let (n_query, n_key) = match qk_norm {
            QkNorm::Projection => (n_heads * head_dim, n_kv_heads * head_dim),
            _ => (head_dim, head_dim),
        };
        let norm = StoredNorm { offset: self.layout.norm_offset, eps: rms_norm_eps };
        let key_norm = match layer.kv_source {
            KvSource::Layer(_) => constant(1.0),
            _ => self.norm(&name(names.key), n_key, norm)?,
        };
        Ok(Some((self.norm(&name(names.query), n_query, norm)?, key_norm)))
    }

    pub(super) fn linear(&self, name: &str, rows: &RowSelection, n_in: usize) -> Result<Linear> {
        self.weights.linear(name, rows, n_in, self.backend)
    }

    /// The projections to queries, keys and values, as far as the layer has them.
    fn qkv(
        &self,
        name: &dyn Fn(&str) -> String,
        layer: &LayerConfig,
    ) -> Result<(Linear, Option<Linear>, Option<Linear>)> {
        let ModelConfig { hidden_size, n_heads, .. } = *self.config;
        let KvHeads { n_kv_heads, head_dim } = self.config.kv_heads(layer);
        let rope_rows = |n_heads| {
            if self.layout.interleaved_rope {
                RowSelection::permute_rope_rows(n_heads, head_dim)
            } else {
                RowSelection::all(n_heads * head_dim)
            }
        };
        let query_rows =
            if self.layout.has_gated_queries { self.gated_query_rows(0) } else { rope_rows(n_heads) };
        let key_rows = rope_rows(n_kv_heads);
        let load = |part: &str, rows: &RowSelection| self.linear(&name(part), rows, hidden_size);
        match (layer.kv_source, self.layout.qkv) {
            (KvSource::Layer(_), Qkv::Split { query, .. }) => Ok((load(query, &query_rows)?, None, None)),
            (KvSource::KeyProjection, Qkv::Split { query, key, .. }) => {
                Ok((load(query, &query_rows)?, Some(load(key, &key_rows)?), None))
            }
            (_, qkv) => {
                let rows = [query_rows, key_rows, RowSelection::all(n_kv_heads * head_dim)];
                let [query, key, value] = qkv.load(rows, load)?;
                Ok((query, Some(key), Some(value)))
            }
        }
    }

    pub(super) fn dense_mlp(&self, name: &dyn Fn(&str) -> String, layer: &LayerConfig) -> Result<Mlp> {
        let DecoderLayout { gate_up, down, .. } = *self.layout;
        let width = layer.intermediate_size.unwrap_or(self.config.intermediate_size);
        Ok(Mlp { cutoff: layer.gate_cutoff, ..self.mlp(name, gate_up, down, width)? })
    }

    /// An MLP with `n` columns between its projections.
    fn mlp(&self, name: &dyn Fn(&str) -> String, gate_up: GateUp, down: &str, n: usize) -> Result<Mlp> {
        let ModelConfig { hidden_size, activation, .. } = *self.config;
        let load = |part: &str, rows: &RowSelection| self.linear(&name(part), rows, hidden_size);
        let (gate, up) = gate_up.load(n, load)?;
        let down = self.linear(&name(down), &RowSelection::all(hidden_size), n)?;
        Ok(Mlp { gate, up, down, activation, cutoff: None })
    }

    pub(super) fn moe(&self, name: &dyn Fn(&str) -> String, moe: &MoeConfig) -> Result<MoE> {
        let router_rows = RowSelection::all(moe.n_experts);
        let score_bias = self.layout.score_bias.map(name).filter(|bias| self.weights.contains(bias));
        let expert_scales = self.layout.dense_moe.map(|names| name(names.expert_scales));
        let per_expert = |part: Option<String>| {
            let values =
                part.map(|part| Ok::<_, Error>(self.weights.vector(&part, moe.n_experts)?.to_vec1()?));
            values.transpose()
        };
        Ok(MoE {
            router: self.linear(&name(self.layout.router), &router_rows, self.config.hidden_size)?,
            score_bias: per_expert(score_bias)?,
            expert_scales: per_expert(expert_scales)?,
            routing: moe.routing,
            experts: (0..moe.n_experts)
                .map(|expert| self.expert(name, expert, moe))
                .collect::<Result<Vec<_>>>()?,
            shared: moe.shared_intermediate_size.map(|n| self.shared_expert(name, n)).transpose()?,
        })
    }

    fn shared_expert(&self, name: &dyn Fn(&str) -> String, n: usize) -> Result<SharedExpert> {
        let names = self.layout.shared_expert;
        let output_gate = names
            .output_gate
            .map(|gate| self.linear(&name(gate), &RowSelection::all(1), self.config.hidden_size));
        Ok(SharedExpert {
            mlp: self.mlp(name, names.gate_up, names.down, n)?,
            output_gate: output_gate.transpose()?,
        })
    }

    fn expert(&self, name: &dyn Fn(&str) -> String, expert: usize, moe: &MoeConfig) -> Result<Mlp> {
        let ModelConfig { hidden_size, activation, .. } = *self.config;
        let n = moe.intermediate_size;
        let (gate, up, down) = match self.layout.experts {
            ExpertNames::Split { prefix, gate, up, down } => {
                let linear = |part: &str, n_out: usize, n_in: usize| {
                    let name = name(&format!("{prefix}.{expert}.{part}"));
                    self.linear(&name, &RowSelection::all(n_out), n_in)
                };
                let gate = gate.map(|gate| linear(gate, n, hidden_size)).transpose()?;
                (gate, linear(up, n, hidden_size)?, linear(down, hidden_size, n)?)
            }
            ExpertNames::Stacked { gate, up, down } => {
                let linear = |part: &str, n_out: usize, n_in: usize| {
                    let rows = expert * n_out..(expert + 1) * n_out;
                    self.linear(&name(part), &RowSelection::range(rows, moe.n_experts * n_out), n_in)
                };
                let gate = gate.map(|gate| linear(gate, n, hidden_size)).transpose()?;
                (gate, linear(up, n, hidden_size)?, linear(down, hidden_size, n)?)
            }
            ExpertNames::Fused { gate_up, down } => {
                let linear = |part: &str, first: usize, n_out: usize, n_per_expert: usize, n_in: usize| {
                    let first = expert * n_per_expert + first;
                    let rows = RowSelection::range(first..first + n_out, moe.n_experts * n_per_expert);
                    Ok::<_, Error>(Linear::new(
                        self.weights.matrix(&name(part), &rows, n_in, self.backend)?,
                        None,
                    ))
                };
                let gate = linear(gate_up, 0, n, 2 * n, hidden_size)?;
                let up = linear(gate_up, n, n, 2 * n, hidden_size)?;
                (Some(gate), up, linear(down, 0, hidden_size, hidden_size, n)?)
            }
            ExpertNames::Alternating { gate_up, down } => {
                let linear = |part: &str, rows: &RowSelection, n_in: usize| {
                    let expert = expert..moe.n_experts;
                    self.weights.expert_linear(&name(part), expert, rows, n_in, self.backend)
                };
                let every_second = |first| RowSelection::every_second(first, 2 * n);
                let gate = linear(gate_up, &every_second(0), hidden_size)?;
                let up = linear(gate_up, &every_second(1), hidden_size)?;
                (Some(gate), up, linear(down, &RowSelection::all(hidden_size), n)?)
            }
        };
        Ok(Mlp { gate, up, down, activation, cutoff: None })
    }
}
