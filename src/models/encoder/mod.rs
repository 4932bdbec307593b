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

use candle_core::{D, Device, Tensor};

pub use config::EncoderConfig;
pub use family::EncoderFamily;

use self::family::{EncoderLayout, GateUp, HeadLayout, NormPlacement, Positions, Qkv};
use self::relative_bias::RelativeBias;
use super::layers::activation::Activation;
use super::layers::attention::{Scores, attention, local_bias};
use super::layers::linear::Linear;
use super::layers::mlp::GatedMlp;
use super::layers::norm::LayerNorm;
use super::layers::rope::Rotation;
use super::load::{Rows, Weights};
use super::{Arithmetic, Encoder, EncoderInput, SequenceId, Span};
use crate::error::{Error, Result};

/// A text encoder with its weights.
pub struct TextEncoder {
    config: EncoderConfig,
    /// `[n_vocab, hidden]`
    words: Tensor,
    /// `[n_positions, hidden]`
    positions: Option<Tensor>,
    /// `[n_types, hidden]`
    types: Option<Tensor>,
    embedding_norm: LayerNorm,
    relative_bias: Option<RelativeBias>,
    layers: Vec<Layer>,
    final_norm: Option<LayerNorm>,
    head: Option<Head>,
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

/// What is the same for one text in every layer of a kind.
struct TextContext {
    /// First row of the text, and how many it has.
    first_row: usize,
    n_tokens: usize,
    /// Added to its scores in layers whose attention reaches everywhere, and in the others.
    full_bias: Option<Tensor>,
    local_bias: Option<Tensor>,
}

impl TextEncoder {
    /// Reads the weights of a model of this configuration.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn load(config: EncoderConfig, weights: &Weights) -> Result<Self> {
        let layout = match weights {
            Weights::Gguf(_) => &config.family.gguf,
            Weights::Safetensors(_) => &config.family.safetensors,
        };
        let hidden = config.hidden_size;
        let reader = Reader::new(&config, layout, weights);
        let table = |name: &str, n_rows| weights.tensor(&reader.weight(name), &[n_rows, hidden]);
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
            config,
        })
    }

    /// The embeddings of all tokens, `[n_tokens, hidden]`.
    fn embed(&self, texts: &[EncoderInput]) -> Result<Tensor> {
        let pick = |table: &Tensor, rows: Vec<u32>| {
            let n_rows = rows.len();
            table.index_select(&Tensor::from_vec(rows, n_rows, &Device::Cpu)?, 0)
        };
        let ids = texts.iter().flat_map(|text| text.token_ids.iter().copied()).collect();
        let mut x = pick(&self.words, ids)?;
        if let Some(types) = &self.types {
            let last = types.dims()[0] as u32 - 1;
            let type_of = |text: &EncoderInput, idx| u32::from(idx >= text.n_first).min(last);
            let ids = texts
                .iter()
                .flat_map(|text| (0..text.token_ids.len()).map(move |idx| type_of(text, idx)))
                .collect();
            x = (x + pick(types, ids)?)?;
        }
        if let Some(positions) = &self.positions {
            let ids = texts.iter().flat_map(|text| self.config.positions.of(&text.token_ids)).collect();
            x = (x + pick(positions, ids)?)?;
        }
        self.embedding_norm.forward(&x)
    }

    fn contexts(&self, texts: &[EncoderInput]) -> Result<Vec<TextContext>> {
        let reach = self.config.layers.iter().find_map(|layer| layer.reach);
        let mut first_row = 0;
        texts
            .iter()
            .map(|text| {
                let n_tokens = text.token_ids.len();
                let context = TextContext {
                    first_row,
                    n_tokens,
                    full_bias: self.relative_bias.as_ref().map(|bias| bias.of(n_tokens)).transpose()?,
                    local_bias: reach.map(|reach| local_bias(n_tokens, reach)).transpose()?.flatten(),
                };
                first_row += n_tokens;
                Ok(context)
            })
            .collect()
    }

    /// Attention within each text; `[n_tokens, hidden]`.
    fn attend(
        &self,
        layer: &Layer,
        x: &Tensor,
        texts: &[TextContext],
        rotation: Option<&Rotation>,
        is_local: bool,
    ) -> Result<Tensor> {
        let (n_tokens, hidden) = x.dims2()?;
        let n_heads = self.config.n_heads;
        let heads = |projection: &Linear| -> Result<Tensor> {
            Ok(projection.forward(x)?.reshape((n_tokens, n_heads, hidden / n_heads))?)
        };
        let (mut query, mut key, value) = (heads(&layer.query)?, heads(&layer.key)?, heads(&layer.value)?);
        if let Some(rotation) = rotation {
            (query, key) = (rotation.apply(&query)?, rotation.apply(&key)?);
        }
        let scores = Scores { scale: 1.0 / ((hidden / n_heads) as f64).sqrt(), softcap: None };
        let mixed = texts
            .iter()
            .map(|text| {
                let heads_first =
                    |x: &Tensor| x.narrow(0, text.first_row, text.n_tokens)?.transpose(0, 1)?.contiguous();
                let bias = if is_local { &text.local_bias } else { &text.full_bias };
                attention(
                    &heads_first(&query)?,
                    &heads_first(&key)?,
                    &heads_first(&value)?,
                    scores,
                    bias.as_ref(),
                )
            })
            .collect::<Result<Vec<_>>>()?;
        layer.output.forward(&Tensor::cat(&mixed, 0)?)
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
        let contexts = self.contexts(texts)?;
        let spans: Vec<Span> = contexts
            .iter()
            .map(|text| Span {
                sequence: SequenceId(0),
                start: 0,
                len: text.n_tokens,
                n_prompt: text.n_tokens,
            })
            .collect();
        let rotations: Vec<Rotation> =
            self.config.ropes.iter().map(|rope| Rotation::new(rope, &spans)).collect();
        let mut x = self.embed(texts)?;
        for (layer, config) in self.layers.iter().zip(&self.config.layers) {
            let rotation = config.rope.map(|idx| &rotations[idx]);
            let attend = |x: &Tensor| self.attend(layer, x, &contexts, rotation, config.reach.is_some());
            x = match self.config.family.norms {
                NormPlacement::Before => {
                    let normed =
                        layer.attention_norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x))?;
                    let x = (attend(&normed)? + x)?;
                    (layer.mlp.forward(&layer.mlp_norm.forward(&x)?)? + &x)?
                }
                NormPlacement::After => {
                    let sum = (attend(&x)? + x)?;
                    let x =
                        layer.attention_norm.as_ref().map_or(Ok(sum.clone()), |norm| norm.forward(&sum))?;
                    layer.mlp_norm.forward(&(layer.mlp.forward(&x)? + &x)?)?
                }
            };
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
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
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain { up, activation, down } => down.forward(&activation.forward(&up.forward(x)?)?),
            Self::Gated(mlp) => mlp.forward(x),
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
    /// What stands in front of the names in checkpoints of a model with a head.
    prefix: &'static str,
}

impl<'a> Reader<'a> {
    fn new(config: &'a EncoderConfig, layout: &'static EncoderLayout, weights: &'a Weights) -> Self {
        let is_bare = weights.contains(&format!("{}.weight", layout.words));
        Self { config, layout, weights, prefix: if is_bare { "" } else { layout.prefix } }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn weight(&self, name: &str) -> String {
        format!("{}{name}.weight", self.prefix)
    }

    fn linear(&self, name: &str, rows: &Rows, n_in: usize) -> Result<Linear> {
        self.weights.linear(name, rows, n_in, Arithmetic::Reference)
    }

    /// A norm, with a bias where the checkpoint has one.
    fn norm(&self, name: &str) -> Result<LayerNorm> {
        let shape = [self.config.hidden_size];
        let weight = self.weights.tensor(&format!("{name}.weight"), &shape)?;
        let bias_name = format!("{name}.bias");
        let bias = if self.weights.contains(&bias_name) {
            self.weights.tensor(&bias_name, &shape)?
        } else {
            weight.zeros_like()?
        };
        Ok(LayerNorm::new(weight, bias, self.config.norm_eps))
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
