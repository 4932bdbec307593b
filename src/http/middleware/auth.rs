//! Bearer-token authentication. Probes are exempt.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::http::error::ApiError;
use crate::http::route::PROBES;

/// Rejects a request without a valid API key, before its body is read, if the server requires one.
pub async fn require_api_key(State(app): State<App>, request: Request, next: Next) -> Response {
    let keys = app.api_keys();
    if !keys.are_required() || PROBES.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let (code, message) = match bearer_token(request.headers()) {
        Some(key) if keys.accept(key) => return next.run(request).await,
        Some(_) => ("invalid_api_key", "invalid API key; ask the server's operator for one"),
        None => (
            "missing_api_key",
            "this server requires an API key; send the header `Authorization: Bearer KEY`",
        ),
    };
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, Some(code), message).into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Returns the token of an `Authorization: Bearer` header.
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}
