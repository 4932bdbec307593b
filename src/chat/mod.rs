//! Messages in, deltas out.
//!
//! A [`ChatModel`] turns a conversation into a prompt with the model's own template, hands it to
//! the engine, and turns the engine's events into what the API says. It knows no tensors.

mod completion;
mod reasoning;
mod request;
mod responses;
mod shown;
mod structured;
pub mod template;
mod tools;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use serde_json::{Map, Value};

pub use completion::CompletionStream;
use reasoning::{Reasoning, Split};
pub use responses::ResponseCache;
use responses::{Answer, Recording};
use structured::Asked;
pub use template::{ChatTemplate, TemplateSource};
use template::{TemplateInput, TemplateMessage};
use tools::{CallParser, Format, Parsed, Tools};

use crate::error::{Error, Result};
use crate::inference::grammar::Preamble;
use crate::inference::{self, Admission, Constraint, Engine, Event, Generation, Timings};
use crate::openai::chat::{
    ChatCompletionRequest, ChoiceLogprobs, CompletionTokensDetails, FinishReason, PromptTokensDetails,
    ReasoningEffort, TokenLogprob, ToolCallDelta, TopLogprob, Usage,
};
use crate::tokenizer::Tokenizer;

/// Prompts are counted in pieces of this many bytes per token of the context, and at least so many:
/// more than most texts take, so that most prompts are one piece, which needs no counting.
const PIECE_BYTES_PER_TOKEN: usize = 8;
const MIN_PIECE_BYTES: usize = 1 << 14;

/// Tokens that a piece may have more than the same text has in its place, for what is cut in two at
/// its ends.
const CUT_TOKENS: usize = 128;

/// Bytes that more than `n_tokens` tokens take in most texts.
fn piece_bytes(n_tokens: usize) -> usize {
    n_tokens.saturating_mul(PIECE_BYTES_PER_TOKEN).max(MIN_PIECE_BYTES)
}

/// What a conversation becomes.
struct Prompt {
    tokens: Vec<u32>,
    /// Paths of what it does not show of the request.
    ignored_fields: Vec<String>,
    /// Tells thoughts from the answer, where there will be some.
    reasoning: Option<Reasoning>,
    /// How the model writes calls.
    format: &'static Format,
}

/// How a prompt of more than `most` tokens is cut: so many of the first and of the last stay.
struct Cut {
    most: usize,
    n_first: usize,
    n_last: usize,
}

/// A chat model that is ready to answer.
pub struct ChatModel {
    template: ChatTemplate,
    tokenizer: Arc<Tokenizer>,
    engine: Engine,
    fingerprint: String,
}

/// An answer of one choice or several, in the making or given before. Dropping it cancels what is in the
/// making.
pub struct ChatStream {
    source: Source,
    fingerprint: String,
    ignored_fields: Vec<String>,
    n_choices: usize,
    /// How many prompts it answers, each with as many choices, one prompt's after another's.
    n_prompts: usize,
    /// Of each choice, where the model thinks before it answers.
    reasoning: Vec<Reasoning>,
    /// Of each choice, where something may be called.
    calls: Vec<CallParser>,
    /// Events that come next.
    pending: VecDeque<(usize, ChatEvent)>,
    recording: Option<Recording>,
}

/// Where an answer comes from.
enum Source {
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

/// What an answer is made of: [`ChatEvent::Content`] any number of times, then one of the others.
#[derive(Debug, Clone)]
pub enum ChatEvent {
    Content {
        text: String,
        /// What was thought, before all that is said.
        reasoning: String,
        /// What is called, after all that is said.
        calls: Vec<ToolCallDelta>,
        logprobs: Option<ChoiceLogprobs>,
        /// Tokens of both.
        n_tokens: usize,
    },
    /// There are no figures of what was not computed.
    Finished {
        reason: FinishReason,
        usage: Usage,
        figures: Option<Figures>,
    },
    Failed(Error),
}

/// What a finished answer cost, for the log.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub timings: Timings,
    pub repeat_penalty: inference::RepeatPenaltyStats,
}

impl ChatModel {
    /// `fingerprint` changes when the same request may be answered differently.
    pub fn new(
        template: ChatTemplate,
        tokenizer: Arc<Tokenizer>,
        engine: Engine,
        fingerprint: String,
    ) -> Self {
        Self { template, tokenizer, engine, fingerprint }
    }

    /// Changes when the same request may be answered differently.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Ends the engine and waits until the model's memory is free.
    pub fn shut_down(self) {
        self.engine.shut_down();
    }

    /// Takes a place for a request, before anything is computed for it.
    ///
    /// # Errors
    /// When the queue is full; the error says when to come back.
    pub fn admit(&self) -> Result<Admission> {
        self.engine.admit()
    }

    /// Starts to answer a conversation that has a place, for `tenant`.
    ///
    /// # Errors
    /// When a parameter is out of its range, the template refuses the messages, or the prompt does
    /// not fit the context.
    pub fn answer(
        self: &Arc<Self>,
        admission: Admission,
        request: &ChatCompletionRequest,
        tenant: Arc<str>,
    ) -> Result<ChatStream> {
        // The parameters first: checking them costs nothing.
        let mut generation = request::generation_request(request, tenant)?;
        let n_choices = request::n_choices(request)?;
        generation.predicted = self.predicted(request)?;
        let tools = Tools::of(request)?;
        let mut asked = structured::asked(request)?;
        let Prompt { tokens, ignored_fields, reasoning, format } =
            self.prompt(request, tools.as_ref(), generation.max_tokens)?;
        generation.prompt = tokens;
        let special = |text: &str| self.tokenizer.special(text);
        if let Some(tools) = &tools {
            let marks = [format.open, format.close].into_iter().chain(format.named_by);
            generation.shown_tokens = marks.filter_map(special).collect();
            asked = tools::asked(tools, format, special, asked)?;
        }
        let generation_is_free = asked.is_none();
        generation.constraint = self.constraint(asked, reasoning.as_ref())?;
        let generations = self.engine.submit(self.places(admission, n_choices)?, generation)?;
        let reasoning = vec![reasoning; n_choices].into_iter().flatten().collect();
        // What a grammar takes for text is no call.
        let reads_unmarked = format.is_open_optional || generation_is_free;
        let calls = tools.map(|tools| CallParser::new(format, tools.names(), reads_unmarked));
        let calls = vec![calls; n_choices].into_iter().flatten().collect();
        Ok(ChatStream { reasoning, calls, ..self.stream(generations, 1, ignored_fields) })
    }

    /// Variables for the template: the client's own, and what stands for the effort to reason.
    fn variables(&self, request: &ChatCompletionRequest) -> Result<Map<String, Value>> {
        let mut variables = request.chat_template_kwargs.clone().unwrap_or_default();
        let Some(effort) = request.reasoning_effort else { return Ok(variables) };
        let thinks = effort != ReasoningEffort::None;
        let known = ["reasoning_effort", "enable_thinking"].into_iter().find(|name| self.template.uses(name));
        match known {
            Some(name @ "reasoning_effort") => {
                variables.entry(name).or_insert(serde_json::to_value(effort).unwrap_or_default());
            }
            Some(name) => {
                variables.entry(name).or_insert(thinks.into());
            }
            None if thinks => {
                return Err(Error::invalid(
                    "reasoning_effort",
                    "this model's template knows no effort to reason; leave `reasoning_effort` out",
                ));
            }
            None => {}
        }
        Ok(variables)
    }

    /// What keeps an answer to what is asked for, once the model has thought.
    fn constraint(&self, asked: Option<Asked>, reasoning: Option<&Reasoning>) -> Result<Option<Constraint>> {
        let Some(Asked { param, grammar }) = asked else { return Ok(None) };
        let constraint = self.engine.constrain(&grammar).map_err(|e| e.with_param(param))?;
        Ok(Some(match reasoning {
            None => constraint,
            Some(reasoning) => constraint.after(Preamble {
                open: self.tokenizer.single(reasoning::OPEN),
                is_open: reasoning.is_open(),
                close: reasoning::CLOSE.to_owned(),
            }),
        }))
    }

    /// Token ids of what the client predicts, of which no more is of use than a context holds.
    fn predicted(&self, request: &ChatCompletionRequest) -> Result<Vec<u32>> {
        let Some(text) = request::prediction(request)? else { return Ok(Vec::new()) };
        let context_length = self.engine.context_length();
        let mut tokens =
            self.tokenizer.encode(&text[..text.floor_char_boundary(piece_bytes(context_length))])?;
        tokens.truncate(context_length);
        Ok(tokens)
    }

    /// So many places in the queue, of which one is there.
    fn places(&self, first: Admission, n: usize) -> Result<Vec<Admission>> {
        [Ok(first)].into_iter().chain((1..n).map(|_| self.admit())).collect()
    }

    /// The answer to `n_prompts` prompts.
    fn stream(
        self: &Arc<Self>,
        generations: Vec<Generation>,
        n_prompts: usize,
        ignored_fields: Vec<String>,
    ) -> ChatStream {
        ChatStream {
            n_choices: generations.len(),
            n_prompts,
            source: Source::Model { generations, turn: 0, _model: self.clone() },
            fingerprint: self.fingerprint.clone(),
            ignored_fields,
            reasoning: Vec::new(),
            calls: Vec::new(),
            pending: VecDeque::new(),
            recording: None,
        }
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Token ids of a conversation's prompt.
    ///
    /// # Errors
    /// When the template refuses the messages, or the prompt does not fit the context.
    pub fn prompt_tokens(&self, request: &ChatCompletionRequest) -> Result<Vec<u32>> {
        Ok(self.prompt(request, Tools::of(request)?.as_ref(), 0)?.tokens)
    }

    /// The engine behind this model.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The prompt for an answer of up to `max_tokens`. Whatever a message says stays text: special tokens in it are broken up before the template runs and put
    /// together again, as text, after.
    fn prompt(
        &self,
        request: &ChatCompletionRequest,
        tools: Option<&Tools>,
        max_tokens: usize,
    ) -> Result<Prompt> {
        let context_length = self.engine.context_length();
        let most = request::most_prompt_tokens(request, context_length, max_tokens)?;
        let mut messages = request::template_messages(&request.messages, self.template.knows_developer())?;
        let format = Format::of(|text| self.template.says(text));
        let mut tools = Value::Array(tools.map(Tools::for_template).unwrap_or_default());
        let mut options = Value::Object(self.variables(request)?);
        let mut texts = messages.iter().flat_map(request::texts).collect::<Vec<&str>>();
        request::collect_texts(&options, &mut texts);
        request::collect_texts(&tools, &mut texts);
        let marker = Tokenizer::free_marker(texts.iter().copied()).ok_or_else(|| {
            Error::invalid(
                "messages",
                "the messages use every Unicode noncharacter from U+FDD0 to U+FDEF; leave one out",
            )
        })?;
        let defuse = |text: &str| self.tokenizer.defuse(text, marker);
        messages.iter_mut().for_each(|message| request::map_texts(message, &defuse));
        request::rewrite_texts(&mut options, &defuse);
        request::rewrite_texts(&mut tools, &defuse);
        let tools = tools.as_array().filter(|tools| !tools.is_empty());
        let tools = tools::show(&self.template, format, &mut messages, tools.map(Vec::as_slice));
        let options = options.as_object().cloned().unwrap_or_default();
        let now = jiff::Zoned::now().datetime();
        let render_with = |messages: &[TemplateMessage], options: &Map<String, Value>| {
            self.template.render(TemplateInput {
                messages,
                tools,
                documents: None,
                add_generation_prompt: true,
                options: options.clone(),
                now,
            })
        };
        let render = |messages: &[TemplateMessage]| render_with(messages, &options);
        let prompt = render(&messages)?;
        let mut ignored_fields = shown::ignored_fields(&messages, &prompt, render)?;
        if !options.is_empty() && render_with(&messages, &Map::new()).is_ok_and(|without| without == prompt) {
            ignored_fields.push("chat_template_kwargs".to_owned());
        }
        let (tokens, lacks_middle) = self.encode(&prompt, Some(marker), most)?;
        if lacks_middle {
            ignored_fields.push("messages".to_owned());
        }
        let reasoning = self.template.reasons().then(|| Reasoning::after(&prompt));
        Ok(Prompt { tokens, ignored_fields, reasoning, format })
    }

    /// Token ids of a prompt, of which the client wants the last `most` if it says so; and whether its middle was
    /// left out, to which the client has not agreed.
    fn encode(&self, prompt: &str, marker: Option<char>, most: Option<usize>) -> Result<(Vec<u32>, bool)> {
        match (most, self.engine.shift()) {
            (Some(most), _) => {
                Ok((self.encode_cut(prompt, marker, Cut { most, n_first: 0, n_last: most })?.0, false))
            }
            (None, Some(shift)) => {
                let (n_first, n_last) = shift.kept();
                let cut = Cut { most: self.engine.context_length() - 1, n_first, n_last };
                self.encode_cut(prompt, marker, cut)
            }
            (None, None) => {
                self.check_length(prompt, marker)?;
                Ok((self.tokenizer.encode_prompt(prompt, marker)?, false))
            }
        }
    }

    /// Token ids of a prompt, cut if it is too long, and whether it was. Of a long one only as much is encoded as
    /// stays.
    fn encode_cut(&self, prompt: &str, marker: Option<char>, cut: Cut) -> Result<(Vec<u32>, bool)> {
        let Cut { most, n_first, n_last } = cut;
        let mut n_bytes = piece_bytes(most);
        let tokens = loop {
            let start = prompt.ceil_char_boundary(prompt.len().saturating_sub(n_bytes));
            let tokens = self.tokenizer.encode_prompt(&prompt[start..], marker)?;
            if start == 0 && tokens.len() <= most {
                return Ok((tokens, false));
            }
            if start == 0 || tokens.len() >= most + CUT_TOKENS {
                break tokens;
            }
            n_bytes *= 2;
        };
        let head = &prompt[..prompt.floor_char_boundary(MIN_PIECE_BYTES)];
        let head = if n_first > 0 { self.tokenizer.encode_prompt(head, marker)? } else { Vec::new() };
        let first = head.get(..n_first).unwrap_or(&head);
        Ok(([first, &tokens[tokens.len() - n_last..]].concat(), true))
    }

    /// Refuses a prompt that is far too long piece by piece: the tokens of a whole one could take a
    /// thousand times its own memory.
    fn check_length(&self, prompt: &str, marker: Option<char>) -> Result<()> {
        let context_length = self.engine.context_length();
        let piece_bytes = piece_bytes(context_length);
        let (mut n_tokens, mut rest) = (0, prompt);
        while rest.len() > piece_bytes || (n_tokens > 0 && !rest.is_empty()) {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(piece_bytes));
            n_tokens += self.tokenizer.encode_prompt(piece, marker)?.len().saturating_sub(CUT_TOKENS);
            if n_tokens > context_length {
                return Err(self.engine.too_long(&format!("more than {context_length}")));
            }
            rest = after;
        }
        Ok(())
    }
}

impl ChatStream {
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
        self.recording = Some(responses.record(key));
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
            self.recording = recording.push(choice, &event, self);
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

impl ChatEvent {
    /// The event of an answer that is given again: nothing of the prompt had to be computed.
    fn again(&self) -> Self {
        let mut event = self.clone();
        if let Self::Finished { usage, figures, .. } = &mut event {
            usage.prompt_tokens_details.cached_tokens = usage.prompt_tokens;
            *figures = None;
        }
        event
    }
}

impl From<Event> for ChatEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Text(delta) => ChatEvent::Content {
                text: delta.text,
                reasoning: String::new(),
                calls: Vec::new(),
                n_tokens: delta.n_tokens,
                logprobs: (!delta.logprobs.is_empty()).then(|| ChoiceLogprobs {
                    content: delta.logprobs.into_iter().map(token_logprob).collect(),
                    refusal: None,
                }),
            },
            Event::Finished(finished) => ChatEvent::Finished {
                reason: match finished.reason {
                    inference::FinishReason::Stop => FinishReason::Stop,
                    inference::FinishReason::Length => FinishReason::Length,
                },
                usage: Usage {
                    prompt_tokens: finished.prompt_tokens,
                    completion_tokens: finished.completion_tokens,
                    total_tokens: finished.prompt_tokens + finished.completion_tokens,
                    prompt_tokens_details: PromptTokensDetails { cached_tokens: finished.cached_tokens },
                    completion_tokens_details: CompletionTokensDetails::default(),
                },
                figures: Some(Figures { timings: finished.timings, repeat_penalty: finished.repeat_penalty }),
            },
            Event::Failed(e) => ChatEvent::Failed(e),
        }
    }
}

fn token_logprob(entry: inference::TokenLogprob) -> TokenLogprob {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    TokenLogprob {
        token: text(&entry.bytes),
        logprob: finite(entry.logprob),
        top_logprobs: entry
            .top
            .into_iter()
            .map(|(bytes, logprob)| TopLogprob { token: text(&bytes), logprob: finite(logprob), bytes })
            .collect(),
        bytes: entry.bytes,
    }
}

/// JSON has no infinity; OpenAI writes -9999 for what is next to impossible.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
