//! RoBERTa and XLM-RoBERTa: BERT whose positions begin behind the padding token's id, with a head
//! of their own. GGUF files call it `bert` and have cut the positions.

use super::bert;
use super::config::EncoderConfig;
use super::family::{EncoderFamily, EncoderLayout, HeadLayout};
use crate::error::Result;
use crate::models::fields::Fields;
use crate::models::layers::activation::Activation;

pub const FAMILY: EncoderFamily = EncoderFamily {
    name: "roberta",
    model_types: &["xlm-roberta", "roberta", "camembert"],
    gguf_architectures: &[],
    describe: positions_behind_padding,
    safetensors: EncoderLayout { prefix: "roberta.", head: Some(HEAD), ..bert::FAMILY.safetensors },
    ..bert::FAMILY
};

pub(super) const HEAD: HeadLayout = HeadLayout {
    dense: "classifier.dense",
    activation: Activation::Tanh,
    norm: None,
    output: "classifier.out_proj",
};

pub(super) fn positions_behind_padding(fields: &Fields, config: &mut EncoderConfig) -> Result<()> {
    config.set_positions_behind_padding(fields, 1)
}
