//! SmolLM3: llama in which some layers have no rotary embedding (NoPE).

use super::config::ModelConfig;
use super::family::DecoderFamily;
use super::llama;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "smollm3",
    model_types: &["smollm3"],
    gguf_architectures: &["smollm3"],
    describe,
    layouts: llama::LAYOUTS,
    ..DecoderFamily::BASE
};

/// The distance between two layers without rotary embedding.
const NOPE_INTERVAL: ConfigKey = ConfigKey::json("no_rope_layer_interval");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let interval = checkpoint.integer(NOPE_INTERVAL)?.unwrap_or(4).max(1);
    // In spite of the name, 1 stands for a layer with rotary embedding.
    let rope_flags = checkpoint.array("no_rope_layers");
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        let has_rope = match rope_flags.and_then(|flags| flags.get(idx)) {
            Some(flag) => flag.as_u64() != Some(0),
            None => !(idx + 1).is_multiple_of(interval),
        };
        if !has_rope {
            layer.rope = None;
        }
    }
    Ok(())
}
