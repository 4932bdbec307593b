//! HTTP: the only folder that says `axum`. Routes here, one file per route family; this layer
//! knows no tokens.

mod answers;
mod auth;
mod chat;
mod completions;
mod connection;
mod embeddings;
mod error;
mod extract;
mod models;
mod probes;
mod request_id;
mod scores;
mod server;
mod tokens;

use axum::Router;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

pub use server::serve;

use crate::app::App;

/// All routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/", get(probes::page))
        .route("/health", get(probes::health))
        .route("/readyz", get(probes::health))
        .route("/livez", get(probes::alive))
        .route("/metrics", get(probes::metrics))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/rerank", post(scores::rerank))
        .route("/rerank", post(scores::rerank))
        .route("/v1/score", post(scores::score))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/loads", get(probes::loads))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show))
        .fallback(error::unknown_route)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(axum::middleware::from_fn_with_state(app.clone(), auth::check))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(axum::middleware::from_fn(request_id::identify))
        .with_state(app)
}
