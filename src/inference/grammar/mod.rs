//! Constrained generation: a text that must follow a grammar. A mask over the vocabulary tells which tokens may come
//! next, and no other is sampled.
//!
//! The `llguidance` crate does the parsing; it is named nowhere else. This module adds the following:
//!
//! - The vocabulary is the [`Tokenizer`](crate::tokenizer::Tokenizer)'s.
//! - A sampled token is checked by itself. The mask is computed only if that token is not allowed. After such a token,
//!   the next mask is computed in advance, while the model computes the next logits.
//! - Grammars in GBNF are translated (`gbnf_to_lark`), those of texts inside JSON rewritten (`lark_in_json`), schemas are put into a form that can be enforced (`schema`).
//! - Grammars are compiled on threads of their own, after a trial in a process of its own ([`trial`]); texts are
//!   checked on the grammar threads. Neither holds up the model or other requests.
//! - Sizes and times are bounded.
//! - Any failure ends the text with an error: a constrained text never continues without its constraint.

mod char_set;
mod compiler;
mod constraint;
mod disjoint;
mod gbnf;
mod gbnf_to_lark;
mod lark_in_json;
mod matcher;
mod schema;
mod schema_keywords;
mod schema_walk;
mod terminal;
mod threads;
pub mod trial;
mod vocabulary;

use llguidance::ParserFactory;
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::TokEnv;
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Kind, Result};

pub use self::compiler::GrammarCompiler;
pub use self::constraint::{AllowedTokens, CompiledGrammar, Constraint, Preamble, TokenVerdict};
pub use self::schema_keywords::leave_out_unenforceable;
pub use self::schema_walk::forbid_additional_properties;

/// Most bytes of a grammar, including all schemas in it.
pub const MAX_GRAMMAR_BYTES: usize = 128 << 10;

/// Grammars are parsed recursively, as deep as the largest one can be nested.
const COMPILE_STACK_BYTES: usize = 128 << 20;

/// Parts of regular expressions that one mask may add to a lexer's tables. A mask of an `enum` of 2,000 strings adds
/// about 200,000.
const STEP_LEXER_FUEL: u64 = 1_000_000;

/// Rule positions that one mask may add, of some 50 ns each. Where a translated grammar has no longer terminals than
/// single characters, a mask of a large vocabulary adds some hundred thousand.
const STEP_ITEMS: usize = 1_000_000;

/// Most states of a text's lexer, of 1 to 2 kB each.
const MAX_LEXER_STATES: usize = 50_000;

/// A description of all texts that are allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Grammar {
    /// JSON that is valid under a schema.
    JsonSchema(Value),
    /// JSON that is valid under a schema, with white space of the request's choice.
    SpacedJson {
        /// The schema.
        schema: Value,
        /// Regular expression of the white space that may stand between parts of the JSON; empty for none.
        space: String,
    },
    /// Texts that a regular expression matches from beginning to end.
    Regex(String),
    /// One of several strings.
    Choice(Vec<String>),
    /// Rules in llama.cpp's or XGrammar's form, from `root`.
    Gbnf(String),
    /// Rules in Lark's form, from `start`, for texts that are written as the content of a JSON string.
    LarkInJson(String),
    /// Rules in llguidance's dialect of Lark. They refer to each part by its name, `@name`.
    Lark {
        /// The rules, from `start`.
        rules: String,
        /// Grammars that the rules refer to, by name.
        parts: Vec<(String, Grammar)>,
    },
}

impl Grammar {
    /// Rules in Lark's form, or in one of BNF, which are told apart by `::=`.
    pub fn from_rules(rules: String) -> Self {
        if gbnf::is_bnf(&rules) { Self::Gbnf(rules) } else { Self::Lark { rules, parts: Vec::new() } }
    }

    /// Checks that it is not too large.
    ///
    /// # Errors
    /// When it is.
    fn check_size(&self) -> Result<()> {
        let n_bytes = self.n_bytes();
        if n_bytes <= MAX_GRAMMAR_BYTES {
            return Ok(());
        }
        Err(unenforceable(&format!("it has {n_bytes} bytes, and {MAX_GRAMMAR_BYTES} is the limit")))
    }

    /// The grammar in llguidance's terms. This may take long, and much of the stack.
    fn to_llguidance(&self) -> Result<TopLevelGrammar> {
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
            Self::JsonSchema(schema) => {
                GrammarWithLexer::from_json_schema(schema::with_options(schema, schema::JSON_SPACE)?)
            }
            Self::SpacedJson { schema, space } => {
                GrammarWithLexer::from_json_schema(schema::with_options(schema, space)?)
            }
            Self::Gbnf(text) => {
                let rules = gbnf_to_lark::gbnf_to_lark(text).map_err(|e| unenforceable(&e))?;
                GrammarWithLexer::from_lark(rules)
            }
            Self::LarkInJson(rules) => {
                let rules = lark_in_json::lark_in_json(rules);
                GrammarWithLexer::from_lark(rules.map_err(|e| unenforceable(&e))?)
            }
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
            Self::SpacedJson { schema, space } => schema.to_string().len() + space.len(),
            Self::Regex(text) | Self::Gbnf(text) | Self::LarkInJson(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
            Self::Lark { rules, parts } => {
                rules.len() + parts.iter().map(|(_, part)| part.n_bytes()).sum::<usize>()
            }
        }
    }
}

/// A factory of parsers for a vocabulary.
fn new_factory(vocabulary: &TokEnv) -> Result<ParserFactory> {
    let mut factory = ParserFactory::new_simple(vocabulary)
        .map_err(|e| Error::internal(format!("the vocabulary cannot be used with grammars: {e}")))?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        // Work on the whole vocabulary is left to the masks, which can be interrupted.
        precompute_large_lexemes: false,
        step_lexer_fuel: STEP_LEXER_FUEL,
        step_max_items: STEP_ITEMS,
        max_lexer_states: MAX_LEXER_STATES,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

/// The error of a grammar that cannot be enforced.
fn unenforceable(why: &str) -> Error {
    let why = match why.trim().strip_prefix("Unimplemented keys: ") {
        Some(keys) => &format!("the schema keywords {keys} are not supported; leave them out"),
        None if why.contains("oneOf constraints are not supported") => {
            "`oneOf` has alternatives that may match the same JSON; let them exclude each other, for example by a \
             required property with another `const` in each, or send `anyOf`"
        }
        // A bug of the parser is no news to the client.
        None if why.starts_with("panic") => "it is too complex; send a simpler one",
        None => why.trim(),
    };
    Error::new(Kind::InvalidRequest, format!("the grammar cannot be enforced: {why}"))
}

/// The error of a text whose grammar can no longer be enforced.
fn too_complex(why: &str) -> Error {
    let why = why.lines().next().unwrap_or(why);
    Error::new(
        Kind::InvalidRequest,
        format!("the text was ended because its grammar could not be enforced: {why}; send a simpler one"),
    )
}
