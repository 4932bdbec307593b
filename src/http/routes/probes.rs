//! Probes, metrics and load for operators and load balancers, and the start page for browsers.

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use axum::response::{Html, IntoResponse, Response};

use crate::app::App;
use crate::http::error::ApiError;
use crate::http::openapi::html::escape;
use crate::http::route::Route;
use crate::openai::probes::{Health, Load, Loads};

const OK: Health = Health { status: "ok" };

/// The start page: the models and the routes.
pub fn start_page(State(app): State<App>, routes: &[Route]) -> Html<String> {
    let models: String =
        app.models().map(|model| format!("<li><code>{}</code></li>", escape(model.served.id()))).collect();
    let routes: String = routes.iter().map(list_item).collect();
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>predict-otron-9000</title>\
         <style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;\
         margin:3rem auto;padding:0 1rem}}</style>\
         <h1>predict-otron-9000 {version}</h1>\
         <p>An OpenAI-compatible server for chat and embeddings on this machine. Point an OpenAI client at \
         <code>/v1</code> on this address.</p>\
         <h2>Models</h2><ul>{models}</ul><h2>Routes</h2><ul>{routes}</ul></html>",
        version = env!("CARGO_PKG_VERSION"),
    ))
}

/// A route of the start page. A GET route without parameters is a link.
fn list_item(route: &Route) -> String {
    let (path, parameters) = route.template();
    let name = format!("<code>{} {path}</code>", route.method());
    let name = match route.method() == Method::GET && parameters.is_empty() {
        true => format!("<a href=\"{path}\">{name}</a>"),
        false => name,
    };
    format!("<li>{name} {}</li>", escape(route.summary))
}

/// 200 while the server is ready for requests, otherwise 503 with the reason.
pub async fn health(State(app): State<App>) -> Response {
    match app.check_health() {
        Ok(()) => Json(OK).into_response(),
        Err(e) => ApiError::from(e).into_response(),
    }
}

/// 200 while the process responds.
pub async fn alive() -> Json<Health> {
    Json(OK)
}

/// The load of each chat model, in the form in which SGLang reports it to load balancers.
pub async fn loads(State(app): State<App>) -> Json<Loads> {
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let statuses = app.chat_status().into_iter().enumerate();
    let loads: Vec<Load> = statuses
        .map(|(rank, (_, status))| Load {
            dp_rank: rank,
            num_running_reqs: status.load.n_running,
            num_waiting_reqs: status.load.n_waiting,
            num_waiting_uncached_tokens: status.load.n_waiting_tokens,
            num_total_reqs: status.load.n_running + status.load.n_waiting,
            num_used_tokens: status.load.used_tokens(),
            max_total_num_tokens: status.load.capacity_tokens(),
            token_usage: status.load.kv_usage,
            gen_throughput: status.tokens_per_second,
            cache_hit_rate: share(status.n_cached_tokens as f64, status.n_prompt_tokens as f64),
            utilization: share(status.load.n_running as f64, status.max_running as f64),
            max_running_requests: status.max_running,
        })
        .collect();
    Json(Loads { timestamp: jiff::Timestamp::now().to_string(), dp_rank_count: loads.len(), loads })
}

/// Metrics in the Prometheus text format.
pub async fn metrics(State(app): State<App>) -> String {
    app.render_metrics()
}
