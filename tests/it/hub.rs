//! A test hub with a CDN for large files, on two ports, with faults on demand.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files of at least this size are served by the CDN and named by their SHA-256.
pub const LARGE: usize = 1000;

/// The token for private repositories.
pub const TOKEN: &str = "hf_test";

/// The contents and faults of the test hub, and the requests it received.
#[derive(Default)]
pub struct Script {
    /// Commit and files by repository.
    repos: BTreeMap<String, (String, BTreeMap<String, Vec<u8>>)>,
    /// The new names of renamed repositories.
    pub moved: BTreeMap<String, String>,
    /// The number of response bodies to cut in half.
    pub cut: usize,
    /// Whether bodies stop at half, with the connection open.
    pub stall: bool,
    /// Whether one bit of every body is flipped.
    pub flip: bool,
    /// Whether `Range` is ignored.
    pub ignore_range: bool,
    /// The status of every response.
    pub status: Option<StatusCode>,
    /// Whether requests without the token get 401.
    pub private: bool,
    /// The delay of every body.
    pub delay_ms: u64,
    /// Every request, in order.
    pub seen: Vec<Seen>,
}

/// A received request.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
    /// Whether the CDN received it.
    pub at_cdn: bool,
}

/// The running servers, which end with the process.
#[derive(Clone)]
pub struct TestHub {
    pub endpoint: String,
    cdn: SocketAddr,
    script: Arc<Mutex<Script>>,
}

impl TestHub {
    pub fn start() -> Self {
        let bind = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            (listener.local_addr().unwrap(), listener)
        };
        let ((hub_address, hub), (cdn, cdn_listener)) = (bind(), bind());
        let this = Self { endpoint: format!("http://{hub_address}"), cdn, script: Arc::default() };
        let hub_app = Router::new().fallback(serve_hub).with_state(this.clone());
        let cdn_app = Router::new().fallback(serve_cdn).with_state(this.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listen = |listener| tokio::net::TcpListener::from_std(listener).unwrap();
                let serve_cdn = axum::serve(listen(cdn_listener), cdn_app).into_future();
                let (one, other) = tokio::join!(axum::serve(listen(hub), hub_app).into_future(), serve_cdn);
                one.and(other).unwrap();
            });
        });
        this
    }

    /// Adds or replaces a file, in a new commit.
    pub fn put(&self, repo: &str, path: &str, bytes: impl Into<Vec<u8>>) -> &Self {
        let mut script = self.script();
        let (commit, files) = script.repos.entry(repo.to_owned()).or_default();
        files.insert(path.to_owned(), bytes.into());
        let text = format!("{commit}{path}{files:?}");
        *commit = git_sha1(text.as_bytes());
        drop(script);
        self
    }

    pub fn commit(&self, repo: &str) -> String {
        self.script().repos[repo].0.clone()
    }

    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Removes and returns the requests so far.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.script().seen)
    }

    /// The requests for file bodies since the last [`TestHub::take_seen`].
    pub fn take_bodies(&self) -> Vec<Seen> {
        let mut seen = self.take_seen();
        seen.retain(|seen| {
            // A request that is redirected to the CDN counts once.
            let is_redirected = !seen.at_cdn && self.is_large(&seen.path);
            seen.method == Method::GET && !seen.path.starts_with("/api/") && !is_redirected
        });
        seen
    }

    fn is_large(&self, path: &str) -> bool {
        let script = self.script();
        parse_resolve(path)
            .and_then(|(repo, _, file)| script.repos.get(&repo)?.1.get(&file))
            .is_some_and(|bytes| bytes.len() >= LARGE)
    }

    fn record(&self, request: &Request, at_cdn: bool) -> Option<StatusCode> {
        let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let seen = Seen {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            range: text(header::RANGE),
            token: text(header::AUTHORIZATION),
            at_cdn,
        };
        let mut script = self.script();
        let needs_token = script.private && !at_cdn;
        let is_refused = needs_token && seen.token.as_deref() != Some(&format!("Bearer {TOKEN}"));
        script.seen.push(seen);
        script.status.or(is_refused.then_some(StatusCode::UNAUTHORIZED))
    }
}

async fn serve_hub(State(hub): State<TestHub>, request: Request) -> Response {
    if let Some(status) = hub.record(&request, false) {
        return status.into_response();
    }
    let path = request.uri().path().to_owned();
    if let Some(rest) = path.strip_prefix("/api/models/") {
        return info(&hub, rest);
    }
    let Some((repo, revision, file)) = parse_resolve(&path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let script = hub.script();
    if let Some(new) = script.moved.get(&repo) {
        let location = format!("/{new}/resolve/{revision}/{file}");
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response();
    }
    let Some((commit, files)) = script.repos.get(&repo) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RepoNotFound")]).into_response();
    };
    if revision != "main" && revision != *commit {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RevisionNotFound")]).into_response();
    }
    let Some(bytes) = files.get(&file).cloned() else {
        let headers = [("x-error-code", "EntryNotFound"), ("x-repo-commit", commit)];
        return (StatusCode::NOT_FOUND, headers).into_response();
    };
    let commit = [("x-repo-commit", commit.clone())];
    drop(script);
    if bytes.len() < LARGE {
        let etag = [(header::ETAG, format!("\"{}\"", git_sha1(&bytes)))];
        return (commit, etag, body(&hub, request.method(), request.headers(), bytes)).into_response();
    }
    let sha256 = sha256(&bytes);
    let linked = [("x-linked-etag", format!("\"{sha256}\"")), ("x-linked-size", bytes.len().to_string())];
    let location = [(header::LOCATION, format!("http://{}/{repo}/{file}?signed", hub.cdn))];
    (StatusCode::FOUND, commit, linked, location).into_response()
}

/// Serves large files. The CDN sends neither commits nor the hub's digests.
async fn serve_cdn(State(hub): State<TestHub>, request: Request) -> Response {
    if let Some(status) = hub.record(&request, true) {
        return status.into_response();
    }
    let path = request.uri().path();
    let bytes = hub
        .script()
        .repos
        .iter()
        .find_map(|(repo, (_, files))| files.get(path.strip_prefix(&format!("/{repo}/"))?).cloned());
    let Some(bytes) = bytes else { return StatusCode::NOT_FOUND.into_response() };
    let etag = [(header::ETAG, "\"an-etag-of-its-own\"")];
    (etag, body(&hub, request.method(), request.headers(), bytes)).into_response()
}

fn info(hub: &TestHub, rest: &str) -> Response {
    let script = hub.script();
    let Some((repo, revision)) = rest.split_once("/revision/") else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let Some((commit, files)) = script.repos.get(repo) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RepoNotFound")]).into_response();
    };
    if revision != "main" && revision != commit {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RevisionNotFound")]).into_response();
    }
    let siblings: Vec<_> = files.keys().map(|file| json!({ "rfilename": file })).collect();
    let info = json!({ "id": repo, "sha": commit, "siblings": siblings, "cardData": { "license": "mit" } });
    axum::Json(info).into_response()
}

/// A response body with the faults of the script.
fn body(hub: &TestHub, method: &Method, headers: &HeaderMap, mut bytes: Vec<u8>) -> Response {
    if method == Method::HEAD {
        return [(header::CONTENT_LENGTH, bytes.len().to_string())].into_response();
    }
    let mut script = hub.script();
    if script.flip {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    let range = headers.get(header::RANGE).filter(|_| !script.ignore_range).map(|range| {
        let (start, end) = range.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        start.parse::<usize>().unwrap()..end.parse::<usize>().unwrap() + 1
    });
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut bytes = Bytes::from(bytes);
    if let Some(range) = range {
        bytes = bytes.slice(range);
    }
    let length = [(header::CONTENT_LENGTH, bytes.len().to_string())];
    let half = bytes.slice(..bytes.len() / 2);
    let is_cut = script.cut > 0;
    script.cut = script.cut.saturating_sub(1);
    let (stall, delay_ms) = (script.stall, script.delay_ms);
    drop(script);
    let body = if stall {
        let first = stream::iter([Ok::<_, Infallible>(half)]);
        Body::from_stream(first.chain(stream::pending()))
    } else if is_cut {
        // An error in the stream makes the server drop the connection. Wait first, so that the half leaves the
        // server's buffer.
        let cut = stream::once(async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            Err(std::io::Error::other("cut"))
        });
        Body::from_stream(stream::iter([Ok(half)]).chain(cut))
    } else if delay_ms > 0 {
        Body::from_stream(stream::once(async move {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            Ok::<_, Infallible>(bytes)
        }))
    } else {
        Body::from(bytes)
    };
    (status, length, body).into_response()
}

/// Splits repository, revision and file out of `/owner/name/resolve/revision/file`.
fn parse_resolve(path: &str) -> Option<(String, String, String)> {
    let (repo, rest) = path.strip_prefix('/')?.split_once("/resolve/")?;
    let (revision, file) = rest.split_once('/')?;
    Some((repo.to_owned(), revision.to_owned(), file.to_owned()))
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The git object id of a file.
pub fn git_sha1(bytes: &[u8]) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(format!("blob {}\0", bytes.len()));
    sha1.update(bytes);
    sha1.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
