//! The input of a decision as text.

use std::fmt::Write as _;

use serde_json::Value;

use crate::error::{Error, Result, quote};
use crate::openai::chat::Role;
use crate::openai::decisions::{DecisionContent, DecisionInput, DecisionItem, DecisionPart};

/// The input as text: a text as it is, items as a transcript. Also returns the paths of fields that have no effect.
///
/// # Errors
/// When an item lacks a field, has content that is not text, or is the output of no call.
pub fn input_text(input: &DecisionInput) -> Result<(String, Vec<String>)> {
    let items = match input {
        DecisionInput::Text(text) => return Ok((text.clone(), Vec::new())),
        DecisionInput::Items(items) => items,
    };
    if items.is_empty() {
        return Err(Error::invalid("input", "`input` is empty; send a text or at least one item"));
    }
    let (mut transcript, mut ignored, mut call_ids) = (String::new(), Vec::new(), Vec::new());
    for (idx, item) in items.iter().enumerate() {
        let path = format!("input[{idx}]");
        let set = item.others.iter().filter(|(_, value)| !value.is_null());
        ignored.extend(set.map(|(name, _)| format!("{path}.{name}")));
        let line = match item.kind.as_deref() {
            None | Some("message") => message_line(item, &path)?,
            Some("function_call") => call_line(item, &path, ("arguments", &item.arguments), &mut call_ids)?,
            Some("custom_tool_call") => call_line(item, &path, ("input", &item.input), &mut call_ids)?,
            Some("function_call_output" | "custom_tool_call_output") => output_line(item, &path, &call_ids)?,
            Some(kind) => {
                let message = format!(
                    "`{path}.type` is `{}`; send messages, `function_call`, `custom_tool_call` and their outputs",
                    quote(kind)
                );
                return Err(Error::invalid(format!("{path}.type"), message));
            }
        };
        let separator = if transcript.is_empty() { "" } else { "\n" };
        // Writing to a string never fails.
        let _ = write!(transcript, "{separator}{line}");
    }
    Ok((transcript, ignored))
}

fn message_line(item: &DecisionItem, path: &str) -> Result<String> {
    let author = match required(item.role.as_ref(), path, "role")? {
        Role::Developer | Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool | Role::Function => {
            let message =
                format!("`{path}.role` is for outputs, which are items of type `function_call_output`");
            return Err(Error::invalid(format!("{path}.role"), message));
        }
    };
    let content = required(item.content.as_ref(), path, "content")?;
    Ok(format!("{author}: {}", content_text(content, &format!("{path}.content"))?))
}

fn call_line(
    item: &DecisionItem,
    path: &str,
    (field, arguments): (&str, &Option<String>),
    call_ids: &mut Vec<String>,
) -> Result<String> {
    let id = required(item.call_id.as_ref(), path, "call_id")?;
    let name = required(item.name.as_ref(), path, "name")?;
    let arguments = required(arguments.as_ref(), path, field)?;
    call_ids.push(id.clone());
    Ok(format!("assistant calls {name} ({id}): {arguments}"))
}

fn output_line(item: &DecisionItem, path: &str, call_ids: &[String]) -> Result<String> {
    let id = required(item.call_id.as_ref(), path, "call_id")?;
    if !call_ids.contains(id) {
        let message = format!("`{path}.call_id` is `{}`, and no item before it calls by this id", quote(id));
        return Err(Error::invalid(format!("{path}.call_id"), message));
    }
    let output = required(item.output.as_ref(), path, "output")?;
    Ok(format!("output of {id}: {}", content_text(output, &format!("{path}.output"))?))
}

fn required<'a, T>(value: Option<&'a T>, path: &str, field: &str) -> Result<&'a T> {
    value.ok_or_else(|| Error::invalid(format!("{path}.{field}"), format!("`{path}.{field}` is missing")))
}

/// A text, or the texts of parts, JSON parts compactly written. `path` is its path in the request.
///
/// # Errors
/// When a part is not text.
pub fn content_text(content: &DecisionContent, path: &str) -> Result<String> {
    match content {
        DecisionContent::Text(text) => Ok(text.clone()),
        DecisionContent::Parts(parts) => {
            let texts =
                parts.iter().enumerate().map(|(idx, part)| part_text(part, &format!("{path}[{idx}]")));
            Ok(texts.collect::<Result<Vec<_>>>()?.concat())
        }
    }
}

fn part_text(part: &DecisionPart, path: &str) -> Result<String> {
    match (part.kind.as_str(), part) {
        ("input_text" | "output_text" | "text", DecisionPart { text: Some(text), .. }) => Ok(text.clone()),
        ("refusal", DecisionPart { refusal: Some(text), .. }) => Ok(text.clone()),
        ("input_json", DecisionPart { data: Some(data), .. }) => Ok(value_text(data)),
        (kind, _) => {
            let message = format!(
                "content part of type `{}` is not supported; send parts of type `input_text`, `output_text`, `refusal` or \
                 `input_json`, each with its value",
                quote(kind)
            );
            Err(Error::invalid(path, message))
        }
    }
}

/// A string as it is, any other value as compact JSON.
pub fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(input: Value) -> Result<(String, Vec<String>)> {
        input_text(&serde_json::from_value(input).unwrap())
    }

    #[test]
    fn items_become_a_transcript() {
        assert_eq!(text(json!("as it is")).unwrap(), ("as it is".to_owned(), Vec::new()));
        let (transcript, ignored) = text(json!([
            {"role": "developer", "content": "be fair"},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "my order: "}, {"type": "input_json", "data": {"id": 7, "paid": true}}
            ]},
            {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{\"id\":7}", "id": "fc_1",
             "namespace": null, "status": "completed"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "found"}]},
            {"type": "custom_tool_call", "call_id": "c2", "name": "shell", "input": "ls"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "a.txt"},
            {"role": "assistant", "content": [
                {"type": "output_text", "text": "It is "}, {"type": "refusal", "refusal": "no matter."}
            ]},
        ]))
        .unwrap();
        let expected = "system: be fair\n\
                        user: my order: {\"id\":7,\"paid\":true}\n\
                        assistant calls find (c1): {\"id\":7}\n\
                        output of c1: found\n\
                        assistant calls shell (c2): ls\n\
                        output of c2: a.txt\n\
                        assistant: It is no matter.";
        assert_eq!(transcript, expected);
        assert_eq!(ignored, ["input[2].id", "input[2].status"]);
    }

    #[test]
    fn malformed_items_are_refused_by_path() {
        for (item, param) in [
            (json!({"content": "x"}), "input[0].role"),
            (json!({"role": "user"}), "input[0].content"),
            (json!({"role": "tool", "content": "x"}), "input[0].role"),
            (
                json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}),
                "input[0].content[0]",
            ),
            (json!({"role": "user", "content": [{"type": "input_text"}]}), "input[0].content[0]"),
            (json!({"type": "web_search_call"}), "input[0].type"),
            (json!({"type": "function_call", "name": "f", "arguments": ""}), "input[0].call_id"),
            (json!({"type": "function_call_output", "call_id": "c", "output": "x"}), "input[0].call_id"),
        ] {
            assert_eq!(text(json!([item])).unwrap_err().param(), Some(param), "{item}");
        }
        assert_eq!(text(json!([])).unwrap_err().param(), Some("input"));
    }
}
