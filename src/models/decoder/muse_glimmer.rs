//! Muse Glimmer's language model: norms before and after attention and MLP as in Gemma 2, unweighted norms of token
//! embeddings and heads, a sigmoid gate of the attention output, and no rotary embedding (NoPE) in layers without a window. Norm weights of
//! layers are stored minus one, except in GGUF files.

use super::config::{ModelConfig, QkNorm};
use super::family::DecoderFamily;
use super::layout::DecoderLayout;
use super::qwen3::GGUF_QK_NORMS;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "muse-glimmer",
    model_types: &["muse_glimmer_text", "muse_glimmer"],
    gguf_architectures: &["muse-glimmer"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            attention_gate: Some("self_attn.gate_proj"),
            attention_post_norm: Some("post_attention_layernorm"),
            mlp_norm: Some("pre_feedforward_layernorm"),
            mlp_post_norm: Some("post_feedforward_layernorm"),
            norm_offset: 1.0,
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout {
            qk_norms: Some(GGUF_QK_NORMS),
            attention_gate: Some("attn_gate"),
            attention_post_norm: Some("post_attention_norm"),
            mlp_post_norm: Some("post_ffw_norm"),
            interleaved_rope: true,
            ..DecoderLayout::GGUF
        },
    },
    ..DecoderFamily::BASE
};

const POST_NORM_EPS: ConfigKey = ConfigKey::json("post_norm_eps");
const QK_SCALE: ConfigKey = ConfigKey::json("qk_scale_factor");
const LOGIT_SCALE: ConfigKey = ConfigKey::new("output_multiplier", "logit_scale");
const LOGIT_SOFTCAP: ConfigKey = ConfigKey::new("final_logit_softcapping", "final_logit_softcapping");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    // GGUF files do not say.
    config.post_norm_eps = checkpoint.float(POST_NORM_EPS)?.unwrap_or(1e-8);
    if let Some(factor) = checkpoint.float(QK_SCALE)? {
        config.qk_norm = QkNorm::Unweighted(factor);
    }
    config.normed_embeddings = true;
    config.logit_scale = checkpoint.float(LOGIT_SCALE)?;
    config.logit_softcap = checkpoint.float(LOGIT_SOFTCAP)?;
    config.layers.iter_mut().filter(|layer| layer.window.is_none()).for_each(|layer| layer.rope = None);
    Ok(())
}
