//! `POST /v1/messages` and `POST /v1/messages/count_tokens`, Anthropic's API.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::response::sse::Event;
use serde_json::{Map, Value};

use super::generation::GenerationRoute;
use crate::anthropic::messages::{CountTokensRequest, MessagesRequest};
use crate::anthropic::params;
use crate::anthropic::response::{MessageEvent, MessageObject, TokenCount};
use crate::app::{App, ServedChat};
use crate::chat::Caller;
use crate::chat::{ChatEvent, ChatStream};
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject, check_params};
use crate::http::generation_response::{
    CompletedChoice, Envelope, EventEncoder, RequestLog, StreamUsage, data_event, encode_stream,
};
use crate::http::middleware::auth::Tenant;
use crate::http::middleware::request_id::RequestId;
use crate::http::retry::dedup::to_json;
use crate::messages::{
    MessageEvents, MessageForm, MessageParts, MessagesTranslation, Origins, translate, translate_prompt,
};
use crate::openai::chat::Usage;
use crate::openai::generation_options::GenerationOptions;

/// The route and encoder of messages.
pub struct MessagesRoute {
    form: MessageForm,
    origins: Origins,
}

impl GenerationRoute for MessagesRoute {
    const PATH: &'static str = "/v1/messages";
    const LOG_NAME: &'static str = "message";
    const ID_PREFIX: &'static str = "msg_";
    type Request = MessagesTranslation;
    type Response = MessageObject;

    fn parse(object: Map<String, Value>) -> Result<(MessagesTranslation, IgnoredParams)> {
        let (object, mut ignored) = check_params(object, params::MESSAGES, params::NESTED)?;
        let mut request = translate(MessagesRequest::from_object(object)?)?;
        ignored.extend(std::mem::take(&mut request.ignored));
        Ok((request, ignored))
    }

    fn options(request: &MessagesTranslation) -> &GenerationOptions {
        &request.chat.options
    }

    async fn start(
        chat: &ServedChat,
        request: MessagesTranslation,
        caller: Caller,
    ) -> Result<(ChatStream, Self)> {
        let MessagesTranslation { chat: mut request, form, origins, .. } = request;
        // The parameter is required, so many clients send the largest limit of some other model.
        let model = chat.load().await?;
        request.options.max_tokens = request.options.max_tokens.map(|n| model.limit_within_context(n));
        match chat.start_chat(request, caller).await {
            Ok(stream) => Ok((stream, Self { form, origins })),
            Err(e) => Err(origins.rename_error(e)),
        }
    }

    fn ignored_name(&self, path: &str) -> Option<String> {
        Some(self.origins.rename_path(path))
    }

    fn stream(self, stream: ChatStream, envelope: Envelope, _: StreamUsage, log: RequestLog) -> Response {
        let encoder = MessageEncoder {
            events: MessageEvents::new(self.form),
            n_prompt: stream.n_prompt_tokens().iter().sum(),
            envelope,
            request_id: log.request_id().clone(),
        };
        encode_stream(stream, encoder, log)
    }

    fn error_body(error: ApiError, id: &RequestId) -> Bytes {
        to_json(&error.into_anthropic_body(id.as_str())).unwrap_or_default()
    }

    fn response(self, envelope: Envelope, choices: Vec<CompletedChoice>, usage: Usage) -> MessageObject {
        // There is always one.
        let choice = choices.into_iter().next().unwrap_or_default();
        let CompletedChoice { text, reasoning, calls, reason, stop, .. } = choice;
        let parts = MessageParts { text, reasoning, calls, reason, stop, usage };
        self.form.complete(envelope.id, envelope.model, parts)
    }
}

/// Encodes the events of a response as named events.
struct MessageEncoder {
    events: MessageEvents,
    /// Tokens of the prompt.
    n_prompt: usize,
    envelope: Envelope,
    request_id: RequestId,
}

impl EventEncoder for MessageEncoder {
    type Item = Event;

    fn start(&mut self) -> Vec<Event> {
        let Envelope { id, model, .. } = self.envelope.clone();
        named(self.events.start(id, model, self.n_prompt))
    }

    fn encode_event(&mut self, _: usize, event: ChatEvent, _: bool) -> Vec<Event> {
        named(match event {
            ChatEvent::Content { text, reasoning, calls, .. } => self.events.more(text, reasoning, calls),
            ChatEvent::Finished { reason, stop, usage, .. } => self.events.end(reason, stop, &usage),
            ChatEvent::Failed(e) => {
                vec![MessageEvent::Error(ApiError::from(e).into_anthropic_body(self.request_id.as_str()))]
            }
        })
    }

    fn ping(&self) -> Event {
        named_event(&MessageEvent::Ping)
    }
}

fn named(events: Vec<MessageEvent>) -> Vec<Event> {
    events.iter().map(named_event).collect()
}

fn named_event(event: &MessageEvent) -> Event {
    data_event(Some(event.name()), event)
}

/// Responds with the number of tokens of a conversation.
pub async fn count_tokens(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let n_bytes = body.n_bytes();
    let parse = |object| {
        let (object, ignored) = check_params(object, params::COUNT_TOKENS, params::NESTED)?;
        let request: CountTokensRequest = crate::openai::from_value(Value::Object(object))?;
        Ok((translate_prompt(request)?, ignored))
    };
    let (request, mut ignored) = body.parse_with(parse).await?;
    let MessagesTranslation { chat, ignored: more, origins, .. } = request;
    ignored.extend(more);
    ignored.add_unknown_model(&app, chat.options.model.as_deref());
    let counted = app.count_prompt_tokens(chat, &tenant.name(), n_bytes).await;
    let input_tokens = counted.map_err(|e| origins.rename_error(e))?;
    ignored.respond(&TokenCount { input_tokens })
}
