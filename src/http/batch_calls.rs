//! The server as batches see it: each line of a batch goes through the router as a request without a connection.

use std::pin::Pin;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Uri};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::{Value, json};

use super::middleware::auth::Tenant;
use super::middleware::request_id::RequestId;
use super::route::JSON;
use crate::app::{App, unix_time};
use crate::batches::{BatchServer, CallResult};

/// Paths whose requests may be in a batch of `/v1/batches`.
pub const ENDPOINTS: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/decisions"];

/// The path whose requests are in a batch of `/v1/messages/batches`.
pub const MESSAGES: &str = "/v1/messages";

/// The longest response of a line.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// Answers lines of batches by a router.
pub struct LineServer {
    app: App,
    router: TowerToHyperService<Router>,
}

impl LineServer {
    /// Lines are answered by `router`, which neither authenticates nor admits requests.
    pub fn new(app: App, router: Router) -> Self {
        Self { app, router: TowerToHyperService::new(router) }
    }

    fn request(owner: &str, path: &str, body: String) -> Option<Request> {
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse::<Uri>().ok()?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        request.extensions_mut().insert(Tenant::in_background(owner.into()));
        Some(request)
    }
}

impl BatchServer for LineServer {
    fn call(
        &self,
        owner: &str,
        path: &str,
        body: String,
    ) -> Pin<Box<dyn Future<Output = CallResult> + Send>> {
        let request = Self::request(owner, path, body);
        let response = request.map(|request| self.router.call(request));
        Box::pin(async move {
            let Some(response) = response else {
                return failed(String::new(), "the path of the batch is none");
            };
            let response = match response.await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let request_id = response.headers().get(RequestId::HEADER).and_then(|id| id.to_str().ok());
            let request_id = request_id.unwrap_or_default().to_owned();
            let status = response.status().as_u16();
            match to_bytes(response.into_body(), MAX_RESPONSE_BYTES).await {
                // An error after the first beat of `--heartbeat` has come too late for its status.
                Ok(body) if status == 200 && is_error(&body) => {
                    CallResult { status: 500, request_id, body: body.into() }
                }
                Ok(body) => CallResult { status, request_id, body: body.into() },
                Err(_) => {
                    let message = format!(
                        "the response is longer than {MAX_RESPONSE_BYTES} bytes; send fewer inputs in a line"
                    );
                    failed(request_id, &message)
                }
            }
        })
    }

    fn is_busy(&self) -> bool {
        self.app.is_busy()
    }

    fn is_stopping(&self) -> bool {
        self.app.is_draining()
    }

    fn now(&self) -> u64 {
        unix_time()
    }
}

/// Whether a body is nothing but an error.
fn is_error(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Head {
        id: Option<Value>,
        object: Option<Value>,
        error: Option<Value>,
    }
    serde_json::from_slice::<Head>(body)
        .is_ok_and(|head| head.error.is_some() && head.id.is_none() && head.object.is_none())
}

fn failed(request_id: String, message: &str) -> CallResult {
    let body = json!({"error": {"message": message, "type": "server_error", "param": null, "code": null}});
    CallResult { status: 500, request_id, body: body.to_string().into_bytes() }
}
