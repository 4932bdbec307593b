//! A request as a chat request.

use super::content::TranslatedMessages;
use super::input_tools::{TranslatedTool, translate_choice, translate_tool};
use super::names::Origins;
use super::response::MessageForm;
use crate::anthropic::messages::{
    CountTokensRequest, Effort, InputThinkingMode, InputThread, InputToolMode, MessagesRequest, OutputFormat,
    ThinkingConfig, ThinkingDisplay,
};
use crate::error::{Error, Kind, Result};
use crate::openai::chat::{ChatCompletionRequest, ReasoningEffort, Role};
use crate::openai::generation_options::{
    GenerationOptions, JsonSchemaFormat, OneOrMany, ResponseFormat, ResponseFormatKind,
};

/// The name of a response format, which Anthropic's API does not have.
const FORMAT_NAME: &str = "output";

/// A request as a chat request.
pub struct MessagesTranslation {
    /// The chat request.
    pub chat: ChatCompletionRequest,
    /// The form of the response.
    pub form: MessageForm,
    /// Parameters that have no effect.
    pub ignored: Vec<String>,
    /// The origins of the parts of the chat request.
    pub origins: Origins,
}

/// Translates a request.
///
/// # Errors
/// When a part of it is not supported, or a parameter is missing or out of range; the error names it.
pub fn translate(request: MessagesRequest) -> Result<MessagesTranslation> {
    let MessagesRequest { stop_sequences, conversation, options } = request;
    let Some(max_tokens) = options.max_tokens else {
        return Err(Error::invalid(
            "max_tokens",
            "`max_tokens` is missing; send the most tokens to generate",
        ));
    };
    let budget = conversation.thinking.as_ref().and_then(|thinking| thinking.budget_tokens);
    if let Some(budget) = budget.filter(|budget| budget.get() >= max_tokens) {
        let message = format!(
            "`thinking.budget_tokens` is {budget}, but must be less than `max_tokens`, which is {max_tokens}"
        );
        return Err(Error::invalid("thinking.budget_tokens", message));
    }
    let mut translated = translate_prompt(conversation)?;
    translated.form.max_tokens = usize::try_from(max_tokens).unwrap_or(usize::MAX);
    let prompt_options = std::mem::take(&mut translated.chat.options);
    if prompt_options.response_format.is_some() && options.response_format.is_some() {
        let message =
            "`output_config.format` and `response_format` both constrain the response; send only one";
        return Err(Error::invalid("response_format", message));
    }
    translated.chat.options = GenerationOptions {
        model: prompt_options.model,
        response_format: prompt_options.response_format.or(options.response_format.clone()),
        stop: stop_strings(stop_sequences, options.stop.clone())?,
        // A limit of 0 asks for the prompt to be computed, which takes a token that is not sent.
        max_tokens: Some(max_tokens.max(1)),
        stream_options: None,
        n: None,
        ..options
    };
    Ok(translated)
}

/// The stop strings of a request, under either name.
fn stop_strings(own: Option<Vec<String>>, other: Option<OneOrMany>) -> Result<Option<OneOrMany>> {
    match (own.filter(|own| !own.is_empty()), other) {
        (Some(_), Some(_)) => {
            let message = "`stop_sequences` and `stop` are two names of one parameter; send only one";
            Err(Error::invalid("stop", message))
        }
        (own, other) => Ok(own.map(OneOrMany::Many).or(other)),
    }
}

/// Translates the part of a request that becomes the prompt, and the form of its response.
///
/// # Errors
/// When a part of it is not supported; the error names it.
pub fn translate_prompt(request: CountTokensRequest) -> Result<MessagesTranslation> {
    if request.thread == Some(InputThread::Continue) {
        let message = "this server keeps no conversations of this API; send all messages, without `thread`";
        return Err(Error::new(Kind::ThreadNotFound, message).with_param("thread"));
    }
    let TranslatedMessages { messages, origins, mut ignored } =
        TranslatedMessages::new(request.system.as_ref(), &request.messages)?;
    ignored.extend(request.thread.map(|_| "thread".to_owned()));
    let has_effort = request.output_config.as_ref().is_some_and(|output| output.effort.is_some());
    let effort = if has_effort { "output_config.effort" } else { "thinking" };
    let mut origins = Origins { messages: origins, tools: Vec::new(), effort };
    let mut tools = Vec::new();
    let mut never_called = Vec::new();
    for (idx, tool) in request.tools.iter().flatten().enumerate() {
        let path = format!("tools[{idx}]");
        match translate_tool(tool, &path)? {
            TranslatedTool::Function(tool) => {
                tools.push(tool);
                origins.tools.push(path);
            }
            TranslatedTool::NeverCalled => {
                never_called.extend(tool.name.clone());
                ignored.push(path);
            }
        }
    }
    let mut chat = ChatCompletionRequest {
        messages,
        tools: (!tools.is_empty()).then_some(tools),
        chat_template_kwargs: request.chat_template_kwargs,
        ..ChatCompletionRequest::default()
    };
    let last = chat.messages.last();
    if last.is_some_and(|last| last.role == Role::Assistant && last.tool_calls.is_none()) {
        chat.continue_final_message = Some(true);
    }
    if let Some(choice) = &request.tool_choice {
        if let Some(name) = choice
            .name
            .as_ref()
            .filter(|name| choice.kind == InputToolMode::Tool && never_called.contains(name))
        {
            let message = format!(
                "`tool_choice` names `{}`, a tool that Anthropic's servers run; this server has no such tool",
                crate::error::quote(name)
            );
            return Err(Error::invalid("tool_choice", message));
        }
        let (chosen, is_parallel) = translate_choice(choice)?;
        // Without tools there is nothing to choose from, which is only wrong if one has to be used.
        let is_free = matches!(choice.kind, InputToolMode::Auto | InputToolMode::None);
        chat.tool_choice = (chat.tools.is_some() || !is_free).then_some(chosen);
        chat.parallel_tool_calls = is_parallel;
    }
    let output = request.output_config.unwrap_or_default();
    chat.reasoning_effort = reasoning_effort(request.thinking.as_ref(), output.effort);
    let budget = request.thinking.as_ref().and_then(|thinking| thinking.budget_tokens);
    chat.thinking_budget = budget.map(|budget| i64::try_from(budget.get()).unwrap_or(i64::MAX));
    chat.options.model = request.model;
    chat.options.response_format = response_format(output.format, request.output_format)?;
    let display = request.thinking.as_ref().and_then(|thinking| thinking.display);
    let form =
        MessageForm { is_thinking_shown: display != Some(ThinkingDisplay::Omitted), max_tokens: usize::MAX };
    Ok(MessagesTranslation { chat, form, ignored, origins })
}

/// How much the model reasons; `None` leaves it to the model's template.
fn reasoning_effort(thinking: Option<&ThinkingConfig>, effort: Option<Effort>) -> Option<ReasoningEffort> {
    let effort = effort.map(|effort| match effort {
        Effort::Low => ReasoningEffort::Low,
        Effort::Medium => ReasoningEffort::Medium,
        Effort::High => ReasoningEffort::High,
        Effort::XHigh | Effort::Max => ReasoningEffort::XHigh,
    });
    match thinking.map(|thinking| thinking.kind) {
        Some(InputThinkingMode::Disabled) => Some(ReasoningEffort::None),
        Some(InputThinkingMode::Enabled) => effort.or(Some(ReasoningEffort::Medium)),
        Some(InputThinkingMode::Adaptive | InputThinkingMode::BetweenTools) | None => effort,
    }
}

/// The form that the response must have, under its name or its former one.
fn response_format(
    format: Option<OutputFormat>,
    former: Option<OutputFormat>,
) -> Result<Option<ResponseFormat>> {
    if format.is_some() && former.is_some() {
        let message =
            "`output_config.format` and `output_format` are two names of one parameter; send only one";
        return Err(Error::invalid("output_format", message));
    }
    Ok(format.or(former).map(|format| ResponseFormat {
        kind: ResponseFormatKind::JsonSchema,
        json_schema: Some(JsonSchemaFormat {
            name: FORMAT_NAME.to_owned(),
            description: None,
            schema: format.schema.map(serde_json::Value::Object),
            strict: Some(true),
        }),
        ..ResponseFormat::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn translated(fields: Value) -> Result<MessagesTranslation> {
        let mut body = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        translate(MessagesRequest::from_object(body.as_object().unwrap().clone())?)
    }

    #[test]
    fn parameters_have_the_same_meaning() {
        let tool = json!({"name": "f", "input_schema": {"type": "object"}});
        let MessagesTranslation { chat, form, ignored, .. } = translated(json!({
            "model": "m", "stop_sequences": ["a", "b"], "temperature": 0.5, "top_k": 3, "stream": true, "seed": 1,
            "tools": [{"type": "web_search_20250305", "name": "web_search"}, tool],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
            "thinking": {"type": "disabled", "display": null},
            "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {"type": "array"}}}
        }))
        .unwrap();
        let options = &chat.options;
        assert_eq!(options.model.as_deref(), Some("m"));
        assert_eq!(options.stop, Some(OneOrMany::Many(vec!["a".to_owned(), "b".to_owned()])));
        assert_eq!((options.temperature, options.top_k, options.seed), (Some(0.5), Some(3), Some(1)));
        assert_eq!((options.max_tokens, form.max_tokens, options.is_streamed()), (Some(9), 9, true));
        assert_eq!(chat.tools.unwrap().len(), 1);
        assert_eq!(chat.parallel_tool_calls, Some(false));
        assert_eq!(serde_json::to_value(chat.tool_choice).unwrap(), "required");
        assert_eq!(chat.reasoning_effort, Some(ReasoningEffort::None));
        let schema = options.response_format.as_ref().unwrap().json_schema.as_ref().unwrap();
        assert_eq!(schema.schema, Some(json!({"type": "array"})));
        assert_eq!(ignored, ["tools[0]"]);
    }

    #[test]
    fn thinking_and_effort_set_the_reasoning() {
        for (thinking, effort, expected) in [
            (json!(null), json!(null), None),
            (json!({"type": "adaptive"}), json!("high"), Some(ReasoningEffort::High)),
            (json!({"type": "enabled", "budget_tokens": 5}), json!(null), Some(ReasoningEffort::Medium)),
            (json!({"type": "enabled"}), json!("max"), Some(ReasoningEffort::XHigh)),
            (json!({"type": "between_tools"}), json!(null), None),
            (json!({"type": "disabled"}), json!("low"), Some(ReasoningEffort::None)),
        ] {
            let request = json!({"thinking": thinking, "output_config": {"effort": effort}});
            assert_eq!(translated(request).unwrap().chat.reasoning_effort, expected);
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (fields, param) in [
            (json!({"max_tokens": null}), "max_tokens"),
            (json!({"thinking": {"type": "enabled", "budget_tokens": 9}}), "thinking.budget_tokens"),
            (json!({"stop_sequences": ["a"], "stop": "b"}), "stop"),
            (json!({"tool_choice": {"type": "tool"}}), "tool_choice.name"),
            (
                json!({"tools": [{"type": "web_search_20250305", "name": "w"}], "tool_choice": {"type": "tool", "name": "w"}}),
                "tool_choice",
            ),
            (json!({"system": [{"type": "image"}]}), "system[0]"),
            (json!({"temperature": "warm"}), "temperature"),
            (json!({"output_format": {"type": "json_schema", "schema": true}}), "output_format.schema"),
            (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        ] {
            assert_eq!(translated(fields).map(drop).unwrap_err().param(), Some(param));
        }
    }
}
