//! Admission by the head of a request: a request that the server has no room for is refused before its body is read.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::{App, RequestClass};
use crate::http::error::ApiError;
use crate::http::guarded_body::GuardedBody;
use crate::http::middleware::auth::Tenant;
use crate::http::retry::dedup;

/// A rest of a body up to this size is read and discarded to keep the connection; with a longer rest the connection is
/// closed after the response.
const DISCARDED_BYTES: u64 = 16 << 10;

/// Admits a request of `class` or refuses it. Its place is given back when the response is sent, or its client has
/// gone.
pub async fn admit(
    State((app, class)): State<(App, RequestClass)>,
    Extension(tenant): Extension<Tenant>,
    mut request: Request,
    next: Next,
) -> Response {
    let size = request.body().size_hint();
    let is_short = is_short(&request);
    // A body that is too long is refused by the handler without being read.
    let announced = usize::try_from(size.lower()).ok().filter(|n_bytes| *n_bytes <= app.limits().body_bytes);
    let is_retry = dedup::is_retry(request.headers());
    let guard = match app.admit(class, &tenant.name(), announced.unwrap_or(0), is_retry) {
        Ok(guard) => Arc::new(guard),
        Err(e) => {
            let mut response = ApiError::from(e).into_response();
            close_unless(is_short, response.headers_mut());
            return response;
        }
    };
    request.extensions_mut().insert(guard.clone());
    let mut response = next.run(request).await;
    close_unless(is_short || guard.is_body_complete(), response.headers_mut());
    response.map(|body| Body::new(GuardedBody::new(body, guard)))
}

/// Whether the body of a request is so short that the connection can be kept without reading it.
pub fn is_short(request: &Request) -> bool {
    request.body().size_hint().upper().is_some_and(|n_bytes| n_bytes <= DISCARDED_BYTES)
}

/// Announces that the connection closes, unless it can be kept.
pub fn close_unless(can_be_kept: bool, headers: &mut HeaderMap) {
    if !can_be_kept {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
