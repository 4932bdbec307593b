//! Calls as in a programming language, with arguments that are literals: Python's, or Gemma's.

use serde_json::Value;

use crate::chat::tools::argument_types::{ArgumentTypes, properties, resolve};
use crate::chat::tools::form::{
    ANY_TEXT, CallForm, CallGrammar, CallHead, CallReader, LastStep, ReadStep, Spelling, keyword_besides,
    optional_sequence,
};
use crate::chat::tools::literal::{GEMMA_QUOTE, LiteralScan, parse_literal};
use crate::inference::Grammar;
use crate::openai::chat::FunctionDefinition;

/// The layout of calls with literals.
#[derive(Debug)]
pub struct LiteralForm {
    /// Text before the function's name.
    pub call_open: &'static str,
    /// Brackets around the arguments.
    pub brackets: [char; 2],
    /// Character between the name of an argument and its value.
    pub key_end: char,
    /// Whether calls stand in a list.
    pub is_list: bool,
    /// Text between arguments, for the grammar.
    pub separator: &'static str,
    /// Writes the rule of a value, for the grammar.
    pub value_rule: fn(&mut CallGrammar<'_>, &Value, &Value) -> String,
    /// Texts that may be special tokens.
    pub marks: &'static [&'static str],
}

/// The longest name of a function or an argument.
const MAX_NAME_BYTES: usize = 256;

#[derive(Debug, Clone)]
struct LiteralReader {
    form: &'static LiteralForm,
    state: LiteralState,
    name: String,
    n_calls: usize,
    n_arguments: usize,
}

#[derive(Debug, Clone)]
enum LiteralState {
    Outside,
    /// In a call, before the name of an argument.
    Call,
    /// In the value of an argument.
    Value(String, LiteralScan),
}

impl CallForm for &'static LiteralForm {
    fn reader(&self) -> Option<Box<dyn CallReader>> {
        let (state, name) = (LiteralState::Outside, String::new());
        Some(Box::new(LiteralReader { form: self, state, name, n_calls: 0, n_arguments: 0 }))
    }

    fn unenforced_keyword(&self, schema: &Value) -> Option<String> {
        let resolved = resolve(schema, schema).unwrap_or(schema);
        let own =
            keyword_besides(resolved, &["type", "properties", "required", "additionalProperties", "$ref"]);
        // JSON is enforced as a whole.
        let values = || resolved.get("properties")?.as_object()?.values().find_map(gemma_unenforced);
        own.or_else(|| if self.marks.is_empty() { None } else { values() })
    }

    fn marks(&self) -> Vec<&'static str> {
        self.marks.to_vec()
    }

    fn add_rules(&self, grammar: &mut CallGrammar<'_>, open: &str, close: &str) {
        let mut calls = Vec::new();
        let separator = grammar.text(self.separator);
        for (idx, function) in grammar.tools.functions.iter().enumerate() {
            let arguments = match self.input_rule(grammar, idx) {
                Some(input) => input,
                None => {
                    let root = grammar.schemas[idx].clone();
                    let arguments = field_rules(grammar, &root, &root, self.key_end, self.value_rule);
                    optional_sequence(grammar, &arguments, &separator)
                }
            };
            let [before, after] = self.brackets;
            let before = grammar.text(&format!("{}{}{before}", self.call_open, function.name));
            calls.push(grammar.rule(&format!("{before} {arguments} \"{after}\"")));
        }
        let [open, close] = [open, close].map(|text| grammar.text(text));
        if self.is_list {
            let end = format!("\"]\" {close}");
            let end = if grammar.tools.is_parallel { format!("({end})?") } else { end };
            grammar.add_calls(&calls, "\"[\" call", "\", \"", "call", &end);
        } else {
            let one = format!("call {close}");
            grammar.add_calls(&calls, &one, "", &format!("{open} {one}"), "");
        }
    }
}

impl LiteralForm {
    /// The only argument of a function, if it is a text with a grammar of its own.
    fn input_rule(&self, grammar: &mut CallGrammar<'_>, idx: usize) -> Option<String> {
        // Without marks, literals are JSON.
        let (spelling, quote) = match self.marks.is_empty() {
            true => (Spelling::Json, String::new()),
            false => (Spelling::Plain, grammar.text(GEMMA_QUOTE)),
        };
        let (key, input) = grammar.input_rule(idx, spelling)?;
        let key = grammar.text(&format!("{key}{}", self.key_end));
        Some(format!("{key} {quote} {input} {quote}"))
    }
}

/// Rules for the fields of an object: key and value, and whether the field is required.
fn field_rules(
    grammar: &mut CallGrammar<'_>,
    schema: &Value,
    root: &Value,
    key_end: char,
    value_rule: fn(&mut CallGrammar<'_>, &Value, &Value) -> String,
) -> Vec<(String, bool)> {
    let schema = resolve(schema, root).unwrap_or(schema);
    let required = schema.get("required").and_then(Value::as_array);
    let mut fields = Vec::new();
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let value = value_rule(grammar, property, root);
        let key_text = grammar.text(&format!("{key}{key_end}"));
        let rule = grammar.rule(&format!("{key_text} {value}"));
        fields.push((rule, required.is_some_and(|required| required.iter().any(|name| name == key))));
    }
    fields
}

/// A value in Python's form. JSON is one, but for its words.
pub fn python_value(grammar: &mut CallGrammar<'_>, schema: &Value, root: &Value) -> String {
    let json = json_part(grammar, schema, root);
    let resolved = resolve(schema, root).unwrap_or(schema);
    match resolved.get("type").and_then(Value::as_str) {
        Some("boolean") if resolved.get("const").or(resolved.get("enum")).is_none() => {
            grammar.rule(&format!("{json} | \"True\" | \"False\""))
        }
        Some("null") => grammar.rule(&format!("{json} | \"None\"")),
        _ => json,
    }
}

/// A value as JSON.
fn json_part(grammar: &mut CallGrammar<'_>, schema: &Value, root: &Value) -> String {
    let mut schema = schema.clone();
    // References of the part lead into the function's schema.
    for definitions in ["$defs", "definitions"] {
        if let (Some(fields), Some(value)) = (schema.as_object_mut(), root.get(definitions)) {
            fields.entry(definitions).or_insert_with(|| value.clone());
        }
    }
    grammar.part(Grammar::JsonSchema(schema))
}

/// Deepest nesting of a value in Gemma's form under a grammar; anything deeper is left out.
const MAX_DEPTH: usize = 8;

/// A value in Gemma's form: JSON with other quotation marks, and none around keys.
pub fn gemma_value(grammar: &mut CallGrammar<'_>, schema: &Value, root: &Value) -> String {
    gemma_value_at(grammar, schema, root, 0)
}

fn gemma_value_at(grammar: &mut CallGrammar<'_>, schema: &Value, root: &Value, depth: usize) -> String {
    let resolved = resolve(schema, root).unwrap_or(schema);
    let quoted = |grammar: &mut CallGrammar<'_>, text: &str| {
        grammar.text(&format!("{GEMMA_QUOTE}{text}{GEMMA_QUOTE}"))
    };
    let list = |key: &str| resolved.get(key).and_then(Value::as_array);
    let named = list("enum").cloned().or_else(|| resolved.get("const").map(|value| vec![value.clone()]));
    if let Some(values) = named {
        let literals: Vec<String> = values
            .iter()
            .map(|value| match value {
                Value::String(text) => quoted(grammar, text),
                value => grammar.text(&value.to_string()),
            })
            .collect();
        return grammar.rule(&literals.join(" | "));
    }
    if let Some(alternatives) = list("anyOf").or_else(|| list("oneOf")).filter(|_| depth < MAX_DEPTH) {
        let rules: Vec<String> = alternatives
            .iter()
            .map(|alternative| gemma_value_at(grammar, alternative, root, depth + 1))
            .collect();
        return grammar.rule(&rules.join(" | "));
    }
    let types = match resolved.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => vec!["string", "number", "boolean", "null"],
    };
    let mut rules = Vec::new();
    for name in types {
        rules.push(match name {
            "string" => {
                let length = |key: &str| resolved.get(key).and_then(Value::as_u64);
                let text = match (length("minLength"), length("maxLength")) {
                    (None, None) => ANY_TEXT.to_owned(),
                    (min, max) => {
                        let max = max.map_or(String::new(), |max| max.to_string());
                        grammar.terminal(&format!("/[^\\x00]{{{},{max}}}/", min.unwrap_or(0)))
                    }
                };
                let text = grammar.text_until(&text, GEMMA_QUOTE);
                format!("{} {text}", grammar.text(GEMMA_QUOTE))
            }
            "array" if depth < MAX_DEPTH => {
                let items = resolved.get("items").cloned().unwrap_or_default();
                let item = gemma_value_at(grammar, &items, root, depth + 1);
                let min = resolved.get("minItems").and_then(Value::as_u64).unwrap_or(0);
                let max = resolved.get("maxItems").and_then(Value::as_u64);
                array_rule(&item, min, max)
            }
            "object" if depth < MAX_DEPTH => {
                let deeper = match depth {
                    0..3 => gemma_value_1,
                    _ => json_part,
                };
                let fields = field_rules(grammar, resolved, root, ':', deeper);
                let fields = optional_sequence(grammar, &fields, "\",\"");
                format!("\"{{\" {fields} \"}}\"")
            }
            name => {
                let mut schema = resolved.clone();
                schema["type"] = name.into();
                json_part(grammar, &schema, root)
            }
        });
    }
    grammar.rule(&rules.join(" | "))
}

/// A keyword that [`gemma_value`] does not enforce.
fn gemma_unenforced(schema: &Value) -> Option<String> {
    let known = [
        "type",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "$ref",
        "minLength",
        "maxLength",
        "items",
        "minItems",
        "maxItems",
        "properties",
        "required",
        "additionalProperties",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ];
    let inner = schema.get("items").and_then(gemma_unenforced);
    let fields = schema.get("properties").and_then(Value::as_object);
    let fields = || fields?.values().find_map(gemma_unenforced);
    let list = |key: &str| schema.get(key)?.as_array()?.iter().find_map(gemma_unenforced);
    keyword_besides(schema, &known)
        .or(inner)
        .or_else(fields)
        .or_else(|| list("anyOf"))
        .or_else(|| list("oneOf"))
}

/// A value within an object in Gemma's form.
fn gemma_value_1(grammar: &mut CallGrammar<'_>, schema: &Value, root: &Value) -> String {
    gemma_value_at(grammar, schema, root, 3)
}

fn array_rule(item: &str, min: u64, max: Option<u64>) -> String {
    let more = |min: u64| {
        let max = max.map_or(String::new(), |max| max.saturating_sub(1).to_string());
        format!("{item} (\",\" {item}){{{min},{max}}}")
    };
    match (min, max) {
        (_, Some(0)) => "\"[]\"".to_owned(),
        (0, _) => format!("\"[\" ({})? \"]\"", more(0)),
        (min, _) => format!("\"[\" {} \"]\"", more(min - 1)),
    }
}

impl LiteralReader {
    fn read_outside(&mut self, text: &str) -> ReadStep {
        let LiteralForm { call_open, brackets: [open, _], is_list, .. } = *self.form;
        let is_between = |c: char| c.is_whitespace() || (is_list && "[],;".contains(c));
        let n_skipped = text.len() - text.trim_start_matches(is_between).len();
        if n_skipped > 0 || text.is_empty() {
            return if n_skipped == 0 { ReadStep::Wait } else { ReadStep::Skip(n_skipped) };
        }
        if self.n_calls > 0 && !is_list && call_open.is_empty() {
            return ReadStep::Leave;
        }
        let Some(rest) = text.strip_prefix(call_open) else {
            return if call_open.starts_with(text) { ReadStep::Wait } else { ReadStep::Leave };
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        match rest[name.len()..].chars().next() {
            None if name.len() <= MAX_NAME_BYTES => ReadStep::Wait,
            Some(c) if c == open && !name.is_empty() => {
                self.state = LiteralState::Call;
                self.name = name.to_owned();
                self.n_arguments = 0;
                let head = CallHead { name: name.to_owned(), id: None };
                ReadStep::Call { n_bytes: call_open.len() + name.len() + open.len_utf8(), head }
            }
            _ => ReadStep::Leave,
        }
    }

    fn read_call(&mut self, text: &str, functions: &[FunctionDefinition]) -> ReadStep {
        let LiteralForm { brackets: [_, close], key_end, .. } = *self.form;
        let n_skipped = text.len() - text.trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
        if n_skipped > 0 || text.is_empty() {
            return if n_skipped == 0 { ReadStep::Wait } else { ReadStep::Skip(n_skipped) };
        }
        if text.starts_with(close) {
            return self.end_call(close.len_utf8());
        }
        let is_key = |c: char| c.is_alphanumeric() || "_-.$ \"'<|>".contains(c);
        let end = text.find(|c| !is_key(c));
        match end {
            Some(end) if text[end..].starts_with(key_end) => {
                let quotes: &[char] = &['"', '\''];
                let key = text[..end].trim().replace(GEMMA_QUOTE, "");
                let key = key.trim_matches(quotes).to_owned();
                self.state = LiteralState::Value(key, LiteralScan::default());
                ReadStep::Skip(end + key_end.len_utf8())
            }
            None if text.len() <= MAX_NAME_BYTES => ReadStep::Wait,
            // An argument without a name.
            _ => {
                let function = functions.iter().find(|function| function.name == self.name);
                let schema = function.and_then(|function| function.parameters.as_ref());
                let key = schema
                    .and_then(properties)
                    .and_then(|properties| properties.keys().nth(self.n_arguments).cloned())
                    .unwrap_or_else(|| self.n_arguments.to_string());
                self.state = LiteralState::Value(key, LiteralScan::default());
                ReadStep::Skip(0)
            }
        }
    }

    fn end_call(&mut self, n_bytes: usize) -> ReadStep {
        self.state = LiteralState::Outside;
        self.n_calls += 1;
        ReadStep::Arguments { n_bytes, json: self.close_arguments().to_owned() }
    }

    fn close_arguments(&self) -> &'static str {
        if self.n_arguments == 0 { "{}" } else { "}" }
    }

    /// The JSON of an argument.
    fn argument(&mut self, key: &str, text: &str, functions: &[FunctionDefinition]) -> String {
        let types = ArgumentTypes::of_argument(functions, &self.name, key);
        let value = match parse_literal(text) {
            Some(value) => types.value_of_literal(value, text),
            None => Value::from(text.trim().trim_start_matches(['"', '\''])),
        };
        let separator = if self.n_arguments == 0 { "{" } else { ", " };
        self.n_arguments += 1;
        format!("{separator}{}: {value}", Value::from(key))
    }
}

impl CallReader for LiteralReader {
    fn read(&mut self, text: &str, functions: &[FunctionDefinition]) -> ReadStep {
        let (key, end) = match &mut self.state {
            LiteralState::Outside => return self.read_outside(text),
            LiteralState::Call => return self.read_call(text, functions),
            LiteralState::Value(key, scan) => match scan.find_end(text) {
                None => return ReadStep::Wait,
                Some(end) => (std::mem::take(key), end),
            },
        };
        self.state = LiteralState::Call;
        let json = self.argument(&key, &text[..end], functions);
        ReadStep::Arguments { n_bytes: end, json }
    }

    fn finish(&mut self, rest: &str, is_cut: bool, functions: &[FunctionDefinition]) -> LastStep {
        let json = match std::mem::replace(&mut self.state, LiteralState::Outside) {
            _ if is_cut => String::new(),
            LiteralState::Value(key, _) if !rest.trim().is_empty() => {
                self.argument(&key, rest, functions) + self.close_arguments()
            }
            LiteralState::Value(..) | LiteralState::Call => self.close_arguments().to_owned(),
            LiteralState::Outside => String::new(),
        };
        LastStep { head: None, json }
    }

    fn boxed_clone(&self) -> Box<dyn CallReader> {
        Box::new(self.clone())
    }
}
