//! Granite 4: Mamba-2 in most layers, attention without positions in the others, scales as in Granite 3, and mixtures of
//! experts with a shared one, or only the shared one.

use super::config::{ModelConfig, MoeConfig, Recurrence};
use super::family::DecoderFamily;
use super::granite::set_granite_scales;
use super::layout::{DecoderLayout, ExpertNames, SharedExpertNames};
use super::llama;
use super::mamba2::{GGUF_MAMBA2, Mamba2Keys, SAFETENSORS_MAMBA2};
use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, GateUp};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "granite-hybrid",
    model_types: &["granitemoehybrid"],
    gguf_architectures: &["granitehybrid"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            recurrence: Some(SAFETENSORS_MAMBA2),
            // Models without other experts have the shared one as their MLP.
            gate_up: SHARED_EXPERT.gate_up,
            down: SHARED_EXPERT.down,
            router: "block_sparse_moe.router.layer",
            experts: ExpertNames::Fused {
                gate_up: "block_sparse_moe.input_linear.weight",
                down: "block_sparse_moe.output_linear.weight",
            },
            shared_expert: SHARED_EXPERT,
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout {
            recurrence: Some(GGUF_MAMBA2),
            shared_expert: SharedExpertNames { output_gate: None, ..DecoderLayout::GGUF.shared_expert },
            ..llama::LAYOUTS.gguf
        },
    },
    ..DecoderFamily::BASE
};

const SHARED_EXPERT: SharedExpertNames = SharedExpertNames {
    gate_up: GateUp::Fused("shared_mlp.input_linear"),
    down: "shared_mlp.output_linear",
    output_gate: None,
};

pub(super) const MAMBA2_KEYS: Mamba2Keys = Mamba2Keys {
    n_heads: "mamba_n_heads",
    head_dim: "mamba_d_head",
    n_groups: "mamba_n_groups",
    state_size: "mamba_d_state",
    conv_kernel: "mamba_d_conv",
};

const N_EXPERTS: ConfigKey = ConfigKey::new("num_local_experts", "expert_count");
const SHARED_SIZE: ConfigKey =
    ConfigKey::new("shared_intermediate_size", "expert_shared_feed_forward_length");
const POSITIONS: ConfigKey = ConfigKey::json("position_embedding_type");
const HAS_ROPE: ConfigKey = ConfigKey::gguf("rope.scaling.finetuned");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    set_granite_scales(checkpoint, config)?;
    let mut mamba2 = MAMBA2_KEYS.read(checkpoint)?;
    // The norm is over the whole row, whatever the number of groups.
    mamba2.norm_group = Some(mamba2.shape.inner_len());
    config.recurrence = Some(Recurrence::LinearAttention(mamba2));
    config.set_mixers(checkpoint, "mamba")?;
    let has_rope = match checkpoint.string(POSITIONS)? {
        Some(kind) => kind == "rope",
        None => checkpoint.boolean(HAS_ROPE)?.unwrap_or(false),
    };
    if !has_rope {
        config.layers.iter_mut().for_each(|layer| layer.rope = None);
    }
    let shared_size = checkpoint.integer(SHARED_SIZE)?;
    if checkpoint.integer(N_EXPERTS)?.is_some_and(|n_experts| n_experts > 0) {
        config.moe = Some(MoeConfig {
            shared_intermediate_size: shared_size,
            ..MoeConfig::from_checkpoint(checkpoint)?
        });
        config.layers.iter_mut().for_each(|layer| layer.is_moe = true);
    } else if let Some(shared_size) = shared_size {
        config.intermediate_size = shared_size;
    }
    Ok(())
}
