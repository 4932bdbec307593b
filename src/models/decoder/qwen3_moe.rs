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

const N_EXPERTS: ConfigKey = ConfigKey::new("num_experts", "expert_count");
/// The name since `transformers` 5.
const N_LOCAL_EXPERTS: ConfigKey = ConfigKey::new("num_local_experts", "expert_count");
const EXPERTS_PER_TOKEN: ConfigKey = ConfigKey::new("num_experts_per_tok", "expert_used_count");
const MOE_INTERMEDIATE_SIZE: ConfigKey =
    ConfigKey::new("moe_intermediate_size", "expert_feed_forward_length");
const NORMALIZE_WEIGHTS: ConfigKey = ConfigKey::json("norm_topk_prob");
const SPARSE_STEP: ConfigKey = ConfigKey::json("decoder_sparse_step");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    set_upper_windows(checkpoint, config)?;
    config.moe = Some(MoeConfig {
        n_experts: match checkpoint.integer(N_EXPERTS)? {
            Some(n_experts) => n_experts,
            None => checkpoint.required(N_LOCAL_EXPERTS)?,
        },
        experts_per_token: checkpoint.required(EXPERTS_PER_TOKEN)?,
        intermediate_size: checkpoint.required(MOE_INTERMEDIATE_SIZE)?,
        normalize_weights: checkpoint.boolean(NORMALIZE_WEIGHTS)?.unwrap_or(true),
    });
    let step = checkpoint.integer(SPARSE_STEP)?.unwrap_or(1).max(1);
    let dense = checkpoint.array("mlp_only_layers").unwrap_or_default();
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        layer.is_moe = (idx + 1).is_multiple_of(step) && !dense.contains(&Value::from(idx));
    }
    Ok(())
}
