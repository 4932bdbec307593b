//! `POST /v1/embeddings`.

use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::app::App;
use crate::embeddings::{EmbeddingInput, EmbeddingOutput, EmbeddingRequest, PromptPrefix};
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::extract::JsonObject;
use crate::http::middleware::request_id::RequestId;
use crate::openai::embeddings::{
    EmbeddingObject, EmbeddingVector, EmbeddingsRequest, EmbeddingsResponse, EncodingFormat, InputType,
    InputUsage, TextsOrTokens,
};
use crate::openai::params;

/// Responds with the embeddings of the request's texts.
pub async fn embeddings(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<EmbeddingsRequest>(params::EMBEDDINGS).await?;
    let model = app.embedder(request.model.as_deref())?;
    let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let request = to_embedding_request(request, app.limits().embedding_inputs)?;
    let n_inputs = request.inputs.len();
    let EmbeddingOutput { vectors, n_tokens, n_hits, queue_time, compute_time } =
        model.embedder.embed(request).await?;
    tracing::info!(
        id = request_id.as_str(),
        texts = n_inputs,
        tokens = n_tokens,
        cache_hits = n_hits,
        queue_ms = queue_time.as_millis(),
        compute_ms = compute_time.as_millis(),
        texts_s = (n_inputs as f64 / compute_time.as_secs_f64().max(1e-9)).round(),
        "embeddings"
    );
    let data = vectors
        .into_iter()
        .enumerate()
        .map(|(index, vector)| EmbeddingObject {
            object: "embedding",
            index,
            embedding: encode(vector, format),
        })
        .collect();
    let usage = InputUsage { prompt_tokens: n_tokens, total_tokens: n_tokens };
    let body = EmbeddingsResponse { object: "list", data, model: model.served.id().to_owned(), usage };
    let mut response = Json(body).into_response();
    ignored.insert_into(response.headers_mut());
    response.headers_mut().insert("x-cache-hits", HeaderValue::from(n_hits));
    Ok(response)
}

/// Converts a request into the embedder's terms.
fn to_embedding_request(request: EmbeddingsRequest, max_inputs: usize) -> Result<EmbeddingRequest> {
    let prompt = match (request.input_type, request.prompt_name) {
        (Some(_), Some(_)) => {
            let message =
                "`input_type` and `prompt_name` both select the prompt before the texts; send one of them";
            return Err(Error::invalid("prompt_name", message));
        }
        (None, None) => PromptPrefix::None,
        (Some(InputType::Query), None) => PromptPrefix::Query,
        (Some(InputType::Document), None) => PromptPrefix::Document,
        (None, Some(name)) => PromptPrefix::Named(name),
    };
    Ok(EmbeddingRequest {
        inputs: inputs(request.input, max_inputs)?,
        dimensions: request.dimensions,
        force_dimensions: request.force_dimensions.unwrap_or(false),
        prompt,
        truncate: request.truncate.unwrap_or(false),
    })
}

/// The texts of a request.
///
/// # Errors
/// When there are none or too many.
fn inputs(input: TextsOrTokens, max_inputs: usize) -> Result<Vec<EmbeddingInput>> {
    let inputs: Vec<EmbeddingInput> = match input {
        TextsOrTokens::Text(text) => vec![EmbeddingInput::Text(text)],
        TextsOrTokens::Texts(texts) => texts.into_iter().map(EmbeddingInput::Text).collect(),
        TextsOrTokens::Tokens(ids) => vec![EmbeddingInput::Tokens(ids)],
        TextsOrTokens::TokenLists(lists) => lists.into_iter().map(EmbeddingInput::Tokens).collect(),
    };
    let is_empty = |input: &EmbeddingInput| matches!(input, EmbeddingInput::Tokens(ids) if ids.is_empty());
    let n_inputs = if inputs.iter().any(is_empty) { 0 } else { inputs.len() };
    check_n_texts("input", n_inputs, max_inputs)?;
    Ok(inputs)
}

/// Rejects a request with `n` texts in `param` if there are none, or more than `max`.
pub fn check_n_texts(param: &str, n: usize, max: usize) -> Result<()> {
    if n == 0 {
        return Err(Error::invalid(param, format!("`{param}` is empty; send at least one text")));
    }
    if n > max {
        let message = format!("`{param}` has {n} items; send at most {max} per request");
        return Err(Error::invalid(param, message));
    }
    Ok(())
}

fn encode(vector: Vec<f32>, format: EncodingFormat) -> EmbeddingVector {
    match format {
        EncodingFormat::Float => EmbeddingVector::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            EmbeddingVector::Base64(BASE64.encode(bytes))
        }
    }
}
