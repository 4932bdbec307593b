//! Loads a decoder's tensors by the names of its family's layout.

use super::config::{ModelConfig, MoeConfig};
use super::layer::{DecoderLayer, FeedForward};
use super::layout::{DecoderLayout, ExpertNames};
use crate::error::{Error, Result};
use crate::models::backend::Backend;
use crate::models::layers::linear::{Linear, Weight};
use crate::models::layers::mlp::{GatedMlp, MoE};
use crate::models::layers::norm::RmsNorm;
use crate::models::load::{RowSelection, Weights};

/// Loads the parts of a decoder from a checkpoint.
pub struct DecoderLoader<'a> {
    config: &'a ModelConfig,
    layout: &'static DecoderLayout,
    weights: &'a Weights,
    backend: Backend,
    prefix: &'static str,
}

/// The prefixes of all tensor names: multimodal checkpoints keep the language model under one of its own.
const PREFIXES: [&str; 2] = ["", "language_model."];

impl<'a> DecoderLoader<'a> {
    /// A loader for a model of this configuration.
    pub fn new(config: &'a ModelConfig, weights: &'a Weights, backend: Backend) -> Self {
        let layout = config.layouts.for_weights(weights);
        let has_embedding = |prefix: &&str| weights.contains(&format!("{prefix}{}.weight", layout.embedding));
        let prefix = PREFIXES.into_iter().find(has_embedding).unwrap_or_default();
        Self { config, layout, weights, backend, prefix }
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
        self.norm(&self.name(self.layout.norm), self.config.hidden_size)
    }

    /// Loads a layer.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn layer(&self, idx: usize) -> Result<DecoderLayer> {
        let Self { config, layout, .. } = self;
        let name = |part: &str| format!("{}.{idx}.{part}", self.name(layout.layers));
        let norm = |part: &str| self.norm(&name(part), config.hidden_size);
        let head_norm = |part: &str| self.norm(&name(part), config.head_dim);
        let [query, key, value] = self.qkv(&name)?;
        let mlp = match &config.moe {
            Some(moe) if config.layers[idx].is_moe => FeedForward::MoE(self.moe(&name, moe)?),
            _ => FeedForward::Dense(self.dense_mlp(&name)?),
        };
        let output_rows = RowSelection::all(config.hidden_size);
        Ok(DecoderLayer {
            attention_norm: norm(layout.attention_norm)?,
            query,
            key,
            value,
            head_norms: layout
                .head_norms
                .map(|names| Ok::<_, Error>((head_norm(names.query)?, head_norm(names.key)?)))
                .transpose()?,
            output: self.linear(&name(layout.output), &output_rows, config.n_heads * config.head_dim)?,
            attention_post_norm: layout.attention_post_norm.map(norm).transpose()?,
            mlp_norm: norm(layout.mlp_norm)?,
            mlp,
            mlp_post_norm: layout.mlp_post_norm.map(norm).transpose()?,
        })
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A norm of vectors of length `n`.
    fn norm(&self, name: &str, n: usize) -> Result<RmsNorm> {
        let mut weight = self.weights.tensor(&format!("{name}.weight"), &[n])?.to_vec1::<f32>()?;
        weight.iter_mut().for_each(|weight| *weight += self.layout.norm_offset as f32);
        Ok(RmsNorm { weight, eps: self.config.rms_norm_eps as f32 })
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
        })
    }

    fn expert(&self, name: &dyn Fn(&str) -> String, expert: usize, moe: &MoeConfig) -> Result<GatedMlp> {
        let ModelConfig { hidden_size, activation, .. } = *self.config;
        let linear = |part: &str, n_out: usize, n_in: usize| match self.layout.experts {
            ExpertNames::Split { prefix, .. } => {
                self.linear(&name(&format!("{prefix}.{expert}.{part}")), &RowSelection::all(n_out), n_in)
            }
            ExpertNames::Stacked { .. } => {
                let rows = RowSelection::range(expert * n_out..(expert + 1) * n_out, moe.n_experts * n_out);
                self.linear(&name(part), &rows, n_in)
            }
        };
        let (ExpertNames::Split { gate, up, down, .. } | ExpertNames::Stacked { gate, up, down }) =
            self.layout.experts;
        let n = moe.intermediate_size;
        Ok(GatedMlp {
            gate: linear(gate, n, hidden_size)?,
            up: linear(up, n, hidden_size)?,
            down: linear(down, hidden_size, n)?,
            activation,
        })
    }
}
