//! `POST /v1/completions`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::generation::GenerationRoute;
use crate::app::ServedChat;
use crate::chat::{ChatStream, CompletionStream};
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
    /// Number of likeliest tokens to return with each token, if log probabilities are requested.
    n_top: Option<u64>,
    /// Position of each choice's next token in its text, in characters.
    offsets: Vec<usize>,
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
        let n_top = request.logprobs;
        let CompletionStream { stream, echo, n } = chat.start_completion(request, tenant).await?;
        let offsets = vec![0; stream.n_choices()];
        let route = Self { echo, n, n_prompts: stream.n_prompts(), n_top, offsets };
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
                    logprobs: self.n_top.map(|n_top| completion_logprobs(logprobs, n_top, &mut 0)),
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
            // Sent even without echo, so that the client sees that the prompt is being computed.
            ChoicePart::Start => (self.echo.get(index / self.n).cloned().unwrap_or_default(), None, None),
            ChoicePart::Text { text, logprobs, .. } => (text, logprobs, None),
            ChoicePart::End(reason) => (String::new(), None, Some(reason)),
        };
        let offset = &mut self.offsets[index];
        let logprobs = logprobs
            .zip(self.n_top)
            .map(|(logprobs, n_top)| completion_logprobs(logprobs.content, n_top, offset));
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
/// advanced past the last.
fn completion_logprobs(logprobs: Vec<TokenLogprob>, n_top: u64, offset: &mut usize) -> CompletionLogprobs {
    let mut all =
        CompletionLogprobs { top_logprobs: (n_top > 0).then(Vec::new), ..CompletionLogprobs::default() };
    for TokenLogprob { token, logprob, top_logprobs, .. } in logprobs {
        all.text_offset.push(*offset);
        *offset += token.chars().count();
        all.tokens.push(token);
        all.token_logprobs.push(logprob);
        if let Some(all) = &mut all.top_logprobs {
            all.push(top_logprobs.into_iter().map(|top| (top.token, top.logprob)).collect());
        }
    }
    all
}
