//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use serde::Serialize;
use uuid::Uuid;

use super::error::ApiError;
use super::extract::JsonObject;
use super::request_id::RequestId;
use crate::app::{App, unix_time};
use crate::chat::{ChatEvent, ChatStream, Figures};
use crate::error::{Error, Result};
use crate::openai::chat::{
    AssistantMessage, ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, Choice, ChoiceLogprobs,
    ChunkChoice, Delta, FinishReason, Usage,
};
use crate::openai::params;

/// A comment this often keeps a silent stream alive; both SDKs skip comments.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Answers a conversation, whole or as a stream.
pub async fn completions(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, mut ignored) = body.read::<ChatCompletionRequest>(params::CHAT)?;
    let slot = app.chat_slot(request.model.as_deref())?;
    let model = app.chat_model(slot).await?;
    let envelope = Envelope {
        id: format!("chatcmpl-{}", Uuid::new_v4().simple()),
        created: unix_time(),
        model: slot.served().id().to_owned(),
        system_fingerprint: model.fingerprint().to_owned(),
    };
    let streams = request.stream.unwrap_or(false);
    let include_usage = request.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false);
    let logprobs = request.logprobs.unwrap_or(false).then(ChoiceLogprobs::default);
    let admission = model.admit()?;
    let tenant = tenant(&headers);
    let answer = app.compute(move || model.answer(admission, &request, tenant)).await??;
    ignored.extend(answer.ignored_fields());
    let log = RequestLog { request_id, ended: false };
    let mut response = if streams {
        stream(answer, envelope, include_usage, log)
    } else {
        Json(whole(answer, envelope, logprobs, log).await?).into_response()
    };
    ignored.name_in(&mut response);
    Ok(response)
}

/// Whose request it is: whoever sends the same key. What the key is worth is not asked here.
fn tenant(headers: &HeaderMap) -> Arc<str> {
    let key = headers.get(AUTHORIZATION).map(|key| String::from_utf8_lossy(key.as_bytes()));
    key.unwrap_or_default().into()
}

/// What every object of one answer carries.
#[derive(Clone)]
struct Envelope {
    id: String,
    created: u64,
    model: String,
    system_fingerprint: String,
}

/// `logprobs` is where those of the answer go, if they were asked for.
async fn whole(
    mut answer: ChatStream,
    envelope: Envelope,
    mut logprobs: Option<ChoiceLogprobs>,
    mut log: RequestLog,
) -> Result<ChatCompletion> {
    let mut content = String::new();
    while let Some(event) = answer.next().await {
        match event {
            ChatEvent::Content { text, logprobs: more } => {
                content += &text;
                if let (Some(all), Some(more)) = (&mut logprobs, more) {
                    all.content.extend(more.content);
                }
            }
            ChatEvent::Finished { reason, usage, figures } => {
                log.finished(&usage, &figures);
                let message = AssistantMessage { role: "assistant", content: Some(content), refusal: None };
                return Ok(ChatCompletion {
                    id: envelope.id,
                    object: "chat.completion",
                    created: envelope.created,
                    model: envelope.model,
                    choices: vec![Choice { index: 0, message, logprobs, finish_reason: reason }],
                    usage,
                    system_fingerprint: envelope.system_fingerprint,
                });
            }
            ChatEvent::Failed(e) => {
                log.ended = true;
                return Err(e);
            }
        }
    }
    log.ended = true;
    Err(Error::internal("the engine ended without an answer"))
}

/// Server-sent events: the role at once, before the prompt is computed; then content; then the
/// reason it ended, usage where it was asked for, and `[DONE]`.
fn stream(answer: ChatStream, envelope: Envelope, include_usage: bool, log: RequestLog) -> Response {
    let mut state =
        StreamState { answer, envelope, include_usage, log, pending: VecDeque::new(), ended: false };
    let role = Delta { role: Some("assistant"), content: Some(String::new()) };
    state.push_choice(role, None, None);
    let events = stream::unfold(state, |mut state| async move {
        while state.pending.is_empty() && !state.ended {
            match state.answer.next().await {
                Some(event) => state.take(event),
                None => state.take(ChatEvent::Failed(Error::internal("the engine ended without an answer"))),
            }
        }
        let event = state.pending.pop_front()?;
        Some((Ok::<_, Infallible>(event), state))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(PING_INTERVAL).text("ping")).into_response()
}

struct StreamState {
    answer: ChatStream,
    envelope: Envelope,
    include_usage: bool,
    log: RequestLog,
    pending: VecDeque<Event>,
    ended: bool,
}

impl StreamState {
    fn take(&mut self, event: ChatEvent) {
        match event {
            ChatEvent::Content { text, logprobs } => {
                self.push_choice(Delta { role: None, content: Some(text) }, logprobs, None);
            }
            ChatEvent::Finished { reason, usage, figures } => {
                self.log.finished(&usage, &figures);
                self.push_choice(Delta::default(), None, Some(reason));
                if self.include_usage {
                    self.push_chunk(Vec::new(), Some(usage));
                }
                self.pending.push_back(Event::default().data("[DONE]"));
                self.ended = true;
            }
            ChatEvent::Failed(e) => {
                self.log.failed(&e);
                self.push(&ApiError::from(e).into_body());
                self.ended = true;
            }
        }
    }

    fn push_choice(
        &mut self,
        delta: Delta,
        logprobs: Option<ChoiceLogprobs>,
        finish_reason: Option<FinishReason>,
    ) {
        self.push_chunk(vec![ChunkChoice { index: 0, delta, logprobs, finish_reason }], None);
    }

    fn push_chunk(&mut self, choices: Vec<ChunkChoice>, usage: Option<Usage>) {
        let Envelope { id, created, model, system_fingerprint } = self.envelope.clone();
        let usage = self.include_usage.then_some(usage);
        let object = "chat.completion.chunk";
        self.push(&ChatCompletionChunk { id, object, created, model, choices, system_fingerprint, usage });
    }

    fn push(&mut self, data: &impl Serialize) {
        match serde_json::to_string(data) {
            Ok(json) => self.pending.push_back(Event::default().data(json)),
            Err(e) => tracing::error!(error = %e, "an event could not be written"),
        }
    }
}

/// One line per request, when its answer ends: finished, failed, or left by its client.
///
/// hyper drops an answer, and this with it, when the client's side of the connection ends, even if
/// only its sending side. It does not look while another request of the same client waits: then the
/// answer goes on until a write fails.
struct RequestLog {
    request_id: RequestId,
    ended: bool,
}

impl RequestLog {
    fn finished(&mut self, usage: &Usage, figures: &Figures) {
        self.ended = true;
        let Figures { timings, repeat_penalty } = figures;
        let rate = |n: usize, time: Duration| (n as f64 / time.as_secs_f64().max(1e-9)).round();
        let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        tracing::info!(
            id = self.request_id.as_str(),
            queue_ms = ms(timings.queue),
            prompt_tokens = usage.prompt_tokens,
            prefill_ms = ms(timings.prefill),
            prefill_tok_s = rate(usage.prompt_tokens, timings.prefill),
            completion_tokens = usage.completion_tokens,
            decode_ms = ms(timings.decode),
            // The first token came out of the prefill.
            decode_tok_s = rate(usage.completion_tokens.saturating_sub(1), timings.decode),
            repeat_penalty_hits = repeat_penalty.hits,
            repeat_penalty_updates = repeat_penalty.updates,
            "chat"
        );
    }

    /// An error after the stream has begun; one before is an answer of its own, which is logged as
    /// such.
    fn failed(&mut self, e: &Error) {
        self.ended = true;
        tracing::error!(id = self.request_id.as_str(), error = %e, "chat failed in mid-stream");
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.ended {
            tracing::info!(id = self.request_id.as_str(), "chat cancelled: the client has gone away");
        }
    }
}
