//! Gemma 3's language model: Gemma 2 with head norms in place of softcaps, one layer without a window for
//! every five with one, and a rotary base of its own for the layers with a window.

use super::config::ModelConfig;
use super::family::DecoderFamily;
use super::gemma2::{self, set_gemma_scales};
use super::layout::DecoderLayout;
use super::qwen3::{GGUF_QK_NORMS, SAFETENSORS_QK_NORMS};
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, SLIDING_ATTENTION};
use crate::models::rope::{ROPE_PARAMETERS, Rope};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "gemma3",
    model_types: &["gemma3_text", "gemma3"],
    gguf_architectures: &["gemma3"],
    json_defaults: &[
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("vocab_size", 262_208.0),
        ("max_position_embeddings", 131_072.0),
        ("query_pre_attn_scalar", 256.0),
        ("sliding_window", 4096.0),
        ("rope_theta", 1_000_000.0),
        ("rms_norm_eps", 1e-6),
    ],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            qk_norms: Some(SAFETENSORS_QK_NORMS),
            ..gemma2::FAMILY.layouts.safetensors
        },
        gguf: DecoderLayout { qk_norms: Some(GGUF_QK_NORMS), ..gemma2::FAMILY.layouts.gguf },
    },
};

const LOCAL_THETA: ConfigKey = ConfigKey::new("rope_local_base_freq", "rope.freq_base_swa");
const PATTERN: ConfigKey = ConfigKey::new("sliding_window_pattern", "attention.sliding_window_pattern");

/// The number of layers of the 27B model; see [`gemma2`].
const N_LAYERS_27B: usize = 62;

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let pattern = checkpoint.integer(PATTERN)?.unwrap_or(6).max(1);
    config.set_windows(checkpoint, |layer| !(layer + 1).is_multiple_of(pattern))?;
    set_gemma_scales(checkpoint, config, N_LAYERS_27B)?;
    set_local_ropes(checkpoint, config)
}

/// Sets the rotary embedding of layers with a window, which has a base of its own.
pub(super) fn set_local_ropes(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let stated_per_kind =
        checkpoint.object(ROPE_PARAMETERS).is_some_and(|kinds| kinds.contains_key(SLIDING_ATTENTION));
    for layer in config.layers.iter_mut().filter(|layer| layer.window.is_some()) {
        layer.rope = if stated_per_kind {
            Some(Rope::from_checkpoint(checkpoint, config.head_dim, SLIDING_ATTENTION)?)
        } else {
            let theta = checkpoint.float(LOCAL_THETA)?.unwrap_or(10_000.0);
            layer.rope.as_ref().map(|global| global.unscaled(theta))
        };
    }
    Ok(())
}
