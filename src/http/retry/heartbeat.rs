//! Answers that are not streamed: joined by retries, and kept alive while they take long.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;

use super::dedup::{Attempt, Begun, Retries, later};
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::middleware::request_id::RequestId;
use crate::http::route::JSON;

/// What JSON may have before it.
const BEAT: &[u8] = b" ";

impl Begun {
    pub fn new<T: Serialize>(
        headers: HeaderMap,
        answer: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Self {
        Self { headers, body: later(async move { written(&answer.await?) }) }
    }
}

fn written(answer: &impl Serialize) -> Result<Bytes> {
    let json = serde_json::to_vec(answer)
        .map_err(|e| Error::internal(format!("the answer could not be written: {e}")))?;
    Ok(json.into())
}

/// What `work` makes, or what the try made that `attempt` comes after. Once nothing has come for `heartbeat`, if
/// that is not zero, the answer begins: with a space, and another after each such time, before its JSON.
///
/// # Errors
/// When there is no answer. One that fails after it has begun has the error in its place.
pub async fn answer(
    retries: &Retries,
    attempt: Option<Attempt>,
    heartbeat: Duration,
    request_id: RequestId,
    work: impl Future<Output = Result<Begun>> + Send + 'static,
) -> Result<Response, ApiError> {
    let tried = retries.join_or_begin(attempt, work);
    if tried.is_joined {
        tracing::info!(id = request_id.as_str(), "a retry joins its first try");
    }
    // Errors that come before the model begins, most of them, have their status even after the time.
    let Begun { headers, mut body } = tried.answer.clone().await?;
    if heartbeat.is_zero() {
        return Ok(json(headers, body.await?));
    }
    let rest = heartbeat.saturating_sub(tried.since.elapsed());
    if let Ok(whole) = timeout(rest, &mut body).await {
        return Ok(json(headers, whole?));
    }
    let rest = stream::unfold(Some((body, tried)), move |state| {
        let request_id = request_id.clone();
        async move {
            let (mut body, tried) = state?;
            let piece = match timeout(heartbeat, &mut body).await {
                Err(_) => return Some((Bytes::from_static(BEAT), Some((body, tried)))),
                Ok(Ok(whole)) => whole,
                Ok(Err(e)) => {
                    tracing::error!(id = request_id.as_str(), error = %e, "failed after the answer had begun");
                    written(&ApiError::from(e).into_body()).unwrap_or_default()
                }
            };
            Some((piece, None))
        }
    });
    let beats = stream::iter([Bytes::from_static(BEAT)]).chain(rest);
    Ok(json(headers, Body::from_stream(beats.map(Ok::<_, Infallible>))))
}

fn json(headers: HeaderMap, body: impl Into<Body>) -> Response {
    let mut response = (headers, body.into()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}
