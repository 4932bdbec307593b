//! Prompt rendering: from messages to token ids, by the model's own template.

use serde_json::{Map, Value};

use super::model::ChatModel;
use super::reasoning::ReasoningParser;
use super::system_messages;
use super::template::{ChatTemplate, TemplateInput, TemplateMessage};
use super::template_probe;
use super::tools::{self, ToolSet};
use crate::error::{Error, Result, quote};
use crate::openai::chat::{ChatCompletionRequest, Content, Message, ReasoningEffort, Role};
use crate::tokenizer::Tokenizer;

/// A conversation as the model's prompt.
pub struct RenderedPrompt {
    /// Token ids of the prompt.
    pub tokens: Vec<u32>,
    /// Paths of request fields that are not part of the prompt.
    pub ignored_fields: Vec<String>,
    /// A parser that separates reasoning from content, if the model reasons.
    pub reasoning: Option<ReasoningParser>,
}

/// A conversation as the text of the model's prompt.
pub struct RenderedText {
    /// The text, in which `marker` escapes special tokens that come from the client.
    pub text: String,
    /// A character that the client has not sent.
    pub marker: char,
    /// Paths of request fields that are not part of the prompt.
    pub ignored_fields: Vec<String>,
}

/// The end of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PromptEnd {
    /// The header of the assistant's next message.
    Header,
    /// The end of the last message.
    Message,
    /// The end of the last message's text, which is to be continued.
    Text,
}

impl PromptEnd {
    /// The end that a request asks for by `add_generation_prompt` and `continue_final_message`.
    ///
    /// # Errors
    /// When both are set, or the last message cannot be continued.
    fn from_request(request: &ChatCompletionRequest) -> Result<Self> {
        let ChatCompletionRequest { add_generation_prompt, continue_final_message, messages, .. } = request;
        let is_text = |message: &Message| {
            message.role == Role::Assistant && message.tool_calls.as_ref().is_none_or(Vec::is_empty)
        };
        let message = match (*add_generation_prompt, continue_final_message.unwrap_or(false)) {
            (Some(true), true) => {
                "`continue_final_message` and `add_generation_prompt` exclude each other; send \
                 `\"add_generation_prompt\": false`"
            }
            (_, true) if !messages.last().is_some_and(is_text) => {
                "`continue_final_message` needs a last message of the assistant, without tool calls"
            }
            (_, true) => return Ok(Self::Text),
            (Some(false), false) => return Ok(Self::Message),
            (_, false) => return Ok(Self::Header),
        };
        Err(Error::invalid("continue_final_message", message))
    }
}

impl ChatModel {
    /// The text of the prompt of a request, and the paths of fields that are not part of it.
    ///
    /// # Errors
    /// When the request's tools are malformed, or the template refuses the messages.
    pub fn prompt_text(&self, request: &ChatCompletionRequest) -> Result<(String, Vec<String>)> {
        let rendered = self.render_text(request, ToolSet::from_request(request)?.as_ref())?;
        Ok((rendered.text.replace(rendered.marker, ""), rendered.ignored_fields))
    }

    /// The prompt of a request.
    ///
    /// # Errors
    /// When the request's tools are malformed, the template refuses the messages, or the prompt does not fit the
    /// context.
    pub fn prompt(&self, request: &ChatCompletionRequest) -> Result<RenderedPrompt> {
        self.render_prompt(request, ToolSet::from_request(request)?.as_ref(), None)
    }

    /// Renders and encodes a conversation with these tools. Keeps only the last `max_prompt_tokens`, if given.
    pub(super) fn render_prompt(
        &self,
        request: &ChatCompletionRequest,
        tools: Option<&ToolSet>,
        max_prompt_tokens: Option<usize>,
    ) -> Result<RenderedPrompt> {
        let RenderedText { text, marker, mut ignored_fields } = self.render_text(request, tools)?;
        let (tokens, is_middle_dropped) = self.encode_prompt(&text, Some(marker), max_prompt_tokens)?;
        if is_middle_dropped {
            ignored_fields.push("messages".to_owned());
        }
        let reasoning =
            self.template()?.reasoning_marks().map(|marks| ReasoningParser::for_prompt(marks, &text));
        Ok(RenderedPrompt { tokens, ignored_fields, reasoning })
    }

    /// Renders a conversation with these tools.
    ///
    /// Text from the client can never become a special token: the texts of special tokens in it are broken up with
    /// a marker before the template runs, and joined again, as text, by the tokenizer.
    pub(super) fn render_text(
        &self,
        request: &ChatCompletionRequest,
        tools: Option<&ToolSet>,
    ) -> Result<RenderedText> {
        let template = self.template()?;
        let end = PromptEnd::from_request(request)?;
        let mut messages = template_messages(&request.messages, template.supports_developer_role())?;
        let mut tools = Value::Array(tools.map(ToolSet::for_template).unwrap_or_default());
        let (variables, mut ignored_fields) = template_variables(template, request);
        let mut variables = Value::Object(variables);
        let mut texts = messages.iter().flat_map(message_texts).collect::<Vec<&str>>();
        collect_texts(&variables, &mut texts);
        collect_texts(&tools, &mut texts);
        let marker = unused_marker(&texts)?;
        let marker_text = marker.to_string();
        texts.push(&marker_text);
        let text_end = unused_marker(&texts)?;
        let escape_special_tokens = |text: &str| self.tokenizer.escape_special_tokens(text, marker);
        messages.iter_mut().for_each(|message| map_message_texts(message, &escape_special_tokens));
        if end == PromptEnd::Text {
            messages.last_mut().into_iter().for_each(|message| message.content.push(text_end));
        }
        map_texts(&mut variables, &escape_special_tokens);
        map_texts(&mut tools, &escape_special_tokens);
        let tools = tools.as_array().filter(|tools| !tools.is_empty());
        let call_format = self.call_format()?;
        let tools = tools::prepare_messages(template, call_format, &mut messages, tools.map(Vec::as_slice));
        let variables = variables.as_object().cloned().unwrap_or_default();
        let now = jiff::Zoned::now().datetime();
        let render_with = |messages: &[TemplateMessage], variables: &Map<String, Value>| {
            let mut prompt = template.render(TemplateInput {
                messages,
                tools,
                documents: None,
                add_generation_prompt: end == PromptEnd::Header,
                variables: variables.clone(),
                now,
            })?;
            if end == PromptEnd::Text {
                let text_end = prompt.rfind(text_end).ok_or_else(not_continuable)?;
                prompt.truncate(text_end);
            }
            Ok(prompt)
        };
        let render = |messages: &[TemplateMessage]| render_with(messages, &variables);
        let prompt = match system_messages::render_all(&mut messages, render) {
            // Templates that list the arguments fail at some that are no object.
            Err(_) if tools::history::wrap_raw_arguments(&mut messages) => {
                system_messages::render_all(&mut messages, render)?
            }
            result => result?,
        };
        ignored_fields.extend(template_probe::ignored_fields(&messages, &prompt, render)?);
        let has_kwargs = request.chat_template_kwargs.as_ref().is_some_and(|kwargs| !kwargs.is_empty());
        if has_kwargs && render_with(&messages, &Map::new()).is_ok_and(|without| without == prompt) {
            ignored_fields.push("chat_template_kwargs".to_owned());
        }
        Ok(RenderedText { text: prompt, marker, ignored_fields })
    }
}

/// The client's template variables, plus the one by which the template controls reasoning; and the names of parameters
/// for which the template has no variable.
fn template_variables(
    template: &ChatTemplate,
    request: &ChatCompletionRequest,
) -> (Map<String, Value>, Vec<String>) {
    let mut variables = request.chat_template_kwargs.clone().unwrap_or_default();
    let mut set = |name: &str, value: Value| {
        if template.uses_variable(name) {
            variables.entry(name).or_insert(value);
        }
    };
    if let Some(budget) = request.thought_tokens() {
        set("thinking_budget", budget.into());
    }
    if let Some(is_enabled) = request.has_thinking() {
        set("enable_thinking", is_enabled.into());
        set("thinking", is_enabled.into());
    }
    let Some(effort) = request.effort() else { return (variables, Vec::new()) };
    let is_enabled = effort != ReasoningEffort::None;
    let names = ["reasoning_effort", "enable_thinking", "thinking"];
    match names.into_iter().find(|name| template.uses_variable(name)) {
        Some(name @ "reasoning_effort") => {
            variables.entry(name).or_insert(serde_json::to_value(effort).unwrap_or_default());
        }
        Some(name) => {
            variables.entry(name).or_insert(is_enabled.into());
        }
        // A model without the setting does not reason, or as much as it always does.
        None if is_enabled => return (variables, vec!["reasoning_effort".to_owned()]),
        None => {}
    }
    (variables, Vec::new())
}

/// A character that does not occur in `texts`.
fn unused_marker(texts: &[&str]) -> Result<char> {
    Tokenizer::unused_marker(texts.iter().copied()).ok_or_else(|| {
        Error::invalid(
            "messages",
            "the messages use nearly every Unicode noncharacter from U+FDD0 to U+FDEF; leave two out",
        )
    })
}

/// The error of a template that does not show the last message.
fn not_continuable() -> Error {
    Error::invalid(
        "continue_final_message",
        "the model's chat template does not show the text of the last message; leave `continue_final_message` out",
    )
}

/// The predicted output of a request, as text.
///
/// # Errors
/// When it is not text.
pub fn prediction_text(request: &ChatCompletionRequest) -> Result<Option<String>> {
    let prediction = request.prediction.as_ref();
    prediction.map(|prediction| content_text(&prediction.content, "prediction.content")).transpose()
}

/// Converts messages to the form that templates expect.
///
/// # Errors
/// When there are none, or one has content that is not text.
fn template_messages(messages: &[Message], has_developer_role: bool) -> Result<Vec<TemplateMessage>> {
    if messages.is_empty() {
        return Err(Error::invalid("messages", "`messages` is empty; send at least one message"));
    }
    tools::history::check_history(messages)?;
    messages
        .iter()
        .enumerate()
        .map(|(idx, message)| {
            if message.function_call.is_some() {
                return Err(Error::invalid(
                    format!("messages[{idx}].function_call"),
                    format!("messages[{idx}].function_call is not supported; send `tool_calls`"),
                ));
            }
            Ok(TemplateMessage {
                role: match message.role {
                    Role::Developer if has_developer_role => "developer",
                    Role::Developer | Role::System => "system",
                    Role::User => "user",
                    Role::Assistant => "assistant",
                    Role::Tool | Role::Function => "tool",
                },
                content: message_text(message, idx)?,
                name: message.name.clone(),
                tool_calls: tools::history::calls_for_template(message),
                tool_call_id: message.tool_call_id.clone(),
                reasoning_content: message.reasoning_content.clone(),
                thinking: None,
                tool_responses: None,
                tools: None,
            })
        })
        .collect()
}

/// The text of a message: its string, or its text parts concatenated.
fn message_text(message: &Message, idx: usize) -> Result<String> {
    let has_calls = message.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty());
    match &message.content {
        Some(content) => content_text(content, &format!("messages[{idx}].content")),
        None if message.role == Role::Assistant && has_calls => Ok(String::new()),
        None => Err(Error::invalid(
            format!("messages[{idx}].content"),
            format!("messages[{idx}] has no content; only an assistant message with tool calls may omit it"),
        )),
    }
}

/// A string, or text parts concatenated. `path` is the content's path in the request.
fn content_text(content: &Content, path: &str) -> Result<String> {
    match content {
        Content::Text(text) => Ok(text.clone()),
        Content::Parts(parts) => parts
            .iter()
            .enumerate()
            .map(|(idx, part)| match (part.kind.as_str(), &part.text, &part.refusal) {
                ("text", Some(text), _) | ("refusal", _, Some(text)) => Ok(text.as_str()),
                (kind, ..) => Err(Error::invalid(
                    format!("{path}[{idx}]"),
                    format!(
                        "content part of type `{}` is not supported; send text parts, each with its `text`",
                        quote(kind)
                    ),
                )),
            })
            .collect(),
    }
}

/// All strings of a message that come from the client.
fn message_texts(message: &TemplateMessage) -> Vec<&str> {
    let mut texts = vec![message.content.as_str()];
    texts.extend(message.name.as_deref());
    texts.extend(message.tool_call_id.as_deref());
    texts.extend(message.reasoning_content.as_deref());
    message.tool_calls.iter().flatten().for_each(|call| collect_texts(call, &mut texts));
    texts
}

/// Collects all strings of a value, including keys.
fn collect_texts<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => into.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, into)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            into.push(key);
            collect_texts(value, into);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Replaces every string that [`message_texts`] returns.
fn map_message_texts(message: &mut TemplateMessage, map: &impl Fn(&str) -> String) {
    message.content = map(&message.content);
    let TemplateMessage { name, tool_call_id, reasoning_content, .. } = message;
    for text in [name, tool_call_id, reasoning_content].into_iter().flatten() {
        *text = map(text);
    }
    message.tool_calls.iter_mut().flatten().for_each(|call| map_texts(call, map));
}

/// Replaces every string that [`collect_texts`] collects.
fn map_texts(value: &mut Value, map: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = map(text),
        Value::Array(items) => items.iter_mut().for_each(|item| map_texts(item, map)),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(key, mut value)| {
                    map_texts(&mut value, map);
                    (map(&key), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(messages: Value) -> Result<Vec<TemplateMessage>> {
        let request = json!({ "messages": messages });
        let request = ChatCompletionRequest::from_object(request.as_object().unwrap().clone())?;
        template_messages(&request.messages, false)
    }

    #[test]
    fn text_parts_are_joined_and_roles_mapped() {
        let messages = messages(json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ]},
            {"role": "tool", "content": "4", "tool_call_id": "1"}
        ]))
        .unwrap();
        let seen: Vec<(&str, &str)> = messages.iter().map(|m| (m.role, m.content.as_str())).collect();
        assert_eq!(seen, [("system", "be brief"), ("user", "ab"), ("assistant", ""), ("tool", "4")]);
    }

    #[test]
    fn other_content_than_text_is_refused_by_path() {
        for (bad, param) in [
            (json!([]), "messages"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0]"),
            (json!([{"role": "robot", "content": "x"}]), "messages[0].role"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (
                json!([{"role": "assistant", "content": "x", "function_call": {"name": "f"}}]),
                "messages[0].function_call",
            ),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
        ] {
            let error = messages(bad).unwrap_err();
            assert_eq!(error.param(), Some(param), "{error}");
        }
    }

    #[test]
    fn every_string_of_a_message_is_mapped() {
        let call = json!({"id": "i", "type": "function", "function": {"name": "f", "arguments": "{\"a\": [\"b\"]}"}});
        let mut message = messages(json!([
            {"role": "assistant", "content": "c", "name": "n", "reasoning_content": "r", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "i", "content": "x"}
        ]))
        .unwrap()
        .remove(0);
        let before: Vec<String> = message_texts(&message).iter().map(|text| format!("<{text}>")).collect();
        map_message_texts(&mut message, &|text| format!("<{text}>"));
        assert_eq!(message_texts(&message), before);
    }
}
