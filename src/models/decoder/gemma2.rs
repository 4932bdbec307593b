//! Gemma 2: norms before and after attention and MLP, softcapped scores and logits, a window in every other
//! layer, scaled embeddings, a GELU gate. Norm weights are stored minus one, except in GGUF files.

use super::config::ModelConfig;
use super::family::DecoderFamily;
use super::layout::DecoderLayout;
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "gemma2",
    model_types: &["gemma2"],
    gguf_architectures: &["gemma2"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            attention_post_norm: Some("post_attention_layernorm"),
            mlp_norm: Some("pre_feedforward_layernorm"),
            mlp_post_norm: Some("post_feedforward_layernorm"),
            norm_offset: 1.0,
            final_norm_offset: 1.0,
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout {
            attention_post_norm: Some("post_attention_norm"),
            mlp_post_norm: Some("post_ffw_norm"),
            ..DecoderLayout::GGUF
        },
    },
    ..DecoderFamily::BASE
};

const ATTENTION_SOFTCAP: ConfigKey = ConfigKey::new("attn_logit_softcapping", "attn_logit_softcapping");
const LOGIT_SOFTCAP: ConfigKey = ConfigKey::new("final_logit_softcapping", "final_logit_softcapping");
const QUERY_SCALE: ConfigKey = ConfigKey::json("query_pre_attn_scalar");

/// The number of layers of the 27B model, whose scores are scaled by `hidden_size / n_heads` instead of the
/// head width; GGUF files do not say so.
const N_LAYERS_27B: usize = 46;

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.set_windows(checkpoint, |layer| layer.is_multiple_of(2))?;
    set_gemma_scales(checkpoint, config, N_LAYERS_27B)?;
    config.attention_softcap = checkpoint.float(ATTENTION_SOFTCAP)?;
    config.logit_softcap = checkpoint.float(LOGIT_SOFTCAP)?;
    Ok(())
}

/// Sets the activation function and the scales that Gemma 2 and 3 have in common.
pub(super) fn set_gemma_scales(
    checkpoint: &CheckpointConfig,
    config: &mut ModelConfig,
    n_layers_27b: usize,
) -> Result<()> {
    config.activation = ActivationFn::GeluTanh;
    config.embedding_scale = Some((config.hidden_size as f64).sqrt());
    let stated = checkpoint.float(QUERY_SCALE)?;
    let width = if config.layers.len() == n_layers_27b {
        config.hidden_size as f64 / config.n_heads as f64
    } else {
        config.head_dim as f64
    };
    config.attention_scale = 1.0 / stated.unwrap_or(width).sqrt();
    Ok(())
}
