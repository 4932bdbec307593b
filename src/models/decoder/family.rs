//! The description of a decoder family.

use super::config::ModelConfig;
use super::layout::DecoderLayout;
use crate::error::Result;
use crate::models::checkpoint_config::CheckpointConfig;
use crate::models::family::CheckpointLayouts;

/// The differences between a family and the others.
#[derive(Debug)]
pub struct DecoderFamily {
    /// The name shown to users.
    pub name: &'static str,
    /// The family's values of `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// The family's values of `general.architecture` in GGUF files.
    pub gguf_architectures: &'static [&'static str],
    /// Defaults of settings that the family's `config.json` may omit.
    pub json_defaults: &'static [(&'static str, f64)],
    /// Sets everything that is not as in llama.
    pub describe: fn(&CheckpointConfig, &mut ModelConfig) -> Result<()>,
    /// The tensor names of both kinds of checkpoint.
    pub layouts: CheckpointLayouts<DecoderLayout>,
}

impl DecoderFamily {
    /// A nameless family that is llama in every respect.
    pub(super) const BASE: Self = Self {
        name: "",
        model_types: &[],
        gguf_architectures: &[],
        json_defaults: &[],
        describe: |_, _| Ok(()),
        layouts: CheckpointLayouts { safetensors: DecoderLayout::SAFETENSORS, gguf: DecoderLayout::GGUF },
    };

    /// Reads the configuration of a model of this family.
    ///
    /// # Errors
    /// When a setting is missing or of the wrong type, or the sizes contradict each other.
    pub(super) fn config(
        &'static self,
        checkpoint: &CheckpointConfig,
        n_vocab: usize,
    ) -> Result<ModelConfig> {
        let mut config = ModelConfig::from_checkpoint(checkpoint, self.name, &self.layouts, n_vocab)?;
        (self.describe)(checkpoint, &mut config)?;
        config.check_moe()?;
        config.check_mixers()?;
        config.check_layers()?;
        Ok(config)
    }
}
