//! Gemma 2: norms in front and behind, bounded scores and logits, every other layer with a window,
//! scaled embeddings, a GELU gate. Its norm weights are stored less one, except in GGUF files.

use super::config::ModelConfig;
use super::family::{Family, Layout};
use crate::error::Result;
use crate::models::fields::{Fields, Key};
use crate::models::layers::activation::Activation;

pub const FAMILY: Family = Family {
    name: "gemma2",
    model_types: &["gemma2"],
    gguf_architectures: &["gemma2"],
    describe,
    safetensors: Layout {
        attention_post_norm: Some("post_attention_layernorm"),
        mlp_norm: "pre_feedforward_layernorm",
        mlp_post_norm: Some("post_feedforward_layernorm"),
        norm_offset: 1.0,
        ..Layout::SAFETENSORS
    },
    gguf: Layout {
        attention_post_norm: Some("post_attention_norm"),
        mlp_post_norm: Some("post_ffw_norm"),
        ..Layout::GGUF
    },
    ..Family::BASE
};

const ATTENTION_SOFTCAP: Key = Key { json: "attn_logit_softcapping", gguf: "attn_logit_softcapping" };
const LOGIT_SOFTCAP: Key = Key { json: "final_logit_softcapping", gguf: "final_logit_softcapping" };
const QUERY_SCALE: Key = Key { json: "query_pre_attn_scalar", gguf: "" };

/// Layers of the 27B model, whose scores are scaled by `hidden_size / n_heads` instead of the
/// width of a head; GGUF files do not say so.
const N_LAYERS_27B: usize = 46;

fn describe(fields: &Fields, config: &mut ModelConfig) -> Result<()> {
    config.set_windows(fields, |layer| layer.is_multiple_of(2))?;
    set_gemma_scales(fields, config, N_LAYERS_27B)?;
    config.attention_softcap = fields.float(ATTENTION_SOFTCAP)?;
    config.logit_softcap = fields.float(LOGIT_SOFTCAP)?;
    Ok(())
}

/// What both Gemmas share.
pub(super) fn set_gemma_scales(fields: &Fields, config: &mut ModelConfig, n_layers_27b: usize) -> Result<()> {
    config.activation = Activation::GeluTanh;
    config.embedding_scale = Some((config.hidden_size as f64).sqrt());
    let stated = fields.float(QUERY_SCALE)?;
    let width = if config.layers.len() == n_layers_27b {
        config.hidden_size as f64 / config.n_heads as f64
    } else {
        config.head_dim as f64
    };
    config.attention_scale = 1.0 / stated.unwrap_or(width).sqrt();
    Ok(())
}
