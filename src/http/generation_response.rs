//! What answers of chat models have in common on their way to the client: whole or as a stream of events, counted
//! and logged.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use uuid::Uuid;

use super::error::ApiError;
use super::middleware::request_id::RequestId;
use crate::app::unix_time;
use crate::chat::{ChatEvent, ChatStream, GenerationStats};
use crate::error::{Error, Result};
use crate::openai::chat::{
    ChoiceLogprobs, FinishReason, FunctionCall, TokenLogprob, ToolCall, ToolCallDelta, Usage,
};

/// A comment this often keeps a silent stream alive; both SDKs skip comments.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Whose request it is: whoever sends the same key.
pub fn tenant_from_headers(headers: &HeaderMap) -> Arc<str> {
    let key = headers.get(AUTHORIZATION).map(|key| String::from_utf8_lossy(key.as_bytes()));
    key.unwrap_or_default().into()
}

/// What every object of one answer carries.
#[derive(Clone)]
pub struct Envelope {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
}

impl Envelope {
    /// Of an answer by `model`; its id begins with `prefix`.
    pub fn new(prefix: &str, model: String, answer: &ChatStream) -> Self {
        Self {
            id: format!("{prefix}-{}", Uuid::new_v4().simple()),
            created: unix_time(),
            model,
            system_fingerprint: answer.fingerprint().to_owned(),
        }
    }
}

/// What the choices of an answer took.
struct UsageTotals {
    choices_of_prompt: usize,
    /// Of each prompt: its tokens, and those of them that were there for every choice that has ended.
    prompts: Vec<Option<(usize, usize)>>,
    completion_tokens: usize,
    reasoning_tokens: usize,
}

impl UsageTotals {
    fn new(answer: &ChatStream) -> Self {
        let n_prompts = answer.n_prompts();
        let choices_of_prompt = (answer.n_choices() / n_prompts).max(1);
        Self { choices_of_prompt, prompts: vec![None; n_prompts], completion_tokens: 0, reasoning_tokens: 0 }
    }

    /// Adds what a choice took: a prompt is one for all its choices.
    fn add(&mut self, choice: usize, usage: &Usage) {
        let cached = usage.prompt_tokens_details.cached_tokens;
        let (_, all_cached) =
            self.prompts[choice / self.choices_of_prompt].get_or_insert((usage.prompt_tokens, cached));
        *all_cached = cached.min(*all_cached);
        self.completion_tokens += usage.completion_tokens;
        self.reasoning_tokens += usage.completion_tokens_details.reasoning_tokens;
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage { completion_tokens: self.completion_tokens, ..Usage::default() };
        for (n_tokens, n_cached) in self.prompts.iter().flatten() {
            usage.prompt_tokens += n_tokens;
            usage.prompt_tokens_details.cached_tokens += n_cached;
        }
        usage.completion_tokens_details.reasoning_tokens = self.reasoning_tokens;
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        usage
    }
}

/// A choice that has ended.
pub struct CompletedChoice {
    pub text: String,
    /// What was thought before.
    pub reasoning: String,
    /// What is called.
    pub calls: Vec<ToolCall>,
    pub logprobs: Vec<TokenLogprob>,
    pub reason: FinishReason,
}

impl CompletedChoice {
    /// Adds to what is called.
    fn call(&mut self, delta: ToolCallDelta) {
        let ToolCallDelta { index, id, kind, function } = delta;
        match (id, kind, function.name) {
            (Some(id), Some(kind), Some(name)) => {
                let function = FunctionCall { name, arguments: function.arguments };
                self.calls.push(ToolCall { id, kind, function });
            }
            _ => {
                let call = self.calls.get_mut(index);
                call.into_iter().for_each(|call| call.function.arguments.push_str(&function.arguments));
            }
        }
    }
}

/// Waits for all of an answer.
///
/// # Errors
/// When a choice fails.
pub async fn collect_choices(
    mut answer: ChatStream,
    mut log: RequestLog,
) -> Result<(Vec<CompletedChoice>, Usage)> {
    log.n_running = answer.n_choices();
    let empty = || CompletedChoice {
        text: String::new(),
        reasoning: String::new(),
        calls: Vec::new(),
        logprobs: Vec::new(),
        reason: FinishReason::Stop,
    };
    let mut choices: Vec<CompletedChoice> = (0..answer.n_choices()).map(|_| empty()).collect();
    let mut totals = UsageTotals::new(&answer);
    while let Some((idx, event)) = answer.next().await {
        let choice = &mut choices[idx];
        match event {
            ChatEvent::Content { text, reasoning, calls, logprobs, .. } => {
                choice.text.push_str(&text);
                choice.reasoning.push_str(&reasoning);
                calls.into_iter().for_each(|call| choice.call(call));
                choice.logprobs.extend(logprobs.into_iter().flat_map(|more| more.content));
            }
            ChatEvent::Finished { reason, usage, stats } => {
                choice.reason = reason;
                totals.add(idx, &usage);
                if log.finished(&usage, stats) {
                    return Ok((choices, totals.usage()));
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

/// A part of a choice in a stream.
pub enum ChoicePart {
    /// Before everything else, and before the prompt is computed.
    Start,
    /// More that is said, and what was thought before it.
    Text {
        text: String,
        reasoning: String,
        calls: Vec<ToolCallDelta>,
        logprobs: Option<ChoiceLogprobs>,
    },
    End(FinishReason),
}

/// How a stream's events are written. Usage is left out of them, null, or in the last, which has no part.
pub trait ChunkEncoder: Send + 'static {
    type Chunk: Serialize;

    /// The object that says a part of a choice; none where nothing is to be said.
    fn encode(
        &mut self,
        envelope: &Envelope,
        part: Option<(usize, ChoicePart)>,
        usage: Option<Option<Usage>>,
    ) -> Option<Self::Chunk>;
}

/// Server-sent events: the beginnings at once, before the prompt is computed; then content; then the
/// reasons it ended, usage where it was asked for, and `[DONE]`.
pub fn stream_events(
    answer: ChatStream,
    envelope: Envelope,
    encoder: impl ChunkEncoder,
    include_usage: bool,
    mut log: RequestLog,
) -> Response {
    log.n_running = answer.n_choices();
    let totals = UsageTotals::new(&answer);
    let pending = VecDeque::new();
    let mut state =
        StreamState { answer, envelope, encoder, include_usage, totals, log, pending, ended: false };
    for index in 0..state.answer.n_choices() {
        state.push_part(index, ChoicePart::Start);
    }
    let events = stream::unfold(state, |mut state| async move {
        while state.pending.is_empty() && !state.ended {
            match state.answer.next().await {
                Some((index, event)) => state.push_event(index, event),
                None => {
                    state.push_event(
                        0,
                        ChatEvent::Failed(Error::internal("the engine ended without an answer")),
                    );
                }
            }
        }
        let event = state.pending.pop_front()?;
        Some((Ok::<_, Infallible>(event), state))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(PING_INTERVAL).text("ping")).into_response()
}

struct StreamState<E> {
    answer: ChatStream,
    envelope: Envelope,
    encoder: E,
    include_usage: bool,
    /// Of the choices that have ended.
    totals: UsageTotals,
    log: RequestLog,
    pending: VecDeque<Event>,
    ended: bool,
}

impl<E: ChunkEncoder> StreamState<E> {
    fn push_event(&mut self, index: usize, event: ChatEvent) {
        match event {
            ChatEvent::Content { text, reasoning, calls, logprobs, .. } => {
                self.push_part(index, ChoicePart::Text { text, reasoning, calls, logprobs });
            }
            ChatEvent::Finished { reason, usage, stats } => {
                self.totals.add(index, &usage);
                self.push_part(index, ChoicePart::End(reason));
                if !self.log.finished(&usage, stats) {
                    return;
                }
                if self.include_usage {
                    self.push_chunk(None, Some(self.totals.usage()));
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

    fn push_part(&mut self, index: usize, part: ChoicePart) {
        self.push_chunk(Some((index, part)), None);
    }

    fn push_chunk(&mut self, part: Option<(usize, ChoicePart)>, usage: Option<Usage>) {
        let usage = self.include_usage.then_some(usage);
        if let Some(chunk) = self.encoder.encode(&self.envelope, part, usage) {
            self.push(&chunk);
        }
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
pub struct RequestLog {
    request_id: RequestId,
    /// What is answered: `chat` or `completion`.
    what: &'static str,
    /// Choices that have not ended.
    n_running: usize,
}

impl RequestLog {
    pub fn new(request_id: RequestId, what: &'static str) -> Self {
        Self { request_id, what, n_running: 0 }
    }

    /// A choice has ended; says whether it was the last.
    fn finished(&mut self, usage: &Usage, stats: Option<GenerationStats>) -> bool {
        self.n_running -= 1;
        let is_last = self.n_running == 0;
        let id = self.request_id.as_str();
        let Usage { prompt_tokens, completion_tokens, .. } = *usage;
        let Some(GenerationStats { timings, repeat_penalty }) = stats else {
            tracing::info!(id, prompt_tokens, completion_tokens, "{}, as answered before", self.what);
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
            "{}",
            self.what
        );
        is_last
    }

    /// An error after the stream has begun; one before is an answer of its own, which is logged as
    /// such.
    fn failed(&mut self, e: &Error) {
        self.n_running = 0;
        tracing::error!(id = self.request_id.as_str(), error = %e, "{} failed in mid-stream", self.what);
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if self.n_running > 0 {
            tracing::info!(
                id = self.request_id.as_str(),
                "{} cancelled: the client has gone away",
                self.what
            );
        }
    }
}
