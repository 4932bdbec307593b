//! Llama 2 and 3, SmolLM2, and all that share their form: RMS norms in front, rotary embedding,
//! grouped heads, a gated SiLU MLP.

use super::family::{Family, Layout};

pub const FAMILY: Family = Family {
    name: "llama",
    model_types: &["llama"],
    gguf_architectures: &["llama"],
    gguf: Layout { interleaves_heads: true, ..Layout::GGUF },
    ..Family::BASE
};
