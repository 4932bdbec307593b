//! Mistral: llama, with a sliding attention window in the first versions. In GGUF files its architecture is
//! `llama`, or `mistral3` since Ministral.

use super::family::DecoderFamily;
use super::llama;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "mistral",
    model_types: &["mistral"],
    gguf_architectures: &["mistral"],
    layouts: llama::LAYOUTS,
    ..DecoderFamily::BASE
};
