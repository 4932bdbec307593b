//! From messages to the tokens of a prompt, by the model's own template.

use serde_json::{Map, Value};

use super::model::ChatModel;
use super::reasoning::Reasoning;
use super::template::{TemplateInput, TemplateMessage};
use super::template_probe;
use super::tools::{self, Format, Tools};
use super::truncate::most_prompt_tokens;
use crate::error::{Error, Result};
use crate::openai::chat::{ChatCompletionRequest, Content, Message, ReasoningEffort, Role};
use crate::tokenizer::Tokenizer;

/// What a conversation becomes.
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// Paths of what it does not show of the request.
    pub ignored_fields: Vec<String>,
    /// Tells thoughts from the answer, where there will be some.
    pub reasoning: Option<Reasoning>,
    /// How the model writes calls.
    pub format: &'static Format,
}

impl ChatModel {
    /// Token ids of a conversation's prompt.
    ///
    /// # Errors
    /// When the template refuses the messages, or the prompt does not fit the context.
    pub fn prompt_tokens(&self, request: &ChatCompletionRequest) -> Result<Vec<u32>> {
        Ok(self.prompt(request, Tools::of(request)?.as_ref(), 0)?.tokens)
    }

    /// The prompt for an answer of up to `max_tokens`. Whatever a message says stays text: special tokens in it are broken up before the template runs and put
    /// together again, as text, after.
    pub(super) fn prompt(
        &self,
        request: &ChatCompletionRequest,
        tools: Option<&Tools>,
        max_tokens: usize,
    ) -> Result<Prompt> {
        let context_length = self.engine.context_length();
        let most = most_prompt_tokens(request, context_length, max_tokens)?;
        let mut messages = template_messages(&request.messages, self.template.knows_developer())?;
        let format = Format::of(|text| self.template.says(text));
        let mut tools = Value::Array(tools.map(Tools::for_template).unwrap_or_default());
        let mut options = Value::Object(self.variables(request)?);
        let mut texts = messages.iter().flat_map(texts).collect::<Vec<&str>>();
        collect_texts(&options, &mut texts);
        collect_texts(&tools, &mut texts);
        let marker = Tokenizer::unused_marker(texts.iter().copied()).ok_or_else(|| {
            Error::invalid(
                "messages",
                "the messages use every Unicode noncharacter from U+FDD0 to U+FDEF; leave one out",
            )
        })?;
        let defuse = |text: &str| self.tokenizer.escape_special_tokens(text, marker);
        messages.iter_mut().for_each(|message| map_texts(message, &defuse));
        rewrite_texts(&mut options, &defuse);
        rewrite_texts(&mut tools, &defuse);
        let tools = tools.as_array().filter(|tools| !tools.is_empty());
        let tools = tools::show(&self.template, format, &mut messages, tools.map(Vec::as_slice));
        let options = options.as_object().cloned().unwrap_or_default();
        let now = jiff::Zoned::now().datetime();
        let render_with = |messages: &[TemplateMessage], options: &Map<String, Value>| {
            self.template.render(TemplateInput {
                messages,
                tools,
                documents: None,
                add_generation_prompt: true,
                options: options.clone(),
                now,
            })
        };
        let render = |messages: &[TemplateMessage]| render_with(messages, &options);
        let prompt = render(&messages)?;
        let mut ignored_fields = template_probe::ignored_fields(&messages, &prompt, render)?;
        if !options.is_empty() && render_with(&messages, &Map::new()).is_ok_and(|without| without == prompt) {
            ignored_fields.push("chat_template_kwargs".to_owned());
        }
        let (tokens, lacks_middle) = self.encode(&prompt, Some(marker), most)?;
        if lacks_middle {
            ignored_fields.push("messages".to_owned());
        }
        let reasoning = self.template.reasons().then(|| Reasoning::after(&prompt));
        Ok(Prompt { tokens, ignored_fields, reasoning, format })
    }

    /// Variables for the template: the client's own, and what stands for the effort to reason.
    fn variables(&self, request: &ChatCompletionRequest) -> Result<Map<String, Value>> {
        let mut variables = request.chat_template_kwargs.clone().unwrap_or_default();
        let Some(effort) = request.reasoning_effort else { return Ok(variables) };
        let thinks = effort != ReasoningEffort::None;
        let known = ["reasoning_effort", "enable_thinking"].into_iter().find(|name| self.template.uses(name));
        match known {
            Some(name @ "reasoning_effort") => {
                variables.entry(name).or_insert(serde_json::to_value(effort).unwrap_or_default());
            }
            Some(name) => {
                variables.entry(name).or_insert(thinks.into());
            }
            None if thinks => {
                return Err(Error::invalid(
                    "reasoning_effort",
                    "this model's template knows no effort to reason; leave `reasoning_effort` out",
                ));
            }
            None => {}
        }
        Ok(variables)
    }
}

/// The messages as a template expects them.
///
/// # Errors
/// When there are none, or one has content that is not text.
pub fn template_messages(messages: &[Message], knows_developer: bool) -> Result<Vec<TemplateMessage>> {
    if messages.is_empty() {
        return Err(Error::invalid("messages", "`messages` is empty; send at least one message"));
    }
    tools::history::check(messages)?;
    messages
        .iter()
        .enumerate()
        .map(|(index, message)| {
            if message.function_call.is_some() {
                return Err(Error::invalid(
                    format!("messages[{index}].function_call"),
                    format!("messages[{index}].function_call is not supported; send `tool_calls`"),
                ));
            }
            Ok(TemplateMessage {
                role: match message.role {
                    Role::Developer if knows_developer => "developer",
                    Role::Developer | Role::System => "system",
                    Role::User => "user",
                    Role::Assistant => "assistant",
                    Role::Tool | Role::Function => "tool",
                },
                content: text_of(message, index)?,
                name: message.name.clone(),
                tool_calls: tools::history::calls_for_template(message),
                tool_call_id: message.tool_call_id.clone(),
                reasoning_content: message.reasoning_content.clone(),
                tools: None,
            })
        })
        .collect()
}

/// All strings of a message that come from the client.
pub fn texts(message: &TemplateMessage) -> Vec<&str> {
    let mut texts = vec![message.content.as_str()];
    texts.extend(message.name.as_deref());
    texts.extend(message.tool_call_id.as_deref());
    texts.extend(message.reasoning_content.as_deref());
    message.tool_calls.iter().flatten().for_each(|call| collect_texts(call, &mut texts));
    texts
}

/// All strings of a value, its keys among them.
pub fn collect_texts<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
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

/// Rewrites every string that [`texts`] lists.
pub fn map_texts(message: &mut TemplateMessage, map: &impl Fn(&str) -> String) {
    message.content = map(&message.content);
    let TemplateMessage { name, tool_call_id, reasoning_content, .. } = message;
    for text in [name, tool_call_id, reasoning_content].into_iter().flatten() {
        *text = map(text);
    }
    message.tool_calls.iter_mut().flatten().for_each(|call| rewrite_texts(call, map));
}

/// Rewrites every string that [`collect_texts`] lists.
pub fn rewrite_texts(value: &mut Value, map: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = map(text),
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite_texts(item, map)),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(key, mut value)| {
                    rewrite_texts(&mut value, map);
                    (map(&key), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text of a message: its string, or its text parts put together.
fn text_of(message: &Message, index: usize) -> Result<String> {
    let has_calls = message.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty());
    match &message.content {
        Some(content) => text_of_content(content, &format!("messages[{index}].content")),
        None if message.role == Role::Assistant && has_calls => Ok(String::new()),
        None => Err(Error::invalid(
            format!("messages[{index}].content"),
            format!(
                "messages[{index}] has no content; only an assistant message with tool calls may lack it"
            ),
        )),
    }
}

/// A string, or text parts put together; `path` is where they stand in the request.
fn text_of_content(content: &Content, path: &str) -> Result<String> {
    match content {
        Content::Text(text) => Ok(text.clone()),
        Content::Parts(parts) => parts
            .iter()
            .enumerate()
            .map(|(idx, part)| match (part.kind.as_str(), &part.text, &part.refusal) {
                ("text", Some(text), _) | ("refusal", _, Some(text)) => Ok(text.as_str()),
                (kind, ..) => Err(Error::invalid(
                    format!("{path}[{idx}]"),
                    format!("content part of type `{kind}` is not supported; send text parts, each with its `text`"),
                )),
            })
            .collect(),
    }
}

/// What the client predicts that the answer will be.
///
/// # Errors
/// When that is not text.
pub fn prediction(request: &ChatCompletionRequest) -> Result<Option<String>> {
    let prediction = request.prediction.as_ref();
    prediction.map(|prediction| text_of_content(&prediction.content, "prediction.content")).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai;
    use serde_json::json;

    fn messages(messages: Value) -> Result<Vec<TemplateMessage>> {
        let request: ChatCompletionRequest = openai::from_value(json!({ "messages": messages }))?;
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
    fn what_is_not_text_is_refused_by_place() {
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
    fn every_string_of_a_message_is_rewritten() {
        let call = json!({"id": "i", "type": "function", "function": {"name": "f", "arguments": "{\"a\": [\"b\"]}"}});
        let mut message = messages(json!([
            {"role": "assistant", "content": "c", "name": "n", "reasoning_content": "r", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "i", "content": "x"}
        ]))
        .unwrap()
        .remove(0);
        let before: Vec<String> = texts(&message).iter().map(|text| format!("<{text}>")).collect();
        map_texts(&mut message, &|text| format!("<{text}>"));
        assert_eq!(texts(&message), before);
    }
}
