//! Qwen2 and Qwen2.5: a llama with biases on query, key and value.

use super::config::ModelConfig;
use super::family::Family;
use crate::error::Result;
use crate::models::fields::{Fields, Key};

pub const FAMILY: Family = Family {
    name: "qwen2",
    model_types: &["qwen2"],
    gguf_architectures: &["qwen2"],
    describe: set_upper_windows,
    ..Family::BASE
};

/// Windows, where they are used at all, begin at a certain layer.
pub(super) fn set_upper_windows(fields: &Fields, config: &mut ModelConfig) -> Result<()> {
    let is_used = fields.boolean(Key { json: "use_sliding_window", gguf: "" })?.unwrap_or(false);
    let first = fields.integer(Key { json: "max_window_layers", gguf: "" })?.unwrap_or(28);
    config.set_windows(fields, |layer| is_used && layer >= first)
}
