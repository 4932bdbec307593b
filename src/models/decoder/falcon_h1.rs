//! Falcon-H1: attention and Mamba-2 side by side in every layer, and factors of almost everything. The converter to GGUF
//! multiplies the weights by them.

use super::config::{ModelConfig, Recurrence};
use super::family::DecoderFamily;
use super::granite_hybrid::MAMBA2_KEYS;
use super::layout::DecoderLayout;
use super::mamba2::{GGUF_MAMBA2, SAFETENSORS_MAMBA2};
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{CheckpointLayouts, GateUp};

pub const FAMILY: DecoderFamily = DecoderFamily {
    name: "falcon-h1",
    model_types: &["falcon_h1"],
    gguf_architectures: &["falcon-h1"],
    describe,
    layouts: CheckpointLayouts {
        safetensors: DecoderLayout {
            norm: "model.final_layernorm",
            recurrence: Some(SAFETENSORS_MAMBA2),
            mlp_norm: Some("pre_ff_layernorm"),
            gate_up: GateUp::Split { gate: "feed_forward.gate_proj", up: "feed_forward.up_proj" },
            down: "feed_forward.down_proj",
            ..DecoderLayout::SAFETENSORS
        },
        gguf: DecoderLayout { recurrence: Some(GGUF_MAMBA2), ..DecoderLayout::GGUF },
    },
    ..DecoderFamily::BASE
};

const HAS_NORM: ConfigKey = ConfigKey::json("mamba_rms_norm");
const NORM_BEFORE_GATE: ConfigKey = ConfigKey::json("mamba_norm_before_gate");

fn describe(checkpoint: &CheckpointConfig, config: &mut ModelConfig) -> Result<()> {
    let factor = |name: &'static str| {
        Ok::<_, crate::error::Error>(checkpoint.float(ConfigKey::json(name))?.unwrap_or(1.0))
    };
    let list = |name: &str, idx: usize| {
        let value = checkpoint.array(name).and_then(|list| list.get(idx)?.as_f64());
        value.unwrap_or(1.0)
    };
    config.embedding_scale = Some(factor("embedding_multiplier")?);
    config.logit_scale = Some(factor("lm_head_multiplier")?);
    let attention_input = factor("attention_in_multiplier")?;
    config.attention_scale *= attention_input * attention_input * factor("key_multiplier")?;
    config.mixer_scales =
        [attention_input * factor("attention_out_multiplier")?, factor("ssm_out_multiplier")?];
    config.activation = match list("mlp_multipliers", 0) {
        1.0 => config.activation,
        factor => ActivationFn::ScaledSilu(factor as f32),
    };
    config.mlp_scale = list("mlp_multipliers", 1);

    let mut mamba2 = MAMBA2_KEYS.read(checkpoint)?;
    // GGUF files have the norm's weights or not.
    let has_norm = match checkpoint {
        CheckpointConfig::Json(_) => checkpoint.boolean(HAS_NORM)?.unwrap_or(false),
        CheckpointConfig::Gguf { file, .. } => file.contains("blk.0.ssm_norm.weight"),
    };
    mamba2.norm_group = mamba2.norm_group.filter(|_| has_norm);
    mamba2.gates_first = !checkpoint.boolean(NORM_BEFORE_GATE)?.unwrap_or(false);
    if checkpoint.array("ssm_multipliers").is_some() {
        let shape = mamba2.shape;
        let (n_inner, n_state) = (shape.inner_len(), shape.n_key_heads * shape.key_dim);
        // The factors are in the order gate, values, keys, queries, steps.
        let columns = [(1, n_inner), (2, n_state), (3, n_state), (0, n_inner), (4, shape.n_heads)];
        let input = factor("ssm_in_multiplier")?;
        let scales = columns.map(|(idx, n)| vec![(input * list("ssm_multipliers", idx)) as f32; n]);
        mamba2.column_scales = Some(scales.concat());
    }
    config.recurrence = Some(Recurrence::LinearAttention(mamba2));
    config.layers.iter_mut().for_each(|layer| layer.has_recurrence = true);
    Ok(())
}
