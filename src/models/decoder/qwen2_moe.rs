//! Qwen1.5 and Qwen2 with mixtures of experts, each with a shared expert.

use super::config::{ModelConfig, MoeConfig};
use super::family::DecoderFamily;
use super::qwen2::set_upper_windows;
use super::qwen3_moe::set_sparse_layers;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "qwen2-moe",
    model_types: &["qwen2_moe"],
    gguf_architectures: &["qwen2moe"],
    describe,
    ..DecoderFamily::BASE
};

const NORMALIZE_WEIGHTS: ConfigKey = ConfigKey::json("norm_topk_prob");
pub(super) const SHARED_INTERMEDIATE_SIZE: ConfigKey =
    ConfigKey::new("shared_expert_intermediate_size", "expert_shared_feed_forward_length");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    set_upper_windows(checkpoint, config)?;
    let mut moe = MoeConfig::from_checkpoint(checkpoint)?;
    // GGUF files do not say; no released model normalizes them.
    moe.routing.normalize_weights = checkpoint.boolean(NORMALIZE_WEIGHTS)?.unwrap_or(false);
    moe.shared_intermediate_size = Some(checkpoint.required(SHARED_INTERMEDIATE_SIZE)?);
    config.moe = Some(moe);
    set_sparse_layers(checkpoint, config)
}
