//! The stream of an answer: the engine's events, with thoughts and calls told from text.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::event::ChatEvent;
use super::model::ChatModel;
use super::reasoning::{Reasoning, Split};
use super::response_cache::{Answer, Recording, ResponseCache};
use super::tools::{CallParser, Parsed};
use crate::inference::Generation;
use crate::openai::chat::FinishReason;

/// An answer of one choice or several, in the making or given before. Dropping it cancels what is in the
/// making.
pub struct ChatStream {
    pub(super) source: Source,
    pub(super) fingerprint: String,
    pub(super) ignored_fields: Vec<String>,
    pub(super) n_choices: usize,
    /// How many prompts it answers, each with as many choices, one prompt's after another's.
    pub(super) n_prompts: usize,
    /// Of each choice, where the model thinks before it answers.
    pub(super) reasoning: Vec<Reasoning>,
    /// Of each choice, where something may be called.
    pub(super) calls: Vec<CallParser>,
    /// Events that come next.
    pub(super) pending: VecDeque<(usize, ChatEvent)>,
    pub(super) recording: Option<Recording>,
}

/// Where an answer comes from.
pub(super) enum Source {
    Model {
        generations: Vec<Generation>,
        /// Whose turn it is to be asked first.
        turn: usize,
        /// Keeps the model in memory.
        _model: Arc<ChatModel>,
    },
    Cache {
        answer: Arc<Answer>,
        /// Events already given.
        n_given: usize,
    },
}

impl ChatStream {
    /// The answer of `model` to `n_prompts` prompts.
    pub(super) fn new(
        model: Arc<ChatModel>,
        generations: Vec<Generation>,
        n_prompts: usize,
        ignored_fields: Vec<String>,
    ) -> Self {
        Self {
            n_choices: generations.len(),
            n_prompts,
            fingerprint: model.fingerprint().to_owned(),
            source: Source::Model { generations, turn: 0, _model: model },
            ignored_fields,
            reasoning: Vec::new(),
            calls: Vec::new(),
            pending: VecDeque::new(),
            recording: None,
        }
    }

    /// Paths of what the messages hold and the model's template does not show.
    pub fn ignored_fields(&self) -> &[String] {
        &self.ignored_fields
    }

    /// How many choices there are.
    pub fn n_choices(&self) -> usize {
        self.n_choices
    }

    /// How many prompts it answers, each with as many choices, one prompt's after another's.
    pub fn n_prompts(&self) -> usize {
        self.n_prompts
    }

    /// Changes when the same request may be answered differently.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether it was given before.
    pub fn is_cached(&self) -> bool {
        matches!(self.source, Source::Cache { .. })
    }

    /// The answer kept under `key`, if there is one, unless a model of another `fingerprint` has taken the place of
    /// the one that gave it.
    pub fn find(responses: &ResponseCache, key: &str, fingerprint: Option<&str>) -> Option<Self> {
        let answer = responses.find(key)?;
        if fingerprint.is_some_and(|fingerprint| fingerprint != answer.fingerprint) {
            return None;
        }
        Some(Self {
            fingerprint: answer.fingerprint.clone(),
            ignored_fields: answer.ignored_fields.clone(),
            n_choices: answer.n_choices,
            n_prompts: 1,
            reasoning: Vec::new(),
            calls: Vec::new(),
            pending: VecDeque::new(),
            source: Source::Cache { answer, n_given: 0 },
            recording: None,
        })
    }

    /// Keeps the answer under `key` once it is whole.
    pub fn record(&mut self, responses: &Arc<ResponseCache>, key: Arc<str>) {
        self.recording = Some(responses.record(key, self.n_choices, &self.fingerprint, &self.ignored_fields));
    }

    /// The next event and its choice; `None` after the last of all.
    pub async fn next(&mut self) -> Option<(usize, ChatEvent)> {
        if self.pending.is_empty() {
            let (choice, event) = self.source.next().await?;
            let events = match self.reasoning.get_mut(choice) {
                Some(reasoning) => reasoned(reasoning, event).collect(),
                None => vec![event],
            };
            let events = match self.calls.get_mut(choice) {
                Some(calls) => events.into_iter().flat_map(|event| called(calls, event)).collect(),
                None => events,
            };
            self.pending.extend(events.into_iter().map(|event| (choice, event)));
        }
        let (choice, event) = self.pending.pop_front()?;
        if let Some(recording) = self.recording.take() {
            self.recording = recording.push(choice, &event);
        }
        Some((choice, event))
    }
}

/// An event with what is thought told from what is said; before the end, what was held back.
fn reasoned(reasoning: &mut Reasoning, event: ChatEvent) -> impl Iterator<Item = ChatEvent> + use<> {
    let content = |Split { reasoning, content }: Split, logprobs, n_tokens| ChatEvent::Content {
        text: content,
        reasoning,
        calls: Vec::new(),
        logprobs,
        n_tokens,
    };
    let (first, second) = match event {
        ChatEvent::Content { text, logprobs, n_tokens, .. } => {
            (Some(content(reasoning.push(&text, n_tokens), logprobs, n_tokens)), None)
        }
        ChatEvent::Finished { reason, mut usage, figures } => {
            let rest = reasoning.finish();
            usage.completion_tokens_details.reasoning_tokens = reasoning.n_tokens();
            let has_more = rest != Split::default();
            (has_more.then(|| content(rest, None, 0)), Some(ChatEvent::Finished { reason, usage, figures }))
        }
        failed @ ChatEvent::Failed(_) => (None, Some(failed)),
    };
    first.into_iter().chain(second)
}

/// An event with calls told from text; before the end, what was held back.
fn called(parser: &mut CallParser, event: ChatEvent) -> impl Iterator<Item = ChatEvent> + use<> {
    let (first, second) = match event {
        ChatEvent::Content { text, reasoning, logprobs, n_tokens, .. } => {
            let Parsed { content, calls } = parser.push(&text);
            (Some(ChatEvent::Content { text: content, reasoning, calls, logprobs, n_tokens }), None)
        }
        ChatEvent::Finished { reason, usage, figures } => {
            let Parsed { content, calls } = parser.finish();
            let rest = (!content.is_empty()).then(|| ChatEvent::Content {
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
            (rest, Some(ChatEvent::Finished { reason, usage, figures }))
        }
        failed @ ChatEvent::Failed(_) => (None, Some(failed)),
    };
    first.into_iter().chain(second)
}

impl Source {
    async fn next(&mut self) -> Option<(usize, ChatEvent)> {
        let (generations, first) = match self {
            Self::Cache { answer, n_given } => {
                let (choice, event) = answer.events.get(*n_given)?;
                *n_given += 1;
                return Some((*choice, event.again()));
            }
            Self::Model { generations, turn, .. } => (generations, turn),
        };
        let n_choices = generations.len();
        poll_fn(|context| {
            let mut has_more = false;
            for turn in *first..*first + n_choices {
                let choice = turn % n_choices;
                match generations[choice].poll_next(context) {
                    Poll::Ready(Some(event)) => {
                        *first = choice + 1;
                        return Poll::Ready(Some((choice, ChatEvent::from(event))));
                    }
                    Poll::Ready(None) => {}
                    Poll::Pending => has_more = true,
                }
            }
            if has_more { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }
}
