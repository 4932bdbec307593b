//! Every route, one row each: what answers it and what there is to say of it. The router, the document at
//! `/openapi.json`, the page at `/docs` and the one at `/` are made from these rows.

use axum::http::Method;
use axum::response::Html;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::openapi::{SchemaOf, schema};
use super::{auth, chat, completions, embeddings, models, openapi, probes, reference, scores, tokens};
use crate::app::App;
use crate::openai::chat::{ChatCompletion, ChatCompletionChunk, ChatCompletionRequest};
use crate::openai::completions::{Completion, CompletionRequest};
use crate::openai::embeddings::{EmbeddingsRequest, EmbeddingsResponse};
use crate::openai::models::{Model, ModelList};
use crate::openai::params::{self, Rows};
use crate::openai::probes::{Health, Loads};
use crate::openai::scores::{RerankRequest, RerankResponse, ScoreRequest, ScoreResponse};
use crate::openai::tokens::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

/// A path and what answers it.
pub struct Route {
    /// As axum writes it: `{*id}` is an id that may hold slashes.
    pub path: &'static str,
    handler: fn(MethodFilter) -> MethodRouter<App>,
    /// A name for it in generated clients.
    pub id: &'static str,
    /// The routes it stands with.
    pub group: &'static str,
    pub summary: &'static str,
    /// What it is asked with; a route with a body is asked by POST, the others by GET.
    pub body: Option<Body>,
    /// Media types of the answer, and what stands in it.
    pub answers: &'static [(&'static str, SchemaOf)],
    /// Headers of the answer, beside those of every answer.
    pub headers: &'static [&'static str],
    /// Errors, beside those that every route may answer with.
    pub errors: &'static [u16],
}

/// What a request holds.
pub struct Body {
    pub schema: SchemaOf,
    pub parameters: Rows,
}

pub const JSON: &str = "application/json";
pub const EVENTS: &str = "text/event-stream";
pub const HTML: &str = "text/html";
pub const TEXT: &str = "text/plain";

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
        handler: |method| on(method, scores::score),
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
        answers: &[(JSON, openapi::any_object)],
        ..page(
            "/openapi.json",
            |method| on(method, openapi::serve),
            "describe",
            DESCRIPTION,
            "This description, as an OpenAPI document",
        )
    },
    page(
        "/docs",
        |method| on(method, reference::page),
        "readDescription",
        DESCRIPTION,
        "This description, as a page for people",
    ),
    page("/", |method| on(method, front), "introduce", DESCRIPTION, "A short page for people"),
];

const RERANK: Route = Route {
    path: "/v1/rerank",
    handler: |method| on(method, scores::rerank),
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

impl Route {
    pub fn method(&self) -> Method {
        if self.body.is_some() { Method::POST } else { Method::GET }
    }

    /// What answers it.
    pub fn answer(&self) -> MethodRouter<App> {
        (self.handler)(if self.body.is_some() { MethodFilter::POST } else { MethodFilter::GET })
    }

    /// Whether it asks for a key where keys are set.
    pub fn needs_key(&self) -> bool {
        !auth::PROBES.contains(&self.path)
    }

    /// Its path as OpenAPI writes it, and the parameter in it.
    pub fn template(&self) -> (String, Option<&'static str>) {
        let parameter = self.path.split_once("{*").map(|(_, rest)| rest.trim_end_matches('}'));
        (self.path.replace('*', ""), parameter)
    }
}

/// The page at `/`, which tells of the others.
async fn front(state: axum::extract::State<App>) -> Html<String> {
    probes::page(state, ROUTES)
}
