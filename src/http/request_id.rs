//! `x-request-id`: the caller's own, or a new one, on every answer and in the log.

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

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

/// Gives every request an id and every answer its header.
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
    let mut response = next.run(request).await;
    let status = response.status();
    // Successful generations log their own line, with their figures, when they end.
    if !status.is_success() {
        let id = id.to_str().unwrap_or_default();
        tracing::info!(id, %method, path, status = status.as_u16(), "request refused");
    }
    response.headers_mut().insert(HEADER, id);
    response
}
