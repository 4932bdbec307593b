//! Nemotron-H and Nemotron 3: layers of one part each, Mamba-2, attention without positions, or an MLP or a mixture of
//! experts with squared ReLU and no gate.

use super::config::{ModelConfig, MoeConfig, Recurrence};
use super::family::DecoderFamily;
use super::layout::{DecoderLayout, ExpertNames, RecurrenceInputs, RecurrenceNames, SharedExpertNames};
use super::mamba2::{GGUF_MAMBA2, Mamba2Keys};
use crate::error::{Error, Result};
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, GateUp, INTERMEDIATE_SIZE, Qkv};
use crate::models::layers::mlp::ExpertScore;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "nemotron-h",
    model_types: &["nemotron_h"],
    gguf_architectures: &["nemotron_h", "nemotron_h_moe"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            embedding: "backbone.embeddings",
            norm: "backbone.norm_f",
            layers: "backbone.layers",
            attention_norm: Some("norm"),
            qkv: Qkv::Split { query: "mixer.q_proj", key: "mixer.k_proj", value: "mixer.v_proj" },
            output: "mixer.o_proj",
            recurrence: Some(RecurrenceNames {
                inputs: RecurrenceInputs::Fused("mixer.in_proj"),
                conv: "mixer.conv1d",
                decay: "mixer.A_log",
                has_log_decay: true,
                step_bias: "mixer.dt_bias",
                skip: "mixer.D",
                norm: "mixer.norm",
                output: "mixer.out_proj",
            }),
            mlp_norm: Some("norm"),
            gate_up: GateUp::Ungated("mixer.up_proj"),
            down: "mixer.down_proj",
            router: "mixer.gate",
            score_bias: Some("mixer.gate.e_score_correction_bias"),
            experts: ExpertNames::Split {
                prefix: "mixer.experts",
                gate: None,
                up: "up_proj",
                down: "down_proj",
            },
            shared_expert: SharedExpertNames {
                gate_up: GateUp::Ungated("mixer.shared_experts.up_proj"),
                down: "mixer.shared_experts.down_proj",
                output_gate: None,
            },
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout {
            recurrence: Some(GGUF_MAMBA2),
            mlp_norm: DecoderLayout::GGUF.attention_norm,
            gate_up: GateUp::Ungated("ffn_up"),
            experts: ExpertNames::Stacked { gate: None, up: "ffn_up_exps", down: "ffn_down_exps" },
            shared_expert: SharedExpertNames {
                gate_up: GateUp::Ungated("ffn_up_shexp"),
                down: "ffn_down_shexp",
                output_gate: None,
            },
            ..DecoderLayout::GGUF
        },
    },
    ..DecoderFamily::BASE
};

const MAMBA2_KEYS: Mamba2Keys = Mamba2Keys {
    n_heads: "mamba_num_heads",
    head_dim: "mamba_head_dim",
    n_groups: "n_groups",
    state_size: "ssm_state_size",
    conv_kernel: "conv_kernel",
};

/// The kinds of all layers, as one letter each or as a list of names.
const PATTERN: ConfigKey = ConfigKey::json("hybrid_override_pattern");
const LAYER_KINDS: &str = "layers_block_type";
const N_KV_HEADS: ConfigKey = ConfigKey::gguf("attention.head_count_kv");
const N_EXPERTS: ConfigKey = ConfigKey::new("n_routed_experts", "expert_count");
const SHARED_SIZE: ConfigKey =
    ConfigKey::new("moe_shared_expert_intermediate_size", "expert_shared_feed_forward_length");

/// The part of a layer.
#[derive(Clone, Copy, PartialEq)]
enum LayerPart {
    Mamba2,
    Attention,
    Mlp,
    MoE,
}

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.activation = ActivationFn::ReluSquared;
    config.recurrence = Some(Recurrence::LinearAttention(MAMBA2_KEYS.read(checkpoint)?));
    if checkpoint.integer(N_EXPERTS)?.is_some_and(|n_experts| n_experts > 0) {
        let mut moe = MoeConfig::from_checkpoint(checkpoint)?;
        moe.routing.scoring = ExpertScore::Sigmoid;
        moe.shared_intermediate_size = checkpoint.integer(SHARED_SIZE)?.filter(|&size| size > 0);
        config.moe = Some(moe);
    }
    let parts = layer_parts(checkpoint, config)?;
    for (layer, part) in config.layers.iter_mut().zip(parts) {
        layer.rope = None;
        layer.has_attention = part == LayerPart::Attention;
        layer.has_recurrence = part == LayerPart::Mamba2;
        layer.has_mlp = matches!(part, LayerPart::Mlp | LayerPart::MoE);
        layer.is_moe = part == LayerPart::MoE;
    }
    Ok(())
}

fn layer_parts(checkpoint: &CheckpointConfig, config: &ModelConfig) -> Result<Vec<LayerPart>> {
    let n_layers = config.layers.len();
    let part = |name: &str| match name {
        "M" | "mamba" => Some(LayerPart::Mamba2),
        "*" | "attention" => Some(LayerPart::Attention),
        "-" | "mlp" => Some(LayerPart::Mlp),
        "E" | "moe" => Some(LayerPart::MoE),
        _ => None,
    };
    let parts: Option<Vec<LayerPart>> = match (checkpoint.string(PATTERN)?, checkpoint.array(LAYER_KINDS)) {
        (Some(pattern), _) => pattern.chars().map(|letter| part(&letter.to_string())).collect(),
        (None, Some(kinds)) => kinds.iter().map(|kind| kind.as_str().and_then(part)).collect(),
        (None, None) => {
            let kv_heads = checkpoint.per_layer(N_KV_HEADS)?.unwrap_or_default();
            let sizes = checkpoint.per_layer(INTERMEDIATE_SIZE)?.unwrap_or_default();
            let mlp = if config.moe.is_some() { LayerPart::MoE } else { LayerPart::Mlp };
            let part = |(n_kv_heads, size)| match (n_kv_heads, size) {
                (0, 0) => LayerPart::Mamba2,
                (0, _) => mlp,
                _ => LayerPart::Attention,
            };
            Some(kv_heads.into_iter().zip(sizes).map(part).collect())
        }
    };
    parts.filter(|parts| parts.len() == n_layers).ok_or_else(|| {
        Error::model(format!(
            "the checkpoint does not list the kinds of its {n_layers} layers; it is damaged"
        ))
    })
}
