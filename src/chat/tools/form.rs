//! The interface of a form of tool calls: how a model's text is read, and what grammar enforces it.

use std::fmt;

use serde_json::Value;

use super::tool_set::ToolSet;
use crate::inference::Grammar;
use crate::openai::chat::FunctionDefinition;

/// Maximum number of calls in a constrained response.
pub const MAX_CALLS: usize = 16;

/// The terminal of any text.
pub const ANY_TEXT: &str = "/[^\\x00]*/";

/// A way to write calls between the marks of a [`ToolCallFormat`](super::ToolCallFormat).
pub trait CallForm: Sync + fmt::Debug {
    /// A reader of calls in this form; `None` if they are JSON objects with a name and arguments, which the parser
    /// reads in any format.
    fn reader(&self) -> Option<Box<dyn CallReader>>;

    /// A keyword in a function's schema that the form's grammar does not enforce.
    fn unenforced_keyword(&self, schema: &Value) -> Option<String> {
        let _ = schema;
        None
    }

    /// Texts of the form that may be special tokens.
    fn marks(&self) -> Vec<&'static str>;

    /// Adds the rule `calls`: one or several calls, after the first of `open`.
    fn add_rules(&self, grammar: &mut CallGrammar<'_>, open: &str, close: &str);
}

/// An incremental reader of the calls in one section of a text.
pub trait CallReader: Send + Sync + fmt::Debug {
    /// Reads from the beginning of `text`, of which it returns how many bytes are read. It is called again with the
    /// rest, and with more text.
    fn read(&mut self, text: &str, functions: &[FunctionDefinition]) -> ReadStep;

    /// Ends the text, of which `rest` is not read. If the token limit has cut it (`is_cut`), arguments stay as far as
    /// they go; else an open call is closed.
    fn finish(&mut self, rest: &str, is_cut: bool, functions: &[FunctionDefinition]) -> LastStep;

    /// A copy.
    fn boxed_clone(&self) -> Box<dyn CallReader>;
}

impl Clone for Box<dyn CallReader> {
    fn clone(&self) -> Self {
        self.boxed_clone()
    }
}

/// The result of a reader's step.
#[derive(Debug, PartialEq)]
pub enum ReadStep {
    /// More text is needed.
    Wait,
    /// Bytes that add nothing.
    Skip(usize),
    /// A call begins.
    Call {
        /// Bytes read.
        n_bytes: usize,
        /// Name and id.
        head: CallHead,
    },
    /// More of the arguments of the call.
    Arguments {
        /// Bytes read.
        n_bytes: usize,
        /// Text of JSON.
        json: String,
    },
    /// Bytes after which ordinary text follows, without a call.
    Text(usize),
    /// The end of a call: the text after it belongs to none.
    Leave,
}

/// The name of a call, and the id that the model gave it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CallHead {
    /// The function's name.
    pub name: String,
    /// The id, in formats that have one.
    pub id: Option<String>,
}

/// The addition at the end of a text.
#[derive(Debug, Default, PartialEq)]
pub struct LastStep {
    /// A call whose name is whole.
    pub head: Option<CallHead>,
    /// More of the arguments of the newest call.
    pub json: String,
}

/// The way in which a form writes a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// As it is, between marks of the form.
    Plain,
    /// As a JSON string.
    Json,
}

/// A grammar of calls under construction.
pub struct CallGrammar<'a> {
    /// The functions.
    pub tools: &'a ToolSet,
    /// Schema of each function's arguments.
    pub schemas: Vec<Value>,
    /// Rules so far.
    pub rules: Vec<String>,
    /// Parts that the rules refer to.
    pub parts: Vec<(String, Grammar)>,
    /// Special tokens among the marks of the format.
    special: Vec<(&'static str, u32)>,
}

impl<'a> CallGrammar<'a> {
    /// A grammar without rules. `special` returns the id of a special token; `marks` are the texts to look up.
    pub fn new(
        tools: &'a ToolSet,
        schemas: Vec<Value>,
        marks: Vec<&'static str>,
        special: &impl Fn(&str) -> Option<u32>,
    ) -> Self {
        let marks = marks.into_iter().filter(|mark| !mark.is_empty());
        let special = marks.filter_map(|mark| Some((mark, special(mark)?))).collect();
        Self { tools, schemas, rules: Vec::new(), parts: Vec::new(), special }
    }

    /// Whether a text is a special token.
    pub fn is_special(&self, text: &str) -> bool {
        self.special.iter().any(|(mark, _)| *mark == text)
    }

    /// A text as part of a rule: its special tokens, and the text around them.
    pub fn text(&self, text: &str) -> String {
        let found = self.special.iter().filter_map(|(mark, id)| Some((text.find(mark)?, mark, id)));
        match found.min_by_key(|&(start, mark, _)| (start, usize::MAX - mark.len())) {
            None if text.is_empty() => String::new(),
            None => Value::from(text).to_string(),
            Some((start, mark, id)) => {
                let (before, after) = (self.text(&text[..start]), self.text(&text[start + mark.len()..]));
                format!("{before} <[{id}]> {after}").trim().to_owned()
            }
        }
    }

    /// Adds a rule; returns its name.
    pub fn rule(&mut self, body: &str) -> String {
        let name = format!("rule_{}", self.rules.len());
        self.rules.push(format!("{name}: {}", non_empty(body)));
        name
    }

    /// Adds a terminal; returns its name.
    pub fn terminal(&mut self, body: &str) -> String {
        let name = format!("TERMINAL_{}", self.rules.len());
        self.rules.push(format!("{name}: {body}"));
        name
    }

    /// The arguments of a function as JSON; returns the reference.
    pub fn json_arguments(&mut self, idx: usize) -> String {
        match self.input_rule(idx, Spelling::Json) {
            None => self.part(Grammar::JsonSchema(self.schemas[idx].clone())),
            Some((key, input)) => {
                let before = self.text(&format!("{{{}: ", Value::from(key)));
                format!("{before} {input} \"}}\"")
            }
        }
    }

    /// The name and the rule of a function's only argument, if it is a text with a grammar of its own.
    pub fn input_rule(&mut self, idx: usize, spelling: Spelling) -> Option<(String, String)> {
        let rules = self.tools.functions[idx].input_grammar.clone()?;
        let key = self.schemas[idx].get("properties")?.as_object()?.keys().next()?.clone();
        let rule = match spelling {
            Spelling::Plain => self.part(Grammar::Lark { rules, parts: Vec::new() }),
            Spelling::Json => {
                let content = self.part(Grammar::LarkInJson(rules));
                format!("\"\\\"\" {content} \"\\\"\"")
            }
        };
        Some((key, rule))
    }

    /// Adds a grammar that rules can refer to; returns the reference.
    pub fn part(&mut self, grammar: Grammar) -> String {
        let name = format!("part_{}", self.parts.len());
        self.parts.push((name.clone(), grammar));
        format!("@{name}")
    }

    /// Text that matches `value`, a terminal, up to and including `close`, which it does not contain.
    pub fn text_until(&mut self, value: &str, close: &str) -> String {
        let mark = close.trim();
        if self.is_special(mark) {
            return format!("{value} {}", self.text(close));
        }
        let (mark, close) = (Value::from(mark), Value::from(close));
        if value == ANY_TEXT {
            let name = format!("rule_{}", self.rules.len());
            self.rules.push(format!("{name}[lazy]: {ANY_TEXT} {close}"));
            return name;
        }
        let text = self.terminal(&format!("{value} & ~(/[^\\x00]*/ {mark} /[^\\x00]*/)"));
        self.terminal(&format!("{text} {close}"))
    }

    /// Adds the rule `call`, which is any of `calls`, and `calls`: `first`, then any number of `more`, if the request
    /// allows for several, and `end`. The text may end after each, and after the separator: some models write it before
    /// they decide whether another call follows.
    pub fn add_calls(&mut self, calls: &[String], first: &str, separator: &str, more: &str, end: &str) {
        let more = match self.tools.is_parallel {
            false => String::new(),
            true if separator.is_empty() => format!("({more}){{0,{}}}", MAX_CALLS - 1),
            true => format!("({separator} {more}){{0,{}}} ({separator})?", MAX_CALLS - 1),
        };
        self.rules.push(format!("calls: {first} {more} {end}"));
        self.rules.push(format!("call: {}", calls.join(" | ")));
    }
}

/// The first keyword of a schema that is none of `known` and no annotation.
pub fn keyword_besides(schema: &Value, known: &[&str]) -> Option<String> {
    let fields = schema.as_object()?;
    let is_known = |key: &str| known.contains(&key) || ANNOTATIONS.contains(&key);
    fields.keys().find(|key| !is_known(key)).cloned()
}

/// Keywords that restrict nothing.
const ANNOTATIONS: [&str; 12] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "strict",
];

/// A sequence of items of which some may be left out, with `separator` between them.
pub fn optional_sequence(grammar: &mut CallGrammar<'_>, items: &[(String, bool)], separator: &str) -> String {
    // From the last item to the first: what may follow the items before it, of which there are some or none.
    let (mut after_some, mut after_none) = ("\"\"".to_owned(), "\"\"".to_owned());
    for (item, is_required) in items.iter().rev() {
        let begun = format!("{item} {after_some}");
        let continued = format!("{separator} {item} {after_some}");
        if *is_required {
            after_none = grammar.rule(&begun);
            after_some = grammar.rule(&continued);
        } else {
            after_none = grammar.rule(&format!("{begun} | {after_none}"));
            after_some = grammar.rule(&format!("{continued} | {after_some}"));
        }
    }
    after_none
}

fn non_empty(body: &str) -> &str {
    if body.trim().is_empty() { "\"\"" } else { body }
}
