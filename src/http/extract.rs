//! Request bodies: JSON within limits, checked against the parameters that are known.

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::app::App;
use crate::error::{Error, Kind, Result};
use crate::openai::params::{self, Row};

/// A request body that is a JSON object.
pub struct JsonObject(pub Map<String, Value>);

/// Deepest nesting of a body. Real requests stay below 20; a tool's schema may reach 30.
const MAX_DEPTH: usize = 64;

impl FromRequest<App> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if !content_type.is_none_or(is_json) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Some("unsupported_media_type"),
                "the body must be JSON; send the header `content-type: application/json`",
            ));
        }
        let limits = app.limits();
        let read = to_bytes(request.into_body(), limits.body_bytes);
        let body = tokio::time::timeout(limits.read_timeout, read)
            .await
            .map_err(|_| {
                let message = format!("the body did not arrive within {} s", limits.read_timeout.as_secs());
                ApiError::new(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message)
            })?
            .map_err(|e| unreadable(&e, limits.body_bytes))?;
        match serde_json::from_slice(&body) {
            Ok(Value::Object(object)) if depth_is_at_most(MAX_DEPTH - 1, object.values()) => Ok(Self(object)),
            Ok(Value::Object(_)) => {
                Err(malformed(format!("the body is nested more than {MAX_DEPTH} levels deep")))
            }
            Ok(_) => Err(malformed("the body is not a JSON object")),
            Err(e) => Err(malformed(format!("the body is not valid JSON: {e}"))),
        }
    }
}

impl JsonObject {
    /// The request as its type, and the names of parameters that were ignored.
    ///
    /// # Errors
    /// When a parameter is refused or has the wrong form.
    pub fn read<T: serde::de::DeserializeOwned>(self, rows: &[Row]) -> Result<(T, Ignored)> {
        let ignored = params::check(rows, &self.0)?;
        Ok((crate::openai::from_value(Value::Object(self.0))?, Ignored(ignored)))
    }
}

/// Parameters that were accepted and changed nothing.
pub struct Ignored(Vec<String>);

impl Ignored {
    /// Names them in the `x-ignored-params` header.
    pub fn name_in(self, response: &mut Response) {
        // A name that cannot stand in a header is shown escaped.
        let names: Vec<String> = self.0.iter().map(|name| name.escape_default().to_string()).collect();
        if !names.is_empty()
            && let Ok(value) = HeaderValue::from_str(&names.join(", "))
        {
            response.headers_mut().insert("x-ignored-params", value);
        }
    }
}

fn is_json(content_type: &[u8]) -> bool {
    let media_type = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    media_type.eq_ignore_ascii_case(b"application/json")
        || media_type.to_ascii_lowercase().ends_with(b"+json")
}

fn unreadable(e: &axum::Error, limit_bytes: usize) -> ApiError {
    let is_too_long =
        std::error::Error::source(e).is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
    if is_too_long {
        let message = format!("the body is longer than {limit_bytes} bytes; send less");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    } else {
        ApiError::new(StatusCode::BAD_REQUEST, None, format!("the body could not be read: {e}"))
    }
}

fn malformed(message: impl Into<String>) -> ApiError {
    Error::new(Kind::InvalidRequest, message).into()
}

fn depth_is_at_most<'a>(depth: usize, mut values: impl Iterator<Item = &'a Value>) -> bool {
    values.all(|value| match value {
        Value::Array(items) => depth > 0 && depth_is_at_most(depth - 1, items.iter()),
        Value::Object(fields) => depth > 0 && depth_is_at_most(depth - 1, fields.values()),
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(is_json(json.as_bytes()), "{json}");
        }
        for other in ["text/plain", "application/x-www-form-urlencoded", ""] {
            assert!(!is_json(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn depth_counts_containers() {
        let nested = |n: usize| {
            let mut value = Value::Null;
            for _ in 0..n {
                value = Value::Array(vec![value]);
            }
            value
        };
        assert!(depth_is_at_most(3, [nested(3)].iter()));
        assert!(!depth_is_at_most(3, [nested(4)].iter()));
    }
}
