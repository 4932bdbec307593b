//! Speculative decoding by prompt lookup: n-grams of the text, or of the client's `prediction`, propose draft
//! tokens.
//!
//! The tokens that followed the last few tokens at their previous occurrence are likely to follow them again
//! (Saxena, "Prompt Lookup Decoding", 2023). The model computes a few draft tokens together with the newest token
//! at little extra cost, and those that equal what it samples itself are accepted: the text does not change.
//!
//! Whether a draft would have been accepted shows at every token, computed or not. So a text that does not repeat
//! itself costs nothing, and drafts resume as soon as it does.

use std::collections::HashMap;

/// Draft tokens that one batch computes for a sequence, at most.
const MAX_DRAFT_TOKENS: usize = 8;

/// Lengths of the n-grams that are looked up, the longer first: its drafts are accepted more often.
const LONG_NGRAM: usize = 4;
const SHORT_NGRAM: usize = 2;

/// Weight of the newest draft in the moving average of the acceptance rate.
const NEWEST_WEIGHT: f64 = 0.1;

/// An index of the n-grams of one text, and of a prediction of how it continues.
#[derive(Debug, Clone, Default)]
pub struct PromptLookup {
    /// The prediction, followed by the text as far as it is indexed.
    tokens: Vec<u32>,
    n_predicted: usize,
    long: NgramIndex<LONG_NGRAM>,
    short: NgramIndex<SHORT_NGRAM>,
}

/// The positions after all n-grams of a text.
#[derive(Debug, Clone)]
struct NgramIndex<const N: usize> {
    /// The position after the last occurrence of each n-gram.
    ends: HashMap<[u32; N], usize>,
    /// Tokens that are indexed.
    n_indexed: usize,
    /// Moving average of the share of draft tokens that were right.
    acceptance_rate: f64,
}

impl<const N: usize> Default for NgramIndex<N> {
    fn default() -> Self {
        Self { ends: HashMap::new(), n_indexed: 0, acceptance_rate: 0.5 }
    }
}

impl<const N: usize> NgramIndex<N> {
    /// The position after the previous occurrence of the last n-gram of `tokens`.
    fn lookup(&self, tokens: &[u32]) -> Option<usize> {
        self.ends.get(tokens.last_chunk::<N>()?).copied()
    }

    /// Makes the beginning of `tokens` the continuation of their end.
    fn expect_beginning(&mut self, tokens: &[u32]) {
        if let Some(ngram) = tokens.last_chunk::<N>() {
            self.ends.insert(*ngram, 0);
        }
    }

    /// Indexes the rest of `tokens`. All but the first call also update the acceptance rate.
    fn extend(&mut self, tokens: &[u32]) {
        let is_prompt = self.n_indexed == 0;
        for end in self.n_indexed..tokens.len() {
            // The n-gram before this token has a continuation only now.
            let Some(ngram) = tokens[..end].last_chunk::<N>() else { continue };
            let previous = self.ends.insert(*ngram, end);
            if let Some(previous) = previous.filter(|_| !is_prompt) {
                let is_right = f64::from(tokens[previous] == tokens[end]);
                self.acceptance_rate += NEWEST_WEIGHT * (is_right - self.acceptance_rate);
            }
        }
        self.n_indexed = tokens.len();
    }
}

impl PromptLookup {
    /// An index for a text whose prompt is likely to be followed by the tokens `prediction`.
    pub fn new(prediction: Vec<u32>) -> Self {
        Self { n_predicted: prediction.len(), tokens: prediction, ..Self::default() }
    }

    /// Indexes the rest of a text, which has grown since the last call.
    pub fn extend(&mut self, text: &[u32]) {
        let is_first = self.tokens.len() == self.n_predicted;
        self.tokens.extend_from_slice(&text[self.tokens.len() - self.n_predicted..]);
        self.long.extend(&self.tokens);
        self.short.extend(&self.tokens);
        if is_first && self.n_predicted > 0 {
            self.long.expect_beginning(&self.tokens);
            self.short.expect_beginning(&self.tokens);
        }
    }

    /// Draft tokens for the end of the indexed text, and the probability that each is right if those before it
    /// are.
    pub fn propose_drafts(&self) -> (Vec<u32>, f64) {
        let found = self.long.lookup(&self.tokens).map(|position| (position, self.long.acceptance_rate));
        let found = found.or_else(|| Some((self.short.lookup(&self.tokens)?, self.short.acceptance_rate)));
        let Some((position, acceptance_rate)) = found else { return (Vec::new(), 0.0) };
        // A continuation that reaches the end of the text repeats itself.
        let drafts = self.tokens[position..].iter().copied().cycle().take(MAX_DRAFT_TOKENS);
        (drafts.collect(), acceptance_rate)
    }
}

/// The time that a batch takes by its number of rows, `fixed + per_row * n_rows`, learned from past batches. It
/// decides which draft tokens are worth computing.
#[derive(Debug, Clone)]
pub struct DraftCostModel {
    /// `fixed / per_row`: the number of rows that take as long as the fixed part of a batch.
    fixed_cost_rows: f64,
    /// Sums over past batches, fading with age, of 1, rows, rows², seconds, and seconds times rows.
    sums: [f64; 5],
}

impl DraftCostModel {
    /// Weight of a batch relative to the next one.
    const FADING: f64 = 0.98;
    /// Share of the way back to the default after a batch that teaches nothing.
    const RESET_RATE: f64 = 0.01;
    /// Variance of the number of rows below which the cost of a row cannot be told.
    const MIN_VARIANCE: f64 = 0.1;

    /// Learns from the duration of a batch without prompts.
    pub fn record(&mut self, n_rows: usize, seconds: f64) {
        let rows = n_rows as f64;
        for (sum, x) in self.sums.iter_mut().zip([1.0, rows, rows * rows, seconds, seconds * rows]) {
            *sum = Self::FADING * *sum + x;
        }
        let [n, rows, squares, seconds, products] = self.sums;
        let variance = squares / n - (rows / n).powi(2);
        if variance < Self::MIN_VARIANCE {
            // The estimate returns to the default, so that drafts are tried again.
            self.fixed_cost_rows +=
                Self::RESET_RATE * (Self::default().fixed_cost_rows - self.fixed_cost_rows);
            return;
        }
        // Linear regression.
        let per_row = (products / n - rows / n * seconds / n) / variance;
        let fixed = (seconds - per_row * rows) / n;
        self.fixed_cost_rows = if per_row > 0.0 { (fixed / per_row).clamp(0.0, 16.0) } else { 16.0 };
    }

    /// The probability of acceptance from which one more draft token increases the tokens per second of a batch
    /// that has `n_rows` rows and is expected to yield `n_tokens` tokens.
    pub fn min_probability(&self, n_rows: usize, n_tokens: f64) -> f64 {
        n_tokens / (self.fixed_cost_rows + n_rows as f64)
    }
}

impl Default for DraftCostModel {
    fn default() -> Self {
        Self { fixed_cost_rows: 4.0, sums: [0.0; 5] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_repeat_the_last_continuation_and_are_rated() {
        let mut lookup = PromptLookup::default();
        let mut text = vec![1, 2, 3, 4, 5, 6, 7, 9, 1, 2];
        lookup.extend(&text);
        assert_eq!(lookup.propose_drafts(), (vec![3, 4, 5, 6, 7, 9, 1, 2], 0.5));
        text.push(3);
        lookup.extend(&text);
        let (drafts, rate) = lookup.propose_drafts();
        assert_eq!(drafts, [4, 5, 6, 7, 9, 1, 2, 3]);
        assert!(rate > 0.5, "{rate}");
        text.extend([8, 2, 3]);
        lookup.extend(&text);
        // The newest occurrence counts.
        let (drafts, rate) = lookup.propose_drafts();
        assert_eq!(drafts, [8, 2, 3, 8, 2, 3, 8, 2]);
        assert!(rate < 0.55, "a rejected draft lowers the rate: {rate}");
        text.push(77);
        lookup.extend(&text);
        assert_eq!(lookup.propose_drafts(), (vec![], 0.0));
        assert_eq!(PromptLookup::default().propose_drafts(), (vec![], 0.0));
    }

    #[test]
    fn drafts_follow_a_prediction_from_its_beginning() {
        let mut lookup = PromptLookup::new(vec![11, 12, 13, 14, 15, 16]);
        let mut text = vec![1, 2, 3, 4];
        lookup.extend(&text);
        assert_eq!(lookup.propose_drafts(), (vec![11, 12, 13, 14, 15, 16, 1, 2], 0.5));
        text.extend([11, 12]);
        lookup.extend(&text);
        let (drafts, rate) = lookup.propose_drafts();
        assert_eq!(drafts[..4], [13, 14, 15, 16]);
        assert!(rate > 0.5, "{rate}");
        // A text that leaves the prediction finds it again.
        text.extend([99, 98, 14, 15]);
        lookup.extend(&text);
        assert_eq!(lookup.propose_drafts().0[0], 16);
        let mut short = PromptLookup::new(vec![11]);
        short.extend(&[1]);
        assert_eq!(short.propose_drafts().0[0], 11);
    }

    #[test]
    fn a_draft_must_be_worth_the_cost_of_its_row() {
        let mut cost = DraftCostModel::default();
        assert_eq!(cost.min_probability(1, 1.0), 0.2);
        for _ in 0..200 {
            cost.record(4, 0.014);
        }
        assert_eq!(cost.min_probability(1, 1.0), 0.2, "batches of one size teach nothing");
        for _ in 0..200 {
            cost.record(1, 0.011);
            cost.record(4, 0.014);
        }
        assert!((cost.min_probability(2, 1.0) - 1.0 / 12.0).abs() < 1e-6);
        assert!(cost.min_probability(32, 32.0) > 0.7);
        for _ in 0..400 {
            cost.record(1, 0.001);
            cost.record(4, 0.004);
        }
        assert!(cost.min_probability(2, 2.0) > 0.99, "rows that cost as much as batches are never worth it");
        for _ in 0..1000 {
            cost.record(1, 0.001);
        }
        assert!(cost.min_probability(1, 1.0) < 0.21, "the estimate returns to the default");
    }
}
