//! `POST /v1/completions`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::generation::GenerationRoute;
use crate::app::ServedChat;
use crate::chat::{ChatStream, CompletionStream, TextOffset};
use crate::error::Result;
use crate::http::generation_response::{ChoicePart, ChunkEncoder, CompletedChoice, Envelope};
use crate::openai::chat::{TokenLogprob, Usage};
use crate::openai::completions::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest};
use crate::openai::generation_options::GenerationOptions;
use crate::openai::params::{self, ParamTable};

/// The route and encoder of text completions.
pub struct CompletionRoute {
    /// The prompts to put before the texts, if requested.
    echo: Vec<String>,
    /// Number of texts to return for each prompt.
    n: usize,
    n_prompts: usize,
    /// Whether log probabilities are requested.
    has_logprobs: bool,
    /// Position of each choice's next token in its text.
    offsets: Vec<TextOffset>,
}

impl GenerationRoute for CompletionRoute {
    const PATH: &'static str = "/v1/completions";
    const PARAMS: ParamTable = params::COMPLETIONS;
    const LOG_NAME: &'static str = "completion";
    const ID_PREFIX: &'static str = "cmpl";
    type Request = CompletionRequest;
    type Response = Completion;

    fn parse(object: Map<String, Value>) -> Result<CompletionRequest> {
        CompletionRequest::from_object(object)
    }

    fn options(request: &CompletionRequest) -> &GenerationOptions {
        &request.options
    }

    async fn start(
        chat: &ServedChat,
        request: CompletionRequest,
        tenant: Arc<str>,
    ) -> Result<(ChatStream, Self)> {
        let has_logprobs = request.logprobs.is_some();
        let CompletionStream { stream, echo, n } = chat.start_completion(request, tenant).await?;
        let offsets = (0..stream.n_choices()).map(|_| TextOffset::default()).collect();
        let route = Self { echo, n, n_prompts: stream.n_prompts(), has_logprobs, offsets };
        Ok((stream, route))
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
            for CompletedChoice { text, logprobs, reason, .. } in prompt_texts.into_iter().take(self.n) {
                let echo = self.echo.get(prompt).map_or("", String::as_str);
                choices.push(CompletionChoice {
                    index: choices.len(),
                    text: format!("{echo}{text}"),
                    logprobs: self
                        .has_logprobs
                        .then(|| completion_logprobs(logprobs, &mut TextOffset::default())),
                    finish_reason: Some(reason),
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
        let (text, logprobs, finish_reason) = match part {
            ChoicePart::Start => (self.echo.get(index / self.n).cloned().unwrap_or_default(), None, None),
            ChoicePart::Text { text, logprobs, .. } => (text, logprobs, None),
            ChoicePart::End(reason) => (String::new(), None, Some(reason)),
        };
        if text.is_empty() && logprobs.is_none() && finish_reason.is_none() {
            return None;
        }
        let offset = &mut self.offsets[index];
        let logprobs = logprobs
            .filter(|_| self.has_logprobs)
            .map(|logprobs| completion_logprobs(logprobs.content, offset));
        let choice = CompletionChoice { index, text, logprobs, finish_reason };
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

/// Converts log probabilities to the form of text completions. `offset` is the position of the first token, and is
/// moved past the last.
fn completion_logprobs(logprobs: Vec<TokenLogprob>, offset: &mut TextOffset) -> CompletionLogprobs {
    let mut all = CompletionLogprobs::default();
    for TokenLogprob { logprob, bytes, top_logprobs, .. } in logprobs {
        let token = legacy_token(&bytes);
        let mut top: BTreeMap<String, f32> =
            top_logprobs.into_iter().map(|top| (legacy_token(&top.bytes), top.logprob)).collect();
        // The drawn token may be none of the likeliest.
        top.insert(token.clone(), logprob);
        all.text_offset.push(offset.advance(&bytes));
        all.tokens.push(token);
        all.token_logprobs.push(logprob);
        all.top_logprobs.push(top);
    }
    all
}

/// The text of a token, or its bytes in OpenAI's notation where they are only a part of a character.
fn legacy_token(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}
