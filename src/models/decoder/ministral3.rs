//! Ministral 3: Mistral with attention scores that grow with the position, as in Llama 4.

use super::config::{ModelConfig, ScoreGrowth};
use super::family::DecoderFamily;
use super::llama;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::rope::{ORIGINAL_CONTEXT, ROPE_PARAMETERS};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "ministral3",
    model_types: &["ministral3"],
    gguf_architectures: &["mistral3"],
    describe,
    layouts: llama::LAYOUTS,
    ..DecoderFamily::BASE
};

const GROWTH: ConfigKey = ConfigKey::new("llama_4_scaling_beta", "attention.temperature_scale");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    // `config.json` has both among the parameters of the rotary embedding.
    let rope = checkpoint.object(ROPE_PARAMETERS).map(CheckpointConfig::Json);
    let settings = rope.as_ref().unwrap_or(checkpoint);
    if let Some(beta) = settings.float(GROWTH)? {
        let original_context = settings.float(ORIGINAL_CONTEXT)?.filter(|&length| length > 0.0);
        let original_context = original_context.ok_or_else(|| settings.missing(ORIGINAL_CONTEXT))?;
        let score_growth = Some(ScoreGrowth { beta, original_context });
        config.layers.iter_mut().for_each(|layer| layer.score_growth = score_growth);
    }
    Ok(())
}
