//! One generation: takes logits, returns the next token and the text that it completes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use std::thread::Thread;

use candle_core::Tensor;

use super::constrained_drawing::{ConstrainedDrawing, DrawStage, PendingDraw, SampledToken, forbid};
use super::grammar::Constraint;
use super::sampling::{Logprobs, RepeatPenaltyStats, Sampler};
use super::stop::{StopScan, StopStrings};
use super::thought_budget::ThoughtCounter;
use super::{FinishReason, GenerationRequest, TextDelta, TokenLogprob};
use crate::error::Result;
use crate::tokenizer::{Detokenizer, Tokenizer};

/// The state of one generation between steps: sampler, grammar, detokenizer and stop strings.
pub struct TextGeneration {
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    thought: Option<ThoughtCounter>,
    detokenizer: Detokenizer,
    stops: StopStrings,
    max_tokens: usize,
    min_tokens: usize,
    /// Special tokens whose text is part of the text.
    visible_tokens: Vec<u32>,
    /// Tokens that end the text: the model's own and the request's.
    end_tokens: Vec<u32>,
    /// Whether a space at the beginning comes from the vocabulary, not from the model.
    strip_leading_space: bool,
    top_logprobs: Option<usize>,
    /// Whether the token that ends the text is reported, too.
    is_end_reported: bool,
    /// The draw that waits for the grammar.
    draw: Option<PendingDraw>,
    n_generated: usize,
    /// Tokens that the emitted text accounts for.
    n_emitted: usize,
    /// Bytes of text generated.
    n_text: usize,
    /// How many of them are emitted.
    n_visible: usize,
    /// Probabilities of tokens whose text is not emitted yet, each with the offset at which its text starts.
    pending_logprobs: VecDeque<(usize, TokenLogprob)>,
}

/// The result of one step.
#[derive(Debug, PartialEq)]
pub struct GenerationStep {
    /// The sampled token.
    pub token: u32,
    /// Text that may be shown now.
    pub delta: TextDelta,
    /// Set on the last step.
    pub finish: Option<FinishReason>,
    /// The stop string that ended the text.
    pub stop: Option<String>,
}

impl TextGeneration {
    /// A generation for `request`, whose constraint it takes over, by a model with `n_vocab` logits.
    ///
    /// # Errors
    /// When a sampling parameter is out of range.
    pub fn new(request: &mut GenerationRequest, tokenizer: Arc<Tokenizer>, n_vocab: usize) -> Result<Self> {
        let eos: &[u32] = if request.ignore_eos { &[] } else { tokenizer.end_of_generation() };
        Ok(Self {
            strip_leading_space: tokenizer.has_space_prefix()
                && !request.is_continuation
                && request.constraint.is_none(),
            end_tokens: [eos, &request.stop_tokens].concat(),
            tokenizer,
            sampler: Sampler::new(request.sampling.clone(), n_vocab, &request.prompt)?,
            detokenizer: Detokenizer::default(),
            constraint: request.constraint.take(),
            thought: request.thought_budget.take().map(ThoughtCounter::new),
            stops: StopStrings::new(request.stop.clone()),
            visible_tokens: request.visible_tokens.clone(),
            max_tokens: request.max_tokens,
            min_tokens: request.min_tokens,
            top_logprobs: request.top_logprobs,
            is_end_reported: request.is_end_reported,
            draw: None,
            n_generated: 0,
            n_emitted: 0,
            n_text: 0,
            n_visible: 0,
            pending_logprobs: VecDeque::new(),
        })
    }

    /// Samples a token from `logits` `[n_vocab]` and returns what it adds to the text. Pending while the grammar has no
    /// answer; then call it again later, with the same logits.
    ///
    /// # Errors
    /// When a tensor operation fails, or the text cannot follow its grammar.
    pub fn advance(&mut self, logits: &Tensor) -> Poll<Result<GenerationStep>> {
        match self.sample(logits) {
            Ok(None) => Poll::Pending,
            Ok(Some(sampled)) => Poll::Ready(self.step(sampled, logits)),
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    /// Whether the grammar's answers usually take long.
    pub fn is_slow(&self) -> bool {
        self.constraint.as_ref().is_some_and(Constraint::is_slow)
    }

    /// Sets the thread to unpark when the grammar has an answer.
    pub fn set_waker(&mut self, thread: Thread) {
        self.constraint.iter_mut().for_each(|constraint| constraint.set_waker(thread.clone()));
    }

    /// Takes note of a sampled token, and returns what it adds to the text.
    fn step(&mut self, sampled: SampledToken, logits: &Tensor) -> Result<GenerationStep> {
        let SampledToken { token, is_complete } = sampled;
        let may_end = self.may_end();
        self.sampler.record(token)?;
        self.n_generated += 1;
        let bytes = self.tokenizer.visible_bytes(token, &self.visible_tokens);
        self.thought.iter_mut().for_each(|thought| thought.record(bytes));
        if self.end_tokens.contains(&token) {
            if let Some(n_top) = self.top_logprobs.filter(|_| self.is_end_reported) {
                self.push_logprob(logits, token, n_top)?;
            }
            return Ok(GenerationStep {
                token,
                delta: self.flush(),
                finish: Some(FinishReason::Stop),
                stop: None,
            });
        }
        if let Some(n_top) = self.top_logprobs {
            self.push_logprob(logits, token, n_top)?;
        }
        let text = self.detokenize(token);
        // Text before `min_tokens` is never searched for stop strings.
        let scan = if may_end { self.stops.push(&text) } else { StopScan { text, found: None } };
        let mut delta = self.emit(scan.text);
        if scan.found.is_some() {
            return Ok(GenerationStep { token, delta, finish: Some(FinishReason::Stop), stop: scan.found });
        }
        let finish = match self.n_generated >= self.max_tokens {
            _ if is_complete => Some(FinishReason::Stop),
            is_over => is_over.then_some(FinishReason::Length),
        };
        if finish.is_some() {
            let rest = self.flush();
            delta.text += &rest.text;
            delta.logprobs.extend(rest.logprobs);
            delta.n_tokens += rest.n_tokens;
        }
        Ok(GenerationStep { token, delta, finish, stop: None })
    }

    /// Starts computing the grammar's next mask in the background, if it is likely to be needed.
    pub fn prepare(&mut self) {
        self.constraint.iter_mut().for_each(Constraint::prepare);
    }

    /// Whether an end-of-text token or a stop string may end the text.
    fn may_end(&self) -> bool {
        self.n_generated >= self.min_tokens
    }

    /// Samples the next token: adjusts the logits, masks what the grammar and `min_tokens` forbid, and draws. `None`
    /// while the grammar has no answer.
    fn sample(&mut self, logits: &Tensor) -> Result<Option<SampledToken>> {
        let may_end = self.may_end();
        let Self { sampler, constraint, end_tokens, tokenizer, visible_tokens, .. } = self;
        let forced = self.thought.as_ref().and_then(ThoughtCounter::forced);
        let Some(constraint) = constraint else {
            if let Some(token) = forced {
                return Ok(Some(SampledToken { token, is_complete: false }));
            }
            let mut logits = sampler.adjusted_logits(logits)?;
            forbid(if may_end { &[] } else { end_tokens }, &mut logits);
            return Ok(Some(SampledToken { token: sampler.draw(&logits)?, is_complete: false }));
        };
        let mut draw = match (self.draw.take(), forced) {
            (Some(draw), _) => draw,
            // The grammar takes note of it like of any other.
            (None, Some(token)) => {
                let mut forced = vec![f32::NEG_INFINITY; logits.elem_count()];
                forced.get_mut(token as usize).into_iter().for_each(|logit| *logit = 0.0);
                PendingDraw { logits: forced, stage: DrawStage::Start }
            }
            (None, None) => PendingDraw { logits: sampler.adjusted_logits(logits)?, stage: DrawStage::Start },
        };
        let mut drawing =
            ConstrainedDrawing { sampler, constraint, tokenizer, visible_tokens, end_tokens, may_end };
        let sampled = drawing.resume(&mut draw)?;
        if sampled.is_none() {
            self.draw = Some(draw);
        }
        Ok(sampled)
    }

    /// The text that a token completes.
    fn detokenize(&mut self, token: u32) -> String {
        let bytes = self.tokenizer.visible_bytes(token, &self.visible_tokens);
        let mut text = self.detokenizer.push(bytes);
        if self.n_text == 0 && self.strip_leading_space && text.starts_with(' ') {
            text.remove(0);
        }
        self.n_text += text.len();
        text
    }

    /// Tokens generated so far.
    pub fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// Statistics of the repeat penalty's cache.
    pub fn repeat_penalty_stats(&self) -> RepeatPenaltyStats {
        self.sampler.repeat_penalty_stats()
    }

    /// Emits text, with the probabilities of the tokens that begin in it.
    fn emit(&mut self, text: String) -> TextDelta {
        self.n_visible += text.len();
        let n_begun = self.pending_logprobs.iter().take_while(|&&(start, _)| start < self.n_visible).count();
        let logprobs = self.pending_logprobs.drain(..n_begun).map(|(_, logprob)| logprob).collect();
        self.delta(text, logprobs)
    }

    fn delta(&mut self, text: String, logprobs: Vec<TokenLogprob>) -> TextDelta {
        let n_tokens = if text.is_empty() { 0 } else { self.n_generated - self.n_emitted };
        self.n_emitted += n_tokens;
        TextDelta { text, logprobs, n_tokens }
    }

    /// Emits everything that was held back. An incomplete character at the end is no text; its tokens have entries all
    /// the same.
    fn flush(&mut self) -> TextDelta {
        let text = self.stops.flush();
        let logprobs = self.pending_logprobs.drain(..).map(|(_, logprob)| logprob).collect();
        self.delta(text, logprobs)
    }

    /// Adds a token's probability to those not emitted yet. Tokens of one character begin where it does.
    fn push_logprob(&mut self, logits: &Tensor, token: u32, n_top: usize) -> Result<()> {
        let logprob = self.logprob(logits, token, n_top)?;
        self.pending_logprobs.push_back((self.n_text, logprob));
        Ok(())
    }

    fn logprob(&self, logits: &Tensor, token: u32, n_top: usize) -> Result<TokenLogprob> {
        let logits = logits.to_vec1::<f32>()?;
        let logprobs = Logprobs::new(&logits);
        let bytes = |token: u32| self.tokenizer.token_bytes(token).to_vec();
        Ok(TokenLogprob {
            bytes: bytes(token),
            logprob: logprobs.get(token),
            top: logprobs.top(n_top).into_iter().map(|(token, logprob)| (bytes(token), logprob)).collect(),
        })
    }
}
