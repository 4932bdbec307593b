//! The sizes of multi-head latent attention (MLA).

use crate::error::Result;
use crate::models::checkpoint_config::{CheckpointConfig, ConfigKey};
use crate::models::family::{check_sizes, impossible};

/// The sizes of multi-head latent attention, in which the keys and values of all heads are projections of one latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentAttentionConfig {
    /// The width of the latent of queries; without it they are projected from the hidden state.
    pub query_rank: Option<usize>,
    /// The width of the latent of keys and values.
    pub kv_rank: usize,
    /// The width of the part of a head's query that has no positions (NoPE).
    pub nope_dim: usize,
    /// The width of the part that the rotary embedding rotates; that of keys is the same for all heads.
    pub rope_dim: usize,
    /// The width of a head's value.
    pub value_dim: usize,
    /// Whether the rows of rotated parts are stored with the pairs of the rotary embedding interleaved.
    pub interleaved_rope: bool,
}

const QUERY_RANK: ConfigKey = ConfigKey::new("q_lora_rank", "attention.q_lora_rank");
const KV_RANK: ConfigKey = ConfigKey::new("kv_lora_rank", "attention.kv_lora_rank");
const NOPE_DIM: ConfigKey = ConfigKey::json("qk_nope_head_dim");
const ROPE_DIM: ConfigKey = ConfigKey::new("qk_rope_head_dim", "rope.dimension_count");
const VALUE_DIM: ConfigKey = ConfigKey::new("v_head_dim", "attention.value_length_mla");
const QUERY_DIM: ConfigKey = ConfigKey::gguf("attention.key_length_mla");
/// The names in GGUF files that are older than absorbed weights in llama.cpp.
const OLD_QUERY_DIM: ConfigKey = ConfigKey::gguf("attention.key_length");
const OLD_VALUE_DIM: ConfigKey = ConfigKey::gguf("attention.value_length");
const INTERLEAVED_ROPE: ConfigKey = ConfigKey::json("rope_interleave");

impl LatentAttentionConfig {
    /// Reads the sizes, if the checkpoint states the width of a latent.
    ///
    /// # Errors
    /// When a setting is missing or of the wrong type, or a size is impossible.
    pub(super) fn from_checkpoint(checkpoint: &CheckpointConfig) -> Result<Option<Self>> {
        let Some(kv_rank) = checkpoint.integer(KV_RANK)?.filter(|&rank| rank > 0) else { return Ok(None) };
        let rope_dim = checkpoint.required(ROPE_DIM)?;
        let nope_dim = match checkpoint {
            CheckpointConfig::Json(_) => checkpoint.required(NOPE_DIM)?,
            CheckpointConfig::Gguf { .. } => {
                let query_dim = checkpoint.integer(QUERY_DIM)?.or(checkpoint.integer(OLD_QUERY_DIM)?);
                query_dim.ok_or_else(|| checkpoint.missing(QUERY_DIM))?.saturating_sub(rope_dim)
            }
        };
        let value_dim = checkpoint.integer(VALUE_DIM)?.or(checkpoint.integer(OLD_VALUE_DIM)?);
        let latent = Self {
            query_rank: checkpoint.integer(QUERY_RANK)?.filter(|&rank| rank > 0),
            kv_rank,
            nope_dim,
            rope_dim,
            value_dim: value_dim.ok_or_else(|| checkpoint.missing(VALUE_DIM))?,
            interleaved_rope: checkpoint.boolean(INTERLEAVED_ROPE)?.unwrap_or(true),
        };
        check_sizes(&[
            ("width of the latent of queries", latent.query_rank.unwrap_or(1), 1 << 16),
            ("width of the latent", kv_rank, 1 << 16),
            ("width of keys without positions", nope_dim, 1 << 16),
            ("width of rotated keys", rope_dim, 1 << 16),
            ("width of values", latent.value_dim, 1 << 16),
        ])?;
        if rope_dim.is_multiple_of(2) {
            return Ok(Some(latent));
        }
        Err(impossible(format_args!("rotated keys of width {rope_dim}")))
    }

    /// The rows of a rotated part whose first row is `first`, in the order of the rotary embedding.
    pub(super) fn rope_rows(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        let (half, interleaved) = (self.rope_dim / 2, self.interleaved_rope);
        (0..self.rope_dim).map(move |i| first + if interleaved { 2 * (i % half) + i / half } else { i })
    }

    /// The width of a head's query before the weights of keys are absorbed.
    pub fn query_dim(&self) -> usize {
        self.nope_dim + self.rope_dim
    }

    /// The width of what the KV cache keeps of a token: the rotated part of its key, and its latent.
    pub fn cached_dim(&self) -> usize {
        self.rope_dim + self.kv_rank
    }
}
