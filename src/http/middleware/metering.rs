//! Metering of requests: quotas of the client's account before anything else is done for it, and a [`RequestMeter`] for
//! its tokens.

use std::time::Duration;

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::admission::{close_unless, is_short};
use super::auth::Tenant;
use super::request_id::RequestId;
use crate::anthropic::rfc_3339;
use crate::app::{App, unix_time};
use crate::http::error::ApiError;
use crate::http::guarded_body::GuardedBody;
use crate::http::route::is_anthropic;
use crate::metering::{BucketStatus, MeteredHead, QuotaStatus, RequestMeter};

/// Meters a request of a client to a route, or refuses it if its account has used up what it may.
pub async fn meter(
    State((app, route)): State<(App, &'static str)>,
    Extension(tenant): Extension<Tenant>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    let can_be_kept = is_short(&request);
    // A body that is too long is refused without being read.
    let body_bytes = usize::try_from(request.body().size_hint().lower()).unwrap_or(usize::MAX);
    let body_bytes = if body_bytes > app.limits().body_bytes { 0 } else { body_bytes };
    let (account, request_id) = (app.account(&tenant.name()), request_id.as_str());
    let head = MeteredHead { account, request_id, route, body_bytes };
    let (status, begun) = app.metering().begin(head);
    let mut response = match begun {
        Ok((meter, place)) => {
            run_metered(meter, request, next).await.map(|body| Body::new(GuardedBody::new(body, place)))
        }
        Err(e) => {
            let mut response = ApiError::from(e).into_response();
            close_unless(can_be_kept, response.headers_mut());
            response
        }
    };
    insert_quota(response.headers_mut(), status, is_anthropic(route));
    response
}

/// Meters a request that no client waits for, such as a line of a batch. It has no quota.
pub async fn meter_without_quota(
    State((app, route)): State<(App, &'static str)>,
    Extension(tenant): Extension<Tenant>,
    Extension(request_id): Extension<RequestId>,
    request: Request,
    next: Next,
) -> Response {
    let (account, request_id) = (app.account(&tenant.name()), request_id.as_str());
    let head = MeteredHead { account, request_id, route, body_bytes: 0 };
    match app.metering().begin_unlimited(head) {
        Ok(meter) => run_metered(meter, request, next).await,
        Err(e) => ApiError::from(e).into_response(),
    }
}

/// Serves a request whose tokens `meter` counts until the response is sent.
async fn run_metered(meter: RequestMeter, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(meter.clone());
    let response = next.run(request).await;
    meter.set_status(response.status().as_u16());
    response.map(|body| Body::new(GuardedBody::new(body, meter)))
}

/// The headers with what is left of a client's quotas: the limit, the rest, and when it is full again; first of requests,
/// then of tokens; first in OpenAI's form, then in Anthropic's.
pub const QUOTA_HEADERS: [HeaderName; 12] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
    HeaderName::from_static("anthropic-ratelimit-requests-limit"),
    HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
    HeaderName::from_static("anthropic-ratelimit-requests-reset"),
    HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
];

/// Tells a client what is left of its quotas.
fn insert_quota(headers: &mut HeaderMap, status: QuotaStatus, is_anthropic: bool) {
    let names = if is_anthropic { &QUOTA_HEADERS[6..] } else { &QUOTA_HEADERS[..6] };
    for (names, bucket) in names.chunks_exact(3).zip([status.requests, status.tokens]) {
        let Some(BucketStatus { limit, remaining, reset_after }) = bucket else { continue };
        let reset = match is_anthropic {
            true => rfc_3339(unix_time().saturating_add(reset_after.as_secs().saturating_add(1))),
            false => in_openai_form(reset_after),
        };
        for (name, value) in names.iter().zip([limit.to_string(), remaining.to_string(), reset]) {
            // Digits and letters are always valid.
            headers.extend(HeaderValue::try_from(value).map(|value| (name.clone(), value)));
        }
    }
}

/// A duration as OpenAI writes it: `120ms`, `1.5s`, `6m0s`.
fn in_openai_form(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}s", (ms / 10) as f64 / 100.0),
        _ => format!("{}m{}s", ms / 60_000, ms % 60_000 / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_openais_form() {
        for (ms, text) in [(0, "0ms"), (120, "120ms"), (1500, "1.5s"), (59_999, "59.99s"), (360_000, "6m0s")]
        {
            assert_eq!(in_openai_form(Duration::from_millis(ms)), text);
        }
    }
}
