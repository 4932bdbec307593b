//! `POST /v1/embeddings`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream;
use serde::Serialize;

use crate::app::App;
use crate::config::EmbeddingOverflow;
use crate::embeddings::{
    EmbeddingInput, EmbeddingOutput, EmbeddingRequest, InputTokens, LengthRule, PromptPrefix, UnitVectors,
};
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::extract::{JsonObject, insert_list};
use crate::http::middleware::auth::Tenant;
use crate::http::middleware::request_id::RequestId;
use crate::metering::RequestMeter;
use crate::openai::embeddings::{
    EmbeddingObject, EmbeddingVector, EmbeddingsRequest, EmbeddingsResponse, EncodingFormat, InputType,
    InputUsage, TextsOrTokens,
};
use crate::openai::params;

/// Bytes of a response that are made at a time. The text of 2,048 vectors may take 100 MB, so it is made as fast as
/// the client takes it.
const CHUNK_BYTES: usize = 64 << 10;

/// The header with the number of texts that were found in the cache.
pub const HITS_HEADER: &str = "x-cache-hits";

/// The header that lists the texts that were truncated.
pub const TRUNCATED_HEADER: &str = "x-truncated-inputs";

/// Whether texts that are too long are truncated where the request does not say.
pub fn truncates_by_default(app: &App) -> bool {
    app.limits().embedding_overflow == EmbeddingOverflow::Truncate
}

/// Responds with the embeddings of the request's texts.
pub async fn embeddings(
    State(app): State<App>,
    Extension(request_id): Extension<RequestId>,
    Extension(tenant): Extension<Tenant>,
    Extension(meter): Extension<RequestMeter>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let (request, mut ignored) = body.parse::<EmbeddingsRequest>(params::EMBEDDINGS).await?;
    ignored.add_unknown_model(&app, request.model.as_deref());
    let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
    let EmbeddedTexts { model, vectors, n_tokens, headers, is_prompt_known, n_truncated } =
        embed(&app, &request_id, &tenant, &meter, request).await?;
    if !is_prompt_known {
        ignored.extend(["input_type".to_owned()]);
    }
    let usage = InputUsage::new(n_tokens, n_truncated);
    let envelope = EmbeddingsResponse { object: "list", data: Vec::new(), model, usage };
    let encode = move |index: usize, vector: Vec<f32>, text: &mut Vec<u8>| {
        let object = EmbeddingObject { object: "embedding", index, embedding: encode(vector, format) };
        // Numbers and strings can always be written to memory.
        let _ = serde_json::to_writer(text, &object);
    };
    let mut response = ResponseText::new(&envelope, vectors, encode)?.into_response();
    response.headers_mut().extend(headers);
    ignored.insert_into(response.headers_mut());
    Ok(response)
}

/// The vectors of a request's texts.
pub struct EmbeddedTexts {
    /// Id of the model.
    pub model: String,
    /// The vectors.
    pub vectors: UnitVectors,
    /// Tokens of all texts.
    pub n_tokens: usize,
    /// Headers about the cache and truncated texts.
    pub headers: HeaderMap,
    /// Whether the model knows the prompt of the request's `input_type`; true where it had none.
    pub is_prompt_known: bool,
    /// Number of texts that were truncated.
    pub n_truncated: usize,
}

/// Embeds the texts of a request, counts their tokens, and logs that.
///
/// # Errors
/// When no embedding model has the requested name, a parameter is out of range, or the texts cannot be embedded.
pub async fn embed(
    app: &App,
    request_id: &RequestId,
    tenant: &Tenant,
    meter: &RequestMeter,
    request: EmbeddingsRequest,
) -> Result<EmbeddedTexts> {
    let model = app.embedder(request.model.as_deref())?;
    meter.set_model(model.served.id());
    let truncate = request.truncate.unwrap_or(truncates_by_default(app));
    let request = to_embedding_request(request, truncate, tenant.name())?;
    let EmbeddingOutput { vectors, n_tokens, n_hits, queue_time, compute_time, is_prompt_known, truncated } =
        model.embedder.embed(request).await?;
    meter.add_prompt_tokens(n_tokens);
    tracing::info!(
        id = request_id.as_str(),
        trace_id = request_id.trace_id(),
        texts = vectors.len(),
        tokens = n_tokens,
        cache_hits = n_hits,
        queue_ms = queue_time.as_millis(),
        compute_ms = compute_time.as_millis(),
        texts_s = (vectors.len() as f64 / compute_time.as_secs_f64().max(1e-9)).round(),
        "embeddings"
    );
    let n_truncated = truncated.len();
    let truncated: Vec<String> = truncated.iter().map(|idx| format!("input[{idx}]")).collect();
    let mut headers = HeaderMap::new();
    insert_list(&mut headers, TRUNCATED_HEADER, &truncated);
    headers.insert(HITS_HEADER, HeaderValue::from(n_hits));
    let model = model.served.id().to_owned();
    Ok(EmbeddedTexts { model, vectors, n_tokens, headers, is_prompt_known, n_truncated })
}

/// Converts a request into the embedder's terms.
fn to_embedding_request(
    request: EmbeddingsRequest,
    truncate: bool,
    tenant: Arc<str>,
) -> Result<EmbeddingRequest> {
    let length = match request.truncate_prompt_tokens {
        None => LengthRule { truncate, max_tokens: None },
        Some(-1) => LengthRule { truncate: true, max_tokens: None },
        Some(n) => {
            // One that is negative is as much out of range as 0.
            let max_tokens = Some(InputTokens::Whole(usize::try_from(n).unwrap_or(0)));
            LengthRule { truncate, max_tokens }
        }
    };
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
        inputs: inputs(request.input)?,
        dimensions: request.dimensions,
        force_dimensions: request.force_dimensions.unwrap_or(false),
        prompt,
        length,
        tenant,
    })
}

/// The texts of a request.
///
/// # Errors
/// When there are none, or one is empty.
fn inputs(input: TextsOrTokens) -> Result<Vec<EmbeddingInput>> {
    let text = |text: String| EmbeddingInput::Text(text.into());
    let inputs: Vec<EmbeddingInput> = match input {
        TextsOrTokens::Text(one) => vec![text(one)],
        TextsOrTokens::Texts(texts) => texts.into_iter().map(text).collect(),
        TextsOrTokens::Tokens(ids) => vec![EmbeddingInput::Tokens(ids)],
        TextsOrTokens::TokenLists(lists) => lists.into_iter().map(EmbeddingInput::Tokens).collect(),
    };
    check_not_empty("input", inputs.is_empty())?;
    let is_empty = |input: &EmbeddingInput| match input {
        EmbeddingInput::Text(text) => text.is_empty(),
        EmbeddingInput::Tokens(ids) => ids.is_empty(),
        EmbeddingInput::Pair(..) => false,
    };
    match inputs.iter().position(is_empty) {
        None => Ok(inputs),
        Some(idx) => Err(Error::invalid("input", format!("input {idx} is empty; leave it out"))),
    }
}

/// Rejects a request without texts in `param`.
pub fn check_not_empty(param: &str, is_empty: bool) -> Result<()> {
    if is_empty {
        return Err(Error::invalid(param, format!("`{param}` is empty; send at least one text")));
    }
    Ok(())
}

/// The text of a response, made in chunks.
pub struct ResponseText<F> {
    /// The text up to the first embedding; taken with the first chunk.
    start: Vec<u8>,
    vectors: UnitVectors,
    /// Writes the vector with an index.
    encode: F,
    /// The index of the next embedding; past the number of vectors once the end has been made.
    next: usize,
    end: Vec<u8>,
}

impl<F> ResponseText<F> {
    fn is_done(&self) -> bool {
        self.next > self.vectors.len()
    }
}

impl<F: FnMut(usize, Vec<f32>, &mut Vec<u8>) + Send + 'static> ResponseText<F> {
    /// The text of a response with these `vectors`, as `encode` writes them, in place of the envelope's empty list.
    ///
    /// # Errors
    /// When the envelope cannot be written, or has no empty list.
    pub fn new(envelope: &impl Serialize, vectors: UnitVectors, encode: F) -> Result<Self> {
        let cannot = |e: &dyn std::fmt::Display| Error::internal(format!("cannot write the response: {e}"));
        let text = serde_json::to_string(envelope).map_err(|e| cannot(&e))?;
        // The first list is the data: before it is only a constant.
        let (start, end) = text.split_once("[]").ok_or_else(|| cannot(&"no data"))?;
        Ok(Self {
            start: format!("{start}[").into_bytes(),
            vectors,
            encode,
            next: 0,
            end: format!("]{end}").into_bytes(),
        })
    }

    /// The response with this text.
    pub fn into_response(mut self) -> Response {
        let first = self.next().unwrap_or_default();
        let body = if self.is_done() {
            Body::from(first)
        } else {
            Body::from_stream(stream::iter([first].into_iter().chain(self).map(Ok::<_, Infallible>)))
        };
        ([(CONTENT_TYPE, "application/json")], body).into_response()
    }
}

impl<F: FnMut(usize, Vec<f32>, &mut Vec<u8>)> Iterator for ResponseText<F> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.is_done() {
            return None;
        }
        let mut text = std::mem::take(&mut self.start);
        while text.len() < CHUNK_BYTES {
            let Some(vector) = self.vectors.get(self.next) else {
                text.append(&mut self.end);
                self.next += 1;
                break;
            };
            if self.next > 0 {
                text.push(b',');
            }
            (self.encode)(self.next, vector, &mut text);
            self.next += 1;
        }
        Some(text)
    }
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
