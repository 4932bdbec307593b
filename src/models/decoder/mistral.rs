//! Mistral: a llama whose layers, in the first versions, see a window of the past. GGUF files call
//! it a llama, or `mistral3` since Ministral.

use super::family::{Family, Layout};

pub const FAMILY: Family = Family {
    name: "mistral",
    model_types: &["mistral"],
    gguf_architectures: &["mistral"],
    gguf: Layout { interleaves_heads: true, ..Layout::GGUF },
    ..Family::BASE
};
