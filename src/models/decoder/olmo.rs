//! OLMo 2 and 3: llama with norms after attention and MLP instead of before them, and norms of whole query and key
//! projections. OLMo 3 has a window in three of four layers, and a RoPE scaling in the others only.

use super::config::{ModelConfig, QkNorm};
use super::family::DecoderFamily;
use super::layout::DecoderLayout;
use super::qwen3::{GGUF_QK_NORMS, SAFETENSORS_QK_NORMS};
use crate::error::Result;
use crate::models::checkpoint_config::CheckpointConfig;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "olmo",
    model_types: &["olmo2", "olmo3"],
    gguf_architectures: &["olmo2"],
    describe,
    layouts: LAYOUTS,
    ..DecoderFamily::BASE
};

pub(super) const LAYOUTS: CheckpointLayouts<DecoderLayout> = CheckpointLayouts {
    safetensors: DecoderLayout {
        attention_norm: None,
        qk_norms: Some(SAFETENSORS_QK_NORMS),
        attention_post_norm: Some("post_attention_layernorm"),
        mlp_norm: None,
        mlp_post_norm: Some("post_feedforward_layernorm"),
        ..DecoderLayout::SAFETENSORS
    },
    gguf: DecoderLayout {
        attention_norm: None,
        qk_norms: Some(GGUF_QK_NORMS),
        attention_post_norm: Some("post_attention_norm"),
        mlp_norm: None,
        mlp_post_norm: Some("post_ffw_norm"),
        ..DecoderLayout::GGUF
    },
};

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.qk_norm = QkNorm::Projection;
    config.set_windows(checkpoint, |layer| !(layer + 1).is_multiple_of(4))?;
    for layer in config.layers.iter_mut().filter(|layer| layer.window.is_some()) {
        layer.rope = layer.rope.as_ref().map(|rope| rope.unscaled(rope.theta));
    }
    Ok(())
}
