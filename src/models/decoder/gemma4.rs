//! Gemma 4's language model: Gemma 3 with normed values and unscaled scores, other heads in layers without a window, and
//! a factor of each layer's output. Small models have inputs of each layer (E2B, E4B) and last layers that read the keys
//! and values of others; large ones have layers whose values are their keys (31B), and some a mixture of experts beside
//! the dense MLP (26B-A4B).

use super::config::{HEAD_DIM, KvHeads, KvSource, LayerConfig, ModelConfig, MoeConfig, N_KV_HEADS};
use super::family::DecoderFamily;
use super::gemma3;
use super::layout::{DecoderLayout, DenseMoENames, ExpertNames, PerLayerInputNames};
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{
    CheckpointLayouts, FULL_ATTENTION, INTERMEDIATE_SIZE, SLIDING_ATTENTION, impossible,
};
use crate::models::rope::{ROPE_PARAMETERS, Rope, RopeScaling};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "gemma4",
    model_types: &["gemma4_text", "gemma4"],
    gguf_architectures: &["gemma4"],
    json_defaults: &[
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("global_head_dim", 512.0),
        ("vocab_size", 262_144.0),
        ("max_position_embeddings", 131_072.0),
        ("sliding_window", 512.0),
        ("rms_norm_eps", 1e-6),
        ("hidden_size_per_layer_input", 256.0),
    ],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            router: "router.proj",
            experts: ExpertNames::Fused { gate_up: "experts.gate_up_proj", down: "experts.down_proj" },
            dense_moe: Some(DenseMoENames {
                dense_post_norm: "post_feedforward_layernorm_1",
                moe_norm: "pre_feedforward_layernorm_2",
                moe_post_norm: "post_feedforward_layernorm_2",
                router_scale: "router.scale",
                expert_scales: "router.per_expert_scale",
            }),
            per_layer_input: Some(SAFETENSORS_PER_LAYER_INPUT),
            output_scale: Some("layer_scalar"),
            norm_offset: 0.0,
            final_norm_offset: 0.0,
            ..gemma3::FAMILY.layouts.safetensors
        },
        gguf: DecoderLayout {
            experts: ExpertNames::Fused { gate_up: "ffn_gate_up_exps.weight", down: "ffn_down_exps.weight" },
            dense_moe: Some(DenseMoENames {
                dense_post_norm: "post_ffw_norm_1",
                moe_norm: "pre_ffw_norm_2",
                moe_post_norm: "post_ffw_norm_2",
                router_scale: "ffn_gate_inp.scale",
                expert_scales: "ffn_down_exps.scale",
            }),
            per_layer_input: Some(GGUF_PER_LAYER_INPUT),
            output_scale: Some("layer_output_scale.weight"),
            ..gemma3::FAMILY.layouts.gguf
        },
    },
};

pub(super) const SAFETENSORS_PER_LAYER_INPUT: PerLayerInputNames = PerLayerInputNames {
    embedding: "model.embed_tokens_per_layer",
    projection: "model.per_layer_model_projection",
    projection_norm: "model.per_layer_projection_norm",
    gate: "per_layer_input_gate",
    output: "per_layer_projection",
    post_norm: "post_per_layer_input_norm",
};

pub(super) const GGUF_PER_LAYER_INPUT: PerLayerInputNames = PerLayerInputNames {
    embedding: "per_layer_token_embd",
    projection: "per_layer_model_proj",
    projection_norm: "per_layer_proj_norm",
    gate: "inp_gate",
    output: "proj",
    post_norm: "post_norm",
};

const GLOBAL_HEAD_DIM: ConfigKey = ConfigKey::json("global_head_dim");
const N_GLOBAL_KV_HEADS: ConfigKey = ConfigKey::json("num_global_key_value_heads");
/// The object of `config.json` in which newer files state the settings of layers that differ from the others.
const LAYER_SETTINGS: &str = "per_layer_config";
const SLIDING_HEAD_DIM: ConfigKey = ConfigKey::gguf("attention.key_length_swa");
const SLIDING_ROTARY_DIM: ConfigKey = ConfigKey::gguf("rope.dimension_count_swa");
const SLIDING_THETA: ConfigKey = ConfigKey::gguf("rope.freq_base_swa");
const KEYS_AS_VALUES: ConfigKey = ConfigKey::json("attention_k_eq_v");
const N_SHARED_LAYERS: ConfigKey = ConfigKey::new("num_kv_shared_layers", "attention.shared_kv_layers");
const DOUBLE_WIDE_MLP: ConfigKey = ConfigKey::json("use_double_wide_mlp");
const PER_LAYER_INPUT_SIZE: ConfigKey =
    ConfigKey::new("hidden_size_per_layer_input", "embedding_length_per_layer_input");
const LOGIT_SOFTCAP: ConfigKey = ConfigKey::new("final_logit_softcapping", "final_logit_softcapping");
const HAS_MOE: ConfigKey = ConfigKey::json("enable_moe_block");
const N_EXPERTS: ConfigKey = ConfigKey::gguf("expert_count");

/// The distance between two layers without a window.
const PATTERN: usize = 6;

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.set_windows(checkpoint, |layer| !(layer + 1).is_multiple_of(PATTERN))?;
    if let (CheckpointConfig::Json(_), Some(last)) = (checkpoint, config.layers.last_mut()) {
        last.window = None;
    }
    set_heads(checkpoint, config)?;
    set_ropes(checkpoint, config)?;
    set_values(checkpoint, config)?;
    set_gemma3n_parts(checkpoint, config)?;
    if checkpoint.boolean(DOUBLE_WIDE_MLP)?.unwrap_or(false) {
        let width = 2 * config.intermediate_size;
        let is_shared = |kv_source| matches!(kv_source, KvSource::Layer(_));
        config.layers.iter_mut().filter(|layer| is_shared(layer.kv_source)).for_each(|layer| {
            layer.intermediate_size = Some(width);
        });
    }
    let has_experts = checkpoint.integer(N_EXPERTS)?.is_some_and(|n_experts| n_experts > 0);
    if checkpoint.boolean(HAS_MOE)?.unwrap_or(has_experts) {
        config.moe = Some(MoeConfig { has_dense_mlp: true, ..MoeConfig::from_checkpoint(checkpoint)? });
        config.layers.iter_mut().for_each(|layer| layer.is_moe = true);
    }
    Ok(())
}

/// Sets what Gemma 3n and 4 have in common: activation function, scales, inputs of layers, widths of MLPs, and the layers
/// that read the keys and values of others.
pub(super) fn set_gemma3n_parts(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.activation = ActivationFn::GeluTanh;
    config.embedding_scale = Some((config.hidden_size as f64).sqrt());
    config.attention_scale = 1.0;
    config.normed_values = true;
    config.logit_softcap = checkpoint.float(LOGIT_SOFTCAP)?;
    config.per_layer_input_size = checkpoint.integer(PER_LAYER_INPUT_SIZE)?.filter(|&size| size > 0);
    let widths = checkpoint.per_layer(INTERMEDIATE_SIZE)?.unwrap_or_default();
    for (layer, width) in config.layers.iter_mut().zip(widths) {
        layer.intermediate_size = Some(width);
    }
    let n_shared = checkpoint.integer(N_SHARED_LAYERS)?.unwrap_or(0);
    let n_own = config.layers.len().saturating_sub(n_shared);
    for idx in n_own..config.layers.len() {
        let kind = |layer: &LayerConfig| (layer.window, layer.kv_heads);
        let own_kind = kind(&config.layers[idx]);
        let source = config.layers[..n_own].iter().rposition(|layer| kind(layer) == own_kind);
        let source = source.ok_or_else(|| {
            impossible(format_args!("no keys and values for layer {idx}, which has none of its own"))
        })?;
        config.layers[idx].kv_source = KvSource::Layer(source);
    }
    Ok(())
}

/// Sets the heads of keys and values in each layer.
fn set_heads(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let n_listed = checkpoint.per_layer(N_KV_HEADS)?;
    let n_global = match checkpoint.boolean(KEYS_AS_VALUES)? {
        Some(true) => checkpoint.integer(N_GLOBAL_KV_HEADS)?,
        _ => None,
    };
    let sliding_dim = checkpoint.integer(SLIDING_HEAD_DIM)?.unwrap_or(config.head_dim);
    let global_dim = checkpoint.integer(GLOBAL_HEAD_DIM)?.unwrap_or(config.head_dim);
    let settings = checkpoint.object(LAYER_SETTINGS);
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        let listed = n_listed.as_ref().and_then(|list| list.get(idx).copied());
        let mut heads = match layer.window {
            Some(_) => KvHeads { n_kv_heads: config.n_kv_heads, head_dim: sliding_dim },
            None => KvHeads { n_kv_heads: n_global.unwrap_or(config.n_kv_heads), head_dim: global_dim },
        };
        heads.n_kv_heads = listed.unwrap_or(heads.n_kv_heads);
        if let Some(own) = settings.and_then(|layers| layers.get(&idx.to_string())?.as_object()) {
            let own = CheckpointConfig::Json(own);
            heads.n_kv_heads = own.integer(N_KV_HEADS)?.unwrap_or(heads.n_kv_heads);
            heads.head_dim = own.integer(HEAD_DIM)?.unwrap_or(heads.head_dim);
        }
        layer.kv_heads = Some(heads);
    }
    Ok(())
}

/// Sets the rotary embedding of each layer.
fn set_ropes(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let has_parameters = checkpoint.object(ROPE_PARAMETERS).is_some();
    for layer in &mut config.layers {
        let Some(KvHeads { head_dim, .. }) = layer.kv_heads else { continue };
        let is_sliding = layer.window.is_some();
        let kind = if is_sliding { SLIDING_ATTENTION } else { FULL_ATTENTION };
        let plain = |theta: f64, rotary_dim: usize| Rope {
            theta,
            rotary_dim,
            scaling: RopeScaling::None,
            attention_factor: 1.0,
        };
        layer.rope = Some(match checkpoint {
            CheckpointConfig::Gguf { .. } if is_sliding => plain(
                checkpoint.float(SLIDING_THETA)?.unwrap_or(10_000.0),
                checkpoint.integer(SLIDING_ROTARY_DIM)?.unwrap_or(head_dim),
            ),
            CheckpointConfig::Json(_) if !has_parameters && is_sliding => plain(10_000.0, head_dim),
            CheckpointConfig::Json(_) if !has_parameters => Rope::proportional(1e6, head_dim, 0.25, 1.0),
            _ => Rope::from_checkpoint(checkpoint, head_dim, kind)?,
        });
    }
    Ok(())
}

/// Sets the layers whose values are their keys. GGUF files do not say: they lack the projections to values.
fn set_values(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let is_stated = checkpoint.boolean(KEYS_AS_VALUES)?.unwrap_or(false);
    for (idx, layer) in config.layers.iter_mut().enumerate().filter(|(_, layer)| layer.window.is_none()) {
        if is_stated || checkpoint.lacks_tensor(&format!("blk.{idx}.attn_v.weight")) {
            layer.kv_source = KvSource::KeyProjection;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::models::decoder::{KvGroup, LayerPlace};

    /// Layers with (S) and without (F) a window: S F S F, of which the last two read the keys and values of the first two.
    fn config(changes: &Value) -> Result<ModelConfig> {
        let mut settings = json!({
            "model_type": "gemma4_text", "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "global_head_dim": 8,
            "num_global_key_value_heads": 1, "attention_k_eq_v": true, "vocab_size": 10, "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "num_kv_shared_layers": 2, "use_double_wide_mlp": true,
        });
        let settings_object = settings.as_object_mut().unwrap();
        settings_object.extend(changes.as_object().unwrap().clone());
        ModelConfig::from_json(settings.to_string().as_bytes())
    }

    const SLIDING: KvHeads = KvHeads { n_kv_heads: 2, head_dim: 4 };
    const FULL: KvHeads = KvHeads { n_kv_heads: 1, head_dim: 8 };

    #[test]
    fn layers_that_read_the_keys_and_values_of_others_have_no_cache() {
        let config = config(&json!({})).unwrap();
        let groups = [
            KvGroup { window: None, heads: FULL, n_layers: 1 },
            KvGroup { window: Some(16), heads: SLIDING, n_layers: 1 },
        ];
        assert_eq!(config.kv_groups(), groups);
        let groups: Vec<usize> = config.layer_places().iter().map(|place| place.kv_group).collect();
        assert_eq!(groups, [1, 0, 1, 0]);
        assert!(config.layer_places().iter().all(|LayerPlace { kv_layer, .. }| *kv_layer == 0));
        let sources =
            [KvSource::Projections, KvSource::KeyProjection, KvSource::Layer(0), KvSource::Layer(1)];
        assert_eq!(config.layers.iter().map(|layer| layer.kv_source).collect::<Vec<_>>(), sources);
        let widths: Vec<Option<usize>> = config.layers.iter().map(|layer| layer.intermediate_size).collect();
        assert_eq!(widths, [None, None, Some(12), Some(12)]);
        assert_eq!(config.per_layer_input_size, Some(256));
    }

    #[test]
    fn layers_of_one_window_with_other_heads_are_groups_of_their_own() {
        let changes = json!({ "num_kv_shared_layers": 0, "per_layer_config": { "2": { "head_dim": 6 } } });
        let config = config(&changes).unwrap();
        let other = KvHeads { head_dim: 6, ..SLIDING };
        let groups = [
            KvGroup { window: None, heads: FULL, n_layers: 2 },
            KvGroup { window: Some(16), heads: SLIDING, n_layers: 1 },
            KvGroup { window: Some(16), heads: other, n_layers: 1 },
        ];
        assert_eq!(config.kv_groups(), groups);
    }

    #[test]
    fn both_forms_of_the_heads_of_layers_are_read() {
        let full = json!({ "head_dim": 8, "num_key_value_heads": 1 });
        let changes = json!({
            "global_head_dim": null, "num_global_key_value_heads": null,
            "per_layer_config": { "1": full, "3": full },
        });
        assert_eq!(config(&changes).unwrap().layers, config(&json!({})).unwrap().layers);
    }

    #[test]
    fn a_layer_without_a_source_of_keys_and_values_is_refused() {
        let kinds = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"];
        let error = config(&json!({ "layer_types": kinds })).unwrap_err();
        assert!(error.to_string().contains("layer 3"), "{error}");
        let error = config(&json!({ "num_global_key_value_heads": 3 })).unwrap_err();
        assert!(error.to_string().contains("impossible"), "{error}");
    }
}
