//! What operators and browsers look at: `/`, `/health`, `/metrics`.

use axum::Json;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use serde_json::json;

use super::error::ApiError;
use crate::app::App;

/// A short page that says what this is and where.
pub async fn page(State(app): State<App>) -> Html<String> {
    let models: String =
        app.models().map(|model| format!("<li><code>{}</code></li>", escaped(model.served.id()))).collect();
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>predict-otron-9000</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}}</style>\
         <h1>predict-otron-9000 {version}</h1>\
         <p>An OpenAI-compatible server for chat and embeddings on this machine. Point an OpenAI client at \
         <code>/v1</code> of this address; any API key will do.</p>\
         <h2>Models</h2><ul>{models}</ul>\
         <h2>Routes</h2><ul>\
         <li><code>POST /v1/chat/completions</code></li>\
         <li><code>POST /v1/embeddings</code></li>\
         <li><a href=\"/v1/models\"><code>GET /v1/models</code></a>, <code>GET /v1/models/{{id}}</code></li>\
         <li><a href=\"/health\"><code>GET /health</code></a>, <a href=\"/metrics\"><code>GET /metrics</code></a></li>\
         </ul></html>",
        version = env!("CARGO_PKG_VERSION"),
    ))
}

/// 200 while requests can be answered; else 503 with the reason.
pub async fn health(State(app): State<App>) -> Response {
    match app.check_health() {
        Ok(()) => Json(json!({ "status": "ok" })).into_response(),
        Err(e) => ApiError::from(e).into_response(),
    }
}

/// Counters in Prometheus' text format.
pub async fn metrics(State(app): State<App>) -> String {
    app.render_metrics()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
