//! `x-request-id`: the caller's own, or a new one, on every answer and in the log; and the log's line
//! of each request.

use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use crate::http::error::Reason;

const HEADER: &str = "x-request-id";

/// Longest id that is taken from a caller.
const MAX_CALLERS_BYTES: usize = 128;

/// A request's name in the log.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// Gives every request an id and every answer its header, and logs what came of it. This is where
/// errors are logged, all but those in mid-stream, when the answer has long begun. Generations and
/// embeddings that succeed log their own line, with their figures, when they end.
pub async fn identify(mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(HEADER)
        .filter(|id| id.len() <= MAX_CALLERS_BYTES && id.to_str().is_ok_and(|id| !id.is_empty()))
        .cloned()
        .or_else(|| HeaderValue::from_str(&format!("req_{}", Uuid::new_v4().simple())).ok())
        .unwrap_or_else(|| HeaderValue::from_static("req_unnamed"));
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let mut response = next.run(request).await;
    let Reason(reason) = response.extensions_mut().remove().unwrap_or_default();
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_millis());
    let name = id.to_str().unwrap_or_default();
    // A reason may quote the client, so it is logged with its control characters escaped.
    match status {
        500 => tracing::error!(id = name, %method, path, status, ms, error = ?reason, "request failed"),
        400.. => tracing::info!(id = name, %method, path, status, ms, error = ?reason, "request refused"),
        _ => tracing::debug!(id = name, %method, path, status, ms, "request answered"),
    }
    response.headers_mut().insert(HEADER, id);
    response
}
