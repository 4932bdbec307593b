//! The envelope of errors and the header of request ids that clients of Anthropic's Messages API expect, on its routes
//! alone.

use axum::Extension;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;

use super::request_id::RequestId;
use crate::http::error::in_anthropic_form;
use crate::http::route::{has_anthropic_version, is_anthropic};

/// Anthropic's name of the header with the request's id.
const REQUEST_ID: &str = "request-id";

/// Gives the errors of the routes of Anthropic's API their envelope, whatever they come from, and all its responses the
/// header with the request's id.
pub async fn envelope(Extension(id): Extension<RequestId>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    // Both APIs have the models.
    let is_anthropic =
        is_anthropic(path) || path.starts_with("/v1/models") && has_anthropic_version(request.headers());
    let response = next.run(request).await;
    if !is_anthropic {
        return response;
    }
    let mut response = in_anthropic_form(response, id.as_str());
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}
