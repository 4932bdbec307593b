//! Granite 3 and the dense Granite 4: llama with scaled embeddings, attention scores, outputs and logits.

use super::config::ModelConfig;
use super::family::DecoderFamily;
use super::llama;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "granite",
    model_types: &["granite"],
    gguf_architectures: &["granite"],
    describe: set_granite_scales,
    layouts: llama::LAYOUTS,
    ..DecoderFamily::BASE
};

const ATTENTION_SCALE: ConfigKey = ConfigKey::new("attention_multiplier", "attention.scale");
const EMBEDDING_SCALE: ConfigKey = ConfigKey::new("embedding_multiplier", "embedding_scale");
const RESIDUAL_SCALE: ConfigKey = ConfigKey::new("residual_multiplier", "residual_scale");
const LOGIT_SCALE: ConfigKey = ConfigKey::new("logits_scaling", "logit_scale");

/// Sets the scales of embeddings, attention scores, outputs and logits.
pub(super) fn set_granite_scales(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.attention_scale = checkpoint.float(ATTENTION_SCALE)?.unwrap_or(config.attention_scale);
    config.embedding_scale = checkpoint.float(EMBEDDING_SCALE)?;
    config.residual_scale = checkpoint.float(RESIDUAL_SCALE)?.unwrap_or(1.0);
    // The stated factor is a divisor.
    config.logit_scale = checkpoint.float(LOGIT_SCALE)?.map(f64::recip);
    Ok(())
}
