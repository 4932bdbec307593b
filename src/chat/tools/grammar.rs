//! The grammar of tool calls in a family's format, with arguments that match their schemas.

use serde_json::{Map, Value, json};

use super::formats::ToolCallFormat;
use super::tool_set::{CallMode, ToolSet};
use crate::inference::Grammar;
use crate::inference::grammar::for_each_schema;
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
        let schema = arguments_schema(function.parameters.as_ref());
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

/// The schema of a function's arguments. Unless `parameters` says otherwise, it forbids additional properties:
/// authors of schemas rarely mean to allow them, and functions rarely accept them.
fn arguments_schema(parameters: Option<&Value>) -> Value {
    let mut schema = match parameters {
        None => json!({"type": "object", "properties": {}}),
        Some(parameters) => parameters.clone(),
    };
    // The parts of an `allOf` would forbid each other's properties.
    if !schema.to_string().contains("\"allOf\"") {
        for_each_schema(&mut schema, &forbid_additional_properties);
    }
    schema
}

/// Forbids properties that the schema of an object does not name.
fn forbid_additional_properties(schema: &mut Map<String, Value>) {
    if schema.contains_key("properties") && !schema.contains_key("patternProperties") {
        schema.entry("additionalProperties").or_insert(Value::Bool(false));
    }
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

    #[test]
    fn additional_arguments_are_forbidden() {
        assert_eq!(
            arguments_schema(None),
            json!({"type": "object", "properties": {}, "additionalProperties": false})
        );
        let named = json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}}},
                           "properties": {"enum": [{"properties": 1}]}}});
        let mut closed = named.clone();
        closed["additionalProperties"] = json!(false);
        closed["properties"]["a"]["additionalProperties"] = json!(false);
        assert_eq!(arguments_schema(Some(&named)), closed);
        for open in [
            json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}}),
            json!({"type": "object", "allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}),
            json!({"type": "object"}),
        ] {
            assert_eq!(arguments_schema(Some(&open)), open);
        }
    }
}
