//! Gemma 3's language model: Gemma 2 with head norms in place of bounds, five layers with a window
//! to each without, and a rotation of their own for those with a window.

use super::config::{ModelConfig, SLIDING_ATTENTION};
use super::family::{Family, Layout};
use super::gemma2::{self, set_gemma_scales};
use super::qwen3::{GGUF_HEAD_NORMS, SAFETENSORS_HEAD_NORMS};
use crate::error::Result;
use crate::models::fields::{Fields, Key};
use crate::models::rope::Rope;

pub const FAMILY: Family = Family {
    name: "gemma3",
    model_types: &["gemma3_text", "gemma3"],
    gguf_architectures: &["gemma3"],
    json_defaults: &[
        ("num_attention_heads", 8.0),
        ("num_key_value_heads", 4.0),
        ("head_dim", 256.0),
        ("vocab_size", 262_208.0),
        ("max_position_embeddings", 131_072.0),
        ("query_pre_attn_scalar", 256.0),
        ("sliding_window", 4096.0),
        ("rope_theta", 1_000_000.0),
        ("rms_norm_eps", 1e-6),
    ],
    describe,
    safetensors: Layout { head_norms: Some(SAFETENSORS_HEAD_NORMS), ..gemma2::FAMILY.safetensors },
    gguf: Layout { head_norms: Some(GGUF_HEAD_NORMS), ..gemma2::FAMILY.gguf },
};

const LOCAL_THETA: Key = Key { json: "rope_local_base_freq", gguf: "rope.freq_base_swa" };
const PATTERN: Key = Key { json: "sliding_window_pattern", gguf: "attention.sliding_window_pattern" };

/// See [`gemma2`].
const N_LAYERS_27B: usize = 62;

fn describe(fields: &Fields, config: &mut ModelConfig) -> Result<()> {
    let pattern = fields.integer(PATTERN)?.unwrap_or(6).max(1);
    config.set_windows(fields, |layer| !(layer + 1).is_multiple_of(pattern))?;
    set_gemma_scales(fields, config, N_LAYERS_27B)?;
    let stated_per_kind =
        fields.object("rope_parameters").is_some_and(|kinds| kinds.contains_key(SLIDING_ATTENTION));
    for layer in config.layers.iter_mut().filter(|layer| layer.window.is_some()) {
        layer.rope = if stated_per_kind {
            Some(Rope::read(fields, config.head_dim, SLIDING_ATTENTION)?)
        } else {
            let theta = fields.float(LOCAL_THETA)?.unwrap_or(10_000.0);
            layer.rope.as_ref().map(|global| global.unscaled(theta))
        };
    }
    Ok(())
}
