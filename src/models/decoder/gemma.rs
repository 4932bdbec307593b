//! The first Gemma: llama with scaled embeddings and a GELU gate. Norm weights are stored minus one, except in GGUF
//! files.

use super::config::ModelConfig;
use super::family::DecoderFamily;
use super::layout::DecoderLayout;
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::CheckpointConfig;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "gemma",
    model_types: &["gemma"],
    gguf_architectures: &["gemma"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout { norm_offset: 1.0, final_norm_offset: 1.0, ..DecoderLayout::SAFETENSORS },
        gguf: DecoderLayout::GGUF,
    },
    ..DecoderFamily::BASE
};

fn describe(_: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    // Early configurations say `gelu` and mean its approximation.
    config.activation = ActivationFn::GeluTanh;
    config.embedding_scale = Some((config.hidden_size as f64).sqrt());
    Ok(())
}
