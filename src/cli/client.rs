//! HTTP client of an OpenAI-compatible server.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{ClientBuilder, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

use super::event_stream::SseDecoder;
use crate::error::{Error, Kind, Result, quote};

/// Time to connect to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiClient {
    http: reqwest::Client,
    /// The server's URL, without `/v1`.
    base: Url,
    key: Option<String>,
}

/// A model in a server's list. The fields after `id` are those of this program's server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ListedModel {
    /// Id of the model.
    pub id: String,
    /// Other names of the model.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Purpose of the model: `chat`, `embedding` or `reranking`.
    #[serde(default)]
    pub kind: Option<String>,
}

impl ListedModel {
    /// Whether the model has this name.
    pub fn is_called(&self, name: &str) -> bool {
        [&self.id].into_iter().chain(&self.aliases).any(|own| own.eq_ignore_ascii_case(name))
    }
}

impl ApiClient {
    /// A client of the server at `url`; `http://` may be left out, and `/v1` at the end has no meaning.
    ///
    /// # Errors
    /// When `url` is no URL of a server.
    pub fn new(url: &str, key: Option<&str>) -> Result<Self> {
        let config = |message: String| Error::new(Kind::Config, message);
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let full = full.trim_end_matches('/');
        let base = Url::parse(full.strip_suffix("/v1").unwrap_or(full))
            .ok()
            .filter(|base| ["http", "https"].contains(&base.scheme()) && base.has_host())
            .ok_or_else(|| {
                config(format!("`{}` is no URL of a server, such as http://127.0.0.1:8080", quote(url)))
            })?;
        let builder = reqwest::Client::builder();
        // A proxy would look for the server on its own machine.
        let builder = if is_loopback(&base) { builder.no_proxy() } else { builder };
        Self::build(builder, base, key)
    }

    /// A client of the server at `port` of this machine, whose certificate, which has another name, is not verified.
    ///
    /// # Errors
    /// When the client cannot be set up.
    pub fn unverified(port: u16, uses_tls: bool) -> Result<Self> {
        let scheme = if uses_tls { "https" } else { "http" };
        let builder = reqwest::Client::builder().no_proxy().danger_accept_invalid_certs(true);
        let base = Url::parse(&format!("{scheme}://127.0.0.1:{port}"));
        Self::build(builder, base.map_err(|e| Error::internal(e.to_string()))?, None)
    }

    fn build(builder: ClientBuilder, base: Url, key: Option<&str>) -> Result<Self> {
        let http = builder.connect_timeout(CONNECT_TIMEOUT).build();
        let http =
            http.map_err(|e| Error::new(Kind::Config, format!("cannot set up the HTTP client: {e}")))?;
        Ok(Self { http, base, key: key.map(str::to_owned) })
    }

    /// The server's URL.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The server's models.
    ///
    /// # Errors
    /// When the server cannot be reached, or does not list models.
    pub async fn models(&self) -> Result<Vec<ListedModel>> {
        #[derive(Deserialize)]
        struct List {
            data: Vec<ListedModel>,
        }
        let body = self.body(self.http.get(self.path(&["v1", "models"]))).await?;
        let list = serde_json::from_value::<List>(body).map_err(|_| self.unexpected("a list of models"))?;
        Ok(list.data)
    }

    /// Looks up a model by name.
    ///
    /// # Errors
    /// When the server has no such model; the error lists what there is.
    pub async fn model(&self, name: &str) -> Result<ListedModel> {
        let body = self.body(self.http.get(self.path(&["v1", "models", name]))).await?;
        serde_json::from_value(body).map_err(|_| self.unexpected("a model"))
    }

    /// Checks that the server is ready for requests.
    ///
    /// # Errors
    /// When it cannot be reached, or is not ready; the error says why.
    pub async fn readiness(&self) -> Result<()> {
        self.send(self.http.get(self.path(&["readyz"]))).await.map(drop)
    }

    /// Sends a request, and returns the JSON of the response.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses the request.
    pub async fn post(&self, path: &[&str], body: &Value) -> Result<Value> {
        self.body(self.post_json(path, body)).await
    }

    /// Sends a request for a stream of events.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses the request.
    pub async fn stream(&self, path: &[&str], body: &Value) -> Result<ApiStream> {
        let response = self.send(self.post_json(path, body)).await?;
        Ok(ApiStream {
            ignored: ignored_params(response.headers()),
            url: self.url().to_owned(),
            response,
            decoder: SseDecoder::default(),
            events: VecDeque::new(),
        })
    }

    fn post_json(&self, path: &[&str], body: &Value) -> RequestBuilder {
        self.http.post(self.path(path)).header(CONTENT_TYPE, "application/json").body(body.to_string())
    }

    async fn body(&self, request: RequestBuilder) -> Result<Value> {
        let bytes = self.send(request).await?.bytes().await.map_err(|e| cut_off(self.url(), &e))?;
        serde_json::from_slice(&bytes).map_err(|_| self.unexpected("JSON"))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(self.refusal(status, &body))
    }

    /// The error for a response other than a success.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> Error {
        let url = self.url();
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = &body["error"];
        let message = match error["message"].as_str() {
            Some(message) => message.to_owned(),
            None => format!("the server at {url} answered with status {status}"),
        };
        let code = error["code"].as_str().unwrap_or_default();
        let (kind, message) = match (status.as_u16(), code, &self.key) {
            (401, code, key) => {
                let problem = match key {
                    None => "requires an API key; pass --api-key or set PREDICT_OTRON_API_KEY",
                    Some(_) => "does not accept the API key; check --api-key and PREDICT_OTRON_API_KEY",
                };
                // Servers of other programs have other codes.
                let is_own = ["missing_api_key", "invalid_api_key"].contains(&code);
                let kind = if is_own { Kind::Config } else { Kind::InvalidRequest };
                (kind, format!("the server at {url} {problem}"))
            }
            (404, "model_not_found", _) => (Kind::ModelNotFound, message),
            (429 | 503, ..) => (Kind::Unavailable, message),
            _ => (Kind::InvalidRequest, message),
        };
        Error::new(kind, message)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let message = format!(
            "cannot reach the server at {}: {}; start it with `predict-otron-9000 serve`, or pass --local to run the \
             model in this process",
            self.url(),
            root_cause(error)
        );
        Error::new(Kind::Unavailable, message)
    }

    fn unexpected(&self, expected: &str) -> Error {
        let message = format!(
            "the server at {} did not answer with {expected}; is it an OpenAI-compatible one?",
            self.url()
        );
        Error::new(Kind::Unavailable, message)
    }

    /// The URL of a route, given by the parts of its path.
    fn path(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Only URLs without a host have no path, and those were refused.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }
}

/// A streamed response.
pub struct ApiStream {
    /// Parameters that the server ignored, as its header names them.
    pub ignored: Option<String>,
    url: String,
    response: Response,
    decoder: SseDecoder,
    events: VecDeque<String>,
}

impl ApiStream {
    /// The JSON of the next event; `None` at the end of the stream.
    ///
    /// # Errors
    /// When the server reports one, or the connection is lost.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        let event = loop {
            if let Some(event) = self.events.pop_front() {
                break event;
            }
            match self.response.chunk().await.map_err(|e| cut_off(&self.url, &e))? {
                Some(bytes) => self.events.extend(self.decoder.push(&bytes)),
                None => return Err(cut_off(&self.url, &"the connection was closed")),
            }
        };
        if event == "[DONE]" {
            return Ok(None);
        }
        let event: Value = serde_json::from_str(&event).map_err(|_| {
            Error::new(Kind::Unavailable, format!("the server at {} sent an event that is no JSON", self.url))
        })?;
        match event["error"]["message"].as_str() {
            Some(message) => Err(Error::new(Kind::Unavailable, message)),
            None => Ok(Some(event)),
        }
    }
}

fn cut_off(url: &str, cause: &impl ToString) -> Error {
    let message = format!(
        "the server at {url} ended the connection before the answer was complete: {}",
        cause.to_string()
    );
    Error::new(Kind::Unavailable, message)
}

fn ignored_params(headers: &HeaderMap) -> Option<String> {
    headers.get("x-ignored-params")?.to_str().ok().map(str::to_owned)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The innermost error, which says what happened.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers_are_completed() {
        for (given, url) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("https://llm.example.com/v1", "https://llm.example.com"),
            ("localhost:1/proxy/v1/", "http://localhost:1/proxy"),
        ] {
            assert_eq!(ApiClient::new(given, None).unwrap().url(), url, "{given}");
        }
        for wrong in ["", "ftp://x", "http://", "a b"] {
            let error = ApiClient::new(wrong, None).unwrap_err().to_string();
            assert!(error.contains("no URL of a server"), "{wrong}: {error}");
        }
    }

    #[test]
    fn names_of_models_are_parts_of_a_path() {
        let client = ApiClient::new("http://localhost:1/proxy", None).unwrap();
        let url = client.path(&["v1", "models", "a/b?c"]);
        assert_eq!(url.as_str(), "http://localhost:1/proxy/v1/models/a%2Fb%3Fc");
        assert_eq!(ApiClient::new("h", None).unwrap().path(&["v1"]).as_str(), "http://h/v1");
    }

    #[test]
    fn servers_on_this_machine_need_no_proxy() {
        for (url, expected) in [
            ("http://localhost:1", true),
            ("http://127.1.2.3", true),
            ("http://[::1]:5", true),
            ("http://a.b", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
