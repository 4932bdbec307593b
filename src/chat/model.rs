//! A loaded chat model: template, tokenizer and engine.

use std::sync::Arc;

use super::reasoning::{self, ReasoningParser};
use super::structured::ConstraintSpec;
use super::template::ChatTemplate;
use crate::error::Result;
use crate::inference::grammar::Preamble;
use crate::inference::{Admission, Constraint, Engine};
use crate::tokenizer::Tokenizer;

/// A loaded chat model.
///
/// [`start_chat`](Self::start_chat) is implemented in [`chat`](super), `start_completion` in `chat/completion.rs`,
/// and the rendering of prompts in `chat/prompt.rs`.
pub struct ChatModel {
    pub(super) template: ChatTemplate,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) engine: Engine,
    fingerprint: String,
}

impl ChatModel {
    /// A model with a running engine. `fingerprint` is returned by [`ChatModel::fingerprint`].
    pub fn new(
        template: ChatTemplate,
        tokenizer: Arc<Tokenizer>,
        engine: Engine,
        fingerprint: String,
    ) -> Self {
        Self { template, tokenizer, engine, fingerprint }
    }

    /// A string that changes whenever the same request may be answered differently.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The engine that runs the model.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Stops the engine and waits until the model's memory is freed.
    pub fn shut_down(self) {
        self.engine.shut_down();
    }

    /// Reserves a slot in the queue, before anything is computed for the request.
    ///
    /// # Errors
    /// When the queue is full; the error says when to retry.
    pub fn admit(&self) -> Result<Admission> {
        self.engine.admit()
    }

    /// Reserves slots for `n` generations, the first of which is already admitted.
    pub(super) fn reserve_slots(&self, first: Admission, n: usize) -> Result<Vec<Admission>> {
        [Ok(first)].into_iter().chain((1..n).map(|_| self.admit())).collect()
    }

    /// Compiles a constraint. For a model that reasons, it applies only after the reasoning.
    pub(super) fn constraint(
        &self,
        spec: Option<ConstraintSpec>,
        reasoning: Option<&ReasoningParser>,
    ) -> Result<Option<Constraint>> {
        let Some(ConstraintSpec { param, grammar }) = spec else { return Ok(None) };
        let constraint = self.engine.compile_constraint(&grammar).map_err(|e| e.with_param(param))?;
        Ok(Some(match reasoning {
            None => constraint,
            Some(reasoning) => constraint.with_preamble(Preamble {
                open: self.tokenizer.single_token_id(reasoning::OPEN),
                is_open: reasoning.is_open(),
                close: reasoning::CLOSE.to_owned(),
            }),
        }))
    }
}
