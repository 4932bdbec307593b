//! Loads an encoder's tensors by the names of its family's layout.

use super::config::{EncoderConfig, NormPlacement};
use super::embeddings::{EmbeddingTable, EncoderEmbeddings};
use super::head::ClassificationHead;
use super::layer::{EncoderLayer, EncoderMlp};
use super::layout::{EncoderLayout, UpNames};
use super::relative_bias::RelativeBias;
use crate::error::Result;
use crate::models::backend::Backend;
use crate::models::layers::linear::Linear;
use crate::models::layers::mlp::Mlp;
use crate::models::layers::norm::LayerNorm;
use crate::models::load::{RowSelection, Weights};

/// Loads the parts of an encoder from a checkpoint.
pub struct EncoderLoader<'a> {
    config: &'a EncoderConfig,
    layout: &'static EncoderLayout,
    weights: &'a Weights,
    backend: Backend,
    /// The prefix of the encoder's names in checkpoints of a model with a head.
    prefix: &'static str,
}

impl<'a> EncoderLoader<'a> {
    /// A loader for a model of this configuration.
    pub fn new(config: &'a EncoderConfig, weights: &'a Weights, backend: Backend) -> Self {
        let layout = config.layouts.for_weights(weights);
        let is_bare = weights.contains(&format!("{}.weight", layout.words));
        Self { config, layout, weights, backend, prefix: if is_bare { "" } else { layout.prefix } }
    }

    /// Loads the embedding tables that the family has, and their norm.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn embeddings(&self) -> Result<EncoderEmbeddings> {
        let Self { config, layout, .. } = self;
        let table = |name: &str, n_rows| -> Result<EmbeddingTable> {
            let values = self.weights.tensor(&self.weight_name(name), &[n_rows, config.hidden_size])?;
            Ok(EmbeddingTable { values: values.flatten_all()?.to_vec1()?, n_rows })
        };
        let types = layout.types.filter(|_| config.n_types > 0);
        Ok(EncoderEmbeddings {
            words: table(layout.words, config.n_vocab)?,
            positions: layout.positions.map(|name| table(name, config.n_positions)).transpose()?,
            types: types.map(|name| table(name, config.n_types)).transpose()?,
            norm: self.norm(&self.name(layout.embedding_norm))?,
        })
    }

    /// Loads the relative attention biases, if the family has them.
    ///
    /// # Errors
    /// When the tensor is missing or of the wrong shape.
    pub fn relative_bias(&self) -> Result<Option<RelativeBias>> {
        let shape = [self.config.n_relative_buckets, self.config.n_heads];
        let load = |name| RelativeBias::new(&self.weights.tensor(&self.weight_name(name), &shape)?);
        self.layout.relative_bias.map(load).transpose()
    }

    /// Loads a layer.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn layer(&self, idx: usize) -> Result<EncoderLayer> {
        let Self { config, layout, .. } = self;
        let hidden = config.hidden_size;
        let name = |part: &str| format!("{}{}.{idx}.{part}", self.prefix, layout.layers);
        let linear = |part: &str, rows: &RowSelection| self.linear(&name(part), rows, hidden);
        let rows = RowSelection::all(hidden);
        let [query, key, value] = layout.qkv.load([rows.clone(), rows.clone(), rows.clone()], linear)?;
        let is_normalized = idx == 0 && config.norm_placement == NormPlacement::Pre;
        Ok(EncoderLayer {
            attention_norm: if is_normalized { None } else { Some(self.norm(&name(layout.attention_norm))?) },
            query,
            key,
            value,
            output: linear(layout.output, &rows)?,
            mlp_norm: self.norm(&name(layout.mlp_norm))?,
            mlp: self.mlp(&name)?,
        })
    }

    /// Loads the norm after the last layer, if the family has one.
    ///
    /// # Errors
    /// When the tensor is missing or of the wrong shape.
    pub fn final_norm(&self) -> Result<Option<LayerNorm>> {
        self.layout.final_norm.map(|name| self.norm(&self.name(name))).transpose()
    }

    /// Loads the classification head, if the checkpoint has one.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn head(&self) -> Result<Option<ClassificationHead>> {
        let Some(layout) = &self.layout.head else { return Ok(None) };
        let Some(n_labels) = self.weights.n_rows(&format!("{}.weight", layout.output)) else {
            return Ok(None);
        };
        let hidden = self.config.hidden_size;
        // BERT's pooler is under the encoder's prefix, the first projection of other heads is not.
        let prefixed = self.name(layout.dense);
        let is_prefixed = self.weights.contains(&format!("{prefixed}.weight"));
        let dense = if is_prefixed { &prefixed } else { layout.dense };
        Ok(Some(ClassificationHead {
            dense: self.linear(dense, &RowSelection::all(hidden), hidden)?,
            activation: layout.activation,
            norm: layout.norm.map(|name| self.norm(name)).transpose()?,
            output: self.linear(layout.output, &RowSelection::all(n_labels), hidden)?,
            n_labels,
        }))
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn weight_name(&self, name: &str) -> String {
        format!("{}{name}.weight", self.prefix)
    }

    fn linear(&self, name: &str, rows: &RowSelection, n_in: usize) -> Result<Linear> {
        self.weights.linear(name, rows, n_in, self.backend)
    }

    /// A norm, with a bias if the checkpoint has one.
    fn norm(&self, name: &str) -> Result<LayerNorm> {
        let shape = [self.config.hidden_size];
        let weight = self.weights.tensor(&format!("{name}.weight"), &shape)?.to_vec1()?;
        let bias_name = format!("{name}.bias");
        let bias = if self.weights.contains(&bias_name) {
            self.weights.tensor(&bias_name, &shape)?.to_vec1()?
        } else {
            vec![0.0; self.config.hidden_size]
        };
        Ok(LayerNorm { weight, bias, eps: self.config.norm_eps as f32 })
    }

    fn mlp(&self, name: &dyn Fn(&str) -> String) -> Result<EncoderMlp> {
        let EncoderConfig { hidden_size, intermediate_size, activation, .. } = *self.config;
        let load = |part: &str, rows: &RowSelection| self.linear(&name(part), rows, hidden_size);
        let down_rows = RowSelection::all(hidden_size);
        let down = self.linear(&name(self.layout.down), &down_rows, intermediate_size)?;
        Ok(match self.layout.up {
            UpNames::Plain(up) => {
                EncoderMlp::Plain { up: load(up, &RowSelection::all(intermediate_size))?, activation, down }
            }
            UpNames::Gated(gate_up) => {
                let (gate, up) = gate_up.load(intermediate_size, load)?;
                EncoderMlp::Gated(Mlp { gate, up, down, activation, cutoff: None })
            }
        })
    }
}
