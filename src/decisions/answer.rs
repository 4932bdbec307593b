//! Answers: the probabilities of the labels, relative to each other.

use crate::chat::ContinuationScores;
use crate::openai::decisions::{
    ChoiceProbability, Decision, DecisionAnswer, DecisionInputDetails, DecisionKind, DecisionQuestion,
    DecisionRequest, DecisionUsage, LevelProbability,
};

/// The probabilities of a question's labels.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelProbabilities {
    /// The probabilities of the labels; their sum is 1.
    pub relative: Vec<f64>,
    /// The probability of all texts that are no label.
    pub outside_mass: f64,
}

impl LabelProbabilities {
    /// The probabilities of labels with these log probabilities.
    pub fn new(logprobs: &[f64]) -> Self {
        let max = logprobs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !max.is_finite() {
            // The model rules out every label, and so prefers none.
            return Self { relative: vec![1.0 / logprobs.len() as f64; logprobs.len()], outside_mass: 1.0 };
        }
        let weights: Vec<f64> = logprobs.iter().map(|logprob| (logprob - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        Self {
            relative: weights.into_iter().map(|weight| weight / sum).collect(),
            // Rounding can make a certain label a little more than certain.
            outside_mass: (1.0 - max.exp() * sum).clamp(0.0, 1.0),
        }
    }

    /// The index of the likeliest label; the first of equals.
    pub fn likeliest(&self) -> usize {
        let better =
            |best: usize, idx: usize| if self.relative[idx] > self.relative[best] { idx } else { best };
        (0..self.relative.len()).fold(0, better)
    }

    /// How certain the likeliest label is: 1 if its probability is 1, 0 if all labels are equally likely.
    pub fn confidence(&self) -> f64 {
        let n = self.relative.len() as f64;
        let most = self.relative.get(self.likeliest()).copied().unwrap_or_default();
        ((n * most - 1.0) / (n - 1.0)).clamp(0.0, 1.0)
    }

    /// The mean of the labels' numbers, which count from 0, weighted by the probabilities.
    pub fn mean(&self) -> f64 {
        self.relative.iter().enumerate().map(|(number, probability)| number as f64 * probability).sum()
    }
}

/// The response to a request for decisions.
pub fn decision(request: DecisionRequest, model: &str, scores: &ContinuationScores) -> Decision {
    let answers = request.questions.into_iter().zip(&scores.logprobs);
    let answers = answers.map(|(question, logprobs)| answer(question, &LabelProbabilities::new(logprobs)));
    Decision { answers: answers.collect(), model: model.to_owned(), usage: usage(scores) }
}

fn answer(question: DecisionQuestion, labels: &LabelProbabilities) -> DecisionAnswer {
    let DecisionQuestion { kind, name, choices, levels, .. } = question;
    let (confidence, outside_mass) = (labels.confidence(), labels.outside_mass);
    match (kind, choices) {
        (DecisionKind::Choice, Some(mut choices)) => {
            let probabilities = choices
                .iter()
                .zip(&labels.relative)
                .map(|(choice, &probability)| ChoiceProbability { value: choice.value.clone(), probability });
            let probabilities = probabilities.collect();
            let choice = choices.swap_remove(labels.likeliest()).value;
            DecisionAnswer::Choice { name, choice, confidence, probabilities, outside_mass }
        }
        (DecisionKind::Score, _) => {
            let levels = levels.unwrap_or_default().into_iter().zip(&labels.relative).enumerate();
            let probabilities = levels.map(|(value, (level, &probability))| LevelProbability {
                label: level.label,
                value,
                probability,
            });
            let probabilities = probabilities.collect();
            DecisionAnswer::Score { name, score: labels.mean(), confidence, probabilities, outside_mass }
        }
        (DecisionKind::Predicate | DecisionKind::Choice, _) => {
            let probability = labels.relative.first().copied().unwrap_or_default();
            DecisionAnswer::Predicate { name, probability, outside_mass }
        }
    }
}

/// The token counts of a request.
pub fn usage(scores: &ContinuationScores) -> DecisionUsage {
    let ContinuationScores { n_tokens, n_cached, .. } = *scores;
    DecisionUsage {
        input_tokens: n_tokens,
        input_tokens_details: DecisionInputDetails {
            cached_tokens: n_cached,
            cache_write_tokens: n_tokens.saturating_sub(n_cached),
        },
        total_tokens: n_tokens,
        ..DecisionUsage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn probabilities_are_relative_to_the_labels() {
        let labels = LabelProbabilities::new(&[0.1f64.ln(), 0.3f64.ln(), 0.4f64.ln()]);
        assert_close(labels.relative[0], 0.125);
        assert_close(labels.outside_mass, 0.2);
        assert_eq!(labels.likeliest(), 2);
        assert_close(labels.confidence(), (3.0 * 0.5 - 1.0) / 2.0);
        assert_close(labels.mean(), 0.375 + 2.0 * 0.5);
        let tiny = LabelProbabilities::new(&[-2000.0, -2000.0]);
        assert_eq!((tiny.relative.as_slice(), tiny.outside_mass), ([0.5, 0.5].as_slice(), 1.0));
        assert_eq!((tiny.likeliest(), tiny.confidence()), (0, 0.0));
        let impossible = LabelProbabilities::new(&[f64::NEG_INFINITY; 4]);
        assert_eq!((impossible.relative[3], impossible.outside_mass), (0.25, 1.0));
        assert_eq!(LabelProbabilities::new(&[1e-9, f64::NEG_INFINITY]).outside_mass, 0.0);
    }
}
