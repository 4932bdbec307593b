//! RMS norm and rotary position embedding (RoPE) of query and key heads.

/// RMS norms of each query head and each key head ("QK norm"); weights `[head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Weights of the norm of query heads.
    pub query: &'a [f32],
    /// Weights of the norm of key heads.
    pub key: &'a [f32],
    /// Added to the mean square before the root.
    pub eps: f32,
}

/// Cosines and sines of the rotary position embedding of each token in a batch. Elements `i` and
/// `n_pairs + i` of a head form a pair; elements past the pairs are not rotated.
#[derive(Debug, Clone, Copy)]
pub struct RopeTable<'a> {
    /// `[n_tokens, n_pairs]`
    pub cos: &'a [f32],
    /// `[n_tokens, n_pairs]`
    pub sin: &'a [f32],
    /// Pairs of elements that are rotated.
    pub n_pairs: usize,
}

impl RopeTable<'_> {
    /// Checks that the table fits `n_tokens` tokens with heads of `head_dim` elements.
    ///
    /// # Panics
    /// When it does not.
    pub(super) fn check(&self, n_tokens: usize, head_dim: usize) {
        assert!(2 * self.n_pairs <= head_dim);
        assert!(self.cos.len() == n_tokens * self.n_pairs && self.sin.len() == n_tokens * self.n_pairs);
    }

    /// Rotates a head of a token of the batch in place.
    #[inline(always)]
    pub(super) fn rotate(&self, token: usize, head: &mut [f32]) {
        let Self { cos, sin, n_pairs } = *self;
        let of_token = token * n_pairs..(token + 1) * n_pairs;
        let (first, second) = head[..2 * n_pairs].split_at_mut(n_pairs);
        let pairs = first.iter_mut().zip(second);
        for ((a, b), (cos, sin)) in pairs.zip(cos[of_token.clone()].iter().zip(&sin[of_token])) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// An RMS norm's weights, and the number added to the mean square.
pub(super) type RmsParams<'a> = (&'a [f32], f32);

/// Applies the norm of heads, the rotary embedding and a scale, in this order and where there are any, to a
/// head of a token of the batch in place.
#[inline(always)]
pub(super) fn norm_rope_scale(
    head: &mut [f32],
    norm: Option<RmsParams>,
    rope: Option<(&RopeTable, usize)>,
    scale: f32,
) {
    if let Some((weight, eps)) = norm {
        let squares: f32 = head.iter().map(|x| x * x).sum();
        let factor = 1.0 / (squares / head.len() as f32 + eps).sqrt();
        for (x, weight) in head.iter_mut().zip(weight) {
            *x *= factor * weight;
        }
    }
    if let Some((rope, token)) = rope {
        rope.rotate(token, head);
    }
    if scale != 1.0 {
        for x in head {
            *x *= scale;
        }
    }
}
