//! What operators, routers and browsers look at.

use axum::Json;
use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};

use crate::app::App;
use crate::http::error::ApiError;
use crate::http::openapi::html::escape;
use crate::http::route::Route;
use crate::inference::EngineStatus;
use crate::openai::probes::{Health, Load, Loads};

const OK: Health = Health { status: "ok" };

/// A short page that says what this is and where.
pub fn page(State(app): State<App>, routes: &[Route]) -> Html<String> {
    let models: String =
        app.models().map(|model| format!("<li><code>{}</code></li>", escape(model.served.id()))).collect();
    let routes: String = routes.iter().map(line).collect();
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>predict-otron-9000</title>\
         <style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;\
         margin:3rem auto;padding:0 1rem}}</style>\
         <h1>predict-otron-9000 {version}</h1>\
         <p>An OpenAI-compatible server for chat and embeddings on this machine. Point an OpenAI client at \
         <code>/v1</code> of this address.</p>\
         <h2>Models</h2><ul>{models}</ul><h2>Routes</h2><ul>{routes}</ul></html>",
        version = env!("CARGO_PKG_VERSION"),
    ))
}

/// A route in the page; one that a browser can ask is a link.
fn line(route: &Route) -> String {
    let (path, parameter) = route.template();
    let name = format!("<code>{} {path}</code>", route.method());
    let name = match (&route.body, parameter) {
        (None, None) => format!("<a href=\"{path}\">{name}</a>"),
        _ => name,
    };
    format!("<li>{name} {}</li>", escape(route.summary))
}

/// 200 while requests can be answered; else 503 with the reason.
pub async fn health(State(app): State<App>) -> Response {
    match app.check_health() {
        Ok(()) => Json(OK).into_response(),
        Err(e) => ApiError::from(e).into_response(),
    }
}

/// 200 while the process answers at all.
pub async fn alive() -> Json<Health> {
    Json(OK)
}

/// How busy the server is, as routers read it from workers of any make.
pub async fn loads(State(app): State<App>) -> Json<Loads> {
    let loads: Vec<Load> =
        app.chat_status().into_iter().enumerate().map(|(rank, (_, status))| of(rank, &status)).collect();
    Json(Loads { timestamp: jiff::Timestamp::now().to_string(), dp_rank_count: loads.len(), loads })
}

fn of(rank: usize, status: &EngineStatus) -> Load {
    let EngineStatus { load, max_running, tokens_per_second, n_prompt_tokens, n_cached_tokens, .. } = *status;
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    Load {
        dp_rank: rank,
        num_running_reqs: load.n_running,
        num_waiting_reqs: load.n_waiting,
        num_waiting_uncached_tokens: load.n_waiting_tokens,
        num_total_reqs: load.n_running + load.n_waiting,
        num_used_tokens: load.used_tokens(),
        max_total_num_tokens: load.capacity_tokens(),
        token_usage: load.kv_usage,
        gen_throughput: tokens_per_second,
        cache_hit_rate: share(n_cached_tokens as f64, n_prompt_tokens as f64),
        utilization: share(load.n_running as f64, max_running as f64),
        max_running_requests: max_running,
    }
}

/// Counters in Prometheus' text format.
pub async fn metrics(State(app): State<App>) -> String {
    app.render_metrics()
}
