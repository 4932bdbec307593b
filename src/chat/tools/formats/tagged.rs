//! Calls as tags, with a tag for each argument whose text is converted by the function's schema.

use serde_json::Value;

use crate::chat::tools::argument_types::{ArgumentTypes, properties, resolve};
use crate::chat::tools::form::{
    ANY_TEXT, CallForm, CallGrammar, CallHead, CallReader, LastStep, ReadStep, Spelling, keyword_besides,
};
use crate::chat::tools::json_text::{escape, overlap_any};
use crate::inference::Grammar;
use crate::openai::chat::FunctionDefinition;

/// The layout of calls in tags.
#[derive(Debug)]
pub struct TaggedForm {
    /// Text before the function's name.
    pub call_open: &'static str,
    /// Text that ends the tag with the name; empty if white space or another tag ends the name.
    pub name_end: &'static str,
    /// Tag after the last argument of a call; that of the section if empty.
    pub call_close: &'static str,
    /// Text before the name of an argument.
    pub key_open: &'static str,
    /// Text after which the value follows.
    pub value_open: &'static str,
    /// Tag after the value.
    pub value_close: &'static str,
    /// Tag that ends the section, and a call in it that has not ended.
    pub section_close: &'static str,
    /// A call with `{name}` and `{arguments}`, for the grammar.
    pub layout: &'static str,
    /// The text before a value with `{key}` and `{is_string}`, for the grammar.
    pub key_layout: &'static str,
    /// The text after a value, for the grammar.
    pub value_end: &'static str,
    /// Text between calls of one section, for the grammar; `None` if each has a section of its own.
    pub separator: Option<&'static str>,
    /// Text between the section's mark and the first call, for the grammar; where each call has a section of its own,
    /// also after it.
    pub padding: &'static str,
    /// Tags that may be special tokens.
    pub marks: &'static [&'static str],
}

/// The longest tag.
const MAX_TAG_BYTES: usize = 512;

#[derive(Debug, Clone)]
struct TaggedReader {
    form: &'static TaggedForm,
    state: TaggedState,
    name: String,
    n_calls: usize,
    n_arguments: usize,
}

#[derive(Debug, Clone, Copy)]
enum TaggedState {
    Outside,
    /// In a call, between arguments.
    Call,
    /// In a value.
    Value {
        types: ArgumentTypes,
        is_first: bool,
    },
}

impl CallForm for &'static TaggedForm {
    fn reader(&self) -> Option<Box<dyn CallReader>> {
        let (state, name) = (TaggedState::Outside, String::new());
        Some(Box::new(TaggedReader { form: self, state, name, n_calls: 0, n_arguments: 0 }))
    }

    fn unenforced_keyword(&self, schema: &Value) -> Option<String> {
        let resolved = resolve(schema, schema).unwrap_or(schema);
        let of_text = |property: &Value| {
            let types = ArgumentTypes::of_schema(property, schema);
            let property = resolve(property, schema).unwrap_or(property);
            let known =
                ["type", "enum", "const", "minLength", "maxLength", "pattern", "anyOf", "oneOf", "$ref"];
            if types.has_text() { keyword_besides(property, &known) } else { None }
        };
        keyword_besides(resolved, &["type", "properties", "required", "additionalProperties", "$ref"])
            .or_else(|| properties(schema)?.values().find_map(of_text))
    }

    fn marks(&self) -> Vec<&'static str> {
        self.marks.to_vec()
    }

    fn add_rules(&self, grammar: &mut CallGrammar<'_>, open: &str, close: &str) {
        let mut calls = Vec::new();
        for (idx, function) in grammar.tools.functions.iter().enumerate() {
            let layout = self.layout.replace("{name}", &function.name);
            let (before, after) = layout.split_once("{arguments}").unwrap_or((&layout, ""));
            let (before, after) = (grammar.text(before), grammar.text(after));
            let arguments = self.argument_rules(grammar, idx);
            calls.push(grammar.rule(&format!("{before} {arguments} {after}")));
        }
        let [open, close, padding] = [open, close, self.padding].map(|text| grammar.text(text));
        match self.separator {
            Some(separator) => {
                let separator = grammar.text(separator);
                let end = if grammar.tools.is_parallel { format!("({close})?") } else { close };
                grammar.add_calls(&calls, &format!("{padding} call"), &separator, "call", &end);
            }
            None => {
                let one = format!("{padding} call {padding} {close}");
                grammar.add_calls(&calls, &one, "\"\\n\"", &format!("{open} {one}"), "");
            }
        }
    }
}

impl TaggedForm {
    /// Rules for the arguments of a function, in the order of its schema.
    fn argument_rules(&self, grammar: &mut CallGrammar<'_>, idx: usize) -> String {
        if let Some((key, input)) = grammar.input_rule(idx, Spelling::Plain) {
            let before = self.key_layout.replace("{key}", &key).replace("{is_string}", "true");
            return format!("{} {input} {}", grammar.text(&before), grammar.text(self.value_end));
        }
        let root = grammar.schemas[idx].clone();
        let object = resolve(&root, &root).unwrap_or(&root);
        let is_required = |key: &str| {
            let required = object.get("required").and_then(Value::as_array);
            required.is_some_and(|required| required.iter().any(|name| name == key))
        };
        let mut rules = Vec::new();
        for (key, property) in properties(&root).into_iter().flatten() {
            let mut alternatives = Vec::new();
            self.value_rules(grammar, key, property, &root, &mut alternatives);
            let rule = grammar.rule(&alternatives.join(" | "));
            rules.push(if is_required(key) { rule } else { format!("({rule})?") });
        }
        rules.join(" ")
    }

    /// Adds the alternatives for an argument: its key and its value.
    fn value_rules(
        &self,
        grammar: &mut CallGrammar<'_>,
        key: &str,
        schema: &Value,
        root: &Value,
        rules: &mut Vec<String>,
    ) {
        let layout = self.key_layout.replace("{key}", key);
        let before = |grammar: &CallGrammar<'_>, is_string: bool| {
            grammar.text(&layout.replace("{is_string}", if is_string { "true" } else { "false" }))
        };
        let types = ArgumentTypes::of_schema(schema, root);
        let resolved = resolve(schema, root).unwrap_or(schema);
        let strings = strings_of(resolved);
        if types.has_text() {
            let before = before(grammar, true);
            if let Some(strings) = strings {
                let texts = strings.iter().map(|text| Value::from(*text).to_string());
                let texts = texts.collect::<Vec<_>>().join(" | ");
                let after = grammar.text(self.value_end);
                rules.push(format!("{before} ({texts}) {after}"));
            } else {
                let value = text_terminal(grammar, resolved);
                let value = grammar.text_until(&value, self.value_end);
                rules.push(format!("{before} {value}"));
            }
        }
        if !types.is_text() {
            let mut schema = schema.clone();
            // References of the part lead into the function's schema.
            for definitions in ["$defs", "definitions"] {
                if let (Some(fields), Some(value)) = (schema.as_object_mut(), root.get(definitions)) {
                    fields.entry(definitions).or_insert_with(|| value.clone());
                }
            }
            let schema = if types.has_text() { without_strings(schema) } else { schema };
            let value = grammar.part(Grammar::JsonSchema(schema));
            let (before, after) = (before(grammar, false), grammar.text(self.value_end));
            rules.push(format!("{before} {value} {after}"));
        }
    }
}

/// A schema without the type of strings, which are written in another way.
fn without_strings(schema: Value) -> Value {
    let others = serde_json::json!({"type": ["number", "boolean", "null", "object", "array"]});
    serde_json::json!({"allOf": [schema, others]})
}

/// The strings that a schema names, if it allows no others.
fn strings_of(schema: &Value) -> Option<Vec<&str>> {
    match (schema.get("enum"), schema.get("const")) {
        (Some(Value::Array(values)), _) => Some(values.iter().filter_map(Value::as_str).collect()),
        (_, Some(Value::String(text))) => Some(vec![text]),
        _ => None,
    }
}

/// The terminal of a string that matches a schema.
fn text_terminal(grammar: &mut CallGrammar<'_>, schema: &Value) -> String {
    let length = |key: &str| schema.get(key).and_then(Value::as_u64);
    let mut terms = match (length("minLength"), length("maxLength")) {
        (None, None) => vec![ANY_TEXT.to_owned()],
        (min, max) => {
            let max = max.map_or(String::new(), |max| max.to_string());
            vec![format!("/[^\\x00]{{{},{max}}}/", min.unwrap_or(0))]
        }
    };
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        // A pattern of a schema may match anywhere in the text, unless it is anchored.
        let (start, pattern) = match pattern.strip_prefix('^') {
            Some(pattern) => ("", pattern),
            None => ("[^\\x00]*", pattern),
        };
        let (pattern, end) = match pattern.strip_suffix('$').filter(|pattern| !pattern.ends_with('\\')) {
            Some(pattern) => (pattern, ""),
            None => (pattern, "[^\\x00]*"),
        };
        terms.push(format!("/{start}({}){end}/", pattern.replace('/', "\\/")));
    }
    match &terms[..] {
        [one] => one.clone(),
        _ => grammar.terminal(&terms.join(" & ")),
    }
}

impl TaggedReader {
    fn read_outside(&mut self, text: &str) -> ReadStep {
        let TaggedForm { call_open, name_end, section_close, .. } = *self.form;
        let rest = text.trim_start();
        let n_space = text.len() - rest.len();
        if n_space > 0 || text.is_empty() {
            return if n_space == 0 { ReadStep::Wait } else { ReadStep::Skip(n_space) };
        }
        let Some(header) = rest.strip_prefix(call_open) else {
            let is_begun = call_open.starts_with(rest) || section_close.starts_with(rest);
            return if is_begun && rest != section_close { ReadStep::Wait } else { ReadStep::Leave };
        };
        if call_open.is_empty() && (self.n_calls > 0 || section_close.starts_with(rest)) {
            let is_begun = section_close.starts_with(rest) && rest != section_close;
            return if is_begun { ReadStep::Wait } else { ReadStep::Leave };
        }
        let end = match name_end {
            "" => header.find(|c: char| c.is_whitespace() || c == '<'),
            name_end => header.find(name_end),
        };
        let Some(end) = end else {
            return if header.len() > MAX_TAG_BYTES { ReadStep::Leave } else { ReadStep::Wait };
        };
        // Some forms have quotation marks around the name.
        let name = header[..end].trim_start_matches(['"', ' ']);
        let name = name.split(['"', '<', '\n']).next().unwrap_or_default().trim();
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || !name.chars().all(is_name) {
            return ReadStep::Leave;
        }
        self.state = TaggedState::Call;
        self.name = name.to_owned();
        self.n_arguments = 0;
        let n_bytes = call_open.len() + end + name_end.len();
        ReadStep::Call { n_bytes, head: CallHead { name: name.to_owned(), id: None } }
    }

    fn read_call(&mut self, text: &str, functions: &[FunctionDefinition]) -> ReadStep {
        let TaggedForm { call_close, key_open, value_open, section_close, .. } = *self.form;
        let rest = text.trim_start();
        let n_space = text.len() - rest.len();
        let ends = [call_close, section_close].into_iter().filter(|end| !end.is_empty());
        if let Some(header) = rest.strip_prefix(key_open) {
            let Some(end) = header.find(value_open) else {
                return if header.len() > MAX_TAG_BYTES { self.end_call(0) } else { ReadStep::Wait };
            };
            let header = &header[..end];
            let key = header.trim_start_matches(['"', ' ']);
            let key = key.split(['"', '<']).next().unwrap_or_default().trim();
            let types = match header {
                header if header.contains("string=\"true\"") || header.contains("type=\"string\"") => {
                    ArgumentTypes::STRING
                }
                _ => ArgumentTypes::of_argument(functions, &self.name, key),
            };
            let separator = if self.n_arguments == 0 { "{" } else { ", " };
            let quote = if types.is_text() { "\"" } else { "" };
            self.n_arguments += 1;
            self.state = TaggedState::Value { types, is_first: true };
            let json = format!("{separator}{}: {quote}", Value::from(key));
            return ReadStep::Arguments { n_bytes: n_space + key_open.len() + end + value_open.len(), json };
        }
        if let Some(end) = ends.clone().find(|end| rest.starts_with(end)) {
            let n_close = if end == call_close { end.len() } else { 0 };
            return self.end_call(n_space + n_close);
        }
        if ends.chain([key_open]).any(|mark| mark.starts_with(rest)) {
            return if n_space > 0 { ReadStep::Skip(n_space) } else { ReadStep::Wait };
        }
        // Anything else between arguments is none of them.
        let n_junk = rest[1..].find('<').map_or(rest.len(), |end| end + 1);
        ReadStep::Skip(n_space + rest.ceil_char_boundary(n_junk))
    }

    fn end_call(&mut self, n_bytes: usize) -> ReadStep {
        self.state = TaggedState::Outside;
        self.n_calls += 1;
        ReadStep::Arguments { n_bytes, json: self.close_arguments().to_owned() }
    }

    fn close_arguments(&self) -> &'static str {
        if self.n_arguments == 0 { "{}" } else { "}" }
    }

    fn read_value(&mut self, text: &str, types: ArgumentTypes, is_first: bool) -> ReadStep {
        let close = self.form.value_close;
        if is_first && text.is_empty() {
            return ReadStep::Wait;
        }
        let trims = self.form.value_end.starts_with('\n');
        let n_first = if trims && is_first && text.starts_with('\n') { 1 } else { 0 };
        let Some(end) = text.find(close) else {
            let before_close = format!("\n{close}");
            let n_held = overlap_any(text, &[close, if trims { &before_close } else { close }]);
            let n_bytes = text.len() - n_held;
            if !types.is_text() || n_bytes <= n_first {
                return ReadStep::Wait;
            }
            self.state = TaggedState::Value { types, is_first: false };
            return ReadStep::Arguments { n_bytes, json: escape(&text[n_first..n_bytes]) };
        };
        let value = &text[n_first.min(end)..end];
        let value = if trims { value.strip_suffix('\n').unwrap_or(value) } else { value };
        self.state = TaggedState::Call;
        let json = self.value_json(value, types);
        ReadStep::Arguments { n_bytes: end + close.len(), json }
    }

    fn value_json(&self, value: &str, types: ArgumentTypes) -> String {
        match types.is_text() {
            true => format!("{}\"", escape(value)),
            false => types.value_of_text(value).to_string(),
        }
    }
}

impl CallReader for TaggedReader {
    fn read(&mut self, text: &str, functions: &[FunctionDefinition]) -> ReadStep {
        match self.state {
            TaggedState::Outside => self.read_outside(text),
            TaggedState::Call if text.trim_start().is_empty() => match text.len() {
                0 => ReadStep::Wait,
                n_space => ReadStep::Skip(n_space),
            },
            TaggedState::Call => self.read_call(text, functions),
            TaggedState::Value { types, is_first } => self.read_value(text, types, is_first),
        }
    }

    fn finish(&mut self, rest: &str, is_cut: bool, _: &[FunctionDefinition]) -> LastStep {
        let trims = self.form.value_end.starts_with('\n');
        let json = match self.state {
            TaggedState::Value { types, is_first } => {
                let value = if trims && is_first { rest.strip_prefix('\n').unwrap_or(rest) } else { rest };
                let before_close = format!("\n{}", self.form.value_close);
                let n_held = overlap_any(value, &[self.form.value_close, &before_close]);
                let value = &value[..value.len() - n_held];
                match is_cut {
                    true if types.is_text() => escape(value),
                    true => String::new(),
                    false => self.value_json(value, types) + self.close_arguments(),
                }
            }
            TaggedState::Call if !is_cut => self.close_arguments().to_owned(),
            TaggedState::Call | TaggedState::Outside => String::new(),
        };
        LastStep { head: None, json }
    }

    fn boxed_clone(&self) -> Box<dyn CallReader> {
        Box::new(self.clone())
    }
}
