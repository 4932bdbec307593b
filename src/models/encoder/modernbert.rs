//! ModernBERT: rotary positions, norms in front, a gated GELU MLP, and layers that see only their
//! neighbourhood, which turn at a rate of their own.

use super::config::EncoderConfig;
use super::family::{EncoderFamily, EncoderLayout, GateUp, HeadLayout, NormPlacement, Qkv};
use crate::error::Result;
use crate::models::fields::{Fields, Key};
use crate::models::layers::activation::Activation;
use crate::models::rope::Rope;

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "modernbert",
    model_types: &["modernbert"],
    gguf_architectures: &["modern-bert"],
    json_aliases: &[],
    norms: NormPlacement::Before,
    describe,
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
        gate_up: GateUp::Fused("mlp.Wi"),
        down: "mlp.Wo",
        mlp_norm: "mlp_norm",
        final_norm: Some("final_norm"),
        head: Some(HeadLayout {
            dense: "head.dense",
            activation: Activation::Gelu,
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
        gate_up: GateUp::Fused("ffn_up"),
        down: "ffn_down",
        mlp_norm: "ffn_norm",
        final_norm: Some("output_norm"),
        head: None,
    },
};

const EVERY: Key = Key { json: "global_attn_every_n_layers", gguf: "attention.sliding_window_pattern" };
/// The whole neighbourhood, to both sides.
const WINDOW: Key = Key { json: "local_attention", gguf: "attention.sliding_window" };
const GLOBAL_THETA: Key = Key { json: "global_rope_theta", gguf: "rope.freq_base" };
const LOCAL_THETA: Key = Key { json: "local_rope_theta", gguf: "rope.freq_base_swa" };

fn describe(fields: &Fields, config: &mut EncoderConfig) -> Result<()> {
    let every = fields.integer(EVERY)?.unwrap_or(3).max(1);
    let reach = fields.integer(WINDOW)?.unwrap_or(128) / 2;
    let rope = |kind, theta, usual| -> Result<Rope> {
        let rope = Rope::read(fields, config.head_dim(), kind)?;
        // Where each kind has no parameters of its own the base stands beside them.
        let is_stated = fields.object("rope_parameters").is_some_and(|kinds| kinds.contains_key(kind));
        let theta = fields.float(theta)?.unwrap_or(usual);
        Ok(if is_stated { rope } else { rope.unscaled(theta) })
    };
    config.ropes = vec![
        rope("full_attention", GLOBAL_THETA, 160_000.0)?,
        rope("sliding_attention", LOCAL_THETA, 10_000.0)?,
    ];
    let kinds = fields.array("layer_types");
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        let is_local = match kinds.and_then(|kinds| kinds.get(idx)) {
            Some(kind) => kind == "sliding_attention",
            None => !idx.is_multiple_of(every),
        };
        layer.rope = Some(usize::from(is_local));
        layer.reach = is_local.then_some(reach);
    }
    Ok(())
}
