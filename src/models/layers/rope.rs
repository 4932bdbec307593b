//! Rotary position embedding.

use candle_core::{Device, Tensor};

use super::super::Span;
use super::super::config::Rope;
use crate::error::Result;

/// Turns query and key heads by their position. The two halves of a head form its pairs
/// (Hugging Face's layout).
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// Radians per position of each pair.
    frequencies: Vec<f32>,
}

/// Cosines and sines of one batch, each `[n_tokens, head_dim / 2]`; computed once, used by every
/// layer.
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl RotaryEmbedding {
    pub fn new(rope: &Rope, head_dim: usize) -> Self {
        Self { frequencies: rope.frequencies(head_dim) }
    }

    /// The rotations of all tokens of a batch.
    pub fn rotation(&self, spans: &[Span]) -> Result<Rotation> {
        let positions = spans.iter().flat_map(|span| span.start..span.start + span.len);
        let (sin, cos): (Vec<f32>, Vec<f32>) = positions
            .flat_map(|position| self.frequencies.iter().map(move |&f| (position as f32 * f).sin_cos()))
            .unzip();
        let n_pairs = self.frequencies.len();
        let shape = (cos.len() / n_pairs, n_pairs);
        Ok(Rotation {
            cos: Tensor::from_vec(cos, shape, &Device::Cpu)?,
            sin: Tensor::from_vec(sin, shape, &Device::Cpu)?,
        })
    }
}

impl Rotation {
    /// Rotates heads `[n_tokens, n_heads, head_dim]`.
    pub fn apply(&self, heads: &Tensor) -> Result<Tensor> {
        let batch = heads.unsqueeze(0)?;
        Ok(candle_nn::rotary_emb::rope_thd(&batch, &self.cos, &self.sin)?.squeeze(0)?)
    }
}
