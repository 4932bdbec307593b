//! The backend that runs our own encoder.

use candle_core::{D, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::source::EmbeddingSource;
use super::{TokenizedInput, VectorBackend};
use crate::error::{Error, Result};
use crate::kernels::isa::Isa;
use crate::models::encoder::{EncoderConfig, TextEncoder};
use crate::models::load::{GgufFile, SafetensorsFiles, Weights};
use crate::models::{self, Encoder, EncoderInput};
use crate::registry::{ModelFormat, ModelKind, Pooling};
use crate::tokenizer::Tokenizer;

/// Tokens per batch. The activations of a layer fit the caches; larger batches, or half of it, are no faster
/// (measured 2026-11-26).
const BATCH_TOKENS: usize = 512;

/// An encoder with its output head.
pub struct EncoderBackend {
    family: &'static str,
    encoder: Box<dyn Encoder>,
    head: Head,
}

/// Turns hidden states into one vector.
#[derive(Debug, Clone, Copy)]
enum Head {
    Pooling(Pooling),
    /// A classification head, which computes the logits of its labels.
    Classifier,
}

/// One step of a sentence-transformers pipeline: an entry of `modules.json`.
#[derive(Deserialize)]
struct PipelineModule {
    #[serde(rename = "type")]
    kind: String,
}

// The type lives in the registry, whose catalog rows name a pooling.
impl Pooling {
    /// Reads `1_Pooling/config.json` of a sentence-transformers model.
    ///
    /// # Errors
    /// When it is malformed, or names an unsupported pooling or several.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let file: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read 1_Pooling/config.json: {e}")))?;
        let modes: Vec<&str> = file
            .iter()
            .filter(|&(_, value)| *value == true)
            .filter_map(|(key, _)| key.strip_prefix("pooling_mode_"))
            .collect();
        match modes[..] {
            ["mean_tokens"] => Ok(Self::Mean),
            ["cls_token"] => Ok(Self::Cls),
            ["lasttoken"] => Ok(Self::LastToken),
            _ => Err(Error::model(format!(
                "1_Pooling/config.json names the pooling modes {modes:?}; supported is exactly one of mean_tokens, \
                 cls_token and lasttoken"
            ))),
        }
    }

    /// Reads the pooling of a GGUF file, if it names one.
    ///
    /// # Errors
    /// When it names an unsupported pooling.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let key = format!("{}.pooling_type", file.architecture()?);
        match file.metadata().integer(&key)? {
            None => Ok(None),
            Some(1) => Ok(Some(Self::Mean)),
            Some(2) => Ok(Some(Self::Cls)),
            Some(3) => Ok(Some(Self::LastToken)),
            Some(other) => Err(Error::model(format!(
                "`{key}` of the GGUF file is {other}; supported are 1 (mean), 2 (first token) and 3 (last token)"
            ))),
        }
    }

    /// The pooling named by a model's catalog row or its own files. The default is the mean, as in
    /// sentence-transformers.
    ///
    /// # Errors
    /// When they differ, since the wrong one would silently give wrong vectors.
    pub fn reconcile(row: Option<Self>, own: Option<Self>) -> Result<Self> {
        match (row, own) {
            (Some(row), Some(own)) if row != own => Err(Error::model(format!(
                "the catalog names {row} pooling, but the model's own files name {own} pooling; to use the \
                 files' choice, name the model as hf:owner/repo or by its path"
            ))),
            (row, own) => Ok(row.or(own).unwrap_or(Self::Mean)),
        }
    }

    /// Pools hidden states `[n_tokens, hidden]` into one vector `[hidden]`.
    fn pool(self, states: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Mean => states.mean(D::Minus2)?,
            Self::Cls => states.get(0)?,
            Self::LastToken => states.get(states.dim(0)? - 1)?,
        })
    }
}

/// Refuses a sentence-transformers pipeline with steps beyond encoder, pooling and normalization:
/// skipping a step would silently give wrong vectors.
fn check_modules(json: &[u8]) -> Result<()> {
    let modules: Vec<PipelineModule> =
        serde_json::from_slice(json).map_err(|e| Error::model(format!("cannot read modules.json: {e}")))?;
    let is_known = |module: &&PipelineModule| {
        ["Transformer", "Pooling", "Normalize"].iter().any(|known| module.kind.ends_with(known))
    };
    match modules.iter().find(|module| !is_known(module)) {
        Some(module) => Err(Error::model(format!(
            "modules.json has the unsupported step `{}`; use another model",
            module.kind
        ))),
        None => Ok(()),
    }
}

impl EncoderBackend {
    /// Loads an encoder and its tokenizer from safetensors or a GGUF file. Also returns the name that a GGUF file
    /// gives its model.
    ///
    /// # Errors
    /// When its files are damaged, or its family or a step of its pipeline is not supported.
    pub fn load(source: &EmbeddingSource) -> Result<(Self, Tokenizer, Option<String>)> {
        let mut name = None;
        let (config, weights, own, tokenizer) = match source.format() {
            ModelFormat::Gguf => {
                let file = GgufFile::open(source.main())?;
                let tokenizer = Tokenizer::from_gguf(file.metadata())?;
                let own = Pooling::from_gguf(&file)?;
                name = file.metadata().string("general.name")?.map(str::to_owned);
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
                "the tokenizer has {} token ids, but the model has {}; they do not belong together",
                tokenizer.n_vocab(),
                config.n_vocab
            )));
        }
        let family = config.family;
        let isa = Isa::current();
        let backend = match source.is_float32() {
            true => models::Backend::Kernels(isa),
            false => models::Backend::KernelsBf16(isa),
        };
        let encoder = Box::new(TextEncoder::load(config, &weights, backend)?);
        let head = if source.kind() == ModelKind::Reranker {
            if encoder.n_labels() != 1 {
                return Err(Error::model(format!(
                    "`{}` has {} labels, but a reranker has one; use a cross-encoder",
                    source.id(),
                    encoder.n_labels()
                )));
            }
            Head::Classifier
        } else {
            let row = source.spec().map(|spec| spec.pooling);
            Head::Pooling(Pooling::reconcile(row, own).map_err(|e| e.context(source.id()))?)
        };
        Ok((Self { family, encoder, head }, tokenizer, name))
    }
}

impl VectorBackend for EncoderBackend {
    fn family(&self) -> &str {
        self.family
    }

    fn dimensions(&self) -> usize {
        match self.head {
            Head::Pooling(_) => self.encoder.hidden_size(),
            Head::Classifier => self.encoder.n_labels(),
        }
    }

    fn max_tokens(&self) -> usize {
        self.encoder.max_tokens()
    }

    fn batch_tokens(&self) -> usize {
        BATCH_TOKENS
    }

    fn embed(&self, inputs: &[&TokenizedInput]) -> Result<Vec<Vec<f32>>> {
        let inputs: Vec<EncoderInput> = inputs
            .iter()
            .map(|input| EncoderInput {
                token_ids: input.ids.clone(),
                n_first: input.n_first.unwrap_or(input.ids.len()),
            })
            .collect();
        let Head::Pooling(pooling) = self.head else {
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
    fn supported_poolings_are_read_and_others_are_refused() {
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
    fn contradictory_poolings_are_refused() {
        let reconcile = |row, own| Pooling::reconcile(row, own).map_err(|e| e.to_string());
        assert_eq!(reconcile(None, None), Ok(Pooling::Mean));
        assert_eq!(reconcile(Some(Pooling::Cls), None), Ok(Pooling::Cls));
        assert_eq!(reconcile(None, Some(Pooling::LastToken)), Ok(Pooling::LastToken));
        assert_eq!(reconcile(Some(Pooling::Cls), Some(Pooling::Cls)), Ok(Pooling::Cls));
        let contradiction = reconcile(Some(Pooling::Cls), Some(Pooling::Mean)).unwrap_err();
        assert!(contradiction.contains("first token") && contradiction.contains("mean"), "{contradiction}");
    }

    #[test]
    fn each_pooling_selects_its_hidden_states() {
        let states =
            Tensor::from_vec(vec![1f32, 10., 2., 20., 6., 60.], (3, 2), &candle_core::Device::Cpu).unwrap();
        for (pooling, expected) in
            [(Pooling::Mean, [3., 30.]), (Pooling::Cls, [1., 10.]), (Pooling::LastToken, [6., 60.])]
        {
            assert_eq!(pooling.pool(&states).unwrap().to_vec1::<f32>().unwrap(), expected);
        }
    }
}
