//! Mixtral: Mistral with a mixture of experts in every layer. In GGUF files its architecture is `llama`.

use super::config::{ModelConfig, MoeConfig};
use super::family::DecoderFamily;
use super::layout::{DecoderLayout, ExpertNames};
use super::llama;
use crate::error::Result;
use crate::models::checkpoint_config::CheckpointConfig;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "mixtral",
    model_types: &["mixtral"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            router: "block_sparse_moe.gate",
            experts: ExpertNames::Split {
                prefix: "block_sparse_moe.experts",
                gate: Some("w1"),
                up: "w3",
                down: "w2",
            },
            ..DecoderLayout::SAFETENSORS
        },
        ..llama::LAYOUTS
    },
    ..DecoderFamily::BASE
};

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.moe = Some(MoeConfig::from_checkpoint(checkpoint)?);
    config.layers.iter_mut().for_each(|layer| layer.is_moe = true);
    Ok(())
}
