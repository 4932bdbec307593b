//! Authentication by API key, and the tenant of a request. Probes and the chat page need no key.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::cache::name_digest;
use crate::chat::{Caller, Priority};
use crate::config::Limits;
use crate::error::Error;
use crate::http::error::ApiError;
use crate::http::route::needs_key;

/// The headers that some clients send a key in, in place of `authorization`: Anthropic's and Azure's.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// The tenant of a request, an extension of it: requests of one tenant share caches and a fair share of the
/// queue. Where keys are set, it is the index of the accepted key, such as `key:3`. Otherwise it is a digest of the
/// token that the client sends, so its length and its number of spellings are not the client's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    name: Arc<str>,
    priority: Priority,
}

impl Tenant {
    /// The tenant's name.
    pub fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// The sender of a request to a model.
    pub fn caller(&self) -> Caller {
        Caller { tenant: self.name(), priority: self.priority }
    }

    /// A tenant for whose requests nobody waits.
    pub fn in_background(name: Arc<str>) -> Self {
        Self { name, priority: Priority::Background }
    }

    /// The owner of the key of this index.
    fn for_key(index: usize) -> Self {
        Self { name: format!("key:{index}").into(), priority: Priority::Interactive }
    }

    /// The tenant of a request on a server without keys.
    fn from_headers(headers: &HeaderMap) -> Self {
        let name = match tokens(headers).next() {
            Some(token) => name_digest(token).into(),
            None => match other_credentials(headers) {
                Some(credentials) => name_digest(&credentials).into(),
                None => "anonymous".into(),
            },
        };
        Self { name, priority: Priority::Interactive }
    }
}

/// The name under which the state of a request's tenant is stored.
pub struct Owner(pub Arc<str>);

impl FromRequestParts<App> for Owner {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let tenant = parts.extensions.get::<Tenant>();
        let tenant = tenant.ok_or_else(|| Error::internal("the request has no tenant"))?;
        Ok(Self(app.state_owner(&tenant.name)))
    }
}

/// Checks the keys of requests, and counts the wrong ones.
#[derive(Clone)]
pub struct KeyGuard {
    app: App,
    wrong_keys: Arc<Mutex<FailureWindow>>,
}

impl KeyGuard {
    /// A guard for the keys of `app`.
    pub fn new(app: App) -> Self {
        Self { app, wrong_keys: Arc::default() }
    }

    /// The response to a request without a valid key. Too many wrong keys are refused with 429, all clients
    /// together: a right key is accepted all the same, so only those who try keys are slowed down.
    fn refuse(&self, headers: &HeaderMap) -> Response {
        if tokens(headers).next().is_none() {
            let message = "this server requires an API key; send the header `Authorization: Bearer KEY`";
            return with_challenge(ApiError::unauthorized("missing_api_key", message));
        }
        let Limits { wrong_keys, wrong_key_window, .. } = *self.app.limits();
        let mut window = self.wrong_keys.lock().unwrap_or_else(PoisonError::into_inner);
        match window.record(Instant::now(), wrong_keys, wrong_key_window) {
            None => {
                let message = "invalid API key; ask the server's operator for one";
                with_challenge(ApiError::unauthorized("invalid_api_key", message))
            }
            Some(retry_after) => {
                let message = format!(
                    "invalid API key, and more than {wrong_keys} requests with one in {} s; ask the server's operator \
                     for a key",
                    wrong_key_window.as_secs()
                );
                let mut response = ApiError::too_many_wrong_keys(retry_after, message).into_response();
                // Each further try costs a connection.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        }
    }
}

/// Failures within a period of time.
#[derive(Default)]
struct FailureWindow {
    began: Option<Instant>,
    n_failures: usize,
}

impl FailureWindow {
    /// Counts a failure at `now`. Beyond `max_failures` in a period of length `window`, returns the time until the
    /// next one.
    fn record(&mut self, now: Instant, max_failures: usize, window: Duration) -> Option<Duration> {
        let elapsed = match self.began {
            Some(began) if now - began < window => now - began,
            _ => {
                *self = Self { began: Some(now), n_failures: 0 };
                Duration::ZERO
            }
        };
        self.n_failures = self.n_failures.saturating_add(1);
        (self.n_failures > max_failures).then(|| window - elapsed)
    }
}

/// Rejects a request without a valid API key, before its body is read, if the server requires one. Adds the
/// [`Tenant`] to the others.
pub async fn require_api_key(State(guard): State<KeyGuard>, mut request: Request, next: Next) -> Response {
    let keys = guard.app.api_keys();
    let tenant = if !keys.are_required() || !needs_key(request.uri().path()) {
        Tenant::from_headers(request.headers())
    } else {
        match tokens(request.headers()).find_map(|token| keys.index_of(token)) {
            Some(index) => Tenant::for_key(index),
            None => return guard.refuse(request.headers()),
        }
    };
    request.extensions_mut().insert(tenant);
    next.run(request).await
}

/// An error with the scheme by which clients authenticate.
fn with_challenge(error: ApiError) -> Response {
    let mut response = error.into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The tokens that a request shows: the bearer token, then the values of [`KEY_HEADERS`]; none is empty.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = authorization(headers).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer"));
    let others = KEY_HEADERS.iter().filter_map(|name| headers.get(*name));
    let others = others.map(|value| value.as_bytes().trim_ascii());
    bearer.map(|(_, token)| token).into_iter().chain(others).filter(|token| !token.is_empty())
}

/// Credentials of a scheme other than `Bearer`, with the scheme in lower case.
fn other_credentials(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, rest) = authorization(headers)?;
    (!rest.is_empty()).then(|| [scheme.to_ascii_lowercase().as_slice(), b" ", rest].concat())
}

/// The scheme of the `authorization` header, and the rest without the spaces around it.
fn authorization(headers: &HeaderMap) -> Option<(&[u8], &[u8])> {
    let value = headers.get(AUTHORIZATION)?.as_bytes().trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace).unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    Some((scheme, rest.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(headers: &[(&'static str, &str)]) -> Tenant {
        let pair = |&(name, value): &(&'static str, &str)| {
            (axum::http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        Tenant::from_headers(&headers.iter().map(pair).collect())
    }

    #[test]
    fn too_many_failures_wait_for_the_next_window() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut failures = FailureWindow::default();
        let mut record = |at: u32| failures.record(start + second * at, 2, second * 60);
        assert_eq!([0, 1, 2, 59].map(&mut record), [None, None, Some(second * 58), Some(second)]);
        assert_eq!([60, 61, 62].map(&mut record), [None, None, Some(second * 58)]);
        assert_eq!(record(1000), None);
    }

    #[test]
    fn spellings_of_a_token_are_one_tenant() {
        let plain = tenant(&[("authorization", "Bearer sk-1")]);
        for same in ["bearer sk-1", "BEARER   sk-1", "Bearer sk-1   ", "Bearer \t sk-1"] {
            assert_eq!(tenant(&[("authorization", same)]), plain, "{same:?}");
        }
        assert_eq!(tenant(&[("x-api-key", " sk-1 ")]), plain);
        assert_eq!(tenant(&[("api-key", "sk-1")]), plain);
        assert_eq!(tenant(&[("authorization", "Basic x"), ("x-api-key", "sk-1")]), plain);
        for other in ["Bearer sk-2", "Bearer SK-1", "Basic sk-1", "sk-1", "Bearer"] {
            assert_ne!(tenant(&[("authorization", other)]), plain, "{other}");
        }
        assert_eq!(tenant(&[("authorization", "Basic x")]), tenant(&[("authorization", "basic  x")]));
    }

    #[test]
    fn requests_without_a_token_are_one_tenant() {
        let none = tenant(&[]);
        assert_eq!(none.name().as_ref(), "anonymous");
        for empty in ["", "Bearer", "bearer   ", "   "] {
            assert_eq!(tenant(&[("authorization", empty)]), none, "{empty:?}");
        }
        assert_eq!(tenant(&[("x-api-key", "  ")]), none);
    }

    #[test]
    fn the_name_of_a_tenant_is_short() {
        let spaces = " ".repeat(400_000);
        let long = format!("Bearer{spaces}{}", "k".repeat(400_000));
        assert_eq!(tenant(&[("authorization", &long)]).name().len(), 32);
        assert_eq!(Tenant::for_key(3).name().as_ref(), "key:3");
    }
}
