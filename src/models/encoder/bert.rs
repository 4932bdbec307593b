//! BERT: learned positions, norms behind the sums, a plain GELU MLP.

use super::family::{EncoderFamily, EncoderLayout, GateUp, HeadLayout, NormPlacement, Qkv};
use crate::models::layers::activation::Activation;

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "bert",
    model_types: &["bert"],
    gguf_architectures: &["bert"],
    json_aliases: &[],
    norms: NormPlacement::After,
    describe: |_, _| Ok(()),
    safetensors: EncoderLayout {
        prefix: "bert.",
        words: "embeddings.word_embeddings",
        positions: Some("embeddings.position_embeddings"),
        types: Some("embeddings.token_type_embeddings"),
        embedding_norm: "embeddings.LayerNorm",
        relative_bias: None,
        layers: "encoder.layer",
        qkv: Qkv::Apart {
            query: "attention.self.query",
            key: "attention.self.key",
            value: "attention.self.value",
        },
        output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        gate_up: GateUp::None { up: "intermediate.dense" },
        down: "output.dense",
        mlp_norm: "output.LayerNorm",
        final_norm: None,
        head: Some(HeadLayout {
            dense: "pooler.dense",
            activation: Activation::Tanh,
            norm: None,
            output: "classifier",
        }),
    },
    gguf: EncoderLayout {
        prefix: "",
        words: "token_embd",
        positions: Some("position_embd"),
        types: Some("token_types"),
        embedding_norm: "token_embd_norm",
        relative_bias: None,
        layers: "blk",
        qkv: Qkv::Apart { query: "attn_q", key: "attn_k", value: "attn_v" },
        output: "attn_output",
        attention_norm: "attn_output_norm",
        gate_up: GateUp::None { up: "ffn_up" },
        down: "ffn_down",
        mlp_norm: "layer_output_norm",
        final_norm: None,
        head: Some(HeadLayout {
            dense: "cls",
            activation: Activation::Tanh,
            norm: None,
            output: "cls.output",
        }),
    },
};
