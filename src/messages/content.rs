//! The messages of a request as chat messages.

use super::signature;
use crate::anthropic::messages::{
    DocumentSource, InputBlock, InputContent, InputMessage, InputRole, InputSource,
};
use crate::error::{Error, Result, quote};
use crate::openai::chat::{Content, FunctionCall, FunctionKind, Message, Role, ToolCall};

/// The beginning of a line at the head of Claude Code's system prompt. It changes from request to request, so that no
/// prompt would begin like an earlier one.
const BILLING_LINE: &str = "x-anthropic-billing-header:";

/// The name under which the line is listed as ignored.
const IGNORED_BILLING_LINE: &str = "system.x-anthropic-billing-header";

/// Separates turns of one author, which become one message.
const TURN_BREAK: &str = "\n\n";

/// Chat messages, with where they come from.
#[derive(Debug, Default)]
pub struct TranslatedMessages {
    /// The messages.
    pub messages: Vec<Message>,
    /// The path of each message's origin.
    pub origins: Vec<String>,
    /// Paths of what is not part of the prompt.
    pub ignored: Vec<String>,
}

impl TranslatedMessages {
    /// Translates a system prompt and messages.
    ///
    /// # Errors
    /// When a block is not supported, or is not where it belongs.
    pub fn new(system: Option<&InputContent>, messages: &[InputMessage]) -> Result<Self> {
        let mut translated = Self::default();
        if let Some(system) = system {
            translated.push_system(system)?;
        }
        for (idx, InputMessage { role, content }) in messages.iter().enumerate() {
            let path = format!("messages[{idx}]");
            match role {
                InputRole::System => {
                    let text = plain_text(content, &format!("{path}.content"))?;
                    translated.push(text_message(Role::System, text), path);
                }
                InputRole::User => translated.push_user(content, path)?,
                InputRole::Assistant => translated.push_assistant(content, path)?,
            }
        }
        Ok(translated)
    }

    fn push_system(&mut self, system: &InputContent) -> Result<()> {
        let mut text = plain_text(system, "system")?;
        // The line is a part of its own, or a line of the text.
        let line = match system {
            InputContent::Text(text) => text.lines().next().unwrap_or_default().len(),
            InputContent::Blocks(blocks) => blocks
                .first()
                .and_then(|block| block.text.as_ref())
                .map_or(0, |text| text.lines().next().unwrap_or_default().len()),
        };
        if text.starts_with(BILLING_LINE) {
            let rest = text.split_off(line);
            text = rest.strip_prefix('\n').map(str::to_owned).unwrap_or(rest);
            self.ignored.push(IGNORED_BILLING_LINE.to_owned());
        }
        if !text.is_empty() {
            self.push(text_message(Role::System, text), "system".to_owned());
        }
        Ok(())
    }

    /// Adds a message of the user: results of tools first, then the rest.
    fn push_user(&mut self, content: &InputContent, path: String) -> Result<()> {
        let InputContent::Blocks(blocks) = content else {
            return self.push_text(Role::User, plain_text(content, &path)?, path);
        };
        let mut text = String::new();
        let mut has_results = false;
        for (idx, block) in blocks.iter().enumerate() {
            let block_path = format!("{path}.content[{idx}]");
            match block.kind.as_str() {
                "tool_result" => {
                    has_results = true;
                    self.push(tool_result(block, &block_path)?, path.clone());
                }
                _ => text += &block_text(block, &block_path)?,
            }
        }
        if text.is_empty() && has_results {
            return Ok(());
        }
        self.push_text(Role::User, text, path)
    }

    /// Adds a message of the model: reasoning, text and uses of tools.
    fn push_assistant(&mut self, content: &InputContent, path: String) -> Result<()> {
        let InputContent::Blocks(blocks) = content else {
            return self.push_text(Role::Assistant, plain_text(content, &path)?, path);
        };
        let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
        for (idx, block) in blocks.iter().enumerate() {
            let block_path = format!("{path}.content[{idx}]");
            match block.kind.as_str() {
                "thinking" => reasoning += &thinking_text(block),
                // Its text is known only to the server that wrote it.
                "redacted_thinking" => self.ignored.push(block_path),
                "tool_use" => calls.push(tool_call(block, &block_path)?),
                _ => text += &block_text(block, &block_path)?,
            }
        }
        if calls.is_empty() && reasoning.is_empty() {
            return self.push_text(Role::Assistant, text, path);
        }
        let message = Message {
            tool_calls: (!calls.is_empty()).then_some(calls),
            reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
            ..text_message(Role::Assistant, text)
        };
        self.push(message, path);
        Ok(())
    }

    /// Adds a text, to the last message if that is only text of the same author.
    fn push_text(&mut self, role: Role, text: String, path: String) -> Result<()> {
        let last = self.messages.last_mut().filter(|last| last.role == role && last.tool_calls.is_none());
        match last.and_then(|last| last.content.as_mut()) {
            Some(Content::Text(before)) => {
                let line = if before.is_empty() || text.is_empty() { "" } else { TURN_BREAK };
                before.extend([line, &text]);
            }
            _ => self.push(text_message(role, text), path),
        }
        Ok(())
    }

    fn push(&mut self, message: Message, origin: String) {
        self.messages.push(message);
        self.origins.push(origin);
    }
}

fn text_message(role: Role, text: String) -> Message {
    Message { role, content: Some(Content::Text(text)), ..Message::default() }
}

/// A text, or the text of blocks, one after the other. `path` is the content's path in the request.
fn plain_text(content: &InputContent, path: &str) -> Result<String> {
    match content {
        InputContent::Text(text) => Ok(text.clone()),
        InputContent::Blocks(blocks) => blocks
            .iter()
            .enumerate()
            .map(|(idx, block)| block_text(block, &format!("{path}[{idx}]")))
            .collect(),
    }
}

/// The text of a block that can be shown as such.
fn block_text(block: &InputBlock, path: &str) -> Result<String> {
    let refuse = |message: String| Err(Error::invalid(path, message));
    match block.kind.as_str() {
        "text" => match &block.text {
            Some(text) => Ok(text.clone()),
            None => refuse(format!("`{path}.text` is missing")),
        },
        "document" => document_text(block, path),
        "search_result" => {
            let place = match &block.source {
                Some(InputSource::Place(place)) => Some(place),
                _ => None,
            };
            let content = block.content.as_ref();
            let text = content.map(|content| plain_text(content, &format!("{path}.content"))).transpose()?;
            Ok(tagged(
                "search_result",
                &[("title", block.title.as_ref()), ("source", place)],
                text.as_deref(),
            ))
        }
        "tool_reference" => Ok(tagged("tool_reference", &[("tool_name", block.tool_name.as_ref())], None)),
        "image" => refuse(format!("`{path}` is an image, and this server reads only text; leave it out")),
        kind => refuse(format!(
            "`{path}` has the type `{}`, which is not supported here; send it as a block of type `text`",
            quote(kind)
        )),
    }
}

/// The text of a document.
fn document_text(block: &InputBlock, path: &str) -> Result<String> {
    let text = match &block.source {
        Some(InputSource::Document(DocumentSource { kind, data: Some(text), .. })) if kind == "text" => {
            text.clone()
        }
        Some(InputSource::Document(DocumentSource { kind, content: Some(content), .. }))
            if kind == "content" =>
        {
            plain_text(content, &format!("{path}.source.content"))?
        }
        _ => {
            let message = format!(
                "`{path}` is a document that is not text, and this server reads only text; send its text as a `source` of \
                 type `text`, or leave it out"
            );
            return Err(Error::invalid(format!("{path}.source"), message));
        }
    };
    Ok(tagged(
        "document",
        &[("title", block.title.as_ref()), ("context", block.context.as_ref())],
        Some(&text),
    ))
}

/// Text between tags, so that the model sees where it begins and ends.
fn tagged(tag: &str, fields: &[(&str, Option<&String>)], text: Option<&str>) -> String {
    let mut tagged = format!("<{tag}>\n");
    for (name, value) in fields.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        tagged += &format!("<{name}>{value}</{name}>\n");
    }
    if let Some(text) = text {
        tagged += text.trim_end_matches('\n');
        tagged += "\n";
    }
    tagged + &format!("</{tag}>\n")
}

/// The reasoning of a block, also of one that did not show it.
fn thinking_text(block: &InputBlock) -> String {
    let shown = block.thinking.clone().unwrap_or_default();
    let signature = block.signature.as_deref().filter(|_| shown.is_empty());
    signature.and_then(signature::hidden_text).unwrap_or(shown)
}

fn tool_call(block: &InputBlock, path: &str) -> Result<ToolCall> {
    let (Some(id), Some(name)) = (&block.id, &block.name) else {
        return Err(Error::invalid(path, format!("`{path}` needs `id` and `name`")));
    };
    let arguments = match &block.input {
        None => "{}".to_owned(),
        Some(input) if input.is_object() => input.to_string(),
        Some(_) => {
            let message = format!("`{path}.input` must be an object");
            return Err(Error::invalid(format!("{path}.input"), message));
        }
    };
    let function = FunctionCall { name: name.clone(), arguments };
    Ok(ToolCall { id: id.clone(), kind: FunctionKind::Function, function })
}

/// The result of a tool. A failure is marked in its text, since chat templates have no other mark.
fn tool_result(block: &InputBlock, path: &str) -> Result<Message> {
    let Some(id) = &block.tool_use_id else {
        return Err(Error::invalid(
            format!("{path}.tool_use_id"),
            format!("`{path}.tool_use_id` is missing"),
        ));
    };
    let content = block.content.as_ref();
    let mut text = content
        .map(|content| plain_text(content, &format!("{path}.content")))
        .transpose()?
        .unwrap_or_default();
    let says_so = text.trim_start().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("error"));
    if block.is_error.unwrap_or(false) && !says_so {
        text.insert_str(0, "Error: ");
    }
    Ok(Message { tool_call_id: Some(id.clone()), ..text_message(Role::Tool, text) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn translated(system: Value, messages: Value) -> Result<TranslatedMessages> {
        let system: Option<InputContent> = serde_json::from_value(system).unwrap();
        let messages: Vec<InputMessage> = serde_json::from_value(messages).unwrap();
        TranslatedMessages::new(system.as_ref(), &messages)
    }

    /// Role and text of each message.
    fn outline(messages: &[Message]) -> Vec<(Role, &str)> {
        messages
            .iter()
            .map(|message| match &message.content {
                Some(Content::Text(text)) => (message.role, text.as_str()),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn turns_become_messages() {
        let all = translated(
            json!([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": " Be kind."}]),
            json!([
                {"role": "user", "content": "a"},
                {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
                {"role": "system", "content": "d"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "e", "signature": "x"},
                    {"type": "redacted_thinking", "data": "y"},
                    {"type": "text", "text": "f"},
                    {"type": "tool_use", "id": "t1", "name": "g", "input": {"h": 1}},
                    {"type": "tool_use", "id": "t2", "name": "g"}
                ]},
                {"role": "user", "content": [
                    {"type": "text", "text": "k"},
                    {"type": "tool_result", "tool_use_id": "t1", "content": "i"},
                    {"type": "tool_result", "tool_use_id": "t2", "is_error": true, "content": [{"type": "text", "text": "j"}]}
                ]}
            ]),
        )
        .unwrap();
        let expected = [
            (Role::System, "Be brief. Be kind."),
            (Role::User, "a\n\nbc"),
            (Role::System, "d"),
            (Role::Assistant, "f"),
            (Role::Tool, "i"),
            (Role::Tool, "Error: j"),
            (Role::User, "k"),
        ];
        assert_eq!(outline(&all.messages), expected);
        assert_eq!(all.messages[3].reasoning_content.as_deref(), Some("e"));
        let calls = all.messages[3].tool_calls.as_ref().unwrap();
        assert_eq!(
            (calls[0].function.arguments.as_str(), calls[1].function.arguments.as_str()),
            ("{\"h\":1}", "{}")
        );
        assert_eq!(all.ignored, ["messages[3].content[1]"]);
        assert_eq!(all.origins[4..], ["messages[4]"; 3]);
    }

    #[test]
    fn the_billing_line_is_left_out() {
        let line = "x-anthropic-billing-header: cc_version=2.1.197.782; cc_entrypoint=cli;";
        for (system, rest) in [
            (
                json!([{"type": "text", "text": line}, {"type": "text", "text": "Be brief."}]),
                Some("Be brief."),
            ),
            (
                json!([{"type": "text", "text": line}, {"type": "text", "text": "\nBe brief."}]),
                Some("Be brief."),
            ),
            (json!(format!("{line}\nBe brief.")), Some("Be brief.")),
            (json!([{"type": "text", "text": line}]), None),
            (json!(line), None),
        ] {
            let all = translated(system, json!([{"role": "user", "content": "a"}])).unwrap();
            assert_eq!(all.ignored, [IGNORED_BILLING_LINE]);
            let expected: Vec<(Role, &str)> =
                rest.map(|rest| (Role::System, rest)).into_iter().chain([(Role::User, "a")]).collect();
            assert_eq!(outline(&all.messages), expected);
        }
    }

    #[test]
    fn text_documents_are_text() {
        let all = translated(
            json!(null),
            json!([{"role": "user", "content": [
                {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}},
                {"type": "search_result", "title": "S", "source": "u", "content": [{"type": "text", "text": "R"}]},
                {"type": "text", "text": "Q"}
            ]}]),
        )
        .unwrap();
        let text = "<document>\n<title>T</title>\nD\n</document>\n<search_result>\n<title>S</title>\n\
                    <source>u</source>\nR\n</search_result>\nQ";
        assert_eq!(outline(&all.messages), [(Role::User, text)]);
    }

    #[test]
    fn what_is_not_text_is_refused_by_path() {
        for (block, param) in [
            (json!({"type": "image", "source": {"type": "base64", "data": ""}}), "messages[0].content[0]"),
            (
                json!({"type": "document", "source": {"type": "url", "url": "u"}}),
                "messages[0].content[0].source",
            ),
            (json!({"type": "tool_result"}), "messages[0].content[0].tool_use_id"),
            (json!({"type": "tool_use", "id": "x", "name": "y"}), "messages[0].content[0]"),
            (json!({"type": "text"}), "messages[0].content[0]"),
        ] {
            let error = translated(json!(null), json!([{"role": "user", "content": [block]}])).unwrap_err();
            assert_eq!(error.param(), Some(param), "{error}");
        }
    }
}
