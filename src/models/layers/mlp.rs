//! Gated MLPs and mixtures of experts.

use candle_core::{D, Device, Tensor};

use super::linear::{Linear, UpProjection, gated};
use crate::error::Result;
use crate::kernels::matmul::ActivationFn;

/// `down(activation(gate(x)) * up(x))`
#[derive(Debug, Clone)]
pub struct GatedMlp {
    /// `[intermediate, hidden]`
    pub gate: Linear,
    /// `[intermediate, hidden]`
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
    /// The function applied to the gate.
    pub activation: ActivationFn,
}

/// A mixture of experts: a router sends each token to a few MLPs out of many.
#[derive(Debug, Clone)]
pub struct MoE {
    /// `[n_experts, hidden]`
    pub router: Linear,
    /// The MLPs.
    pub experts: Vec<GatedMlp>,
    /// The number of experts that each token is routed to.
    pub experts_per_token: usize,
    /// Whether a token's expert weights are normalized to a sum of one.
    pub normalize_weights: bool,
    /// The expert that every token goes through.
    pub shared: Option<SharedExpert>,
}

/// An MLP beside the routed experts, scaled for each token: `sigmoid(output_gate(x)) * mlp(x)`.
#[derive(Debug, Clone)]
pub struct SharedExpert {
    /// The MLP.
    pub mlp: GatedMlp,
    /// `[1, hidden]`
    pub output_gate: Linear,
}

impl SharedExpert {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scale = candle_nn::ops::sigmoid(&self.output_gate.forward(x)?)?;
        Ok(self.mlp.forward(x)?.broadcast_mul(&scale)?)
    }
}

impl GatedMlp {
    /// The gate and up projections with their activation.
    pub fn up_projection(&self) -> UpProjection<'_> {
        UpProjection::Gated { gate: &self.gate, up: &self.up, activation: self.activation }
    }

    /// Computes the MLP; `x` and the result are `[n_tokens, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&gated(None, &self.gate, &self.up, self.activation, x)?)
    }
}

impl MoE {
    /// Computes the mixture; `x` and the result are `[n_tokens, hidden]`. Each expert computes all of its
    /// tokens in one batch.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let probabilities = candle_nn::ops::softmax_last_dim(&self.router.forward(x)?)?.to_vec2::<f32>()?;
        // The tokens of each expert and their weights.
        let mut assigned = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (token, probabilities) in probabilities.iter().enumerate() {
            for (expert, weight) in self.route(probabilities) {
                assigned[expert].0.push(token as u32);
                assigned[expert].1.push(weight);
            }
        }
        let mut y = self.shared.as_ref().map_or_else(|| Ok(x.zeros_like()?), |shared| shared.forward(x))?;
        for (expert, (tokens, weights)) in self.experts.iter().zip(assigned) {
            let n_tokens = tokens.len();
            if n_tokens == 0 {
                continue;
            }
            let rows = Tensor::from_vec(tokens, n_tokens, &Device::Cpu)?;
            let weights = Tensor::from_vec(weights, (n_tokens, 1), &Device::Cpu)?;
            let outputs = expert.forward(&x.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            y = y.index_add(&rows, &outputs, D::Minus2)?;
        }
        Ok(y)
    }

    /// The most likely experts of a token with their weights; on a tie the one with the lower index.
    fn route(&self, probabilities: &[f32]) -> Vec<(usize, f32)> {
        let mut ranked: Vec<(usize, f32)> = probabilities.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(self.experts_per_token);
        if self.normalize_weights {
            let sum: f32 = ranked.iter().map(|(_, weight)| weight).sum();
            ranked.iter_mut().for_each(|(_, weight)| *weight /= sum);
        }
        ranked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::layers::linear::Weight;

    /// A mixture whose expert `i` multiplies its activated input by `i + 1`.
    fn moe(normalize_weights: bool) -> MoE {
        let matrix = |value: f32| {
            let identity = Tensor::eye(2, candle_core::DType::F32, &Device::Cpu).unwrap();
            Linear::new(Weight::Dense((identity * f64::from(value)).unwrap()), None)
        };
        let router = Tensor::new(&[[1f32, 0.0], [0.0, 1.0], [-1.0, -1.0]], &Device::Cpu).unwrap();
        let expert = |i: usize| GatedMlp {
            gate: matrix(1.0),
            up: matrix(1.0),
            down: matrix(i as f32 + 1.0),
            activation: ActivationFn::Silu,
        };
        MoE {
            router: Linear::new(Weight::Dense(router), None),
            experts: (0..3).map(expert).collect(),
            experts_per_token: 2,
            normalize_weights,
            shared: None,
        }
    }

    #[test]
    fn each_token_is_routed_to_its_own_experts() {
        let x = Tensor::new(&[[3f32, 0.0], [0.0, 2.0]], &Device::Cpu).unwrap();
        for normalize_weights in [true, false] {
            let found = moe(normalize_weights).forward(&x).unwrap().to_vec2::<f32>().unwrap();
            for (row, (value, best, second)) in [(3f32, 0, 1), (2.0, 1, 0)].into_iter().enumerate() {
                let (p_best, p_second, p_last) = (value.exp(), 1f32, (-value).exp());
                let sum = p_best + p_second + if normalize_weights { 0.0 } else { p_last };
                let scale = (p_best * (best + 1) as f32 + p_second * (second + 1) as f32) / sum;
                let silu = value / (1.0 + (-value).exp());
                assert!((found[row][best] - silu * value * scale).abs() < 1e-4, "{found:?}");
            }
        }
    }
}
