//! Gated MLPs, and mixtures of them.

use candle_core::{D, Device, Tensor};

use super::activation::Activation;
use super::linear::{Inner, Linear, gated};
use crate::error::Result;

/// `down(activation(gate(x)) * up(x))`
#[derive(Debug, Clone)]
pub struct GatedMlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub activation: Activation,
}

/// A few MLPs out of many for each token, chosen by the token.
#[derive(Debug, Clone)]
pub struct Mixture {
    /// `[n_experts, hidden]`
    pub router: Linear,
    pub experts: Vec<GatedMlp>,
    pub n_used: usize,
    /// Whether the weights of those used are scaled to a sum of one.
    pub normalizes: bool,
}

impl GatedMlp {
    /// Its first layer.
    pub fn inner(&self) -> Inner<'_> {
        Inner::Gated { gate: &self.gate, up: &self.up, activation: self.activation }
    }

    /// `[n_tokens, hidden]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&gated(None, &self.gate, &self.up, self.activation, x)?)
    }
}

impl Mixture {
    /// `[n_tokens, hidden]` to the same shape. Each expert computes its own tokens in one product.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let probabilities = candle_nn::ops::softmax_last_dim(&self.router.forward(x)?)?.to_vec2::<f32>()?;
        // For each expert its tokens and their weights.
        let mut work = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (token, probabilities) in probabilities.iter().enumerate() {
            for (expert, weight) in self.chosen(probabilities) {
                work[expert].0.push(token as u32);
                work[expert].1.push(weight);
            }
        }
        let mut y = x.zeros_like()?;
        for (expert, (tokens, weights)) in self.experts.iter().zip(work) {
            let n_tokens = tokens.len();
            if n_tokens == 0 {
                continue;
            }
            let rows = Tensor::from_vec(tokens, n_tokens, &Device::Cpu)?;
            let weights = Tensor::from_vec(weights, (n_tokens, 1), &Device::Cpu)?;
            let part = expert.forward(&x.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            y = y.index_add(&rows, &part, D::Minus2)?;
        }
        Ok(y)
    }

    /// The likeliest experts with their weights; of equals those that come first.
    fn chosen(&self, probabilities: &[f32]) -> Vec<(usize, f32)> {
        let mut ranked: Vec<(usize, f32)> = probabilities.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(self.n_used);
        if self.normalizes {
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

    /// Expert `i` multiplies its input by `i + 1`, the activation aside.
    fn mixture(normalizes: bool) -> Mixture {
        let matrix = |value: f32| {
            let identity = Tensor::eye(2, candle_core::DType::F32, &Device::Cpu).unwrap();
            Linear::new(Weight::Dense((identity * f64::from(value)).unwrap()), None)
        };
        let router = Tensor::new(&[[1f32, 0.0], [0.0, 1.0], [-1.0, -1.0]], &Device::Cpu).unwrap();
        let expert = |i: usize| GatedMlp {
            gate: matrix(1.0),
            up: matrix(1.0),
            down: matrix(i as f32 + 1.0),
            activation: Activation::Silu,
        };
        Mixture {
            router: Linear::new(Weight::Dense(router), None),
            experts: (0..3).map(expert).collect(),
            n_used: 2,
            normalizes,
        }
    }

    #[test]
    fn each_token_goes_through_its_own_experts() {
        let x = Tensor::new(&[[3f32, 0.0], [0.0, 2.0]], &Device::Cpu).unwrap();
        for normalizes in [true, false] {
            let found = mixture(normalizes).forward(&x).unwrap().to_vec2::<f32>().unwrap();
            for (row, (value, best, second)) in [(3f32, 0, 1), (2.0, 1, 0)].into_iter().enumerate() {
                let (p_best, p_second, p_last) = (value.exp(), 1f32, (-value).exp());
                let sum = p_best + p_second + if normalizes { 0.0 } else { p_last };
                let scale = (p_best * (best + 1) as f32 + p_second * (second + 1) as f32) / sum;
                let silu = value / (1.0 + (-value).exp());
                assert!((found[row][best] - silu * value * scale).abs() < 1e-4, "{found:?}");
            }
        }
    }
}
