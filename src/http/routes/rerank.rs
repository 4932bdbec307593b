//! `POST /v1/rerank`, `POST /rerank` and `POST /v1/score`.

use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use uuid::Uuid;

use super::embeddings::check_n_texts;
use crate::app::{App, unix_time};
use crate::embeddings::{RelevanceScores, ScoringRequest};
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject};
use crate::http::middleware::request_id::RequestId;
use crate::openai::embeddings::InputUsage;
use crate::openai::generation_options::OneOrMany;
use crate::openai::params;
use crate::openai::rerank::{
    Document, RerankRequest, RerankResponse, RerankResult, ReturnedDocument, Score, ScoreRequest,
    ScoreResponse,
};

/// Ranks documents by relevance to a query.
pub async fn rerank(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<RerankRequest>(params::RERANK).await?;
    let model = app.scorer(request.model.as_deref())?;
    check_n_texts("documents", request.documents.len(), app.limits().embedding_inputs)?;
    if request.top_n == Some(0) {
        return Err(Error::invalid("top_n", "`top_n` is 0; set it to 1 or more").into());
    }
    let documents: Vec<String> = request.documents.into_iter().map(Document::into_text).collect();
    let scores = model
        .embedder
        .score(ScoringRequest {
            pairs: documents.iter().map(|document| (request.query.clone(), document.clone())).collect(),
            truncate: request.truncate.unwrap_or(false),
            raw_scores: request.raw_scores.unwrap_or(false),
        })
        .await?;
    log_scores(&request_id, &scores);
    let mut ranked: Vec<(usize, f32)> = scores.scores.iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(request.top_n.unwrap_or(usize::MAX));
    let return_documents = request.return_documents.unwrap_or(false);
    let results = ranked
        .into_iter()
        .map(|(index, relevance_score)| RerankResult {
            index,
            relevance_score,
            document: return_documents.then(|| ReturnedDocument { text: documents[index].clone() }),
        })
        .collect();
    let body = RerankResponse {
        id: format!("rerank-{}", Uuid::new_v4().simple()),
        model: model.served.id().to_owned(),
        results,
        usage: usage(&scores),
    };
    Ok(json_response(body, &scores, ignored))
}

/// Scores pairs of texts: one text against many, or two lists pairwise.
pub async fn score(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<ScoreRequest>(params::SCORE).await?;
    let model = app.scorer(request.model.as_deref())?;
    let pairs = pairs(request.text_1, request.text_2)?;
    check_n_texts("text_2", pairs.len(), app.limits().embedding_inputs)?;
    let truncate = request.truncate.unwrap_or(false);
    let raw_scores = request.raw_scores.unwrap_or(false);
    let scores = model.embedder.score(ScoringRequest { pairs, truncate, raw_scores }).await?;
    log_scores(&request_id, &scores);
    let data = scores.scores.iter().enumerate();
    let body = ScoreResponse {
        id: format!("score-{}", Uuid::new_v4().simple()),
        object: "list",
        created: unix_time(),
        model: model.served.id().to_owned(),
        data: data.map(|(index, &score)| Score { index, object: "score", score }).collect(),
        usage: usage(&scores),
    };
    Ok(json_response(body, &scores, ignored))
}

/// Pairs up the texts of a request.
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
                    "`text_1` has {} texts and `text_2` has {}; send one against many, or lists of equal length",
                    all.len(),
                    others.len()
                ),
            ));
        }
    })
}

fn usage(scores: &RelevanceScores) -> InputUsage {
    InputUsage { prompt_tokens: scores.n_tokens, total_tokens: scores.n_tokens }
}

fn log_scores(request_id: &RequestId, scores: &RelevanceScores) {
    tracing::info!(
        id = request_id.as_str(),
        texts = scores.scores.len(),
        tokens = scores.n_tokens,
        cache_hits = scores.n_hits,
        queue_ms = scores.queue_time.as_millis(),
        compute_ms = scores.compute_time.as_millis(),
        "scores"
    );
}

fn json_response(body: impl Serialize, scores: &RelevanceScores, ignored: IgnoredParams) -> Response {
    let mut response = Json(body).into_response();
    ignored.insert_into(response.headers_mut());
    response.headers_mut().insert("x-cache-hits", HeaderValue::from(scores.n_hits));
    response
}
