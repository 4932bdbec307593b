//! SmolLM3: a llama in which some layers do not rotate queries and keys.

use super::config::ModelConfig;
use super::family::{Family, Layout};
use crate::error::Result;
use crate::models::fields::{Fields, Key};

pub const FAMILY: Family = Family {
    name: "smollm3",
    model_types: &["smollm3"],
    gguf_architectures: &["smollm3"],
    describe,
    gguf: Layout { interleaves_heads: true, ..Layout::GGUF },
    ..Family::BASE
};

/// Every so many layers one does not rotate.
const INTERVAL: Key = Key { json: "no_rope_layer_interval", gguf: "" };

fn describe(fields: &Fields, config: &mut ModelConfig) -> Result<()> {
    let interval = fields.integer(INTERVAL)?.unwrap_or(4).max(1);
    // In spite of its name it says 1 for the layers that rotate.
    let rotates = fields.array("no_rope_layers");
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        let is_rotated = match rotates.and_then(|rotates| rotates.get(idx)) {
            Some(flag) => flag.as_u64() != Some(0),
            None => !(idx + 1).is_multiple_of(interval),
        };
        if !is_rotated {
            layer.rope = None;
        }
    }
    Ok(())
}
