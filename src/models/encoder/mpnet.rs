//! MPNet: RoBERTa without token types, with a bias for the distance of two tokens.

use super::bert;
use super::family::{EncoderFamily, EncoderLayout, Qkv};
use super::roberta::{HEAD, positions_behind_padding};

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "mpnet",
    model_types: &["mpnet"],
    gguf_architectures: &[],
    describe: positions_behind_padding,
    safetensors: EncoderLayout {
        prefix: "mpnet.",
        types: None,
        relative_bias: Some("encoder.relative_attention_bias"),
        qkv: Qkv::Apart { query: "attention.attn.q", key: "attention.attn.k", value: "attention.attn.v" },
        output: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        head: Some(HEAD),
        ..bert::FAMILY.safetensors
    },
    ..bert::FAMILY
};
