//! The encoder: one for all families, described by an [`EncoderConfig`] and by an
//! [`EncoderFamily`], with a head for classification where the checkpoint has one.

mod bert;
mod config;
mod family;
mod modernbert;
mod mpnet;
mod nomic_bert;
mod relative_bias;
mod roberta;

use candle_core::{D, DType, Device, Tensor};

pub use config::EncoderConfig;
pub use family::EncoderFamily;

use self::config::EncoderLayerConfig;
use self::family::{EncoderLayout, GateUp, HeadLayout, NormPlacement, Positions, Qkv};
use self::relative_bias::RelativeBias;
use super::layers::activation::Activation;
use super::layers::attention::{Scores, attention, local_bias};
use super::layers::linear::{Inner, Linear, added, mlp, side_by_side};
use super::layers::mlp::GatedMlp;
use super::layers::norm::{LayerNorm, RowNorm};
use super::layers::rope::Rotation;
use super::load::{Rows, Weights};
use super::{Arithmetic, Encoder, EncoderInput, SequenceId, Span};
use crate::error::{Error, Result};
use crate::kernels::attention::{DistanceBias, TextAttention};
use crate::kernels::custom_ops::EncoderAttentionOp;
use crate::kernels::isa::Isa;
use crate::kernels::norm::{TableLookup, embedding_lookup};

/// A text encoder with its weights.
pub struct TextEncoder {
    config: EncoderConfig,
    arithmetic: Arithmetic,
    words: Table,
    positions: Option<Table>,
    types: Option<Table>,
    embedding_norm: LayerNorm,
    relative_bias: Option<RelativeBias>,
    layers: Vec<Layer>,
    final_norm: Option<LayerNorm>,
    head: Option<Head>,
}

/// Rows to look up, `[n_rows, hidden]`.
struct Table {
    numbers: Vec<f32>,
    n_rows: usize,
}

struct Layer {
    /// Absent where the input comes with a norm already.
    attention_norm: Option<LayerNorm>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

enum Mlp {
    Plain { up: Linear, activation: Activation, down: Linear },
    Gated(GatedMlp),
}

/// Turns one hidden state of a text into the scores of its labels.
struct Head {
    layout: &'static HeadLayout,
    dense: Linear,
    norm: Option<LayerNorm>,
    /// `[n_labels, hidden]`
    output: Linear,
    n_labels: usize,
}

/// What is the same in every layer.
struct Context {
    /// Tokens of each text.
    lengths: Vec<usize>,
    /// For each of the model's ropes.
    rotations: Vec<Rotation>,
    /// Of the kernels: what is added to the scores, by distance, and the largest distance.
    distance_bias: Option<(Vec<f32>, usize)>,
    /// Of plain tensor operations: what is added to the scores of each text in layers whose attention reaches
    /// everywhere, and in the others.
    biases: Vec<[Option<Tensor>; 2]>,
}

impl TextEncoder {
    /// Reads the weights of a model of this configuration.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn load(config: EncoderConfig, weights: &Weights, arithmetic: Arithmetic) -> Result<Self> {
        let layout = match weights {
            Weights::Gguf(_) => &config.family.gguf,
            Weights::Safetensors(_) => &config.family.safetensors,
        };
        let hidden = config.hidden_size;
        let reader = Reader::new(&config, layout, weights, arithmetic);
        let table = |name: &str, n_rows| -> Result<Table> {
            let numbers = weights.tensor(&reader.weight(name), &[n_rows, hidden])?;
            Ok(Table { numbers: numbers.flatten_all()?.to_vec1()?, n_rows })
        };
        let layers = (0..config.layers.len()).map(|idx| reader.layer(idx)).collect::<Result<Vec<_>>>()?;
        let relative_bias = layout
            .relative_bias
            .map(|name| {
                let shape = [config.n_relative_buckets, config.n_heads];
                RelativeBias::new(&weights.tensor(&reader.weight(name), &shape)?)
            })
            .transpose()?;
        Ok(Self {
            words: table(layout.words, config.n_vocab)?,
            positions: layout.positions.map(|name| table(name, config.n_positions)).transpose()?,
            types: layout
                .types
                .filter(|_| config.n_types > 0)
                .map(|name| table(name, config.n_types))
                .transpose()?,
            embedding_norm: reader.norm(&reader.name(layout.embedding_norm))?,
            relative_bias,
            layers,
            final_norm: layout.final_norm.map(|name| reader.norm(&reader.name(name))).transpose()?,
            head: reader.head()?,
            arithmetic,
            config,
        })
    }

    /// The embeddings of all tokens, `[n_tokens, hidden]`.
    fn embed(&self, texts: &[EncoderInput]) -> Result<Tensor> {
        let of_texts = |ids: &dyn Fn(&EncoderInput) -> Vec<u32>| texts.iter().flat_map(ids).collect();
        let mut lookups: Vec<(&Table, Vec<u32>)> =
            vec![(&self.words, of_texts(&|text| text.token_ids.clone()))];
        if let Some(types) = &self.types {
            let last = types.n_rows as u32 - 1;
            let type_of = |text: &EncoderInput, idx| u32::from(idx >= text.n_first).min(last);
            let of_text =
                |text: &EncoderInput| (0..text.token_ids.len()).map(|idx| type_of(text, idx)).collect();
            lookups.push((types, of_texts(&of_text)));
        }
        if let Some(positions) = &self.positions {
            lookups.push((positions, of_texts(&|text| self.config.positions.of(&text.token_ids))));
        }
        for (table, rows) in &lookups {
            if let Some(row) = rows.iter().find(|&&row| row as usize >= table.n_rows) {
                return Err(Error::internal(format!("row {row} of a table of {}", table.n_rows)));
            }
        }
        let (n_tokens, hidden) = (lookups[0].1.len(), self.config.hidden_size);
        if let Some(isa) = self.arithmetic.isa() {
            let lookups: Vec<TableLookup> =
                lookups.iter().map(|(table, rows)| TableLookup { table: &table.numbers, rows }).collect();
            let numbers = embedding_lookup(isa, &lookups, hidden, &self.embedding_norm.kernel());
            return Ok(Tensor::from_vec(numbers, (n_tokens, hidden), &Device::Cpu)?);
        }
        let mut sum = Tensor::zeros((n_tokens, hidden), DType::F32, &Device::Cpu)?;
        for (table, rows) in lookups {
            let table = Tensor::from_slice(&table.numbers, (table.n_rows, hidden), &Device::Cpu)?;
            sum = (sum + table.index_select(&Tensor::from_vec(rows, n_tokens, &Device::Cpu)?, 0)?)?;
        }
        self.embedding_norm.forward(&sum)
    }

    fn context(&self, texts: &[EncoderInput]) -> Result<Context> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.token_ids.len()).collect();
        let spans: Vec<Span> = lengths
            .iter()
            .map(|&len| Span { sequence: SequenceId(0), start: 0, len, n_prompt: len })
            .collect();
        let uses_kernels = self.arithmetic.isa().is_some();
        let distance_bias = self.relative_bias.as_ref().filter(|_| uses_kernels).map(|bias| {
            let farthest = lengths.iter().max().map_or(0, |&longest| longest.saturating_sub(1));
            (bias.by_distance(farthest), farthest)
        });
        let reach = self.config.layers.iter().find_map(|layer| layer.reach);
        let of_text = |&len: &usize| -> Result<[Option<Tensor>; 2]> {
            let full = self.relative_bias.as_ref().map(|bias| bias.of(len)).transpose()?;
            Ok([full, reach.map(|reach| local_bias(len, reach)).transpose()?.flatten()])
        };
        let biases =
            if uses_kernels { Vec::new() } else { lengths.iter().map(of_text).collect::<Result<_>>()? };
        let rotations = self.config.ropes.iter().map(|rope| Rotation::new(rope, &spans)).collect();
        Ok(Context { lengths, rotations, distance_bias, biases })
    }

    /// A layer's output, from and to `[n_tokens, hidden]`.
    fn layer(
        &self,
        layer: &Layer,
        config: &EncoderLayerConfig,
        x: &Tensor,
        context: &Context,
    ) -> Result<Tensor> {
        let isa = self.arithmetic.isa();
        let (norm, mlp_norm) = (layer.attention_norm.as_ref(), &layer.mlp_norm);
        let mixed = |norm: Option<&dyn RowNorm>| -> Result<Tensor> {
            let qkv = side_by_side(norm, &[&layer.query, &layer.key, &layer.value], x)?;
            let mixed = match isa {
                Some(isa) => self.attend_by_kernel(isa, &qkv, config, context)?,
                None => self.attend(&qkv, config, context)?,
            };
            added(&layer.output, None, &mixed, x)
        };
        match self.config.family.norms {
            NormPlacement::Before => {
                let x = mixed(norm.map(|norm| norm as &dyn RowNorm))?;
                layer.mlp.added(Some(mlp_norm), &x)
            }
            NormPlacement::After => {
                let x = mixed(None)?;
                let x = norm.map_or(Ok(x.clone()), |norm| norm.apply(isa, &x))?;
                mlp_norm.apply(isa, &layer.mlp.added(None, &x)?)
            }
        }
    }

    fn attend_by_kernel(
        &self,
        isa: Isa,
        qkv: &Tensor,
        config: &EncoderLayerConfig,
        context: &Context,
    ) -> Result<Tensor> {
        let attention = TextAttention {
            n_heads: self.config.n_heads,
            head_dim: self.config.head_dim(),
            scale: self.scale() as f32,
            reach: config.reach,
            rotation: config.rope.map(|idx| context.rotations[idx].kernel()),
            bias: context
                .distance_bias
                .as_ref()
                .map(|(numbers, max_distance)| DistanceBias { numbers, max_distance: *max_distance }),
            in_bf16: self.arithmetic.rounds(),
        };
        Ok(qkv.apply_op1_no_bwd(&EncoderAttentionOp { isa, attention, lengths: &context.lengths })?)
    }

    /// The same in plain tensor operations, text by text.
    fn attend(&self, qkv: &Tensor, config: &EncoderLayerConfig, context: &Context) -> Result<Tensor> {
        let (n_heads, head_dim, hidden) =
            (self.config.n_heads, self.config.head_dim(), self.config.hidden_size);
        let n_tokens = qkv.dims()[0];
        let heads = |third: usize| -> Result<Tensor> {
            let part = qkv.narrow(D::Minus1, third * hidden, hidden)?.contiguous()?;
            Ok(part.reshape((n_tokens, n_heads, head_dim))?)
        };
        let (mut query, mut key, value) = (heads(0)?, heads(1)?, heads(2)?);
        if let Some(rotation) = config.rope.map(|idx| &context.rotations[idx]) {
            (query, key) = (rotation.apply(&query)?, rotation.apply(&key)?);
        }
        let scores = Scores { scale: self.scale(), softcap: None };
        let mut first_row = 0;
        let mixed = context
            .lengths
            .iter()
            .zip(&context.biases)
            .map(|(&len, [full_bias, local_bias])| {
                let heads_first = |x: &Tensor| x.narrow(0, first_row, len)?.transpose(0, 1)?.contiguous();
                let bias = if config.reach.is_some() { local_bias } else { full_bias };
                let [query, key, value] = [heads_first(&query)?, heads_first(&key)?, heads_first(&value)?];
                first_row += len;
                attention(&query, &key, &value, scores, bias.as_ref())
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&mixed, 0)?)
    }

    /// What the product of a query and a key is multiplied by.
    fn scale(&self) -> f64 {
        1.0 / (self.config.head_dim() as f64).sqrt()
    }
}

impl Encoder for TextEncoder {
    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn max_tokens(&self) -> usize {
        self.config.max_tokens()
    }

    fn n_labels(&self) -> usize {
        self.head.as_ref().map_or(0, |head| head.n_labels)
    }

    fn forward(&self, texts: &[EncoderInput]) -> Result<Tensor> {
        for EncoderInput { token_ids, .. } in texts {
            if token_ids.is_empty() || token_ids.len() > self.max_tokens() {
                return Err(Error::internal(format!(
                    "a text of {} tokens reached an encoder that takes 1 to {}",
                    token_ids.len(),
                    self.max_tokens()
                )));
            }
        }
        let context = self.context(texts)?;
        let mut x = self.embed(texts)?;
        for (layer, config) in self.layers.iter().zip(&self.config.layers) {
            x = self.layer(layer, config, &x, &context)?;
        }
        match &self.final_norm {
            Some(norm) => norm.apply(self.arithmetic.isa(), &x),
            None => Ok(x),
        }
    }

    fn classify(&self, texts: &[EncoderInput]) -> Result<Tensor> {
        let head = self.head.as_ref().ok_or_else(|| {
            Error::model("the model has no classification head, so it cannot score texts; use a reranker")
        })?;
        let states = self.forward(texts)?;
        let mut first_row = 0;
        let pooled = texts
            .iter()
            .map(|text| {
                let states = states.narrow(0, first_row, text.token_ids.len())?;
                first_row += text.token_ids.len();
                Ok(if self.config.head_takes_mean {
                    states.mean_keepdim(D::Minus2)?
                } else {
                    states.narrow(0, 0, 1)?
                })
            })
            .collect::<Result<Vec<_>>>()?;
        head.forward(&Tensor::cat(&pooled, 0)?)
    }
}

impl Mlp {
    /// What it makes of the norm of `x`, added to `x`.
    fn added(&self, norm: Option<&LayerNorm>, x: &Tensor) -> Result<Tensor> {
        let norm = norm.map(|norm| norm as &dyn RowNorm);
        match self {
            Self::Plain { up, activation, down } => {
                mlp(norm, Inner::Plain { up, activation: *activation }, down, None, x)
            }
            Self::Gated(gated) => mlp(norm, gated.inner(), &gated.down, None, x),
        }
    }
}

impl Head {
    /// `[n_texts, hidden]` to `[n_texts, n_labels]`.
    fn forward(&self, states: &Tensor) -> Result<Tensor> {
        let x = self.layout.activation.forward(&self.dense.forward(states)?)?;
        let x = match &self.norm {
            Some(norm) => norm.forward(&x)?,
            None => x,
        };
        self.output.forward(&x)
    }
}

/// Reads the parts of a model as its layout has them.
struct Reader<'a> {
    config: &'a EncoderConfig,
    layout: &'static EncoderLayout,
    weights: &'a Weights,
    arithmetic: Arithmetic,
    /// What stands in front of the names in checkpoints of a model with a head.
    prefix: &'static str,
}

impl<'a> Reader<'a> {
    fn new(
        config: &'a EncoderConfig,
        layout: &'static EncoderLayout,
        weights: &'a Weights,
        arithmetic: Arithmetic,
    ) -> Self {
        let is_bare = weights.contains(&format!("{}.weight", layout.words));
        Self { config, layout, weights, arithmetic, prefix: if is_bare { "" } else { layout.prefix } }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn weight(&self, name: &str) -> String {
        format!("{}{name}.weight", self.prefix)
    }

    fn linear(&self, name: &str, rows: &Rows, n_in: usize) -> Result<Linear> {
        self.weights.linear(name, rows, n_in, self.arithmetic)
    }

    /// A norm, with a bias where the checkpoint has one.
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

    fn layer(&self, idx: usize) -> Result<Layer> {
        let Self { config, layout, .. } = self;
        let hidden = config.hidden_size;
        let name = |part: &str| format!("{}{}.{idx}.{part}", self.prefix, layout.layers);
        let linear = |part: &str, rows: Rows| self.linear(&name(part), &rows, hidden);
        let (query, key, value) = match layout.qkv {
            Qkv::Apart { query, key, value } => (
                linear(query, Rows::all(hidden))?,
                linear(key, Rows::all(hidden))?,
                linear(value, Rows::all(hidden))?,
            ),
            Qkv::Fused(part) => {
                let third = |n: usize| linear(part, Rows::range(n * hidden..(n + 1) * hidden, 3 * hidden));
                (third(0)?, third(1)?, third(2)?)
            }
        };
        let comes_with_norm = idx == 0 && config.family.norms == NormPlacement::Before;
        Ok(Layer {
            attention_norm: if comes_with_norm {
                None
            } else {
                Some(self.norm(&name(layout.attention_norm))?)
            },
            query,
            key,
            value,
            output: linear(layout.output, Rows::all(hidden))?,
            mlp_norm: self.norm(&name(layout.mlp_norm))?,
            mlp: self.mlp(&name)?,
        })
    }

    fn mlp(&self, name: &dyn Fn(&str) -> String) -> Result<Mlp> {
        let EncoderConfig { hidden_size, intermediate_size: n, activation, .. } = *self.config;
        let linear = |part: &str, rows: Rows| self.linear(&name(part), &rows, hidden_size);
        let down = self.linear(&name(self.layout.down), &Rows::all(hidden_size), n)?;
        let (gate, up) = match self.layout.gate_up {
            GateUp::None { up } => {
                return Ok(Mlp::Plain { up: linear(up, Rows::all(n))?, activation, down });
            }
            GateUp::Apart { gate, up } => (linear(gate, Rows::all(n))?, linear(up, Rows::all(n))?),
            GateUp::Fused(part) => {
                (linear(part, Rows::range(0..n, 2 * n))?, linear(part, Rows::range(n..2 * n, 2 * n))?)
            }
        };
        Ok(Mlp::Gated(GatedMlp { gate, up, down, activation }))
    }

    /// The classification head, where the checkpoint has one.
    fn head(&self) -> Result<Option<Head>> {
        let Some(layout) = &self.layout.head else { return Ok(None) };
        let Some(n_labels) = self.weights.n_rows(&format!("{}.weight", layout.output)) else {
            return Ok(None);
        };
        let hidden = self.config.hidden_size;
        // The first product of BERT's head belongs to the encoder, that of others stands beside it.
        let inside = self.name(layout.dense);
        let is_inside = self.weights.contains(&format!("{inside}.weight"));
        let dense = if is_inside { &inside } else { layout.dense };
        Ok(Some(Head {
            layout,
            dense: self.linear(dense, &Rows::all(hidden), hidden)?,
            norm: layout.norm.map(|name| self.norm(name)).transpose()?,
            output: self.linear(layout.output, &Rows::all(n_labels), hidden)?,
            n_labels,
        }))
    }
}

impl Positions {
    /// The rows of the position table for the tokens of a text.
    fn of(self, token_ids: &[u32]) -> Vec<u32> {
        match self {
            Self::FromZero => (0..token_ids.len() as u32).collect(),
            Self::AfterPadding { padding_id } => {
                let mut last = padding_id;
                let next = |&id: &u32| {
                    if id == padding_id {
                        return padding_id;
                    }
                    last += 1;
                    last
                };
                token_ids.iter().map(next).collect()
            }
        }
    }
}
