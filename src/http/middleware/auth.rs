//! Who may ask: whoever shows a key, where keys are set; everybody asks the probes.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::http::error::ApiError;
use crate::http::route::PROBES;

/// Lets a request pass that shows a key or needs none, before its body is read.
pub async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let keys = app.api_keys();
    if !keys.are_required() || PROBES.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let error = match bearer(request.headers()) {
        Some(key) if keys.accept(key) => return next.run(request).await,
        Some(_) => ("invalid_api_key", "the API key is none of this server's; ask whoever runs it for one"),
        None => {
            ("missing_api_key", "this server needs an API key; send the header `Authorization: Bearer KEY`")
        }
    };
    let mut refusal = ApiError::new(StatusCode::UNAUTHORIZED, Some(error.0), error.1).into_response();
    refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    refusal
}

/// The key that a request shows.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}
