//! Items of a conversation as messages of the chat layer.
//!
//! An assistant message of the chat layer has the reasoning, the text and the calls of one turn, and the outputs of
//! the calls follow it. Items may come in any order that makes sense to a client, so outputs are collected first and
//! placed behind their calls.

use std::collections::{HashMap, VecDeque};

use serde_json::{Map, Value, json};

use super::reasoning_blob::BlobSigner;
use super::tools::{CUSTOM_ARGUMENT, OfferedTools, text_field};
use crate::error::{Error, Result, quote};
use crate::openai::chat::{Content, ContentPart, FunctionCall, FunctionKind, Message, Role, ToolCall};
use crate::openai::responses::JsonMap;

/// An item of a conversation, and its path for errors.
#[derive(Debug, Clone)]
pub struct ContextItem {
    /// The item.
    pub item: JsonMap,
    /// Its path in the request; the parameter that refers to it if it is stored.
    pub path: String,
    /// Whether the item is stored: its unknown fields were reported when it came.
    pub is_stored: bool,
}

/// Types of items that only servers with hosted tools understand. They say nothing to a model that has no such tools.
const HOSTED_ITEMS: [&str; 15] = [
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "computer_call",
    "computer_call_output",
    "mcp_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "tool_search_call",
    "tool_search_output",
    "program",
    "program_output",
    "compaction_trigger",
];

/// Known fields of all items.
const COMMON_FIELDS: [&str; 4] = ["type", "id", "status", "created_by"];

/// The items in which something is called: type, and the output's type.
const CALLS: [(&str, &str); 5] = [
    ("function_call", "function_call_output"),
    ("custom_tool_call", "custom_tool_call_output"),
    ("local_shell_call", "local_shell_call_output"),
    ("shell_call", "shell_call_output"),
    ("apply_patch_call", "apply_patch_call_output"),
];

/// Converts items to messages, after `instructions`. Adds the paths of what has no effect to `ignored`.
///
/// # Errors
/// When an item is malformed or not supported, a call has no output, or an output no call.
pub fn messages_from_items(
    instructions: Option<&str>,
    items: &[ContextItem],
    tools: &OfferedTools,
    blobs: &BlobSigner,
    ignored: &mut Vec<String>,
) -> Result<Vec<Message>> {
    let mut outputs = collect_outputs(items)?;
    let mut thread = Thread::default();
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        thread.push(Role::System, Content::Text(instructions.to_owned()));
    }
    for context in items {
        let ContextItem { item, path, is_stored } = context;
        let kind = item_type(item, path)?;
        let known: &[&str] = match kind {
            "message" => {
                let (role, content) = message_parts(item, path)?;
                thread.push(role, content);
                &["role", "content", "phase", "name"]
            }
            "reasoning" => {
                match reasoning_text(item, blobs) {
                    Some(text) => thread.push_reasoning(&text),
                    None => ignored.push(path.clone()),
                }
                &["summary", "content", "encrypted_content"]
            }
            "compaction" => {
                thread.push(Role::User, Content::Text(summary_text(item, path, blobs)?));
                &["encrypted_content"]
            }
            "additional_tools" => &["role", "tools"],
            _ if HOSTED_ITEMS.contains(&kind) => {
                if !is_stored {
                    ignored.push(path.clone());
                }
                continue;
            }
            _ if CALLS.iter().any(|(_, output)| *output == kind) => {
                &["call_id", "output", "caller", "name", "namespace", "max_output_length"]
            }
            _ if CALLS.iter().any(|(call, _)| *call == kind) => {
                let call = chat_call(item, kind, path, tools)?;
                let output = outputs.get_mut(&call.id).and_then(VecDeque::pop_front);
                match output {
                    Some(output) => thread.push_call(call, output.content),
                    // A call that the token limit cut was never run.
                    None if item.get("status").and_then(Value::as_str) == Some("incomplete") => {}
                    None => return Err(missing_output(&call.id, path)),
                }
                CALL_FIELDS
            }
            _ => return Err(unsupported(kind, path)),
        };
        if !is_stored {
            name_unknown_fields(item, known, path, ignored);
        }
    }
    if let Some(output) = outputs.into_values().flatten().next() {
        let path = format!("{}.call_id", output.path);
        let message = format!(
            "`{path}` is `{}`, but no call with this id precedes it; send the call too, or `previous_response_id`",
            quote(&output.call_id)
        );
        return Err(Error::invalid(path, message));
    }
    let mut messages = thread.finish();
    merge_leading_instructions(&mut messages);
    Ok(messages)
}

/// Fields of calls of all kinds.
const CALL_FIELDS: &[&str] = &[
    "call_id",
    "name",
    "arguments",
    "namespace",
    "caller",
    "async",
    "input",
    "action",
    "operation",
    "environment",
];

/// The words before the summary of a compacted conversation.
const SUMMARY_INTRODUCTION: &str = "Summary of the conversation so far:";

/// The summary of a compacted conversation, as a message says it.
fn summary_text(item: &JsonMap, path: &str, blobs: &BlobSigner) -> Result<String> {
    let summary = blobs.open(text_field(item, "encrypted_content", path)?);
    summary.map(|summary| format!("{SUMMARY_INTRODUCTION}\n\n{summary}")).ok_or_else(|| {
        let path = format!("{path}.encrypted_content");
        let message =
            format!("`{path}` was not made by this server, so it cannot be read; leave the item out");
        Error::invalid(path, message)
    })
}

/// The type of an item. A message may leave it out, and so may a reference, which has nothing but an id.
///
/// # Errors
/// When it is missing and the item is neither, or not a string.
pub fn item_type<'a>(item: &'a JsonMap, path: &str) -> Result<&'a str> {
    match item.get("type") {
        None | Some(Value::Null) if item.contains_key("role") => Ok("message"),
        None | Some(Value::Null) if item.len() <= 2 && item.contains_key("id") => Ok("item_reference"),
        _ => text_field(item, "type", path),
    }
}

/// Checks items that are to be stored.
///
/// # Errors
/// When one is malformed or not supported.
pub fn check_items(items: &[JsonMap]) -> Result<()> {
    for (idx, item) in items.iter().enumerate() {
        let path = format!("items[{idx}]");
        let kind = item_type(item, &path)?;
        let is_output = CALLS.iter().any(|(_, output)| *output == kind);
        match kind {
            "message" => drop(message_parts(item, &path)?),
            "reasoning" | "compaction" | "additional_tools" => {}
            _ if HOSTED_ITEMS.contains(&kind) => {}
            _ if is_output => {
                let item = ContextItem { item: item.clone(), path, is_stored: false };
                collect_outputs(std::slice::from_ref(&item))?;
            }
            _ if CALLS.iter().any(|(call, _)| *call == kind) => {
                chat_call(item, kind, &path, &OfferedTools::default())?;
            }
            _ => return Err(unsupported(kind, &path)),
        }
    }
    Ok(())
}

/// The output of a call.
struct CallOutput {
    call_id: String,
    content: Content,
    path: String,
}

/// The outputs of all calls, by the calls' ids; an id that is used again has several, in order.
fn collect_outputs(items: &[ContextItem]) -> Result<HashMap<String, VecDeque<CallOutput>>> {
    let mut outputs: HashMap<String, VecDeque<CallOutput>> = HashMap::new();
    for ContextItem { item, path, .. } in items {
        let kind = item_type(item, path)?;
        if !CALLS.iter().any(|(_, output)| *output == kind) {
            continue;
        }
        let id_field =
            if kind == "local_shell_call_output" && !item.contains_key("call_id") { "id" } else { "call_id" };
        let call_id = text_field(item, id_field, path)?.to_owned();
        let content = match kind {
            "apply_patch_call_output" => patch_output(item),
            _ => output_content(item.get("output"), &format!("{path}.output"))?,
        };
        let output = CallOutput { call_id: call_id.clone(), content, path: path.clone() };
        outputs.entry(call_id).or_default().push_back(output);
    }
    Ok(outputs)
}

/// The output of a patch: its text after its status.
fn patch_output(item: &JsonMap) -> Content {
    let field = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default();
    let (status, text) = (field("status"), field("output"));
    Content::Text(if text.is_empty() { status.to_owned() } else { format!("{status}: {text}") })
}

/// The output of a call: a text, parts, or any other JSON as text.
fn output_content(output: Option<&Value>, path: &str) -> Result<Content> {
    let is_part = |value: &Value| {
        value
            .get("type")
            .and_then(Value::as_str)
            .is_some_and(|kind| kind.starts_with("input_") || kind == "output_text")
    };
    match output {
        None | Some(Value::Null) => Err(Error::invalid(path, format!("`{path}` is missing"))),
        Some(Value::Array(parts)) if parts.iter().all(is_part) => {
            Ok(Content::Parts(content_parts(parts, path)?))
        }
        Some(Value::String(text)) => Ok(Content::Text(text.clone())),
        Some(other) => Ok(Content::Text(other.to_string())),
    }
}

/// The role and content of a message.
fn message_parts(item: &JsonMap, path: &str) -> Result<(Role, Content)> {
    let role = match text_field(item, "role", path)? {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        "developer" => Role::Developer,
        other => {
            let message = format!(
                "`{path}.role` is `{}`; it must be `user`, `assistant`, `system` or `developer`",
                quote(other)
            );
            return Err(Error::invalid(format!("{path}.role"), message));
        }
    };
    let path = format!("{path}.content");
    let content = match item.get("content") {
        Some(Value::String(text)) => Content::Text(text.clone()),
        Some(Value::Array(parts)) => Content::Parts(content_parts(parts, &path)?),
        None | Some(Value::Null) if role == Role::Assistant => Content::Text(String::new()),
        None | Some(Value::Null) => return Err(Error::invalid(&*path, format!("`{path}` is missing"))),
        Some(_) => {
            return Err(Error::invalid(&*path, format!("`{path}` must be a string or an array of parts")));
        }
    };
    Ok((role, content))
}

/// Parts of a message as text parts.
fn content_parts(parts: &[Value], path: &str) -> Result<Vec<ContentPart>> {
    let part = |(idx, part): (usize, &Value)| {
        let path = format!("{path}[{idx}]");
        let field = |key: &str| part.get(key).and_then(Value::as_str);
        let text = match field("type") {
            Some("input_text" | "output_text" | "text" | "summary_text" | "reasoning_text") => field("text"),
            Some("refusal") => field("refusal"),
            Some(kind) => {
                let message = format!(
                    "content part of type `{}` is not supported; send text parts, each with its `text`",
                    quote(kind)
                );
                return Err(Error::invalid(path, message));
            }
            None => return Err(Error::invalid(path.clone(), format!("`{path}.type` is missing"))),
        };
        let text = text.ok_or_else(|| Error::invalid(path.clone(), format!("`{path}` has no text")))?;
        Ok(ContentPart { kind: "text".to_owned(), text: Some(text.to_owned()), refusal: None })
    };
    parts.iter().enumerate().map(part).collect()
}

/// The text of a reasoning item: its content, or what was signed, or its summary. None if it is another server's.
fn reasoning_text(item: &JsonMap, blobs: &BlobSigner) -> Option<String> {
    let texts = |key: &str, separator: &str| {
        let parts = item.get(key)?.as_array()?;
        let texts: Vec<&str> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
        (!texts.is_empty()).then(|| texts.join(separator))
    };
    let signed = || blobs.open(item.get("encrypted_content")?.as_str()?);
    texts("content", "").or_else(signed).or_else(|| texts("summary", "\n\n"))
}

/// The call of an item in the form of the chat layer.
fn chat_call(item: &JsonMap, kind: &str, path: &str, tools: &OfferedTools) -> Result<ToolCall> {
    let id = text_field(item, "call_id", path)?.to_owned();
    let arguments_in = |field: &str| -> Result<String> {
        match item.get(field) {
            Some(Value::Object(fields)) => {
                // The kind of action is the same for all calls of a tool, but that of an operation is an argument.
                let keep = |(key, value): &(&String, &Value)| {
                    !value.is_null() && (*key != "type" || field == "operation")
                };
                let fields: Map<String, Value> =
                    fields.iter().filter(keep).map(|(key, value)| (key.clone(), value.clone())).collect();
                Ok(Value::Object(fields).to_string())
            }
            _ => {
                let path = format!("{path}.{field}");
                Err(Error::invalid(path.clone(), format!("`{path}` must be an object")))
            }
        }
    };
    let (name, arguments) = match kind {
        "function_call" => (text_field(item, "name", path)?, text_field(item, "arguments", path)?.to_owned()),
        "custom_tool_call" => {
            let input = text_field(item, "input", path)?;
            (text_field(item, "name", path)?, json!({CUSTOM_ARGUMENT: input}).to_string())
        }
        "local_shell_call" => ("local_shell", arguments_in("action")?),
        "shell_call" => ("shell", arguments_in("action")?),
        _ => ("apply_patch", arguments_in("operation")?),
    };
    let name = tools.chat_name(name, item.get("namespace").and_then(Value::as_str)).to_owned();
    Ok(ToolCall { id, kind: FunctionKind::Function, function: FunctionCall { name, arguments } })
}

fn missing_output(call_id: &str, path: &str) -> Error {
    let message = format!(
        "call `{}` at `{path}` has no output; send an item of type `function_call_output` with this `call_id`",
        quote(call_id)
    );
    Error::invalid("input", message)
}

fn unsupported(kind: &str, path: &str) -> Error {
    let message = format!("`{path}.type` is `{}`, which is not supported; leave the item out", quote(kind));
    Error::invalid(format!("{path}.type"), message)
}

/// Adds the paths of an item's unknown fields to `ignored`.
fn name_unknown_fields(item: &JsonMap, known: &[&str], path: &str, ignored: &mut Vec<String>) {
    let is_known = |key: &str| COMMON_FIELDS.contains(&key) || known.contains(&key);
    let unknown = item.iter().filter(|(key, value)| !value.is_null() && !is_known(key));
    ignored.extend(unknown.map(|(key, _)| format!("{path}.{key}")));
}

/// Makes one message of the instructions and system messages at the beginning: many templates take only one.
fn merge_leading_instructions(messages: &mut Vec<Message>) {
    let is_instruction = |message: &Message| matches!(message.role, Role::System | Role::Developer);
    let n = messages.iter().take_while(|message| is_instruction(message)).count();
    if n < 2 {
        return;
    }
    let texts: Vec<String> =
        messages.drain(..n).filter_map(|message| Some(plain_text(&message.content?))).collect();
    messages.insert(0, text_message(Role::System, Content::Text(texts.join("\n\n"))));
}

/// A text, or the texts of all parts.
fn plain_text(content: &Content) -> String {
    match content {
        Content::Text(text) => text.clone(),
        Content::Parts(parts) => parts.iter().filter_map(|part| part.text.as_deref()).collect(),
    }
}

fn text_message(role: Role, content: Content) -> Message {
    Message { role, content: Some(content), ..Message::default() }
}

/// Messages so far, and the assistant's turn that is not complete.
#[derive(Default)]
struct Thread {
    messages: Vec<Message>,
    turn: Option<AssistantTurn>,
}

/// A turn of the assistant, and the outputs of its calls.
#[derive(Default)]
struct AssistantTurn {
    reasoning: String,
    text: Option<String>,
    calls: Vec<ToolCall>,
    outputs: Vec<Message>,
}

impl Thread {
    fn push(&mut self, role: Role, content: Content) {
        if role != Role::Assistant {
            self.end_turn();
            self.messages.push(text_message(role, content));
            return;
        }
        if self.turn.as_ref().is_some_and(|turn| turn.text.is_some() || !turn.calls.is_empty()) {
            self.end_turn();
        }
        self.turn.get_or_insert_default().text = Some(plain_text(&content));
    }

    fn push_reasoning(&mut self, text: &str) {
        if self.turn.as_ref().is_some_and(|turn| turn.text.is_some() || !turn.calls.is_empty()) {
            self.end_turn();
        }
        self.turn.get_or_insert_default().reasoning += text;
    }

    fn push_call(&mut self, call: ToolCall, output: Content) {
        let is_twice = |turn: &AssistantTurn| turn.calls.iter().any(|other| other.id == call.id);
        if self.turn.as_ref().is_some_and(is_twice) {
            self.end_turn();
        }
        let turn = self.turn.get_or_insert_default();
        let tool_call_id = Some(call.id.clone());
        turn.outputs.push(Message { tool_call_id, ..text_message(Role::Tool, output) });
        turn.calls.push(call);
    }

    fn end_turn(&mut self) {
        let Some(AssistantTurn { reasoning, text, calls, outputs }) = self.turn.take() else { return };
        // Reasoning that led to nothing.
        if text.is_none() && calls.is_empty() {
            return;
        }
        let content = match calls.is_empty() {
            true => Some(Content::Text(text.unwrap_or_default())),
            false => text.map(Content::Text),
        };
        self.messages.push(Message {
            role: Role::Assistant,
            content,
            reasoning_content: Some(reasoning).filter(|reasoning| !reasoning.is_empty()),
            tool_calls: (!calls.is_empty()).then_some(calls),
            ..Message::default()
        });
        self.messages.extend(outputs);
    }

    fn finish(mut self) -> Vec<Message> {
        self.end_turn();
        self.messages
    }
}
