//! Phi-3, Phi-3.5 and Phi-4 mini: a llama whose projections lie in fused matrices; LongRoPE for
//! long contexts.

use super::family::{Family, GateUp, Layout, Qkv};

pub const FAMILY: Family = Family {
    name: "phi3",
    model_types: &["phi3"],
    gguf_architectures: &["phi3"],
    safetensors: Layout {
        qkv: Qkv::Fused("self_attn.qkv_proj"),
        gate_up: GateUp::Fused("mlp.gate_up_proj"),
        ..Layout::SAFETENSORS
    },
    gguf: Layout { qkv: Qkv::Fused("attn_qkv"), gate_up: GateUp::Fused("ffn_up"), ..Layout::GGUF },
    ..Family::BASE
};
