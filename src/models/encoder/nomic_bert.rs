//! Nomic BERT: BERT with rotary positions and a gated MLP, without biases in its products.

use super::bert;
use super::config::EncoderConfig;
use super::family::{EncoderFamily, EncoderLayout, GateUp, Qkv};
use crate::error::{Error, Result};
use crate::models::fields::{Fields, Key};
use crate::models::layers::activation::Activation;
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
    safetensors: EncoderLayout {
        positions: None,
        embedding_norm: "emb_ln",
        layers: "encoder.layers",
        qkv: Qkv::Fused("attn.Wqkv"),
        output: "attn.out_proj",
        attention_norm: "norm1",
        gate_up: GateUp::Apart { gate: "mlp.fc12", up: "mlp.fc11" },
        down: "mlp.fc2",
        mlp_norm: "norm2",
        head: None,
        ..bert::FAMILY.safetensors
    },
    gguf: EncoderLayout {
        positions: None,
        qkv: Qkv::Fused("attn_qkv"),
        gate_up: GateUp::Apart { gate: "ffn_gate", up: "ffn_up" },
        ..bert::FAMILY.gguf
    },
    ..bert::FAMILY
};

fn describe(fields: &Fields, config: &mut EncoderConfig) -> Result<()> {
    let flag = |json| fields.boolean(Key { json, gguf: "" });
    if flag("prenorm")? == Some(true) || flag("rotary_emb_interleaved")? == Some(true) {
        return Err(Error::model("config.json describes a form of nomic_bert that is not supported"));
    }
    config.activation = Activation::Silu;
    config.ropes = vec![Rope::read(fields, config.head_dim(), "full_attention")?];
    config.layers.iter_mut().for_each(|layer| layer.rope = Some(0));
    Ok(())
}
