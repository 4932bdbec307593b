//! Tool calls and results of the conversation so far.

use std::collections::{HashMap, VecDeque};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::chat::template::{ChatTemplate, TemplateMessage};
use crate::error::{Error, Result, quote};
use crate::openai::chat::{Message, Role};

/// Checks that every call has a result and every result a call.
///
/// # Errors
/// When one is missing; the error names the message.
pub fn check_history(messages: &[Message]) -> Result<()> {
    // Ids of calls without a result so far, and the index of the message with the calls.
    let mut pending: Vec<&str> = Vec::new();
    let mut caller = 0;
    for (idx, message) in messages.iter().enumerate() {
        let invalid =
            |field: &str, message: String| Err(Error::invalid(format!("messages[{idx}]{field}"), message));
        if message.role == Role::Tool {
            let Some(id) = &message.tool_call_id else {
                return invalid(
                    ".tool_call_id",
                    format!(
                        "messages[{idx}] is a result without `tool_call_id`; set it to the id of the call"
                    ),
                );
            };
            let Some(position) = pending.iter().position(|pending| pending == id) else {
                return invalid(
                    ".tool_call_id",
                    format!(
                        "messages[{idx}] is a result of call `{}`, but the preceding assistant message has no such call, or \
 it already has a result",
                        quote(id)
                    ),
                );
            };
            pending.remove(position);
            continue;
        }
        if let Some(id) = pending.first() {
            return Err(Error::invalid(
                format!("messages[{caller}].tool_calls"),
                format!(
                    "messages[{caller}] has call `{}`, but no result follows; add a message of role `tool` with this \
 `tool_call_id`",
                    quote(id)
                ),
            ));
        }
        let Some(calls) = &message.tool_calls else { continue };
        if message.role != Role::Assistant && !calls.is_empty() {
            return invalid(
                ".tool_calls",
                format!("messages[{idx}] has `tool_calls`, which only an assistant message may have"),
            );
        }
        for (n, call) in calls.iter().enumerate() {
            let path = format!(".tool_calls[{n}]");
            if call.id.is_empty() || pending.contains(&&*call.id) {
                return invalid(
                    &format!("{path}.id"),
                    format!("messages[{idx}]{path}.id is empty or occurs twice"),
                );
            }
            pending.push(&call.id);
        }
        caller = idx;
    }
    match pending.first() {
        None => Ok(()),
        Some(id) => Err(Error::invalid(
            format!("messages[{caller}].tool_calls"),
            format!(
                "messages[{caller}] has call `{}`, but no result follows; add one, or leave the message out",
                quote(id)
            ),
        )),
    }
}

/// The arguments of a call for a template: an object, or the text itself if it is none, as in a call that a token
/// limit has cut. Blank text is an empty object.
fn template_arguments(text: &str) -> Value {
    if text.trim().is_empty() {
        return json!({});
    }
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => value,
        _ => Value::from(text),
    }
}

/// The calls of a message in the form that templates expect, with arguments as an object rather than text.
pub fn calls_for_template(message: &Message) -> Option<Vec<Value>> {
    let calls = message.tool_calls.as_ref().filter(|calls| !calls.is_empty())?;
    let call = |call: &crate::openai::chat::ToolCall| {
        let arguments = template_arguments(&call.function.arguments);
        json!({"id": call.id, "type": "function",
               "function": {"name": call.function.name, "arguments": arguments}})
    };
    Some(calls.iter().map(call).collect())
}

/// Makes an object of arguments that are none, for templates that cannot show them as text. Returns whether there are
/// any.
pub fn wrap_raw_arguments(messages: &mut [TemplateMessage]) -> bool {
    let mut has_raw = false;
    for call in messages.iter_mut().flat_map(|message| message.tool_calls.iter_mut().flatten()) {
        let arguments = &mut call["function"]["arguments"];
        if arguments.is_string() {
            *arguments = json!({"raw": arguments.take()});
            has_raw = true;
        }
    }
    has_raw
}

/// The ids of calls that a family's templates expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallIds {
    /// Any text.
    Any,
    /// This many letters and digits.
    Alphanumeric(usize),
    /// The function's name and the call's number, such as `functions.add:0`.
    NameAndIndex,
}

impl CallIds {
    /// Whether an id has the expected form.
    pub fn allow(self, id: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Alphanumeric(len) => id.len() == len && id.chars().all(|c| c.is_ascii_alphanumeric()),
            Self::NameAndIndex => id.starts_with("functions.") && id.contains(':'),
        }
    }

    /// Replaces other ids by ids of the expected form. Equal ids stay equal.
    pub fn rewrite(self, messages: &mut [TemplateMessage]) {
        // The names of calls, by the ids that they had.
        let mut replaced: HashMap<String, String> = HashMap::new();
        let mut n_calls = 0;
        for message in messages {
            for call in message.tool_calls.iter_mut().flatten() {
                let id = call["id"].as_str().unwrap_or_default().to_owned();
                let name = call["function"]["name"].as_str().unwrap_or_default();
                let new = if self.allow(&id) { id.clone() } else { self.replacement(&id, name, n_calls) };
                n_calls += 1;
                call["id"] = Value::from(new.as_str());
                replaced.insert(id, new);
            }
            if let Some(id) = &mut message.tool_call_id
                && let Some(new) = replaced.get(id)
            {
                id.clone_from(new);
            }
        }
    }

    fn replacement(self, id: &str, name: &str, n_before: usize) -> String {
        match self {
            Self::Any => id.to_owned(),
            Self::Alphanumeric(len) => {
                let hash = Sha256::digest(id.as_bytes());
                hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..len.min(64)].to_owned()
            }
            Self::NameAndIndex => format!("functions.{name}:{n_before}"),
        }
    }
}

/// Gives reasoning the name `thinking` where a template knows it by that name only.
pub fn name_reasoning(template: &ChatTemplate, messages: &mut [TemplateMessage]) {
    let names = [".thinking", "['thinking']", "\"thinking\" in "];
    let is_named = names.iter().any(|name| template.template_contains(name));
    if is_named && !template.template_contains("reasoning_content") {
        for message in messages {
            message.thinking.clone_from(&message.reasoning_content);
        }
    }
}

/// Gives each call a message of its own, which its result follows, for templates that show one call in a message. These
/// show the text before a call as a thought.
pub fn separate_calls(messages: &mut Vec<TemplateMessage>) {
    let mut separated: Vec<TemplateMessage> = Vec::with_capacity(messages.len());
    let mut rest: VecDeque<TemplateMessage> = messages.drain(..).collect();
    while let Some(mut message) = rest.pop_front() {
        let Some(calls) = message.tool_calls.take() else {
            separated.push(message);
            continue;
        };
        if let Some(thinking) = message.thinking.as_mut().filter(|_| !message.content.is_empty()) {
            *thinking = format!("{thinking}\n\n{}", std::mem::take(&mut message.content));
        }
        for call in calls {
            let id = call["id"].as_str().map(str::to_owned);
            separated.push(TemplateMessage { tool_calls: Some(vec![call]), ..message });
            message = TemplateMessage::new("assistant", String::new());
            let n_results = rest.iter().take_while(|next| next.role == "tool").count();
            let is_result = |next: &TemplateMessage| next.tool_call_id == id;
            if let Some(idx) = rest.iter().take(n_results).position(is_result) {
                separated.extend(rest.remove(idx));
            }
        }
    }
    *messages = separated;
}

/// Moves results into the messages with their calls.
pub fn results_to_calls(messages: &mut Vec<TemplateMessage>) {
    let mut moved: Vec<TemplateMessage> = Vec::with_capacity(messages.len());
    for message in messages.drain(..) {
        let caller = moved.last_mut().filter(|last| message.role == "tool" && last.tool_calls.is_some());
        let Some(caller) = caller else {
            moved.push(message);
            continue;
        };
        let id = message.tool_call_id.as_deref();
        let call = caller.tool_calls.iter().flatten().find(|call| call["id"].as_str() == id);
        let name = call.map_or(Value::Null, |call| call["function"]["name"].clone());
        let object = serde_json::from_str::<Value>(&message.content).ok().filter(Value::is_object);
        let response = object.unwrap_or_else(|| Value::from(message.content.as_str()));
        caller.tool_responses.get_or_insert_default().push(json!({"name": name, "response": response}));
    }
    *messages = moved;
}

/// Writes the arguments of calls as text.
pub fn arguments_to_text(messages: &mut [TemplateMessage]) {
    for call in messages.iter_mut().filter_map(|message| message.tool_calls.as_mut()).flatten() {
        let arguments = &mut call["function"]["arguments"];
        if !arguments.is_string() {
            *arguments = Value::from(arguments.to_string());
        }
    }
}

/// Rewrites calls and results as text, for templates that ignore them. Consecutive results become one message,
/// because templates may require alternating roles.
pub fn calls_to_text(messages: &mut Vec<TemplateMessage>) {
    let mut rewritten: Vec<TemplateMessage> = Vec::with_capacity(messages.len());
    let mut is_after_result = false;
    for mut message in messages.drain(..) {
        for call in message.tool_calls.take().into_iter().flatten() {
            let call = json!({"name": call["function"]["name"], "arguments": call["function"]["arguments"]});
            let space = if message.content.is_empty() { "" } else { "\n" };
            message.content += &format!("{space}<tool_call>\n{call}\n</tool_call>");
        }
        let is_result = message.role == "tool";
        if is_result {
            let content = format!("<tool_response>\n{}\n</tool_response>", message.content);
            if let Some(last) = rewritten.last_mut().filter(|_| is_after_result) {
                last.content += &format!("\n{content}");
                continue;
            }
            message = TemplateMessage { role: "user", content, tool_call_id: None, ..message };
        }
        is_after_result = is_result;
        rewritten.push(message);
    }
    *messages = rewritten;
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
    fn every_call_needs_a_result_and_every_result_a_call() {
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
            (
                json!([{"role": "user", "content": "x", "tool_calls": [call("a", "{}")]}]),
                Some("messages[0].tool_calls"),
            ),
        ] {
            let error = check_history(&messages(history.clone())).err();
            assert_eq!(error.as_ref().and_then(Error::param), param, "{history}");
        }
    }

    #[test]
    fn arguments_that_are_no_object_stay_text() {
        for (text, shown) in [
            ("{\"a\": 1}", json!({"a": 1})),
            (" ", json!({})),
            ("{\"city\": \"Pa", json!("{\"city\": \"Pa")),
            ("[1]", json!("[1]")),
        ] {
            let history = messages(json!([{"role": "assistant", "tool_calls": [call("a", text)]}]));
            let calls = calls_for_template(&history[0]).unwrap();
            assert_eq!(calls[0]["function"]["arguments"], shown);
            let mut wrapped =
                [TemplateMessage { tool_calls: Some(calls), ..template_message("assistant", "") }];
            let is_wrapped = wrap_raw_arguments(&mut wrapped);
            let arguments = &wrapped[0].tool_calls.as_ref().unwrap()[0]["function"]["arguments"];
            assert_eq!(is_wrapped, shown.is_string());
            assert!(arguments.is_object());
        }
    }

    fn template_message(role: &'static str, content: &str) -> TemplateMessage {
        TemplateMessage::new(role, content.to_owned())
    }

    #[test]
    fn equal_ids_are_shortened_to_equal_ids() {
        let mut messages = vec![template_message("assistant", ""), template_message("tool", "")];
        messages[0].tool_calls = Some(vec![call("call_1234", "{}"), call("abcdefgh1", "{}")]);
        messages[1].tool_call_id = Some("call_1234".to_owned());
        CallIds::Alphanumeric(9).rewrite(&mut messages);
        let calls = messages[0].tool_calls.clone().unwrap();
        assert_eq!(calls[0]["id"], messages[1].tool_call_id.clone().unwrap());
        assert_eq!(calls[0]["id"].as_str().unwrap().len(), 9);
        assert_eq!(calls[1]["id"], "abcdefgh1");
    }

    #[test]
    fn calls_are_arranged_as_templates_expect() {
        let call =
            |id: &str| json!({"id": id, "function": {"name": format!("f_{id}"), "arguments": {"a": 1}}});
        let result = |id: &str, content: &str| TemplateMessage {
            tool_call_id: Some(id.to_owned()),
            ..template_message("tool", content)
        };
        let history = vec![
            template_message("user", "x"),
            TemplateMessage {
                tool_calls: Some(vec![call("1"), call("2")]),
                thinking: Some("hm".to_owned()),
                ..template_message("assistant", "so")
            },
            result("2", "two"),
            result("1", "{\"n\": 1}"),
        ];
        let mut separated = history.clone();
        separate_calls(&mut separated);
        let seen: Vec<(&str, Option<&Value>, &str)> = separated
            .iter()
            .map(|message| {
                (message.role, message.tool_calls.as_ref().map(|calls| &calls[0]["id"]), &*message.content)
            })
            .collect();
        let (one, two) = (json!("1"), json!("2"));
        assert_eq!(
            seen,
            [
                ("user", None, "x"),
                ("assistant", Some(&one), ""),
                ("tool", None, "{\"n\": 1}"),
                ("assistant", Some(&two), ""),
                ("tool", None, "two"),
            ]
        );
        assert_eq!(separated[1].thinking.as_deref(), Some("hm\n\nso"));
        let mut moved = history.clone();
        results_to_calls(&mut moved);
        assert_eq!(moved.len(), 2);
        let responses =
            [json!({"name": "f_2", "response": "two"}), json!({"name": "f_1", "response": {"n": 1}})];
        assert_eq!(moved[1].tool_responses.as_deref(), Some(&responses[..]));
        arguments_to_text(&mut moved);
        assert_eq!(moved[1].tool_calls.as_ref().unwrap()[0]["function"]["arguments"], "{\"a\":1}");
    }

    #[test]
    fn templates_without_tools_get_calls_as_text() {
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
        calls_to_text(&mut messages);
        let rewritten: Vec<(&str, &str)> =
            messages.iter().map(|message| (message.role, &*message.content)).collect();
        let expected = [
            ("user", "2+2?"),
            ("assistant", "Well.\n<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":2}}\n</tool_call>"),
            ("user", "<tool_response>\n4\n</tool_response>\n<tool_response>\n5\n</tool_response>"),
            ("assistant", "4"),
        ];
        assert_eq!(rewritten, expected);
    }
}
