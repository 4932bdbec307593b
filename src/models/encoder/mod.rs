//! The encoder: one implementation for all families, described by an [`EncoderConfig`] and by the tensor
//! names of an [`EncoderFamily`], with a classification head if the checkpoint has one.

mod bert;
mod config;
mod embeddings;
mod family;
mod head;
mod layer;
mod layout;
mod loader;
mod modernbert;
mod mpnet;
mod nomic_bert;
mod relative_bias;
mod roberta;
mod text_encoder;

use serde_json::{Map, Value};

pub use config::EncoderConfig;
pub use family::EncoderFamily;
pub use text_encoder::TextEncoder;

use super::checkpoint_config::{CheckpointConfig, ConfigKey};
use super::family::{N_VOCAB, find_family};
use super::load::GgufFile;
use crate::error::{Error, Result};

/// All families, in the order of their modules.
const FAMILIES: [&EncoderFamily; 5] =
    [&bert::FAMILY, &roberta::FAMILY, &mpnet::FAMILY, &modernbert::FAMILY, &nomic_bert::FAMILY];

/// The word for these models in error messages.
const KIND: &str = "encoders";

const POSITION_KIND: ConfigKey = ConfigKey::json("position_embedding_type");
const N_TYPES: ConfigKey = ConfigKey::json("type_vocab_size");

impl EncoderConfig {
    /// Reads the configuration from the metadata of a GGUF file.
    ///
    /// # Errors
    /// When the family is unknown, a setting is missing or of the wrong type, or the sizes
    /// contradict each other.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = file.architecture()?;
        let family = find_family(&FAMILIES, KIND, architecture, |family| family.gguf_architectures)?;
        let layout = &family.layouts.gguf;
        let n_rows = |name: &str| file.n_rows(&format!("{name}.weight"));
        let n_vocab = n_rows(layout.words)?;
        let n_types = layout.types.map_or(Ok(0), n_rows)?;
        let config = family.config(&CheckpointConfig::Gguf { file, architecture }, n_vocab, n_types)?;
        // The context in the metadata may be shorter than the table of positions.
        let n_positions = layout.positions.map_or(Ok(config.n_positions), n_rows)?;
        Ok(Self { n_positions, ..config })
    }

    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// When the file is malformed, the family is unknown, a setting is missing or of the wrong type, or the
    /// sizes contradict each other.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let mut settings: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read config.json: {e}")))?;
        let model_type = settings.get("model_type").and_then(Value::as_str);
        let model_type = model_type.ok_or_else(|| Error::model("config.json has no `model_type`"))?;
        let family = find_family(&FAMILIES, KIND, model_type, |family| family.model_types)?;
        for (usual, other) in family.json_aliases {
            if let Some(value) = settings.get(*other).cloned() {
                settings.entry(*usual).or_insert(value);
            }
        }
        let checkpoint = CheckpointConfig::Json(&settings);
        if checkpoint.string(POSITION_KIND)?.is_some_and(|kind| kind != "absolute") {
            return Err(Error::model("encoders with relative positions are not supported"));
        }
        let n_vocab = checkpoint.required(N_VOCAB)?;
        let n_types = checkpoint.integer(N_TYPES)?.unwrap_or(0);
        family.config(&checkpoint, n_vocab, n_types)
    }
}
