//! The decoder: one implementation for all families, described by a [`ModelConfig`] and by the tensor
//! names of a [`DecoderFamily`].

mod attention;
mod causal_lm;
pub(super) mod config;
mod deepseek;
mod ernie4_5;
mod exaone4;
mod falcon_h1;
mod family;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod gemma_loader;
mod gpt_oss;
mod granite;
mod granite_hybrid;
mod hunyuan;
mod latent_attention;
mod latent_config;
mod latent_loader;
mod layer;
mod layer_context;
mod layout;
mod lfm2;
mod llama;
mod loader;
mod mamba2;
mod ministral3;
mod mistral;
mod mixtral;
mod muse_glimmer;
mod nemotron_h;
mod olmo;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod recurrent_loader;
mod smollm3;

use serde::Deserialize;
use serde_json::{Map, Value};

pub use causal_lm::{CausalLm, OpCost};
pub use config::{
    AltUpConfig, KvGroup, KvHeads, KvSource, LayerConfig, LayerPlace, ModelConfig, MoeConfig, QkNorm,
    ScoreGrowth,
};
pub use family::DecoderFamily;

use self::config::TokenIds;
use super::checkpoint_config::CheckpointConfig;
use super::family::{N_VOCAB, find_family};
use super::load::GgufFile;
use crate::error::{Error, Result};

/// All families, in the order of their modules.
const FAMILIES: [&DecoderFamily; 31] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &smollm3::FAMILY,
    &mixtral::FAMILY,
    &gemma::FAMILY,
    &granite::FAMILY,
    &olmo::FAMILY,
    &exaone4::FAMILY,
    &hunyuan::FAMILY,
    &ernie4_5::FAMILY,
    &ministral3::FAMILY,
    &qwen2_moe::FAMILY,
    &muse_glimmer::FAMILY,
    &gpt_oss::FAMILY,
    &qwen3_5::FAMILY,
    &qwen3_5::MOE_FAMILY,
    &qwen3_next::FAMILY,
    &lfm2::FAMILY,
    &granite_hybrid::FAMILY,
    &nemotron_h::FAMILY,
    &falcon_h1::FAMILY,
    &gemma4::FAMILY,
    &deepseek::FAMILY,
    &deepseek::V3_FAMILY,
    &gemma3n::FAMILY,
];

/// The word for these models in error messages.
const KIND: &str = "models";

impl ModelConfig {
    /// Reads the configuration from the metadata of a GGUF file.
    ///
    /// # Errors
    /// When the family is unknown, a setting is missing or of the wrong type, or the sizes
    /// contradict each other.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let architecture = file.architecture()?;
        let family = find_family(&FAMILIES, KIND, architecture, |family| family.gguf_architectures)?;
        let n_vocab = file.n_rows(&format!("{}.weight", family.layouts.gguf.embedding))?;
        let config = family.config(&CheckpointConfig::Gguf { file, architecture }, n_vocab)?;
        let token = |key| file.metadata().token_id(key);
        Ok(Self {
            bos_token_id: token("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: token("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
            ..config
        })
    }

    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// When the file is malformed, the family is unknown, a setting is missing or of the wrong type, or the
    /// sizes contradict each other.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let root: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|e| Error::model(format!("cannot read config.json: {e}")))?;
        // Multimodal models have an object of their own for the language model.
        let mut settings = root.get("text_config").and_then(Value::as_object).unwrap_or(&root).clone();
        let model_type = settings.get("model_type").or(root.get("model_type")).and_then(Value::as_str);
        let model_type = model_type.ok_or_else(|| Error::model("config.json has no `model_type`"))?;
        let family = find_family(&FAMILIES, KIND, model_type, |family| family.model_types)?;
        for (name, default) in family.json_defaults {
            let is_integer = default.fract() == 0.0;
            let default = || if is_integer { Value::from(*default as u64) } else { Value::from(*default) };
            settings.entry(*name).or_insert_with(default);
        }
        let token_ids = |name: &str| match settings.get(name).or(root.get(name)) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(value) => TokenIds::deserialize(value)
                .map(TokenIds::into_vec)
                .map_err(|_| Error::model(format!("`{name}` of config.json is not a token id"))),
        };
        let (bos, eos) = (token_ids("bos_token_id")?, token_ids("eos_token_id")?);
        let checkpoint = CheckpointConfig::Json(&settings);
        let n_vocab = checkpoint.required(N_VOCAB)?;
        let config = family.config(&checkpoint, n_vocab)?;
        Ok(Self { bos_token_id: bos.first().copied(), eos_token_ids: eos, ..config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_refused() {
        let json = |heads: usize, kv: usize| {
            format!(
                r#"{{"model_type":"llama","hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":{heads},
                "num_key_value_heads":{kv},"vocab_size":10,"max_position_embeddings":128,"rms_norm_eps":1e-5}}"#
            )
        };
        assert!(ModelConfig::from_json(json(4, 2).as_bytes()).is_ok());
        for (heads, kv) in [(4, 3), (0, 1), (4, 0), (3, 3)] {
            let error = ModelConfig::from_json(json(heads, kv).as_bytes()).unwrap_err();
            assert!(error.to_string().contains("impossible"), "{error}");
        }
    }
}
