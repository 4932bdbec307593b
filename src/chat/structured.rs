//! Structured output: the grammar that a request asks for, in any of the forms that clients send.

use serde_json::{Value, json};

use super::structural_tag::structural_tag_grammar;
use crate::error::{Error, Result, quote};
use crate::inference::Grammar;
use crate::inference::grammar::{forbid_additional_properties, leave_out_unenforceable};
use crate::openai::generation_options::{
    GenerationOptions, ResponseFormat, ResponseFormatKind, StructuredOutputs,
};

/// A grammar that the response must match.
#[derive(Debug, Clone, PartialEq)]
pub struct ConstraintSpec {
    /// The request parameter that asks for it, for error messages.
    pub param: &'static str,
    /// The grammar, not yet compiled.
    pub grammar: Grammar,
}

/// OpenAI's limit for names of response formats and functions.
const MAX_NAME_BYTES: usize = 64;

/// The constraint that the options ask for, if any.
///
/// # Errors
/// When a grammar is malformed, or several different ones are requested.
pub fn constraint_of(options: &GenerationOptions) -> Result<Option<ConstraintSpec>> {
    let mut specs = Specs { specs: Vec::new(), space: None };
    if let Some(pattern) = &options.guided_whitespace_pattern {
        specs.space = Some(space("guided_whitespace_pattern", pattern)?);
    }
    if let Some(format) = &options.response_format {
        specs.add_response_format(format)?;
    }
    specs.add_schema("guided_json", options.guided_json.as_ref())?;
    specs.add_schema("json_schema", options.json_schema.as_ref())?;
    specs.add_regex("guided_regex", options.guided_regex.as_ref());
    specs.add_regex("regex", options.regex.as_ref());
    specs.add_choice("guided_choice", options.guided_choice.as_deref())?;
    specs.add_rules("grammar", options.grammar.as_ref());
    specs.add_rules("guided_grammar", options.guided_grammar.as_ref());
    specs.add_rules("ebnf", options.ebnf.as_ref());
    specs.add_structural_tag("structural_tag", options.structural_tag.as_ref())?;
    if let Some(outputs) = &options.structured_outputs {
        specs.add_structured_outputs(outputs)?;
    }
    specs.into_one()
}

/// The paths of the keywords of a schema that are left out because no grammar enforces them. A schema that is `strict`
/// has none: it is refused instead.
pub fn unenforced_keywords(options: &GenerationOptions) -> Vec<String> {
    let format = options.response_format.as_ref();
    let schema = format.and_then(|format| Some((format, response_schema(format).ok()??)));
    match schema {
        Some((format, mut named)) if !named.is_strict && format.kind == ResponseFormatKind::JsonSchema => {
            leave_out_unenforceable(&mut named.schema, named.path)
        }
        _ => Vec::new(),
    }
}

/// The constraints of a request, in the order of their parameters.
struct Specs {
    specs: Vec<ConstraintSpec>,
    /// Regular expression of the white space in JSON; empty for none.
    space: Option<String>,
}

/// A schema of `response_format`.
struct ResponseSchema {
    schema: Value,
    /// Its path in the request.
    path: &'static str,
    is_strict: bool,
}

impl Specs {
    fn add(&mut self, param: &'static str, grammar: Grammar) {
        self.specs.push(ConstraintSpec { param, grammar });
    }

    fn add_json(&mut self, param: &'static str, schema: Value) {
        let grammar = match self.space.clone() {
            None => Grammar::JsonSchema(schema),
            Some(space) => Grammar::SpacedJson { schema, space },
        };
        self.add(param, grammar);
    }

    fn add_schema(&mut self, param: &'static str, schema: Option<&Value>) -> Result<()> {
        let Some(schema) = schema else { return Ok(()) };
        self.add_json(param, object_or_text(param, schema)?);
        Ok(())
    }

    fn add_regex(&mut self, param: &'static str, regex: Option<&String>) {
        if let Some(regex) = regex {
            self.add(param, Grammar::Regex(regex.clone()));
        }
    }

    fn add_choice(&mut self, param: &'static str, choices: Option<&[String]>) -> Result<()> {
        match choices {
            None => {}
            Some([]) => {
                let message = format!("`{param}` is empty; send at least one string to choose from");
                return Err(Error::invalid(param, message));
            }
            Some(choices) => self.add(param, Grammar::Choice(choices.to_vec())),
        }
        Ok(())
    }

    /// Adds a grammar in Lark's, llama.cpp's or XGrammar's form. llama.cpp's clients send an empty one for none.
    fn add_rules(&mut self, param: &'static str, rules: Option<&String>) {
        if let Some(rules) = rules.filter(|rules| !rules.trim().is_empty()) {
            self.add(param, Grammar::from_rules(rules.clone()));
        }
    }

    fn add_structural_tag(&mut self, param: &'static str, tag: Option<&Value>) -> Result<()> {
        let Some(tag) = tag else { return Ok(()) };
        let tag = object_or_text(param, tag)?;
        self.add(param, structural_tag_grammar(param, &tag)?);
        Ok(())
    }

    fn add_response_format(&mut self, format: &ResponseFormat) -> Result<()> {
        const PARAM: &str = "response_format";
        check_fields(format)?;
        match format.kind {
            ResponseFormatKind::Text => {}
            ResponseFormatKind::JsonObject | ResponseFormatKind::JsonSchema => {
                let schema = match response_schema(format)? {
                    None => json!({"type": "object"}),
                    Some(mut named) => {
                        if !named.is_strict && format.kind == ResponseFormatKind::JsonSchema {
                            leave_out_unenforceable(&mut named.schema, named.path);
                        }
                        named.schema
                    }
                };
                self.add_json(PARAM, schema);
            }
            ResponseFormatKind::Regex => {
                let regex = text_of(format, format.regex.as_deref(), "regex")?;
                self.add(PARAM, Grammar::Regex(regex));
            }
            ResponseFormatKind::Grammar => {
                let rules = text_of(format, format.grammar.as_deref(), "grammar")?;
                self.add(PARAM, Grammar::from_rules(rules));
            }
            ResponseFormatKind::StructuralTag => {
                let ResponseFormat { structures, triggers, format, .. } = format;
                let tag = json!({"structures": structures, "triggers": triggers, "format": format});
                self.add(PARAM, structural_tag_grammar(PARAM, &tag)?);
            }
        }
        Ok(())
    }

    fn add_structured_outputs(&mut self, outputs: &StructuredOutputs) -> Result<()> {
        let StructuredOutputs { json, regex, choice, grammar, json_object, structural_tag, .. } = outputs;
        self.space = match (outputs.disable_any_whitespace, &outputs.whitespace_pattern) {
            (Some(true), Some(_)) => {
                return Err(Error::invalid(
                    "structured_outputs.whitespace_pattern",
                    "`whitespace_pattern` and `disable_any_whitespace` exclude each other; send one of them",
                ));
            }
            (Some(true), None) => Some(String::new()),
            (_, Some(pattern)) => Some(space("structured_outputs.whitespace_pattern", pattern)?),
            (_, None) => None,
        };
        if let Some(json) = json {
            let mut schema = object_or_text("structured_outputs.json", json)?;
            if outputs.disable_additional_properties == Some(true) {
                forbid_additional_properties(&mut schema);
            }
            self.add_json("structured_outputs.json", schema);
        }
        if *json_object == Some(true) {
            self.add_json("structured_outputs.json_object", json!({"type": "object"}));
        }
        self.add_regex("structured_outputs.regex", regex.as_ref());
        self.add_choice("structured_outputs.choice", choice.as_deref())?;
        self.add_rules("structured_outputs.grammar", grammar.as_ref());
        self.add_structural_tag("structured_outputs.structural_tag", structural_tag.as_ref())
    }

    /// The only constraint. The same one under several names counts once.
    fn into_one(mut self) -> Result<Option<ConstraintSpec>> {
        let Some(first) = self.specs.first() else { return Ok(None) };
        if let Some(other) = self.specs.iter().find(|spec| spec.grammar != first.grammar) {
            let message =
                format!("`{}` and `{}` both constrain the response; send only one", first.param, other.param);
            return Err(Error::invalid(other.param, message));
        }
        Ok(Some(self.specs.swap_remove(0)))
    }
}

/// Refuses fields of a `response_format` that its type does not use: they would be a second constraint.
fn check_fields(format: &ResponseFormat) -> Result<()> {
    use ResponseFormatKind::{Grammar, JsonObject, JsonSchema, Regex, StructuralTag, Text};
    let ResponseFormat { kind, json_schema, schema, value, regex, grammar, .. } = format;
    let is_json = matches!(kind, JsonObject | JsonSchema);
    let is_tag = *kind == StructuralTag;
    let fields = [
        ("json_schema", json_schema.is_some(), is_json),
        ("schema", schema.is_some(), is_json),
        ("value", value.is_some(), !matches!(kind, Text | StructuralTag)),
        ("regex", regex.is_some(), *kind == Regex),
        ("grammar", grammar.is_some(), *kind == Grammar),
        ("structures", format.structures.is_some(), is_tag),
        ("triggers", format.triggers.is_some(), is_tag),
        ("format", format.format.is_some(), is_tag),
    ];
    match fields.into_iter().find(|(_, is_set, is_used)| *is_set && !is_used) {
        None => Ok(()),
        Some((name, ..)) => {
            let message = format!(
                "`response_format.{name}` does not go with this `type`; leave it out or change `type`"
            );
            Err(Error::invalid(format!("response_format.{name}"), message))
        }
    }
}

/// The schema of a `response_format` of type `json_object` or `json_schema`, in any of the places where clients put it.
///
/// # Errors
/// When it is in several places, or missing where it is needed.
fn response_schema(format: &ResponseFormat) -> Result<Option<ResponseSchema>> {
    let is_strict = format.strict == Some(true);
    let mut found = Vec::new();
    if let Some(json_schema) = &format.json_schema {
        check_name("response_format.json_schema.name", &json_schema.name)?;
        found.push(ResponseSchema {
            schema: json_schema.schema.clone().unwrap_or_else(|| json!({"type": "object"})),
            path: "response_format.json_schema.schema",
            is_strict: is_strict || json_schema.strict == Some(true),
        });
    }
    if let Some(schema) = &format.schema {
        let path = "response_format.schema";
        found.push(ResponseSchema { schema: object_or_text(path, schema)?, path, is_strict });
    }
    if let Some(value) = &format.value {
        let path = "response_format.value";
        let value = object_or_text(path, value)?;
        // Text Generation Inference has OpenAI's object here for this type, else the schema itself.
        let named = (format.kind == ResponseFormatKind::JsonSchema && value.get("name").is_some())
            .then(|| value.get("schema"))
            .flatten();
        let is_strict = is_strict || named.is_some() && value.get("strict") == Some(&Value::Bool(true));
        found.push(ResponseSchema { schema: named.unwrap_or(&value).clone(), path, is_strict });
    }
    if let [first, other, ..] = &found[..] {
        let message = format!("`{}` and `{}` both have a schema; send only one", first.path, other.path);
        return Err(Error::invalid(other.path, message));
    }
    if found.is_empty() && format.kind == ResponseFormatKind::JsonSchema {
        let message = "`response_format` of type `json_schema` needs `json_schema` with a name and a schema";
        return Err(Error::invalid("response_format.json_schema", message));
    }
    Ok(found.pop())
}

/// The text of a `response_format` whose constraint is a text, in its own field or in `value`.
fn text_of(format: &ResponseFormat, own: Option<&str>, name: &str) -> Result<String> {
    match (own, &format.value) {
        (Some(text), None) => Ok(text.to_owned()),
        (None, Some(Value::String(text))) => Ok(text.clone()),
        (Some(_), Some(_)) => Err(Error::invalid(
            "response_format.value",
            format!("`response_format` has `{name}` and `value`; send only one"),
        )),
        (None, _) => Err(Error::invalid(
            format!("response_format.{name}"),
            format!("`response_format` of this type needs `{name}`, a text"),
        )),
    }
}

/// A value that may also be sent as its JSON text.
fn object_or_text(param: &str, value: &Value) -> Result<Value> {
    match value {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|e| Error::invalid(param, format!("`{param}` is not JSON: {e}"))),
        value => Ok(value.clone()),
    }
}

/// A regular expression that matches nothing but JSON's white space.
///
/// # Errors
/// When it may match something else.
fn space(param: &'static str, pattern: &str) -> Result<String> {
    let mut before = ' ';
    let mut is_count = false;
    let is_space = pattern.chars().all(|c| {
        let last = std::mem::replace(&mut before, c);
        is_count = c == '{' || is_count && c != '}';
        match c {
            'n' | 't' | 'r' | 's' => last == '\\',
            '0'..='9' | ',' => is_count,
            ':' => last == '?',
            c => last != '\\' && "\\ \n\t\r[](){}?*+|".contains(c),
        }
    });
    if is_space && !pattern.is_empty() {
        return Ok(pattern.to_owned());
    }
    let message = format!(
        "`{param}` must be a regular expression of spaces, tabs and line breaks, such as `[ \\n]?`; `{}` is not",
        quote(pattern)
    );
    Err(Error::invalid(param, message))
}

/// Checks a name by OpenAI's rules. `path` is its path in the request.
///
/// # Errors
/// When the name is empty or too long, or has characters other than letters, digits, `_` and `-`.
pub fn check_name(path: &str, name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.chars().all(is_allowed) {
        return Ok(());
    }
    let message = format!(
        "`{path}` must consist of 1 to {MAX_NAME_BYTES} letters, digits, `_` or `-`; `{}` does not",
        quote(name)
    );
    Err(Error::invalid(path, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec_of(options: Value) -> Result<Option<ConstraintSpec>> {
        constraint_of(&serde_json::from_value(options).unwrap())
    }

    #[test]
    fn every_form_becomes_a_grammar() {
        let schema = json!({"type": "array", "items": {"type": "integer"}});
        let object = Grammar::JsonSchema(json!({"type": "object"}));
        for (request, param, grammar) in [
            (json!({"response_format": {"type": "json_object"}}), "response_format", object.clone()),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a-b_1"}}}),
                "response_format",
                object,
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema":
                    {"name": "a", "strict": true, "schema": schema}}}),
                "response_format",
                Grammar::JsonSchema(schema.clone()),
            ),
            (json!({"guided_json": schema}), "guided_json", Grammar::JsonSchema(schema.clone())),
            (json!({"guided_json": schema.to_string()}), "guided_json", Grammar::JsonSchema(schema.clone())),
            (json!({"guided_regex": "a+"}), "guided_regex", Grammar::Regex("a+".to_owned())),
            (json!({"guided_choice": ["a"]}), "guided_choice", Grammar::Choice(vec!["a".to_owned()])),
            (json!({"grammar": "root ::= \"a\""}), "grammar", Grammar::Gbnf("root ::= \"a\"".to_owned())),
            (
                json!({"structured_outputs": {"json": schema, "whitespace_pattern": "[\\n\\t ]{0,9}(?: )?"}}),
                "structured_outputs.json",
                Grammar::SpacedJson { schema: schema.clone(), space: "[\\n\\t ]{0,9}(?: )?".to_owned() },
            ),
            (
                json!({"structured_outputs": {"json": {"properties": {}}, "disable_additional_properties": true,
                                              "disable_any_whitespace": true}}),
                "structured_outputs.json",
                Grammar::SpacedJson {
                    schema: json!({"properties": {}, "additionalProperties": false}),
                    space: String::new(),
                },
            ),
            (
                json!({"grammar": "start: \"a\""}),
                "grammar",
                Grammar::Lark { rules: "start: \"a\"".to_owned(), parts: Vec::new() },
            ),
        ] {
            assert_eq!(spec_of(request).unwrap(), Some(ConstraintSpec { param, grammar }));
        }
        assert_eq!(spec_of(json!({"response_format": {"type": "text"}, "guided_json": null})).unwrap(), None);
    }

    #[test]
    fn malformed_grammars_are_refused_by_name() {
        for (request, param) in [
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
            (json!({"guided_json": {}, "response_format": {"type": "json_object"}}), "guided_json"),
            (json!({"guided_whitespace_pattern": "x?"}), "guided_whitespace_pattern"),
            (
                json!({"structured_outputs": {"json": {}, "whitespace_pattern": "[ 0]"}}),
                "structured_outputs.whitespace_pattern",
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": {}, "value": {}}}),
                "response_format.value",
            ),
            (json!({"response_format": {"type": "text", "schema": {}}}), "response_format.schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}),
                "response_format.json_schema.name",
            ),
        ] {
            assert_eq!(spec_of(request).unwrap_err().param(), Some(param));
        }
    }
}
