//! Qwen3-Next: Qwen3.5 with mixtures of experts, and other matrices for the inputs of its delta nets.

use super::config::{ModelConfig, MoeConfig, Recurrence};
use super::family::DecoderFamily;
use super::layout::{DecoderLayout, RecurrenceInputs, RecurrenceNames};
use super::qwen2_moe::SHARED_INTERMEDIATE_SIZE;
use super::qwen3_5::{self, GGUF_DELTA_NET, SAFETENSORS_DELTA_NET};
use super::qwen3_moe::set_sparse_layers;
use crate::error::Result;
use crate::models::checkpoint_config::CheckpointConfig;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "qwen3-next",
    model_types: &["qwen3_next"],
    gguf_architectures: &["qwen3next"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            recurrence: Some(RecurrenceNames {
                inputs: RecurrenceInputs::ByKeyHead {
                    conv_gate: "linear_attn.in_proj_qkvz",
                    beta_step: "linear_attn.in_proj_ba",
                },
                ..SAFETENSORS_DELTA_NET
            }),
            experts: DecoderLayout::SAFETENSORS.experts,
            ..qwen3_5::LAYOUTS.safetensors
        },
        gguf: DecoderLayout {
            recurrence: Some(RecurrenceNames {
                inputs: RecurrenceInputs::SplitBetaStep {
                    conv: "attn_qkv",
                    gate: "attn_gate",
                    beta_step: "ssm_ba",
                },
                ..GGUF_DELTA_NET
            }),
            ..qwen3_5::LAYOUTS.gguf
        },
    },
    ..DecoderFamily::BASE
};

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    qwen3_5::set_hybrid_layers(checkpoint, config)?;
    if let Some(Recurrence::LinearAttention(linear)) = &mut config.recurrence {
        // Unlike those of Qwen3.5, the heads of values keep their order in GGUF files.
        linear.shape.is_tiled = false;
    }
    let shared_intermediate_size = Some(checkpoint.required(SHARED_INTERMEDIATE_SIZE)?);
    config.moe = Some(MoeConfig { shared_intermediate_size, ..MoeConfig::from_checkpoint(checkpoint)? });
    set_sparse_layers(checkpoint, config)
}
