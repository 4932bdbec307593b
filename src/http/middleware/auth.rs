//! Authentication by API key, and the tenant of a request. Probes need no key.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::cache::name_digest;
use crate::http::error::ApiError;
use crate::http::route::PROBES;

/// The header that some clients send a key in, in place of `authorization`.
const KEY_HEADER: &str = "x-api-key";

/// The tenant of a request, an extension of it: requests of one tenant share caches and a fair share of the
/// queue. Where keys are set, it is the index of the accepted key, such as `key:3`. Otherwise it is a digest of the
/// token that the client sends, so its length and its number of spellings are not the client's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The tenant's name.
    pub fn name(&self) -> Arc<str> {
        self.0.clone()
    }

    /// The owner of the key of this index.
    fn of_key(index: usize) -> Self {
        Self(format!("key:{index}").into())
    }

    /// The tenant of a request on a server without keys.
    fn from_headers(headers: &HeaderMap) -> Self {
        Self(match tokens(headers).next() {
            Some(token) => name_digest(token).into(),
            None => match other_credentials(headers) {
                Some(credentials) => name_digest(&credentials).into(),
                None => "anonymous".into(),
            },
        })
    }
}

/// Rejects a request without a valid API key, before its body is read, if the server requires one. Adds the
/// [`Tenant`] to the others.
pub async fn require_api_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let keys = app.api_keys();
    let tenant = if !keys.are_required() || PROBES.contains(&request.uri().path()) {
        Tenant::from_headers(request.headers())
    } else {
        match tokens(request.headers()).find_map(|token| keys.index_of(token)) {
            Some(index) => Tenant::of_key(index),
            None => return refusal(request.headers()),
        }
    };
    request.extensions_mut().insert(tenant);
    next.run(request).await
}

/// The response to a request without a valid key.
fn refusal(headers: &HeaderMap) -> Response {
    let (code, message) = match tokens(headers).next() {
        Some(_) => ("invalid_api_key", "invalid API key; ask the server's operator for one"),
        None => (
            "missing_api_key",
            "this server requires an API key; send the header `Authorization: Bearer KEY`",
        ),
    };
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, Some(code), message).into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The tokens that a request shows: the bearer token, then the value of `x-api-key`; none is empty.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = authorization(headers).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer"));
    let other = headers.get(KEY_HEADER).map(|value| value.as_bytes().trim_ascii());
    bearer.map(|(_, token)| token).into_iter().chain(other).filter(|token| !token.is_empty())
}

/// Credentials of a scheme other than `Bearer`, with the scheme in lower case.
fn other_credentials(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, rest) = authorization(headers)?;
    (!rest.is_empty()).then(|| [&scheme.to_ascii_lowercase(), &b" "[..], rest].concat())
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
    fn spellings_of_a_token_are_one_tenant() {
        let plain = tenant(&[("authorization", "Bearer sk-1")]);
        for same in ["bearer sk-1", "BEARER   sk-1", "Bearer sk-1   ", "Bearer \t sk-1"] {
            assert_eq!(tenant(&[("authorization", same)]), plain, "{same:?}");
        }
        assert_eq!(tenant(&[("x-api-key", " sk-1 ")]), plain);
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
        assert_eq!(Tenant::of_key(3).name().as_ref(), "key:3");
    }
}
