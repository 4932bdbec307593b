//! The event stream of a response, with reasoning and tool calls separated from the text.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::event::ChatEvent;
use super::model::ChatModel;
use super::reasoning::{ReasoningParser, ReasoningSplit};
use super::response_cache::{CachedResponse, ResponseCache, ResponseRecorder};
use super::scored_prompt::{PromptToken, prompt_tokens};
use super::tools::{ParsedDelta, RepeatedCalls, ToolCallParser};
use crate::error::Result;
use crate::inference::{Event, Generation};
use crate::openai::chat::FinishReason;

/// A response of one or several choices, generated now or replayed from the response cache. Dropping it cancels
/// the generation.
pub struct ChatStream {
    source: EventSource,
    fingerprint: String,
    ignored_fields: Vec<String>,
    n_choices: usize,
    /// For each prompt, its tokens.
    n_prompt_tokens: Vec<usize>,
    /// One parser per choice if the model reasons, else none.
    reasoning: Vec<ReasoningParser>,
    /// One parser per choice if functions may be called, else none.
    calls: Vec<ToolCallParser>,
    /// One filter per choice if a call that is repeated ends it, else none.
    repeats: Vec<RepeatedCalls>,
    /// Events to return next, each with the index of its choice.
    pending: VecDeque<(usize, ChatEvent)>,
    recorder: Option<ResponseRecorder>,
}

/// Whether a response came from the response cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheStatus {
    /// Replayed from the cache.
    Hit,
    /// Generated, and recorded for the cache.
    Miss,
}

/// The source of a response's events.
enum EventSource {
    Engine {
        /// One per choice.
        generations: Vec<Generation>,
        /// The choice to poll first (round robin).
        first: usize,
        /// The scores of each prompt, if they were requested; else empty.
        prompts: Vec<PromptStatus>,
        /// Kept in memory until the response is complete.
        model: Arc<ChatModel>,
    },
    Cache {
        response: Arc<CachedResponse>,
        /// Number of events already replayed.
        n_replayed: usize,
    },
}

/// The scores of a prompt.
#[derive(Clone)]
enum PromptStatus {
    /// Not computed yet. The prompt's first choice will report them; the others wait.
    Awaited,
    Scored(Arc<[PromptToken]>),
}

impl ChatStream {
    /// A response that `model` generates for prompts of so many tokens, with equally many `generations` for each.
    pub(super) fn new(
        model: Arc<ChatModel>,
        generations: Vec<Generation>,
        n_prompt_tokens: Vec<usize>,
        ignored_fields: Vec<String>,
    ) -> Self {
        Self {
            n_choices: generations.len(),
            n_prompt_tokens,
            fingerprint: model.fingerprint().to_owned(),
            source: EventSource::Engine { generations, first: 0, prompts: Vec::new(), model },
            ignored_fields,
            reasoning: Vec::new(),
            calls: Vec::new(),
            repeats: Vec::new(),
            pending: VecDeque::new(),
            recorder: None,
        }
    }

    /// Separates reasoning and tool calls from the text of every choice, and ends it at a call that `repeats` another.
    pub(super) fn with_parsers(
        mut self,
        reasoning: Option<ReasoningParser>,
        calls: Option<ToolCallParser>,
        repeats: Option<RepeatedCalls>,
    ) -> Self {
        self.reasoning = vec![reasoning; self.n_choices].into_iter().flatten().collect();
        self.calls = vec![calls; self.n_choices].into_iter().flatten().collect();
        self.repeats = vec![repeats; self.n_choices].into_iter().flatten().collect();
        self
    }

    /// Expects the scores of every prompt, before the first event of its choices.
    pub(super) fn with_scored_prompts(mut self) -> Self {
        if let EventSource::Engine { prompts, .. } = &mut self.source {
            *prompts = vec![PromptStatus::Awaited; self.n_prompt_tokens.len()];
        }
        self
    }

    /// The tokens of a choice's prompt with their scores, if they were requested and there was an event of the choice.
    pub fn scored_prompt(&self, choice: usize) -> Option<Arc<[PromptToken]>> {
        let EventSource::Engine { prompts, .. } = &self.source else { return None };
        match prompts.get(choice * self.n_prompts() / self.n_choices)? {
            PromptStatus::Awaited => None,
            PromptStatus::Scored(tokens) => Some(tokens.clone()),
        }
    }

    /// The response cached under `key`. One from a model with another `fingerprint` does not count.
    pub fn from_cache(cache: &ResponseCache, key: &str, fingerprint: Option<&str>) -> Option<Self> {
        let response = cache.get(key)?;
        if fingerprint.is_some_and(|fingerprint| fingerprint != response.fingerprint) {
            return None;
        }
        Some(Self {
            fingerprint: response.fingerprint.clone(),
            ignored_fields: response.ignored_fields.clone(),
            n_choices: response.n_choices,
            n_prompt_tokens: vec![response.n_prompt_tokens()],
            reasoning: Vec::new(),
            calls: Vec::new(),
            repeats: Vec::new(),
            pending: VecDeque::new(),
            source: EventSource::Cache { response, n_replayed: 0 },
            recorder: None,
        })
    }

    /// Stores the response in `cache` under `key` once it is complete.
    pub fn record_into(&mut self, cache: &Arc<ResponseCache>, key: Arc<str>) {
        self.recorder =
            Some(cache.start_recording(key, self.n_choices, &self.fingerprint, &self.ignored_fields));
    }

    /// Whether the response came from the cache; `None` if it cannot be cached.
    pub fn cache_status(&self) -> Option<CacheStatus> {
        match self.source {
            EventSource::Cache { .. } => Some(CacheStatus::Hit),
            EventSource::Engine { .. } => self.recorder.as_ref().map(|_| CacheStatus::Miss),
        }
    }

    /// Paths of request fields that had no effect, such as a message's name that the template does not show.
    pub fn ignored_fields(&self) -> &[String] {
        &self.ignored_fields
    }

    /// Adds a field that had no effect.
    pub fn add_ignored_field(&mut self, path: &str) {
        self.ignored_fields.push(path.to_owned());
    }

    /// Number of choices, over all prompts.
    pub fn n_choices(&self) -> usize {
        self.n_choices
    }

    /// Number of prompts. Each has equally many choices; those of the first prompt come first.
    pub fn n_prompts(&self) -> usize {
        self.n_prompt_tokens.len()
    }

    /// For each prompt, its tokens.
    pub fn n_prompt_tokens(&self) -> &[usize] {
        &self.n_prompt_tokens
    }

    /// The fingerprint of the model that generates or generated the response.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Waits for the first event, for `patience` at most; [`ChatStream::next`] returns it.
    ///
    /// # Errors
    /// When the response has failed before any of it was generated.
    pub async fn wait_for_first(&mut self, patience: Duration) -> Result<()> {
        if patience.is_zero() || timeout(patience, self.fill_pending()).await.is_err() {
            return Ok(());
        }
        match self.pending.front() {
            Some((_, ChatEvent::Failed(e))) => Err(e.clone()),
            _ => Ok(()),
        }
    }

    /// The next event and the index of its choice; `None` after the last event of all choices.
    pub async fn next(&mut self) -> Option<(usize, ChatEvent)> {
        self.fill_pending().await;
        let (choice, event) = self.pending.pop_front()?;
        if let Some(recorder) = self.recorder.take() {
            self.recorder = recorder.push(choice, &event);
        }
        Some((choice, event))
    }

    /// Waits until an event is pending, or there are no more. May be dropped while it waits.
    async fn fill_pending(&mut self) {
        while self.pending.is_empty() {
            let Some((choice, event)) = self.source.next().await else { return };
            let events = match self.reasoning.get_mut(choice) {
                Some(parser) => separate_reasoning(parser, event).collect(),
                None => vec![event],
            };
            let events = match self.calls.get_mut(choice) {
                Some(parser) => events.into_iter().flat_map(|event| separate_calls(parser, event)).collect(),
                None => events,
            };
            let events = match self.repeats.get_mut(choice) {
                Some(repeats) => events.into_iter().flat_map(|event| repeats.filter(event)).collect(),
                None => events,
            };
            if self.repeats.get(choice).is_some_and(RepeatedCalls::is_ended) {
                self.source.end(choice);
            }
            self.pending.extend(events.into_iter().map(|event| (choice, event)));
        }
    }
}

/// Separates reasoning from the text of an event. Before the last event comes the text that was held back.
fn separate_reasoning(
    parser: &mut ReasoningParser,
    event: ChatEvent,
) -> impl Iterator<Item = ChatEvent> + use<> {
    let content = |ReasoningSplit { reasoning, content }: ReasoningSplit, logprobs, n_tokens| {
        ChatEvent::Content { text: content, reasoning, calls: Vec::new(), logprobs, n_tokens }
    };
    let (first, second) = match event {
        ChatEvent::Content { text, logprobs, n_tokens, .. } => {
            (Some(content(parser.push(&text, n_tokens), logprobs, n_tokens)), None)
        }
        ChatEvent::Finished { reason, stop, mut usage, stats } => {
            let rest = parser.finish();
            usage.completion_tokens_details.reasoning_tokens = parser.n_tokens();
            let has_more = rest != ReasoningSplit::default();
            (
                has_more.then(|| content(rest, None, 0)),
                Some(ChatEvent::Finished { reason, stop, usage, stats }),
            )
        }
        failed @ ChatEvent::Failed(_) => (None, Some(failed)),
    };
    first.into_iter().chain(second)
}

/// Separates tool calls from the text of an event. Before the last event comes the text that was held back.
fn separate_calls(parser: &mut ToolCallParser, event: ChatEvent) -> impl Iterator<Item = ChatEvent> + use<> {
    let (first, second) = match event {
        ChatEvent::Content { text, reasoning, logprobs, n_tokens, .. } => {
            let ParsedDelta { content, calls } = parser.push(&text);
            (Some(ChatEvent::Content { text: content, reasoning, calls, logprobs, n_tokens }), None)
        }
        ChatEvent::Finished { reason, stop, usage, stats } => {
            let ParsedDelta { content, calls } = parser.finish(reason == FinishReason::Length);
            let has_more = !content.is_empty() || !calls.is_empty();
            let rest = has_more.then(|| ChatEvent::Content {
                text: content,
                reasoning: String::new(),
                calls,
                logprobs: None,
                n_tokens: 0,
            });
            let reason = match reason {
                FinishReason::Stop if parser.has_calls() => FinishReason::ToolCalls,
                reason => reason,
            };
            (rest, Some(ChatEvent::Finished { reason, stop, usage, stats }))
        }
        failed @ ChatEvent::Failed(_) => (None, Some(failed)),
    };
    first.into_iter().chain(second)
}

impl EventSource {
    /// Ends the text of a choice where it is.
    fn end(&self, choice: usize) {
        if let Self::Engine { generations, .. } = self {
            generations[choice].end();
        }
    }

    async fn next(&mut self) -> Option<(usize, ChatEvent)> {
        let (generations, first, prompts, model) = match self {
            Self::Cache { response, n_replayed } => {
                let (choice, event) = response.events.get(*n_replayed)?;
                *n_replayed += 1;
                return Some((*choice, event.replayed()));
            }
            Self::Engine { generations, first, prompts, model } => (generations, first, prompts, model),
        };
        let n_choices = generations.len();
        let n_of_prompt = n_choices / prompts.len().max(1);
        poll_fn(|context| {
            let (mut has_more, mut offset) = (false, 0);
            while offset < n_choices {
                let choice = (*first + offset) % n_choices;
                offset += 1;
                let prompt = prompts.get_mut(choice / n_of_prompt);
                if choice % n_of_prompt > 0 && matches!(prompt, Some(PromptStatus::Awaited)) {
                    has_more = true;
                    continue;
                }
                match generations[choice].poll_next(context) {
                    Poll::Ready(Some(Event::PromptScores(scores))) => {
                        let tokens = prompt_tokens(scores, model.tokenizer());
                        prompt.into_iter().for_each(|prompt| *prompt = PromptStatus::Scored(tokens.clone()));
                        // Choices that had to wait are polled now.
                        (*first, offset) = (choice, 0);
                    }
                    Poll::Ready(Some(event)) => match ChatEvent::from_engine(event) {
                        Some(event) => {
                            *first = choice + 1;
                            return Poll::Ready(Some((choice, event)));
                        }
                        None => (*first, offset) = (choice, 0),
                    },
                    Poll::Ready(None) => {}
                    Poll::Pending => has_more = true,
                }
            }
            if has_more { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }
}
