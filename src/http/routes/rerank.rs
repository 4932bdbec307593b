//! `POST /v1/rerank`, `POST /rerank` and `POST /v1/score`.

use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use uuid::Uuid;

use super::embeddings::check_number;
use crate::app::{App, unix_time};
use crate::embeddings::{Scores, ScoresRequest};
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject};
use crate::http::middleware::request_id::RequestId;
use crate::openai::chat::OneOrMany;
use crate::openai::embeddings::Usage;
use crate::openai::params;
use crate::openai::scores::{
    Document, RerankRequest, RerankResponse, RerankResult, ReturnedDocument, Score, ScoreRequest,
    ScoreResponse,
};

/// Orders documents by how well they fit a query.
pub async fn rerank(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<RerankRequest>(params::RERANK)?;
    let model = app.scoring_model(request.model.as_deref())?;
    check_number("documents", request.documents.len(), app.limits().embedding_inputs)?;
    if request.top_n == Some(0) {
        return Err(Error::invalid("top_n", "`top_n` is 0; ask for at least one document").into());
    }
    let documents: Vec<String> = request.documents.into_iter().map(Document::into_text).collect();
    let scores = model
        .embedder
        .score(ScoresRequest {
            pairs: documents.iter().map(|document| (request.query.clone(), document.clone())).collect(),
            truncates: request.truncate.unwrap_or(false),
            is_raw: request.raw_scores.unwrap_or(false),
        })
        .await?;
    log(&request_id, &scores);
    let mut ranked: Vec<(usize, f32)> = scores.scores.iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(request.top_n.unwrap_or(usize::MAX));
    let returns = request.return_documents.unwrap_or(false);
    let results = ranked
        .into_iter()
        .map(|(index, relevance_score)| RerankResult {
            index,
            relevance_score,
            document: returns.then(|| ReturnedDocument { text: documents[index].clone() }),
        })
        .collect();
    let answer = RerankResponse {
        id: format!("rerank-{}", Uuid::new_v4().simple()),
        model: model.served.id().to_owned(),
        results,
        usage: usage(&scores),
    };
    Ok(respond(answer, &scores, ignored))
}

/// Scores texts against each other: one against many, or each against its own.
pub async fn score(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<ScoreRequest>(params::SCORE)?;
    let model = app.scoring_model(request.model.as_deref())?;
    let pairs = pairs(request.text_1, request.text_2)?;
    check_number("text_2", pairs.len(), app.limits().embedding_inputs)?;
    let truncates = request.truncate.unwrap_or(false);
    let is_raw = request.raw_scores.unwrap_or(false);
    let scores = model.embedder.score(ScoresRequest { pairs, truncates, is_raw }).await?;
    log(&request_id, &scores);
    let data = scores.scores.iter().enumerate();
    let answer = ScoreResponse {
        id: format!("score-{}", Uuid::new_v4().simple()),
        object: "list",
        created: unix_time(),
        model: model.served.id().to_owned(),
        data: data.map(|(index, &score)| Score { index, object: "score", score }).collect(),
        usage: usage(&scores),
    };
    Ok(respond(answer, &scores, ignored))
}

fn pairs(first: OneOrMany, second: OneOrMany) -> Result<Vec<(String, String)>> {
    Ok(match (first, second) {
        (OneOrMany::One(first), OneOrMany::One(second)) => vec![(first, second)],
        (OneOrMany::One(first), OneOrMany::Many(all)) => {
            all.into_iter().map(|second| (first.clone(), second)).collect()
        }
        (OneOrMany::Many(all), OneOrMany::One(second)) => {
            all.into_iter().map(|first| (first, second.clone())).collect()
        }
        (OneOrMany::Many(all), OneOrMany::Many(others)) if all.len() == others.len() => {
            all.into_iter().zip(others).collect()
        }
        (OneOrMany::Many(all), OneOrMany::Many(others)) => {
            return Err(Error::invalid(
                "text_2",
                format!(
                    "`text_1` has {} texts and `text_2` {}; send one against many, or as many of each",
                    all.len(),
                    others.len()
                ),
            ));
        }
    })
}

fn usage(scores: &Scores) -> Usage {
    Usage { prompt_tokens: scores.n_tokens, total_tokens: scores.n_tokens }
}

fn log(request_id: &RequestId, scores: &Scores) {
    tracing::info!(
        id = request_id.as_str(),
        texts = scores.scores.len(),
        tokens = scores.n_tokens,
        cache_hits = scores.n_hits,
        queue_ms = scores.queue.as_millis(),
        compute_ms = scores.compute.as_millis(),
        "scores"
    );
}

fn respond(answer: impl Serialize, scores: &Scores, ignored: IgnoredParams) -> Response {
    let mut response = Json(answer).into_response();
    ignored.insert_into(response.headers_mut());
    response.headers_mut().insert("x-cache-hits", HeaderValue::from(scores.n_hits));
    response
}
