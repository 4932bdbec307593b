//! `POST /tokenize`, `POST /detokenize`, `POST /apply-template` and `GET /tokenizer_info`.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::{Extension, Json};

use crate::app::App;
use crate::error::Result;
use crate::http::error::ApiError;
use crate::http::extract::{IgnoredParams, JsonObject};
use crate::http::middleware::auth::Tenant;
use crate::http::retry::dedup::to_json;
use crate::http::retry::heartbeat::json_response;
use crate::openai::params;
use crate::openai::tokens::{ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest, TokenizerInfo};

/// Responds with the token ids of a text or a conversation.
pub async fn tokenize(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let n_bytes = body.n_bytes();
    let (request, mut ignored) = body.parse::<TokenizeRequest>(params::TOKENIZE).await?;
    ignored.add_unknown_model(&app, request.model.as_deref());
    let tenant = tenant.name();
    let then = |response, ignored| to_json(&response).map(|json| (json, ignored));
    let (json, more_ignored) = app.tokenize(request, &tenant, n_bytes, then).await??;
    ignored.extend(more_ignored);
    Ok(respond(json, ignored))
}

/// Responds with the text of a conversation's prompt.
pub async fn apply_template(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let n_bytes = body.n_bytes();
    let (request, mut ignored) = body.parse::<ApplyTemplateRequest>(params::APPLY_TEMPLATE).await?;
    ignored.add_unknown_model(&app, request.model.as_deref());
    let tenant = tenant.name();
    let then = |response, ignored| to_json(&response).map(|json| (json, ignored));
    let (json, more_ignored) = app.apply_template(request, &tenant, n_bytes, then).await??;
    ignored.extend(more_ignored);
    Ok(respond(json, ignored))
}

/// Describes the tokenizer of the first chat model.
pub async fn tokenizer_info(State(app): State<App>) -> Result<Json<TokenizerInfo>, ApiError> {
    Ok(Json(app.tokenizer_info().await?))
}

/// Responds with the text of token ids.
pub async fn detokenize(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let n_bytes = body.n_bytes();
    let (request, mut ignored) = body.parse::<DetokenizeRequest>(params::DETOKENIZE).await?;
    ignored.add_unknown_model(&app, request.model.as_deref());
    let tenant = tenant.name();
    let json = app.detokenize(request, &tenant, n_bytes, |response| to_json(&response)).await??;
    Ok(respond(json, ignored))
}

fn respond(json: Bytes, ignored: IgnoredParams) -> Response {
    let mut headers = HeaderMap::new();
    ignored.insert_into(&mut headers);
    json_response(headers, json)
}
