//! `POST /v1/chat/completions`.

use axum::response::Response;
use serde_json::{Map, Value};

use super::generation::GenerationRoute;
use crate::app::ServedChat;
use crate::chat::Caller;
use crate::chat::{ChatStream, prompt_logprobs};
use crate::error::Result;
use crate::http::extract::{IgnoredParams, check_params};
use crate::http::generation_response::{
    ChoicePart, ChunkEncoder, CompletedChoice, Envelope, RequestLog, StreamUsage, stream_events,
};
use crate::openai::chat::{
    AssistantMessage, ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, Choice, ChoiceLogprobs,
    ChunkChoice, Delta, Usage,
};
use crate::openai::generation_options::GenerationOptions;
use crate::openai::params;

/// The route and encoder of chat completions.
pub struct ChatRoute {
    /// Whether the response has log probabilities.
    has_logprobs: bool,
    /// Whether the response may be a call.
    may_call: bool,
}

impl GenerationRoute for ChatRoute {
    const PATH: &'static str = "/v1/chat/completions";
    const LOG_NAME: &'static str = "chat";
    const ID_PREFIX: &'static str = "chatcmpl-";
    type Request = ChatCompletionRequest;
    type Response = ChatCompletion;

    fn parse(object: Map<String, Value>) -> Result<(ChatCompletionRequest, IgnoredParams)> {
        let (object, ignored) = check_params(object, params::CHAT, params::NESTED)?;
        Ok((ChatCompletionRequest::from_object(object)?, ignored))
    }

    fn options(request: &ChatCompletionRequest) -> &GenerationOptions {
        &request.options
    }

    async fn start(
        chat: &ServedChat,
        request: ChatCompletionRequest,
        caller: Caller,
    ) -> Result<(ChatStream, Self)> {
        let route =
            Self { has_logprobs: request.logprobs.unwrap_or(false), may_call: request.offers_tools() };
        Ok((chat.start_chat(request, caller).await?, route))
    }

    fn stream(self, stream: ChatStream, envelope: Envelope, usage: StreamUsage, log: RequestLog) -> Response {
        stream_events(stream, envelope, self, usage, log)
    }

    fn response(self, envelope: Envelope, choices: Vec<CompletedChoice>, usage: Usage) -> ChatCompletion {
        let prompt = choices.first().and_then(|choice| choice.scored_prompt.clone());
        let prompt_logprobs = prompt.map(|prompt| prompt_logprobs(&prompt, usize::MAX));
        let choice = |(index, choice): (usize, CompletedChoice)| {
            let CompletedChoice { text, reasoning, calls: tool_calls, logprobs, reason, .. } = choice;
            let message = AssistantMessage {
                role: "assistant",
                content: Some(text).filter(|text| tool_calls.is_empty() || !text.is_empty()),
                refusal: None,
                reasoning_content: non_empty(reasoning),
                tool_calls,
            };
            let logprobs = self.has_logprobs.then_some(ChoiceLogprobs { content: logprobs, refusal: None });
            Choice { index, message, logprobs, finish_reason: reason }
        };
        let Envelope { id, created, model, system_fingerprint } = envelope;
        let choices = choices.into_iter().enumerate().map(choice).collect();
        ChatCompletion {
            id,
            object: "chat.completion",
            created,
            model,
            choices,
            usage,
            system_fingerprint,
            prompt_logprobs,
        }
    }
}

impl ChunkEncoder for ChatRoute {
    type Chunk = ChatCompletionChunk;

    fn encode(
        &mut self,
        envelope: &Envelope,
        part: Option<(usize, ChoicePart)>,
        usage: Option<Option<Usage>>,
    ) -> Option<ChatCompletionChunk> {
        let choice = match part {
            None => None,
            Some((index, part)) => {
                let (delta, logprobs, finish_reason) = match part {
                    ChoicePart::Start => {
                        let content = (!self.may_call).then(String::new);
                        let (role, content) = (Some("assistant"), Some(content));
                        (Delta { role, content, ..Delta::default() }, None, None)
                    }
                    // Only whole responses have them.
                    ChoicePart::ScoredPrompt(_) => return None,
                    // The text is held back because it may be the beginning of a tag.
                    ChoicePart::Text { text, reasoning, calls, logprobs: None }
                        if text.is_empty() && reasoning.is_empty() && calls.is_empty() =>
                    {
                        return None;
                    }
                    ChoicePart::Text { text, reasoning, calls: tool_calls, logprobs } => {
                        let (content, reasoning_content) = (non_empty(text).map(Some), non_empty(reasoning));
                        (Delta { content, reasoning_content, tool_calls, ..Delta::default() }, logprobs, None)
                    }
                    ChoicePart::End(reason) => (Delta::default(), None, Some(reason)),
                };
                Some(ChunkChoice { index, delta, logprobs, finish_reason })
            }
        };
        let Envelope { id, created, model, system_fingerprint } = envelope.clone();
        let choices = choice.into_iter().collect();
        let object = "chat.completion.chunk";
        Some(ChatCompletionChunk { id, object, created, model, choices, system_fingerprint, usage })
    }
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
