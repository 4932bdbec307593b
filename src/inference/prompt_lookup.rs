//! Guesses at what comes next, out of a text itself or of what the client predicts of it: what followed its last few tokens when they stood there
//! before may follow them again (Saxena, "Prompt TableLookup Decoding", 2023). The model computes a few guesses
//! along with the newest token for little more than that one takes, and what it would have chosen itself is
//! kept: the text stays the same.
//!
//! Whether a guess would have been right shows at every token, computed or not. So a text that does not
//! repeat itself costs nothing, and is guessed at again as soon as it does.

use std::collections::HashMap;

/// Most guesses that one batch computes for a sequence.
const MOST_GUESSES: usize = 8;

/// Tokens by which a place is found again: the more, the surer.
const LONG: usize = 4;
const SHORT: usize = 2;

/// What a new right or wrong guess counts in the share of right ones.
const NEWEST: f64 = 0.1;

/// Where the tokens of one text stood before, there or in a prediction of its end.
#[derive(Debug, Clone, Default)]
pub struct PromptLookup {
    /// The prediction, and after it the text as far as it was read.
    tokens: Vec<u32>,
    n_predicted: usize,
    long: Places<LONG>,
    short: Places<SHORT>,
}

/// Places by the `N` tokens before them.
#[derive(Debug, Clone)]
struct Places<const N: usize> {
    /// Where each run of tokens ended last.
    ends: HashMap<[u32; N], usize>,
    /// Tokens that have been read.
    n_read: usize,
    /// Share of guesses that were right, of late.
    right: f64,
}

impl<const N: usize> Default for Places<N> {
    fn default() -> Self {
        Self { ends: HashMap::new(), n_read: 0, right: 0.5 }
    }
}

impl<const N: usize> Places<N> {
    /// Where the last tokens of `tokens`, all of which but those were read, ended before.
    fn find(&self, tokens: &[u32]) -> Option<usize> {
        self.ends.get(tokens.last_chunk::<N>()?).copied()
    }

    /// Expects after the last of `tokens` what their first are.
    fn expect_beginning(&mut self, tokens: &[u32]) {
        if let Some(run) = tokens.last_chunk::<N>() {
            self.ends.insert(*run, 0);
        }
    }

    /// Reads on to the end of `tokens`. What comes after the first reading tells how good guesses are.
    fn read(&mut self, tokens: &[u32]) {
        let is_prompt = self.n_read == 0;
        for end in self.n_read..tokens.len() {
            // The run before this token is only now known to have something after it.
            let Some(run) = tokens[..end].last_chunk::<N>() else { continue };
            let before = self.ends.insert(*run, end);
            if let Some(before) = before.filter(|_| !is_prompt) {
                let is_right = f64::from(tokens[before] == tokens[end]);
                self.right += NEWEST * (is_right - self.right);
            }
        }
        self.n_read = tokens.len();
    }
}

impl PromptLookup {
    /// Of a text that may go on, after what is read first, with the tokens `predicted`.
    pub fn new(predicted: Vec<u32>) -> Self {
        Self { n_predicted: predicted.len(), tokens: predicted, ..Self::default() }
    }

    /// Reads on to the end of a text, which has grown since the last time.
    pub fn read(&mut self, text: &[u32]) {
        let is_first = self.tokens.len() == self.n_predicted;
        self.tokens.extend_from_slice(&text[self.tokens.len() - self.n_predicted..]);
        self.long.read(&self.tokens);
        self.short.read(&self.tokens);
        if is_first && self.n_predicted > 0 {
            self.long.expect_beginning(&self.tokens);
            self.short.expect_beginning(&self.tokens);
        }
    }

    /// What may come after the text as it was read, and how likely each token is right if those before it are.
    pub fn guess(&self) -> (Vec<u32>, f64) {
        let found = self.long.find(&self.tokens).map(|place| (place, self.long.right));
        let found = found.or_else(|| Some((self.short.find(&self.tokens)?, self.short.right)));
        let Some((place, right)) = found else { return (Vec::new(), 0.0) };
        // What is near its end goes on as it goes on there.
        (self.tokens[place..].iter().copied().cycle().take(MOST_GUESSES).collect(), right)
    }
}

/// How much longer a batch takes for each row more, learnt from the batches there were.
#[derive(Debug, Clone)]
pub struct RowCost {
    /// As many rows as take as long as what is the same for every batch.
    rows_worth: f64,
    /// Sums over the batches of late, the newest counting most, of `1`, rows, their squares, seconds, and
    /// seconds times rows.
    sums: [f64; 5],
}

impl RowCost {
    /// What the last batch still counts after a next one.
    const FADING: f64 = 0.98;
    /// How much of what was learnt a batch costs that teaches nothing.
    const FORGETTING: f64 = 0.01;
    /// Below this variance of rows nothing can be learnt from them.
    const LEAST_VARIANCE: f64 = 0.1;

    /// Learns from a batch without prompts.
    pub fn learn(&mut self, n_rows: usize, seconds: f64) {
        let rows = n_rows as f64;
        for (sum, x) in self.sums.iter_mut().zip([1.0, rows, rows * rows, seconds, seconds * rows]) {
            *sum = Self::FADING * *sum + x;
        }
        let [n, rows, squares, seconds, products] = self.sums;
        let variance = squares / n - (rows / n).powi(2);
        if variance < Self::LEAST_VARIANCE {
            // Slowly forgotten, so that it is tried again.
            self.rows_worth += Self::FORGETTING * (Self::default().rows_worth - self.rows_worth);
            return;
        }
        // The line that runs nearest to the points.
        let each = (products / n - rows / n * seconds / n) / variance;
        let fixed = (seconds - each * rows) / n;
        self.rows_worth = if each > 0.0 { (fixed / each).clamp(0.0, 16.0) } else { 16.0 };
    }

    /// How likely a guess must be to be worth a row more in a batch of `n_rows` rows that are to give
    /// `n_tokens` tokens: more tokens a second than without it.
    pub fn least_likelihood(&self, n_rows: usize, n_tokens: f64) -> f64 {
        n_tokens / (self.rows_worth + n_rows as f64)
    }
}

impl Default for RowCost {
    fn default() -> Self {
        Self { rows_worth: 4.0, sums: [0.0; 5] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_guessed_and_judged() {
        let mut lookup = PromptLookup::default();
        let mut text = vec![1, 2, 3, 4, 5, 6, 7, 9, 1, 2];
        lookup.read(&text);
        assert_eq!(lookup.guess(), (vec![3, 4, 5, 6, 7, 9, 1, 2], 0.5));
        text.push(3);
        lookup.read(&text);
        let (guess, likely) = lookup.guess();
        assert_eq!(guess, [4, 5, 6, 7, 9, 1, 2, 3]);
        assert!(likely > 0.5, "{likely}");
        text.extend([8, 2, 3]);
        lookup.read(&text);
        // The newest place counts.
        let (guess, likely) = lookup.guess();
        assert_eq!(guess, [8, 2, 3, 8, 2, 3, 8, 2]);
        assert!(likely < 0.55, "a wrong guess counts: {likely}");
        text.push(77);
        lookup.read(&text);
        assert_eq!(lookup.guess(), (vec![], 0.0));
        assert_eq!(PromptLookup::default().guess(), (vec![], 0.0));
    }

    #[test]
    fn a_prediction_is_guessed_from_its_beginning() {
        let mut lookup = PromptLookup::new(vec![11, 12, 13, 14, 15, 16]);
        let mut text = vec![1, 2, 3, 4];
        lookup.read(&text);
        assert_eq!(lookup.guess(), (vec![11, 12, 13, 14, 15, 16, 1, 2], 0.5));
        text.extend([11, 12]);
        lookup.read(&text);
        let (guess, likely) = lookup.guess();
        assert_eq!(guess[..4], [13, 14, 15, 16]);
        assert!(likely > 0.5, "{likely}");
        // Where the text leaves it, it is found again.
        text.extend([99, 98, 14, 15]);
        lookup.read(&text);
        assert_eq!(lookup.guess().0[0], 16);
        let mut short = PromptLookup::new(vec![11]);
        short.read(&[1]);
        assert_eq!(short.guess().0[0], 11);
    }

    #[test]
    fn a_row_is_worth_what_it_costs() {
        let mut cost = RowCost::default();
        assert_eq!(cost.least_likelihood(1, 1.0), 0.2);
        for _ in 0..200 {
            cost.learn(4, 0.014);
        }
        assert_eq!(cost.least_likelihood(1, 1.0), 0.2, "one width teaches nothing");
        for _ in 0..200 {
            cost.learn(1, 0.011);
            cost.learn(4, 0.014);
        }
        assert!((cost.least_likelihood(2, 1.0) - 1.0 / 12.0).abs() < 1e-6);
        assert!(cost.least_likelihood(32, 32.0) > 0.7);
        for _ in 0..400 {
            cost.learn(1, 0.001);
            cost.learn(4, 0.004);
        }
        assert!(cost.least_likelihood(2, 2.0) > 0.99, "rows that cost as much as batches are never worth it");
        for _ in 0..1000 {
            cost.learn(1, 0.001);
        }
        assert!(cost.least_likelihood(1, 1.0) < 0.21, "but that may change");
    }
}
