//! BERT: learned positions, post-norm layers, a plain GELU MLP.

use super::family::EncoderFamily;
use super::layout::{EncoderLayout, HeadLayout, UpNames};
use crate::kernels::matmul::ActivationFn;
use crate::models::family::{CheckpointLayouts, Qkv};

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "bert",
    model_types: &["bert"],
    gguf_architectures: &["bert"],
    json_aliases: &[],
    describe: |_, _| Ok(()),
    layouts: CheckpointLayouts {
        safetensors: EncoderLayout {
            prefix: "bert.",
            words: "embeddings.word_embeddings",
            positions: Some("embeddings.position_embeddings"),
            types: Some("embeddings.token_type_embeddings"),
            embedding_norm: "embeddings.LayerNorm",
            relative_bias: None,
            layers: "encoder.layer",
            qkv: Qkv::Split {
                query: "attention.self.query",
                key: "attention.self.key",
                value: "attention.self.value",
            },
            output: "attention.output.dense",
            attention_norm: "attention.output.LayerNorm",
            up: UpNames::Plain("intermediate.dense"),
            down: "output.dense",
            mlp_norm: "output.LayerNorm",
            final_norm: None,
            head: Some(HeadLayout {
                dense: "pooler.dense",
                activation: ActivationFn::Tanh,
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
            qkv: Qkv::Split { query: "attn_q", key: "attn_k", value: "attn_v" },
            output: "attn_output",
            attention_norm: "attn_output_norm",
            up: UpNames::Plain("ffn_up"),
            down: "ffn_down",
            mlp_norm: "layer_output_norm",
            final_norm: None,
            head: Some(HeadLayout {
                dense: "cls",
                activation: ActivationFn::Tanh,
                norm: None,
                output: "cls.output",
            }),
        },
    },
};
