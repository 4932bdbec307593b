//! The handler of the routes that generate: `/v1/chat/completions`, `/v1/completions`, `/v1/messages`, `/api/chat` and
//! `/api/generate`.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::app::{App, ServedChat};
use crate::chat::Caller;
use crate::chat::{CacheStatus, ChatStream};
use crate::config::Limits;
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject};
use crate::http::generation_response::{CompletedChoice, Envelope, RequestLog, StreamUsage, collect_choices};
use crate::http::middleware::auth::Tenant;
use crate::http::middleware::request_id::RequestId;
use crate::http::retry::dedup::{Attempt, PendingResponse, RetryDedup};
use crate::http::retry::heartbeat::{self, Heartbeat};
use crate::metering::RequestMeter;
use crate::openai::chat::Usage;
use crate::openai::generation_options::GenerationOptions;

/// The header that says whether a cacheable response came from the response cache: `hit` or `miss`.
const CACHE_HEADER: &str = "x-cache";

/// A generation route. A value encodes one response, whole or as chunks.
pub trait GenerationRoute: Sized + Send + 'static {
    /// The route's path.
    const PATH: &'static str;
    /// Name of the request in the log.
    const LOG_NAME: &'static str;
    /// Prefix of response ids.
    const ID_PREFIX: &'static str;
    /// The request's type.
    type Request: Send + 'static;
    /// The type of a response that is not streamed.
    type Response: Serialize;

    /// Reads a request from its JSON object. Also returns the parameters that are ignored.
    ///
    /// # Errors
    /// When a parameter is refused, or a field has the wrong form.
    fn parse(object: Map<String, Value>) -> Result<(Self::Request, IgnoredParams)>;

    /// The options of a request.
    fn options(request: &Self::Request) -> &GenerationOptions;

    /// Starts the generation, and returns it with the encoder of its response.
    fn start(
        chat: &ServedChat,
        request: Self::Request,
        caller: Caller,
    ) -> impl Future<Output = Result<(ChatStream, Self)>> + Send;

    /// Loads the model if the request asks for nothing else, and returns the response to that.
    fn load(
        _: &ServedChat,
        _: &Self::Request,
    ) -> impl Future<Output = Result<Option<Self::Response>>> + Send {
        async { Ok(None) }
    }

    /// The name of a field that had no effect, by its path in the chat layer; `None` if the client has not sent it.
    fn ignored_name(&self, path: &str) -> Option<String> {
        Some(path.to_owned())
    }

    /// Streams the response.
    fn stream(self, stream: ChatStream, envelope: Envelope, usage: StreamUsage, log: RequestLog) -> Response;

    /// The body of an error that occurs after the response has begun.
    fn error_body(error: ApiError, _: &RequestId) -> Bytes {
        error.into_json().into()
    }

    /// Builds the response from its completed choices.
    fn response(self, envelope: Envelope, choices: Vec<CompletedChoice>, usage: Usage) -> Self::Response;
}

/// A response about to be generated.
struct StartedResponse<R> {
    stream: ChatStream,
    route: R,
    envelope: Envelope,
    headers: HeaderMap,
}

/// Generates a response, whole or streamed.
pub async fn generate<R: GenerationRoute>(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(dedup): Extension<RetryDedup>,
    Extension(meter): Extension<RequestMeter>,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let n_bytes = body.n_bytes();
    let caller = tenant.caller();
    let convert = move |object| {
        let attempt = Attempt::from_request(&headers, &tenant.name(), R::PATH, &object);
        let (request, ignored) = R::parse(object)?;
        Ok((attempt, request, ignored))
    };
    let (attempt, request, ignored) = body.parse_with(convert).await?;
    let options = R::options(&request);
    let (is_streamed, usage) = (options.is_streamed(), StreamUsage::from_options(options));
    let Limits { heartbeat, stream_head_delay: head_delay, .. } = *app.limits();
    let mut log = RequestLog::new(request_id.clone(), meter, R::LOG_NAME);
    let chat = app.chat(options.model.as_deref(), n_bytes).inspect(|chat| log.set_model(chat.id()));
    if let Ok(chat) = &chat
        && let Some(response) = R::load(chat, &request).await?
    {
        return ignored.respond(&response);
    }
    let started = async move { start::<R>(&chat?, request, caller, ignored).await };
    if is_streamed {
        let StartedResponse { mut stream, route, envelope, headers } = started.await?;
        log.start(&stream);
        stream.wait_for_first(head_delay).await.inspect_err(|_| log.abandon())?;
        return Ok((headers, route.stream(stream, envelope, usage, log)).into_response());
    }
    let work = async move {
        let StartedResponse { stream, route, envelope, headers } = started.await?;
        let response = async move {
            let (choices, usage) = collect_choices(stream, log).await?;
            Ok(route.response(envelope, choices, usage))
        };
        Ok(PendingResponse::new(headers, response))
    };
    let heartbeat = Heartbeat { period: heartbeat, error_body: R::error_body };
    heartbeat::respond(&dedup, attempt, heartbeat, request_id, work).await
}

/// Starts the generation, and prepares the response's headers.
async fn start<R: GenerationRoute>(
    chat: &ServedChat,
    request: R::Request,
    caller: Caller,
    mut ignored: IgnoredParams,
) -> Result<StartedResponse<R>> {
    let (stream, route) = R::start(chat, request, caller).await?;
    ignored.extend(stream.ignored_fields().iter().filter_map(|path| route.ignored_name(path)));
    let mut headers = HeaderMap::new();
    ignored.insert_into(&mut headers);
    if let Some(status) = stream.cache_status() {
        let status = match status {
            CacheStatus::Hit => "hit",
            CacheStatus::Miss => "miss",
        };
        headers.insert(CACHE_HEADER, HeaderValue::from_static(status));
    }
    let envelope = Envelope::new(R::ID_PREFIX, chat.id().to_owned(), stream.fingerprint().to_owned());
    Ok(StartedResponse { stream, route, envelope, headers })
}
