//! The backend on our own encoder.

use candle_core::{D, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::source::EmbeddingSource;
use super::{Backend, Tokenized};
use crate::error::{Error, Result};
use crate::kernels::isa::Isa;
use crate::models::encoder::{EncoderConfig, TextEncoder};
use crate::models::load::{GgufFile, SafetensorsFiles, Weights};
use crate::models::{Arithmetic, Encoder, EncoderInput};
use crate::registry::{Format, ModelKind, Pooling};
use crate::tokenizer::Tokenizer;

/// So many rows of a layer stay in the caches; with more, or half as many, it is no faster (2026-11-26).
const BATCH_TOKENS: usize = 512;

/// An encoder and what becomes of its hidden states.
pub struct EncoderBackend {
    family: &'static str,
    encoder: Box<dyn Encoder>,
    readout: Readout,
}

/// How hidden states become one vector.
#[derive(Debug, Clone, Copy)]
enum Readout {
    Pooled(Pooling),
    /// The scores of the labels of a classification head.
    Scores,
}

/// One entry of `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
}

impl Pooling {
    /// Reads `1_Pooling/config.json` of a sentence-transformers model.
    ///
    /// # Errors
    /// When it is malformed or asks for another pooling, or for several.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let file: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read 1_Pooling/config.json: {e}")))?;
        let asked: Vec<&str> = file
            .iter()
            .filter(|&(_, value)| *value == true)
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .collect();
        match asked[..] {
            ["mean_tokens"] => Ok(Self::Mean),
            ["cls_token"] => Ok(Self::Cls),
            ["lasttoken"] => Ok(Self::LastToken),
            _ => Err(Error::model(format!(
                "1_Pooling/config.json asks for the pooling {asked:?}; mean_tokens, cls_token or lasttoken is done"
            ))),
        }
    }

    /// Reads the pooling that a GGUF file names.
    ///
    /// # Errors
    /// When it names another.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let key = format!("{}.pooling_type", file.architecture()?);
        match file.metadata().integer(&key)? {
            None => Ok(None),
            Some(1) => Ok(Some(Self::Mean)),
            Some(2) => Ok(Some(Self::Cls)),
            Some(3) => Ok(Some(Self::LastToken)),
            Some(other) => Err(Error::model(format!(
                "`{key}` of the GGUF file is {other}; 1 (mean), 2 (first token) or 3 (last token) is done"
            ))),
        }
    }

    /// The pooling that the model's catalog row and its own files name. Where neither does it is
    /// the mean, as in sentence-transformers.
    ///
    /// # Errors
    /// When they differ: one of them gives wrong vectors without any other sign.
    pub fn agreed(row: Option<Self>, own: Option<Self>) -> Result<Self> {
        match (row, own) {
            (Some(row), Some(own)) if row != own => Err(Error::model(format!(
                "its catalog row asks for pooling by {row}, its own files by {own}; one of them is wrong, so it \
                 is not served; name it as hf:owner/repo, or by its folder, to go by its files"
            ))),
            (row, own) => Ok(row.or(own).unwrap_or(Self::Mean)),
        }
    }

    /// `[n_tokens, hidden]` to `[hidden]`.
    fn pool(self, states: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Mean => states.mean(D::Minus2)?,
            Self::Cls => states.get(0)?,
            Self::LastToken => states.get(states.dim(0)? - 1)?,
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
    /// Loads an encoder and its tokenizer from safetensors or a GGUF file.
    ///
    /// # Errors
    /// When its files are damaged, of an unknown family, or ask for a step that is not done here.
    pub fn load(source: &EmbeddingSource) -> Result<(Self, Tokenizer)> {
        let (config, weights, own, tokenizer) = match source.format() {
            Format::Gguf => {
                let file = GgufFile::open(source.main())?;
                let tokenizer = Tokenizer::from_gguf(file.metadata())?;
                let own = Pooling::from_gguf(&file)?;
                (EncoderConfig::from_gguf(&file)?, Weights::Gguf(file), own, tokenizer)
            }
            _ => {
                if source.optional_file("modules.json").is_some() {
                    check_modules(&source.read("modules.json")?)?;
                }
                let own = match source.optional_file("1_Pooling/config.json") {
                    Some(_) => Some(Pooling::from_json(&source.read("1_Pooling/config.json")?)?),
                    None => None,
                };
                let tokenizer = Tokenizer::from_file(source.file("tokenizer.json")?)?;
                let weights = Weights::Safetensors(SafetensorsFiles::open(source.main())?);
                (EncoderConfig::from_json(&source.read("config.json")?)?, weights, own, tokenizer)
            }
        };
        if tokenizer.n_vocab() > config.n_vocab {
            return Err(Error::model(format!(
                "the tokenizer has {} token ids and the model {}; they do not belong together",
                tokenizer.n_vocab(),
                config.n_vocab
            )));
        }
        let family = config.family.name;
        let encoder = Box::new(TextEncoder::load(config, &weights, Arithmetic::Rounding(Isa::current()))?);
        let readout = if source.kind() == ModelKind::Reranker {
            if encoder.n_labels() != 1 {
                return Err(Error::model(format!(
                    "`{}` has {} labels where a reranker has one score; use a cross-encoder",
                    source.id(),
                    encoder.n_labels()
                )));
            }
            Readout::Scores
        } else {
            let row = source.spec().map(|spec| spec.pooling);
            Readout::Pooled(Pooling::agreed(row, own).map_err(|e| e.context(source.id()))?)
        };
        Ok((Self { family, encoder, readout }, tokenizer))
    }
}

impl Backend for EncoderBackend {
    fn family(&self) -> &str {
        self.family
    }

    fn dimensions(&self) -> usize {
        match self.readout {
            Readout::Pooled(_) => self.encoder.hidden_size(),
            Readout::Scores => self.encoder.n_labels(),
        }
    }

    fn max_tokens(&self) -> usize {
        self.encoder.max_tokens()
    }

    fn batch_tokens(&self) -> usize {
        BATCH_TOKENS
    }

    fn embed(&self, texts: &[&Tokenized]) -> Result<Vec<Vec<f32>>> {
        let inputs: Vec<EncoderInput> = texts
            .iter()
            .map(|text| EncoderInput {
                token_ids: text.ids.clone(),
                n_first: text.n_first.unwrap_or(text.ids.len()),
            })
            .collect();
        let Readout::Pooled(pooling) = self.readout else {
            return Ok(self.encoder.classify(&inputs)?.to_vec2()?);
        };
        let states = self.encoder.forward(&inputs)?;
        let mut row = 0;
        inputs
            .iter()
            .map(|input| {
                let vector = pooling.pool(&states.narrow(0, row, input.token_ids.len())?)?;
                row += input.token_ids.len();
                Ok(vector.to_vec1()?)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pooling_is_read_and_others_are_refused() {
        let read = |json: &str| Pooling::from_json(json.as_bytes()).map_err(|e| e.to_string());
        for (mode, pooling) in
            [("mean_tokens", Pooling::Mean), ("cls_token", Pooling::Cls), ("lasttoken", Pooling::LastToken)]
        {
            let json = format!(r#"{{"pooling_mode_max_tokens": false, "pooling_mode_{mode}": true}}"#);
            assert_eq!(read(&json), Ok(pooling));
        }
        let both = read(r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#).unwrap_err();
        assert!(both.contains("mean_tokens") && both.contains("cls_token"), "{both}");
        assert!(read(r#"{"pooling_mode_max_tokens": true}"#).unwrap_err().contains("max_tokens"));
        assert!(read("[]").unwrap_err().contains("cannot read"));
    }

    #[test]
    fn a_row_and_the_model_must_not_contradict_each_other() {
        let agreed = |row, own| Pooling::agreed(row, own).map_err(|e| e.to_string());
        assert_eq!(agreed(None, None), Ok(Pooling::Mean));
        assert_eq!(agreed(Some(Pooling::Cls), None), Ok(Pooling::Cls));
        assert_eq!(agreed(None, Some(Pooling::LastToken)), Ok(Pooling::LastToken));
        assert_eq!(agreed(Some(Pooling::Cls), Some(Pooling::Cls)), Ok(Pooling::Cls));
        let contradiction = agreed(Some(Pooling::Cls), Some(Pooling::Mean)).unwrap_err();
        assert!(contradiction.contains("first token") && contradiction.contains("mean"), "{contradiction}");
    }

    #[test]
    fn pooling_takes_the_hidden_states_it_names() {
        let states =
            Tensor::from_vec(vec![1f32, 10., 2., 20., 6., 60.], (3, 2), &candle_core::Device::Cpu).unwrap();
        for (pooling, expected) in
            [(Pooling::Mean, [3., 30.]), (Pooling::Cls, [1., 10.]), (Pooling::LastToken, [6., 60.])]
        {
            assert_eq!(pooling.pool(&states).unwrap().to_vec1::<f32>().unwrap(), expected);
        }
    }
}
