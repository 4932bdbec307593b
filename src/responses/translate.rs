//! A request of this API as one of the chat layer, and the response that repeats its settings.

use serde_json::{Value, json};

use super::builder::OutputSettings;
use super::input::{ContextItem, item_type, messages_from_items};
use super::reasoning_blob::BlobSigner;
use super::tools::OfferedTools;
use crate::error::{Error, Kind, Result};
use crate::openai::chat::{ChatCompletionRequest, ReasoningOptions, ToolChoice};
use crate::openai::generation_options::{
    GenerationOptions, JsonSchemaFormat, ResponseFormat, ResponseFormatKind,
};
use crate::openai::responses::output::{ConversationId, ResponseObject, ResponseStatus};
use crate::openai::responses::{
    ConversationRef, JsonMap, ResponseInput, ResponseReasoning, ResponsesRequest, SummaryMode, TextFormat,
    TruncationMode, plain_text_format,
};

/// Additional outputs that are honored.
const ENCRYPTED_REASONING: &str = "reasoning.encrypted_content";
const TEXT_LOGPROBS: &str = "message.output_text.logprobs";

/// A request, translated.
pub struct TranslatedRequest {
    /// The request of the chat layer.
    pub chat: ChatCompletionRequest,
    /// The tools that may be called.
    pub tools: OfferedTools,
    /// The parts of the response that are asked for.
    pub settings: OutputSettings,
    /// Paths of what has no effect.
    pub ignored: Vec<String>,
}

/// The items of `input`, each with its path.
pub fn input_items(input: Option<&ResponseInput>) -> Vec<ContextItem> {
    let item = |(item, path): (JsonMap, String)| ContextItem { item, path, is_stored: false };
    let message = |text: &String| {
        let message =
            json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]});
        message.as_object().cloned().unwrap_or_default()
    };
    match input {
        None => Vec::new(),
        Some(ResponseInput::Text(text)) => vec![item((message(text), "input".to_owned()))],
        Some(ResponseInput::Items(items)) => {
            let paths = (0..).map(|idx| format!("input[{idx}]"));
            items.iter().cloned().zip(paths).map(item).collect()
        }
    }
}

/// Translates a request whose conversation is `items`, those of earlier turns included.
///
/// # Errors
/// When a field or an item is malformed or not supported; the error names it by this API's name.
pub fn translate(
    request: &ResponsesRequest,
    items: &[ContextItem],
    signer: &BlobSigner,
) -> Result<TranslatedRequest> {
    let mut ignored = Vec::new();
    let mut tools = OfferedTools::read(request.tools.as_deref().unwrap_or_default(), "tools", &mut ignored)?;
    for ContextItem { item, path, .. } in items {
        if item_type(item, path)? == "additional_tools" {
            let more: Vec<JsonMap> = item
                .get("tools")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|tool| tool.as_object().cloned())
                .collect();
            tools.add(&more, &format!("{path}.tools"), &mut ignored)?;
        }
    }
    let messages = messages_from_items(request.instructions.as_deref(), items, &tools, signer, &mut ignored)?;
    if messages.is_empty() {
        return Err(Error::invalid("input", "`input` is missing; send a text or at least one item"));
    }
    let include = |name: &str| request.include.iter().flatten().any(|included| included == name);
    let has_logprobs = include(TEXT_LOGPROBS) || request.top_logprobs.is_some_and(|n| n > 0);
    let offered = tools.for_chat()?;
    let chat = ChatCompletionRequest {
        messages,
        max_completion_tokens: request.max_output_tokens,
        logprobs: has_logprobs.then_some(true),
        top_logprobs: request.top_logprobs.filter(|_| has_logprobs),
        reasoning: request.reasoning.as_ref().map(chat_reasoning),
        tool_choice: chat_choice(request, &tools)?,
        tools: Some(offered).filter(|offered| !offered.is_empty()),
        parallel_tool_calls: request.parallel_tool_calls,
        options: chat_options(request)?,
        ..ChatCompletionRequest::default()
    };
    ignored.extend(hints_without_effect(request));
    crate::openai::check_metadata(request.metadata.iter().flatten())?;
    let is_summary = request.reasoning.as_ref().and_then(summary_mode).is_some();
    let signer = include(ENCRYPTED_REASONING).then(|| signer.clone());
    Ok(TranslatedRequest {
        chat,
        tools,
        settings: OutputSettings { is_summary, has_logprobs, signer },
        ignored,
    })
}

fn chat_choice(request: &ResponsesRequest, tools: &OfferedTools) -> Result<Option<ToolChoice>> {
    let Some(choice) = request.tool_choice.as_ref().filter(|choice| !choice.is_null()) else {
        return Ok(None);
    };
    let choice = tools.choice_for_chat(choice)?;
    let choice = crate::openai::from_value(choice).map_err(|e| e.with_param("tool_choice"))?;
    Ok(Some(choice))
}

/// The options of the chat request. The stream is this API's own, and so is the form of the text.
fn chat_options(request: &ResponsesRequest) -> Result<GenerationOptions> {
    let mut options = GenerationOptions { stream: None, stream_options: None, ..request.options.clone() };
    if let Some(format) = request.text.as_ref().and_then(|text| text.format.as_ref()) {
        let is_text = format.kind == ResponseFormatKind::Text;
        if options.response_format.is_some() && !is_text {
            let message = "`text.format` and `response_format` both set the form of the text; send only one";
            return Err(Error::invalid("response_format", message));
        }
        if !is_text {
            options.response_format = Some(response_format(format)?);
        }
    }
    if request.truncation == Some(TruncationMode::Auto) && options.truncate_prompt_tokens.is_none() {
        options.truncate_prompt_tokens = Some(-1);
    }
    Ok(options)
}

fn response_format(format: &TextFormat) -> Result<ResponseFormat> {
    let TextFormat { kind, name, description, schema, strict } = format.clone();
    if kind == ResponseFormatKind::JsonSchema && schema.is_none() {
        return Err(Error::invalid(
            "text.format.schema",
            "`text.format.schema` is missing; send the JSON schema",
        ));
    }
    // A schema without a name is as good as one with.
    let name = name.unwrap_or_else(|| "response".to_owned());
    let beside = schema.clone().filter(|_| kind == ResponseFormatKind::JsonObject);
    let json_schema = JsonSchemaFormat { name, description, schema, strict };
    let json_schema = (kind == ResponseFormatKind::JsonSchema).then_some(json_schema);
    // Built from JSON, so that fields which the chat layer adds keep their defaults.
    let value = json!({"type": kind, "json_schema": json_schema, "schema": beside});
    crate::openai::from_value(value).map_err(|e| e.with_param("text.format"))
}

fn chat_reasoning(reasoning: &ResponseReasoning) -> ReasoningOptions {
    let &ResponseReasoning { effort, max_tokens, enabled, .. } = reasoning;
    ReasoningOptions { effort, max_tokens, enabled }
}

fn summary_mode(reasoning: &ResponseReasoning) -> Option<SummaryMode> {
    reasoning.summary.or(reasoning.generate_summary).filter(|mode| *mode != SummaryMode::None)
}

/// Paths of known hints that change nothing.
fn hints_without_effect(request: &ResponsesRequest) -> Vec<String> {
    let mut ignored = Vec::new();
    let verbosity = request.text.as_ref().and_then(|text| text.verbosity.as_ref());
    if verbosity.is_some_and(|verbosity| !verbosity.is_null() && verbosity != "medium") {
        ignored.push("text.verbosity".to_owned());
    }
    for (idx, name) in request.include.iter().flatten().enumerate() {
        if name != ENCRYPTED_REASONING && name != TEXT_LOGPROBS {
            ignored.push(format!("include[{idx}]"));
        }
    }
    ignored
}

/// A response without output, which repeats the settings of its request.
pub fn blank_response(request: &ResponsesRequest, id: String, model: String, now: u64) -> ResponseObject {
    let text = request.text.clone().unwrap_or_default();
    let mut text = json!({"format": text.format, "verbosity": text.verbosity});
    if text["format"].is_null() {
        text["format"] = plain_text_format();
    }
    if text["verbosity"].is_null() {
        text["verbosity"] = "medium".into();
    }
    let reasoning = request.reasoning.clone().unwrap_or_default();
    ResponseObject {
        id,
        object: "response".to_owned(),
        created_at: now,
        completed_at: None,
        status: ResponseStatus::InProgress,
        background: request.background.unwrap_or(false),
        conversation: request
            .conversation
            .as_ref()
            .map(|conversation| ConversationId { id: conversation.id().to_owned() }),
        error: None,
        incomplete_details: None,
        instructions: request.instructions.clone(),
        max_output_tokens: request.max_output_tokens,
        max_tool_calls: request.max_tool_calls,
        metadata: json!(request.metadata.clone().unwrap_or_default()),
        model,
        output: Vec::new(),
        parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
        previous_response_id: request.previous_response_id.clone(),
        prompt_cache_key: request.prompt_cache_key.clone(),
        reasoning: json!({"effort": reasoning.effort, "summary": summary_mode(&reasoning)}),
        safety_identifier: request.safety_identifier.clone(),
        service_tier: "default".to_owned(),
        store: request.store.unwrap_or(true),
        temperature: request.options.temperature.unwrap_or(1.0),
        text,
        tool_choice: request
            .tool_choice
            .clone()
            .filter(|choice| !choice.is_null())
            .unwrap_or_else(|| "auto".into()),
        tools: request.tools.iter().flatten().map(shown_tool).collect(),
        top_logprobs: request.top_logprobs.unwrap_or(0),
        top_p: request.options.top_p.unwrap_or(1.0),
        truncation: if request.truncation == Some(TruncationMode::Auto) { "auto" } else { "disabled" }
            .to_owned(),
        usage: None,
        user: request.user.clone(),
    }
}

/// A tool as the response repeats it: a function always has its schema and `strict`.
fn shown_tool(tool: &JsonMap) -> Value {
    let mut tool = tool.clone();
    if tool.get("type").is_some_and(|kind| kind == "function") {
        for key in ["parameters", "strict"] {
            tool.entry(key).or_insert(Value::Null);
        }
    }
    Value::Object(tool)
}

/// Names of the chat layer's parameters, and of this API's: the longest of those that match counts.
const RENAMED: [(&str, &str); 7] = [
    ("messages", "input"),
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format.json_schema.name", "text.format.name"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("truncate_prompt_tokens", "truncation"),
];

/// An error of the chat layer with this API's names of parameters.
pub fn with_own_names(e: Error, request: &ResponsesRequest) -> Error {
    if !matches!(e.kind(), Kind::InvalidRequest | Kind::ContextLengthExceeded) {
        return e;
    }
    // Requests may have these of the chat layer's parameters, too.
    let is_sent = |name: &str| match name {
        "response_format" => request.options.response_format.is_some(),
        "truncate_prompt_tokens" => request.options.truncate_prompt_tokens.is_some(),
        _ => false,
    };
    let renamed = |text: &str| {
        RENAMED
            .iter()
            .filter(|(theirs, _)| !is_sent(theirs))
            .fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
    };
    let error = Error::new(e.kind(), renamed(&e.to_string()));
    match e.param() {
        // Items become messages of other indices.
        Some(param) if param.starts_with("messages") => error.with_param("input"),
        Some(param) => error.with_param(renamed(param)),
        None => error,
    }
}

/// Whether a request refers to a conversation in two ways.
///
/// # Errors
/// When it does.
pub fn check_references(previous: Option<&str>, conversation: Option<&ConversationRef>) -> Result<()> {
    if previous.is_some() && conversation.is_some() {
        let message =
            "`previous_response_id` and `conversation` both name the conversation to continue; send only one";
        return Err(Error::invalid("previous_response_id", message));
    }
    Ok(())
}
