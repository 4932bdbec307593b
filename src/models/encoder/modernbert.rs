//! ModernBERT: rotary embedding, pre-norm layers, a gated GELU MLP, and layers with a sliding attention
//! window, which have a rotary base of their own.

use super::config::{EncoderConfig, NormPlacement};
use super::family::EncoderFamily;
use super::layout::{EncoderLayout, HeadLayout, UpNames};
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, FULL_ATTENTION, GateUp, LAYER_TYPES, Qkv, SLIDING_ATTENTION};
use crate::models::rope::{ROPE_PARAMETERS, Rope};

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "modernbert",
    model_types: &["modernbert"],
    gguf_architectures: &["modern-bert"],
    json_aliases: &[],
    describe,
    layouts: CheckpointLayouts {
        safetensors: EncoderLayout {
            prefix: "model.",
            words: "embeddings.tok_embeddings",
            positions: None,
            types: None,
            embedding_norm: "embeddings.norm",
            relative_bias: None,
            layers: "layers",
            qkv: Qkv::Fused("attn.Wqkv"),
            output: "attn.Wo",
            attention_norm: "attn_norm",
            up: UpNames::Gated(GateUp::Fused("mlp.Wi")),
            down: "mlp.Wo",
            mlp_norm: "mlp_norm",
            final_norm: Some("final_norm"),
            head: Some(HeadLayout {
                dense: "head.dense",
                activation: ActivationFn::Gelu,
                norm: Some("head.norm"),
                output: "classifier",
            }),
        },
        gguf: EncoderLayout {
            prefix: "",
            words: "token_embd",
            positions: None,
            types: None,
            embedding_norm: "token_embd_norm",
            relative_bias: None,
            layers: "blk",
            qkv: Qkv::Fused("attn_qkv"),
            output: "attn_output",
            attention_norm: "attn_norm",
            up: UpNames::Gated(GateUp::Fused("ffn_up")),
            down: "ffn_down",
            mlp_norm: "ffn_norm",
            final_norm: Some("output_norm"),
            head: None,
        },
    },
};

/// The distance between two layers without a window.
const FULL_INTERVAL: ConfigKey =
    ConfigKey::new("global_attn_every_n_layers", "attention.sliding_window_pattern");
/// The width of the window, both sides together.
const WINDOW: ConfigKey = ConfigKey::new("local_attention", "attention.sliding_window");
const GLOBAL_THETA: ConfigKey = ConfigKey::new("global_rope_theta", "rope.freq_base");
const LOCAL_THETA: ConfigKey = ConfigKey::new("local_rope_theta", "rope.freq_base_swa");

fn describe(checkpoint: &CheckpointConfig, config: &mut EncoderConfig) -> Result<()> {
    config.norm_placement = NormPlacement::Pre;
    let interval = checkpoint.integer(FULL_INTERVAL)?.unwrap_or(3).max(1);
    let window = checkpoint.integer(WINDOW)?.unwrap_or(128) / 2;
    let rope = |kind, theta, default_theta| -> Result<Rope> {
        let rope = Rope::from_checkpoint(checkpoint, config.head_dim(), kind)?;
        // Without parameters per kind, the base is a setting of its own.
        let is_stated = checkpoint.object(ROPE_PARAMETERS).is_some_and(|kinds| kinds.contains_key(kind));
        let theta = checkpoint.float(theta)?.unwrap_or(default_theta);
        Ok(if is_stated { rope } else { rope.unscaled(theta) })
    };
    config.ropes =
        vec![rope(FULL_ATTENTION, GLOBAL_THETA, 160_000.0)?, rope(SLIDING_ATTENTION, LOCAL_THETA, 10_000.0)?];
    let kinds = checkpoint.array(LAYER_TYPES);
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        let is_sliding = match kinds.and_then(|kinds| kinds.get(idx)) {
            Some(kind) => kind == SLIDING_ATTENTION,
            None => !idx.is_multiple_of(interval),
        };
        layer.rope = Some(usize::from(is_sliding));
        layer.window = is_sliding.then_some(window);
    }
    Ok(())
}
