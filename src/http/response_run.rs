//! Responses of `/v1/responses` while they are generated: for a client that waits, as a stream, or in the background.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::Response;
use axum::response::sse::Event;
use futures_util::stream;
use tokio::sync::watch;

use super::error::ApiError;
use super::generation_response::{RequestLog, comment_ping, data_event, event_stream};
use crate::app::{App, unix_time};
use crate::chat::{ChatEvent, ChatStream};
use crate::error::{Error, Kind, Result};
use crate::openai::responses::JsonMap;
use crate::openai::responses::events::{EventBody, ResponseEvent};
use crate::openai::responses::output::{ResponseObject, ResponseStatus};
use crate::responses::{ResponseBuilder, StoredResponse};

/// The place where a response is stored, and its own turn of the conversation.
#[derive(Clone)]
pub struct Persistence {
    /// Has the store.
    pub app: App,
    /// The tenant.
    pub owner: Arc<str>,
    /// The items of the response's own turn.
    pub input: Vec<JsonMap>,
    /// The conversation that the turn is added to.
    pub conversation: Option<String>,
    /// Whether the response itself is stored.
    pub is_stored: bool,
}

impl Persistence {
    /// Stores a response as far as it is to be. Returns whether it is stored.
    ///
    /// # Errors
    /// When the store cannot be written, or the response or conversation is too large.
    pub async fn save(&self, response: ResponseObject, deltas: Vec<Vec<u32>>) -> Result<bool> {
        let Self { app, owner, input, conversation, is_stored } = self.clone();
        let is_complete = matches!(response.status, ResponseStatus::Completed | ResponseStatus::Incomplete);
        app.with_state(move |state| {
            if let Some(id) = conversation.filter(|_| is_complete) {
                state.append_turn(&owner, &id, &input, &response)?;
            }
            if is_stored {
                state.store_response(&owner, &StoredResponse { response, input, deltas })?;
            }
            Ok(is_stored)
        })
        .await
    }
}

/// A response that is being generated.
pub struct ResponseRun {
    stream: ChatStream,
    builder: ResponseBuilder,
    log: RequestLog,
    persistence: Persistence,
}

impl ResponseRun {
    /// A response that `stream` generates.
    pub fn new(
        stream: ChatStream,
        builder: ResponseBuilder,
        mut log: RequestLog,
        persistence: Persistence,
    ) -> Self {
        log.start(&stream);
        Self { stream, builder, log, persistence }
    }

    /// Waits for the first event of the generation, for `patience` at most.
    ///
    /// # Errors
    /// When the generation has failed before that. The response is not stored then.
    pub async fn wait_for_first(&mut self, patience: Duration) -> Result<()> {
        self.stream.wait_for_first(patience).await.inspect_err(|_| self.log.abandon())
    }

    /// The next event of the generation; an error if the engine has stopped.
    async fn next(&mut self) -> ChatEvent {
        let stopped =
            || ChatEvent::Failed(Error::internal("the engine stopped before the response was complete"));
        self.stream.next().await.map_or_else(stopped, |(_, event)| event)
    }

    /// Takes an event; returns whether the response goes on, or the error with which it ended.
    async fn apply(&mut self, event: ChatEvent) -> Result<bool> {
        match event {
            ChatEvent::Content { text, reasoning, calls, logprobs, n_tokens } => {
                self.log.generated(0, n_tokens);
                self.builder.push(&reasoning, &text, calls, logprobs);
                Ok(true)
            }
            ChatEvent::Finished { reason, usage, stats, .. } => {
                self.log.finished(0, &usage, stats);
                self.builder.finish(reason, &usage, unix_time());
                self.end().await;
                Ok(false)
            }
            ChatEvent::Failed(e) => {
                self.log.failed(&e);
                let (code, message) = failure(e.clone());
                self.builder.fail(code, &message);
                self.end().await;
                Err(e)
            }
        }
    }

    /// Ends the response because its client wants no more of it.
    async fn cancel(&mut self) {
        self.log.cancelled();
        self.builder.cancel();
        self.end().await;
    }

    /// Stores the response, and makes the last event.
    async fn end(&mut self) {
        let response =
            ResponseObject { store: self.persistence.is_stored, ..self.builder.response().clone() };
        let deltas = self.builder.deltas().to_vec();
        let is_stored = self.persistence.save(response, deltas).await.unwrap_or_else(|e| {
            tracing::error!(id = self.log.request_id().as_str(), error = %e, "a response could not be stored");
            false
        });
        self.builder.end_stream(is_stored);
    }

    /// Waits for the whole response.
    ///
    /// # Errors
    /// When the generation fails.
    pub async fn collect(mut self) -> Result<ResponseObject> {
        loop {
            let event = self.next().await;
            if !self.apply(event).await? {
                return Ok(self.builder.response().clone());
            }
        }
    }

    /// Sends the response as server-sent events.
    pub fn into_stream(self) -> Response {
        let state = (self, VecDeque::new(), false);
        let events = stream::unfold(state, |(mut run, mut pending, mut is_ended)| async move {
            pending.extend(run.builder.take_events());
            while pending.is_empty() && !is_ended {
                let event = run.next().await;
                is_ended = !matches!(run.apply(event).await, Ok(true));
                pending.extend(run.builder.take_events());
            }
            let event = server_sent(&pending.pop_front()?);
            Some((Ok::<_, Infallible>(event), (run, pending, is_ended)))
        });
        event_stream(events, comment_ping())
    }

    /// Generates the response in the background, until it ends or `background` is cancelled.
    pub async fn into_background(mut self, background: Arc<BackgroundRun>) {
        let mut cancelled = background.cancel.subscribe();
        loop {
            background.publish(self.builder.take_events());
            let event = tokio::select! {
                biased;
                _ = cancelled.wait_for(|is_cancelled| *is_cancelled) => None,
                event = self.next() => Some(event),
            };
            let goes_on = match event {
                Some(event) => matches!(self.apply(event).await, Ok(true)),
                None => {
                    self.cancel().await;
                    false
                }
            };
            if !goes_on {
                background.publish(self.builder.take_events());
                return;
            }
        }
    }
}

/// The code and the message of an error for clients of this API.
pub fn failure(e: Error) -> (&'static str, String) {
    let code = match e.kind() {
        Kind::Overloaded { .. } | Kind::RateLimited { .. } => "rate_limit_exceeded",
        Kind::InvalidRequest | Kind::ContextLengthExceeded => "invalid_prompt",
        _ => "server_error",
    };
    (code, ApiError::from(e).into_body().error.message)
}

fn server_sent(event: &ResponseEvent) -> Event {
    data_event(Some(event.name()), event)
}

/// Sends the events of a response that has ended, those after number `after`.
pub fn replayed_stream(events: Vec<ResponseEvent>, after: Option<u64>) -> Response {
    let is_later = move |event: &ResponseEvent| after.is_none_or(|after| event.sequence_number > after);
    let events: Vec<_> = events.into_iter().filter(is_later).map(|event| Ok(server_sent(&event))).collect();
    event_stream(stream::iter(events), comment_ping())
}

/// Responses that are generated in the background.
#[derive(Clone)]
pub struct BackgroundRuns {
    max_runs: usize,
    max_event_bytes: usize,
    runs: Arc<Mutex<HashMap<String, Arc<BackgroundRun>>>>,
}

/// A response that is generated in the background: its events so far.
pub struct BackgroundRun {
    owner: Arc<str>,
    max_event_bytes: usize,
    log: Mutex<EventLog>,
    /// Changes with every event; true once there are no more.
    changed: watch::Sender<bool>,
    /// True once the client wants no more of it.
    cancel: watch::Sender<bool>,
}

#[derive(Default)]
struct EventLog {
    events: Vec<Arc<ResponseEvent>>,
    n_bytes: usize,
}

/// The registration of a response in the background, for as long as it is generated.
pub struct BackgroundGuard {
    id: String,
    runs: BackgroundRuns,
    /// The response.
    pub run: Arc<BackgroundRun>,
}

impl BackgroundRuns {
    /// None yet; at most `max_runs` at a time, each with events of at most `max_event_bytes`.
    pub fn new(max_runs: usize, max_event_bytes: usize) -> Self {
        Self { max_runs, max_event_bytes, runs: Arc::default() }
    }

    /// Registers a response.
    ///
    /// # Errors
    /// When there are too many.
    pub fn register(&self, id: &str, owner: Arc<str>) -> Result<BackgroundGuard> {
        let mut runs = self.lock();
        if runs.len() >= self.max_runs {
            let message = format!(
                "{} responses are generated in the background, which is the limit; try again later",
                runs.len()
            );
            return Err(Error::new(Kind::Overloaded { retry_after: Duration::from_secs(5) }, message));
        }
        let run = Arc::new(BackgroundRun {
            owner,
            max_event_bytes: self.max_event_bytes,
            log: Mutex::default(),
            changed: watch::Sender::new(false),
            cancel: watch::Sender::new(false),
        });
        runs.insert(id.to_owned(), run.clone());
        Ok(BackgroundGuard { id: id.to_owned(), runs: self.clone(), run })
    }

    /// The response of an id, if it belongs to `owner` and is still generated.
    pub fn find(&self, id: &str, owner: &str) -> Option<Arc<BackgroundRun>> {
        self.lock().get(id).filter(|run| &*run.owner == owner).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<BackgroundRun>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BackgroundGuard {
    fn drop(&mut self) {
        self.runs.lock().remove(&self.id);
        self.run.changed.send_replace(true);
    }
}

impl BackgroundRun {
    /// Ends the generation, and waits until its end is stored.
    pub async fn cancel(&self) {
        self.cancel.send_replace(true);
        let mut ended = self.changed.subscribe();
        // The sender is part of this.
        let _ = ended.wait_for(|is_ended| *is_ended).await;
    }

    /// Whether the generation has begun.
    pub fn has_begun(&self) -> bool {
        !self.lock().events.is_empty()
    }

    /// Adds events for those who follow. Once there are too many bytes of them, only the last event is added.
    pub fn publish(&self, events: Vec<ResponseEvent>) {
        let mut log = self.lock();
        for event in events {
            // An estimate: what an event has besides its text.
            log.n_bytes += 256 + delta_bytes(&event.body);
            let is_last = matches!(
                event.body,
                EventBody::Completed { .. }
                    | EventBody::Incomplete { .. }
                    | EventBody::Failed { .. }
                    | EventBody::Cancelled { .. }
            );
            if log.n_bytes <= self.max_event_bytes || is_last {
                log.events.push(Arc::new(event));
            }
        }
        drop(log);
        self.changed.send_modify(|_| {});
    }

    /// Sends the events after number `after`, those to come included.
    pub fn follow(self: Arc<Self>, after: Option<u64>) -> Response {
        let changed = self.changed.subscribe();
        let state = (self, changed, 0, VecDeque::new());
        let events = stream::unfold(state, move |(run, mut changed, mut n_seen, mut pending)| async move {
            loop {
                if let Some(event) = pending.pop_front() {
                    let event: Arc<ResponseEvent> = event;
                    return Some((Ok::<_, Infallible>(server_sent(&event)), (run, changed, n_seen, pending)));
                }
                let is_ended = *changed.borrow_and_update();
                let new: Vec<_> = run.lock().events[n_seen..].to_vec();
                n_seen += new.len();
                let is_later =
                    |event: &Arc<ResponseEvent>| after.is_none_or(|after| event.sequence_number > after);
                pending.extend(new.into_iter().filter(is_later));
                if pending.is_empty() && (is_ended || changed.changed().await.is_err()) {
                    return None;
                }
            }
        });
        event_stream(events, comment_ping())
    }

    fn lock(&self) -> MutexGuard<'_, EventLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of the texts of an event.
fn delta_bytes(event: &EventBody) -> usize {
    match event {
        EventBody::TextDelta { delta, logprobs, .. } => {
            let tops: usize = logprobs.iter().map(|entry| 64 + 64 * entry.top_logprobs.len()).sum();
            delta.len() + tops
        }
        EventBody::TextDone { text, .. }
        | EventBody::ReasoningDone { text, .. }
        | EventBody::SummaryDone { text, .. } => {
            // The part and the item follow with the same text.
            3 * text.len()
        }
        EventBody::ArgumentsDone { arguments: text, .. } | EventBody::CustomInputDone { input: text, .. } => {
            2 * text.len()
        }
        EventBody::ReasoningDelta { delta, .. }
        | EventBody::SummaryDelta { delta, .. }
        | EventBody::ArgumentsDelta { delta, .. }
        | EventBody::CustomInputDelta { delta, .. } => delta.len(),
        _ => 0,
    }
}
