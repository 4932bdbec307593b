//! Qwen2 and Qwen2.5: llama with biases in the query, key and value projections.

use super::config::ModelConfig;
use super::family::DecoderFamily;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "qwen2",
    model_types: &["qwen2"],
    gguf_architectures: &["qwen2"],
    describe: set_upper_windows,
    ..DecoderFamily::BASE
};

const WINDOW_ENABLED: ConfigKey = ConfigKey::json("use_sliding_window");
const FIRST_WINDOW_LAYER: ConfigKey = ConfigKey::json("max_window_layers");

/// Sets the attention window, if it is enabled, from a certain layer on.
pub(super) fn set_upper_windows(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let is_enabled = checkpoint.boolean(WINDOW_ENABLED)?.unwrap_or(false);
    let first = checkpoint.integer(FIRST_WINDOW_LAYER)?.unwrap_or(28);
    config.set_windows(checkpoint, |layer| is_enabled && layer >= first)
}
