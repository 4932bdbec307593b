//! `POST /api/chat` and `POST /api/generate`, Ollama's API.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::response::Response;
use serde_json::{Map, Value};

use super::generation::GenerationRoute;
use crate::app::ServedChat;
use crate::chat::{Caller, ChatEvent, ChatStream, GenerationStats};
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, check_params};
use crate::http::generation_response::{
    CompletedChoice, Envelope, EventEncoder, RequestLog, StreamUsage, encode_lines, json_line, space_ping,
};
use crate::http::middleware::request_id::RequestId;
use crate::http::retry::dedup::to_json;
use crate::ollama::params::{self, check_options};
use crate::ollama::responses::{OllamaEnd, OllamaParts, OllamaResponse, OllamaTimes};
use crate::ollama::{OllamaNames, OllamaPrompt, OllamaSurface, OllamaTranslation};
use crate::openai::chat::{FinishReason, TokenLogprob, ToolCall, Usage};
use crate::openai::generation_options::GenerationOptions;

/// A route that generates.
pub struct OllamaRoute<S> {
    clock: RequestClock,
    names: OllamaNames,
    surface: PhantomData<fn() -> S>,
}

/// The times of a request that the engine does not know.
#[derive(Clone, Copy)]
struct RequestClock {
    began: Instant,
    load: Duration,
}

impl RequestClock {
    /// The times of a request whose model has been loaded since it `began`.
    fn since(began: Instant) -> Self {
        Self { began, load: began.elapsed() }
    }

    /// The end of a response.
    fn end(self, reason: Option<FinishReason>, usage: &Usage, stats: Option<GenerationStats>) -> OllamaEnd {
        let timings = stats.map(|stats| stats.timings).unwrap_or_default();
        let times = OllamaTimes {
            total: self.began.elapsed(),
            load: self.load,
            prefill: timings.prefill,
            decode: timings.decode,
        };
        OllamaEnd::new(reason, usage, times)
    }
}

impl<S: OllamaSurface> GenerationRoute for OllamaRoute<S> {
    const PATH: &'static str = S::PATH;
    const LOG_NAME: &'static str = S::LOG_NAME;
    /// Responses have no ids.
    const ID_PREFIX: &'static str = "";
    type Request = OllamaTranslation;
    type Response = OllamaResponse<S>;

    fn parse(object: Map<String, Value>) -> Result<(OllamaTranslation, IgnoredParams)> {
        let (object, mut ignored) = check_params(object, S::PARAMS, params::NESTED)?;
        ignored.extend(check_options(&object)?);
        let mut request = S::translate(object)?;
        ignored.extend(std::mem::take(&mut request.ignored));
        Ok((request, ignored))
    }

    fn options(request: &OllamaTranslation) -> &GenerationOptions {
        request.options()
    }

    async fn start(
        chat: &ServedChat,
        request: OllamaTranslation,
        caller: Caller,
    ) -> Result<(ChatStream, Self)> {
        let OllamaTranslation { prompt, names, .. } = request;
        let began = Instant::now();
        let model = chat.load().await?;
        let clock = RequestClock::since(began);
        // A limit beyond the context is none, but is named.
        let within_context = |options: &mut GenerationOptions| {
            options.max_tokens = options.max_tokens.map(|n| model.limit_within_context(n));
        };
        let started = match prompt {
            OllamaPrompt::Chat(mut request) => {
                within_context(&mut request.options);
                chat.start_chat(*request, caller).await
            }
            OllamaPrompt::Text(mut request) => {
                within_context(&mut request.options);
                chat.start_completion(*request, caller).await.map(|completion| completion.stream)
            }
        };
        match started {
            Ok(stream) => Ok((stream, Self { clock, names, surface: PhantomData })),
            Err(e) => Err(names.rename_error(e)),
        }
    }

    async fn load(chat: &ServedChat, request: &OllamaTranslation) -> Result<Option<OllamaResponse<S>>> {
        let OllamaTranslation { prompt: OllamaPrompt::Chat(parameters), is_load: true, .. } = request else {
            return Ok(None);
        };
        let began = Instant::now();
        let model = chat.load().await?;
        let end = RequestClock::since(began).end(None, &Usage::default(), None);
        model.check_parameters(parameters).map_err(|e| request.names.rename_error(e))?;
        Ok(Some(response(chat.id(), OllamaParts::default(), None, Some(end))))
    }

    fn ignored_name(&self, path: &str) -> Option<String> {
        self.names.rename_path(path)
    }

    fn stream(self, stream: ChatStream, envelope: Envelope, _: StreamUsage, log: RequestLog) -> Response {
        let encoder = LineEncoder::<S> {
            model: envelope.model,
            clock: self.clock,
            choice: CompletedChoice::default(),
            n_sent_calls: 0,
            surface: PhantomData,
        };
        encode_lines(stream, encoder, log)
    }

    fn error_body(error: ApiError, _: &RequestId) -> Bytes {
        to_json(&error.into_ollama_body()).unwrap_or_default()
    }

    fn response(self, envelope: Envelope, choices: Vec<CompletedChoice>, usage: Usage) -> OllamaResponse<S> {
        // There is always one.
        let choice = choices.into_iter().next().unwrap_or_default();
        let CompletedChoice { text, reasoning: thinking, calls, logprobs, reason, stats, .. } = choice;
        let logprobs = Some(logprobs).filter(|logprobs| !logprobs.is_empty());
        let end = self.clock.end(Some(reason), &usage, stats);
        response(&envelope.model, OllamaParts { text, thinking, calls }, logprobs, Some(end))
    }
}

/// A response or line of the model called `model`, made now.
fn response<S: OllamaSurface>(
    model: &str,
    parts: OllamaParts,
    logprobs: Option<Vec<TokenLogprob>>,
    end: Option<OllamaEnd>,
) -> OllamaResponse<S> {
    OllamaResponse {
        model: model.to_owned(),
        created_at: jiff::Timestamp::now().to_string(),
        surface: S::from_parts(parts),
        logprobs,
        done: end.is_some(),
        end,
    }
}

/// Encodes the events of a response as lines of JSON. A call is sent as a whole, once it is complete.
struct LineEncoder<S> {
    model: String,
    clock: RequestClock,
    /// Collects the calls.
    choice: CompletedChoice,
    n_sent_calls: usize,
    surface: PhantomData<fn() -> S>,
}

impl<S: OllamaSurface> LineEncoder<S> {
    fn line(&self, parts: OllamaParts, logprobs: Option<Vec<TokenLogprob>>, end: Option<OllamaEnd>) -> Bytes {
        json_line(&response::<S>(&self.model, parts, logprobs, end))
    }

    /// The calls that are complete and not sent yet: all but the last, or all `at_end`.
    fn complete_calls(&mut self, at_end: bool) -> Vec<ToolCall> {
        let n_complete = self.choice.calls.len().saturating_sub(usize::from(!at_end));
        let calls = self.choice.calls[self.n_sent_calls.min(n_complete)..n_complete].to_vec();
        self.n_sent_calls += calls.len();
        calls
    }
}

impl<S: OllamaSurface> EventEncoder for LineEncoder<S> {
    type Item = Bytes;

    fn start(&mut self) -> Vec<Bytes> {
        Vec::new()
    }

    fn encode_event(&mut self, _: usize, event: ChatEvent, _: bool) -> Vec<Bytes> {
        match event {
            ChatEvent::Content { text, reasoning: thinking, calls, logprobs, .. } => {
                calls.into_iter().for_each(|call| self.choice.push_call(call));
                let parts = OllamaParts { text, thinking, calls: self.complete_calls(false) };
                let logprobs = logprobs.map(|logprobs| logprobs.content);
                let has_more = !parts.is_empty() || logprobs.is_some();
                has_more.then(|| self.line(parts, logprobs, None)).into_iter().collect()
            }
            ChatEvent::Finished { reason, usage, stats, .. } => {
                let rest = OllamaParts { calls: self.complete_calls(true), ..OllamaParts::default() };
                let end = self.clock.end(Some(reason), &usage, stats);
                let rest = (!rest.is_empty()).then(|| self.line(rest, None, None));
                let end = self.line(OllamaParts::default(), None, Some(end));
                rest.into_iter().chain([end]).collect()
            }
            ChatEvent::Failed(e) => vec![json_line(&ApiError::from(e).into_ollama_body())],
        }
    }

    fn ping(&self) -> Bytes {
        space_ping()
    }
}
