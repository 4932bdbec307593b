//! `POST /api/embed` and `POST /api/embeddings`, Ollama's API.

use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::embeddings::{EmbeddedTexts, HITS_HEADER, ResponseText, embed as embed_texts};
use crate::app::App;
use crate::http::error::ApiError;
use crate::http::extract::JsonObject;
use crate::http::middleware::auth::Tenant;
use crate::http::middleware::request_id::RequestId;
use crate::metering::RequestMeter;
use crate::ollama::params;
use crate::ollama::requests::{OllamaEmbedRequest, OllamaEmbeddingsRequest};
use crate::ollama::responses::{OllamaEmbedResponse, OllamaEmbeddingsResponse, nanoseconds};
use crate::openai::embeddings::{EmbeddingsRequest, TextsOrTokens};
use crate::openai::generation_options::OneOrMany;

/// Responds with the embeddings of the request's texts.
pub async fn embed(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(meter): Extension<RequestMeter>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let began = Instant::now();
    let (request, mut ignored) = body.parse::<OllamaEmbedRequest>(params::EMBED).await?;
    let OllamaEmbedRequest { model, input, truncate, dimensions } = request;
    ignored.add_unknown_model(&app, model.as_deref());
    let embedder = app.embedder(model.as_deref())?;
    let load_began = Instant::now();
    embedder.embedder.model().await?;
    let mut response = OllamaEmbedResponse {
        embeddings: Vec::new(),
        model: embedder.served.id().to_owned(),
        total_duration: 0,
        load_duration: nanoseconds(load_began.elapsed()),
        prompt_eval_count: 0,
    };
    let input = match input {
        Some(OneOrMany::One(text)) if !text.is_empty() => TextsOrTokens::Text(text),
        Some(OneOrMany::Many(texts)) if !texts.is_empty() => TextsOrTokens::Texts(texts),
        _ => {
            response.total_duration = nanoseconds(began.elapsed());
            return Ok((no_hits(), ignored.respond(&response)?).into_response());
        }
    };
    let request = EmbeddingsRequest {
        truncate: Some(truncate.unwrap_or(true)),
        dimensions: dimensions.map(|n| usize::try_from(n.get()).unwrap_or(usize::MAX)),
        ..embeddings_request(model, input)
    };
    let embedded = embed_texts(&app, &request_id, &tenant, &meter, request).await?;
    let EmbeddedTexts { vectors, n_tokens, headers, .. } = embedded;
    response.prompt_eval_count = n_tokens;
    response.total_duration = nanoseconds(began.elapsed());
    let encode = |_: usize, vector: Vec<f32>, text: &mut Vec<u8>| {
        // Numbers can always be written to memory.
        let _ = serde_json::to_writer(text, &vector);
    };
    let mut response = ResponseText::new(&response, vectors, encode)?.into_response();
    response.headers_mut().extend(headers);
    ignored.insert_into(response.headers_mut());
    Ok(response)
}

/// Responds with the embedding of one text.
pub async fn embeddings(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(meter): Extension<RequestMeter>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, mut ignored) = body.parse::<OllamaEmbeddingsRequest>(params::EMBEDDINGS).await?;
    let OllamaEmbeddingsRequest { model, prompt } = request;
    ignored.add_unknown_model(&app, model.as_deref());
    let Some(text) = prompt.filter(|text| !text.is_empty()) else {
        app.embedder(model.as_deref())?.embedder.model().await?;
        let response = ignored.respond(&OllamaEmbeddingsResponse { embedding: Vec::new() })?;
        return Ok((no_hits(), response).into_response());
    };
    let request = embeddings_request(model, TextsOrTokens::Text(text));
    let EmbeddedTexts { vectors, headers, .. } =
        embed_texts(&app, &request_id, &tenant, &meter, request).await?;
    let embedding = vectors.get(0).unwrap_or_default();
    let response = ignored.respond(&OllamaEmbeddingsResponse { embedding })?;
    Ok((headers, response).into_response())
}

/// The header about the cache of a response without embeddings.
fn no_hits() -> [(&'static str, &'static str); 1] {
    [(HITS_HEADER, "0")]
}

/// A request for embeddings of any length, of texts that are truncated where they are too long.
fn embeddings_request(model: Option<String>, input: TextsOrTokens) -> EmbeddingsRequest {
    EmbeddingsRequest {
        model,
        input,
        encoding_format: None,
        dimensions: None,
        force_dimensions: Some(true),
        input_type: None,
        prompt_name: None,
        truncate: Some(true),
        truncate_prompt_tokens: None,
    }
}
