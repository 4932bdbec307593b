//! HTTP: the only folder that says `axum`. Routes here, one file per route family; this layer
//! knows no tokens.

mod error;
mod extract;
mod generation_response;
mod middleware;
mod openapi;
mod retry;
mod route;
mod routes;
mod server;
mod table;

use std::time::Duration;

use axum::{Extension, Router};
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;
use middleware::{auth, request_id};
use retry::dedup::RetryDedup;
use table::ROUTES;

/// Serves `app` on `listener` until `shutdown` comes, as [`server::serve`] does.
pub async fn serve(listener: TcpListener, app: App, shutdown: impl Future<Output = Duration>) {
    server::serve(listener, router(app.clone()), app, shutdown).await;
}

/// All routes.
pub fn router(app: App) -> Router {
    let dedup = RetryDedup::new(app.limits());
    ROUTES
        .iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.method_router()))
        .fallback(error::unknown_route)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(Extension(dedup))
        .layer(axum::middleware::from_fn_with_state(app.clone(), auth::require_api_key))
        .layer(CatchPanicLayer::custom(error::handler_panicked))
        .layer(axum::middleware::from_fn(request_id::assign_and_log))
        .with_state(app)
}
