//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::chat::CompletionStream;
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject};
use crate::http::generation_response::{
    self, ChoicePart, ChunkEncoder, CompletedChoice, Envelope, RequestLog,
};
use crate::http::middleware::request_id::RequestId;
use crate::http::retry::dedup::{Attempt, PendingResponse, RetryDedup};
use crate::http::retry::heartbeat;
use crate::openai::chat::{TokenLogprob, Usage};
use crate::openai::completions::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest};
use crate::openai::params;

/// Goes on with texts, whole or as a stream.
pub async fn completions(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(dedup): Extension<RetryDedup>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let tenant = generation_response::tenant_from_headers(&headers);
    let attempt = Attempt::from_request(&headers, &tenant, "/v1/completions", &body.0);
    let (object, ignored) = body.check_params(params::COMPLETIONS)?;
    let request = CompletionRequest::from_object(object)?;
    let options = &request.options;
    let streams = options.is_streamed();
    let include_usage = options.include_usage();
    let n_top = request.logprobs;
    let heartbeat = app.limits().heartbeat;
    let log = RequestLog::new(request_id.clone(), "completion");
    let begun = begin(app, request, tenant, ignored);
    if streams {
        let (CompletionStream { stream: answer, echo, n }, envelope, headers) = begun.await?;
        let encoder = TextChunkEncoder { echo, n, n_top, offsets: vec![0; answer.n_choices()] };
        return Ok((
            headers,
            generation_response::stream_events(answer, envelope, encoder, include_usage, log),
        )
            .into_response());
    }
    let work = async move {
        let (completion, envelope, headers) = begun.await?;
        Ok(PendingResponse::new(headers, whole(completion, envelope, n_top, log)))
    };
    heartbeat::respond(&dedup, attempt, heartbeat, request_id, work).await
}

/// Has the model begin its texts.
async fn begin(
    app: App,
    request: CompletionRequest,
    tenant: Arc<str>,
    mut ignored: IgnoredParams,
) -> Result<(CompletionStream, Envelope, HeaderMap)> {
    let slot = app.chat_slot(request.options.model.as_deref())?;
    let model_id = slot.served().id().to_owned();
    let model = app.chat_model(slot).await?;
    let admission = model.admit()?;
    let completion = app.compute(move || model.start_completion(admission, &request, tenant)).await??;
    ignored.extend(completion.stream.ignored_fields());
    let mut headers = HeaderMap::new();
    ignored.insert_into(&mut headers);
    let envelope = Envelope::new("cmpl", model_id, &completion.stream);
    Ok((completion, envelope, headers))
}

async fn whole(
    completion: CompletionStream,
    envelope: Envelope,
    n_top: Option<u64>,
    log: RequestLog,
) -> Result<Completion> {
    let CompletionStream { stream: answer, echo, n } = completion;
    let n_prompts = answer.n_prompts();
    let (mut texts, usage) = generation_response::collect_choices(answer, log).await?;
    let best_of = texts.len() / n_prompts;
    let mut choices = Vec::new();
    for prompt in 0..n_prompts {
        let mut of_prompt: Vec<CompletedChoice> = texts.drain(..best_of).collect();
        if best_of > n {
            // The first of equals stays the first.
            of_prompt.sort_by(|a, b| likelihood(&b.logprobs).total_cmp(&likelihood(&a.logprobs)));
        }
        for CompletedChoice { text, logprobs, reason, .. } in of_prompt.into_iter().take(n) {
            let echoed = echo.get(prompt).map_or("", String::as_str);
            choices.push(CompletionChoice {
                index: choices.len(),
                text: format!("{echoed}{text}"),
                logprobs: n_top.map(|n_top| legacy(logprobs, n_top, &mut 0)),
                finish_reason: Some(reason),
            });
        }
    }
    Ok(object(envelope, choices, Some(Some(usage))))
}

fn object(envelope: Envelope, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> Completion {
    let Envelope { id, created, model, system_fingerprint } = envelope;
    Completion { id, object: "text_completion", created, model, choices, system_fingerprint, usage }
}

/// The mean log-probability of a text's tokens: whose is highest is the best of several.
fn likelihood(logprobs: &[TokenLogprob]) -> f32 {
    let sum: f32 = logprobs.iter().map(|token| token.logprob).sum();
    sum / logprobs.len().max(1) as f32
}

/// Probabilities in the form that completions have; `offset` is where the first of the tokens begins and becomes
/// where the next will.
fn legacy(logprobs: Vec<TokenLogprob>, n_top: u64, offset: &mut usize) -> CompletionLogprobs {
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

/// Events of a completion.
struct TextChunkEncoder {
    /// The prompts, where they are to stand before the texts, and how many texts each has.
    echo: Vec<String>,
    n: usize,
    n_top: Option<u64>,
    /// Where the next token of each choice begins in its text.
    offsets: Vec<usize>,
}

impl ChunkEncoder for TextChunkEncoder {
    type Chunk = Completion;

    fn encode(
        &mut self,
        envelope: &Envelope,
        part: Option<(usize, ChoicePart)>,
        usage: Option<Option<Usage>>,
    ) -> Option<Completion> {
        let Some((index, part)) = part else { return Some(object(envelope.clone(), Vec::new(), usage)) };
        let (text, logprobs, finish_reason) = match part {
            // Whoever waits for the prompt to be computed sees that it is.
            ChoicePart::Start => (self.echo.get(index / self.n).cloned().unwrap_or_default(), None, None),
            ChoicePart::Text { text, logprobs, .. } => (text, logprobs, None),
            ChoicePart::End(reason) => (String::new(), None, Some(reason)),
        };
        let offset = &mut self.offsets[index];
        let logprobs =
            logprobs.zip(self.n_top).map(|(logprobs, n_top)| legacy(logprobs.content, n_top, offset));
        let choice = CompletionChoice { index, text, logprobs, finish_reason };
        Some(object(envelope.clone(), vec![choice], usage))
    }
}
