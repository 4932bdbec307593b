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
    /// Whether the norms come after the rotary embedding instead of before it.
    pub after_rope: bool,
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

/// The norm of one head; see [`HeadNorms`].
#[derive(Clone, Copy)]
pub(super) struct HeadNorm<'a> {
    weight: &'a [f32],
    eps: f32,
    after_rope: bool,
}

impl<'a> HeadNorms<'a> {
    /// The norm of query heads.
    pub(super) fn query_norm(self) -> HeadNorm<'a> {
        HeadNorm { weight: self.query, eps: self.eps, after_rope: self.after_rope }
    }

    /// The norm of key heads.
    pub(super) fn key_norm(self) -> HeadNorm<'a> {
        HeadNorm { weight: self.key, eps: self.eps, after_rope: self.after_rope }
    }
}

impl HeadNorm<'_> {
    #[inline(always)]
    fn apply(self, head: &mut [f32]) {
        let squares: f32 = head.iter().map(|x| x * x).sum();
        let factor = 1.0 / (squares / head.len() as f32 + self.eps).sqrt();
        for (x, weight) in head.iter_mut().zip(self.weight) {
            *x *= factor * weight;
        }
    }
}

/// Applies the norm of heads, the rotary embedding and a scale, where there are any, to a head of a token of the
/// batch in place. The scale comes last.
#[inline(always)]
pub(super) fn norm_rope_scale(
    head: &mut [f32],
    norm: Option<HeadNorm>,
    rope: Option<(&RopeTable, usize)>,
    scale: f32,
) {
    if let Some(norm) = norm.filter(|norm| !norm.after_rope) {
        norm.apply(head);
    }
    if let Some((rope, token)) = rope {
        rope.rotate(token, head);
    }
    if let Some(norm) = norm.filter(|norm| norm.after_rope) {
        norm.apply(head);
    }
    if scale != 1.0 {
        for x in head {
            *x *= scale;
        }
    }
}
