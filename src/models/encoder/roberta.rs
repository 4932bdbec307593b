//! RoBERTa and XLM-RoBERTa: BERT whose positions begin after the padding token's id, with a head
//! of its own. In GGUF files its architecture is `bert`, and the position table begins at the first used row.

use super::bert;
use super::config::EncoderConfig;
use super::family::EncoderFamily;
use super::layout::{EncoderLayout, HeadLayout};
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::CheckpointConfig;
use crate::models::family::CheckpointLayouts;

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "roberta",
    model_types: &["xlm-roberta", "roberta", "camembert"],
    gguf_architectures: &[],
    describe: set_positions,
    layouts: CheckpointLayouts {
        safetensors: EncoderLayout {
            prefix: "roberta.",
            head: Some(HEAD),
            ..bert::FAMILY.layouts.safetensors
        },
        ..bert::FAMILY.layouts
    },
    ..bert::FAMILY
};

pub(super) const HEAD: HeadLayout = HeadLayout {
    dense: "classifier.dense",
    activation: ActivationFn::Tanh,
    norm: None,
    output: "classifier.out_proj",
};

pub(super) fn set_positions(checkpoint: &CheckpointConfig, config: &mut EncoderConfig) -> Result<()> {
    config.set_positions_after_padding(checkpoint, 1)
}
