//! Phi-3, Phi-3.5 and Phi-4 mini: llama with fused query/key/value and gate/up projections, and LongRoPE for
//! long contexts.

use super::family::DecoderFamily;
use super::layout::DecoderLayout;
use crate::models::family::{CheckpointLayouts, GateUp, Qkv};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "phi3",
    model_types: &["phi3"],
    gguf_architectures: &["phi3"],
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            qkv: Qkv::Fused("self_attn.qkv_proj"),
            gate_up: GateUp::Fused("mlp.gate_up_proj"),
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout {
            qkv: Qkv::Fused("attn_qkv"),
            gate_up: GateUp::Fused("ffn_up"),
            ..DecoderLayout::GGUF
        },
    },
    ..DecoderFamily::BASE
};
