//! Generations as HTTP responses, whole or streamed (SSE), with usage and logging.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;
use uuid::Uuid;

use super::error::ApiError;
use super::middleware::request_id::RequestId;
use super::route::NDJSON;
use crate::app::unix_time;
use crate::chat::{ChatEvent, ChatStream, GenerationStats, PromptToken};
use crate::error::{Error, Result};
use crate::metering::RequestMeter;
use crate::openai::chat::{
    ChoiceLogprobs, CompletionTokensDetails, FinishReason, FunctionCall, TokenLogprob, ToolCall,
    ToolCallDelta, Usage,
};
use crate::openai::generation_options::GenerationOptions;

/// Interval of the pings that keep a silent stream alive.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// The fields that all objects of one response share.
#[derive(Clone)]
pub struct Envelope {
    /// Unique id of the response.
    pub id: String,
    /// Unix time of the response, in seconds.
    pub created: u64,
    /// Id of the model.
    pub model: String,
    /// Fingerprint of the model.
    pub system_fingerprint: String,
}

impl Envelope {
    /// The fields of a new response, with an id that begins with `prefix`.
    pub fn new(prefix: &str, model: String, system_fingerprint: String) -> Self {
        Self {
            id: format!("{prefix}{}", Uuid::new_v4().simple()),
            created: unix_time(),
            model,
            system_fingerprint,
        }
    }
}

/// Usage summed over the choices that have ended.
struct UsageTotals {
    choices_per_prompt: usize,
    /// For each prompt, its tokens and those found in the prefix cache for each of its choices.
    prompts: Vec<Option<(usize, usize)>>,
    completion_tokens: usize,
    details: CompletionTokensDetails,
}

impl UsageTotals {
    fn new(stream: &ChatStream) -> Self {
        let n_prompts = stream.n_prompts();
        let choices_per_prompt = (stream.n_choices() / n_prompts).max(1);
        Self {
            choices_per_prompt,
            prompts: vec![None; n_prompts],
            completion_tokens: 0,
            details: CompletionTokensDetails::default(),
        }
    }

    /// Adds the usage of a choice. A prompt counts once for all its choices.
    fn add(&mut self, choice: usize, usage: &Usage) {
        let cached = usage.prompt_tokens_details.cached_tokens;
        let (_, all_cached) =
            self.prompts[choice / self.choices_per_prompt].get_or_insert((usage.prompt_tokens, cached));
        *all_cached = cached.min(*all_cached);
        self.completion_tokens += usage.completion_tokens;
        let details = usage.completion_tokens_details;
        self.details.reasoning_tokens += details.reasoning_tokens;
        self.details.accepted_prediction_tokens += details.accepted_prediction_tokens;
        self.details.rejected_prediction_tokens += details.rejected_prediction_tokens;
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage { completion_tokens: self.completion_tokens, ..Usage::default() };
        for (n_tokens, n_cached) in self.prompts.iter().flatten() {
            usage.prompt_tokens += n_tokens;
            usage.prompt_tokens_details.cached_tokens += n_cached;
        }
        usage.completion_tokens_details = self.details;
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        usage
    }
}

/// A completed choice.
#[derive(Default)]
pub struct CompletedChoice {
    /// The text.
    pub text: String,
    /// The reasoning that preceded the text.
    pub reasoning: String,
    /// The tool calls.
    pub calls: Vec<ToolCall>,
    /// Log probabilities of the tokens, if requested.
    pub logprobs: Vec<TokenLogprob>,
    /// The tokens of the prompt with their scores, if requested.
    pub scored_prompt: Option<Arc<[PromptToken]>>,
    /// Why generation ended.
    pub reason: FinishReason,
    /// The stop string that ended it.
    pub stop: Option<String>,
    /// Measurements; `None` for a response from the cache.
    pub stats: Option<GenerationStats>,
}

impl CompletedChoice {
    /// Adds or extends a tool call.
    pub fn push_call(&mut self, delta: ToolCallDelta) {
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

/// Waits for all choices of a response.
///
/// # Errors
/// When a choice fails.
pub async fn collect_choices(
    mut stream: ChatStream,
    mut log: RequestLog,
) -> Result<(Vec<CompletedChoice>, Usage)> {
    log.start(&stream);
    let mut choices: Vec<CompletedChoice> =
        (0..stream.n_choices()).map(|_| CompletedChoice::default()).collect();
    let mut totals = UsageTotals::new(&stream);
    while let Some((idx, event)) = stream.next().await {
        let choice = &mut choices[idx];
        match event {
            ChatEvent::Content { text, reasoning, calls, logprobs, n_tokens } => {
                log.generated(idx, n_tokens);
                choice.text.push_str(&text);
                choice.reasoning.push_str(&reasoning);
                calls.into_iter().for_each(|call| choice.push_call(call));
                choice.logprobs.extend(logprobs.into_iter().flat_map(|more| more.content));
            }
            ChatEvent::Finished { reason, stop, usage, stats } => {
                choice.reason = reason;
                choice.scored_prompt = stream.scored_prompt(idx);
                choice.stop = stop;
                choice.stats = stats;
                totals.add(idx, &usage);
                if log.finished(idx, &usage, stats) {
                    return Ok((choices, totals.usage()));
                }
            }
            ChatEvent::Failed(e) => {
                log.abandon();
                return Err(e);
            }
        }
    }
    log.abandon();
    Err(Error::internal("the engine stopped before the response was complete"))
}

/// A part of a streamed choice.
pub enum ChoicePart {
    /// The beginning, sent before the prompt is computed.
    Start,
    /// The tokens of the prompt with their scores, if requested. Comes before all text.
    ScoredPrompt(Arc<[PromptToken]>),
    /// More of the choice.
    Text {
        /// Text to append.
        text: String,
        /// Reasoning to append; it precedes the text.
        reasoning: String,
        /// Tool calls to add or extend.
        calls: Vec<ToolCallDelta>,
        /// Log probabilities of the tokens, if requested.
        logprobs: Option<ChoiceLogprobs>,
    },
    /// The end of the choice.
    End(FinishReason),
}

/// Encodes the events of a stream as objects of the wire.
pub trait ChunkEncoder: Send + 'static {
    /// The object.
    type Chunk: Serialize;

    /// Encodes a part of the choice with the given index, or `None` if there is nothing to send.
    ///
    /// The last chunk may have `usage` and no part. In the others, `usage` is left out, or null if the request asked
    /// for usage at the end, or what is known so far.
    fn encode(
        &mut self,
        envelope: &Envelope,
        part: Option<(usize, ChoicePart)>,
        usage: Option<Option<Usage>>,
    ) -> Option<Self::Chunk>;
}

/// The places of token counts in a stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamUsage {
    /// Whether the last chunk has them alone.
    pub is_at_end: bool,
    /// Whether every other chunk has them, as far as they are known.
    pub is_continuous: bool,
}

impl StreamUsage {
    /// The places that a request asks for.
    pub fn from_options(options: &GenerationOptions) -> Self {
        Self { is_at_end: options.include_usage(), is_continuous: options.continuous_usage() }
    }
}

/// Encodes the events of a response as items of a stream.
pub trait EventEncoder: Send + 'static {
    /// A server-sent event, or a line.
    type Item: Send;

    /// The items before the prompt is computed.
    fn start(&mut self) -> Vec<Self::Item>;

    /// The items for an event of the choice with the given index; `is_last` is whether no other comes after it.
    fn encode_event(&mut self, index: usize, event: ChatEvent, is_last: bool) -> Vec<Self::Item>;

    /// The items for the scored prompt of the choice with the given index, if it was asked for.
    fn encode_prompt(&mut self, _: usize, _: Arc<[PromptToken]>) -> Vec<Self::Item> {
        Vec::new()
    }

    /// The item that is sent while nothing else is.
    fn ping(&self) -> Self::Item;
}

/// A comment, which OpenAI's SDKs skip.
pub fn comment_ping() -> Event {
    Event::default().comment("ping")
}

/// An event of a stream with `data` as JSON, and a name if the API has names.
pub fn data_event(name: Option<&str>, data: &impl Serialize) -> Event {
    match serde_json::to_string(data) {
        Ok(json) => name.map_or_else(Event::default, |name| Event::default().event(name)).data(json),
        Err(e) => {
            tracing::error!(error = %e, "an event could not be serialized");
            Event::default().comment("lost")
        }
    }
}

/// White space, which JSON may have before it.
pub fn space_ping() -> Bytes {
    Bytes::from_static(b" ")
}

/// A value as a line of JSON.
pub fn json_line(value: &impl Serialize) -> Bytes {
    // Strings and numbers can always be serialized.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Responds with server-sent events, and with `ping` while there are none.
pub fn event_stream(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    ping: Event,
) -> Response {
    Sse::new(events).keep_alive(KeepAlive::new().interval(PING_INTERVAL).event(ping)).into_response()
}

/// Responds with lines, and with `ping` while there are none.
pub fn line_stream(lines: impl Stream<Item = Bytes> + Send + 'static, ping: Bytes) -> Response {
    let body = stream::unfold((Box::pin(lines), ping), |(mut lines, ping)| async move {
        let line = match timeout(PING_INTERVAL, lines.next()).await {
            Ok(line) => line?,
            Err(_) => ping.clone(),
        };
        Some((Ok::<_, Infallible>(line), (lines, ping)))
    });
    ([(CONTENT_TYPE, NDJSON)], Body::from_stream(body)).into_response()
}

/// Responds with the server-sent events that `encoder` makes of a response.
pub fn encode_stream(
    stream: ChatStream,
    encoder: impl EventEncoder<Item = Event>,
    log: RequestLog,
) -> Response {
    let ping = encoder.ping();
    event_stream(encoded(stream, encoder, log).map(Ok), ping)
}

/// Responds with the lines that `encoder` makes of a response.
pub fn encode_lines(
    stream: ChatStream,
    encoder: impl EventEncoder<Item = Bytes>,
    log: RequestLog,
) -> Response {
    let ping = encoder.ping();
    line_stream(encoded(stream, encoder, log), ping)
}

/// The items that `encoder` makes of a response.
fn encoded<E: EventEncoder>(
    stream: ChatStream,
    mut encoder: E,
    log: RequestLog,
) -> impl Stream<Item = E::Item> + Send + 'static {
    let pending = encoder.start().into();
    let has_prompt = vec![false; stream.n_choices()];
    let state = StreamState { stream, encoder, has_prompt, log, pending, ended: false };
    stream::unfold(state, |mut state| async move {
        while state.pending.is_empty() && !state.ended {
            let stopped = || Error::internal("the engine stopped before the response was complete");
            let (index, event) =
                state.stream.next().await.unwrap_or_else(|| (0, ChatEvent::Failed(stopped())));
            state.push_event(index, event);
        }
        let item = state.pending.pop_front()?;
        Some((item, state))
    })
}

struct StreamState<E: EventEncoder> {
    stream: ChatStream,
    encoder: E,
    /// Whether the scores of each choice's prompt are sent.
    has_prompt: Vec<bool>,
    log: RequestLog,
    pending: VecDeque<E::Item>,
    ended: bool,
}

impl<E: EventEncoder> StreamState<E> {
    fn push_event(&mut self, index: usize, event: ChatEvent) {
        if !self.has_prompt[index]
            && let Some(prompt) = self.stream.scored_prompt(index)
        {
            self.has_prompt[index] = true;
            self.pending.extend(self.encoder.encode_prompt(index, prompt));
        }
        self.ended = match &event {
            ChatEvent::Content { n_tokens, .. } => {
                self.log.generated(index, *n_tokens);
                false
            }
            ChatEvent::Finished { usage, stats, .. } => self.log.finished(index, usage, *stats),
            ChatEvent::Failed(e) => {
                self.log.failed(e);
                true
            }
        };
        self.pending.extend(self.encoder.encode_event(index, event, self.ended));
    }
}

/// Responds with OpenAI's events: the start of each choice at once, before the prompt is computed, then content, the
/// finish reasons, usage if requested, and `[DONE]`.
pub fn stream_events(
    stream: ChatStream,
    envelope: Envelope,
    encoder: impl ChunkEncoder,
    usage: StreamUsage,
    log: RequestLog,
) -> Response {
    let totals = UsageTotals::new(&stream);
    let n_generated = vec![0; stream.n_choices()];
    let n_prompt_tokens = stream.n_prompt_tokens().iter().sum();
    encode_stream(stream, ChunkEvents { envelope, encoder, usage, totals, n_prompt_tokens, n_generated }, log)
}

/// Encodes events as OpenAI's chunks.
struct ChunkEvents<E> {
    envelope: Envelope,
    encoder: E,
    usage: StreamUsage,
    totals: UsageTotals,
    /// Tokens of all prompts.
    n_prompt_tokens: usize,
    /// Tokens of each choice that are sent.
    n_generated: Vec<usize>,
}

impl<E: ChunkEncoder> EventEncoder for ChunkEvents<E> {
    type Item = Event;

    fn ping(&self) -> Event {
        comment_ping()
    }

    fn start(&mut self) -> Vec<Event> {
        (0..self.n_generated.len()).filter_map(|index| self.part(index, ChoicePart::Start)).collect()
    }

    fn encode_prompt(&mut self, index: usize, prompt: Arc<[PromptToken]>) -> Vec<Event> {
        self.part(index, ChoicePart::ScoredPrompt(prompt)).into_iter().collect()
    }

    fn encode_event(&mut self, index: usize, event: ChatEvent, is_last: bool) -> Vec<Event> {
        match event {
            ChatEvent::Content { text, reasoning, calls, logprobs, n_tokens } => {
                self.n_generated[index] += n_tokens;
                let part = ChoicePart::Text { text, reasoning, calls, logprobs };
                self.part(index, part).into_iter().collect()
            }
            ChatEvent::Finished { reason, usage, .. } => {
                self.totals.add(index, &usage);
                self.n_generated[index] = usage.completion_tokens;
                let mut events: Vec<Event> = self.part(index, ChoicePart::End(reason)).into_iter().collect();
                if is_last {
                    let usage = self.usage.is_at_end.then(|| self.totals.usage());
                    events.extend(usage.and_then(|usage| self.chunk(None, Some(Some(usage)))));
                    events.push(Event::default().data("[DONE]"));
                }
                events
            }
            ChatEvent::Failed(e) => vec![data_event(None, &ApiError::from(e).into_body())],
        }
    }
}

impl<E: ChunkEncoder> ChunkEvents<E> {
    fn part(&mut self, index: usize, part: ChoicePart) -> Option<Event> {
        let usage = match self.usage {
            StreamUsage { is_continuous: true, .. } => Some(Some(self.usage_so_far())),
            StreamUsage { is_at_end, .. } => is_at_end.then_some(None),
        };
        self.chunk(Some((index, part)), usage)
    }

    /// The token counts so far. Those of the prefix cache and of reasoning come with the end of a choice.
    fn usage_so_far(&self) -> Usage {
        let prompt_tokens = self.n_prompt_tokens;
        let completion_tokens = self.n_generated.iter().sum();
        let total_tokens = prompt_tokens + completion_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens, ..self.totals.usage() }
    }

    fn chunk(&mut self, part: Option<(usize, ChoicePart)>, usage: Option<Option<Usage>>) -> Option<Event> {
        Some(data_event(None, &self.encoder.encode(&self.envelope, part, usage)?))
    }
}

/// Logs one line for each choice when it finishes, and one for the request when it fails or is cancelled; counts the
/// tokens of its prompts, and generated ones as they come.
///
/// hyper drops a response, and this log with it, when the client closes the connection or only its sending side.
/// hyper does not notice while another request of the same connection is pending; then the response continues until
/// a write fails.
pub struct RequestLog {
    request_id: RequestId,
    meter: RequestMeter,
    /// Name of the request in the log: `chat` or `completion`.
    name: &'static str,
    /// Number of choices that have not ended.
    n_running: usize,
    /// Tokens of each choice that have been counted.
    n_counted: Vec<usize>,
    choices_per_prompt: usize,
}

impl RequestLog {
    /// A log for a request that has not started.
    pub fn new(request_id: RequestId, meter: RequestMeter, name: &'static str) -> Self {
        Self { request_id, meter, name, n_running: 0, n_counted: Vec::new(), choices_per_prompt: 1 }
    }

    /// Begins the response that `stream` generates.
    pub fn start(&mut self, stream: &ChatStream) {
        self.n_running = stream.n_choices();
        self.n_counted = vec![0; stream.n_choices()];
        self.choices_per_prompt = (stream.n_choices() / stream.n_prompts()).max(1);
        self.meter.add_prompt_tokens(stream.n_prompt_tokens().iter().sum());
    }

    /// Names the model of the response.
    pub fn set_model(&self, id: &str) {
        self.meter.set_model(id);
    }

    /// Counts generated tokens of a choice.
    pub fn generated(&mut self, index: usize, n_tokens: usize) {
        self.n_counted[index] += n_tokens;
        self.meter.add_completion_tokens(n_tokens);
    }

    /// The request's id.
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    /// Logs a finished choice. Returns whether it was the last.
    pub fn finished(&mut self, index: usize, usage: &Usage, stats: Option<GenerationStats>) -> bool {
        // Those that came with no event, such as the end token.
        self.generated(index, usage.completion_tokens.saturating_sub(self.n_counted[index]));
        if index.is_multiple_of(self.choices_per_prompt) {
            self.meter.add_cached_tokens(usage.prompt_tokens_details.cached_tokens);
        }
        self.n_running -= 1;
        let is_last = self.n_running == 0;
        let (id, trace_id) = (self.request_id.as_str(), self.request_id.trace_id());
        let Usage { prompt_tokens, completion_tokens, .. } = *usage;
        let Some(GenerationStats { timings, repeat_penalty }) = stats else {
            tracing::info!(
                id,
                trace_id,
                prompt_tokens,
                completion_tokens,
                "{} replayed from the response cache",
                self.name
            );
            return is_last;
        };
        let rate = |n: usize, time: Duration| (n as f64 / time.as_secs_f64().max(1e-9)).round();
        let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        tracing::info!(
            id,
            trace_id,
            queue_ms = ms(timings.queue),
            prompt_tokens,
            prefill_ms = ms(timings.prefill),
            prefill_tok_s = rate(prompt_tokens, timings.prefill),
            completion_tokens,
            decode_ms = ms(timings.decode),
            // The first token is part of the prefill.
            decode_tok_s = rate(completion_tokens.saturating_sub(1), timings.decode),
            repeat_penalty_hits = repeat_penalty.hits,
            repeat_penalty_updates = repeat_penalty.updates,
            "{}",
            self.name
        );
        is_last
    }

    /// Logs an error in a stream that has begun. Earlier errors become error responses, which are logged as such.
    pub fn failed(&mut self, e: &Error) {
        self.abandon();
        tracing::error!(id = self.request_id.as_str(), trace_id = self.request_id.trace_id(), error = %e, "{} failed in mid-stream", self.name);
    }

    /// Ends a response that has failed without a line in the log: the error response has one.
    pub fn abandon(&mut self) {
        self.n_running = 0;
        self.meter.fail();
    }

    /// Logs a response that its client has cancelled.
    pub fn cancelled(&mut self) {
        self.n_running = 0;
        self.meter.cancel();
        let (id, trace_id) = (self.request_id.as_str(), self.request_id.trace_id());
        tracing::info!(id, trace_id, "{} cancelled by its client", self.name);
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if self.n_running > 0 {
            self.meter.cancel();
            tracing::info!(
                id = self.request_id.as_str(),
                trace_id = self.request_id.trace_id(),
                "{} cancelled: the client disconnected",
                self.name
            );
        }
    }
}
