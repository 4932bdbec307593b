//! Qwen3: Qwen2 without biases, and with a norm of each query and key head.

use super::family::DecoderFamily;
use super::layout::{DecoderLayout, QkNormNames};
use super::qwen2::set_upper_windows;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "qwen3",
    model_types: &["qwen3"],
    gguf_architectures: &["qwen3"],
    describe: set_upper_windows,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout { qk_norms: Some(SAFETENSORS_QK_NORMS), ..DecoderLayout::SAFETENSORS },
        gguf: DecoderLayout { qk_norms: Some(GGUF_QK_NORMS), ..DecoderLayout::GGUF },
    },
    ..DecoderFamily::BASE
};

pub(super) const SAFETENSORS_QK_NORMS: QkNormNames =
    QkNormNames { query: "self_attn.q_norm", key: "self_attn.k_norm" };
pub(super) const GGUF_QK_NORMS: QkNormNames = QkNormNames { query: "attn_q_norm", key: "attn_k_norm" };
