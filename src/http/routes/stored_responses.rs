//! Stored responses: `GET` and `DELETE /v1/responses/{id}`, `POST /v1/responses/{id}/cancel`,
//! `GET /v1/responses/{id}/input_items`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;

use crate::app::App;
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::extract::respond_with;
use crate::http::middleware::auth::Owner;
use crate::http::query::{PathId, QueryParams};
use crate::http::response_run::{BackgroundRuns, replayed_stream};
use crate::openai::responses::conversations::{Deleted, ItemList, id_of_item};
use crate::openai::responses::output::{ResponseFailure, ResponseObject, ResponseStatus};
use crate::responses::{StoredResponse, replay};

/// A stored response, or its events with `stream=true`.
pub async fn retrieve(
    State(app): State<App>,
    Owner(owner): Owner,
    Extension(background): Extension<BackgroundRuns>,
    PathId(id): PathId,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let is_streamed = query.flag("stream")?;
    let after = query.number("starting_after")?;
    if let Some(run) = background.find(&id, &owner).filter(|_| is_streamed) {
        return Ok(run.follow(after));
    }
    let StoredResponse { response, deltas, .. } = find(&app, &owner, &background, id).await?;
    if is_streamed {
        return Ok(replayed_stream(replay(&response, &deltas), after));
    }
    respond_with(&response)
}

/// Deletes a response; one in the background is cancelled first.
pub async fn delete(
    State(app): State<App>,
    Owner(owner): Owner,
    Extension(background): Extension<BackgroundRuns>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    if let Some(run) = background.find(&id, &owner) {
        run.cancel().await;
    }
    let removed = id.clone();
    app.with_state(move |state| state.remove_response(&owner, &removed)).await?;
    respond_with(&Deleted { id, object: "response", deleted: true })
}

/// Ends the generation of a response in the background. One that has ended stays as it is.
pub async fn cancel(
    State(app): State<App>,
    Owner(owner): Owner,
    Extension(background): Extension<BackgroundRuns>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    if let Some(run) = background.find(&id, &owner) {
        run.cancel().await;
    }
    let StoredResponse { response, .. } = find(&app, &owner, &background, id).await?;
    if !response.background {
        let message =
            "only responses with `background: true` can be cancelled; end others by closing their connection";
        return Err(Error::invalid("response_id", message).into());
    }
    respond_with(&response)
}

/// Lists the input of a response.
pub async fn input_items(
    State(app): State<App>,
    Owner(owner): Owner,
    PathId(id): PathId,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let list = query.list()?;
    let stored = app.with_state(move |state| state.response(&owner, &id)).await?;
    let (data, has_more) = list.page(&stored.input, id_of_item)?;
    respond_with(&ItemList::new(data, has_more))
}

/// A stored response. One that was generated when the server stopped has failed.
async fn find(
    app: &App,
    owner: &Arc<str>,
    background: &BackgroundRuns,
    id: String,
) -> Result<StoredResponse> {
    let (for_owner, wanted) = (owner.clone(), id.clone());
    // Before the store is read: a response that ends meanwhile is stored first.
    let run = background.find(&id, owner);
    let mut stored = app.with_state(move |state| state.response(&for_owner, &wanted)).await?;
    if stored.response.status.is_running() {
        let status = match &run {
            Some(run) if run.has_begun() => ResponseStatus::InProgress,
            Some(_) => ResponseStatus::Queued,
            None => ResponseStatus::Failed,
        };
        let message = "the server stopped while it generated the response; send the request again";
        let error = run
            .is_none()
            .then(|| ResponseFailure { code: "server_error".to_owned(), message: message.to_owned() });
        stored.response = ResponseObject { status, error, ..stored.response };
    }
    Ok(stored)
}
