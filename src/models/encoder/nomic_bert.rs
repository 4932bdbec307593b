//! Nomic BERT: BERT with rotary embedding, a gated MLP, and linear layers without biases.

use super::bert;
use super::config::EncoderConfig;
use super::family::EncoderFamily;
use super::layout::{EncoderLayout, UpNames};
use crate::error::{Error, Result};
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, FULL_ATTENTION, GateUp, Qkv};
use crate::models::rope::Rope;

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "nomic-bert",
    model_types: &["nomic_bert"],
    gguf_architectures: &["nomic-bert"],
    json_aliases: &[
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("layer_norm_eps", "layer_norm_epsilon"),
        ("hidden_act", "activation_function"),
        ("rope_theta", "rotary_emb_base"),
        ("partial_rotary_factor", "rotary_emb_fraction"),
    ],
    describe,
    layouts: CheckpointLayouts {
        safetensors: EncoderLayout {
            positions: None,
            embedding_norm: "emb_ln",
            layers: "encoder.layers",
            qkv: Qkv::Fused("attn.Wqkv"),
            output: "attn.out_proj",
            attention_norm: "norm1",
            up: UpNames::Gated(GateUp::Split { gate: "mlp.fc12", up: "mlp.fc11" }),
            down: "mlp.fc2",
            mlp_norm: "norm2",
            head: None,
            ..bert::FAMILY.layouts.safetensors
        },
        gguf: EncoderLayout {
            positions: None,
            qkv: Qkv::Fused("attn_qkv"),
            up: UpNames::Gated(GateUp::Split { gate: "ffn_gate", up: "ffn_up" }),
            ..bert::FAMILY.layouts.gguf
        },
    },
};

fn describe(checkpoint: &CheckpointConfig, config: &mut EncoderConfig) -> Result<()> {
    let flag = |name| checkpoint.boolean(ConfigKey::json(name));
    if flag("prenorm")? == Some(true) || flag("rotary_emb_interleaved")? == Some(true) {
        return Err(Error::model(
            "pre-norm layers and interleaved rotary embedding are not supported in nomic_bert models",
        ));
    }
    config.activation = ActivationFn::Silu;
    config.ropes = vec![Rope::from_checkpoint(checkpoint, config.head_dim(), FULL_ATTENTION)?];
    config.layers.iter_mut().for_each(|layer| layer.rope = Some(0));
    Ok(())
}
