//! Loads a decoder's tensors by the names of its family's layout.

use super::config::{ModelConfig, MoeConfig, QkNorm};
use super::layer::{DecoderLayer, FeedForward};
use super::layout::{DecoderLayout, ExpertNames};
use crate::error::{Error, Result};
use crate::models::backend::Backend;
use crate::models::layers::linear::{Linear, Weight};
use crate::models::layers::mlp::{GatedMlp, MoE, SharedExpert};
use crate::models::layers::norm::RmsNorm;
use crate::models::load::{RowSelection, Weights};

/// Loads the parts of a decoder from a checkpoint.
pub struct DecoderLoader<'a> {
    config: &'a ModelConfig,
    layout: &'static DecoderLayout,
    weights: &'a Weights,
    backend: Backend,
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
struct StoredNorm {
    /// Added to the weights.
    offset: f64,
    eps: f64,
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
        let [query, key, value] = self.qkv(&name)?;
        let mlp = match &config.moe {
            Some(moe) if config.layers[idx].is_moe => FeedForward::MoE(self.moe(&name, moe)?),
            _ => FeedForward::Dense(self.dense_mlp(&name)?),
        };
        let output_rows = RowSelection::all(config.hidden_size);
        let gate_rows = RowSelection::all(config.n_heads * config.head_dim);
        Ok(DecoderLayer {
            attention_norm: layout.attention_norm.map(norm).transpose()?,
            query,
            key,
            value,
            qk_norms: self.qk_norms(&name)?,
            sinks: layout
                .sinks
                .map(|part| Ok::<_, Error>(self.weights.tensor(&name(part), &[config.n_heads])?.to_vec1()?))
                .transpose()?,
            attention_gate: layout
                .attention_gate
                .map(|part| self.linear(&name(part), &gate_rows, config.hidden_size))
                .transpose()?,
            output: self.linear(&name(layout.output), &output_rows, config.n_heads * config.head_dim)?,
            attention_post_norm: layout.attention_post_norm.map(post_norm).transpose()?,
            mlp_norm: layout.mlp_norm.map(norm).transpose()?,
            mlp,
            mlp_post_norm: layout.mlp_post_norm.map(post_norm).transpose()?,
        })
    }

    fn name(&self, name: &str) -> String {
        self.nesting.name(name)
    }

    /// A norm of vectors of length `n`.
    fn norm(&self, name: &str, n: usize, StoredNorm { offset, eps }: StoredNorm) -> Result<RmsNorm> {
        let mut weight = self.weights.tensor(&format!("{name}.weight"), &[n])?.to_vec1::<f32>()?;
        weight.iter_mut().for_each(|weight| *weight += offset as f32);
        Ok(RmsNorm { weight, eps: eps as f32 })
    }

    /// The norms of queries and keys.
    fn qk_norms(&self, name: &dyn Fn(&str) -> String) -> Result<Option<(RmsNorm, RmsNorm)>> {
        let ModelConfig { n_heads, n_kv_heads, head_dim, rms_norm_eps, qk_norm, .. } = *self.config;
        let Some(names) = self.layout.qk_norms else {
            let QkNorm::Unweighted(factor) = qk_norm else { return Ok(None) };
            let norm =
                |weight: f64| RmsNorm { weight: vec![weight as f32; head_dim], eps: rms_norm_eps as f32 };
            return Ok(Some((norm(factor), norm(1.0))));
        };
        let (n_query, n_key) = match qk_norm {
            QkNorm::Projection => (n_heads * head_dim, n_kv_heads * head_dim),
            _ => (head_dim, head_dim),
        };
        let norm = StoredNorm { offset: self.layout.norm_offset, eps: rms_norm_eps };
        Ok(Some((self.norm(&name(names.query), n_query, norm)?, self.norm(&name(names.key), n_key, norm)?)))
    }

    fn linear(&self, name: &str, rows: &RowSelection, n_in: usize) -> Result<Linear> {
        self.weights.linear(name, rows, n_in, self.backend)
    }

    fn qkv(&self, name: &dyn Fn(&str) -> String) -> Result<[Linear; 3]> {
        let ModelConfig { hidden_size, n_heads, n_kv_heads, head_dim, .. } = *self.config;
        let rope_rows = |n_heads| {
            if self.layout.interleaved_rope {
                RowSelection::permute_rope_rows(n_heads, head_dim)
            } else {
                RowSelection::all(n_heads * head_dim)
            }
        };
        let rows = [rope_rows(n_heads), rope_rows(n_kv_heads), RowSelection::all(n_kv_heads * head_dim)];
        self.layout.qkv.load(rows, |part, rows| self.linear(&name(part), rows, hidden_size))
    }

    fn dense_mlp(&self, name: &dyn Fn(&str) -> String) -> Result<GatedMlp> {
        let ModelConfig { hidden_size, intermediate_size, activation, .. } = *self.config;
        let load = |part: &str, rows: &RowSelection| self.linear(&name(part), rows, hidden_size);
        let (gate, up) = self.layout.gate_up.load(intermediate_size, load)?;
        let down_rows = RowSelection::all(hidden_size);
        let down = self.linear(&name(self.layout.down), &down_rows, intermediate_size)?;
        Ok(GatedMlp { gate, up, down, activation })
    }

    fn moe(&self, name: &dyn Fn(&str) -> String, moe: &MoeConfig) -> Result<MoE> {
        let router_rows = RowSelection::all(moe.n_experts);
        Ok(MoE {
            router: self.linear(&name(self.layout.router), &router_rows, self.config.hidden_size)?,
            experts: (0..moe.n_experts)
                .map(|expert| self.expert(name, expert, moe))
                .collect::<Result<Vec<_>>>()?,
            experts_per_token: moe.experts_per_token,
            normalize_weights: moe.normalize_weights,
            shared: moe.shared_intermediate_size.map(|n| self.shared_expert(name, n)).transpose()?,
        })
    }

    fn shared_expert(&self, name: &dyn Fn(&str) -> String, n: usize) -> Result<SharedExpert> {
        let ModelConfig { hidden_size, activation, .. } = *self.config;
        let names = self.layout.shared_expert;
        let linear =
            |part: &str, n_out: usize, n_in: usize| self.linear(&name(part), &RowSelection::all(n_out), n_in);
        let mlp = GatedMlp {
            gate: linear(names.gate, n, hidden_size)?,
            up: linear(names.up, n, hidden_size)?,
            down: linear(names.down, hidden_size, n)?,
            activation,
        };
        Ok(SharedExpert { mlp, output_gate: linear(names.output_gate, 1, hidden_size)? })
    }

    fn expert(&self, name: &dyn Fn(&str) -> String, expert: usize, moe: &MoeConfig) -> Result<GatedMlp> {
        let ModelConfig { hidden_size, activation, .. } = *self.config;
        let n = moe.intermediate_size;
        let [gate, up, down] = match self.layout.experts {
            ExpertNames::Split { prefix, gate, up, down } => {
                let linear = |part: &str, n_out: usize, n_in: usize| {
                    let name = name(&format!("{prefix}.{expert}.{part}"));
                    self.linear(&name, &RowSelection::all(n_out), n_in)
                };
                [linear(gate, n, hidden_size)?, linear(up, n, hidden_size)?, linear(down, hidden_size, n)?]
            }
            ExpertNames::Stacked { gate, up, down } => {
                let linear = |part: &str, n_out: usize, n_in: usize| {
                    let rows = expert * n_out..(expert + 1) * n_out;
                    self.linear(&name(part), &RowSelection::range(rows, moe.n_experts * n_out), n_in)
                };
                [linear(gate, n, hidden_size)?, linear(up, n, hidden_size)?, linear(down, hidden_size, n)?]
            }
            ExpertNames::Alternating { gate_up, down } => {
                let linear = |part: &str, rows: &RowSelection, n_in: usize| {
                    let expert = expert..moe.n_experts;
                    self.weights.expert_linear(&name(part), expert, rows, n_in, self.backend)
                };
                let every_second = |first| RowSelection::every_second(first, 2 * n);
                [
                    linear(gate_up, &every_second(0), hidden_size)?,
                    linear(gate_up, &every_second(1), hidden_size)?,
                    linear(down, &RowSelection::all(hidden_size), n)?,
                ]
            }
        };
        Ok(GatedMlp { gate, up, down, activation })
    }
}
