//! `POST /v1/rerank`, `POST /rerank` and `POST /v1/score`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use uuid::Uuid;

use super::embeddings::{TRUNCATED_HEADER, check_not_empty, truncates_by_default};
use crate::app::{App, unix_time};
use crate::embeddings::{RelevanceScores, ScoringRequest};
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject, insert_list};
use crate::http::middleware::auth::Tenant;
use crate::http::middleware::request_id::RequestId;
use crate::metering::RequestMeter;
use crate::openai::embeddings::InputUsage;
use crate::openai::params;
use crate::openai::rerank::{
    Document, RerankAnswer, RerankRequest, RerankResponse, RerankResult, ReturnedDocument, Score,
    ScoreRequest, ScoreResponse, SglangRanking,
};

/// Ranks documents by relevance to a query.
pub async fn rerank(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(meter): Extension<RequestMeter>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (mut request, mut ignored) = body.parse::<RerankRequest>(params::RERANK).await?;
    if request.rid.is_some() {
        // A router that does not pass the client's model on.
        request.model = request.model.filter(|model| model != "unknown");
    }
    let model = app.scorer(request.model.as_deref())?;
    meter.set_model(model.served.id());
    ignored.add_unknown_model(&app, request.model.as_deref());
    check_not_empty("documents", request.documents.is_empty())?;
    for (name, top_n) in [("top_n", request.top_n), ("top_k", request.top_k)] {
        if top_n == Some(0) {
            return Err(Error::invalid(name, format!("`{name}` is 0; set it to 1 or more")).into());
        }
    }
    if request.max_tokens_per_doc == Some(0) {
        let message = "`max_tokens_per_doc` is 0; set it to 1 or more";
        return Err(Error::invalid("max_tokens_per_doc", message).into());
    }
    let documents = shared(request.documents.into_iter().map(Document::into_text));
    let return_documents = request.return_documents.unwrap_or(false);
    let returned = if return_documents { documents.clone() } else { Vec::new() };
    let scores = model
        .embedder
        .score(ScoringRequest {
            queries: shared([request.query]),
            documents,
            truncate: request.truncate.unwrap_or(truncates_by_default(&app)),
            max_document_tokens: request.max_tokens_per_doc,
            raw_scores: request.raw_scores.unwrap_or(false),
            tenant: tenant.name(),
        })
        .await?;
    log_scores(&request_id, &scores);
    meter.add_prompt_tokens(scores.n_tokens);
    let mut ranked: Vec<(usize, f32)> = scores.scores.iter().copied().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(request.top_n.or(request.top_k).unwrap_or(usize::MAX));
    let results: Vec<RerankResult> = ranked
        .into_iter()
        .map(|(index, relevance_score)| RerankResult {
            index,
            relevance_score,
            document: returned.get(index).map(|text| ReturnedDocument { text: text.to_string() }),
        })
        .collect();
    let body = match request.rid {
        Some(_) => RerankAnswer::List(results.into_iter().map(SglangRanking::from).collect()),
        None => RerankAnswer::Object(RerankResponse {
            id: format!("rerank-{}", Uuid::new_v4().simple()),
            model: model.served.id().to_owned(),
            results,
            usage: usage(&scores),
        }),
    };
    Ok(json_response(body, &scores, &["query", "documents"], ignored))
}

/// Scores pairs of texts: one text against many, or two lists pairwise.
pub async fn score(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(meter): Extension<RequestMeter>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, mut ignored) = body.parse::<ScoreRequest>(params::SCORE).await?;
    let model = app.scorer(request.model.as_deref())?;
    meter.set_model(model.served.id());
    ignored.add_unknown_model(&app, request.model.as_deref());
    let (first, second) = (shared(request.text_1.into_vec()), shared(request.text_2.into_vec()));
    check_not_empty("text_1", first.is_empty())?;
    check_not_empty("text_2", second.is_empty())?;
    if first.len() != second.len() && first.len() > 1 && second.len() > 1 {
        return Err(Error::invalid(
            "text_2",
            format!(
                "`text_1` has {} texts and `text_2` has {}; send one against many, or lists of equal length",
                first.len(),
                second.len()
            ),
        )
        .into());
    }
    let request = ScoringRequest {
        queries: first,
        documents: second,
        truncate: request.truncate.unwrap_or(truncates_by_default(&app)),
        max_document_tokens: None,
        raw_scores: request.raw_scores.unwrap_or(false),
        tenant: tenant.name(),
    };
    let scores = model.embedder.score(request).await.map_err(|e| match e.param() {
        Some("query") => e.with_param("text_1"),
        Some("documents") => e.with_param("text_2"),
        _ => e,
    })?;
    log_scores(&request_id, &scores);
    meter.add_prompt_tokens(scores.n_tokens);
    let data = scores.scores.iter().enumerate();
    let body = ScoreResponse {
        id: format!("score-{}", Uuid::new_v4().simple()),
        object: "list",
        created: unix_time(),
        model: model.served.id().to_owned(),
        data: data.map(|(index, &score)| Score { index, object: "score", score }).collect(),
        usage: usage(&scores),
    };
    Ok(json_response(body, &scores, &["text_1", "text_2"], ignored))
}

/// Texts that requests, pairs and responses share.
fn shared(texts: impl IntoIterator<Item = String>) -> Vec<Arc<str>> {
    texts.into_iter().map(Arc::from).collect()
}

fn usage(scores: &RelevanceScores) -> InputUsage {
    InputUsage::new(scores.n_tokens, scores.truncated_queries.len() + scores.truncated_documents.len())
}

fn log_scores(request_id: &RequestId, scores: &RelevanceScores) {
    tracing::info!(
        id = request_id.as_str(),
        trace_id = request_id.trace_id(),
        texts = scores.scores.len(),
        tokens = scores.n_tokens,
        cache_hits = scores.n_hits,
        queue_ms = scores.queue_time.as_millis(),
        compute_ms = scores.compute_time.as_millis(),
        "scores"
    );
}

/// The response; `params` are those with the first and with the second texts.
fn json_response(
    body: impl Serialize,
    scores: &RelevanceScores,
    params: &[&str; 2],
    ignored: IgnoredParams,
) -> Response {
    let mut response = Json(body).into_response();
    let path = |param: &str, idx: &usize| match param {
        "query" => param.to_owned(),
        _ => format!("{param}[{idx}]"),
    };
    let truncated = [&scores.truncated_queries, &scores.truncated_documents].into_iter().zip(params);
    let truncated: Vec<String> =
        truncated.flat_map(|(indices, param)| indices.iter().map(|idx| path(param, idx))).collect();
    insert_list(response.headers_mut(), TRUNCATED_HEADER, &truncated);
    ignored.insert_into(response.headers_mut());
    response.headers_mut().insert("x-cache-hits", HeaderValue::from(scores.n_hits));
    response
}
