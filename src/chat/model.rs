//! A loaded chat model: template, tokenizer and engine.

use std::sync::Arc;

use super::reasoning::{ReasoningMarks, ReasoningParser};
use super::structured::ConstraintSpec;
use super::template::ChatTemplate;
use crate::error::Result;
use crate::inference::Priority;
use crate::inference::grammar::Preamble;
use crate::inference::{Admission, CompiledGrammar, Constraint, Engine, ThoughtBudget};
use crate::tokenizer::Tokenizer;

/// A loaded chat model.
///
/// [`start_chat`](Self::start_chat) is implemented in [`chat`](super), `start_completion` in `chat/completion.rs`,
/// and the rendering of prompts in `chat/prompt.rs`.
pub struct ChatModel {
    template: Result<ChatTemplate>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) engine: Engine,
    fingerprint: String,
}

impl ChatModel {
    /// A model with a running engine. `template` is an error if the model cannot chat, but only complete texts;
    /// `fingerprint` is returned by [`ChatModel::fingerprint`].
    pub fn new(
        template: Result<ChatTemplate>,
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

    /// The model's chat template.
    ///
    /// # Errors
    /// When the model has none, or none that can be used.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().map_err(Clone::clone)
    }

    /// Whether the model's template has marks of reasoning, which is then separated from the text.
    pub fn is_reasoning(&self) -> bool {
        self.template.as_ref().is_ok_and(|template| template.reasoning_marks().is_some())
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The engine that runs the model.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The most tokens of a prompt and its response.
    pub fn context_length(&self) -> usize {
        self.engine.context_length()
    }

    /// Stops the engine and waits until the model's memory is freed.
    pub fn shut_down(self) {
        self.engine.shut_down();
    }

    /// Reserves a slot in the queue, before anything is computed for the request. For a background request it waits.
    ///
    /// # Errors
    /// When the queue is full; the error says when to retry.
    pub async fn admit(&self, priority: Priority) -> Result<Admission> {
        match priority {
            Priority::Interactive => self.engine.admit(),
            Priority::Background => self.engine.admit_later().await,
        }
    }

    /// Reserves slots for `n` generations, the first of which is already admitted.
    pub(super) fn reserve_slots(&self, first: Admission, n: usize) -> Result<Vec<Admission>> {
        [Ok(first)].into_iter().chain((1..n).map(|_| self.engine.admit())).collect()
    }

    /// Compiles the grammar of a response, if it has one. This takes none of the threads that prepare prompts; dropping
    /// the future ends the work.
    ///
    /// # Errors
    /// When the grammar is malformed, takes too long, or has to wait for too many others.
    pub async fn compile(&self, spec: Option<ConstraintSpec>) -> Result<Option<Arc<CompiledGrammar>>> {
        let Some(ConstraintSpec { param, grammar }) = spec else { return Ok(None) };
        self.engine.compile_grammar(&grammar).await.map(Some).map_err(|e| e.with_param(param))
    }

    /// The constraint of a response. For a model that reasons, it applies only after the reasoning.
    pub(super) fn constraint(
        &self,
        grammar: &Arc<CompiledGrammar>,
        reasoning: Option<&ReasoningParser>,
    ) -> Constraint {
        let constraint = grammar.constraint();
        let marks = self.template.as_ref().ok().and_then(ChatTemplate::reasoning_marks);
        match (reasoning, marks) {
            (Some(reasoning), Some(marks)) => constraint.with_preamble(Preamble {
                open: self.tokenizer.single_token_id(marks.open_token),
                is_open: reasoning.is_open() || marks.is_harmony,
                close: marks.preamble_close().to_owned(),
            }),
            _ => constraint,
        }
    }

    /// The limit of a model's thoughts to `max_tokens`, if given. Where a grammar describes what follows a thought
    /// (`is_framed`), only the thought's own end is forced.
    pub(super) fn thought_budget(
        &self,
        max_tokens: Option<usize>,
        marks: &ReasoningMarks,
        reasoning: &ReasoningParser,
        is_framed: bool,
    ) -> Result<Option<ThoughtBudget>> {
        let Some(max_tokens) = max_tokens else { return Ok(None) };
        let close = if is_framed { marks.close } else { marks.forced_close };
        let closing = self.tokenizer.encode_with_special(close)?;
        Ok(Some(ThoughtBudget {
            open: marks.open.trim_end().to_owned(),
            close: marks.close.to_owned(),
            is_open: reasoning.is_open(),
            may_reopen: marks.is_harmony,
            max_tokens,
            closing,
        }))
    }
}
