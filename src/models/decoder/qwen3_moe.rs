//! Qwen3 with mixtures of experts in place of dense MLPs.

use serde_json::Value;

use super::config::{ModelConfig, MoeConfig};
use super::family::DecoderFamily;
use super::qwen2::set_upper_windows;
use super::qwen3;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "qwen3-moe",
    model_types: &["qwen3_moe"],
    gguf_architectures: &["qwen3moe"],
    describe,
    ..qwen3::FAMILY
};

const SPARSE_STEP: ConfigKey = ConfigKey::json("decoder_sparse_step");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    set_upper_windows(checkpoint, config)?;
    config.moe = Some(MoeConfig::from_checkpoint(checkpoint)?);
    set_sparse_layers(checkpoint, config)
}

/// Sets which layers are mixtures: every `decoder_sparse_step`-th that is not listed as dense.
pub(super) fn set_sparse_layers(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let step = checkpoint.integer(SPARSE_STEP)?.unwrap_or(1).max(1);
    let dense = checkpoint.array("mlp_only_layers").unwrap_or_default();
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        layer.is_moe = (idx + 1).is_multiple_of(step) && !dense.contains(&Value::from(idx));
    }
    Ok(())
}
