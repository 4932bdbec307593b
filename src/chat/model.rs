//! A loaded chat model: template, tokenizer and engine.

use std::sync::Arc;

use super::reasoning::{self, Reasoning};
use super::structured::Asked;
use super::template::ChatTemplate;
use crate::error::Result;
use crate::inference::grammar::Preamble;
use crate::inference::{Admission, Constraint, Engine};
use crate::tokenizer::Tokenizer;

/// A chat model that is ready to answer.
pub struct ChatModel {
    pub(super) template: ChatTemplate,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) engine: Engine,
    fingerprint: String,
}

impl ChatModel {
    /// `fingerprint` changes when the same request may be answered differently.
    pub fn new(
        template: ChatTemplate,
        tokenizer: Arc<Tokenizer>,
        engine: Engine,
        fingerprint: String,
    ) -> Self {
        Self { template, tokenizer, engine, fingerprint }
    }

    /// Changes when the same request may be answered differently.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Ends the engine and waits until the model's memory is free.
    pub fn shut_down(self) {
        self.engine.shut_down();
    }

    /// Takes a place for a request, before anything is computed for it.
    ///
    /// # Errors
    /// When the queue is full; the error says when to come back.
    pub fn admit(&self) -> Result<Admission> {
        self.engine.admit()
    }

    /// What keeps an answer to what is asked for, once the model has thought.
    pub(super) fn constraint(
        &self,
        asked: Option<Asked>,
        reasoning: Option<&Reasoning>,
    ) -> Result<Option<Constraint>> {
        let Some(Asked { param, grammar }) = asked else { return Ok(None) };
        let constraint = self.engine.compile_constraint(&grammar).map_err(|e| e.with_param(param))?;
        Ok(Some(match reasoning {
            None => constraint,
            Some(reasoning) => constraint.after(Preamble {
                open: self.tokenizer.single_token_id(reasoning::OPEN),
                is_open: reasoning.is_open(),
                close: reasoning::CLOSE.to_owned(),
            }),
        }))
    }

    /// So many places in the queue, of which one is there.
    pub(super) fn places(&self, first: Admission, n: usize) -> Result<Vec<Admission>> {
        [Ok(first)].into_iter().chain((1..n).map(|_| self.admit())).collect()
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The engine behind this model.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}
