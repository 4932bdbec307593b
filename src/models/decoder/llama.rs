//! Llama 2 and 3, SmolLM2 and every model of their form: RMS norms before attention and MLP, rotary
//! embedding, grouped-query attention, a gated SiLU MLP. In GGUF files Mixtral has this architecture, too.

use super::config::{ModelConfig, MoeConfig};
use super::family::DecoderFamily;
use super::layout::DecoderLayout;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "llama",
    model_types: &["llama"],
    gguf_architectures: &["llama"],
    describe,
    layouts: LAYOUTS,
    ..DecoderFamily::BASE
};

/// GGUF files have query and key rows in interleaved order.
pub(super) const LAYOUTS: CheckpointLayouts<DecoderLayout> = CheckpointLayouts {
    safetensors: DecoderLayout::SAFETENSORS,
    gguf: DecoderLayout { interleaved_rope: true, ..DecoderLayout::GGUF },
};

const N_EXPERTS: ConfigKey = ConfigKey::gguf("expert_count");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    if checkpoint.integer(N_EXPERTS)?.is_some_and(|n_experts| n_experts > 0) {
        config.moe = Some(MoeConfig::from_checkpoint(checkpoint)?);
        config.layers.iter_mut().for_each(|layer| layer.is_moe = true);
    }
    Ok(())
}
