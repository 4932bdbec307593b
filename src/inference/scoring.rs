//! Log probabilities of given tokens: those of a prompt, and those of texts that may follow it.
//!
//! The logits of each batch are reduced to what was asked for before the next batch is computed, so that memory holds
//! the logits of one batch only, however long the prompt is.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::Event;
use super::sampling::{Logprobs, not_a_number};
use crate::error::{Error, Result};
use crate::kernels::threads::pool;

/// The given tokens whose log probabilities a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scoring {
    /// The prompt's own, except the first, which nothing predicts.
    Prompt {
        /// How many of the most likely tokens to report at each position.
        n_top: usize,
    },
    /// Texts that may follow the prompt, in place of a generation.
    Continuations {
        /// The texts; none of them is empty.
        texts: Arc<[Vec<u32>]>,
        /// Tokens, any of which ends a text. Their probability is part of each text's.
        ends: Arc<[u32]>,
    },
}

/// The scores of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptScores {
    /// The first token, which nothing predicts.
    pub first: u32,
    /// All others.
    pub rest: Vec<ScoredToken>,
}

/// A token of a prompt, and the probability that the model gave it there.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// The token and its probability.
    pub token: RankedToken,
    /// The most likely tokens at this position, most likely first.
    pub top: Vec<RankedToken>,
}

/// A token's probability at a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedToken {
    /// The token.
    pub id: u32,
    /// Natural logarithm of the probability.
    pub logprob: f32,
    /// Its rank among all tokens; 1 is the most likely one.
    pub rank: usize,
}

/// The scores of one sequence, while its batches are computed.
#[derive(Debug)]
pub enum Scorer {
    /// A prompt's scores.
    Prompt(PromptScorer),
    /// The scores of texts that may follow it.
    Continuations(ContinuationScorer),
}

/// The scores of a prompt, while its chunks are computed.
#[derive(Debug)]
pub struct PromptScorer {
    prompt: Vec<u32>,
    n_top: usize,
    scored: Vec<ScoredToken>,
}

/// The scores of texts that may follow a prompt. The texts are computed one after the other.
#[derive(Debug)]
pub struct ContinuationScorer {
    n_prompt: usize,
    texts: Arc<[Vec<u32>]>,
    ends: Arc<[u32]>,
    /// The log probability of each text; at first, of its first token.
    logprobs: Vec<f64>,
    /// Texts that are complete.
    n_scored: usize,
}

/// The question that is put to one row of logits.
#[derive(Debug)]
struct RowQuery {
    logits: Tensor,
    /// The tokens whose log probabilities are asked for.
    tokens: Vec<u32>,
    /// How many of the most likely tokens to report; `None` also leaves out the ranks.
    n_top: Option<usize>,
}

/// The answer to a [`RowQuery`].
#[derive(Debug, Default)]
struct ScoredRow {
    tokens: Vec<RankedToken>,
    top: Vec<RankedToken>,
}

impl Scorer {
    /// The scorer of a sequence with this prompt.
    pub fn new(scoring: Scoring, prompt: &[u32]) -> Self {
        match scoring {
            Scoring::Prompt { n_top } => {
                Self::Prompt(PromptScorer { prompt: prompt.to_vec(), n_top, scored: Vec::new() })
            }
            Scoring::Continuations { texts, ends } => Self::Continuations(ContinuationScorer {
                n_prompt: prompt.len(),
                logprobs: Vec::new(),
                texts,
                ends,
                n_scored: 0,
            }),
        }
    }

    /// Whether everything has its score.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Prompt(scorer) => scorer.is_complete(),
            Self::Continuations(scorer) => scorer.is_complete(),
        }
    }

    /// The report of the scores.
    pub fn into_event(self) -> Event {
        match self {
            Self::Prompt(PromptScorer { prompt, scored: rest, .. }) => {
                Event::PromptScores(PromptScores { first: prompt.first().copied().unwrap_or_default(), rest })
            }
            Self::Continuations(scorer) => Event::ContinuationScores(scorer.logprobs),
        }
    }
}

impl PromptScorer {
    /// Takes the logits of neighboring rows `[n_vocab]`, the first after the token at position `start`. Returns how many
    /// of them score the prompt; the others are for the tokens after it.
    ///
    /// # Errors
    /// When a tensor operation fails, or a logit is not a number.
    pub fn push(&mut self, start: usize, rows: &[Tensor]) -> Result<usize> {
        // The row after a token scores the next one.
        let n_rows = rows.len().min(self.prompt.len().saturating_sub(start + 1));
        let next = self.scored.len();
        if start > next {
            return Err(Error::internal("a row of a scored prompt was not computed"));
        }
        let queries: Vec<RowQuery> = (start..start + n_rows)
            .zip(rows)
            .skip(next - start)
            .map(|(position, logits)| RowQuery {
                logits: logits.clone(),
                tokens: vec![self.prompt[position + 1]],
                n_top: Some(self.n_top),
            })
            .collect();
        for ScoredRow { tokens, top } in answer(&queries)? {
            self.scored.extend(tokens.into_iter().map(|token| ScoredToken { token, top: top.clone() }));
        }
        Ok(n_rows)
    }

    /// Whether every token after the first has its score.
    fn is_complete(&self) -> bool {
        self.scored.len() + 1 >= self.prompt.len()
    }
}

impl ContinuationScorer {
    /// Takes the logits of neighboring rows `[n_vocab]`, the first after the token at position `start`: the row after
    /// the prompt, then those of each text in order.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn push(&mut self, start: usize, rows: &[Tensor]) -> Result<()> {
        let (Some(row), true) = (rows.first(), start + 1 == self.n_prompt) else {
            return self.push_text(rows);
        };
        // A sequence that was preempted computes this row again.
        if !self.logprobs.is_empty() {
            return Ok(());
        }
        let tokens = self.texts.iter().filter_map(|text| text.first().copied()).collect();
        let scores = answer(&[RowQuery { logits: row.clone(), tokens, n_top: None }])?;
        let tokens = scores.into_iter().flat_map(|scores| scores.tokens);
        self.logprobs = tokens.map(|token| f64::from(token.logprob)).collect();
        Ok(())
    }

    /// Adds the rows after each token of the next text.
    fn push_text(&mut self, rows: &[Tensor]) -> Result<()> {
        let Some(text) = self.texts.get(self.n_scored) else { return Ok(()) };
        let query = |(idx, logits): (usize, &Tensor)| RowQuery {
            logits: logits.clone(),
            tokens: text.get(idx + 1).map_or_else(|| self.ends.to_vec(), |&token| vec![token]),
            n_top: None,
        };
        let queries: Vec<RowQuery> = rows.iter().enumerate().map(query).collect();
        let logprob: f64 = answer(&queries)?.iter().map(|scores| log_sum(&scores.tokens)).sum();
        self.logprobs[self.n_scored] += logprob;
        self.n_scored += 1;
        Ok(())
    }

    /// Whether every text has its score.
    fn is_complete(&self) -> bool {
        self.n_scored == self.texts.len()
    }
}

/// The logarithm of the sum of the tokens' probabilities.
fn log_sum(tokens: &[RankedToken]) -> f64 {
    let sum: f64 = tokens.iter().map(|token| f64::from(token.logprob).exp()).sum();
    sum.ln()
}

/// Answers queries, shared out among the compute threads.
fn answer(queries: &[RowQuery]) -> Result<Vec<ScoredRow>> {
    let answers: Vec<Mutex<Result<ScoredRow>>> =
        queries.iter().map(|_| Mutex::new(Ok(ScoredRow::default()))).collect();
    let run = |idx: usize| {
        *answers[idx].lock().unwrap_or_else(PoisonError::into_inner) = queries[idx].answer();
    };
    match queries.len() {
        0 => {}
        1 => run(0),
        n => pool::run(|team| team.claim_chunks(n, 1).flatten().for_each(run)),
    }
    answers.into_iter().map(|answer| answer.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

impl RowQuery {
    fn answer(&self) -> Result<ScoredRow> {
        let logits = self.logits.to_vec1::<f32>()?;
        let logprobs = Logprobs::new(&logits);
        if !logprobs.are_finite() {
            return Err(not_a_number());
        }
        let rank = |id: u32| self.n_top.map_or(0, |_| logprobs.rank(id));
        let ranked = |id: u32| RankedToken { id, logprob: logprobs.get(id), rank: rank(id) };
        let top = self.n_top.map(|n| logprobs.top(n)).unwrap_or_default();
        let top = top.into_iter().zip(1..).map(|((id, logprob), rank)| RankedToken { id, logprob, rank });
        Ok(ScoredRow { tokens: self.tokens.iter().map(|&id| ranked(id)).collect(), top: top.collect() })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Rows in which `likely` are four times as likely as every other of four tokens.
    fn rows(likely: &[u32]) -> Vec<Tensor> {
        let row = |&token: &u32| {
            let logits: Vec<f32> = (0..4).map(|id| if id == token { 4f32.ln() } else { 0.0 }).collect();
            Tensor::new(logits, &Device::Cpu).unwrap()
        };
        likely.iter().map(row).collect()
    }

    const LIKELY: f32 = 4.0 / 7.0;
    const OTHER: f32 = 1.0 / 7.0;

    fn probabilities(scores: &[ScoredToken]) -> Vec<f32> {
        scores.iter().map(|score| score.token.logprob.exp()).collect()
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        let is_close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(is_close && found.len() == expected.len(), "{found:?} is not {expected:?}");
    }

    #[test]
    fn a_prompt_is_scored_in_chunks() {
        let Scorer::Prompt(mut scorer) = Scorer::new(Scoring::Prompt { n_top: 2 }, &[3, 1, 2, 0]) else {
            panic!("another scorer")
        };
        assert_eq!(scorer.push(0, &rows(&[1])).unwrap(), 1);
        assert!(!scorer.is_complete());
        assert!(scorer.push(2, &rows(&[1])).is_err(), "a row is missing");
        assert_eq!(scorer.push(0, &rows(&[1, 0])).unwrap(), 2, "the first is computed again");
        assert_eq!(scorer.push(2, &rows(&[0, 1])).unwrap(), 1, "the last row is for the next token");
        assert!(scorer.is_complete());
        let scores = scorer.scored;
        assert_close(&probabilities(&scores), &[LIKELY, OTHER, LIKELY]);
        let ranks: Vec<usize> = scores.iter().map(|score| score.token.rank).collect();
        assert_eq!(ranks, [1, 2, 1]);
        let top: Vec<(u32, usize)> = scores[1].top.iter().map(|top| (top.id, top.rank)).collect();
        assert_eq!(top, [(0, 1), (1, 2)]);
    }

    #[test]
    fn a_prompt_of_one_token_has_no_scores() {
        let Scorer::Prompt(scorer) = Scorer::new(Scoring::Prompt { n_top: 0 }, &[3]) else {
            panic!("another scorer")
        };
        assert!(scorer.is_complete());
        assert!(scorer.scored.is_empty());
    }

    #[test]
    fn a_continuation_has_the_probability_of_all_its_tokens_and_of_its_end() {
        let texts = vec![vec![1, 2], vec![3]].into();
        let scoring = Scoring::Continuations { texts, ends: vec![0, 1].into() };
        let Scorer::Continuations(mut scorer) = Scorer::new(scoring, &[2, 2, 2]) else {
            panic!("another scorer")
        };
        scorer.push(2, &rows(&[1])).unwrap();
        scorer.push(3, &rows(&[2, 0])).unwrap();
        assert!(!scorer.is_complete());
        scorer.push(2, &rows(&[1])).unwrap();
        scorer.push(3, &rows(&[3])).unwrap();
        assert!(scorer.is_complete());
        let probabilities: Vec<f32> =
            scorer.logprobs.into_iter().map(|logprob| logprob.exp() as f32).collect();
        assert_close(&probabilities, &[LIKELY * LIKELY * (LIKELY + OTHER), OTHER * (OTHER + OTHER)]);
    }
}
