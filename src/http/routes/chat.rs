//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::chat::{CacheStatus, ChatStream, ResponseCache};
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject};
use crate::http::generation_response::{
    self, ChoicePart, ChunkEncoder, CompletedChoice, Envelope, RequestLog,
};
use crate::http::middleware::request_id::RequestId;
use crate::http::retry::dedup::{Attempt, PendingResponse, RetryDedup};
use crate::http::retry::heartbeat;
use crate::openai::chat::{
    AssistantMessage, ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, Choice, ChoiceLogprobs,
    ChunkChoice, Delta, Usage,
};
use crate::openai::params;

/// Says, where answers are kept, whether this one was given before: `hit` or `miss`.
const CACHE: &str = "x-cache";

/// Answers a conversation, whole or as a stream.
pub async fn completions(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(dedup): Extension<RetryDedup>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let tenant = generation_response::tenant_from_headers(&headers);
    let attempt = Attempt::from_request(&headers, &tenant, "/v1/chat/completions", &body.0);
    let (object, ignored) = body.check_params(params::CHAT)?;
    let request = ChatCompletionRequest::from_object(object)?;
    let streams = request.options.is_streamed();
    let include_usage = request.options.include_usage();
    let logprobs = request.logprobs.unwrap_or(false);
    let heartbeat = app.limits().heartbeat;
    let log = RequestLog::new(request_id.clone(), "chat");
    let begun = begin(app, request, tenant, ignored);
    if streams {
        let (answer, envelope, headers) = begun.await?;
        return Ok((
            headers,
            generation_response::stream_events(answer, envelope, ChatChunkEncoder, include_usage, log),
        )
            .into_response());
    }
    let work = async move {
        let (answer, envelope, headers) = begun.await?;
        Ok(PendingResponse::new(headers, whole(answer, envelope, logprobs, log)))
    };
    heartbeat::respond(&dedup, attempt, heartbeat, request_id, work).await
}

/// Has the model begin its answer, or finds one that was given before.
async fn begin(
    app: App,
    request: ChatCompletionRequest,
    tenant: Arc<str>,
    mut ignored: IgnoredParams,
) -> Result<(ChatStream, Envelope, HeaderMap)> {
    let slot = app.chat_slot(request.options.model.as_deref())?;
    let model_id = slot.served().id().to_owned();
    let kept =
        app.responses().and_then(|kept| Some((kept, ResponseCache::key(&tenant, &model_id, &request)?)));
    let known = kept
        .as_ref()
        .and_then(|(kept, key)| ChatStream::from_cache(kept, key, slot.fingerprint().as_deref()));
    let answer = match known {
        Some(answer) => answer,
        None => {
            let model = app.chat_model(slot).await?;
            let admission = model.admit()?;
            let mut answer = app.compute(move || model.start_chat(admission, &request, tenant)).await??;
            if let Some((kept, key)) = &kept {
                answer.record_into(kept, key.clone());
            }
            answer
        }
    };
    ignored.extend(answer.ignored_fields());
    let mut headers = HeaderMap::new();
    ignored.insert_into(&mut headers);
    if let Some(status) = answer.cache_status() {
        let status = match status {
            CacheStatus::Hit => "hit",
            CacheStatus::Miss => "miss",
        };
        headers.insert(CACHE, HeaderValue::from_static(status));
    }
    let envelope = Envelope::new("chatcmpl", model_id, &answer);
    Ok((answer, envelope, headers))
}

/// Whether the answer reports probabilities is what `logprobs` says.
async fn whole(
    answer: ChatStream,
    envelope: Envelope,
    logprobs: bool,
    log: RequestLog,
) -> Result<ChatCompletion> {
    let (choices, usage) = generation_response::collect_choices(answer, log).await?;
    let choice = |(index, choice): (usize, CompletedChoice)| {
        let CompletedChoice { text, reasoning, calls: tool_calls, logprobs: content, reason } = choice;
        let reasoning_content = Some(reasoning).filter(|reasoning| !reasoning.is_empty());
        let text = Some(text).filter(|text| tool_calls.is_empty() || !text.is_empty());
        let message = AssistantMessage {
            role: "assistant",
            content: text,
            refusal: None,
            reasoning_content,
            tool_calls,
        };
        let logprobs = logprobs.then_some(ChoiceLogprobs { content, refusal: None });
        Choice { index, message, logprobs, finish_reason: reason }
    };
    let Envelope { id, created, model, system_fingerprint } = envelope;
    let choices = choices.into_iter().enumerate().map(choice).collect();
    Ok(ChatCompletion { id, object: "chat.completion", created, model, choices, usage, system_fingerprint })
}

/// Chunks of a chat completion.
struct ChatChunkEncoder;

impl ChunkEncoder for ChatChunkEncoder {
    type Chunk = ChatCompletionChunk;

    fn encode(
        &mut self,
        envelope: &Envelope,
        part: Option<(usize, ChoicePart)>,
        usage: Option<Option<Usage>>,
    ) -> Option<ChatCompletionChunk> {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let choice = match part {
            None => None,
            Some((index, part)) => {
                let (delta, logprobs, finish_reason) = match part {
                    ChoicePart::Start => {
                        let (role, content) = (Some("assistant"), Some(String::new()));
                        (Delta { role, content, ..Delta::default() }, None, None)
                    }
                    // It is held back while it may be a tag.
                    ChoicePart::Text { text, reasoning, calls, logprobs: None }
                        if text.is_empty() && reasoning.is_empty() && calls.is_empty() =>
                    {
                        return None;
                    }
                    ChoicePart::Text { text, reasoning, calls: tool_calls, logprobs } => {
                        let (content, reasoning_content) = (given(text), given(reasoning));
                        (Delta { content, reasoning_content, tool_calls, ..Delta::default() }, logprobs, None)
                    }
                    ChoicePart::End(reason) => (Delta::default(), None, Some(reason)),
                };
                Some(ChunkChoice { index, delta, logprobs, finish_reason })
            }
        };
        let Envelope { id, created, model, system_fingerprint } = envelope.clone();
        let choices = choice.into_iter().collect();
        let object = "chat.completion.chunk";
        Some(ChatCompletionChunk { id, object, created, model, choices, system_fingerprint, usage })
    }
}
