//! The repeat penalty with a cached tensor.
//!
//! In every step, the usual implementation (candle-transformers) copies all logits out, walks the recent tokens with a
//! set, and makes a new tensor. Here one tensor over the vocabulary holds each token's factor and lives as long as the
//! generation: a new token changes one element, a token that leaves the window changes one, and a step makes one new
//! tensor, the penalized logits.

use std::collections::{HashMap, VecDeque};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor, bail};

use crate::error::{Error, Result};
use crate::models::DEVICE;

/// A repeat penalty that remembers the tokens of its window.
#[derive(Debug)]
pub struct CachedRepeatPenalty {
    /// Length of the window in tokens; `None` is unbounded.
    last_n: Option<usize>,
    /// `None` when the penalty does nothing.
    factors: Option<PenaltyFactors>,
    window: VecDeque<u32>,
    /// How often each token occurs in the window.
    counts: HashMap<u32, u32>,
    stats: RepeatPenaltyStats,
}

/// Statistics of the cache in one generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepeatPenaltyStats {
    /// Steps that used the cached factors: each saved a tensor and a set.
    pub hits: u64,
    /// Elements of the factors that were changed.
    pub updates: u64,
    /// Steps with penalty 1 or without a window, which cost nothing.
    pub skipped: u64,
}

#[derive(Debug)]
struct PenaltyFactors {
    /// The factor of each token, `[n_vocab]`: the penalty for those in the window, else 1.
    all: Tensor,
    /// The factor 1 as a tensor of one element, to write from.
    one: Tensor,
    /// The penalty as a tensor of one element.
    penalty: Tensor,
}

impl CachedRepeatPenalty {
    /// A penalty for a vocabulary of `n_vocab` tokens with an empty window of `last_n` tokens (`None`: unbounded).
    /// Penalty 1 or a window of 0 allocates nothing.
    ///
    /// # Errors
    /// When the penalty is not a positive number.
    pub fn new(penalty: f32, last_n: Option<usize>, n_vocab: usize) -> Result<Self> {
        if !(penalty.is_finite() && penalty > 0.0) {
            return Err(Error::invalid(
                "repeat_penalty",
                format!("repeat_penalty must be above 0, not {penalty}"),
            ));
        }
        let factors = if penalty == 1.0 || last_n == Some(0) {
            None
        } else {
            Some(PenaltyFactors {
                all: Tensor::ones(n_vocab, DType::F32, &DEVICE)?,
                one: Tensor::new(&[1f32], &DEVICE)?,
                penalty: Tensor::new(&[penalty], &DEVICE)?,
            })
        };
        Ok(Self {
            last_n,
            factors,
            window: VecDeque::new(),
            counts: HashMap::new(),
            stats: RepeatPenaltyStats::default(),
        })
    }

    /// Starts a generation: clears the window and the statistics, then fills the window from the end of `prompt`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn start(&mut self, prompt: &[u32]) -> Result<()> {
        let previous: Vec<u32> = self.counts.drain().map(|(token, _)| token).collect();
        for token in previous {
            self.set_factor(token, false)?;
        }
        self.window.clear();
        let first = prompt.len().saturating_sub(self.last_n.unwrap_or(prompt.len()));
        for &token in &prompt[first..] {
            self.push(token)?;
        }
        self.stats = RepeatPenaltyStats::default();
        Ok(())
    }

    /// Adds a token to the window; the oldest one leaves when it is full.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn push(&mut self, token: u32) -> Result<()> {
        if self.factors.is_none() {
            return Ok(());
        }
        self.window.push_back(token);
        let count = self.counts.entry(token).or_default();
        *count += 1;
        if *count == 1 {
            self.set_factor(token, true)?;
        }
        if self.last_n.is_some_and(|last_n| self.window.len() > last_n)
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
                self.set_factor(oldest, false)?;
            }
        }
        Ok(())
    }

    /// Penalizes the tokens of the window: positive logits are divided by the penalty, negative ones multiplied.
    /// `logits` is `[n_vocab]`; the result is the one new tensor of the step, or `logits` itself if there is nothing to
    /// do.
    ///
    /// # Errors
    /// When `logits` is not float32 of the vocabulary's size.
    pub fn apply_cached_repeat_penalty(&mut self, logits: &Tensor) -> Result<Tensor> {
        let Some(factors) = &self.factors else {
            self.stats.skipped += 1;
            return Ok(logits.clone());
        };
        self.stats.hits += 1;
        if logits.device().is_cpu() {
            let op = PenalizeOp { window: &self.counts };
            Ok(logits.apply_op2_no_bwd(&factors.all, &op)?)
        } else {
            penalize(logits, &factors.all)
        }
    }

    /// Statistics since [`CachedRepeatPenalty::start`].
    pub fn stats(&self) -> RepeatPenaltyStats {
        self.stats
    }

    /// Changes one element of the factors. Token ids out of range have no logit and are ignored.
    fn set_factor(&mut self, token: u32, penalized: bool) -> Result<()> {
        let Some(factors) = &self.factors else { return Ok(()) };
        if (token as usize) < factors.all.dims()[0] {
            let value = if penalized { &factors.penalty } else { &factors.one };
            factors.all.slice_set(value, 0, token as usize)?;
            self.stats.updates += 1;
        }
        Ok(())
    }
}

/// `logit / factor` where the logit is positive, `logit * factor` elsewhere, in plain candle operations: the reference,
/// and the implementation on devices other than the CPU.
fn penalize(logits: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let is_positive = logits.gt(0f32)?;
    Ok(is_positive.where_cond(&(logits / factors)?, &(logits * factors)?)?)
}

/// [`penalize`] on the CPU: one copy in which only the tokens of the window are touched, since all other factors are 1.
struct PenalizeOp<'a> {
    /// The tokens of the window, by count.
    window: &'a HashMap<u32, u32>,
}

impl CustomOp2 for PenalizeOp<'_> {
    fn name(&self) -> &'static str {
        "repeat-penalty"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        factors: &CpuStorage,
        factors_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let logits = contiguous(logits, logits_layout)?;
        let factors = contiguous(factors, factors_layout)?;
        if logits.len() != factors.len() {
            bail!("{} logits for a vocabulary of {}", logits.len(), factors.len());
        }
        let mut penalized = logits.to_vec();
        for &token in self.window.keys() {
            // Token ids out of range have no logit.
            if let (Some(logit), Some(factor)) =
                (penalized.get_mut(token as usize), factors.get(token as usize))
            {
                *logit = if *logit > 0.0 { *logit / factor } else { *logit * factor };
            }
        }
        Ok((CpuStorage::F32(penalized), logits_layout.shape().clone()))
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("the repeat penalty needs contiguous logits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, computed from all tokens in each step.
    fn naive(logits: &[f32], penalty: f32, tokens: &[u32], last_n: Option<usize>) -> Vec<f32> {
        let window = &tokens[tokens.len().saturating_sub(last_n.unwrap_or(tokens.len()))..];
        (0u32..)
            .zip(logits)
            .map(|(token, &logit)| match (window.contains(&token), logit > 0.0) {
                (false, _) => logit,
                (true, true) => logit / penalty,
                (true, false) => logit * penalty,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn equals_the_naive_definition(
            logits in prop::collection::vec(-10f32..10.0, 1..40),
            penalty in prop_oneof![Just(1.0f32), 0.5f32..2.0],
            last_n in prop::option::of(0usize..12),
            prompt in prop::collection::vec(0u32..50, 0..20),
            generated in prop::collection::vec(0u32..50, 0..40),
            earlier in prop::collection::vec(0u32..50, 0..20),
        ) {
            let tensor = Tensor::new(logits.as_slice(), &DEVICE).unwrap();
            let mut cached = CachedRepeatPenalty::new(penalty, last_n, logits.len()).unwrap();
            // Nothing of an earlier generation may remain.
            cached.start(&earlier).unwrap();
            cached.start(&prompt).unwrap();
            let mut tokens = prompt;
            for token in generated {
                let penalized = cached.apply_cached_repeat_penalty(&tensor).unwrap();
                let expected = naive(&logits, penalty, &tokens, last_n);
                prop_assert_eq!(&penalized.to_vec1::<f32>().unwrap(), &expected);
                if let Some(factors) = &cached.factors {
                    let reference = penalize(&tensor, &factors.all).unwrap();
                    prop_assert_eq!(reference.to_vec1::<f32>().unwrap(), expected);
                }
                cached.push(token).unwrap();
                tokens.push(token);
            }
        }
    }

    #[test]
    fn penalty_one_does_nothing_at_all() {
        let logits = Tensor::new(&[1f32, -1.0], &DEVICE).unwrap();
        let mut cached = CachedRepeatPenalty::new(1.0, Some(64), 2).unwrap();
        cached.start(&[0, 1]).unwrap();
        cached.push(1).unwrap();
        let same = cached.apply_cached_repeat_penalty(&logits).unwrap();
        assert_eq!(same.id(), logits.id(), "not even a new tensor");
        assert!(cached.factors.is_none() && cached.window.is_empty());
        assert_eq!(cached.stats(), RepeatPenaltyStats { hits: 0, updates: 0, skipped: 1 });
    }

    #[test]
    fn one_element_changes_per_token_that_enters_or_leaves() {
        let mut cached = CachedRepeatPenalty::new(1.3, Some(2), 10).unwrap();
        cached.start(&[]).unwrap();
        let updates = |cached: &mut CachedRepeatPenalty, token| {
            let before = cached.stats().updates;
            cached.push(token).unwrap();
            cached.stats().updates - before
        };
        assert_eq!(updates(&mut cached, 1), 1);
        assert_eq!(updates(&mut cached, 1), 0, "already penalized");
        assert_eq!(updates(&mut cached, 2), 1, "one 1 left, one stays");
        assert_eq!(updates(&mut cached, 3), 2, "3 came, 1 went");
    }

    #[test]
    fn the_factors_tensor_lives_as_long_as_the_generation() {
        let logits = Tensor::new(&[1f32, 1.0, 1.0], &DEVICE).unwrap();
        let mut cached = CachedRepeatPenalty::new(2.0, None, 3).unwrap();
        cached.start(&[0]).unwrap();
        let id = cached.factors.as_ref().unwrap().all.id();
        for token in [1, 2, 1] {
            cached.apply_cached_repeat_penalty(&logits).unwrap();
            cached.push(token).unwrap();
        }
        assert_eq!(cached.factors.as_ref().unwrap().all.id(), id);
        assert_eq!(cached.stats().hits, 3);
    }

    #[test]
    fn impossible_penalties_are_refused() {
        for penalty in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(CachedRepeatPenalty::new(penalty, None, 4).is_err());
        }
    }
}
