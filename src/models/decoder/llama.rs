//! Llama 2 and 3, SmolLM2 and every model of their form: RMS norms before attention and MLP, rotary
//! embedding, grouped-query attention, a gated SiLU MLP.

use super::family::DecoderFamily;
use super::layout::DecoderLayout;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "llama",
    model_types: &["llama"],
    gguf_architectures: &["llama"],
    layouts: LAYOUTS,
    ..DecoderFamily::BASE
};

/// GGUF files have query and key rows in interleaved order.
pub(super) const LAYOUTS: CheckpointLayouts<DecoderLayout> = CheckpointLayouts {
    safetensors: DecoderLayout::SAFETENSORS,
    gguf: DecoderLayout { interleaved_rope: true, ..DecoderLayout::GGUF },
};
