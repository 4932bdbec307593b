//! The divergence of a model's predictions from reference predictions of the same texts.
//!
//! The Kullback-Leibler divergence (KL) is taken over the full vocabulary and in double precision. One that is taken over
//! the most likely tokens has a floor, below which errors are not seen.

use std::path::Path;

use candle_core::{DType, Tensor, safetensors};
use serde::{Deserialize, Serialize};

use super::trial_texts::TRIAL_TEXTS;
use crate::error::{Error, Kind, Result};
use crate::kernels::attention::kv_block::KvFormat;
use crate::models::{
    BlockId, DEVICE, Decoder, ForwardInput, SequenceChunk, SequenceId, SequenceStates, StateStep,
};
use crate::tokenizer::Tokenizer;

/// Tokens that are computed at once.
const CHUNK_TOKENS: usize = 256;

/// Tokens of a text of a trial, at most.
const TRIAL_TOKENS: usize = 112;

/// Predictions at the end of each text of a trial.
const TRIAL_PREDICTIONS: usize = 16;

/// The largest mean KL of rounded activations by default: a sixth of that of 8-bit activations without a rotation.
const MAX_MEAN_KL: f64 = 0.0005;

/// A text, and reference predictions of its last tokens and of the token after it.
#[derive(Debug)]
pub struct ReferenceText {
    /// The tokens.
    token_ids: Vec<u32>,
    /// Natural logarithms of the probabilities of all tokens, `[n_predictions, n_vocab]`.
    logprobs: Tensor,
}

/// The divergence of predictions from their references.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The number of predictions.
    pub positions: usize,
    /// The mean of their KL, in nats.
    pub mean_kl: f64,
    /// The largest KL of a prediction.
    pub largest_kl: f64,
    /// The share of predictions whose most likely token is the reference's.
    pub top_1: f64,
}

impl ReferenceText {
    /// Reads a safetensors file: for each text from number 0 on `N.tokens`, `[n_tokens]`, and `N.logprobs`,
    /// `[n_predictions, n_vocab]`.
    ///
    /// # Errors
    /// When the file cannot be read or has other contents.
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let named = |e: String| {
            Error::new(
                Kind::Config,
                format!("cannot read reference predictions from {}: {e}", path.display()),
            )
        };
        let mut tensors = safetensors::load(path, &DEVICE).map_err(|e| named(e.to_string()))?;
        let mut texts = Vec::new();
        while let Some(tokens) = tensors.remove(&format!("{}.tokens", texts.len())) {
            let name = format!("{}.logprobs", texts.len());
            let logprobs = tensors.remove(&name).ok_or_else(|| named(format!("it has no `{name}`")))?;
            let token_ids: Vec<u32> = tokens.to_dtype(DType::U32)?.to_vec1()?;
            let (n_predictions, _) = logprobs.dims2()?;
            if !(1..=token_ids.len()).contains(&n_predictions) {
                let n_tokens = token_ids.len();
                return Err(named(format!("`{name}` has {n_predictions} rows for {n_tokens} tokens")));
            }
            texts.push(Self { token_ids, logprobs });
        }
        if texts.is_empty() {
            return Err(named("it has no `0.tokens`".to_owned()));
        }
        Ok(texts)
    }
}

impl Divergence {
    /// Computes the divergence of `decoder` from the references of `texts`, with the KV cache in `format`. With
    /// `rounded_prompts`, activations of all tokens before the first prediction are rounded to 8 bits.
    ///
    /// # Errors
    /// When the references are of another vocabulary, or a tensor operation fails.
    pub fn measure(
        decoder: &mut dyn Decoder,
        format: KvFormat,
        texts: &[ReferenceText],
        rounded_prompts: bool,
    ) -> Result<Self> {
        let mut sum = Self::default();
        for ReferenceText { token_ids, logprobs } in texts {
            let (n_predictions, n_vocab) = logprobs.dims2()?;
            if n_vocab != decoder.config().n_vocab {
                let message = format!(
                    "the reference predictions are of {n_vocab} tokens, but the model has {}; make them with this model",
                    decoder.config().n_vocab
                );
                return Err(Error::new(Kind::Config, message));
            }
            sum.add(logprobs, &predict(decoder, format, token_ids, n_predictions, rounded_prompts)?)?;
        }
        Ok(sum.mean())
    }

    /// Adds predictions, `[n_predictions, n_vocab]`, to the sums of all.
    fn add(&mut self, expected: &Tensor, found: &Tensor) -> Result<()> {
        let rows = |logits: &Tensor| Ok::<_, Error>(logits.to_dtype(DType::F64)?.to_vec2::<f64>()?);
        for (expected, found) in rows(expected)?.into_iter().zip(rows(found)?) {
            self.add_row(&log_softmax(expected), &log_softmax(found));
        }
        Ok(())
    }

    fn add_row(&mut self, expected: &[f64], found: &[f64]) {
        let terms =
            expected.iter().zip(found).map(|(p, q)| if p.is_finite() { p.exp() * (p - q) } else { 0.0 });
        let kl: f64 = terms.sum();
        self.positions += 1;
        self.mean_kl += kl;
        self.largest_kl = self.largest_kl.max(kl);
        self.top_1 += f64::from(u8::from(most_likely(expected) == most_likely(found)));
    }

    /// Turns sums into means.
    fn mean(self) -> Self {
        let n = self.positions.max(1) as f64;
        Self { mean_kl: self.mean_kl / n, top_1: self.top_1 / n, ..self }
    }

    /// Whether 8-bit activations change the predictions so little that they can be the default.
    pub fn is_small(&self) -> bool {
        self.positions > 0 && self.mean_kl <= MAX_MEAN_KL
    }
}

/// A measurement of what rounding the activations of prompts to 8 bits does to a model's predictions of
/// built-in texts, in steps that are short enough for an engine's idle moments.
pub struct PrecisionTrial {
    /// Texts to come.
    texts: Vec<Vec<u32>>,
    /// The predictions of the last of them without rounding, once they are computed.
    reference: Option<Tensor>,
    sum: Divergence,
    on_end: Box<dyn FnOnce(Divergence) + Send>,
}

impl PrecisionTrial {
    /// A trial with a model's tokenizer, which ends with a call of `on_end`.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn new(tokenizer: &Tokenizer, on_end: Box<dyn FnOnce(Divergence) + Send>) -> Result<Self> {
        let tokens = |text: &&str| {
            let mut tokens = tokenizer.encode_prompt(text, None)?;
            tokens.truncate(TRIAL_TOKENS);
            Ok(tokens)
        };
        let mut texts = TRIAL_TEXTS.iter().map(tokens).collect::<Result<Vec<_>>>()?;
        texts.retain(|tokens| tokens.len() > TRIAL_PREDICTIONS);
        Ok(Self { texts, reference: None, sum: Divergence::default(), on_end })
    }

    /// Computes one text with or without rounding; returns the trial unless it has ended.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn step(mut self, decoder: &mut dyn Decoder, format: KvFormat) -> Result<Option<Self>> {
        let Some(tokens) = self.texts.last() else {
            (self.on_end)(self.sum.mean());
            return Ok(None);
        };
        let logits = predict(decoder, format, tokens, TRIAL_PREDICTIONS, self.reference.is_some())?;
        match self.reference.take() {
            None => self.reference = Some(logits),
            Some(reference) => {
                self.sum.add(&reference, &logits)?;
                self.texts.pop();
            }
        }
        Ok(Some(self))
    }
}

/// Normalizes logits, or logarithms of probabilities that are rounded.
fn log_softmax(mut logits: Vec<f64>) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
    logits.iter_mut().for_each(|logit| *logit -= log_sum);
    logits
}

fn most_likely(logprobs: &[f64]) -> Option<usize> {
    (0..logprobs.len()).max_by(|&a, &b| logprobs[a].total_cmp(&logprobs[b]))
}

/// The logits of the last `n_predictions` rows of a text, `[n_predictions, n_vocab]`. The tokens before them are computed
/// in chunks as a prompt is, and they themselves as tokens of an answer.
fn predict(
    decoder: &mut dyn Decoder,
    format: KvFormat,
    token_ids: &[u32],
    n_predictions: usize,
    is_rounded: bool,
) -> Result<Tensor> {
    let n_before = token_ids.len() - n_predictions;
    let mut states = SequenceStates::new(decoder.config(), format);
    let tables = [BlockId::consecutive(0, token_ids.len())];
    let mut forward = |start: usize, tokens: &[u32], n_logits: usize| {
        let mut input = ForwardInput::default();
        input.push(SequenceChunk {
            sequence: SequenceId(0),
            n_prompt: n_before + 1,
            n_rounded: if is_rounded { n_before } else { 0 },
            start,
            tables: &tables,
            state: Some(&StateStep::default()),
            token_ids: tokens,
            n_logits,
        });
        decoder.forward(&mut states, &input)
    };
    for (idx, chunk) in token_ids[..n_before].chunks(CHUNK_TOKENS).enumerate() {
        forward(idx * CHUNK_TOKENS, chunk, 0)?;
    }
    forward(n_before, &token_ids[n_before..], n_predictions)
}
