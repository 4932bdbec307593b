//! The description of an encoder family.

use super::config::EncoderConfig;
use super::layout::EncoderLayout;
use crate::error::Result;
use crate::models::checkpoint_config::CheckpointConfig;
use crate::models::family::CheckpointLayouts;

/// The differences between a family and the others.
#[derive(Debug)]
pub struct EncoderFamily {
    /// The name shown to users.
    pub name: &'static str,
    /// The family's values of `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// The family's values of `general.architecture` in GGUF files.
    pub gguf_architectures: &'static [&'static str],
    /// Settings that the family's `config.json` may have under another name: the usual name, then the other.
    pub json_aliases: &'static [(&'static str, &'static str)],
    /// Sets everything that is not as in BERT.
    pub describe: fn(&CheckpointConfig, &mut EncoderConfig) -> Result<()>,
    /// The tensor names of both kinds of checkpoint.
    pub layouts: CheckpointLayouts<EncoderLayout>,
}

impl EncoderFamily {
    /// Reads the configuration of a model of this family.
    ///
    /// # Errors
    /// When a setting is missing or of the wrong type, or the sizes contradict each other.
    pub(super) fn config(
        &'static self,
        checkpoint: &CheckpointConfig,
        n_vocab: usize,
        n_types: usize,
    ) -> Result<EncoderConfig> {
        let mut config =
            EncoderConfig::from_checkpoint(checkpoint, self.name, &self.layouts, n_vocab, n_types)?;
        (self.describe)(checkpoint, &mut config)?;
        Ok(config)
    }
}
