//! The grammar of tool calls in a family's format, with arguments that match their schemas.

use serde_json::{Value, json};

use super::formats::ToolCallFormat;
use super::tool_set::{CallMode, ToolSet};
use crate::inference::Grammar;
use crate::inference::grammar::{forbid_additional_properties, leave_out_unenforceable};
use crate::openai::chat::FunctionDefinition;

/// Maximum number of calls in a constrained response.
const MAX_CALLS: usize = 16;

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
    let part = |(idx, function): (usize, &FunctionDefinition)| {
        let (schema, _) = arguments_schema(function, "");
        (format!("parameters_{idx}"), Grammar::JsonSchema(schema))
    };
    let mut parts: Vec<(String, Grammar)> = tools.functions.iter().enumerate().map(part).collect();
    let mut rules = vec![calls_rule(tools, format, &special)];
    for (idx, function) in tools.functions.iter().enumerate() {
        let name = Value::from(function.name.as_str());
        let (before, after) = match format.name_end {
            Some(text) => (format!("{} {}", literal(&function.name), mark(text, &special)), ""),
            None => (literal(&format!("{{\"name\": {name}, \"{}\": ", format.arguments_key)), "\"}\""),
        };
        rules.push(format!("call_{idx}: {before} @parameters_{idx} {after}"));
    }
    let open = mark(format.open, &special);
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
        (false, None) if special(format.open).is_some() => {
            format!("start: TEXT | TEXT {open} calls\nTEXT: /[^\\x00]*/")
        }
        (false, None) => format!(
            "start: TEXT | lead calls\nlead[lazy]: ANY {open}\nANY: /[^\\x00]*/\nTEXT: ANY & ~(ANY {open} ANY)"
        ),
    };
    rules.insert(0, start);
    Some(Grammar::Lark { rules: rules.join("\n"), parts })
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

/// The rule `calls`: one or several calls, after the first opening mark. Where several are allowed, the text may end
/// after each, and after the separator: some models write it before they decide whether another call follows.
fn calls_rule(tools: &ToolSet, format: &ToolCallFormat, special: &impl Fn(&str) -> Option<u32>) -> String {
    let any: Vec<String> = (0..tools.functions.len()).map(|idx| format!("call_{idx}")).collect();
    let [open, close] = [format.open, format.close].map(|text| mark(text, special));
    let [padding, separator] = [format.padding, format.separator].map(literal);
    let more = |separator: &str, call: &str| {
        if !tools.is_parallel {
            return String::new();
        }
        format!("({separator} {call}){{0,{}}} ({separator})?", MAX_CALLS - 1)
    };
    let rule = if format.is_list {
        let end = format!("\"]\" {close}");
        let end = if tools.is_parallel { format!("({end})?") } else { end };
        format!("calls: \"[\" call {} {end}", more(&separator, "call"))
    } else if format.name_end.is_some() || format.is_open_optional {
        let separator = if format.name_end.is_some() { &open } else { &separator };
        format!("calls: call {}", more(separator, "call"))
    } else {
        let one = format!("{padding} call {padding} {close}");
        format!("calls: {one} {}", more(&separator, &format!("{open} {one}")))
    };
    format!("{rule}\ncall: {}", any.join(" | "))
}

/// A mark as part of a rule: a special token if it is one, else a literal.
fn mark(text: &str, special: &impl Fn(&str) -> Option<u32>) -> String {
    match special(text) {
        Some(id) if !text.is_empty() => format!("<[{id}]>"),
        _ => literal(text),
    }
}

/// A text as part of a rule; nothing if it is empty.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { Value::from(text).to_string() }
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
