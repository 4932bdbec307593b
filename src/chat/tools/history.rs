//! Calls and results of a conversation so far.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::template::TemplateMessage;
use crate::error::{Error, Result};
use crate::openai::chat::{Message, Role};

/// Checks that every call has its result and every result its call.
///
/// # Errors
/// When one has not; the error names the message.
pub fn check(messages: &[Message]) -> Result<()> {
    // Calls that wait for their results, and the message they are in.
    let mut waiting: Vec<&str> = Vec::new();
    let mut caller = 0;
    for (idx, message) in messages.iter().enumerate() {
        let invalid =
            |field: &str, message: String| Err(Error::invalid(format!("messages[{idx}]{field}"), message));
        if message.role == Role::Tool {
            let Some(id) = &message.tool_call_id else {
                return invalid(
                    ".tool_call_id",
                    format!("messages[{idx}] is a result without `tool_call_id`; say which call it is of"),
                );
            };
            let Some(place) = waiting.iter().position(|waiting| waiting == id) else {
                return invalid(
                    ".tool_call_id",
                    format!(
                        "messages[{idx}] is the result of call `{id}`, which the assistant's message before it does not \
                     make, or which has a result already"
                    ),
                );
            };
            waiting.remove(place);
            continue;
        }
        if let Some(id) = waiting.first() {
            return Err(Error::invalid(
                format!("messages[{caller}].tool_calls"),
                format!(
                    "messages[{caller}] calls a function as `{id}`, and no result follows; add a message of role \
                     `tool` with this `tool_call_id`"
                ),
            ));
        }
        let Some(calls) = &message.tool_calls else { continue };
        if message.role != Role::Assistant && !calls.is_empty() {
            return invalid(
                ".tool_calls",
                format!("messages[{idx}] has `tool_calls`; only an assistant's message may"),
            );
        }
        for (n, call) in calls.iter().enumerate() {
            let path = format!(".tool_calls[{n}]");
            if call.id.is_empty() || waiting.contains(&&*call.id) {
                return invalid(
                    &format!("{path}.id"),
                    format!("messages[{idx}]{path}.id is empty or there twice"),
                );
            }
            arguments(&call.function.arguments).map_err(|why| {
                let path = format!("messages[{idx}]{path}.function.arguments");
                Error::invalid(path.clone(), format!("`{path}` must be the text of a JSON object: {why}"))
            })?;
            waiting.push(&call.id);
        }
        caller = idx;
    }
    match waiting.first() {
        // The client may want the calls to be gone on from.
        None => Ok(()),
        Some(id) => Err(Error::invalid(
            format!("messages[{caller}].tool_calls"),
            format!(
                "messages[{caller}] calls a function as `{id}`, and no result follows; add one, or leave the message out"
            ),
        )),
    }
}

/// The arguments of a call as JSON; nothing at all is an object without fields.
fn arguments(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("it is another value".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

/// The calls of a message as templates know them: with arguments that are an object, not its text.
pub fn calls_for_template(message: &Message) -> Option<Vec<Value>> {
    let calls = message.tool_calls.as_ref().filter(|calls| !calls.is_empty())?;
    let call = |call: &crate::openai::chat::ToolCall| {
        let arguments = arguments(&call.function.arguments).unwrap_or_default();
        json!({"id": call.id, "type": "function",
               "function": {"name": call.function.name, "arguments": arguments}})
    };
    Some(calls.iter().map(call).collect())
}

/// Makes all ids as long as a template asks for, letters and digits alone. What was the same stays the same.
pub fn shorten_ids(messages: &mut [TemplateMessage], len: usize) {
    let shorten = |id: &str| {
        if id.len() == len && id.chars().all(|c| c.is_ascii_alphanumeric()) {
            return id.to_owned();
        }
        let hash = Sha256::digest(id.as_bytes());
        hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..len.min(64)].to_owned()
    };
    for message in messages {
        message.tool_call_id = message.tool_call_id.as_deref().map(shorten);
        for call in message.tool_calls.iter_mut().flatten() {
            call["id"] = Value::from(shorten(call["id"].as_str().unwrap_or_default()));
        }
    }
}

/// Writes calls and results as text, for templates that have no place for them. Results that follow each other
/// become one message, since templates may want the roles to alternate.
pub fn as_text(messages: &mut Vec<TemplateMessage>) {
    let mut told: Vec<TemplateMessage> = Vec::with_capacity(messages.len());
    let mut follows_result = false;
    for mut message in messages.drain(..) {
        for call in message.tool_calls.take().into_iter().flatten() {
            let call = json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
            let space = if message.content.is_empty() { "" } else { "\n" };
            message.content += &format!("{space}<tool_call>\n{call}\n</tool_call>");
        }
        let is_result = message.role == "tool";
        if is_result {
            let content = format!("<tool_response>\n{}\n</tool_response>", message.content);
            if let Some(last) = told.last_mut().filter(|_| follows_result) {
                last.content += &format!("\n{content}");
                continue;
            }
            message = TemplateMessage { role: "user", content, tool_call_id: None, ..message };
        }
        follows_result = is_result;
        told.push(message);
    }
    *messages = told;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(value: Value) -> Vec<Message> {
        serde_json::from_value(value).unwrap()
    }

    fn call(id: &str, arguments: &str) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}})
    }

    #[test]
    fn calls_and_results_belong_together() {
        let user = json!({"role": "user", "content": "x"});
        let calls = |calls: Value| json!({"role": "assistant", "tool_calls": calls});
        let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "1"});
        for (history, param) in [
            (
                json!([user, calls(json!([call("a", "{}"), call("b", "")])), result("b"), result("a"), user]),
                None,
            ),
            (json!([user, result("a")]), Some("messages[1].tool_call_id")),
            (json!([{"role": "tool", "content": "1"}]), Some("messages[0].tool_call_id")),
            (json!([calls(json!([call("a", "{}")])), result("b")]), Some("messages[1].tool_call_id")),
            (
                json!([calls(json!([call("a", "{}")])), result("a"), result("a")]),
                Some("messages[2].tool_call_id"),
            ),
            (json!([calls(json!([call("a", "{}")])), user]), Some("messages[0].tool_calls")),
            (json!([user, calls(json!([call("a", "{}")]))]), Some("messages[1].tool_calls")),
            (json!([calls(json!([call("a", "{}"), call("a", "{}")]))]), Some("messages[0].tool_calls[1].id")),
            (json!([calls(json!([call("a", "{")]))]), Some("messages[0].tool_calls[0].function.arguments")),
            (json!([calls(json!([call("a", "[]")]))]), Some("messages[0].tool_calls[0].function.arguments")),
            (
                json!([{"role": "user", "content": "x", "tool_calls": [call("a", "{}")]}]),
                Some("messages[0].tool_calls"),
            ),
        ] {
            let error = check(&messages(history.clone())).err();
            assert_eq!(error.as_ref().and_then(Error::param), param, "{history}");
        }
    }

    fn template_message(role: &'static str, content: &str) -> TemplateMessage {
        TemplateMessage::new(role, content.to_owned())
    }

    #[test]
    fn ids_are_shortened_alike() {
        let mut messages = vec![template_message("assistant", ""), template_message("tool", "")];
        messages[0].tool_calls = Some(vec![call("call_1234", "{}"), call("abcdefgh1", "{}")]);
        messages[1].tool_call_id = Some("call_1234".to_owned());
        shorten_ids(&mut messages, 9);
        let calls = messages[0].tool_calls.clone().unwrap();
        assert_eq!(calls[0]["id"], messages[1].tool_call_id.clone().unwrap());
        assert_eq!(calls[0]["id"].as_str().unwrap().len(), 9);
        assert_eq!(calls[1]["id"], "abcdefgh1");
    }

    #[test]
    fn templates_without_tools_get_text() {
        let mut messages = vec![
            template_message("user", "2+2?"),
            TemplateMessage {
                tool_calls: Some(vec![json!({"function": {"name": "add", "arguments": {"a": 2}}})]),
                ..template_message("assistant", "Well.")
            },
            template_message("tool", "4"),
            template_message("tool", "5"),
            template_message("assistant", "4"),
        ];
        as_text(&mut messages);
        let told: Vec<(&str, &str)> =
            messages.iter().map(|message| (message.role, &*message.content)).collect();
        let expected = [
            ("user", "2+2?"),
            ("assistant", "Well.\n<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":2}}\n</tool_call>"),
            ("user", "<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>"),
            ("assistant", "4"),
        ];
        assert_eq!(told, expected);
    }
}
