//! Constrained generation: a text that must follow a grammar. A mask over the vocabulary tells which tokens may come
//! next, and no other is sampled.
//!
//! The `llguidance` crate does the parsing; it is named nowhere else. This module adds the following:
//!
//! - The vocabulary is the [`Tokenizer`]'s.
//! - A sampled token is checked by itself. The mask is computed only if that token is not allowed. After such a token,
//!   the next mask is computed in advance, on a thread of its own, while the model computes the next logits.
//! - Sizes and times are bounded.
//! - Any failure ends the text with an error: a constrained text never continues without its constraint.

mod constraint;
mod schema;
mod vocabulary;

use std::sync::{Arc, OnceLock, mpsc};
use std::thread;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::TokEnv;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use self::constraint::MaskJob;
use self::vocabulary::GrammarVocabulary;
use crate::error::{Error, Kind, Result};
use crate::tokenizer::Tokenizer;

pub use self::constraint::{Constraint, Preamble, TokenMask};
pub use self::schema::for_each_schema;

/// Most bytes of a grammar, including all schemas in it.
pub const MAX_GRAMMAR_BYTES: usize = 128 << 10;

/// Grammars are parsed recursively, as deep as the largest one can be nested.
const COMPILE_STACK_BYTES: usize = 128 << 20;
const MASK_STACK_BYTES: usize = 16 << 20;

/// A description of all texts that are allowed.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that is valid under a schema.
    JsonSchema(Value),
    /// Texts that a regular expression matches from beginning to end.
    Regex(String),
    /// One of several strings.
    Choice(Vec<String>),
    /// Rules in llguidance's dialect of Lark. They refer to each part by its name, `@name`.
    Lark {
        /// The rules, from `start`.
        rules: String,
        /// Grammars that the rules refer to, by name.
        parts: Vec<(String, Grammar)>,
    },
}

/// Compiles grammars for one vocabulary.
pub struct GrammarCompiler {
    tokenizer: Arc<Tokenizer>,
    n_vocab: usize,
    /// Made for the first grammar.
    factory: OnceLock<Result<ParserFactory>>,
    jobs: mpsc::Sender<MaskJob>,
}

impl GrammarCompiler {
    /// A compiler for a model with `n_vocab` logits. It starts the thread that computes masks.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(tokenizer: Arc<Tokenizer>, n_vocab: usize) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<MaskJob>();
        thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(MASK_STACK_BYTES)
            .spawn(move || queue.into_iter().for_each(MaskJob::run))
            .map_err(|e| Error::internal(format!("cannot start the grammar thread: {e}")))?;
        Ok(Self { tokenizer, n_vocab, factory: OnceLock::new(), jobs })
    }

    /// Compiles a grammar into the constraint of a text, which ends where the grammar does.
    ///
    /// # Errors
    /// When the grammar is too large or too complex, is malformed, or uses a feature that cannot be enforced.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        let grammar = grammar.to_llguidance()?;
        let factory = self.factory.get_or_init(|| self.new_factory()).as_ref().map_err(Clone::clone)?;
        let compiled = thread::scope(|scope| {
            let compile = || factory.create_parser(grammar).map_err(|e| unenforceable(&e.to_string()));
            let thread = thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn_scoped(scope, compile);
            let thread =
                thread.map_err(|e| Error::internal(format!("cannot start a thread for a grammar: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(unenforceable("it is too complex")))
        });
        let matcher = Box::new(Matcher::new(Ok(compiled?)).into_cancellable());
        let mut constraint = Constraint::new(matcher, self.jobs.clone());
        // A grammar that no text can follow fails here, before the prompt is computed.
        constraint.allowed_tokens().map(drop).map_err(|e| unenforceable(&e.to_string()))?;
        Ok(constraint)
    }

    fn new_factory(&self) -> Result<ParserFactory> {
        let vocabulary: TokEnv = Arc::new(GrammarVocabulary::new(self.tokenizer.clone(), self.n_vocab));
        let mut factory = ParserFactory::new_simple(&vocabulary)
            .map_err(|e| Error::internal(format!("the vocabulary cannot be used with grammars: {e}")))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }
}

impl Grammar {
    /// The grammar in llguidance's terms.
    fn to_llguidance(&self) -> Result<TopLevelGrammar> {
        let n_bytes = self.n_bytes();
        if n_bytes > MAX_GRAMMAR_BYTES {
            let message = format!("it has {n_bytes} bytes, and {MAX_GRAMMAR_BYTES} is the limit");
            return Err(unenforceable(&message));
        }
        let mut whole = TopLevelGrammar::from_grammar(self.without_parts()?);
        if let Self::Lark { parts, .. } = self {
            for (name, part) in parts {
                whole.grammars.push(GrammarWithLexer { name: Some(name.clone()), ..part.without_parts()? });
            }
        }
        Ok(whole)
    }

    /// The grammar without its parts, which must not have parts of their own.
    fn without_parts(&self) -> Result<GrammarWithLexer> {
        Ok(match self {
            Self::JsonSchema(schema) => GrammarWithLexer::from_json_schema(schema::with_options(schema)?),
            Self::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Self::Choice(choices) => {
                let choices: Vec<String> =
                    choices.iter().map(|choice| Value::from(choice.as_str()).to_string()).collect();
                GrammarWithLexer::from_lark(format!("start: {}", choices.join(" | ")))
            }
            Self::Lark { rules, .. } => GrammarWithLexer::from_lark(rules.clone()),
        })
    }

    fn n_bytes(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
            Self::Lark { rules, parts } => {
                rules.len() + parts.iter().map(|(_, part)| part.n_bytes()).sum::<usize>()
            }
        }
    }
}

/// The error of a grammar that cannot be enforced.
fn unenforceable(why: &str) -> Error {
    let why = match why.trim().strip_prefix("Unimplemented keys: ") {
        Some(keys) => &format!("the schema keywords {keys} are not supported; leave them out"),
        None => why.trim(),
    };
    Error::new(Kind::InvalidRequest, format!("the grammar cannot be enforced: {why}"))
}
