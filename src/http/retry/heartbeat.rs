//! Responses that are not streamed: joined by retries, and kept alive by a heartbeat while they take long.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::dedup::{Attempt, PendingResponse, RetryDedup};
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::middleware::request_id::RequestId;
use crate::http::route::JSON;

/// How a response that takes long is kept alive.
#[derive(Clone, Copy)]
pub struct Heartbeat {
    /// The time between beats; zero for none.
    pub period: Duration,
    /// The body of an error that occurs after the first beat.
    pub error_body: fn(ApiError, &RequestId) -> Bytes,
}

impl Heartbeat {
    /// Beats with this time between them, and errors in OpenAI's envelope.
    pub fn with_openai_errors(period: Duration) -> Self {
        Self { period, error_body: |error, _| error.into_json().into() }
    }
}

/// One beat: whitespace that JSON allows before a value.
const BEAT: &[u8] = b" ";

/// Responds with the result of `work`, or of the running attempt that `attempt` retries.
///
/// With a `heartbeat` of a period other than zero, the response begins once that time has passed without a result: a
/// space, and another after each further period, come before its JSON.
///
/// # Errors
/// When there is no response. A response that fails after it has begun has the error in place of its JSON.
pub async fn respond(
    dedup: &RetryDedup,
    attempt: Option<Attempt>,
    heartbeat: Heartbeat,
    request_id: RequestId,
    work: impl Future<Output = Result<PendingResponse>> + Send + 'static,
) -> Result<Response, ApiError> {
    let Heartbeat { period, error_body } = heartbeat;
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
    if period.is_zero() {
        return Ok(json_response(headers, body.await?));
    }
    let until_first_beat = period.saturating_sub(lease.started.elapsed());
    if let Ok(json) = timeout(until_first_beat, &mut body).await {
        return Ok(json_response(headers, json?));
    }
    let rest = stream::unfold(Some((body, lease)), move |state| {
        let request_id = request_id.clone();
        async move {
            let (mut body, lease) = state?;
            let json = match timeout(period, &mut body).await {
                Err(_) => return Some((Bytes::from_static(BEAT), Some((body, lease)))),
                Ok(Ok(json)) => json,
                Ok(Err(e)) => {
                    tracing::error!(id = request_id.as_str(), trace_id = request_id.trace_id(), error = %e, "failed after the response had begun");
                    error_body(e.into(), &request_id)
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
