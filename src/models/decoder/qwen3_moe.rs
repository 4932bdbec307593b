//! Qwen3 with mixtures of experts in place of dense MLPs.

use serde_json::Value;

use super::config::{Experts, ModelConfig};
use super::family::Family;
use super::qwen2::set_upper_windows;
use super::qwen3;
use crate::error::Result;
use crate::models::fields::{Fields, Key};

pub const FAMILY: Family = Family {
    name: "qwen3-moe",
    model_types: &["qwen3_moe"],
    gguf_architectures: &["qwen3moe"],
    describe,
    ..qwen3::FAMILY
};

const N_EXPERTS: Key = Key { json: "num_experts", gguf: "expert_count" };
/// Its name since `transformers` 5.
const N_LOCAL_EXPERTS: Key = Key { json: "num_local_experts", gguf: "expert_count" };
const N_USED: Key = Key { json: "num_experts_per_tok", gguf: "expert_used_count" };
const INTERMEDIATE_SIZE: Key = Key { json: "moe_intermediate_size", gguf: "expert_feed_forward_length" };

fn describe(fields: &Fields, config: &mut ModelConfig) -> Result<()> {
    set_upper_windows(fields, config)?;
    config.experts = Some(Experts {
        n_experts: match fields.integer(N_EXPERTS)? {
            Some(n_experts) => n_experts,
            None => fields.required(N_LOCAL_EXPERTS)?,
        },
        n_used: fields.required(N_USED)?,
        intermediate_size: fields.required(INTERMEDIATE_SIZE)?,
        normalizes: fields.boolean(Key { json: "norm_topk_prob", gguf: "" })?.unwrap_or(true),
    });
    let step = fields.integer(Key { json: "decoder_sparse_step", gguf: "" })?.unwrap_or(1).max(1);
    let dense = fields.array("mlp_only_layers").unwrap_or_default();
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        layer.is_mixture = (idx + 1).is_multiple_of(step) && !dense.contains(&Value::from(idx));
    }
    Ok(())
}
