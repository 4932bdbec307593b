//! `POST /tokenize` and `POST /detokenize`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::app::{App, LoadedModel};
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::extract::JsonObject;
use crate::openai::params;
use crate::openai::tokens::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

/// Responds with the token ids of a text or a conversation.
pub async fn tokenize(State(app): State<App>, body: JsonObject) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<TokenizeRequest>(params::TOKENIZE)?;
    let model = app.load_any(request.model.as_deref()).await?;
    let work = move || -> Result<TokenizeResponse> {
        let tokens = token_ids(&request, &model)?;
        let tokenizer = model.tokenizer();
        let texts = || tokens.iter().map(|&id| tokenizer.token_text(id)).collect();
        Ok(TokenizeResponse {
            count: tokens.len(),
            max_model_len: model.max_tokens(),
            token_strs: request.return_token_strs.unwrap_or(false).then(texts),
            tokens,
        })
    };
    let mut response = Json(app.compute(work).await??).into_response();
    ignored.insert_into(response.headers_mut());
    Ok(response)
}

fn token_ids(request: &TokenizeRequest, model: &LoadedModel) -> Result<Vec<u32>> {
    match (&request.prompt, &request.messages, model) {
        (Some(_), Some(_), _) => Err(Error::invalid(
            "messages",
            "`prompt` and `messages` are mutually exclusive; send one of them",
        )),
        (Some(text), None, _) => {
            model.tokenizer().encode_text(text, request.add_special_tokens.unwrap_or(true))
        }
        (None, Some(messages), LoadedModel::Chat(model)) => model.prompt_tokens(messages),
        (None, Some(_), LoadedModel::Text(_)) => {
            Err(Error::invalid("messages", "this model has no chat template; send `prompt`"))
        }
        (None, None, _) => Err(Error::invalid("prompt", "`prompt` is missing; send it or `messages`")),
    }
}

/// Responds with the text of token ids.
pub async fn detokenize(State(app): State<App>, body: JsonObject) -> Result<Response, ApiError> {
    let (request, ignored) = body.parse::<DetokenizeRequest>(params::DETOKENIZE)?;
    let model = app.load_any(request.model.as_deref()).await?;
    let prompt = app.compute(move || model.tokenizer().decode(&request.tokens)).await??;
    let mut response = Json(DetokenizeResponse { prompt }).into_response();
    ignored.insert_into(response.headers_mut());
    Ok(response)
}
