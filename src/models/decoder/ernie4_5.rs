//! The dense ERNIE 4.5 models: llama with query and key rows in interleaved order in both kinds of checkpoint.

use super::family::DecoderFamily;
use super::layout::DecoderLayout;
use super::llama;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "ernie4.5",
    model_types: &["ernie4_5"],
    gguf_architectures: &["ernie4_5"],
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout { interleaved_rope: true, ..DecoderLayout::SAFETENSORS },
        ..llama::LAYOUTS
    },
    ..DecoderFamily::BASE
};
