//! BERT encoders: learned positions, post-norm layers, a GELU MLP.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::super::Encoder;
use super::super::layers::attention::{Scores, attention};
use super::super::layers::linear::Linear;
use super::super::layers::norm::LayerNorm;
use super::super::load::{Rows, Weights};
use crate::error::{Error, Result};

/// The fields of a BERT `config.json` that matter here.
#[derive(Debug, Clone, Deserialize)]
pub struct BertConfig {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    vocab_size: usize,
    type_vocab_size: usize,
    max_position_embeddings: usize,
    position_embedding_type: Option<String>,
}

/// A BERT encoder with its weights.
pub struct Bert {
    config: BertConfig,
    /// `[vocab, hidden]`
    words: Tensor,
    /// `[positions, hidden]`, the embedding of token type 0 already added: one text is all there is.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    mlp_norm: LayerNorm,
}

impl BertConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// When it is malformed or describes another family.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read config.json: {e}")))?;
        if config.model_type != "bert" || config.hidden_act != "gelu" {
            return Err(Error::model(format!(
                "encoder `{}` with activation `{}` is not supported; supported: bert with gelu",
                config.model_type, config.hidden_act
            )));
        }
        if config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            return Err(Error::model("encoders with relative positions are not supported"));
        }
        let heads = config.num_attention_heads;
        if heads == 0 || config.hidden_size == 0 || !config.hidden_size.is_multiple_of(heads) {
            return Err(Error::model(format!(
                "model configuration is impossible: {heads} heads over a hidden size of {}",
                config.hidden_size
            )));
        }
        Ok(config)
    }
}

impl BertConfig {
    /// Number of token ids.
    pub fn n_vocab(&self) -> usize {
        self.vocab_size
    }
}

impl Bert {
    /// Reads the weights of a model of this configuration.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn load(config: BertConfig, weights: &Weights) -> Result<Self> {
        let BertConfig { hidden_size: hidden, intermediate_size, .. } = config;
        // Checkpoints of a bare encoder have no prefix, those cut from a larger model do.
        let prefix = if weights.contains("embeddings.word_embeddings.weight") { "" } else { "bert." };
        let norm = |name: String| -> Result<LayerNorm> {
            let part = |part: &str| weights.tensor(&format!("{name}.{part}"), &[hidden]);
            Ok(LayerNorm::new(part("weight")?, part("bias")?, config.layer_norm_eps))
        };
        let embedding = |name: &str, n_rows: usize| {
            weights.tensor(&format!("{prefix}embeddings.{name}_embeddings.weight"), &[n_rows, hidden])
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let name = |part: &str| format!("{prefix}encoder.layer.{layer}.{part}");
                let linear = |part: &str, n_out, n_in| weights.linear(&name(part), &Rows::all(n_out), n_in);
                Ok(Layer {
                    query: linear("attention.self.query", hidden, hidden)?,
                    key: linear("attention.self.key", hidden, hidden)?,
                    value: linear("attention.self.value", hidden, hidden)?,
                    output: linear("attention.output.dense", hidden, hidden)?,
                    attention_norm: norm(name("attention.output.LayerNorm"))?,
                    up: linear("intermediate.dense", intermediate_size, hidden)?,
                    down: linear("output.dense", hidden, intermediate_size)?,
                    mlp_norm: norm(name("output.LayerNorm"))?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let type_0 = embedding("token_type", config.type_vocab_size)?.narrow(0, 0, 1)?;
        Ok(Self {
            words: embedding("word", config.vocab_size)?,
            positions: embedding("position", config.max_position_embeddings)?.broadcast_add(&type_0)?,
            norm: norm(format!("{prefix}embeddings.LayerNorm"))?,
            layers,
            config,
        })
    }
}

impl Encoder for Bert {
    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn max_tokens(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn forward(&self, texts: &[Vec<u32>]) -> Result<Tensor> {
        for text in texts {
            if text.is_empty() || text.len() > self.max_tokens() {
                return Err(Error::internal(format!(
                    "a text of {} tokens reached an encoder that takes 1 to {}",
                    text.len(),
                    self.max_tokens()
                )));
            }
        }
        let ids: Vec<u32> = texts.concat();
        let positions: Vec<u32> = texts.iter().flat_map(|text| 0..text.len() as u32).collect();
        let pick = |table: &Tensor, rows: Vec<u32>| {
            let n_rows = rows.len();
            table.index_select(&Tensor::from_vec(rows, n_rows, &Device::Cpu)?, 0)
        };
        let x = (pick(&self.words, ids)? + pick(&self.positions, positions)?)?;
        let mut x = self.norm.forward(&x)?;
        for layer in &self.layers {
            x = layer.forward(&x, texts, self.config.num_attention_heads)?;
        }
        Ok(x)
    }
}

impl Layer {
    /// `x` and the result are `[n_tokens, hidden]`.
    fn forward(&self, x: &Tensor, texts: &[Vec<u32>], n_heads: usize) -> Result<Tensor> {
        let mixed = self.self_attention(x, texts, n_heads)?;
        let x = self.attention_norm.forward(&(self.output.forward(&mixed)? + x)?)?;
        let up = self.up.forward(&x)?.gelu_erf()?;
        self.mlp_norm.forward(&(self.down.forward(&up)? + &x)?)
    }

    /// Attention within each text; `[n_tokens, hidden]`.
    fn self_attention(&self, x: &Tensor, texts: &[Vec<u32>], n_heads: usize) -> Result<Tensor> {
        let (n_tokens, hidden) = x.dims2()?;
        let heads = |projection: &Linear| -> Result<Tensor> {
            Ok(projection.forward(x)?.reshape((n_tokens, n_heads, hidden / n_heads))?)
        };
        let (query, key, value) = (heads(&self.query)?, heads(&self.key)?, heads(&self.value)?);
        let mut row = 0;
        let mut mixed = Vec::with_capacity(texts.len());
        for text in texts {
            let heads_first = |x: &Tensor| x.narrow(0, row, text.len())?.transpose(0, 1)?.contiguous();
            let (query, key, value) = (heads_first(&query)?, heads_first(&key)?, heads_first(&value)?);
            let scores = Scores { scale: 1.0 / ((hidden / n_heads) as f64).sqrt(), softcap: None };
            mixed.push(attention(&query, &key, &value, scores, None)?);
            row += text.len();
        }
        Ok(Tensor::cat(&mixed, 0)?)
    }
}
