//! LFM2 and LFM2.5: short convolutions in most layers, and in the others attention with norms of heads; some have mixtures
//! of experts with sigmoid scores.

use super::config::{ModelConfig, MoeConfig, Recurrence};
use super::family::DecoderFamily;
use super::layout::{DecoderLayout, ExpertNames, QkNormNames, RecurrenceInputs, RecurrenceNames};
use super::qwen3::GGUF_QK_NORMS;
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, GateUp, INTERMEDIATE_SIZE};
use crate::models::layers::mlp::ExpertScore;

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "lfm2",
    model_types: &["lfm2", "lfm2_moe"],
    gguf_architectures: &["lfm2", "lfm2moe"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            norm: "model.embedding_norm",
            attention_norm: Some("operator_norm"),
            qk_norms: Some(QkNormNames { query: "self_attn.q_layernorm", key: "self_attn.k_layernorm" }),
            output: "self_attn.out_proj",
            recurrence: Some(RecurrenceNames {
                inputs: RecurrenceInputs::Fused("conv.in_proj"),
                conv: "conv.conv",
                output: "conv.out_proj",
                ..NO_LINEAR_ATTENTION
            }),
            mlp_norm: Some("ffn_norm"),
            gate_up: GateUp::Split { gate: "feed_forward.w1", up: "feed_forward.w3" },
            down: "feed_forward.w2",
            router: "feed_forward.gate",
            score_bias: Some("feed_forward.expert_bias"),
            experts: ExpertNames::Split {
                prefix: "feed_forward.experts",
                gate: Some("w1"),
                up: "w3",
                down: "w2",
            },
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout {
            norm: "token_embd_norm",
            qk_norms: Some(GGUF_QK_NORMS),
            recurrence: Some(RecurrenceNames {
                inputs: RecurrenceInputs::Fused("shortconv.in_proj"),
                conv: "shortconv.conv",
                output: "shortconv.out_proj",
                ..NO_LINEAR_ATTENTION
            }),
            ..DecoderLayout::GGUF
        },
    },
    ..DecoderFamily::BASE
};

/// A recurrent mixer without the tensors of linear attention.
const NO_LINEAR_ATTENTION: RecurrenceNames = RecurrenceNames {
    inputs: RecurrenceInputs::Fused(""),
    conv: "",
    decay: "",
    has_log_decay: false,
    step_bias: "",
    skip: "",
    norm: "",
    output: "",
};

const CONV_KERNEL: ConfigKey = ConfigKey::new("conv_L_cache", "shortconv.l_cache");
const ADJUSTS_MLP: ConfigKey = ConfigKey::json("block_auto_adjust_ff_dim");
const MLP_MULTIPLIER: ConfigKey = ConfigKey::json("block_ffn_dim_multiplier");
const MLP_MULTIPLE_OF: ConfigKey = ConfigKey::json("block_multiple_of");
const N_EXPERTS: ConfigKey = ConfigKey::new("num_experts", "expert_count");
const N_DENSE_LAYERS: ConfigKey = ConfigKey::new("num_dense_layers", "leading_dense_block_count");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    config.recurrence = Some(Recurrence::ShortConv { kernel: checkpoint.required(CONV_KERNEL)? });
    config.set_mixers(checkpoint, "conv")?;
    if checkpoint.boolean(ADJUSTS_MLP)?.unwrap_or(false) {
        let stated = checkpoint.required(INTERMEDIATE_SIZE)?;
        let scaled = checkpoint.float(MLP_MULTIPLIER)?.unwrap_or(1.0) * (2 * stated / 3) as f64;
        let multiple = checkpoint.integer(MLP_MULTIPLE_OF)?.unwrap_or(256).max(1);
        config.intermediate_size = (scaled as usize).next_multiple_of(multiple);
    }
    if checkpoint.integer(N_EXPERTS)?.is_some_and(|n_experts| n_experts > 0) {
        let mut moe = MoeConfig::from_checkpoint(checkpoint)?;
        moe.routing.scoring = ExpertScore::Sigmoid;
        config.moe = Some(moe);
        let n_dense = checkpoint.integer(N_DENSE_LAYERS)?.unwrap_or(0);
        config.layers.iter_mut().skip(n_dense).for_each(|layer| layer.is_moe = true);
    }
    Ok(())
}
