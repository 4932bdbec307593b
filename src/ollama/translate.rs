//! Requests as chat requests and text completions.

use serde::Serialize;
use serde_json::{Map, Value};

use super::names::OllamaNames;
use super::params;
use super::requests::{
    OllamaChatRequest, OllamaGenerateRequest, OllamaGenerationFields, OllamaMessage, OllamaOptions,
    OllamaToolCall, Think, ThinkLevel,
};
use super::responses::{OllamaChat, OllamaParts, OllamaText, OutputMessage, OutputToolCall};
use crate::error::{Error, Result};
use crate::inference::grammar::forbid_additional_properties;
use crate::openai::chat::{
    ChatCompletionRequest, Content, FunctionCall, FunctionKind, Message, ReasoningEffort, Role, ToolCall,
};
use crate::openai::completions::CompletionRequest;
use crate::openai::embeddings::TextsOrTokens;
use crate::openai::from_value;
use crate::openai::generation_options::{
    GenerationOptions, JsonSchemaFormat, NO_TOKEN_LIMIT, ResponseFormat, ResponseFormatKind,
};
use crate::openai::params::ParamTable;

/// Ollama's sampling where a request does not set it.
const DEFAULT_TEMPERATURE: f32 = 0.8;
const DEFAULT_TOP_K: i64 = 40;
const DEFAULT_TOP_P: f32 = 0.9;
const DEFAULT_REPEAT_PENALTY: f32 = 1.1;

/// The largest `top_logprobs` of a text that is continued as it is.
const MAX_TEXT_LOGPROBS: u64 = 5;

/// The name of a response format, which Ollama's API does not have.
const FORMAT_NAME: &str = "output";

/// One of the two routes that generate, by the part of a response that only it has.
pub trait OllamaSurface: Serialize + Send + 'static {
    /// The route's path.
    const PATH: &'static str;
    /// Name of a request in the log.
    const LOG_NAME: &'static str;
    /// The treatment of the route's parameters.
    const PARAMS: ParamTable;

    /// Translates a request from its JSON object.
    ///
    /// # Errors
    /// When a field has the wrong form, or something in it is not supported; the error names it.
    fn translate(object: Map<String, Value>) -> Result<OllamaTranslation>;

    /// The part of a response, or of a line of a streamed one.
    fn from_parts(parts: OllamaParts) -> Self;
}

/// A translated request.
#[derive(Debug)]
pub struct OllamaTranslation {
    /// The request that generates the response.
    pub prompt: OllamaPrompt,
    /// Whether the request only loads the model.
    pub is_load: bool,
    /// Parameters that have no effect.
    pub ignored: Vec<String>,
    /// The names of the parts of the request.
    pub names: OllamaNames,
}

/// A request of another API that generates the same response.
#[derive(Debug)]
pub enum OllamaPrompt {
    /// A conversation.
    Chat(Box<ChatCompletionRequest>),
    /// A text that is continued as it is.
    Text(Box<CompletionRequest>),
}

impl OllamaTranslation {
    /// The options of the request.
    pub fn options(&self) -> &GenerationOptions {
        match &self.prompt {
            OllamaPrompt::Chat(request) => &request.options,
            OllamaPrompt::Text(request) => &request.options,
        }
    }
}

impl OllamaSurface for OllamaChat {
    const PATH: &'static str = "/api/chat";
    const LOG_NAME: &'static str = "ollama chat";
    const PARAMS: ParamTable = params::CHAT;

    fn translate(object: Map<String, Value>) -> Result<OllamaTranslation> {
        let body = Value::Object(object);
        // Read first, because serde loses the path of an error in a flattened field.
        let common: OllamaGenerationFields = from_value(&body)?;
        let OllamaChatRequest { model, messages: input, tools, .. } = from_value(body)?;
        let is_load = input.is_empty();
        check_keep_alive(&common, is_load)?;
        let mut names = OllamaNames::default();
        let messages = chat_messages(input, &mut names)?;
        let last = messages.last();
        let is_text = |last: &Message| last.role == Role::Assistant && last.tool_calls.is_none();
        let continue_final_message = last.is_some_and(is_text).then_some(true);
        let tools = tools.filter(|tools| !tools.is_empty());
        let chat =
            ChatCompletionRequest { messages, tools, continue_final_message, ..chat_request(model, common)? };
        let prompt = OllamaPrompt::Chat(Box::new(chat));
        Ok(OllamaTranslation { prompt, is_load, ignored: Vec::new(), names })
    }

    fn from_parts(OllamaParts { text, thinking, calls }: OllamaParts) -> Self {
        let tool_calls = calls.into_iter().map(OutputToolCall::from).collect();
        Self { message: OutputMessage { role: "assistant", content: text, thinking, tool_calls } }
    }
}

impl OllamaSurface for OllamaText {
    const PATH: &'static str = "/api/generate";
    const LOG_NAME: &'static str = "ollama generate";
    const PARAMS: ParamTable = params::GENERATE;

    fn translate(object: Map<String, Value>) -> Result<OllamaTranslation> {
        let body = Value::Object(object);
        // As above.
        let common: OllamaGenerationFields = from_value(&body)?;
        let OllamaGenerateRequest { model, prompt, system, suffix, raw, .. } = from_value(body)?;
        let [system, suffix] = [system, suffix].map(|text| text.filter(|text| !text.is_empty()));
        let is_load = prompt.is_empty() && suffix.is_none();
        check_keep_alive(&common, is_load)?;
        let mut ignored = Vec::new();
        // A request that only loads the model is a chat without messages.
        let is_raw = raw.unwrap_or(false) || suffix.is_some();
        let prompt = if is_raw && !is_load {
            ignored.extend(system.map(|_| "system".to_owned()));
            ignored.extend(common.think.map(|_| "think".to_owned()));
            OllamaPrompt::Text(Box::new(text_request(model, prompt, suffix, common)?))
        } else {
            let system = system.map(|text| text_message(Role::System, text));
            let messages = system.into_iter().chain([text_message(Role::User, prompt)]).collect();
            let chat = ChatCompletionRequest { messages, ..chat_request(model, common)? };
            OllamaPrompt::Chat(Box::new(chat))
        };
        Ok(OllamaTranslation { prompt, is_load, ignored, names: OllamaNames::default() })
    }

    fn from_parts(OllamaParts { text, thinking, .. }: OllamaParts) -> Self {
        Self { response: text, thinking }
    }
}

/// Refuses a request to unload the model.
fn check_keep_alive(common: &OllamaGenerationFields, is_load: bool) -> Result<()> {
    let is_zero = match &common.keep_alive {
        Some(Value::Number(seconds)) => seconds.as_f64() == Some(0.0),
        Some(Value::String(time)) => time.trim_end_matches(char::is_alphabetic) == "0",
        _ => false,
    };
    if is_load && is_zero {
        let message = "`keep_alive` is 0, which would unload the model; this server unloads models by its own \
                       `--idle-unload`";
        return Err(Error::invalid("keep_alive", message));
    }
    Ok(())
}

/// A chat request without messages.
fn chat_request(model: Option<String>, common: OllamaGenerationFields) -> Result<ChatCompletionRequest> {
    Ok(ChatCompletionRequest {
        logprobs: common.logprobs,
        top_logprobs: common.top_logprobs,
        reasoning_effort: common.think.map(reasoning_effort),
        options: generation_options(model, common)?,
        ..ChatCompletionRequest::default()
    })
}

/// A text to continue, up to the `suffix`.
fn text_request(
    model: Option<String>,
    prompt: String,
    suffix: Option<String>,
    common: OllamaGenerationFields,
) -> Result<CompletionRequest> {
    let top = common.top_logprobs.unwrap_or(0);
    let has_logprobs = common.logprobs.unwrap_or(false);
    if top > MAX_TEXT_LOGPROBS {
        let message = format!(
            "`top_logprobs` is {top}; with `raw` or `suffix`, at most {MAX_TEXT_LOGPROBS} are reported"
        );
        return Err(Error::invalid("top_logprobs", message));
    }
    if top > 0 && !has_logprobs {
        return Err(Error::invalid("top_logprobs", "`top_logprobs` needs `logprobs` to be true"));
    }
    Ok(CompletionRequest {
        prompt: Some(TextsOrTokens::Text(prompt)),
        suffix,
        logprobs: has_logprobs.then_some(top),
        options: generation_options(model, common)?,
        ..CompletionRequest::default()
    })
}

fn reasoning_effort(think: Think) -> ReasoningEffort {
    match think {
        Think::Switch(false) => ReasoningEffort::None,
        Think::Switch(true) | Think::Level(ThinkLevel::Medium) => ReasoningEffort::Medium,
        Think::Level(ThinkLevel::Low) => ReasoningEffort::Low,
        Think::Level(ThinkLevel::High) => ReasoningEffort::High,
        Think::Level(ThinkLevel::Max) => ReasoningEffort::Max,
    }
}

/// The options of a generation, with Ollama's defaults.
fn generation_options(model: Option<String>, common: OllamaGenerationFields) -> Result<GenerationOptions> {
    let OllamaOptions {
        num_predict,
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        stop,
        repeat_penalty,
        repeat_last_n,
        presence_penalty,
        frequency_penalty,
    } = common.options.unwrap_or_default();
    let token_limit = |n: i64| u64::try_from(n).ok().filter(|&n| n > 0).unwrap_or(NO_TOKEN_LIMIT);
    Ok(GenerationOptions {
        model,
        max_tokens: num_predict.map(token_limit),
        temperature: temperature.or(Some(DEFAULT_TEMPERATURE)),
        top_k: top_k.or(Some(DEFAULT_TOP_K)),
        top_p: top_p.or(Some(DEFAULT_TOP_P)),
        min_p,
        seed: seed.filter(|&seed| seed >= 0),
        stop,
        stream: Some(common.stream.unwrap_or(true)),
        presence_penalty,
        frequency_penalty,
        repeat_penalty: repeat_penalty.or(Some(DEFAULT_REPEAT_PENALTY)),
        repeat_last_n,
        response_format: response_format(common.format)?,
        ..GenerationOptions::default()
    })
}

/// The form that the response must have.
fn response_format(format: Option<Value>) -> Result<Option<ResponseFormat>> {
    match format {
        None => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) if name == "json" => {
            Ok(Some(ResponseFormat { kind: ResponseFormatKind::JsonObject, ..ResponseFormat::default() }))
        }
        Some(mut schema @ Value::Object(_)) => {
            // Clients expect what Ollama's own grammars allow.
            forbid_additional_properties(&mut schema);
            let schema = JsonSchemaFormat {
                name: FORMAT_NAME.to_owned(),
                description: None,
                schema: Some(schema),
                strict: None,
            };
            Ok(Some(ResponseFormat {
                kind: ResponseFormatKind::JsonSchema,
                json_schema: Some(schema),
                ..ResponseFormat::default()
            }))
        }
        Some(_) => Err(Error::invalid("format", "`format` must be `json` or a JSON schema")),
    }
}

fn text_message(role: Role, text: String) -> Message {
    Message { role, content: Some(Content::Text(text)), ..Message::default() }
}

/// Messages of a chat request, one for each of `input`. Results of tools get the id of the call that they belong to.
fn chat_messages(input: Vec<OllamaMessage>, names: &mut OllamaNames) -> Result<Vec<Message>> {
    // Calls without a result so far.
    let mut pending: Vec<ToolCall> = Vec::new();
    let mut messages = Vec::new();
    for (idx, message) in input.into_iter().enumerate() {
        let OllamaMessage { role, content, thinking, images, tool_calls, tool_name, tool_call_id } = message;
        if images.is_some_and(|images| !images.is_empty()) {
            let message = format!(
                "`messages[{idx}].images` has images, and this server reads only text; leave them out"
            );
            return Err(Error::invalid(format!("messages[{idx}].images"), message));
        }
        let calls = tool_calls.filter(|calls| !calls.is_empty());
        let calls = calls.map(|calls| chat_calls(calls, idx));
        let mut message = Message {
            tool_calls: calls.clone(),
            reasoning_content: thinking.filter(|thinking| !thinking.is_empty()),
            ..text_message(role, content.unwrap_or_default())
        };
        if role == Role::Tool {
            let position = position_of_call(&pending, tool_call_id.as_deref(), tool_name.as_deref());
            let Some(position) = position else {
                let message = format!(
                    "messages[{idx}] is the result of a tool that the assistant has not called in the message before it; \
                     send its `tool_calls`, too"
                );
                return Err(Error::invalid(format!("messages[{idx}]"), message));
            };
            if tool_call_id.is_none() {
                names.invented.push(format!("messages[{idx}].tool_call_id"));
            }
            message.tool_call_id = Some(pending.remove(position).id);
            message.name = tool_name;
        }
        pending.extend(calls.into_iter().flatten());
        messages.push(message);
    }
    Ok(messages)
}

/// The call of a result: the one of its id or else the first one of its function's name, or the first one if it has
/// neither.
fn position_of_call(pending: &[ToolCall], id: Option<&str>, name: Option<&str>) -> Option<usize> {
    match (id, name) {
        (Some(id), _) => pending.iter().position(|call| call.id == id),
        (None, Some(name)) => pending.iter().position(|call| call.function.name == name),
        (None, None) => (!pending.is_empty()).then_some(0),
    }
}

/// The calls of the message with the index `idx`, each with an id.
fn chat_calls(calls: Vec<OllamaToolCall>, idx: usize) -> Vec<ToolCall> {
    let call = |(n, call): (usize, OllamaToolCall)| {
        let function = call.function;
        let arguments = Value::Object(function.arguments).to_string();
        ToolCall {
            id: call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{idx}_{n}")),
            kind: FunctionKind::Function,
            function: FunctionCall { name: function.name, arguments },
        }
    };
    calls.into_iter().enumerate().map(call).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn translated<S: OllamaSurface>(body: Value) -> Result<OllamaTranslation> {
        S::translate(body.as_object().unwrap().clone())
    }

    fn chat(body: Value) -> ChatCompletionRequest {
        match translated::<OllamaChat>(body).unwrap().prompt {
            OllamaPrompt::Chat(chat) => *chat,
            OllamaPrompt::Text(text) => panic!("{text:?}"),
        }
    }

    #[test]
    fn options_have_the_same_meaning() {
        let chat = chat(json!({
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": false, "think": "high",
            "format": {"properties": {"n": {}}}, "logprobs": true, "top_logprobs": 2, "keep_alive": 0,
            "options": {"num_predict": 9, "temperature": 0, "top_k": 3, "min_p": 0.1, "seed": 7, "stop": ["a"],
                        "repeat_last_n": -1, "presence_penalty": 1, "frequency_penalty": -1}
        }));
        let options = &chat.options;
        assert_eq!((options.model.as_deref(), options.is_streamed()), (Some("m"), false));
        assert_eq!((options.max_tokens, options.temperature, options.top_k), (Some(9), Some(0.0), Some(3)));
        assert_eq!((options.top_p, options.repeat_penalty), (Some(0.9), Some(1.1)), "the defaults");
        assert_eq!((options.min_p, options.seed, options.repeat_last_n), (Some(0.1), Some(7), Some(-1)));
        assert_eq!((options.presence_penalty, options.frequency_penalty), (Some(1.0), Some(-1.0)));
        assert_eq!((chat.logprobs, chat.top_logprobs), (Some(true), Some(2)));
        assert_eq!(chat.reasoning_effort, Some(ReasoningEffort::High));
        let schema = options.response_format.as_ref().unwrap().json_schema.as_ref().unwrap();
        assert_eq!(schema.schema, Some(json!({"properties": {"n": {}}, "additionalProperties": false})));
    }

    #[test]
    fn limits_and_seeds_that_are_none_are_left_out() {
        for (n, limit) in
            [(json!(-1), Some(NO_TOKEN_LIMIT)), (json!(0), Some(NO_TOKEN_LIMIT)), (json!(null), None)]
        {
            let chat = chat(json!({"options": {"num_predict": n, "seed": -1}}));
            assert_eq!((chat.options.max_tokens, chat.options.seed), (limit, None));
            assert!(chat.options.is_streamed(), "the default");
        }
    }

    #[test]
    fn results_find_their_calls() {
        let call = |name: &str| json!({"function": {"name": name, "arguments": {"x": 1}}});
        let body = json!({"messages": [
            {"role": "assistant", "thinking": "Hm.", "tool_calls": [call("f"), call("g"), {"id": "c", "function": {"name": "f"}}]},
            {"role": "tool", "content": "1", "tool_name": "g"},
            {"role": "tool", "content": "2", "tool_call_id": "c"},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "Well"}
        ]});
        let translation = translated::<OllamaChat>(body.clone()).unwrap();
        assert_eq!(translation.names.invented, ["messages[1].tool_call_id", "messages[3].tool_call_id"]);
        let chat = chat(body);
        let calls = chat.messages[0].tool_calls.as_ref().unwrap();
        assert_eq!(calls[0].function.arguments, "{\"x\":1}");
        assert_eq!(calls[2].function.arguments, "{}");
        let ids = chat.messages[1..4].iter().map(|message| message.tool_call_id.as_deref());
        assert_eq!(ids.collect::<Vec<_>>(), [Some("call_0_1"), Some("c"), Some("call_0_0")]);
        assert_eq!(chat.messages[0].reasoning_content.as_deref(), Some("Hm."));
        assert_eq!(chat.continue_final_message, Some(true));
        let lost = json!({"messages": [{"role": "tool", "content": "1", "tool_name": "f"}]});
        assert_eq!(translated::<OllamaChat>(lost).unwrap_err().param(), Some("messages[0]"));
    }

    #[test]
    fn prompts_are_chats_unless_they_are_raw() {
        let prompt = |body: Value| translated::<OllamaText>(body).unwrap();
        match prompt(json!({"prompt": "hi", "system": "Be brief.", "suffix": ""})).prompt {
            OllamaPrompt::Chat(chat) => {
                assert_eq!(
                    chat.messages.iter().map(|m| m.role).collect::<Vec<_>>(),
                    [Role::System, Role::User]
                );
            }
            OllamaPrompt::Text(text) => panic!("{text:?}"),
        }
        for fields in [json!({"raw": true, "suffix": null}), json!({"suffix": "s"})] {
            let mut body = json!({"prompt": "hi", "system": "Be brief.", "think": false, "logprobs": true});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let translation = prompt(body);
            assert_eq!(translation.ignored, ["system", "think"]);
            assert!(matches!(translation.prompt, OllamaPrompt::Text(text) if text.logprobs == Some(0)));
        }
    }

    #[test]
    fn empty_requests_only_load() {
        for (body, is_load) in [
            (json!({}), true),
            (json!({"raw": true}), true),
            (json!({"prompt": "x"}), false),
            (json!({"suffix": "x"}), false),
        ] {
            assert_eq!(translated::<OllamaText>(body).unwrap().is_load, is_load);
        }
        assert!(translated::<OllamaChat>(json!({"model": "m", "keep_alive": "5m"})).unwrap().is_load);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let image = json!([{"role": "user", "content": "x", "images": ["aGk="]}]);
        for (body, param) in [
            (json!({"messages": image}), "messages[0].images"),
            (json!({"format": "yaml"}), "format"),
            (json!({"format": 5}), "format"),
            (json!({"think": "hard"}), "think"),
            (json!({"keep_alive": 0}), "keep_alive"),
            (json!({"keep_alive": "0s"}), "keep_alive"),
            (json!({"options": {"temperature": "warm"}}), "options.temperature"),
            (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
        ] {
            assert_eq!(translated::<OllamaChat>(body.clone()).unwrap_err().param(), Some(param), "{body}");
        }
        for top in [json!({"top_logprobs": 6, "logprobs": true}), json!({"top_logprobs": 1})] {
            let mut body = json!({"prompt": "x", "raw": true});
            body.as_object_mut().unwrap().extend(top.as_object().unwrap().clone());
            assert_eq!(translated::<OllamaText>(body).unwrap_err().param(), Some("top_logprobs"));
        }
    }
}
