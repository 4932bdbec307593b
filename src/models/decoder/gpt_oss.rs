//! gpt-oss: a mixture of experts in every layer, attention sinks, a window in every other layer, YaRN without rounding,
//! biases everywhere, and a clamped SwiGLU.

use super::config::{ModelConfig, MoeConfig};
use super::family::DecoderFamily;
use super::layout::{DecoderLayout, ExpertNames};
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::CheckpointLayouts;
use crate::models::rope::RopeScaling;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "gpt-oss",
    model_types: &["gpt_oss"],
    gguf_architectures: &["gpt-oss"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            sinks: Some("self_attn.sinks"),
            router: "mlp.router",
            experts: ExpertNames::Alternating {
                gate_up: "mlp.experts.gate_up_proj",
                down: "mlp.experts.down_proj",
            },
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout {
            sinks: Some("attn_sinks.weight"),
            mlp_norm: Some("post_attention_norm"),
            ..DecoderLayout::GGUF
        },
    },
    ..DecoderFamily::BASE
};

const SWIGLU_ALPHA: ConfigKey = ConfigKey::json("swiglu_alpha");
const SWIGLU_LIMIT: ConfigKey = ConfigKey::json("swiglu_limit");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.set_windows(checkpoint, |layer| layer.is_multiple_of(2))?;
    config.activation = ActivationFn::ClampedSwiGlu {
        alpha: checkpoint.float(SWIGLU_ALPHA)?.unwrap_or(1.702) as f32,
        limit: checkpoint.float(SWIGLU_LIMIT)?.unwrap_or(7.0) as f32,
    };
    config.moe = Some(MoeConfig::from_checkpoint(checkpoint)?);
    for layer in &mut config.layers {
        layer.is_moe = true;
        // GGUF files do not say that the ends of YaRN's ramp are not rounded.
        if let (CheckpointConfig::Gguf { .. }, Some(rope)) = (checkpoint, &mut layer.rope)
            && let RopeScaling::Yarn { truncate, .. } = &mut rope.scaling
        {
            *truncate = false;
        }
    }
    Ok(())
}
