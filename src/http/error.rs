//! Errors as HTTP responses in OpenAI's envelope. All status codes of the program are here.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::server::body::SlowBody;
use crate::anthropic::error::{AnthropicErrorBody, AnthropicErrorDetails, AnthropicErrorObject};
use crate::error::{Error, Kind, RateUnit, escape_chars, quote};
use crate::ollama::error::OllamaErrorBody;
use crate::openai::error::{ErrorBody, ErrorObject};

/// The message for clients after an internal error or a panic. The cause is only in the log.
pub const PANICKED: &str = "internal error while serving this request; see the server's log";

/// When to retry after a fault: an engine starts over within a second, and a server that shuts down refuses
/// connections, so that the retry reaches another.
const UNAVAILABLE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The message for clients when a model is at fault, but the error does not say which.
const MODEL_FAILED: &str = "the model cannot be used for this request; see the server's log";

/// The most characters of a message, in responses and in the log.
const MAX_MESSAGE_CHARS: usize = 2000;

/// An error response.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
    retry_after: Option<Duration>,
    should_retry: bool,
    /// The message for the log, if it is not the one for the client.
    cause: Option<Box<str>>,
}

/// The message of an error response, attached to it for the request log.
#[derive(Clone, Default)]
pub struct LoggedMessage(pub String);

impl ApiError {
    /// An error of HTTP itself, such as an unknown route.
    pub fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let error = ErrorObject { message: bounded(&message.into()), kind, param: None, code };
        let should_retry = status != StatusCode::INTERNAL_SERVER_ERROR;
        Self { status, body: ErrorBody { error }, retry_after: None, should_retry, cause: None }
    }

    /// A request whose head is malformed.
    pub fn malformed_head(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("malformed_head"), message)
    }

    /// A host or a web page that is not served.
    pub fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Some(code), message)
    }

    /// A request without a valid key.
    pub fn unauthorized(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Some(code), message)
    }

    /// A wrong key, after too many of them; a retry with the same key would fail, too.
    pub fn too_many_wrong_keys(retry_after: Duration, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, Some("too_many_wrong_keys"), message);
        Self { retry_after: Some(retry_after), should_retry: false, ..error }
    }

    /// Returns the envelope alone, for an error in mid-stream.
    pub fn into_body(self) -> ErrorBody {
        self.body
    }

    /// Returns Anthropic's envelope, for an error in mid-stream.
    pub fn into_anthropic_body(self, request_id: &str) -> AnthropicErrorBody {
        anthropic_body(self.status, self.body, request_id)
    }

    /// Returns Ollama's envelope, for an error in mid-stream.
    pub fn into_ollama_body(self) -> OllamaErrorBody {
        OllamaErrorBody { error: self.body.error.message }
    }

    /// The envelope as JSON.
    pub fn into_json(self) -> Vec<u8> {
        // Strings can always be serialized.
        serde_json::to_vec(&self.body).unwrap_or_default()
    }

    /// The error for a request body that could not be read.
    pub fn unreadable_body(error: &(dyn std::error::Error + 'static)) -> Self {
        match SlowBody::cause_of(error) {
            Some(slow) => Self::new(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), slow.to_string()),
            None => Self::new(StatusCode::BAD_REQUEST, None, format!("cannot read the body: {error}")),
        }
    }
}

impl From<Error> for ApiError {
    fn from(e: Error) -> Self {
        let (status, kind, code) = match e.kind() {
            Kind::InvalidRequest => (StatusCode::BAD_REQUEST, "invalid_request_error", None),
            Kind::ContextLengthExceeded => {
                (StatusCode::BAD_REQUEST, "invalid_request_error", Some("context_length_exceeded"))
            }
            Kind::ModelNotFound => (StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found")),
            Kind::NotFound => (StatusCode::NOT_FOUND, "invalid_request_error", Some("not_found")),
            Kind::PreviousResponseNotFound => {
                (StatusCode::BAD_REQUEST, "invalid_request_error", Some("previous_response_not_found"))
            }
            Kind::ThreadNotFound => {
                (StatusCode::NOT_FOUND, "invalid_request_error", Some("thread_not_found"))
            }
            Kind::Overloaded { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, "overloaded_error", Some("queue_full"))
            }
            Kind::RateLimited { unit, .. } => {
                let kind = match unit {
                    RateUnit::Requests => "requests",
                    RateUnit::Tokens => "tokens",
                };
                (StatusCode::TOO_MANY_REQUESTS, kind, Some("rate_limit_exceeded"))
            }
            Kind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable")),
            Kind::Registry => (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("model_unavailable")),
            Kind::Model | Kind::Config | Kind::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"))
            }
        };
        let retry_after = match e.kind() {
            Kind::Overloaded { retry_after } | Kind::RateLimited { retry_after, .. } => Some(retry_after),
            Kind::Unavailable => Some(UNAVAILABLE_RETRY_AFTER),
            _ => None,
        };
        let message = bounded(&e.to_string());
        // The messages of the server's own faults may name local files; they are for its operator.
        let public = match e.kind() {
            Kind::Model | Kind::Registry | Kind::Config => Some(e.public().unwrap_or(MODEL_FAILED)),
            Kind::Internal => Some(e.public().unwrap_or(PANICKED)),
            _ => None,
        };
        let (message, cause) = match public {
            Some(public) => (public.to_owned(), Some(message.into_boxed_str())),
            None => (message, None),
        };
        let error = ErrorObject { message, kind, param: e.param().map(quote), code };
        let body = ErrorBody { error };
        // The SDKs retry every 5xx twice, but an internal error would only recur.
        Self { status, body, retry_after, should_retry: status != StatusCode::INTERNAL_SERVER_ERROR, cause }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let logged = LoggedMessage(self.cause.map_or_else(|| self.body.error.message.clone(), String::from));
        let mut response = (self.status, Json(&self.body)).into_response();
        response.extensions_mut().insert(logged);
        response.extensions_mut().insert(self.body);
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            // The standard header takes whole seconds, rounded up here; the SDKs prefer the other one.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000) as u64));
            headers.insert("retry-after-ms", HeaderValue::from(after.as_millis() as u64));
        }
        if !self.should_retry {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

/// An error in Anthropic's envelope.
fn anthropic_body(status: StatusCode, body: ErrorBody, request_id: &str) -> AnthropicErrorBody {
    let ErrorObject { message, code, .. } = body.error;
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    let details = code.map(|error_code| AnthropicErrorDetails { error_code });
    let error = AnthropicErrorObject { kind, message, details };
    AnthropicErrorBody { kind: "error", error, request_id: Some(request_id.to_owned()) }
}

/// Gives an error response Anthropic's envelope in place of OpenAI's. Other responses are left alone.
pub fn in_anthropic_form(response: Response, request_id: &str) -> Response {
    with_error_body(response, |status, body| anthropic_body(status, body, request_id))
}

/// Gives an error response Ollama's envelope in place of OpenAI's. Other responses are left alone.
pub fn in_ollama_form(response: Response) -> Response {
    with_error_body(response, |_, body| OllamaErrorBody { error: body.error.message })
}

/// Replaces the envelope of an error response. Other responses are left alone.
fn with_error_body<B: Serialize>(
    mut response: Response,
    envelope: impl FnOnce(StatusCode, ErrorBody) -> B,
) -> Response {
    let Some(body) = response.extensions_mut().remove::<ErrorBody>() else { return response };
    let body = envelope(response.status(), body);
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    // Strings can always be serialized.
    Response::from_parts(parts, Body::from(serde_json::to_vec(&body).unwrap_or_default()))
}

/// The error for a request whose head hyper cannot parse, by the status with which hyper answers. `max_bytes` is the
/// limit on heads.
pub fn unparsed_request(status: StatusCode, max_bytes: usize) -> ApiError {
    let (code, message) = match status {
        StatusCode::URI_TOO_LONG => {
            ("uri_too_long", "the URL is longer than 65534 bytes; send a shorter one".to_owned())
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let message = format!(
                "the request line and the headers have more than {max_bytes} bytes, or there are more than 100 \
                 headers; send fewer"
            );
            ("head_too_large", message)
        }
        _ => ("malformed_head", "the request line or a header is not valid HTTP/1.1; correct it".to_owned()),
    };
    ApiError::new(status, Some(code), message)
}

/// A message without control characters, cut to [`MAX_MESSAGE_CHARS`].
fn bounded(message: &str) -> String {
    escape_chars(message, MAX_MESSAGE_CHARS).0
}

/// The error for an unknown path; `meant` is the route that the client may mean by it.
pub fn unknown_route(method: &Method, uri: &Uri, meant: Option<&str>) -> ApiError {
    let (method, path) = (quote(method.as_str()), quote(uri.path()));
    let remedy = match meant {
        Some(meant) if meant.starts_with("/v1/") => format!(
            "did you mean {meant}? Set the client's base URL to this server's address followed by /v1, once and with \
             single slashes"
        ),
        Some(meant) => format!("did you mean {meant}, directly after this server's address?"),
        None => "GET / lists the routes".to_owned(),
    };
    let message = format!("there is no {method} {path}; {remedy}");
    ApiError::new(StatusCode::NOT_FOUND, Some("unknown_url"), message)
}

/// The response to a known path with an unsupported method.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let (method, path) = (quote(method.as_str()), quote(uri.path()));
    let message = format!("{path} does not support {method}; the Allow header lists the methods it supports");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
}

/// The response after a panic in a handler. The panic's message is only in the log.
pub fn handler_panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::from(Error::internal(PANICKED)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_and_logged(e: Error) -> (String, String) {
        let error = ApiError::from(e);
        let shown = error.body.error.message.clone();
        let LoggedMessage(logged) = error.into_response().extensions_mut().remove().unwrap();
        (shown, logged)
    }

    #[test]
    fn causes_of_the_servers_faults_are_only_logged() {
        let cause = "task 7 panicked: cannot read `/home/me/model.gguf`";
        for kind in [Kind::Model, Kind::Registry, Kind::Config, Kind::Internal] {
            let (shown, logged) = shown_and_logged(Error::new(kind, cause));
            assert!(!shown.contains("/home") && shown.contains("the server's log"), "{shown}");
            assert_eq!(logged, cause);
            let named = Error::new(kind, cause).with_public("model `m` cannot be loaded");
            assert_eq!(shown_and_logged(named), ("model `m` cannot be loaded".to_owned(), cause.to_owned()));
        }
        let (shown, logged) = shown_and_logged(Error::invalid("n", "`n` is 9"));
        assert_eq!((shown.as_str(), logged.as_str()), ("`n` is 9", "`n` is 9"));
    }

    #[test]
    fn messages_and_parameters_are_bounded() {
        let error = ApiError::from(Error::invalid("p".repeat(1 << 20), "m\n".repeat(1 << 20)));
        let ErrorObject { message, param, .. } = error.into_body().error;
        assert!(message.len() < 2 * MAX_MESSAGE_CHARS && !message.contains('\n'));
        assert!(param.unwrap().len() < 300);
    }
}
