//! The sizes and tensor names of Mamba-2 mixers, which several families have.

use super::config::LinearAttentionConfig;
use super::layout::{RecurrenceInputs, RecurrenceNames};
use crate::error::Result;
use crate::kernels::recurrent::linear_attention::{HeadShape, UpdateRule};
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};

/// The tensor names in safetensors files.
pub const SAFETENSORS_MAMBA2: RecurrenceNames = RecurrenceNames {
    inputs: RecurrenceInputs::Fused("mamba.in_proj"),
    conv: "mamba.conv1d",
    decay: "mamba.A_log",
    has_log_decay: true,
    step_bias: "mamba.dt_bias",
    skip: "mamba.D",
    norm: "mamba.norm",
    output: "mamba.out_proj",
};

/// The tensor names in GGUF files.
pub const GGUF_MAMBA2: RecurrenceNames = RecurrenceNames {
    inputs: RecurrenceInputs::Fused("ssm_in"),
    conv: "ssm_conv1d",
    decay: "ssm_a",
    has_log_decay: false,
    step_bias: "ssm_dt.bias",
    skip: "ssm_d",
    norm: "ssm_norm",
    output: "ssm_out",
};

/// The names of sizes in `config.json`, where families differ; GGUF files have one name for each.
#[derive(Debug, Clone, Copy)]
pub struct Mamba2Keys {
    /// The number of heads.
    pub n_heads: &'static str,
    /// The width of a head.
    pub head_dim: &'static str,
    /// The number of groups of heads that share inputs and outputs of the state.
    pub n_groups: &'static str,
    /// The length of the state of each element of a head.
    pub state_size: &'static str,
    /// The rows of the convolution.
    pub conv_kernel: &'static str,
}

const INNER_SIZE: ConfigKey = ConfigKey::gguf("ssm.inner_size");

impl Mamba2Keys {
    /// Reads the sizes of a model's Mamba-2 mixers, whose outputs are gated and then normed.
    ///
    /// # Errors
    /// When a setting is missing or of the wrong type.
    pub fn read(&self, checkpoint: &CheckpointConfig) -> Result<LinearAttentionConfig> {
        let n_heads = checkpoint.required(ConfigKey::new(self.n_heads, "ssm.time_step_rank"))?;
        let shape = HeadShape {
            n_heads,
            n_key_heads: checkpoint.required(ConfigKey::new(self.n_groups, "ssm.group_count"))?,
            key_dim: checkpoint.required(ConfigKey::new(self.state_size, "ssm.state_size"))?,
            value_dim: match checkpoint.integer(INNER_SIZE)? {
                Some(inner_size) => inner_size / n_heads.max(1),
                None => checkpoint.required(ConfigKey::json(self.head_dim))?,
            },
            is_tiled: false,
        };
        // Infinite bounds are no numbers in JSON.
        let limit =
            |idx: usize| checkpoint.array("time_step_limit").and_then(|limits| limits.get(idx)?.as_f64());
        Ok(LinearAttentionConfig {
            rule: UpdateRule::StateSpace {
                min_step: limit(0).unwrap_or(0.0) as f32,
                max_step: limit(1).map_or(f32::INFINITY, |limit| limit as f32),
            },
            shape,
            conv_kernel: checkpoint.required(ConfigKey::new(self.conv_kernel, "ssm.conv_kernel"))?,
            norm_group: Some(shape.inner_len() / shape.n_key_heads.max(1)),
            gates_first: true,
            column_scales: None,
        })
    }
}
