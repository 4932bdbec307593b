//! DeepSeek-V2, DeepSeek-V3 and GLM-4.7-Flash: multi-head latent attention, and mixtures of experts with shared experts.
//! In GGUF files all of them have one architecture.

use super::config::{ModelConfig, MoeConfig};
use super::family::DecoderFamily;
use super::layout::{DecoderLayout, SharedExpertNames};
use crate::error::{Error, Result};
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, GateUp};
use crate::models::layers::mlp::{ExpertGroups, ExpertScore};
use crate::models::rope::ROPE_PARAMETERS;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "deepseek-v2",
    model_types: &["deepseek_v2"],
    gguf_architectures: &["deepseek2"],
    describe: |checkpoint, config| describe(checkpoint, config, ExpertScore::Softmax),
    layouts: LAYOUTS,
    ..DecoderFamily::BASE
};

/// The models whose experts have sigmoid scores.
pub const V3_FAMILY: DecoderFamily = DecoderFamily {
    name: "deepseek-v3",
    model_types: &["deepseek_v3", "glm4_moe_lite"],
    gguf_architectures: &[],
    describe: |checkpoint, config| describe(checkpoint, config, ExpertScore::Sigmoid),
    ..FAMILY
};

const LAYOUTS: CheckpointLayouts<DecoderLayout> = CheckpointLayouts {
    safetensors: DecoderLayout {
        score_bias: Some("mlp.gate.e_score_correction_bias"),
        shared_expert: SharedExpertNames {
            gate_up: GateUp::Split { gate: "mlp.shared_experts.gate_proj", up: "mlp.shared_experts.up_proj" },
            down: "mlp.shared_experts.down_proj",
            output_gate: None,
        },
        ..DecoderLayout::SAFETENSORS
    },
    gguf: DecoderLayout {
        shared_expert: SharedExpertNames { output_gate: None, ..DecoderLayout::GGUF.shared_expert },
        ..DecoderLayout::GGUF
    },
};

/// The multiplier of YaRN's `mscale`, by whose square attention scores are scaled. GGUF files have a tenth of it.
const SCORE_MSCALE: ConfigKey = ConfigKey::new("mscale_all_dim", "rope.scaling.yarn_log_multiplier");
const N_EXPERTS: ConfigKey = ConfigKey::new("n_routed_experts", "expert_count");
const N_SHARED_EXPERTS: ConfigKey = ConfigKey::new("n_shared_experts", "expert_shared_count");
const N_GROUPS: ConfigKey = ConfigKey::new("n_group", "expert_group_count");
const GROUPS_PER_TOKEN: ConfigKey = ConfigKey::new("topk_group", "expert_group_used_count");
const CHOICE: ConfigKey = ConfigKey::json("topk_method");
const SCORING: ConfigKey = ConfigKey::json("scoring_func");
const SCORING_CODE: ConfigKey = ConfigKey::gguf("expert_gating_func");
const NORMALIZE_WEIGHTS: ConfigKey = ConfigKey::new("norm_topk_prob", "expert_weights_norm");
const N_DENSE_LAYERS: ConfigKey = ConfigKey::new("first_k_dense_replace", "leading_dense_block_count");
const SPARSE_STEP: ConfigKey = ConfigKey::json("moe_layer_freq");
/// The kinds of all MLPs, in place of the two settings before.
const MLP_KINDS: &str = "mlp_layer_types";

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig, scoring: ExpertScore) -> Result<()> {
    if config.latent_attention.is_none() {
        return Err(Error::model("the model has no latent attention; such variants are not supported"));
    }
    scale_scores(checkpoint, config)?;
    if checkpoint.integer(N_EXPERTS)?.is_none_or(|n_experts| n_experts == 0) {
        return Ok(());
    }
    set_moe_layers(checkpoint, config)?;
    let mut moe = MoeConfig::from_checkpoint(checkpoint)?;
    moe.shared_intermediate_size = checkpoint
        .integer(N_SHARED_EXPERTS)?
        .filter(|&n_shared| n_shared > 0)
        .map(|n_shared| n_shared.saturating_mul(moe.intermediate_size));
    moe.routing.scoring = read_scoring(checkpoint, config, scoring)?;
    // GGUF files and the first models have no such setting where weights are not normalized.
    let default = matches!(checkpoint, CheckpointConfig::Json(_)) && scoring == ExpertScore::Sigmoid;
    moe.routing.normalize_weights = checkpoint.boolean(NORMALIZE_WEIGHTS)?.unwrap_or(default);
    if checkpoint.string(CHOICE)? != Some("greedy")
        && let Some(n_groups) = checkpoint.integer(N_GROUPS)?.filter(|&n_groups| n_groups > 1)
    {
        let groups_per_token = checkpoint.required(GROUPS_PER_TOKEN)?;
        moe.routing.groups = Some(ExpertGroups { n_groups, groups_per_token });
    }
    config.moe = Some(moe);
    Ok(())
}

/// Scales attention scores as YaRN wants it in these models.
fn scale_scores(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    // `config.json` has the multiplier among the parameters of the rotary embedding.
    let rope = checkpoint.object(ROPE_PARAMETERS).or(checkpoint.object("rope_scaling"));
    let rope = rope.map(CheckpointConfig::Json);
    let stored = rope.as_ref().unwrap_or(checkpoint).float(SCORE_MSCALE)?;
    let Some(stored) = stored.filter(|&multiplier| multiplier != 0.0) else { return Ok(()) };
    let is_gguf = matches!(checkpoint, CheckpointConfig::Gguf { .. });
    let multiplier = if is_gguf { 10.0 * stored } else { stored };
    let ropes = config.layers.iter_mut().filter_map(|layer| layer.rope.as_mut());
    let mut mscale = 1.0;
    for rope in ropes {
        mscale = rope.mscale(multiplier);
        // GGUF files have one multiplier for rotated keys and for all scores, so that the two factors cancel out.
        if is_gguf {
            rope.attention_factor = 1.0;
        }
    }
    config.attention_scale *= mscale * mscale;
    Ok(())
}

fn set_moe_layers(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let kinds = checkpoint.array(MLP_KINDS);
    let n_dense = checkpoint.integer(N_DENSE_LAYERS)?.unwrap_or(0);
    let step = checkpoint.integer(SPARSE_STEP)?.unwrap_or(1).max(1);
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        layer.is_moe = match kinds.and_then(|kinds| kinds.get(idx)) {
            Some(kind) => kind == "sparse",
            None => idx >= n_dense && idx.is_multiple_of(step),
        };
    }
    Ok(())
}

/// The function that makes scores, `default` where a `config.json` does not say.
fn read_scoring(
    checkpoint: &CheckpointConfig,
    config: &ModelConfig,
    default: ExpertScore,
) -> Result<ExpertScore> {
    let unsupported = |function: &dyn std::fmt::Display| {
        Error::model(format!("expert scores by `{function}` are not supported; supported: softmax, sigmoid"))
    };
    match (checkpoint.string(SCORING)?, checkpoint.integer(SCORING_CODE)?) {
        (Some("softmax"), _) | (None, Some(1)) => Ok(ExpertScore::Softmax),
        (Some("sigmoid"), _) | (None, Some(2)) => Ok(ExpertScore::Sigmoid),
        (Some(other), _) => Err(unsupported(&other)),
        (None, Some(other)) if other > 0 => Err(unsupported(&other)),
        _ if matches!(checkpoint, CheckpointConfig::Json(_)) => Ok(default),
        // Older GGUF files do not say; only models with sigmoid scores have addends of scores.
        _ => {
            let first = config.layers.iter().position(|layer| layer.is_moe).unwrap_or_default();
            let has_bias = checkpoint.vector(&format!("blk.{first}.exp_probs_b.bias"))?.is_some();
            Ok(if has_bias { ExpertScore::Sigmoid } else { ExpertScore::Softmax })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(model_type: &str, settings: &str) -> Result<ModelConfig> {
        let json = format!(
            r#"{{"model_type":"{model_type}","hidden_size":40,"intermediate_size":8,"num_hidden_layers":4,
            "num_attention_heads":8,"vocab_size":10,"max_position_embeddings":128,"rms_norm_eps":1e-5,
            "kv_lora_rank":16,"qk_nope_head_dim":8,"qk_rope_head_dim":4,"v_head_dim":6,"n_routed_experts":8,
            "moe_intermediate_size":4,"n_shared_experts":2,"first_k_dense_replace":1,
            "num_experts_per_tok":2,"n_group":4{settings}}}"#
        );
        ModelConfig::from_json(json.as_bytes())
    }

    #[test]
    fn tokens_are_routed_as_the_settings_say() {
        let greedy = config("deepseek_v2", r#","topk_method":"greedy","topk_group":2"#).unwrap();
        let moe = greedy.moe.unwrap();
        assert_eq!((moe.intermediate_size, moe.shared_intermediate_size), (4, Some(8)));
        assert_eq!((moe.routing.scoring, moe.routing.groups), (ExpertScore::Softmax, None));
        assert!(!moe.routing.normalize_weights);
        let is_moe =
            |config: &ModelConfig| config.layers.iter().map(|layer| layer.is_moe).collect::<Vec<_>>();
        assert_eq!(is_moe(&greedy), [false, true, true, true]);

        let v3 =
            config("deepseek_v3", r#","topk_method":"noaux_tc","topk_group":2,"moe_layer_freq":2"#).unwrap();
        let routing = v3.moe.unwrap().routing;
        assert_eq!(routing.scoring, ExpertScore::Sigmoid);
        assert_eq!(routing.groups, Some(ExpertGroups { n_groups: 4, groups_per_token: 2 }));
        assert!(routing.normalize_weights);
        assert_eq!(is_moe(&v3), [false, false, true, false]);

        for impossible in
            [r#","topk_group":5"#, r#","topk_group":0"#, r#","topk_group":1,"num_experts_per_tok":3"#]
        {
            assert!(config("deepseek_v3", impossible).is_err(), "{impossible}");
        }
    }

    #[test]
    fn scores_are_scaled_by_the_width_of_queries_and_by_yarn() {
        let scale = |rope: &str| {
            let settings = format!(r#","topk_group":2,"rope_scaling":{rope}"#);
            config("deepseek_v2", &settings).unwrap().attention_scale * 12f64.sqrt()
        };
        let yarn = |multiplier: f64| {
            scale(&format!(
                r#"{{"type":"yarn","factor":4.0,"original_max_position_embeddings":32,"mscale_all_dim":{multiplier}}}"#
            ))
        };
        let mscale = 0.0707 * 4f64.ln() + 1.0;
        for (found, expected) in [(scale("null"), 1.0), (yarn(0.0), 1.0), (yarn(0.707), mscale * mscale)] {
            assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        }
    }
}
