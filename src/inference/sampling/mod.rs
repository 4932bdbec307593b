//! Sampling: from logits to a token.
//!
//! The chain, in order: logit bias, [`CachedRepeatPenalty`], presence and frequency penalties, temperature, top-k,
//! top-p, min-p, and a draw from a seeded generator. At temperature 0 the most likely token after the penalties is
//! taken (greedy decoding).

mod repeat_penalty;

use std::cmp::Ordering;
use std::collections::HashMap;

use candle_core::Tensor;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use repeat_penalty::{CachedRepeatPenalty, RepeatPenaltyStats};

use crate::error::{Error, Result};
use crate::kernels::isa::Isa;
use crate::kernels::logits as kernels;
use crate::models::DEVICE;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token; higher values flatten the distribution.
    pub temperature: f32,
    /// Keeps only this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens that together reach this probability.
    pub top_p: f32,
    /// Keeps tokens that are at least this fraction as likely as the most likely one.
    pub min_p: f32,
    /// Seed of the random generator; `None` takes a random one.
    pub seed: Option<u64>,
    /// Divides positive and multiplies negative logits of tokens in the recent past; 1 does nothing.
    pub repeat_penalty: f32,
    /// Length of the recent past in tokens, prompt included; `None` is everything.
    pub repeat_last_n: Option<usize>,
    /// Subtracted once from the logit of every token generated so far.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it was generated so far.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
            repeat_penalty: 1.0,
            repeat_last_n: Some(64),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Checks the parameters against a vocabulary.
    ///
    /// # Errors
    /// When the bias has a token id that is out of range.
    pub fn validate(&self, n_vocab: usize) -> Result<()> {
        match self.logit_bias.iter().find(|&&(id, _)| id as usize >= n_vocab) {
            Some((id, _)) => Err(Error::invalid(
                "logit_bias",
                format!("`logit_bias` names token {id}, but the vocabulary has {n_vocab} tokens"),
            )),
            None => Ok(()),
        }
    }

    /// Whether top-k, top-p or min-p leaves tokens out.
    fn has_cutoff(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// The sampler of one generation: its parameters and its penalties' state.
pub struct Sampler {
    params: SamplingParams,
    repeat_penalty: CachedRepeatPenalty,
    /// The bias as tensors of token ids and values, made once.
    logit_bias: Option<(Tensor, Tensor)>,
    /// How often each token was generated.
    generated: HashMap<u32, u32>,
    rng: StdRng,
}

impl Sampler {
    /// A sampler for a vocabulary of `n_vocab` tokens, at the end of `prompt`.
    ///
    /// # Errors
    /// When the bias has a token id that is out of range, or a tensor cannot be made.
    pub fn new(params: SamplingParams, n_vocab: usize, prompt: &[u32]) -> Result<Self> {
        let mut repeat_penalty =
            CachedRepeatPenalty::new(params.repeat_penalty, params.repeat_last_n, n_vocab)?;
        repeat_penalty.start(prompt)?;
        params.validate(n_vocab)?;
        let bias: (Vec<u32>, Vec<f32>) = params.logit_bias.iter().copied().unzip();
        let logit_bias = match bias.0.len() {
            0 => None,
            n => Some((Tensor::from_vec(bias.0, n, &DEVICE)?, Tensor::from_vec(bias.1, n, &DEVICE)?)),
        };
        let rng = params.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64);
        Ok(Self { params, repeat_penalty, logit_bias, generated: HashMap::new(), rng })
    }

    /// The logits `[n_vocab]` with the bias and the penalties applied.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn adjusted_logits(&mut self, logits: &Tensor) -> Result<Vec<f32>> {
        let biased = match &self.logit_bias {
            Some((ids, values)) => logits.index_add(ids, values, 0)?,
            None => logits.clone(),
        };
        let penalized = self.repeat_penalty.apply_cached_repeat_penalty(&biased)?;
        let mut adjusted = penalized.to_vec1::<f32>()?;
        let SamplingParams { presence_penalty, frequency_penalty, .. } = self.params;
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            for (&token, &count) in &self.generated {
                adjusted[token as usize] -= presence_penalty + frequency_penalty * count as f32;
            }
        }
        Ok(adjusted)
    }

    /// Draws the next token from adjusted logits. Those of masked tokens are minus infinity.
    ///
    /// # Errors
    /// When no logit is a finite number.
    pub fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        let max = max(logits);
        if !max.is_finite() {
            return Err(not_a_number());
        }
        let temperature = self.params.temperature;
        if temperature <= 0.0 {
            return Ok(argmax(logits));
        }
        let weights = kernels::softmax_weights(Isa::current(), logits, max, temperature);
        let drawn = if self.params.has_cutoff() {
            draw_candidate(&mut self.rng, &candidates(&weights, &self.params))
        } else {
            draw_from_all(&mut self.rng, &weights)
        };
        Ok(drawn.unwrap_or_else(|| argmax(logits)))
    }

    /// Records a generated token for the penalties.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn record(&mut self, token: u32) -> Result<()> {
        *self.generated.entry(token).or_default() += 1;
        self.repeat_penalty.push(token)
    }

    /// Statistics of the repeat penalty's cache in this generation.
    pub fn repeat_penalty_stats(&self) -> RepeatPenaltyStats {
        self.repeat_penalty.stats()
    }
}

/// The error of logits that are not numbers.
pub fn not_a_number() -> Error {
    Error::internal("the model's output is not a number; its file may be damaged")
}

/// Draws a candidate with a probability proportional to its weight; `None` without candidates.
fn draw_candidate(rng: &mut StdRng, candidates: &[(u32, f32)]) -> Option<u32> {
    let total: f64 = candidates.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let mut left = rng.random::<f64>() * total;
    for &(token, weight) in candidates {
        left -= f64::from(weight);
        if left < 0.0 {
            return Some(token);
        }
    }
    // Rounding can leave a trace of `left` at the very end.
    candidates.last().map(|&(token, _)| token)
}

/// [`draw_candidate`] when every token is a candidate, in order of ids: whole chunks are skipped by their sum.
fn draw_from_all(rng: &mut StdRng, weights: &[f32]) -> Option<u32> {
    const CHUNK: usize = 256;
    let sum = |weights: &[f32]| weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    let sums: Vec<f64> = weights.chunks(CHUNK).map(sum).collect();
    let mut left = rng.random::<f64>() * sums.iter().sum::<f64>();
    for (idx, sum) in sums.iter().enumerate() {
        if left >= *sum {
            left -= sum;
            continue;
        }
        for (token, &weight) in (0u32..).zip(weights).skip(idx * CHUNK) {
            left -= f64::from(weight);
            if left < 0.0 {
                return Some(token);
            }
        }
    }
    // Rounding can leave a trace of `left` at the very end.
    weights.iter().rposition(|&weight| weight > 0.0).map(|token| token as u32)
}

/// The largest logit; not finite when there is none or one is infinite. NaN counts as absent.
fn max(logits: &[f32]) -> f32 {
    kernels::max_logit(Isa::current(), logits)
}

/// The most likely token; the first of equals.
fn argmax(logits: &[f32]) -> u32 {
    let max = max(logits);
    logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32
}

/// The tokens that top-k, top-p and min-p keep, with their weights, relative to 1 for the most likely token. Where
/// top-k or top-p cuts, the most likely come first.
fn candidates(weights: &[f32], params: &SamplingParams) -> Vec<(u32, f32)> {
    // A weight that underflows to zero is never drawn.
    let mut weights: Vec<(u32, f32)> =
        (0u32..).zip(weights.iter().copied()).filter(|&(_, weight)| weight > 0.0).collect();
    if params.top_k > 0 && params.top_k < weights.len() {
        sort_top(&mut weights, params.top_k);
        weights.truncate(params.top_k);
    }
    if params.top_p < 1.0 {
        truncate_top_p(&mut weights, params.top_p);
    }
    if params.min_p > 0.0 {
        weights.retain(|&(_, weight)| weight >= params.min_p);
    }
    weights
}

/// Cuts `weights` after the most likely tokens that together reach the fraction `top_p` of all.
fn truncate_top_p(weights: &mut Vec<(u32, f32)>, top_p: f32) {
    let goal = f64::from(top_p) * weights.iter().map(|&(_, weight)| f64::from(weight)).sum::<f64>();
    // A few dozen tokens usually reach it, so the whole vocabulary is rarely sorted.
    let mut n_sorted = 64.min(weights.len());
    loop {
        sort_top(weights, n_sorted);
        let mut reached = 0.0;
        let cut = weights[..n_sorted].iter().position(|&(_, weight)| {
            reached += f64::from(weight);
            reached >= goal
        });
        if let Some(last) = cut {
            weights.truncate(last + 1);
            return;
        }
        if n_sorted == weights.len() {
            return;
        }
        n_sorted = (n_sorted * 8).min(weights.len());
    }
}

/// Moves the `n` most likely tokens to the front, sorted; of equals the lower id first.
fn sort_top(weights: &mut [(u32, f32)], n: usize) {
    let by_weight = |a: &(u32, f32), b: &(u32, f32)| descending(a.1, b.1).then(a.0.cmp(&b.0));
    if n < weights.len() {
        weights.select_nth_unstable_by(n, by_weight);
    }
    weights[..n].sort_unstable_by(by_weight);
}

fn descending(a: f32, b: f32) -> Ordering {
    b.total_cmp(&a)
}

/// The log probabilities of a distribution given as logits.
pub struct Logprobs<'a> {
    logits: &'a [f32],
    /// `ln(sum(exp(logits)))`
    log_sum: f32,
}

impl<'a> Logprobs<'a> {
    /// The log probabilities of `logits`, `[n_vocab]`.
    pub fn new(logits: &'a [f32]) -> Self {
        let max = max(logits);
        let weights = kernels::softmax_weights(Isa::current(), logits, max, 1.0);
        let sum: f64 = weights.into_iter().map(f64::from).sum();
        Self { logits, log_sum: max + sum.ln() as f32 }
    }

    /// The natural logarithm of a token's probability; minus infinity if the id is out of range.
    pub fn get(&self, token: u32) -> f32 {
        self.logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| logit - self.log_sum)
    }

    /// Whether the logits were numbers; those of single tokens may be minus infinity.
    pub fn are_finite(&self) -> bool {
        self.log_sum.is_finite()
    }

    /// A token's rank among all tokens; 1 is the most likely one.
    pub fn rank(&self, token: u32) -> usize {
        let Some(logit) = self.logits.get(token as usize) else { return self.logits.len() + 1 };
        1 + self.logits.iter().filter(|other| *other > logit).count()
    }

    /// The `n` most likely tokens, most likely first; of equals the lower id first. One pass over the logits, since `n`
    /// is small.
    pub fn top(&self, n: usize) -> Vec<(u32, f32)> {
        let mut top: Vec<(u32, f32)> = Vec::with_capacity(n.min(self.logits.len()) + 1);
        for (token, &logit) in (0u32..).zip(self.logits) {
            if top.len() == n && top.last().is_none_or(|&(_, least)| logit <= least) {
                continue;
            }
            let idx = top.partition_point(|&(_, other)| other >= logit);
            top.insert(idx, (token, logit));
            top.truncate(n);
        }
        top.into_iter().map(|(token, logit)| (token, logit - self.log_sum)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn params() -> SamplingParams {
        SamplingParams { seed: Some(1), ..SamplingParams::default() }
    }

    fn draw(params: SamplingParams, logits: &[f32], n: usize) -> Vec<u32> {
        let logits = Tensor::new(logits, &DEVICE).unwrap();
        let mut sampler = Sampler::new(params, logits.dims()[0], &[]).unwrap();
        let mut next = || {
            let adjusted = sampler.adjusted_logits(&logits)?;
            let token = sampler.draw(&adjusted)?;
            sampler.record(token).map(|()| token)
        };
        (0..n).map(|_| next().unwrap()).collect()
    }

    #[test]
    fn temperature_zero_takes_the_most_likely_token() {
        let greedy = SamplingParams { temperature: 0.0, ..params() };
        assert_eq!(draw(greedy.clone(), &[0.0, 3.0, 3.0, -1.0], 3), [1, 1, 1]);
        let biased = SamplingParams { logit_bias: vec![(3, 100.0)], ..greedy };
        assert_eq!(draw(biased, &[0.0, 3.0, 3.0, -1.0], 1), [3]);
    }

    #[test]
    fn impossible_biases_and_logits_are_errors() {
        let beyond = SamplingParams { logit_bias: vec![(4, 1.0)], ..params() };
        assert_eq!(Sampler::new(beyond, 4, &[]).err().unwrap().param(), Some("logit_bias"));
        let mut sampler = Sampler::new(params(), 2, &[]).unwrap();
        for bad in [[f32::NAN; 2], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert!(sampler.draw(&bad).is_err());
        }
    }

    #[test]
    fn presence_and_frequency_count_generated_tokens() {
        let greedy = SamplingParams { temperature: 0.0, ..params() };
        let presence = SamplingParams { presence_penalty: 1.5, ..greedy.clone() };
        assert_eq!(draw(presence, &[2.0, 1.0, 0.0], 4), [0, 1, 0, 0]);
        let frequency = SamplingParams { frequency_penalty: 0.6, ..greedy };
        assert_eq!(draw(frequency, &[2.0, 1.0, 0.0], 5), [0, 0, 1, 0, 1]);
    }

    #[test]
    fn a_seed_repeats_the_draw_and_draws_follow_the_distribution() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let tokens = draw(params(), &logits, 4000);
        assert_eq!(tokens, draw(params(), &logits, 4000));
        assert_ne!(tokens, draw(SamplingParams { seed: Some(2), ..params() }, &logits, 4000));
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        for (token, logit) in logits.iter().enumerate() {
            let share = tokens.iter().filter(|&&t| t as usize == token).count() as f32 / 4000.0;
            assert!((share - logit.exp() / sum).abs() < 0.03, "{token}: {share}");
        }
    }

    fn candidates_of(logits: &[f32], params: &SamplingParams) -> Vec<(u32, f32)> {
        candidates(&kernels::softmax_weights(Isa::current(), logits, max(logits), 1.0), params)
    }

    #[test]
    fn a_draw_from_all_equals_a_draw_from_every_candidate() {
        let weights: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
        let candidates: Vec<(u32, f32)> = (0u32..).zip(weights.iter().copied()).collect();
        for seed in 0..200 {
            let rng = || StdRng::seed_from_u64(seed);
            assert_eq!(draw_from_all(&mut rng(), &weights), draw_candidate(&mut rng(), &candidates));
        }
    }

    #[test]
    fn cutoffs_keep_what_their_definitions_say() {
        let probabilities = [0.1f32, 0.4, 0.2, 0.3];
        let logits = probabilities.map(f32::ln);
        let kept = |params: SamplingParams| -> Vec<u32> {
            let kept = candidates_of(&logits, &params);
            let mut kept: Vec<u32> = kept.iter().map(|&(token, _)| token).collect();
            kept.sort_unstable();
            kept
        };
        assert_eq!(kept(params()), [0, 1, 2, 3]);
        assert_eq!(kept(SamplingParams { top_k: 2, ..params() }), [1, 3]);
        assert_eq!(kept(SamplingParams { top_p: 0.69, ..params() }), [1, 3]);
        assert_eq!(kept(SamplingParams { top_p: 0.71, ..params() }), [1, 2, 3]);
        assert_eq!(kept(SamplingParams { min_p: 0.51, ..params() }), [1, 3]);
        assert_eq!(kept(SamplingParams { top_p: 0.0, ..params() }), [1]);
    }

    #[test]
    fn logprobs_are_normalized_and_sorted() {
        let logits = [1.0, 3.0, 2.0];
        let logprobs = Logprobs::new(&logits);
        let sum: f32 = (0..3).map(|token| logprobs.get(token).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_eq!(logprobs.top(2).iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(logprobs.top(9).len(), 3);
        assert!(logprobs.top(0).is_empty());
        assert_eq!([0, 1, 2].map(|token| logprobs.rank(token)), [3, 1, 2]);
        let equal = Logprobs::new(&[2.0, 5.0, 2.0, 5.0]);
        assert_eq!(equal.top(3).iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 3, 0]);
        assert_eq!((equal.rank(3), equal.rank(2)), (1, 3));
        assert!(equal.are_finite() && !Logprobs::new(&[f32::NAN; 2]).are_finite());
    }

    proptest! {
        #[test]
        fn top_p_agrees_with_a_full_sort(
            logits in prop::collection::vec(-8f32..8.0, 1..600),
            top_p in 0f32..1.0,
        ) {
            let mut all: Vec<f32> = logits.clone();
            all.sort_by(|a, b| b.total_cmp(a));
            let weights: Vec<f64> = all.iter().map(|&l| f64::from((l - all[0]).exp())).collect();
            let goal = f64::from(top_p) * weights.iter().sum::<f64>();
            let mut reached = 0.0;
            let n = weights.iter().take_while(|&&w| { let more = reached < goal; reached += w; more }).count().max(1);
            let kept = candidates_of(&logits, &SamplingParams { top_p, ..params() });
            // The sum of the kept before the last; close to the goal, rounding decides.
            let close = |n: usize| (weights[..n].iter().sum::<f64>() - goal).abs() < 1e-4;
            prop_assert!(kept.len() == n || close(n) || close(n - 1), "{} {n}", kept.len());
            for (&(token, _), expected) in kept.iter().zip(&all) {
                prop_assert_eq!(logits[token as usize], *expected);
            }
        }
    }
}
