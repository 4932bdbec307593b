//! The forward pass of a text encoder.

use candle_core::{D, Tensor};

use super::config::EncoderConfig;
use super::embeddings::EncoderEmbeddings;
use super::head::ClassificationHead;
use super::layer::{EncoderContext, EncoderLayer};
use super::loader::EncoderLoader;
use super::relative_bias::RelativeBias;
use crate::error::{Error, Result};
use crate::models::backend::Backend;
use crate::models::forward_input::EncoderInput;
use crate::models::layers::norm::{LayerNorm, RowNorm};
use crate::models::load::Weights;
use crate::models::model::Encoder;

/// A text encoder with its weights.
pub struct TextEncoder {
    config: EncoderConfig,
    backend: Backend,
    embeddings: EncoderEmbeddings,
    relative_bias: Option<RelativeBias>,
    layers: Vec<EncoderLayer>,
    final_norm: Option<LayerNorm>,
    head: Option<ClassificationHead>,
}

impl TextEncoder {
    /// Loads a model of this configuration.
    ///
    /// # Errors
    /// When a tensor is missing or of the wrong shape.
    pub fn load(config: EncoderConfig, weights: &Weights, backend: Backend) -> Result<Self> {
        let loader = EncoderLoader::new(&config, weights, backend);
        let layers = (0..config.layers.len()).map(|idx| loader.layer(idx)).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            relative_bias: loader.relative_bias()?,
            embeddings: loader.embeddings()?,
            layers,
            final_norm: loader.final_norm()?,
            head: loader.head()?,
            backend,
            config,
        })
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
        let context = EncoderContext::new(&self.config, self.backend, self.relative_bias.as_ref(), texts)?;
        let isa = self.backend.isa();
        let mut x = self.embeddings.forward(isa, self.config.position_ids, texts)?;
        for (layer, layer_config) in self.layers.iter().zip(&self.config.layers) {
            x = layer.forward(layer_config, &x, &context)?;
        }
        match &self.final_norm {
            Some(norm) => norm.apply(isa, &x),
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
                Ok(if self.config.mean_pooled_head {
                    states.mean_keepdim(D::Minus2)?
                } else {
                    states.narrow(0, 0, 1)?
                })
            })
            .collect::<Result<Vec<_>>>()?;
        head.forward(&Tensor::cat(&pooled, 0)?)
    }
}
