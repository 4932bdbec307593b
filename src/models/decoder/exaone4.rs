//! EXAONE 4: norms after attention and MLP as in OLMo 2, and a norm of each query and key head. The 32B model has a
//! window in three of four layers, and no rotary embedding (NoPE) in the others.

use super::config::ModelConfig;
use super::family::DecoderFamily;
use super::olmo;
use crate::error::Result;
use crate::models::checkpoint_config::CheckpointConfig;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "exaone4",
    model_types: &["exaone4"],
    gguf_architectures: &["exaone4"],
    describe,
    layouts: olmo::LAYOUTS,
    ..DecoderFamily::BASE
};

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.set_windows(checkpoint, |layer| !(layer + 1).is_multiple_of(4))?;
    if config.layers.iter().any(|layer| layer.window.is_some()) {
        config.layers.iter_mut().filter(|layer| layer.window.is_none()).for_each(|layer| layer.rope = None);
    }
    Ok(())
}
