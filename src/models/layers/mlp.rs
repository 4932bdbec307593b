//! MLPs and mixtures of experts.

use candle_core::{D, Tensor};
use candle_nn::ops::{sigmoid, softmax_last_dim};

use super::linear::{Linear, UpProjection};
use crate::error::Result;
use crate::kernels::custom_ops::ExpertsOp;
use crate::kernels::isa::Isa;
use crate::kernels::matmul::{ActivationFn, Projection, RoutedExpert};
use crate::models::backend::DEVICE;

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
    /// The cutoff of the gate before that; see [`UpProjection::Sparse`].
    pub cutoff: Option<f64>,
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
    /// The groups of experts, in mixtures whose tokens go to the experts of a few groups.
    pub groups: Option<ExpertGroups>,
    /// Whether a token's expert weights are normalized to a sum of one.
    pub normalize_weights: bool,
    /// The factor of the weights, after that.
    pub weight_scale: f32,
}

/// Groups of equally many consecutive experts, of which a token's experts come from the best ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// The number of groups.
    pub n_groups: usize,
    /// The number of groups that each token is routed to.
    pub groups_per_token: usize,
}

impl ExpertGroups {
    /// The number of experts in the groups of a token, of `n_experts`.
    pub fn n_eligible(&self, n_experts: usize) -> usize {
        n_experts / self.n_groups * self.groups_per_token
    }

    /// The experts in the best groups, given the rank of each expert. The score of a group is the highest rank in it
    /// (DeepSeek-V2), or with sigmoid scores the sum of the two highest (DeepSeek-V3).
    fn eligible(&self, ranks: &[f32], scoring: ExpertScore) -> Vec<usize> {
        let group_len = ranks.len() / self.n_groups;
        let n_summed = match scoring {
            ExpertScore::Softmax => 1,
            ExpertScore::Sigmoid => 2,
        };
        let score = |ranks: &[f32]| -> f32 {
            let mut ranks = ranks.to_vec();
            ranks.sort_by(|a, b| b.total_cmp(a));
            ranks.iter().take(n_summed).sum()
        };
        let mut groups: Vec<(usize, f32)> = ranks.chunks_exact(group_len).map(score).enumerate().collect();
        groups.sort_by(|a, b| b.1.total_cmp(&a.1));
        groups.truncate(self.groups_per_token);
        groups.iter().flat_map(|(group, _)| group * group_len..(group + 1) * group_len).collect()
    }
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
        let Self { gate, up, activation, cutoff, .. } = self;
        let activation = *activation;
        match (gate, *cutoff) {
            (Some(gate), Some(cutoff)) => UpProjection::Sparse { gate, up, activation, cutoff },
            (Some(gate), None) => UpProjection::Gated { gate, up, activation },
            (None, _) => UpProjection::Plain { up, activation },
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
            let rows = Tensor::from_vec(tokens, n_tokens, &DEVICE)?;
            let weights = Tensor::from_vec(weights, (n_tokens, 1), &DEVICE)?;
            let outputs = expert.forward(&x.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            y = y.index_add(&rows, &outputs, D::Minus2)?;
        }
        Ok(y)
    }

    /// The experts of a token with their weights: those with the highest scores, on a tie the one with the lower index.
    fn route(&self, scores: &[f32]) -> Vec<(usize, f32)> {
        let Routing { experts_per_token, scoring, groups, normalize_weights, weight_scale } = self.routing;
        let bias = |expert: usize| self.score_bias.as_ref().map_or(0.0, |bias| bias[expert]);
        let ranks: Vec<f32> = scores.iter().enumerate().map(|(expert, score)| score + bias(expert)).collect();
        let eligible = match groups {
            Some(groups) => groups.eligible(&ranks, scoring),
            None => (0..scores.len()).collect(),
        };
        let mut ranked: Vec<(usize, f32)> =
            eligible.into_iter().map(|expert| (expert, scores[expert])).collect();
        ranked.sort_by(|a, b| ranks[b.0].total_cmp(&ranks[a.0]).then(a.0.cmp(&b.0)));
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
            let identity = Tensor::eye(2, candle_core::DType::F32, &DEVICE).unwrap();
            Linear::new(Weight::Dense((identity * f64::from(value)).unwrap()), None)
        };
        let router = Tensor::new(&[[1f32, 0.0], [0.0, 1.0], [-1.0, -1.0]], &DEVICE).unwrap();
        let expert = |i: usize| Mlp {
            gate: Some(matrix(1.0)),
            up: matrix(1.0),
            down: matrix(i as f32 + 1.0),
            activation: ActivationFn::Silu,
            cutoff: None,
        };
        MoE {
            router: Linear::new(Weight::Dense(router), None),
            experts: (0..3).map(expert).collect(),
            expert_scales: None,
            score_bias: None,
            routing: Routing {
                experts_per_token: 2,
                scoring: ExpertScore::Softmax,
                groups: None,
                normalize_weights,
                weight_scale: 1.0,
            },
            shared: None,
        }
    }

    #[test]
    fn experts_come_from_the_best_groups() {
        let ranks = [0.1, 0.9, 0.5, 0.6, 0.0, 0.2];
        let eligible = |groups_per_token: usize, scoring| {
            ExpertGroups { n_groups: 3, groups_per_token }.eligible(&ranks, scoring)
        };
        assert_eq!(eligible(1, ExpertScore::Softmax), [0, 1]);
        assert_eq!(eligible(1, ExpertScore::Sigmoid), [2, 3]);
        assert_eq!(eligible(2, ExpertScore::Sigmoid), [2, 3, 0, 1]);

        let mut moe = moe(false);
        let groups = ExpertGroups { n_groups: 3, groups_per_token: 2 };
        moe.routing = Routing { groups: Some(groups), scoring: ExpertScore::Sigmoid, ..moe.routing };
        // The addends decide which experts are chosen, and are not in their weights.
        moe.score_bias = Some(vec![0.0, -1.0, 0.5]);
        assert_eq!(moe.route(&[0.4, 0.9, 0.3]), [(2, 0.3), (0, 0.4)]);
    }

    #[test]
    fn each_token_is_routed_to_its_own_experts() {
        let x = Tensor::new(&[[3f32, 0.0], [0.0, 2.0]], &DEVICE).unwrap();
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
