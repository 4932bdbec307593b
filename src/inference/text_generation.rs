//! One generation: logits in, the next token and the text it completes out.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::Tensor;

use super::grammar::Constraint;
use super::sampling::{Logprobs, RepeatPenaltyStats, Sampler};
use super::stop::{Checked, StopStrings};
use super::{FinishReason, GenerationRequest, TextDelta, TokenLogprob};
use crate::error::Result;
use crate::tokenizer::{Detokenizer, Tokenizer};

/// The state of one generation between steps.
pub struct TextGeneration {
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    detokenizer: Detokenizer,
    stops: StopStrings,
    max_tokens: usize,
    min_tokens: usize,
    /// Special tokens that are part of the text.
    visible_tokens: Vec<u32>,
    /// Tokens that end the text: the model's own and the request's.
    ends: Vec<u32>,
    /// Whether a space at the beginning is the vocabulary's, not the model's.
    skips_space: bool,
    top_logprobs: Option<usize>,
    n_generated: usize,
    /// Tokens that came before the last text that was given out.
    n_told: usize,
    /// Bytes of text generated, and of those the bytes given out.
    n_text: usize,
    n_shown: usize,
    /// Probabilities of tokens whose text is not given out yet, each with the offset where its
    /// text starts.
    waiting: VecDeque<(usize, TokenLogprob)>,
}

/// What one step came to.
#[derive(Debug, PartialEq)]
pub struct Step {
    pub token: u32,
    /// Text that may be shown now.
    pub delta: TextDelta,
    /// Set on the last step.
    pub finish: Option<FinishReason>,
}

impl TextGeneration {
    /// A generation for `request` by a model with `n_vocab` logits.
    ///
    /// # Errors
    /// When a sampling parameter is impossible.
    pub fn new(request: &GenerationRequest, tokenizer: Arc<Tokenizer>, n_vocab: usize) -> Result<Self> {
        let own: &[u32] = if request.ignore_eos { &[] } else { tokenizer.end_of_generation() };
        Ok(Self {
            skips_space: tokenizer.has_space_prefix()
                && !request.is_continuation
                && request.constraint.is_none(),
            ends: [own, &request.stop_tokens].concat(),
            tokenizer,
            sampler: Sampler::new(request.sampling.clone(), n_vocab, &request.prompt)?,
            detokenizer: Detokenizer::default(),
            constraint: request.constraint.clone(),
            stops: StopStrings::new(request.stop.clone()),
            visible_tokens: request.visible_tokens.clone(),
            max_tokens: request.max_tokens,
            min_tokens: request.min_tokens,
            top_logprobs: request.top_logprobs,
            n_generated: 0,
            n_told: 0,
            n_text: 0,
            n_shown: 0,
            waiting: VecDeque::new(),
        })
    }

    /// Samples from `logits` `[n_vocab]` and says what that adds to the text.
    ///
    /// # Errors
    /// When a tensor operation fails, or the text cannot be kept to its grammar.
    pub fn advance(&mut self, logits: &Tensor) -> Result<Step> {
        let may_end = self.n_generated >= self.min_tokens;
        let token = self.next_token(logits, may_end)?;
        self.sampler.remember(token)?;
        self.n_generated += 1;
        if self.ends.contains(&token) {
            return Ok(Step { token, delta: self.flush(), finish: Some(FinishReason::Stop) });
        }
        let is_complete = match &mut self.constraint {
            Some(constraint) => constraint.push(token, self.tokenizer.token_bytes(token))?,
            None => false,
        };
        if let Some(n_top) = self.top_logprobs {
            let logprob = self.logprob(logits, token, n_top)?;
            match self.waiting.back_mut().filter(|_| self.detokenizer.is_mid_character()) {
                Some((_, begun)) => begun.extend(logprob),
                None => self.waiting.push_back((self.n_text, logprob)),
            }
        }
        let shown =
            self.visible_tokens.contains(&token).then(|| self.tokenizer.special_token_text(token)).flatten();
        let bytes = shown.map_or_else(|| self.tokenizer.token_bytes(token), str::as_bytes);
        let mut text = self.detokenizer.push(bytes);
        if self.n_text == 0 && self.skips_space && text.starts_with(' ') {
            text.remove(0);
        }
        self.n_text += text.len();
        // What is said before it may end is never looked at again.
        let checked = if may_end { self.stops.push(&text) } else { Checked { text, stopped: false } };
        if checked.stopped {
            let delta = self.show(checked.text);
            return Ok(Step { token, delta, finish: Some(FinishReason::Stop) });
        }
        let mut delta = self.show(checked.text);
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
        Ok(Step { token, delta, finish })
    }

    /// Begins to work out what may come next, where a grammar says that.
    pub fn prepare(&mut self) {
        self.constraint.iter_mut().for_each(Constraint::prepare);
    }

    fn next_token(&mut self, logits: &Tensor, may_end: bool) -> Result<u32> {
        let Self { sampler, constraint, ends, .. } = self;
        let mut penalised = sampler.penalised(logits)?;
        let forbid = |tokens: &[u32], logits: &mut [f32]| {
            for &token in tokens {
                logits.get_mut(token as usize).into_iter().for_each(|logit| *logit = f32::NEG_INFINITY);
            }
        };
        let Some(constraint) = constraint else {
            forbid(if may_end { &[] } else { ends }, &mut penalised);
            return sampler.draw(&penalised);
        };
        // Most tokens would be right without being told what may come, which takes longer to find out. What is drawn
        // of all and kept if it may come, else drawn of those that may, is as likely as if drawn of those at once.
        let may_end = may_end && !constraint.is_in_preamble();
        if constraint.is_unknown() {
            let token = sampler.draw(&penalised)?;
            let is_end = ends.contains(&token);
            if !is_end && constraint.accepts(token) {
                return Ok(token);
            }
        }
        match constraint.allowed()? {
            None => forbid(if may_end { &[] } else { ends }, &mut penalised),
            Some((allowed, beside)) => {
                let beside = beside.and_then(|token| Some((token as usize, *penalised.get(token as usize)?)));
                allowed.keep_in(&mut penalised);
                beside.into_iter().for_each(|(token, logit)| penalised[token] = logit);
                if !may_end && allowed.has_others_than(ends) {
                    forbid(ends, &mut penalised);
                }
            }
        }
        sampler.draw(&penalised)
    }

    /// Tokens generated so far.
    pub fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// What the repeat penalty's cache did.
    pub fn repeat_penalty_stats(&self) -> RepeatPenaltyStats {
        self.sampler.repeat_penalty_stats()
    }

    /// Gives out text, with the probabilities of the tokens that begin in it.
    fn show(&mut self, text: String) -> TextDelta {
        self.n_shown += text.len();
        let n_begun = self.waiting.iter().take_while(|&&(start, _)| start < self.n_shown).count();
        let logprobs = self.waiting.drain(..n_begun).map(|(_, logprob)| logprob).collect();
        self.delta(text, logprobs)
    }

    fn delta(&mut self, text: String, logprobs: Vec<TokenLogprob>) -> TextDelta {
        let n_tokens = if text.is_empty() { 0 } else { self.n_generated - self.n_told };
        self.n_told += n_tokens;
        TextDelta { text, logprobs, n_tokens }
    }

    /// Everything that was held back. A character that the end cuts short is no text and is left
    /// out, with its entry.
    fn flush(&mut self) -> TextDelta {
        if self.detokenizer.is_mid_character() {
            self.waiting.pop_back();
        }
        let text = self.stops.finish();
        let logprobs = self.waiting.drain(..).map(|(_, logprob)| logprob).collect();
        self.delta(text, logprobs)
    }

    fn logprob(&self, logits: &Tensor, token: u32, n_top: usize) -> Result<TokenLogprob> {
        let logits = logits.to_vec1::<f32>()?;
        let logprobs = Logprobs::new(&logits);
        let bytes = |token: u32| self.tokenizer.token_bytes(token).to_vec();
        Ok(TokenLogprob {
            bytes: bytes(token),
            logprob: logprobs.of(token),
            top: logprobs.top(n_top).into_iter().map(|(token, logprob)| (bytes(token), logprob)).collect(),
        })
    }
}
