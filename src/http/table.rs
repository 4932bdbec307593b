//! Every route, one row each: what answers it and what there is to say of it. The router, the document at
//! `/openapi.json`, the page at `/docs` and the one at `/` are made from these rows.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use serde_json::Value;

use super::openapi::{docs_page, document};
use super::route::{Body, EVENTS, HTML, JSON, Route, TEXT, any_object, schema};
use super::routes::{chat, completions, embeddings, models, probes, rerank, tokens};
use crate::app::App;
use crate::openai::chat::{ChatCompletion, ChatCompletionChunk, ChatCompletionRequest};
use crate::openai::completions::{Completion, CompletionRequest};
use crate::openai::embeddings::{EmbeddingsRequest, EmbeddingsResponse};
use crate::openai::models::{Model, ModelList};
use crate::openai::params;
use crate::openai::probes::{Health, Loads};
use crate::openai::scores::{RerankRequest, RerankResponse, ScoreRequest, ScoreResponse};
use crate::openai::tokens::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

/// Of a route that reads a body and asks a model.
const OF_MODELS: &[u16] = &[400, 404, 408, 413, 415, 429, 503];

/// All of them, in the order in which the document has them.
pub static ROUTES: &[Route] = &[
    Route {
        path: "/v1/chat/completions",
        handler: |method| on(method, chat::completions),
        id: "createChatCompletion",
        group: CHAT,
        summary: "Answer a conversation, whole or as a stream",
        body: Some(Body { schema: schema::<ChatCompletionRequest>, parameters: params::CHAT }),
        answers: &[(JSON, schema::<ChatCompletion>), (EVENTS, schema::<ChatCompletionChunk>)],
        headers: &["x-ignored-params", "x-cache"],
        errors: OF_MODELS,
    },
    Route {
        path: "/v1/completions",
        handler: |method| on(method, completions::completions),
        id: "createCompletion",
        group: CHAT,
        summary: "Go on with texts as they are, without the model's template",
        body: Some(Body { schema: schema::<CompletionRequest>, parameters: params::COMPLETIONS }),
        answers: &[(JSON, schema::<Completion>), (EVENTS, schema::<Completion>)],
        headers: &["x-ignored-params"],
        errors: OF_MODELS,
    },
    Route {
        path: "/v1/embeddings",
        handler: |method| on(method, embeddings::embeddings),
        id: "createEmbedding",
        group: TEXTS,
        summary: "Turn texts into vectors",
        body: Some(Body { schema: schema::<EmbeddingsRequest>, parameters: params::EMBEDDINGS }),
        answers: &[(JSON, schema::<EmbeddingsResponse>)],
        headers: &["x-ignored-params", "x-cache-hits"],
        errors: OF_MODELS,
    },
    RERANK,
    Route { path: "/rerank", id: "rerankWithoutVersion", summary: "The same as /v1/rerank", ..RERANK },
    Route {
        path: "/v1/score",
        handler: |method| on(method, rerank::score),
        id: "score",
        group: TEXTS,
        summary: "Score texts against each other",
        body: Some(Body { schema: schema::<ScoreRequest>, parameters: params::SCORE }),
        answers: &[(JSON, schema::<ScoreResponse>)],
        headers: &["x-ignored-params", "x-cache-hits"],
        errors: OF_MODELS,
    },
    Route {
        path: "/tokenize",
        handler: |method| on(method, tokens::tokenize),
        id: "tokenize",
        group: TOKENS,
        summary: "The token ids of a text or a conversation",
        body: Some(Body { schema: schema::<TokenizeRequest>, parameters: params::TOKENIZE }),
        answers: &[(JSON, schema::<TokenizeResponse>)],
        headers: &["x-ignored-params"],
        errors: OF_MODELS,
    },
    Route {
        path: "/detokenize",
        handler: |method| on(method, tokens::detokenize),
        id: "detokenize",
        group: TOKENS,
        summary: "The text that token ids stand for",
        body: Some(Body { schema: schema::<DetokenizeRequest>, parameters: params::DETOKENIZE }),
        answers: &[(JSON, schema::<DetokenizeResponse>)],
        headers: &["x-ignored-params"],
        errors: OF_MODELS,
    },
    Route {
        answers: &[(JSON, schema::<ModelList>)],
        ..page(
            "/v1/models",
            |method| on(method, models::list),
            "listModels",
            MODELS,
            "All models that are served",
        )
    },
    Route {
        answers: &[(JSON, schema::<Model>)],
        errors: &[404],
        ..page(
            "/v1/models/{*id}",
            |method| on(method, models::show),
            "retrieveModel",
            MODELS,
            "One of them, by any of its names; slashes may be raw or encoded",
        )
    },
    Route {
        answers: &[(JSON, schema::<Health>)],
        errors: &[503],
        ..page(
            "/health",
            |method| on(method, probes::health),
            "health",
            OPERATION,
            "Whether requests can be answered",
        )
    },
    Route {
        answers: &[(JSON, schema::<Health>)],
        errors: &[503],
        ..page("/readyz", |method| on(method, probes::health), "ready", OPERATION, "The same as /health")
    },
    Route {
        answers: &[(JSON, schema::<Health>)],
        ..page(
            "/livez",
            |method| on(method, probes::alive),
            "alive",
            OPERATION,
            "Whether the process answers at all",
        )
    },
    Route {
        answers: &[(TEXT, schema::<String>)],
        ..page(
            "/metrics",
            |method| on(method, probes::metrics),
            "metrics",
            OPERATION,
            "Counters, times and loads in Prometheus' text format",
        )
    },
    Route {
        answers: &[(JSON, schema::<Loads>)],
        ..page(
            "/v1/loads",
            |method| on(method, probes::loads),
            "loads",
            OPERATION,
            "How busy each chat model is, as routers read it",
        )
    },
    Route {
        answers: &[(JSON, any_object)],
        ..page(
            "/openapi.json",
            |method| on(method, openapi),
            "describe",
            DESCRIPTION,
            "This description, as an OpenAPI document",
        )
    },
    page(
        "/docs",
        |method| on(method, docs),
        "readDescription",
        DESCRIPTION,
        "This description, as a page for people",
    ),
    page("/", |method| on(method, front), "introduce", DESCRIPTION, "A short page for people"),
];

const RERANK: Route = Route {
    path: "/v1/rerank",
    handler: |method| on(method, rerank::rerank),
    id: "rerank",
    group: TEXTS,
    summary: "Put documents in the order in which they fit a query",
    body: Some(Body { schema: schema::<RerankRequest>, parameters: params::RERANK }),
    answers: &[(JSON, schema::<RerankResponse>)],
    headers: &["x-ignored-params", "x-cache-hits"],
    errors: OF_MODELS,
};

const CHAT: &str = "Chat and completions";
const TEXTS: &str = "Embeddings and scores";
const TOKENS: &str = "Tokens";
const MODELS: &str = "Models";
const OPERATION: &str = "Operation";
const DESCRIPTION: &str = "Description";

/// A route that shows something to whoever asks.
const fn page(
    path: &'static str,
    handler: fn(MethodFilter) -> MethodRouter<App>,
    id: &'static str,
    group: &'static str,
    summary: &'static str,
) -> Route {
    Route {
        path,
        handler,
        id,
        group,
        summary,
        body: None,
        answers: &[(HTML, schema::<String>)],
        headers: &[],
        errors: &[],
    }
}

/// The documents of a server that requires an API key, and of one that does not.
static KEYED: LazyLock<Value> = LazyLock::new(|| document::of_routes(ROUTES, true));
static OPEN: LazyLock<Value> = LazyLock::new(|| document::of_routes(ROUTES, false));

fn document_of(app: &App) -> &'static Value {
    if app.api_keys().are_required() { &KEYED } else { &OPEN }
}

/// `GET /openapi.json`.
async fn openapi(State(app): State<App>) -> Response {
    ([(CONTENT_TYPE, JSON)], document_of(&app).to_string()).into_response()
}

/// `GET /docs`.
async fn docs(State(app): State<App>) -> Html<String> {
    Html(docs_page::render(document_of(&app)))
}

/// `GET /`.
async fn front(state: State<App>) -> Html<String> {
    probes::page(state, ROUTES)
}
