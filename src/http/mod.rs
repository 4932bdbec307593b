//! The HTTP server: routes, middleware, retries, and the OpenAPI document. The only module that uses axum,
//! tower and hyper. It knows no tokens, tensors or models; see [`crate::app`] for those.
//!
//! A request passes through `server` (connections, keep-alive, graceful shutdown), `middleware` (request
//! id, host and origin, API key, quotas, admission) and the router made from `table` to its handler in `routes`. The
//! handler reads its body with `extract`. A full queue is an error, which `error` turns into a 429; most requests for a full queue
//! are refused by `middleware` before their body is read.

mod batch_calls;
mod error;
mod extract;
mod generation_response;
mod guarded_body;
mod json_shape;
mod middleware;
mod offload;
mod openapi;
mod page;
mod query;
mod response_run;
mod retry;
mod route;
mod routes;
mod server;
mod table;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::{App, RequestClass};
use crate::batches::{BatchLimits, BatchRunner};
use batch_calls::{ENDPOINTS, LineServer, MESSAGES};
use middleware::auth::{self, KeyGuard};
use middleware::site::{self, SitePolicy};
use middleware::{admission, anthropic, metering, ollama, request_id};
use response_run::BackgroundRuns;
use retry::dedup::RetryDedup;
use route::Route;
pub use server::{Listener, Tls};
use table::ROUTES;

/// Serves `app` on `listener` until `stop` resolves, then shuts down gracefully.
///
/// `stop` resolves to a drain delay, during which requests are still accepted but `/health` fails, so that load
/// balancers send new clients elsewhere. Then no new requests are accepted, and running ones have
/// [`Limits::shutdown_grace`](crate::config::Limits::shutdown_grace) to finish.
pub async fn serve(listener: impl Into<Listener>, app: App, stop: impl Future<Output = Duration>) {
    server::serve(listener.into(), router(app.clone()), app, stop).await;
}

/// The router of all routes, with their middleware.
pub fn router(app: App) -> Router {
    let dedup = RetryDedup::new(app.limits());
    let limits = app.limits();
    let background = BackgroundRuns::new(limits.background_responses, limits.background_event_bytes);
    let sites = SitePolicy::new(app.access().clone(), app.api_keys().are_required());
    let runner = batch_runner(&app, &dedup, &background);
    let router = routed(ROUTES.iter(), |route| admitted(route, &app))
        .fallback(table::unknown_route)
        .method_not_allowed_fallback(error::method_not_allowed)
        // Bodies have limits of their own.
        .layer(DefaultBodyLimit::disable())
        .layer(Extension(dedup))
        .layer(Extension(background))
        .layer(Extension(runner))
        .layer(from_fn_with_state(KeyGuard::new(app.clone()), auth::require_api_key))
        .layer(CatchPanicLayer::custom(error::handler_panicked));
    // Outside of authentication: preflights have no key, and pages read why they were refused.
    let router = match sites.cors_layer() {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn_with_state(sites, site::check_site))
        .layer(axum::middleware::from_fn(anthropic::envelope))
        .layer(axum::middleware::from_fn(ollama::envelope))
        .layer(from_fn_with_state(app.clone(), request_id::assign_and_log))
        .with_state(app)
}

/// Starts the batches, whose lines are answered by the handlers of their routes without authentication and admission.
fn batch_runner(app: &App, dedup: &RetryDedup, background: &BackgroundRuns) -> BatchRunner {
    let is_endpoint = |route: &&Route| ENDPOINTS.contains(&route.path()) || route.path() == MESSAGES;
    let metered = |route: &Route| {
        let state = (app.clone(), route.path());
        route.method_router().route_layer(from_fn_with_state(state, metering::meter_without_quota))
    };
    let router = routed(ROUTES.iter().filter(is_endpoint), metered)
        .layer(Extension(dedup.clone()))
        .layer(Extension(background.clone()))
        .layer(CatchPanicLayer::custom(error::handler_panicked))
        .layer(axum::middleware::from_fn(anthropic::envelope))
        .layer(from_fn_with_state(app.clone(), request_id::assign_and_log))
        .with_state(app.clone());
    let limits = BatchLimits { line_bytes: app.limits().body_bytes };
    BatchRunner::start(app.files().clone(), Arc::new(LineServer::new(app.clone(), router)), limits)
}

/// A router of `routes`.
fn routed<'a>(
    routes: impl Iterator<Item = &'a Route>,
    handler: impl Fn(&Route) -> MethodRouter<App>,
) -> Router<App> {
    routes.fold(Router::new(), |router, route| router.route(route.path(), handler(route)))
}

/// The handler of a route, behind admission control if the route has a class, and behind quotas if it uses a model.
fn admitted(route: &Route, app: &App) -> MethodRouter<App> {
    let handler = route.method_router();
    match route.admission {
        None => handler,
        Some(class) => {
            let admitted = handler.route_layer(from_fn_with_state((app.clone(), class), admission::admit));
            match class {
                RequestClass::Tokens => admitted,
                RequestClass::Generation | RequestClass::Embedding => {
                    let state = (app.clone(), route.path());
                    admitted.route_layer(from_fn_with_state(state, metering::meter))
                }
            }
        }
    }
}
