//! A dense MLP beside a mixture of experts (a dense-MoE hybrid), each with norms of its own.

use candle_core::Tensor;

use super::linear::Linear;
use super::mlp::{Mlp, MoE};
use super::norm::{RmsNorm, RowNorm};
use crate::error::Result;
use crate::kernels::isa::Isa;

/// `dense_post_norm(dense(norm(x))) + moe_post_norm(moe(moe_norm(x)))`, tokens being routed by `router_norm(x)`.
#[derive(Debug, Clone)]
pub struct DenseMoE {
    /// The MLP of all tokens.
    pub dense: Mlp,
    /// The norm of its output.
    pub dense_post_norm: RmsNorm,
    /// The mixture.
    pub moe: MoE,
    /// The norm before the router.
    pub router_norm: RmsNorm,
    /// The norm before the experts.
    pub moe_norm: RmsNorm,
    /// The norm of the mixture's output.
    pub moe_post_norm: RmsNorm,
}

impl DenseMoE {
    /// The matrices that a token is multiplied with, each with its number of uses. Experts are represented by the first.
    pub fn matrices(&self) -> impl Iterator<Item = (&Linear, usize)> {
        self.dense.matrices().map(|matrix| (matrix, 1)).chain(self.moe.matrices())
    }

    /// Computes both; `x` and the result are `[n_tokens, hidden]`, and `norm` is the one before the dense MLP.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, isa: Option<Isa>, norm: Option<&dyn RowNorm>, x: &Tensor) -> Result<Tensor> {
        let dense = self.dense.down.forward(&self.dense.up_projection().forward(norm, x)?)?;
        let router_input = self.router_norm.apply(isa, x)?;
        let routed = self.moe.forward_routed(&router_input, &self.moe_norm.apply(isa, x)?)?;
        Ok((self.dense_post_norm.apply(isa, &dense)? + self.moe_post_norm.apply(isa, &routed)?)?)
    }
}
