//! Qwen3: Qwen2 without biases and with a norm over each query and key head.

use super::family::{Family, HeadNorms, Layout};
use super::qwen2::set_upper_windows;

pub const FAMILY: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    gguf_architectures: &["qwen3"],
    describe: set_upper_windows,
    safetensors: Layout { head_norms: Some(SAFETENSORS_HEAD_NORMS), ..Layout::SAFETENSORS },
    gguf: Layout { head_norms: Some(GGUF_HEAD_NORMS), ..Layout::GGUF },
    ..Family::BASE
};

pub(super) const SAFETENSORS_HEAD_NORMS: HeadNorms =
    HeadNorms { query: "self_attn.q_norm", key: "self_attn.k_norm" };
pub(super) const GGUF_HEAD_NORMS: HeadNorms = HeadNorms { query: "attn_q_norm", key: "attn_k_norm" };
