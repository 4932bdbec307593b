//! `POST /v1/completions`.

use std::collections::BTreeMap;

use axum::response::Response;
use serde_json::{Map, Value};

use super::generation::GenerationRoute;
use crate::app::ServedChat;
use crate::chat::Caller;
use crate::chat::{ChatStream, CompletionStream, PromptToken, TextOffset, prompt_logprobs};
use crate::error::Result;
use crate::http::extract::{IgnoredParams, check_params};
use crate::http::generation_response::{
    ChoicePart, ChunkEncoder, CompletedChoice, Envelope, RequestLog, StreamUsage, stream_events,
};
use crate::openai::chat::{TokenLogprob, Usage};
use crate::openai::completions::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest};
use crate::openai::generation_options::GenerationOptions;
use crate::openai::params;

/// The route and encoder of text completions.
pub struct CompletionRoute {
    /// The prompts to put before the texts, if requested.
    echo: Vec<String>,
    /// Number of texts to return for each prompt.
    n: usize,
    n_prompts: usize,
    /// How many of the likeliest tokens are requested at each position; `None` for no log probabilities.
    n_top: Option<u64>,
    /// How many of the likeliest tokens are requested at each position of the prompt, beside those of an echo.
    n_prompt_top: Option<u64>,
    /// Position of each choice's next token in its text.
    offsets: Vec<TextOffset>,
}

impl GenerationRoute for CompletionRoute {
    const PATH: &'static str = "/v1/completions";
    const LOG_NAME: &'static str = "completion";
    const ID_PREFIX: &'static str = "cmpl-";
    type Request = CompletionRequest;
    type Response = Completion;

    fn parse(object: Map<String, Value>) -> Result<(CompletionRequest, IgnoredParams)> {
        let (object, ignored) = check_params(object, params::COMPLETIONS, params::NESTED)?;
        Ok((CompletionRequest::from_object(object)?, ignored))
    }

    fn options(request: &CompletionRequest) -> &GenerationOptions {
        &request.options
    }

    async fn start(
        chat: &ServedChat,
        request: CompletionRequest,
        caller: Caller,
    ) -> Result<(ChatStream, Self)> {
        let (n_top, n_prompt_top) = (request.logprobs, request.options.prompt_logprobs);
        let CompletionStream { stream, echo, n } = chat.start_completion(request, caller).await?;
        let offsets = (0..stream.n_choices()).map(|_| TextOffset::default()).collect();
        let route = Self { echo, n, n_prompts: stream.n_prompts(), n_top, n_prompt_top, offsets };
        Ok((stream, route))
    }

    fn stream(self, stream: ChatStream, envelope: Envelope, usage: StreamUsage, log: RequestLog) -> Response {
        stream_events(stream, envelope, self, usage, log)
    }

    fn response(self, envelope: Envelope, mut texts: Vec<CompletedChoice>, usage: Usage) -> Completion {
        let best_of = texts.len() / self.n_prompts;
        let mut choices = Vec::new();
        for prompt in 0..self.n_prompts {
            let mut prompt_texts: Vec<CompletedChoice> = texts.drain(..best_of).collect();
            if best_of > self.n {
                // A stable sort keeps equally likely texts in order.
                prompt_texts.sort_by(|a, b| mean_logprob(&b.logprobs).total_cmp(&mean_logprob(&a.logprobs)));
            }
            for choice in prompt_texts.into_iter().take(self.n) {
                let CompletedChoice { text, logprobs, scored_prompt, reason, .. } = choice;
                let echo = self.echo.get(prompt).map_or("", String::as_str);
                let scored_prompt = scored_prompt.as_deref();
                let prompt_logprobs = scored_prompt
                    .zip(self.n_prompt_top)
                    .map(|(tokens, n_top)| prompt_logprobs(tokens, n_top as usize));
                let logprobs = self.n_top.map(|n_top| {
                    let (mut all, mut offset) = (CompletionLogprobs::default(), TextOffset::default());
                    if let Some(tokens) = scored_prompt.filter(|_| !self.echo.is_empty()) {
                        push_prompt(&mut all, tokens, n_top, echo, &mut offset);
                    }
                    push_tokens(&mut all, logprobs, &mut offset);
                    all
                });
                choices.push(CompletionChoice {
                    index: choices.len(),
                    text: format!("{echo}{text}"),
                    logprobs,
                    finish_reason: Some(reason),
                    prompt_logprobs,
                });
            }
        }
        completion(envelope, choices, Some(Some(usage)))
    }
}

impl ChunkEncoder for CompletionRoute {
    type Chunk = Completion;

    fn encode(
        &mut self,
        envelope: &Envelope,
        part: Option<(usize, ChoicePart)>,
        usage: Option<Option<Usage>>,
    ) -> Option<Completion> {
        let Some((index, part)) = part else {
            return Some(completion(envelope.clone(), Vec::new(), usage));
        };
        let echo = self.echo.get(index / self.n).cloned().unwrap_or_default();
        let offset = &mut self.offsets[index];
        let mut all = CompletionLogprobs::default();
        let (text, finish_reason) = match part {
            // An echo with log probabilities waits for them.
            ChoicePart::Start if self.n_top.is_some() => return None,
            ChoicePart::Start => (echo, None),
            ChoicePart::ScoredPrompt(tokens) => {
                let n_top = self.n_top.unwrap_or_default();
                push_prompt(&mut all, &tokens, n_top, &echo, offset);
                (echo, None)
            }
            ChoicePart::Text { text, logprobs, .. } => {
                push_tokens(&mut all, logprobs.map(|logprobs| logprobs.content).unwrap_or_default(), offset);
                (text, None)
            }
            ChoicePart::End(reason) => (String::new(), Some(reason)),
        };
        let logprobs = Some(all).filter(|all| self.n_top.is_some() && !all.tokens.is_empty());
        if text.is_empty() && logprobs.is_none() && finish_reason.is_none() {
            return None;
        }
        let choice = CompletionChoice { index, text, logprobs, finish_reason, prompt_logprobs: None };
        Some(completion(envelope.clone(), vec![choice], usage))
    }
}

fn completion(
    envelope: Envelope,
    choices: Vec<CompletionChoice>,
    usage: Option<Option<Usage>>,
) -> Completion {
    let Envelope { id, created, model, system_fingerprint } = envelope;
    Completion { id, object: "text_completion", created, model, choices, system_fingerprint, usage }
}

/// The mean log probability of a text's tokens, by which `best_of` ranks texts.
fn mean_logprob(logprobs: &[TokenLogprob]) -> f32 {
    let sum: f32 = logprobs.iter().map(|token| token.logprob).sum();
    sum / logprobs.len().max(1) as f32
}

/// Adds the tokens of a prompt that is echoed as `echo`, each with `n_top` of the likeliest ones. `offset` is moved past
/// them.
fn push_prompt(
    all: &mut CompletionLogprobs,
    tokens: &[PromptToken],
    n_top: u64,
    echo: &str,
    offset: &mut TextOffset,
) {
    for token in tokens {
        let text = legacy_token(&token.bytes);
        let top = token.logprob.map(|logprob| {
            let top = token.top.iter().take(n_top as usize);
            let top = top.filter_map(|top| Some((legacy_token(&top.bytes), top.logprob?)));
            top.chain([(text.clone(), logprob)]).collect()
        });
        all.text_offset.push(offset.advance_in(echo, &token.bytes));
        all.tokens.push(text);
        all.token_logprobs.push(token.logprob);
        all.top_logprobs.push(top);
    }
}

/// Adds generated tokens. `offset` is the position of the first one, and is moved past the last.
fn push_tokens(all: &mut CompletionLogprobs, logprobs: Vec<TokenLogprob>, offset: &mut TextOffset) {
    for TokenLogprob { logprob, bytes, top_logprobs, .. } in logprobs {
        let token = legacy_token(&bytes);
        let mut top: BTreeMap<String, f32> =
            top_logprobs.into_iter().map(|top| (legacy_token(&top.bytes), top.logprob)).collect();
        // The drawn token may be none of the likeliest.
        top.insert(token.clone(), logprob);
        all.text_offset.push(offset.advance(&bytes));
        all.tokens.push(token);
        all.token_logprobs.push(Some(logprob));
        all.top_logprobs.push(Some(top));
    }
}

/// The text of a token, or its bytes in OpenAI's notation where they are only a part of a character.
fn legacy_token(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}
