//! Responses that are not streamed: joined by retries, and kept alive by a heartbeat while they take long.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::dedup::{Attempt, PendingResponse, RetryDedup, to_json};
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::middleware::request_id::RequestId;
use crate::http::route::JSON;

/// One beat: whitespace that JSON allows before a value.
const BEAT: &[u8] = b" ";

/// Responds with the result of `work`, or of the running attempt that `attempt` retries.
///
/// With a `heartbeat` other than zero, the response begins once that time has passed without a result: a
/// space, and another after each further period, come before its JSON.
///
/// # Errors
/// When there is no response. A response that fails after it has begun has the error in place of its JSON.
pub async fn respond(
    dedup: &RetryDedup,
    attempt: Option<Attempt>,
    heartbeat: Duration,
    request_id: RequestId,
    work: impl Future<Output = Result<PendingResponse>> + Send + 'static,
) -> Result<Response, ApiError> {
    let lease = dedup.join_or_start(attempt, work);
    if lease.is_joined {
        tracing::info!(
            id = request_id.as_str(),
            trace_id = request_id.trace_id(),
            "retry joined the running attempt"
        );
    }
    // Most errors come before the model starts; these have their own status however late they are.
    let PendingResponse { headers, mut body } = lease.response.clone().await?;
    if heartbeat.is_zero() {
        return Ok(json_response(headers, body.await?));
    }
    let until_first_beat = heartbeat.saturating_sub(lease.started.elapsed());
    if let Ok(json) = timeout(until_first_beat, &mut body).await {
        return Ok(json_response(headers, json?));
    }
    let rest = stream::unfold(Some((body, lease)), move |state| {
        let request_id = request_id.clone();
        async move {
            let (mut body, lease) = state?;
            let json = match timeout(heartbeat, &mut body).await {
                Err(_) => return Some((Bytes::from_static(BEAT), Some((body, lease)))),
                Ok(Ok(json)) => json,
                Ok(Err(e)) => {
                    tracing::error!(id = request_id.as_str(), trace_id = request_id.trace_id(), error = %e, "failed after the response had begun");
                    to_json(&ApiError::from(e).into_body()).unwrap_or_default()
                }
            };
            Some((json, None))
        }
    });
    let beats = stream::iter([Bytes::from_static(BEAT)]).chain(rest);
    Ok(json_response(headers, Body::from_stream(beats.map(Ok::<_, Infallible>))))
}

/// A response with `headers` whose body is JSON.
pub fn json_response(headers: HeaderMap, body: impl Into<Body>) -> Response {
    let mut response = (headers, body.into()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}
