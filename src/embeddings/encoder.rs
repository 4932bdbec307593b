//! The backend on our own encoder.

use candle_core::{D, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::source::EmbeddingSource;
use super::{Backend, Tokenized};
use crate::error::{Error, Result};
use crate::models::encoder::{EncoderConfig, TextEncoder};
use crate::models::load::{SafetensorsFiles, Weights};
use crate::models::{Encoder, EncoderInput};

/// An encoder and how its hidden states become one vector.
pub struct EncoderBackend {
    family: &'static str,
    encoder: Box<dyn Encoder>,
    pooling: Pooling,
}

/// Which hidden states the vector is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The average over all tokens.
    Mean,
    /// The first token's.
    Cls,
}

/// `1_Pooling/config.json` of a sentence-transformers model.
#[derive(Deserialize)]
struct PoolingFile {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    /// Everything else the file says.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One entry of `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
}

impl Pooling {
    /// Reads `1_Pooling/config.json`. A model without one is pooled by its mean, as
    /// sentence-transformers does.
    ///
    /// # Errors
    /// When it is malformed or asks for another pooling.
    pub fn from_json(json: Option<&[u8]>) -> Result<Self> {
        let Some(json) = json else { return Ok(Self::Mean) };
        let file: PoolingFile = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read 1_Pooling/config.json: {e}")))?;
        let others = file.rest.iter().any(|(key, value)| key.starts_with("pooling_mode_") && *value == true);
        match (file.pooling_mode_cls_token, file.pooling_mode_mean_tokens) {
            (false, true) if !others => Ok(Self::Mean),
            (true, false) if !others => Ok(Self::Cls),
            _ => Err(Error::model("1_Pooling/config.json asks for a pooling other than mean or cls")),
        }
    }

    /// `[n_tokens, hidden]` to `[hidden]`.
    fn pool(self, states: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Mean => states.mean(D::Minus2)?,
            Self::Cls => states.get(0)?,
        })
    }
}

/// Refuses a sentence-transformers model with steps beyond encoder, pooling and normalisation:
/// leaving one out would give wrong vectors without any other sign.
fn check_modules(json: &[u8]) -> Result<()> {
    let modules: Vec<Module> =
        serde_json::from_slice(json).map_err(|e| Error::model(format!("cannot read modules.json: {e}")))?;
    let is_known = |module: &&Module| {
        ["Transformer", "Pooling", "Normalize"].iter().any(|known| module.kind.ends_with(known))
    };
    match modules.iter().find(|module| !is_known(module)) {
        Some(module) => {
            Err(Error::model(format!("modules.json has the step `{}`, which is not supported", module.kind)))
        }
        None => Ok(()),
    }
}

impl EncoderBackend {
    /// Loads a BERT-like encoder from safetensors, for a tokenizer with `n_ids` token ids.
    ///
    /// # Errors
    /// When its files are damaged, of another family, or ask for a step that is not done here.
    pub fn load(source: &EmbeddingSource, n_ids: usize) -> Result<Self> {
        let config = EncoderConfig::from_json(&source.read("config.json")?)?;
        if n_ids > config.n_vocab {
            return Err(Error::model(format!(
                "the tokenizer has {n_ids} token ids and the model {}; they do not belong together",
                config.n_vocab
            )));
        }
        if source.optional_file("modules.json").is_some() {
            check_modules(&source.read("modules.json")?)?;
        }
        let weights = Weights::Safetensors(SafetensorsFiles::open(source.main())?);
        let pooling = match source.optional_file("1_Pooling/config.json") {
            Some(_) => Pooling::from_json(Some(&source.read("1_Pooling/config.json")?))?,
            None => Pooling::from_json(None)?,
        };
        let family = config.family.name;
        Ok(Self { family, encoder: Box::new(TextEncoder::load(config, &weights)?), pooling })
    }
}

impl Backend for EncoderBackend {
    fn family(&self) -> &str {
        self.family
    }

    fn dimensions(&self) -> usize {
        self.encoder.hidden_size()
    }

    fn max_tokens(&self) -> usize {
        self.encoder.max_tokens()
    }

    fn embed(&self, texts: &[Tokenized]) -> Result<Vec<Vec<f32>>> {
        let inputs: Vec<EncoderInput> = texts.iter().map(|text| text.ids.clone().into()).collect();
        let states = self.encoder.forward(&inputs)?;
        let mut row = 0;
        inputs
            .iter()
            .map(|input| {
                let vector = self.pooling.pool(&states.narrow(0, row, input.token_ids.len())?)?;
                row += input.token_ids.len();
                Ok(vector.to_vec1()?)
            })
            .collect()
    }
}
