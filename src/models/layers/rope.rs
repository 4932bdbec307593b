//! Rotary position embedding of query and key heads.

use candle_core::{D, Tensor};

use crate::error::Result;
use crate::kernels::attention as kernels;
use crate::models::backend::DEVICE;
use crate::models::forward_input::Span;
use crate::models::rope::Rope;

/// The cosines and sines of one batch, each `[n_tokens, rotary_dim / 2]`; computed once and used by every
/// layer with the same rotary embedding.
#[derive(Debug, Clone)]
pub struct CosSinCache {
    cos: Vec<f32>,
    sin: Vec<f32>,
    n_pairs: usize,
}

impl CosSinCache {
    /// Computes the cosines and sines for all tokens of a batch.
    pub fn new(rope: &Rope, spans: &[Span]) -> Self {
        let n_pairs = rope.rotary_dim / 2;
        let attention_factor = rope.attention_factor as f32;
        let n_tokens: usize = spans.iter().map(|span| span.len).sum();
        let (mut cos, mut sin) =
            (Vec::with_capacity(n_tokens * n_pairs), Vec::with_capacity(n_tokens * n_pairs));
        let mut frequencies = rope.frequencies(0);
        for span in spans {
            if rope.is_prompt_dependent() {
                frequencies = rope.frequencies(span.n_prompt);
            }
            for position in span.start..span.start + span.len {
                for frequency in &frequencies {
                    let (s, c) = (position as f32 * frequency).sin_cos();
                    sin.push(s * attention_factor);
                    cos.push(c * attention_factor);
                }
            }
        }
        Self { cos, sin, n_pairs }
    }

    /// The parameters of the kernels.
    pub fn kernel_params(&self) -> kernels::RopeTable<'_> {
        kernels::RopeTable { cos: &self.cos, sin: &self.sin, n_pairs: self.n_pairs }
    }

    /// Rotates heads, `[n_tokens, n_heads, head_dim]`. Element `i` of the rotary part's first half is paired
    /// with element `i` of its second half (the "NeoX" order); the rest of the head is unchanged.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn apply(&self, heads: &Tensor) -> Result<Tensor> {
        let rotary_dim = 2 * self.n_pairs;
        let table =
            |values: &[f32]| Tensor::from_slice(values, (values.len() / self.n_pairs, self.n_pairs), &DEVICE);
        let (cos, sin) = (table(&self.cos)?, table(&self.sin)?);
        let n_kept = heads.dims()[2] - rotary_dim;
        let rotate = |x: &Tensor| -> Result<Tensor> {
            Ok(candle_nn::rotary_emb::rope_thd(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0)?)
        };
        if n_kept == 0 {
            return rotate(heads);
        }
        let rotated = rotate(&heads.narrow(D::Minus1, 0, rotary_dim)?.contiguous()?)?;
        Ok(Tensor::cat(&[&rotated, &heads.narrow(D::Minus1, rotary_dim, n_kept)?], D::Minus1)?)
    }
}
