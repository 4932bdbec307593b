//! Stored responses: `GET` and `DELETE /v1/responses/{id}`, `POST /v1/responses/{id}/cancel`,
//! `GET /v1/responses/{id}/input_items`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use crate::app::App;
use crate::error::{Error, Result};
use crate::http::error::ApiError;
use crate::http::middleware::auth::Tenant;
use crate::http::query::{ListQuery, PathId, QueryParams};
use crate::http::response_run::{BackgroundRuns, replayed_stream};
use crate::http::retry::dedup::to_json;
use crate::http::retry::heartbeat::json_response;
use crate::openai::responses::conversations::{Deleted, ItemList};
use crate::openai::responses::output::{ResponseFailure, ResponseObject, ResponseStatus};
use crate::responses::{StoredResponse, page, replay};

/// A stored response, or its events with `stream=true`.
pub async fn retrieve(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    Extension(background): Extension<BackgroundRuns>,
    PathId(id): PathId,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let owner = app.state_owner(&tenant.name());
    let is_streamed = query.flag("stream")?;
    let after = query.number("starting_after")?;
    if let Some(run) = background.find(&id, &owner).filter(|_| is_streamed) {
        return Ok(run.follow(after));
    }
    let StoredResponse { response, deltas, .. } = find(&app, &owner, &background, id).await?;
    if is_streamed {
        return Ok(replayed_stream(replay(&response, &deltas), after));
    }
    Ok(json_response(HeaderMap::new(), to_json(&response)?))
}

/// Deletes a response; one in the background is cancelled first.
pub async fn delete(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    Extension(background): Extension<BackgroundRuns>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    let owner = app.state_owner(&tenant.name());
    if let Some(run) = background.find(&id, &owner) {
        run.cancel().await;
    }
    let removed = id.clone();
    app.with_state(move |state| state.remove_response(&owner, &removed)).await?;
    Ok(json_response(HeaderMap::new(), to_json(&Deleted { id, object: "response", deleted: true })?))
}

/// Ends the generation of a response in the background. One that has ended stays as it is.
pub async fn cancel(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    Extension(background): Extension<BackgroundRuns>,
    PathId(id): PathId,
) -> Result<Response, ApiError> {
    let owner = app.state_owner(&tenant.name());
    if let Some(run) = background.find(&id, &owner) {
        run.cancel().await;
    }
    let StoredResponse { response, .. } = find(&app, &owner, &background, id).await?;
    if !response.background {
        let message =
            "only responses with `background: true` can be cancelled; end others by closing their connection";
        return Err(Error::invalid("response_id", message).into());
    }
    Ok(json_response(HeaderMap::new(), to_json(&response)?))
}

/// Lists the input of a response.
pub async fn input_items(
    State(app): State<App>,
    Extension(tenant): Extension<Tenant>,
    PathId(id): PathId,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let owner = app.state_owner(&tenant.name());
    let ListQuery(request) = query.list()?;
    let stored = app.with_state(move |state| state.response(&owner, &id)).await?;
    let (data, has_more) = page(&stored.input, &request)?;
    Ok(json_response(HeaderMap::new(), to_json(&ItemList::new(data, has_more))?))
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
