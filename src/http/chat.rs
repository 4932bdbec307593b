//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
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
use crate::chat::{ChatEvent, ChatStream, Figures, ResponseCache};
use crate::error::{Error, Result};
use crate::openai::chat::{
    AssistantMessage, ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, Choice, ChoiceLogprobs,
    ChunkChoice, Delta, FinishReason, Usage,
};
use crate::openai::params;

/// A comment this often keeps a silent stream alive; both SDKs skip comments.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Says, where answers are kept, whether this one was given before: `hit` or `miss`.
const CACHE: &str = "x-cache";

/// Answers a conversation, whole or as a stream.
pub async fn completions(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, mut ignored) = body.read::<ChatCompletionRequest>(params::CHAT)?;
    let slot = app.chat_slot(request.model.as_deref())?;
    let model_id = slot.served().id().to_owned();
    let tenant = tenant(&headers);
    let streams = request.stream.unwrap_or(false);
    let include_usage = request.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false);
    let logprobs = request.logprobs.unwrap_or(false);
    let kept =
        app.responses().and_then(|kept| Some((kept, ResponseCache::key(&tenant, &model_id, &request)?)));
    let known =
        kept.as_ref().and_then(|(kept, key)| ChatStream::find(kept, key, slot.fingerprint().as_deref()));
    let answer = match known {
        Some(answer) => answer,
        None => {
            let model = app.chat_model(slot).await?;
            let admission = model.admit()?;
            let mut answer = app.compute(move || model.answer(admission, &request, tenant)).await??;
            if let Some((kept, key)) = &kept {
                answer.record(kept, key.clone());
            }
            answer
        }
    };
    ignored.extend(answer.ignored_fields());
    let envelope = Envelope {
        id: format!("chatcmpl-{}", Uuid::new_v4().simple()),
        created: unix_time(),
        model: model_id,
        system_fingerprint: answer.fingerprint().to_owned(),
    };
    let cache = kept.map(|_| HeaderValue::from_static(if answer.is_cached() { "hit" } else { "miss" }));
    let log = RequestLog { request_id, n_running: answer.n_choices() };
    let mut response = if streams {
        stream(answer, envelope, include_usage, log)
    } else {
        Json(whole(answer, envelope, logprobs, log).await?).into_response()
    };
    ignored.name_in(&mut response);
    if let Some(cache) = cache {
        response.headers_mut().insert(CACHE, cache);
    }
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

/// Whether the answer reports probabilities is what `logprobs` says.
async fn whole(
    mut answer: ChatStream,
    envelope: Envelope,
    logprobs: bool,
    mut log: RequestLog,
) -> Result<ChatCompletion> {
    let mut choices: Vec<Choice> = (0..answer.n_choices())
        .map(|index| Choice {
            index,
            message: AssistantMessage { role: "assistant", content: Some(String::new()), refusal: None },
            logprobs: logprobs.then(ChoiceLogprobs::default),
            finish_reason: FinishReason::Stop,
        })
        .collect();
    let mut total = Usage::default();
    while let Some((idx, event)) = answer.next().await {
        let choice = &mut choices[idx];
        match event {
            ChatEvent::Content { text, logprobs: more } => {
                choice.message.content.get_or_insert_default().push_str(&text);
                if let (Some(all), Some(more)) = (&mut choice.logprobs, more) {
                    all.content.extend(more.content);
                }
            }
            ChatEvent::Finished { reason, usage, figures } => {
                choice.finish_reason = reason;
                add(&mut total, &usage);
                if log.finished(&usage, figures) {
                    return Ok(ChatCompletion {
                        id: envelope.id,
                        object: "chat.completion",
                        created: envelope.created,
                        model: envelope.model,
                        choices,
                        usage: total,
                        system_fingerprint: envelope.system_fingerprint,
                    });
                }
            }
            ChatEvent::Failed(e) => {
                log.n_running = 0;
                return Err(e);
            }
        }
    }
    log.n_running = 0;
    Err(Error::internal("the engine ended without an answer"))
}

/// Adds what another choice of the same request took: the prompt is one, and cached as far as it was for
/// every choice.
fn add(total: &mut Usage, usage: &Usage) {
    if total.prompt_tokens == 0 {
        total.prompt_tokens = usage.prompt_tokens;
        total.prompt_tokens_details = usage.prompt_tokens_details;
    }
    let cached = &mut total.prompt_tokens_details.cached_tokens;
    *cached = usage.prompt_tokens_details.cached_tokens.min(*cached);
    total.completion_tokens += usage.completion_tokens;
    total.total_tokens = total.prompt_tokens + total.completion_tokens;
}

/// Server-sent events: the roles at once, before the prompt is computed; then content; then the
/// reasons it ended, usage where it was asked for, and `[DONE]`.
fn stream(answer: ChatStream, envelope: Envelope, include_usage: bool, log: RequestLog) -> Response {
    let usage = Usage::default();
    let mut state =
        StreamState { answer, envelope, include_usage, usage, log, pending: VecDeque::new(), ended: false };
    for index in 0..state.answer.n_choices() {
        let role = Delta { role: Some("assistant"), content: Some(String::new()) };
        state.push_choice(index, role, None, None);
    }
    let events = stream::unfold(state, |mut state| async move {
        while state.pending.is_empty() && !state.ended {
            match state.answer.next().await {
                Some((index, event)) => state.take(index, event),
                None => {
                    state.take(0, ChatEvent::Failed(Error::internal("the engine ended without an answer")));
                }
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
    /// Of the choices that have ended.
    usage: Usage,
    log: RequestLog,
    pending: VecDeque<Event>,
    ended: bool,
}

impl StreamState {
    fn take(&mut self, index: usize, event: ChatEvent) {
        match event {
            ChatEvent::Content { text, logprobs } => {
                self.push_choice(index, Delta { role: None, content: Some(text) }, logprobs, None);
            }
            ChatEvent::Finished { reason, usage, figures } => {
                add(&mut self.usage, &usage);
                self.push_choice(index, Delta::default(), None, Some(reason));
                if !self.log.finished(&usage, figures) {
                    return;
                }
                if self.include_usage {
                    self.push_chunk(Vec::new(), Some(self.usage));
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
        index: usize,
        delta: Delta,
        logprobs: Option<ChoiceLogprobs>,
        finish_reason: Option<FinishReason>,
    ) {
        self.push_chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason }], None);
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

/// One line for each choice, when it ends: finished, failed, or left by its client.
///
/// hyper drops an answer, and this with it, when the client's side of the connection ends, even if
/// only its sending side. It does not look while another request of the same client waits: then the
/// answer goes on until a write fails.
struct RequestLog {
    request_id: RequestId,
    /// Choices that have not ended.
    n_running: usize,
}

impl RequestLog {
    /// A choice has ended; says whether it was the last.
    fn finished(&mut self, usage: &Usage, figures: Option<Figures>) -> bool {
        self.n_running -= 1;
        let is_last = self.n_running == 0;
        let id = self.request_id.as_str();
        let Usage { prompt_tokens, completion_tokens, .. } = *usage;
        let Some(Figures { timings, repeat_penalty }) = figures else {
            tracing::info!(id, prompt_tokens, completion_tokens, "chat, as answered before");
            return is_last;
        };
        let rate = |n: usize, time: Duration| (n as f64 / time.as_secs_f64().max(1e-9)).round();
        let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        tracing::info!(
            id,
            queue_ms = ms(timings.queue),
            prompt_tokens,
            prefill_ms = ms(timings.prefill),
            prefill_tok_s = rate(prompt_tokens, timings.prefill),
            completion_tokens,
            decode_ms = ms(timings.decode),
            // The first token came out of the prefill.
            decode_tok_s = rate(completion_tokens.saturating_sub(1), timings.decode),
            repeat_penalty_hits = repeat_penalty.hits,
            repeat_penalty_updates = repeat_penalty.updates,
            "chat"
        );
        is_last
    }

    /// An error after the stream has begun; one before is an answer of its own, which is logged as
    /// such.
    fn failed(&mut self, e: &Error) {
        self.n_running = 0;
        tracing::error!(id = self.request_id.as_str(), error = %e, "chat failed in mid-stream");
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if self.n_running > 0 {
            tracing::info!(id = self.request_id.as_str(), "chat cancelled: the client has gone away");
        }
    }
}
