//! MLPs and mixtures of experts.

use candle_core::{D, Device, Tensor};
use candle_nn::ops::{sigmoid, softmax_last_dim};

use super::linear::{Linear, UpProjection};
use crate::error::Result;
use crate::kernels::custom_ops::ExpertsOp;
use crate::kernels::isa::Isa;
use crate::kernels::matmul::{ActivationFn, Projection, RoutedExpert};

/// `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Debug, Clone)]
pub struct Mlp {
    /// `[intermediate, hidden]`
    pub gate: Option<Linear>,
    /// `[intermediate, hidden]`
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
    /// The function applied to the gate, or to the only projection.
    pub activation: ActivationFn,
}

/// A mixture of experts: a router sends each token to a few MLPs out of many.
#[derive(Debug, Clone)]
pub struct MoE {
    /// `[n_experts, hidden]`
    pub router: Linear,
    /// Addends of the experts' scores when they are chosen, `[n_experts]`.
    pub score_bias: Option<Vec<f32>>,
    /// How tokens are routed.
    pub routing: Routing,
    /// The MLPs.
    pub experts: Vec<Mlp>,
    /// The factor of each expert's weight, after all others, `[n_experts]`.
    pub expert_scales: Option<Vec<f32>>,
    /// The expert that every token goes through.
    pub shared: Option<SharedExpert>,
}

/// The choice of a token's experts, and their weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// The number of experts that each token is routed to.
    pub experts_per_token: usize,
    /// The function that makes scores of the router's outputs.
    pub scoring: ExpertScore,
    /// Whether a token's expert weights are normalized to a sum of one.
    pub normalize_weights: bool,
    /// The factor of the weights, after that.
    pub weight_scale: f32,
}

/// The function that makes scores of a router's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertScore {
    /// The softmax over all experts.
    Softmax,
    /// The sigmoid of each.
    Sigmoid,
}

/// An MLP beside the routed experts, in some models scaled for each token: `sigmoid(output_gate(x)) * mlp(x)`.
#[derive(Debug, Clone)]
pub struct SharedExpert {
    /// The MLP.
    pub mlp: Mlp,
    /// `[1, hidden]`
    pub output_gate: Option<Linear>,
}

impl SharedExpert {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.mlp.forward(x)?;
        match &self.output_gate {
            Some(gate) => Ok(y.broadcast_mul(&sigmoid(&gate.forward(x)?)?)?),
            None => Ok(y),
        }
    }
}

impl Mlp {
    /// The first projections with their activation.
    pub fn up_projection(&self) -> UpProjection<'_> {
        let Self { gate, up, activation, .. } = self;
        match gate {
            Some(gate) => UpProjection::Gated { gate, up, activation: *activation },
            None => UpProjection::Plain { up, activation: *activation },
        }
    }

    /// The matrices that a token is multiplied with.
    pub fn matrices(&self) -> impl Iterator<Item = &Linear> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// Computes the MLP; `x` and the result are `[n_tokens, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.up_projection().forward(None, x)?)
    }
}

impl MoE {
    /// The matrices that a token is multiplied with, each with its number of uses. Experts are represented by the first.
    pub fn matrices(&self) -> impl Iterator<Item = (&Linear, usize)> {
        let experts = self.experts.iter().take(1).flat_map(Mlp::matrices);
        let shared = self.shared.iter().flat_map(|shared| shared.mlp.matrices().chain(&shared.output_gate));
        let experts = experts.map(|matrix| (matrix, self.routing.experts_per_token));
        [&self.router].into_iter().chain(shared).map(|matrix| (matrix, 1)).chain(experts)
    }

    /// The parameters of the kernels for an expert that some rows are routed to, if its weights are packed for them.
    fn routed(expert: &Mlp, rows: Vec<u32>, weights: Vec<f32>) -> Option<(Isa, RoutedExpert<'_>)> {
        let ((isa, inner), (_, down)) = expert.up_projection().packed().zip(expert.down.packed())?;
        let down = Projection::Residual(down.into());
        let rows = rows.into_iter().map(|row| row as usize).collect();
        Some((isa, RoutedExpert { inner, down, rows, weights }))
    }

    /// Computes the mixture; `x` and the result are `[n_tokens, hidden]`. Each expert computes all of its
    /// tokens in one batch.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_routed(x, x)
    }

    /// Computes the mixture with tokens routed by `router_input`, `[n_tokens, hidden]`, in place of `x`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward_routed(&self, router_input: &Tensor, x: &Tensor) -> Result<Tensor> {
        let logits = self.router.forward(router_input)?;
        let scores = match self.routing.scoring {
            ExpertScore::Softmax => softmax_last_dim(&logits)?,
            ExpertScore::Sigmoid => sigmoid(&logits)?,
        };
        // The tokens of each expert and their weights.
        let mut assigned = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (token, scores) in scores.to_vec2::<f32>()?.iter().enumerate() {
            for (expert, weight) in self.route(scores) {
                assigned[expert].0.push(token as u32);
                assigned[expert]
                    .1
                    .push(weight * self.expert_scales.as_ref().map_or(1.0, |scales| scales[expert]));
            }
        }
        let shared = self.shared.as_ref().map(|shared| shared.forward(x)).transpose()?;
        let used = || self.experts.iter().zip(&assigned).filter(|(_, (rows, _))| !rows.is_empty());
        let routed: Option<Vec<_>> = used()
            .map(|(expert, (rows, weights))| Self::routed(expert, rows.clone(), weights.clone()))
            .collect();
        if let Some([(isa, _), ..]) = routed.as_deref() {
            let isa = *isa;
            let routed: Vec<_> = routed.into_iter().flatten().map(|(_, expert)| expert).collect();
            let y = x.apply_op1_no_bwd(&ExpertsOp { isa, experts: &routed })?;
            return match shared {
                Some(shared) => Ok((shared + y)?),
                None => Ok(y),
            };
        }
        let mut y = shared.map_or_else(|| x.zeros_like(), Ok)?;
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

    /// The experts of a token with their weights: those with the highest scores, on a tie the one with the lower index.
    fn route(&self, scores: &[f32]) -> Vec<(usize, f32)> {
        let Routing { experts_per_token, normalize_weights, weight_scale, .. } = self.routing;
        let rank = |expert: usize| scores[expert] + self.score_bias.as_ref().map_or(0.0, |bias| bias[expert]);
        let mut ranked: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| rank(b.0).total_cmp(&rank(a.0)));
        ranked.truncate(experts_per_token);
        let sum: f32 = if normalize_weights { ranked.iter().map(|(_, weight)| weight).sum() } else { 1.0 };
        ranked.iter_mut().for_each(|(_, weight)| *weight *= weight_scale / sum);
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
        let expert = |i: usize| Mlp {
            gate: Some(matrix(1.0)),
            up: matrix(1.0),
            down: matrix(i as f32 + 1.0),
            activation: ActivationFn::Silu,
        };
        MoE {
            router: Linear::new(Weight::Dense(router), None),
            experts: (0..3).map(expert).collect(),
            expert_scales: None,
            score_bias: None,
            routing: Routing {
                experts_per_token: 2,
                scoring: ExpertScore::Softmax,
                normalize_weights,
                weight_scale: 1.0,
            },
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
