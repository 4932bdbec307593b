//! Qwen3.5 to 3.8: gated delta nets in most layers, and in the others attention with a sigmoid gate, norms of heads and a
//! partly rotated head. Norm weights are stored minus one, except in GGUF files and of the delta nets. GGUF files have the
//! heads of values in another order.

use super::config::{LinearAttentionConfig, ModelConfig, MoeConfig, Recurrence};
use super::family::DecoderFamily;
use super::layout::{DecoderLayout, ExpertNames, RecurrenceInputs, RecurrenceNames};
use super::qwen2_moe::SHARED_INTERMEDIATE_SIZE;
use super::qwen3::{GGUF_QK_NORMS, SAFETENSORS_QK_NORMS};
use crate::error::Result;
use crate::kernels::recurrent::linear_attention::{HeadShape, UpdateRule};
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, FULL_ATTENTION, LAYER_TYPES};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "qwen3.5",
    model_types: &["qwen3_5_text", "qwen3_5"],
    gguf_architectures: &["qwen35"],
    describe: set_hybrid_layers,
    layouts: LAYOUTS,
    ..DecoderFamily::BASE
};

pub const MOE_FAMILY: DecoderFamily = DecoderFamily {
    name: "qwen3.5-moe",
    model_types: &["qwen3_5_moe_text", "qwen3_5_moe"],
    gguf_architectures: &["qwen35moe"],
    describe: describe_moe,
    layouts: LAYOUTS,
    ..DecoderFamily::BASE
};

pub(super) const LAYOUTS: CheckpointLayouts<DecoderLayout> = CheckpointLayouts {
    safetensors: DecoderLayout {
        qk_norms: Some(SAFETENSORS_QK_NORMS),
        has_gated_queries: true,
        recurrence: Some(SAFETENSORS_DELTA_NET),
        experts: ExpertNames::Fused { gate_up: "mlp.experts.gate_up_proj", down: "mlp.experts.down_proj" },
        norm_offset: 1.0,
        final_norm_offset: 1.0,
        ..DecoderLayout::SAFETENSORS
    },
    gguf: DecoderLayout {
        qk_norms: Some(GGUF_QK_NORMS),
        has_gated_queries: true,
        recurrence: Some(GGUF_DELTA_NET),
        mlp_norm: Some("post_attention_norm"),
        ..DecoderLayout::GGUF
    },
};

pub(super) const SAFETENSORS_DELTA_NET: RecurrenceNames = RecurrenceNames {
    inputs: RecurrenceInputs::Split {
        conv: "linear_attn.in_proj_qkv",
        gate: "linear_attn.in_proj_z",
        step: "linear_attn.in_proj_a",
        beta: "linear_attn.in_proj_b",
    },
    conv: "linear_attn.conv1d",
    decay: "linear_attn.A_log",
    has_log_decay: true,
    step_bias: "linear_attn.dt_bias",
    skip: "",
    norm: "linear_attn.norm",
    output: "linear_attn.out_proj",
};

pub(super) const GGUF_DELTA_NET: RecurrenceNames = RecurrenceNames {
    inputs: RecurrenceInputs::Split {
        conv: "attn_qkv",
        gate: "attn_gate",
        step: "ssm_alpha",
        beta: "ssm_beta",
    },
    conv: "ssm_conv1d",
    decay: "ssm_a",
    has_log_decay: false,
    step_bias: "ssm_dt.bias",
    skip: "",
    norm: "ssm_norm",
    output: "ssm_out",
};

const N_KEY_HEADS: ConfigKey = ConfigKey::new("linear_num_key_heads", "ssm.group_count");
const N_VALUE_HEADS: ConfigKey = ConfigKey::new("linear_num_value_heads", "ssm.time_step_rank");
const KEY_DIM: ConfigKey = ConfigKey::new("linear_key_head_dim", "ssm.state_size");
const VALUE_DIM: ConfigKey = ConfigKey::json("linear_value_head_dim");
const INNER_SIZE: ConfigKey = ConfigKey::gguf("ssm.inner_size");
const CONV_KERNEL: ConfigKey = ConfigKey::new("linear_conv_kernel_dim", "ssm.conv_kernel");
const RECURRENT_LAYERS: ConfigKey = ConfigKey::gguf("attention.recurrent_layers");
const FULL_ATTENTION_INTERVAL: ConfigKey =
    ConfigKey::new("full_attention_interval", "full_attention_interval");

fn describe_moe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    set_hybrid_layers(checkpoint, config)?;
    let shared_intermediate_size = Some(checkpoint.required(SHARED_INTERMEDIATE_SIZE)?);
    config.moe = Some(MoeConfig { shared_intermediate_size, ..MoeConfig::from_checkpoint(checkpoint)? });
    config.layers.iter_mut().for_each(|layer| layer.is_moe = true);
    Ok(())
}

/// Sets which layers have attention, and the delta nets of all others.
pub(super) fn set_hybrid_layers(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let n_heads = checkpoint.required(N_VALUE_HEADS)?;
    let shape = HeadShape {
        n_heads,
        n_key_heads: checkpoint.required(N_KEY_HEADS)?,
        key_dim: checkpoint.required(KEY_DIM)?,
        value_dim: match checkpoint.integer(VALUE_DIM)? {
            Some(value_dim) => value_dim,
            None => checkpoint.required(INNER_SIZE)? / n_heads.max(1),
        },
        is_tiled: matches!(checkpoint, CheckpointConfig::Gguf { .. }),
    };
    config.recurrence = Some(Recurrence::LinearAttention(LinearAttentionConfig {
        rule: UpdateRule::GatedDelta,
        shape,
        conv_kernel: checkpoint.required(CONV_KERNEL)?,
        norm_group: Some(shape.value_dim),
        gates_first: false,
        column_scales: None,
    }));
    let kinds = checkpoint.array(LAYER_TYPES);
    let flags = checkpoint.booleans(RECURRENT_LAYERS);
    let interval = checkpoint.integer(FULL_ATTENTION_INTERVAL)?.unwrap_or(4).max(1);
    for (idx, layer) in config.layers.iter_mut().enumerate() {
        layer.has_attention =
            match (kinds.and_then(|kinds| kinds.get(idx)), flags.and_then(|flags| flags.get(idx))) {
                (Some(kind), _) => kind == FULL_ATTENTION,
                (None, Some(is_recurrent)) => !is_recurrent,
                (None, None) => (idx + 1).is_multiple_of(interval),
            };
        layer.has_recurrence = !layer.has_attention;
    }
    Ok(())
}
