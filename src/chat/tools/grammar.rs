//! The grammar of tool calls in a family's format, with arguments that match their schemas.

use serde_json::{Value, json};

use super::form::{ANY_TEXT, CallGrammar};
use super::formats::ToolCallFormat;
use super::tool_set::{CallMode, ToolSet};
use crate::inference::Grammar;
use crate::inference::grammar::{forbid_additional_properties, leave_out_unenforceable};
use crate::openai::chat::FunctionDefinition;

/// The grammar of a response that may or must contain well-formed calls, or `None` if nothing needs to be
/// constrained. `special` returns the id of a special token; `content` is the grammar of a response without
/// calls.
pub fn call_grammar(
    tools: &ToolSet,
    format: &ToolCallFormat,
    special: impl Fn(&str) -> Option<u32>,
    content: Option<&Grammar>,
) -> Option<Grammar> {
    let is_forced = tools.mode == CallMode::Required;
    let is_strict = tools.functions.iter().any(|function| function.strict == Some(true));
    if !is_forced && !is_strict && tools.is_parallel && content.is_none() {
        return None;
    }
    let single;
    let tools = match format.is_framed() {
        false => tools,
        // A message has one call.
        true => {
            single = ToolSet { is_parallel: false, ..tools.clone() };
            &single
        }
    };
    let schemas = tools.functions.iter().map(|function| arguments_schema(function, "").0);
    let mut grammar = CallGrammar::new(tools, schemas.collect(), format.marks(), &special);
    format.form.add_rules(&mut grammar, format.open, format.close);
    let open = if format.is_open_in_prompt { String::new() } else { grammar.text(format.open) };
    let is_special = grammar.is_special(format.open);
    if format.is_framed() {
        return Some(framed(grammar, &open, is_forced, content));
    }
    let CallGrammar { mut rules, mut parts, .. } = grammar;
    let is_marked = !format.is_open_optional;
    let start = match (is_forced, content) {
        (true, _) if is_marked => format!("start: {open} calls"),
        (true, _) => "start: calls".to_owned(),
        (false, Some(content)) => {
            parts.push(("answer".to_owned(), content.clone()));
            let open = if is_marked { &open } else { "" };
            format!("start: @answer | {open} calls")
        }
        // Text is anything that does not begin a call.
        (false, None) if !is_marked => "start: TEXT | calls\nTEXT: /([^\\[{][^\\x00]*)?/".to_owned(),
        (false, None) if is_special => {
            format!("start: TEXT | TEXT {open} calls\nTEXT: /[^\\x00]*/")
        }
        (false, None) => format!(
            "start: TEXT | lead calls\nlead[lazy]: ANY {open}\nANY: /[^\\x00]*/\nTEXT: ANY & ~(ANY {open} ANY)"
        ),
    };
    rules.insert(0, start);
    Some(Grammar::Lark { rules: rules.join("\n"), parts })
}

/// The grammar of a response in Harmony's channels: thoughts, then a call or, unless one is required, an answer.
fn framed(mut grammar: CallGrammar<'_>, open: &str, is_forced: bool, content: Option<&Grammar>) -> Grammar {
    let message_end = grammar.text_until(ANY_TEXT, "<|end|>");
    let thought = grammar.text("<|channel|>analysis<|message|>");
    let next = grammar.text("<|start|>assistant");
    grammar.rules.push(format!("thought: {thought} {message_end} {next}"));
    let mut bodies = vec![format!("{open} calls")];
    if !is_forced {
        let answer = match content {
            Some(content) => grammar.part(content.clone()),
            None => ANY_TEXT.to_owned(),
        };
        bodies.push(format!("{} {answer}", grammar.text("<|channel|>final<|message|>")));
    }
    let start = format!("start: thought{{0,4}} ({})", bodies.join(" | "));
    let CallGrammar { mut rules, parts, .. } = grammar;
    rules.insert(0, start);
    Grammar::Lark { rules: rules.join("\n"), parts }
}

/// The paths, which begin with `path`, of what the grammar leaves out of the schema of a function's arguments. A
/// function that is `strict` has none: it is refused instead.
pub fn unenforced_keywords(function: &FunctionDefinition, path: &str) -> Vec<String> {
    arguments_schema(function, path).1
}

/// The schema of a function's arguments, and the paths of what is left out of it. Unless `parameters` says otherwise,
/// it forbids additional properties: authors of schemas rarely mean to allow them, and functions rarely accept them.
fn arguments_schema(function: &FunctionDefinition, path: &str) -> (Value, Vec<String>) {
    let mut schema = match &function.parameters {
        None => json!({"type": "object", "properties": {}}),
        Some(parameters) => parameters.clone(),
    };
    // The parts of an `allOf` would forbid each other's properties.
    if !schema.to_string().contains("\"allOf\"") {
        forbid_additional_properties(&mut schema);
    }
    let left_out =
        if function.strict == Some(true) { Vec::new() } else { leave_out_unenforceable(&mut schema, path) };
    (schema, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(parameters: Value, strict: bool) -> FunctionDefinition {
        serde_json::from_value(json!({"name": "f", "parameters": parameters, "strict": strict})).unwrap()
    }

    #[test]
    fn additional_arguments_are_forbidden() {
        let schema_of = |parameters: Value| arguments_schema(&function(parameters, false), "").0;
        assert_eq!(
            schema_of(json!(null)),
            json!({"type": "object", "properties": {}, "additionalProperties": false})
        );
        assert_eq!(schema_of(json!({"properties": {"a": {}}}))["additionalProperties"], json!(false));
        for open in [
            json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}}),
            json!({"type": "object", "allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"type": "object"}),
        ] {
            assert_eq!(schema_of(open.clone()), open);
        }
    }

    #[test]
    fn only_strict_functions_keep_what_cannot_be_enforced() {
        let parameters = json!({"type": "object", "not": {"required": ["a"]}});
        let (schema, left_out) = arguments_schema(&function(parameters.clone(), false), "p");
        assert_eq!((schema, left_out), (json!({"type": "object"}), vec!["p.not".to_owned()]));
        assert_eq!(arguments_schema(&function(parameters.clone(), true), "p"), (parameters, Vec::new()));
    }
}
