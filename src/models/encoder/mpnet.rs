//! MPNet: RoBERTa without token types, with relative attention biases.

use super::bert;
use super::family::EncoderFamily;
use super::layout::EncoderLayout;
use super::roberta::{HEAD, set_positions};
use crate::models::family::{CheckpointLayouts, Qkv};

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "mpnet",
    model_types: &["mpnet"],
    gguf_architectures: &[],
    describe: set_positions,
    layouts: CheckpointLayouts {
        safetensors: EncoderLayout {
            prefix: "mpnet.",
            types: None,
            relative_bias: Some("encoder.relative_attention_bias"),
            qkv: Qkv::Split { query: "attention.attn.q", key: "attention.attn.k", value: "attention.attn.v" },
            output: "attention.attn.o",
            attention_norm: "attention.LayerNorm",
            head: Some(HEAD),
            ..bert::FAMILY.layouts.safetensors
        },
        ..bert::FAMILY.layouts
    },
    ..bert::FAMILY
};
