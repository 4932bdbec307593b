//! What makes a model call functions, in its family's own form, with arguments that are what their schemas say.

use serde_json::{Map, Value, json};

use super::formats::Format;
use super::{Choice, Tools};
use crate::inference::Grammar;
use crate::inference::grammar::for_each_schema;
use crate::openai::chat::FunctionDefinition;

/// Calls in one answer, where a grammar has to say how many.
const MAX_CALLS: usize = 16;

/// The grammar of an answer that calls what it has to, and in which calls are in order; `special` knows the special
/// tokens, and `answer` is what an answer without calls must be. None where every answer will do.
pub fn grammar(
    tools: &Tools,
    format: &Format,
    special: impl Fn(&str) -> Option<u32>,
    answer: Option<&Grammar>,
) -> Option<Grammar> {
    let is_forced = tools.choice == Choice::Required;
    let is_strict = tools.functions.iter().any(|function| function.strict == Some(true));
    if !is_forced && !is_strict && tools.is_parallel && answer.is_none() {
        return None;
    }
    let part = |(idx, function): (usize, &FunctionDefinition)| {
        let schema = arguments_schema(function.parameters.as_ref());
        (format!("parameters_{idx}"), Grammar::JsonSchema(schema))
    };
    let mut parts: Vec<(String, Grammar)> = tools.functions.iter().enumerate().map(part).collect();
    let mut rules = vec![calls(tools, format, &special)];
    for (idx, function) in tools.functions.iter().enumerate() {
        let name = Value::from(function.name.as_str());
        let (before, after) = match format.named_by {
            Some(mark) => (format!("{} {}", literal(&function.name), self::mark(mark, &special)), ""),
            None => (literal(&format!("{{\"name\": {name}, \"{}\": ", format.arguments)), "\"}\""),
        };
        rules.push(format!("call_{idx}: {before} @parameters_{idx} {after}"));
    }
    let open = mark(format.open, &special);
    let is_marked = !format.is_open_optional;
    let start = match (is_forced, answer) {
        (true, _) if is_marked => format!("start: {open} calls"),
        (true, _) => "start: calls".to_owned(),
        (false, Some(answer)) => {
            parts.push(("answer".to_owned(), answer.clone()));
            let open = if is_marked { &open } else { "" };
            format!("start: @answer | {open} calls")
        }
        // The text is whatever does not begin a call.
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

/// What arguments must be that fit `parameters`: no others than those it names, unless it says that there may be.
/// Who wrote it rarely means that, and functions rarely take them.
fn arguments_schema(parameters: Option<&Value>) -> Value {
    let mut schema = match parameters {
        None => json!({"type": "object", "properties": {}}),
        Some(parameters) => parameters.clone(),
    };
    // Parts that have to hold together would exclude each other's.
    if !schema.to_string().contains("\"allOf\"") {
        for_each_schema(&mut schema, &close);
    }
    schema
}

/// Excludes from an object what its schema does not name.
fn close(schema: &mut Map<String, Value>) {
    if schema.contains_key("properties") && !schema.contains_key("patternProperties") {
        schema.entry("additionalProperties").or_insert(Value::Bool(false));
    }
}

/// The rule of one call or several, behind the first opening mark.
fn calls(tools: &Tools, format: &Format, special: &impl Fn(&str) -> Option<u32>) -> String {
    let any: Vec<String> = (0..tools.functions.len()).map(|idx| format!("call_{idx}")).collect();
    let [open, close] = [format.open, format.close].map(|text| mark(text, special));
    let [padding, between] = [format.padding, format.between].map(literal);
    let more = |with: String| {
        if tools.is_parallel { format!("({with}){{0,{}}}", MAX_CALLS - 1) } else { String::new() }
    };
    let rule = if format.is_list {
        format!("calls: \"[\" call {} \"]\" {close}", more(format!("{between} call")))
    } else if format.named_by.is_some() || format.is_open_optional {
        let between = if format.named_by.is_some() { &open } else { &between };
        format!("calls: call {}", more(format!("{between} call")))
    } else {
        let one = format!("{padding} call {padding} {close}");
        format!("calls: {one} {}", more(format!("{between} {open} {one}")))
    };
    format!("{rule}\ncall: {}", any.join(" | "))
}

/// A mark in rules: a special token where it is one.
fn mark(text: &str, special: &impl Fn(&str) -> Option<u32>) -> String {
    match special(text) {
        Some(id) if !text.is_empty() => format!("<[{id}]>"),
        _ => literal(text),
    }
}

/// A text in rules; nothing for none.
fn literal(text: &str) -> String {
    if text.is_empty() { String::new() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_that_are_named() {
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
