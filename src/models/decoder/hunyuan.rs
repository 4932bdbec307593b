//! The dense Hunyuan models: llama with a norm of each query and key head after the rotary embedding.

use super::config::{ModelConfig, QkNorm};
use super::family::DecoderFamily;
use super::layout::{DecoderLayout, QkNormNames};
use super::qwen3::GGUF_QK_NORMS;
use crate::error::Result;
use crate::models::checkpoint_config::CheckpointConfig;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "hunyuan",
    model_types: &["hunyuan_v1_dense"],
    gguf_architectures: &["hunyuan-dense"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            qk_norms: Some(QkNormNames {
                query: "self_attn.query_layernorm",
                key: "self_attn.key_layernorm",
            }),
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout { qk_norms: Some(GGUF_QK_NORMS), ..DecoderLayout::GGUF },
    },
    ..DecoderFamily::BASE
};

fn describe(_: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.qk_norm = QkNorm::RotatedHead;
    Ok(())
}
