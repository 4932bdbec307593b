//! HTTP: the only folder that says `axum`. Routes here, one file per route family; this layer
//! knows no tokens.

mod answers;
mod auth;
mod chat;
mod completions;
mod connection;
mod deferred;
mod embeddings;
mod error;
mod extract;
mod models;
mod openapi;
mod probes;
mod reference;
mod request_id;
mod retries;
mod routes;
mod scores;
mod server;
mod tokens;

use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;

pub use server::serve;

use crate::app::App;
use retries::Retries;
use routes::ROUTES;

/// All routes.
pub fn router(app: App) -> Router {
    let retries = Retries::new(app.limits());
    ROUTES
        .iter()
        .fold(Router::new(), |router, route| router.route(route.path, route.answer()))
        .fallback(error::unknown_route)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(Extension(retries))
        .layer(axum::middleware::from_fn_with_state(app.clone(), auth::check))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(axum::middleware::from_fn(request_id::identify))
        .with_state(app)
}
