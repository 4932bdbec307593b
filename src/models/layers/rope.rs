//! Rotary position embedding of query and key heads.

use candle_core::{D, Device, Tensor};

use super::super::Span;
use super::super::rope::Rope;
use crate::error::Result;
use crate::kernels::attention as kernels;

/// Cosines and sines of one batch, each `[n_tokens, n_rotated / 2]`; computed once, used by every
/// layer that turns the same way.
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
    n_pairs: usize,
}

impl Rotation {
    /// The rotations of all tokens of a batch.
    pub fn new(rope: &Rope, spans: &[Span]) -> Self {
        let n_pairs = rope.n_rotated / 2;
        let magnitude = rope.magnitude as f32;
        let n_tokens: usize = spans.iter().map(|span| span.len).sum();
        let (mut cos, mut sin) =
            (Vec::with_capacity(n_tokens * n_pairs), Vec::with_capacity(n_tokens * n_pairs));
        let mut frequencies = rope.frequencies(0);
        for span in spans {
            if rope.depends_on_prompt() {
                frequencies = rope.frequencies(span.n_prompt);
            }
            for position in span.start..span.start + span.len {
                for frequency in &frequencies {
                    let (s, c) = (position as f32 * frequency).sin_cos();
                    sin.push(s * magnitude);
                    cos.push(c * magnitude);
                }
            }
        }
        Self { cos, sin, n_pairs }
    }

    /// What the kernels need of it.
    pub fn kernel(&self) -> kernels::Rotation<'_> {
        kernels::Rotation { cos: &self.cos, sin: &self.sin, n_pairs: self.n_pairs }
    }

    /// Rotates heads `[n_tokens, n_heads, head_dim]`. The two halves of a head's rotated part form
    /// its pairs (Hugging Face's layout); the rest of the head stays as it is.
    pub fn apply(&self, heads: &Tensor) -> Result<Tensor> {
        let n_rotated = 2 * self.n_pairs;
        let table = |numbers: &[f32]| {
            Tensor::from_slice(numbers, (numbers.len() / self.n_pairs, self.n_pairs), &Device::Cpu)
        };
        let (cos, sin) = (table(&self.cos)?, table(&self.sin)?);
        let n_kept = heads.dims()[2] - n_rotated;
        let turn = |x: &Tensor| -> Result<Tensor> {
            Ok(candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0)?)
        };
        if n_kept == 0 {
            return turn(heads);
        }
        let turned = turn(&heads.narrow(D::Minus1, 0, n_rotated)?.contiguous()?)?;
        Ok(Tensor::cat(&[&turned, &heads.narrow(D::Minus1, n_rotated, n_kept)?], D::Minus1)?)
    }
}
