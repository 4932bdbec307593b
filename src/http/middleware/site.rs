//! Protection from web pages: the hosts and origins that are served, and CORS.
//!
//! A page in a browser on this machine, or in its network, can send requests here. Against pages of other
//! sites the server looks at `Origin` and `Sec-Fetch-Site`, which no page can forge. Against a page whose host
//! name was made to point here (DNS rebinding), which browsers take for a page of this server, it looks at `Host`;
//! with keys set that page has no key, so names are then checked only if the operator lists some.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_HEADERS, ALLOW, HOST, HeaderName, ORIGIN,
    RETRY_AFTER, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowOrigin, AllowPrivateNetwork, CorsLayer};

use super::metering::QUOTA_HEADERS;
use crate::config::{AccessConfig, Authority, WebOrigin};
use crate::error::quote;
use crate::http::error::ApiError;
use crate::http::route::PROBES;

/// Response headers that scripts of other sites may read.
const EXPOSED_HEADERS: [HeaderName; 12] = [
    ALLOW,
    RETRY_AFTER,
    HeaderName::from_static("request-id"),
    HeaderName::from_static("retry-after-ms"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-cache"),
    HeaderName::from_static("x-cache-hits"),
    HeaderName::from_static("x-ignored-params"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("x-truncated-inputs"),
    HeaderName::from_static("www-authenticate"),
];

/// How long browsers remember a preflight; they cap it at two hours or less.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(7200);

/// Pages that links of other sites may open: they show what the server is, and the site with the link sees nothing
/// of them.
const LINKED_PAGES: [&str; 2] = ["/", "/docs"];

/// The hosts and origins that are served.
#[derive(Clone)]
pub struct SitePolicy(Arc<SiteRules>);

struct SiteRules {
    access: AccessConfig,
    /// Whether the names of hosts are checked.
    hosts_are_checked: bool,
}

/// Refuses requests for other hosts, and those of web pages that may not use the server.
pub async fn check_site(State(policy): State<SitePolicy>, request: Request, next: Next) -> Response {
    match policy.check(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            let mut response = refusal.into_response();
            // A page that may use the server also reads why it was refused.
            if let Some(origin) = request.headers().get(ORIGIN).filter(|origin| policy.permits(origin)) {
                response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                response.headers_mut().insert(VARY, HeaderValue::from_static("origin"));
            }
            response
        }
    }
}

impl SitePolicy {
    /// The policy of a server; `has_keys` is whether requests need a key.
    pub fn new(access: AccessConfig, has_keys: bool) -> Self {
        let hosts_are_checked = !has_keys || !access.allowed_hosts.is_empty();
        Self(Arc::new(SiteRules { access, hosts_are_checked }))
    }

    /// The layer that answers preflights and adds CORS headers, if web pages of any origin are served.
    pub fn cors_layer(&self) -> Option<CorsLayer> {
        if self.0.access.cors_origins.is_empty() {
            return None;
        }
        let (origins, networks) = (self.clone(), self.clone());
        Some(
            CorsLayer::new()
                .allow_origin(AllowOrigin::predicate(move |origin, _| origins.permits(origin)))
                // Browsers ask for it before a page of the internet reaches a private address.
                .allow_private_network(AllowPrivateNetwork::predicate(move |origin, _| {
                    networks.permits(origin)
                }))
                .allow_methods([Method::GET, Method::POST, Method::DELETE])
                .allow_headers(AllowHeaders::mirror_request())
                .expose_headers(EXPOSED_HEADERS.into_iter().chain(QUOTA_HEADERS).collect::<Vec<_>>())
                .max_age(PREFLIGHT_MAX_AGE),
        )
    }

    /// Whether `--cors-origin` names this origin.
    fn permits(&self, origin: &HeaderValue) -> bool {
        parse_origin(origin).is_some_and(|origin| self.0.access.serves_origin(&origin))
    }

    fn check<B>(&self, request: &axum::http::Request<B>) -> Result<(), ApiError> {
        let target = request.uri().authority().map(|target| target.as_str());
        let host = host_header(request.headers(), request.version())?;
        let mut own = None;
        // A target with a host takes precedence, but neither may be wrong.
        for text in [host, target].into_iter().flatten() {
            let authority = Authority::parse(text)
                .ok_or_else(|| ApiError::malformed_head(format!("`{}` is not a host", quote(text))))?;
            self.check_host(&authority, text, request.uri().path())?;
            own = Some(authority);
        }
        let headers = request.headers();
        if let Some(asked) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS)
            && !is_name_list(asked.as_bytes())
        {
            return Err(ApiError::malformed_head("`access-control-request-headers` is not a list of names"));
        }
        let is_listed = self.check_origins(headers, own.as_ref())?;
        self.check_fetch_metadata(request, is_listed)
    }

    fn check_host(&self, authority: &Authority, text: &str, path: &str) -> Result<(), ApiError> {
        // Load balancers call probes by names of their own, and probes tell little.
        if !self.0.hosts_are_checked || PROBES.contains(&path) || self.0.access.serves_host(&authority.host) {
            return Ok(());
        }
        let name = quote(text.split(':').next().unwrap_or(text));
        let message = format!(
            "this server is not called `{name}`; call it by its IP address or localhost, or start it with \
             --allowed-host {name}"
        );
        Err(ApiError::forbidden("host_not_allowed", message))
    }

    /// Checks the `Origin` headers, of which a browser sends at most one. Returns whether there is one and
    /// `--cors-origin` names it.
    fn check_origins(&self, headers: &HeaderMap, own: Option<&Authority>) -> Result<bool, ApiError> {
        let mut all_listed = headers.contains_key(ORIGIN);
        for value in headers.get_all(ORIGIN) {
            let origin = parse_origin(value);
            let is_listed = origin.as_ref().is_some_and(|origin| self.0.access.serves_origin(origin));
            let is_own = own.zip(origin.as_ref()).is_some_and(|(own, origin)| origin.is_at(own));
            if !is_listed && !is_own {
                return Err(foreign_page(&String::from_utf8_lossy(value.as_bytes())));
            }
            all_listed &= is_listed;
        }
        Ok(all_listed)
    }

    /// Checks what the browser says of the page that sends the request: `Sec-Fetch-Site` is there even where
    /// `Origin` is not.
    fn check_fetch_metadata<B>(
        &self,
        request: &axum::http::Request<B>,
        is_listed: bool,
    ) -> Result<(), ApiError> {
        let headers = request.headers();
        let is = |name: &str, values: &[&str]| {
            let matches = |value: &HeaderValue| {
                values.iter().any(|own| value.as_bytes().eq_ignore_ascii_case(own.as_bytes()))
            };
            headers.get_all(name).iter().any(matches)
        };
        let is_foreign = is("sec-fetch-site", &["cross-site", "same-site"]);
        let is_link = request.method() == Method::GET
            && LINKED_PAGES.contains(&request.uri().path())
            && is("sec-fetch-mode", &["navigate"])
            && is("sec-fetch-dest", &["document"]);
        if !is_foreign || is_listed || is_link || self.0.access.serves_any_origin() {
            return Ok(());
        }
        Err(foreign_page("another site"))
    }
}

/// The refusal of a page of `origin`.
fn foreign_page(origin: &str) -> ApiError {
    let message = format!(
        "web pages of `{}` may not use this server; start it with --cors-origin and their origin, such as \
         --cors-origin https://app.example.com, to allow them",
        quote(origin)
    );
    ApiError::forbidden("origin_not_allowed", message)
}

/// The `Host` header, which requests have exactly once since HTTP/1.1.
fn host_header(headers: &HeaderMap, version: Version) -> Result<Option<&str>, ApiError> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(ApiError::malformed_head("the request has several Host headers; send one")),
        (None, None) if version == Version::HTTP_11 => {
            Err(ApiError::malformed_head("the request has no Host header; send one"))
        }
        (None, None) => Ok(None),
        (Some(host), None) => {
            let host = host.to_str().map_err(|_| ApiError::malformed_head("the Host header is not ASCII"))?;
            Ok(Some(host))
        }
    }
}

fn parse_origin(value: &HeaderValue) -> Option<WebOrigin> {
    WebOrigin::parse(value.to_str().ok()?)
}

/// Whether a value is a list of header names, as browsers send it.
fn is_name_list(value: &[u8]) -> bool {
    let is_name = |name: &[u8]| name.is_empty() || HeaderName::from_bytes(name).is_ok();
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AllowedHost, CorsOrigin};

    const LOCAL: (&str, &str) = ("host", "localhost:8080");

    fn policy(hosts: &[&str], origins: &[&str], has_keys: bool) -> SitePolicy {
        let access = AccessConfig {
            allowed_hosts: hosts.iter().map(|host| AllowedHost::parse(host).unwrap()).collect(),
            cors_origins: origins.iter().map(|origin| CorsOrigin::parse(origin).unwrap()).collect(),
        };
        SitePolicy::new(access, has_keys)
    }

    /// The status of a refusal, or 200.
    fn status(policy: &SitePolicy, target: &str, version: Version, headers: &[(&str, &str)]) -> u16 {
        let (method, uri) = target.split_once(' ').unwrap();
        let mut request = axum::http::Request::builder().method(method).uri(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let checked = policy.check(&request.body(()).unwrap());
        checked.map_or_else(|refusal| refusal.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn hosts_are_checked_against_rebinding() {
        let (open, named) = (policy(&[], &[], false), policy(&["llm.lan"], &[], false));
        let (keyed, both) = (policy(&[], &[], true), policy(&["llm.lan"], &[], true));
        let chat = "POST /v1/chat/completions";
        for (target, host, expected) in [
            (chat, "127.0.0.1:8080", [200, 200, 200, 200]),
            (chat, "[::1]:8080", [200, 200, 200, 200]),
            (chat, "LOCALHOST:8080", [200, 200, 200, 200]),
            (chat, "llm.lan:8080", [403, 200, 200, 200]),
            (chat, "evil.com", [403, 403, 200, 403]),
            (chat, "localhost.evil.com", [403, 403, 200, 403]),
            (chat, "user@localhost", [400; 4]),
            (chat, "localhost, evil.com", [400; 4]),
            (chat, "", [400; 4]),
            ("POST http://evil.com/v1/chat/completions", "localhost", [403, 403, 200, 403]),
            ("POST http://localhost/v1/chat/completions", "evil.com", [403, 403, 200, 403]),
            ("POST http://localhost/v1/chat/completions", "localhost", [200; 4]),
            ("GET /no-such-route", "evil.com", [403, 403, 200, 403]),
            ("GET /", "evil.com", [403, 403, 200, 403]),
            ("GET /livez", "evil.com", [200; 4]),
            ("GET /readyz", "my-service.ns.svc", [200; 4]),
            ("GET /health", "10.1.2.3:8080", [200; 4]),
        ] {
            let found = [&open, &named, &keyed, &both]
                .map(|policy| status(policy, target, Version::HTTP_11, &[("host", host)]));
            assert_eq!(found, expected, "{target} {host}");
        }
    }

    #[test]
    fn a_request_has_one_host() {
        for has_keys in [false, true] {
            let policy = policy(&[], &[], has_keys);
            for target in ["GET /v1/models", "GET /livez", "GET http://localhost/"] {
                assert_eq!(status(&policy, target, Version::HTTP_11, &[]), 400, "{target}");
                assert_eq!(status(&policy, target, Version::HTTP_11, &[LOCAL, LOCAL]), 400, "{target}");
                assert_eq!(status(&policy, target, Version::HTTP_10, &[]), 200, "{target}");
            }
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let (closed, app) = (policy(&[], &[], true), policy(&[], &["https://app.example.com"], false));
        let any = policy(&[], &["*"], false);
        let own = ("origin", "http://localhost:8080");
        for (target, headers, expected) in [
            ("POST /v1/chat/completions", vec![own], [200; 3]),
            ("POST /v1/chat/completions", vec![own, ("sec-fetch-site", "same-origin")], [200; 3]),
            ("POST /v1/chat/completions", vec![("origin", "https://app.example.com")], [403, 200, 200]),
            (
                "POST /v1/chat/completions",
                vec![("origin", "https://app.example.com"), ("sec-fetch-site", "cross-site")],
                [403, 200, 200],
            ),
            ("OPTIONS /v1/chat/completions", vec![("origin", "https://app.example.com")], [403, 200, 200]),
            ("POST /v1/chat/completions", vec![("origin", "https://evil.com")], [403, 403, 200]),
            ("POST /v1/chat/completions", vec![("origin", "null")], [403, 403, 200]),
            ("POST /v1/chat/completions", vec![("origin", "http://localhost:3000")], [403, 403, 200]),
            ("POST /v1/chat/completions", vec![("origin", "not an origin")], [403; 3]),
            ("POST /v1/chat/completions", vec![own, ("origin", "https://evil.com")], [403, 403, 200]),
            ("POST /v1/chat/completions", vec![own, ("sec-fetch-site", "cross-site")], [403, 403, 200]),
            ("GET /v1/models", vec![("sec-fetch-site", "cross-site")], [403, 403, 200]),
            ("GET /v1/models", vec![("sec-fetch-site", "same-site")], [403, 403, 200]),
            ("GET /livez", vec![("sec-fetch-site", "Cross-Site")], [403, 403, 200]),
            ("GET /v1/models", vec![("sec-fetch-site", "none")], [200; 3]),
            ("GET /v1/models", vec![], [200; 3]),
            ("OPTIONS /v1/models", vec![own, ("access-control-request-headers", "a, b-c,X-D")], [200; 3]),
            ("OPTIONS /v1/models", vec![own, ("access-control-request-headers", "a b")], [400; 3]),
        ] {
            let headers = [&[LOCAL], &headers[..]].concat();
            let found =
                [&closed, &app, &any].map(|policy| status(policy, target, Version::HTTP_11, &headers));
            assert_eq!(found, expected, "{target} {headers:?}");
        }
    }

    #[test]
    fn links_of_other_sites_open_pages_only() {
        let closed = policy(&[], &[], false);
        let link = |target: &str, mode: &str, destination: &str| {
            let metadata =
                [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", mode), ("sec-fetch-dest", destination)];
            status(&closed, target, Version::HTTP_11, &[&[LOCAL], &metadata[..]].concat())
        };
        for page in ["GET /", "GET /docs"] {
            assert_eq!(link(page, "navigate", "document"), 200);
            assert_eq!(link(page, "navigate", "iframe"), 403);
            assert_eq!(link(page, "no-cors", "image"), 403);
        }
        for target in ["GET /v1/models", "GET /metrics", "POST /", "GET /livez"] {
            assert_eq!(link(target, "navigate", "document"), 403, "{target}");
        }
    }
}
