//! The `x-request-id` header, echoed or made up, and the log line of every request.

use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use crate::http::error::LoggedMessage;

const HEADER: &str = "x-request-id";

/// The longest id that is accepted from a client.
const MAX_CLIENT_ID_BYTES: usize = 128;

/// The id of a request in responses and logs.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Gives every request an id, returns it in the response's header, and logs the outcome.
///
/// Errors are logged here, except those in mid-stream, after the response has begun. Generations and
/// embeddings that succeed log a line of their own, with their statistics, when they end.
pub async fn assign_and_log(mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(HEADER)
        .filter(|id| id.len() <= MAX_CLIENT_ID_BYTES && id.to_str().is_ok_and(|id| !id.is_empty()))
        .cloned()
        .or_else(|| HeaderValue::from_str(&format!("req_{}", Uuid::new_v4().simple())).ok())
        .unwrap_or_else(|| HeaderValue::from_static("req_unnamed"));
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let mut response = next.run(request).await;
    let LoggedMessage(message) = response.extensions_mut().remove().unwrap_or_default();
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_millis());
    let id_text = id.to_str().unwrap_or_default();
    // The message may quote the client: Debug format escapes its control characters.
    match status {
        500 => tracing::error!(id = id_text, %method, path, status, ms, error = ?message, "request failed"),
        400.. => tracing::info!(id = id_text, %method, path, status, ms, error = ?message, "request refused"),
        _ => tracing::debug!(id = id_text, %method, path, status, ms, "request served"),
    }
    response.headers_mut().insert(HEADER, id);
    response
}
