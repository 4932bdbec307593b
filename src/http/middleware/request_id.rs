//! The `x-request-id` and `traceparent` headers, echoed or made up, and the log line of every request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use super::trace_context::{TRACEPARENT, TraceContext};
use crate::app::App;
use crate::error::quote;
use crate::http::error::LoggedMessage;

/// The longest id that is accepted from a client.
const MAX_CLIENT_ID_BYTES: usize = 128;

/// The id of a request in responses and logs, and its place in a trace.
#[derive(Debug, Clone)]
pub struct RequestId {
    id: HeaderValue,
    trace: Arc<TraceContext>,
}

/// The address of a request's client, an extension of it.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub IpAddr);

impl RequestId {
    /// The header with the id.
    pub const HEADER: &str = "x-request-id";

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// The id of the trace that the request is part of.
    pub fn trace_id(&self) -> &str {
        self.trace.trace_id()
    }
}

/// Gives every request an id, returns it in the response's header, and logs the outcome.
///
/// Errors are logged here, except those in mid-stream, after the response has begun. Generations and
/// embeddings that succeed log a line of their own, with their statistics, when they end; all others only if the
/// server logs every request.
pub async fn assign_and_log(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(RequestId::HEADER)
        .filter(|id| id.len() <= MAX_CLIENT_ID_BYTES && id.to_str().is_ok_and(|id| !id.is_empty()))
        .cloned()
        .or_else(|| HeaderValue::from_str(&format!("req_{}", Uuid::new_v4().simple())).ok())
        .unwrap_or_else(|| HeaderValue::from_static("req_unnamed"));
    let id = RequestId { id, trace: Arc::new(TraceContext::from_headers(request.headers())) };
    request.extensions_mut().insert(id.clone());
    let (method, path) = (quote(request.method().as_str()), quote(request.uri().path()));
    let peer = request.extensions().get::<PeerAddress>().map(|peer| tracing::field::display(peer.0));
    let started = Instant::now();
    let mut response = next.run(request).await;
    let LoggedMessage(message) = response.extensions_mut().remove().unwrap_or_default();
    let (status, ms) = (response.status().as_u16(), started.elapsed().as_millis());
    let (id_text, trace_id) = (id.as_str(), id.trace_id());
    match status {
        500 => {
            tracing::error!(
                id = id_text,
                trace_id,
                method,
                path,
                status,
                ms,
                error = message,
                "request failed"
            );
        }
        400.. => {
            tracing::info!(
                id = id_text,
                trace_id,
                method,
                path,
                status,
                ms,
                error = message,
                "request refused"
            );
        }
        _ if app.logs_every_request() => {
            tracing::info!(id = id_text, trace_id, peer, method, path, status, ms, "request served");
        }
        _ => tracing::debug!(id = id_text, trace_id, peer, method, path, status, ms, "request served"),
    }
    let headers = response.headers_mut();
    headers.extend(id.trace.to_header().map(|value| (HeaderName::from_static(TRACEPARENT), value)));
    headers.insert(RequestId::HEADER, id.id);
    response
}
